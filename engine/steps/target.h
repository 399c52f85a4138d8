/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Steps about a target that does not exist before a migration: a file that the
 * destination's QEMU makes on its own host, or network storage that a backend
 * makes and both QEMUs open. The destination's device stands on a placeholder
 * until then.
 */
#pragma once

#include "run/step.h"

/* A file of the destination's host, made there. */
step_when_fn target_is_made;
step_fn target_make, target_unmake, target_dismiss, target_stay;
step_command_fn target_make_command;

/* How the destination's QEMU, asked to open a file, has answered. */
enum target_there { TARGET_ABSENT, TARGET_THERE, TARGET_UNKNOWN };

/*
 * blockdev-add arguments that QEMU always refuses, so that nothing has to be
 * taken back: the refusal tells whether there is a file 'path'.
 */
json_t *target_look_arguments(const char *op, const struct plan_disk *disk,
                              const char *path);
/* 'err' is that refusal; NULL: QEMU took it all the same. */
enum target_there target_there(const struct err *err);

/* Network storage, made by its backend. */
step_when_fn target_is_on_network, target_is_created;

/* The source writes it itself. */
step_when_fn target_is_direct, target_has_direct_secret, target_leaves_secret;

/* The destination's device gets it in the placeholder's stead. */
step_when_fn target_is_attached, target_is_formatted, target_needs_secret,
    target_has_placeholder;
step_fn target_node_add, target_attach, target_drop;
step_command_fn target_node_command, target_attach_command, target_drop_command;
