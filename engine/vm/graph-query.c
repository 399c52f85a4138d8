/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Questions to the model: who uses what, and which disk a person means. No
 * recursion: a graph from outside may be as deep as it likes.
 */
#include <errno.h>
#include <string.h>

#include "base/err.h"
#include "base/str.h"
#include "vm/graph-model.h"

static bool visit(const struct graph *graph, uint32_t vertex, uint32_t *n);
static bool is_on_top(const struct graph *graph,
                      const struct graph_device *device,
                      const struct graph_node *node);
static void add_candidates(const struct graph *graph, struct err **errp);
static int read_disk(const struct graph *graph, struct graph_disk *disk);
static int read_filters(const struct graph *graph, struct graph_disk *disk);
static int read_layers(const struct graph *graph, struct graph_disk *disk);
static int read_others(const struct graph *graph, struct graph_disk *disk);
static bool is_end(const struct graph *graph, uint32_t vertex);
static struct graph_user user_of(const struct graph *graph, uint32_t vertex);

enum graph_edges graph_edges(const struct graph *graph)
{
    return graph->edges_from;
}

const struct graph_node *graph_nodes(const struct graph *graph, unsigned *ret_n)
{
    *ret_n = graph->n_nodes;
    return graph->nodes;
}

const struct graph_device *graph_devices(const struct graph *graph,
                                         unsigned *ret_n)
{
    *ret_n = graph->n_devices;
    return graph->devices;
}

const struct graph_job *graph_jobs(const struct graph *graph, unsigned *ret_n)
{
    *ret_n = graph->n_jobs;
    return graph->jobs;
}

const struct graph_export *graph_exports(const struct graph *graph,
                                         unsigned *ret_n)
{
    *ret_n = graph->n_exports;
    return graph->exports;
}

