/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The option --disk DISK=TARGET of verbs that work on disks. */
#pragma once

#include "options.h"
#include "qpivot.h"

/*
 * Splits each DISK=TARGET at the first '='; all that are wrong are named. The
 * names live in one text that the caller frees.
 */
int split_disks(const struct verb *verb, const struct option_list *list,
                struct qpivot_disk *disks, char **ret_text);
