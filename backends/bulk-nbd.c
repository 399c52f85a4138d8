/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The bytes of NBD exports through libnbd's asynchronous calls; and of images
 * in QEMU's formats, through a qemu-nbd that is started for one channel. It
 * ends with its only client, however that one ends.
 */
#include <errno.h>
#include <jansson.h>
#include <libnbd.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "backend.h"
#include "base/err.h"
#include "base/str.h"
#include "bulk.h"
#include "nbd-server.h"
#include "volume.h"

enum {
    NBD_TIMEOUT_MS = 10000,
    NBD_STATUS_MS = 60000, /* a server may have to map much */
    NBD_LANES = 4,
    MAP_PIECE = 1 << 30,
    NOT_FOUND = 127,  /* a shell's exit code */
    BITMAP_DIRTY = 1, /* of the context "qemu:dirty-bitmap:" */
    DEPTH_OWN = 1,    /* of "qemu:allocation-depth": in the image itself */
};

struct nbd_bulk {
    struct bulk bulk;
    struct nbd_handle *handle;
    pid_t server; /* of our own, or 0 */
    bool can_zero;
    char *zeroes;
};

struct nbd_call {
    struct nbd_bulk *nbd;
    struct bulk_request *request;
    uint64_t done; /* of the request, once this call has ended */
};

/* 'bitmap': of an image, to be told as a context of its own; or NULL. */
typedef int nbd_connect_fn(struct nbd_bulk *nbd, unsigned flags,
                           const char *bitmap, struct err **errp);

static int open_by(const struct volume *volume, unsigned flags,
                   nbd_connect_fn *connect, const char *bitmap,
                   struct bulk **ret, struct err **errp);
static int connect_export(struct nbd_bulk *nbd, unsigned flags,
                          const char *bitmap, struct err **errp);
static int connect_depths(struct nbd_bulk *nbd, unsigned flags,
                          const char *bitmap, struct err **errp);
static int connect_image(struct nbd_bulk *nbd, unsigned flags,
                         const char *bitmap, struct err **errp);
static int look(struct nbd_bulk *nbd, bool write, struct err **errp);
static int start(struct nbd_bulk *nbd, struct bulk_request *request,
                 uint64_t done);
static int64_t send_call(struct nbd_bulk *nbd,
                         const struct bulk_request *request, uint64_t done,
                         uint64_t length, struct nbd_call *call);
static int call_on_end(void *data, int *error);
static int fail(const struct nbd_bulk *nbd, const char *what,
                struct err **errp);
static int wait_while(struct nbd_bulk *nbd, bool (*going)(void *data),
                      void *data, uint64_t limit_ms, struct err **errp);
static void note_lost(struct bulk *bulk);
static bool is_connecting(void *data);
static bool is_open(void *data);
static int end_both(struct nbd_bulk *nbd);
static uint64_t now_ms(void);

static struct nbd_bulk *nbd_bulk_of(struct bulk *bulk)
{
    return container_of(bulk, struct nbd_bulk, bulk);
}

static void nbd_bulk_close(struct bulk *bulk)
{
    struct nbd_bulk *nbd = nbd_bulk_of(bulk);
    (void)end_both(nbd);
    free(nbd->zeroes);
    free(nbd);
}

static int nbd_bulk_open(const struct volume *volume, unsigned flags,
                         struct bulk **ret, struct err **errp)
{
    return open_by(volume, flags, connect_export, NULL, ret, errp);
}

static int image_open(const struct volume *volume, unsigned flags,
                      struct bulk **ret, struct err **errp)
{
    return open_by(volume, flags, connect_image, NULL, ret, errp);
}

static void nbd_bulk_submit(struct bulk *bulk, struct bulk_request *request)
{
    int r = start(nbd_bulk_of(bulk), request, 0);
    if (r < 0) {
        note_lost(bulk);
        bulk_finish(request, r);
    }
}

static int nbd_bulk_fd(struct bulk *bulk, short *ret_events)
{
    const struct nbd_bulk *nbd = nbd_bulk_of(bulk);
    unsigned direction = nbd_aio_get_direction(nbd->handle);
    *ret_events =
        (short)(((direction & LIBNBD_AIO_DIRECTION_READ) != 0 ? POLLIN : 0) |
                ((direction & LIBNBD_AIO_DIRECTION_WRITE) != 0 ? POLLOUT : 0));
    return nbd_aio_get_fd(nbd->handle);
}

