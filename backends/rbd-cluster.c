/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Connections to Ceph clusters. All acts share one to a cluster, as long as
 * one of them is under way or somebody holds it; a lost cluster is an error of
 * the next act after RBD_TIMEOUT. A connection that something has failed by,
 * or may hang in, is given to nobody any more and closed by the last who uses
 * it: whoever hangs in there keeps it.
 */
#include <errno.h>
#include <pthread.h>
#include <rbd/librbd.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/err.h"
#include "base/str.h"
#include "rbd.h"

/* Seconds, for finding the monitors and for each call to them and to OSDs. */
#define RBD_TIMEOUT "10"

/* A connection takes a dozen threads and some 50 ms. */
struct rbd_cluster {
    rados_t handle;
    char *place; /* configuration, user and keyring */
    /* Under the lock. */
    struct rbd_cluster *next;
    bool listed; /* whoever wants this place gets it */
    unsigned refs;
};

static pthread_mutex_t clusters_lock = PTHREAD_MUTEX_INITIALIZER;
static struct rbd_cluster *clusters;

static int join_cluster(struct rbd_session *session, struct err **errp);
static struct rbd_cluster *find_cluster(const char *place);
static void list_cluster(struct rbd_session *session);
static void leave_cluster(struct rbd_cluster *cluster);
static void unlist(struct rbd_cluster *cluster);
static char *place_of(const struct rbd_volume *rbd);
static int configure(const struct rbd_session *session, struct err **errp);
static int connect_cluster(struct rbd_session *session, struct err **errp);
static int open_pool(struct rbd_session *session, struct err **errp);

int rbd_session_open(struct rbd_session *session, const struct volume *volume,
                     struct err **errp)
{
    session->rbd = rbd_of(volume);
    int r = join_cluster(session, errp);
    return r == 0 ? open_pool(session, errp) : r;
}

void rbd_session_doubt(const struct rbd_session *session)
{
    (void)pthread_mutex_lock(&clusters_lock);
    unlist(session->shared);
    (void)pthread_mutex_unlock(&clusters_lock);
}

void rbd_session_done(struct rbd_session *session)
{
    if (session->pool != NULL) {
        rados_ioctx_destroy(session->pool);
    }
    leave_cluster(session->shared);
}

int rbd_session_fail(const struct rbd_session *session, int code,
                     const char *what, struct err **errp)
{
    const struct volume *volume = &session->rbd->volume;
    rbd_session_doubt(session);
    if (code == -ETIMEDOUT) {
        return err_set(errp, code, volume->name,
                       "%s: no answer within " RBD_TIMEOUT " s", what);
    }
    return volume_fail(errp, volume, code, "%s", what);
}

int rbd_hold(const struct volume *volume, void **ret, struct err **errp)
{
    struct rbd_session session = {.rbd = rbd_of(volume)};
    int r = join_cluster(&session, errp);
    if (r < 0) {
        rbd_session_done(&session);
        return r;
    }
    *ret = session.shared;
    return 0;
}

void rbd_release(void *held)
{
    leave_cluster(held);
}

bool rbd_is_good(void *held)
{
    const struct rbd_cluster *cluster = held;
    (void)pthread_mutex_lock(&clusters_lock);
    bool listed = cluster->listed;
    (void)pthread_mutex_unlock(&clusters_lock);
    return listed;
}

/* Without memory nobody's is good any more. */
void rbd_doubt(const struct volume *volume)
{
    _cleanup_free_ char *place = place_of(rbd_of(volume));
    (void)pthread_mutex_lock(&clusters_lock);
    struct rbd_cluster *next = NULL;
    for (struct rbd_cluster *at = clusters; at != NULL; at = next) {
        next = at->next;
        if (place == NULL || str_eq(at->place, place)) {
            unlist(at);
        }
    }
    (void)pthread_mutex_unlock(&clusters_lock);
}

