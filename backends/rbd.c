/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * RBD images through librados and librbd. Acts at the same time share one
 * connection to a cluster; nothing is kept after the last of them, and a lost
 * cluster is an error of the next one after RBD_TIMEOUT.
 *
 * Identity: "rbd:<fsid>/<pool>[/<namespace>]/<image id>": the id stays with
 * an image when it is renamed, and no other image of the pool gets it.
 */
#include "rbd.h"

#include <errno.h>
#include <pthread.h>
#include <rbd/librbd.h>
#include <stdio.h>
#include <string.h>

#include "base/err.h"
#include "base/str.h"
#include "bulk.h"
#include "registry.h"

/* Seconds, for finding the monitors and for each call to them and to OSDs. */
#define RBD_TIMEOUT "10"

enum { RBD_OBJECTS_MAX = 1 << 20, RBD_LAST = 512 };

/* A connection takes a dozen threads and some 50 ms. */
struct rbd_cluster {
    struct rbd_cluster *next;
    rados_t handle;
    char *place; /* configuration, user and keyring */
    unsigned refs;
};

static pthread_mutex_t clusters_lock = PTHREAD_MUTEX_INITIALIZER;
static struct rbd_cluster *clusters;

static bool share_cluster(struct rbd_session *session, const char *place);
static void offer_cluster(struct rbd_session *session, char *place);
static bool leave_cluster(struct rbd_cluster *shared);
static char *place_of(const struct rbd_volume *rbd);
static int configure(const struct rbd_session *session, struct err **errp);
static int connect_cluster(struct rbd_session *session, struct err **errp);
static int open_pool(struct rbd_session *session, struct err **errp);
static int fail(const struct rbd_session *session, int code, const char *what,
                struct err **errp);
static int look(const struct rbd_session *session, const char *image,
                struct volume_info *ret, struct err **errp);
static int look_open(const struct rbd_session *session, rbd_image_t image,
                     struct volume_info *ret);
static int look_identity(const struct rbd_session *session, rbd_image_t image,
                         struct volume_info *ret);
static int look_watchers(rbd_image_t image, struct volume_info *ret);
static void look_allocated(rbd_image_t image, struct volume_info *ret);
static void look_space(const struct rbd_session *session,
                       struct volume_info *ret);
static bool may_create(const struct rbd_session *session, const char *image);
static int make(const struct rbd_session *session, const char *image,
                uint64_t size, struct err **errp);
static int remove_image(const struct rbd_session *session, const char *image,
                        const char *identity, struct err **errp);

static int rbd_probe(struct volume *volume, struct volume_info *ret,
                     struct err **errp)
{
    _cleanup_(rbd_session_done) struct rbd_session session = {0};
    int r = rbd_session_open(&session, volume, errp);
    if (r < 0) {
        return r;
    }
    r = look(&session, rbd_of(volume)->image, ret, errp);
    look_space(&session, ret);
    if (r == -ENOENT) {
        ret->read_only = !may_create(&session, rbd_of(volume)->image);
    }
    return r == -ENOENT ? 0 : r;
}

static int rbd_answer(struct volume *volume, struct volume_info *ret,
                      struct err **errp)
{
    _cleanup_(rbd_session_done) struct rbd_session session = {0};
    rbd_image_t image = NULL;
    char last[RBD_LAST];
    volume_info_init(ret);
    int r = rbd_session_open(&session, volume, errp);
    if (r < 0) {
        return r;
    }
    r = rbd_open_read_only(session.pool, rbd_of(volume)->image, &image, NULL);
    if (r == -ENOENT) {
        return 0; /* it answers: there is no such image */
    }
    if (r < 0) {
        return fail(&session, r, "cannot open the image", errp);
    }
    r = rbd_get_size(image, &ret->size);
    if (r == 0) {
        r = look_identity(&session, image, ret);
    }
    if (r == 0 && ret->size >= sizeof(last)) {
        ssize_t n =
            rbd_read(image, ret->size - sizeof(last), sizeof(last), last);
        r = n < 0 ? (int)n : 0;
    }
    (void)rbd_close(image);
    ret->exists = r == 0;
    return r < 0 ? fail(&session, r, "cannot read the image", errp) : 0;
}

