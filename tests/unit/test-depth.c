/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The number of requests under way, against storages made of numbers. */
#include <criterion/criterion.h>

#include "policy/depth.h"

static const uint64_t MS = 1000000;

/* What a storage does that takes 'latency_ns' for a request and does at most
 * 'limit' a second, for so long; returns the time. */
static uint64_t work(struct depth *depth, uint64_t now_ns, uint64_t latency_ns,
                     double limit, uint64_t for_ns)
{
    uint64_t end_ns = now_ns + for_ns;
    while (now_ns < end_ns) {
        double rate = (double)depth->window / (double)latency_ns * 1e9;
        rate = rate < limit ? rate : limit;
        now_ns += (uint64_t)(1e9 / rate);
        depth_done(depth, now_ns);
    }
    return now_ns;
}

Test(depth, a_far_storage_gets_all_there_is)
{
    struct depth depth;
    depth_init(&depth, 64, 0);
    cr_assert_eq(depth.window, 8);
    (void)work(&depth, 0, 20 * MS, 1e9, 2000 * MS);
    cr_assert_eq(depth.window, 64);
}

Test(depth, a_near_storage_is_left_with_few)
{
    struct depth depth;
    depth_init(&depth, 64, 0);
    uint64_t now_ns = work(&depth, 0, MS, 2000, 500 * MS);
    cr_assert_eq(depth.window, 8);
    /* Each further try ends soon. */
    uint64_t most = 0;
    for (unsigned i = 0; i < 100; i++) {
        now_ns = work(&depth, now_ns, MS, 2000, 100 * MS);
        most += depth.window > 8;
    }
    cr_assert_lt(most, 10);
}

Test(depth, a_storage_that_got_further_is_noticed)
{
    struct depth depth;
    depth_init(&depth, 64, 0);
    uint64_t now_ns = work(&depth, 0, MS, 2000, 500 * MS);
    cr_assert_eq(depth.window, 8);
    (void)work(&depth, now_ns, 40 * MS, 2000, 20000 * MS);
    cr_assert_eq(depth.window, 64);
}

Test(depth, small_and_odd_bounds_are_kept)
{
    for (unsigned most = 1; most < 40; most++) {
        struct depth depth;
        depth_init(&depth, most, 0);
        (void)work(&depth, 0, 20 * MS, 1e9, 3000 * MS);
        cr_assert_leq(depth.window, most);
        cr_assert_geq(depth.window * 2, most < 8 ? most : most / 2 + 1);
    }
}
