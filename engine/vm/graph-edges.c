/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Who has whom: the edges. x-debug-query-block-graph has them all, but its
 * rows have only a name and a type: a BlockBackend's name is the drive id,
 * else what query-block calls qdev, else empty (of exports and of jobs).
 */
#include <errno.h>
#include <string.h>

#include "base/str.h"
#include "vm/graph-model.h"

/* A row of x-debug-query-block-graph's "nodes". */
struct row {
    uint64_t id;
    const char *type;
    const char *name;
    uint32_t vertex; /* or GRAPH_NONE */
    uint32_t root;   /* of a BlockBackend: the row below it */
    uint32_t job;    /* of a node: the vertex of a job with an edge to it */
};

struct rows {
    struct row *rows; /* sorted by id */
    uint32_t n;
    uint32_t *parents; /* by edge of the reply: rows, or GRAPH_NONE */
    uint32_t *children;
    bool *claimed; /* by vertex: a row has it already */
};

static int read_edges(struct graph *graph, const json_t *reply);
static int read_rows(struct graph *graph, const json_t *nodes,
                     struct rows *rows);
static uint32_t row_of_id(const struct rows *rows, const json_t *edge,
                          const char *key);
static int read_ends(struct graph *graph, const json_t *edges,
                     struct rows *rows);
static void place_rows(struct graph *graph, struct rows *rows);
static int place_backends(struct graph *graph, struct rows *rows);
static uint32_t vertex_of_named(const struct graph *graph,
                                const struct rows *rows, const struct row *row);
static uint32_t vertex_of_unnamed(const struct graph *graph,
                                  const struct rows *rows,
                                  const struct row *row);
static void read_children(struct graph *graph, const json_t *nodes);
static void attach_devices(struct graph *graph);
static void attach_exports(struct graph *graph);
static int add_edge(struct graph *graph, uint32_t parent, uint32_t child,
                    const char *role, unsigned perm);
static unsigned read_perm(const json_t *list);

/* Backends are at most GRAPH_USERS_MAX and numbered as they turn up. */
int graph_make_vertices(struct graph *graph)
{
    uint32_t n = graph_vertex_of_backend(graph, GRAPH_USERS_MAX);
    graph->vertices = graph_take(graph, n, sizeof(*graph->vertices));
    graph->walk = graph_take(graph, 1, sizeof(*graph->walk));
    if (graph->vertices == NULL || graph->walk == NULL) {
        return -ENOMEM;
    }
    graph->walk->seen = graph_take(graph, n, sizeof(uint32_t));
    graph->walk->queue = graph_take(graph, n, sizeof(uint32_t));
    if (graph->walk->seen == NULL || graph->walk->queue == NULL) {
        return -ENOMEM;
    }

    const struct {
        enum graph_kind kind;
        uint32_t n;
    } kinds[] = {
        {GRAPH_NODE,    graph->n_nodes  },
        {GRAPH_DEVICE,  graph->n_devices},
        {GRAPH_JOB,     graph->n_jobs   },
        {GRAPH_EXPORT,  graph->n_exports},
        {GRAPH_BACKEND, GRAPH_USERS_MAX },
    };

    uint32_t v = 0;
    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
        for (uint32_t j = 0; j < kinds[i].n; j++) {
            graph->vertices[v++] = (struct graph_vertex){
                .kind = kinds[i].kind,
                .index = j,
                .first_down = GRAPH_NONE,
                .first_up = GRAPH_NONE,
                .last_down = GRAPH_NONE,
                .last_up = GRAPH_NONE,
            };
        }
    }
    graph->n_vertices = graph_vertex_of_backend(graph, 0);
    return 0;
}

