/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "policy/progress.h"

enum {
    STEP_MS = 100,       /* closer samples tell more of jitter than of speed */
    SMOOTH_MS = 5000,    /* what is older than this hardly counts */
    SAMPLES_MIN = 3,     /* before this an ETA would be a guess */
    NET_MIN_PERCENT = 2, /* of the rate: less is no approach */
};

static uint64_t rest_of(uint64_t offset, uint64_t len);
static void begin(struct progress *progress, uint64_t now_ms,
                  enum progress_phase phase, uint64_t offset, uint64_t len);
static void keep(struct progress *progress, uint64_t now_ms, uint64_t offset,
                 uint64_t len);
static double smooth(double average, double value, uint64_t dt_ms, bool first);
static uint64_t to_u64(double value);

void progress_sample(struct progress *progress, uint64_t now_ms,
                     enum progress_phase phase, uint64_t offset, uint64_t len)
{
    bool back = now_ms < progress->time_ms || offset < progress->offset;
    bool paused =
        phase == PROGRESS_PAUSED || progress->phase == PROGRESS_PAUSED;
    if (!progress->started || back || paused) {
        begin(progress, now_ms, phase, offset, len);
        return;
    }
    uint64_t dt_ms = now_ms - progress->time_ms;
    if (phase != progress->phase) {
        /* The rest is another one now; how fast it copies is still true. */
        progress->phase = phase;
        progress->samples = 0;
        progress->net = 0;
        keep(progress, now_ms, offset, len);
        return;
    }
    if (dt_ms < STEP_MS) {
        return;
    }
    double seconds = (double)dt_ms / 1000;
    double gain = (double)rest_of(progress->offset, progress->len) -
                  (double)rest_of(offset, len);
    bool first = progress->samples == 0;
    progress->rate =
        smooth(progress->rate, (double)(offset - progress->offset) / seconds,
               dt_ms, first && progress->rate <= 0);
    progress->net = smooth(progress->net, gain / seconds, dt_ms, first);
    progress->samples++;
    keep(progress, now_ms, offset, len);
}

uint64_t progress_rate(const struct progress *progress)
{
    return to_u64(progress->rate);
}

uint64_t progress_dirty_rate(const struct progress *progress)
{
    return progress->samples > 0 ? to_u64(progress->rate - progress->net) : 0;
}

uint64_t progress_remaining(const struct progress *progress)
{
    return rest_of(progress->offset, progress->len);
}

uint64_t progress_eta_ms(const struct progress *progress)
{
    const double longest = 30.0 * 24 * 3600 * 1000; /* 30 days: no figure */
    uint64_t rest = progress_remaining(progress);
    if (!progress->started || progress->phase == PROGRESS_PAUSED) {
        return PROGRESS_UNKNOWN;
    }
    if (rest == 0) {
        /* A job that has only begun says 0 of 0. */
        bool begun = progress->len > 0 || progress->phase == PROGRESS_CONVERGE;
        return begun ? 0 : PROGRESS_UNKNOWN;
    }
    if (progress->samples < SAMPLES_MIN || progress->net <= 0 ||
        progress->net < progress->rate * NET_MIN_PERCENT / 100) {
        return PROGRESS_UNKNOWN;
    }
    double ms = (double)rest / progress->net * 1000;
    return ms < longest ? to_u64(ms) : PROGRESS_UNKNOWN;
}

static uint64_t rest_of(uint64_t offset, uint64_t len)
{
    return len > offset ? len - offset : 0;
}

static void begin(struct progress *progress, uint64_t now_ms,
                  enum progress_phase phase, uint64_t offset, uint64_t len)
{
    *progress = (struct progress){
        .started = true,
        .phase = phase,
        .time_ms = now_ms,
        .offset = offset,
        .len = len,
    };
}

static void keep(struct progress *progress, uint64_t now_ms, uint64_t offset,
                 uint64_t len)
{
    progress->time_ms = now_ms;
    progress->offset = offset;
    progress->len = len;
}

/* An exponential average for samples that come when they like. */
static double smooth(double average, double value, uint64_t dt_ms, bool first)
{
    if (first) {
        return value;
    }
    double weight = (double)dt_ms / (double)(dt_ms + SMOOTH_MS);
    return average + (value - average) * weight;
}

static uint64_t to_u64(double value)
{
    if (value <= 0) {
        return 0;
    }
    return value < 0x1p63 ? (uint64_t)value : UINT64_C(1) << 63;
}
