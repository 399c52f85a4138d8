/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The loop's half of a check: see copy.c, which is its elder. */
#include "check.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "backends/bulk.h"
#include "base/cleanup.h"
#include "base/err.h"
#include "base/str.h"
#include "base/worker.h"
#include "bulk/check-work.h"

enum { TICK_MS = 100, PROGRESS_MS = 500, LEAVE_MS = 5000, TEXTS_MAX = 7 };

struct check {
    struct check_work work;
    struct check_callbacks callbacks;
    uv_timer_t timer;
    struct worker *worker;
    char *texts[TEXTS_MAX];
    uint64_t started_ms;
    uint64_t told_ms;
    uint64_t passed; /* bytes, when it was last seen to go on */
    uint64_t passed_ms;
    uint64_t cancelled_ms;
    bool late;
    bool left;           /* its thread does not end */
    atomic_uint n_users; /* the loop, the worker */
    /* The worker's, until it has ended. */
    int code;
    struct err *err;
};

static void check_run(void *data);
static void check_on_ended(void *data);
static void check_on_gone(void *data);
static void check_on_tick(uv_timer_t *timer);
static void check_on_closed(uv_handle_t *handle);
static void check_unref(struct check *check);
static int take_request(struct check *check,
                        const struct check_request *request);
static struct check *check_free(struct check *check);
DEFINE_CLEANUP(struct check, check_free)

int check_start(uv_loop_t *loop, const struct check_request *request,
                const struct check_callbacks *callbacks, struct check **ret,
                struct err **errp)
{
    _cleanup_(check_freep) struct check *check = calloc(1, sizeof(*check));
    if (check == NULL) {
        return -ENOMEM;
    }
    (void)pthread_mutex_init(&check->work.lock, NULL);
    if (take_request(check, request) < 0) {
        return -ENOMEM;
    }
    static const struct worker_ops ops = {check_run, check_on_ended,
                                          check_on_gone};
    check->callbacks = *callbacks;
    check->started_ms = check->passed_ms = uv_hrtime() / 1000000;
    atomic_init(&check->n_users, 2);
    int r = worker_start(loop, &ops, check, &check->worker);
    if (r < 0) {
        return err_set(errp, r, "verify", "no thread: %s", uv_strerror(r));
    }
    (void)uv_timer_init(loop, &check->timer);
    check->timer.data = check;
    (void)uv_timer_start(&check->timer, check_on_tick, TICK_MS, TICK_MS);
    *ret = TAKE_PTR(check);
    return 0;
}

bool check_has_scratch(const char *dir, const char *scratch)
{
    return access(dir, F_OK) == 0 || access(scratch, F_OK) == 0;
}

void check_cancel(struct check *check)
{
    atomic_store(&check->work.cancel, true);
}

static int take_request(struct check *check,
                        const struct check_request *request)
{
    struct check_request *r = &check->work.request;
    *r = *request;
    r->ranges = json_deep_copy(request->ranges);
    const char **texts[] = {&r->dir,           &r->scratch, &r->source,
                            &r->source_format, &r->target,  &r->target_format,
                            &r->seed};
    _Static_assert(ARRAY_SIZE(texts) == TEXTS_MAX, "one place for each text");
    for (unsigned i = 0; i < ARRAY_SIZE(texts); i++) {
        if (*texts[i] != NULL) {
            check->texts[i] = strdup(*texts[i]);
            if (check->texts[i] == NULL) {
                return -ENOMEM;
            }
            *texts[i] = check->texts[i];
        }
    }
    return request->ranges != NULL && r->ranges == NULL ? -ENOMEM : 0;
}

static struct check *check_free(struct check *check)
{
    for (unsigned i = 0; i < TEXTS_MAX; i++) {
        free(check->texts[i]);
    }
    json_decref((json_t *)(uintptr_t)check->work.request.ranges);
    json_decref(check->work.result.ranges);
    (void)pthread_mutex_destroy(&check->work.lock);
    (void)err_free(check->err);
    free(check);
    return NULL;
}

