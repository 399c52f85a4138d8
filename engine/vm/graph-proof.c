/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The two decisions that let go of data: that a pivot has happened, and what
 * may be deleted after it. Where the graph is in doubt, the answer is no.
 */
#include <errno.h>

#include "base/err.h"
#include "base/str.h"
#include "vm/graph-model.h"

/* Nodes that are to go, by node index; and how many parents hold each. */
struct deletion {
    bool *going;
    uint32_t *held;
    uint32_t *queue;
};

static int prove(const struct graph *graph, const struct graph_claim *claim,
                 const struct graph_device *device, struct err **errp);
static int prove_replies(const struct graph *graph,
                         const struct graph_device *device, const char *object,
                         struct err **errp);
static int prove_attached(const struct graph *graph,
                          const struct graph_claim *claim,
                          const struct graph_device *device, const char *object,
                          struct err **errp);
static int prove_apart(const struct graph *graph,
                       const struct graph_claim *claim,
                       const struct graph_device *device, const char *object,
                       struct err **errp);
static int prove_idle(const struct graph *graph,
                      const struct graph_claim *claim, struct err **errp);
static int prove_copies(const struct graph *graph,
                        const struct graph_claim *claim, struct err **errp);
static void keep_used(const struct graph *graph, struct deletion *deletion);
static void keep(struct deletion *deletion, uint32_t node, uint32_t *n);
static json_t *in_order(const struct graph *graph, struct deletion *deletion);

int graph_proof(const struct graph *graph, const struct graph_claim *claim,
                struct err **errp)
{
    const struct graph_device *device = graph_find_device(graph, claim->device);
    if (graph->edges_from == GRAPH_EDGES_NONE) {
        return err_set(errp, -ENOTSUP, "block graph",
                       "this QEMU does not tell it, nothing can be proved");
    }
    if (device == NULL) {
        _cleanup_free_ char *object = str_printf("device '%s'", claim->device);
        return err_set(errp, -ENOENT, object, "QEMU has no such device");
    }
    int r = prove(graph, claim, device, errp);
    return r == -ENOMEM ? err_set(errp, r, "block graph", "out of memory") : r;
}

json_t *graph_deletable(const struct graph *graph, const json_t *names)
{
    _cleanup_free_ bool *going = calloc(graph->n_nodes + 1, sizeof(bool));
    _cleanup_free_ uint32_t *held =
        calloc(graph->n_nodes + 1, sizeof(uint32_t));
    _cleanup_free_ uint32_t *queue =
        calloc(graph->n_nodes + 1, sizeof(uint32_t));
    struct deletion deletion = {going, held, queue};
    if (going == NULL || held == NULL || queue == NULL) {
        return NULL;
    }
    for (size_t i = 0; i < json_array_size(names); i++) {
        const char *name = json_string_value(json_array_get(names, i));
        const struct graph_node *node =
            name != NULL ? graph_find_node(graph, name) : NULL;
        if (node != NULL) {
            going[node->index] = true;
        }
    }
    if (graph->torn || graph->edges_from == GRAPH_EDGES_NONE) {
        return json_array(); /* who uses them is not known */
    }
    keep_used(graph, &deletion);
    return in_order(graph, &deletion);
}

static void hold_below(const struct graph *graph, const uint32_t *seeds,
                       uint32_t n_seeds, enum graph_hold hold,
                       enum graph_hold *holds)
{
    uint32_t n = graph_visit(graph, seeds, n_seeds, false);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t vertex = graph->walk->queue[i];
        if (vertex < graph->n_nodes && holds[vertex] < hold) {
            holds[vertex] = hold;
        }
    }
}

int graph_holds(const struct graph *graph, bool (*ours)(const char *name),
                enum graph_hold **ret)
{
    _cleanup_free_ enum graph_hold *holds =
        calloc(graph->n_nodes + 1, sizeof(*holds));
    _cleanup_free_ uint32_t *seeds =
        calloc(graph->n_vertices + 1, sizeof(uint32_t));
    uint32_t n_live = 0, n_seeds = 0;
    if (holds == NULL || seeds == NULL) {
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < graph->n_devices; i++) {
        seeds[n_live++] = graph_vertex_of_device(graph, i);
    }
    hold_below(graph, seeds, n_live, GRAPH_LIVE, holds);
    for (uint32_t v = 0; v < graph->n_vertices; v++) {
        /* A backend that nobody tells of has no name, and is not ours. */
        if (graph->vertices[v].kind != GRAPH_DEVICE &&
            !ours(graph_vertex_name(graph, v))) {
            seeds[n_seeds++] = v;
        }
    }
    hold_below(graph, seeds, n_seeds, GRAPH_HELD, holds);
    bool unknown = graph->torn || graph->edges_from == GRAPH_EDGES_NONE;
    for (uint32_t i = 0; unknown && i < graph->n_nodes; i++) {
        holds[i] = holds[i] == GRAPH_FREE ? GRAPH_HELD : holds[i];
    }
    *ret = TAKE_PTR(holds);
    return 0;
}

