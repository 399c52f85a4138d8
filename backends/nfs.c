/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Files on an NFSv3 server through libnfs, without a mount. Knows libnfs and
 * QEMU's 'nfs' driver.
 *
 * As QEMU does, it mounts the directory that holds the file and not what the
 * server exports: a volume that works here works there. QEMU's driver takes
 * no port, so neither do we: the server's portmapper must answer.
 *
 * Identity: "nfs:<host>/<fsid>:<fileid>", the host as the URI names it. NFSv3
 * tells neither an inode's generation nor who holds a file.
 *
 * QEMU 7.2 reports "nfs://host/path[?uid=1&gid=2]" however the node was made;
 * an id of 0 is left out, and a '%' in the path encodes nothing.
 */
#include <errno.h>
#include <fcntl.h>
#include <nfsc/libnfs.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

/* Behind libnfs.h, which they need. */
#include <nfsc/libnfs-raw-nfs.h>
#include <nfsc/libnfs-raw.h>

#include "base/err.h"
#include "base/str.h"
#include "bulk.h"
#include "registry.h"
#include "uri.h"
#include "volume.h"

/* A dead server is an error after this long, not a wait: per call, and for
 * the connection, where the kernel counts in SYNs (1 + 2 + 4 s). */
enum { NFS_TIMEOUT_MS = 10000, NFS_SYN_COUNT = 2, COMMIT_POLL_MS = 100 };

struct nfs_volume {
    struct volume volume;
    char *host;
    char *path;       /* all of it, as QEMU's option 'path' wants it */
    char *directory;  /* what is mounted */
    const char *file; /* the rest of 'path', with its '/' */
    int64_t uid;      /* -1: not given */
    int64_t gid;
};

struct session {
    const struct nfs_volume *nfs;
    struct nfs_context *context;
};

/* What the server tells of what it has written out. */
struct commit {
    bool done;
    int code;
    uint64_t verifier; /* opaque */
};

static int read_place(struct nfs_volume *nfs, const struct uri *uri,
                      struct err **errp);
static void identify(const struct session *session,
                     const struct nfs_stat_64 *st, struct volume_info *ret);
static int commit_file(const struct session *session, const char *file,
                       struct commit *commit, struct err **errp);
static int read_id(struct uri *uri, const char *name, int64_t *ret,
                   struct err **errp);
static int session_open(struct session *session, struct volume *volume,
                        struct err **errp);
static void session_done(struct session *session);
static int session_fail(const struct session *session, int code,
                        const char *what, struct err **errp);
static int look(const struct session *session, const char *file,
                struct volume_info *ret, struct err **errp);

static void identify(const struct session *session,
                     const struct nfs_stat_64 *st, struct volume_info *ret)
{
    (void)snprintf(ret->identity, sizeof(ret->identity), "nfs:%.100s/%llx:%llu",
                   session->nfs->host, (unsigned long long)st->nfs_dev,
                   (unsigned long long)st->nfs_ino);
}

static void commit_on_end(_unused_ struct rpc_context *rpc, int status,
                          void *data, void *private)
{
    struct commit *commit = private;
    const struct COMMIT3res *res = data;
    commit->done = true;
    commit->code =
        status == RPC_STATUS_SUCCESS && res->status == NFS3_OK ? 0 : -EIO;
    if (commit->code == 0) {
        memcpy(&commit->verifier, res->COMMIT3res_u.resok.verf,
               NFS3_WRITEVERFSIZE);
    }
}

/* libnfs keeps the layout of its handles to itself; all versions have this. */
struct handle {
    int length;
    char *value;
};

static int commit_file(const struct session *session, const char *file,
                       struct commit *commit, struct err **errp)
{
    struct nfs_context *context = session->context;
    struct nfsfh *opened = NULL;
    int r = nfs_open(context, file, O_RDWR, &opened);
    if (r < 0) {
        return session_fail(session, r, "cannot open it", errp);
    }
    const struct handle *handle = (const void *)nfs_get_fh(opened);
    struct COMMIT3args args = {
        .file.data = {(u_int)handle->length, handle->value}
    };
    r = rpc_nfs3_commit_async(nfs_get_rpc_context(context), commit_on_end,
                              &args, commit);
    for (unsigned ms = 0; r == 0 && !commit->done; ms += COMMIT_POLL_MS) {
        struct pollfd fd = {.fd = nfs_get_fd(context),
                            .events = (short)nfs_which_events(context)};
        int n = poll(&fd, 1, COMMIT_POLL_MS);
        if (n > 0) {
            ms = 0; /* it is being served: libnfs has the deadline */
        }
        r = ms > NFS_TIMEOUT_MS ? -EINTR : nfs_service(context, fd.revents);
    }
    r = r == 0 ? commit->code : r;
    if (r == 0) {
        (void)nfs_close(context, opened);
    }
    return r < 0 ? session_fail(session, r, "cannot ask for what is written",
                                errp)
                 : 0;
}

