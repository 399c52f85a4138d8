/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Resources of LINSTOR, by its controller's REST interface: as
 *   linstor://CONTROLLER[:PORT][,CONTROLLER...]/GROUP/RESOURCE
 * To QEMU one is a device of this host's DRBD (kernel 9, which promotes what
 * is opened for writing), so that 'node' says which of LINSTOR's nodes this
 * host is. Here are its name and its node; linstor-look.c has what there is,
 * linstor-make.c what changes.
 *
 * Identity: "linstor:<uuid>" of the resource definition: no other one gets it,
 * also not one that takes its name or its minor.
 */
#include "linstor.h"

#include <ctype.h>
#include <errno.h>
#include <string.h>

#include "base/err.h"
#include "base/str.h"
#include "bulk.h"
#include "linstor-private.h"
#include "registry.h"
#include "uri.h"
#include "volume.h"

/*
 * All that one of them waits for, one after the other, and what it needs to
 * begin and to end: left a moment too early, it would park.
 */
enum {
    SLACK_MS = 60000,
    CHANGE_MS = LINSTOR_CREATE_MS + LINSTOR_REMOVE_MS + SLACK_MS,
};

static struct linstor_volume *own(const struct volume *volume)
{
    return (struct linstor_volume *)(uintptr_t)volume; /* its first member */
}

const struct linstor_volume *linstor_of(const struct volume *volume)
{
    return own(volume);
}

static void linstor_free(struct volume *volume)
{
    struct linstor_volume *self = own(volume);
    char **texts[] = {&self->controllers, &self->group, &self->resource,
                      &self->node,        &self->user,  &self->password,
                      &self->token,       &self->ca,    &self->cert,
                      &self->key,         &self->path};
    volume_done(volume);
    for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
        free(*texts[i]);
    }
    free(self);
}

/* --- its name --- */

/* As LINSTOR has them; they become a part of paths. */
static bool is_name(const char *name)
{
    size_t length = strlen(name);
    bool valid = length >= 2 && length < LINSTOR_NAME && *name != '-' &&
                 !str_eq(name, "all") && !str_eq(name, "proxy");
    for (const char *c = name; *c != '\0'; c++) {
        unsigned char byte = (unsigned char)*c;
        valid = valid && byte < 0x80 &&
                (isalnum(byte) || byte == '_' || byte == '-');
    }
    return valid;
}

/* "a", "a:1", "[::1]:1": what has another character is no host. */
static bool is_host(const char *at, size_t length)
{
    bool valid = length > 0 && length < 256;
    for (size_t i = 0; i < length; i++) {
        unsigned char byte = (unsigned char)at[i];
        valid = valid && byte < 0x80 &&
                (isalnum(byte) || strchr(".-_:[]", byte) != NULL);
    }
    return valid;
}

static bool are_hosts(const char *text)
{
    for (const char *at = text;; at++) {
        size_t length = strcspn(at, ",");
        if (!is_host(at, length)) {
            return false;
        }
        at += length;
        if (*at == '\0') {
            return true;
        }
    }
}

static int read_name(struct linstor_volume *self, const struct uri *uri,
                     struct err **errp)
{
    const char *at = uri->rest;
    const char *group = NULL, *resource = NULL;
    if (str_starts(at, "//")) {
        at += 2;
        group = strchr(at, '/');
        resource = group != NULL ? strchr(group + 1, '/') : NULL;
    }
    if (resource != NULL) {
        self->controllers = strndup(at, (size_t)(group - at));
        self->group = strndup(group + 1, (size_t)(resource - group) - 1);
        self->resource = strdup(resource + 1);
        if (self->controllers == NULL || self->group == NULL ||
            self->resource == NULL) {
            return -ENOMEM;
        }
    }
    if (resource == NULL || !are_hosts(self->controllers) ||
        !is_name(self->group) || !is_name(self->resource)) {
        (void)err_set(errp, -EINVAL, uri->object,
                      "is no LINSTOR resource's name");
        err_hint(errp, "this is written linstor://CONTROLLER[:PORT][,...]/GROUP"
                       "/RESOURCE");
        return -EINVAL;
    }
    return 0;
}

static int take_text(struct uri *uri, const char *name, char **ret)
{
    const char *value = uri_take(uri, name);
    *ret = value != NULL ? strdup(value) : NULL;
    return value != NULL && *ret == NULL ? -ENOMEM : 0;
}

