/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Steps about holding the guest for a moment: one bracket of stop and cont
 * around all that happens to all disks. A guest that did not run stays so.
 */
#pragma once

#include "run/step.h"

step_when_fn guest_is_held;
step_fn guest_look, guest_stop, guest_stop_undo, guest_stop_probe, guest_cont;
step_command_fn guest_stop_command, guest_cont_command;

/* Whether it was us who stopped the guest, and owe it a cont. */
bool guest_owes_cont(const struct act *act);
/* Whether query-status's reply says that it runs. */
bool guest_runs(const json_t *status);
/* The guard that lets a stopped guest go on if we do not. */
int guest_guard(struct act *act, struct err **errp);
