/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* migrate: a running VM to another QEMU, with its disks. */
#pragma once

#include "run/op.h"

struct qpivot_migrate_options;

extern const struct operation migrate_operation;

/* Checks and copies the options. -EINVAL, -ENOMEM. */
int migrate_start(const struct op_host *host,
                  const struct qpivot_migrate_options *options,
                  const struct qpivot_callbacks *callbacks, struct op **ret,
                  struct err **errp);
