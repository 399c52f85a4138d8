/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * All storage kinds by the scheme of their URI. It knows which of them this
 * build has, and nothing of what they do.
 */
#include "registry.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "backend.h"
#include "base/err.h"
#include "base/str.h"
#include "uri.h"

#ifndef HAVE_NFS
static const struct backend_ops absent_nfs = {
    .scheme = "nfs", .title = "NFS file", .needs = "libnfs-dev"};
#endif
#ifndef HAVE_RBD
static const struct backend_ops absent_rbd = {
    .scheme = "rbd",
    .title = "RBD image",
    .needs = "librbd-dev and librados-dev"};
#endif
#ifndef HAVE_NBD
static const struct backend_ops absent_nbd = {
    .scheme = "nbd", .title = "NBD export", .needs = "libnbd-dev"};
#endif
#ifndef HAVE_LINSTOR
static const struct backend_ops absent_linstor = {.scheme = "linstor",
                                                  .title = "LINSTOR resource",
                                                  .needs =
                                                      "libcurl4-openssl-dev"};
#endif

const struct backend_ops *const backends[] = {
    &backend_file,
    &backend_drbd, /* before block: it knows its devices by their links */
    &backend_block,
#ifdef HAVE_NFS
    &backend_nfs,
#else
    &absent_nfs,
#endif
#ifdef HAVE_RBD
    &backend_rbd,
#else
    &absent_rbd,
#endif
#ifdef HAVE_NBD
    &backend_nbd,
#else
    &absent_nbd,
#endif
#ifdef HAVE_LINSTOR
    &backend_linstor,
#else
    &absent_linstor,
#endif
    NULL,
};

static const struct backend_ops *extra;

static const struct backend_ops *find(const char *scheme);
static int refuse_scheme(const struct uri *uri, struct err **errp);
static int refuse_absent(const struct uri *uri, const struct backend_ops *ops,
                         struct err **errp);

int volume_parse(const char *uri, struct volume **ret, struct err **errp)
{
    _cleanup_uri_ struct uri split = {0};
    int r = uri_split(uri, &split, errp);
    if (r < 0) {
        return r;
    }
    const struct backend_ops *ops = find(split.scheme);
    if (ops == NULL) {
        return refuse_scheme(&split, errp);
    }
    if (ops->parse == NULL) {
        return refuse_absent(&split, ops, errp);
    }
    return ops->parse(uri, ret, errp);
}

int volume_from_node(const char *driver, const char *filename,
                     struct volume **ret)
{
    int r = -ENOENT;
    if (extra != NULL) {
        r = extra->from_node(driver, filename, ret);
    }
    for (unsigned i = 0; r == -ENOENT && backends[i] != NULL; i++) {
        if (backends[i]->from_node != NULL) {
            r = backends[i]->from_node(driver, filename, ret);
        }
    }
    return r;
}

struct volume *volume_free(struct volume *volume)
{
    if (volume != NULL) {
        volume->ops->free(volume);
    }
    return NULL;
}

void registry_add_for_tests(const struct backend_ops *ops)
{
    extra = ops;
}

/* "nbd+unix:" is a way to reach an NBD server, not another storage kind. */
static const struct backend_ops *find(const char *scheme)
{
    size_t length = strcspn(scheme, "+");
    if (extra != NULL && str_eq(scheme, extra->scheme)) {
        return extra;
    }
    for (unsigned i = 0; backends[i] != NULL; i++) {
        const char *known = backends[i]->scheme;
        if (strlen(known) == length && memcmp(known, scheme, length) == 0 &&
            (scheme[length] == '\0' || str_eq(scheme, "nbd+unix"))) {
            return backends[i];
        }
    }
    return NULL;
}

static int refuse_scheme(const struct uri *uri, struct err **errp)
{
    (void)err_set(errp, -EINVAL, uri->object, "unknown kind of volume '%.32s:'",
                  uri->scheme);
    char known[128] = "";
    char *end = known;
    for (unsigned i = 0; backends[i] != NULL; i++) {
        size_t left = sizeof(known) - (size_t)(end - known);
        if (backends[i]->parse != NULL) {
            end += snprintf(end, left, " %s:", backends[i]->scheme);
        }
    }
    err_hint(errp,
             "known are a PATH and%s; a relative path with a ':' is "
             "written ./PATH",
             known);
    return -EINVAL;
}

static int refuse_absent(const struct uri *uri, const struct backend_ops *ops,
                         struct err **errp)
{
    (void)err_set(errp, -ENOTSUP, uri->object,
                  "this build does not support %ss", ops->title);
    err_hint(errp, "install %s and build again", ops->needs);
    return -ENOTSUP;
}
