/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the lanes share: who does which units next, and how it ends. */
#include "pipeline.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "backends/backend.h"
#include "base/err.h"
#include "base/str.h"
#include "bulk/lane.h"
#include "bulk/resume.h"

enum { SLOTS_MAX = 64, SAVE_MS = 2000, RUN_MAX = BULK_ZERO_MAX / UNIT };

static const uint64_t SAVE_BYTES = 1 << 30;
static const uint64_t SECOND = 1000000000;

static bool make_marks(struct pipeline *p);
static void forget_written(struct pipeline *p);
static unsigned lanes_of(const struct pipeline *p, const struct lane *first);
static unsigned slots_of(const struct pipeline *p, const struct lane *first,
                         unsigned lanes);
static uint64_t depth_of(const struct lane *lane);
static int run_lanes(struct pipeline *p, struct lane *lanes);
static bool skip_unit(struct pipeline *p, uint64_t unit, enum claim *ret);
static uint64_t claim_holes(struct pipeline *p, uint64_t unit);
static bool claim_late(struct pipeline *p, uint64_t units, uint64_t *ret_unit,
                       uint64_t *ret_units);
static bool must_wait(struct pipeline *p, size_t length, unsigned *ret_ms);
static void unit_done(struct pipeline *p, uint64_t unit, struct digest digest);
static void insert(struct pipeline *p, unsigned at, struct difference piece);

int pipeline_run(struct pipeline *p, struct err **errp)
{
    struct lane *lanes = calloc(SLOTS_MAX, sizeof(*lanes));
    if (lanes == NULL) {
        p->a_open = bulk_close(p->a_open);
        return -ENOMEM;
    }
    if (!make_marks(p)) {
        p->a_open = bulk_close(p->a_open);
        free(lanes);
        return -ENOMEM;
    }
    (void)pthread_mutex_init(&p->lock, NULL);
    p->saved_ns = pipeline_now_ns();
    /* The first lane's channels tell how many more are worth while. */
    lanes[0].a = TAKE_PTR(p->a_open);
    int r = lane_init(&lanes[0], p, 0, errp);
    if (r == 0) {
        p->lanes = lanes_of(p, &lanes[0]);
        unsigned n_slots = slots_of(p, &lanes[0], p->lanes);
        for (unsigned i = 0; i < p->lanes && r == 0; i++) {
            r = lane_init(&lanes[i], p, n_slots, errp);
        }
    }
    if (r == 0) {
        r = run_lanes(p, lanes);
    }
    for (unsigned i = 0; i < SLOTS_MAX; i++) {
        lane_done(&lanes[i]);
    }
    free(lanes);
    free(p->late);
    p->late = NULL;
    if (!p->lost) {
        pipeline_done(p);
    }
    (void)pthread_mutex_destroy(&p->lock);
    if (r == 0 && p->err != NULL) {
        r = p->err->code;
        if (errp != NULL) {
            *errp = TAKE_PTR(p->err);
        }
    } else if (r == 0 && atomic_load(&p->stop)) {
        r = -ENOMEM; /* failed, and no memory for the words */
    } else if (r == 0 && p->cancel != NULL && atomic_load(p->cancel)) {
        r = err_set(errp, -ECANCELED, p->a->name, "was cancelled");
    }
    p->err = err_free(p->err);
    return r;
}

void pipeline_again(struct pipeline *p)
{
    if (p->mode == PIPELINE_COPY) {
        forget_written(p);
    }
    atomic_store(&p->stop, false);
    p->again = true;
    p->lost = false;
    p->next = 0;
    p->n_late = 0;
    p->flushing = false;
}

void pipeline_done(struct pipeline *p)
{
    free(p->judged);
    p->judged = NULL;
}

static bool make_marks(struct pipeline *p)
{
    size_t units = (size_t)(p->size / UNIT + 1);
    if (p->mode != PIPELINE_COPY) {
        p->judged = p->judged != NULL ? p->judged : calloc(units, 1);
        return p->judged != NULL;
    }
    p->late = p->blank ? NULL : calloc(units, 1);
    return p->blank || p->late != NULL;
}

