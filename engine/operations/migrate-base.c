/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A linked clone stays one at the destination, where the base that it stands
 * on there is proved to be the source's: the same files, open in both, or the
 * same content, read from both. Only the active layer is copied then. A base
 * that is taken for another one would change the disk under the guest, so that
 * whatever is not proved has all of the disk copied.
 */
#include <errno.h>
#include <string.h>

#include "base/err.h"
#include "base/str.h"
#include "bulk/check.h"
#include "operations/migrate-plan.h"
#include "operations/move-check.h"
#include "qpivot.h"
#include "steps/act-on.h"
#include "steps/export.h"
#include "steps/target.h"
#include "vm/graph.h"
#include "vm/open-file.h"
#include "vm/vm.h"

static const char *text_of(const json_t *json, const char *key)
{
    const char *text = json_string_value(json_object_get(json, key));
    return text != NULL ? text : "";
}

static uint64_t size_of(const json_t *linked)
{
    json_int_t size = json_integer_value(json_object_get(linked, "size"));
    return size > 0 ? (uint64_t)size : 0;
}

static void replace(char **text, const char *with)
{
    free(*text);
    *text = strdup(with);
}

/* --- what is looked at --- */

/* Top-down; 'n' of them from 'first' on. */
static json_t *files_of(const struct graph_disk *disk, unsigned first)
{
    json_t *files = json_array();
    for (unsigned i = first; i < disk->n_layers; i++) {
        const struct graph_layer *layer = &disk->layers[i];
        bool bare = layer->node == layer->protocol;
        (void)json_array_append_new(
            files,
            json_pack("{s:s, s:s, s:s}", "driver", layer->protocol->driver,
                      "file", layer->protocol->filename, "format",
                      bare ? "raw" : layer->node->driver));
    }
    return files;
}

/* By that name alone it is opened as it is open: see move_name_of_base(). */
static bool is_plain(const struct graph_layer *layer)
{
    return !str_starts(layer->node->filename, "json:");
}

void migrate_look_base(struct op *op, struct plan_disk *disk,
                       const struct graph_disk *found)
{
    const struct migrate_request *request = op_request(op);
    if (found->n_layers < 2 || request->sync == QPIVOT_SYNC_FULL) {
        return;
    }
    const struct graph_layer *base = &found->layers[1];
    bool bare = base->node == base->protocol;
    struct volume *volume = NULL;
    _cleanup_free_ char *file = move_name_of_base(op, base);
    if (file != NULL) {
        (void)volume_from_node(base->protocol->driver, file, &volume);
    }
    disk->linked = json_pack(
        "{s:s, s:s, s:s, s:I, s:b, s:b, s:o}", "file", file != NULL ? file : "",
        "uri", volume != NULL ? volume->uri : "", "format",
        bare ? "raw" : base->node->driver, "size", (json_int_t)base->node->size,
        "strict", request->sync == QPIVOT_SYNC_TOP, "plain", is_plain(base),
        "layers", files_of(found, 1));
    volume_free(volume);
}

/* All of it is copied, and why; a problem where that was not to be. */
static void make_full(struct op *op, struct plan_disk *disk, const char *why)
{
    struct err *err = NULL;
    if (json_is_true(json_object_get(disk->linked, "strict"))) {
        (void)err_set(&err, -ENOTSUP, disk->disk, "sync=top: %s", why);
        err_hint(&err, "--sync full makes it one image, --sync auto does so"
                       " where it must");
        op_problem(op, err);
    } else {
        migrate_note(op_request(op), "%s: becomes one image: %s", disk->disk,
                     why);
    }
    json_decref(disk->linked);
    disk->linked = NULL;
    replace(&disk->base, "");
}

static void make_linked(struct plan_disk *disk, const char *node, json_t *there)
{
    _cleanup_free_ char *reason = str_printf(
        "%s; it stays on its base if that is proved equal%s", disk->reason,
        json_is_true(json_object_get(disk->linked, "strict"))
            ? ""
            : ", else all of it is copied");
    (void)json_object_set_new(disk->linked, "there", there);
    replace(&disk->base, node);
    replace(&disk->sync, "top");
    if (reason != NULL) {
        replace(&disk->reason, reason);
    }
}

