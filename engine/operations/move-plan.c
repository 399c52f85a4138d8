/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "operations/move-plan.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/err.h"
#include "base/str.h"
#include "operations/move-check.h"
#include "operations/move-window.h"
#include "qmp/qmp.h"
#include "qpivot.h"
#include "steps/persist.h"
#include "vm/graph.h"
#include "vm/names.h"
#include "vm/vm.h"

enum {
    FREEZE_LIMIT_MS = 2000,
    COMMAND_TIMEOUT_MS = 30000,
    TARGET_TIMEOUT_MS = 300000,
    N_DISKS_MAX = 64,
};

static int check_texts(const struct qpivot_move_options *options,
                       struct err **errp);
static int copy_texts(const struct qpivot_move_options *options,
                      struct plan *plan);
static char *absolute(const char *target);
static void look_disk(struct op *op, const struct graph *graph,
                      struct plan_disk *disk);
static void decide_disk(struct op *op, struct plan_disk *disk);
static int decide_nodes(struct op *op, struct plan_disk *disk,
                        const struct volume *volume);
static void decide_sync(struct op *op, struct plan_disk *disk);
static void emit_plan(struct op *op);
static void problem(struct op *op, int code, const char *object,
                    const char *fmt, ...) __attribute__((format(printf, 4, 5)));

/* --- the request --- */

int move_request_new(const struct qpivot_move_options *options,
                     struct plan **ret_plan, struct move_request **ret,
                     struct err **errp)
{
    if (options->n_disks == 0 || options->n_disks > N_DISKS_MAX) {
        return err_set(errp, -EINVAL, "move", "needs 1 to %d disks, not %u",
                       N_DISKS_MAX, options->n_disks);
    }
    int r = check_texts(options, errp);
    if (r < 0) {
        return r;
    }
    _cleanup_(plan_freep) struct plan *plan = NULL;
    struct move_request *request = calloc(1, sizeof(*request));
    if (request == NULL || plan_new("move", options->n_disks, &plan) < 0 ||
        copy_texts(options, plan) < 0 ||
        (request->disks = calloc(options->n_disks, sizeof(*request->disks))) ==
            NULL) {
        move_request_free(request);
        return err_set(errp, -ENOMEM, "move", "out of memory");
    }
    plan->delete_source = (options->flags & QPIVOT_DELETE_SOURCE) != 0;
    plan->allow_degraded = (options->flags & QPIVOT_ALLOW_DEGRADED) != 0;
    plan->speed = options->speed;
    plan->max_guest_latency_ms = options->max_guest_latency_ms;
    plan->timeout_ms = options->timeout_ms;
    plan->freeze_limit_ms = options->freeze_limit_ms != 0
                                ? options->freeze_limit_ms
                                : FREEZE_LIMIT_MS;
    plan->command_timeout_ms = options->command_timeout_ms != 0
                                   ? options->command_timeout_ms
                                   : COMMAND_TIMEOUT_MS;
    plan->target_timeout_ms = options->target_timeout_ms != 0
                                  ? options->target_timeout_ms
                                  : TARGET_TIMEOUT_MS;
    plan->copy_mode = options->copy_mode;
    plan->verify = strdup(options->verify == QPIVOT_VERIFY_FULL     ? "full"
                          : options->verify == QPIVOT_VERIFY_SAMPLE ? "sample"
                                                                    : "none");
    plan->undo_window_ms = options->undo_window_ms;
    request->flags = options->flags;
    request->via = options->via;
    request->sync = options->sync;
    request->strategy = options->strategy;
    request->notes = json_array();
    *ret_plan = TAKE_PTR(plan);
    *ret = request;
    return 0;
}

void move_request_free(void *data)
{
    struct move_request *request = data;
    if (request != NULL) {
        json_decref(request->notes);
        free(request->disks);
        free(request);
    }
}

static int check_text(const char *what, const char *text, struct err **errp)
{
    if (text == NULL || str_is_utf8(text)) {
        return 0;
    }
    _cleanup_free_ char *shown = strdup(text);
    for (char *c = shown; c != NULL && *c != '\0'; c++) {
        *c = (unsigned char)*c < 0x80 ? *c : '?';
    }
    (void)err_set(errp, -EINVAL, shown,
                  "%s is no UTF-8: QMP carries UTF-8 only", what);
    return -EINVAL;
}

