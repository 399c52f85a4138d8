/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Errors as a person reads them, on stderr. It knows the error object of
 * libqpivot(3), and nothing about where the error came from.
 */
#include "errors.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "text.h"

static const char *member(const json_t *error, const char *name);
static const char *colon(const char *object);
static void line(const char *head, const char *fmt, va_list ap);

void error_print(const char *error)
{
    if (error == NULL) {
        error_say(NULL, "out of memory");
        return;
    }
    json_auto_t *json = json_loads(error, JSON_DECODE_ANY, NULL);
    if (json == NULL) {
        error_say(NULL, "%s", error);
        return;
    }
    error_print_json(json);
}

void error_print_of(const char *object, const char *error)
{
    json_auto_t *json =
        error != NULL ? json_loads(error, JSON_DECODE_ANY, NULL) : NULL;
    if (json_is_object(json) &&
        json_object_set_new(json, "object", json_string(object)) == 0) {
        error_print_json(json);
    } else {
        error_print(error);
    }
}

void error_print_json(const json_t *error)
{
    char *text = error_line(error);
    error_say(NULL, "%s", text != NULL ? text : "out of memory");
    free(text);
    const char *hint = member(error, "hint");
    if (hint != NULL) {
        error_hint("%s", hint);
    }
}

char *error_line(const json_t *error)
{
    if (json_is_string(error)) {
        return text_printf("%s", json_string_value(error));
    }
    const char *object = member(error, "object");
    const char *command = member(error, "command");
    const char *desc = member(error, "desc");
    return text_printf("%s%s%s%s%s", object != NULL ? object : "",
                       colon(object), command != NULL ? command : "",
                       command != NULL ? " failed: " : "",
                       desc != NULL ? desc : "failed, no reason was given");
}

void error_say(const char *object, const char *fmt, ...)
{
    char *head = text_printf("qpivot: %s%s", object != NULL ? object : "",
                             colon(object));
    va_list ap;
    va_start(ap, fmt);
    line(head != NULL ? head : "qpivot: ", fmt, ap);
    va_end(ap);
    free(head);
}

void error_hint(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    line("hint: ", fmt, ap);
    va_end(ap);
}

/* "rbd:" has its own. */
static const char *colon(const char *object)
{
    size_t n = object != NULL ? strlen(object) : 0;
    return object == NULL ? "" : n > 0 && object[n - 1] == ':' ? " " : ": ";
}

static const char *member(const json_t *error, const char *name)
{
    const char *text = json_string_value(json_object_get(error, name));
    return text != NULL && text[0] != '\0' ? text : NULL;
}

/* One write: lines of several processes on one stderr do not mix. */
static void line(const char *head, const char *fmt, va_list ap)
{
    char *text = NULL;
    if (vasprintf(&text, fmt, ap) < 0) {
        text = NULL;
    }
    char *whole = text_printf("%s%s", head, text != NULL ? text : fmt);
    (void)fflush(stdout);
    (void)fprintf(stderr, "%s\n", whole != NULL ? text_tame(whole) : head);
    free(whole);
    free(text);
}
