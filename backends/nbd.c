/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Exports of an NBD server: nbd://host[:port]/export and
 * nbd+unix:///export?socket=PATH. Knows libnbd, to look, and QEMU's 'nbd'
 * driver. The server's owner made what it exports: nothing is created here.
 *
 * Identity: "nbd:<host>:<port>/<export>" or "nbd:unix:<socket>/<export>"; the
 * protocol tells no better one.
 *
 * QEMU 7.2 reports "nbd://host:port/export" and "nbd+unix:///export?socket=PATH"
 * however the node was made, "nbd+unix://?socket=PATH" for the default export;
 * a '%' in them encodes nothing.
 */
#include <errno.h>
#include <libnbd.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/err.h"
#include "base/str.h"
#include "bulk.h"
#include "registry.h"
#include "uri.h"
#include "volume.h"

enum {
    NBD_PORT = 10809,
    NBD_TIMEOUT_MS = 10000,
    NBD_LAST = 512, /* bytes of the end that are read, in aligned requests */
};

struct nbd_volume {
    struct volume volume;
    char *host;   /* or NULL: unix */
    char *socket; /* or NULL: TCP */
    char port[8];
    char *export; /* "" is the default export */
};

typedef struct nbd_handle nbd_handle_t;
DEFINE_CLEANUP(nbd_handle_t, nbd_close)

static int identify(const struct nbd_volume *nbd, struct volume_info *ret,
                    struct err **errp);
static int read_last(struct nbd_handle *handle, const struct nbd_volume *nbd,
                     struct err **errp);
static int read_address(struct nbd_volume *nbd, struct uri *uri,
                        struct err **errp);
static char *from_uri(const char *filename);
static char *from_json(const json_t *node);
static int nbd_connect_bounded(struct nbd_handle *handle,
                               const struct nbd_volume *nbd, struct err **errp);
static int wait_ready(struct nbd_handle *handle, const struct nbd_volume *nbd,
                      struct err **errp);
static int fail(const struct nbd_volume *nbd, struct err **errp);
static uint64_t now_ms(void);

static const struct nbd_volume *nbd_of(const struct volume *volume)
{
    return (const struct nbd_volume *)volume; /* its first member */
}

static void nbd_free(struct volume *volume)
{
    struct nbd_volume *nbd = container_of(volume, struct nbd_volume, volume);
    volume_done(volume);
    free(nbd->host);
    free(nbd->socket);
    free(nbd->export);
    free(nbd);
}

static int nbd_parse(const char *text, struct volume **ret, struct err **errp)
{
    _cleanup_uri_ struct uri uri = {0};
    int r = uri_split(text, &uri, errp);
    if (r < 0) {
        return r;
    }
    struct nbd_volume *nbd = calloc(1, sizeof(*nbd));
    if (nbd == NULL) {
        return -ENOMEM;
    }
    r = read_address(nbd, &uri, errp);
    if (r == 0) {
        r = volume_init(&nbd->volume, &backend_nbd, &uri, errp);
    }
    if (r == 0 && nbd->socket != NULL) {
        /* Without its socket an export has no name. */
        free(nbd->volume.name);
        nbd->volume.name = str_printf("%s?socket=%s", uri.object, nbd->socket);
        r = nbd->volume.name != NULL ? 0 : -ENOMEM;
    }
    if (r < 0) {
        nbd_free(&nbd->volume);
        return r;
    }
    *ret = &nbd->volume;
    return 0;
}

static int nbd_from_node(const char *driver, const char *filename,
                         struct volume **ret)
{
    if (!str_eq(driver, "nbd")) {
        return -ENOENT;
    }
    json_auto_t *node = node_json(driver, filename);
    _cleanup_free_ char *uri =
        node != NULL ? from_json(node) : from_uri(filename);
    return uri != NULL && nbd_parse(uri, ret, NULL) == 0 ? 0 : -ENOENT;
}