bool migrate_match_base(struct op *op, struct plan_disk *disk,
                        const struct graph_disk *there)
{
    if (disk->linked == NULL) {
        return there->n_layers == 1;
    }
    const struct graph_layer *base = &there->layers[1];
    if (there->n_layers == 1) {
        make_full(op, disk, "the destination's image stands on no base");
        return true;
    }
    if (!str_eq(there->format, "qcow2") || !str_eq(disk->how, "nbd")) {
        make_full(op, disk,
                  "only a qcow2 image of the destination's is filled"
                  " without its base");
        return false;
    }
    if (base->node->size != size_of(disk->linked)) {
        /* A whole copy hides what is below. */
        make_full(op, disk, "the base at the destination has another size");
        return true;
    }
    make_linked(disk, base->node->name, files_of(there, 1));
    if (!is_plain(base)) {
        (void)json_object_set_new(disk->linked, "plain", json_false());
    }
    return true;
}

/* Of what the destination makes: on the base by the source's name for it. */
void migrate_decide_base(struct op *op, struct plan_disk *disk)
{
    const struct migrate_request *request = op_request(op);
    const char *file = text_of(disk->linked, "file");
    const json_t *layers = json_object_get(disk->linked, "layers");
    if (disk->linked == NULL || *disk->to == '\0' || !disk->attach) {
        return;
    }
    if (!str_eq(disk->format, "qcow2")) {
        make_full(op, disk, "raw data cannot stand on a base");
    } else if (!disk->create) {
        make_full(op, disk, "what an existing image holds would hide its base");
    } else if (!disk->made_there) {
        make_full(op, disk, "its target is no file of the destination's host");
    } else if (*file == '\0' ||
               !str_eq(text_of(json_array_get(layers, 0), "driver"), "file")) {
        make_full(op, disk, "its base is no file that a name tells");
    } else if (!request->looks[disk->index].base) {
        make_full(op, disk,
                  "its base is not found by its name at the"
                  " destination");
    } else if (disk->target_size != disk->size) {
        make_full(op, disk, "its target has another size");
    } else {
        struct name base = name_of(op_id(op), disk->index, NAME_BASE);
        make_linked(disk, base.text, json_deep_copy(layers));
        replace(&disk->base_file, file);
        replace(&disk->base_format, text_of(disk->linked, "format"));
        (void)json_object_set_new(disk->node_options, "backing",
                                  json_string(base.text));
    }
}

void migrate_forget_base(struct plan_disk *disk)
{
    if (!str_eq(disk->how, "nbd") && !str_eq(disk->how, "direct")) {
        json_decref(disk->linked);
        disk->linked = NULL;
    }
}

bool migrate_may_stand_on_base(const struct plan *plan,
                               const struct plan_disk *disk)
{
    (void)plan;
    return disk->made_there && disk->create &&
           *text_of(disk->linked, "file") != '\0';
}

static void base_on_look(struct act *act, const struct err *err, json_t *result)
{
    struct migrate_request *request = op_request(act_op(act));
    (void)result;
    request->looks[act_disk(act)->index].base =
        target_there(err) == TARGET_THERE;
    act_end(act, NULL);
}

/* In its format, so with all that it stands on itself. */
void migrate_look_base_there(struct act *act)
{
    const struct plan_disk *disk = act_disk(act);
    const char *format = text_of(disk->linked, "format");
    json_t *args = target_look_arguments(act_op_id(act), disk,
                                         text_of(disk->linked, "file"));
    if (!str_eq(format, "raw")) {
        (void)json_object_set_new(args, "file",
                                  json_pack("{s:s, s:b, s:O}", "driver", format,
                                            "read-only", 1, "file",
                                            json_object_get(args, "file")));
    }
    act_qmp(act, "blockdev-add", args, base_on_look);
}

/* --- proving it --- */

