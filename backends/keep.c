/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "keep.h"

#include <errno.h>
#include <stdlib.h>

#include "backend.h"
#include "base/worker.h"
#include "bulk.h"

enum { CLOSE_MS = 5000 };

struct kept {
    struct kept *next;
    const struct bulk_ops *ops;
    void *held;
};

struct keep {
    uv_mutex_t lock; /* of what follows */
    unsigned refs;
    bool closed;
    struct kept *kept;
    /* The loop's, of closing it. */
    uv_timer_t timer;
    struct worker *worker;
    keep_closed_fn *cb;
    void *data;
};

static struct kept *take_bad(struct keep *keep);
static bool take_in(struct keep *keep, const struct bulk_ops *ops, void *held);
static void release_all(struct kept *kept);
static void close_on_run(void *data);
static void close_on_ended(void *data);
static void close_on_gone(void *data);
static void close_on_late(uv_timer_t *timer);
static void close_on_timer_closed(uv_handle_t *handle);

int keep_new(struct keep **ret)
{
    struct keep *keep = calloc(1, sizeof(*keep));
    if (keep == NULL) {
        return -ENOMEM;
    }
    int r = uv_mutex_init(&keep->lock);
    if (r < 0) {
        free(keep);
        return r;
    }
    keep->refs = 1;
    *ret = keep;
    return 0;
}

struct keep *keep_ref(struct keep *keep)
{
    if (keep != NULL) {
        uv_mutex_lock(&keep->lock);
        keep->refs++;
        uv_mutex_unlock(&keep->lock);
    }
    return keep;
}

void keep_unref(struct keep *keep)
{
    if (keep == NULL) {
        return;
    }
    uv_mutex_lock(&keep->lock);
    bool last = --keep->refs == 0;
    uv_mutex_unlock(&keep->lock);
    if (last) {
        release_all(keep->kept);
        uv_mutex_destroy(&keep->lock);
        free(keep);
    }
}

int keep_begin(struct keep *keep, const struct volume *volume, void **ret,
               struct err **errp)
{
    *ret = NULL;
    return keep != NULL ? bulk_hold(volume, ret, errp) : 0;
}

/* Whoever has had it last may have to wait for its end: not under the lock. */
void keep_end(struct keep *keep, const struct volume *volume, void *held)
{
    if (held == NULL) {
        return;
    }
    const struct bulk_ops *ops = volume->ops->bulk;
    uv_mutex_lock(&keep->lock);
    struct kept *bad = take_bad(keep);
    bool taken = take_in(keep, ops, held);
    uv_mutex_unlock(&keep->lock);
    release_all(bad);
    if (!taken) {
        ops->release(held);
    }
}

bool keep_close(struct keep *keep, uv_loop_t *loop, keep_closed_fn *cb,
                void *data)
{
    static const struct worker_ops ops = {close_on_run, close_on_ended,
                                          close_on_gone};
    uv_mutex_lock(&keep->lock);
    keep->closed = true; /* the list is ours from now on */
    uv_mutex_unlock(&keep->lock);
    if (keep->kept == NULL) {
        return false;
    }
    (void)keep_ref(keep);
    if (worker_start(loop, &ops, keep, &keep->worker) < 0) {
        close_on_run(keep);
        keep_unref(keep);
        return false;
    }
    (void)keep_ref(keep);
    keep->cb = cb;
    keep->data = data;
    (void)uv_timer_init(loop, &keep->timer);
    keep->timer.data = keep;
    (void)uv_timer_start(&keep->timer, close_on_late, CLOSE_MS, 0);
    return true;
}

/* Under the lock: what no act will get any more. */
static struct kept *take_bad(struct keep *keep)
{
    struct kept *bad = NULL;
    struct kept **at = &keep->kept;
    while (!keep->closed && *at != NULL) {
        struct kept *kept = *at;
        if (kept->ops->is_good(kept->held)) {
            at = &kept->next;
        } else {
            *at = kept->next;
            kept->next = bad;
            bad = kept;
        }
    }
    return bad;
}

/* Under the lock: whether the reference has found its place. */
static bool take_in(struct keep *keep, const struct bulk_ops *ops, void *held)
{
    bool wanted = !keep->closed && ops->is_good(held);
    for (struct kept *at = keep->kept; wanted && at != NULL; at = at->next) {
        wanted = at->held != held;
    }
    struct kept *kept = wanted ? calloc(1, sizeof(*kept)) : NULL;
    if (kept == NULL) {
        return false;
    }
    *kept = (struct kept){keep->kept, ops, held};
    keep->kept = kept;
    return true;
}

static void release_all(struct kept *kept)
{
    while (kept != NULL) {
        struct kept *next = kept->next;
        kept->ops->release(kept->held);
        free(kept);
        kept = next;
    }
}

/* The thread. */
static void close_on_run(void *data)
{
    struct keep *keep = data;
    release_all(TAKE_PTR(keep->kept));
}

static void close_on_ended(void *data)
{
    struct keep *keep = data;
    uv_close((uv_handle_t *)&keep->timer, close_on_timer_closed);
    keep_unref(keep);
}

static void close_on_gone(void *data)
{
    keep_unref(data);
}

static void close_on_late(uv_timer_t *timer)
{
    struct keep *keep = timer->data;
    worker_leave(keep->worker);
    uv_close((uv_handle_t *)timer, close_on_timer_closed);
}

static void close_on_timer_closed(uv_handle_t *handle)
{
    struct keep *keep = handle->data;
    keep->cb(keep->data);
    keep_unref(keep);
}
