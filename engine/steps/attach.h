/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Steps that make a target usable on this host, give that back, and let go of
 * a source that nobody uses here any more: roles of a replicated volume. How
 * it stood before is in the plan, and so in the journal before any of them.
 */
#pragma once

#include "run/step.h"

/* The target: brought up and promoted, as far as it is not. */
step_when_fn attach_is_needed;
/* Undo, and the way back from within the undo window. */
step_fn attach_run, attach_give_back;

/* The former disk, closed by now: never fails, but tells. */
step_when_fn attach_has_source;
step_fn attach_let_go;
