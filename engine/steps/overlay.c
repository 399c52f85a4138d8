/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "steps/overlay.h"

#include <errno.h>

#include "base/err.h"
#include "base/str.h"
#include "bulk/copy.h"
#include "bulk/resume.h"
#include "run/op.h"
#include "steps/act-on.h"
#include "steps/commit.h"
#include "vm/graph.h"
#include "vm/open-file.h"
#include "vm/vm.h"

enum { BUSY_MS = 45000, AGAIN_MS = 1000 };

bool overlay_is_used(const struct plan *plan, const struct plan_disk *disk)
{
    (void)plan;
    return plan_disk_copies_base(disk);
}

/* --- what both overlays have in common --- */

static const char *uri_of(const struct plan_disk *disk, enum name_what what)
{
    return what == NAME_OVERLAY ? disk->overlay : disk->landing;
}

char *overlay_file_of(const char *uri)
{
    _cleanup_(volume_freep) struct volume *volume = NULL;
    return volume_parse(uri, &volume, NULL) == 0 &&
                   volume->ops->legacy_name != NULL
               ? volume->ops->legacy_name(volume)
               : NULL;
}

/* Which of both the act is about; kept for it. */
static enum name_what what_of(const struct act *act)
{
    return str_starts(act_step_name(act), "landing") ? NAME_LANDING
                                                     : NAME_OVERLAY;
}

static struct volume *own_volume(struct act *act)
{
    struct volume *volume = NULL;
    if (volume_parse(uri_of(act_disk(act), what_of(act)), &volume, NULL) < 0) {
        _cleanup_err_ struct err *err = NULL;
        (void)err_set(&err, -ENOMEM, act_disk(act)->disk, "out of memory");
        act_end(act, err);
        return NULL;
    }
    return act_own_volume(act, volume);
}

static void end_on_volume(struct act *act, const struct err *err,
                          struct volume_result *result)
{
    (void)result;
    act_end(act, err);
}

static void create(struct act *act)
{
    struct name temp = act_name(act, what_of(act));
    _cleanup_free_ char *like = overlay_file_of(act_disk(act)->from);
    struct volume_request request = {
        .act = VOLUME_CREATE, .temp = temp.text, .like = like};
    struct volume *volume = own_volume(act);
    if (volume != NULL) {
        act_storage(act, volume, &request, end_on_volume);
    }
}

static void remove_now(struct act *act)
{
    struct name temp = act_name(act, what_of(act));
    struct volume_request request = {.act = VOLUME_REMOVE, .temp = temp.text};
    struct volume *volume = own_volume(act);
    if (volume != NULL) {
        act_storage(act, volume, &request, end_on_volume);
    }
}

static void remove_on_graph(struct act *act, const struct err *err,
                            const struct graph *graph)
{
    _cleanup_err_ struct err *busy = NULL;
    struct volume *volume = err == NULL ? own_volume(act) : NULL;
    if (err != NULL) {
        act_end(act, err);
    } else if (volume != NULL &&
               disk_is_closed(graph, volume, "removed", &busy) < 0) {
        act_end(act, busy);
    } else if (volume != NULL) {
        remove_now(act);
    }
}

/* Whatever went before: what QEMU has open is never removed. */
static void remove_file(struct act *act)
{
    if (act_plan(act)->adopted) {
        /* Nothing on storage is: the user is told. */
        act_warn(act, "file %s is left: nobody uses it any more",
                 uri_of(act_disk(act), what_of(act)));
        act_end(act, NULL);
    } else if (vm_state(act_vm(act)) == VM_UP) {
        act_graph(act, remove_on_graph);
    } else {
        remove_now(act);
    }
}

/* As the disk it stands in for is: the source's, or the target's. */
static void carry_cache(const struct plan_disk *disk, enum name_what what,
                        json_t *node)
{
    const json_t *cache = json_object_get(
        what == NAME_OVERLAY ? disk->before : disk->node_options, "cache");
    const json_t *direct = json_object_get(cache, "direct");
    const json_t *no_flush = json_object_get(cache, "no_flush");
    no_flush = no_flush != NULL ? no_flush : json_object_get(cache, "no-flush");
    if (cache != NULL) {
        (void)json_object_set_new(node, "cache",
                                  json_pack("{s:b, s:b}", "direct",
                                            json_is_true(direct), "no-flush",
                                            json_is_true(no_flush)));
    }
}

