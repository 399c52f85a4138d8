/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "steps/target.h"

#include <errno.h>
#include <string.h>

#include "base/err.h"
#include "base/str.h"
#include "run/claim.h"
#include "steps/act-on.h"
#include "steps/disk.h"
#include "vm/graph.h"
#include "vm/vm.h"

enum { LOOK_AGAIN_MS = 20, TRIES_MAX = 3 };

static void unmake_on_claim(struct act *act, const struct err *err,
                            json_t *result);
static void unmake_look(struct act *act);
static void unmake_listen(struct act *act);
static void unmake_end(struct act *act, bool removed);

/* --- when --- */

static bool is_direct(const struct plan_disk *disk)
{
    return str_eq(disk->how, "direct");
}

bool target_is_made(const struct plan *plan, const struct plan_disk *disk)
{
    (void)plan;
    return disk->made_there && disk->create;
}

bool target_is_on_network(const struct plan *plan, const struct plan_disk *disk)
{
    (void)plan;
    return plan_disk_has_volume(disk) && !disk->made_there;
}

bool target_is_created(const struct plan *plan, const struct plan_disk *disk)
{
    return target_is_on_network(plan, disk) && disk->create;
}

bool target_is_formatted(const struct plan *plan, const struct plan_disk *disk)
{
    (void)plan;
    return disk->attach && disk->make_format;
}

bool target_is_direct(const struct plan *plan, const struct plan_disk *disk)
{
    (void)plan;
    return is_direct(disk);
}

bool target_has_direct_secret(const struct plan *plan,
                              const struct plan_disk *disk)
{
    (void)plan;
    return is_direct(disk) && disk->secret;
}

bool target_is_attached(const struct plan *plan, const struct plan_disk *disk)
{
    (void)plan;
    return disk->attach;
}

bool target_needs_secret(const struct plan *plan, const struct plan_disk *disk)
{
    (void)plan;
    return disk->attach && disk->secret;
}

/* That of a -drive goes by itself. */
bool target_has_placeholder(const struct plan *plan,
                            const struct plan_disk *disk)
{
    (void)plan;
    return disk->attach && disk->placeholder[0] != '#';
}

bool target_leaves_secret(const struct plan *plan, const struct plan_disk *disk)
{
    return !plan->quit_source && target_has_direct_secret(plan, disk);
}

/* --- is it there? --- */

json_t *target_look_arguments(const char *op, const struct plan_disk *disk,
                              const char *path)
{
    struct name name = name_of(op, disk->index, NAME_IMAGE);
    /* No file is as long as that: so raw refuses whatever could be opened. */
    const json_int_t far = (json_int_t)1 << 62;
    return json_pack("{s:s, s:s, s:b, s:I, s:{s:s, s:s, s:b}}", "driver", "raw",
                     "node-name", name.text, "read-only", 1, "offset", far,
                     "file", "driver", "file", "filename", path, "read-only",
                     1);
}

enum target_there target_there(const struct err *err)
{
    if (err == NULL) {
        return TARGET_THERE;
    }
    /*
     * QMP has no class for it: QEMU's words are errno's, after its own (7.2 to
     * 11.1). In another language it counts as unknown, which is refused.
     */
    const char *desc = err->desc != NULL ? err->desc : "";
    if (strstr(desc, "No such file or directory") != NULL) {
        return TARGET_ABSENT;
    }
    return str_starts(desc, "Offset (") ? TARGET_THERE : TARGET_UNKNOWN;
}

static const char *path_of(const struct plan_disk *disk)
{
    const char *path =
        json_string_value(json_object_get(disk->file_options, "filename"));
    return path != NULL ? path : "";
}

/* --- made by blockdev-create --- */

