/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "operations/migrate-plan.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/err.h"
#include "base/str.h"
#include "operations/migrate-options.h"
#include "qmp/qmp.h"
#include "qpivot.h"
#include "steps/backlog.h"
#include "steps/persist.h"
#include "vm/graph.h"
#include "vm/vm.h"

enum {
    FREEZE_LIMIT_MS = 5000,
    DOWNTIME_LIMIT_MS = 300, /* QEMU's default */
    COMMAND_TIMEOUT_MS = 30000,
    TARGET_TIMEOUT_MS = 300000,
    N_DISKS_MAX = 64,
    PORT_FIRST = 61000, /* above what Linux gives to clients by itself */
    N_PORTS = 4096,
    PORTS_TRIED = 16, /* it is the destination's host that knows what is free */
};

/* QEMU's default of 128 MiB/s would be the limit of any fast network. */
static const json_int_t no_limit = (json_int_t)1 << 40;

static int copy_texts(const struct qpivot_migrate_options *options,
                      struct plan *plan, struct migrate_request *request);
static void emit_plan(struct op *op);

/* --- the request --- */

int migrate_request_new(const struct qpivot_migrate_options *options,
                        struct plan **ret_plan, struct migrate_request **ret,
                        struct err **errp)
{
    if (options->n_disks > N_DISKS_MAX) {
        return err_set(errp, -EINVAL, "migrate", "at most %d disks, not %u",
                       N_DISKS_MAX, options->n_disks);
    }
    for (unsigned i = 0; i < options->n_disks; i++) {
        int r = migrate_target_check(options->disks[i].disk,
                                     options->disks[i].target, errp);
        if (r < 0) {
            return r;
        }
    }
    _cleanup_(plan_freep) struct plan *plan = NULL;
    struct migrate_request *request = calloc(1, sizeof(*request));
    if (request == NULL || plan_new("migrate", 0, &plan) < 0 ||
        copy_texts(options, plan, request) < 0) {
        migrate_request_free(request);
        return err_set(errp, -ENOMEM, "migrate", "out of memory");
    }
    bool suspends = (options->flags & QPIVOT_TIMEOUT_SUSPENDS) != 0;
    bool postcopies = (options->flags & QPIVOT_TIMEOUT_POSTCOPIES) != 0;
    plan->timeout_ms = suspends || postcopies ? 0 : options->timeout_ms;
    plan->postcopy = (options->flags & QPIVOT_POSTCOPY) != 0;
    plan->postcopy_ms = postcopies ? options->timeout_ms : 0;
    plan->suspend_ms = suspends ? options->timeout_ms : 0;
    plan->suspend = (options->flags & QPIVOT_SUSPEND) != 0;
    plan->tunnel = (options->flags & QPIVOT_TUNNEL) != 0;
    plan->quit_source = (options->flags & QPIVOT_KEEP_SOURCE) == 0;
    plan->export_port = options->export_port;
    plan->freeze_limit_ms = options->freeze_limit_ms != 0
                                ? options->freeze_limit_ms
                                : FREEZE_LIMIT_MS;
    plan->command_timeout_ms = options->command_timeout_ms != 0
                                   ? options->command_timeout_ms
                                   : COMMAND_TIMEOUT_MS;
    plan->copy_mode = QPIVOT_COPY_AUTO;
    plan->target_timeout_ms = TARGET_TIMEOUT_MS;
    request->flags = options->flags;
    request->sync = options->sync;
    request->bandwidth = options->bandwidth;
    request->downtime_limit_ms = options->downtime_limit_ms;
    request->multifd = options->multifd;
    request->xbzrle_cache = options->xbzrle_cache;
    request->asked = migrate_options_asked(options);
    request->notes = json_array();
    request->empty = json_array();
    request->src = json_object();
    request->dst = json_object();
    *ret_plan = TAKE_PTR(plan);
    *ret = request;
    return 0;
}

void migrate_request_free(void *data)
{
    struct migrate_request *request = data;
    if (request == NULL) {
        return;
    }
    for (unsigned i = 0; request->wants != NULL && i < request->n_wants; i++) {
        free(request->wants[i].disk);
        free(request->wants[i].how);
    }
    free(request->wants);
    free(request->looks);
    json_decref(request->notes);
    json_decref(request->empty);
    json_decref(request->src);
    json_decref(request->dst);
    free(request);
}

