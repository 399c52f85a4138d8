/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A connection that is cut in the middle says nothing for a quarter of an hour
 * (tcp(7), tcp_retries2): what is sent over it just stands still. Pure.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct stall {
    bool begun;
    uint64_t count;    /* bytes, or anything that grows */
    uint64_t since_ms; /* it has been that */
};

/* Milliseconds for which 'count' has been what it is. */
static inline uint64_t stall_sample(struct stall *stall, uint64_t now_ms,
                                    uint64_t count)
{
    if (!stall->begun || stall->count != count || now_ms < stall->since_ms) {
        *stall = (struct stall){true, count, now_ms};
    }
    return now_ms - stall->since_ms;
}

/* Nothing is expected to grow just now: time begins anew. */
static inline void stall_reset(struct stall *stall)
{
    stall->begun = false;
}