static void nbd_bulk_service(struct bulk *bulk, short revents)
{
    const struct nbd_bulk *nbd = nbd_bulk_of(bulk);
    unsigned direction = nbd_aio_get_direction(nbd->handle);
    /* As nbd_poll() does: one of both, reading first, and only as asked. */
    if ((revents & (POLLIN | POLLHUP | POLLERR)) != 0 &&
        (direction & LIBNBD_AIO_DIRECTION_READ) != 0) {
        (void)nbd_aio_notify_read(nbd->handle);
    } else if ((revents & POLLOUT) != 0 &&
               (direction & LIBNBD_AIO_DIRECTION_WRITE) != 0) {
        (void)nbd_aio_notify_write(nbd->handle);
    }
    note_lost(bulk);
}

static const char depths[] = "qemu:allocation-depth";

/* What an extent's flags must say to be told. */
enum walk_of {
    WALK_DATA,  /* "base:allocation": bit 1 says that it is zero */
    WALK_DIRTY, /* a dirty bitmap: bit 0 says that it is set */
    WALK_OWN,   /* "qemu:allocation-depth": how far down it is, 0: nowhere */
};

struct walk {
    const char *context;
    enum walk_of of;
    bulk_extent_fn *cb;
    void *data;
    uint64_t at;
    int result;
    bool done;
};

static bool is_told(const struct walk *walk, uint32_t flags)
{
    switch (walk->of) {
    case WALK_DIRTY:
        return (flags & BITMAP_DIRTY) != 0;
    case WALK_OWN:
        return flags == DEPTH_OWN;
    case WALK_DATA:
        break;
    }
    return (flags & LIBNBD_STATE_ZERO) == 0;
}

/* Pairs of length and flags. */
static int walk_on_extents(void *data, const char *context, uint64_t offset,
                           uint32_t *entries, size_t n, int *error)
{
    (void)error;
    struct walk *walk = data;
    if (!str_eq(context, walk->context)) {
        return 0;
    }
    walk->at = offset;
    for (size_t i = 0; i + 1 < n && walk->result == 0; i += 2) {
        if (is_told(walk, entries[i + 1])) {
            walk->result = walk->cb(walk->data, walk->at, entries[i]);
        }
        walk->at += entries[i];
    }
    return 0;
}

static int walk_on_end(void *data, int *error)
{
    struct walk *walk = data;
    if (*error != 0 && walk->result == 0) {
        walk->result = -*error;
    }
    walk->done = true;
    return 1;
}

static bool is_walking(void *data)
{
    return !((const struct walk *)data)->done;
}

static int walk_all(struct nbd_bulk *nbd, struct walk *walk, struct err **errp)
{
    const struct bulk *bulk = &nbd->bulk;
    if (nbd_can_meta_context(nbd->handle, walk->context) <= 0) {
        return -ENOTSUP;
    }
    while (walk->at < bulk->size && walk->result == 0) {
        uint64_t from = walk->at;
        uint64_t left = bulk->size - from;
        walk->done = false;
        if (nbd_aio_block_status(
                nbd->handle, left < MAP_PIECE ? left : MAP_PIECE, from,
                (nbd_extent_callback){.callback = walk_on_extents,
                                      .user_data = walk},
                (nbd_completion_callback){.callback = walk_on_end,
                                          .user_data = walk},
                0) < 0) {
            return fail(nbd, "cannot map it", errp);
        }
        int r = wait_while(nbd, is_walking, walk, NBD_STATUS_MS, errp);
        if (r < 0) {
            return r;
        }
        if (walk->result == 0 && walk->at <= from) {
            return -ENOTSUP; /* a server that tells nothing */
        }
    }
    return walk->result < 0
               ? volume_fail(errp, bulk->volume, walk->result, "cannot map it")
               : walk->result;
}

static int nbd_bulk_extents(struct bulk *bulk, bulk_extent_fn *cb, void *data,
                            struct err **errp)
{
    struct walk walk = {
        .context = LIBNBD_CONTEXT_BASE_ALLOCATION, .cb = cb, .data = data};
    return walk_all(nbd_bulk_of(bulk), &walk, errp);
}

