/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Several queries at once to one QEMU, answered together: what one look at
 * it needs. It knows which queries make up the block graph.
 */
#pragma once

#include "vm/vm.h"

/* replies[i] belongs to commands[i], borrowed; NULL on error. */
typedef void vm_query_fn(void *data, const struct err *err,
                         json_t *const *replies);

/*
 * Sends the argument-less 'commands' (at most 8, of static storage). The
 * callback comes once from the loop. -ENOTCONN unless the vm is up.
 */
int vm_query_start(struct vm *vm, const char *const *commands,
                   unsigned n_commands, vm_query_fn *cb, void *data,
                   struct vm_query **ret);