static json_t *file_command(const char *op, const struct plan_disk *disk,
                            enum name_what what, enum name_what name_what)
{
    _cleanup_(volume_freep) struct volume *volume = NULL;
    struct name name = name_of(op, disk->index, name_what);
    if (volume_parse(uri_of(disk, what), &volume, NULL) < 0) {
        return NULL;
    }
    json_t *options = volume->ops->node_options(volume, NULL);
    (void)json_object_set_new(options, "node-name", json_string(name.text));
    carry_cache(disk, what, options);
    return json_pack("{s:s, s:o}", "execute", "blockdev-add", "arguments",
                     options);
}

/* Its header names what it stands on: so it can be opened without us, too. */
static json_t *format_command(const char *op, const struct plan_disk *disk,
                              enum name_what file, const char *base,
                              const char *format)
{
    struct name id = name_of(op, disk->index, NAME_CREATE);
    struct name name = name_of(op, disk->index, file);
    _cleanup_free_ char *below = overlay_file_of(base);
    return json_pack("{s:s, s:{s:s, s:{s:s, s:s, s:I, s:s, s:s}}}", "execute",
                     "blockdev-create", "arguments", "job-id", id.text,
                     "options", "driver", "qcow2", "file", name.text, "size",
                     (json_int_t)disk->size, "backing-file",
                     below != NULL ? below : "", "backing-fmt", format);
}

/* Steals 'backing'. */
static json_t *node_command(const char *op, const struct plan_disk *disk,
                            enum name_what node, enum name_what file,
                            json_t *backing)
{
    struct name name = name_of(op, disk->index, node);
    struct name child = name_of(op, disk->index, file);
    json_t *options = json_pack("{s:s, s:s, s:s, s:s, s:o}", "driver", "qcow2",
                                "node-name", name.text, "file", child.text,
                                "discard", "unmap", "backing", backing);
    carry_cache(disk, node, options);
    return json_pack("{s:s, s:o}", "execute", "blockdev-add", "arguments",
                     options);
}

static void add(struct act *act)
{
    act_command(act, NULL);
}

/* --- the overlay --- */

void overlay_create(struct act *act)
{
    create(act);
}

void overlay_remove(struct act *act)
{
    remove_file(act);
}

json_t *overlay_file_command(const char *op, const struct plan *plan,
                             const struct plan_disk *disk)
{
    (void)plan;
    return file_command(op, disk, NAME_OVERLAY, NAME_OVERLAY_FILE);
}

void overlay_file_add(struct act *act)
{
    add(act);
}

void overlay_file_del(struct act *act)
{
    act_delete_node(act, NAME_OVERLAY_FILE);
}

void overlay_file_probe(struct act *act)
{
    act_probe_node(act, NAME_OVERLAY_FILE);
}

json_t *overlay_format_command(const char *op, const struct plan *plan,
                               const struct plan_disk *disk)
{
    (void)plan;
    return format_command(op, disk, NAME_OVERLAY_FILE, disk->from,
                          disk->from_format);
}

json_t *overlay_node_command(const char *op, const struct plan *plan,
                             const struct plan_disk *disk)
{
    (void)plan;
    json_t *node =
        node_command(op, disk, NAME_OVERLAY, NAME_OVERLAY_FILE, json_null());
    const json_t *zeroes = json_object_get(disk->node_options, "detect-zeroes");
    if (zeroes != NULL) {
        (void)json_object_set_new(json_object_get(node, "arguments"),
                                  "detect-zeroes", json_deep_copy(zeroes));
    }
    return node;
}

void overlay_node_add(struct act *act)
{
    add(act);
}

static void delete_overlay(struct act *act)
{
    act_delete_node(act, NAME_OVERLAY);
}

void overlay_node_del(struct act *act)
{
    commit_clear(act, delete_overlay);
}

void overlay_node_probe(struct act *act)
{
    act_probe_node(act, NAME_OVERLAY);
}

/* --- the source stands still --- */

