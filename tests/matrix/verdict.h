/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What must be true after a case, whatever went wrong in it. */
#pragma once

#include <stdbool.h>

#include "matrix/scenario.h"

enum { VERDICT_TEXT = 512 };

/*
 * Whether what the engine said when it ended is so: each disk is its target,
 * or each its source, and one QEMU has the guest, as it was; no write is lost;
 * nothing of ours is left, neither in a QEMU nor on the storage nor as a
 * process. What is against it goes to 'text'.
 */
bool verdict_holds(struct world *world, const struct scenario *scenario,
                   char text[VERDICT_TEXT]);
/* The same for what the journal says at the very end. */
bool verdict_of_journal(struct world *world, const struct scenario *scenario,
                        char text[VERDICT_TEXT]);
/*
 * What must hold when only QEMU could be asked, and 'asked' was: all of the
 * guest's writes, no disk half-way, nothing of ours in QEMU, nothing freed.
 */
bool verdict_without_journal(struct world *world,
                             const struct scenario *scenario, enum side asked,
                             char text[VERDICT_TEXT]);
/*
 * What must hold when doctor has removed all that it could at that side, and
 * the journal is lost: each disk is where it was, nothing of ours is left in
 * that QEMU, or the guest is on its way and doctor has said so.
 */
bool verdict_doctored(struct world *world, const struct scenario *scenario,
                      enum side side, char text[VERDICT_TEXT]);
/*
 * Whether it is right that nobody can end the operation any more: a QEMU died
 * that had the guest, or may have had it, and nothing else has got it since.
 */
bool verdict_is_lost(struct world *world, char text[VERDICT_TEXT]);
/* What must not even be while an operation is parked. */
bool verdict_is_safe(struct world *world, char text[VERDICT_TEXT]);
/* How an engine ended that should not have ended so. */
const char *verdict_end(const struct world *world, char text[VERDICT_TEXT]);