static json_t *nbd_node_options(const struct volume *volume,
                                _unused_ const char *secret_id)
{
    const struct nbd_volume *nbd = nbd_of(volume);
    json_auto_t *node = volume_node(volume, "nbd");
    json_t *server =
        nbd->socket != NULL
            ? json_pack("{s:s, s:s}", "type", "unix", "path", nbd->socket)
            : json_pack("{s:s, s:s, s:s}", "type", "inet", "host", nbd->host,
                        "port", nbd->port);
    if (node == NULL || json_object_set_new(node, "server", server) < 0 ||
        (*nbd->export != '\0' &&
         json_object_set_new(node, "export", json_string(nbd->export)) < 0) ||
        /* Anything but 0 makes each drain wait that long for a dead server. */
        json_object_set_new(node, "reconnect-delay", json_integer(0)) < 0) {
        return NULL;
    }
    return TAKE_PTR(node);
}

static char *nbd_legacy_name(const struct volume *volume)
{
    const struct nbd_volume *nbd = nbd_of(volume);
    _cleanup_free_ char *export = uri_encode(nbd->export);
    if (export == NULL) {
        return NULL;
    }
    if (nbd->socket != NULL) {
        _cleanup_free_ char *path = uri_encode(nbd->socket);
        return path != NULL
                   ? str_printf("nbd+unix:///%s?socket=%s", export, path)
                   : NULL;
    }
    bool v6 = strchr(nbd->host, ':') != NULL;
    return str_printf("nbd://%s%s%s:%s/%s", v6 ? "[" : "", nbd->host,
                      v6 ? "]" : "", nbd->port, export);
}

static int nbd_probe(struct volume *volume, struct volume_info *ret,
                     struct err **errp)
{
    const struct nbd_volume *nbd = nbd_of(volume);
    volume_info_init(ret);
    _cleanup_(nbd_closep) nbd_handle_t *handle = nbd_create();
    if (handle == NULL) {
        return -ENOMEM;
    }
    int r = nbd_connect_bounded(handle, nbd, errp);
    if (r < 0) {
        return r;
    }
    int64_t size = nbd_get_size(handle);
    int64_t block_size = nbd_get_block_size(handle, LIBNBD_SIZE_MINIMUM);
    int read_only = nbd_is_read_only(handle);
    if (size < 0 || block_size < 0 || read_only < 0) {
        return fail(nbd, errp);
    }
    ret->exists = true;
    ret->size = (uint64_t)size;
    ret->block_size = block_size > 0 ? (uint32_t)block_size : 512;
    ret->read_only = read_only > 0;
    ret->no_flush = nbd_can_flush(handle) == 0;
    return identify(nbd, ret, errp);
}

static int nbd_answer(struct volume *volume, struct volume_info *ret,
                      struct err **errp)
{
    const struct nbd_volume *nbd = nbd_of(volume);
    volume_info_init(ret);
    _cleanup_(nbd_closep) nbd_handle_t *handle = nbd_create();
    if (handle == NULL) {
        return -ENOMEM;
    }
    int r = nbd_connect_bounded(handle, nbd, errp);
    if (r == 0) {
        r = read_last(handle, nbd, errp);
    }
    if (r < 0) {
        return r;
    }
    ret->exists = true;
    ret->size = (uint64_t)nbd_get_size(handle);
    return identify(nbd, ret, errp);
}

static int identify(const struct nbd_volume *nbd, struct volume_info *ret,
                    struct err **errp)
{
    int n = nbd->socket != NULL
                ? snprintf(ret->identity, sizeof(ret->identity),
                           "nbd:unix:%s/%s", nbd->socket, nbd->export)
                : snprintf(ret->identity, sizeof(ret->identity), "nbd:%s:%s/%s",
                           nbd->host, nbd->port, nbd->export);
    if ((size_t)n >= sizeof(ret->identity)) {
        return volume_fail(errp, &nbd->volume, -ENAMETOOLONG,
                           "cannot identify it");
    }
    return 0;
}