static char *dup_text(const char *text)
{
    return strdup(text != NULL ? text : "");
}

static int copy_texts(const struct qpivot_migrate_options *options,
                      struct plan *plan, struct migrate_request *request)
{
    plan->qmp = qmp_addr_absolute(options->qmp);
    plan->dst_qmp = qmp_addr_absolute(options->to);
    plan->address = dup_text(options->address);
    plan->emit_config = options->emit_config != NULL
                            ? persist_absolute(options->emit_config)
                            : dup_text(NULL);
    plan->persist_hook = dup_text(options->persist_hook);
    plan->space_hook = dup_text(NULL);
    plan->stream_socket = dup_text(NULL);
    plan->export_socket = dup_text(NULL);
    plan->tls_dir = dup_text(options->tls_dir);
    plan->tls_dir_to = dup_text(
        options->tls_dir_to != NULL ? options->tls_dir_to : options->tls_dir);
    plan->tls_hostname = dup_text(options->tls_hostname);
    plan->tls_authz = dup_text(options->tls_authz);
    request->wants = calloc(options->n_disks + 1, sizeof(*request->wants));
    if (plan->qmp == NULL || plan->dst_qmp == NULL || plan->address == NULL ||
        plan->emit_config == NULL || plan->persist_hook == NULL ||
        plan->space_hook == NULL || plan->tls_dir == NULL ||
        plan->stream_socket == NULL || plan->export_socket == NULL ||
        plan->tls_dir_to == NULL || plan->tls_hostname == NULL ||
        plan->tls_authz == NULL || request->wants == NULL) {
        return -ENOMEM;
    }
    request->n_wants = options->n_disks;
    for (unsigned i = 0; i < options->n_disks; i++) {
        request->wants[i].disk = dup_text(options->disks[i].disk);
        request->wants[i].how = dup_text(options->disks[i].target);
        if (request->wants[i].disk == NULL || request->wants[i].how == NULL) {
            return -ENOMEM;
        }
    }
    return 0;
}

/* --- looking --- */

/* What is asked of both; the replies are kept by these names. */
static const char *const looks[] = {
    "query-status",
    "query-migrate",
    "query-migrate-capabilities",
    "query-migrate-parameters",
    "query-memory-size-summary",
    "query-jobs",
    "query-block-exports",
    "query-tpm", /* an error in a QEMU that was built without */
    "qom-get",   /* the machine's type */
};

struct looking {
    unsigned next;
};

static void look_next(struct act *act);

static void look_on_reply(struct act *act, const struct err *err,
                          json_t *result)
{
    struct looking *looking = act_scratch(act, sizeof(*looking));
    struct migrate_request *request = op_request(act_op(act));
    bool dst = act_vm(act) == act_dst_vm(act);
    if (err == NULL) {
        (void)json_object_set(dst ? request->dst : request->src,
                              looks[looking->next], result);
    }
    looking->next++;
    look_next(act);
}

static void look_next(struct act *act)
{
    const struct looking *looking = act_scratch(act, sizeof(*looking));
    if (looking == NULL || looking->next >= ARRAY_SIZE(looks)) {
        act_end(act, NULL);
        return;
    }
    const char *command = looks[looking->next];
    json_t *args =
        str_eq(command, "qom-get")
            ? json_pack("{s:s, s:s}", "path", "/machine", "property", "type")
            : NULL;
    act_qmp(act, command, args, look_on_reply);
}

void migrate_look(struct act *act)
{
    look_next(act);
}

/* Whether the user named this device, and how it is to go; or NULL. */
static const char *wanted(struct op *op, const struct graph *graph,
                          const struct graph_device *device)
{
    struct migrate_request *request = op_request(op);
    const char *how = NULL;
    for (unsigned i = 0; i < request->n_wants; i++) {
        _cleanup_graph_disk_ struct graph_disk *found = NULL;
        if (graph_find_disk(graph, request->wants[i].disk, &found, NULL) == 0 &&
            found->device == device) {
            request->wants[i].met = true;
            how = request->wants[i].how;
        }
    }
    return how;
}

