/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What --verify has left, where its journal is lost: it made its scratch image
 * before the copy began and removes it after the pivot or after the copy. So
 * as long as that is there, or a bitmap of it, nobody knows what it has found.
 */
#include <errno.h>
#include <string.h>

#include "base/str.h"
#include "bulk/check.h"
#include "operations/adopt.h"
#include "operations/move-check.h"
#include "steps/verify.h"
#include "vm/graph.h"

/* The node with a bitmap of ours for this disk, or NULL. */
static const struct graph_node *recorded(const struct graph *graph,
                                         const char *id, unsigned disk)
{
    struct name first = name_of(id, disk, NAME_DIRTY0);
    struct name second = name_of(id, disk, NAME_DIRTY1);
    unsigned n = 0;
    const struct graph_node *nodes = graph_nodes(graph, &n);
    for (unsigned i = 0; i < n; i++) {
        for (unsigned k = 0; k < nodes[i].n_bitmaps; k++) {
            const char *name = nodes[i].bitmaps[k].name;
            if (str_eq(name, first.text) || str_eq(name, second.text)) {
                return &nodes[i];
            }
        }
    }
    return NULL;
}

static int replace(char **text, const char *value)
{
    char *copy = strdup(value);
    if (copy == NULL) {
        return -ENOMEM;
    }
    free(*text);
    *text = copy;
    return 0;
}

/* 1: a scratch image is in 'dir', 0: none is. */
static int has_scratch(const struct plan *plan, const char *dir)
{
    for (unsigned i = 0; i < plan->n_disks; i++) {
        _cleanup_free_ char *path = verify_scratch_in(dir, i);
        if (path == NULL) {
            return -ENOMEM;
        }
        if (check_has_scratch(dir, path)) {
            return 1;
        }
    }
    return 0;
}

/* Where root's engine has it, then where that of a user would. */
static int find_directory(struct op *op, const char *id, struct adopt *adopt)
{
    struct plan *plan = op_plan(op);
    const char *const states[] = {NULL, op_state_dir(op)};
    for (unsigned i = 0; i < ARRAY_SIZE(states) && plan->n_disks > 0; i++) {
        _cleanup_free_ char *dir = move_verify_dir(id, states[i]);
        int r = dir != NULL ? has_scratch(plan, dir) : -ENOMEM;
        if (r > 0) {
            adopt->verifies = true;
            return replace(&plan->verify_dir, dir);
        }
        if (r < 0) {
            return r;
        }
    }
    return 0;
}

int adopt_verify(struct op *op, struct adopt *adopt, const struct graph *graph,
                 const char *id)
{
    struct plan *plan = op_plan(op);
    int r = find_directory(op, id, adopt);
    for (unsigned i = 0; r == 0 && i < plan->n_disks; i++) {
        struct name scratch = name_of(id, i, NAME_SCRATCH);
        const struct graph_node *node = recorded(graph, id, i);
        adopt->verifies = adopt->verifies || node != NULL ||
                          graph_find_node(graph, scratch.text) != NULL;
        /* Its mirror may have failed: the bitmap is to be found all the same */
        if (node != NULL && *plan->disks[i].active == '\0') {
            r = replace(&plan->disks[i].active, node->name);
        }
    }
    if (r == 0 && adopt->verifies && plan->verify_dir == NULL) {
        plan->verify_dir = move_verify_dir(id, op_state_dir(op));
        r = plan->verify_dir != NULL ? 0 : -ENOMEM;
    }
    return r == 0 && adopt->verifies ? replace(&plan->verify, "full") : r;
}