int bulk_bitmap(const struct volume *volume, const char *bitmap,
                bulk_extent_fn *cb, void *data, struct err **errp)
{
    struct bulk *bulk = NULL;
    _cleanup_free_ char *context = str_printf("qemu:dirty-bitmap:%s", bitmap);
    if (context == NULL) {
        return -ENOMEM;
    }
    struct walk walk = {
        .context = context, .of = WALK_DIRTY, .cb = cb, .data = data};
    int r = open_by(volume, 0, connect_image, bitmap, &bulk, errp);
    if (r == 0) {
        r = walk_all(nbd_bulk_of(bulk), &walk, errp);
        nbd_bulk_close(bulk);
    }
    return r == -ENOTSUP
               ? volume_fail(errp, volume, r, "has no such bitmap to read")
               : r;
}

int bulk_own(const struct volume *volume, bulk_extent_fn *cb, void *data,
             struct err **errp)
{
    struct bulk *bulk = NULL;
    struct walk walk = {
        .context = depths, .of = WALK_OWN, .cb = cb, .data = data};
    int r = open_by(volume, 0, connect_depths, NULL, &bulk, errp);
    if (r == 0) {
        r = walk_all(nbd_bulk_of(bulk), &walk, errp);
        nbd_bulk_close(bulk);
    }
    return r == -ENOTSUP ? volume_fail(errp, volume, r,
                                       "does not tell what it holds itself")
                         : r;
}

const struct bulk_ops bulk_nbd = {
    .open = nbd_bulk_open,
    .close = nbd_bulk_close,
    .submit = nbd_bulk_submit,
    .fd = nbd_bulk_fd,
    .service = nbd_bulk_service,
    .extents = nbd_bulk_extents,
};

const struct bulk_ops bulk_image = {
    .open = image_open,
    .close = nbd_bulk_close,
    .submit = nbd_bulk_submit,
    .fd = nbd_bulk_fd,
    .service = nbd_bulk_service,
    .extents = nbd_bulk_extents,
};

static int open_by(const struct volume *volume, unsigned flags,
                   nbd_connect_fn *connect, const char *bitmap,
                   struct bulk **ret, struct err **errp)
{
    struct nbd_bulk *nbd = calloc(1, sizeof(*nbd));
    if (nbd == NULL) {
        return -ENOMEM;
    }
    bulk_init(&nbd->bulk, &bulk_nbd, volume);
    nbd->handle = nbd_create();
    int r = nbd->handle == NULL ? -ENOMEM : 0;
    if (r == 0) {
        (void)nbd_add_meta_context(nbd->handle, LIBNBD_CONTEXT_BASE_ALLOCATION);
        r = connect(nbd, flags, bitmap, errp);
    }
    if (r == 0) {
        r = wait_while(nbd, is_connecting, nbd, NBD_TIMEOUT_MS, errp);
    }
    if (r == 0) {
        r = look(nbd, (flags & BULK_WRITE) != 0, errp);
    }
    if (r < 0) {
        if (end_both(nbd) == NOT_FOUND) {
            r = err_set(errp, -ENOENT, volume->name, "there is no qemu-nbd");
            err_hint(errp, "it is in Debian's package qemu-utils");
        }
        nbd_bulk_close(&nbd->bulk);
        return r;
    }
    *ret = &nbd->bulk;
    return 0;
}

/* The connection, then the server if it is ours, whose exit code it returns. */
static int end_both(struct nbd_bulk *nbd)
{
    int code = -1;
    if (nbd->handle != NULL) {
        if (nbd_aio_is_ready(nbd->handle) > 0 && nbd->bulk.pending == 0 &&
            nbd_aio_disconnect(nbd->handle, 0) == 0) {
            /* It writes out what it still has before it closes. */
            (void)wait_while(nbd, is_open, nbd, NBD_TIMEOUT_MS, NULL);
        }
        nbd_close(nbd->handle);
        nbd->handle = NULL;
    }
    if (nbd->server > 0) {
        /* It must have let go of the image before we do. */
        code = nbd_server_end(nbd->server);
        nbd->server = 0;
    }
    return code;
}

static int connect_export(struct nbd_bulk *nbd, _unused_ unsigned flags,
                          _unused_ const char *bitmap, struct err **errp)
{
    /* What the volume tells QEMU is what we need, too. */
    const struct volume *volume = nbd->bulk.volume;
    json_auto_t *node = volume->ops->node_options(volume, NULL);
    const char *path = node_text(node, "server", "path");
    const char *export = node_text(node, NULL, "export");
    if (node == NULL) {
        return -ENOMEM;
    }
    int r = nbd_set_export_name(nbd->handle, export != NULL ? export : "");
    if (r == 0) {
        r = path != NULL
                ? nbd_aio_connect_unix(nbd->handle, path)
                : nbd_aio_connect_tcp(nbd->handle,
                                      node_text(node, "server", "host"),
                                      node_text(node, "server", "port"));
    }
    return r < 0 ? fail(nbd, "cannot connect", errp) : 0;
}

