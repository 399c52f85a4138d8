/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What steps share about jobs and nodes of ours in QEMU. */
#pragma once

#include "run/step.h"
#include "vm/graph.h"
#include "vm/names.h"

/* The name of 'what' for the act's disk. */
struct name act_name(const struct act *act, enum name_what what);

/* How long the way back waits for a target that does not answer. */
uint64_t act_patience_ms(const struct act *act);

/*
 * Ends the act when the job of this id is no more: cancels it by force if it
 * runs, dismisses it when it is concluded. A job that is not there is success.
 * One that stays has its NBD connections cut after 5 s, and is given up after
 * 30. 'then' goes on instead of the end, unless it is NULL.
 */
void act_clear_job(struct act *act, enum name_what what, step_fn *then);

/* Ends the act when the node is no more. One that is not there is success. */
void act_delete_node(struct act *act, enum name_what what);

/*
 * Whether a disk is still what was planned: its device, active layer, nodes,
 * size and named bitmaps. -ESTALE with what differs. With strategy base it is
 * on its overlay, or, for disk_is_to_freeze(), not yet.
 */
int disk_is_as_planned(const struct graph *graph, const struct plan_disk *disk,
                       struct err **errp);
int disk_is_to_freeze(const struct graph *graph, const struct plan_disk *disk,
                      struct err **errp);
/* The name of that overlay's node, or NULL. */
const char *disk_overlay(const struct plan_disk *disk);
/*
 * Whether the guest does not use our target (any more): -EBUSY if it does.
 * 'ret_source' is the planned active layer if its device uses that, else it is
 * left alone: somebody has changed the chain, or unplugged the disk.
 */
int disk_is_back(const struct graph *graph, const char *op,
                 const struct plan_disk *disk,
                 const struct graph_node **ret_source, struct err **errp);
/* The node that has this volume open in QEMU, by its name, or NULL. */
const struct graph_node *graph_opens(const struct graph *graph,
                                     const struct volume *volume);
/* -EBUSY when one has, so that it is not 'done': "removed", "given back". */
int disk_is_closed(const struct graph *graph, const struct volume *volume,
                   const char *done, struct err **errp);

/* The "stats" of the disk's device in a reply of query-blockstats, or NULL. */
const json_t *disk_device_stats(const json_t *list,
                                const struct plan_disk *disk);

/* Probes whether the node is there. */
void act_probe_node(struct act *act, enum name_what what);
