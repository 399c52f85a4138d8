/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The loop's half of a copy: a thread does the work, its events are told from
 * the loop, and a timer looks at how far it is. One thread of its own, as it
 * blocks for as long as the copy lasts: uv's pool has four, for everything.
 */
#include "copy.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/resource.h>

#include "base/cleanup.h"
#include "base/err.h"
#include "base/str.h"
#include "bulk/work.h"
#include "policy/progress.h"

enum { PROGRESS_MS = 200, QUEUE_MAX = 256 };

struct copy {
    struct work work;
    char key[16];
    struct copy_callbacks callbacks;
    uv_async_t wake;
    uv_timer_t timer;
    uv_thread_t thread;
    unsigned n_open;
    char *texts[4];

    pthread_mutex_t lock; /* the next four */
    json_t *queue;
    const struct pipeline *watched;
    const char *phase;
    bool ended;

    const struct pipeline *seen; /* whose progress is measured */
    struct progress progress;
    uint64_t started_ns;
    uint64_t cpu_us;
    int code;
    struct err *err;
};

static void copy_run(void *data);
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
    r = uv_thread_create(&copy->thread, copy_run, copy);
    if (r < 0) {
        (void)err_set(errp, r, options->source, "no thread: %s",
                      uv_strerror(r));
        copy->callbacks.ended = NULL;
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
    const char **texts[] = {&o->source, &o->target, &o->state_dir,
                            &o->manifest};
    for (unsigned i = 0; i < ARRAY_SIZE(texts); i++) {
        if (*texts[i] != NULL) {
            copy->texts[i] = strdup(*texts[i]);
            if (copy->texts[i] == NULL) {
                return -ENOMEM;
            }
            *texts[i] = copy->texts[i];
        }
    }
    record_key(o->source, o->target != NULL ? o->target : "", copy->key);
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
    (void)pthread_mutex_lock(&copy->lock);
    copy->ended = true;
    (void)pthread_mutex_unlock(&copy->lock);
    (void)uv_async_send(&copy->wake);
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
    (void)pthread_mutex_unlock(&copy->lock);
    (void)uv_async_send(&copy->wake);
}

static void work_watch(void *data, const char *phase, const struct pipeline *p)
{
    struct copy *copy = data;
    (void)pthread_mutex_lock(&copy->lock);
    copy->watched = p;
    copy->phase = phase;
    (void)pthread_mutex_unlock(&copy->lock);
}

static void copy_on_wake(uv_async_t *wake)
{
    struct copy *copy = wake->data;
    tell_queue(copy);
    (void)pthread_mutex_lock(&copy->lock);
    bool ended = copy->ended;
    (void)pthread_mutex_unlock(&copy->lock);
    if (ended && !uv_is_closing((uv_handle_t *)wake)) {
        (void)uv_thread_join(&copy->thread);
        tell_queue(copy);
        finish(copy);
    }
}

/* The pipeline lives on while it is watched: under the lock it stays. */
static void copy_on_tick(uv_timer_t *timer)
{
    struct copy *copy = timer->data;
    struct pipeline view;
    const char *phase = NULL;
    (void)pthread_mutex_lock(&copy->lock);
    const struct pipeline *p = copy->watched;
    if (p != NULL) {
        view.size = p->size;
        atomic_init(&view.passed, atomic_load(&p->passed));
        phase = copy->phase;
    }
    (void)pthread_mutex_unlock(&copy->lock);
    if (p == NULL) {
        return;
    }
    if (p != copy->seen) {
        copy->seen = p;
        copy->progress = (struct progress){0};
    }
    tell_progress(copy, &view, phase);
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
    progress_sample(progress, uv_hrtime() / 1000000, PROGRESS_COPY, passed,
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
    const struct pipeline *p = &work->copied;
    double seconds = (double)(uv_hrtime() - copy->started_ns) / 1e9;
    struct digest all = {{0}};
    char digest[DIGEST_TEXT];
    bool digested = work->digested && copy->code == 0;
    if (digested) {
        all = digests_all(record_digests(work->record));
    }
    json_t *disk = json_pack(
        "{s:s, s:s, s:s*, s:I, s:I, s:f}", "disk",
        work->options.kind == COPY_VERIFY ? "verify" : "copy", "from",
        work->a != NULL ? work->a->name : work->options.source, "to",
        work->b != NULL ? work->b->name : work->options.target, "bytes_copied",
        (json_int_t)atomic_load(&p->read), "bytes_written",
        (json_int_t)atomic_load(&p->written), "seconds", seconds);
    if (work->options.kind == COPY_VERIFY) {
        /* Nothing is copied: both sides were read. */
        (void)json_object_set_new(disk, "bytes_copied", json_integer(0));
        (void)json_object_set_new(disk, "equal", json_boolean(copy->code == 0));
    }
    json_auto_t *event = json_pack(
        "{s:s, s:f, s:f, s:I, s:I, s:I, s:I, s:I, s:I, s:b, s:s*, s:[o]}",
        "event", copy->code == 0 ? "done" : "failed", "seconds", seconds,
        "cpu_seconds", (double)(cpu_us() - copy->cpu_us) / 1e6, "size",
        (json_int_t)work->size, "bytes_read", (json_int_t)atomic_load(&p->read),
        "bytes_written", (json_int_t)atomic_load(&p->written), "bytes_zeroed",
        (json_int_t)atomic_load(&p->zeroed), "bytes_skipped",
        (json_int_t)atomic_load(&p->skipped), "bytes_resumed",
        (json_int_t)atomic_load(&p->resumed), "offloaded", work->offloaded,
        "digest", digested ? digest_text(&all, digest) : NULL, "disks", disk);
    if (event != NULL && copy->code < 0) {
        json_t *error = copy->err != NULL
                            ? err_to_json(copy->err)
                            : json_pack("{s:s}", "desc", strerror(-copy->code));
        (void)json_object_set_new(event, "error", error);
    }
    if (event != NULL && copy->callbacks.event != NULL) {
        copy->callbacks.event(copy->callbacks.data, event);
    }
}

static void finish(struct copy *copy)
{
    if (!copy->work.options.dry_run || copy->code < 0) {
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
    enum copy_outcome outcome = copy->code == 0      ? COPY_DONE
                                : copy->work.changed ? COPY_FAILED
                                                     : COPY_REFUSED;
    work_done(&copy->work);
    if (callbacks.ended != NULL) {
        callbacks.ended(callbacks.data, outcome, copy->err);
    }
    (void)copy_free(copy);
}

static uint64_t cpu_us(void)
{
    struct rusage usage = {0};
    (void)getrusage(RUSAGE_SELF, &usage);
    return (uint64_t)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000 +
           (uint64_t)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}
