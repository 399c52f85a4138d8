/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Taking up an operation whose engine is gone: what the journal says of it,
 * and that nobody else works on it. The runner does the rest.
 */
#pragma once

#include "run/op.h"

struct qpivot_recover_options;

/*
 * 'find' gives the table of an operation's kind. -EBUSY when its engine still
 * lives, -EALREADY when it has ended, -EPROTO for another version's.
 */
int recover_start(const struct op_host *host,
                  const struct operation *(*find)(const char *kind),
                  const struct qpivot_recover_options *options,
                  const struct qpivot_callbacks *callbacks, struct op **ret,
                  struct err **errp);