static int rbd_make(struct volume *volume, const char *temp, uint64_t size,
                    struct volume_info *ret, struct err **errp)
{
    _cleanup_(rbd_session_done) struct rbd_session session = {0};
    int r = rbd_session_open(&session, volume, errp);
    if (r == 0) {
        r = remove_image(&session, temp, NULL, errp);
    }
    if (r == 0) {
        r = make(&session, temp, size, errp);
    }
    if (r == 0) {
        r = look(&session, temp, ret, errp);
    }
    if (r == 0) {
        ret->zero = true; /* a new image has no objects */
    }
    return r;
}

static int rbd_publish(struct volume *volume, const char *temp,
                       const char *identity, struct err **errp)
{
    const char *name = rbd_of(volume)->image;
    _cleanup_(rbd_session_done) struct rbd_session session = {0};
    struct volume_info there;
    struct volume_info ours;
    int r = rbd_session_open(&session, volume, errp);
    if (r < 0) {
        return r;
    }
    r = look(&session, name, &there, errp);
    if (r == 0) {
        return str_eq(there.identity, identity) ? 0
                                                : volume_taken(volume, errp);
    }
    if (r != -ENOENT) {
        return r;
    }
    r = look(&session, temp, &ours, errp);
    if (r < 0 && r != -ENOENT) {
        return r;
    }
    if (r == -ENOENT || !str_eq(ours.identity, identity)) {
        return err_set(errp, -ESTALE, volume->name,
                       "'%s' is not the image that was created", temp);
    }
    r = rbd_rename(session.pool, temp, name);
    if (r == -EEXIST) {
        return volume_taken(volume, errp);
    }
    return r < 0 ? fail(&session, r, "cannot give the image its name", errp)
                 : 0;
}

static int rbd_take_away(struct volume *volume, const char *temp,
                         const char *identity, struct err **errp)
{
    _cleanup_(rbd_session_done) struct rbd_session session = {0};
    int r = rbd_session_open(&session, volume, errp);
    if (r == 0 && temp != NULL) {
        r = remove_image(&session, temp, NULL, errp);
    }
    if (r == 0 && identity != NULL) {
        r = remove_image(&session, rbd_of(volume)->image, identity, errp);
    }
    return r;
}

const struct backend_ops backend_rbd = {
    .scheme = "rbd",
    .title = "RBD image",
    .flags =
        BACKEND_CREATES | BACKEND_LEGACY_NAME | BACKEND_COARSE | BACKEND_STALLS,
    .parse = rbd_volume_parse,
    .from_node = rbd_volume_from_node,
    .free = rbd_volume_free,
    .node_options = rbd_volume_node_options,
    .legacy_name = rbd_volume_legacy_name,
    .probe = rbd_probe,
    .answer = rbd_answer,
    .create = rbd_make,
    .publish = rbd_publish,
    .remove = rbd_take_away,
    .secret = rbd_volume_secret,
    .bulk = &bulk_rbd,
};

int rbd_session_open(struct rbd_session *session, const struct volume *volume,
                     struct err **errp)
{
    session->rbd = rbd_of(volume);
    _cleanup_free_ char *place = place_of(session->rbd);
    if (place == NULL) {
        return -ENOMEM;
    }
    if (share_cluster(session, place)) {
        return open_pool(session, errp);
    }
    int r = rados_create(&session->cluster, session->rbd->id);
    if (r < 0) {
        session->cluster = NULL;
        return fail(session, r, "cannot set up a Ceph client", errp);
    }
    r = configure(session, errp);
    if (r == 0) {
        r = connect_cluster(session, errp);
    }
    if (r == 0) {
        offer_cluster(session, TAKE_PTR(place));
    }
    return r == 0 ? open_pool(session, errp) : r;
}

void rbd_session_done(struct rbd_session *session)
{
    if (session->pool != NULL) {
        rados_ioctx_destroy(session->pool);
    }
    if (session->cluster != NULL && leave_cluster(session->shared)) {
        rados_shutdown(session->cluster);
    }
}

