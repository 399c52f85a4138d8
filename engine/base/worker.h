/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A thread for one blocking act that a loop can walk away from. One of libuv's
 * pool cannot be left: storage that never answers would keep it from all
 * others, a loop that waits for it could not be closed, and the process could
 * not end, because libuv joins its pool at exit.
 */
#pragma once

#include <uv.h>

struct worker;

struct worker_ops {
    void (*run)(void *data);   /* in the thread */
    void (*ended)(void *data); /* from the loop, when that is through */
    /* Instead, once it was left: from the thread or the loop. */
    void (*gone)(void *data);
};

/* 0: one of 'ended' and 'gone' comes, once, and not from in here. */
int worker_start(uv_loop_t *loop, const struct worker_ops *ops, void *data,
                 struct worker **ret);
/* The loop has no more to do with it. What runs goes on: see 'gone'. */
void worker_leave(struct worker *worker);
/* Threads of this process that were left and still run. */
unsigned worker_n_hung(void);
