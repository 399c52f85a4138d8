/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the fake QEMU tells of itself. The shapes are those of QEMU 7.2. */
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/str.h"
#include "fake/fake-vm.h"

enum { ID_DEVICE = 1, ID_JOB = 100, ID_BACKEND = 200, ID_NODE = 300 };

static json_t *look_nodes(const struct fake_vm *vm);
static json_t *look_block(const struct fake_vm *vm);
static json_t *look_jobs(const struct fake_vm *vm);
static json_t *look_block_jobs(const struct fake_vm *vm);
static json_t *look_edges(const struct fake_vm *vm);
static json_t *look_schema(const struct fake_vm *vm);

const char *fake_vm_status_name(enum fake_status status)
{
    static const char *const names[] = {
        [FAKE_CREATED] = "created", [FAKE_RUNNING] = "running",
        [FAKE_READY] = "ready",     [FAKE_WAITING] = "waiting",
        [FAKE_PENDING] = "pending", [FAKE_CONCLUDED] = "concluded",
    };
    return names[status];
}

json_t *fake_vm_look(struct fake_vm *vm, const char *command)
{
    if (str_eq(command, "query-named-block-nodes")) {
        return look_nodes(vm);
    }
    if (str_eq(command, "query-block")) {
        return look_block(vm);
    }
    if (str_eq(command, "query-jobs")) {
        return look_jobs(vm);
    }
    if (str_eq(command, "query-block-jobs")) {
        return look_block_jobs(vm);
    }
    if (str_eq(command, "x-debug-query-block-graph")) {
        return look_edges(vm);
    }
    if (str_eq(command, "query-qmp-schema")) {
        return look_schema(vm);
    }
    if (str_eq(command, "query-blockstats")) {
        return json_array();
    }
    return NULL;
}

static const char *path_of(const struct fake_vm *vm, int node)
{
    while (vm->nodes[node].child != FAKE_NOBODY) {
        node = vm->nodes[node].child;
    }
    return vm->nodes[node].path; /* of an nbd node: the export's name */
}

static void add_bitmap(json_t *list, const char *name, bool busy,
                       bool recording, bool persistent)
{
    if (*name != '\0') {
        (void)json_array_append_new(
            list, json_pack("{s:s, s:b, s:b, s:b, s:i, s:i}", "name", name,
                            "busy", busy, "recording", recording, "persistent",
                            persistent, "count", 0, "granularity", 65536));
    }
}

static json_t *node_json(const struct fake_vm *vm, int index)
{
    const struct fake_node *node = &vm->nodes[index];
    const char *path = path_of(vm, index);
    json_t *json = json_pack(
        "{s:i, s:{s:b, s:b, s:b}, s:s, s:s, s:b, s:s, s:s, s:b,"
        " s:{s:s, s:s, s:b, s:I}}",
        "backing_file_depth", 0, "cache", "direct", 0, "no-flush", 0,
        "writeback", 1, "detect_zeroes", "off", "drv", node->driver,
        "encrypted", 0, "file", path, "node-name", node->name, "ro",
        (int)node->frozen, "image", "filename", path, "format", node->driver,
        "dirty-flag", 0, "virtual-size", (json_int_t)node->size);
    json_t *bitmaps = json_array();
    /* While it comes in, it does not record. */
    bool comes = node->busy && vm->runstate == FAKE_INMIGRATE;
    add_bitmap(bitmaps, node->bitmap, node->busy, !comes, node->persistent);
    add_bitmap(bitmaps, node->ours[0], false, true, false);
    add_bitmap(bitmaps, node->ours[1], false, true, false);
    if (json_array_size(bitmaps) > 0) {
        (void)json_object_set(json, "dirty-bitmaps", bitmaps);
    }
    json_decref(bitmaps);
    return json;
}

static json_t *look_nodes(const struct fake_vm *vm)
{
    json_t *list = json_array();
    for (int i = 0; i < FAKE_NODES; i++) {
        if (vm->nodes[i].used) {
            (void)json_array_append_new(list, node_json(vm, i));
        }
    }
    return list;
}