static void forget_written(struct pipeline *p)
{
    struct digests *digests = record_digests(p->record);
    for (uint64_t unit = 0; unit < digests->units; unit++) {
        size_t length = extents_length(p->size, unit);
        if (digests->known[unit] == RECORD_TODO ||
            record_is_safe(p->record, unit)) {
            continue;
        }
        atomic_fetch_sub(&p->passed, length);
        if (p->blank && extents_unit(p->a_map, unit) == 0) {
            atomic_fetch_sub(&p->skipped, length);
        }
    }
    record_forget_written(p->record);
}

enum claim pipeline_claim(struct pipeline *p, uint64_t *ret_unit,
                          uint64_t *ret_units, unsigned *ret_wait_ms)
{
    enum claim claim = CLAIM_END;
    uint64_t units = p->size / UNIT + (p->size % UNIT != 0);
    (void)pthread_mutex_lock(&p->lock);
    if (!pipeline_stopped(p) && claim_late(p, units, ret_unit, ret_units)) {
        (void)pthread_mutex_unlock(&p->lock);
        return CLAIM_ZERO;
    }
    while (!pipeline_stopped(p) && p->next < units) {
        claim = CLAIM_DATA;
        if (skip_unit(p, p->next, &claim)) {
            claim = CLAIM_END;
            continue;
        }
        size_t length = extents_length(p->size, p->next);
        if (claim == CLAIM_DATA && must_wait(p, length, ret_wait_ms)) {
            claim = CLAIM_WAIT;
            break;
        }
        *ret_unit = p->next;
        *ret_units = claim == CLAIM_ZERO ? claim_holes(p, p->next) : 1;
        p->next += *ret_units;
        break;
    }
    (void)pthread_mutex_unlock(&p->lock);
    return claim;
}

void pipeline_zero_later(struct pipeline *p, uint64_t unit)
{
    (void)pthread_mutex_lock(&p->lock);
    if (p->n_late++ == 0 || unit < p->late_first) {
        p->late_first = unit;
    }
    p->late[unit] = 1;
    (void)pthread_mutex_unlock(&p->lock);
}

void pipeline_unit_done(struct pipeline *p, uint64_t unit, struct digest digest)
{
    (void)pthread_mutex_lock(&p->lock);
    unit_done(p, unit, digest);
    (void)pthread_mutex_unlock(&p->lock);
}

void pipeline_differs(struct pipeline *p, uint64_t offset, uint64_t length)
{
    (void)pthread_mutex_lock(&p->lock);
    atomic_fetch_add(&p->differing, length);
    if (p->differs != NULL) {
        (void)extents_add(p->differs, offset, length);
    }
    unsigned at = 0;
    while (at < p->n_differences && p->differences[at].offset < offset) {
        at++;
    }
    struct difference *before = at > 0 ? &p->differences[at - 1] : NULL;
    struct difference *after =
        at < p->n_differences ? &p->differences[at] : NULL;
    if (before != NULL && before->offset + before->length == offset) {
        before->length += length;
        if (after != NULL && offset + length == after->offset) {
            before->length += after->length;
            p->n_differences--;
            memmove(after, after + 1, (p->n_differences - at) * sizeof(*after));
        }
    } else if (after != NULL && offset + length == after->offset) {
        after->offset = offset;
        after->length += length;
    } else if (at < DIFFERENCES_MAX) {
        insert(p, at, (struct difference){offset, length});
    }
    (void)pthread_mutex_unlock(&p->lock);
}

bool pipeline_flush_begin(struct pipeline *p, bool last)
{
    if (p->mode != PIPELINE_COPY) {
        return false;
    }
    (void)pthread_mutex_lock(&p->lock);
    uint64_t age_ns = pipeline_now_ns() - p->saved_ns;
    bool begin = !p->flushing && (last || p->since_save >= SAVE_BYTES ||
                                  age_ns >= SAVE_MS * (SECOND / 1000));
    begin = begin && (record_flush_begin(p->record) || last);
    if (begin) {
        p->flushing = true;
        p->since_save = 0;
    }
    (void)pthread_mutex_unlock(&p->lock);
    return begin;
}

void pipeline_flush_end(struct pipeline *p, int result, const struct bulk *bulk)
{
    struct err *err = NULL;
    int r = 0;
    if (result < 0) {
        pipeline_fail(p, bulk, result, "flush", 0, NULL);
    }
    (void)pthread_mutex_lock(&p->lock);
    if (result == 0) {
        r = record_flush_end(p->record, &err);
    }
    p->flushing = false;
    p->saved_ns = pipeline_now_ns();
    (void)pthread_mutex_unlock(&p->lock);
    if (r < 0) {
        pipeline_fail(p, NULL, r, "", 0, err);
    }
}

