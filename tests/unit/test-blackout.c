/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Scenarios as text: each line is "SECONDS DISK..;", a disk "LEFT/RATE[s]" in
 * KiB and KiB a second (s: synced); asked once a line, until a verdict ends it.
 */
#include <criterion/criterion.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "policy/blackout.h"
#include "policy/stall.h"

enum { DISKS_MAX = 6 };

static const char *const names[DISKS_MAX] = {"d0", "d1", "d2",
                                             "d3", "d4", "d5"};
static const char *const verdicts[] = {"go", "wait", "give-up"};

/* Reads one line's disks; returns where the next line begins. */
static const char *read_disks(const char *line, struct blackout_disk *disks,
                              unsigned *ret_n)
{
    unsigned n = 0;
    for (; *line != ';'; n++) {
        uint64_t left, rate;
        int used = 0;
        cr_assert_lt(n, DISKS_MAX);
        cr_assert_eq(
            sscanf(line, " %" SCNu64 "/%" SCNu64 "%n", &left, &rate, &used), 2,
            "no disk in '%s'", line);
        line += used;
        disks[n] = (struct blackout_disk){.name = names[n],
                                          .remaining = left * 1024,
                                          .rate = rate * 1024,
                                          .synced = *line == 's'};
        line += *line == 's';
    }
    *ret_n = n;
    return line + 1;
}

/* Returns the verdicts as "SECOND:VERDICT "; 'reason' is the last one's. */
static void play(struct blackout_limits limits, const char *scenario,
                 char out[256], char reason[BLACKOUT_REASON_MAX])
{
    enum blackout_verdict verdict = BLACKOUT_WAIT;
    size_t used = 0;
    out[0] = '\0';
    while (*scenario != '\0' && verdict == BLACKOUT_WAIT) {
        struct blackout_disk disks[DISKS_MAX];
        unsigned second, n;
        int at = 0;
        cr_assert_eq(sscanf(scenario, " %u%n", &second, &at), 1);
        scenario = read_disks(scenario + at, disks, &n);
        reason[0] = '\0';
        verdict =
            blackout_judge(&limits, second * UINT64_C(1000), disks, n, reason);
        cr_assert_neq(reason[0], '\0');
        used += (size_t)snprintf(out + used, 256 - used, "%u:%s ", second,
                                 verdicts[verdict]);
    }
    cr_assert_eq(*scenario, '\0', "it ended before '%s'", scenario);
}

static void expect(uint64_t budget_ms, uint64_t patience_ms,
                   const char *scenario, const char *said, const char *why)
{
    char out[256], reason[BLACKOUT_REASON_MAX];
    play((struct blackout_limits){budget_ms, patience_ms}, scenario, out,
         reason);
    cr_assert_str_eq(out, said);
    cr_assert(strstr(reason, why) != NULL, "'%s' is not in '%s'", why, reason);
}

Test(blackout, equal_disks_go_at_once)
{
    expect(300, 60000, "0 0/0 0/100;", "0:go ", "nothing is left");
}

Test(blackout, no_disks_go_at_once)
{
    expect(300, 60000, "0;", "0:go ", "nothing is left");
}

Test(blackout, what_the_guest_writes_to_both_sides_is_not_owed)
{
    expect(300, 60000, "0 4096/1s;", "0:go ", "nothing is left");
}

Test(blackout, a_rest_that_fits_goes_with_its_figure)
{
    expect(300, 60000, "0 30/100;", "0:go ", "30 KiB left to copy take 300 ms");
}

Test(blackout, one_byte_more_than_fits_waits)
{
    struct blackout_disk disk = {
        .name = "d0", .remaining = 30001, .rate = 100000};
    unsigned worst;
    cr_assert_eq(blackout_expected_ms(&disk, 1, &worst), 301);
}

Test(blackout, a_slow_target_waits_until_it_has_caught_up)
{
    expect(300, 60000, "0 4100/100; 20 2000/100; 40 31/100; 41 10/100;",
           "0:wait 20:wait 40:wait 41:go ", "take 100 ms at 100 KiB/s");
}

Test(blackout, a_target_that_never_catches_up_is_given_up_with_the_figure)
{
    expect(300, 60000, "0 4100/100; 59 4100/100; 60 4100/100;",
           "0:wait 59:wait 60:give-up ",
           "d0: 4 MiB left to copy take 41000 ms at 100 KiB/s, the downtime"
           " limit is 300 ms, after 60 s of waiting");
}

Test(blackout, once_the_guest_stands_there_is_no_waiting)
{
    expect(300, 0, "0 31/100;", "0:give-up ", "take 310 ms");
}

Test(blackout, the_slowest_of_all_disks_decides)
{
    expect(300, 60000,
           "0 10/100 31/100 0/0 900/90000; 1 10/100 30/100 0/0 0/1;",
           "0:wait 1:go ", "d1: 30 KiB");
}

Test(blackout, the_slowest_disk_decides_not_the_sum)
{
    expect(300, 0, "0 25/100 25/100 25/100;", "0:go ", "take 250 ms");
}

Test(blackout, a_rate_that_was_never_measured_fits_nothing)
{
    expect(300, 60000, "0 1/0; 5 1/1000;", "0:wait 5:go ", "take 1 ms");
    expect(300, 0, "0 1/0;", "0:give-up ", "nobody knows how long");
}

Test(blackout, figures_that_overflow_fit_nothing)
{
    struct blackout_disk disk = {
        .name = "d0", .remaining = UINT64_MAX, .rate = UINT64_MAX};
    unsigned worst;
    cr_assert_eq(blackout_expected_ms(&disk, 1, &worst), BLACKOUT_UNKNOWN);
}

Test(stall, what_grows_does_not_stall)
{
    struct stall stall = {0};
    cr_assert_eq(stall_sample(&stall, 1000, 5), 0);
    cr_assert_eq(stall_sample(&stall, 2000, 5), 1000);
    cr_assert_eq(stall_sample(&stall, 9000, 6), 0);
    cr_assert_eq(stall_sample(&stall, 9500, 6), 500);
}

Test(stall, after_a_reset_or_another_clock_time_begins_anew)
{
    struct stall stall = {0};
    (void)stall_sample(&stall, 1000, 0);
    stall_reset(&stall);
    cr_assert_eq(stall_sample(&stall, 8000, 0), 0);
    cr_assert_eq(stall_sample(&stall, 100, 0), 0);
}