static json_t *look_block(const struct fake_vm *vm)
{
    json_t *list = json_array();
    for (unsigned i = 0; i < vm->n_devices; i++) {
        const struct fake_device *device = &vm->devices[i];
        int root = device->root;
        if (root == FAKE_NOBODY) {
            continue;
        }
        /* A filter that a job put there unasked is hidden. */
        if (str_eq(vm->nodes[root].driver, "mirror_top") &&
            vm->nodes[root].name[0] == '#') {
            root = vm->nodes[root].child;
        }
        (void)json_array_append_new(
            list, json_pack("{s:s, s:s, s:s, s:b, s:b, s:s, s:o}", "device",
                            device->drive, "qdev", device->qdev, "io-status",
                            "ok", "locked", 0, "removable", 0, "type",
                            "unknown", "inserted", node_json(vm, root)));
    }
    return list;
}

static int done_of(const struct fake_vm *vm, const struct fake_job *job)
{
    bool behind = vm->changes_jobs && job->mirror && !job->synced;
    return job->status < FAKE_READY ? 0 : behind ? 3072 : 4096;
}

static json_t *look_jobs(const struct fake_vm *vm)
{
    json_t *list = json_array();
    for (unsigned i = 0; i < FAKE_JOBS; i++) {
        const struct fake_job *job = &vm->jobs[i];
        if (job->used) {
            json_t *json = json_pack(
                "{s:s, s:s, s:s, s:i, s:i}", "id", job->id, "type",
                job->commit   ? "commit"
                : job->mirror ? "mirror"
                              : "create",
                "status", fake_vm_status_name(job->status), "current-progress",
                done_of(vm, job), "total-progress", 4096);
            if (*job->error != '\0') {
                (void)json_object_set_new(json, "error",
                                          json_string(job->error));
            }
            (void)json_array_append_new(list, json);
        }
    }
    return list;
}

static json_t *look_block_jobs(const struct fake_vm *vm)
{
    json_t *list = json_array();
    for (unsigned i = 0; i < FAKE_JOBS; i++) {
        const struct fake_job *job = &vm->jobs[i];
        if (job->used && job->mirror) {
            json_t *json = json_pack(
                "{s:s, s:s, s:s, s:s, s:b, s:b, s:b, s:i}", "device", job->id,
                "type", job->commit ? "commit" : "mirror", "status",
                fake_vm_status_name(job->status), "io-status", "ok", "paused",
                job->status == FAKE_PENDING, "ready", job->status == FAKE_READY,
                "auto-finalize", job->auto_finalize, "speed", 0);
            if (vm->changes_jobs) {
                (void)json_object_set_new(json, "actively-synced",
                                          json_boolean(job->synced));
            }
            (void)json_array_append_new(list, json);
        }
    }
    return list;
}

static void add_row(json_t *rows, int id, const char *name, const char *type)
{
    (void)json_array_append_new(rows, json_pack("{s:i, s:s, s:s}", "id", id,
                                                "name", name, "type", type));
}

static void add_edge(json_t *edges, int parent, int child, const char *name,
                     bool writes)
{
    json_t *perm =
        writes ? json_pack("[s, s]", "write", "consistent-read") : json_array();
    (void)json_array_append_new(
        edges, json_pack("{s:i, s:i, s:s, s:o, s:[s]}", "parent", parent,
                         "child", child, "name", name, "perm", perm,
                         "shared-perm", "consistent-read"));
}

static void edges_of_job(const struct fake_vm *vm, unsigned i, json_t *rows,
                         json_t *edges)
{
    const struct fake_job *job = &vm->jobs[i];
    add_row(rows, ID_JOB + (int)i, job->id, "block-job");
    if (job->status == FAKE_CONCLUDED) {
        return;
    }
    add_row(rows, ID_BACKEND + (int)i, "", "block-backend");
    add_edge(edges, ID_JOB + (int)i, ID_NODE + job->filter, "main node", false);
    add_edge(edges, ID_JOB + (int)i, ID_NODE + job->source, "source", false);
    add_edge(edges, ID_JOB + (int)i, ID_NODE + job->target, "target", false);
    add_edge(edges, ID_BACKEND + (int)i, ID_NODE + job->target, "root", true);
}