/* Beyond here they are JSON, which has no place for other bytes. */
static int check_texts(const struct qpivot_move_options *options,
                       struct err **errp)
{
    int r = check_text("the monitor's address", options->qmp, errp);
    for (unsigned i = 0; r == 0 && i < options->n_disks; i++) {
        r = check_text("the disk's name", options->disks[i].disk, errp);
        if (r == 0) {
            r = check_text("the target's name", options->disks[i].target, errp);
        }
    }
    if (r == 0) {
        r = check_text("the file's name", options->emit_config, errp);
    }
    if (r == 0) {
        r = check_text("the persist hook", options->persist_hook, errp);
    }
    return r < 0 ? r : check_text("the space hook", options->space_hook, errp);
}

static char *dup_text(const char *text)
{
    return strdup(text != NULL ? text : "");
}

static int copy_texts(const struct qpivot_move_options *options,
                      struct plan *plan)
{
    plan->qmp = qmp_addr_absolute(options->qmp);
    plan->emit_config = options->emit_config != NULL
                            ? persist_absolute(options->emit_config)
                            : strdup("");
    plan->persist_hook = dup_text(options->persist_hook);
    plan->space_hook = dup_text(options->space_hook);
    if (plan->qmp == NULL || plan->emit_config == NULL ||
        plan->persist_hook == NULL || plan->space_hook == NULL) {
        return -ENOMEM;
    }
    for (unsigned i = 0; i < options->n_disks; i++) {
        plan->disks[i].disk = dup_text(options->disks[i].disk);
        plan->disks[i].to = absolute(options->disks[i].target);
        if (plan->disks[i].disk == NULL || plan->disks[i].to == NULL) {
            return -ENOMEM;
        }
    }
    return 0;
}

/* A recovering engine starts elsewhere: a plain path is made absolute. */
static char *absolute(const char *target)
{
    size_t scheme = strspn(target, "abcdefghijklmnopqrstuvwxyz+");
    if (target[0] == '/' || (scheme > 0 && target[scheme] == ':')) {
        return strdup(target);
    }
    _cleanup_free_ char *cwd = getcwd(NULL, 0);
    return cwd != NULL ? str_printf("%s/%s", cwd, target) : NULL;
}

/* --- looking --- */

static void look_on_graph(struct act *act, const struct err *err,
                          const struct graph *graph)
{
    struct op *op = act_op(act);
    struct plan *plan = op_plan(op);
    if (err != NULL) {
        op_problem(op, err_copy(err));
    }
    for (unsigned i = 0; graph != NULL && i < plan->n_disks; i++) {
        look_disk(op, graph, &plan->disks[i]);
    }
    if (graph != NULL) {
        move_check_open_targets(op, graph);
    }
    act_end(act, NULL);
}

void move_look_graph(struct act *act)
{
    act_graph(act, look_on_graph);
}

static void look_disk(struct op *op, const struct graph *graph,
                      struct plan_disk *disk)
{
    struct move_request *request = op_request(op);
    struct err *err = NULL;
    struct volume *volume = NULL;
    _cleanup_graph_disk_ struct graph_disk *found = NULL;
    if (graph_find_disk(graph, disk->disk, &found, &err) < 0) {
        op_problem(op, err);
    } else if (move_fill_source(disk, graph, found) < 0) {
        problem(op, -ENOMEM, disk->disk, "out of memory");
    } else {
        move_check_source(op, disk, graph, found);
        request->disks[disk->index].found = true;
    }
    err = NULL;
    if (volume_parse(disk->to, &volume, &err) < 0) {
        op_problem(op, err);
    } else {
        op_set_volume(op, disk->index, volume);
    }
}