json_t *target_make_command(const char *op, const struct plan *plan,
                            const struct plan_disk *disk)
{
    (void)plan;
    struct name id = name_of(op, disk->index, NAME_CREATE);
    /* qcow2 grows by itself, and another job writes its metadata. */
    uint64_t size = disk->make_format ? 0 : disk->target_size;
    return json_pack("{s:s, s:{s:s, s:{s:s, s:s, s:I}}}", "execute",
                     "blockdev-create", "arguments", "job-id", id.text,
                     "options", "driver", "file", "filename", path_of(disk),
                     "size", (json_int_t)size);
}

static void make_on_jobs(struct act *act, const struct job_list *jobs)
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
        act_set_facts(act, json_pack("{s:b}", "made", 1));
        act_end(act, NULL);
    }
}

static void make_on_started(struct act *act, const struct err *err,
                            json_t *result)
{
    (void)result;
    if (err != NULL) {
        act_end(act, err);
    } else {
        act_wait_jobs(act, make_on_jobs);
    }
}

/*
 * blockdev-create truncates what it finds, unless a QEMU has it locked. That
 * there is nothing was seen by the plan; it is seen once more, by the command
 * right before it on the same connection. What somebody makes between the two
 * and no QEMU has open is lost: QMP has nothing that makes a file only if
 * there is none.
 */
static void make_on_look(struct act *act, const struct err *err, json_t *result)
{
    _cleanup_err_ struct err *error = NULL;
    (void)result;
    switch (target_there(err)) {
    case TARGET_ABSENT:
        act_command(act, make_on_started);
        return;
    case TARGET_THERE:
        (void)err_set(&error, -EEXIST, act_disk(act)->to,
                      "somebody has made it on the destination's host since"
                      " the plan: it is left alone");
        break;
    case TARGET_UNKNOWN:
        error = err_copy(err);
        break;
    }
    act_end(act, error);
}

static void make_on_leftover(struct act *act, const struct job_list *jobs)
{
    struct name id = act_name(act, NAME_CREATE);
    if (job_list_find(jobs, id.text) != NULL) {
        act_wait_jobs(act, make_on_jobs); /* an earlier try's reply was lost */
    } else {
        act_qmp(act, "blockdev-add",
                target_look_arguments(act_op_id(act), act_disk(act),
                                      path_of(act_disk(act))),
                make_on_look);
    }
}

/* The job stays until the end is recorded: so it proves whose the file is. */
void target_make(struct act *act)
{
    act_wait_jobs(act, make_on_leftover);
}

void target_dismiss(struct act *act)
{
    act_clear_job(act, NAME_CREATE, NULL);
}

/* --- and taken away --- */

/* What the way back knows; of the act's own. */
struct unmaking {
    bool made;
    bool job; /* to be dismissed */
    bool removed;
    unsigned tries;
};

/* What this QEMU has made outlives it. */
static void unmake_tell(struct act *act)
{
    const struct unmaking *unmaking = act_scratch(act, sizeof(*unmaking));
    if (!str_eq(act_step_name(act), "target-make")) {
        act_end(act, NULL); /* there is another try to come */
        return;
    }
    act_warn(act,
             "file '%s' %s on the destination's host: it was made for this"
             " migration and holds nothing that is needed; remove it there",
             path_of(act_disk(act)),
             unmaking->made ? "is left" : "may be left");
    act_end(act, NULL);
}

/*
 * QEMU cannot remove a file. But a socket that listens unlinks what has its
 * path, to take its place, and unlinks itself when it is closed (socket_listen
 * of util/qemu-sockets.c; 7.2 to 11.1). Only what this QEMU has made, and only
 * while it waits for the guest, goes that way.
 */
void target_unmake(struct act *act)
{
    struct unmaking *unmaking = act_scratch(act, sizeof(*unmaking));
    if (unmaking == NULL) {
        act_end(act, NULL);
        return;
    }
    *unmaking = (struct unmaking){
        .made = json_is_true(act_fact(act, "target-make", "made"))};
    if (json_is_true(act_fact(act, "target-stay", "removed"))) {
        act_end(act, NULL);
    } else if (vm_state(act_vm(act)) == VM_UP) {
        act_qmp(act, "qom-get", claim_holder_arguments(), unmake_on_claim);
    } else {
        unmake_tell(act);
    }
}

