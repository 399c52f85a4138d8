/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Steps about the instant the guests' disks change: pivot, proof, tidying. */
#pragma once

#include "run/step.h"

step_fn pivot_run, pivot_undo, pivot_probe;
step_command_fn pivot_command;
step_fn pivot_prove;

struct graph;

/* Whether the device's own node is a target of ours already. */
bool pivot_has_happened(const struct act *act, const struct graph *graph,
                        unsigned disk);
