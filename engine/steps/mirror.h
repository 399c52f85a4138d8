/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Steps about mirror jobs: start, follow until all are ready, clear away. */
#pragma once

#include "run/step.h"

step_fn mirror_start, mirror_cancel, mirror_probe, mirror_ready;
step_fn mirror_dismiss;
step_command_fn mirror_command, mirror_dismiss_command;