static int fill_disk(struct plan_disk *disk, const struct graph *graph,
                     const struct graph_disk *found, const char *how,
                     bool can_switch)
{
    struct volume *volume = NULL;
    disk->disk = dup_text(found->device->label);
    disk->device = dup_text(found->device->key);
    disk->drive = dup_text(found->device->drive);
    disk->root =
        dup_text(*disk->drive != '\0' ? disk->drive : found->root->name);
    disk->replaces = dup_text(NULL);
    disk->active = dup_text(found->active->name);
    disk->protocol = dup_text(found->protocol->name);
    (void)volume_from_node(found->protocol->driver, found->protocol->filename,
                           &volume);
    disk->from =
        dup_text(volume != NULL ? volume->uri : found->protocol->filename);
    volume_free(volume);
    disk->from_format = dup_text(found->format);
    disk->source_identity = dup_text(NULL);
    disk->before = graph_disk_facts(graph, found);
    /* What mirror_start() compares: nobody may have changed it meanwhile. */
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
    disk->bitmaps = migrate_bitmaps_of(found->active);
    disk->known_bitmaps = json_array();
    for (unsigned i = 0; i < found->active->n_bitmaps; i++) {
        (void)json_array_append_new(
            disk->known_bitmaps, json_string(found->active->bitmaps[i].name));
    }
    disk->size = found->size;
    disk->target_size = found->size;
    bool target = how != NULL && migrate_is_target(how);
    disk->to = dup_text(target ? how : NULL);
    disk->format = dup_text(NULL);
    disk->legacy_name = dup_text(NULL);
    disk->sync = dup_text("full");
    disk->reason = dup_text(NULL);
    disk->copy_mode = dup_text(backlog_copy_mode(can_switch));
    disk->may_write_block = true;
    disk->how = dup_text(target ? NULL : how);
    disk->dst_node = dup_text(NULL);
    disk->placeholder = dup_text(NULL);
    return disk->disk != NULL && disk->device != NULL && disk->root != NULL &&
                   disk->how != NULL && disk->from != NULL &&
                   disk->before != NULL
               ? 0
               : -ENOMEM;
}

/* A drive without a medium, or without a device, has nothing to go over. */
static bool is_disk(struct op *op, const struct graph_device *device)
{
    struct migrate_request *request = op_request(op);
    if (device->qdev == NULL && device->id == NULL) {
        migrate_note(request, "%s: no device uses it: skipped", device->label);
        return false;
    }
    if (device->empty || device->root == NULL) {
        migrate_note(request, "%s: no medium: skipped", device->label);
        (void)json_array_append_new(request->empty, json_string(device->key));
        return false;
    }
    return true;
}

static void source_on_graph(struct act *act, const struct err *err,
                            const struct graph *graph)
{
    struct op *op = act_op(act);
    struct migrate_request *request = op_request(op);
    unsigned n = 0, at = 0;
    if (err != NULL) {
        op_problem(op, err_copy(err));
        act_end(act, NULL);
        return;
    }
    const struct graph_device *devices = graph_devices(graph, &n);
    bool can_switch = qmp_schema_has_arg(
        vm_schema(op_vm(op)), "block-job-change", "type=mirror.copy-mode");
    unsigned n_disks = 0;
    for (unsigned i = 0; i < n; i++) {
        n_disks += is_disk(op, &devices[i]);
    }
    request->looks = calloc(n_disks + 1, sizeof(*request->looks));
    if (request->looks == NULL || n_disks > N_DISKS_MAX ||
        op_set_disks(op, n_disks) < 0) {
        migrate_problem(op, -E2BIG, "source", "%u disks are too many", n_disks);
        n_disks = 0;
    }
    for (unsigned i = 0; i < n && at < n_disks; i++) {
        struct err *error = NULL;
        _cleanup_graph_disk_ struct graph_disk *found = NULL;
        if (devices[i].empty || devices[i].root == NULL ||
            (devices[i].qdev == NULL && devices[i].id == NULL)) {
            continue;
        }
        struct plan_disk *disk = &op_plan(op)->disks[at++];
        if (graph_disk(graph, &devices[i], &found, &error) < 0) {
            op_problem(op, error);
        } else if (fill_disk(disk, graph, found, wanted(op, graph, &devices[i]),
                             can_switch) < 0) {
            migrate_problem(op, -ENOMEM, devices[i].label, "out of memory");
        } else {
            migrate_check_source(op, disk, found);
            migrate_look_base(op, disk, found);
        }
    }
    for (unsigned i = 0; i < request->n_wants; i++) {
        if (!request->wants[i].met) {
            migrate_problem(op, -ENOENT, request->wants[i].disk,
                            "the source has no such disk");
        }
    }
    act_end(act, NULL);
}

