/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "uri.h"

#include <ctype.h>
#include <errno.h>
#include <string.h>

#include "base/err.h"
#include "base/str.h"

static size_t scheme_length(const char *text);
static char *object_of(const char *text, size_t length, bool plain);
static int split_options(struct uri *uri, const char *query, struct err **errp);
static int add_option(struct uri *uri, const char *text, size_t length,
                      struct err **errp);
static int decode(const char *part, size_t length, char **ret);
static int hex_value(char c);
static int read_port(const struct uri *uri, const char *from, const char *end,
                     uint16_t *ret, struct err **errp);

int uri_split(const char *text, struct uri *ret, struct err **errp)
{
    if (*text == '\0') {
        return err_set(errp, -EINVAL, NULL, "the volume's name is empty");
    }
    if (strlen(text) > URI_LENGTH_MAX) {
        return err_set(errp, -EINVAL, NULL, "the volume's name is too long");
    }
    size_t scheme = scheme_length(text);
    ret->plain = scheme == 0;
    /* A file name may hold a '?'; a URI's own would be %3F. */
    const char *query = ret->plain ? strrchr(text, '?') : strchr(text, '?');
    size_t length = query != NULL ? (size_t)(query - text) : strlen(text);
    size_t start = ret->plain ? 0 : scheme + 1;
    ret->text = strdup(text);
    ret->scheme = ret->plain ? strdup("file") : strndup(text, scheme);
    ret->rest = strndup(text + start, length - start);
    ret->object = object_of(text, length, ret->plain);
    if (ret->text == NULL || ret->scheme == NULL || ret->rest == NULL ||
        ret->object == NULL) {
        return -ENOMEM;
    }
    return query != NULL ? split_options(ret, query + 1, errp) : 0;
}

void uri_done(struct uri *uri)
{
    free(uri->text);
    free(uri->scheme);
    free(uri->rest);
    free(uri->object);
    for (unsigned i = 0; i < uri->option_count; i++) {
        free(uri->options[i].name);
        free(uri->options[i].value);
    }
    memset(uri, 0, sizeof(*uri));
}

const char *uri_take(struct uri *uri, const char *name)
{
    for (unsigned i = 0; i < uri->option_count; i++) {
        if (str_eq(uri->options[i].name, name)) {
            uri->options[i].taken = true;
            return uri->options[i].value;
        }
    }
    return NULL;
}

int uri_decode(const struct uri *uri, const char *part, size_t length,
               char **ret, struct err **errp)
{
    if (uri->plain) {
        char *copy = strndup(part, length);
        if (copy == NULL) {
            return -ENOMEM;
        }
        *ret = copy;
        return 0;
    }
    int r = decode(part, length, ret);
    if (r == 0 && !str_is_utf8(*ret)) {
        free(*ret);
        *ret = NULL;
        return err_set(errp, -EINVAL, uri->object,
                       "its name is no UTF-8: QMP carries UTF-8 only");
    }
    if (r == -EINVAL) {
        (void)err_set(errp, r, uri->object,
                      "a '%%' is not followed by two hexadecimal digits");
        err_hint(errp, "write a '%%' as %%25");
    }
    return r;
}

char *uri_encode(const char *text)
{
    static const char digits[] = "0123456789ABCDEF";
    char *out = malloc(3 * strlen(text) + 1);
    if (out == NULL) {
        return NULL;
    }
    char *to = out;
    for (const char *c = text; *c != '\0'; c++) {
        unsigned char byte = (unsigned char)*c;
        if ((byte < 0x80 && isalnum(byte)) || strchr("-._~/", byte) != NULL) {
            *to++ = *c;
        } else {
            *to++ = '%';
            *to++ = digits[byte >> 4];
            *to++ = digits[byte & 15];
        }
    }
    *to = '\0';
    return out;
}

int uri_append(char **text, const char *name, const char *value)
{
    if (value == NULL) {
        return 0;
    }
    _cleanup_free_ char *encoded = uri_encode(value);
    if (encoded == NULL) {
        return -ENOMEM;
    }
    char separator = strchr(*text, '?') != NULL ? '&' : '?';
    char *longer = str_printf("%s%c%s=%s", *text, separator, name, encoded);
    if (longer == NULL) {
        return -ENOMEM;
    }
    free(*text);
    *text = longer;
    return 0;
}

int uri_authority(const struct uri *uri, char **ret_host, uint16_t *ret_port,
                  char **ret_path, struct err **errp)
{
    if (!str_starts(uri->rest, "//")) {
        return err_set(errp, -EINVAL, uri->object,
                       "this is written %s://HOST/...", uri->scheme);
    }
    const char *host = uri->rest + 2;
    const char *path = host + strcspn(host, "/");
    size_t length = (size_t)(path - host);
    if (memchr(host, '@', length) != NULL) {
        return err_set(errp, -EINVAL, uri->object,
                       "a user name has no place in this URI");
    }
    const char *port = memchr(host, ':', length);
    if (*host == '[') {
        host++;
        const char *end = memchr(host, ']', length - 1);
        if (end == NULL) {
            return err_set(errp, -EINVAL, uri->object,
                           "']' is missing after the address");
        }
        length = (size_t)(end - host);
        port = end + 1 < path ? end + 1 : NULL;
    } else if (port != NULL) {
        length = (size_t)(port - host);
    }
    _cleanup_free_ char *name = NULL;
    int r = uri_decode(uri, host, length, &name, errp);
    if (r == 0) {
        r = read_port(uri, port, path, ret_port, errp);
    }
    if (r == 0) {
        r = uri_decode(uri, path, strlen(path), ret_path, errp);
    }
    if (r == 0) {
        *ret_host = TAKE_PTR(name);
    }
    return r;
}

