/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The loop's half of a copy: a thread does the work, its events are told from
 * the loop, and a timer looks at how far it is. One thread of its own, as it
 * blocks for as long as the copy lasts: uv's pool has four, for everything.
 * Storage that never answers (a mount whose server is dead) is not waited for:
 * the thread is left to it then, with all that it may still touch.
 */
#include "copy.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

#include "backends/bulk.h"
#include "base/cleanup.h"
#include "base/err.h"
#include "base/str.h"
#include "base/worker.h"
#include "bulk/work.h"
#include "policy/progress.h"

enum {
    PROGRESS_MS = 200,
    TICK_MAX_MS = 1000, /* what a process that stood still has not waited */
    STALL_MS = 600000,
    QUIET_MS = 1800000, /* nothing is to be seen: a map is made, say */
    LEAVE_MS = 30000,
    REMOVE_MS =
        2100000, /* as run/act-storage.c has it: to free takes a while */
    QUEUE_MAX = 256,
    NS_PER_MS = 1000000,
};

struct copy {
    struct work work;
    char key[16];
    struct copy_callbacks callbacks;
    uv_async_t wake;
    uv_timer_t timer;
    struct worker *worker;
    atomic_uint n_users; /* the loop, the worker */
    unsigned n_open;
    char *texts[6];

    pthread_mutex_t lock; /* the next five */
    json_t *queue;
    const struct pipeline *watched;
    const char *phase;
    bool deaf;               /* it was left: 'wake' is no more */
    struct pipeline figures; /* of work.copied, for when it is left */

    const struct pipeline *seen; /* whose progress is measured */
    struct progress progress;
    uint64_t moved; /* the sum of all that grows as it goes on */
    uint64_t tick_ms;
    uint64_t idle_ms;   /* since that has grown */
    uint64_t ending_ms; /* since it was told to end */
    bool late;
    bool cleans; /* 'ending_ms' is since then */
    bool left;   /* its thread does not end */
    uint64_t started_ns;
    uint64_t cpu_us;
    int result; /* what is told of it */
    struct err *told;
    /* The worker's, until it has ended. */
    int code;
    struct err *err;
};

static void copy_run(void *data);
static void copy_on_ended(void *data);
static void copy_on_gone(void *data);
static void copy_unref(struct copy *copy);
static void look(struct copy *copy, const char **ret_phase,
                 struct pipeline *ret);
static bool is_late(struct copy *copy);
static bool cleans(struct copy *copy);
static bool is_ending(struct copy *copy, uint64_t ms);
static void work_tell(void *data, json_t *event);
static void work_watch(void *data, const char *phase, const struct pipeline *p);
static void copy_on_wake(uv_async_t *wake);
static void copy_on_tick(uv_timer_t *timer);
static void copy_on_closed(uv_handle_t *handle);
static void tell_queue(struct copy *copy);
static void tell_progress(struct copy *copy, const struct pipeline *p,
                          const char *phase);
static void tell_result(struct copy *copy);
static void finish(struct copy *copy);
static void explain(struct copy *copy);
static int take_options(struct copy *copy, const struct copy_options *options);
static struct copy *copy_free(struct copy *copy);
DEFINE_CLEANUP(struct copy, copy_free)
static uint64_t cpu_us(void);

int copy_start(uv_loop_t *loop, const struct copy_options *options,
               const struct copy_callbacks *callbacks, struct copy **ret,
               struct err **errp)
{
    _cleanup_(copy_freep) struct copy *copy = calloc(1, sizeof(*copy));
    if (copy == NULL) {
        return -ENOMEM;
    }
    (void)pthread_mutex_init(&copy->lock, NULL);
    copy->queue = json_array();
    if (take_options(copy, options) < 0 || copy->queue == NULL) {
        return -ENOMEM;
    }
    copy->callbacks = *callbacks;
    copy->work.data = copy;
    copy->work.tell = work_tell;
    copy->work.watch = work_watch;
    copy->work.key = copy->key;
    copy->cpu_us = cpu_us();
    copy->started_ns = uv_hrtime();
    int r = uv_async_init(loop, &copy->wake, copy_on_wake);
    if (r < 0) {
        return r;
    }
    (void)uv_timer_init(loop, &copy->timer);
    copy->wake.data = copy;
    copy->timer.data = copy;
    copy->n_open = 2;
    copy->tick_ms = copy->started_ns / NS_PER_MS;
    atomic_init(&copy->n_users, 2);
    static const struct worker_ops ops = {copy_run, copy_on_ended,
                                          copy_on_gone};
    r = worker_start(loop, &ops, copy, &copy->worker);
    if (r < 0) {
        (void)err_set(errp, r, options->source, "no thread: %s",
                      uv_strerror(r));
        copy->callbacks.ended = NULL;
        atomic_init(&copy->n_users, 1);
        uv_close((uv_handle_t *)&copy->wake, copy_on_closed);
        uv_close((uv_handle_t *)&copy->timer, copy_on_closed);
        (void)TAKE_PTR(copy); /* the last of both frees it */
        return r;
    }
    (void)uv_timer_start(&copy->timer, copy_on_tick, PROGRESS_MS, PROGRESS_MS);
    *ret = TAKE_PTR(copy);
    return 0;
}