int rbd_hold(const struct volume *volume, void **ret, struct err **errp)
{
    struct rbd_session *session = calloc(1, sizeof(*session));
    if (session == NULL) {
        return -ENOMEM;
    }
    int r = rbd_session_open(session, volume, errp);
    if (r < 0) {
        rbd_release(session);
        return r;
    }
    *ret = session;
    return 0;
}

void rbd_release(void *held)
{
    rbd_session_done(held);
    free(held);
}

static bool share_cluster(struct rbd_session *session, const char *place)
{
    (void)pthread_mutex_lock(&clusters_lock);
    struct rbd_cluster *shared = clusters;
    while (shared != NULL && !str_eq(shared->place, place)) {
        shared = shared->next;
    }
    if (shared != NULL) {
        shared->refs++;
        session->shared = shared;
        session->cluster = shared->handle;
    }
    (void)pthread_mutex_unlock(&clusters_lock);
    return shared != NULL;
}

/* Without memory it is this session's alone. */
static void offer_cluster(struct rbd_session *session, char *place)
{
    struct rbd_cluster *shared = calloc(1, sizeof(*shared));
    if (shared == NULL) {
        free(place);
        return;
    }
    shared->handle = session->cluster;
    shared->place = place;
    shared->refs = 1;
    session->shared = shared;
    (void)pthread_mutex_lock(&clusters_lock);
    shared->next = clusters;
    clusters = shared;
    (void)pthread_mutex_unlock(&clusters_lock);
}

/* True: nobody else has it. */
static bool leave_cluster(struct rbd_cluster *shared)
{
    if (shared == NULL) {
        return true;
    }
    (void)pthread_mutex_lock(&clusters_lock);
    bool last = --shared->refs == 0;
    if (last) {
        struct rbd_cluster **at = &clusters;
        while (*at != shared) {
            at = &(*at)->next;
        }
        *at = shared->next;
        free(shared->place);
        free(shared);
    }
    (void)pthread_mutex_unlock(&clusters_lock);
    return last;
}

static char *place_of(const struct rbd_volume *rbd)
{
    return str_printf("%s\n%s\n%s", rbd->conf != NULL ? rbd->conf : "",
                      rbd->id != NULL ? rbd->id : "",
                      rbd->keyring != NULL ? rbd->keyring : "");
}

static int configure(const struct rbd_session *session, struct err **errp)
{
    const struct rbd_volume *rbd = session->rbd;
    int r = rados_conf_read_file(session->cluster, rbd->conf);
    if (r < 0 && rbd->conf != NULL) {
        return volume_fail(errp, &rbd->volume, r,
                           "cannot read Ceph configuration '%s'", rbd->conf);
    }
    char monitors[8] = "";
    int m = rados_conf_get(session->cluster, "mon_host", monitors,
                           sizeof(monitors));
    if (r < 0 && m == 0 && *monitors == '\0') {
        /* librados would look in the DNS and print that it found nothing. */
        (void)err_set(errp, r, rbd->volume.name,
                      "no Ceph configuration and so no monitor found");
        err_hint(errp, "name it: conf=/PATH/ceph.conf");
        return r;
    }
    const char *const settings[][2] = {
  /* The library's user decides what is printed. */
        {"log_to_stderr",                "false"    },
        {"err_to_stderr",                "false"    },
        {"client_mount_timeout",         RBD_TIMEOUT},
        {"rados_mon_op_timeout",         RBD_TIMEOUT},
        {"rados_osd_op_timeout",         RBD_TIMEOUT},
 /* Each byte passes once: a cache is but one more copy of it. */
        {"rbd_cache",                    "false"    },
        {"rbd_disable_zero_copy_writes", "false"    },
    };
    for (size_t i = 0; i < ARRAY_SIZE(settings); i++) {
        r = rados_conf_set(session->cluster, settings[i][0], settings[i][1]);
        if (r < 0) {
            return fail(session, r, "cannot configure the Ceph client", errp);
        }
    }
    if (rbd->keyring == NULL) {
        return 0;
    }
    if (access(rbd->keyring, R_OK) < 0) {
        return volume_fail(errp, &rbd->volume, -errno,
                           "cannot open keyring '%s'", rbd->keyring);
    }
    r = rados_conf_set(session->cluster, "keyring", rbd->keyring);
    return r < 0 ? fail(session, r, "cannot configure the keyring", errp) : 0;
}

