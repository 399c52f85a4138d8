/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Reads what there is: nodes, jobs, exports, devices. No edges yet. */
#include <errno.h>
#include <string.h>

#include "base/str.h"
#include "vm/graph-model.h"

static int read_nodes(struct graph *graph, const json_t *reply);
static int read_node(struct graph *graph, const json_t *json,
                     struct graph_node *node);
static int read_image(struct graph *graph, const json_t *image,
                      struct graph_node *node);
static int read_snapshots(struct graph *graph, const json_t *list,
                          struct graph_node *node);
static int read_bitmaps(struct graph *graph, const json_t *list,
                        struct graph_node *node);
static int read_jobs(struct graph *graph, const struct graph_replies *replies);
static int read_job(struct graph *graph, const json_t *json,
                    const char *id_key);
static int read_exports(struct graph *graph, const json_t *reply);
static int read_devices(struct graph *graph, const json_t *reply);
static int read_device(struct graph *graph, const json_t *json,
                       struct graph_device *device);
static int read_inserted(struct graph *graph, const json_t *inserted,
                         struct graph_device *device);
static const char *id_of_qdev(struct graph *graph, const char *qdev);
static bool is_filter(const char *driver);
static bool is_job_filter(const char *driver);

int graph_read(struct graph *graph, const struct graph_replies *replies)
{
    if (read_nodes(graph, replies->nodes) < 0 ||
        read_jobs(graph, replies) < 0 ||
        read_exports(graph, replies->exports) < 0) {
        return -ENOMEM;
    }
    return read_devices(graph, replies->block);
}

static int by_name(const void *a, const void *b)
{
    const struct graph_node *na = *(const struct graph_node *const *)a;
    const struct graph_node *nb = *(const struct graph_node *const *)b;
    int r = strcmp(na->name, nb->name);
    return r != 0 ? r : (na->index > nb->index) - (na->index < nb->index);
}

static int read_nodes(struct graph *graph, const json_t *reply)
{
    size_t n = json_array_size(reply);
    graph->nodes = graph_take(graph, n, sizeof(*graph->nodes));
    graph->by_name = graph_take(graph, n, sizeof(*graph->by_name));
    if (graph->nodes == NULL || graph->by_name == NULL) {
        return -ENOMEM;
    }
    for (size_t i = 0; i < n; i++) {
        const json_t *json = json_array_get(reply, i);
        struct graph_node *node = &graph->nodes[graph->n_nodes];
        if (graph_text_of(json, "node-name") == NULL) {
            continue;
        }
        if (read_node(graph, json, node) < 0) {
            return -ENOMEM;
        }
        node->index = graph->n_nodes;
        graph->by_name[graph->n_nodes++] = node;
    }
    qsort(graph->by_name, graph->n_nodes, sizeof(graph->by_name[0]), by_name);
    for (uint32_t i = 1; i < graph->n_nodes; i++) {
        /* QEMU's names are unique: then this is not what QEMU has. */
        graph->torn |=
            str_eq(graph->by_name[i - 1]->name, graph->by_name[i]->name);
    }
    return 0;
}

static int read_node(struct graph *graph, const json_t *json,
                     struct graph_node *node)
{
    const json_t *cache = json_object_get(json, "cache");
    const json_t *image = json_object_get(json, "image");
    const json_t *active = json_object_get(json, "active");
    memset(node, 0, sizeof(*node));
    if (graph_take_member(graph, json, "node-name", "", &node->name) < 0 ||
        graph_take_member(graph, json, "drv", "", &node->driver) < 0 ||
        graph_take_member(graph, json, "file", "", &node->filename) < 0 ||
        graph_take_member(graph, json, "detect_zeroes", "",
                          &node->detect_zeroes) < 0 ||
        graph_take_member(graph, json, "backing_file", NULL,
                          &node->backing_file) < 0) {
        return -ENOMEM;
    }
    node->anonymous = node->name[0] == '#';
    node->filter = is_filter(node->driver);
    node->job_filter = is_job_filter(node->driver);
    node->read_only = graph_bool_of(json, "ro");
    node->encrypted = graph_bool_of(json, "encrypted");
    node->inactive = json_is_false(active);
    node->backing_depth = (unsigned)graph_u64_of(json, "backing_file_depth");
    node->cache_known = json_is_object(cache);
    node->cache_direct = graph_bool_of(cache, "direct");
    node->cache_no_flush = graph_bool_of(cache, "no-flush");
    if (str_eq(node->driver, "throttle")) {
        node->throttle_group = graph_group_of_filename(graph, node->filename);
    }
    if (read_image(graph, image, node) < 0 ||
        read_snapshots(graph, json_object_get(image, "snapshots"), node) < 0) {
        return -ENOMEM;
    }
    return read_bitmaps(graph, json_object_get(json, "dirty-bitmaps"), node);
}

