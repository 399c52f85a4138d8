/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Steps about the former disk, after the pivot is proved. */
#pragma once

#include "run/step.h"

step_fn source_detach, source_remove;
step_when_fn source_is_removed;
step_command_fn source_detach_command;