const struct backend_ops backend_nbd = {
    .scheme = "nbd",
    .title = "NBD export",
    .flags = BACKEND_LEGACY_NAME | BACKEND_NBD,
    .parse = nbd_parse,
    .from_node = nbd_from_node,
    .free = nbd_free,
    .node_options = nbd_node_options,
    .legacy_name = nbd_legacy_name,
    .probe = nbd_probe,
    .answer = nbd_answer,
    .bulk = &bulk_nbd,
};

static int read_address(struct nbd_volume *nbd, struct uri *uri,
                        struct err **errp)
{
    uint16_t port = 0;
    _cleanup_free_ char *path = NULL;
    int r = uri_authority(uri, &nbd->host, &port, &path, errp);
    if (r < 0) {
        return r;
    }
    const char *socket = NULL;
    if (str_eq(uri->scheme, "nbd+unix")) {
        socket = uri_take(uri, "socket");
        if (socket == NULL || *socket != '/' || *nbd->host != '\0') {
            return err_set(errp, -EINVAL, uri->object,
                           "this is written "
                           "nbd+unix:///EXPORT?socket=/PATH");
        }
        free(nbd->host);
        nbd->host = NULL;
        nbd->socket = strdup(socket);
        if (nbd->socket == NULL) {
            return -ENOMEM;
        }
    } else if (*nbd->host == '\0') {
        return err_set(errp, -EINVAL, uri->object,
                       "this is written nbd://HOST[:PORT]/EXPORT");
    }
    (void)snprintf(nbd->port, sizeof(nbd->port), "%u",
                   port != 0 ? (unsigned)port : (unsigned)NBD_PORT);
    nbd->export = strdup(*path == '/' ? path + 1 : path);
    return nbd->export != NULL ? 0 : -ENOMEM;
}

/* QEMU's URI to ours: its text is not encoded. */
static char *from_uri(const char *filename)
{
    static const char local[] = "nbd+unix://";
    static const char remote[] = "nbd://";
    bool is_local = str_starts(filename, local);
    if (!is_local && !str_starts(filename, remote)) {
        return NULL;
    }
    const char *host = filename + strlen(is_local ? local : remote);
    const char *end = is_local ? strstr(host, "?socket=") : strchr(host, '\0');
    if (end == NULL) {
        return NULL;
    }
    const char *slash = memchr(host, '/', (size_t)(end - host));
    const char *name = slash != NULL ? slash + 1 : end;
    _cleanup_free_ char *export = strndup(name, (size_t)(end - name));
    _cleanup_free_ char *encoded = export != NULL ? uri_encode(export) : NULL;
    if (encoded == NULL) {
        return NULL;
    }
    int length = (int)((slash != NULL ? slash : end) - host);
    char *uri = str_printf("%s%.*s/%s", is_local ? local : remote, length, host,
                           encoded);
    if (uri != NULL && is_local &&
        uri_append(&uri, "socket", end + strlen("?socket=")) < 0) {
        free(uri);
        uri = NULL;
    }
    return uri;
}

static char *from_json(const json_t *node)
{
    const char *host = node_text(node, "server", "host");
    const char *port = node_text(node, "server", "port");
    const char *path = node_text(node, "server", "path");
    const char *export = node_text(node, NULL, "export");
    _cleanup_free_ char *encoded = uri_encode(export != NULL ? export : "");
    if (encoded == NULL || (path == NULL && (host == NULL || port == NULL))) {
        return NULL;
    }
    if (path == NULL) {
        bool v6 = strchr(host, ':') != NULL;
        return str_printf("nbd://%s%s%s:%s/%s", v6 ? "[" : "", host,
                          v6 ? "]" : "", port, encoded);
    }
    char *uri = str_printf("nbd+unix:///%s", encoded);
    if (uri != NULL && uri_append(&uri, "socket", path) < 0) {
        free(uri);
        uri = NULL;
    }
    return uri;
}