void migrate_look_source(struct act *act)
{
    act_graph(act, source_on_graph);
}

static void destination_on_graph(struct act *act, const struct err *err,
                                 const struct graph *graph)
{
    if (err != NULL) {
        op_problem(act_op(act), err_copy(err));
    } else {
        migrate_match_disks(act_op(act), graph);
    }
    act_end(act, NULL);
}

void migrate_look_destination(struct act *act)
{
    act_graph(act, destination_on_graph);
}

/* --- deciding --- */

/* Where the source finds the destination. */
static void decide_address(struct op *op)
{
    struct plan *plan = op_plan(op);
    struct qmp_addr *src = NULL, *dst = NULL;
    if (*plan->address == '\0' && qmp_addr_parse(plan->qmp, &src, NULL) == 0 &&
        qmp_addr_parse(plan->dst_qmp, &dst, NULL) == 0) {
        const char *host = qmp_addr_host(dst);
        if (host == NULL && qmp_addr_is_unix(src) && qmp_addr_is_unix(dst)) {
            host = "127.0.0.1"; /* both are on this host */
        }
        free(plan->address);
        plan->address = dup_text(host);
    }
    qmp_addr_free(src);
    qmp_addr_free(dst);
    if (plan->address == NULL || *plan->address == '\0') {
        migrate_problem(op, -EINVAL, plan->dst_qmp,
                        "does not tell where the source reaches the"
                        " destination: name it by --address");
    }
}

static const json_t *former_capability(const json_t *list, const char *name)
{
    size_t i;
    json_t *entry;
    json_array_foreach(list, i, entry) {
        if (str_eq(json_string_value(json_object_get(entry, "capability")),
                   name)) {
            return entry;
        }
    }
    return NULL;
}

static json_t *former_settings(const struct plan *plan, const json_t *replies)
{
    json_t *capabilities = json_array(), *parameters = json_object();
    const json_t *had = json_object_get(replies, "query-migrate-capabilities");
    size_t i;
    json_t *entry, *value;
    const char *name;
    json_array_foreach(plan->capabilities, i, entry) {
        const json_t *before = former_capability(
            had, json_string_value(json_object_get(entry, "capability")));
        if (before != NULL) {
            (void)json_array_append(capabilities, (json_t *)(uintptr_t)before);
        }
    }
    json_object_foreach(plan->parameters, name, value) {
        json_t *before = json_object_get(
            json_object_get(replies, "query-migrate-parameters"), name);
        (void)json_object_set(parameters, name, before);
    }
    json_t *mapping =
        json_object_get(json_object_get(replies, "query-migrate-parameters"),
                        "block-bitmap-mapping");
    return json_pack("{s:o, s:o, s:O*}", "capabilities", capabilities,
                     "parameters", parameters, "mapping", mapping);
}

void migrate_want_capability(struct op *op, const char *name, bool needed)
{
    struct migrate_request *request = op_request(op);
    const char *key = "query-migrate-capabilities";
    bool src = former_capability(json_object_get(request->src, key), name);
    bool dst = former_capability(json_object_get(request->dst, key), name);
    if (src && dst) {
        (void)json_array_append_new(
            op_plan(op)->capabilities,
            json_pack("{s:s, s:b}", "capability", name, "state", 1));
    } else if (needed) {
        migrate_problem(op, -ENOTSUP, name, "%s has no such capability",
                        src ? "the destination" : "the source");
    }
}

/* QEMU's own where the user names none: the disks must fit into it, too. */
static json_int_t downtime_limit_of(const struct migrate_request *request)
{
    const json_t *now =
        json_object_get(request->src, "query-migrate-parameters");
    json_int_t ms = json_integer_value(json_object_get(now, "downtime-limit"));
    return request->downtime_limit_ms != 0 ? request->downtime_limit_ms
           : ms > 0                        ? ms
                                           : DOWNTIME_LIMIT_MS;
}

