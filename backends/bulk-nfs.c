/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The bytes of files on an NFSv3 server through libnfs' asynchronous calls;
 * each channel is a connection of its own.
 *
 * A channel does not reconnect: libnfs does not compare the write verifier,
 * and what was written UNSTABLE before a server's restart may be lost behind a
 * COMMIT after it. A lost server is an error, whoever has the channel opens
 * another, and does again what was not flushed.
 */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <nfsc/libnfs.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "backend.h"
#include "base/err.h"
#include "base/str.h"
#include "bulk.h"
#include "volume.h"

enum {
    NFS_TIMEOUT_MS = 10000,
    NFS_SYN_COUNT = 2,
    NFS_LANES = 4,
    NFS_BUFFER = 4 << 20,
};

struct nfs_bulk {
    struct bulk bulk;
    struct nfs_context *context;
    struct nfsfh *file;
    char *zeroes;
};

/* A request as it is told to libnfs: a range of zeroes takes several. */
struct nfs_call {
    struct nfs_bulk *nfs;
    struct bulk_request *request;
    uint64_t done; /* of a range of zeroes */
};

static int connect_server(struct nfs_bulk *nfs, bool write, struct err **errp);
static int fail(const struct nfs_bulk *nfs, int code, const char *what,
                struct err **errp);
static int start(struct nfs_call *call);
static void call_on_end(int status, struct nfs_context *context, void *data,
                        void *private);
static int code_of(struct nfs_bulk *nfs, int status, const char *text);

static struct nfs_bulk *nfs_bulk_of(struct bulk *bulk)
{
    return container_of(bulk, struct nfs_bulk, bulk);
}

static void nfs_bulk_close(struct bulk *bulk)
{
    struct nfs_bulk *nfs = nfs_bulk_of(bulk);
    if (nfs->context != NULL) {
        if (nfs->file != NULL && bulk->pending == 0) {
            (void)nfs_close(nfs->context, nfs->file);
        }
        nfs_destroy_context(nfs->context); /* ends what is under way */
    }
    free(bulk->detail);
    free(nfs->zeroes);
    free(nfs);
}

static int nfs_bulk_open(const struct volume *volume, unsigned flags,
                         struct bulk **ret, struct err **errp)
{
    struct nfs_bulk *nfs = calloc(1, sizeof(*nfs));
    if (nfs == NULL) {
        return -ENOMEM;
    }
    bulk_init(&nfs->bulk, &bulk_nfs, volume);
    nfs->bulk.lanes = NFS_LANES;
    int r = connect_server(nfs, (flags & BULK_WRITE) != 0, errp);
    if (r < 0) {
        nfs_bulk_close(&nfs->bulk);
        return r;
    }
    *ret = &nfs->bulk;
    return 0;
}

static void nfs_bulk_submit(struct bulk *bulk, struct bulk_request *request)
{
    struct nfs_bulk *nfs = nfs_bulk_of(bulk);
    struct nfs_call *call = calloc(1, sizeof(*call));
    if (call == NULL) {
        bulk_finish(request, -ENOMEM);
        return;
    }
    call->nfs = nfs;
    call->request = request;
    int r = start(call);
    if (r < 0) {
        free(call);
        bulk_finish(request, r);
    }
}

static int nfs_bulk_fd(struct bulk *bulk, short *ret_events)
{
    struct nfs_bulk *nfs = nfs_bulk_of(bulk);
    *ret_events = (short)nfs_which_events(nfs->context);
    return nfs_get_fd(nfs->context);
}

static void nfs_bulk_service(struct bulk *bulk, short revents)
{
    struct nfs_bulk *nfs = nfs_bulk_of(bulk);
    /* An error here has ended each request with one of its own, or will. */
    bulk->lost = nfs_service(nfs->context, revents) < 0 || bulk->lost;
}

const struct bulk_ops bulk_nfs = {
    .open = nfs_bulk_open,
    .close = nfs_bulk_close,
    .submit = nfs_bulk_submit,
    .fd = nfs_bulk_fd,
    .service = nfs_bulk_service,
};

