/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What an RBD volume is made of; shared by the files of this kind only. */
#pragma once

#include <rados/librados.h>

#include "volume.h"

struct rbd_volume {
    struct volume volume;
    char *pool;
    char *space; /* RBD namespace, or NULL */
    char *image;
    char *conf;    /* path, or NULL: where Ceph looks by itself */
    char *id;      /* "admin" of client.admin, or NULL: admin */
    char *keyring; /* path, or NULL: what the configuration says */
};

static inline const struct rbd_volume *rbd_of(const struct volume *volume)
{
    return (const struct rbd_volume *)volume; /* its first member */
}

/* rbd-node.c: the pure half, and reading the keyring */
int rbd_volume_parse(const char *text, struct volume **ret, struct err **errp);
void rbd_volume_free(struct volume *volume);
int rbd_volume_from_node(const char *driver, const char *filename,
                         struct volume **ret);
json_t *rbd_volume_node_options(const struct volume *volume,
                                const char *secret_id);
char *rbd_volume_legacy_name(const struct volume *volume);
int rbd_volume_secret(struct volume *volume, char **ret, struct err **errp);

struct rbd_cluster;

/* rbd-cluster.c: a connection, to the volume's pool and namespace */
struct rbd_session {
    const struct rbd_volume *rbd;
    struct rbd_cluster *shared;
    rados_t cluster;
    rados_ioctx_t pool;
};

/* On failure too it wants rbd_session_done(), which may block. */
int rbd_session_open(struct rbd_session *session, const struct volume *volume,
                     struct err **errp);
/* Something has failed by its connection: nobody else is to use it. */
void rbd_session_doubt(const struct rbd_session *session);
void rbd_session_done(struct rbd_session *session);
/* A call of librbd or librados has failed: says so, and doubts the session. */
int rbd_session_fail(const struct rbd_session *session, int code,
                     const char *what, struct err **errp);
/* hold, release, is_good and doubt of the bulk channel */
int rbd_hold(const struct volume *volume, void **ret, struct err **errp);
void rbd_release(void *held);
bool rbd_is_good(void *held);
void rbd_doubt(const struct volume *volume);
