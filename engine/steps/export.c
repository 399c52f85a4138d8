/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "steps/export.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/err.h"
#include "base/str.h"
#include "policy/stall.h"
#include "run/claim.h"
#include "steps/act-on.h"
#include "steps/backlog.h"
#include "steps/tls.h"
#include "steps/transport.h"
#include "vm/vm.h"

enum { LOOK_AGAIN_MS = 20, PORT_MAX = 8 };

static void end_on_jobs(struct act *act, const struct job_list *jobs);

/* A base is exported for a while, beside its overlay: by another name. */
static struct name export_name(const struct act *act)
{
    bool base = str_starts(act_step_name(act), "base-");
    return act_name(act, base ? NAME_BASE : NAME_EXPORT);
}

bool export_is_copied(const struct plan *plan, const struct plan_disk *disk)
{
    for (unsigned i = 0; disk == NULL && i < plan->n_disks; i++) {
        if (str_eq(plan->disks[i].how, "nbd")) {
            return true;
        }
    }
    return disk != NULL && str_eq(disk->how, "nbd");
}

bool copy_is_wanted(const struct plan *plan, const struct plan_disk *disk)
{
    for (unsigned i = 0; disk == NULL && i < plan->n_disks; i++) {
        if (plan_disk_is_mirrored(&plan->disks[i])) {
            return true;
        }
    }
    return disk != NULL && plan_disk_is_mirrored(disk);
}

static json_t *inet(const struct plan *plan)
{
    char port[PORT_MAX];
    (void)snprintf(port, sizeof(port), "%" PRIu64, plan->export_port);
    return json_pack("{s:s, s:s}", "host", plan->address, "port", port);
}

/* Whether 'list' (query-block-exports) has the id, or any of ours if NULL. */
static bool has_export(const json_t *list, const char *id)
{
    size_t i;
    json_t *entry;
    json_array_foreach(list, i, entry) {
        const char *found = json_string_value(json_object_get(entry, "id"));
        if (id != NULL ? str_eq(found, id)
                       : found != NULL && name_is_ours(found)) {
            return true;
        }
    }
    return false;
}

/* --- the server --- */

json_t *server_command(const char *op, const struct plan *plan,
                       const struct plan_disk *disk)
{
    (void)disk;
    json_t *addr = transport_listen_address(plan);
    if (addr == NULL) {
        addr = json_pack("{s:s, s:o}", "type", "inet", "data", inet(plan));
    }
    json_t *args = json_pack("{s:o}", "addr", addr);
    if (tls_is_used(plan, NULL)) {
        (void)json_object_set_new(args, "tls-creds",
                                  json_string(name_once(op, NAME_TLS).text));
    }
    if (tls_has_authz(plan, NULL)) {
        (void)json_object_set_new(args, "tls-authz",
                                  json_string(name_once(op, NAME_AUTHZ).text));
    }
    return json_pack("{s:s, s:o}", "execute", "nbd-server-start", "arguments",
                     args);
}

/* How far it has come with finding a port that is free. */
struct serving {
    unsigned n; /* ports that were taken */
    bool cleared;
};

static void server_try(struct act *act);

static void server_on_stopped(struct act *act, const struct err *err,
                              json_t *result)
{
    (void)err; /* "not running" is as good */
    (void)result;
    server_try(act);
}

static uint64_t port_tried(struct act *act)
{
    const struct serving *serving = act_scratch(act, sizeof(*serving));
    return act_plan(act)->export_port + (serving != NULL ? serving->n : 0);
}

static void server_on_started(struct act *act, const struct err *err,
                              json_t *result)
{
    struct serving *serving = act_scratch(act, sizeof(*serving));
    (void)result;
    if (err == NULL) {
        act_set_facts(act,
                      json_pack("{s:I}", "port", (json_int_t)port_tried(act)));
        act_end(act, NULL);
    } else if (err->code != -EREMOTEIO || serving == NULL) {
        act_end(act, err);
    } else if (!serving->cleared) {
        /*
         * Perhaps one of ours runs from before a crash. A foreign one serves
         * nothing: the plan has refused a destination that has exports.
         */
        serving->cleared = true;
        act_qmp(act, "nbd-server-stop", NULL, server_on_stopped);
    } else if (!transport_has_sockets(act_plan(act), NULL) &&
               serving->n + 1 < act_plan(act)->export_ports) {
        serving->n++;
        server_try(act);
    } else {
        act_end(act, err);
    }
}

