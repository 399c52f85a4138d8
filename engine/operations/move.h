/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* move: the disks of a running VM to other storage, in the same QEMU. */
#pragma once

#include "run/op.h"

struct qpivot_move_options;

extern const struct operation move_operation;

/* Checks and copies the options. -EINVAL, -ENOMEM. */
int move_start(const struct op_host *host,
               const struct qpivot_move_options *options,
               const struct qpivot_callbacks *callbacks, struct op **ret,
               struct err **errp);