static json_t *look_edges(const struct fake_vm *vm)
{
    json_t *rows = json_array(), *edges = json_array();
    for (int i = 0; i < FAKE_NODES; i++) {
        const struct fake_node *node = &vm->nodes[i];
        if (node->used) {
            add_row(rows, ID_NODE + i, node->name, "block-driver");
            if (node->child != FAKE_NOBODY) {
                bool top = str_eq(node->driver, "mirror_top");
                add_edge(edges, ID_NODE + i, ID_NODE + node->child,
                         top ? "backing" : "file", true);
            }
            if (node->backing != FAKE_NOBODY) {
                add_edge(edges, ID_NODE + i, ID_NODE + node->backing, "backing",
                         false);
            }
        }
    }
    for (unsigned i = 0; i < vm->n_devices; i++) {
        const struct fake_device *device = &vm->devices[i];
        if (device->root == FAKE_NOBODY) {
            continue;
        }
        add_row(rows, ID_DEVICE + (int)i,
                *device->drive != '\0' ? device->drive : device->qdev,
                "block-backend");
        add_edge(edges, ID_DEVICE + (int)i, ID_NODE + device->root, "root",
                 true);
    }
    for (unsigned i = 0; i < FAKE_JOBS; i++) {
        if (vm->jobs[i].used && vm->jobs[i].mirror) {
            edges_of_job(vm, i, rows, edges);
        }
    }
    return json_pack("{s:o, s:o}", "nodes", rows, "edges", edges);
}

/* Only what the plan asks for: commands, and the drivers of blockdev-add. */
/* As 8.2 has it: a variant of mirrors. */
static void add_change(json_t *schema)
{
    json_auto_t *change = json_pack(
        "[{s:s, s:s, s:s, s:s}, {s:s, s:s, s:[], s:s, s:[{s:s, s:s}]},"
        " {s:s, s:s, s:[{s:s, s:s}]}]",
        "name", "block-job-change", "meta-type", "command", "arg-type",
        "change", "ret-type", "none", "name", "change", "meta-type", "object",
        "members", "tag", "type", "variants", "case", "mirror", "type",
        "change-mirror", "name", "change-mirror", "meta-type", "object",
        "members", "name", "copy-mode", "type", "drivers");
    (void)json_array_extend(schema, change);
}

static json_t *look_schema(const struct fake_vm *vm)
{
    static const char *const commands[] = {
        "blockdev-add",
        "blockdev-create",
        "blockdev-del",
        "block-commit",
        "blockdev-snapshot",
        "blockdev-mirror",
        "blockdev-reopen",
        "drive-mirror",
        "job-cancel",
        "job-complete",
        "job-dismiss",
        "job-finalize",
        "query-jobs",
        "query-block-jobs",
        "set-action",
        "transaction",
        "x-debug-query-block-graph",
    };

    json_t *schema =
        json_pack("[{s:s, s:s, s:[{s:s, s:s}]}, {s:s, s:s, s:[s, s, s]},"
                  " {s:s, s:s, s:[]}]",
                  "name", "add", "meta-type", "object", "members", "name",
                  "driver", "type", "drivers", "name", "drivers", "meta-type",
                  "enum", "values", "file", "raw", "qcow2", "name", "none",
                  "meta-type", "object", "members");
    for (unsigned i = 0; i < ARRAY_SIZE(commands); i++) {
        (void)json_array_append_new(
            schema, json_pack("{s:s, s:s, s:s, s:s}", "name", commands[i],
                              "meta-type", "command", "arg-type",
                              i == 0 ? "add" : "none", "ret-type", "none"));
    }
    if (vm->changes_jobs) {
        add_change(schema);
    }
    return schema;
}
