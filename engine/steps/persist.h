/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Steps about what outlives this QEMU, and about its guest's power. */
#pragma once

#include "run/step.h"

step_when_fn persist_is_wanted;
/*
 * With an undo window the owner is told before it, for a QEMU that dies in it
 * has last used the targets; without one, at the end.
 */
step_when_fn persist_in_window, persist_at_end;
step_fn persist_write;
/* The same with the former disks, when the guest is back on them. */
step_fn persist_return;

/*
 * Whether 'path' (absolute; NULL: out of memory) can be written when the time
 * comes: -EINVAL or what the file system says.
 */
int persist_check_file(const char *path, struct err **errp);
/* New text: 'path' from the working directory; NULL without memory. */
char *persist_absolute(const char *path);

/* set-action shutdown=pause while jobs run, and back */
step_when_fn power_is_held;
step_fn power_hold, power_release;
step_command_fn power_hold_command, power_release_command;
/* A guest that has shut down meanwhile gets what it asked for: the end. */
step_fn power_mark, power_follow;

/*
 * What the owner of the VM must store for the next cold start: {"op","disks":
 * [{"disk","device","drive","objects":[],"blockdev":[{},{}],"argv":[]}]}.
 */
json_t *persist_description(const char *op, const struct plan *plan);
/* As it was before: with "returned", and without "blockdev" where unknown. */
json_t *persist_former(const char *op, const struct plan *plan);