int move_fill_source(struct plan_disk *disk, const struct graph *graph,
                     const struct graph_disk *found)
{
    bool filtered = found->root != found->active;
    disk->device = strdup(found->device->key);
    disk->drive = dup_text(found->device->drive);
    /* A drive of the old kind is found by its own id for ever. */
    disk->root = strdup(*disk->drive != '\0' ? disk->drive : found->root->name);
    disk->replaces = strdup(filtered ? found->active->name : "");
    disk->active = strdup(found->active->name);
    disk->protocol = strdup(found->protocol->name);
    disk->from = strdup(found->protocol->filename);
    disk->from_format = strdup(found->active->driver);
    disk->source_identity = strdup("");
    disk->before = graph_disk_facts(graph, found);
    disk->size = found->size;
    disk->source_nodes = json_array();
    for (unsigned i = 0; i < found->n_nodes; i++) {
        bool filter = found->nodes[i]->job_filter;
        for (unsigned k = 0; k < found->n_filters; k++) {
            filter = filter || found->filters[k] == found->nodes[i];
        }
        if (!filter) {
            (void)json_array_append_new(disk->source_nodes,
                                        json_string(found->nodes[i]->name));
        }
    }
    return disk->device != NULL && disk->drive != NULL && disk->root != NULL &&
                   disk->replaces != NULL && disk->active != NULL &&
                   disk->protocol != NULL && disk->from != NULL &&
                   disk->from_format != NULL && disk->before != NULL
               ? 0
               : -ENOMEM;
}

static void source_on_volume(struct act *act, const struct err *err,
                             struct volume_result *result)
{
    struct plan_disk *disk = &op_plan(act_op(act))->disks[act_disk(act)->index];
    struct move_request *request = op_request(act_op(act));
    struct move_request_disk *looked = &request->disks[disk->index];
    if (err == NULL && result->info.exists) {
        looked->source = result->info;
        free(disk->source_identity);
        disk->source_identity = strdup(result->info.identity);
        free(disk->from_state);
        disk->from_state = strdup(result->info.state);
        looked->data = result->info.data;
        looked->block_size = result->info.block_size;
    }
    if (err == NULL && op_plan(act_op(act))->delete_source &&
        strncmp(result->info.identity, "file:", 5) == 0 &&
        !result->info.in_use) {
        /* QEMU names the file: that nobody has it open is no good sign. */
        problem(act_op(act), -EPERM, disk->from,
                "is not locked by any QEMU: it is not removed");
    }
    act_end(act, NULL);
}

void move_look_source(struct act *act)
{
    struct move_request *request = op_request(act_op(act));
    struct plan_disk *disk = &op_plan(act_op(act))->disks[act_disk(act)->index];
    const json_t *driver = json_object_get(disk->before, "protocol_driver");
    struct volume *volume = NULL;
    if (!request->disks[disk->index].found) {
        act_end(act, NULL);
        return;
    }
    if (str_eq(json_string_value(driver), "file") && disk->from[0] != '/') {
        char *path = move_relative_source(act_op(act), disk->from);
        if (path != NULL) {
            free(disk->from);
            disk->from = path;
        }
    }
    (void)volume_from_node(json_string_value(driver), disk->from, &volume);
    move_check_removal(act_op(act), disk, volume);
    if (volume == NULL) {
        act_end(act, NULL); /* a kind we cannot look at: no identity */
        return;
    }
    free(disk->from);
    disk->from = strdup(volume->uri);
    struct volume_request probe = {.act = VOLUME_PROBE};
    act_storage(act, act_own_volume(act, volume), &probe, source_on_volume);
}

static void target_on_volume(struct act *act, const struct err *err,
                             struct volume_result *result)
{
    struct op *op = act_op(act);
    struct move_request *request = op_request(op);
    struct move_request_disk *disk = &request->disks[act_disk(act)->index];
    if (err != NULL) {
        op_problem(op, err_copy(err));
    } else {
        disk->target = result->info;
        disk->looked = true;
    }
    act_end(act, NULL);
}

void move_look_target(struct act *act)
{
    struct volume *volume = act_volume(act, act_disk(act)->index);
    struct volume_request probe = {.act = VOLUME_PROBE};
    if (volume == NULL) {
        act_end(act, NULL);
    } else {
        act_storage(act, volume, &probe, target_on_volume);
    }
}

static void secret_on_volume(struct act *act, const struct err *err,
                             struct volume_result *result)
{
    struct op *op = act_op(act);
    struct move_request *request = op_request(op);
    if (err != NULL) {
        op_problem(op, err_copy(err));
    } else {
        request->disks[act_disk(act)->index].secret = result->secret != NULL;
    }
    act_end(act, NULL);
}

void move_look_secret(struct act *act)
{
    struct volume *volume = act_volume(act, act_disk(act)->index);
    struct volume_request request = {.act = VOLUME_SECRET};
    if (volume == NULL || volume->ops->secret == NULL) {
        act_end(act, NULL);
    } else {
        act_storage(act, volume, &request, secret_on_volume);
    }
}

