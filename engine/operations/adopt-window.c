/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * An undo window whose journal is lost. Whether it was open, and was true, only
 * the journal knew: it is closed, and the guest stays where it is. A mirror
 * back that has ended well had been told to: then the guest is on its source.
 */
#include <errno.h>
#include <string.h>

#include "base/err.h"
#include "base/str.h"
#include "operations/adopt.h"
#include "vm/graph.h"

void adopt_twin(struct adopt_disk *disk, const struct graph *graph,
                const char *id, unsigned index)
{
    struct name twin = name_of(id, index, NAME_TWIN);
    struct name top = name_of(id, index, NAME_TWIN_TOP);
    const struct graph_job *job = graph_find_job(graph, twin.text);
    disk->twin = job != NULL || graph_find_node(graph, top.text) != NULL;
    disk->returned =
        job != NULL && str_eq(job->status, "concluded") && job->error == NULL;
}

bool adopt_has_returned(const struct adopt *adopt, const struct plan *plan,
                        struct err **errp)
{
    unsigned n_returned = 0, n_others = 0;
    for (unsigned i = 0; i < plan->n_disks; i++) {
        const struct adopt_disk *disk = &adopt->disks[i];
        /* One of which nothing is left has gone back, too: see "return-twin" */
        n_returned += disk->returned;
        n_others += !disk->returned && (adopt_has_found(disk) || disk->twin);
    }
    if (n_returned > 0 && n_others > 0) {
        (void)err_set(errp, -EREMOTEIO, adopt->holder,
                      "%u of its disks have gone back from its undo window, %u"
                      " have not: nothing was changed",
                      n_returned, n_others);
        err_hint(errp, "see which disk is where: 'qpivot graph'");
    }
    return n_returned > 0 && n_others == 0;
}

/* --- the former disk --- */

static bool has_user(const struct graph *graph, const struct graph_node *node,
                     const char *job)
{
    _cleanup_free_ struct graph_user *users = NULL;
    unsigned n = 0;
    bool has = false;
    if (graph_node_users(graph, node, &users, &n) < 0) {
        return false;
    }
    for (unsigned i = 0; i < n; i++) {
        has = has || (users[i].kind == GRAPH_JOB && str_eq(users[i].name, job));
    }
    return has;
}

/* Whether the job uses it, other than by the disk that the guest is on. */
static bool is_former(const struct graph *graph, const struct graph_node *node,
                      const struct graph_node *live, const char *job)
{
    return !graph_reaches(graph, live, node) && has_user(graph, node, job);
}

/* The next in top-down order; NULL when all of them are taken. */
static const struct graph_node *next_of(const struct graph *graph,
                                        const struct graph_node **left,
                                        unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        bool below = left[i] == NULL;
        for (unsigned k = 0; k < n && !below; k++) {
            below = k != i && left[k] != NULL &&
                    graph_reaches(graph, left[k], left[i]);
        }
        if (!below) {
            const struct graph_node *node = left[i];
            left[i] = NULL;
            return node;
        }
    }
    return NULL;
}

static int replace(char **text, const char *value)
{
    free(*text);
    *text = strdup(value);
    return *text != NULL ? 0 : -ENOMEM;
}

int adopt_former(struct plan_disk *disk, const struct graph *graph,
                 const struct graph_device *device, const char *id)
{
    struct name twin = name_of(id, disk->index, NAME_TWIN);
    unsigned n = 0, n_left = 0;
    const struct graph_node *nodes = graph_nodes(graph, &n);
    _cleanup_free_ const struct graph_node **left =
        calloc(n + 1, sizeof(struct graph_node *));
    if (left == NULL) {
        return -ENOMEM;
    }
    for (unsigned i = 0; i < n; i++) {
        if (is_former(graph, &nodes[i], device->root, twin.text)) {
            left[n_left++] = &nodes[i];
        }
    }
    const struct graph_node *top = next_of(graph, left, n_left);
    const struct graph_node *protocol = adopt_protocol(graph, top);
    disk->source_nodes = json_array();
    for (const struct graph_node *it = top; it != NULL;
         it = next_of(graph, left, n_left)) {
        (void)json_array_append_new(disk->source_nodes, json_string(it->name));
    }
    return top == NULL ? 0
           : replace(&disk->active, top->name) < 0 ||
                   replace(&disk->protocol, protocol->name) < 0 ||
                   replace(&disk->from_format, top->driver) < 0
               ? -ENOMEM
               : adopt_name_source(disk, protocol);
}
