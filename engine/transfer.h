/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Copies and comparisons of volumes at rest that run in an engine. */
#pragma once

#include "base/list.h"

/* The engine is closing: they all end soon. */
void transfer_cancel_all(const struct list_node *transfers);
