/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "policy/latency.h"

#include <inttypes.h>
#include <stdio.h>

#include "base/str.h"

enum {
    MIB = 1024 * 1024,
    CALM_MIN = 3,      /* intervals before a step up */
    CALM_PERCENT = 80, /* of the limit: above it nothing is raised */
    STEPS = 16,        /* of the fastest rate: a step up */
};

static uint64_t lower(const struct latency *latency,
                      const struct latency_sample *sample);
static uint64_t higher(const struct latency *latency,
                       const struct latency_sample *sample);
static uint64_t lowest(const struct latency *latency);
static bool tell(char *reason, const char *what, uint64_t ns, uint64_t speed,
                 uint64_t wanted, uint64_t *ret_speed);

bool latency_sample(struct latency *latency,
                    const struct latency_sample *sample, uint64_t *ret_speed,
                    char reason[LATENCY_REASON_MAX])
{
    const uint64_t max_ns = latency->limits.max_ns;
    uint64_t ns = sample->wr_operations > 0
                      ? sample->wr_total_time_ns / sample->wr_operations
                      : 0;
    if (sample->rate > latency->fastest) {
        latency->fastest = sample->rate;
    }
    if (ns > max_ns) {
        latency->calm = 0;
        if (sample->rate == 0) {
            return tell(reason, "too slow, but the job copies nothing", ns,
                        sample->speed, sample->speed, ret_speed);
        }
        return tell(reason, "too slow", ns, sample->speed,
                    lower(latency, sample), ret_speed);
    }
    if (sample->wr_operations > 0 && ns > max_ns / 100 * CALM_PERCENT) {
        latency->calm = 0;
        return tell(reason, "near the limit", ns, sample->speed, sample->speed,
                    ret_speed);
    }
    if (++latency->calm < CALM_MIN || sample->speed == 0) {
        return tell(reason, "fine", ns, sample->speed, sample->speed,
                    ret_speed);
    }
    uint64_t wanted = higher(latency, sample);
    latency->calm = 0;
    return tell(reason, "fine for a while", ns, sample->speed, wanted,
                ret_speed);
}

/* Half of what the job really does: a limit above that would not be felt. */
static uint64_t lower(const struct latency *latency,
                      const struct latency_sample *sample)
{
    uint64_t base = sample->rate;
    if (sample->speed != 0 && sample->speed < base) {
        base = sample->speed;
    }
    uint64_t wanted = base / 2;
    uint64_t floor = lowest(latency);
    wanted = wanted < floor ? floor : wanted;
    /* Never up on this path, whatever the floor says. */
    return sample->speed != 0 && wanted > sample->speed ? sample->speed
                                                        : wanted;
}

static uint64_t higher(const struct latency *latency,
                       const struct latency_sample *sample)
{
    const uint64_t ceiling = latency->limits.ceiling;
    uint64_t step = latency->fastest / STEPS;
    uint64_t wanted;
    if (sample->rate < sample->speed / 100 * CALM_PERCENT) {
        return sample->speed; /* it does not use what it has */
    }
    step = step < MIB ? MIB : step;
    if (__builtin_add_overflow(sample->speed, step, &wanted) ||
        wanted > INT64_MAX) {
        wanted = INT64_MAX;
    }
    if (ceiling != 0 && wanted > ceiling) {
        wanted = ceiling > sample->speed ? ceiling : sample->speed;
    }
    return wanted;
}

static uint64_t lowest(const struct latency *latency)
{
    const uint64_t ceiling = latency->limits.ceiling;
    uint64_t floor = latency->limits.floor != 0 ? latency->limits.floor : MIB;
    return ceiling != 0 && floor > ceiling ? ceiling : floor;
}

static bool tell(char *reason, const char *what, uint64_t ns, uint64_t speed,
                 uint64_t wanted, uint64_t *ret_speed)
{
    char is[STR_BYTES_MAX], will[STR_BYTES_MAX];
    (void)str_bytes(speed, is);
    (void)str_bytes(wanted, will);
    (void)snprintf(
        reason, LATENCY_REASON_MAX,
        "guest writes take %" PRIu64 ".%03" PRIu64 " ms, %s: speed %s%s%s%s%s",
        ns / 1000000, ns / 1000 % 1000, what, speed == 0 ? "unlimited" : is,
        speed == 0 ? "" : "/s", wanted != speed ? " -> " : "",
        wanted != speed ? will : "", wanted != speed ? "/s" : "");
    if (wanted == speed) {
        return false;
    }
    *ret_speed = wanted;
    return true;
}