int graph_connect(struct graph *graph, const struct graph_replies *replies)
{
    const json_t *edges = json_object_get(replies->edges, "edges");
    size_t n = json_array_size(edges) + graph->n_devices + graph->n_exports;
    for (size_t i = 0; i < json_array_size(replies->nodes); i++) {
        const json_t *json = json_array_get(replies->nodes, i);
        n += json_array_size(json_object_get(json, "children"));
    }
    if (n > GRAPH_EDGES_MAX + 2 * GRAPH_USERS_MAX) {
        return -E2BIG;
    }
    graph->max_edges = (uint32_t)n;
    graph->edges = graph_take(graph, n, sizeof(*graph->edges));
    if (graph->edges == NULL) {
        return -ENOMEM;
    }
    if (json_is_array(edges)) {
        graph->edges_from = GRAPH_EDGES_ALL;
        int r = read_edges(graph, replies->edges);
        if (r < 0) {
            return r;
        }
    } else {
        read_children(graph, replies->nodes);
    }
    attach_devices(graph);
    attach_exports(graph);
    return 0;
}

static int read_edges(struct graph *graph, const json_t *reply)
{
    const json_t *edges = json_object_get(reply, "edges");
    struct rows rows = {0};
    rows.claimed = graph_take(graph, graph->n_vertices, sizeof(bool));
    if (rows.claimed == NULL ||
        read_rows(graph, json_object_get(reply, "nodes"), &rows) < 0 ||
        read_ends(graph, edges, &rows) < 0) {
        return -ENOMEM;
    }
    place_rows(graph, &rows);
    for (uint32_t i = 0; i < json_array_size(edges); i++) {
        uint32_t parent = rows.parents[i], child = rows.children[i];
        if (parent == GRAPH_NONE || child == GRAPH_NONE) {
            continue;
        }
        if (str_eq(rows.rows[parent].type, "block-backend")) {
            rows.rows[parent].root = child;
        } else if (str_eq(rows.rows[parent].type, "block-job")) {
            rows.rows[child].job = rows.rows[parent].vertex;
        }
    }
    int r = place_backends(graph, &rows);
    for (uint32_t i = 0; r == 0 && i < json_array_size(edges); i++) {
        const json_t *edge = json_array_get(edges, i);
        uint32_t parent = rows.parents[i], child = rows.children[i];
        parent = parent == GRAPH_NONE ? parent : rows.rows[parent].vertex;
        child = child == GRAPH_NONE ? child : rows.rows[child].vertex;
        if (parent == GRAPH_NONE || child == GRAPH_NONE) {
            /* A node that came or went between the queries. */
            graph->torn = true;
            continue;
        }
        r = add_edge(graph, parent, child, graph_text_of(edge, "name"),
                     read_perm(json_object_get(edge, "perm")));
        const struct graph_vertex *above = &graph->vertices[parent];
        if (above->kind == GRAPH_DEVICE) {
            graph->devices[above->index].shares_writes =
                (read_perm(json_object_get(edge, "shared-perm")) &
                 GRAPH_PERM_WRITE) != 0;
        }
    }
    return r;
}

static int by_id(const void *a, const void *b)
{
    const struct row *ra = a, *rb = b;
    return (ra->id > rb->id) - (ra->id < rb->id);
}

static int read_rows(struct graph *graph, const json_t *nodes,
                     struct rows *rows)
{
    size_t n = json_array_size(nodes);
    rows->rows = graph_take(graph, n, sizeof(*rows->rows));
    if (rows->rows == NULL) {
        return -ENOMEM;
    }
    for (size_t i = 0; i < n; i++) {
        const json_t *json = json_array_get(nodes, i);
        const char *name = graph_text_of(json, "name");
        rows->rows[rows->n++] = (struct row){
            .id = graph_u64_of(json, "id"),
            .type = graph_text_of(json, "type"),
            .name = name != NULL ? name : "",
            .vertex = GRAPH_NONE,
            .root = GRAPH_NONE,
            .job = GRAPH_NONE,
        };
    }
    qsort(rows->rows, rows->n, sizeof(rows->rows[0]), by_id);
    for (uint32_t i = 1; i < rows->n; i++) {
        graph->torn |= rows->rows[i].id == rows->rows[i - 1].id;
    }
    return 0;
}

static int read_ends(struct graph *graph, const json_t *edges,
                     struct rows *rows)
{
    size_t n = json_array_size(edges);
    rows->parents = graph_take(graph, n, sizeof(uint32_t));
    rows->children = graph_take(graph, n, sizeof(uint32_t));
    if (rows->parents == NULL || rows->children == NULL) {
        return -ENOMEM;
    }
    for (size_t i = 0; i < n; i++) {
        const json_t *edge = json_array_get(edges, i);
        rows->parents[i] = row_of_id(rows, edge, "parent");
        rows->children[i] = row_of_id(rows, edge, "child");
    }
    return 0;
}