static int look_head(const struct session *session, const char *file,
                     struct volume_info *info, struct err **errp);
static void look_space(const struct session *session, struct volume_info *info);
static int make(const struct session *session, const char *file, uint64_t size,
                struct err **errp);
static int fail_create(const struct session *session, int code,
                       struct err **errp);
static int remove_file(const struct session *session, const char *file,
                       const char *identity, struct err **errp);

static const struct nfs_volume *nfs_of(const struct volume *volume)
{
    return (const struct nfs_volume *)volume; /* its first member */
}

static void nfs_free(struct volume *volume)
{
    struct nfs_volume *nfs = container_of(volume, struct nfs_volume, volume);
    volume_done(volume);
    free(nfs->host);
    free(nfs->path);
    free(nfs->directory);
    free(nfs);
}

static int nfs_parse(const char *text, struct volume **ret, struct err **errp)
{
    _cleanup_uri_ struct uri uri = {0};
    int r = uri_split(text, &uri, errp);
    if (r < 0) {
        return r;
    }
    struct nfs_volume *nfs = calloc(1, sizeof(*nfs));
    if (nfs == NULL) {
        return -ENOMEM;
    }
    r = read_place(nfs, &uri, errp);
    if (r == 0) {
        r = read_id(&uri, "uid", &nfs->uid, errp);
    }
    if (r == 0) {
        r = read_id(&uri, "gid", &nfs->gid, errp);
    }
    if (r == 0) {
        r = volume_init(&nfs->volume, &backend_nfs, &uri, errp);
    }
    if (r < 0) {
        nfs_free(&nfs->volume);
        return r;
    }
    *ret = &nfs->volume;
    return 0;
}

/* "nfs://host/path?uid=1&gid=2": the path is not encoded and may hold '?'. */
static int from_url(const char *url, struct volume **ret)
{
    const char *place = url + strlen("nfs://");
    const char *query = strrchr(place, '?');
    if (query != NULL && !str_starts(query, "?uid=") &&
        !str_starts(query, "?gid=")) {
        query = NULL;
    }
    const char *slash = strchr(place, '/');
    size_t length = query != NULL ? (size_t)(query - place) : strlen(place);
    if (slash == NULL || slash >= place + length) {
        return -ENOENT;
    }
    _cleanup_free_ char *path =
        strndup(slash, (size_t)(place + length - slash));
    _cleanup_free_ char *encoded = path != NULL ? uri_encode(path) : NULL;
    _cleanup_free_ char *ours =
        encoded != NULL ? str_printf("nfs://%.*s%s%s", (int)(slash - place),
                                     place, encoded, query != NULL ? query : "")
                        : NULL;
    if (ours == NULL) {
        return -ENOMEM;
    }
    return nfs_parse(ours, ret, NULL) < 0 ? -ENOENT : 0;
}

static int nfs_from_node(const char *driver, const char *filename,
                         struct volume **ret)
{
    if (!str_eq(driver, "nfs")) {
        return -ENOENT;
    }
    return str_starts(filename, "nfs://") ? from_url(filename, ret) : -ENOENT;
}

static json_t *nfs_node_options(const struct volume *volume,
                                _unused_ const char *secret_id)
{
    const struct nfs_volume *nfs = nfs_of(volume);
    json_auto_t *node = volume_node(volume, "nfs");
    if (node == NULL ||
        json_object_set_new(
            node, "server",
            json_pack("{s:s, s:s}", "type", "inet", "host", nfs->host)) < 0 ||
        json_object_set_new(node, "path", json_string(nfs->path)) < 0 ||
        (nfs->uid >= 0 &&
         json_object_set_new(node, "user", json_integer(nfs->uid)) < 0) ||
        (nfs->gid >= 0 &&
         json_object_set_new(node, "group", json_integer(nfs->gid)) < 0)) {
        return NULL;
    }
    return TAKE_PTR(node);
}