static void server_try(struct act *act)
{
    json_auto_t *command = server_command(act_op_id(act), act_plan(act), NULL);
    json_t *args = json_object_get(command, "arguments");
    json_t *data = json_object_get(json_object_get(args, "addr"), "data");
    if (!transport_has_sockets(act_plan(act), NULL)) {
        _cleanup_free_ char *port = str_printf("%" PRIu64, port_tried(act));
        (void)json_object_set_new(data, "port", json_string(port));
    }
    act_qmp(act, "nbd-server-start", json_incref(args), server_on_started);
}

void server_start(struct act *act)
{
    server_try(act);
}

json_t *server_stop_command(const char *op, const struct plan *plan,
                            const struct plan_disk *disk)
{
    (void)op;
    (void)plan;
    (void)disk;
    return json_pack("{s:s}", "execute", "nbd-server-stop");
}

static void stop_look(struct act *act);

static void stop_on_exports(struct act *act, const struct err *err,
                            json_t *result)
{
    if (err != NULL || !has_export(result, NULL)) {
        act_end(act, err);
    } else {
        act_again_on_event(act, LOOK_AGAIN_MS, stop_look);
    }
}

static void stop_look(struct act *act)
{
    act_qmp(act, "query-block-exports", NULL, stop_on_exports);
}

static void stop_on_reply(struct act *act, const struct err *err,
                          json_t *result)
{
    (void)err; /* not running: the exports tell */
    (void)result;
    stop_look(act);
}

/* A writable export that is left would go on writing under the guest. */
void server_stop(struct act *act)
{
    act_qmp(act, "nbd-server-stop", NULL, stop_on_reply);
}

void server_undo(struct act *act)
{
    claim_if_ours(act, server_stop);
}

/* --- an export --- */

static json_t *export_of(const char *op, const struct plan_disk *disk,
                         const char *node)
{
    struct name id = name_of(op, disk->index, NAME_EXPORT);
    return json_pack("{s:s, s:{s:s, s:s, s:s, s:s, s:b}}", "execute",
                     "block-export-add", "arguments", "type", "nbd", "id",
                     id.text, "node-name", node, "name", id.text, "writable",
                     1);
}

json_t *export_command(const char *op, const struct plan *plan,
                       const struct plan_disk *disk)
{
    (void)plan;
    json_t *command = export_of(op, disk, disk->dst_node);
    if (json_is_object(disk->linked) && !disk->attach) {
        /* Whether it holds something itself is asked by this. */
        (void)json_object_set_new(json_object_get(command, "arguments"),
                                  "allocation-depth", json_true());
    }
    return command;
}

json_t *export_base_command(const char *op, const struct plan *plan,
                            const struct plan_disk *disk)
{
    (void)plan;
    struct name id = name_of(op, disk->index, NAME_BASE);
    return json_pack("{s:s, s:{s:s, s:s, s:s, s:s, s:b}}", "execute",
                     "block-export-add", "arguments", "type", "nbd", "id",
                     id.text, "node-name", disk->base, "name", id.text,
                     "writable", 0);
}

void export_add(struct act *act)
{
    act_command(act, NULL);
}

static void export_look(struct act *act);

static void del_on_reply(struct act *act, const struct err *err, json_t *result)
{
    (void)err; /* it may be going already: the next look tells */
    (void)result;
    act_again_on_event(act, LOOK_AGAIN_MS, export_look);
}

static void del_on_exports(struct act *act, const struct err *err,
                           json_t *result)
{
    struct name id = export_name(act);
    if (err != NULL || !has_export(result, id.text)) {
        act_end(act, err);
    } else {
        act_qmp(act, "block-export-del",
                json_pack("{s:s, s:s}", "id", id.text, "mode", "hard"),
                del_on_reply);
    }
}

static void export_look(struct act *act)
{
    act_qmp(act, "query-block-exports", NULL, del_on_exports);
}

void export_del(struct act *act)
{
    export_look(act);
}

static void probe_on_exports(struct act *act, const struct err *err,
                             json_t *result)
{
    struct name id = export_name(act);
    act_probed(act, err != NULL                   ? PROBE_UNKNOWN
                    : has_export(result, id.text) ? PROBE_DONE
                                                  : PROBE_NOT_DONE);
}

void export_probe(struct act *act)
{
    act_qmp(act, "query-block-exports", NULL, probe_on_exports);
}