void copy_cancel(struct copy *copy)
{
    atomic_store(&copy->work.cancel, true);
}

const char *copy_id(const struct copy *copy)
{
    return copy->key;
}

static int take_options(struct copy *copy, const struct copy_options *options)
{
    struct copy_options *o = &copy->work.options;
    *o = *options;
    const char **texts[] = {&o->source,   &o->target, &o->state_dir,
                            &o->manifest, &o->key,    &o->identity};
    for (unsigned i = 0; i < ARRAY_SIZE(texts); i++) {
        if (*texts[i] != NULL) {
            copy->texts[i] = strdup(*texts[i]);
            if (copy->texts[i] == NULL) {
                return -ENOMEM;
            }
            *texts[i] = copy->texts[i];
        }
    }
    if (o->key != NULL) {
        (void)snprintf(copy->key, sizeof(copy->key), "%s", o->key);
    } else {
        record_key(o->source, o->target != NULL ? o->target : "", copy->key);
    }
    return 0;
}

static struct copy *copy_free(struct copy *copy)
{
    for (unsigned i = 0; i < ARRAY_SIZE(copy->texts); i++) {
        free(copy->texts[i]);
    }
    json_decref(copy->queue);
    (void)pthread_mutex_destroy(&copy->lock);
    (void)err_free(copy->err);
    (void)err_free(copy->told);
    work_done(&copy->work);
    free(copy);
    return NULL;
}

/* The thread. */
static void copy_run(void *data)
{
    struct copy *copy = data;
    struct work *work = &copy->work;
    copy->code = work->options.kind == COPY_VERIFY
                     ? work_verify(work, &copy->err)
                     : work_copy(work, &copy->err);
    work_release(work);
}

static void copy_on_ended(void *data)
{
    struct copy *copy = data;
    tell_queue(copy);
    finish(copy);
    copy_unref(copy);
}

/* In the thread, perhaps, and perhaps when nobody knows of it any more. */
static void copy_on_gone(void *data)
{
    copy_unref(data);
}

static void copy_unref(struct copy *copy)
{
    if (atomic_fetch_sub(&copy->n_users, 1) == 1) {
        (void)copy_free(copy);
    }
}

/* More than the bound is lost, and only warnings could be so many. */
static void work_tell(void *data, json_t *event)
{
    struct copy *copy = data;
    (void)pthread_mutex_lock(&copy->lock);
    if (json_array_size(copy->queue) < QUEUE_MAX) {
        (void)json_array_append_new(copy->queue, event);
    } else {
        json_decref(event);
    }
    if (!copy->deaf) {
        (void)uv_async_send(&copy->wake);
    }
    (void)pthread_mutex_unlock(&copy->lock);
}

static void copy_figures(const struct pipeline *p, struct pipeline *ret)
{
    ret->size = p->size;
    atomic_store(&ret->passed, atomic_load(&p->passed));
    atomic_store(&ret->read, atomic_load(&p->read));
    atomic_store(&ret->written, atomic_load(&p->written));
    atomic_store(&ret->zeroed, atomic_load(&p->zeroed));
    atomic_store(&ret->skipped, atomic_load(&p->skipped));
    atomic_store(&ret->resumed, atomic_load(&p->resumed));
}

/* Under the lock. */
static void take_figures(struct copy *copy)
{
    if (copy->watched == &copy->work.copied && !copy->deaf) {
        copy_figures(copy->watched, &copy->figures);
    }
}

static void work_watch(void *data, const char *phase, const struct pipeline *p)
{
    struct copy *copy = data;
    (void)pthread_mutex_lock(&copy->lock);
    take_figures(copy);
    copy->watched = p;
    copy->phase = phase;
    (void)pthread_mutex_unlock(&copy->lock);
}

static void copy_on_wake(uv_async_t *wake)
{
    tell_queue(wake->data);
}

static void copy_on_tick(uv_timer_t *timer)
{
    struct copy *copy = timer->data;
    struct pipeline view = {0};
    const char *phase = NULL;
    uint64_t now_ms = uv_hrtime() / NS_PER_MS;
    uint64_t ms = now_ms - copy->tick_ms;
    copy->tick_ms = now_ms;
    look(copy, &phase, &view);
    ms = ms < TICK_MAX_MS ? ms : TICK_MAX_MS;
    copy->idle_ms += ms;
    if (!copy->late && !cleans(copy) && is_late(copy)) {
        copy->late = true;
        copy_cancel(copy);
    }
    if (!is_ending(copy, ms) && phase != NULL) {
        tell_progress(copy, &view, phase);
    }
}

