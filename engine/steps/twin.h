/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Steps about the undo window: the former disks go on as twins of the targets,
 * each by a mirror back onto it that copies what is written from now on, and
 * nothing else, because both were equal while the guest stood still.
 */
#pragma once

#include "run/step.h"

step_fn twin_start, twin_probe, twin_drop, twin_check;
step_command_fn twin_command, twin_drop_command;
/* How long guest writes take: before, and within the window. */
step_fn twin_look_latency;
/* Waits until the time is over, a twin breaks, or the guest powers off. */
step_fn twin_window;

/* Whether each disk's mirror back was started by this engine. */
bool twin_all_began(const struct act *act);
/* The facts of an open window; the guest stood still for 'ms'. */
json_t *twin_opened(uint64_t ms);