static void decide_settings(struct op *op)
{
    struct plan *plan = op_plan(op);
    const struct migrate_request *request = op_request(op);
    plan->capabilities = json_array();
    plan->parameters = json_object();
    migrate_want_capability(op, "events", true);
    migrate_want_capability(op, "return-path", true);
    migrate_want_capability(op, "pause-before-switchover", true);
    /* Else QEMU 7.2 takes the locks of shared images before 'cont'. */
    migrate_want_capability(op, "late-block-activate", false);
    migrate_want_bitmaps(op);
    if ((request->flags & QPIVOT_AUTO_CONVERGE) != 0) {
        migrate_want_capability(op, "auto-converge", true);
    }
    if (request->multifd != 0) {
        migrate_want_capability(op, "multifd", true);
        (void)json_object_set_new(plan->parameters, "multifd-channels",
                                  json_integer(request->multifd));
    }
    (void)json_object_set_new(plan->parameters, "max-bandwidth",
                              json_integer(request->bandwidth != 0
                                               ? (json_int_t)request->bandwidth
                                               : no_limit));
    (void)json_object_set_new(plan->parameters, "downtime-limit",
                              json_integer(downtime_limit_of(request)));
    migrate_option_settings(op);
    plan->src_before = former_settings(plan, request->src);
    plan->dst_before = former_settings(plan, request->dst);
}

/* A port of the operation's own, unless the user names one. */
static void decide_copies(struct op *op)
{
    struct plan *plan = op_plan(op);
    const struct migrate_request *request = op_request(op);
    unsigned n_copied = 0;
    for (unsigned i = 0; i < plan->n_disks; i++) {
        n_copied += plan_disk_is_mirrored(&plan->disks[i]);
    }
    if (n_copied > 0 && request->bandwidth != 0) {
        plan->speed = request->bandwidth / n_copied;
    }
    uint64_t hash = 0;
    for (const char *c = op_id(op); *c != '\0'; c++) {
        hash = hash * 37 + (unsigned char)*c;
    }
    if (plan->export_port == 0) {
        plan->export_port = PORT_FIRST + hash % N_PORTS;
        plan->export_ports = PORTS_TRIED;
    }
}

void migrate_decide(struct op *op)
{
    struct plan *plan = op_plan(op);
    const struct migrate_request *request = op_request(op);
    plan->qemu_pid = vm_process(op_vm(op)).pid;
    plan->qemu_start = vm_process(op_vm(op)).start;
    plan->dst_pid = vm_process(op_dst_vm(op)).pid;
    plan->dst_start = vm_process(op_dst_vm(op)).start;
    const json_t *status = json_object_get(request->src, "query-status");
    plan->was_running =
        str_eq(json_string_value(json_object_get(status, "status")), "running");
    migrate_check_machines(op);
    struct err *err = NULL;
    if (*plan->emit_config != '\0' &&
        persist_check_file(plan->emit_config, &err) < 0) {
        op_problem(op, err);
    }
    if ((request->flags & (QPIVOT_UNIX | QPIVOT_TUNNEL)) != 0) {
        migrate_option_transport(op);
    } else {
        decide_address(op);
    }
    decide_settings(op);
    migrate_check_options(op);
    migrate_decide_targets(op);
    decide_copies(op);
    emit_plan(op);
}

/* --- telling --- */

static json_t *describe(const struct plan_disk *disk)
{
    json_t *bitmaps = json_array_size(disk->bitmaps) > 0 ? disk->bitmaps : NULL;
    return json_pack(
        "{s:s*, s:s*, s:s*, s:s*, s:s*, s:s*, s:b, s:I, s:s*, s:s*, s:O*}",
        "disk", disk->disk, "device", disk->device, "from", disk->from, "to",
        disk->to, "how", disk->how, "via", disk->how, "makes", disk->create,
        "size", (json_int_t)disk->size, "reason", disk->reason, "sync",
        json_is_object(disk->linked) ? disk->sync : NULL, "bitmaps", bitmaps);
}

static void emit_plan(struct op *op)
{
    const struct plan *plan = op_plan(op);
    const struct migrate_request *request = op_request(op);
    json_t *disks = json_array();
    for (unsigned i = 0; i < plan->n_disks; i++) {
        (void)json_array_append_new(disks, describe(&plan->disks[i]));
    }
    const json_t *problems = op_problems(op);
    json_t *data =
        json_pack("{s:o, s:o, s:O, s:b, s:s, s:b}", "disks", disks, "commands",
                  problems == NULL ? op_commands(op) : json_array(), "notes",
                  request->notes, "dry_run", op_dry_run(op), "address",
                  plan->address, "running", plan->was_running);
    if (problems != NULL) {
        (void)json_object_set(data, "problems", (json_t *)(uintptr_t)problems);
    }
    op_emit(op, "plan", data);
}