/* The pipeline lives on while it is watched: under the lock it stays. */
static void look(struct copy *copy, const char **ret_phase,
                 struct pipeline *ret)
{
    (void)pthread_mutex_lock(&copy->lock);
    const struct pipeline *p = copy->watched;
    take_figures(copy);
    if (p != NULL) {
        copy_figures(p, ret);
        *ret_phase = copy->phase;
    }
    (void)pthread_mutex_unlock(&copy->lock);
    uint64_t moved = atomic_load(&ret->passed) + atomic_load(&ret->read) +
                     atomic_load(&ret->written) + atomic_load(&ret->zeroed);
    if (p != copy->seen || moved != copy->moved) {
        copy->idle_ms = 0;
        copy->moved = moved;
    }
    if (p != copy->seen) {
        copy->seen = p;
        copy->progress = (struct progress){0};
    }
}

static uint64_t stall_ms(const struct copy *copy)
{
    const struct copy_options *o = &copy->work.options;
    uint64_t between = o->speed != 0 ? 2000 * (uint64_t)UNIT / o->speed : 0;
    return o->stall_ms != 0     ? o->stall_ms
           : copy->seen != NULL ? between + STALL_MS
                                : QUIET_MS;
}

static bool is_late(struct copy *copy)
{
    return copy->idle_ms > stall_ms(copy);
}

/* To remove the target is given the time that it takes, from its beginning. */
static bool cleans(struct copy *copy)
{
    if (!copy->cleans && atomic_load(&copy->work.end) == WORK_CLEANS) {
        copy->cleans = true;
        copy->ending_ms = 0;
    }
    return copy->cleans;
}

/* Whether it was told to end: then its thread is not waited for for ever. */
static bool is_ending(struct copy *copy, uint64_t ms)
{
    const struct copy_options *o = &copy->work.options;
    uint64_t limit_ms = cleans(copy)                ? REMOVE_MS
                        : stall_ms(copy) < LEAVE_MS ? stall_ms(copy)
                                                    : LEAVE_MS;
    if (!copy->cleans && !atomic_load(&copy->work.cancel)) {
        return false;
    }
    copy->ending_ms += ms;
    if (copy->ending_ms > limit_ms &&
        (copy->cleans || work_decide(&copy->work, WORK_LEFT))) {
        (void)pthread_mutex_lock(&copy->lock);
        copy->deaf = copy->left = true;
        (void)pthread_mutex_unlock(&copy->lock);
        bulk_doubt_uri(o->source);
        bulk_doubt_uri(o->target);
        worker_leave(copy->worker);
        tell_queue(copy);
        finish(copy);
    }
    return true;
}

static void tell_queue(struct copy *copy)
{
    json_t *fresh = json_array();
    if (fresh == NULL) {
        return;
    }
    (void)pthread_mutex_lock(&copy->lock);
    json_auto_t *events = copy->queue;
    copy->queue = fresh;
    (void)pthread_mutex_unlock(&copy->lock);
    size_t i;
    json_t *event;
    json_array_foreach(events, i, event) {
        if (copy->callbacks.event != NULL) {
            copy->callbacks.event(copy->callbacks.data, event);
        }
    }
}

static void tell_progress(struct copy *copy, const struct pipeline *p,
                          const char *phase)
{
    uint64_t passed = atomic_load(&p->passed);
    struct progress *progress = &copy->progress;
    progress_sample(progress, uv_hrtime() / NS_PER_MS, PROGRESS_COPY, passed,
                    p->size);
    uint64_t eta = progress_eta_ms(progress);
    json_auto_t *event = json_pack(
        "{s:s, s:s, s:s, s:I, s:I, s:I}", "event", "progress", "disk",
        copy->work.options.kind == COPY_VERIFY ? "verify" : "copy", "phase",
        phase, "bytes", (json_int_t)passed, "total", (json_int_t)p->size,
        "rate", (json_int_t)progress_rate(progress));
    if (event != NULL && eta != PROGRESS_UNKNOWN) {
        (void)json_object_set_new(event, "eta_seconds",
                                  json_real((double)eta / 1000));
    }
    if (event != NULL && copy->callbacks.event != NULL) {
        copy->callbacks.event(copy->callbacks.data, event);
    }
}