static char *nfs_legacy_name(const struct volume *volume)
{
    const struct nfs_volume *nfs = nfs_of(volume);
    char id[64] = "";
    if (nfs->uid >= 0) {
        (void)snprintf(id, sizeof(id), "?uid=%lld", (long long)nfs->uid);
    }
    if (nfs->gid >= 0) {
        size_t n = strlen(id);
        (void)snprintf(id + n, sizeof(id) - n, "%cgid=%lld", n > 0 ? '&' : '?',
                       (long long)nfs->gid);
    }
    _cleanup_free_ char *path = uri_encode(nfs->path);
    bool v6 = strchr(nfs->host, ':') != NULL;
    return path == NULL ? NULL
                        : str_printf("nfs://%s%s%s%s%s", v6 ? "[" : "",
                                     nfs->host, v6 ? "]" : "", path, id);
}

static int nfs_probe(struct volume *volume, struct volume_info *ret,
                     struct err **errp)
{
    _cleanup_(session_done) struct session session = {0};
    int r = session_open(&session, volume, errp);
    if (r < 0) {
        return r;
    }
    r = look(&session, nfs_of(volume)->file, ret, errp);
    if (r != -ENOENT) {
        return r;
    }
    look_space(&session, ret);
    r = nfs_access(session.context, "/", W_OK | X_OK);
    return r < 0 ? fail_create(&session, r, errp) : 0;
}

/*
 * A server that was started anew has another write verifier, and may have
 * lost what it had taken as UNSTABLE (RFC 1813, 3.3.21). libnfs, and so QEMU,
 * does not look at it: a copy would be torn without any error.
 */
static int nfs_answer(struct volume *volume, struct volume_info *ret,
                      struct err **errp)
{
    struct commit commit = {0}; /* outlives the session, which may call back */
    _cleanup_(session_done) struct session session = {0};
    struct nfs_stat_64 st;
    volume_info_init(ret);
    int r = session_open(&session, volume, errp);
    if (r < 0) {
        return r;
    }
    const char *file = nfs_of(volume)->file;
    r = nfs_stat64(session.context, file, &st);
    if (r == -ENOENT) {
        return 0; /* it answers: there is no such file */
    }
    if (r < 0) {
        return session_fail(&session, r, "cannot look at it", errp);
    }
    ret->size = st.nfs_size;
    identify(&session, &st, ret);
    r = commit_file(&session, file, &commit, errp);
    if (r == 0) {
        ret->exists = true;
        (void)snprintf(ret->life, sizeof(ret->life), "%016llx",
                       (unsigned long long)commit.verifier);
    }
    return r;
}

static int nfs_make(struct volume *volume, const char *temp, uint64_t size,
                    struct volume_info *ret, struct err **errp)
{
    _cleanup_(session_done) struct session session = {0};
    _cleanup_free_ char *file = str_printf("/%s", temp);
    if (file == NULL) {
        return -ENOMEM;
    }
    int r = session_open(&session, volume, errp);
    if (r == 0) {
        r = remove_file(&session, file, NULL, errp);
    }
    if (r == 0) {
        r = make(&session, file, size, errp);
    }
    if (r == 0) {
        r = look(&session, file, ret, errp);
    }
    if (r == 0) {
        ret->zero = true; /* a new file that nobody wrote to is one hole */
    }
    return r;
}

static int nfs_publish(struct volume *volume, const char *temp,
                       const char *identity, struct err **errp)
{
    const char *name = nfs_of(volume)->file;
    _cleanup_(session_done) struct session session = {0};
    _cleanup_free_ char *file = str_printf("/%s", temp);
    if (file == NULL) {
        return -ENOMEM;
    }
    struct volume_info there;
    struct volume_info ours;
    int r = session_open(&session, volume, errp);
    if (r < 0) {
        return r;
    }
    r = look(&session, name, &there, errp);
    if (r == 0 && str_eq(there.identity, identity)) {
        return remove_file(&session, file, identity, errp);
    }
    if (r != -ENOENT) {
        return r < 0 ? r : volume_taken(volume, errp);
    }
    r = look(&session, file, &ours, errp);
    if (r < 0 && r != -ENOENT) {
        return r;
    }
    if (r == -ENOENT || !str_eq(ours.identity, identity)) {
        return err_set(errp, -ESTALE, volume->name,
                       "'%s' is not the file that was created", temp);
    }
    /* NFSv3's RENAME replaces what is there; its LINK does not. */
    r = nfs_link(session.context, file, name);
    if (r == -EEXIST) {
        return volume_taken(volume, errp);
    }
    if (r < 0) {
        return session_fail(&session, r, "cannot give the file its name", errp);
    }
    return remove_file(&session, file, identity, errp);
}

