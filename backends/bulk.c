/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What all bulk channels share: waiting, and telling what is done. It knows
 * no storage.
 */
#include "bulk.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <time.h>

#include "backend.h"
#include "base/err.h"

enum { CHANNELS_MAX = 4, SERVICE_MS = 100 };

static unsigned deliver(struct bulk *bulk);
static int wait_for(struct bulk *const *channels, unsigned n,
                    unsigned timeout_ms);
static const struct bulk_ops *ops_of(const struct volume *volume);
static uint64_t now_ms(void);

int bulk_open(const struct volume *volume, unsigned flags, struct bulk **ret,
              struct err **errp)
{
    const struct bulk_ops *ops = ops_of(volume);
    if (ops == NULL) {
        return err_set(errp, -ENOTSUP, volume->name,
                       "%ss with this format cannot be copied by this build",
                       volume->ops->title);
    }
    return ops->open(volume, flags, ret, errp);
}

struct bulk *bulk_close(struct bulk *bulk)
{
    if (bulk != NULL) {
        free(bulk->detail);
        bulk->detail = NULL;
        bulk->ops->close(bulk);
    }
    return NULL;
}

void bulk_init(struct bulk *bulk, const struct bulk_ops *ops,
               const struct volume *volume)
{
    bulk->ops = ops;
    bulk->volume = volume;
    bulk->lanes = 1;
    bulk->done_end = &bulk->done;
}

void bulk_submit(struct bulk *bulk, struct bulk_request *request)
{
    request->bulk = bulk;
    request->next = NULL;
    request->private = NULL;
    bulk->pending++;
    if (request->length == 0 && request->act != BULK_FLUSH) {
        bulk_finish(request, 0);
        return;
    }
    bulk->ops->submit(bulk, request);
}

void bulk_finish(struct bulk_request *request, int result)
{
    request->result = result;
    request->next = NULL;
    *request->bulk->done_end = request;
    request->bulk->done_end = &request->next;
}

unsigned bulk_turn(struct bulk *const *channels, unsigned n,
                   unsigned timeout_ms)
{
    assert(n <= CHANNELS_MAX);
    unsigned count = 0;
    for (unsigned i = 0; i < n; i++) {
        count += deliver(channels[i]);
    }
    if (count > 0) {
        return count;
    }
    if (wait_for(channels, n, timeout_ms) < 0) {
        return 0;
    }
    for (unsigned i = 0; i < n; i++) {
        count += deliver(channels[i]);
    }
    return count;
}

static void call_on_done(struct bulk_request *request, int result)
{
    int *r = request->data;
    *r = result;
}

int bulk_call(struct bulk *bulk, struct bulk_request *request,
              unsigned timeout_ms)
{
    int result = 1;
    uint64_t end = now_ms() + timeout_ms;
    request->cb = call_on_done;
    request->data = &result;
    bulk_submit(bulk, request);
    while (result > 0 && now_ms() < end) {
        (void)bulk_turn(&bulk, 1, SERVICE_MS);
    }
    return result > 0 ? -ETIMEDOUT : result;
}

int bulk_hold(const struct volume *volume, void **ret, struct err **errp)
{
    const struct bulk_ops *ops = volume->ops->bulk;
    *ret = NULL;
    return ops != NULL && ops->hold != NULL ? ops->hold(volume, ret, errp) : 0;
}

void bulk_release(const struct volume *volume, void *held)
{
    if (held != NULL) {
        volume->ops->bulk->release(held);
    }
}

void bulk_doubt(const struct volume *volume)
{
    const struct bulk_ops *ops = volume->ops->bulk;
    if (ops != NULL && ops->doubt != NULL) {
        ops->doubt(volume);
    }
}

void bulk_doubt_uri(const char *uri)
{
    _cleanup_(volume_freep) struct volume *volume = NULL;
    if (uri != NULL && volume_parse(uri, &volume, NULL) == 0) {
        bulk_doubt(volume);
    }
}

int bulk_clone(const struct volume *from, const struct volume *to,
               struct err **errp)
{
    const struct bulk_ops *ops = ops_of(from);
    return ops != NULL && ops->clone != NULL && from->ops == to->ops &&
                   ops_of(to) == ops
               ? ops->clone(from, to, errp)
               : -ENOTSUP;
}

int bulk_extents(struct bulk *bulk, bulk_extent_fn *cb, void *data,
                 struct err **errp)
{
    return bulk->ops->extents != NULL ? bulk->ops->extents(bulk, cb, data, errp)
                                      : -ENOTSUP;
}

/* The list is taken first: a callback that submits must not keep us here. */
static unsigned deliver(struct bulk *bulk)
{
    unsigned count = 0;
    struct bulk_request *request = bulk->done;
    bulk->done = NULL;
    bulk->done_end = &bulk->done;
    while (request != NULL) {
        struct bulk_request *next = request->next;
        bulk->pending--;
        count++;
        request->cb(request, request->result);
        request = next;
    }
    return count;
}

static int wait_for(struct bulk *const *channels, unsigned n,
                    unsigned timeout_ms)
{
    struct pollfd fds[CHANNELS_MAX] = {{0}};
    for (unsigned i = 0; i < n; i++) {
        struct bulk *bulk = channels[i];
        fds[i].fd = bulk->pending > 0 && bulk->ops->fd != NULL
                        ? bulk->ops->fd(bulk, &fds[i].events)
                        : -1;
        if (bulk->done != NULL) {
            timeout_ms = 0;
        }
    }
    if (timeout_ms > SERVICE_MS) {
        timeout_ms = SERVICE_MS; /* their own time limits need a turn */
    }
    if (poll(fds, n, (int)timeout_ms) < 0 && errno != EINTR) {
        return -errno;
    }
    for (unsigned i = 0; i < n; i++) {
        if (channels[i]->pending > 0 && channels[i]->ops->service != NULL) {
            channels[i]->ops->service(channels[i], fds[i].revents);
        }
    }
    return 0;
}

bool bulk_is_possible(const struct volume *volume)
{
    return ops_of(volume) != NULL;
}

bool bulk_has_bitmaps(void)
{
#ifdef HAVE_NBD
    return true;
#else
    return false;
#endif
}

#ifndef HAVE_NBD
int bulk_bitmap(const struct volume *volume, _unused_ const char *bitmap,
                _unused_ bulk_extent_fn *cb, _unused_ void *data,
                struct err **errp)
{
    return err_set(errp, -ENOTSUP, volume->name,
                   "bitmaps cannot be read: built without libnbd");
}

int bulk_own(const struct volume *volume, _unused_ bulk_extent_fn *cb,
             _unused_ void *data, struct err **errp)
{
    return err_set(errp, -ENOTSUP, volume->name,
                   "cannot be asked: built without libnbd");
}
#endif

static const struct bulk_ops *ops_of(const struct volume *volume)
{
#ifdef HAVE_NBD
    if (volume->format != FORMAT_RAW) {
        return volume->ops->legacy_name != NULL ? &bulk_image : NULL;
    }
#else
    if (volume->format != FORMAT_RAW) {
        return NULL;
    }
#endif
    return volume->ops->bulk;
}

static uint64_t now_ms(void)
{
    struct timespec now = {0};
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}