static int prove(const struct graph *graph, const struct graph_claim *claim,
                 const struct graph_device *device, struct err **errp)
{
    _cleanup_free_ char *object = str_printf("device '%s'", device->label);
    const struct graph_node *target = graph_find_node(graph, claim->target);
    if (object == NULL) {
        return -ENOMEM;
    }
    int r = prove_replies(graph, device, object, errp);
    if (r < 0) {
        return r;
    }
    if (target == NULL) {
        _cleanup_free_ char *node = str_printf("node '%s'", claim->target);
        return err_set(errp, -ENOENT, node, "QEMU has no such node");
    }
    r = prove_attached(graph, claim, device, object, errp);
    if (r < 0) {
        return r;
    }
    r = prove_apart(graph, claim, device, object, errp);
    if (r == 0 && !claim->others) {
        r = prove_idle(graph, claim, errp);
    }
    return r < 0 || claim->copies_to == NULL ? r
                                             : prove_copies(graph, claim, errp);
}

/* Whether the replies tell of one and the same moment. */
static int prove_replies(const struct graph *graph,
                         const struct graph_device *device, const char *object,
                         struct err **errp)
{
    if (graph->torn) {
        return err_set(errp, -EAGAIN, "block graph",
                       "it changed while it was read");
    }
    if (device->empty) {
        return err_set(errp, -ENOMEDIUM, object, "the drive is empty");
    }
    /* query-block hides the filters that a job put there unasked. */
    const struct graph_node *root = device->root;
    while (root != NULL && root->job_filter && root->anonymous &&
           !str_eq(root->name, device->query_node)) {
        const struct graph_node *below = graph_filtered(graph, root);
        root = below != device->root ? below : NULL;
    }
    if (root == NULL || !str_eq(root->name, device->query_node)) {
        return err_set(errp, -EAGAIN, object,
                       "query-block tells of node '%s', the graph of '%s'",
                       device->query_node != NULL ? device->query_node : "",
                       device->root != NULL ? device->root->name : "");
    }
    return 0;
}

static int prove_attached(const struct graph *graph,
                          const struct graph_claim *claim,
                          const struct graph_device *device, const char *object,
                          struct err **errp)
{
    const struct graph_node *target = graph_find_node(graph, claim->target);
    const struct graph_node *it = device->root;
    for (unsigned i = 0; it != target && i < GRAPH_PATH_MAX; i++) {
        if (it->job_filter && !claim->others &&
            !str_eq(it->name, claim->filter)) {
            return err_set(errp, -EBUSY, object,
                           "a job's filter node '%s' is still on it", it->name);
        }
        const struct graph_node *below = graph_filtered(graph, it);
        if (below == NULL) {
            break;
        }
        it = below;
    }
    if (it != target) {
        return err_set(errp, -EBUSY, object,
                       "it is attached to node '%s', not to '%s'", it->name,
                       target->name);
    }
    return 0;
}

static int prove_apart(const struct graph *graph,
                       const struct graph_claim *claim,
                       const struct graph_device *device, const char *object,
                       struct err **errp)
{
    const struct graph_node *source =
        claim->source != NULL ? graph_find_node(graph, claim->source) : NULL;
    const struct graph_node *left[] = {
        source,
        claim->source_protocol != NULL
            ? graph_find_node(graph, claim->source_protocol)
            : NULL,
        source != NULL ? graph_protocol(graph, source) : NULL,
    };

    const uint32_t seed = graph_vertex_of_device(graph, device->index);
    (void)graph_visit(graph, &seed, 1, false);
    for (size_t i = 0; i < ARRAY_SIZE(left); i++) {
        if (left[i] != NULL && graph_visited(graph, left[i]->index)) {
            return err_set(errp, -EBUSY, object,
                           "it still reaches the source node '%s'",
                           left[i]->name);
        }
    }
    return 0;
}

static bool is_foreign(const struct graph_claim *claim,
                       const struct graph_job *job)
{
    return !str_eq(job->id, claim->job);
}

