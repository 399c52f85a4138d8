/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * --max-guest-latency: how fast a job may copy so that the guest's writes do
 * not wait longer than the user allows. Additive increase, multiplicative
 * decrease on what query-blockstats tells per interval. Pure.
 *
 * QEMU ignores 'speed' once a mirror is READY (block/mirror.c): then there is
 * nothing to govern.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

enum { LATENCY_REASON_MAX = 192 };

struct latency_limits {
    uint64_t max_ns;  /* mean write latency that is borne */
    uint64_t floor;   /* bytes a second; 0: 1 MiB */
    uint64_t ceiling; /* bytes a second: the user's --speed; 0: none */
};

/* Zero it and set 'limits' to begin. */
struct latency {
    struct latency_limits limits;
    uint64_t fastest; /* rate seen when nothing limited it */
    unsigned calm;    /* intervals below the limit in a row */
};

/* Since the last sample: the differences of query-blockstats' counters. */
struct latency_sample {
    uint64_t wr_operations;
    uint64_t wr_total_time_ns;
    uint64_t rate;  /* bytes a second that the job really copied */
    uint64_t speed; /* that the job has now; 0: unlimited */
};

/*
 * Returns true when 'speed' should change, with the value for
 * block-job-set-speed in *ret_speed (0: unlimited). 'reason' is one phrase,
 * always set.
 */
bool latency_sample(struct latency *latency,
                    const struct latency_sample *sample, uint64_t *ret_speed,
                    char reason[LATENCY_REASON_MAX]);