const struct graph_node *graph_find_node(const struct graph *graph,
                                         const char *name)
{
    uint32_t low = 0, high = graph->n_nodes;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (strcmp(graph->by_name[middle]->name, name) < 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    bool found =
        low < graph->n_nodes && str_eq(graph->by_name[low]->name, name);
    return found ? graph->by_name[low] : NULL;
}

const struct graph_device *graph_find_device(const struct graph *graph,
                                             const char *key)
{
    for (uint32_t i = 0; i < graph->n_devices; i++) {
        if (str_eq(graph->devices[i].key, key)) {
            return &graph->devices[i];
        }
    }
    return NULL;
}

const struct graph_job *graph_find_job(const struct graph *graph,
                                       const char *id)
{
    for (uint32_t i = 0; i < graph->n_jobs; i++) {
        if (str_eq(graph->jobs[i].id, id)) {
            return &graph->jobs[i];
        }
    }
    return NULL;
}

const struct graph_node *graph_child(const struct graph *graph,
                                     const struct graph_node *node,
                                     const char *role)
{
    for (uint32_t e = graph->vertices[node->index].first_down; e != GRAPH_NONE;
         e = graph->edges[e].next_down) {
        if (str_eq(graph->edges[e].role, role)) {
            return &graph->nodes[graph->edges[e].child];
        }
    }
    return NULL;
}

const char *graph_kind_text(enum graph_kind kind)
{
    static const char *const texts[] = {
        [GRAPH_NODE] = "node",       [GRAPH_DEVICE] = "device",
        [GRAPH_JOB] = "job",         [GRAPH_EXPORT] = "export",
        [GRAPH_BACKEND] = "backend",
    };
    return texts[kind];
}

const char *graph_vertex_name(const struct graph *graph, uint32_t vertex)
{
    const struct graph_vertex *it = &graph->vertices[vertex];
    switch (it->kind) {
    case GRAPH_NODE:
        return graph->nodes[it->index].name;
    case GRAPH_DEVICE:
        return graph->devices[it->index].label;
    case GRAPH_JOB:
        return graph->jobs[it->index].id;
    case GRAPH_EXPORT:
        return graph->exports[it->index].id;
    case GRAPH_BACKEND:
        break;
    }
    return "";
}

uint32_t graph_visit(const struct graph *graph, const uint32_t *seeds,
                     uint32_t n_seeds, bool up)
{
    struct graph_walk *walk = graph->walk;
    uint32_t n = 0;
    if (++walk->stamp == 0) {
        memset(walk->seen, 0, graph->n_vertices * sizeof(walk->seen[0]));
        walk->stamp = 1;
    }
    for (uint32_t i = 0; i < n_seeds; i++) {
        (void)visit(graph, seeds[i], &n);
    }
    for (uint32_t i = 0; i < n; i++) {
        const struct graph_vertex *it = &graph->vertices[walk->queue[i]];
        uint32_t e = up ? it->first_up : it->first_down;
        while (e != GRAPH_NONE) {
            const struct graph_edge *edge = &graph->edges[e];
            (void)visit(graph, up ? edge->parent : edge->child, &n);
            e = up ? edge->next_up : edge->next_down;
        }
    }
    return n;
}

bool graph_visited(const struct graph *graph, uint32_t vertex)
{
    return graph->walk->seen[vertex] == graph->walk->stamp;
}

static bool visit(const struct graph *graph, uint32_t vertex, uint32_t *n)
{
    if (graph_visited(graph, vertex)) {
        return false;
    }
    graph->walk->seen[vertex] = graph->walk->stamp;
    graph->walk->queue[(*n)++] = vertex;
    return true;
}

int graph_node_users(const struct graph *graph, const struct graph_node *node,
                     struct graph_user **ret, unsigned *ret_n)
{
    const uint32_t seed = node->index;
    uint32_t n = graph_visit(graph, &seed, 1, true);
    struct graph_user *users = calloc(n, sizeof(*users));
    unsigned n_users = 0;
    if (users == NULL) {
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < n; i++) {
        uint32_t vertex = graph->walk->queue[i];
        if (vertex != seed && is_end(graph, vertex)) {
            users[n_users++] = user_of(graph, vertex);
        }
    }
    if (n_users == 0) {
        free(users);
        users = NULL;
    }
    *ret = users;
    *ret_n = n_users;
    return 0;
}

bool graph_reaches(const struct graph *graph, const struct graph_node *from,
                   const struct graph_node *to)
{
    const uint32_t seed = from->index;
    (void)graph_visit(graph, &seed, 1, false);
    return graph_visited(graph, to->index);
}

const struct graph_node *graph_filtered(const struct graph *graph,
                                        const struct graph_node *node)
{
    if (!node->filter) {
        return NULL;
    }
    const struct graph_node *child = graph_child(graph, node, "file");
    return child != NULL ? child : graph_child(graph, node, "backing");
}

const struct graph_node *graph_skip_filters(const struct graph *graph,
                                            const struct graph_node *node)
{
    for (unsigned i = 0; i < GRAPH_PATH_MAX; i++) {
        const struct graph_node *below = graph_filtered(graph, node);
        if (below == NULL) {
            return node;
        }
        node = below;
    }
    return NULL;
}

const struct graph_node *graph_protocol(const struct graph *graph,
                                        const struct graph_node *node)
{
    for (unsigned i = 0; i < GRAPH_PATH_MAX; i++) {
        const struct graph_node *below = graph_child(graph, node, "file");
        if (below == NULL) {
            return node;
        }
        node = below;
    }
    return NULL;
}

int graph_find_disk(const struct graph *graph, const char *name,
                    struct graph_disk **ret, struct err **errp)
{
    const struct graph_device *found[2] = {NULL, NULL};
    const struct graph_node *node = graph_find_node(graph, name);
    for (uint32_t i = 0; i < graph->n_devices && found[1] == NULL; i++) {
        const struct graph_device *device = &graph->devices[i];
        if (str_eq(device->id, name) || str_eq(device->qdev, name) ||
            (device->drive[0] != '\0' && str_eq(device->drive, name)) ||
            (node != NULL && is_on_top(graph, device, node))) {
            found[found[0] != NULL] = device;
        }
    }
    _cleanup_free_ char *object = str_printf("disk '%s'", name);
    if (object == NULL) {
        return -ENOMEM;
    }
    int r;
    if (found[1] != NULL) {
        r = err_set(errp, -EEXIST, object,
                    "the name is ambiguous: device '%s' and device '%s'",
                    found[0]->label, found[1]->label);
    } else if (found[0] != NULL) {
        return graph_disk(graph, found[0], ret, errp);
    } else if (node != NULL) {
        r = err_set(errp, -ENODEV, object,
                    "the node is not what a device is attached to");
    } else {
        r = err_set(errp, -ENOENT, object,
                    "no device, drive or node has this name");
    }
    add_candidates(graph, errp);
    return r;
}

int graph_disk(const struct graph *graph, const struct graph_device *device,
               struct graph_disk **ret, struct err **errp)
{
    _cleanup_free_ char *object = str_printf("disk '%s'", device->label);
    if (object == NULL) {
        return -ENOMEM;
    }
    if (device->empty) {
        return err_set(errp, -ENOMEDIUM, object, "the drive is empty");
    }
    if (graph->edges_from == GRAPH_EDGES_NONE || device->root == NULL) {
        return err_set(errp, -ENOTSUP, object,
                       "this QEMU does not tell its block graph");
    }
    _cleanup_graph_disk_ struct graph_disk *disk = calloc(1, sizeof(*disk));
    if (disk == NULL) {
        return err_set(errp, -ENOMEM, object, "out of memory");
    }
    disk->device = device;
    int r = read_disk(graph, disk);
    if (r == -ENOMEM) {
        return err_set(errp, r, object, "out of memory");
    }
    if (r < 0) {
        return err_set(errp, r, object, "its block graph runs in a circle");
    }
    *ret = TAKE_PTR(disk);
    return 0;
}

struct graph_disk *graph_disk_free(struct graph_disk *disk)
{
    if (disk != NULL) {
        free(disk->filters);
        free(disk->layers);
        free(disk->nodes);
        free(disk->others);
        free(disk);
    }
    return NULL;
}

/* From the device's root down to its active layer. */
static bool is_on_top(const struct graph *graph,
                      const struct graph_device *device,
                      const struct graph_node *node)
{
    const struct graph_node *it = device->root;
    for (unsigned i = 0; it != NULL && i < GRAPH_PATH_MAX; i++) {
        if (it == node) {
            return true;
        }
        it = graph_filtered(graph, it);
    }
    return false;
}

static void add_candidates(const struct graph *graph, struct err **errp)
{
    enum { CANDIDATES_MAX = 16 };

    _cleanup_free_ char *list = str_printf("%s", "");
    unsigned n = 0;
    for (uint32_t i = 0; i < graph->n_devices && list != NULL; i++) {
        const struct graph_device *device = &graph->devices[i];
        if (device->empty || n == CANDIDATES_MAX) {
            continue;
        }
        const char *drive = device->drive;
        bool both = drive[0] != '\0' && !str_eq(drive, device->label);
        char *longer = str_printf(
            "%s%s%s%s%s%s%s%s", list, n > 0 ? ", " : "", device->label,
            both ? " = drive " : "", both ? drive : "",
            device->query_node != NULL ? " (node " : "",
            device->query_node != NULL ? device->query_node : "",
            device->query_node != NULL ? ")" : "");
        free(list);
        list = longer;
        n++;
    }
    if (list != NULL && n > 0) {
        err_hint(errp, "the disks are: %s%s", list,
                 n == CANDIDATES_MAX ? ", ..." : "");
    } else if (list != NULL) {
        err_hint(errp, "this VM has no disk with a medium");
    }
}

static int read_disk(const struct graph *graph, struct graph_disk *disk)
{
    int r = read_filters(graph, disk);
    if (r < 0) {
        return r;
    }
    r = read_layers(graph, disk);
    if (r < 0) {
        return r;
    }
    disk->size = disk->root->size;
    disk->protocol = disk->layers[0].protocol;
    disk->format =
        disk->active == disk->protocol ? "raw" : disk->active->format;
    return read_others(graph, disk);
}

static int read_filters(const struct graph *graph, struct graph_disk *disk)
{
    const struct graph_node *it = disk->device->root;
    disk->filters = calloc(GRAPH_PATH_MAX, sizeof(const struct graph_node *));
    if (disk->filters == NULL) {
        return -ENOMEM;
    }
    for (unsigned i = 0; i < GRAPH_PATH_MAX; i++) {
        const struct graph_node *below = graph_filtered(graph, it);
        if (below == NULL) {
            disk->active = it;
            disk->root = disk->n_filters > 0 ? disk->filters[0] : it;
            return 0;
        }
        if (!it->job_filter) {
            disk->filters[disk->n_filters++] = it;
        } else if (disk->job_filter == NULL) {
            disk->job_filter = it;
        }
        it = below;
    }
    return -ELOOP;
}

static int read_layers(const struct graph *graph, struct graph_disk *disk)
{
    const struct graph_node *it = disk->active;
    unsigned n = 0;
    for (; it != NULL; n++) {
        const struct graph_node *below = graph_child(graph, it, "backing");
        it = below != NULL ? graph_skip_filters(graph, below) : NULL;
        if (n > graph->n_nodes || (below != NULL && it == NULL)) {
            return -ELOOP;
        }
    }
    disk->layers = calloc(n, sizeof(*disk->layers));
    if (disk->layers == NULL) {
        return -ENOMEM;
    }
    it = disk->active;
    for (; disk->n_layers < n; disk->n_layers++) {
        const struct graph_node *protocol = graph_protocol(graph, it);
        if (protocol == NULL) {
            return -ELOOP;
        }
        disk->layers[disk->n_layers].node = it;
        disk->layers[disk->n_layers].protocol = protocol;
        it = graph_child(graph, it, "backing");
        it = it != NULL ? graph_skip_filters(graph, it) : NULL;
    }
    return 0;
}

/* All nodes of the disk, then all that is above any of them. */
static int read_others(const struct graph *graph, struct graph_disk *disk)
{
    const uint32_t device = graph_vertex_of_device(graph, disk->device->index);
    uint32_t n = graph_visit(graph, &device, 1, false);
    _cleanup_free_ uint32_t *below = calloc(n, sizeof(uint32_t));
    disk->nodes = calloc(n, sizeof(const struct graph_node *));
    if (below == NULL || disk->nodes == NULL) {
        return -ENOMEM;
    }
    memcpy(below, graph->walk->queue, n * sizeof(uint32_t));
    for (uint32_t i = 1; i < n; i++) { /* 0 is the device */
        disk->nodes[disk->n_nodes++] = &graph->nodes[below[i]];
    }
    for (uint32_t i = 1; i < n && disk->shared == NULL; i++) {
        for (uint32_t e = graph->vertices[below[i]].first_up; e != GRAPH_NONE;
             e = graph->edges[e].next_up) {
            if (!graph_visited(graph, graph->edges[e].parent)) {
                disk->shared = &graph->nodes[below[i]];
                break;
            }
        }
    }
    uint32_t n_above = graph_visit(graph, below, n, true);
    disk->others = calloc(n_above, sizeof(*disk->others));
    if (disk->others == NULL) {
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < n_above; i++) {
        uint32_t vertex = graph->walk->queue[i];
        if (vertex != device && is_end(graph, vertex)) {
            disk->others[disk->n_others++] = user_of(graph, vertex);
        }
    }
    return 0;
}

/* What does not hang on something else: users, and nodes nobody uses. */
static bool is_end(const struct graph *graph, uint32_t vertex)
{
    const struct graph_vertex *it = &graph->vertices[vertex];
    return it->kind != GRAPH_NODE || it->first_up == GRAPH_NONE;
}

static struct graph_user user_of(const struct graph *graph, uint32_t vertex)
{
    return (struct graph_user){
        .kind = graph->vertices[vertex].kind,
        .name = graph_vertex_name(graph, vertex),
        .index = graph->vertices[vertex].index,
    };
}