static void measure_on_volume(struct act *act, const struct err *err,
                              struct volume_result *result)
{
    const struct volume_info *info = &result->info;
    json_t *facts = json_object();
    if (err == NULL && act_disk(act)->create && info->allocated != UINT64_MAX) {
        (void)json_object_set_new(facts, "bytes_written",
                                  json_integer((json_int_t)info->allocated));
    }
    if (err == NULL && *info->degraded != '\0') {
        (void)json_object_set_new(facts, "degraded",
                                  json_string(info->degraded));
        act_warn(act, "target %s is degraded: %s", act_disk(act)->to,
                 info->degraded);
    }
    act_set_facts(act, facts);
    act_end(act, NULL);
}

void move_measure(struct act *act)
{
    struct volume_request probe = {.act = VOLUME_PROBE};
    act_storage(act, act_volume(act, act_disk(act)->index), &probe,
                measure_on_volume);
}

/* --- deciding --- */

void move_decide(struct op *op)
{
    struct plan *plan = op_plan(op);
    struct move_request *request = op_request(op);
    const struct qmp_schema *schema = vm_schema(op_vm(op));
    plan->has_target_is_zero =
        qmp_schema_has_arg(schema, "blockdev-mirror", "target-is-zero");
    plan->group = plan->n_disks > 1;
    plan->qemu_pid = vm_process(op_vm(op)).pid;
    plan->qemu_start = vm_process(op_vm(op)).start;
    if (qmp_schema_has_command(schema, "set-action")) {
        int no_shutdown = vm_no_shutdown(op_vm(op));
        plan->hold_shutdown = no_shutdown == 0;
        if (no_shutdown < 0) {
            move_note(request,
                      "QEMU's command line cannot be read from here: a guest"
                      " that powers off ends QEMU, and with it the move");
        }
    }
    move_check_schema(op);
    move_check_persist(op);
    move_check_pairs(op);
    move_decide_verify(op);
    for (unsigned i = 0; i < plan->n_disks; i++) {
        decide_disk(op, &plan->disks[i]);
        if (plan->undo_window_ms != 0 && request->disks[i].found) {
            move_decide_window(op, &plan->disks[i]);
        }
    }
    move_check_space(op);
    emit_plan(op);
}

static void decide_copy_mode(struct op *op, struct plan_disk *disk)
{
    enum qpivot_copy_mode mode = op_plan(op)->copy_mode;
    bool can_switch = qmp_schema_has_arg(
        vm_schema(op_vm(op)), "block-job-change", "type=mirror.copy-mode");
    disk->copy_mode = strdup(
        mode == QPIVOT_COPY_WRITE_BLOCKING ? "write-blocking" : "background");
    disk->may_write_block = mode == QPIVOT_COPY_WRITE_BLOCKING ||
                            (mode == QPIVOT_COPY_AUTO && can_switch);
}

static void decide_disk(struct op *op, struct plan_disk *disk)
{
    struct plan *plan = op_plan(op);
    struct move_request *request = op_request(op);
    struct move_request_disk *looked = &request->disks[disk->index];
    struct volume *volume = op_volume(op, disk->index);
    if (volume == NULL || !looked->found) {
        return;
    }
    disk->create = !looked->target.exists && !volume->existing;
    free(disk->to_state);
    disk->to_state = strdup(looked->target.state);
    free(disk->to_identity);
    disk->to_identity = strdup(looked->target.identity);
    bool qcow2 = volume->format_given ? volume->format == FORMAT_QCOW2
                 : disk->create
                     ? move_is_qcow2_name(volume->name) &&
                           (volume->ops->flags & BACKEND_FORMATS) != 0
                     : looked->target.format == FORMAT_QCOW2 &&
                           (volume->ops->flags & BACKEND_FORMATS) != 0;
    volume->format = qcow2 ? FORMAT_QCOW2 : FORMAT_RAW;
    free(disk->format);
    disk->format = strdup(qcow2 ? "qcow2" : "raw");
    disk->make_format = qcow2 && disk->create;
    disk->nbd = (volume->ops->flags & BACKEND_NBD) != 0;
    disk->target_size = disk->create
                            ? volume->size != 0 ? volume->size : disk->size
                        : qcow2 ? looked->target.format_size
                                : looked->target.size;
    if (disk->create && volume->ops->round != NULL) {
        disk->target_size = volume->ops->round(disk->target_size);
    }
    disk->shim = disk->target_size > disk->size;
    disk->image = disk->shim && qcow2;
    move_decide_strategy(op, disk, volume);
    decide_copy_mode(op, disk);
    if (looked->looked) {
        move_check_target(op, disk, volume, &looked->target);
        move_check_verify(op, disk, volume);
    }
    if (decide_nodes(op, disk, volume) < 0) {
        problem(op, -ENOMEM, disk->disk, "out of memory");
        return;
    }
    if (looked->looked) {
        move_check_direct(op, disk, volume, &looked->target);
    }
    move_decide_base(op, disk);
    decide_sync(op, disk);
    move_check_bitmap_targets(op, disk);
    plan->group = plan->group || json_array_size(disk->bitmaps) > 0;
}

