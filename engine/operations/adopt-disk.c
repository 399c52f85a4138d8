/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a disk's plan was, from what QEMU has of it. */
#include <errno.h>
#include <string.h>

#include "base/err.h"
#include "base/str.h"
#include "operations/adopt.h"
#include "operations/move-plan.h"
#include "qmp/qmp.h"
#include "vm/graph.h"
#include "vm/vm.h"

bool adopt_has_object(const struct adopt *adopt, const char *name)
{
    size_t i;
    json_t *object;
    json_array_foreach(adopt->objects, i, object) {
        if (str_eq(json_string_value(json_object_get(object, "name")), name)) {
            return true;
        }
    }
    return false;
}

static const struct graph_node *node_of(const struct graph *graph,
                                        const char *id, unsigned disk,
                                        enum name_what what)
{
    struct name name = name_of(id, disk, what);
    return graph_find_node(graph, name.text);
}

static const struct graph_job *job_of(const struct graph *graph, const char *id,
                                      unsigned disk, enum name_what what)
{
    struct name name = name_of(id, disk, what);
    return graph_find_job(graph, name.text);
}

static void look(const struct adopt *adopt, const struct graph *graph,
                 const char *id, unsigned disk, struct adopt_disk *ret)
{
    struct name key = name_of(id, disk, NAME_KEY);
    const struct graph_job *job = job_of(graph, id, disk, NAME_MIRROR);
    const struct graph_node *target = node_of(graph, id, disk, NAME_TARGET);
    const char *status = job != NULL ? job->status : "";
    *ret = (struct adopt_disk){
        .key = adopt_has_object(adopt, key.text),
        .file = node_of(graph, id, disk, NAME_FILE) != NULL,
        .create = job_of(graph, id, disk, NAME_CREATE) != NULL,
        .image = node_of(graph, id, disk, NAME_IMAGE) != NULL,
        .target = target != NULL,
        .client = target != NULL && str_eq(target->driver, "nbd"),
        .job = job != NULL,
        .overlay = node_of(graph, id, disk, NAME_OVERLAY) != NULL ||
                   node_of(graph, id, disk, NAME_OVERLAY_FILE) != NULL ||
                   node_of(graph, id, disk, NAME_LANDING) != NULL ||
                   node_of(graph, id, disk, NAME_LANDING_FILE) != NULL,
        .copies = str_eq(status, "running") || str_eq(status, "ready") ||
                  str_eq(status, "standby") || str_eq(status, "paused"),
        .finishing = str_eq(status, "waiting") || str_eq(status, "pending") ||
                     (str_eq(status, "concluded") && job->error == NULL),
    };
    adopt_twin(ret, graph, id, disk);
}

bool adopt_has_found(const struct adopt_disk *disk)
{
    return disk->key || disk->file || disk->create || disk->image ||
           disk->target || disk->job || disk->overlay;
}

unsigned adopt_count(const struct adopt *adopt, const struct graph *graph,
                     const char *id)
{
    unsigned n = 0;
    for (unsigned i = 0; i < ADOPT_DISKS_MAX; i++) {
        struct adopt_disk disk;
        look(adopt, graph, id, i, &disk);
        if (adopt_has_found(&disk) || disk.twin) {
            n = i + 1;
        }
    }
    return n;
}

static bool has_job(const struct graph_disk *found, const char *job)
{
    for (unsigned i = 0; i < found->n_others; i++) {
        if (found->others[i].kind == GRAPH_JOB &&
            str_eq(found->others[i].name, job)) {
            return true;
        }
    }
    return false;
}

