/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "steps/disk.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/err.h"
#include "base/str.h"
#include "steps/act-on.h"
#include "vm/vm.h"

static json_t *with_members(const json_t *options, const char *node_name,
                            const char *file);

/* --- the volume --- */

bool disk_is_created(const struct plan *plan, const struct plan_disk *disk)
{
    (void)plan;
    return disk->create;
}

static void create_on_volume(struct act *act, const struct err *err,
                             struct volume_result *result)
{
    if (err == NULL) {
        act_set_facts(act,
                      json_pack("{s:s, s:b}", "identity", result->info.identity,
                                "zero", result->info.zero));
    }
    act_end(act, err);
}

/* Where QEMU has the source open as a file of this host: its name, or NULL. */
static const char *source_file(const struct plan_disk *disk)
{
    const char *driver =
        json_string_value(json_object_get(disk->before, "protocol_driver"));
    const char *name =
        json_string_value(json_object_get(disk->before, "protocol_filename"));
    if (disk->from[0] == '/') {
        name = disk->from; /* QEMU's own name may be a relative one */
    }
    return str_eq(driver, "file") && name != NULL && name[0] == '/' ? name
                                                                    : NULL;
}

static void create_of_size(struct act *act, uint64_t size)
{
    const struct plan_disk *disk = act_disk(act);
    struct name temp = act_name(act, NAME_VOLUME);
    struct volume_request request = {
        .act = VOLUME_CREATE,
        .temp = temp.text,
        .size = size,
        .like = source_file(disk),
    };
    act_storage(act, act_volume(act, disk->index), &request, create_on_volume);
}

/* Below its overlay it grows no more: the copy is as long as it is now. */
static void create_on_source(struct act *act, const struct err *err,
                             struct volume_result *result)
{
    const struct plan_disk *disk = act_disk(act);
    _cleanup_err_ struct err *error = err_copy(err);
    if (error == NULL && !result->info.exists) {
        (void)err_set(&error, -ENOENT, disk->from, "is not there any more");
    }
    if (error != NULL) {
        act_end(act, error);
    } else {
        create_of_size(act, result->info.size);
    }
}

void disk_create(struct act *act)
{
    static const struct volume_request probe = {.act = VOLUME_PROBE};
    const struct plan_disk *disk = act_disk(act);
    struct volume *source = NULL;
    _cleanup_err_ struct err *err = NULL;
    if (!plan_disk_copies_base(disk) || str_eq(disk->format, "raw")) {
        /* qcow2 grows by itself; QEMU writes its metadata. */
        create_of_size(act, disk->make_format ? 0 : disk->target_size);
    } else if (volume_parse(disk->from, &source, &err) < 0) {
        act_end(act, err);
    } else {
        act_storage(act, act_own_volume(act, source), &probe, create_on_source);
    }
}

static void remove_on_volume(struct act *act, const struct err *err,
                             struct volume_result *result)
{
    (void)result;
    /* Somebody put another thing there: it is not ours to free. */
    act_end(act, err != NULL && err->code == -ESTALE ? NULL : err);
}

static void remove_volume(struct act *act)
{
    const struct plan_disk *disk = act_disk(act);
    struct name temp = act_name(act, NAME_VOLUME);
    struct volume_request request = {
        .act = VOLUME_REMOVE,
        .temp = temp.text,
        .identity =
            json_string_value(act_fact(act, "target-create", "identity")),
    };
    act_storage(act, act_volume(act, disk->index), &request, remove_on_volume);
}

static void remove_on_graph(struct act *act, const struct err *err,
                            const struct graph *graph)
{
    _cleanup_err_ struct err *busy = NULL;
    if (err == NULL &&
        disk_is_closed(graph, act_volume(act, act_disk(act)->index), "removed",
                       &busy) < 0) {
        err = busy;
    }
    if (err != NULL) {
        act_end(act, err);
        return;
    }
    remove_volume(act);
}

/* Whatever went before: what QEMU has open is never removed. */
void disk_remove(struct act *act)
{
    if (vm_state(act_vm(act)) == VM_UP) {
        act_graph(act, remove_on_graph);
    } else {
        remove_volume(act);
    }
}

static void publish_on_volume(struct act *act, const struct err *err,
                              struct volume_result *result)
{
    (void)result;
    act_end(act, err);
}