static int nbd_connect_bounded(struct nbd_handle *handle,
                               const struct nbd_volume *nbd, struct err **errp)
{
    int r = nbd_set_export_name(handle, nbd->export);
    if (r == 0) {
        r = nbd->socket != NULL
                ? nbd_aio_connect_unix(handle, nbd->socket)
                : nbd_aio_connect_tcp(handle, nbd->host, nbd->port);
    }
    return r < 0 ? fail(nbd, errp) : wait_ready(handle, nbd, errp);
}

static int wait_ready(struct nbd_handle *handle, const struct nbd_volume *nbd,
                      struct err **errp)
{
    /* The one clock of this folder: a wait in a worker that must end. */
    uint64_t end = now_ms() + NBD_TIMEOUT_MS;
    while (nbd_aio_is_ready(handle) == 0) {
        uint64_t now = now_ms();
        if (now >= end) {
            return err_set(errp, -ETIMEDOUT, nbd->volume.name,
                           "the NBD server does not answer within %d s",
                           NBD_TIMEOUT_MS / 1000);
        }
        if (nbd_aio_is_dead(handle) != 0 || nbd_aio_is_closed(handle) != 0 ||
            nbd_poll(handle, (int)(end - now)) < 0) {
            return fail(nbd, errp);
        }
    }
    return 0;
}

static int read_last(struct nbd_handle *handle, const struct nbd_volume *nbd,
                     struct err **errp)
{
    int64_t size = nbd_get_size(handle);
    int64_t smallest = nbd_get_block_size(handle, LIBNBD_SIZE_MINIMUM);
    int64_t length = smallest > NBD_LAST ? smallest : NBD_LAST;
    uint64_t end = now_ms() + NBD_TIMEOUT_MS;
    if (size < length) {
        return size < 0 ? fail(nbd, errp) : 0; /* too small to be worth it */
    }
    _cleanup_free_ char *buffer = calloc(1, (size_t)length);
    if (buffer == NULL) {
        return -ENOMEM;
    }
    uint64_t offset = (uint64_t)((size - length) / length * length);
    int64_t cookie = nbd_aio_pread(handle, buffer, (size_t)length, offset,
                                   NBD_NULL_COMPLETION, 0);
    int done =
        cookie < 0 ? -1 : nbd_aio_command_completed(handle, (uint64_t)cookie);
    while (done == 0) {
        uint64_t now = now_ms();
        if (now >= end) {
            return err_set(errp, -ETIMEDOUT, nbd->volume.name,
                           "the NBD server does not answer within %d s",
                           NBD_TIMEOUT_MS / 1000);
        }
        done = nbd_poll(handle, (int)(end - now)) < 0
                   ? -1
                   : nbd_aio_command_completed(handle, (uint64_t)cookie);
    }
    return done < 0 ? fail(nbd, errp) : 0;
}

/* libnbd's text begins with its function and ends with errno's words. */
static int fail(const struct nbd_volume *nbd, struct err **errp)
{
    int code = nbd_get_errno();
    const char *text = nbd_get_error();
    const char *colon = text != NULL ? strstr(text, ": ") : NULL;
    switch (code) {
    case ENOENT:
        if (nbd->socket == NULL || access(nbd->socket, F_OK) == 0) {
            return err_set(errp, -ENOENT, nbd->volume.name,
                           "the server has no export '%s'", nbd->export);
        }
        return volume_fail(errp, &nbd->volume, -code, "cannot connect");
    case ECONNREFUSED:
    case ENETUNREACH:
    case EHOSTUNREACH:
    case ETIMEDOUT:
    case EACCES:
        return volume_fail(errp, &nbd->volume, -code, "cannot connect");
    default:
        return err_set(errp, code != 0 ? -code : -EIO, nbd->volume.name, "%s",
                       colon != NULL  ? colon + 2
                       : text != NULL ? text
                                      : "the NBD server cannot be used");
    }
}

static uint64_t now_ms(void)
{
    struct timespec now = {0};
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}