static int nfs_remove(struct volume *volume, const char *temp,
                      const char *identity, struct err **errp)
{
    _cleanup_(session_done) struct session session = {0};
    int r = session_open(&session, volume, errp);
    if (r == 0 && temp != NULL) {
        _cleanup_free_ char *file = str_printf("/%s", temp);
        r = file != NULL ? remove_file(&session, file, NULL, errp) : -ENOMEM;
    }
    if (r == 0 && identity != NULL) {
        r = remove_file(&session, nfs_of(volume)->file, identity, errp);
    }
    return r;
}

const struct backend_ops backend_nfs = {
    .scheme = "nfs",
    .title = "NFS file",
    .flags = BACKEND_CREATES | BACKEND_FORMATS | BACKEND_LEGACY_NAME |
             BACKEND_STALLS,
    .parse = nfs_parse,
    .from_node = nfs_from_node,
    .free = nfs_free,
    .node_options = nfs_node_options,
    .legacy_name = nfs_legacy_name,
    .probe = nfs_probe,
    .answer = nfs_answer,
    .create = nfs_make,
    .publish = nfs_publish,
    .remove = nfs_remove,
    .bulk = &bulk_nfs,
};

static int read_place(struct nfs_volume *nfs, const struct uri *uri,
                      struct err **errp)
{
    uint16_t port = 0;
    int r = uri_authority(uri, &nfs->host, &port, &nfs->path, errp);
    if (r < 0) {
        return r;
    }
    if (port != 0) {
        (void)err_set(errp, -EINVAL, uri->object,
                      "QEMU's nfs driver takes no port");
        err_hint(errp, "the server's portmapper (rpcbind) tells the port");
        return -EINVAL;
    }
    char *slash = strrchr(nfs->path, '/');
    if (*nfs->host == '\0' || slash == NULL || slash == nfs->path ||
        slash[1] == '\0') {
        return err_set(errp, -EINVAL, uri->object,
                       "this is written nfs://HOST/EXPORT/FILE");
    }
    nfs->directory = strndup(nfs->path, (size_t)(slash - nfs->path));
    nfs->file = slash;
    return nfs->directory != NULL ? 0 : -ENOMEM;
}

static int read_id(struct uri *uri, const char *name, int64_t *ret,
                   struct err **errp)
{
    uint64_t id = 0;
    const char *value = uri_take(uri, name);
    *ret = -1;
    if (value == NULL) {
        return 0;
    }
    if (str_to_u64(value, INT32_MAX, &id) < 0) {
        return err_set(errp, -EINVAL, uri->object,
                       "option '%s' is a number, not '%.32s'", name, value);
    }
    *ret = (int64_t)id;
    return 0;
}

static int session_open(struct session *session, struct volume *volume,
                        struct err **errp)
{
    const struct nfs_volume *nfs = nfs_of(volume);
    session->nfs = nfs;
    session->context = nfs_init_context();
    if (session->context == NULL) {
        return -ENOMEM;
    }
    nfs_set_timeout(session->context, NFS_TIMEOUT_MS);
    nfs_set_tcp_syncnt(session->context, NFS_SYN_COUNT);
    nfs_set_autoreconnect(session->context, 0);
    nfs_set_dircache(session->context, 0);
    if (nfs->uid >= 0) {
        nfs_set_uid(session->context, (int)nfs->uid);
    }
    if (nfs->gid >= 0) {
        nfs_set_gid(session->context, (int)nfs->gid);
    }
    int r = nfs_mount(session->context, nfs->host, nfs->directory);
    if (r == 0) {
        return 0;
    }
    _cleanup_free_ char *what = str_printf("cannot mount '%s' of server '%s'",
                                           nfs->directory, nfs->host);
    (void)session_fail(session, r, what != NULL ? what : "cannot mount", errp);
    if (r == -EACCES || r == -ENOENT) {
        err_hint(errp, "the directory must exist there, and be exported to "
                       "this host");
    } else {
        err_hint(errp, "the server must answer NFSv3, MOUNT and portmapper "
                       "calls over TCP");
    }
    return r;
}

static void session_done(struct session *session)
{
    if (session->context != NULL) {
        nfs_destroy_context(session->context);
    }
}

