/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The bytes of RBD images through librbd's asynchronous calls. One image, one
 * channel: a second writer would take the exclusive lock to and fro. Requests
 * of one turn that follow each other in an object are one call: it is calls
 * that cost a cluster, more than bytes.
 */
#include <errno.h>
#include <poll.h>
#include <rbd/librbd.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/err.h"
#include "bulk.h"
#include "rbd.h"

enum { REAP_MAX = 32, PARTS_MAX = 8, OBJECT = 4 << 20 };

/* Requests in a row; 'first' has the others behind it. */
struct rbd_call {
    struct bulk_request *first;
    uint64_t length;
    int n;
    struct iovec parts[PARTS_MAX];
};

struct rbd_bulk {
    struct bulk bulk;
    struct rbd_session session;
    rbd_image_t image;
    int eventfd;
    unsigned under_way; /* calls */
    struct bulk_request *waiting;
    struct bulk_request **waiting_end;
};

static int open_image(struct rbd_bulk *rbd, bool write, struct err **errp);
static int look(struct rbd_bulk *rbd);
static void send_waiting(struct rbd_bulk *rbd);
static int send_call(struct rbd_bulk *rbd, struct rbd_call *call);
static void finish_call(struct rbd_call *call, int64_t result);
static void reap(struct rbd_bulk *rbd);

static struct rbd_bulk *rbd_bulk_of(struct bulk *bulk)
{
    return container_of(bulk, struct rbd_bulk, bulk);
}

static void rbd_bulk_close(struct bulk *bulk)
{
    struct rbd_bulk *rbd = rbd_bulk_of(bulk);
    /* Each call ends within the cluster's time limit: see rbd.c. */
    while (rbd->under_way > 0) {
        struct pollfd ready = {.fd = rbd->eventfd, .events = POLLIN};
        (void)poll(&ready, 1, 100);
        reap(rbd);
    }
    if (rbd->image != NULL) {
        (void)rbd_close(rbd->image);
    }
    if (rbd->eventfd >= 0) {
        (void)close(rbd->eventfd);
    }
    rbd_session_done(&rbd->session);
    free(rbd);
}

static int rbd_bulk_open(const struct volume *volume, unsigned flags,
                         struct bulk **ret, struct err **errp)
{
    struct rbd_bulk *rbd = calloc(1, sizeof(*rbd));
    if (rbd == NULL) {
        return -ENOMEM;
    }
    bulk_init(&rbd->bulk, &bulk_rbd, volume);
    rbd->eventfd = -1;
    rbd->waiting_end = &rbd->waiting;
    int r = rbd_session_open(&rbd->session, volume, errp);
    if (r == 0) {
        r = open_image(rbd, (flags & BULK_WRITE) != 0, errp);
    }
    if (r < 0) {
        rbd_bulk_close(&rbd->bulk);
        return r;
    }
    *ret = &rbd->bulk;
    return 0;
}

static void rbd_bulk_submit(struct bulk *bulk, struct bulk_request *request)
{
    struct rbd_bulk *rbd = rbd_bulk_of(bulk);
    *rbd->waiting_end = request;
    rbd->waiting_end = &request->next;
}

static int rbd_bulk_fd(struct bulk *bulk, short *ret_events)
{
    struct rbd_bulk *rbd = rbd_bulk_of(bulk);
    send_waiting(rbd);
    *ret_events = POLLIN;
    return rbd->eventfd;
}

static void rbd_bulk_service(struct bulk *bulk, _unused_ short revents)
{
    reap(rbd_bulk_of(bulk));
}

struct walk {
    bulk_extent_fn *cb;
    void *data;
};

static int walk_on_extent(uint64_t offset, size_t length, int exists,
                          void *data)
{
    const struct walk *walk = data;
    return exists ? walk->cb(walk->data, offset, length) : 0;
}

/*
 * Whole objects: with a valid object map that takes milliseconds. What a
 * clone's parent holds is told differently by each release: read it all then.
 */
static int rbd_bulk_extents(struct bulk *bulk, bulk_extent_fn *cb, void *data,
                            struct err **errp)
{
    const struct rbd_bulk *rbd = rbd_bulk_of(bulk);
    uint64_t overlap = 0;
    if (rbd_get_overlap(rbd->image, &overlap) < 0 || overlap > 0) {
        return -ENOTSUP;
    }
    struct walk walk = {.cb = cb, .data = data};
    int r = rbd_diff_iterate2(rbd->image, NULL, 0, bulk->size, 1, 1,
                              walk_on_extent, &walk);
    return r < 0 ? volume_fail(errp, bulk->volume, r, "cannot map it") : r;
}

