/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "qmp/trace.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <uv.h>

#include "base/cleanup.h"
#include "base/err.h"
#include "base/str.h"
#include "qmp/qmp.h"

enum { DEPTH_MAX = 600 }; /* the wire's bound and some for the envelope */

struct qmp_trace {
    int fd;
};

static json_t *redact(const json_t *json, bool in_object_add, unsigned depth);
static json_t *redact_object(const json_t *json, bool in_object_add,
                             unsigned depth);
static bool is_secret(const char *key, bool in_object_add);
static bool is_secret_line(const char *key, const json_t *value);
static bool sets_secret(const json_t *object);
static bool adds_object(const json_t *object);

int qmp_trace_open(const char *path, struct qmp_trace **ret, struct err **errp)
{
    struct qmp_trace *trace = calloc(1, sizeof(*trace));
    if (trace == NULL) {
        return err_set(errp, -ENOMEM, path, "out of memory");
    }
    trace->fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (trace->fd < 0) {
        int r = -errno;
        free(trace);
        return err_set(errp, r, path, "cannot open the trace: %s",
                       strerror(-r));
    }
    struct stat st;
    if (fstat(trace->fd, &st) == 0 && S_ISREG(st.st_mode)) {
        (void)fchmod(trace->fd, 0600); /* one that was there before */
    }
    *ret = trace;
    return 0;
}

struct qmp_trace *qmp_trace_close(struct qmp_trace *trace)
{
    if (trace != NULL) {
        (void)close(trace->fd);
        free(trace);
    }
    return NULL;
}

json_t *qmp_redact(const json_t *message)
{
    return redact(message, false, 0);
}

void trace_message(struct qmp_trace *trace, const char *addr, char dir,
                   const json_t *message)
{
    /* a trace is read next to other logs: it is the one use of the clock */
    uv_timeval64_t now = {0};
    (void)uv_gettimeofday(&now);
    char time[STR_TIME_MAX];
    (void)str_time((uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_usec,
                   time);
    char direction[] = {dir, '\0'};
    json_auto_t *line =
        json_pack("{s:s, s:s, s:s, s:o}", "time", time, "addr", addr, "dir",
                  direction, "msg", qmp_redact(message));
    char *text = line ? json_dumps(line, JSON_COMPACT) : NULL;
    if (text == NULL) {
        return;
    }
    /* one write with O_APPEND: lines of several writers do not mix */
    size_t length = strlen(text);
    text[length] = '\n'; /* in place of the NUL */
    ssize_t n = write(trace->fd, text, length + 1);
    (void)n;
    free(text);
}

static json_t *redact(const json_t *json, bool in_object_add, unsigned depth)
{
    if (depth > DEPTH_MAX) {
        return json_string("<too deep>");
    }
    if (json_is_object(json)) {
        return redact_object(json, in_object_add, depth);
    }
    if (!json_is_array(json)) {
        return json_copy((json_t *)(uintptr_t)json);
    }
    json_t *copy = json_array();
    size_t i;
    const json_t *item;
    json_array_foreach(json, i, item) {
        if (json_array_append_new(copy,
                                  redact(item, in_object_add, depth + 1)) < 0) {
            json_decref(copy);
            return NULL;
        }
    }
    return copy;
}

static json_t *redact_object(const json_t *json, bool in_object_add,
                             unsigned depth)
{
    in_object_add = in_object_add || adds_object(json);
    bool value_is_secret = sets_secret(json);
    json_t *copy = json_object();
    void *it = json_object_iter((json_t *)(uintptr_t)json);
    for (; it != NULL;
         it = json_object_iter_next((json_t *)(uintptr_t)json, it)) {
        const char *key = json_object_iter_key(it);
        const json_t *value = json_object_iter_value(it);
        bool secret = is_secret(key, in_object_add) ||
                      is_secret_line(key, value) ||
                      (value_is_secret && str_eq(key, "value"));
        bool scalar = !json_is_object(value) && !json_is_array(value);
        json_t *kept = secret && scalar
                           ? json_string("<redacted>")
                           : redact(value, in_object_add, depth + 1);
        if (json_object_set_new(copy, key, kept) < 0) {
            json_decref(copy);
            return NULL;
        }
    }
    return copy;
}

/*
 * 'key-secret', 'password-secret' and the like are ids of objects and stay:
 * they are what one looks for when a secret does not work.
 */
static bool is_secret(const char *key, bool in_object_add)
{
    static const char *const always[] = {"password", "passphrase", "cookie"};
    for (unsigned i = 0; i < ARRAY_SIZE(always); i++) {
        if (str_eq(key, always[i])) {
            return true;
        }
    }
    return in_object_add && (str_eq(key, "data") || str_eq(key, "key"));
}

/* human-monitor-command takes whole lines of another language. */
static bool is_secret_line(const char *key, const json_t *value)
{
    const char *line = json_string_value(value);
    return str_eq(key, "command-line") && line != NULL &&
           (strstr(line, "object_add") != NULL ||
            strstr(line, "password") != NULL);
}

/* qom-set of the property of a secret object. */
static bool sets_secret(const json_t *object)
{
    const char *property =
        json_string_value(json_object_get(object, "property"));
    return property != NULL && is_secret(property, true);
}

static bool adds_object(const json_t *object)
{
    const char *command = json_string_value(json_object_get(object, "execute"));
    if (command == NULL) {
        command = json_string_value(json_object_get(object, "exec-oob"));
    }
    return str_eq(command, "object-add") ||
           /* without its envelope: arguments of object-add alone */
           json_object_get(object, "qom-type") != NULL;
}