void disk_publish(struct act *act)
{
    const struct plan_disk *disk = act_disk(act);
    struct name temp = act_name(act, NAME_VOLUME);
    struct volume_request request = {
        .act = VOLUME_PUBLISH,
        .temp = temp.text,
        .identity =
            json_string_value(act_fact(act, "target-create", "identity")),
    };
    act_storage(act, act_volume(act, disk->index), &request, publish_on_volume);
}

/* --- the secret --- */

bool disk_has_secret(const struct plan *plan, const struct plan_disk *disk)
{
    (void)plan;
    return disk->secret;
}

static void secret_on_volume(struct act *act, const struct err *err,
                             struct volume_result *result)
{
    struct name name = act_name(act, NAME_KEY);
    if (err != NULL || result->secret == NULL) {
        act_end(act, err);
        return;
    }
    act_qmp(act, "object-add",
            json_pack("{s:s, s:s, s:s, s:s}", "qom-type", "secret", "id",
                      name.text, "format", "base64", "data", result->secret),
            NULL);
}

static void secret_on_there(struct act *act, const struct err *err,
                            json_t *result)
{
    (void)result;
    if (err == NULL) {
        act_end(act, NULL); /* from before a crash */
    } else if (!str_eq(err->class, "DeviceNotFound")) {
        act_end(act, err);
    } else {
        struct volume_request request = {.act = VOLUME_SECRET};
        act_storage(act, act_volume(act, act_disk(act)->index), &request,
                    secret_on_volume);
    }
}

static json_t *object_type_args(const struct act *act, char path[64])
{
    struct name name = act_name(act, NAME_KEY);
    (void)snprintf(path, 64, "/objects/%s", name.text);
    return json_pack("{s:s, s:s}", "path", path, "property", "type");
}

json_t *disk_secret_command(const char *op, const struct plan *plan,
                            const struct plan_disk *disk)
{
    (void)plan;
    struct name name = name_of(op, disk->index, NAME_KEY);
    return json_pack("{s:s, s:{s:s, s:s, s:s, s:s}}", "execute", "object-add",
                     "arguments", "qom-type", "secret", "id", name.text,
                     "format", "base64", "data", "<redacted>");
}

/*
 * QEMU reads a secret when it opens a node (7.2 to 11.1: reopening one that
 * is open reads it no more); the description for the next start names its own.
 */
json_t *disk_secret_drop_command(const char *op, const struct plan *plan,
                                 const struct plan_disk *disk)
{
    (void)plan;
    struct name name = name_of(op, disk->index, NAME_KEY);
    return json_pack("{s:s, s:{s:s}}", "execute", "object-del", "arguments",
                     "id", name.text);
}

void disk_secret_add(struct act *act)
{
    char path[64];
    act_qmp(act, "qom-get", object_type_args(act, path), secret_on_there);
}

static void secret_on_present(struct act *act, const struct err *err,
                              json_t *result)
{
    struct name name = act_name(act, NAME_KEY);
    (void)result;
    if (err != NULL && str_eq(err->class, "DeviceNotFound")) {
        act_end(act, NULL);
    } else if (err != NULL) {
        act_end(act, err);
    } else {
        act_qmp(act, "object-del", json_pack("{s:s}", "id", name.text), NULL);
    }
}

void disk_secret_del(struct act *act)
{
    char path[64];
    act_qmp(act, "qom-get", object_type_args(act, path), secret_on_present);
}

/* --- the protocol node --- */

bool disk_has_file_node(const struct plan *plan, const struct plan_disk *disk)
{
    (void)plan;
    return !disk->drive_mirror || disk->make_format;
}

json_t *disk_file_command(const char *op, const struct plan *plan,
                          const struct plan_disk *disk)
{
    (void)plan;
    struct name name = name_of(op, disk->index, NAME_FILE);
    return json_pack("{s:s, s:o}", "execute", "blockdev-add", "arguments",
                     with_members(disk->file_options, name.text, NULL));
}

static void file_on_added(struct act *act, const struct err *err,
                          json_t *result)
{
    (void)result;
    _cleanup_err_ struct err *error = err_copy(err);
    if (error != NULL && error->desc != NULL &&
        strstr(error->desc, "Permission denied") != NULL) {
        err_hint(&error,
                 act_disk(act)->create
                     ? "QEMU may not open it: it runs as another user; make"
                       " the volume yourself and append ?existing=yes"
                     : "QEMU may not open it: it runs as another user");
    }
    act_end(act, error != NULL ? error : err);
}

