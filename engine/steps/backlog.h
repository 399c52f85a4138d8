/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Steps about what the mirrors of a migration still owe: the guest is not
 * stopped before that is little, and not handed over unless it is.
 */
#pragma once

#include "run/step.h"

/* Where a running job can change: the guest waits for both sides from now. */
step_fn backlog_switch;
step_command_fn backlog_switch_command;
step_when_fn backlog_may_switch;
/* What a mirror is started with where the schema has that, or has it not. */
const char *backlog_copy_mode(bool can_switch);

/* Waits until the rest fits into the downtime limit, but not for ever. */
step_fn backlog_wait;

/* The guest stands: whether the rest of the act's disk fits; -ETIME if not. */
int backlog_check(const struct act *act, const struct job *job,
                  struct err **errp);
