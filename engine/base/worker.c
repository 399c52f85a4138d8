/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/worker.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

struct worker {
    uv_async_t wake;
    uv_thread_t thread;
    uv_mutex_t lock; /* of what follows */
    bool finished;
    bool left;
    unsigned n_users; /* the thread, the loop */
    const struct worker_ops *ops;
    void *data;
};

static atomic_uint n_hung;

static void worker_run(void *arg);
static void worker_on_wake(uv_async_t *wake);
static void worker_on_closed(uv_handle_t *handle);
static void worker_on_left(uv_handle_t *handle);
static void worker_unref(struct worker *worker);

int worker_start(uv_loop_t *loop, const struct worker_ops *ops, void *data,
                 struct worker **ret)
{
    struct worker *worker = calloc(1, sizeof(*worker));
    if (worker == NULL) {
        return -ENOMEM;
    }
    worker->ops = ops;
    worker->data = data;
    worker->n_users = 2;
    worker->wake.data = worker;
    int r = uv_mutex_init(&worker->lock);
    if (r < 0) {
        free(worker);
        return r;
    }
    r = uv_async_init(loop, &worker->wake, worker_on_wake);
    if (r < 0) {
        uv_mutex_destroy(&worker->lock);
        free(worker);
        return r;
    }
    r = uv_thread_create(&worker->thread, worker_run, worker);
    if (r < 0) {
        worker->n_users = 1;
        uv_close((uv_handle_t *)&worker->wake, worker_on_left);
        return r;
    }
    *ret = worker;
    return 0;
}

void worker_leave(struct worker *worker)
{
    uv_mutex_lock(&worker->lock);
    bool finished = worker->finished;
    worker->left = true;
    if (!finished) {
        n_hung++;
    }
    uv_mutex_unlock(&worker->lock);
    if (!finished) {
        (void)pthread_detach(worker->thread);
        uv_close((uv_handle_t *)&worker->wake, worker_on_left);
    } /* else it is about to be told, or just being */
}

unsigned worker_n_hung(void)
{
    return n_hung;
}

/* The thread. */
static void worker_run(void *arg)
{
    struct worker *worker = arg;
    worker->ops->run(worker->data);
    uv_mutex_lock(&worker->lock);
    worker->finished = true;
    bool left = worker->left;
    if (!left) {
        (void)uv_async_send(&worker->wake);
    }
    uv_mutex_unlock(&worker->lock);
    if (left) {
        worker->ops->gone(worker->data);
        worker_unref(worker);
        n_hung--;
    }
}

static void worker_on_wake(uv_async_t *wake)
{
    struct worker *worker = wake->data;
    if (!uv_is_closing((uv_handle_t *)wake)) {
        (void)uv_thread_join(&worker->thread);
        worker->n_users = 1;
        uv_close((uv_handle_t *)wake, worker_on_closed);
    }
}

static void worker_on_closed(uv_handle_t *handle)
{
    struct worker *worker = handle->data;
    (worker->left ? worker->ops->gone : worker->ops->ended)(worker->data);
    worker_unref(worker);
}

static void worker_on_left(uv_handle_t *handle)
{
    worker_unref(handle->data);
}

static void worker_unref(struct worker *worker)
{
    uv_mutex_lock(&worker->lock);
    bool last = --worker->n_users == 0;
    uv_mutex_unlock(&worker->lock);
    if (last) {
        uv_mutex_destroy(&worker->lock);
        free(worker);
    }
}