static int connect_cluster(struct rbd_session *session, struct err **errp)
{
    const struct rbd_volume *rbd = session->rbd;
    int r = rados_connect(session->cluster);
    if (r == 0) {
        return 0;
    }
    const char *id = rbd->id != NULL ? rbd->id : "admin";
    const char *conf = rbd->conf != NULL ? rbd->conf : "Ceph's default places";
    switch (r) {
    case -EACCES:
    case -EPERM:
        (void)err_set(errp, r, rbd->volume.name,
                      "the cluster refuses client.%s", id);
        err_hint(errp,
                 "the key must be the one that 'ceph auth get client.%s'"
                 " tells",
                 id);
        return r;
    case -ENOENT:
    case -EINVAL:
    case -EIO:
        (void)err_set(errp, r, rbd->volume.name,
                      r == -ENOENT
                          ? "no key of client.%s or no monitor address found"
                          : "the key of client.%s or the configuration is "
                            "not usable",
                      id);
        err_hint(errp, "looked in the configuration (%s) and the keyring (%s)",
                 conf, rbd->keyring != NULL ? rbd->keyring : "as configured");
        return r;
    case -ETIMEDOUT:
        return err_set(errp, r, rbd->volume.name,
                       "no monitor of the cluster answers within " RBD_TIMEOUT
                       " s");
    default:
        return fail(session, r, "cannot connect to the cluster", errp);
    }
}

static int open_pool(struct rbd_session *session, struct err **errp)
{
    const struct rbd_volume *rbd = session->rbd;
    int r = rados_ioctx_create(session->cluster, rbd->pool, &session->pool);
    if (r < 0) {
        session->pool = NULL;
        return r == -ENOENT ? err_set(errp, r, rbd->volume.name,
                                      "the cluster has no pool '%s'", rbd->pool)
                            : fail(session, r, "cannot use the pool", errp);
    }
    if (rbd->space == NULL) {
        return 0;
    }
    bool exists = false;
    r = rbd_namespace_exists(session->pool, rbd->space, &exists);
    if (r < 0) {
        return fail(session, r, "cannot look for the namespace", errp);
    }
    if (!exists) {
        (void)err_set(errp, -ENOENT, rbd->volume.name,
                      "pool '%s' has no namespace '%s'", rbd->pool, rbd->space);
        err_hint(errp, "rbd namespace create %s/%s", rbd->pool, rbd->space);
        return -ENOENT;
    }
    rados_ioctx_set_namespace(session->pool, rbd->space);
    return 0;
}

static int fail(const struct rbd_session *session, int code, const char *what,
                struct err **errp)
{
    const struct volume *volume = &session->rbd->volume;
    if (code == -ETIMEDOUT) {
        return err_set(errp, code, volume->name,
                       "%s: no answer within " RBD_TIMEOUT " s", what);
    }
    return volume_fail(errp, volume, code, "%s", what);
}

/* -ENOENT without a message if there is nothing. */
static int look(const struct rbd_session *session, const char *name,
                struct volume_info *ret, struct err **errp)
{
    volume_info_init(ret);
    rbd_image_t image = NULL;
    /* Read-only: no watch of our own, and no lock taken from its user. */
    int r = rbd_open_read_only(session->pool, name, &image, NULL);
    if (r == -ENOENT) {
        return r;
    }
    if (r < 0) {
        return fail(session, r, "cannot open the image", errp);
    }
    r = look_open(session, image, ret);
    (void)rbd_close(image);
    return r < 0 ? fail(session, r, "cannot look at the image", errp) : 0;
}

