/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/err.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>

#include "base/str.h"

static void err_replace(struct err **errp, struct err *err);
static const char *class_of_code(int code);
static char *dup_or_null(const char *s);
static json_t *string_or_null(const char *s);

int err_set(struct err **errp, int code, const char *object, const char *fmt,
            ...)
{
    assert(code < 0);
    if (errp == NULL) {
        return code;
    }
    struct err *err = calloc(1, sizeof(*err));
    if (err != NULL) {
        va_list ap;
        va_start(ap, fmt);
        err->desc = str_vprintf(fmt, ap);
        va_end(ap);
        err->code = code;
        err->object = dup_or_null(object);
        err->class = dup_or_null(class_of_code(code));
    }
    err_replace(errp, err);
    return code;
}

int err_set_qmp(struct err **errp, const char *object, const char *command,
                const char *class, const char *desc)
{
    (void)err_set(errp, -EREMOTEIO, object, "%s", desc);
    if (errp != NULL && *errp != NULL) {
        free((*errp)->class);
        (*errp)->class = dup_or_null(class);
        (*errp)->command = dup_or_null(command);
    }
    return -EREMOTEIO;
}

void err_hint(struct err **errp, const char *fmt, ...)
{
    if (errp == NULL || *errp == NULL) {
        return;
    }
    va_list ap;
    va_start(ap, fmt);
    char *hint = str_vprintf(fmt, ap);
    va_end(ap);
    free((*errp)->hint);
    (*errp)->hint = hint;
}

void err_prefix(struct err **errp, const char *fmt, ...)
{
    if (errp == NULL || *errp == NULL) {
        return;
    }
    va_list ap;
    va_start(ap, fmt);
    _cleanup_free_ char *prefix = str_vprintf(fmt, ap);
    va_end(ap);
    if (prefix == NULL) {
        return;
    }
    struct err *err = *errp;
    if (err->object == NULL) {
        err->object = TAKE_PTR(prefix);
        return;
    }
    char *object = str_printf("%s: %s", prefix, err->object);
    if (object != NULL) {
        free(err->object);
        err->object = object;
    }
}

struct err *err_copy(const struct err *err)
{
    if (err == NULL) {
        return NULL;
    }
    struct err *copy = calloc(1, sizeof(*copy));
    if (copy != NULL) {
        copy->code = err->code;
        copy->object = dup_or_null(err->object);
        copy->command = dup_or_null(err->command);
        copy->class = dup_or_null(err->class);
        copy->desc = dup_or_null(err->desc);
        copy->hint = dup_or_null(err->hint);
    }
    return copy;
}

char *err_text(const struct err *err)
{
    if (err == NULL) {
        return strdup("out of memory");
    }
    return str_printf("%s%s%s%s%s", err->object ? err->object : "",
                      err->object ? ": " : "", err->command ? err->command : "",
                      err->command ? " failed: " : "",
                      err->desc ? err->desc : "out of memory");
}

json_t *err_to_json(const struct err *err)
{
    if (err == NULL) {
        return json_pack("{s:s, s:s}", "class", "ENOMEM", "desc",
                         "out of memory");
    }
    return json_pack(
        "{s:o*, s:o*, s:o*, s:o*, s:o*}", "object", string_or_null(err->object),
        "command", string_or_null(err->command), "class",
        string_or_null(err->class), "desc", string_or_null(err->desc), "hint",
        string_or_null(err->hint));
}

struct err *err_from_json(const json_t *json)
{
    struct err *err = calloc(1, sizeof(*err));
    if (err != NULL) {
        err->code = -EREMOTEIO;
        err->object =
            dup_or_null(json_string_value(json_object_get(json, "object")));
        err->command =
            dup_or_null(json_string_value(json_object_get(json, "command")));
        err->class =
            dup_or_null(json_string_value(json_object_get(json, "class")));
        err->desc =
            dup_or_null(json_string_value(json_object_get(json, "desc")));
        err->hint =
            dup_or_null(json_string_value(json_object_get(json, "hint")));
    }
    return err;
}

int err_code(const struct err *err, int code)
{
    return err != NULL ? err->code : code;
}

struct err *err_free(struct err *err)
{
    if (err != NULL) {
        free(err->object);
        free(err->command);
        free(err->class);
        free(err->desc);
        free(err->hint);
        free(err);
    }
    return NULL;
}

static void err_replace(struct err **errp, struct err *err)
{
    err_free(*errp);
    *errp = err;
}

static const char *class_of_code(int code)
{
    const char *name = strerrorname_np(-code);
    return name != NULL ? name : "EIO";
}

static char *dup_or_null(const char *s)
{
    return s != NULL ? strdup(s) : NULL;
}

/* "o*" of json_pack drops a NULL member and steals the reference. */
static json_t *string_or_null(const char *s)
{
    if (s == NULL) {
        return NULL;
    }
    /* desc may hold bytes of a peer that are no UTF-8: keep what is. */
    json_t *json = json_string(s);
    return json != NULL ? json : json_string("(not valid UTF-8)");
}
