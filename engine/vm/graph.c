/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Builds the model from replies. It trusts no reply: every member may be
 * missing or of another type, names may repeat, edges may lead nowhere or in
 * circles. What only looks odd is left out; what makes a proof worthless sets
 * 'torn'.
 */
#include "vm/graph.h"

#include <errno.h>
#include <string.h>

#include "base/err.h"
#include "base/str.h"
#include "vm/graph-model.h"

struct graph_chunk {
    struct graph_chunk *next;
    size_t used;
    size_t size;
    _Alignas(16) char data[];
};

static int build(struct graph *graph, const struct graph_replies *replies,
                 struct err **errp);
static int count(const struct graph_replies *replies, struct err **errp);
static void chunks_free(struct graph *graph);

int graph_build(const struct graph_replies *replies, struct graph **ret,
                struct err **errp)
{
    _cleanup_graph_ struct graph *graph = calloc(1, sizeof(*graph));
    if (graph == NULL) {
        return err_set(errp, -ENOMEM, "block graph", "out of memory");
    }
    int r = build(graph, replies, errp);
    if (r == -ENOMEM) {
        return err_set(errp, r, "block graph", "out of memory");
    }
    if (r < 0) {
        return r;
    }
    *ret = TAKE_PTR(graph);
    return 0;
}

struct graph *graph_free(struct graph *graph)
{
    if (graph != NULL) {
        json_decref(graph->kept);
        chunks_free(graph);
        free(graph);
    }
    return NULL;
}

json_t *graph_throttle_groups(const json_t *nodes)
{
    struct graph scratch = {0};
    json_auto_t *groups = json_array();
    size_t i;
    json_t *node;
    json_array_foreach(nodes, i, node) {
        if (!str_eq(graph_text_of(node, "drv"), "throttle")) {
            continue;
        }
        const char *group =
            graph_group_of_filename(&scratch, graph_text_of(node, "file"));
        size_t j = 0;
        while (group != NULL && j < json_array_size(groups) &&
               !str_eq(group, json_string_value(json_array_get(groups, j)))) {
            j++;
        }
        if (group != NULL && j == json_array_size(groups) &&
            j < GRAPH_USERS_MAX) {
            (void)json_array_append_new(groups, json_string(group));
        }
    }
    chunks_free(&scratch);
    return TAKE_PTR(groups);
}

static int build(struct graph *graph, const struct graph_replies *replies,
                 struct err **errp)
{
    int r = count(replies, errp);
    if (r < 0) {
        return r;
    }
    graph->kept = json_array();
    if (json_is_object(replies->throttle_groups)) {
        json_t *copy = json_deep_copy(replies->throttle_groups);
        if (json_array_append_new(graph->kept, copy) < 0) {
            return -ENOMEM;
        }
        graph->throttle_groups = copy;
    }
    if (graph_read(graph, replies) < 0 || graph_make_vertices(graph) < 0) {
        return -ENOMEM;
    }
    r = graph_connect(graph, replies);
    if (r == -E2BIG) {
        return err_set(errp, r, "block graph",
                       "more than %d block backends, %d edges", GRAPH_USERS_MAX,
                       GRAPH_EDGES_MAX);
    }
    return r;
}