static void tell_result(struct copy *copy)
{
    const struct work *work = &copy->work;
    const struct pipeline *p = copy->left ? &copy->figures : &work->copied;
    const struct volume *a = copy->left ? NULL : work->a;
    const struct volume *b = copy->left ? NULL : work->b;
    double seconds = (double)(uv_hrtime() - copy->started_ns) / 1e9;
    struct digest all = {{0}};
    char digest[DIGEST_TEXT];
    bool digested = copy->result == 0 && work->digested;
    if (digested) {
        all = digests_all(record_digests(work->record));
    }
    json_t *disk =
        json_pack("{s:s, s:s, s:s*, s:I, s:I, s:f}", "disk",
                  work->options.kind == COPY_VERIFY ? "verify" : "copy", "from",
                  a != NULL ? a->name : work->options.source, "to",
                  b != NULL ? b->name : work->options.target, "bytes_copied",
                  (json_int_t)atomic_load(&p->read), "bytes_written",
                  (json_int_t)atomic_load(&p->written), "seconds", seconds);
    if (work->options.kind == COPY_VERIFY) {
        /* Nothing is copied: both sides were read. */
        (void)json_object_set_new(disk, "bytes_copied", json_integer(0));
        (void)json_object_set_new(disk, "equal",
                                  json_boolean(copy->result == 0));
    }
    json_auto_t *event = json_pack(
        "{s:s, s:f, s:f, s:I, s:I, s:I, s:I, s:I, s:I, s:b, s:s*, s:[o]}",
        "event", copy->result == 0 ? "done" : "failed", "seconds", seconds,
        "cpu_seconds", (double)(cpu_us() - copy->cpu_us) / 1e6, "size",
        (json_int_t)(copy->left ? p->size : work->size), "bytes_read",
        (json_int_t)atomic_load(&p->read), "bytes_written",
        (json_int_t)atomic_load(&p->written), "bytes_zeroed",
        (json_int_t)atomic_load(&p->zeroed), "bytes_skipped",
        (json_int_t)atomic_load(&p->skipped), "bytes_resumed",
        (json_int_t)atomic_load(&p->resumed), "offloaded",
        !copy->left && work->offloaded, "digest",
        digested ? digest_text(&all, digest) : NULL, "disks", disk);
    if (event != NULL && copy->result < 0) {
        json_t *error = copy->told != NULL ? err_to_json(copy->told)
                                           : json_pack("{s:s}", "desc",
                                                       strerror(-copy->result));
        (void)json_object_set_new(event, "error", error);
    }
    if (event != NULL && copy->callbacks.event != NULL) {
        copy->callbacks.event(copy->callbacks.data, event);
    }
}

/* What the worker says, or what there is to say of one that does not end. */
static void explain(struct copy *copy)
{
    const struct copy_options *o = &copy->work.options;
    const char *what = o->kind == COPY_VERIFY ? "verify" : "copy";
    copy->result = copy->left ? -ECANCELED : copy->code;
    copy->told = copy->left ? NULL : TAKE_PTR(copy->err);
    if (copy->result != -ECANCELED || !(copy->left || copy->late)) {
        return;
    }
    copy->told = err_free(copy->told);
    if (copy->late) {
        copy->result = err_set(&copy->told, -ETIMEDOUT, what,
                               "its storage does not answer: nothing has moved"
                               " for %llu s",
                               (unsigned long long)(stall_ms(copy) / 1000));
    } else {
        (void)err_set(&copy->told, -ECANCELED, what,
                      "was cancelled while its storage did not answer");
    }
    if (copy->cleans) {
        err_hint(&copy->told, "the target was being removed, and may still be"
                              " there: the same command copies all of it");
    } else if (o->kind == COPY_COPY) {
        err_hint(&copy->told, "what is copied is kept: the same command goes on"
                              " once the storage answers");
    }
}

static void finish(struct copy *copy)
{
    explain(copy);
    if (!copy->work.options.dry_run || copy->result < 0) {
        tell_result(copy);
    } else {
        json_auto_t *event = json_pack("{s:s, s:i, s:[]}", "event", "done",
                                       "seconds", 0, "disks");
        copy->callbacks.event(copy->callbacks.data, event);
    }
    uv_close((uv_handle_t *)&copy->wake, copy_on_closed);
    uv_close((uv_handle_t *)&copy->timer, copy_on_closed);
}

static void copy_on_closed(uv_handle_t *handle)
{
    struct copy *copy = handle->data;
    if (--copy->n_open > 0) {
        return;
    }
    struct copy_callbacks callbacks = copy->callbacks;
    enum copy_outcome outcome = copy->result == 0 ? COPY_DONE
                                : copy->left || copy->work.changed
                                    ? COPY_FAILED
                                    : COPY_REFUSED;
    if (!copy->left) {
        work_done(&copy->work);
    }
    if (callbacks.ended != NULL) {
        callbacks.ended(callbacks.data, outcome, copy->told);
    }
    copy_unref(copy);
}

static uint64_t cpu_us(void)
{
    struct rusage usage = {0};
    (void)getrusage(RUSAGE_SELF, &usage);
    return (uint64_t)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000 +
           (uint64_t)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}
