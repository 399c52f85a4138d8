/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* One thread of a pipeline: its channels, its buffers, its requests. */
#include "lane.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "backends/backend.h"
#include "base/err.h"

enum {
    TURN_MS = 100,
    STALL_NS_PER_S = 1000000000,
    STALL_S = 60,
    SECTOR = 512,
    IOPRIO_IDLE = 3 << 13,
    NICE = 19,
    HUGE = 2 << 20,
};

static char *new_buffers(size_t length);
static unsigned fill(struct lane *lane);
static void start(struct slot *slot);
static void start_read(struct slot *slot, struct bulk *bulk,
                       const struct extents *map, char *buffer,
                       struct bulk_request *request);
static void start_zero(struct slot *slot);
static void flush_if_due(struct lane *lane, bool last);
static void slot_on_read(struct bulk_request *request, int result);
static void slot_on_written(struct bulk_request *request, int result);
static void lane_on_flushed(struct bulk_request *request, int result);
static void judge(struct slot *slot);
static void judge_copy(struct slot *slot);
static void judge_digest(struct slot *slot);
static void judge_compare(struct slot *slot);
static void finish(struct slot *slot, bool done);
static void submit(struct slot *slot, struct bulk *bulk,
                   struct bulk_request *request, enum bulk_act act,
                   uint64_t offset, uint64_t length);
static void lower_priority(void);

int lane_init(struct lane *lane, struct pipeline *p, unsigned n_slots,
              struct err **errp)
{
    lane->pipeline = p;
    int r = lane->a != NULL ? 0 : bulk_open(p->a, p->a_flags, &lane->a, errp);
    if (r == 0 && p->b != NULL && lane->b == NULL) {
        r = bulk_open(p->b, p->b_flags, &lane->b, errp);
    }
    if (r < 0 || n_slots == 0) {
        return r;
    }
    lane->slots = calloc(n_slots, sizeof(*lane->slots));
    if (lane->slots == NULL) {
        return -ENOMEM;
    }
    lane->n_slots = n_slots;
    bool both = p->mode == PIPELINE_COMPARE;
    size_t each = both ? 2 * UNIT : UNIT;
    lane->buffers = new_buffers(each * n_slots);
    if (lane->buffers == NULL) {
        return -ENOMEM;
    }
    for (unsigned i = 0; i < n_slots; i++) {
        struct slot *slot = &lane->slots[i];
        slot->lane = lane;
        slot->buffer = lane->buffers + i * each;
        slot->other = both ? slot->buffer + UNIT : NULL;
        slot->next = lane->idle;
        lane->idle = slot;
    }
    return 0;
}

void lane_done(struct lane *lane)
{
    /* First: what is under way still has our buffers. */
    lane->a = bulk_close(lane->a);
    lane->b = bulk_close(lane->b);
    free(lane->buffers);
    free(lane->slots);
    lane->buffers = NULL;
    lane->slots = NULL;
    lane->n_slots = 0;
}

/* Huge pages: the kernel pins one of them for a request, not 256. */
static char *new_buffers(size_t length)
{
    void *buffers = NULL;
    size_t align = length >= HUGE ? HUGE : BULK_ALIGN;
    if (posix_memalign(&buffers, align, length) != 0) {
        return NULL;
    }
    if (length >= HUGE) {
        (void)madvise(buffers, length, MADV_HUGEPAGE);
    }
    return buffers;
}

void *lane_run(void *data)
{
    struct lane *lane = data;
    struct pipeline *p = lane->pipeline;
    struct bulk *channels[] = {lane->a, lane->b};
    unsigned n = lane->b != NULL ? 2 : 1;
    uint64_t last_ns = pipeline_now_ns();
    depth_init(&lane->depth, lane->n_slots, last_ns);
    if (p->low_priority) {
        lower_priority();
    }
    for (;;) {
        unsigned wait_ms = fill(lane);
        flush_if_due(lane, false);
        unsigned pending = lane->a->pending + (n > 1 ? lane->b->pending : 0);
        if (pending == 0 && (lane->ended || pipeline_stopped(p))) {
            if (lane->last || !pipeline_leave(p)) {
                return NULL;
            }
            lane->last = true;
            flush_if_due(lane, true);
            continue;
        }
        if (bulk_turn(channels, n, wait_ms) > 0 ||
            lane->a->pending + (n > 1 ? lane->b->pending : 0) == 0) {
            last_ns = pipeline_now_ns();
        } else if ((pipeline_now_ns() - last_ns) / STALL_NS_PER_S > STALL_S) {
            const struct bulk *silent =
                lane->a->pending > 0 ? lane->a : lane->b;
            pipeline_fail(p, silent, -ETIMEDOUT, "go on", 0, NULL);
            return NULL;
        }
    }
}

