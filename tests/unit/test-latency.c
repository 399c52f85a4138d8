/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <criterion/criterion.h>
#include <string.h>

#include "policy/latency.h"

#define MIB (UINT64_C(1024) * 1024)
#define MS UINT64_C(1000000)

/* One interval of 100 writes; returns the speed after it. */
static uint64_t step(struct latency *latency, uint64_t write_ns, uint64_t speed,
                     uint64_t rate, const char *said)
{
    char reason[LATENCY_REASON_MAX] = "";
    uint64_t wanted = speed;
    struct latency_sample sample = {100, 100 * write_ns, rate, speed};
    bool changed = latency_sample(latency, &sample, &wanted, reason);
    cr_assert_eq(changed, wanted != speed);
    cr_assert(strstr(reason, said) != NULL, "'%s' is not in '%s'", said,
              reason);
    return wanted;
}

static struct latency limited(uint64_t max_ns, uint64_t floor, uint64_t ceiling)
{
    return (struct latency){
        .limits = {.max_ns = max_ns, .floor = floor, .ceiling = ceiling}
    };
}

Test(latency, slow_writes_halve_what_an_unlimited_job_does)
{
    struct latency latency = limited(10 * MS, 0, 0);
    cr_assert_eq(step(&latency, 25 * MS, 0, 200 * MIB,
                      "guest writes take 25.000 ms, too slow: speed unlimited "
                      "-> 100 MiB/s"),
                 100 * MIB);
    cr_assert_eq(step(&latency, 25 * MS, 100 * MIB, 100 * MIB,
                      "speed 100 MiB/s -> 50 MiB/s"),
                 50 * MIB);
}

Test(latency, speed_never_goes_below_the_floor)
{
    struct latency latency = limited(10 * MS, 8 * MIB, 0);
    uint64_t speed = 0;
    for (unsigned i = 0; i < 20; i++) {
        uint64_t rate = speed == 0 ? 500 * MIB : speed;
        speed = step(&latency, 50 * MS, speed, rate, "too slow");
        cr_assert_geq(speed, 8 * MIB);
    }
    cr_assert_eq(speed, 8 * MIB);
}

Test(latency, calm_raises_by_steps_and_stops_at_the_ceiling)
{
    struct latency latency = limited(10 * MS, 0, 64 * MIB);
    uint64_t speed = 32 * MIB;
    unsigned rises = 0;
    for (unsigned i = 0; i < 200; i++) {
        uint64_t next = step(&latency, 2 * MS, speed, speed, "fine");
        cr_assert_leq(next, 64 * MIB);
        cr_assert_geq(next, speed);
        rises += next > speed;
        speed = next;
    }
    cr_assert_eq(speed, 64 * MIB);
    cr_assert_gt(rises, 4, "by steps, not at once");
}

Test(latency, near_the_limit_nothing_moves)
{
    struct latency latency = limited(10 * MS, 0, 0);
    for (unsigned i = 0; i < 10; i++) {
        cr_assert_eq(
            step(&latency, 9 * MS, 50 * MIB, 50 * MIB, "near the limit"),
            50 * MIB);
    }
}

Test(latency, an_idle_guest_is_a_calm_one)
{
    struct latency latency = limited(10 * MS, 0, 0);
    char reason[LATENCY_REASON_MAX];
    uint64_t speed = 10 * MIB;
    for (unsigned i = 0; i < 3; i++) {
        struct latency_sample sample = {0, 0, speed, speed};
        (void)latency_sample(&latency, &sample, &speed, reason);
    }
    cr_assert_eq(speed, 11 * MIB);
}

Test(latency, a_job_that_does_nothing_is_not_to_blame)
{
    struct latency latency = limited(10 * MS, 0, 0);
    cr_assert_eq(step(&latency, 90 * MS, 50 * MIB, 0, "copies nothing"),
                 50 * MIB);
}

Test(latency, speed_that_is_not_used_is_not_raised)
{
    struct latency latency = limited(10 * MS, 0, 0);
    for (unsigned i = 0; i < 10; i++) {
        cr_assert_eq(step(&latency, MS, 50 * MIB, 10 * MIB, "fine"), 50 * MIB);
    }
}

Test(latency, it_settles_below_what_hurts)
{
    /* Writes take 1 ms, and 20 ms more as soon as 100 MiB/s are copied. */
    struct latency latency = limited(10 * MS, 0, 0);
    uint64_t speed = 0, most = 0;
    unsigned slow = 0;
    for (unsigned i = 0; i < 400; i++) {
        uint64_t rate = speed == 0 ? 400 * MIB : speed;
        bool hurts = rate > 100 * MIB;
        speed = step(&latency, hurts ? 21 * MS : MS, speed, rate, "");
        slow += hurts;
        most = i > 10 && speed > most ? speed : most;
    }
    cr_assert_lt(slow, 60, "%u of 400", slow);
    cr_assert_leq(most, 126 * MIB);
    cr_assert_geq(speed, 50 * MIB);
}

Test(latency, figures_at_the_edge_do_not_overflow)
{
    struct latency latency = limited(UINT64_MAX, UINT64_MAX, 0);
    char reason[LATENCY_REASON_MAX];
    uint64_t speed = 0;
    for (unsigned i = 0; i < 8; i++) {
        struct latency_sample sample = {1, UINT64_MAX, UINT64_MAX,
                                        UINT64_MAX - 1};
        (void)latency_sample(&latency, &sample, &speed, reason);
    }
    cr_assert_leq(speed, (uint64_t)INT64_MAX);
}
