/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Lines from stdin while the loop turns. On a terminal, with readline: edited,
 * completed from the schema of the QEMU, and kept in a history.
 */
#pragma once

#include <stdbool.h>

#include "session.h"

/* Called from outside the loop: it may wait. 'false' ends the shell. */
typedef bool shell_line_fn(void *data, const char *line);

/*
 * Reads until the end of the input, 'cb' says false, or the monitor is lost.
 * 'history' is a file or NULL.
 */
void shell_run(struct session *s, const char *history, shell_line_fn *cb,
               void *data);
/* Prints a line above the prompt, if there is one now. */
void shell_print(const char *text);
