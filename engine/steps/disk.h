/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Steps about a target: its volume, its nodes in QEMU, and giving it back. */
#pragma once

#include "run/step.h"

/* the volume on its storage */
step_when_fn disk_is_created;
step_fn disk_create, disk_remove, disk_publish;

/* the secret that QEMU opens it with */
step_when_fn disk_has_secret;
step_fn disk_secret_add, disk_secret_del;
step_command_fn disk_secret_command, disk_secret_drop_command;

/* its protocol node */
step_when_fn disk_has_file_node;
step_fn disk_file_add, disk_file_del, disk_file_probe;
step_command_fn disk_file_command;

/* image metadata on that node */
step_when_fn disk_is_formatted;
step_fn disk_format, disk_format_undo;
step_command_fn disk_format_command;

/* with drive-mirror QEMU opens the target itself: the node was for format */
step_when_fn disk_file_is_dropped;
step_fn disk_file_drop;

/* the image, where the target node is a raw one above it */
step_when_fn disk_has_image;
step_fn disk_image_add, disk_image_del, disk_image_probe;
step_command_fn disk_image_command;

/* Of a migration's: its base was to stay, and is not proved to be the same. */
bool disk_loses_base(const struct act *act);

/* the node that the guest will use */
step_when_fn disk_has_node;
step_fn disk_node_add, disk_node_del, disk_node_probe;
step_command_fn disk_node_command;

/* after the pivot: without what was for the copy only */
step_when_fn disk_is_reopened;
step_fn disk_reopen;
step_command_fn disk_reopen_command;

/* What the graph says of the disk now, for the differences; NULL: nothing. */
json_t *disk_facts(const struct graph *graph, const struct plan_disk *disk);

/*
 * The target's nodes as blockdev-add would make them now: [file, format], for
 * the description of the VM. 'file_name' and 'node_name' are their node names.
 */
json_t *disk_blockdevs(const struct plan_disk *disk, const char *file_name,
                       const char *node_name);