/* The device that uses the target, or whose disk the job copies; or NULL. */
static const struct graph_device *device_of(const struct graph *graph,
                                            const char *id, unsigned disk,
                                            struct adopt_disk *ret)
{
    const struct graph_node *target = node_of(graph, id, disk, NAME_TARGET);
    bool top = node_of(graph, id, disk, NAME_TOP) != NULL;
    struct name job = name_of(id, disk, NAME_MIRROR);
    unsigned n = 0;
    const struct graph_device *devices = graph_devices(graph, &n);
    for (unsigned i = 0; i < n; i++) {
        _cleanup_graph_disk_ struct graph_disk *found = NULL;
        if (devices[i].root == NULL) {
            continue;
        }
        ret->uses_target = !top && target != NULL &&
                           graph_reaches(graph, devices[i].root, target);
        ret->uses_source = !ret->uses_target && ret->job &&
                           graph_disk(graph, &devices[i], &found, NULL) == 0 &&
                           has_job(found, job.text);
        if (ret->uses_target || ret->uses_source) {
            return &devices[i];
        }
    }
    return NULL;
}

static int set_text(char **text, const char *value)
{
    free(*text);
    *text = strdup(value != NULL ? value : "");
    return *text != NULL ? 0 : -ENOMEM;
}

/* What is not known is empty, not missing: so it is read back. */
static int fill_rest(struct plan_disk *disk)
{
    char **const texts[] = {
        &disk->device,      &disk->drive,       &disk->root,
        &disk->replaces,    &disk->active,      &disk->protocol,
        &disk->from,        &disk->from_format, &disk->source_identity,
        &disk->to,          &disk->format,      &disk->legacy_name,
        &disk->sync,        &disk->reason,      &disk->copy_mode,
        &disk->how,         &disk->dst_node,    &disk->disk,
        &disk->placeholder, &disk->base,        &disk->base_file,
        &disk->base_format, &disk->from_state,  &disk->to_state,
        &disk->to_identity, &disk->overlay,     &disk->landing};
    json_t **const arrays[] = {&disk->source_nodes, &disk->bitmaps,
                               &disk->known_bitmaps};
    json_t **const objects[] = {&disk->before, &disk->file_options,
                                &disk->node_options, &disk->copy_options};
    int r = 0;
    for (unsigned i = 0; i < ARRAY_SIZE(texts); i++) {
        r = r == 0 && *texts[i] == NULL ? set_text(texts[i], "") : r;
    }
    for (unsigned i = 0; i < ARRAY_SIZE(arrays); i++) {
        *arrays[i] = *arrays[i] != NULL ? *arrays[i] : json_array();
    }
    for (unsigned i = 0; i < ARRAY_SIZE(objects); i++) {
        *objects[i] = *objects[i] != NULL ? *objects[i] : json_object();
    }
    return r;
}

/* All that have a name: which of them the plan carried is not known. */
static void fill_bitmaps(struct plan_disk *disk,
                         const struct graph_node *active)
{
    disk->bitmaps = json_array();
    disk->known_bitmaps = json_array();
    for (unsigned i = 0; i < active->n_bitmaps; i++) {
        const struct graph_bitmap *bitmap = &active->bitmaps[i];
        if (*bitmap->name == '\0' || name_is_ours(bitmap->name)) {
            continue;
        }
        (void)json_array_append_new(disk->known_bitmaps,
                                    json_string(bitmap->name));
        (void)json_array_append_new(
            disk->bitmaps,
            json_pack("{s:s, s:I, s:b, s:b}", "name", bitmap->name,
                      "granularity", (json_int_t)bitmap->granularity,
                      "recording", bitmap->recording, "persistent",
                      bitmap->persistent));
    }
}

int adopt_name_source(struct plan_disk *disk, const struct graph_node *node)
{
    struct volume *volume = NULL;
    int r = volume_from_node(node->driver, node->filename, &volume) == 0
                ? set_text(&disk->from, volume->uri)
                : 0;
    volume_free(volume);
    return r;
}

static int fill_device(struct plan_disk *disk, const struct graph *graph,
                       const struct graph_device *device, const char *id,
                       struct adopt_disk *found)
{
    _cleanup_graph_disk_ struct graph_disk *now = NULL;
    if (device == NULL || graph_disk(graph, device, &now, NULL) < 0) {
        found->uses_source = false;
        return 0;
    }
    if (set_text(&disk->disk, device->label) < 0) {
        return -ENOMEM;
    }
    if (found->uses_source) {
        fill_bitmaps(disk, now->active);
        found->bitmaps = json_array_size(disk->bitmaps) > 0;
        return move_fill_source(disk, graph, now) < 0 ||
                       adopt_name_source(disk, now->protocol) < 0
                   ? -ENOMEM
                   : 0;
    }
    /* What it was before nobody knows any more. */
    disk->before = graph_disk_facts(graph, now);
    disk->size = now->size;
    return set_text(&disk->device, device->key) < 0 ||
                   set_text(&disk->drive, device->drive) < 0
               ? -ENOMEM
               : adopt_former(disk, graph, device, id);
}

