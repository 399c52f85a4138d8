/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The claim: an object inside QEMU that says which operation works on it. To
 * add it is atomic, it is seen by every client, and it dies with QEMU.
 */
#pragma once

#include "run/step.h"

step_fn claim_take, claim_give, claim_probe;
step_command_fn claim_command, claim_give_command;

/* For qom-get: whose the claim is. New reference. */
json_t *claim_holder_arguments(void);

/*
 * Calls 'then' if the act's QEMU is the one that we claimed. Else ends the
 * act: what was ours died with that one. For undoing in a destination, which
 * may have been started anew. 'then' must not use act_scratch().
 */
void claim_if_ours(struct act *act, step_fn *then);

/* A step of a plan: a claim of another operation is a problem. */
step_fn claim_check;
