/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The error object: what failed, at which object, in whose words. It knows
 * how to be read by a person and by a program, and nothing about QMP or
 * storage beyond carrying their words verbatim.
 *
 * As a line:   <object>: <command> failed: <desc>     (QMP)
 *              <object>: <desc>                       (everything else)
 */
#pragma once

#include <jansson.h>

#include "base/cleanup.h"

struct err {
    int code;      /* negative errno */
    char *object;  /* what it is about: a disk, node, URI, socket; or NULL */
    char *command; /* the QMP command that was refused, or NULL */
    char *class;   /* QMP error class verbatim, or the errno's name */
    char *desc;    /* one phrase: lower case, no newline, no full stop */
    char *hint;    /* what the reader can do about it, or NULL */
};

/*
 * Sets *errp and returns 'code', so that a failing path is one statement.
 * A NULL 'errp' is fine. An error that is already there is replaced. When
 * memory is short, *errp stays NULL and the code alone tells.
 */
int err_set(struct err **errp, int code, const char *object, const char *fmt,
            ...) __attribute__((format(printf, 4, 5)));

/* The same for an error reply of QEMU; class and desc are kept verbatim. */
int err_set_qmp(struct err **errp, const char *object, const char *command,
                const char *class, const char *desc);

/* Sets the hint of *errp, if there is an error. */
void err_hint(struct err **errp, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/* Adds context in front of the object: "disk 'd0': node 'x'". */
void err_prefix(struct err **errp, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/* Returns a copy that the caller owns, NULL for NULL or without memory. */
struct err *err_copy(const struct err *err);

/* Returns the line for a person without the hint; the caller frees it. */
char *err_text(const struct err *err);

/*
 * {"object","command","class","desc","hint"}, absent members left out; a new
 * reference, NULL without memory. err_from_json() is its inverse.
 */
json_t *err_to_json(const struct err *err);
struct err *err_from_json(const json_t *json);

/* err's code, or 'code' where err is NULL for want of memory. */
int err_code(const struct err *err, int code);

struct err *err_free(struct err *err);
DEFINE_CLEANUP(struct err, err_free)
#define _cleanup_err_ _cleanup_(err_freep)