static uint32_t row_of_id(const struct rows *rows, const json_t *edge,
                          const char *key)
{
    struct row wanted = {.id = graph_u64_of(edge, key)};
    if (!json_is_number(json_object_get(edge, key)) || rows->n == 0) {
        return GRAPH_NONE;
    }
    const struct row *row =
        bsearch(&wanted, rows->rows, rows->n, sizeof(wanted), by_id);
    return row != NULL ? (uint32_t)(row - rows->rows) : GRAPH_NONE;
}

/* Nodes and jobs: by name, which is unique among them. */
static void place_rows(struct graph *graph, struct rows *rows)
{
    for (uint32_t i = 0; i < rows->n; i++) {
        struct row *row = &rows->rows[i];
        if (str_eq(row->type, "block-driver")) {
            const struct graph_node *node = graph_find_node(graph, row->name);
            row->vertex = node != NULL ? node->index : GRAPH_NONE;
        } else if (str_eq(row->type, "block-job")) {
            const struct graph_job *job = graph_find_job(graph, row->name);
            row->vertex = job != NULL ? graph_vertex_of_job(graph, job->index)
                                      : GRAPH_NONE;
        }
        if (row->vertex == GRAPH_NONE) {
            continue;
        }
        /* Two rows of one name: which of them is meant is not known. */
        graph->torn |= rows->claimed[row->vertex];
        rows->claimed[row->vertex] = true;
    }
}

static int place_backends(struct graph *graph, struct rows *rows)
{
    for (uint32_t i = 0; i < rows->n; i++) {
        struct row *row = &rows->rows[i];
        if (!str_eq(row->type, "block-backend")) {
            continue;
        }
        row->vertex = row->name[0] != '\0'
                          ? vertex_of_named(graph, rows, row)
                          : vertex_of_unnamed(graph, rows, row);
        if (row->vertex != GRAPH_NONE) {
            rows->claimed[row->vertex] = true;
        } else if (graph->n_backends == GRAPH_USERS_MAX) {
            return -E2BIG;
        } else {
            row->vertex = graph_vertex_of_backend(graph, graph->n_backends++);
            graph->n_vertices++;
        }
    }
    return 0;
}

/* A drive id may equal another device's id: the node below decides then. */
static uint32_t vertex_of_named(const struct graph *graph,
                                const struct rows *rows, const struct row *row)
{
    uint32_t found = GRAPH_NONE;
    const char *root =
        row->root != GRAPH_NONE ? rows->rows[row->root].name : NULL;
    for (uint32_t i = 0; i < graph->n_devices; i++) {
        const struct graph_device *device = &graph->devices[i];
        uint32_t vertex = graph_vertex_of_device(graph, i);
        const char *name =
            device->drive[0] != '\0' ? device->drive : device->qdev;
        if (!str_eq(name, row->name) || rows->claimed[vertex]) {
            continue;
        }
        if (str_eq(device->query_node, root)) {
            return vertex;
        }
        found = found == GRAPH_NONE ? vertex : found;
    }
    return found;
}

/* An export's backend, or that of a mirror for its target: then the job. */
static uint32_t vertex_of_unnamed(const struct graph *graph,
                                  const struct rows *rows,
                                  const struct row *row)
{
    if (row->root == GRAPH_NONE) {
        return GRAPH_NONE;
    }
    const struct row *root = &rows->rows[row->root];
    for (uint32_t i = 0; i < graph->n_exports; i++) {
        uint32_t vertex = graph_vertex_of_export(graph, i);
        if (!rows->claimed[vertex] &&
            str_eq(graph->exports[i].node_name, root->name)) {
            return vertex;
        }
    }
    return root->job;
}

