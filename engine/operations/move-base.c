/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A linked clone stays one: only the active layer is copied (sync=top), and
 * the target stands on the very node that the source stands on, so that no
 * other image can be taken for the base.
 */
#include <errno.h>
#include <string.h>

#include "base/err.h"
#include "base/str.h"
#include "operations/move-check.h"
#include "operations/move-plan.h"
#include "qpivot.h"
#include "vm/graph.h"

static void refuse(struct op *op, const char *object, const char *reason,
                   const char *hint)
{
    struct err *err = NULL;
    (void)err_set(&err, -ENOTSUP, object, "%s", reason);
    err_hint(&err, "%s", hint);
    op_problem(op, err);
}

/* Names that mean something to one process only. */
static bool is_passing(const char *name)
{
    return str_starts(name, "/dev/fd") || str_starts(name, "/proc/");
}

/*
 * QEMU has a plain name for what the name alone opens as it is open; else it
 * says "json:", as for a part of a file, or an image on another base than its
 * header's.
 */
char *move_name_of_base(struct op *op, const struct graph_layer *base)
{
    const char *name = base->node->filename;
    if (name == NULL || is_passing(name) || str_starts(name, "json:")) {
        return NULL;
    }
    if (str_eq(base->protocol->driver, "file")) {
        return name[0] == '/' ? strdup(name) : move_relative_source(op, name);
    }
    size_t scheme = strspn(name, "abcdefghijklmnopqrstuvwxyz+");
    bool place = name[0] == '/' || (scheme > 0 && name[scheme] == ':');
    return place ? strdup(name) : NULL;
}

/* The base and all below stay in QEMU. */
static json_t *nodes_that_stay(const struct plan_disk *disk,
                               const struct graph *graph,
                               const struct graph_node *base)
{
    json_t *nodes = json_array();
    size_t i;
    json_t *name;
    json_array_foreach(disk->source_nodes, i, name) {
        const struct graph_node *node =
            graph_find_node(graph, json_string_value(name));
        if (node != NULL && graph_reaches(graph, base, node)) {
            (void)json_array_append(nodes, name);
        }
    }
    return nodes;
}

void move_look_base(struct op *op, struct plan_disk *disk,
                    const struct graph *graph, const struct graph_disk *found)
{
    struct move_request *request = op_request(op);
    if (found->n_layers < 2) {
        return;
    }
    if (request->sync != QPIVOT_SYNC_TOP) {
        move_note(request,
                  "%s: its backing chain of %u images becomes one image;"
                  " --sync top leaves it on its base",
                  disk->disk, found->n_layers);
        return;
    }
    const struct graph_layer *base = &found->layers[1];
    disk->base = strdup(base->node->name);
    disk->base_file = move_name_of_base(op, base);
    disk->base_format =
        strdup(base->node == base->protocol ? "raw" : base->node->driver);
    disk->base_nodes = nodes_that_stay(disk, graph, base->node);
    if (disk->base_file == NULL) {
        refuse(op, disk->disk,
               "sync=top: its base is open in a way that no name tells",
               "--sync full makes it one image");
    }
}

void move_decide_base(struct op *op, struct plan_disk *disk)
{
    static const char full[] = "--sync full makes it one image";
    if (!plan_disk_keeps_base(disk)) {
        return;
    }
    if (!str_eq(disk->format, "qcow2")) {
        refuse(op, disk->to, "sync=top: raw data cannot stand on a base",
               "append format=qcow2, or --sync full makes it one image");
    } else if (!disk->create) {
        refuse(op, disk->to,
               "sync=top: what an existing image holds would hide its base",
               "let qpivot make it, or --sync full makes it one image");
    } else if (disk->drive_mirror) {
        refuse(op, disk->to,
               "sync=top: drive-mirror cannot be told the base's node", full);
    } else if (disk->shim) {
        refuse(op, disk->to, "sync=top: it has to be as large as its source",
               "leave out size=, or --sync full makes it one image");
    }
    (void)json_object_set_new(disk->node_options, "backing",
                              json_string(disk->base));
}
