/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "qmp/wire.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/err.h"

enum {
    READ_AHEAD = 64 << 10, /* what a message may be overrun by */
    EXCERPT = 48,
};

static int fail(struct wire *wire, int code, struct err **errp,
                const char *what);
static int scan_byte(struct wire *wire, char c);
static void scan_string(struct wire *wire);
static int scan_value(struct wire *wire, char c);
static int decode(struct wire *wire, size_t length, json_t **ret,
                  struct err **errp);
static json_t *decode_big(const char *text, size_t length);
static bool is_big_integer(const char *text, size_t length);
static void compact(struct wire *wire);
static void excerpt(const char *bytes, size_t n, char *ret);

void wire_init(struct wire *wire, size_t max_message)
{
    *wire = (struct wire){.max_message =
                              max_message ? max_message : WIRE_MAX_MESSAGE};
}

void wire_done(struct wire *wire)
{
    free(wire->data);
    *wire = (struct wire){.failed = -ENOTCONN};
}

int wire_reserve(struct wire *wire, size_t want, char **ret)
{
    if (wire->allocated - wire->end < want) {
        compact(wire);
    }
    if (wire->allocated - wire->end < want) {
        size_t size = wire->allocated ? wire->allocated : 4096;
        while (size - wire->end < want) {
            size *= 2;
        }
        char *data = realloc(wire->data, size);
        if (data == NULL) {
            return -ENOMEM;
        }
        wire->data = data;
        wire->allocated = size;
    }
    *ret = wire->data + wire->end;
    return 0;
}

void wire_commit(struct wire *wire, size_t n)
{
    assert(n <= wire->allocated - wire->end);
    wire->end += n;
}

void wire_trim(struct wire *wire)
{
    if (wire->start == wire->end && wire->failed == 0) {
        free(wire->data);
        wire->data = NULL;
        wire->allocated = wire->start = wire->scan = wire->end = 0;
    }
}

int wire_feed(struct wire *wire, const void *bytes, size_t n)
{
    if (n == 0) {
        return 0;
    }
    char *to = NULL;
    int r = wire_reserve(wire, n, &to);
    if (r < 0) {
        return r;
    }
    memcpy(to, bytes, n);
    wire_commit(wire, n);
    return 0;
}

int wire_next(struct wire *wire, json_t **ret, struct err **errp)
{
    if (wire->failed < 0) {
        return err_set(errp, wire->failed, NULL, "the stream was given up");
    }
    while (wire->scan < wire->end) {
        int r = scan_byte(wire, wire->data[wire->scan]);
        if (r == -EBADMSG) {
            return fail(wire, r, errp, "this is not QMP");
        }
        if (r < 0) {
            return fail(wire, r, errp, "nested too deeply, or too many values");
        }
        wire->scan++;
        size_t length = wire->scan - wire->start;
        if (length > wire->max_message) {
            return fail(wire, -EMSGSIZE, errp, "message too long");
        }
        if (r > 0) {
            return decode(wire, length, ret, errp);
        }
    }
    return 0;
}

bool wire_in_message(const struct wire *wire)
{
    return wire->depth > 0;
}

static int fail(struct wire *wire, int code, struct err **errp,
                const char *what)
{
    char text[4 * EXCERPT + 1];
    /* at the offending byte when nothing was begun, else how it began */
    size_t from = wire->depth > 0 ? wire->start : wire->scan;
    excerpt(wire->data + from, wire->end - from, text);
    wire->failed = code;
    return err_set(errp, code, NULL, "%s: '%s'", what, text);
}

/* Returns 1 when the byte ends a message. */
static int scan_byte(struct wire *wire, char c)
{
    if (wire->in_string) {
        scan_string(wire);
        return 0;
    }
    if (wire->depth == 0 && c != '{') {
        /*
         * Between messages QEMU sends CRLF. Control characters and 0xFF are
         * how a peer may resynchronize (docs/interop/qmp-spec), so skip them.
         */
        if ((unsigned char)c > ' ' && (unsigned char)c != 0xff) {
            return -EBADMSG;
        }
        wire->start = wire->scan + 1;
        return 0;
    }
    return scan_value(wire, c);
}

/* All that is plain at once: most of a message is text. */
static void scan_string(struct wire *wire)
{
    size_t at = wire->scan;
    if (wire->escaped) {
        wire->escaped = false;
        return;
    }
    while (at + 1 < wire->end && wire->data[at] != '"' &&
           wire->data[at] != '\\') {
        at++;
    }
    wire->escaped = wire->data[at] == '\\';
    wire->in_string = wire->data[at] != '"';
    wire->scan = at;
}

