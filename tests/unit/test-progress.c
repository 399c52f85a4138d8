/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <criterion/criterion.h>

#include "policy/progress.h"

#define MB UINT64_C(1000000)

/* A mirror of 'total' at 'rate' while the guest dirties 'dirty' a second. */
struct mirror {
    uint64_t now_ms, offset, len, rate, dirty;
};

static void run(struct progress *progress, struct mirror *mirror,
                enum progress_phase phase, unsigned seconds)
{
    for (unsigned i = 0; i < seconds; i++) {
        progress_sample(progress, mirror->now_ms, phase, mirror->offset,
                        mirror->len);
        mirror->now_ms += 1000;
        mirror->offset += mirror->rate;
        mirror->len += mirror->dirty;
    }
}

Test(progress, quiet_guest_has_an_exact_eta)
{
    struct progress progress = {0};
    struct mirror mirror = {.len = 1000 * MB, .rate = 100 * MB};
    run(&progress, &mirror, PROGRESS_COPY, 6);
    cr_assert_eq(progress_rate(&progress), 100 * MB);
    cr_assert_eq(progress_dirty_rate(&progress), 0);
    cr_assert_eq(progress_remaining(&progress), 500 * MB);
    cr_assert_eq(progress_eta_ms(&progress), 5000);
}

Test(progress, writing_guest_makes_the_eta_longer)
{
    struct progress progress = {0};
    struct mirror mirror = {
        .len = 1000 * MB, .rate = 100 * MB, .dirty = 50 * MB};
    run(&progress, &mirror, PROGRESS_COPY, 6);
    cr_assert_eq(progress_rate(&progress), 100 * MB);
    cr_assert_eq(progress_dirty_rate(&progress), 50 * MB);
    cr_assert_eq(progress_eta_ms(&progress), 15000);
}

Test(progress, guest_as_fast_as_the_copy_has_no_eta)
{
    struct progress progress = {0};
    struct mirror mirror = {.len = 500 * MB, .rate = 50 * MB, .dirty = 50 * MB};
    run(&progress, &mirror, PROGRESS_COPY, 20);
    cr_assert_eq(progress_eta_ms(&progress), PROGRESS_UNKNOWN);
    mirror.dirty = 90 * MB;
    run(&progress, &mirror, PROGRESS_COPY, 20);
    cr_assert_eq(progress_eta_ms(&progress), PROGRESS_UNKNOWN);
}

Test(progress, first_samples_give_no_eta_but_nothing_left_is_zero)
{
    struct progress progress = {0};
    cr_assert_eq(progress_eta_ms(&progress), PROGRESS_UNKNOWN);
    progress_sample(&progress, 4, PROGRESS_COPY, 0, 0);
    cr_assert_eq(progress_eta_ms(&progress), PROGRESS_UNKNOWN);
    progress_sample(&progress, 5, PROGRESS_COPY, 0, 100);
    cr_assert_eq(progress_eta_ms(&progress), PROGRESS_UNKNOWN);
    progress_sample(&progress, 1005, PROGRESS_COPY, 100, 100);
    cr_assert_eq(progress_eta_ms(&progress), 0);
    cr_assert_eq(progress_remaining(&progress), 0);
}

Test(progress, change_of_speed_is_followed_within_seconds)
{
    struct progress progress = {0};
    struct mirror mirror = {.len = UINT64_MAX / 2, .rate = 100 * MB};
    run(&progress, &mirror, PROGRESS_COPY, 10);
    mirror.rate = 10 * MB;
    run(&progress, &mirror, PROGRESS_COPY, 20);
    cr_assert_lt(progress_rate(&progress), 15 * MB);
    cr_assert_gt(progress_rate(&progress), 10 * MB - 1);
}

Test(progress, pause_counts_for_nothing)
{
    struct progress progress = {0};
    struct mirror mirror = {.len = 1000 * MB, .rate = 100 * MB};
    run(&progress, &mirror, PROGRESS_COPY, 4);
    mirror.rate = 0;
    run(&progress, &mirror, PROGRESS_PAUSED, 60);
    cr_assert_eq(progress_eta_ms(&progress), PROGRESS_UNKNOWN);
    cr_assert_eq(progress_rate(&progress), 0);
    mirror.rate = 100 * MB;
    run(&progress, &mirror, PROGRESS_COPY, 5);
    cr_assert_eq(progress_rate(&progress), 100 * MB);
    cr_assert_eq(progress_eta_ms(&progress),
                 progress_remaining(&progress) / (100 * MB / 1000));
}

Test(progress, converging_measures_anew_what_is_left)
{
    struct progress progress = {0};
    struct mirror mirror = {.len = 1000 * MB, .rate = 100 * MB};
    run(&progress, &mirror, PROGRESS_COPY, 9);
    mirror.rate = 30 * MB;
    mirror.dirty = 20 * MB;
    run(&progress, &mirror, PROGRESS_CONVERGE, 1);
    cr_assert_eq(progress_eta_ms(&progress), PROGRESS_UNKNOWN);
    run(&progress, &mirror, PROGRESS_CONVERGE, 5);
    /* 10 MB a second net, whatever the first pass was like. */
    cr_assert_eq(progress_eta_ms(&progress),
                 progress_remaining(&progress) / (10 * MB / 1000));
}

Test(progress, close_samples_count_with_the_next)
{
    struct progress progress = {0};
    progress_sample(&progress, 0, PROGRESS_COPY, 0, 1000 * MB);
    for (uint64_t ms = 10; ms <= 100; ms += 10) {
        /* All that 100 ms bring arrives with one sample. */
        progress_sample(&progress, ms, PROGRESS_COPY, 10 * MB, 1000 * MB);
    }
    cr_assert_eq(progress_rate(&progress), 100 * MB);
}

Test(progress, odd_figures_begin_anew_and_never_overflow)
{
    struct progress progress = {0};
    struct mirror mirror = {.len = 1000 * MB, .rate = 100 * MB};
    run(&progress, &mirror, PROGRESS_COPY, 5);
    progress_sample(&progress, mirror.now_ms, PROGRESS_COPY, 0, 10); /* back */
    cr_assert_eq(progress_rate(&progress), 0);
    progress_sample(&progress, 3, PROGRESS_COPY, 5, 10); /* time back */
    progress_sample(&progress, UINT64_MAX, PROGRESS_COPY, UINT64_MAX, 0);
    progress_sample(&progress, UINT64_MAX, PROGRESS_CONVERGE, UINT64_MAX,
                    UINT64_MAX);
    cr_assert_eq(progress_remaining(&progress), 0);
    cr_assert_eq(progress_eta_ms(&progress), 0);
}