/* Returns how long to wait at most before it is called again. */
static unsigned fill(struct lane *lane)
{
    while (lane->idle != NULL && lane->busy < lane->depth.window &&
           !lane->ended && !pipeline_stopped(lane->pipeline)) {
        struct slot *slot = lane->idle;
        unsigned wait_ms = TURN_MS;
        enum claim claim =
            pipeline_claim(lane->pipeline, &slot->unit, &slot->units, &wait_ms);
        if (claim == CLAIM_WAIT) {
            return wait_ms < TURN_MS ? wait_ms : TURN_MS;
        }
        if (claim == CLAIM_END) {
            lane->ended = true;
            break;
        }
        lane->idle = slot->next;
        lane->busy++;
        if (claim == CLAIM_ZERO) {
            start_zero(slot);
        } else {
            start(slot);
        }
    }
    return TURN_MS;
}

static void start(struct slot *slot)
{
    struct lane *lane = slot->lane;
    const struct pipeline *p = lane->pipeline;
    slot->length = extents_length(p->size, slot->unit);
    slot->pending = 1; /* ours, so that nothing is judged too early */
    start_read(slot, lane->a, p->a_map, slot->buffer, &slot->requests[0]);
    if (p->mode == PIPELINE_COMPARE) {
        start_read(slot, lane->b, p->b_map, slot->other, &slot->requests[1]);
    }
    slot->pending--;
    if (slot->pending == 0) {
        judge(slot);
    }
}

/* One request from the first to the last block that may hold data. */
static void start_read(struct slot *slot, struct bulk *bulk,
                       const struct extents *map, char *buffer,
                       struct bulk_request *request)
{
    uint16_t bits = extents_unit(map, slot->unit);
    uint64_t offset = slot->unit * UNIT;
    size_t from = bits != 0 ? (size_t)__builtin_ctz(bits) * BLOCK : 0;
    size_t to = bits != 0 ? (32 - (size_t)__builtin_clz(bits)) * BLOCK : 0;
    uint64_t end = bulk->size > offset ? bulk->size - offset : 0;
    end = end < slot->length ? end : slot->length;
    to = to < end ? to : (size_t)end;
    from = from < to ? from : to;
    memset(buffer, 0, from);
    memset(buffer + to, 0, slot->length - to);
    if (from < to) {
        request->buffer = buffer + from;
        request->cb = slot_on_read;
        submit(slot, bulk, request, BULK_READ, offset + from, to - from);
    }
}

static void start_zero(struct slot *slot)
{
    const struct pipeline *p = slot->lane->pipeline;
    struct bulk_request *request = &slot->requests[0];
    uint64_t offset = slot->unit * UNIT;
    uint64_t length = slot->units * UNIT;
    if (length > p->size - offset) {
        length = p->size - offset;
    }
    slot->digest = (struct digest){{0}};
    slot->pending = 0;
    request->cb = slot_on_written;
    submit(slot, slot->lane->b, request, BULK_ZERO, offset, length);
}

static void flush_if_due(struct lane *lane, bool last)
{
    struct pipeline *p = lane->pipeline;
    if (lane->flush_pending || !pipeline_flush_begin(p, last)) {
        return;
    }
    lane->flush_pending = true;
    lane->flush = (struct bulk_request){
        .act = BULK_FLUSH, .cb = lane_on_flushed, .data = lane};
    bulk_submit(lane->b, &lane->flush);
}

static void slot_on_read(struct bulk_request *request, int result)
{
    struct slot *slot = request->data;
    struct pipeline *p = slot->lane->pipeline;
    slot->pending--;
    if (result < 0) {
        pipeline_fail(p, request->bulk, result, "read", request->offset, NULL);
    } else {
        atomic_fetch_add(&p->read, request->length);
    }
    if (slot->pending > 0) {
        return;
    }
    if (pipeline_stopped(p)) {
        finish(slot, false);
    } else {
        judge(slot);
    }
}