static int connect_depths(struct nbd_bulk *nbd, unsigned flags,
                          const char *bitmap, struct err **errp)
{
    return nbd_add_meta_context(nbd->handle, depths) < 0
               ? fail(nbd, "cannot ask for it", errp)
               : connect_export(nbd, flags, bitmap, errp);
}

static int connect_image(struct nbd_bulk *nbd, unsigned flags,
                         const char *bitmap, struct err **errp)
{
    const struct volume *volume = nbd->bulk.volume;
    bool write = (flags & BULK_WRITE) != 0;
    bool direct = volume->cache == CACHE_NONE ||
                  (volume->cache == CACHE_AUTO && (flags & BULK_FRESH) != 0);
    /* Named as JSON, as nothing in a path can be taken for an option then. */
    json_t *file = volume->ops->node_options(volume, NULL);
    const char *driver = node_text(file, NULL, "driver");
    if ((flags & BULK_UNLOCKED) != 0 &&
        (str_eq(driver, "file") || str_eq(driver, "host_device"))) {
        /* A mirror's target shares not even reading: no force helps there. */
        (void)json_object_set_new(file, "locking", json_string("off"));
    }
    json_auto_t *node =
        json_pack("{s:s, s:o*, s:b}", "driver", "qcow2", "file", file,
                  "force-share", (flags & BULK_SHARE) != 0);
    if (bitmap != NULL) {
        /* The image was in another's hands: it names no other file to open. */
        (void)json_object_set_new(node, "backing", json_null());
    }
    _cleanup_free_ char *text =
        node != NULL ? json_dumps(node, JSON_COMPACT) : NULL;
    _cleanup_free_ char *name =
        text != NULL ? str_printf("json:%s", text) : NULL;
    if (name == NULL) {
        return -ENOMEM;
    }
    char program[] = "qemu-nbd";
    char cache[24];
    char discard[] = "--discard=unmap";
    char read_only[] = "--read-only";
    (void)snprintf(cache, sizeof(cache), "--cache=%s",
                   direct ? "none" : "writeback");
    _cleanup_free_ char *named =
        bitmap != NULL ? str_printf("--bitmap=%s", bitmap) : NULL;
    char *argv[] = {program, cache, discard, name, write ? NULL : read_only,
                    named,   NULL};
    if (bitmap != NULL) {
        _cleanup_free_ char *context =
            str_printf("qemu:dirty-bitmap:%s", bitmap);
        if (named == NULL || context == NULL) {
            return -ENOMEM;
        }
        (void)nbd_add_meta_context(nbd->handle, context);
    }
    int fd = -1;
    int r = nbd_server_start(argv, &nbd->server, &fd);
    if (r < 0) {
        nbd->server = 0;
        return volume_fail(errp, volume, r, "cannot start qemu-nbd");
    }
    return nbd_aio_connect_socket(nbd->handle, fd) < 0
               ? fail(nbd, "cannot use qemu-nbd", errp)
               : 0;
}

static int look(struct nbd_bulk *nbd, bool write, struct err **errp)
{
    int64_t size = nbd_get_size(nbd->handle);
    if (size < 0) {
        return fail(nbd, "cannot ask for its size", errp);
    }
    nbd->bulk.size = (uint64_t)size;
    nbd->can_zero = nbd_can_zero(nbd->handle) > 0;
    bool image = nbd->bulk.volume->format != FORMAT_RAW;
    nbd->bulk.lanes =
        !image && nbd_can_multi_conn(nbd->handle) > 0 ? NBD_LANES : 1;
    if (write && nbd_is_read_only(nbd->handle) > 0) {
        return volume_fail(errp, nbd->bulk.volume, -EROFS, "cannot write it");
    }
    return 0;
}

