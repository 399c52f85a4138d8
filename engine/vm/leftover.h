/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What carries our names in a QEMU, and what still uses it. Pure: it reads a
 * graph and lists, sends nothing, and knows no journal.
 */
#pragma once

#include <jansson.h>

struct graph;

enum { LEFTOVERS_MAX = 4096 }; /* of all kinds; more are counted only */

struct leftover_look {
    const struct graph *graph;
    const json_t *objects;  /* qom-list of /objects, or NULL */
    const json_t *chardevs; /* query-chardev, or NULL */
    const char *holder;     /* what the claim says; NULL: there is none */
};

/*
 * A new array of {"kind","name","op","use","users":[..],"state","node"}, jobs
 * that freeze the guest first, then in the order that they can be removed in:
 * "job" "export" "bitmap" "node" "object" "chardev" "claim". "op" is "" where the name
 * tells of none. "use" is
 *   live    a device reaches it (or it belongs to such a disk): no leftover
 *   held    somebody else uses it, or nobody knows
 *   filter  goes with its job
 *   free    nothing but other leftovers
 * NULL without memory.
 */
json_t *leftover_list(const struct leftover_look *look);

/*
 * {"jobs":[..],"nodes":[..],"exports":[..]}: names that are not ours, at most
 * LEFTOVERS_MAX of each, QEMU's own nodes left out. NULL without memory.
 */
json_t *leftover_foreign(const struct graph *graph);

/* The ids of jobs that hold up the guest's writes, whoever's. */
json_t *leftover_frozen(const struct graph *graph);