static int take_tls(struct linstor_volume *self, struct uri *uri,
                    struct err **errp)
{
    const char *tls = uri_take(uri, "tls");
    if (tls != NULL && !str_eq(tls, "yes") && !str_eq(tls, "no")) {
        return err_set(errp, -EINVAL, uri->object,
                       "option 'tls' is 'yes' or 'no', not '%.64s'", tls);
    }
    self->tls = str_eq(tls, "yes");
    return 0;
}

static int check_options(const struct linstor_volume *self,
                         const struct uri *uri, struct err **errp)
{
    if (self->token != NULL && self->user != NULL) {
        return err_set(errp, -EINVAL, uri->object,
                       "a token and a user name: either is enough");
    }
    if ((self->user == NULL) != (self->password == NULL)) {
        return err_set(errp, -EINVAL, uri->object,
                       "user= and password=FILE go together");
    }
    if (self->key != NULL && self->cert == NULL) {
        return err_set(errp, -EINVAL, uri->object, "key= is of a cert=");
    }
    return 0;
}

static int read_options(struct linstor_volume *self, struct uri *uri,
                        struct err **errp)
{
    const struct {
        const char *name;
        char **value;
    } texts[] = {
        {"node",     &self->node    },
        {"user",     &self->user    },
        {"password", &self->password},
        {"token",    &self->token   },
        {"ca",       &self->ca      },
        {"cert",     &self->cert    },
        {"key",      &self->key     },
    };

    int r = take_tls(self, uri, errp);
    for (size_t i = 0; r == 0 && i < ARRAY_SIZE(texts); i++) {
        r = take_text(uri, texts[i].name, texts[i].value);
    }
    return r == 0 ? check_options(self, uri, errp) : r;
}

static int linstor_parse(const char *text, struct volume **ret,
                         struct err **errp)
{
    _cleanup_uri_ struct uri uri = {0};
    int r = uri_split(text, &uri, errp);
    if (r < 0) {
        return r;
    }
    struct linstor_volume *self = calloc(1, sizeof(*self));
    if (self == NULL) {
        return -ENOMEM;
    }
    r = read_name(self, &uri, errp);
    if (r == 0) {
        r = read_options(self, &uri, errp);
    }
    if (r == 0) {
        r = volume_init(&self->volume, &backend_linstor, &uri, errp);
    }
    if (r < 0) {
        linstor_free(&self->volume);
        return r;
    }
    *ret = &self->volume;
    return 0;
}

/* --- its node --- */

/* The one name of a device that is known before LINSTOR has given it one. */
static char *linstor_legacy_name(const struct volume *volume)
{
    const struct linstor_volume *self = linstor_of(volume);
    return self->path != NULL ? strdup(self->path) : linstor_link_of(self);
}

/*
 * Without auto-read-only: with it QEMU opens it for reading only and asks for
 * more when the guest is about to write, which is too late to be refused.
 */
static json_t *linstor_node_options(const struct volume *volume,
                                    _unused_ const char *secret_id)
{
    json_auto_t *node = volume_node(volume, "host_device");
    _cleanup_free_ char *path = linstor_legacy_name(volume);
    if (node == NULL || path == NULL ||
        json_object_set_new(node, "filename", json_string(path)) < 0 ||
        json_object_set_new(node, "auto-read-only", json_false()) < 0) {
        return NULL;
    }
    return TAKE_PTR(node);
}

const struct backend_ops backend_linstor = {
    .scheme = "linstor",
    .title = "LINSTOR resource",
    .flags = BACKEND_CREATES | BACKEND_LEGACY_NAME | BACKEND_STALLS |
             BACKEND_OF_HOST,
    .parse = linstor_parse,
    .free = linstor_free,
    .node_options = linstor_node_options,
    .legacy_name = linstor_legacy_name,
    .probe = linstor_probe,
    .answer = linstor_answer,
    .create = linstor_create,
    .publish = linstor_publish,
    .remove = linstor_remove,
    .attach = linstor_attach,
    .detach = linstor_detach,
    .attach_ms = CHANGE_MS,
    .create_ms = CHANGE_MS,
    .round = linstor_round,
    .bulk = &bulk_file,
};