bool base_is_compared(const struct plan *plan, const struct plan_disk *disk)
{
    (void)plan;
    return json_is_object(disk->linked);
}

bool base_is_opened(const struct plan *plan, const struct plan_disk *disk)
{
    return base_is_compared(plan, disk) && disk->attach;
}

bool base_has_overlay(const struct plan *plan, const struct plan_disk *disk)
{
    return base_is_compared(plan, disk) && !disk->attach;
}

json_t *base_open_command(const char *op, const struct plan *plan,
                          const struct plan_disk *disk)
{
    (void)op;
    (void)plan;
    return json_pack("{s:s, s:{s:s, s:s, s:b, s:{s:s, s:s, s:b}}}", "execute",
                     "blockdev-add", "arguments", "driver", disk->base_format,
                     "node-name", disk->base, "read-only", 1, "file", "driver",
                     "file", "filename", disk->base_file, "read-only", 1);
}

void base_open(struct act *act)
{
    act_command(act, NULL);
}

void base_open_probe(struct act *act)
{
    act_probe_node(act, NAME_BASE);
}

static bool is_strict(const struct act *act)
{
    return json_is_true(json_object_get(act_disk(act)->linked, "strict"));
}

/* Not proved: 'why' is borrowed. */
static void refute(struct act *act, const char *key, const char *why)
{
    _cleanup_err_ struct err *err = NULL;
    const char *disk = act_disk(act)->disk;
    if (is_strict(act)) {
        (void)err_set(&err, -ENOTSUP, disk, "sync=top: %s", why);
        err_hint(&err, "--sync full makes it one image, --sync auto does so"
                       " where it must");
    } else {
        act_warn(act, "%s: all of it is copied: %s", disk, why);
        act_set_facts(act, json_pack("{s:b, s:s}", key, 0, "reason", why));
    }
    act_end(act, err);
}

/* The same files, in the same formats, are open in both, down to the last. */
static bool is_same_chain(struct act *act)
{
    const json_t *linked = act_disk(act)->linked;
    const json_t *here = json_object_get(linked, "layers");
    const json_t *there = json_object_get(linked, "there");
    size_t n = json_array_size(here);
    bool same = json_is_true(json_object_get(linked, "plain")) && n > 0 &&
                json_array_size(there) == n;
    for (size_t i = 0; same && i < n; i++) {
        const json_t *a = json_array_get(here, i),
                     *b = json_array_get(there, i);
        same = str_eq(text_of(a, "format"), text_of(b, "format")) &&
               migrate_same_open(act_op(act), text_of(a, "driver"),
                                 text_of(a, "file"), text_of(b, "driver"),
                                 text_of(b, "file")) == MIGRATE_SAME;
    }
    return same;
}

/*
 * Whether what this process opens by the names is what the source has open: it
 * may be on another host, where they mean other files.
 */
static bool can_read_source(struct act *act)
{
    const json_t *linked = act_disk(act)->linked;
    const json_t *layers = json_object_get(linked, "layers");
    const char *name = text_of(linked, "file");
    uint64_t pid = vm_process(act_src_vm(act)).pid;
    bool sees = json_is_true(json_object_get(linked, "plain")) &&
                *text_of(linked, "uri") != '\0';
    size_t i;
    json_t *layer;
    json_array_foreach(layers, i, layer) {
        const char *file = i == 0 ? name : text_of(layer, "file");
        sees = sees && str_eq(text_of(layer, "driver"), "file") &&
               process_has_our_file(pid, file);
    }
    const char *format = text_of(linked, "format");
    return sees && (str_eq(format, "raw") || str_eq(format, "qcow2"));
}

static void compare_on_progress(struct act *act, uint64_t bytes, uint64_t total)
{
    act_emit(act, "progress",
             json_pack("{s:s, s:I, s:I, s:I}", "phase", "base", "bytes",
                       (json_int_t)bytes, "total", (json_int_t)total,
                       "remaining", (json_int_t)(total - bytes)));
}