static int read_image(struct graph *graph, const json_t *image,
                      struct graph_node *node)
{
    const json_t *specific = json_object_get(image, "format-specific");
    const json_t *data = json_object_get(specific, "data");
    node->size = graph_u64_of(image, "virtual-size");
    node->cluster_size = graph_u64_of(image, "cluster-size");
    node->extended_l2 = graph_bool_of(data, "extended-l2");
    node->corrupt = graph_bool_of(data, "corrupt");
    if (graph_take_member(graph, image, "format", node->driver, &node->format) <
            0 ||
        graph_take_member(graph, data, "compat", NULL, &node->compat) < 0) {
        return -ENOMEM;
    }
    return graph_take_member(graph, data, "data-file", NULL, &node->data_file);
}

static int read_snapshots(struct graph *graph, const json_t *list,
                          struct graph_node *node)
{
    size_t n = json_array_size(list);
    const char **names = graph_take(graph, n, sizeof(*names));
    if (names == NULL) {
        return -ENOMEM;
    }
    for (size_t i = 0; i < n; i++) {
        const json_t *json = json_array_get(list, i);
        if (graph_take_member(graph, json, "name", "", &names[i]) < 0) {
            return -ENOMEM;
        }
    }
    node->snapshots = names;
    node->n_snapshots = (unsigned)n;
    return 0;
}

static int read_bitmaps(struct graph *graph, const json_t *list,
                        struct graph_node *node)
{
    size_t n = json_array_size(list);
    struct graph_bitmap *bitmaps = graph_take(graph, n, sizeof(*bitmaps));
    if (bitmaps == NULL) {
        return -ENOMEM;
    }
    for (size_t i = 0; i < n; i++) {
        const json_t *json = json_array_get(list, i);
        if (graph_take_member(graph, json, "name", "", &bitmaps[i].name) < 0) {
            return -ENOMEM;
        }
        bitmaps[i].granularity = graph_u64_of(json, "granularity");
        bitmaps[i].count = graph_u64_of(json, "count");
        bitmaps[i].recording = graph_bool_of(json, "recording");
        bitmaps[i].persistent = graph_bool_of(json, "persistent");
        bitmaps[i].busy = graph_bool_of(json, "busy");
        bitmaps[i].inconsistent = graph_bool_of(json, "inconsistent");
    }
    node->bitmaps = bitmaps;
    node->n_bitmaps = (unsigned)n;
    return 0;
}

/* The three replies overlap: a job is told by at least one of them. */
static int read_jobs(struct graph *graph, const struct graph_replies *replies)
{
    const json_t *rows = json_object_get(replies->edges, "nodes");
    graph->jobs = graph_take(graph, GRAPH_USERS_MAX, sizeof(*graph->jobs));
    if (graph->jobs == NULL) {
        return -ENOMEM;
    }
    for (size_t i = 0; i < json_array_size(replies->jobs); i++) {
        if (read_job(graph, json_array_get(replies->jobs, i), "id") < 0) {
            return -ENOMEM;
        }
    }
    for (size_t i = 0; i < json_array_size(replies->block_jobs); i++) {
        const json_t *json = json_array_get(replies->block_jobs, i);
        if (read_job(graph, json, "device") < 0) {
            return -ENOMEM;
        }
    }
    for (size_t i = 0; i < json_array_size(rows); i++) {
        const json_t *json = json_array_get(rows, i);
        if (str_eq(graph_text_of(json, "type"), "block-job") &&
            read_job(graph, json, "name") < 0) {
            return -ENOMEM;
        }
    }
    return 0;
}

static int read_job(struct graph *graph, const json_t *json, const char *id_key)
{
    const char *id = graph_text_of(json, id_key);
    bool from_jobs = str_eq(id_key, "id");
    struct graph_job *job = NULL;
    if (id == NULL) {
        return 0;
    }
    for (uint32_t i = 0; i < graph->n_jobs && job == NULL; i++) {
        job = str_eq(graph->jobs[i].id, id) ? &graph->jobs[i] : NULL;
    }
    if (job != NULL) {
        job->block = job->block || !from_jobs;
        return 0;
    }
    if (graph->n_jobs == GRAPH_USERS_MAX) {
        graph->torn = true;
        return 0;
    }
    job = &graph->jobs[graph->n_jobs];
    memset(job, 0, sizeof(*job));
    job->index = graph->n_jobs++;
    job->block = !from_jobs;
    bool row = str_eq(id_key, "name");
    if (graph_take_member(graph, json, id_key, "", &job->id) < 0 ||
        graph_take_member(graph, row ? NULL : json, "type", "", &job->type) <
            0 ||
        graph_take_member(graph, json, "status", "", &job->status) < 0) {
        return -ENOMEM;
    }
    return graph_take_member(graph, json, "error", NULL, &job->error);
}