/* ":PORT" up to 'end'; 'from' is NULL if there is none. */
static int read_port(const struct uri *uri, const char *from, const char *end,
                     uint16_t *ret, struct err **errp)
{
    uint64_t port = 0;
    if (from == NULL) {
        *ret = 0;
        return 0;
    }
    _cleanup_free_ char *digits = strndup(from + 1, (size_t)(end - from) - 1);
    if (digits == NULL) {
        return -ENOMEM;
    }
    if (*from != ':' || str_to_u64(digits, 65535, &port) < 0 || port == 0) {
        return err_set(errp, -EINVAL, uri->object,
                       "the port is a number from 1 to 65535");
    }
    *ret = (uint16_t)port;
    return 0;
}

/* Length of "scheme" in "scheme:", 0 for a plain path. */
static size_t scheme_length(const char *text)
{
    size_t n = 0;
    while (isalnum((unsigned char)text[n]) || (n > 0 && text[n] == '+') ||
           (n > 0 && text[n] == '-')) {
        n++;
    }
    return text[n] == ':' && isalpha((unsigned char)text[0]) ? n : 0;
}

/*
 * What a message may repeat: people paste QEMU's own forms, where a password
 * stands before '@' and rbd's key after a second ':'.
 */
static char *object_of(const char *text, size_t length, bool plain)
{
    const char *slashes = memmem(text, length, "://", 3);
    if (!plain && slashes != NULL) {
        const char *host = slashes + 3;
        size_t left = (size_t)(text + length - host);
        const char *slash = memchr(host, '/', left);
        size_t authority = slash != NULL ? (size_t)(slash - host) : left;
        const char *at = memrchr(host, '@', authority);
        if (at != NULL) {
            return str_printf("%.*s...%.*s", (int)(host - text), text,
                              (int)(text + length - at), at);
        }
    }
    if (!plain && str_starts(text, "rbd:")) {
        const char *colon = memchr(text + 4, ':', length - 4);
        length = colon != NULL ? (size_t)(colon - text) : length;
    }
    return strndup(text, length);
}

static int split_options(struct uri *uri, const char *query, struct err **errp)
{
    for (const char *at = query; *at != '\0';) {
        size_t length = strcspn(at, "&");
        int r = length > 0 ? add_option(uri, at, length, errp) : 0;
        if (r < 0) {
            return r;
        }
        at += length + (at[length] == '&' ? 1 : 0);
    }
    return 0;
}

static int add_option(struct uri *uri, const char *text, size_t length,
                      struct err **errp)
{
    const char *equals = memchr(text, '=', length);
    size_t name_length = equals != NULL ? (size_t)(equals - text) : length;
    if (uri->option_count == URI_OPTIONS_MAX) {
        return err_set(errp, -EINVAL, uri->object, "too many options");
    }
    struct uri_option *option = &uri->options[uri->option_count];
    option->name = strndup(text, name_length);
    if (option->name == NULL) {
        return -ENOMEM;
    }
    uri->option_count++;
    if (equals == NULL) {
        (void)err_set(errp, -EINVAL, uri->object, "option '%.32s' has no value",
                      option->name);
        err_hint(errp, "options are written ?NAME=VALUE&NAME=VALUE%s",
                 uri->plain ? "; a '?' of a file name is %3F in file:PATH"
                            : "");
        return -EINVAL;
    }
    for (unsigned i = 0; i + 1 < uri->option_count; i++) {
        if (str_eq(uri->options[i].name, option->name)) {
            return err_set(errp, -EINVAL, uri->object,
                           "option '%.32s' is given twice", option->name);
        }
    }
    int r = decode(equals + 1, length - name_length - 1, &option->value);
    if (r == 0 && !str_is_utf8(option->value)) {
        return err_set(errp, -EINVAL, uri->object,
                       "option '%.32s' is no UTF-8: QMP carries UTF-8 only",
                       option->name);
    }
    if (r == -EINVAL) {
        (void)err_set(errp, r, uri->object,
                      "option '%.32s': a '%%' is not followed by two "
                      "hexadecimal digits",
                      option->name);
    }
    return r;
}

static int decode(const char *part, size_t length, char **ret)
{
    _cleanup_free_ char *out = malloc(length + 1);
    if (out == NULL) {
        return -ENOMEM;
    }
    size_t n = 0;
    for (size_t i = 0; i < length; i++) {
        if (part[i] != '%') {
            out[n++] = part[i];
            continue;
        }
        bool whole = length - i > 2;
        int high = whole ? hex_value(part[i + 1]) : -1;
        int low = whole ? hex_value(part[i + 2]) : -1;
        if (high < 0 || low < 0 || (high == 0 && low == 0)) {
            return -EINVAL;
        }
        out[n++] = (char)(high << 4 | low);
        i += 2;
    }
    out[n] = '\0';
    *ret = TAKE_PTR(out);
    return 0;
}

static int hex_value(char c)
{
    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    c = (char)tolower((unsigned char)c);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}