json_t *overlay_freeze_command(const char *op, const struct plan *plan,
                               const struct plan_disk *disk)
{
    (void)plan;
    struct name name = name_of(op, disk->index, NAME_OVERLAY);
    return json_pack("{s:s, s:{s:s, s:s}}", "execute", "blockdev-snapshot",
                     "arguments", "node", disk->active, "overlay", name.text);
}

static bool is_overlaid(const struct act *act, const struct graph *graph)
{
    const struct graph_device *device =
        graph_find_device(graph, act_disk(act)->device);
    struct name name = act_name(act, NAME_OVERLAY);
    const struct graph_node *overlay = graph_find_node(graph, name.text);
    return device != NULL && device->root != NULL && overlay != NULL &&
           graph_reaches(graph, device->root, overlay);
}

/* QEMU opens it read-only then, and tells nobody if it could not. */
static void frozen_on_graph(struct act *act, const struct err *err,
                            const struct graph *graph)
{
    const struct plan_disk *disk = act_disk(act);
    _cleanup_err_ struct err *error = err_copy(err);
    const struct graph_node *active =
        err == NULL ? graph_find_node(graph, disk->active) : NULL;
    if (error == NULL && !is_overlaid(act, graph)) {
        (void)err_set(&error, -ESTALE, disk->disk,
                      "is not on its overlay after blockdev-snapshot");
    } else if (error == NULL && (active == NULL || !active->read_only)) {
        (void)err_set(&error, -EBUSY, disk->disk,
                      "node '%s' can still be written below its overlay",
                      disk->active);
    }
    act_end(act, error);
}

static void freeze_on_reply(struct act *act, const struct err *err,
                            json_t *result)
{
    (void)result;
    if (err != NULL) {
        act_end(act, err);
    } else {
        act_graph(act, frozen_on_graph);
    }
}

static void freeze_on_graph(struct act *act, const struct err *err,
                            const struct graph *graph)
{
    _cleanup_err_ struct err *error = err_copy(err);
    if (error == NULL && is_overlaid(act, graph)) {
        frozen_on_graph(act, NULL, graph);
        return;
    }
    if (error == NULL) {
        (void)disk_is_to_freeze(graph, act_disk(act), &error);
    }
    if (error != NULL) {
        act_end(act, error);
    } else {
        act_command(act, freeze_on_reply);
    }
}

void overlay_freeze(struct act *act)
{
    act_graph(act, freeze_on_graph);
}

/* Its QEMU is gone: what the guest wrote last is in a file of ours. */
static void left_on_volume(struct act *act, const struct err *err,
                           struct volume_result *result)
{
    const struct plan_disk *disk = act_disk(act);
    _cleanup_err_ struct err *error = err_copy(err);
    _cleanup_free_ char *file = overlay_file_of(disk->overlay);
    if (error == NULL && !result->info.exists) {
        act_end(act, NULL);
        return;
    }
    if (error == NULL) {
        (void)err_set(&error, -ESRCH, disk->disk,
                      "QEMU has ended while the disk stood on overlay %s: what"
                      " the guest has written last is in there, and not in %s",
                      file != NULL ? file : disk->overlay, disk->from);
        err_hint(&error,
                 "unless a VM was started from %s since, 'qemu-img commit %s'"
                 " writes it there; then remove the overlay, and 'qpivot"
                 " recover %s' does the rest. If one was, keep both: they hold"
                 " different data",
                 disk->from, file != NULL ? file : disk->overlay,
                 act_op_id(act));
    }
    act_give_up(act, error);
}

void overlay_freeze_undo(struct act *act)
{
    static const struct volume_request probe = {.act = VOLUME_PROBE};
    if (act_has_lost_qemu(act)) {
        struct volume *volume = own_volume(act);
        if (volume != NULL) {
            act_storage(act, volume, &probe, left_on_volume);
        }
    } else {
        commit_back(act);
    }
}

/* --- its bytes --- */