static int look_open(const struct rbd_session *session, rbd_image_t image,
                     struct volume_info *ret)
{
    ret->exists = true;
    ret->block_size = 512;
    int r = rbd_get_size(image, &ret->size);
    if (r == 0) {
        r = look_identity(session, image, ret);
    }
    if (r == 0) {
        r = look_watchers(image, ret);
    }
    if (r < 0) {
        return r;
    }
    char head[FORMAT_HEAD];
    size_t length = ret->size < sizeof(head) ? (size_t)ret->size : sizeof(head);
    ssize_t n = rbd_read(image, 0, length, head);
    if (n < 0) {
        return (int)n;
    }
    volume_info_format(ret, head, (size_t)n);
    look_allocated(image, ret);
    return 0;
}

static int look_identity(const struct rbd_session *session, rbd_image_t image,
                         struct volume_info *ret)
{
    const struct rbd_volume *rbd = session->rbd;
    char fsid[40] = "";
    char id[64] = "";
    int r = rados_cluster_fsid(session->cluster, fsid, sizeof(fsid));
    if (r >= 0) {
        r = rbd_get_id(image, id, sizeof(id));
    }
    if (r < 0) {
        return r;
    }
    int n = snprintf(ret->identity, sizeof(ret->identity), "rbd:%s/%s%s%s/%s",
                     fsid, rbd->pool, rbd->space != NULL ? "/" : "",
                     rbd->space != NULL ? rbd->space : "", id);
    /* A name that was cut could be equal to another one's. */
    return (size_t)n < sizeof(ret->identity) ? 0 : -ENAMETOOLONG;
}

/* Whoever has it open for writing watches its header (30 s after its death
 * still). */
static int look_watchers(rbd_image_t image, struct volume_info *ret)
{
    rbd_image_watcher_t watchers[16];
    size_t count = ARRAY_SIZE(watchers);
    int r = rbd_watchers_list(image, watchers, &count);
    if (r == -ERANGE) {
        ret->in_use = true;
        (void)snprintf(ret->in_use_by, sizeof(ret->in_use_by), "%zu clients",
                       count);
        return 0;
    }
    if (r < 0) {
        return r;
    }
    if (count > 0) {
        ret->in_use = true;
        (void)snprintf(ret->in_use_by, sizeof(ret->in_use_by),
                       "client.%lld at %.48s", (long long)watchers[0].id,
                       watchers[0].addr);
    }
    rbd_watchers_list_cleanup(watchers, count);
    return 0;
}

static int add_extent(_unused_ uint64_t offset, size_t length, int exists,
                      void *data)
{
    uint64_t *sum = data;
    *sum += exists ? length : 0;
    return 0;
}

/*
 * Only where the object map knows, as asking each object would take minutes;
 * and the map of 4 TiB takes half a second.
 */
static void look_allocated(rbd_image_t image, struct volume_info *ret)
{
    uint64_t features = 0;
    uint64_t flags = 0;
    uint64_t sum = 0;
    rbd_image_info_t info;
    if (rbd_stat(image, &info, sizeof(info)) < 0 ||
        info.num_objs > RBD_OBJECTS_MAX ||
        rbd_get_features(image, &features) < 0 ||
        rbd_get_flags(image, &flags) < 0 ||
        (features & RBD_FEATURE_FAST_DIFF) == 0 ||
        (flags & RBD_FLAG_FAST_DIFF_INVALID) != 0) {
        return;
    }
    if (rbd_diff_iterate2(image, NULL, 0, ret->size, 0, 1, add_extent, &sum) ==
        0) {
        ret->allocated = sum;
    }
}

/* What "ceph df" calls MAX AVAIL: replication and the fullest OSD are in it. */
static void look_space(const struct rbd_session *session,
                       struct volume_info *ret)
{
    const char *command = "{\"prefix\":\"df\",\"format\":\"json\"}";
    char *out = NULL;
    char *status = NULL;
    size_t out_length = 0;
    size_t status_length = 0;
    int r = rados_mon_command(session->cluster, &command, 1, "", 0, &out,
                              &out_length, &status, &status_length);
    if (r < 0) {
        return;
    }
    json_auto_t *reply = json_loadb(out, out_length, 0, NULL);
    const json_t *pools = json_object_get(reply, "pools");
    size_t i = 0;
    const json_t *pool = NULL;
    json_array_foreach(pools, i, pool) {
        const json_t *available =
            json_object_get(json_object_get(pool, "stats"), "max_avail");
        if (str_eq(json_string_value(json_object_get(pool, "name")),
                   session->rbd->pool) &&
            json_is_integer(available)) {
            ret->available = (uint64_t)json_integer_value(available);
            char fsid[40] = "";
            (void)rados_cluster_fsid(session->cluster, fsid, sizeof(fsid));
            (void)snprintf(ret->space, sizeof(ret->space), "rbd:%s/%.40s", fsid,
                           session->rbd->pool);
        }
    }
    rados_buffer_free(out);
    rados_buffer_free(status);
}

