/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The model as JSON: to look at, and as facts that outlive the graph. */
#include <string.h>

#include "base/str.h"
#include "vm/graph-model.h"

static json_t *devices_to_json(const struct graph *graph);
static json_t *nodes_to_json(const struct graph *graph);
static json_t *edges_to_json(const struct graph *graph);
static json_t *jobs_to_json(const struct graph *graph);
static json_t *exports_to_json(const struct graph *graph);
static json_t *vertex_to_json(const struct graph *graph, uint32_t vertex);
static json_t *perm_to_json(unsigned perm);
static json_t *cache_to_json(const struct graph_node *node);
static json_t *snapshots_to_json(const struct graph_node *node);
static json_t *bitmaps_to_json(const struct graph_node *node, bool facts);
static json_t *filters_to_json(const struct graph *graph,
                               const struct graph_disk *disk);
static json_t *throttle_to_json(const struct graph *graph,
                                const struct graph_disk *disk);
static json_t *group_to_json(const struct graph *graph, const char *group);
static json_t *backing_to_json(const struct graph_disk *disk);
static json_t *image_to_json(const struct graph_node *node);
static const char *detect_zeroes(const struct graph *graph,
                                 const struct graph_disk *disk);
static int compare(json_t *list, const char *prefix, const char *property,
                   const json_t *before, const json_t *after);

json_t *graph_to_json(const struct graph *graph)
{
    return json_pack("{s:o, s:o, s:o, s:o, s:o}", "devices",
                     devices_to_json(graph), "nodes", nodes_to_json(graph),
                     "edges", edges_to_json(graph), "jobs", jobs_to_json(graph),
                     "exports", exports_to_json(graph));
}

json_t *graph_disk_facts(const struct graph *graph,
                         const struct graph_disk *disk)
{
    const struct graph_device *device = disk->device;
    const struct graph_node *active = disk->active;
    const struct graph_node *protocol = disk->protocol;
    json_auto_t *cache = cache_to_json(active);
    if (cache != NULL &&
        json_object_set_new(cache, "writeback",
                            json_boolean(device->writeback)) < 0) {
        return NULL;
    }
    json_auto_t *who = json_pack(
        "{s:s, s:s, s:s?, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s}", "device",
        device->label, "drive", device->drive, "qdev", device->qdev, "root",
        disk->root->name, "node", active->name, "protocol", protocol->name,
        "driver", active->driver, "format", disk->format, "filename",
        active->filename, "protocol_driver", protocol->driver,
        "protocol_filename", protocol->filename);
    json_auto_t *what = json_pack(
        "{s:I, s:b, s:b, s:s, s:O, s:o, s:o, s:o, s:o, s:o, s:o}", "size",
        (json_int_t)disk->size, "read_only", (int)device->read_only,
        "shares_writes", (int)device->shares_writes, "detect_zeroes",
        detect_zeroes(graph, disk), "cache", cache, "image",
        image_to_json(active), "filters", filters_to_json(graph, disk),
        "throttle", throttle_to_json(graph, disk), "snapshots",
        snapshots_to_json(active), "bitmaps", bitmaps_to_json(active, true),
        "backing", backing_to_json(disk));
    if (who == NULL || what == NULL || json_object_update(who, what) < 0) {
        return NULL;
    }
    return TAKE_PTR(who);
}

json_t *graph_differences(const json_t *before, const json_t *after)
{
    static const char *const properties[] = {
        "device",        "drive",     "node",    "format",  "size",
        "read_only",     "cache",     "image",   "filters", "throttle",
        "detect_zeroes", "snapshots", "bitmaps", "backing",
    };

    json_auto_t *list = json_array();
    for (size_t i = 0; i < ARRAY_SIZE(properties); i++) {
        const char *property = properties[i];
        const json_t *a = json_object_get(before, property);
        const json_t *b = json_object_get(after, property);
        if (!json_is_object(a) || !json_is_object(b)) {
            if (compare(list, NULL, property, a, b) < 0) {
                return NULL;
            }
            continue;
        }
        const char *key;
        json_t *value;
        json_object_foreach(graph_loose(a), key, value) {
            if (compare(list, property, key, value, json_object_get(b, key)) <
                0) {
                return NULL;
            }
        }
        json_object_foreach(graph_loose(b), key, value) {
            if (json_object_get(a, key) == NULL &&
                compare(list, property, key, NULL, value) < 0) {
                return NULL;
            }
        }
    }
    return TAKE_PTR(list);
}