static int scan_value(struct wire *wire, char c)
{
    switch (c) {
    case '"':
        wire->in_string = true;
        return 0;
    case '{':
    case '[':
        wire->n_values++;
        wire->depth++;
        if (wire->depth > WIRE_MAX_NESTING) {
            return -EMSGSIZE;
        }
        return wire->n_values > WIRE_MAX_VALUES ? -EMSGSIZE : 0;
    case ',':
        wire->n_values++;
        return wire->n_values > WIRE_MAX_VALUES ? -EMSGSIZE : 0;
    case '}':
    case ']':
        wire->depth--;
        return wire->depth == 0;
    default:
        return 0;
    }
}

static int decode(struct wire *wire, size_t length, json_t **ret,
                  struct err **errp)
{
    const char *text = wire->data + wire->start;
    json_error_t error;
    json_t *json = json_loadb(text, length, 0, &error);
    if (json == NULL &&
        json_error_code(&error) == json_error_numeric_overflow) {
        json = decode_big(text, length);
    }
    if (json == NULL) {
        char quoted[4 * EXCERPT + 1];
        excerpt(text, length, quoted);
        wire->failed = json_error_code(&error) == json_error_out_of_memory
                           ? -ENOMEM
                           : -EBADMSG;
        return err_set(errp, wire->failed, NULL, "%s: '%s'", error.text,
                       quoted);
    }
    wire->start = wire->scan;
    wire->n_values = 0;
    *ret = json;
    return 1;
}

/*
 * jansson refuses a whole message for one integer beyond int64, and its flag
 * JSON_DECODE_INT_AS_REAL would turn all of them into reals. So give a ".0" to
 * those alone that need it.
 */
static json_t *decode_big(const char *text, size_t length)
{
    /* a big integer has 19 digits at least: 2 more for each is enough */
    char *copy = malloc(length + length / 8 + 16);
    if (copy == NULL) {
        return NULL;
    }
    size_t n = 0;
    bool in_string = false;
    for (size_t i = 0; i < length;) {
        char c = text[i];
        size_t token = 1;
        if (in_string) {
            token = c == '\\' && i + 1 < length ? 2 : 1;
            in_string = c != '"';
        } else if (c == '"') {
            in_string = true;
        } else if (isdigit((unsigned char)c) || c == '-') {
            while (i + token < length &&
                   strchr("0123456789+-.eE", text[i + token]) != NULL &&
                   text[i + token] != '\0') {
                token++;
            }
        }
        memcpy(copy + n, text + i, token);
        n += token;
        if (!in_string && is_big_integer(text + i, token)) {
            memcpy(copy + n, ".0", 2);
            n += 2;
        }
        i += token;
    }
    json_t *json = json_loadb(copy, n, 0, NULL);
    free(copy);
    return json;
}

static bool is_big_integer(const char *text, size_t length)
{
    size_t n_digits = 0;
    for (size_t i = 0; i < length; i++) {
        if (isdigit((unsigned char)text[i])) {
            n_digits++;
        } else if (i > 0 || text[i] != '-') {
            return false;
        }
    }
    if (n_digits < 19 || n_digits > 300) {
        return false; /* beyond 300 it is no double either */
    }
    char copy[320];
    memcpy(copy, text, length);
    copy[length] = '\0';
    errno = 0;
    (void)strtoll(copy, NULL, 10);
    return errno == ERANGE;
}

/* Moves what is unread to the front; gives memory of a huge message back. */
static void compact(struct wire *wire)
{
    size_t rest = wire->end - wire->start;
    if (wire->start > 0) {
        memmove(wire->data, wire->data + wire->start, rest);
        wire->scan -= wire->start;
        wire->end = rest;
        wire->start = 0;
    }
    if (wire->allocated > 16 * READ_AHEAD && rest < READ_AHEAD) {
        char *data = realloc(wire->data, 2 * READ_AHEAD);
        if (data != NULL) {
            wire->data = data;
            wire->allocated = 2 * READ_AHEAD;
        }
    }
}

/* The first bytes, printable; 'ret' holds 4 * EXCERPT + 1. */
static void excerpt(const char *bytes, size_t n, char *ret)
{
    size_t out = 0;
    for (size_t i = 0; i < n && i < EXCERPT; i++) {
        unsigned char c = (unsigned char)bytes[i];
        if (c >= ' ' && c < 0x7f) {
            ret[out++] = bytes[i];
        } else {
            out += (size_t)snprintf(ret + out, 5, "\\x%02x", c);
        }
    }
    ret[out] = '\0';
}