/*
 * Every new image has an object of this name. A write that asserts that it is
 * there, and makes it only if it is not, fails whoever makes or breaks the
 * image meanwhile; but it is refused before that to who may only read.
 */
static bool may_create(const struct rbd_session *session, const char *image)
{
    _cleanup_free_ char *object = str_printf("rbd_id.%s", image);
    rados_write_op_t write = rados_create_write_op();
    int r = -ENOMEM;
    if (object != NULL && write != NULL) {
        rados_write_op_assert_exists(write);
        rados_write_op_create(write, LIBRADOS_CREATE_EXCLUSIVE, NULL);
        r = rados_write_op_operate(write, session->pool, object, NULL,
                                   LIBRADOS_OPERATION_FULL_TRY);
    }
    if (write != NULL) {
        rados_release_write_op(write);
    }
    return r != -EPERM && r != -EACCES;
}

static int make(const struct rbd_session *session, const char *image,
                uint64_t size, struct err **errp)
{
    rbd_image_options_t options = NULL;
    rbd_image_options_create(&options);
    /* No options: format 2 and the cluster's default features. */
    int r = rbd_create4(session->pool, image, size, options);
    rbd_image_options_destroy(options);
    return r < 0 ? fail(session, r, "cannot create an image", errp) : 0;
}

/* identity NULL: by its name alone. Nothing there is success. */
/*
 * Whether the pool's directory has the name; of a known image only, if
 * 'identity' is given. Its entry is what librbd removes last.
 */
static int is_listed(const struct rbd_session *session, const char *name,
                     const char *identity)
{
    rbd_image_spec_t *images = NULL;
    size_t n = 0;
    int r = rbd_list2(session->pool, NULL, &n);
    while (r == -ERANGE) {
        free(images);
        images = calloc(n, sizeof(*images));
        r = images != NULL ? rbd_list2(session->pool, images, &n) : -ENOMEM;
    }
    bool found = false;
    for (size_t i = 0; r >= 0 && i < n; i++) {
        const char *id = identity != NULL ? strrchr(identity, '/') : NULL;
        found = found || (str_eq(images[i].name, name) &&
                          (id == NULL || str_eq(images[i].id, id + 1)));
    }
    if (r >= 0) {
        rbd_image_spec_list_cleanup(images, n);
    }
    free(images);
    return r < 0 ? r : found;
}

static int remove_image(const struct rbd_session *session, const char *name,
                        const char *identity, struct err **errp)
{
    const struct volume *volume = &session->rbd->volume;
    struct volume_info info;
    int r = look(session, name, &info, errp);
    if (r == -ENOENT) {
        /* Making or removing it may have been cut short. */
        r = is_listed(session, name, identity);
        r = r > 0 ? rbd_remove(session->pool, name) : r;
        return r >= 0 || r == -ENOENT
                   ? 0
                   : fail(session, r, "cannot remove what is left of the image",
                          errp);
    }
    if (r < 0) {
        return r;
    }
    if (identity != NULL && !str_eq(info.identity, identity)) {
        return err_set(errp, -ESTALE, volume->name,
                       "'%s' is another image by now: not removed", name);
    }
    if (info.in_use) {
        return err_set(errp, -EBUSY, volume->name,
                       "'%s' is in use by %s: not removed", name,
                       info.in_use_by);
    }
    r = rbd_remove(session->pool, name);
    if (r == -ENOTEMPTY) {
        (void)err_set(errp, r, volume->name, "'%s' has snapshots: not removed",
                      name);
        return r;
    }
    return r == 0 || r == -ENOENT
               ? 0
               : fail(session, r, "cannot remove the image", errp);
}
