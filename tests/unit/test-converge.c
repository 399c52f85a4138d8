/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Scenarios as text: each line is "SECONDS REMAINING-MiB RATE-MiB [rpl]" (r:
 * ready, p: paused, l: limited), held once a second; what is left changes evenly until
 * the next line.
 */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "policy/converge.h"

#define MIB (UINT64_C(1024) * 1024)

enum { REFUSED = 1, SWITCHED = 2 };

static const char *const verdicts[] = {"keep", "switch", "lift", "too-slow"};

struct line {
    unsigned seconds;
    double left;
    double rate;
    char flags[8];
};

/* Notes each verdict that is not "keep" as "SECOND:VERDICT ". */
static void play(struct converge *converge, const char *scenario,
                 unsigned answer, char *out, size_t size, char *reason)
{
    struct line line = {0}, next = {0};
    size_t used = 0;
    int n = 0;
    unsigned now = 0;
    out[0] = '\0';
    cr_assert_eq(sscanf(scenario, "%u %lf %lf %7s;%n", &line.seconds,
                        &line.left, &line.rate, line.flags, &n),
                 4);
    for (scenario += n; *scenario != '\0'; scenario += n, line = next) {
        cr_assert_eq(sscanf(scenario, " %u %lf %lf %7[^;];%n", &next.seconds,
                            &next.left, &next.rate, next.flags, &n),
                     4);
        for (; now < next.seconds; now++) {
            double part =
                (double)(now - line.seconds) / (next.seconds - line.seconds);
            double left = line.left + (next.left - line.left) * part;
            struct converge_sample sample = {
                .now_ms = 5000 + now * UINT64_C(1000),
                .remaining = (uint64_t)(left * MIB),
                .rate = (uint64_t)(line.rate * MIB),
                .ready = strchr(line.flags, 'r') != NULL,
                .paused = strchr(line.flags, 'p') != NULL,
                .limited = strchr(line.flags, 'l') != NULL,
            };
            char text[CONVERGE_REASON_MAX] = "";
            enum converge_verdict verdict =
                converge_sample(converge, &sample, text);
            cr_assert_neq(text[0], '\0');
            if (verdict == CONVERGE_KEEP) {
                continue;
            }
            used += (size_t)snprintf(out + used, size - used, "%u:%s ", now,
                                     verdicts[verdict]);
            (void)strcpy(reason, text);
            if (verdict == CONVERGE_SWITCH && answer != 0) {
                converge_switched(converge, answer == SWITCHED);
            }
        }
    }
}

static void expect(bool can_switch, bool write_blocking, unsigned answer,
                   const char *scenario, const char *said, const char *why)
{
    struct converge converge;
    char out[512], reason[CONVERGE_REASON_MAX] = "";
    converge_init(&converge, can_switch, write_blocking);
    play(&converge, scenario, answer, out, sizeof(out), reason);
    cr_assert_str_eq(out, said);
    cr_assert(strstr(reason, why) != NULL, "'%s' is not in '%s'", why, reason);
}

Test(converge, a_copy_that_advances_is_left_alone)
{
    expect(true, false, SWITCHED,
           "0 100000 100 -; 300 70000 100 -; 600 40000 100 -;", "", "");
}

Test(converge, a_huge_disk_that_advances_slowly_is_left_alone)
{
    expect(true, false, SWITCHED, "0 4000000 50 -; 100 3999000 50 -;", "", "");
}

Test(converge, a_guest_as_fast_as_the_copy_makes_it_switch)
{
    expect(true, false, SWITCHED, "0 5000 100 -; 40 5000 100 -;",
           "10:switch "
           "21:too-slow "
           "32:too-slow ",
           "write-blocking already");
}

Test(converge, after_the_switch_the_rest_shrinks)
{
    expect(true, false, SWITCHED,
           "0 5000 100 -; 11 5000 100 -; 60 100 5 r; 90 0 5 r;", "10:switch ",
           "switching to write-blocking");
}

Test(converge, a_ready_mirror_that_stays_behind_makes_it_switch)
{
    expect(true, false, SWITCHED, "0 200 80 r; 12 210 80 r;", "10:switch ",
           "the guest writes as fast as 80 MiB/s are copied");
}

Test(converge, a_ready_mirror_with_little_left_is_fine)
{
    expect(true, false, SWITCHED, "0 8 80 r; 100 15 80 r;", "", "");
}

Test(converge, without_block_job_change_it_says_so_now_and_then)
{
    expect(false, false, 0, "0 5000 100 -; 25 5200 100 -;",
           "10:too-slow 21:too-slow ", "this QEMU cannot switch");
}

Test(converge, a_refused_switch_is_not_tried_again)
{
    expect(true, false, REFUSED, "0 5000 100 -; 25 5200 100 -;",
           "10:switch 21:too-slow ", "cannot switch");
}

Test(converge, a_target_that_takes_nothing_is_no_reason_to_switch)
{
    expect(true, false, SWITCHED, "0 5000 0 -; 12 5000 0 -;", "10:too-slow ",
           "nothing was copied for 10 s");
}

Test(converge, a_pause_proves_nothing)
{
    expect(true, false, SWITCHED,
           "0 5000 100 -; 8 5000 100 p; 300 5000 100 -; 309 5000 100 -;", "",
           "");
}

Test(converge, a_burst_of_writes_does_not_decide)
{
    expect(true, false, SWITCHED,
           "0 5000 100 -; 8 4200 100 -; 9 4500 100 -; 30 2400 100 -;", "", "");
}

Test(converge, samples_that_come_fast_are_thinned)
{
    struct converge converge;
    char reason[CONVERGE_REASON_MAX];
    unsigned switches = 0;
    converge_init(&converge, true, false);
    for (uint64_t ms = 0; ms <= 10200; ms += 50) {
        struct converge_sample sample = {ms, 500 * MIB, MIB, true, false};
        switches +=
            converge_sample(&converge, &sample, reason) == CONVERGE_SWITCH;
    }
    cr_assert_eq(switches, 1);
}

Test(converge, another_clock_begins_anew)
{
    struct converge converge;
    char reason[CONVERGE_REASON_MAX];
    converge_init(&converge, true, false);
    for (unsigned i = 0; i < 40; i++) {
        struct converge_sample sample = {UINT64_MAX - i * 5000, UINT64_MAX - i,
                                         UINT64_MAX, true, false};
        cr_assert_eq(converge_sample(&converge, &sample, reason),
                     CONVERGE_KEEP);
    }
}

Test(converge, the_last_bytes_are_let_through_a_speed_limit)
{
    expect(true, false, SWITCHED, "0 60 3 l; 19 3 3 l; 40 3 3 l;", "31:lift ",
           "taking it off");
}