void disk_file_add(struct act *act)
{
    act_command(act, file_on_added);
}

void disk_file_del(struct act *act)
{
    act_delete_node(act, NAME_FILE);
}

void disk_file_probe(struct act *act)
{
    act_probe_node(act, NAME_FILE);
}

/* --- image metadata --- */

bool disk_is_formatted(const struct plan *plan, const struct plan_disk *disk)
{
    (void)plan;
    return disk->make_format;
}

json_t *disk_format_command(const char *op, const struct plan *plan,
                            const struct plan_disk *disk)
{
    (void)plan;
    struct name id = name_of(op, disk->index, NAME_CREATE);
    struct name file = name_of(op, disk->index, NAME_FILE);
    json_t *options =
        json_pack("{s:s, s:s, s:I}", "driver", disk->format, "file", file.text,
                  "size", (json_int_t)disk->target_size);
    if (plan_disk_keeps_base(disk)) {
        (void)json_object_set_new(options, "backing-file",
                                  json_string(disk->base_file));
        (void)json_object_set_new(options, "backing-fmt",
                                  json_string(disk->base_format));
    }
    return json_pack("{s:s, s:{s:s, s:o}}", "execute", "blockdev-create",
                     "arguments", "job-id", id.text, "options", options);
}

static void format_on_dismissed(struct act *act, const struct err *err,
                                json_t *result)
{
    (void)result;
    act_end(act, err);
}

static void format_on_jobs(struct act *act, const struct job_list *jobs)
{
    struct name id = act_name(act, NAME_CREATE);
    const struct job *job = job_list_find(jobs, id.text);
    _cleanup_err_ struct err *err = NULL;
    if (job == NULL) {
        (void)err_set(&err, -ENOENT, id.text, "the job has vanished");
        act_end(act, err);
    } else if (job->status == JOB_CONCLUDED && job->error != NULL) {
        (void)err_set_qmp(&err, act_disk(act)->to, "blockdev-create",
                          "GenericError", job->error);
        act_end(act, err);
    } else if (job->status == JOB_CONCLUDED) {
        act_qmp(act, "job-dismiss", json_pack("{s:s}", "id", id.text),
                format_on_dismissed);
    }
}

static void format_on_started(struct act *act, const struct err *err,
                              json_t *result)
{
    (void)result;
    if (err != NULL) {
        act_end(act, err);
    } else {
        act_wait_jobs(act, format_on_jobs);
    }
}

static void format_on_leftover(struct act *act, const struct job_list *jobs)
{
    struct name id = act_name(act, NAME_CREATE);
    const struct job *job = job_list_find(jobs, id.text);
    if (job != NULL) {
        act_wait_jobs(act, format_on_jobs); /* from before a crash */
        return;
    }
    if (!disk_loses_base(act)) {
        act_command(act, format_on_started);
        return;
    }
    json_auto_t *command =
        disk_format_command(act_op_id(act), act_plan(act), act_disk(act));
    json_t *args = json_object_get(command, "arguments");
    json_t *options = json_object_get(args, "options");
    (void)json_object_del(options, "backing-file");
    (void)json_object_del(options, "backing-fmt");
    act_qmp(act, "blockdev-create", json_incref(args), format_on_started);
}

bool disk_loses_base(const struct act *act)
{
    return json_is_object(act_disk(act)->linked) &&
           !json_is_true(act_fact(act, "base-compare", "equal"));
}

void disk_format(struct act *act)
{
    act_wait_jobs(act, format_on_leftover);
}

void disk_format_undo(struct act *act)
{
    act_clear_job(act, NAME_CREATE, NULL);
}

/* --- drive-mirror --- */

bool disk_file_is_dropped(const struct plan *plan, const struct plan_disk *disk)
{
    return disk->drive_mirror && disk_has_file_node(plan, disk);
}

void disk_file_drop(struct act *act)
{
    act_delete_node(act, NAME_FILE);
}

/* --- the image below a raw target node --- */

bool disk_has_image(const struct plan *plan, const struct plan_disk *disk)
{
    (void)plan;
    return disk->image;
}

json_t *disk_image_command(const char *op, const struct plan *plan,
                           const struct plan_disk *disk)
{
    (void)plan;
    struct name name = name_of(op, disk->index, NAME_IMAGE);
    struct name file = name_of(op, disk->index, NAME_FILE);
    return json_pack("{s:s, s:o}", "execute", "blockdev-add", "arguments",
                     with_members(disk->node_options, name.text, file.text));
}