static int read_exports(struct graph *graph, const json_t *reply)
{
    size_t n = json_array_size(reply);
    graph->exports = graph_take(graph, n, sizeof(*graph->exports));
    if (graph->exports == NULL) {
        return -ENOMEM;
    }
    for (size_t i = 0; i < n; i++) {
        const json_t *json = json_array_get(reply, i);
        struct graph_export *it = &graph->exports[graph->n_exports];
        if (graph_text_of(json, "id") == NULL) {
            continue;
        }
        it->index = graph->n_exports++;
        it->shutting_down = graph_bool_of(json, "shutting-down");
        if (graph_take_member(graph, json, "id", "", &it->id) < 0 ||
            graph_take_member(graph, json, "type", "", &it->type) < 0 ||
            graph_take_member(graph, json, "node-name", "", &it->node_name) <
                0) {
            return -ENOMEM;
        }
    }
    return 0;
}

static int read_devices(struct graph *graph, const json_t *reply)
{
    size_t n = json_array_size(reply);
    graph->devices = graph_take(graph, n, sizeof(*graph->devices));
    if (graph->devices == NULL) {
        return -ENOMEM;
    }
    for (size_t i = 0; i < n; i++) {
        const json_t *json = json_array_get(reply, i);
        struct graph_device *device = &graph->devices[graph->n_devices];
        if (!json_is_object(json)) {
            continue;
        }
        if (read_device(graph, json, device) < 0) {
            return -ENOMEM;
        }
        device->index = graph->n_devices++;
    }
    return 0;
}

static int read_device(struct graph *graph, const json_t *json,
                       struct graph_device *device)
{
    const json_t *inserted = json_object_get(json, "inserted");
    memset(device, 0, sizeof(*device));
    if (graph_take_member(graph, json, "device", "", &device->drive) < 0 ||
        graph_take_member(graph, json, "qdev", NULL, &device->qdev) < 0 ||
        graph_take_member(graph, json, "io-status", "", &device->io_status) <
            0) {
        return -ENOMEM;
    }
    if (device->qdev != NULL) {
        device->id = id_of_qdev(graph, device->qdev);
    }
    device->key = device->qdev != NULL ? device->qdev : device->drive;
    device->label = device->id != NULL         ? device->id
                    : device->drive[0] != '\0' ? device->drive
                                               : device->key;
    device->removable = graph_bool_of(json, "removable");
    device->locked = graph_bool_of(json, "locked");
    device->tray_open = graph_bool_of(json, "tray_open");
    /* Of the removable ones only CD drives have a tray (hw/block/fdc.c). */
    device->cdrom = device->removable && device->qdev != NULL &&
                    json_object_get(json, "tray_open") != NULL;
    device->empty = !json_is_object(inserted);
    return device->empty ? 0 : read_inserted(graph, inserted, device);
}

static int read_inserted(struct graph *graph, const json_t *inserted,
                         struct graph_device *device)
{
    const json_t *cache = json_object_get(inserted, "cache");
    device->read_only = graph_bool_of(inserted, "ro");
    device->writeback = graph_bool_of(cache, "writeback");
    if (graph_take_member(graph, inserted, "group", NULL, &device->group) < 0 ||
        graph_take_member(graph, inserted, "node-name", NULL,
                          &device->query_node) < 0) {
        return -ENOMEM;
    }
    json_t *limits = json_object();
    if (json_array_append_new(graph->kept, limits) < 0) {
        return -ENOMEM;
    }
    device->limits = limits;
    const char *key;
    json_t *value;
    json_object_foreach(graph_loose(inserted), key, value) {
        bool limit = str_starts(key, "iops") || str_starts(key, "bps");
        if (limit && json_integer_value(value) != 0 &&
            json_object_set_new(limits, key,
                                json_integer(json_integer_value(value))) < 0) {
            return -ENOMEM;
        }
    }
    return 0;
}

char *graph_device_path(const char *key)
{
    return key[0] == '/' ? strdup(key)
                         : str_printf("/machine/peripheral/%s", key);
}

/*
 * "sd1", or "/machine/peripheral/<id>/..." where the backend belongs to a
 * child of the device (virtio). NULL for what has no id of its own.
 */
static const char *id_of_qdev(struct graph *graph, const char *qdev)
{
    static const char prefix[] = "/machine/peripheral/";
    if (qdev[0] != '/') {
        return qdev[0] != '\0' ? qdev : NULL;
    }
    if (!str_starts(qdev, prefix)) {
        return NULL;
    }
    const char *id = qdev + strlen(prefix);
    size_t n = strcspn(id, "/");
    return n > 0 ? graph_take_text(graph, id, n) : NULL;
}

/* Drivers with .is_filter in QEMU's block/ (7.2 to 11.1). */
static bool is_filter(const char *driver)
{
    static const char *const filters[] = {
        "throttle",  "copy-on-read", "compress",  "preallocate", "blkdebug",
        "blkreplay", "blklogwrites", "blkverify", "backup-top",
    };

    for (size_t i = 0; i < ARRAY_SIZE(filters); i++) {
        if (str_eq(driver, filters[i])) {
            return true;
        }
    }
    return is_job_filter(driver);
}

static bool is_job_filter(const char *driver)
{
    return str_eq(driver, "mirror_top") || str_eq(driver, "commit_top") ||
           str_eq(driver, "copy-before-write");
}