const struct bulk_ops bulk_rbd = {
    .open = rbd_bulk_open,
    .close = rbd_bulk_close,
    .submit = rbd_bulk_submit,
    .fd = rbd_bulk_fd,
    .service = rbd_bulk_service,
    .extents = rbd_bulk_extents,
    .hold = rbd_hold,
    .release = rbd_release,
    .is_good = rbd_is_good,
    .doubt = rbd_doubt,
};

static int open_image(struct rbd_bulk *rbd, bool write, struct err **errp)
{
    const struct volume *volume = rbd->bulk.volume;
    const char *name = rbd->session.rbd->image;
    int r =
        write ? rbd_open(rbd->session.pool, name, &rbd->image, NULL)
              : rbd_open_read_only(rbd->session.pool, name, &rbd->image, NULL);
    if (r < 0) {
        rbd->image = NULL;
        rbd_session_doubt(&rbd->session);
        return volume_fail(errp, volume, r, "cannot open the image");
    }
    rbd->eventfd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    r = rbd->eventfd < 0 ? -errno : look(rbd);
    return r < 0 ? volume_fail(errp, volume, r, "cannot use the image") : 0;
}

static int look(struct rbd_bulk *rbd)
{
    int r = rbd_get_size(rbd->image, &rbd->bulk.size);
    if (r == 0) {
        r = rbd_set_image_notification(rbd->image, rbd->eventfd,
                                       EVENT_TYPE_EVENTFD);
    }
    return r;
}

static bool follows(const struct rbd_call *call,
                    const struct bulk_request *request)
{
    const struct bulk_request *first = call->first;
    return call->n < PARTS_MAX && request->act == first->act &&
           (first->act == BULK_READ || first->act == BULK_PUT) &&
           request->offset == first->offset + call->length &&
           request->offset / OBJECT == first->offset / OBJECT;
}

static void send_waiting(struct rbd_bulk *rbd)
{
    struct bulk_request *request = rbd->waiting;
    rbd->waiting = NULL;
    rbd->waiting_end = &rbd->waiting;
    while (request != NULL) {
        struct bulk_request *first = request;
        struct bulk_request *last = NULL;
        struct rbd_call *call = calloc(1, sizeof(*call));
        if (call == NULL) {
            request = first->next;
            bulk_finish(first, -ENOMEM);
            continue;
        }
        call->first = first;
        do {
            call->parts[call->n++] = (struct iovec){.iov_base = request->buffer,
                                                    .iov_len = request->length};
            call->length += request->length;
            last = request;
            request = request->next;
        } while (request != NULL && follows(call, request));
        last->next = NULL;
        int r = send_call(rbd, call);
        if (r < 0) {
            finish_call(call, r);
        }
    }
}

static int send_call(struct rbd_bulk *rbd, struct rbd_call *call)
{
    const struct bulk_request *first = call->first;
    rbd_completion_t completion = NULL;
    int r = rbd_aio_create_completion(call, NULL, &completion);
    if (r < 0) {
        return r;
    }
    switch (first->act) {
    case BULK_READ:
        r = rbd_aio_readv(rbd->image, call->parts, call->n, first->offset,
                          completion);
        break;
    case BULK_PUT:
        r = rbd_aio_writev(rbd->image, call->parts, call->n, first->offset,
                           completion);
        break;
    case BULK_ZERO:
        /* Discard would round inward to whole pieces and leave the rest. */
        r = rbd_aio_write_zeroes(rbd->image, first->offset, first->length,
                                 completion, 0, 0);
        break;
    case BULK_FLUSH:
        r = rbd_aio_flush(rbd->image, completion);
        break;
    }
    if (r < 0) {
        rbd_aio_release(completion);
    } else {
        rbd->under_way++;
    }
    return r;
}

/* A call has failed for all of its requests. */
static void finish_call(struct rbd_call *call, int64_t result)
{
    struct bulk_request *request = call->first;
    bool is_short = request->act == BULK_READ && result >= 0 &&
                    (uint64_t)result < call->length;
    int r = result < 0 ? (int)result : is_short ? -EIO : 0;
    free(call);
    while (request != NULL) {
        struct bulk_request *next = request->next;
        bulk_finish(request, r);
        request = next;
    }
}

static void reap(struct rbd_bulk *rbd)
{
    uint64_t count = 0;
    if (rbd->image == NULL) {
        return;
    }
    (void)!read(rbd->eventfd, &count, sizeof(count));
    for (;;) {
        rbd_completion_t ready[REAP_MAX];
        int n = rbd_poll_io_events(rbd->image, ready, REAP_MAX);
        for (int i = 0; i < n; i++) {
            struct rbd_call *call = rbd_aio_get_arg(ready[i]);
            ssize_t r = rbd_aio_get_return_value(ready[i]);
            rbd_aio_release(ready[i]);
            rbd->under_way--;
            if (r < 0) {
                rbd_session_doubt(&rbd->session);
            }
            finish_call(call, r);
        }
        if (n < REAP_MAX) {
            return;
        }
    }
}