/*
 * A QEMU whose stream is cancelled ends by itself: it has to take away what it
 * made before that.
 */
void target_stay(struct act *act)
{
    act_end(act, NULL);
}

static void unmake_on_status(struct act *act, const struct err *err,
                             json_t *result)
{
    const char *status = json_string_value(json_object_get(result, "status"));
    if (err != NULL) {
        act_end(act, err);
    } else if (!str_eq(status, "inmigrate")) {
        unmake_tell(act); /* it may have the guest: the file stays */
    } else {
        unmake_look(act);
    }
}

static void unmake_on_claim(struct act *act, const struct err *err,
                            json_t *result)
{
    if (err != NULL && !str_eq(err->class, "DeviceNotFound")) {
        act_end(act, err);
    } else if (!str_eq(json_string_value(result), act_op_id(act))) {
        unmake_tell(act); /* another QEMU: the one that made it has ended */
    } else {
        act_qmp(act, "query-status", NULL, unmake_on_status);
    }
}

static void unmake_on_jobs(struct act *act, const struct err *err,
                           json_t *result)
{
    struct unmaking *unmaking = act_scratch(act, sizeof(*unmaking));
    struct name id = act_name(act, NAME_CREATE);
    const char *status = NULL;
    bool failed = false;
    size_t i;
    json_t *job;
    json_array_foreach(result, i, job) {
        if (str_eq(json_string_value(json_object_get(job, "id")), id.text)) {
            status = json_string_value(json_object_get(job, "status"));
            failed = json_object_get(job, "error") != NULL;
        }
    }
    if (err != NULL) {
        act_end(act, err);
        return;
    }
    if (status != NULL && !str_eq(status, "concluded")) {
        act_again(act, LOOK_AGAIN_MS, unmake_look);
        return;
    }
    unmaking->job = status != NULL;
    unmaking->made = unmaking->made || (status != NULL && !failed);
    if (unmaking->made) {
        unmake_listen(act);
    } else {
        /* A job that failed may have left an empty file, ours or not. */
        unmake_end(act, status == NULL);
    }
}

static void unmake_look(struct act *act)
{
    act_qmp(act, "query-jobs", NULL, unmake_on_jobs);
}

static void unmake_on_look(struct act *act, const struct err *err,
                           json_t *result)
{
    struct unmaking *unmaking = act_scratch(act, sizeof(*unmaking));
    bool removed = target_there(err) == TARGET_ABSENT;
    (void)result;
    if (!removed && ++unmaking->tries < TRIES_MAX) {
        unmake_listen(act);
    } else {
        unmake_end(act, removed);
    }
}

static void unmake_on_closed(struct act *act, const struct err *err,
                             json_t *result)
{
    (void)err; /* the look tells what has become of it */
    (void)result;
    act_qmp(act, "blockdev-add",
            target_look_arguments(act_op_id(act), act_disk(act),
                                  path_of(act_disk(act))),
            unmake_on_look);
}

static void unmake_on_listening(struct act *act, const struct err *err,
                                json_t *result)
{
    struct name id = act_name(act, NAME_UNLINK);
    (void)err; /* the path is too long for a socket, or it listens already */
    (void)result;
    act_qmp(act, "chardev-remove", json_pack("{s:s}", "id", id.text),
            unmake_on_closed);
}

static void unmake_listen(struct act *act)
{
    struct name id = act_name(act, NAME_UNLINK);
    act_qmp(act, "chardev-add",
            json_pack("{s:s, s:{s:s, s:{s:{s:s, s:{s:s}}, s:b, s:b}}}", "id",
                      id.text, "backend", "type", "socket", "data", "addr",
                      "type", "unix", "data", "path", path_of(act_disk(act)),
                      "server", 1, "wait", 0),
            unmake_on_listening);
}

