/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "volume.h"

#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/err.h"
#include "base/str.h"
#include "uri.h"

static int take_size(struct volume *volume, struct uri *uri, struct err **errp);
static int take_word(struct uri *uri, const char *name, const char *first,
                     const char *second, int *ret, struct err **errp);
static int refuse_unknown(const struct uri *uri, struct err **errp);

int volume_init(struct volume *volume, const struct backend_ops *ops,
                struct uri *uri, struct err **errp)
{
    int format = -1;
    int cache = -1;
    int existing = -1;
    int r = take_word(uri, "format", "raw", "qcow2", &format, errp);
    if (r == 0) {
        r = take_word(uri, "cache", "none", "writeback", &cache, errp);
    }
    if (r == 0) {
        r = take_word(uri, "existing", "no", "yes", &existing, errp);
    }
    if (r == 0) {
        r = take_size(volume, uri, errp);
    }
    if (r == 0) {
        r = refuse_unknown(uri, errp);
    }
    if (r < 0) {
        return r;
    }
    bool creates = (ops->flags & BACKEND_CREATES) != 0;
    if (!creates && existing == 0) {
        return err_set(errp, -EINVAL, uri->object,
                       "existing=no: a %s cannot be created", ops->title);
    }
    volume->ops = ops;
    volume->format = format == 1 ? FORMAT_QCOW2 : FORMAT_RAW;
    volume->format_given = format >= 0;
    volume->cache = cache < 0    ? CACHE_AUTO
                    : cache == 0 ? CACHE_NONE
                                 : CACHE_WRITEBACK;
    volume->existing = !creates || existing == 1;
    volume->uri = strdup(uri->text);
    volume->name = strdup(uri->object);
    return volume->uri != NULL && volume->name != NULL ? 0 : -ENOMEM;
}

void volume_done(struct volume *volume)
{
    free(volume->uri);
    free(volume->name);
    free(volume->like);
    volume->uri = NULL;
    volume->name = NULL;
    volume->like = NULL;
}

void volume_info_init(struct volume_info *info)
{
    memset(info, 0, sizeof(*info));
    info->allocated = UINT64_MAX;
    info->available = UINT64_MAX;
}

/* docs/interop/qcow2.txt: magic, version, ..., size at 24, all big-endian. */
void volume_info_format(struct volume_info *info, const void *head,
                        size_t length)
{
    const unsigned char *bytes = head;
    info->format = FORMAT_RAW;
    info->format_size = 0;
    info->has_backing = false;
    if (length < FORMAT_HEAD || memcmp(bytes, "QFI\xfb\0\0\0", 7) != 0 ||
        (bytes[7] != 2 && bytes[7] != 3)) {
        return;
    }
    info->format = FORMAT_QCOW2;
    for (unsigned i = 8; i < 16; i++) {
        info->has_backing = info->has_backing || bytes[i] != 0;
    }
    for (unsigned i = 24; i < 32; i++) {
        info->format_size = info->format_size << 8 | bytes[i];
    }
}

json_t *volume_node(const struct volume *volume, const char *driver)
{
    /* Without discard on the protocol node too, QEMU <= 10.0 cannot zero a
     * target ahead and writes the whole disk. */
    json_auto_t *node =
        json_pack("{s:s, s:s}", "driver", driver, "discard", "unmap");
    if (node == NULL) {
        return NULL;
    }
    if (volume->cache != CACHE_AUTO &&
        json_object_set_new(
            node, "cache",
            json_pack("{s:b}", "direct", volume->cache == CACHE_NONE)) < 0) {
        return NULL;
    }
    return TAKE_PTR(node);
}

json_t *node_json(const char *driver, const char *filename)
{
    if (!str_starts(filename, "json:")) {
        return NULL;
    }
    json_auto_t *node = json_loads(filename + strlen("json:"), 0, NULL);
    const char *found = json_string_value(json_object_get(node, "driver"));
    return str_eq(found, driver) ? TAKE_PTR(node) : NULL;
}

const char *node_text(const json_t *node, const char *outer, const char *key)
{
    if (outer == NULL) {
        return json_string_value(json_object_get(node, key));
    }
    const json_t *inner = json_object_get(node, outer);
    if (inner != NULL) {
        return json_string_value(json_object_get(inner, key));
    }
    char dotted[64];
    (void)snprintf(dotted, sizeof(dotted), "%s.%s", outer, key);
    return json_string_value(json_object_get(node, dotted));
}

int volume_fail(struct err **errp, const struct volume *volume, int code,
                const char *fmt, ...)
{
    const char *reason = strerrordesc_np(-code);
    va_list ap;
    va_start(ap, fmt);
    _cleanup_free_ char *what = str_vprintf(fmt, ap);
    va_end(ap);
    if (what == NULL) {
        return code;
    }
    if (reason == NULL) {
        return err_set(errp, code, volume->name, "%s: error %d", what, -code);
    }
    return err_set(errp, code, volume->name, "%s: %c%s", what,
                   tolower((unsigned char)reason[0]), reason + 1);
}

int volume_taken(const struct volume *volume, struct err **errp)
{
    return err_set(errp, -EEXIST, volume->name,
                   "the name has been taken by another %s meanwhile",
                   volume->ops->title);
}

static int take_size(struct volume *volume, struct uri *uri, struct err **errp)
{
    const char *size = uri_take(uri, "size");
    if (size == NULL) {
        return 0;
    }
    int r = str_to_bytes(size, &volume->size);
    if (r < 0 || volume->size == 0 || volume->size > INT64_MAX) {
        (void)err_set(errp, -EINVAL, uri->object,
                      "option 'size': '%.64s' is no size", size);
        err_hint(errp, "a size is a number of bytes, or 512M, 20G, 1.5T");
        return -EINVAL;
    }
    return 0;
}

/* *ret becomes 0 for the first word, 1 for the second. */
static int take_word(struct uri *uri, const char *name, const char *first,
                     const char *second, int *ret, struct err **errp)
{
    const char *value = uri_take(uri, name);
    if (value == NULL) {
        return 0;
    }
    if (!str_eq(value, first) && !str_eq(value, second)) {
        return err_set(errp, -EINVAL, uri->object,
                       "option '%s' is '%s' or '%s', not '%.64s'", name, first,
                       second, value);
    }
    *ret = str_eq(value, second);
    return 0;
}

static int refuse_unknown(const struct uri *uri, struct err **errp)
{
    for (unsigned i = 0; i < uri->option_count; i++) {
        if (!uri->options[i].taken) {
            return err_set(errp, -EINVAL, uri->object, "unknown option '%.32s'",
                           uri->options[i].name);
        }
    }
    return 0;
}
