/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Runs a backend's blocking act in a thread and tells the loop. It knows
 * who owns the volume meanwhile; it does not know any storage.
 */
#include "backend.h"

#include <assert.h>
#include <errno.h>
#include <stdatomic.h>
#include <string.h>

#include "base/err.h"
#include "base/str.h"
#include "base/worker.h"
#include "bulk.h"
#include "keep.h"
#include "volume.h"

/*
 * Storage that is gone may keep a thread for as long as it likes, also of one
 * whom nobody waits for any more: who asks again and again makes no more than
 * these.
 */
enum { ASIDE_MAX = 8 };

static atomic_uint n_aside;

struct volume_work {
    struct worker *worker;
    struct volume *volume;
    enum volume_act act;
    uint64_t size;
    char *temp;
    char *identity;
    char *state;
    bool again;
    bool alone;
    volume_done_fn *cb;
    void *data;
    volume_left_fn *left; /* nobody listens: the volume is ours */
    void *left_data;
    bool cancelled;
    bool aside;
    struct keep *keep;
    /* Written by the worker, read by the loop after it. */
    int code;
    struct err *err;
    struct volume_result result;
};

static void work_on_run(void *data);
static void work_on_ended(void *data);
static void work_on_gone(void *data);
static int work_act(struct volume_work *work);
static int lacks(const struct volume *volume, const char *verb,
                 struct err **errp);
static struct volume_work *work_free(struct volume_work *work);
DEFINE_CLEANUP(struct volume_work, work_free)

int volume_submit(uv_loop_t *loop, struct volume *volume,
                  const struct volume_request *request, volume_done_fn *cb,
                  void *data, struct volume_work **ret)
{
    assert(cb != NULL);
    assert(request->temp != NULL ||
           (request->act != VOLUME_CREATE && request->act != VOLUME_PUBLISH));
    assert(request->identity != NULL || request->act != VOLUME_PUBLISH);
    if (volume->busy) {
        return -EBUSY;
    }
    _cleanup_(work_freep) struct volume_work *work = calloc(1, sizeof(*work));
    if (work == NULL) {
        return -ENOMEM;
    }
    work->volume = volume;
    work->act = request->act;
    work->size = request->size;
    work->again = request->again;
    work->alone = request->alone;
    work->cb = cb;
    work->data = data;
    if (request->temp != NULL) {
        work->temp = strdup(request->temp);
    }
    if (request->identity != NULL) {
        work->identity = strdup(request->identity);
    }
    if (request->state != NULL) {
        work->state = strdup(request->state);
    }
    if ((request->temp != NULL && work->temp == NULL) ||
        (request->identity != NULL && work->identity == NULL) ||
        (request->state != NULL && work->state == NULL)) {
        return -ENOMEM;
    }
    if (request->like != NULL) {
        free(volume->like);
        volume->like = strdup(request->like);
        if (volume->like == NULL) {
            return -ENOMEM;
        }
    }
    work->keep = keep_ref(request->keep);
    work->aside = request->aside;
    if (work->aside && atomic_fetch_add(&n_aside, 1) >= ASIDE_MAX) {
        return -EAGAIN;
    }
    static const struct worker_ops ops = {work_on_run, work_on_ended,
                                          work_on_gone};
    int r = worker_start(loop, &ops, work, &work->worker);
    if (r < 0) {
        return r;
    }
    volume->busy = true;
    if (ret != NULL) {
        *ret = work;
    }
    (void)TAKE_PTR(work);
    return 0;
}

void volume_work_doubt(const struct volume_work *work)
{
    bulk_doubt(work->volume);
}

void volume_work_cancel(struct volume_work *work, volume_left_fn *left,
                        void *data)
{
    assert(!work->cancelled);
    work->cancelled = true;
    work->left = left;
    work->left_data = data;
    worker_leave(work->worker);
}

static void work_on_run(void *data)
{
    struct volume_work *work = data;
    void *held = NULL;
    volume_info_init(&work->result.info);
    if (work->act != VOLUME_SECRET) {
        work->code = keep_begin(work->keep, work->volume, &held, &work->err);
    }
    if (work->code == 0) {
        work->code = work_act(work);
    }
    keep_end(work->keep, work->volume, held);
}

static void work_on_gone(void *data)
{
    _cleanup_(work_freep) struct volume_work *work = data;
    (void)volume_free(work->volume);
    if (work->left != NULL) {
        work->left(work->left_data);
    }
}

static void work_on_ended(void *data)
{
    _cleanup_(work_freep) struct volume_work *work = data;
    if (work->code < 0 && work->err == NULL) {
        (void)volume_fail(&work->err, work->volume, work->code, "failed");
    }
    work->volume->busy = false;
    static const struct err no_memory = {.code = -ENOMEM};
    const struct err *err = work->code == 0     ? NULL
                            : work->err != NULL ? work->err
                                                : &no_memory;
    work->cb(work->data, err, &work->result);
}

static int work_act(struct volume_work *work)
{
    struct volume *volume = work->volume;
    const struct backend_ops *ops = volume->ops;
    const struct volume_planned planned = {work->identity, work->state,
                                           work->again, work->alone};
    switch (work->act) {
    case VOLUME_PROBE:
        return ops->probe(volume, &work->result.info, &work->err);
    case VOLUME_ANSWER:
        return (ops->answer != NULL ? ops->answer : ops->probe)(
            volume, &work->result.info, &work->err);
    case VOLUME_CREATE:
        return ops->create == NULL
                   ? lacks(volume, "created", &work->err)
                   : ops->create(volume, work->temp, work->size,
                                 &work->result.info, &work->err);
    case VOLUME_PUBLISH:
        return ops->publish == NULL ? lacks(volume, "named", &work->err)
                                    : ops->publish(volume, work->temp,
                                                   work->identity, &work->err);
    case VOLUME_REMOVE:
        return ops->remove == NULL ? lacks(volume, "removed", &work->err)
                                   : ops->remove(volume, work->temp,
                                                 work->identity, &work->err);
    case VOLUME_SECRET:
        return ops->secret == NULL
                   ? 0
                   : ops->secret(volume, &work->result.secret, &work->err);
    case VOLUME_ATTACH:
        return ops->attach == NULL
                   ? 0
                   : ops->attach(volume, &planned, &work->result.info,
                                 &work->err);
    case VOLUME_DETACH:
        return ops->detach == NULL ? 0
                                   : ops->detach(volume, &planned, &work->err);
    }
    return -EINVAL;
}

static int lacks(const struct volume *volume, const char *verb,
                 struct err **errp)
{
    return err_set(errp, -ENOTSUP, volume->name, "a %s cannot be %s",
                   volume->ops->title, verb);
}

static struct volume_work *work_free(struct volume_work *work)
{
    if (work->aside) {
        (void)atomic_fetch_sub(&n_aside, 1);
    }
    free(work->temp);
    free(work->identity);
    free(work->state);
    keep_unref(work->keep);
    (void)err_free(work->err);
    str_wipe_free(work->result.secret);
    free(work);
    return NULL;
}