static json_t *devices_to_json(const struct graph *graph)
{
    json_auto_t *list = json_array();
    for (uint32_t i = 0; i < graph->n_devices; i++) {
        const struct graph_device *it = &graph->devices[i];
        json_t *json = json_pack(
            "{s:s, s:s, s:s?, s:s?, s:b, s:b, s:b, s:b, s:s}", "id", it->label,
            "drive", it->drive, "qdev", it->qdev, "node",
            it->root != NULL ? it->root->name : NULL, "cdrom", (int)it->cdrom,
            "read_only", (int)it->read_only, "empty", (int)it->empty, "locked",
            (int)it->locked, "io_status", it->io_status);
        if (json_array_append_new(list, json) < 0) {
            return NULL;
        }
    }
    return TAKE_PTR(list);
}

static json_t *nodes_to_json(const struct graph *graph)
{
    json_auto_t *list = json_array();
    for (uint32_t i = 0; i < graph->n_nodes; i++) {
        const struct graph_node *it = &graph->nodes[i];
        json_t *json = json_pack(
            "{s:s, s:s, s:s, s:I, s:b, s:b, s:s, s:o, s:s?, s:o, s:o}", "name",
            it->name, "driver", it->driver, "filename", it->filename, "size",
            (json_int_t)it->size, "read_only", (int)it->read_only, "filter",
            (int)it->filter, "detect_zeroes", it->detect_zeroes, "cache",
            cache_to_json(it), "throttle_group", it->throttle_group,
            "snapshots", snapshots_to_json(it), "bitmaps",
            bitmaps_to_json(it, false));
        if (json_array_append_new(list, json) < 0) {
            return NULL;
        }
    }
    return TAKE_PTR(list);
}

static json_t *edges_to_json(const struct graph *graph)
{
    json_auto_t *list = json_array();
    for (uint32_t i = 0; i < graph->n_edges; i++) {
        const struct graph_edge *it = &graph->edges[i];
        json_t *json = json_pack("{s:o, s:s, s:s, s:o}", "parent",
                                 vertex_to_json(graph, it->parent), "child",
                                 graph_vertex_name(graph, it->child), "role",
                                 it->role, "perm", perm_to_json(it->perm));
        if (json_array_append_new(list, json) < 0) {
            return NULL;
        }
    }
    return TAKE_PTR(list);
}

static json_t *jobs_to_json(const struct graph *graph)
{
    json_auto_t *list = json_array();
    for (uint32_t i = 0; i < graph->n_jobs; i++) {
        const struct graph_job *it = &graph->jobs[i];
        json_auto_t *nodes = json_array();
        uint32_t e = graph->vertices[graph_vertex_of_job(graph, i)].first_down;
        uint32_t last = GRAPH_NONE;
        for (; e != GRAPH_NONE; e = graph->edges[e].next_down) {
            /* The backend of a job stands beside its own edge. */
            uint32_t child = graph->edges[e].child;
            if (child != last &&
                json_array_append_new(
                    nodes, json_string(graph->nodes[child].name)) < 0) {
                return NULL;
            }
            last = child;
        }
        json_t *json = json_pack("{s:s, s:s, s:s, s:s*, s:O}", "id", it->id,
                                 "type", it->type, "status", it->status,
                                 "error", it->error, "nodes", nodes);
        if (json_array_append_new(list, json) < 0) {
            return NULL;
        }
    }
    return TAKE_PTR(list);
}