void pipeline_fail(struct pipeline *p, const struct bulk *bulk, int code,
                   const char *verb, uint64_t offset, struct err *err)
{
    (void)pthread_mutex_lock(&p->lock);
    if (!atomic_exchange(&p->stop, true)) {
        if (bulk != NULL) {
            const char *more = bulk->detail;
            p->lost = bulk->lost;
            (void)err_set(&err, code, bulk->volume->name,
                          "cannot %s at offset %llu: %s%s%s", verb,
                          (unsigned long long)offset, strerror(-code),
                          more != NULL ? ": " : "", more != NULL ? more : "");
        }
        if (code == -ENOSPC || code == -EDQUOT) {
            err_hint(&err, "make room there, then give the same command: it "
                           "goes on from here");
        }
        p->err = err;
    } else {
        (void)err_free(err);
    }
    (void)pthread_mutex_unlock(&p->lock);
}

/* After an error too: what was written before it need not be done again. */
bool pipeline_leave(struct pipeline *p)
{
    (void)pthread_mutex_lock(&p->lock);
    p->running--;
    bool silent = p->err != NULL && p->err->code == -ETIMEDOUT;
    bool last = p->running == 0 && !silent;
    (void)pthread_mutex_unlock(&p->lock);
    return last;
}

bool pipeline_stopped(const struct pipeline *p)
{
    return atomic_load(&p->stop) ||
           (p->cancel != NULL && atomic_load(p->cancel));
}

uint64_t pipeline_now_ns(void)
{
    struct timespec now = {0};
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * SECOND + (uint64_t)now.tv_nsec;
}

static unsigned lanes_of(const struct pipeline *p, const struct lane *first)
{
    unsigned lanes = first->a->lanes;
    if (first->b != NULL && first->b->lanes < lanes) {
        lanes = first->b->lanes;
    }
    uint64_t units = p->size / UNIT + 1;
    lanes = units < lanes ? (unsigned)units : lanes;
    uint64_t each = p->mode == PIPELINE_COMPARE ? 2 * UNIT : UNIT;
    uint64_t most = p->memory / each;
    return most < 1 ? 1 : most < lanes ? (unsigned)most : lanes;
}

/* What the more demanding side wants; more would only be cold memory. */
static uint64_t depth_of(const struct lane *lane)
{
    uint64_t depth = 1;
    const struct bulk *sides[] = {lane->a, lane->b};
    for (unsigned i = 0; i < ARRAY_SIZE(sides); i++) {
        if (sides[i] != NULL && !sides[i]->blocking) {
            uint64_t wants = sides[i]->depth > 0 ? sides[i]->depth : SLOTS_MAX;
            depth = wants > depth ? wants : depth;
        }
    }
    return depth;
}

/* Where each call blocks, a second buffer would only be cold. */
static unsigned slots_of(const struct pipeline *p, const struct lane *first,
                         unsigned lanes)
{
    bool blocking =
        first->a->blocking && (first->b == NULL || first->b->blocking);
    uint64_t each = p->mode == PIPELINE_COMPARE ? 2 * UNIT : UNIT;
    uint64_t n = blocking ? 1 : p->memory / each / lanes;
    uint64_t depth = depth_of(first);
    n = n < depth ? n : depth;
    return n < 1 ? 1 : n > SLOTS_MAX ? SLOTS_MAX : (unsigned)n;
}

static int run_lanes(struct pipeline *p, struct lane *lanes)
{
    unsigned started = 0;
    p->running = p->lanes;
    for (; started < p->lanes; started++) {
        int r = pthread_create(&lanes[started].thread, NULL, lane_run,
                               &lanes[started]);
        if (r != 0) {
            struct err *err = NULL;
            (void)err_set(&err, -r, p->a->name, "no thread: %s", strerror(r));
            pipeline_fail(p, NULL, -r, "", 0, err);
            break;
        }
    }
    for (unsigned i = 0; i < started; i++) {
        (void)pthread_join(lanes[i].thread, NULL);
    }
    return 0;
}

