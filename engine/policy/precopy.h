/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Whether the stream of a guest's memory comes to its end while the guest runs,
 * and what is done when it does not. Pure: samples in, a verdict and its reason
 * out.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

enum precopy_verdict {
    PRECOPY_KEEP,
    PRECOPY_TELL,     /* nothing is done, and the user should know */
    PRECOPY_SUSPEND,  /* stop the guest: the rest is sent but once */
    PRECOPY_POSTCOPY, /* let the guest go over: the rest is sent after it */
};

enum { PRECOPY_REASON_MAX = 224 };

struct precopy_sample {
    uint64_t now_ms;
    uint64_t passes;    /* ram.dirty-sync-count */
    uint64_t remaining; /* bytes */
    uint64_t rate;      /* sent bytes a second; 0: not measured */
    uint64_t dirty;     /* bytes a second that the guest changes; 0: unknown */
    unsigned throttle;  /* percent that QEMU slows the guest down by */
};

struct precopy {
    bool suspend;        /* after the first pass */
    uint64_t suspend_ms; /* when it takes longer; 0: never */
    bool postcopy;       /* the same, to let the guest go over */
    uint64_t postcopy_ms;
    uint64_t begun_ms;
    unsigned downtime_ms; /* the most that the guest may stand still for */
    uint64_t passes;      /* at the last look, and since when */
    uint64_t passes_ms;
    unsigned stands;   /* how often the memory was sent, and no pass began */
    unsigned throttle; /* what was told of last */
    bool told_endless;
};

/*
 * The downtime that QEMU is to reckon with, which must not exceed 'limit_ms',
 * after so many passes over the memory. It ends the stream as soon as what is
 * left fits into that, and sends it while the guest stands: so first a short
 * one, and a longer one after each pass that it was too short for.
 */
unsigned precopy_downtime_ms(unsigned limit_ms, uint64_t passes);

/*
 * The same by one look. From 9.0 QEMU begins no pass while what other devices
 * have to send does not fit: then it grows with the time.
 */
unsigned precopy_downtime(struct precopy *precopy,
                          const struct precopy_sample *sample);

/*
 * One look at query-migrate. 'reason' is one phrase for the user with the
 * figures that decided, always set. What was told is not told again until it
 * has changed.
 */
enum precopy_verdict precopy_sample(struct precopy *precopy,
                                    const struct precopy_sample *sample,
                                    char reason[PRECOPY_REASON_MAX]);
