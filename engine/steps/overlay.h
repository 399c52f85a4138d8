/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Strategy base: the source's image stands still below an overlay while its
 * bytes are copied, and the target's copy of it gets what the guest has
 * written since by an overlay of its own, the landing.
 */
#pragma once

#include "run/step.h"

step_when_fn overlay_is_used;

/* The path of a volume of strategy base, or NULL; the caller frees it. */
char *overlay_file_of(const char *uri);

/* the overlay: its file beside the source, its nodes, its header */
step_fn overlay_create, overlay_remove;
step_fn overlay_file_add, overlay_file_del, overlay_file_probe;
step_command_fn overlay_file_command, overlay_format_command;
step_fn overlay_node_add, overlay_node_del, overlay_node_probe;
step_command_fn overlay_node_command;

/* the guest writes to the overlay from now on; undone, to the source again */
step_fn overlay_freeze, overlay_freeze_undo;
step_command_fn overlay_freeze_command;

/* the source's bytes onto the target, which is there and blank */
step_fn overlay_copy, overlay_copy_undo;

/* the landing, like the overlay */
step_fn landing_create, landing_remove;
step_fn landing_file_add, landing_file_del, landing_file_probe;
step_command_fn landing_file_command, landing_format_command;
step_fn landing_node_add, landing_node_del, landing_node_probe;
step_command_fn landing_node_command;