/* libnfs has the server's word in its text; timeouts come as EINTR. */
static int session_fail(const struct session *session, int code,
                        const char *what, struct err **errp)
{
    const struct volume *volume = &session->nfs->volume;
    if (code == -EINTR) {
        (void)err_set(errp, -ETIMEDOUT, volume->name,
                      "%s: no answer within %d s", what, NFS_TIMEOUT_MS / 1000);
        return -ETIMEDOUT;
    }
    /* -1 is what libnfs has for everything else: no errno. */
    if (code != -EFAULT && code != -EIO && code != -1) {
        return volume_fail(errp, volume, code, "%s", what);
    }
    const char *text = nfs_get_error(session->context);
    if (text == NULL || strstr(text, "nfs_service failed") != NULL) {
        text = "the server does not answer";
    } else if (strstr(text, "Can not resolv") != NULL) {
        text = "the server's name is unknown";
    }
    const char *network = strstr(text, "connect() to server failed. ");
    text = network != NULL ? strchr(network, '.') + 2 : text;
    return err_set(errp, code == -1 ? -EIO : code, volume->name, "%s: %s", what,
                   text);
}

/* -ENOENT without a message if there is nothing. */
static int look(const struct session *session, const char *file,
                struct volume_info *ret, struct err **errp)
{
    volume_info_init(ret);
    const struct volume *volume = &session->nfs->volume;
    struct nfs_stat_64 st;
    int r = nfs_stat64(session->context, file, &st);
    if (r == -ENOENT) {
        return r;
    }
    if (r < 0) {
        return session_fail(session, r, "cannot look at it", errp);
    }
    if (!S_ISREG(st.nfs_mode)) {
        return err_set(errp, -EINVAL, volume->name, "is %s, not a file",
                       S_ISDIR(st.nfs_mode) ? "a directory"
                                            : "something special");
    }
    ret->exists = true;
    ret->size = st.nfs_size;
    ret->allocated = st.nfs_used;
    ret->block_size = 1; /* no O_DIRECT in between */
    identify(session, &st, ret);
    look_space(session, ret);
    return look_head(session, file, ret, errp);
}

static int look_head(const struct session *session, const char *file,
                     struct volume_info *info, struct err **errp)
{
    struct nfsfh *handle = NULL;
    int r = nfs_open(session->context, file, O_RDONLY, &handle);
    if (r < 0) {
        return session_fail(session, r, "cannot open it", errp);
    }
    char head[FORMAT_HEAD];
    r = nfs_pread(session->context, handle, 0, sizeof(head), head);
    (void)nfs_close(session->context, handle);
    if (r < 0) {
        return session_fail(session, r, "cannot read it", errp);
    }
    volume_info_format(info, head, (size_t)r);
    info->read_only = nfs_access(session->context, file, W_OK) < 0;
    return 0;
}

static void look_space(const struct session *session, struct volume_info *info)
{
    struct nfs_statvfs_64 fs;
    if (nfs_statvfs64(session->context, "/", &fs) == 0) {
        info->available = fs.f_bavail * fs.f_frsize;
        (void)snprintf(info->space, sizeof(info->space), "nfs:%.60s/%llx",
                       session->nfs->host, (unsigned long long)fs.f_fsid);
    }
}

static int make(const struct session *session, const char *file, uint64_t size,
                struct err **errp)
{
    struct nfsfh *handle = NULL;
    int r = nfs_create(session->context, file, O_EXCL | O_RDWR, 0600, &handle);
    if (r < 0) {
        return fail_create(session, r, errp);
    }
    r = nfs_ftruncate(session->context, handle, size);
    if (r == 0) {
        r = nfs_fsync(session->context, handle);
    }
    if (r < 0) {
        r = session_fail(session, r, "cannot give the file its size", errp);
    }
    (void)nfs_close(session->context, handle);
    if (r < 0) {
        (void)nfs_unlink(session->context, file);
    }
    return r;
}

static int fail_create(const struct session *session, int code,
                       struct err **errp)
{
    (void)session_fail(session, code, "cannot create a file there", errp);
    if (code == -EACCES || code == -EPERM) {
        err_hint(errp, "uid= and gid= in the URI tell on whose behalf");
    }
    return code;
}

/* identity NULL: by its name alone. Nothing there is success. */
static int remove_file(const struct session *session, const char *file,
                       const char *identity, struct err **errp)
{
    const struct volume *volume = &session->nfs->volume;
    struct nfs_stat_64 st;
    int r = nfs_stat64(session->context, file, &st);
    if (r == -ENOENT) {
        return 0;
    }
    if (r == 0 && identity != NULL) {
        struct volume_info info;
        r = look(session, file, &info, errp);
        if (r < 0) {
            return r;
        }
        if (!str_eq(info.identity, identity)) {
            return err_set(errp, -ESTALE, volume->name,
                           "'%s' is another file by now: not removed",
                           file + 1);
        }
    }
    if (r == 0) {
        r = nfs_unlink(session->context, file);
    }
    return r == 0 || r == -ENOENT
               ? 0
               : session_fail(session, r, "cannot remove a file there", errp);
}
