/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Steps about the migration stream: from its settings to the guest's start. */
#pragma once

#include "run/step.h"

/* capabilities and parameters, of the step's QEMU, and back */
step_fn capabilities_set, capabilities_restore;
step_fn parameters_set, parameters_restore;
step_command_fn capabilities_command, parameters_command;
step_when_fn stream_has_parameters;

/* the destination's listening socket: incoming.c */
step_fn incoming_open, incoming_close, incoming_probe;
step_command_fn incoming_command;

step_fn stream_start, stream_cancel, stream_probe, stream_follow;

/* stop the guest, where precopy alone takes too long */
step_when_fn stream_may_suspend;
step_fn suspend_stop, suspend_go_on, stream_gate;

/* switchover.c */
step_fn switchover_run, switchover_probe;
step_command_fn switchover_command;

/* guest.c: the guest on the destination, and what is left of it on the source */
step_fn guest_start, guest_prove, guest_prove_disk;
step_fn source_quit;
step_when_fn source_is_quit, source_is_left;

/* --- between these files --- */

/* Whether the guest ran when the stream took it. */
bool stream_guest_ran(const struct act *act);
