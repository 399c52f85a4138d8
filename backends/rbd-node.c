/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * How RBD images are named: our URI, QEMU's node options and file names, and
 * the keyring. It never talks to a cluster.
 *
 * QEMU 7.2 reports json:{"driver":"rbd","pool":...,"image":...}, with
 * "namespace", "conf", "user" where given, and with "namespace":"" for a node
 * that was opened by a file name. The file name itself,
 *   rbd:pool[/namespace]/image[@snap][:key=value...]
 * ('\' before ':', '@', '=' and itself, the secret key= too), is seen in the
 * backing file string of images and from other versions.
 */
#include "rbd.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/err.h"
#include "base/str.h"
#include "registry.h"
#include "uri.h"

enum { KEYRING_LINE_MAX = 4096, KEY_LENGTH_MAX = 256 };

static int read_names(struct rbd_volume *rbd, const struct uri *uri,
                      struct err **errp);
static int take_text(struct uri *uri, const char *name, char **ret);
static char *compose(const char *pool, const char *space, const char *image);
static int from_json(const json_t *node, struct volume **ret);
static int from_legacy(const char *filename, struct volume **ret);
static char *take_part(const char **at, const char *stops);
DEFINE_CLEANUP(char, str_wipe_free)
static int read_key(FILE *keyring, const char *id, char **ret);
static bool is_base64(const char *text, size_t length);

void rbd_volume_free(struct volume *volume)
{
    struct rbd_volume *rbd = container_of(volume, struct rbd_volume, volume);
    volume_done(volume);
    free(rbd->pool);
    free(rbd->space);
    free(rbd->image);
    free(rbd->conf);
    free(rbd->id);
    free(rbd->keyring);
    free(rbd);
}

int rbd_volume_parse(const char *text, struct volume **ret, struct err **errp)
{
    _cleanup_uri_ struct uri uri = {0};
    int r = uri_split(text, &uri, errp);
    if (r < 0) {
        return r;
    }
    struct rbd_volume *rbd = calloc(1, sizeof(*rbd));
    if (rbd == NULL) {
        return -ENOMEM;
    }
    r = read_names(rbd, &uri, errp);
    if (r == 0) {
        r = take_text(&uri, "conf", &rbd->conf);
    }
    if (r == 0) {
        r = take_text(&uri, "id", &rbd->id);
    }
    if (r == 0) {
        r = take_text(&uri, "keyring", &rbd->keyring);
    }
    if (r == 0) {
        r = volume_init(&rbd->volume, &backend_rbd, &uri, errp);
    }
    if (r < 0) {
        rbd_volume_free(&rbd->volume);
        return r;
    }
    *ret = &rbd->volume;
    return 0;
}

int rbd_volume_from_node(const char *driver, const char *filename,
                         struct volume **ret)
{
    if (!str_eq(driver, "rbd")) {
        return -ENOENT;
    }
    if (str_starts(filename, "rbd:")) {
        return from_legacy(filename + strlen("rbd:"), ret);
    }
    json_auto_t *node = node_json(driver, filename);
    return node != NULL ? from_json(node, ret) : -ENOENT;
}

json_t *rbd_volume_node_options(const struct volume *volume,
                                const char *secret_id)
{
    const struct rbd_volume *rbd = rbd_of(volume);
    json_auto_t *node = volume_node(volume, "rbd");
    json_auto_t *rest =
        json_pack("{s:s, s:s, s:s*, s:s*, s:s*, s:s*}", "pool", rbd->pool,
                  "image", rbd->image, "namespace", rbd->space, "conf",
                  rbd->conf, "user", rbd->id, "key-secret", secret_id);
    if (node == NULL || rest == NULL || json_object_update(node, rest) < 0) {
        return NULL;
    }
    if (secret_id != NULL &&
        json_object_set_new(node, "auth-client-required",
                            json_pack("[s]", "cephx")) < 0) {
        return NULL;
    }
    return TAKE_PTR(node);
}

char *rbd_volume_legacy_name(const struct volume *volume)
{
    const struct rbd_volume *rbd = rbd_of(volume);
    const char *const parts[] = {
        "rbd:",
        rbd->pool,
        rbd->space != NULL ? "/" : NULL,
        rbd->space,
        "/",
        rbd->image,
        rbd->id != NULL ? ":id=" : NULL,
        rbd->id,
        rbd->conf != NULL ? ":conf=" : NULL,
        rbd->conf,
        rbd->keyring != NULL ? ":keyring=" : NULL,
        rbd->keyring,
    };
    size_t size = 1;
    for (size_t i = 0; i < ARRAY_SIZE(parts); i++) {
        size += parts[i] != NULL ? 2 * strlen(parts[i]) : 0;
    }
    char *name = malloc(size);
    if (name == NULL) {
        return NULL;
    }
    char *to = name;
    for (size_t i = 0; i < ARRAY_SIZE(parts); i++) {
        /* Even parts are punctuation, odd ones are text to escape. */
        for (const char *c = parts[i]; c != NULL && *c != '\0'; c++) {
            if (i % 2 == 1 && strchr(":@=\\", *c) != NULL) {
                *to++ = '\\';
            }
            *to++ = *c;
        }
    }
    *to = '\0';
    return name;
}

/* Without keyring= QEMU finds the key as we do, by the configuration. */
int rbd_volume_secret(struct volume *volume, char **ret, struct err **errp)
{
    const struct rbd_volume *rbd = rbd_of(volume);
    *ret = NULL;
    if (rbd->keyring == NULL) {
        return 0;
    }
    FILE *keyring = fopen(rbd->keyring, "re");
    if (keyring == NULL) {
        return volume_fail(errp, volume, -errno, "cannot open keyring '%s'",
                           rbd->keyring);
    }
    const char *id = rbd->id != NULL ? rbd->id : "admin";
    int r = read_key(keyring, id, ret);
    (void)fclose(keyring);
    if (r == -ENOENT) {
        return err_set(errp, r, volume->name,
                       "keyring '%s' has no key of client.%s", rbd->keyring,
                       id);
    }
    return r;
}

/* POOL/IMAGE or POOL/NAMESPACE/IMAGE */
static int read_names(struct rbd_volume *rbd, const struct uri *uri,
                      struct err **errp)
{
    const char *first = strchr(uri->rest, '/');
    const char *last = strrchr(uri->rest, '/');
    if (first == NULL || strpbrk(uri->rest, ":@") != NULL) {
        (void)err_set(errp, -EINVAL, uri->object,
                      "this is written rbd:POOL[/NAMESPACE]/IMAGE");
        err_hint(errp, "options follow a '?': conf=, id=, keyring=; a "
                       "snapshot is no volume");
        return -EINVAL;
    }
    int r = uri_decode(uri, uri->rest, (size_t)(first - uri->rest), &rbd->pool,
                       errp);
    if (r == 0 && first < last) {
        r = uri_decode(uri, first + 1, (size_t)(last - first) - 1, &rbd->space,
                       errp);
    }
    if (r == 0) {
        r = uri_decode(uri, last + 1, strlen(last + 1), &rbd->image, errp);
    }
    if (r < 0) {
        return r;
    }
    if (*rbd->pool == '\0' || *rbd->image == '\0' ||
        (rbd->space != NULL &&
         (*rbd->space == '\0' || strchr(rbd->space, '/') != NULL))) {
        return err_set(errp, -EINVAL, uri->object,
                       "this is written rbd:POOL[/NAMESPACE]/IMAGE");
    }
    return 0;
}

static int take_text(struct uri *uri, const char *name, char **ret)
{
    const char *value = uri_take(uri, name);
    *ret = value != NULL ? strdup(value) : NULL;
    return value != NULL && *ret == NULL ? -ENOMEM : 0;
}

/* "rbd:pool[/namespace]/image", encoded; NULL without memory. */
static char *compose(const char *pool, const char *space, const char *image)
{
    _cleanup_free_ char *p = uri_encode(pool);
    _cleanup_free_ char *s = uri_encode(space != NULL ? space : "");
    _cleanup_free_ char *i = uri_encode(image);
    if (p == NULL || s == NULL || i == NULL) {
        return NULL;
    }
    return str_printf("rbd:%s/%s%s%s", p, s, *s != '\0' ? "/" : "", i);
}

static int from_json(const json_t *node, struct volume **ret)
{
    const char *pool = node_text(node, NULL, "pool");
    const char *image = node_text(node, NULL, "image");
    if (pool == NULL || image == NULL ||
        json_object_get(node, "snapshot") != NULL) {
        return -ENOENT;
    }
    _cleanup_free_ char *uri =
        compose(pool, node_text(node, NULL, "namespace"), image);
    if (uri == NULL ||
        uri_append(&uri, "conf", node_text(node, NULL, "conf")) < 0 ||
        uri_append(&uri, "id", node_text(node, NULL, "user")) < 0) {
        return -ENOMEM;
    }
    return rbd_volume_parse(uri, ret, NULL) < 0 ? -ENOENT : 0;
}

/* QEMU's block/rbd.c, qemu_rbd_parse_filename(): the same order of cuts. */
static int from_legacy(const char *filename, struct volume **ret)
{
    const char *at = filename;
    _cleanup_free_ char *pool = take_part(&at, "/");
    _cleanup_free_ char *image = NULL;
    _cleanup_free_ char *space = NULL;
    if (pool == NULL || *at++ != '/') {
        return pool == NULL ? -ENOMEM : -ENOENT;
    }
    image = take_part(&at, ":@/");
    if (image != NULL && *at == '/') {
        at++;
        space = TAKE_PTR(image);
        image = take_part(&at, ":@");
    }
    if (image == NULL || *at == '@') {
        return image == NULL ? -ENOMEM : -ENOENT;
    }
    _cleanup_free_ char *uri = compose(pool, space, image);
    if (uri == NULL) {
        return -ENOMEM;
    }
    while (*at == ':') {
        at++;
        _cleanup_free_ char *key = take_part(&at, "=:");
        if (key == NULL) {
            return -ENOMEM;
        }
        if (*at != '=') {
            continue;
        }
        at++;
        _cleanup_(str_wipe_freep) char *value = take_part(&at, ":");
        bool ours =
            str_eq(key, "conf") || str_eq(key, "id") || str_eq(key, "keyring");
        if (value == NULL || (ours && uri_append(&uri, key, value) < 0)) {
            return -ENOMEM;
        }
    }
    return rbd_volume_parse(uri, ret, NULL) < 0 ? -ENOENT : 0;
}

/* Text up to one of 'stops' or the end, without its backslashes. */
static char *take_part(const char **at, const char *stops)
{
    char *part = malloc(strlen(*at) + 1);
    if (part == NULL) {
        return NULL;
    }
    size_t n = 0;
    const char *c = *at;
    for (; *c != '\0' && strchr(stops, *c) == NULL; c++) {
        if (*c == '\\' && c[1] != '\0') {
            c++;
        }
        part[n++] = *c;
    }
    part[n] = '\0';
    *at = c;
    return part;
}

/* "[client.id]" and in its section "key = BASE64", as ceph-authtool writes. */
static int read_key(FILE *keyring, const char *id, char **ret)
{
    _cleanup_free_ char *section = str_printf("[client.%s]", id);
    char *line = malloc(KEYRING_LINE_MAX);
    if (section == NULL || line == NULL) {
        free(line);
        return -ENOMEM;
    }
    int r = -ENOENT;
    bool inside = false;
    while (r == -ENOENT && fgets(line, KEYRING_LINE_MAX, keyring) != NULL) {
        const char *at = line + strspn(line, " \t");
        if (*at == '[') {
            inside = str_starts(at, section);
        }
        if (!inside || !str_starts(at, "key")) {
            continue;
        }
        at += strlen("key");
        at += strspn(at, " \t");
        if (*at != '=') {
            continue;
        }
        at += 1 + strspn(at + 1, " \t");
        size_t length = strcspn(at, " \t\r\n");
        if (is_base64(at, length)) {
            *ret = strndup(at, length);
            r = *ret != NULL ? 0 : -ENOMEM;
        }
    }
    explicit_bzero(line, KEYRING_LINE_MAX);
    free(line);
    return r;
}

static bool is_base64(const char *text, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        if (!isalnum((unsigned char)text[i]) &&
            strchr("+/=", text[i]) == NULL) {
            return false;
        }
    }
    return length > 0 && length <= KEY_LENGTH_MAX && length % 4 == 0;
}