int export_uri(struct act *act, enum name_what what, char **ret,
               struct err **errp)
{
    const struct plan *plan = act_plan(act);
    struct name name = act_name(act, what);
    const json_t *port = act_fact(act, "server", "port");
    _cleanup_free_ char *path = NULL;
    if (transport_has_sockets(plan, NULL)) {
        int r = transport_path(act, TRANSPORT_EXPORTS, &path, errp);
        if (r < 0) {
            return r;
        }
        *ret = str_printf("nbd+unix:///%s?socket=%s", name.text, path);
    } else {
        bool numbers = strchr(plan->address, ':') != NULL; /* IPv6 */
        *ret = str_printf("nbd://%s%s%s:%" PRIu64 "/%s", numbers ? "[" : "",
                          plan->address, numbers ? "]" : "",
                          json_is_integer(port)
                              ? (uint64_t)json_integer_value(port)
                              : plan->export_port,
                          name.text);
    }
    return *ret != NULL
               ? 0
               : err_set(errp, -ENOMEM, plan->address, "out of memory");
}

/* --- active for good --- */

json_t *export_activate_command(const char *op, const struct plan *plan,
                                const struct plan_disk *disk)
{
    (void)plan;
    return export_of(op, disk, name_of(op, disk->index, NAME_FILE).text);
}

/* Why it was refused. */
struct activating {
    char desc[256];
};

static void activate_on_exports(struct act *act, const struct err *err,
                                json_t *result)
{
    const struct activating *activating = act_scratch(act, sizeof(*activating));
    struct name id = act_name(act, NAME_EXPORT);
    _cleanup_err_ struct err *error = NULL;
    if (err == NULL && !has_export(result, id.text)) {
        (void)err_set_qmp(&error, act_disk(act)->disk, "block-export-add",
                          "GenericError", activating->desc);
        err = error;
    }
    if (err != NULL) {
        act_end(act, err);
    } else {
        export_look(act); /* from before a crash: it has done its work */
    }
}

static void activate_on_added(struct act *act, const struct err *err,
                              json_t *result)
{
    struct activating *activating = act_scratch(act, sizeof(*activating));
    (void)result;
    if (err == NULL) {
        export_look(act);
    } else if (err->code != -EREMOTEIO || activating == NULL) {
        act_end(act, err);
    } else {
        (void)snprintf(activating->desc, sizeof(activating->desc), "%s",
                       err->desc != NULL ? err->desc : "");
        act_qmp(act, "query-block-exports", NULL, activate_on_exports);
    }
}

/*
 * What a waiting QEMU opens is inactive: "Block node is read-only", says a
 * job that is to write metadata. An export makes it active, and its end not
 * inactive again; blockdev-set-active would do that only since 10.0.
 */
void export_activate(struct act *act)
{
    act_command(act, activate_on_added);
}

/* --- the source's node --- */

json_t *client_command(const char *op, const struct plan *plan,
                       const struct plan_disk *disk)
{
    struct name node = name_of(op, disk->index, NAME_TARGET);
    struct name id = name_of(op, disk->index, NAME_EXPORT);
    bool by_socket = transport_has_sockets(plan, NULL);
    json_t *server =
        by_socket ? json_pack("{s:s}", "path",
                              transport_planned_path(plan, TRANSPORT_EXPORTS))
                  : inet(plan);
    (void)json_object_set_new(server, "type",
                              json_string(by_socket ? "unix" : "inet"));
    /*
     * A peer that is away must fail the job at once, not hold up every drain
     * (reconnect-delay 0); zeroes go as zeroes.
     */
    json_t *args = json_pack("{s:s, s:s, s:o, s:s, s:s, s:s, s:i}", "driver",
                             "nbd", "node-name", node.text, "server", server,
                             "export", id.text, "discard", "unmap",
                             "detect-zeroes", "unmap", "reconnect-delay", 0);
    if (tls_is_used(plan, NULL)) {
        (void)json_object_set_new(args, "tls-creds",
                                  json_string(name_once(op, NAME_TLS).text));
    }
    if (tls_is_used(plan, NULL) && *plan->tls_hostname != '\0') {
        (void)json_object_set_new(args, "tls-hostname",
                                  json_string(plan->tls_hostname));
    }
    return json_pack("{s:s, s:o}", "execute", "blockdev-add", "arguments",
                     args);
}

static void client_on_added(struct act *act, const struct err *err,
                            json_t *result)
{
    _cleanup_err_ struct err *error = err_copy(err);
    (void)result;
    tls_hint(act_plan(act), &error);
    act_end(act, error);
}

