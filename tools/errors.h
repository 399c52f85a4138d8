/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Errors as a person reads them, on stderr. */
#pragma once

#include <jansson.h>

/* Exit codes, as enum qpivot_outcome: the program's own come from here. */
enum { EXIT_USAGE = 2, EXIT_PARKED = 3, EXIT_UNREACHABLE = 4 };

/*
 * "qpivot: <object>: <what failed>: <QEMU's words>", and the hint on the next
 * line, of an error object of libqpivot(3). Text that is no JSON is printed as
 * it is; NULL means that memory was short.
 */
void error_print(const char *error);
void error_print_json(const json_t *error);
/* The same, but about 'object' instead of the monitor. */
void error_print_of(const char *object, const char *error);
/* The line without "qpivot: " and hint; the caller frees it. */
char *error_line(const json_t *error);

/* "qpivot: <object>: <text>"; 'object' may be NULL. */
void error_say(const char *object, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
/* "hint: <text>". */
void error_hint(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