/* QEMU 11: the nodes' own edges. */
static void read_children(struct graph *graph, const json_t *nodes)
{
    for (size_t i = 0; i < json_array_size(nodes); i++) {
        const json_t *json = json_array_get(nodes, i);
        const json_t *list = json_object_get(json, "children");
        const char *name = graph_text_of(json, "node-name");
        const struct graph_node *node =
            name != NULL ? graph_find_node(graph, name) : NULL;
        if (!json_is_array(list) || node == NULL) {
            continue;
        }
        graph->edges_from = GRAPH_EDGES_CHILDREN;
        for (size_t j = 0; j < json_array_size(list); j++) {
            const json_t *edge = json_array_get(list, j);
            const char *child = graph_text_of(edge, "node-name");
            const struct graph_node *to =
                child != NULL ? graph_find_node(graph, child) : NULL;
            if (to == NULL || add_edge(graph, node->index, to->index,
                                       graph_text_of(edge, "child"), 0) < 0) {
                graph->torn = true;
            }
        }
    }
}

/*
 * The root of each device: by its edge, or, where edges are not told, by
 * query-block (which hides a job's filter without a name of its own).
 */
static void attach_devices(struct graph *graph)
{
    for (uint32_t i = 0; i < graph->n_devices; i++) {
        struct graph_device *device = &graph->devices[i];
        uint32_t vertex = graph_vertex_of_device(graph, i);
        uint32_t edge = graph->vertices[vertex].first_down;
        const struct graph_node *told =
            device->query_node != NULL
                ? graph_find_node(graph, device->query_node)
                : NULL;
        if (edge != GRAPH_NONE) {
            device->root = &graph->nodes[graph->edges[edge].child];
        } else if (told != NULL) {
            device->root = told;
            graph->torn |= graph->edges_from == GRAPH_EDGES_ALL;
            (void)add_edge(graph, vertex, told->index, "root", 0);
        }
    }
}

static void attach_exports(struct graph *graph)
{
    for (uint32_t i = 0; i < graph->n_exports; i++) {
        uint32_t vertex = graph_vertex_of_export(graph, i);
        const struct graph_node *node =
            graph_find_node(graph, graph->exports[i].node_name);
        if (graph->vertices[vertex].first_down == GRAPH_NONE && node != NULL) {
            (void)add_edge(graph, vertex, node->index, "root", 0);
        }
    }
}

/* Only nodes can be below something. The first edge told comes first. */
static int add_edge(struct graph *graph, uint32_t parent, uint32_t child,
                    const char *role, unsigned perm)
{
    struct graph_vertex *above = &graph->vertices[parent];
    if (child >= graph->n_nodes || graph->n_edges == graph->max_edges ||
        (parent < graph->n_nodes && above->n_down == GRAPH_CHILDREN_MAX)) {
        graph->torn = true;
        return 0;
    }
    struct graph_vertex *below = &graph->vertices[child];
    uint32_t index = graph->n_edges;
    struct graph_edge *edge = &graph->edges[index];
    role = role != NULL ? role : "";
    *edge = (struct graph_edge){
        .parent = parent,
        .child = child,
        .role = graph_take_text(graph, role, strlen(role)),
        .perm = perm,
        .next_down = GRAPH_NONE,
        .next_up = GRAPH_NONE,
    };
    if (edge->role == NULL) {
        return -ENOMEM;
    }
    graph->n_edges++;
    above->n_down++;
    if (above->last_down != GRAPH_NONE) {
        graph->edges[above->last_down].next_down = index;
    } else {
        above->first_down = index;
    }
    if (below->last_up != GRAPH_NONE) {
        graph->edges[below->last_up].next_up = index;
    } else {
        below->first_up = index;
    }
    above->last_down = index;
    below->last_up = index;
    return 0;
}

static unsigned read_perm(const json_t *list)
{
    static const struct {
        const char *name;
        enum graph_perm perm;
    } perms[] = {
        {"consistent-read", GRAPH_PERM_READ           },
        {"write",           GRAPH_PERM_WRITE          },
        {"write-unchanged", GRAPH_PERM_WRITE_UNCHANGED},
        {"resize",          GRAPH_PERM_RESIZE         },
    };

    unsigned perm = 0;
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *name = json_string_value(json_array_get(list, i));
        for (size_t j = 0; j < ARRAY_SIZE(perms); j++) {
            perm |= str_eq(name, perms[j].name) ? perms[j].perm : 0U;
        }
    }
    return perm;
}