static int prove_idle(const struct graph *graph,
                      const struct graph_claim *claim, struct err **errp)
{
    const struct graph_node *target = graph_find_node(graph, claim->target);
    const uint32_t seed = target->index;
    uint32_t n = graph_visit(graph, &seed, 1, true);
    const struct graph_job *job = NULL;
    for (uint32_t i = 0; i < n && job == NULL; i++) {
        const struct graph_vertex *it = &graph->vertices[graph->walk->queue[i]];
        const struct graph_job *on =
            it->kind == GRAPH_JOB ? &graph->jobs[it->index] : NULL;
        job = on != NULL && is_foreign(claim, on) ? on : NULL;
    }
    /* Without the jobs' edges any block job that goes on may be on it. */
    bool blind = graph->edges_from != GRAPH_EDGES_ALL;
    for (uint32_t i = 0; blind && i < graph->n_jobs && job == NULL; i++) {
        const struct graph_job *it = &graph->jobs[i];
        bool over =
            str_eq(it->status, "concluded") || str_eq(it->status, "null");
        job = it->block && !over && is_foreign(claim, it) ? it : NULL;
    }
    if (job == NULL) {
        return 0;
    }
    _cleanup_free_ char *object = str_printf("node '%s'", target->name);
    return err_set(errp, -EBUSY, object, "job '%s' still uses it", job->id);
}

/* A job has an edge to each node that it was given, and more by its backends. */
static int prove_copies(const struct graph *graph,
                        const struct graph_claim *claim, struct err **errp)
{
    const struct graph_job *job = graph_find_job(graph, claim->job);
    const struct graph_node *to = graph_find_node(graph, claim->copies_to);
    _cleanup_free_ char *object = str_printf("job '%s'", claim->job);
    const char *found = NULL;
    if (object == NULL) {
        return -ENOMEM;
    }
    if (job == NULL) {
        return err_set(errp, -ENOENT, object, "QEMU has no such job");
    }
    if (graph->edges_from != GRAPH_EDGES_ALL) {
        return 0;
    }
    uint32_t vertex = graph_vertex_of_job(graph, (uint32_t)(job - graph->jobs));
    uint32_t e = graph->vertices[vertex].first_down;
    for (; e != GRAPH_NONE; e = graph->edges[e].next_down) {
        const struct graph_edge *edge = &graph->edges[e];
        if (!str_eq(edge->role, "target") || edge->child >= graph->n_nodes) {
            continue;
        }
        if (to != NULL && edge->child == to->index) {
            return 0;
        }
        found = graph->nodes[edge->child].name;
    }
    return err_set(errp, -EBUSY, object, "it copies onto %s%s%s, not '%s'",
                   found != NULL ? "node '" : "nothing",
                   found != NULL ? found : "", found != NULL ? "'" : "",
                   claim->copies_to);
}

/* What something uses that does not go itself has to stay, and all below. */
static void keep_used(const struct graph *graph, struct deletion *deletion)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < graph->n_nodes; i++) {
        for (uint32_t e = graph->vertices[i].first_up;
             e != GRAPH_NONE && deletion->going[i];
             e = graph->edges[e].next_up) {
            uint32_t parent = graph->edges[e].parent;
            if (parent >= graph->n_nodes || !deletion->going[parent]) {
                keep(deletion, i, &n);
            }
        }
    }
    for (uint32_t i = 0; i < n; i++) {
        uint32_t e = graph->vertices[deletion->queue[i]].first_down;
        for (; e != GRAPH_NONE; e = graph->edges[e].next_down) {
            keep(deletion, graph->edges[e].child, &n);
        }
    }
}

static void keep(struct deletion *deletion, uint32_t node, uint32_t *n)
{
    if (deletion->going[node]) {
        deletion->going[node] = false;
        deletion->queue[(*n)++] = node;
    }
}

/* Parents first; what is in a circle has no first and is left out. */
static json_t *in_order(const struct graph *graph, struct deletion *deletion)
{
    json_auto_t *names = json_array();
    uint32_t n = 0;
    for (uint32_t i = 0; i < graph->n_nodes; i++) {
        uint32_t e = graph->vertices[i].first_up;
        for (; e != GRAPH_NONE; e = graph->edges[e].next_up) {
            deletion->held[i]++;
        }
        if (deletion->going[i] && deletion->held[i] == 0) {
            deletion->queue[n++] = i;
        }
    }
    for (uint32_t i = 0; i < n; i++) {
        const struct graph_node *node = &graph->nodes[deletion->queue[i]];
        if (!node->anonymous &&
            json_array_append_new(names, json_string(node->name)) < 0) {
            return NULL;
        }
        uint32_t e = graph->vertices[node->index].first_down;
        for (; e != GRAPH_NONE; e = graph->edges[e].next_down) {
            uint32_t child = graph->edges[e].child;
            if (--deletion->held[child] == 0 && deletion->going[child]) {
                deletion->queue[n++] = child;
            }
        }
    }
    return TAKE_PTR(names);
}