static int connect_server(struct nfs_bulk *nfs, bool write, struct err **errp)
{
    /* What the volume tells QEMU is what we need, too. */
    const struct volume *volume = nfs->bulk.volume;
    json_auto_t *node = volume->ops->node_options(volume, NULL);
    nfs->context = nfs_init_context();
    if (node == NULL || nfs->context == NULL) {
        return -ENOMEM;
    }
    const char *host = node_text(node, "server", "host");
    const char *path = node_text(node, NULL, "path");
    const json_t *user = json_object_get(node, "user");
    const json_t *group = json_object_get(node, "group");
    nfs_set_timeout(nfs->context, NFS_TIMEOUT_MS);
    nfs_set_tcp_syncnt(nfs->context, NFS_SYN_COUNT);
    nfs_set_autoreconnect(nfs->context, 0);
    nfs_set_dircache(nfs->context, 0);
    if (user != NULL) {
        nfs_set_uid(nfs->context, (int)json_integer_value(user));
    }
    if (group != NULL) {
        nfs_set_gid(nfs->context, (int)json_integer_value(group));
    }
    const char *name = strrchr(path, '/');
    _cleanup_free_ char *directory = strndup(path, (size_t)(name - path));
    if (directory == NULL) {
        return -ENOMEM;
    }
    int r = nfs_mount(nfs->context, host, directory);
    if (r < 0) {
        return fail(nfs, r, "cannot mount", errp);
    }
    r = nfs_open(nfs->context, name, write ? O_RDWR : O_RDONLY, &nfs->file);
    struct nfs_stat_64 st;
    if (r == 0) {
        r = nfs_fstat64(nfs->context, nfs->file, &st);
    }
    if (r < 0) {
        return fail(nfs, r, "cannot open it", errp);
    }
    nfs->bulk.size = st.nfs_size;
    (void)snprintf(nfs->bulk.stamp, sizeof(nfs->bulk.stamp),
                   "%llu.%09llu/%llu.%09llu", (unsigned long long)st.nfs_mtime,
                   (unsigned long long)st.nfs_mtime_nsec,
                   (unsigned long long)st.nfs_ctime,
                   (unsigned long long)st.nfs_ctime_nsec);
    /* libnfs before 6.0 leaves both to us. */
    int fd = nfs_get_fd(nfs->context);
    int one = 1;
    int buffer = NFS_BUFFER;
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    (void)setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &buffer, sizeof(buffer));
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &buffer, sizeof(buffer));
    return 0;
}

static int fail(const struct nfs_bulk *nfs, int code, const char *what,
                struct err **errp)
{
    const struct volume *volume = nfs->bulk.volume;
    const char *text = nfs_get_error(nfs->context);
    if (code == -EINTR) {
        return err_set(errp, -ETIMEDOUT, volume->name,
                       "%s: no answer within %d s", what,
                       NFS_TIMEOUT_MS / 1000);
    }
    return err_set(errp, code, volume->name, "%s: %s", what,
                   text != NULL ? text : "no reason was given");
}

/* NFSv3 cannot punch holes: zeroes are written, block by block. */
static int start(struct nfs_call *call)
{
    struct nfs_bulk *nfs = call->nfs;
    struct bulk_request *request = call->request;
    int r = 0;
    switch (request->act) {
    case BULK_READ:
        r = nfs_pread_async(nfs->context, nfs->file, request->offset,
                            request->length, call_on_end, call);
        break;
    case BULK_PUT:
        r = nfs_pwrite_async(nfs->context, nfs->file, request->offset,
                             request->length, request->buffer, call_on_end,
                             call);
        break;
    case BULK_ZERO: {
        uint64_t left = request->length - call->done;
        if (nfs->zeroes == NULL) {
            nfs->zeroes = calloc(1, BULK_UNIT);
        }
        r = nfs->zeroes == NULL
                ? -ENOMEM
                : nfs_pwrite_async(nfs->context, nfs->file,
                                   request->offset + call->done,
                                   left < BULK_UNIT ? left : BULK_UNIT,
                                   nfs->zeroes, call_on_end, call);
        break;
    }
    case BULK_FLUSH:
        r = nfs_fsync_async(nfs->context, nfs->file, call_on_end, call);
        break;
    }
    return r < 0 ? code_of(nfs, r, nfs_get_error(nfs->context)) : 0;
}

static void call_on_end(int status, _unused_ struct nfs_context *context,
                        void *data, void *private)
{
    struct nfs_call *call = private;
    struct bulk_request *request = call->request;
    int result = 0;
    if (status < 0) {
        call->nfs->bulk.lost = call->nfs->bulk.lost || status == -EINTR;
        /* The text, if there is one, is in 'data'. */
        result = code_of(call->nfs, status, data);
    } else if (request->act == BULK_READ) {
        if ((uint64_t)status < request->length) {
            result = -EIO;
        } else {
            memcpy(request->buffer, data, request->length);
        }
    } else if (request->act == BULK_PUT && (uint64_t)status < request->length) {
        result = -EIO;
    } else if (request->act == BULK_ZERO) {
        call->done += (uint64_t)status;
        if (status > 0 && call->done < request->length) {
            result = start(call);
            if (result == 0) {
                return;
            }
        } else if (call->done < request->length) {
            result = -EIO;
        }
    }
    free(call);
    bulk_finish(request, result);
}

/* libnfs 4.0 makes EFAULT of each status of the server: its text tells. */
static int code_of(struct nfs_bulk *nfs, int status, const char *text)
{
    static const struct {
        const char *word;
        int code;
    } words[] = {
        {"NOSPC", -ENOSPC},
        {"DQUOT", -EDQUOT},
        {"FBIG",  -EFBIG },
        {"ROFS",  -EROFS },
        {"ACCES", -EACCES},
        {"STALE", -ESTALE}
    };

    if (text != NULL) {
        free(nfs->bulk.detail);
        nfs->bulk.detail = strdup(text);
        for (size_t i = 0; i < ARRAY_SIZE(words); i++) {
            if (strstr(text, words[i].word) != NULL) {
                return words[i].code;
            }
        }
    }
    return status == -EINTR ? -ETIMEDOUT : status == -EFAULT ? -EIO : status;
}
