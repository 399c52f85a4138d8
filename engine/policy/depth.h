/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * How many requests to keep under way: twice as many as long as that pays,
 * and another try now and then. Too many are no faster where the storage is
 * near, and only fill its caches and ours. Pure; time is an argument.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct depth {
    unsigned window; /* what to keep under way */
    unsigned most;
    bool trying; /* this window is twice the one that is known to be good */
    unsigned done;
    uint64_t begin_ns;
    uint64_t settled_ns;
    double rate; /* of the good one */
};

void depth_init(struct depth *depth, unsigned most, uint64_t now_ns);
/* One more is done. */
void depth_done(struct depth *depth, uint64_t now_ns);
