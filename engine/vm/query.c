/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "vm/query.h"

#include <assert.h>
#include <errno.h>

#include "base/err.h"
#include "qmp/qmp.h"
#include "vm/graph.h"

enum { QUERIES_MAX = 8, TIMEOUT_MS = 30000 };

struct slot {
    struct vm_query *query;
    struct qmp_call *call;
    json_t *reply;
};

struct vm_query {
    struct slot slots[QUERIES_MAX];
    unsigned n_slots;
    unsigned n_open;
    struct err *err;
    vm_query_fn *cb;
    vm_graph_fn *graph_cb; /* with cb NULL: the replies are the graph's */
    void *data;
};

static const char *const graph_commands[] = {
    "query-named-block-nodes",
    "query-block",
    "query-jobs",
    "query-block-jobs",
    "query-block-exports",
    "x-debug-query-block-graph",
};

static void slot_on_reply(void *data, const struct err *err, json_t *result);
static void query_end(struct vm_query *query);
static void query_end_graph(struct vm_query *query);
static void query_free(struct vm_query *query);

int vm_query_start(struct vm *vm, const char *const *commands,
                   unsigned n_commands, vm_query_fn *cb, void *data,
                   struct vm_query **ret)
{
    struct qmp *qmp = vm_qmp(vm);
    assert(n_commands <= QUERIES_MAX);
    if (qmp == NULL) {
        return -ENOTCONN;
    }
    struct vm_query *query = calloc(1, sizeof(*query));
    if (query == NULL) {
        return -ENOMEM;
    }
    query->cb = cb;
    query->data = data;
    query->n_slots = n_commands;
    for (unsigned i = 0; i < n_commands; i++) {
        struct slot *slot = &query->slots[i];
        struct qmp_call_options options = {.timeout_ms = TIMEOUT_MS};
        bool nodes = commands[i] == graph_commands[0];
        /* Not flat, a chain of n nodes is told n times over. */
        json_auto_t *args = nodes ? json_pack("{s:b}", "flat", 1) : NULL;
        slot->query = query;
        int r = qmp_execute(qmp, commands[i], args, &options, slot_on_reply,
                            slot, &slot->call);
        if (r < 0) {
            vm_query_cancel(query);
            return r;
        }
        query->n_open++;
    }
    *ret = query;
    return 0;
}

int vm_graph(struct vm *vm, vm_graph_fn *cb, void *data, struct vm_query **ret)
{
    unsigned n = ARRAY_SIZE(graph_commands);
    /* Unstable, but in every QEMU from 4.0 to 11.1; else 'children' tell. */
    if (vm_schema(vm) == NULL ||
        !qmp_schema_has_command(vm_schema(vm), graph_commands[n - 1])) {
        n--;
    }
    int r = vm_query_start(vm, graph_commands, n, NULL, data, ret);
    if (r == 0) {
        (*ret)->graph_cb = cb;
    }
    return r;
}

void vm_query_cancel(struct vm_query *query)
{
    for (unsigned i = 0; i < query->n_slots; i++) {
        if (query->slots[i].call != NULL) {
            qmp_call_cancel(query->slots[i].call);
        }
    }
    query_free(query);
}

static void slot_on_reply(void *data, const struct err *err, json_t *result)
{
    struct slot *slot = data;
    struct vm_query *query = slot->query;
    slot->call = NULL;
    if (err != NULL && query->err == NULL) {
        query->err = err_copy(err);
    }
    slot->reply = json_incref(result);
    if (--query->n_open == 0) {
        query_end(query);
    }
}

static void query_end(struct vm_query *query)
{
    if (query->cb == NULL) {
        query_end_graph(query);
        return;
    }
    json_t *replies[QUERIES_MAX];
    for (unsigned i = 0; i < query->n_slots; i++) {
        replies[i] = query->slots[i].reply;
    }
    query->cb(query->data, query->err, query->err == NULL ? replies : NULL);
    query_free(query);
}

static void query_end_graph(struct vm_query *query)
{
    struct graph *graph = NULL;
    const struct graph_replies replies = {
        .nodes = query->slots[0].reply,
        .block = query->slots[1].reply,
        .jobs = query->slots[2].reply,
        .block_jobs = query->slots[3].reply,
        .exports = query->slots[4].reply,
        .edges = query->slots[5].reply,
    };
    if (query->err == NULL && graph_build(&replies, &graph, &query->err) < 0 &&
        query->err != NULL && query->err->code == -EPROTO) {
        query->err->code = -EBADMSG; /* an answer, not a broken connection */
    }
    query->graph_cb(query->data, query->err, graph);
    graph_free(graph);
    query_free(query);
}

static void query_free(struct vm_query *query)
{
    for (unsigned i = 0; i < query->n_slots; i++) {
        json_decref(query->slots[i].reply);
    }
    err_free(query->err);
    free(query);
}