static json_t *exports_to_json(const struct graph *graph)
{
    json_auto_t *list = json_array();
    for (uint32_t i = 0; i < graph->n_exports; i++) {
        const struct graph_export *it = &graph->exports[i];
        json_t *json = json_pack("{s:s, s:s, s:s}", "id", it->id, "type",
                                 it->type, "node", it->node_name);
        if (json_array_append_new(list, json) < 0) {
            return NULL;
        }
    }
    return TAKE_PTR(list);
}

static json_t *vertex_to_json(const struct graph *graph, uint32_t vertex)
{
    const struct graph_vertex *it = &graph->vertices[vertex];
    const char *name = graph_vertex_name(graph, vertex);
    if (it->kind == GRAPH_NODE) {
        return json_string(name);
    }
    if (it->kind == GRAPH_BACKEND) {
        return json_sprintf("backend:%u", (unsigned)it->index);
    }
    return json_sprintf("%s:%s", graph_kind_text(it->kind), name);
}

static json_t *perm_to_json(unsigned perm)
{
    static const char *const names[] = {"consistent-read", "write",
                                        "write-unchanged", "resize"};
    json_t *list = json_array();
    for (unsigned i = 0; i < ARRAY_SIZE(names); i++) {
        if ((perm & 1U << i) != 0) {
            (void)json_array_append_new(list, json_string(names[i]));
        }
    }
    return list;
}

static json_t *cache_to_json(const struct graph_node *node)
{
    if (!node->cache_known) {
        return json_object();
    }
    return json_pack("{s:b, s:b}", "direct", (int)node->cache_direct,
                     "no_flush", (int)node->cache_no_flush);
}

static json_t *snapshots_to_json(const struct graph_node *node)
{
    json_auto_t *list = json_array();
    for (unsigned i = 0; i < node->n_snapshots; i++) {
        if (json_array_append_new(list, json_string(node->snapshots[i])) < 0) {
            return NULL;
        }
    }
    return TAKE_PTR(list);
}

/* As facts: the owner's bitmaps only, without what changes by itself. */
static json_t *bitmaps_to_json(const struct graph_node *node, bool facts)
{
    json_auto_t *list = json_array();
    for (unsigned i = 0; i < node->n_bitmaps; i++) {
        const struct graph_bitmap *it = &node->bitmaps[i];
        if (facts && it->name[0] == '\0') {
            continue;
        }
        json_auto_t *json =
            json_pack("{s:s, s:I, s:b, s:b}", "name", it->name, "granularity",
                      (json_int_t)it->granularity, "recording",
                      (int)it->recording, "persistent", (int)it->persistent);
        json_auto_t *more =
            json_pack("{s:I, s:b, s:b}", "count", (json_int_t)it->count, "busy",
                      (int)it->busy, "inconsistent", (int)it->inconsistent);
        if (json == NULL || more == NULL ||
            (!facts && json_object_update(json, more) < 0) ||
            json_array_append(list, json) < 0) {
            return NULL;
        }
    }
    return TAKE_PTR(list);
}

/* Drivers top-down; "|" stands where the format is. */
static json_t *filters_to_json(const struct graph *graph,
                               const struct graph_disk *disk)
{
    json_auto_t *list = json_array();
    for (unsigned i = 0; i < disk->n_filters; i++) {
        const char *driver = disk->filters[i]->driver;
        if (json_array_append_new(list, json_string(driver)) < 0) {
            return NULL;
        }
    }
    const struct graph_node *it = graph_child(graph, disk->active, "file");
    bool first = true;
    for (unsigned i = 0; it != NULL && i < GRAPH_PATH_MAX; i++) {
        if (it->filter) {
            if (first) {
                (void)json_array_append_new(list, json_string("|"));
                first = false;
            }
            (void)json_array_append_new(list, json_string(it->driver));
        }
        it = graph_child(graph, it, "file");
    }
    return TAKE_PTR(list);
}

