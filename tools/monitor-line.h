/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a person types at the monitor shell -> a QMP command. Pure. */
#pragma once

#include <jansson.h>

/*
 * "job-pause id=x", "blockdev-add driver=qcow2 file.driver=file ..." (a dot
 * goes one object deeper), or {"execute":..,"arguments":..}. Values are JSON
 * where they look like it (true, 12, "12", {..}, [..]), else text. Returns 0
 * and both results ('ret_arguments' may be NULL), or -1 with a message. The
 * caller frees all.
 */
int monitor_line_parse(const char *line, char **ret_command,
                       json_t **ret_arguments, char **ret_message);
/* The same of words that a shell has split. */
int monitor_words_parse(char *const *words, unsigned n, char **ret_command,
                        json_t **ret_arguments, char **ret_message);
/* Whether a line had better not be kept in a history. */
int monitor_line_secret(const char *line);