/* Sends what is left of the request; libnbd frees the call in any case. */
static int start(struct nbd_bulk *nbd, struct bulk_request *request,
                 uint64_t done)
{
    bool put_zeroes = request->act == BULK_ZERO && !nbd->can_zero;
    if (request->act == BULK_FLUSH && nbd_can_flush(nbd->handle) <= 0) {
        /* Such a server says that what it answered is on its disk. */
        bulk_finish(request, 0);
        return 0;
    }
    if (put_zeroes && nbd->zeroes == NULL &&
        (nbd->zeroes = calloc(1, BULK_UNIT)) == NULL) {
        return -ENOMEM;
    }
    struct nbd_call *call = calloc(1, sizeof(*call));
    if (call == NULL) {
        return -ENOMEM;
    }
    uint64_t length = request->length - done;
    if (put_zeroes && length > BULK_UNIT) {
        length = BULK_UNIT;
    }
    *call = (struct nbd_call){
        .nbd = nbd, .request = request, .done = done + length};
    if (send_call(nbd, request, done, length, call) < 0) {
        int code = nbd_get_errno();
        return code > 0 ? -code : -EIO;
    }
    return 0;
}

static int64_t send_call(struct nbd_bulk *nbd,
                         const struct bulk_request *request, uint64_t done,
                         uint64_t length, struct nbd_call *call)
{
    struct nbd_handle *handle = nbd->handle;
    uint64_t offset = request->offset + done;
    nbd_completion_callback end = {
        .callback = call_on_end, .user_data = call, .free = free};
    switch (request->act) {
    case BULK_READ:
        return nbd_aio_pread(handle, request->buffer, length, offset, end, 0);
    case BULK_PUT:
        return nbd_aio_pwrite(handle, request->buffer, length, offset, end, 0);
    case BULK_ZERO:
        return nbd->can_zero ? nbd_aio_zero(handle, length, offset, end, 0)
                             : nbd_aio_pwrite(handle, nbd->zeroes, length,
                                              offset, end, 0);
    case BULK_FLUSH:
        break;
    }
    return nbd_aio_flush(handle, end, 0);
}

/* 1: libnbd forgets the call. */
static int call_on_end(void *data, int *error)
{
    const struct nbd_call *call = data;
    struct bulk_request *request = call->request;
    int result = *error > 0 ? -*error : 0;
    if (result == 0 && call->done < request->length) {
        result = start(call->nbd, request, call->done);
        if (result == 0) {
            return 1;
        }
    }
    bulk_finish(request, result);
    return 1;
}

/* libnbd's text begins with its function and ends with errno's words. */
static int fail(const struct nbd_bulk *nbd, const char *what, struct err **errp)
{
    int code = nbd_get_errno();
    const char *text = nbd_get_error();
    const char *colon = text != NULL ? strstr(text, ": ") : NULL;
    return err_set(errp, code > 0 ? -code : -EIO, nbd->bulk.volume->name,
                   "%s: %s", what,
                   colon != NULL  ? colon + 2
                   : text != NULL ? text
                                  : "the NBD server cannot be used");
}

static int wait_while(struct nbd_bulk *nbd, bool (*going)(void *data),
                      void *data, uint64_t limit_ms, struct err **errp)
{
    uint64_t end = now_ms() + limit_ms;
    while (going(data)) {
        uint64_t now = now_ms();
        if (now >= end) {
            return err_set(errp, -ETIMEDOUT, nbd->bulk.volume->name,
                           "the NBD server does not answer within %llu s",
                           (unsigned long long)limit_ms / 1000);
        }
        if (nbd_aio_is_dead(nbd->handle) != 0 ||
            nbd_aio_is_closed(nbd->handle) != 0 ||
            nbd_poll(nbd->handle, (int)(end - now)) < 0) {
            return fail(nbd,
                        nbd->bulk.volume->format != FORMAT_RAW
                            ? "qemu-nbd does not open it"
                            : "cannot connect",
                        errp);
        }
    }
    return 0;
}

/* Not of a server of our own: none comes back in its place. */
static void note_lost(struct bulk *bulk)
{
    struct nbd_handle *handle = nbd_bulk_of(bulk)->handle;
    if (bulk->volume->format == FORMAT_RAW &&
        (nbd_aio_is_dead(handle) != 0 || nbd_aio_is_closed(handle) != 0)) {
        bulk->lost = true;
    }
}

static bool is_connecting(void *data)
{
    const struct nbd_bulk *nbd = data;
    return nbd_aio_is_ready(nbd->handle) == 0;
}

static bool is_open(void *data)
{
    const struct nbd_bulk *nbd = data;
    return nbd_aio_is_closed(nbd->handle) == 0;
}

static uint64_t now_ms(void)
{
    struct timespec now = {0};
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}