/* The drive's own limits stay with the device, the groups with their nodes. */
static json_t *throttle_to_json(const struct graph *graph,
                                const struct graph_disk *disk)
{
    json_auto_t *groups = json_array();
    for (unsigned i = 0; i < disk->n_filters; i++) {
        if (str_eq(disk->filters[i]->driver, "throttle") &&
            json_array_append_new(
                groups,
                group_to_json(graph, disk->filters[i]->throttle_group)) < 0) {
            return NULL;
        }
    }
    const struct graph_node *it = graph_child(graph, disk->active, "file");
    for (unsigned i = 0; it != NULL && i < GRAPH_PATH_MAX; i++) {
        if (str_eq(it->driver, "throttle") &&
            json_array_append_new(
                groups, group_to_json(graph, it->throttle_group)) < 0) {
            return NULL;
        }
        it = graph_child(graph, it, "file");
    }
    json_auto_t *limits = json_deep_copy(disk->device->limits);
    return json_pack("{s:s?, s:O*, s:O}", "drive_group", disk->device->group,
                     "drive_limits", limits, "groups", groups);
}

static json_t *group_to_json(const struct graph *graph, const char *group)
{
    json_auto_t *limits = json_object();
    const json_t *told =
        group != NULL ? json_object_get(graph->throttle_groups, group) : NULL;
    const char *key;
    json_t *value;
    json_object_foreach(graph_loose(told), key, value) {
        /* The burst lengths are 1 where nothing was set. */
        bool unset =
            json_integer_value(value) == 0 ||
            (json_integer_value(value) == 1 && strstr(key, "-length") != NULL);
        if (!unset && json_object_set(limits, key, value) < 0) {
            return NULL;
        }
    }
    return json_pack("{s:s?, s:O}", "id", group, "limits", limits);
}

static json_t *backing_to_json(const struct graph_disk *disk)
{
    json_auto_t *list = json_array();
    for (unsigned i = 1; i < disk->n_layers; i++) {
        const char *filename = disk->layers[i].protocol->filename;
        if (json_array_append_new(list, json_string(filename)) < 0) {
            return NULL;
        }
    }
    return TAKE_PTR(list);
}

static json_t *image_to_json(const struct graph_node *node)
{
    return json_pack("{s:s?, s:I, s:b, s:b, s:s?}", "compat", node->compat,
                     "cluster_size", (json_int_t)node->cluster_size,
                     "extended_l2", (int)node->extended_l2, "encrypted",
                     (int)node->encrypted, "data_file", node->data_file);
}

/* The strongest on the way down is what a write meets. */
static const char *detect_zeroes(const struct graph *graph,
                                 const struct graph_disk *disk)
{
    static const char *const modes[] = {"off", "on", "unmap"};
    unsigned strongest = 0;
    const struct graph_node *it = disk->root;
    for (unsigned i = 0; it != NULL && i < 2 * GRAPH_PATH_MAX; i++) {
        for (unsigned mode = strongest + 1; mode < ARRAY_SIZE(modes); mode++) {
            strongest =
                str_eq(it->detect_zeroes, modes[mode]) ? mode : strongest;
        }
        const struct graph_node *below = graph_child(graph, it, "file");
        it = below != NULL ? below : graph_filtered(graph, it);
    }
    return modes[strongest];
}

static int compare(json_t *list, const char *prefix, const char *property,
                   const json_t *before, const json_t *after)
{
    json_t *none = json_null();
    json_t *a = before != NULL ? graph_loose(before) : none;
    json_t *b = after != NULL ? graph_loose(after) : none;
    if (json_equal(a, b)) {
        return 0;
    }
    json_t *name = prefix != NULL ? json_sprintf("%s.%s", prefix, property)
                                  : json_string(property);
    json_t *copy_a = json_deep_copy(a), *copy_b = json_deep_copy(b);
    return json_array_append_new(list,
                                 json_pack("{s:o, s:o, s:o}", "property", name,
                                           "before", copy_a, "after", copy_b));
}