void disk_image_add(struct act *act)
{
    act_command(act, NULL);
}

void disk_image_del(struct act *act)
{
    act_delete_node(act, NAME_IMAGE);
}

void disk_image_probe(struct act *act)
{
    act_probe_node(act, NAME_IMAGE);
}

/* --- the node that the guest will use --- */

bool disk_has_node(const struct plan *plan, const struct plan_disk *disk)
{
    (void)plan;
    return !disk->drive_mirror;
}

static json_t *target_node(const char *op, const struct plan_disk *disk)
{
    struct name name = name_of(op, disk->index, NAME_TARGET);
    struct name child =
        name_of(op, disk->index, disk->image ? NAME_IMAGE : NAME_FILE);
    json_t *node = with_members(disk->node_options, name.text, child.text);
    if (disk->image) {
        (void)json_object_set_new(node, "driver", json_string("raw"));
        (void)json_object_del(node, "backing");
    }
    return node;
}

json_t *disk_node_command(const char *op, const struct plan *plan,
                          const struct plan_disk *disk)
{
    (void)plan;
    json_t *node = target_node(op, disk);
    (void)json_object_update(node, disk->copy_options);
    return json_pack("{s:s, s:o}", "execute", "blockdev-add", "arguments",
                     node);
}

void disk_node_add(struct act *act)
{
    act_command(act, NULL);
}

void disk_node_del(struct act *act)
{
    act_delete_node(act, NAME_TARGET);
}

void disk_node_probe(struct act *act)
{
    act_probe_node(act, NAME_TARGET);
}

/* --- what was for the copy only --- */

bool disk_is_reopened(const struct plan *plan, const struct plan_disk *disk)
{
    (void)plan;
    return json_object_size(disk->copy_options) > 0;
}

json_t *disk_reopen_command(const char *op, const struct plan *plan,
                            const struct plan_disk *disk)
{
    (void)plan;
    json_t *node = target_node(op, disk);
    /* What is left out goes back to its default: size to the volume's. */
    if (json_is_true(json_object_get(disk->before, "read_only"))) {
        (void)json_object_set_new(node, "read-only", json_true());
    }
    return json_pack("{s:s, s:{s:[o]}}", "execute", "blockdev-reopen",
                     "arguments", "options", node);
}

json_t *disk_facts(const struct graph *graph, const struct plan_disk *disk)
{
    const struct graph_device *device = graph_find_device(graph, disk->device);
    _cleanup_graph_disk_ struct graph_disk *found = NULL;
    if (device == NULL || graph_disk(graph, device, &found, NULL) < 0) {
        return NULL;
    }
    return graph_disk_facts(graph, found);
}

static void reopen_on_graph(struct act *act, const struct err *err,
                            const struct graph *graph)
{
    if (err == NULL) {
        act_set_facts(act, json_pack("{s:o*}", "after",
                                     disk_facts(graph, act_disk(act))));
    }
    act_end(act, NULL); /* it is done; what it looks like is for the result */
}

static void reopen_on_reply(struct act *act, const struct err *err,
                            json_t *result)
{
    (void)result;
    if (err != NULL) {
        act_end(act, err);
    } else {
        act_graph(act, reopen_on_graph);
    }
}

void disk_reopen(struct act *act)
{
    act_command(act, reopen_on_reply);
}

json_t *disk_blockdevs(const struct plan_disk *disk, const char *file_name,
                       const char *node_name)
{
    json_t *file = with_members(disk->file_options, file_name, NULL);
    json_t *node = with_members(disk->node_options, node_name, file_name);
    if (json_is_string(json_object_get(node, "backing"))) {
        (void)json_object_del(node, "backing"); /* its header names it */
    }
    if (json_is_true(json_object_get(disk->before, "read_only"))) {
        (void)json_object_set_new(file, "read-only", json_true());
        (void)json_object_set_new(node, "read-only", json_true());
    }
    return json_pack("[o, o]", file, node);
}

/* A copy of the options with a node name, and a file child unless NULL. */
static json_t *with_members(const json_t *options, const char *node_name,
                            const char *file)
{
    json_t *copy = json_deep_copy(options);
    (void)json_object_set_new(copy, "node-name", json_string(node_name));
    if (file != NULL) {
        (void)json_object_set_new(copy, "file", json_string(file));
    }
    return copy;
}
