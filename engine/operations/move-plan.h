/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a move looks at before it decides, and what it decides: every problem
 * in one go, and for each disk how it is copied and why.
 */
#pragma once

#include <stdbool.h>

#include "run/op.h"

struct move_request;
struct qpivot_move_options;

int move_request_new(const struct qpivot_move_options *options,
                     struct plan **ret_plan, struct move_request **ret,
                     struct err **errp);
void move_request_free(void *request);

step_fn move_look_graph, move_look_source, move_look_target;
step_fn move_look_secret;
void move_decide(struct op *op);

/* The source as it is found; -ENOMEM. */
struct graph;
struct graph_disk;
int move_fill_source(struct plan_disk *disk, const struct graph *graph,
                     const struct graph_disk *found);

/* What of the source's way of being opened goes over to a node. */
void move_carry_options(const struct plan_disk *disk, json_t *node);

/* After the pivot: what the target holds. Never fails. */
step_fn move_measure;

/* Whether DEVICE_DELETED's path or id means the device of a plan. */
bool move_is_device(const char *key, const char *path, const char *id);
