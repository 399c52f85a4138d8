/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the files of the graph share: graph.c builds it, graph-query.c and
 * graph-json.c read it. Nobody else includes this.
 *
 * Nodes, devices, jobs, exports and unnamed BlockBackends are vertices, in
 * this order, so that vertex i < n_nodes is node i.
 */
#pragma once

#include "vm/graph.h"

enum {
    GRAPH_USERS_MAX = 4096,   /* devices, jobs, exports, backends: of each */
    GRAPH_PATH_MAX = 64,      /* filters on top of each other */
    GRAPH_CHILDREN_MAX = 256, /* of a node: bounds every look for one */
};

#define GRAPH_NONE UINT32_MAX

enum graph_perm {
    GRAPH_PERM_READ = 1 << 0,
    GRAPH_PERM_WRITE = 1 << 1,
    GRAPH_PERM_WRITE_UNCHANGED = 1 << 2,
    GRAPH_PERM_RESIZE = 1 << 3,
};

struct graph_edge {
    uint32_t parent; /* vertices */
    uint32_t child;
    const char *role;
    unsigned perm;
    uint32_t next_down; /* the parent's next edge, or GRAPH_NONE */
    uint32_t next_up;   /* the child's */
};

struct graph_vertex {
    enum graph_kind kind;
    uint32_t index;      /* in the array of its kind */
    uint32_t first_down; /* edges, or GRAPH_NONE */
    uint32_t first_up;
    uint32_t last_down;
    uint32_t last_up;
    uint32_t n_down;
};

/* The room for one walk at a time; walks do not nest. */
struct graph_walk {
    uint32_t stamp;
    uint32_t *seen;  /* by vertex: the stamp of the last walk that came by */
    uint32_t *queue; /* the vertices of the last walk, nearest first */
};

struct graph {
    struct graph_chunk *chunks;
    json_t *kept; /* array: JSON that the model borrows from */
    enum graph_edges edges_from;
    bool torn; /* the replies contradict each other */
    struct graph_node *nodes;
    const struct graph_node **by_name; /* sorted */
    struct graph_device *devices;
    struct graph_job *jobs;
    struct graph_export *exports;
    uint32_t n_nodes, n_devices, n_jobs, n_exports, n_backends;
    struct graph_vertex *vertices;
    struct graph_edge *edges;
    uint32_t n_vertices, n_edges, max_edges;
    struct graph_walk *walk;
    const json_t *throttle_groups; /* in 'kept', or NULL */
};

static inline uint32_t graph_vertex_of_device(const struct graph *graph,
                                              uint32_t index)
{
    return graph->n_nodes + index;
}

static inline uint32_t graph_vertex_of_job(const struct graph *graph,
                                           uint32_t index)
{
    return graph->n_nodes + graph->n_devices + index;
}

static inline uint32_t graph_vertex_of_export(const struct graph *graph,
                                              uint32_t index)
{
    return graph->n_nodes + graph->n_devices + graph->n_jobs + index;
}

static inline uint32_t graph_vertex_of_backend(const struct graph *graph,
                                               uint32_t index)
{
    return graph_vertex_of_export(graph, graph->n_exports) + index;
}

/* jansson iterates over what it could change only; nothing here does. */
static inline json_t *graph_loose(const json_t *json)
{
    return (json_t *)(uintptr_t)json;
}

/* What a person calls it; "" for a backend. */
const char *graph_vertex_name(const struct graph *graph, uint32_t vertex);

/*
 * Visits everything below (up: above) the seeds, themselves included, and
 * returns how many vertices walk->queue holds; walk->seen[v] == walk->stamp
 * tells whether v is among them.
 */
uint32_t graph_visit(const struct graph *graph, const uint32_t *seeds,
                     uint32_t n_seeds, bool up);
bool graph_visited(const struct graph *graph, uint32_t vertex);

/* The one child whose data a filter shows, or NULL. */
const struct graph_node *graph_filtered(const struct graph *graph,
                                        const struct graph_node *node);
/* The first node at or below that is no filter; NULL: it never ends. */
const struct graph_node *graph_skip_filters(const struct graph *graph,
                                            const struct graph_node *node);
/* The last of the file children; NULL: it never ends. */
const struct graph_node *graph_protocol(const struct graph *graph,
                                        const struct graph_node *node);

/* --- building (graph.c, graph-read.c, graph-edges.c) --- */

/* Zeroed memory that lives as long as the graph; NULL without memory. */
void *graph_take(struct graph *graph, size_t n, size_t size);
const char *graph_take_text(struct graph *graph, const char *text, size_t n);
/* A copy of a text member, 'fallback' itself where there is none. */
int graph_take_member(struct graph *graph, const json_t *json, const char *key,
                      const char *fallback, const char **ret);
/* 0, false, NULL for what is missing or of another type. */
uint64_t graph_u64_of(const json_t *json, const char *key);
bool graph_bool_of(const json_t *json, const char *key);
const char *graph_text_of(const json_t *json, const char *key);
const char *graph_group_of_filename(struct graph *graph, const char *filename);

int graph_read(struct graph *graph, const struct graph_replies *replies);
int graph_make_vertices(struct graph *graph);
/* -E2BIG: too many edges or unnamed backends. */
int graph_connect(struct graph *graph, const struct graph_replies *replies);