static int join_cluster(struct rbd_session *session, struct err **errp)
{
    _cleanup_free_ char *place = place_of(session->rbd);
    if (place == NULL) {
        return -ENOMEM;
    }
    (void)pthread_mutex_lock(&clusters_lock);
    session->shared = find_cluster(place);
    (void)pthread_mutex_unlock(&clusters_lock);
    if (session->shared != NULL) {
        session->cluster = session->shared->handle;
        return 0;
    }
    struct rbd_cluster *own = calloc(1, sizeof(*own));
    if (own == NULL) {
        return -ENOMEM;
    }
    own->place = TAKE_PTR(place);
    own->refs = 1;
    session->shared = own;
    int r = rados_create(&own->handle, session->rbd->id);
    if (r < 0) {
        own->handle = NULL;
        return rbd_session_fail(session, r, "cannot set up a Ceph client",
                                errp);
    }
    session->cluster = own->handle;
    r = configure(session, errp);
    if (r == 0) {
        r = connect_cluster(session, errp);
    }
    if (r == 0) {
        list_cluster(session);
    }
    return r;
}

/* Under the lock; a new reference, or NULL. */
static struct rbd_cluster *find_cluster(const char *place)
{
    struct rbd_cluster *found = clusters;
    while (found != NULL && !str_eq(found->place, place)) {
        found = found->next;
    }
    if (found != NULL) {
        found->refs++;
    }
    return found;
}

/* Two may have connected at the same time: the second takes the first's. */
static void list_cluster(struct rbd_session *session)
{
    struct rbd_cluster *own = session->shared;
    (void)pthread_mutex_lock(&clusters_lock);
    struct rbd_cluster *found = find_cluster(own->place);
    if (found == NULL) {
        own->listed = true;
        own->next = clusters;
        clusters = own;
    }
    (void)pthread_mutex_unlock(&clusters_lock);
    if (found != NULL) {
        session->shared = found;
        session->cluster = found->handle;
        leave_cluster(own);
    }
}

static void leave_cluster(struct rbd_cluster *cluster)
{
    if (cluster == NULL) {
        return;
    }
    (void)pthread_mutex_lock(&clusters_lock);
    bool last = --cluster->refs == 0;
    if (last) {
        unlist(cluster);
    }
    (void)pthread_mutex_unlock(&clusters_lock);
    if (last) {
        if (cluster->handle != NULL) {
            rados_shutdown(cluster->handle);
        }
        free(cluster->place);
        free(cluster);
    }
}

/* Under the lock; NULL: there is none. */
static void unlist(struct rbd_cluster *cluster)
{
    if (cluster == NULL || !cluster->listed) {
        return;
    }
    struct rbd_cluster **at = &clusters;
    while (*at != cluster) {
        at = &(*at)->next;
    }
    *at = cluster->next;
    cluster->listed = false;
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
            return rbd_session_fail(session, r,
                                    "cannot configure the Ceph client", errp);
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
    return r < 0 ? rbd_session_fail(session, r, "cannot configure the keyring",
                                    errp)
                 : 0;
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
        return rbd_session_fail(session, r, "cannot connect to the cluster",
                                errp);
    }
}

static int open_pool(struct rbd_session *session, struct err **errp)
{
    const struct rbd_volume *rbd = session->rbd;
    int r = rados_ioctx_create(session->cluster, rbd->pool, &session->pool);
    if (r < 0) {
        session->pool = NULL;
        return r == -ENOENT
                   ? err_set(errp, r, rbd->volume.name,
                             "the cluster has no pool '%s'", rbd->pool)
                   : rbd_session_fail(session, r, "cannot use the pool", errp);
    }
    if (rbd->space == NULL) {
        return 0;
    }
    bool exists = false;
    r = rbd_namespace_exists(session->pool, rbd->space, &exists);
    if (r < 0) {
        return rbd_session_fail(session, r, "cannot look for the namespace",
                                errp);
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
