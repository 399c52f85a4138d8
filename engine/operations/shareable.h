/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A disk that others may write to as well (share-rw=on): a copy of it would
 * lack what they write, as a mirror sees the writes of its own QEMU only.
 */
#pragma once

#include "run/step.h"

/* A step's: only of what is to be copied, and where the graph gives cause. */
bool shareable_is_suspected(const struct plan *plan,
                            const struct plan_disk *disk);
void shareable_look(struct act *act);