/* True: the unit was dealt with here, and p->next is behind it. */
static bool skip_unit(struct pipeline *p, uint64_t unit, enum claim *ret)
{
    static const struct digest none;
    size_t length = extents_length(p->size, unit);
    bool hole = extents_unit(p->a_map, unit) == 0;
    bool skip = false;
    if (p->again && p->mode != PIPELINE_COPY && p->judged[unit] != 0) {
        p->next++;
        return true;
    }
    switch (p->mode) {
    case PIPELINE_COPY:
        if (record_is_safe(p->record, unit) && p->again) {
            p->next++; /* its figures are told already */
            return true;
        }
        if (record_is_safe(p->record, unit)) {
            atomic_fetch_add(&p->resumed, length);
            skip = true;
        } else if (hole && p->blank) {
            atomic_fetch_add(&p->skipped, length);
            unit_done(p, unit, none);
            p->next++;
            return true;
        } else if (hole) {
            *ret = CLAIM_ZERO;
        }
        break;
    case PIPELINE_CHECK:
        skip = p->digests->known[unit] == 0 ||
               (hole && digest_equal(&p->digests->of[unit], &none));
        break;
    case PIPELINE_COMPARE:
        skip = hole && extents_unit(p->b_map, unit) == 0;
        break;
    case PIPELINE_DIGEST:
        if (hole) {
            unit_done(p, unit, none);
            p->next++;
            return true;
        }
        break;
    }
    if (skip) {
        atomic_fetch_add(&p->passed, length);
        if (p->mode != PIPELINE_COPY) {
            p->judged[unit] = 1;
        }
        p->next++;
    }
    return skip;
}

/* How many units of nothing follow: one call zeroes them all. */
static uint64_t claim_holes(struct pipeline *p, uint64_t unit)
{
    uint64_t n = 1;
    while (n < RUN_MAX && unit + n < p->a_map->units &&
           extents_unit(p->a_map, unit + n) == 0 &&
           !record_is_safe(p->record, unit + n)) {
        n++;
    }
    return n;
}

/*
 * A call for each piece of zeroes costs more than the zeroes: they are kept
 * until there are enough for a long run, or nothing else is left.
 */
static bool claim_late(struct pipeline *p, uint64_t units, uint64_t *ret_unit,
                       uint64_t *ret_units)
{
    if (p->n_late == 0 || (p->n_late < RUN_MAX && p->next < units)) {
        return false;
    }
    while (p->late[p->late_first] == 0) {
        p->late_first++;
    }
    *ret_unit = p->late_first;
    *ret_units = 0;
    while (*ret_units < RUN_MAX && p->late_first < units &&
           p->late[p->late_first] != 0) {
        p->late[p->late_first] = 0;
        p->late_first++;
        ++*ret_units;
    }
    p->n_late -= *ret_units;
    return true;
}

static bool must_wait(struct pipeline *p, size_t length, unsigned *ret_ms)
{
    if (p->speed == 0) {
        return false;
    }
    uint64_t now = pipeline_now_ns();
    if (p->allowed_ns > now) {
        *ret_ms = (unsigned)((p->allowed_ns - now) / 1000000) + 1;
        return true;
    }
    /* What was not used for more than a tenth of a second is lost. */
    if (p->allowed_ns + SECOND / 10 < now) {
        p->allowed_ns = now - SECOND / 10;
    }
    p->allowed_ns +=
        (uint64_t)((double)length * (double)SECOND / (double)p->speed);
    return false;
}

static void unit_done(struct pipeline *p, uint64_t unit, struct digest digest)
{
    size_t length = extents_length(p->size, unit);
    if (p->mode == PIPELINE_COPY) {
        record_written(p->record, unit, digest);
        p->since_save += length;
    } else if (p->mode == PIPELINE_DIGEST) {
        p->digests->of[unit] = digest;
        p->digests->known[unit] = 1;
    }
    if (p->mode != PIPELINE_COPY) {
        p->judged[unit] = 1;
    }
    atomic_fetch_add(&p->passed, length);
}

static void insert(struct pipeline *p, unsigned at, struct difference piece)
{
    unsigned n = p->n_differences < DIFFERENCES_MAX ? p->n_differences
                                                    : DIFFERENCES_MAX - 1;
    memmove(&p->differences[at + 1], &p->differences[at],
            (n - at) * sizeof(piece));
    p->differences[at] = piece;
    p->n_differences = n + 1;
}
