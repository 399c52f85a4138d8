/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "policy/precopy.h"

#include <stdio.h>

#include "base/str.h"

enum {
    FIRST_IS_THROUGH = 2, /* dirty-sync-count counts the begin, too */
    PASSES_TO_JUDGE = 4,  /* passes before that prove nothing */
    FIRST_SHARE = 32,     /* of the limit: the downtime of the first pass */
    STANDS_MS = 1000,
};

unsigned precopy_downtime_ms(unsigned limit_ms, uint64_t passes)
{
    unsigned ms = limit_ms < FIRST_SHARE ? 1 : limit_ms / FIRST_SHARE;
    for (uint64_t i = FIRST_IS_THROUGH; i < passes && ms < limit_ms; i++) {
        ms *= 2;
    }
    return ms < limit_ms ? ms : limit_ms;
}

unsigned precopy_downtime(struct precopy *precopy,
                          const struct precopy_sample *sample)
{
    uint64_t passes = sample->passes;
    if (passes != precopy->passes || sample->remaining > 0) {
        precopy->passes = passes;
        precopy->passes_ms = sample->now_ms;
    } else if (sample->now_ms - precopy->passes_ms >= STANDS_MS) {
        precopy->passes_ms = sample->now_ms;
        precopy->stands++;
    }
    if (precopy->stands > 0 && passes < FIRST_IS_THROUGH) {
        passes = FIRST_IS_THROUGH;
    }
    return precopy_downtime_ms(precopy->downtime_ms, passes + precopy->stands);
}

/* The guest does not run here until the stream comes to its end by itself. */
static enum precopy_verdict leave(const struct precopy *precopy,
                                  const struct precopy_sample *sample,
                                  char *reason)
{
    char left[STR_BYTES_MAX];
    (void)str_bytes(sample->remaining, left);
    uint64_t lasts_ms = sample->now_ms - precopy->begun_ms;
    bool sent = sample->passes >= FIRST_IS_THROUGH;
    bool postcopy = precopy->postcopy || precopy->postcopy_ms != 0;
    uint64_t limit_ms = postcopy ? precopy->postcopy_ms : precopy->suspend_ms;
    const char *then =
        postcopy ? ": the guest goes over, and that after it" : "";
    if (sent && (precopy->suspend || precopy->postcopy)) {
        (void)snprintf(reason, PRECOPY_REASON_MAX,
                       "all of the memory has been sent once, %s are left%s",
                       left, then);
        return postcopy ? PRECOPY_POSTCOPY : PRECOPY_SUSPEND;
    }
    if (limit_ms != 0 && lasts_ms >= limit_ms) {
        (void)snprintf(reason, PRECOPY_REASON_MAX,
                       "the stream has not come to its end within %.1f s, %s"
                       " are left%s",
                       (double)limit_ms / 1000, left, then);
        return postcopy ? PRECOPY_POSTCOPY : PRECOPY_SUSPEND;
    }
    (void)snprintf(reason, PRECOPY_REASON_MAX, "%s of memory left", left);
    return PRECOPY_KEEP;
}

/* It changes as fast as it is sent: each pass leaves as much as the last. */
static bool is_endless(const struct precopy_sample *sample)
{
    return sample->passes >= PASSES_TO_JUDGE && sample->rate > 0 &&
           sample->dirty >= sample->rate;
}

enum precopy_verdict precopy_sample(struct precopy *precopy,
                                    const struct precopy_sample *sample,
                                    char reason[PRECOPY_REASON_MAX])
{
    char dirty[STR_BYTES_MAX], rate[STR_BYTES_MAX];
    enum precopy_verdict verdict = leave(precopy, sample, reason);
    if (verdict != PRECOPY_KEEP) {
        return verdict;
    }
    (void)str_bytes(sample->dirty, dirty);
    (void)str_bytes(sample->rate, rate);
    if (sample->throttle != precopy->throttle) {
        precopy->throttle = sample->throttle;
        (void)snprintf(reason, PRECOPY_REASON_MAX,
                       "QEMU slows the guest down by %u %%: it changes %s/s of"
                       " memory, and %s/s are sent",
                       sample->throttle, dirty, rate);
        return PRECOPY_TELL;
    }
    if (!precopy->told_endless && is_endless(sample)) {
        precopy->told_endless = true;
        (void)snprintf(reason, PRECOPY_REASON_MAX,
                       "the guest changes %s/s of memory and %s/s are sent:"
                       " the stream does not come to its end by itself%s",
                       dirty, rate,
                       sample->throttle > 0      ? ""
                       : precopy->suspend_ms > 0 ? "; it is paused in time"
                       : precopy->postcopy_ms > 0
                           ? "; it goes over in time"
                           : "; --auto-converge, --suspend, --postcopy"
                             " or more --bandwidth ends"
                             " it");
        return PRECOPY_TELL;
    }
    return PRECOPY_KEEP;
}