/* What of the source's way of being opened goes over to the target. */
void move_carry_options(const struct plan_disk *disk, json_t *node)
{
    json_t *cache = json_object_get(disk->before, "cache");
    const char *zeroes =
        json_string_value(json_object_get(disk->before, "detect_zeroes"));
    if (json_object_get(node, "cache") == NULL && json_is_object(cache)) {
        json_t *direct = json_object_get(cache, "direct");
        json_t *no_flush = json_object_get(cache, "no_flush");
        (void)json_object_set_new(node, "cache",
                                  json_pack("{s:b, s:b}", "direct",
                                            json_is_true(direct), "no-flush",
                                            json_is_true(no_flush)));
    }
    if (zeroes != NULL && *zeroes != '\0' && strcmp(zeroes, "off") != 0) {
        (void)json_object_set_new(node, "detect-zeroes", json_string(zeroes));
    }
}

static int decide_nodes(struct op *op, struct plan_disk *disk,
                        const struct volume *volume)
{
    struct move_request *request = op_request(op);
    disk->copy_options = json_object();
    /* Discard on every level, or nothing can be zeroed cheaply. */
    disk->node_options =
        json_pack("{s:s, s:s}", "driver", disk->format, "discard", "unmap");
    struct name key = name_of(op_id(op), disk->index, NAME_KEY);
    disk->secret = request->disks[disk->index].secret;
    disk->file_options =
        volume->ops->node_options(volume, disk->secret ? key.text : NULL);
    char *legacy = volume->ops->legacy_name != NULL
                       ? volume->ops->legacy_name(volume)
                       : NULL;
    free(disk->legacy_name);
    disk->legacy_name = legacy != NULL ? legacy : strdup("");
    if (disk->node_options == NULL || disk->file_options == NULL ||
        disk->legacy_name == NULL) {
        return -ENOMEM;
    }
    json_t *file_cache = json_object_get(disk->file_options, "cache");
    if (file_cache != NULL) {
        (void)json_object_set(disk->node_options, "cache", file_cache);
    }
    move_carry_options(disk, disk->node_options);
    json_t *cache = json_object_get(disk->node_options, "cache");
    if (cache != NULL) {
        (void)json_object_set(disk->file_options, "cache", cache);
    }
    if (strcmp(disk->format, "qcow2") == 0) {
        (void)json_object_set_new(disk->node_options, "backing", json_null());
    }
    const struct qmp_schema *schema = vm_schema(op_vm(op));
    bool has_form = qmp_schema_has_value(
        schema, "blockdev-add", "driver",
        json_string_value(json_object_get(disk->file_options, "driver")));
    disk->drive_mirror = request->via == QPIVOT_VIA_DRIVE_MIRROR ||
                         (request->via == QPIVOT_VIA_AUTO && !has_form);
    if (disk->shim) {
        (void)json_object_set_new(disk->copy_options, "size",
                                  json_integer((json_int_t)disk->size));
    }
    if (disk->create && !disk->drive_mirror && !plan_disk_copies_base(disk) &&
        (volume->ops->flags & BACKEND_COARSE) != 0) {
        /*
         * A mirror copies holes that do not fill a cluster of the target as
         * data: for an RBD image, whose objects QEMU takes for clusters, six
         * times what was there.
         */
        (void)json_object_set_new(disk->copy_options, "detect-zeroes",
                                  json_string("unmap"));
    }
    if (disk->drive_mirror && !has_form) {
        move_note(request,
                  "%s: this QEMU has no blockdev-add form for it:"
                  " by drive-mirror",
                  disk->to);
    }
    if (disk->drive_mirror) {
        move_check_drive_mirror(op, disk);
    }
    return 0;
}

