/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Runs one program with a deadline: text in, exit status and text out. */
#pragma once

#include <uv.h>

struct err;
struct spawn;

/*
 * err NULL: it exited with 0. Otherwise -ETIMEDOUT (it was killed), or
 * -ECHILD with its exit status and the last line it printed on stderr.
 * 'output' is what it printed on stdout, at most 64 KiB, NUL-ended, borrowed.
 */
typedef void spawn_fn(void *data, const struct err *err, const char *output);

/*
 * Starts /bin/sh -c 'command' with 'input' (copied, may be NULL) on stdin and
 * the variables 'env' ("NAME=value", NULL-ended, or NULL) added to the
 * environment. The callback comes exactly once.
 */
int spawn_start(uv_loop_t *loop, const char *command, const char *input,
                const char *const *env, unsigned timeout_ms, spawn_fn *cb,
                void *data, struct spawn **ret, struct err **errp);

/* Kills it; the callback will not come. */
void spawn_cancel(struct spawn *spawn);
