/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The undo window of a move: what speaks against it, and what is told of it. */
#pragma once

#include <stdbool.h>

#include "run/op.h"

step_when_fn move_has_window;
/* A disk whose source cannot be kept as a twin is a problem of the plan. */
void move_decide_window(struct op *op, struct plan_disk *disk);

/* For struct operation. */
int move_on_request(struct op *op, const char *word, const json_t *args,
                    struct err **errp);
bool move_may_return(const struct op *op);
/* Adds "undo_window" to the result of a move that had one. */
void move_total(struct op *op, json_t *result);
/* Adds how long the writes of a disk took, where that was measured. */
void move_add_latency(const struct op *op, const struct plan_disk *disk,
                      json_t *json);