/* Refuses what is too big and sizes the arrays by the replies. */
static int count(const struct graph_replies *replies, struct err **errp)
{
    const json_t *xnodes = json_object_get(replies->edges, "nodes");
    const json_t *xedges = json_object_get(replies->edges, "edges");

    const struct {
        const char *command;
        const json_t *reply;
        size_t max;
        bool needed;
    } lists[] = {
        {"query-named-block-nodes",     replies->nodes,      GRAPH_NODES_MAX, true },
        {"query-block",                 replies->block,      GRAPH_USERS_MAX, true },
        {"query-jobs",                  replies->jobs,       GRAPH_USERS_MAX, false},
        {"query-block-jobs",            replies->block_jobs, GRAPH_USERS_MAX, false},
        {"query-block-exports",         replies->exports,    GRAPH_USERS_MAX, false},
        {"x-debug-query-block-graph",   xnodes,              GRAPH_NODES_MAX, false},
        {"x-debug-query-block-graph's", xedges,              GRAPH_EDGES_MAX, false},
    };

    for (size_t i = 0; i < ARRAY_SIZE(lists); i++) {
        if (lists[i].needed && !json_is_array(lists[i].reply)) {
            return err_set(errp, -EPROTO, "block graph",
                           "the reply of %s is no array", lists[i].command);
        }
        if (json_array_size(lists[i].reply) > lists[i].max) {
            return err_set(errp, -E2BIG, "block graph",
                           "%s tells of %zu objects, %zu at most are read",
                           lists[i].command, json_array_size(lists[i].reply),
                           lists[i].max);
        }
    }
    return 0;
}

static void chunks_free(struct graph *graph)
{
    while (graph->chunks != NULL) {
        struct graph_chunk *chunk = graph->chunks;
        graph->chunks = chunk->next;
        free(chunk);
    }
}

void *graph_take(struct graph *graph, size_t n, size_t size)
{
    enum { CHUNK = 64 * 1024, ALIGN = 16 };

    size_t bytes;
    if (__builtin_mul_overflow(n, size, &bytes) ||
        __builtin_add_overflow(bytes, ALIGN, &bytes)) {
        return NULL;
    }
    bytes = bytes / ALIGN * ALIGN; /* at least one unit, so never NULL */
    struct graph_chunk *chunk = graph->chunks;
    if (chunk == NULL || chunk->size - chunk->used < bytes) {
        size_t room = bytes > CHUNK ? bytes : CHUNK;
        chunk = calloc(1, sizeof(*chunk) + room);
        if (chunk == NULL) {
            return NULL;
        }
        chunk->size = room;
        chunk->next = graph->chunks;
        graph->chunks = chunk;
    }
    void *taken = chunk->data + chunk->used;
    chunk->used += bytes;
    return taken;
}

const char *graph_take_text(struct graph *graph, const char *text, size_t n)
{
    char *copy = graph_take(graph, n + 1, 1);
    if (copy != NULL) {
        memcpy(copy, text, n);
    }
    return copy;
}

int graph_take_member(struct graph *graph, const json_t *json, const char *key,
                      const char *fallback, const char **ret)
{
    const char *text = graph_text_of(json, key);
    if (text == NULL) {
        *ret = fallback;
        return 0;
    }
    *ret = graph_take_text(graph, text, strlen(text));
    return *ret != NULL ? 0 : -ENOMEM;
}

uint64_t graph_u64_of(const json_t *json, const char *key)
{
    const json_t *value = json_object_get(json, key);
    /* Beyond int64 the wire gives a real (JSON_DECODE_INT_AS_REAL). */
    if (json_is_real(value)) {
        double real = json_real_value(value);
        return real >= 0 && real < 0x1p64 ? (uint64_t)real : 0;
    }
    json_int_t integer = json_integer_value(value);
    return integer > 0 ? (uint64_t)integer : 0;
}

bool graph_bool_of(const json_t *json, const char *key)
{
    return json_is_true(json_object_get(json, key));
}

const char *graph_text_of(const json_t *json, const char *key)
{
    return json_string_value(json_object_get(json, key));
}

/*
 * A throttle node's group is told nowhere but in its file name, which is
 * json:{...} because the group is an option that a plain name cannot say.
 * QEMU cuts file names at 4 KiB: then it is no JSON and the group unknown.
 */
const char *graph_group_of_filename(struct graph *graph, const char *filename)
{
    if (!str_starts(filename, "json:")) {
        return NULL;
    }
    json_auto_t *options = json_loads(filename + strlen("json:"), 0, NULL);
    const char *group = NULL;
    (void)graph_take_member(graph, options, "throttle-group", NULL, &group);
    return group;
}
