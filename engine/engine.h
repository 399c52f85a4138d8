/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The engine: one loop, one journal, the operations and monitors that are
 * alive on it, and their orderly end.
 */
#pragma once

#include <stdbool.h>
#include <uv.h>

#include "base/list.h"
#include "qpivot.h"
#include "run/op.h"

struct err;
struct journal;

int engine_new(uv_loop_t *loop, const char *state_dir, const char *trace_file,
               struct qpivot_engine **ret, struct err **errp);
bool engine_has_own_loop(const struct qpivot_engine *engine);
void engine_run(struct qpivot_engine *engine);
void engine_close(struct qpivot_engine *engine, void (*closed)(void *data),
                  void *data);

uv_loop_t *engine_loop(const struct qpivot_engine *engine);
struct journal *engine_journal(const struct qpivot_engine *engine);
const char *engine_state_dir(const struct qpivot_engine *engine);
/* Of struct qpivot_transfer, see transfer.c. */
struct list_node *engine_transfers(struct qpivot_engine *engine);
/* Of struct qpivot_request, see request.c. */
struct list_node *engine_requests(struct qpivot_engine *engine);
struct qmp_trace *engine_trace(const struct qpivot_engine *engine);

/* What a new operation is given. */
struct op_host engine_host(struct qpivot_engine *engine);

/* Monitors count as alive, so that closing waits for them. */
void engine_hold(struct qpivot_engine *engine);
void engine_release(struct qpivot_engine *engine);

/* The table of this kind, or NULL. */
const struct operation *engine_operation(const char *kind);