const struct graph_node *adopt_protocol(const struct graph *graph,
                                        const struct graph_node *node)
{
    const struct graph_node *child = node;
    while (child != NULL) {
        node = child;
        child = graph_child(graph, node, "file");
    }
    return node;
}

static json_t *cache_of(const struct graph_node *node)
{
    return json_pack("{s:b, s:b}", "direct", node->cache_direct, "no-flush",
                     node->cache_no_flush);
}

/* What was set for the copy only goes away by the reopen. */
static void fill_copy_options(struct plan_disk *disk,
                              const struct volume *volume,
                              const struct graph_node *target,
                              const struct graph_node *below)
{
    disk->copy_options = json_object();
    if (below != NULL && str_eq(target->driver, "raw") &&
        target->size < below->size) {
        disk->shim = true;
        (void)json_object_set_new(disk->copy_options, "size",
                                  json_integer((json_int_t)target->size));
    }
    if ((volume->ops->flags & BACKEND_COARSE) != 0 &&
        str_eq(target->detect_zeroes, "unmap")) {
        (void)json_object_set_new(disk->copy_options, "detect-zeroes",
                                  json_string("unmap"));
    }
}

static int fill_target(struct op *op, struct plan_disk *disk,
                       const struct graph *graph, const char *id,
                       struct adopt_disk *found)
{
    const struct graph_node *target =
        node_of(graph, id, disk->index, NAME_TARGET);
    const struct graph_node *image =
        node_of(graph, id, disk->index, NAME_IMAGE);
    const struct graph_node *file = node_of(graph, id, disk->index, NAME_FILE);
    const struct graph_node *format = image != NULL ? image : target;
    const struct graph_node *node =
        adopt_protocol(graph, file != NULL ? file : format);
    struct volume *volume = NULL;
    struct name key = name_of(id, disk->index, NAME_KEY);
    if (set_text(&disk->to, OP_UNKNOWN_VOLUME) < 0 ||
        set_text(&disk->format, format != NULL ? format->driver : "raw") < 0) {
        return -ENOMEM;
    }
    if (node == NULL ||
        volume_from_node(node->driver, node->filename, &volume) < 0) {
        return 0;
    }
    found->volume = true;
    volume->format = str_eq(disk->format, "qcow2") ? FORMAT_QCOW2 : FORMAT_RAW;
    op_set_volume(op, disk->index, volume);
    disk->image = image != NULL;
    disk->target_size = format != NULL ? format->size : 0;
    disk->drive_mirror = target != NULL && file == NULL && !found->client;
    disk->nbd = (volume->ops->flags & BACKEND_NBD) != 0;
    disk->file_options =
        volume->ops->node_options(volume, found->key ? key.text : NULL);
    if (target != NULL) {
        disk->node_options =
            json_pack("{s:s, s:s, s:o}", "driver", disk->format, "discard",
                      "unmap", "cache", cache_of(target));
        if (str_eq(disk->format, "qcow2")) {
            const struct graph_node *base =
                graph_child(graph, format, "backing");
            (void)json_object_set_new(disk->node_options, "backing",
                                      base != NULL ? json_string(base->name)
                                                   : json_null());
            if (base != NULL && set_text(&disk->base, base->name) < 0) {
                return -ENOMEM;
            }
        }
        fill_copy_options(disk, volume, target, image != NULL ? image : file);
    }
    return set_text(&disk->to, volume->uri);
}

