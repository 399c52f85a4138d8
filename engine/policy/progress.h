/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * How fast one disk's copy goes and when it will be done. Both figures of a
 * mirror grow: 'offset' by what is copied, 'len' by what the guest writes in
 * between, so the time left follows from how fast their difference shrinks,
 * and is unknown when it does not.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

enum progress_phase {
    PROGRESS_COPY,     /* the first pass */
    PROGRESS_CONVERGE, /* what the guest wrote meanwhile; READY included */
    PROGRESS_PAUSED    /* by a person or by an error: no time runs */
};

#define PROGRESS_UNKNOWN UINT64_MAX

/* Zero it to begin; to begin again (restarted job), zero it again. */
struct progress {
    bool started;
    unsigned samples;          /* steps measured in this phase */
    enum progress_phase phase; /* of the last sample */
    uint64_t time_ms;
    uint64_t offset;
    uint64_t len;
    double rate; /* EWMA of copied bytes a second */
    double net;  /* EWMA of how fast the rest shrinks, bytes a second */
};

/*
 * One look at query-block-jobs. Samples that come closer than 100 ms to the
 * last count with the next; time or offset going back begins anew.
 */
void progress_sample(struct progress *progress, uint64_t now_ms,
                     enum progress_phase phase, uint64_t offset, uint64_t len);

/* Copied bytes a second, 0 while unknown. */
uint64_t progress_rate(const struct progress *progress);
/* What the guest dirties, bytes a second: the rate less the net one. */
uint64_t progress_dirty_rate(const struct progress *progress);
uint64_t progress_remaining(const struct progress *progress);
/* Milliseconds until nothing is left, or PROGRESS_UNKNOWN. */
uint64_t progress_eta_ms(const struct progress *progress);
