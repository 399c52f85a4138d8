/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Scenarios as text: each line is "SECONDS PASSES LEFT-MiB RATE-MiB DIRTY-MiB
 * THROTTLE;", one look at a stream.
 */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "policy/precopy.h"

static const char *const verdicts[] = {"keep", "tell", "suspend", "postcopy"};

/* Each verdict but "keep" as "SECOND:VERDICT "; 'reason' is the last one's. */
static void expect(struct precopy precopy, const char *scenario,
                   const char *said, const char *why)
{
    const uint64_t mib = 1024 * 1024;
    char out[256] = "", reason[PRECOPY_REASON_MAX] = "";
    size_t used = 0;
    precopy.begun_ms = 7000;
    for (int n = 0; *scenario != '\0'; scenario += n) {
        unsigned s, passes, left, rate, dirty, throttle;
        char text[PRECOPY_REASON_MAX] = "";
        cr_assert_eq(sscanf(scenario, " %u %u %u %u %u %u;%n", &s, &passes,
                            &left, &rate, &dirty, &throttle, &n),
                     6);
        struct precopy_sample sample = {.now_ms = 7000 + s * UINT64_C(1000),
                                        .passes = passes,
                                        .remaining = left * mib,
                                        .rate = rate * mib,
                                        .dirty = dirty * mib,
                                        .throttle = throttle};
        enum precopy_verdict verdict = precopy_sample(&precopy, &sample, text);
        cr_assert_neq(text[0], '\0');
        if (verdict != PRECOPY_KEEP) {
            used += (size_t)snprintf(out + used, sizeof(out) - used, "%u:%s ",
                                     s, verdicts[verdict]);
            (void)strcpy(reason, text);
        }
    }
    cr_assert_str_eq(out, said);
    cr_assert(strstr(reason, why) != NULL, "'%s' is not in '%s'", why, reason);
}

Test(precopy, the_downtime_is_short_first_and_never_above_the_limit)
{
    static const struct {
        unsigned limit;
        uint64_t passes;
        unsigned ms;
    } cases[] = {
        {300, 0,          9  },
        {300, 2,          9  },
        {300, 3,          18 },
        {300, 7,          288},
        {300, 8,          300},
        {300, UINT64_MAX, 300},
        {1,   0,          1  },
        {1,   9,          1  },
        {20,  3,          2  },
        {0,   5,          0  },
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        cr_assert_eq(precopy_downtime_ms(cases[i].limit, cases[i].passes),
                     cases[i].ms, "case %zu", i);
    }
}

Test(precopy, the_downtime_grows_while_no_pass_begins)
{
    struct precopy precopy = {.downtime_ms = 320};
    struct precopy_sample look = {.now_ms = 5000, .passes = 1, .remaining = 9};
    cr_assert_eq(precopy_downtime(&precopy, &look), 10);
    look.now_ms += 60000;
    cr_assert_eq(precopy_downtime(&precopy, &look), 10, "it is being sent");
    look.remaining = 0;
    look.now_ms += 999;
    cr_assert_eq(precopy_downtime(&precopy, &look), 10);
    for (unsigned ms = 20; ms <= 320; ms *= 2) {
        look.now_ms += 1000;
        cr_assert_eq(precopy_downtime(&precopy, &look), ms);
    }
    look.now_ms += 1000;
    cr_assert_eq(precopy_downtime(&precopy, &look), 320);
}

Test(precopy, a_stream_that_gets_on_is_left_alone)
{
    expect((struct precopy){0},
           "1 1 900 100 0 0; 9 2 200 100 20 0; 12 3 40 100 20 0; 13 4 8 100 20"
           " 0;",
           "", "");
}

Test(precopy, what_changes_as_fast_as_it_is_sent_is_told_once)
{
    expect((struct precopy){0},
           "9 2 200 100 150 0; 12 3 200 100 150 0; 15 4 200 100 150 0; 18 5 200"
           " 100 150 0;",
           "15:tell ", "--auto-converge");
    expect((struct precopy){.suspend_ms = 60000},
           "9 2 200 100 150 0; 15 4 200 100 100 0;", "15:tell ",
           "paused in time");
}

Test(precopy, no_figures_are_no_ground)
{
    expect((struct precopy){0}, "9 5 200 0 150 0; 12 6 200 100 0 0;", "", "");
}

Test(precopy, each_step_of_the_throttle_is_told)
{
    expect((struct precopy){0},
           "9 2 200 100 90 0; 12 3 200 100 90 20; 13 3 180 100 90 20; 15 4 150"
           " 100 90 30;",
           "12:tell 15:tell ", "by 30 %");
}

Test(precopy, suspend_waits_for_the_first_pass)
{
    expect((struct precopy){.suspend = true},
           "1 1 900 100 0 0; 9 2 200 100 150 0;", "9:suspend ", "sent once");
}

Test(precopy, a_time_limit_suspends)
{
    expect((struct precopy){.suspend_ms = 10000},
           "9 1 200 100 0 0; 10 1 150 100 0 0;", "10:suspend ", "10.0 s");
}

Test(precopy, postcopy_waits_for_the_first_pass)
{
    expect((struct precopy){.postcopy = true},
           "1 1 900 100 0 0; 8 1 100 100 150 0; 9 2 200 100 150 0;",
           "9:postcopy ", "goes over");
}

Test(precopy, a_time_limit_lets_the_guest_go_over)
{
    expect((struct precopy){.postcopy_ms = 10000},
           "9 2 200 100 0 0; 10 2 150 100 0 0;", "10:postcopy ", "10.0 s");
    expect((struct precopy){.postcopy_ms = 60000},
           "9 2 200 100 150 0; 15 4 200 100 100 0;", "15:tell ",
           "goes over in time");
}

Test(precopy, who_asks_for_a_pause_gets_no_postcopy)
{
    expect((struct precopy){.suspend = true}, "9 2 200 100 150 0;",
           "9:suspend ", "are left");
    expect((struct precopy){.suspend_ms = 9000}, "9 1 200 100 150 0;",
           "9:suspend ", "are left");
}
