/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The loop's half of a check: see copy.c, which is its elder. */
#include "check.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/err.h"
#include "base/str.h"
#include "bulk/check-work.h"

enum { TICK_MS = 100, PROGRESS_MS = 500, TEXTS_MAX = 7 };

struct check {
    struct check_work work;
    struct check_callbacks callbacks;
    uv_async_t wake;
    uv_timer_t timer;
    uv_thread_t thread;
    unsigned n_open;
    char *texts[TEXTS_MAX];
    uint64_t started_ms;
    uint64_t told_ms;
    bool late;
    int code;
    struct err *err;
};

static void check_run(void *data);
static void check_on_wake(uv_async_t *wake);
static void check_on_tick(uv_timer_t *timer);
static void check_on_closed(uv_handle_t *handle);
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
    check->callbacks = *callbacks;
    check->started_ms = uv_hrtime() / 1000000;
    int r = uv_async_init(loop, &check->wake, check_on_wake);
    if (r < 0) {
        return r;
    }
    (void)uv_timer_init(loop, &check->timer);
    check->wake.data = check;
    check->timer.data = check;
    check->n_open = 2;
    r = uv_thread_create(&check->thread, check_run, check);
    if (r < 0) {
        (void)err_set(errp, r, "verify", "no thread: %s", uv_strerror(r));
        check->callbacks.ended = NULL;
        uv_close((uv_handle_t *)&check->wake, check_on_closed);
        uv_close((uv_handle_t *)&check->timer, check_on_closed);
        (void)TAKE_PTR(check); /* the last of both frees it */
        return r;
    }
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
    (void)uv_async_send(&check->wake);
}

static void check_on_wake(uv_async_t *wake)
{
    struct check *check = wake->data;
    if (uv_is_closing((uv_handle_t *)wake)) {
        return;
    }
    (void)uv_thread_join(&check->thread);
    check->work.result.ms = uv_hrtime() / 1000000 - check->started_ms;
    uv_close((uv_handle_t *)&check->wake, check_on_closed);
    uv_close((uv_handle_t *)&check->timer, check_on_closed);
}

/* The pipeline lives on while it is watched: under the lock it stays. */
static void check_on_tick(uv_timer_t *timer)
{
    struct check *check = timer->data;
    struct check_work *work = &check->work;
    uint64_t now_ms = uv_hrtime() / 1000000;
    unsigned limit_ms = work->request.limit_ms;
    if (limit_ms != 0 && now_ms - check->started_ms > limit_ms) {
        check->late = true;
        check_cancel(check);
    }
    if (check->callbacks.progress == NULL ||
        now_ms - check->told_ms < PROGRESS_MS) {
        return;
    }
    uint64_t passed = 0, total = 0;
    (void)pthread_mutex_lock(&work->lock);
    if (work->watched != NULL) {
        passed = atomic_load(&work->watched->passed);
        total = work->watched->size;
    }
    (void)pthread_mutex_unlock(&work->lock);
    if (total > 0 && !atomic_load(&work->cancel)) {
        check->told_ms = now_ms;
        check->callbacks.progress(check->callbacks.data, passed, total);
    }
}

static void check_on_closed(uv_handle_t *handle)
{
    struct check *check = handle->data;
    if (--check->n_open > 0) {
        return;
    }
    if (check->late && check->code == -ECANCELED) {
        check->code = -ETIMEDOUT;
        check->err = err_free(check->err);
    }
    if (check->code < 0 && check->err == NULL) {
        (void)err_set(&check->err, check->code, "verify", "%s",
                      strerror(-check->code));
    }
    if (check->callbacks.ended != NULL) {
        check->callbacks.ended(check->callbacks.data,
                               check->code < 0 ? check->err : NULL,
                               check->code < 0 ? NULL : &check->work.result);
    }
    (void)check_free(check);
}