/* The thread. */
static void check_run(void *data)
{
    struct check *check = data;
    check->code = check_work_run(&check->work, &check->err);
}

static void check_on_ended(void *data)
{
    struct check *check = data;
    check->work.result.ms = uv_hrtime() / 1000000 - check->started_ms;
    uv_close((uv_handle_t *)&check->timer, check_on_closed);
    check_unref(check);
}

/* In the thread, perhaps, and perhaps when nobody knows of it any more. */
static void check_on_gone(void *data)
{
    check_unref(data);
}

/* The pipeline lives on while it is watched: under the lock it stays. */
static bool look(struct check *check, uint64_t *ret_passed, uint64_t *ret_total)
{
    struct check_work *work = &check->work;
    (void)pthread_mutex_lock(&work->lock);
    bool runs = work->watched != NULL;
    if (runs) {
        *ret_passed = atomic_load(&work->watched->passed);
        *ret_total = work->watched->size;
    }
    (void)pthread_mutex_unlock(&work->lock);
    return runs;
}

static bool is_late(const struct check *check, uint64_t now_ms)
{
    const struct check_request *request = &check->work.request;
    return (request->limit_ms != 0 &&
            now_ms - check->started_ms > request->limit_ms) ||
           (request->stall_ms != 0 &&
            now_ms - check->passed_ms > request->stall_ms);
}

/* Whether it was told to end: then its thread is not waited for for ever. */
static bool is_ending(struct check *check, uint64_t now_ms)
{
    if (!atomic_load(&check->work.cancel)) {
        return false;
    }
    if (check->cancelled_ms == 0) {
        check->cancelled_ms = now_ms;
    } else if (now_ms - check->cancelled_ms > LEAVE_MS) {
        check->left = true;
        /* It may hang in what acts of the volume share: they get it no more. */
        bulk_doubt_uri(check->work.request.source);
        bulk_doubt_uri(check->work.request.target);
        worker_leave(check->worker);
        uv_close((uv_handle_t *)&check->timer, check_on_closed);
    }
    return true;
}

static void check_on_tick(uv_timer_t *timer)
{
    struct check *check = timer->data;
    uint64_t now_ms = uv_hrtime() / 1000000;
    uint64_t passed = 0, total = 0;
    bool runs = look(check, &passed, &total);
    if (passed != check->passed) {
        check->passed = passed;
        check->passed_ms = now_ms;
    }
    if (is_late(check, now_ms)) {
        check->late = true;
        check_cancel(check);
    }
    if (!is_ending(check, now_ms) && runs && total > 0 &&
        check->callbacks.progress != NULL &&
        now_ms - check->told_ms >= PROGRESS_MS) {
        check->told_ms = now_ms;
        check->callbacks.progress(check->callbacks.data, passed, total);
    }
}

/* What the worker says, or what there is to say of one that does not end. */
static int outcome(struct check *check, struct err **ret)
{
    int code = check->left ? -ECANCELED : check->code;
    *ret = check->left ? NULL : TAKE_PTR(check->err);
    if (check->late && code == -ECANCELED) {
        code = -ETIMEDOUT;
        *ret = err_free(*ret);
    }
    if (code < 0 && *ret == NULL) {
        (void)err_set(ret, code, "verify", "%s", strerror(-code));
    }
    return code;
}

static void check_on_closed(uv_handle_t *handle)
{
    struct check *check = handle->data;
    _cleanup_err_ struct err *err = NULL;
    int code = outcome(check, &err);
    check->callbacks.ended(check->callbacks.data, code < 0 ? err : NULL,
                           code < 0 ? NULL : &check->work.result);
    check_unref(check);
}

static void check_unref(struct check *check)
{
    if (atomic_fetch_sub(&check->n_users, 1) == 1) {
        (void)check_free(check);
    }
}