static void copy_on_event(struct act *act, const json_t *event)
{
    const char *name = json_string_value(json_object_get(event, "event"));
    if (str_eq(name, "progress")) {
        json_t *data = json_deep_copy(event);
        (void)json_object_del(data, "event");
        (void)json_object_set_new(data, "phase", json_string("base"));
        act_emit(act, "progress", data);
    } else if (str_eq(name, "warning")) {
        act_warn(act, "%s",
                 json_string_value(json_object_get(event, "message")));
    } else if (str_eq(name, "done")) {
        json_t *facts = json_object();
        static const char *const keys[] = {"seconds", "bytes_read",
                                           "bytes_written", "bytes_resumed",
                                           "digest"};
        for (unsigned i = 0; i < ARRAY_SIZE(keys); i++) {
            json_t *value = json_object_get(event, keys[i]);
            if (value != NULL) {
                (void)json_object_set(facts, keys[i], value);
            }
        }
        act_set_facts(act, facts);
    }
}

/* A client that was killed counts as a user of an RBD image for a while. */
static void copy_on_copied(struct act *act, const struct err *err)
{
    uint64_t *since_ms = act_scratch(act, sizeof(*since_ms));
    if (err != NULL && err->code == -EBUSY && act_is_repeated(act) &&
        since_ms != NULL && act_now_ms(act) - *since_ms < BUSY_MS) {
        act_again(act, AGAIN_MS, overlay_copy);
    } else {
        act_end(act, err);
    }
}

void overlay_copy(struct act *act)
{
    const struct plan_disk *disk = act_disk(act);
    struct name key = act_name(act, NAME_TARGET);
    bool zero = json_is_true(act_fact(act, "target-create", "zero"));
    uint64_t *since_ms = act_scratch(act, sizeof(*since_ms));
    if (since_ms != NULL && *since_ms == 0) {
        *since_ms = act_now_ms(act);
    }
    _cleanup_free_ char *path = overlay_file_of(disk->from);
    if (path == NULL ||
        !process_has_our_file(vm_process(act_vm(act)).pid, path)) {
        _cleanup_err_ struct err *err = NULL;
        (void)err_set(&err, -ESTALE, disk->from,
                      "is another file than the one that QEMU has open");
        act_end(act, err);
        return;
    }
    struct copy_options options = {
        .kind = COPY_COPY,
        .source = disk->from,
        .target = disk->to,
        .state_dir = op_state_dir(act_op(act)),
        .key = key.text,
        .identity =
            json_string_value(act_fact(act, "target-create", "identity")),
        .bytes = true,
        .frozen = true,
        /* What an earlier try has written only its record tells. */
        .blank = zero && !act_is_repeated(act),
        .existing = true,
        .speed = act_plan(act)->speed,
    };
    act_copy(act, &options, copy_on_event, copy_on_copied);
}

/* The target is removed: nothing of it could be gone on with. */
void overlay_copy_undo(struct act *act)
{
    struct name key = act_name(act, NAME_TARGET);
    record_forget(op_state_dir(act_op(act)), key.text);
    act_end(act, NULL);
}

/* --- the landing --- */

void landing_create(struct act *act)
{
    create(act);
}

void landing_remove(struct act *act)
{
    remove_file(act);
}

json_t *landing_file_command(const char *op, const struct plan *plan,
                             const struct plan_disk *disk)
{
    (void)plan;
    return file_command(op, disk, NAME_LANDING, NAME_LANDING_FILE);
}

void landing_file_add(struct act *act)
{
    add(act);
}

void landing_file_del(struct act *act)
{
    act_delete_node(act, NAME_LANDING_FILE);
}

void landing_file_probe(struct act *act)
{
    act_probe_node(act, NAME_LANDING_FILE);
}

json_t *landing_format_command(const char *op, const struct plan *plan,
                               const struct plan_disk *disk)
{
    (void)plan;
    return format_command(op, disk, NAME_LANDING_FILE, disk->to, disk->format);
}

json_t *landing_node_command(const char *op, const struct plan *plan,
                             const struct plan_disk *disk)
{
    (void)plan;
    struct name base = name_of(op, disk->index, NAME_TARGET);
    return node_command(op, disk, NAME_LANDING, NAME_LANDING_FILE,
                        json_string(base.text));
}

void landing_node_add(struct act *act)
{
    add(act);
}

static void delete_landing(struct act *act)
{
    act_delete_node(act, NAME_LANDING);
}

void landing_node_del(struct act *act)
{
    commit_clear(act, delete_landing);
}

void landing_node_probe(struct act *act)
{
    act_probe_node(act, NAME_LANDING);
}