void client_add(struct act *act)
{
    json_auto_t *command =
        client_command(act_op_id(act), act_plan(act), act_disk(act));
    json_t *args = json_object_get(command, "arguments");
    json_t *server = json_object_get(args, "server");
    const json_t *port = act_fact(act, "server", "port");
    _cleanup_free_ char *path = NULL;
    _cleanup_err_ struct err *err = NULL;
    if (transport_has_sockets(act_plan(act), NULL)) {
        if (transport_path(act, TRANSPORT_EXPORTS, &path, &err) < 0) {
            act_end(act, err);
            return;
        }
        (void)json_object_set_new(server, "path", json_string(path));
    } else if (json_is_integer(port)) {
        (void)json_object_set_new(
            server, "port",
            json_sprintf("%" JSON_INTEGER_FORMAT, json_integer_value(port)));
    }
    act_qmp(act, "blockdev-add", json_incref(args), client_on_added);
}

void client_del(struct act *act)
{
    act_delete_node(act, NAME_TARGET);
}

void client_probe(struct act *act)
{
    act_probe_node(act, NAME_TARGET);
}

/* --- is it still what was planned? --- */

static int check_copy(const struct plan_disk *disk, const struct job *job,
                      struct err **errp)
{
    int r =
        job != NULL ? job_check(job, disk->disk, "blockdev-mirror", errp) : 0;
    if (r < 0) {
        return r;
    }
    if (job == NULL ||
        (job->status != JOB_READY && job->status != JOB_STANDBY)) {
        return err_set(errp, -ESTALE, disk->disk,
                       "the mirror was ended by somebody else: it is '%s'",
                       job != NULL ? job_status_name(job->status) : "gone");
    }
    return 0;
}

int copy_stalls(const struct act *act, const struct plan_disk *disk,
                const struct job *job, struct stall *stall, struct err **errp)
{
    if (!str_eq(disk->how, "nbd") || job == NULL || job->status != JOB_READY ||
        job->len <= job->offset) {
        stall_reset(stall);
        return 0;
    }
    uint64_t ms = stall_sample(stall, act_now_ms(act), job->offset);
    if (ms < act_plan(act)->command_timeout_ms) {
        return 0;
    }
    return err_set(errp, -ETIMEDOUT, disk->disk,
                   "what the guest has written is not copied since %u s: the"
                   " link to the destination is cut, or its storage stands"
                   " still",
                   (unsigned)(ms / 1000));
}

int copy_jobs_move(const struct act *act, const struct job_list *jobs,
                   struct stall *stalls, struct err **errp)
{
    const struct plan *plan = act_plan(act);
    int r = copy_jobs_check(act, jobs, errp);
    for (unsigned i = 0; r == 0 && i < plan->n_disks; i++) {
        struct name id = name_of(act_op_id(act), i, NAME_MIRROR);
        r = copy_stalls(act, &plan->disks[i], job_list_find(jobs, id.text),
                        &stalls[i], errp);
    }
    return r;
}

int copy_jobs_check(const struct act *act, const struct job_list *jobs,
                    struct err **errp)
{
    const struct plan *plan = act_plan(act);
    int r = 0;
    for (unsigned i = 0; i < jobs->n_jobs; i++) {
        if (!name_is_ours(jobs->jobs[i].id)) {
            return err_set(errp, -EBUSY, vm_name(act_vm(act)),
                           "job '%s' of somebody else works on it",
                           jobs->jobs[i].id);
        }
    }
    for (unsigned i = 0; r == 0 && i < plan->n_disks; i++) {
        struct name id = name_of(act_op_id(act), i, NAME_MIRROR);
        if (plan_disk_is_mirrored(&plan->disks[i])) {
            r = check_copy(&plan->disks[i], job_list_find(jobs, id.text), errp);
        }
    }
    return r;
}

static void check_on_jobs(struct act *act, const struct job_list *jobs)
{
    _cleanup_err_ struct err *err = NULL;
    (void)copy_jobs_check(act, jobs, &err);
    act_end(act, err);
}

static void check_on_graph(struct act *act, const struct err *err,
                           const struct graph *graph)
{
    const struct plan *plan = act_plan(act);
    _cleanup_err_ struct err *error = err_copy(err);
    for (unsigned i = 0; error == NULL && i < plan->n_disks; i++) {
        if (!str_eq(plan->disks[i].how, "skip")) {
            (void)disk_is_as_planned(graph, &plan->disks[i], &error);
        }
    }
    if (error != NULL) {
        act_end(act, error);
    } else {
        act_wait_jobs(act, check_on_jobs);
    }
}

