/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Steps about a disk that is copied to another host: the destination's NBD
 * server and exports, and the source's node that writes to them.
 */
#pragma once

#include "run/step.h"

step_when_fn export_is_copied; /* the disk, or any disk of the plan */
step_when_fn copy_is_wanted;   /* by an export, or without one */

step_fn server_start, server_stop, server_undo;
step_command_fn server_command, server_stop_command;

step_fn export_add, export_del, export_probe;
step_command_fn export_command;
/*
 * The same of the base below a linked clone, to be read only; steps whose name
 * begins with "base-" are about that one.
 */
step_command_fn export_base_command;

enum name_what;
struct err;
/* Where this process finds it: NAME_EXPORT, NAME_BASE; the caller frees it. */
int export_uri(struct act *act, enum name_what what, char **ret,
               struct err **errp);

/* For a moment, and of its protocol node: so that a job may write to it. */
step_fn export_activate;
step_command_fn export_activate_command;

step_fn client_add, client_del, client_probe;
step_command_fn client_command;

/* Whether all disks are as planned, and no job works but ours. */
step_fn copy_check;
/* The same of 'jobs'. */
int copy_jobs_check(const struct act *act, const struct job_list *jobs,
                    struct err **errp);
struct stall;
/*
 * Of a copy that is ready: whether what it has under way by an export stands
 * still, for as long as a command may take. -ETIMEDOUT.
 */
int copy_stalls(const struct act *act, const struct plan_disk *disk,
                const struct job *job, struct stall *stall, struct err **errp);
/* copy_jobs_check(), and that of all; 'stalls' by disk. */
int copy_jobs_move(const struct act *act, const struct job_list *jobs,
                   struct stall *stalls, struct err **errp);
/* Ends the mirror without a pivot, error-free, and closes its nodes. */
step_fn copy_end;
step_command_fn copy_end_command;