/* Whether it is proved; where it is not, the act has ended. */
static bool is_proved(struct act *act, const char *key, const struct err *err,
                      const struct check_result *result, const char *unknown,
                      const char *different)
{
    if (err != NULL && err->code == -ECANCELED) {
        act_end(act, err);
        return false;
    }
    if (err == NULL && result->differing == 0) {
        return true;
    }
    _cleanup_free_ char *text = err != NULL ? err_text(err) : NULL;
    _cleanup_free_ char *why =
        err != NULL ? str_printf("%s: %s", unknown,
                                 text != NULL ? text : "out of memory")
                    : str_printf("%s (bytes: %s)", different, result->where);
    refute(act, key, why != NULL ? why : "out of memory");
    return false;
}

static void compare_on_end(struct act *act, const struct err *err,
                           const struct check_result *result)
{
    if (is_proved(act, "equal", err, result, "its base cannot be compared",
                  "the base at the destination differs")) {
        act_set_facts(act, json_pack("{s:b, s:s}", "equal", 1, "reason",
                                     "its base has the same content there"));
        act_end(act, NULL);
    }
}

static void compare_begin(struct act *act)
{
    const json_t *linked = act_disk(act)->linked;
    _cleanup_free_ char *target = NULL;
    _cleanup_err_ struct err *err = NULL;
    if (is_same_chain(act)) {
        act_set_facts(act, json_pack("{s:b, s:s}", "equal", 1, "reason",
                                     "its base is the same file for both"));
        act_end(act, NULL);
        return;
    }
    if (!can_read_source(act)) {
        refute(act, "equal",
               "its base is not proved to be the same: the source's cannot be"
               " read from here");
        return;
    }
    if (export_uri(act, NAME_BASE, &target, &err) < 0) {
        act_end(act, err);
        return;
    }
    struct check_request request = {.act = CHECK_COMPARE,
                                    .source = text_of(linked, "uri"),
                                    .source_format = text_of(linked, "format"),
                                    .target = target,
                                    .target_format = "raw",
                                    .size = size_of(linked),
                                    .speed = act_plan(act)->speed};
    act_check(act, &request, compare_on_progress, compare_on_end);
}

/* What lies behind the end of the shorter one would be another disk's. */
static void compare_on_graph(struct act *act, const struct err *err,
                             const struct graph *graph)
{
    const struct plan_disk *disk = act_disk(act);
    const struct graph_node *base =
        err == NULL ? graph_find_node(graph, disk->base) : NULL;
    if (err != NULL) {
        act_end(act, err);
    } else if (base == NULL || base->size != size_of(disk->linked)) {
        refute(act, "equal", "the base at the destination has another size");
    } else {
        compare_begin(act);
    }
}

void base_compare(struct act *act)
{
    act_graph(act, compare_on_graph);
}

static void empty_on_end(struct act *act, const struct err *err,
                         const struct check_result *result)
{
    if (is_proved(act, "empty", err, result,
                  "the destination's image is not proved to be empty",
                  "the destination's image is not empty")) {
        act_set_facts(act, json_pack("{s:b}", "empty", 1));
        act_end(act, NULL);
    }
}

/* What it holds itself would hide the base where the source shows its own. */
void base_see_empty(struct act *act)
{
    _cleanup_free_ char *target = NULL;
    _cleanup_err_ struct err *err = NULL;
    if (!json_is_true(act_fact(act, "base-compare", "equal"))) {
        act_set_facts(act, json_pack("{s:b}", "empty", 0));
        act_end(act, NULL); /* all of it is written */
        return;
    }
    if (export_uri(act, NAME_EXPORT, &target, &err) < 0) {
        act_end(act, err);
        return;
    }
    struct check_request request = {
        .act = CHECK_OWN, .target = target, .target_format = "raw"};
    act_check(act, &request, NULL, empty_on_end);
}

/* A base that is another one is not what the image to be made stands on. */
void base_drop(struct act *act)
{
    if (json_is_true(act_fact(act, "base-compare", "equal"))) {
        act_end(act, NULL);
    } else {
        act_delete_node(act, NAME_BASE);
    }
}
