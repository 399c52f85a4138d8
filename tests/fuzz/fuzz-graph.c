/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Whatever QEMU may answer to the queries, the graph is built or refused, and
 * every question to it ends. Input: {"nodes","block","jobs","block_jobs",
 * "exports","edges","throttle_groups"} as tests/unit/graph has them.
 */
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "vm/graph.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void ask_disks(const struct graph *graph, json_t *names);
static void ask_nodes(const struct graph *graph, const json_t *names);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    json_auto_t *json =
        json_loadb((const char *)data, size, JSON_ALLOW_NUL, NULL);
    struct graph_replies replies = {
        .nodes = json_object_get(json, "nodes"),
        .block = json_object_get(json, "block"),
        .jobs = json_object_get(json, "jobs"),
        .block_jobs = json_object_get(json, "block_jobs"),
        .exports = json_object_get(json, "exports"),
        .edges = json_object_get(json, "edges"),
        .throttle_groups = json_object_get(json, "throttle_groups"),
    };
    _cleanup_graph_ struct graph *graph = NULL;
    _cleanup_err_ struct err *err = NULL;
    json_auto_t *groups = graph_throttle_groups(replies.nodes);
    if (graph_build(&replies, &graph, &err) < 0) {
        return 0;
    }
    json_auto_t *whole = graph_to_json(graph);
    json_auto_t *names = json_array();
    ask_disks(graph, names);
    ask_nodes(graph, names);
    return 0;
}

static void ask_disks(const struct graph *graph, json_t *names)
{
    unsigned n;
    const struct graph_device *devices = graph_devices(graph, &n);
    json_auto_t *last = NULL;
    for (unsigned i = 0; i < n && i < 8; i++) {
        _cleanup_graph_disk_ struct graph_disk *disk = NULL;
        _cleanup_err_ struct err *err = NULL;
        if (graph_find_disk(graph, devices[i].label, &disk, &err) < 0) {
            continue;
        }
        json_auto_t *facts = graph_disk_facts(graph, disk);
        json_auto_t *differences = graph_differences(last, facts);
        for (unsigned j = 0; j < disk->n_nodes; j++) {
            (void)json_array_append_new(names,
                                        json_string(disk->nodes[j]->name));
            struct graph_claim claim = {devices[i].key, disk->nodes[j]->name,
                                        disk->active->name,
                                        disk->protocol->name};
            _cleanup_err_ struct err *why = NULL;
            (void)graph_proof(graph, &claim, &why);
        }
        json_decref(last);
        last = json_incref(facts);
    }
}

static void ask_nodes(const struct graph *graph, const json_t *names)
{
    unsigned n;
    const struct graph_node *nodes = graph_nodes(graph, &n);
    for (unsigned i = 0; i < n && i < 32; i++) {
        struct graph_user *users = NULL;
        unsigned n_users = 0;
        (void)graph_node_users(graph, &nodes[i], &users, &n_users);
        (void)graph_reaches(graph, &nodes[i], &nodes[n - 1]);
        free(users);
    }
    json_auto_t *order = graph_deletable(graph, names);
}
