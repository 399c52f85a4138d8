/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "policy/blackout.h"

#include <inttypes.h>
#include <stdio.h>

#include "base/str.h"

static uint64_t expected_ms(const struct blackout_disk *disk);
static void explain(const struct blackout_limits *limits,
                    const struct blackout_disk *disk, uint64_t ms,
                    const char *then, char *reason);

uint64_t blackout_expected_ms(const struct blackout_disk *disks,
                              unsigned n_disks, unsigned *ret_worst)
{
    uint64_t longest = 0;
    for (unsigned i = 0; i < n_disks; i++) {
        uint64_t ms = expected_ms(&disks[i]);
        if (ms > longest) {
            longest = ms;
            *ret_worst = i;
        }
    }
    return longest;
}

enum blackout_verdict blackout_judge(const struct blackout_limits *limits,
                                     uint64_t waited_ms,
                                     const struct blackout_disk *disks,
                                     unsigned n_disks,
                                     char reason[BLACKOUT_REASON_MAX])
{
    unsigned worst = 0;
    uint64_t ms = blackout_expected_ms(disks, n_disks, &worst);
    if (ms == 0) {
        (void)snprintf(reason, BLACKOUT_REASON_MAX,
                       "source and targets are equal, nothing is left to copy");
        return BLACKOUT_GO;
    }
    if (ms <= limits->budget_ms) {
        explain(limits, &disks[worst], ms, "", reason);
        return BLACKOUT_GO;
    }
    if (waited_ms < limits->patience_ms) {
        explain(limits, &disks[worst], ms, ": waiting for it to shrink",
                reason);
        return BLACKOUT_WAIT;
    }
    char then[64] = "";
    if (limits->patience_ms != 0) {
        (void)snprintf(then, sizeof(then), ", after %" PRIu64 " s of waiting",
                       waited_ms / 1000);
    }
    explain(limits, &disks[worst], ms, then, reason);
    return BLACKOUT_GIVE_UP;
}

/* Rounded up: the last byte counts. */
static uint64_t expected_ms(const struct blackout_disk *disk)
{
    uint64_t product;
    if (disk->synced || disk->remaining == 0) {
        return 0;
    }
    if (disk->rate == 0 ||
        __builtin_mul_overflow(disk->remaining, 1000, &product)) {
        return BLACKOUT_UNKNOWN;
    }
    return product / disk->rate + (product % disk->rate != 0);
}

static void explain(const struct blackout_limits *limits,
                    const struct blackout_disk *disk, uint64_t ms,
                    const char *then, char *reason)
{
    char left[STR_BYTES_MAX], rate[STR_BYTES_MAX], takes[64];
    (void)str_bytes(disk->remaining, left);
    (void)str_bytes(disk->rate, rate);
    if (ms == BLACKOUT_UNKNOWN) {
        (void)snprintf(takes, sizeof(takes), "nobody knows how long");
    } else {
        (void)snprintf(takes, sizeof(takes), "%" PRIu64 " ms at %s/s", ms,
                       rate);
    }
    (void)snprintf(reason, BLACKOUT_REASON_MAX,
                   "%s: %s left to copy take %s, the downtime limit is %" PRIu64
                   " ms%s",
                   disk->name, left, takes, limits->budget_ms, then);
}