/* A group's jobs wait for each other. */
static bool is_grouped(const struct adopt *adopt, const char *id)
{
    size_t i;
    json_t *job;
    json_array_foreach(adopt->block_jobs, i, job) {
        char owner[OP_ID_SIZE];
        const char *name = json_string_value(json_object_get(job, "device"));
        if (name_operation(name, owner) && str_eq(owner, id) &&
            json_is_false(json_object_get(job, "auto-finalize"))) {
            return true;
        }
    }
    return false;
}

static int fill_plan(struct op *op, const struct adopt *adopt, const char *id)
{
    struct plan *plan = op_plan(op);
    const struct qmp_schema *schema = vm_schema(op_vm(op));
    char **const texts[] = {&plan->emit_config, &plan->persist_hook,
                            &plan->space_hook, &plan->dst_qmp, &plan->address};
    int r = 0;
    for (unsigned i = 0; i < ARRAY_SIZE(texts); i++) {
        r = r == 0 && *texts[i] == NULL ? set_text(texts[i], "") : r;
    }
    plan->group = plan->n_disks > 1 || is_grouped(adopt, id);
    /* Any time but none: what counts is that its steps are taken. */
    for (unsigned i = 0; i < plan->n_disks; i++) {
        plan->undo_window_ms |= adopt->disks[i].twin;
    }
    plan->hold_shutdown = qmp_schema_has_command(schema, "set-action") &&
                          vm_no_shutdown(op_vm(op)) == 0;
    plan->qemu_pid = vm_process(op_vm(op)).pid;
    plan->qemu_start = vm_process(op_vm(op)).start;
    return r;
}

/*
 * Strategy base: which image an overlay belongs to QEMU tells, but not which
 * files are ours, nor whether the copy below it was whole.
 */
static void check_overlays(struct adopt *adopt, const struct graph *graph,
                           const char *id, unsigned disk)
{
    static const enum name_what whats[] = {NAME_OVERLAY, NAME_OVERLAY_FILE,
                                           NAME_LANDING, NAME_LANDING_FILE};

    for (unsigned i = 0; adopt->unclear == NULL && i < ARRAY_SIZE(whats); i++) {
        const struct graph_node *node = node_of(graph, id, disk, whats[i]);
        if (node == NULL) {
            continue;
        }
        (void)err_set(&adopt->unclear, -ENOTSUP, id,
                      "is a move by strategy base, which takes its journal:"
                      " node '%s' is there, and may have what the guest wrote"
                      " last; nothing was changed",
                      node->name);
        err_hint(&adopt->unclear,
                 "QEMU's block-commit writes an overlay to the image below it"
                 " while the guest runs: see qpivot-recover(1)");
    }
}

int adopt_disks(struct op *op, struct adopt *adopt, const struct graph *graph,
                const char *id)
{
    int r = op_set_disks(op, adopt_count(adopt, graph, id));
    struct plan *plan = op_plan(op);
    for (unsigned i = 0; r == 0 && i < plan->n_disks; i++) {
        struct plan_disk *disk = &plan->disks[i];
        struct adopt_disk *found = &adopt->disks[i];
        look(adopt, graph, id, i, found);
        check_overlays(adopt, graph, id, i);
        const struct graph_device *device = device_of(graph, id, i, found);
        found->returned = found->returned && !found->uses_target;
        disk->disk = str_printf("d%u", i);
        disk->secret = found->key;
        disk->may_write_block = true; /* QEMU does not tell */
        disk->make_format = found->create;
        r = disk->disk == NULL ? -ENOMEM : 0;
        r = r < 0 ? r : fill_device(disk, graph, device, id, found);
        r = r < 0 ? r : fill_target(op, disk, graph, id, found);
        bool linked = plan_disk_keeps_base(disk);
        if (r == 0 && (set_text(&disk->sync, linked ? "top" : "full") < 0 ||
                       set_text(&disk->copy_mode, "background") < 0)) {
            r = -ENOMEM;
        }
        r = r < 0 ? r : fill_rest(disk);
    }
    r = r < 0 ? r : fill_plan(op, adopt, id);
    return r < 0 ? r : adopt_verify(op, adopt, graph, id);
}