void copy_check(struct act *act)
{
    act_graph(act, check_on_graph);
}

/* --- the end of a copy: the guest stands still --- */

struct ending {
    uint64_t since_ms;
    bool asked;
};

json_t *copy_end_command(const char *op, const struct plan *plan,
                         const struct plan_disk *disk)
{
    (void)plan;
    struct name id = name_of(op, disk->index, NAME_MIRROR);
    struct name node = name_of(op, disk->index, NAME_TARGET);
    json_t *commands = json_pack(
        "[{s:s, s:{s:s, s:b}}, {s:s, s:{s:s}}, {s:s, s:{s:s}}]", "execute",
        "block-job-cancel", "arguments", "device", id.text, "force", 0,
        "execute", "job-dismiss", "arguments", "id", id.text, "execute",
        "blockdev-del", "arguments", "node-name", node.text);
    if (str_eq(disk->how, "direct")) {
        struct name file = name_of(op, disk->index, NAME_FILE);
        (void)json_array_append_new(
            commands, json_pack("{s:s, s:{s:s}}", "execute", "blockdev-del",
                                "arguments", "node-name", file.text));
    }
    return commands;
}

void copy_end(struct act *act)
{
    struct ending *ending = act_scratch(act, sizeof(*ending));
    if (ending != NULL) {
        ending->since_ms = act_now_ms(act);
    }
    act_wait_jobs(act, end_on_jobs);
}

static void end_on_asked(struct act *act, const struct err *err, json_t *result)
{
    (void)result;
    if (err != NULL) {
        act_end(act, err);
    } else {
        act_wait_jobs(act, end_on_jobs);
    }
}

static void end_node(struct act *act, enum name_what what, act_reply_fn *then)
{
    struct name name = act_name(act, what);
    act_qmp(act, "blockdev-del", json_pack("{s:s}", "node-name", name.text),
            then);
}

static void end_on_deleted(struct act *act, const struct err *err,
                           json_t *result)
{
    (void)result;
    if (err != NULL) {
        act_end(act, err);
    } else {
        end_node(act, NAME_FILE, NULL);
    }
}

/* What the destination is about to use is closed here first, to the bottom. */
static void end_on_dismissed(struct act *act, const struct err *err,
                             json_t *result)
{
    bool direct = str_eq(act_disk(act)->how, "direct");
    (void)result;
    if (err != NULL) {
        act_end(act, err);
    } else {
        end_node(act, NAME_TARGET, direct ? end_on_deleted : NULL);
    }
}

/*
 * block-job-cancel without force, of a READY job, is a last sync and a clean
 * end; of any other job it would be an abort (qapi/block-core.json). Only a
 * job that is concluded without an error has written everything.
 */
static void end_on_jobs(struct act *act, const struct job_list *jobs)
{
    struct ending *ending = act_scratch(act, sizeof(*ending));
    const struct plan_disk *disk = act_disk(act);
    struct name id = act_name(act, NAME_MIRROR);
    const struct job *job = job_list_find(jobs, id.text);
    uint64_t limit = act_plan(act)->freeze_limit_ms;
    _cleanup_err_ struct err *err = NULL;
    if (ending == NULL || job == NULL) {
        (void)err_set(&err, -ENOENT, disk->disk,
                      "the mirror job has vanished from QEMU");
    } else if (job_check(job, disk->disk, "blockdev-mirror", &err) < 0) {
        /* told */
    } else if (job->status == JOB_CONCLUDED && !ending->asked) {
        /* The guest may have written since: the copy is of an earlier time. */
        (void)err_set(&err, -ESTALE, disk->disk,
                      "the mirror was ended by somebody else");
    } else if (job->status == JOB_CONCLUDED) {
        act_qmp(act, "job-dismiss", json_pack("{s:s}", "id", id.text),
                end_on_dismissed);
        return;
    } else if (act_now_ms(act) - ending->since_ms > limit) {
        (void)err_set(&err, -ETIMEDOUT, disk->disk,
                      "the copy did not end within the freeze limit of %u ms",
                      (unsigned)limit);
    }
    bool ready = err == NULL && job->status == JOB_READY;
    if (ready && !ending->asked) {
        (void)backlog_check(act, job, &err);
    }
    if (err != NULL) {
        act_end(act, err);
    } else if (ready && !ending->asked) {
        ending->asked = true;
        act_qmp(act, "block-job-cancel",
                json_pack("{s:s, s:b}", "device", id.text, "force", 0),
                end_on_asked);
    }
}
