/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "policy/converge.h"

#include <stdio.h>
#include <string.h>

#include "base/str.h"

enum {
    PATIENCE_MS = 10000,
    SMALL = 16 * 1024 * 1024,
    POINTS_MIN = 6,        /* of a window, to judge by */
    GAIN_MIN_PERCENT = 10, /* of the copy rate: less is no approach */
};

static bool is_small(const struct converge *converge,
                     const struct converge_sample *sample);
static bool add_point(struct converge *converge,
                      const struct converge_sample *sample);
static double gain_of(const struct converge *converge);
static enum converge_verdict judge(struct converge *converge,
                                   const struct converge_sample *sample,
                                   double gain, char *reason);

void converge_init(struct converge *converge, bool can_switch,
                   bool write_blocking)
{
    *converge = (struct converge){
        .can_switch = can_switch,
        .write_blocking = write_blocking,
        .small = SMALL,
        .patience_ms = PATIENCE_MS,
    };
}

enum converge_verdict converge_sample(struct converge *converge,
                                      const struct converge_sample *sample,
                                      char reason[CONVERGE_REASON_MAX])
{
    char left[STR_BYTES_MAX];
    (void)str_bytes(sample->remaining, left);
    if (sample->paused) {
        converge->n = 0;
        (void)snprintf(reason, CONVERGE_REASON_MAX, "the job is paused");
        return CONVERGE_KEEP;
    }
    if (is_small(converge, sample)) {
        converge->n = 0;
        (void)snprintf(reason, CONVERGE_REASON_MAX,
                       "%s left, little enough to pivot", left);
        return CONVERGE_KEEP;
    }
    if (!add_point(converge, sample)) {
        (void)snprintf(reason, CONVERGE_REASON_MAX,
                       "%s left, too early to judge", left);
        return CONVERGE_KEEP;
    }
    return judge(converge, sample, gain_of(converge), reason);
}

void converge_switched(struct converge *converge, bool ok)
{
    converge->n = 0;
    converge->can_switch = false;
    converge->write_blocking = converge->write_blocking || ok;
}

/* Before READY the rest includes what was never copied: never small. */
static bool is_small(const struct converge *converge,
                     const struct converge_sample *sample)
{
    return sample->ready && sample->remaining <= converge->small;
}

/* Returns whether the points span the patience. */
static bool add_point(struct converge *converge,
                      const struct converge_sample *sample)
{
    const uint64_t step_ms = converge->patience_ms / (CONVERGE_WINDOW - 4);
    unsigned n = converge->n;
    if (n > 0 && sample->now_ms < converge->times[n - 1]) {
        n = 0; /* time went back: another clock */
    }
    if (n > 0 && sample->now_ms - converge->times[n - 1] < step_ms) {
        return false;
    }
    if (n == CONVERGE_WINDOW) {
        n--;
        memmove(converge->times, converge->times + 1,
                n * sizeof(converge->times[0]));
        memmove(converge->remaining, converge->remaining + 1,
                n * sizeof(converge->remaining[0]));
    }
    converge->times[n] = sample->now_ms;
    converge->remaining[n] = sample->remaining;
    converge->n = n + 1;
    return converge->n >= POINTS_MIN &&
           sample->now_ms - converge->times[0] >= converge->patience_ms;
}

/*
 * Bytes a second by which the rest shrinks: the mean of the older half
 * against that of the younger, so that a burst of writes at either end of the
 * window does not decide.
 */
static double gain_of(const struct converge *converge)
{
    unsigned half = converge->n / 2, from = converge->n - half;
    double rest = 0, seconds = 0;
    for (unsigned i = 0; i < half; i++) {
        rest += (double)converge->remaining[i] -
                (double)converge->remaining[from + i];
        seconds +=
            (double)(converge->times[from + i] - converge->times[i]) / 1000;
    }
    return seconds > 0 ? rest / seconds : 0;
}

static enum converge_verdict judge(struct converge *converge,
                                   const struct converge_sample *sample,
                                   double gain, char *reason)
{
    char left[STR_BYTES_MAX], rate[STR_BYTES_MAX], net[STR_BYTES_MAX];
    unsigned seconds = (unsigned)((sample->now_ms - converge->times[0]) / 1000);
    (void)str_bytes(sample->remaining, left);
    (void)str_bytes(sample->rate, rate);
    (void)str_bytes(gain > 0 ? (uint64_t)gain : 0, net);
    if (gain > 0 && gain >= (double)sample->rate * GAIN_MIN_PERCENT / 100) {
        (void)snprintf(reason, CONVERGE_REASON_MAX,
                       "%s left, shrinking by %s/s", left, net);
        return CONVERGE_KEEP;
    }
    converge->n = 0;
    if (sample->limited && sample->remaining <= converge->small) {
        (void)snprintf(reason, CONVERGE_REASON_MAX,
                       "the last %s do not get through the speed limit of "
                       "%s/s: taking it off for them",
                       left, rate);
        return CONVERGE_LIFT;
    }
    if (sample->rate == 0) {
        /* Write-blocking would make the guest wait for this target. */
        (void)snprintf(reason, CONVERGE_REASON_MAX,
                       "nothing was copied for %u s, %s left", seconds, left);
        return CONVERGE_TOO_SLOW;
    }
    if (converge->write_blocking) {
        (void)snprintf(reason, CONVERGE_REASON_MAX,
                       "write-blocking already, yet %s left and shrinking by "
                       "%s/s only",
                       left, net);
        return CONVERGE_TOO_SLOW;
    }
    bool can = converge->can_switch;
    (void)snprintf(reason, CONVERGE_REASON_MAX,
                   "%s left after %u s without gain: the guest writes as fast "
                   "as %s/s are copied%s",
                   left, seconds, rate,
                   can ? "; switching to write-blocking"
                       : "; this QEMU cannot switch to write-blocking");
    return can ? CONVERGE_SWITCH : CONVERGE_TOO_SLOW;
}