static void unmake_on_dismissed(struct act *act, const struct err *err,
                                json_t *result)
{
    const struct unmaking *unmaking = act_scratch(act, sizeof(*unmaking));
    (void)result;
    if (err != NULL) {
        act_end(act, err);
    } else if (unmaking->removed) {
        act_set_facts(act, json_pack("{s:b}", "removed", 1));
        act_end(act, NULL);
    } else {
        unmake_tell(act);
    }
}

static void unmake_end(struct act *act, bool removed)
{
    struct unmaking *unmaking = act_scratch(act, sizeof(*unmaking));
    unmaking->removed = removed;
    if (unmaking->job) {
        struct name id = act_name(act, NAME_CREATE);
        act_qmp(act, "job-dismiss", json_pack("{s:s}", "id", id.text),
                unmake_on_dismissed);
    } else {
        unmake_on_dismissed(act, NULL, NULL);
    }
}

/* --- at the destination --- */

json_t *target_node_command(const char *op, const struct plan *plan,
                            const struct plan_disk *disk)
{
    (void)plan;
    struct name file = name_of(op, disk->index, NAME_FILE);
    struct name node = name_of(op, disk->index, NAME_TARGET);
    json_auto_t *nodes = disk_blockdevs(disk, file.text, node.text);
    if (plan_disk_keeps_base(disk)) {
        /* No other than the one that was compared. */
        (void)json_object_set_new(json_array_get(nodes, 1), "backing",
                                  json_string(disk->base));
    }
    return json_pack("{s:s, s:O}", "execute", "blockdev-add", "arguments",
                     json_array_get(nodes, 1));
}

void target_node_add(struct act *act)
{
    json_auto_t *command =
        target_node_command(act_op_id(act), act_plan(act), act_disk(act));
    json_t *args = json_object_get(command, "arguments");
    if (disk_loses_base(act)) {
        (void)json_object_set_new(args, "backing", json_null());
    }
    act_qmp(act, "blockdev-add", json_incref(args), NULL);
}

json_t *target_attach_command(const char *op, const struct plan *plan,
                              const struct plan_disk *disk)
{
    (void)op;
    (void)plan;
    _cleanup_free_ char *path = graph_device_path(disk->device);
    return json_pack("{s:s, s:{s:s, s:s, s:s}}", "execute", "qom-set",
                     "arguments", "path", path != NULL ? path : "", "property",
                     "drive", "value", disk->dst_node);
}

static bool is_attached(const struct act *act, const struct graph *graph)
{
    const struct plan_disk *disk = act_disk(act);
    const struct graph_device *device = graph_find_device(graph, disk->device);
    return device != NULL && device->root != NULL &&
           str_eq(device->root->name, disk->dst_node);
}

static void attach_on_graph(struct act *act, const struct err *err,
                            const struct graph *graph)
{
    if (err != NULL || is_attached(act, graph)) {
        act_end(act, err);
    } else {
        act_command(act, NULL);
    }
}

/*
 * Only once: QEMU aborts when a device is given the node that it has already
 * (7.2: "Assertion `old_bs != new_bs' failed").
 */
void target_attach(struct act *act)
{
    act_graph(act, attach_on_graph);
}

json_t *target_drop_command(const char *op, const struct plan *plan,
                            const struct plan_disk *disk)
{
    (void)op;
    (void)plan;
    return json_pack("{s:s, s:{s:s}}", "execute", "blockdev-del", "arguments",
                     "node-name", disk->placeholder);
}

static void drop_on_graph(struct act *act, const struct err *err,
                          const struct graph *graph)
{
    if (err != NULL ||
        graph_find_node(graph, act_disk(act)->placeholder) == NULL) {
        act_end(act, err);
    } else {
        act_command(act, NULL);
    }
}

void target_drop(struct act *act)
{
    act_graph(act, drop_on_graph);
}
