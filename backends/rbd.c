/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * RBD images through librbd, by the connections of rbd-cluster.c.
 *
 * Identity: "rbd:<fsid>/<pool>[/<namespace>]/<image id>": the id stays with
 * an image when it is renamed, and no other image of the pool gets it.
 */
#include "rbd.h"

#include <errno.h>
#include <rbd/librbd.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/err.h"
#include "base/str.h"
#include "bulk.h"
#include "registry.h"

enum { RBD_OBJECTS_MAX = 1 << 20, RBD_LAST = 512 };

static int ask_monitor(const struct rbd_session *session, struct err **errp);
static int look(const struct rbd_session *session, const char *image,
                struct volume_info *ret, struct err **errp);
static int look_open(const struct rbd_session *session, rbd_image_t image,
                     struct volume_info *ret);
static int look_identity(const struct rbd_session *session, rbd_image_t image,
                         struct volume_info *ret);
static int look_watchers(const struct rbd_session *session, rbd_image_t image,
                         struct volume_info *ret);
static int count_answers(const struct rbd_session *session, rbd_image_t image);
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
    if (r == 0) {
        r = ask_monitor(&session, errp);
    }
    if (r < 0) {
        return r;
    }
    r = rbd_open_read_only(session.pool, rbd_of(volume)->image, &image, NULL);
    if (r == -ENOENT) {
        return 0; /* it answers: there is no such image */
    }
    if (r < 0) {
        return rbd_session_fail(&session, r, "cannot open the image", errp);
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
    return r < 0 ? rbd_session_fail(&session, r, "cannot read the image", errp)
                 : 0;
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
    return r < 0 ? rbd_session_fail(&session, r,
                                    "cannot give the image its name", errp)
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

struct monitor_reply {
    char *out;
    size_t length;
    char *status;
};

static void monitor_reply_done(struct monitor_reply *reply)
{
    rados_buffer_free(reply->out);
    rados_buffer_free(reply->status);
}

#define _cleanup_monitor_ _cleanup_(monitor_reply_done)

static int monitor_command(const struct rbd_session *session,
                           const char *command, struct monitor_reply *ret)
{
    size_t length = 0; /* of the words for people */
    return rados_mon_command(session->cluster, &command, 1, "", 0, &ret->out,
                             &ret->length, &ret->status, &length);
}

/*
 * OSDs alone answer on for a while, to who is connected already. Whatever a
 * monitor says, that it may not be asked this too, shows that it is there.
 */
static int ask_monitor(const struct rbd_session *session, struct err **errp)
{
    _cleanup_monitor_ struct monitor_reply reply = {0};
    int r = monitor_command(session, "{\"prefix\":\"fsid\"}", &reply);
    return r == -ETIMEDOUT || r == -ENOTCONN || r == -ESHUTDOWN
               ? rbd_session_fail(session, r, "cannot ask a monitor", errp)
               : 0;
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
        return rbd_session_fail(session, r, "cannot open the image", errp);
    }
    r = look_open(session, image, ret);
    (void)rbd_close(image);
    return r < 0
               ? rbd_session_fail(session, r, "cannot look at the image", errp)
               : 0;
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
        r = look_watchers(session, image, ret);
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
static int look_watchers(const struct rbd_session *session, rbd_image_t image,
                         struct volume_info *ret)
{
    rbd_image_watcher_t watchers[16];
    size_t count = ARRAY_SIZE(watchers);
    int r = rbd_watchers_list(image, watchers, &count);
    if (r < 0 && r != -ERANGE) {
        return r;
    }
    ret->in_use = count > 0;
    if (r == -ERANGE) {
        (void)snprintf(ret->in_use_by, sizeof(ret->in_use_by), "%zu clients",
                       count);
    } else if (count > 0) {
        (void)snprintf(ret->in_use_by, sizeof(ret->in_use_by),
                       "client.%lld at %.48s", (long long)watchers[0].id,
                       watchers[0].addr);
    }
    if (r == 0) {
        rbd_watchers_list_cleanup(watchers, count);
    }
    int live = count > 1 ? count_answers(session, image) : (int)count;
    ret->holders = live > 0 ? (unsigned)live : 0;
    return 0;
}

/*
 * Of several watchers those that live: an empty notification has each of them
 * read the header again, nothing more, and the dead do not answer (librbd,
 * ImageWatcher::handle_notify). Negative: unknown.
 */
static int count_answers(const struct rbd_session *session, rbd_image_t image)
{
    enum { ANSWER_MS = 3000 };

    char id[64] = "", object[80], *reply = NULL;
    size_t length = 0, n_acks = 0, n_late = 0;
    struct notify_ack_t *acks = NULL;
    struct notify_timeout_t *late = NULL;
    int live = -1;
    if (rbd_get_id(image, id, sizeof(id)) < 0) {
        return live;
    }
    (void)snprintf(object, sizeof(object), "rbd_header.%s", id);
    int r =
        rados_notify2(session->pool, object, "", 0, ANSWER_MS, &reply, &length);
    if ((r == 0 || r == -ETIMEDOUT) && reply != NULL &&
        rados_decode_notify_response(reply, length, &acks, &n_acks, &late,
                                     &n_late) == 0) {
        rados_free_notify_response(acks, n_acks, late);
        live = (int)n_acks;
    }
    rados_buffer_free(reply);
    return live;
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
    _cleanup_monitor_ struct monitor_reply reply = {0};
    int r = monitor_command(session, "{\"prefix\":\"df\",\"format\":\"json\"}",
                            &reply);
    if (r < 0) {
        rbd_session_doubt(session);
        return;
    }
    json_auto_t *json = json_loadb(reply.out, reply.length, 0, NULL);
    const json_t *pools = json_object_get(json, "pools");
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
    if (r == -ETIMEDOUT) {
        rbd_session_doubt(session);
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
    return r < 0 ? rbd_session_fail(session, r, "cannot create an image", errp)
                 : 0;
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

/* Whether all that are said to have it open are dead for sure. */
static bool is_of_the_dead(const struct rbd_session *session, const char *name)
{
    rbd_image_t image = NULL;
    bool dead = false;
    if (rbd_open_read_only(session->pool, name, &image, NULL) == 0) {
        dead = count_answers(session, image) == 0;
        (void)rbd_close(image);
    }
    return dead;
}

/*
 * librbd removes nothing that is watched, and who was killed, like the engine
 * before us in the middle of this, watches for half a minute yet.
 */
static int look_without_dead(const struct rbd_session *session,
                             const char *name, struct volume_info *ret,
                             struct err **errp)
{
    enum { LOOKS = 15 };

    const struct timespec second = {.tv_sec = 1};
    int r = look(session, name, ret, errp);
    for (int i = 0; i < LOOKS && r == 0 && ret->in_use; i++) {
        if (!is_of_the_dead(session, name)) {
            break;
        }
        (void)nanosleep(&second, NULL);
        r = look(session, name, ret, errp);
    }
    return r;
}

static int remove_image(const struct rbd_session *session, const char *name,
                        const char *identity, struct err **errp)
{
    const struct volume *volume = &session->rbd->volume;
    struct volume_info info;
    int r = look_without_dead(session, name, &info, errp);
    if (r == -ENOENT) {
        /* Making or removing it may have been cut short. */
        r = is_listed(session, name, identity);
        r = r > 0 ? rbd_remove(session->pool, name) : r;
        return r >= 0 || r == -ENOENT
                   ? 0
                   : rbd_session_fail(session, r,
                                      "cannot remove what is left of the image",
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
               : rbd_session_fail(session, r, "cannot remove the image", errp);
}