static void slot_on_written(struct bulk_request *request, int result)
{
    struct slot *slot = request->data;
    struct pipeline *p = slot->lane->pipeline;
    slot->pending--;
    if (result < 0) {
        pipeline_fail(p, request->bulk, result, "write", request->offset, NULL);
    } else if (request->act == BULK_ZERO) {
        atomic_fetch_add(&p->zeroed, request->length);
    } else {
        atomic_fetch_add(&p->written, request->length);
    }
    if (slot->pending == 0) {
        /* After a failure nothing is told as written: it may be this one. */
        finish(slot, !atomic_load(&p->stop));
    }
}

static void lane_on_flushed(struct bulk_request *request, int result)
{
    struct lane *lane = request->data;
    lane->flush_pending = false;
    pipeline_flush_end(lane->pipeline, result, request->bulk);
}

static void judge(struct slot *slot)
{
    switch (slot->lane->pipeline->mode) {
    case PIPELINE_COPY:
        judge_copy(slot);
        break;
    case PIPELINE_COMPARE:
        judge_compare(slot);
        break;
    case PIPELINE_CHECK:
    case PIPELINE_DIGEST:
        judge_digest(slot);
        break;
    }
}

static void judge_copy(struct slot *slot)
{
    struct lane *lane = slot->lane;
    struct pipeline *p = lane->pipeline;
    struct range ranges[RANGES_MAX];
    slot->mask = blocks_scan(slot->buffer, slot->length);
    slot->digest = digest_unit(slot->buffer, slot->length, slot->mask);
    if (!p->blank && slot->mask == 0) {
        pipeline_zero_later(p, slot->unit);
        lane->ended = false; /* somebody has to claim it */
        finish(slot, false);
        return;
    }
    uint16_t mask =
        p->blank ? slot->mask : blocks_close(slot->mask, slot->length);
    unsigned n =
        blocks_ranges(slot->buffer, slot->length, mask, p->blank, ranges);
    slot->pending = 1;
    for (unsigned i = 0; i < n; i++) {
        struct bulk_request *request = &slot->requests[i];
        if (!ranges[i].data && p->blank) {
            atomic_fetch_add(&p->skipped, ranges[i].length);
            continue;
        }
        request->cb = slot_on_written;
        request->buffer = slot->buffer + ranges[i].offset;
        submit(slot, lane->b, request, ranges[i].data ? BULK_PUT : BULK_ZERO,
               slot->unit * UNIT + ranges[i].offset, ranges[i].length);
    }
    slot->pending--;
    if (slot->pending == 0) {
        finish(slot, true);
    }
}

static void judge_digest(struct slot *slot)
{
    struct pipeline *p = slot->lane->pipeline;
    slot->mask = blocks_scan(slot->buffer, slot->length);
    slot->digest = digest_unit(slot->buffer, slot->length, slot->mask);
    if (p->mode == PIPELINE_CHECK &&
        !digest_equal(&slot->digest, &p->digests->of[slot->unit])) {
        pipeline_differs(p, slot->unit * UNIT, slot->length);
    }
    finish(slot, true);
}

static void judge_compare(struct slot *slot)
{
    struct pipeline *p = slot->lane->pipeline;
    if (memcmp(slot->buffer, slot->other, slot->length) != 0) {
        for (size_t at = 0; at < slot->length; at += SECTOR) {
            size_t left = slot->length - at;
            size_t n = left < SECTOR ? left : SECTOR;
            if (memcmp(slot->buffer + at, slot->other + at, n) != 0) {
                pipeline_differs(p, slot->unit * UNIT + at, n);
            }
        }
    }
    finish(slot, true);
}

static void finish(struct slot *slot, bool done)
{
    struct lane *lane = slot->lane;
    for (uint64_t i = 0; done && i < slot->units; i++) {
        pipeline_unit_done(lane->pipeline, slot->unit + i, slot->digest);
    }
    slot->next = lane->idle;
    lane->idle = slot;
    lane->busy--;
    depth_done(&lane->depth, pipeline_now_ns());
}

static void submit(struct slot *slot, struct bulk *bulk,
                   struct bulk_request *request, enum bulk_act act,
                   uint64_t offset, uint64_t length)
{
    request->act = act;
    request->offset = offset;
    request->length = length;
    request->data = slot;
    slot->pending++;
    bulk_submit(bulk, request);
}

/* The thread's only; best effort, and nothing for a network's other end. */
static void lower_priority(void)
{
    (void)syscall(SYS_ioprio_set, 1, 0, IOPRIO_IDLE);
    (void)setpriority(PRIO_PROCESS, (id_t)gettid(), NICE);
}
