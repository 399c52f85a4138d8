/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What is asked of operations, and followed, in an engine. */
#pragma once

#include "base/list.h"

/* The engine is closing: nobody is followed any more. */
void request_detach_all(const struct list_node *requests);
