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

/* postcopy.c: let the guest go over before all of its memory */
step_when_fn stream_may_postcopy, stream_may_leave;
step_fn postcopy_start, postcopy_go_back, postcopy_follow;
step_command_fn postcopy_command;

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
/* Whether it was decided that it goes over before its memory. */
bool stream_goes_over(const struct act *act);
/* ... or was stopped for it, so that it does not go on when that ends. */
bool stream_must_thaw(const struct act *act);
/* A status of query-migrate: the source has let the guest go over. */
bool stream_is_postcopy(const char *status);
/* Whoever dies or stops while it is on its way leaves the guest here. */
int stream_guard(struct act *act, struct err **errp);
/*
 * Ends the stream, and the guest goes on at the source; 'was_stopped': QEMU
 * does not let it by itself.
 */
void stream_go_back(struct act *act, bool was_stopped);
/* Its progress, from query-migrate, at most twice a second. */
void stream_tell(struct act *act, const json_t *info, const char *phase,
                 uint64_t *told_ms);