static void decide_sync(struct op *op, struct plan_disk *disk)
{
    struct plan *plan = op_plan(op);
    struct move_request *request = op_request(op);
    unsigned depth = request->disks[disk->index].n_layers;
    const char *sync = "full", *reason;
    if (plan_disk_copies_base(disk)) {
        sync = "top";
        reason = "the image is copied as it is, below an overlay: only what the"
                 " guest writes meanwhile is mirrored";
    } else if (plan_disk_keeps_base(disk)) {
        sync = "top";
        reason = "as asked for: it stays on its base";
    } else if (!disk->create) {
        reason = "the target held data before: every block is written";
    } else if (request->disks[disk->index].target.stale) {
        reason = "what is made there may hold old data: every block is written";
    } else if (plan->has_target_is_zero && !disk->drive_mirror) {
        disk->target_is_zero = true;
        reason = "the new target reads as zeroes, and QEMU is told so";
    } else if (depth > 1) {
        reason = "the source has a backing chain: it is flattened";
    } else if (request->sync == QPIVOT_SYNC_FULL) {
        reason = "as asked for";
    } else {
        sync = "top";
        reason = "the new target reads as zeroes and the source has one"
                 " layer: all data without a pass of zeroes";
    }
    free(disk->sync);
    free(disk->reason);
    disk->sync = strdup(sync);
    disk->reason = strdup(reason);
}

/* --- telling --- */

static json_t *describe(struct op *op, const struct plan_disk *disk)
{
    struct move_request *request = op_request(op);
    if (disk->sync == NULL || !request->disks[disk->index].looked) {
        /* What is not known of the target decides all the rest. */
        return json_pack("{s:s, s:s*, s:s}", "disk", disk->disk, "from",
                         disk->from, "to", disk->to);
    }
    json_t *json = json_pack(
        "{s:s, s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:s, s:s, s:s, s:b, s:b,"
        " s:b, s:s}",
        "disk", disk->disk, "device", disk->device, "node", disk->active,
        "from", disk->from, "to", disk->to, "format", disk->format, "size",
        (json_int_t)disk->size, "target_size", (json_int_t)disk->target_size,
        "via", disk->drive_mirror ? "drive-mirror" : "blockdev-mirror", "sync",
        disk->sync, "reason", disk->reason, "existing",
        request->disks[disk->index].target.exists, "zero",
        disk->create && !request->disks[disk->index].target.stale, "shim",
        disk->shim, "verify", op_plan(op)->verify);
    move_add_base(op, disk, json);
    return json;
}

static void emit_plan(struct op *op)
{
    const struct plan *plan = op_plan(op);
    struct move_request *request = op_request(op);
    json_t *disks = json_array();
    for (unsigned i = 0; i < plan->n_disks; i++) {
        (void)json_array_append_new(disks, describe(op, &plan->disks[i]));
    }
    const json_t *problems = op_problems(op);
    json_t *data =
        json_pack("{s:o, s:o, s:O, s:b}", "disks", disks, "commands",
                  problems == NULL ? op_commands(op) : json_array(), "notes",
                  request->notes, "dry_run", op_dry_run(op));
    if (problems != NULL) {
        (void)json_object_set(data, "problems", (json_t *)(uintptr_t)problems);
    }
    op_emit(op, "plan", data);
}

bool move_is_device(const char *key, const char *path, const char *id)
{
    size_t len = path != NULL ? strlen(path) : 0;
    return str_eq(key, id) || str_eq(key, path) ||
           (len > 0 && strncmp(key, path, len) == 0 && key[len] == '/');
}

static void problem(struct op *op, int code, const char *object,
                    const char *fmt, ...)
{
    struct err *err = NULL;
    va_list ap;
    va_start(ap, fmt);
    _cleanup_free_ char *text = str_vprintf(fmt, ap);
    va_end(ap);
    (void)err_set(&err, code, object, "%s", text != NULL ? text : fmt);
    op_problem(op, err);
}
