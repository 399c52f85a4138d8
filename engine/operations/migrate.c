/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "operations/migrate.h"

#include <string.h>

#include "base/err.h"
#include "base/str.h"
#include "operations/migrate-plan.h"
#include "operations/shareable.h"
#include "qpivot.h"
#include "run/claim.h"
#include "steps/alive.h"
#include "steps/backlog.h"
#include "steps/bitmap.h"
#include "steps/disk.h"
#include "steps/export.h"
#include "steps/mirror.h"
#include "steps/persist.h"
#include "steps/stream.h"
#include "steps/target.h"
#include "steps/tls.h"
#include "steps/transport.h"

enum { VERSION = 1, COPY = STEP_PER_DISK, DST = STEP_DST };

/* clang-format off */
static const struct step migrate_steps[] = {
    {"claim", "claim the VM for this operation, inside QEMU",
     claim_take, claim_give, claim_probe, NULL, claim_command, 0},
    {"claim-destination", "claim the destination for it",
     claim_take, claim_give, claim_probe, NULL, claim_command, DST},
    {"tls", "give the source its certificates",
     tls_add, tls_del, NULL, tls_is_used, tls_client_command, 0},
    {"tls-destination", "give the destination its own",
     tls_add, tls_del, NULL, tls_is_used, tls_server_command, DST},
    {"authz-destination", "tell it whom to let in",
     authz_add, authz_del, NULL, tls_has_authz, authz_command, DST},
    {"capabilities", "set what the source's stream must be able to do",
     capabilities_set, capabilities_restore, NULL, NULL,
     capabilities_command, 0},
    {"capabilities-destination", "set the same on the destination",
     capabilities_set, capabilities_restore, NULL, NULL,
     capabilities_command, DST},
    {"parameters", "set the stream's limits",
     parameters_set, parameters_restore, NULL, stream_has_parameters,
     parameters_command, 0},
    {"parameters-destination", "set them on the destination",
     parameters_set, parameters_restore, NULL, stream_has_parameters,
     parameters_command, DST},
    {"bitmaps", "name the dirty bitmaps that the stream carries",
     bitmaps_map, bitmaps_unmap, NULL, bitmaps_are_streamed,
     bitmaps_map_command, 0},
    {"bitmaps-destination", "name them on the destination",
     bitmaps_map, bitmaps_unmap, NULL, bitmaps_are_streamed,
     bitmaps_map_command_there, DST},
    {"sockets", "expect unix sockets beside the destination's monitor",
     sockets_expect, sockets_remove, NULL, transport_has_sockets, NULL,
     STEP_STORAGE},
    /* Before the destination has it open: it ends before this is removed. */
    {"target-create", "make the network volume under a name of ours",
     disk_create, disk_remove, NULL, target_is_created, NULL,
     COPY | STEP_STORAGE},
    {"target-publish", "give it its name, unless that is taken",
     disk_publish, NULL, NULL, target_is_created, NULL,
     COPY | STEP_STORAGE},
    /* Before the copy: all of it is taken back before this is. */
    {"incoming", "let the destination listen for the stream",
     incoming_open, incoming_close, incoming_probe, NULL, incoming_command,
     DST},
    {"server", "start the destination's NBD server",
     server_start, server_undo, NULL, export_is_copied, server_command, DST},
    {"target-make", "let the destination make the file",
     target_make, target_unmake, NULL, target_is_made, target_make_command,
     DST | COPY | STEP_OUTLIVES},
    {"target-made", "let go of the job that has made it",
     target_dismiss, NULL, NULL, target_is_made, NULL, DST | COPY},
    {"base-open", "open the base that an image to be made is to stand on",
     base_open, NULL, base_open_probe, base_is_opened, base_open_command,
     DST | COPY},
    {"base-export", "export the destination's base, to be read only",
     export_add, export_del, export_probe, base_is_compared,
     export_base_command, DST | COPY},
    {"base-compare", "see whether it is what the source stands on",
     base_compare, NULL, NULL, base_is_compared, NULL,
     DST | COPY | STEP_LONG},
    {"base-close", "end that export",
     export_del, NULL, NULL, base_is_compared, NULL,
     DST | COPY | STEP_REPEATS},
    {"base-drop", "let go of a base that is another one",
     base_drop, NULL, NULL, base_is_opened, NULL, DST | COPY},
    {"target-secret", "give the source the secret that opens the volume",
     disk_secret_add, disk_secret_del, NULL, target_has_direct_secret,
     disk_secret_command, COPY},
    {"target-file", "open the volume in the source",
     disk_file_add, disk_file_del, disk_file_probe, target_is_direct,
     disk_file_command, COPY},
    {"target-direct", "open what the source will fill",
     disk_node_add, disk_node_del, disk_node_probe, target_is_direct,
     disk_node_command, COPY},
    {"target-asked", "see that the volume answers, and what it is",
     alive_learn, alive_return, NULL, target_is_direct, NULL,
     COPY | STEP_STORAGE},
    /* What the destination opens goes with it when there is a way back. */
    {"destination-secret", "give the destination that secret",
     disk_secret_add, NULL, NULL, target_needs_secret, disk_secret_command,
     DST | COPY},
    {"destination-file", "open the volume in the destination",
     disk_file_add, NULL, disk_file_probe, target_is_attached,
     disk_file_command, DST | COPY},
    {"destination-activate", "let the waiting destination write to it",
     export_activate, NULL, NULL, target_is_formatted,
     export_activate_command, DST | COPY},
    {"destination-format", "write the image's metadata",
     disk_format, NULL, NULL, target_is_formatted, disk_format_command,
     DST | COPY | STEP_LONG},
    {"destination-node", "open what the guest will use",
     target_node_add, NULL, disk_node_probe, target_is_attached,
     target_node_command, DST | COPY},
    {"destination-attach", "put it in the placeholder's stead",
     target_attach, NULL, NULL, target_is_attached, target_attach_command,
     DST | COPY},
    {"placeholder-drop", "let go of the placeholder",
     target_drop, NULL, NULL, target_has_placeholder, target_drop_command,
     DST | COPY},
    {"export", "export the destination's disk",
     export_add, export_del, export_probe, export_is_copied, export_command,
     DST | COPY},
    {"base-overlay", "see that the image above the base is empty",
     base_see_empty, NULL, NULL, base_has_overlay, NULL, DST | COPY | STEP_LONG},
    {"target-node", "open the export in the source",
     client_add, client_del, client_probe, export_is_copied, client_command,
     COPY},
    {"mirror", "start to mirror the disk onto its target",
     mirror_start, mirror_cancel, mirror_probe, copy_is_wanted,
     mirror_command, COPY},
    {"mirror-ready", "copy until source and target are equal",
     mirror_ready, NULL, NULL, copy_is_wanted, NULL,
     COPY | STEP_LONG | STEP_LOOKS},
    {"mirror-active", "from now on the guest's writes go to both sides",
     backlog_switch, NULL, NULL, backlog_may_switch, backlog_switch_command,
     COPY | STEP_REPEATS},
    {"backlog", "see that what is left fits into the downtime",
     backlog_wait, NULL, NULL, copy_is_wanted, NULL, STEP_LONG | STEP_LOOKS},
    {"check-disks", "see that nobody has changed the disks",
     copy_check, NULL, NULL, NULL, NULL, STEP_LOOKS},
    {"bitmaps-check", "see that the dirty bitmaps are as planned",
     bitmaps_check, bitmaps_keep, NULL, bitmaps_are_streamed, NULL, 0},
    {"target-alive", "ask the volume once more, before the guest stands",
     alive_prove, NULL, NULL, target_is_direct, NULL,
     COPY | STEP_STORAGE | STEP_LOOKS},
    {"stream", "send the guest's memory, the guest still running",
     stream_start, stream_cancel, stream_probe, NULL, NULL, 0},
    {"target-stay", "from here on the destination ends with its stream",
     target_stay, target_unmake, NULL, target_is_made, NULL,
     DST | COPY | STEP_OUTLIVES},
    {"bitmaps-arrive", "see that the destination takes the dirty bitmaps",
     bitmaps_arrive, NULL, NULL, bitmaps_are_streamed, NULL,
     DST | STEP_LONG | STEP_LOOKS},
    {"stream-follow", "follow it until the guest stands for the rest",
     stream_follow, NULL, NULL, NULL, NULL, STEP_LONG | STEP_LOOKS},
    {"suspend", "pause the guest, so that the stream ends",
     suspend_stop, suspend_go_on, NULL, stream_may_suspend, NULL, 0},
    {"postcopy", "let the guest go over before the rest of its memory",
     postcopy_start, postcopy_go_back, NULL, stream_may_postcopy,
     postcopy_command, 0},
    {"stream-gate", "follow the rest of it",
     stream_gate, NULL, NULL, stream_may_leave, NULL,
     STEP_LONG | STEP_LOOKS},
    {"recheck-disks", "see that the disks are as planned still",
     copy_check, NULL, NULL, NULL, NULL, STEP_LOOKS},
    {"mirror-end", "end the mirror without a pivot, error-free",
     copy_end, NULL, NULL, copy_is_wanted, copy_end_command,
     COPY | STEP_REPEATS},
    {"switchover", "let the source hand the guest over",
     switchover_run, NULL, switchover_probe, NULL, switchover_command,
     STEP_PIVOT | STEP_LONG | STEP_ASKS_BOTH},
    {"server-stop", "end all exports: nobody else writes to the disks",
     server_stop, NULL, NULL, export_is_copied, server_stop_command,
     DST | STEP_REPEATS},
    {"start", "let the guest go on at the destination, if it ran",
     guest_start, NULL, NULL, NULL, NULL, DST},
    {"prove", "prove that the guest is there, as it was",
     guest_prove, NULL, NULL, NULL, NULL, DST | STEP_LOOKS},
    {"prove-disk", "prove from the graph that it uses its disk there",
     guest_prove_disk, NULL, NULL, NULL, NULL, DST | COPY | STEP_LOOKS},
    {"prove-bitmaps", "see that its dirty bitmaps are there, as they were",
     bitmaps_prove, NULL, NULL, bitmaps_are_carried, NULL,
     DST | COPY | STEP_LOOKS},
    {"postcopy-follow", "follow the memory that is still at the source",
     postcopy_follow, NULL, NULL, stream_may_postcopy, NULL,
     DST | STEP_LONG},
    {"persist", "hand over where the VM is now",
     persist_write, NULL, NULL, persist_is_wanted, NULL, STEP_STORAGE},
    {"sockets-remove", "take the names of sockets of this host away",
     sockets_remove, NULL, NULL, transport_is_local, NULL,
     STEP_STORAGE | STEP_TIDY},
    {"secret-drop-destination", "take that secret back",
     disk_secret_del, NULL, NULL, target_needs_secret,
     disk_secret_drop_command, DST | COPY | STEP_TIDY},
    {"secret-drop", "take the source's back",
     disk_secret_del, NULL, NULL, target_leaves_secret,
     disk_secret_drop_command, COPY | STEP_TIDY},
    {"capabilities-restore", "set the destination's capabilities back",
     capabilities_restore, NULL, NULL, NULL, NULL, DST | STEP_TIDY},
    {"parameters-restore", "set its limits back",
     parameters_restore, NULL, NULL, stream_has_parameters, NULL,
     DST | STEP_TIDY},
    {"bitmaps-restore", "name its dirty bitmaps as they are",
     bitmaps_unmap, NULL, NULL, bitmaps_are_streamed, NULL, DST | STEP_TIDY},
    {"authz-remove", "take from it whom to let in",
     authz_del, NULL, NULL, tls_has_authz, authz_del_command, DST | STEP_TIDY},
    {"tls-remove-destination", "take the destination's certificates back",
     tls_del, NULL, NULL, tls_is_used, tls_del_command, DST | STEP_TIDY},
    {"tls-remove", "take the source's certificates back",
     tls_del, NULL, NULL, tls_is_left, tls_del_command, STEP_TIDY},
    {"release-destination", "give the destination's claim back",
     claim_give, NULL, NULL, NULL, claim_give_command, DST | STEP_TIDY},
    {"release", "give the claim of the source back",
     claim_give, NULL, NULL, source_is_left, claim_give_command, STEP_TIDY},
    {"source-quit", "end the source QEMU",
     source_quit, NULL, NULL, source_is_quit, NULL, STEP_TIDY},
};

static const struct step migrate_plan_steps[] = {
    {"look-claim", "see whether another operation works on this VM",
     claim_check, NULL, NULL, NULL, NULL, 0},
    {"look-claim-destination", "see whether one works on the destination",
     claim_check, NULL, NULL, NULL, NULL, DST},
    {"look", "see what the source is and can do",
     migrate_look, NULL, NULL, NULL, NULL, 0},
    {"look-destination", "see what the destination is and can do",
     migrate_look, NULL, NULL, NULL, NULL, DST},
    {"look-disks", "read the source's block graph",
     migrate_look_source, NULL, NULL, NULL, NULL, 0},
    {"look-disks-destination", "read the destination's block graph",
     migrate_look_destination, NULL, NULL, NULL, NULL, DST},
    {"look-shared", "see whether an image is the same for both",
     migrate_look_shared, NULL, NULL, migrate_is_shared_image, NULL,
     COPY | STEP_STORAGE},
    {"look-shareable", "see whether others may write to what is copied",
     shareable_look, NULL, NULL, shareable_is_suspected, NULL, COPY},
    {"look-targets", "see what there is on the network storage",
     migrate_look_target, NULL, NULL, target_is_on_network, NULL,
     COPY | STEP_STORAGE},
    {"look-sources", "see what it must not be",
     migrate_look_origin, NULL, NULL, migrate_overwrites, NULL,
     COPY | STEP_STORAGE},
    {"look-secrets", "see whether QEMU needs a key to open it",
     migrate_look_secret, NULL, NULL, target_is_on_network, NULL,
     COPY | STEP_STORAGE},
    {"look-targets-destination", "see what there is on the destination's host",
     migrate_look_file, NULL, NULL, migrate_is_file_there, NULL, DST | COPY},
    {"look-bases-destination", "see whether the base may be there, too",
     migrate_look_base_there, NULL, NULL, migrate_may_stand_on_base, NULL,
     DST | COPY},
};
/* clang-format on */

static json_t *migrate_result(struct op *op);
static void migrate_total(struct op *op, json_t *result);
static void migrate_parked(struct op *op, struct err **error);
static void migrate_on_event(struct op *op, const char *name,
                             const json_t *event);
static void migrate_on_dst_event(struct op *op, const char *name,
                                 const json_t *event);

const struct operation migrate_operation = {
    .kind = "migrate",
    .version = VERSION,
    .plan_steps = migrate_plan_steps,
    .n_plan_steps = ARRAY_SIZE(migrate_plan_steps),
    .steps = migrate_steps,
    .n_steps = ARRAY_SIZE(migrate_steps),
    .decide = migrate_decide,
    .result = migrate_result,
    .total = migrate_total,
    .parked = migrate_parked,
    .event = migrate_on_event,
    .dst_event = migrate_on_dst_event,
    .no_volumes = true,
};

int migrate_start(const struct op_host *host,
                  const struct qpivot_migrate_options *options,
                  const struct qpivot_callbacks *callbacks, struct op **ret,
                  struct err **errp)
{
    struct plan *plan = NULL;
    struct migrate_request *request = NULL;
    int r = migrate_request_new(options, &plan, &request, errp);
    if (r < 0) {
        return r;
    }
    r = op_new(host, &migrate_operation, plan, request, migrate_request_free,
               callbacks, ret, errp);
    if (r < 0) {
        migrate_request_free(request);
    } else if ((options->flags & QPIVOT_DRY_RUN) != 0) {
        op_set_dry_run(*ret);
    }
    return r;
}

/* What has become of a linked clone, and why. */
static void add_sync(struct op *op, const struct plan_disk *disk, json_t *json)
{
    int i = (int)disk->index;
    const json_t *why = op_fact(op, "base-overlay", i, "reason");
    bool top =
        json_is_true(op_fact(op, "base-compare", i, "equal")) &&
        (disk->attach || json_is_true(op_fact(op, "base-overlay", i, "empty")));
    if (json_is_object(disk->linked)) {
        why = why != NULL ? why : op_fact(op, "base-compare", i, "reason");
        json_auto_t *more = json_pack("{s:s, s:O*}", "sync",
                                      top ? "top" : "full", "sync_reason", why);
        (void)json_object_update(json, more);
    }
}

static json_t *migrate_result(struct op *op)
{
    const struct plan *plan = op_plan(op);
    json_t *disks = json_array();
    for (unsigned i = 0; i < plan->n_disks; i++) {
        const struct plan_disk *disk = &plan->disks[i];
        const json_t *bytes =
            op_fact(op, "mirror-ready", (int)i, "bytes_copied");
        const json_t *seconds = op_fact(op, "mirror-ready", (int)i, "seconds");
        json_t *json = json_pack(
            "{s:s, s:s, s:s, s:s, s:b}", "disk", disk->disk, "how", disk->how,
            "from", disk->from, "to", disk->to, "made", disk->create);
        add_sync(op, disk, json);
        const json_t *bitmaps = op_fact(op, "prove-bitmaps", (int)i, "bitmaps");
        if (bitmaps != NULL) {
            (void)json_object_set_new(json, "bitmaps", json_deep_copy(bitmaps));
        }
        if (bytes != NULL) {
            (void)json_object_set_new(json, "bytes_copied",
                                      json_deep_copy(bytes));
        }
        if (seconds != NULL) {
            (void)json_object_set_new(json, "seconds", json_deep_copy(seconds));
        }
        (void)json_array_append_new(disks, json);
    }
    return disks;
}

static double ms_between(uint64_t begin_ns, uint64_t end_ns)
{
    return begin_ns != 0 && end_ns > begin_ns
               ? (double)(end_ns - begin_ns) / 1e6
               : 0;
}

/*
 * By this engine's clock, so the way of two events is in it. What an earlier
 * engine saw is not known to a recovered one.
 */
static void total_blackout(struct op *op, json_t *result)
{
    const struct migrate_request *r = op_request(op);
    if (r == NULL || r->stop_ns == 0) {
        return;
    }
    (void)json_object_set_new(result, "blackout_ms",
                              json_real(ms_between(r->stop_ns, r->resume_ns)));
    (void)json_object_set_new(
        result, "blackout",
        json_pack("{s:f, s:f, s:f, s:f}", "to_gate_ms",
                  ms_between(r->stop_ns, r->gate_ns), "to_continue_ms",
                  ms_between(r->gate_ns, r->continue_ns), "to_completed_ms",
                  ms_between(r->continue_ns, r->completed_ns), "to_resume_ms",
                  ms_between(r->completed_ns, r->resume_ns)));
}

/* Of all memory; the last pass is in it where this engine saw it end. */
static json_int_t memory_bytes(struct op *op)
{
    static const char *const steps[] = {"postcopy-follow", "switchover",
                                        "stream-gate", "stream-follow"};
    json_int_t bytes = 0;
    for (unsigned i = 0; bytes == 0 && i < ARRAY_SIZE(steps); i++) {
        bytes = json_integer_value(op_fact(op, steps[i], ALL_DISKS, "bytes"));
    }
    return bytes;
}

static double seconds_of(struct op *op, const char *step, int disk)
{
    return json_number_value(op_fact(op, step, disk, "seconds"));
}

static void migrate_total(struct op *op, json_t *result)
{
    const struct plan *plan = op_plan(op);
    json_int_t bytes = 0;
    double disks = 0;
    for (unsigned i = 0; i < plan->n_disks; i++) {
        const char *step = "mirror-ready";
        double seconds = seconds_of(op, step, (int)i);
        bytes += json_integer_value(op_fact(op, step, (int)i, "bytes_copied"));
        disks = seconds > disks ? seconds : disks; /* all at the same time */
    }
    double memory = seconds_of(op, "stream-follow", ALL_DISKS) +
                    seconds_of(op, "stream-gate", ALL_DISKS);
    double after = seconds_of(op, "postcopy-follow", ALL_DISKS);
    json_auto_t *more =
        json_pack("{s:I, s:I, s:{s:f, s:f}}", "bytes_copied", bytes,
                  "memory_bytes", memory_bytes(op), "phases", "disks_seconds",
                  disks, "memory_seconds", memory);
    (void)json_object_update(result, more);
    if (json_is_true(op_fact(op, "stream-follow", ALL_DISKS, "postcopy"))) {
        (void)json_object_set_new(json_object_get(result, "phases"),
                                  "postcopy_seconds", json_real(after));
    }
    total_blackout(op, result);
}

/*
 * By postcopy the source is done with the guest long before its stream is
 * 'completed', and up to QEMU 7.2 there is no 'device' before.
 */
static void see_phase(struct migrate_request *request, const char *status)
{
    uint64_t now = uv_hrtime();
    if (str_eq(status, "pre-switchover")) {
        request->gate_ns = now;
        request->continue_ns = request->completed_ns = 0;
    } else if (str_eq(status, "device")) {
        request->continue_ns = now;
    } else if (request->completed_ns == 0 &&
               (str_eq(status, "completed") ||
                str_eq(status, "postcopy-active"))) {
        request->continue_ns =
            request->continue_ns != 0 ? request->continue_ns : now;
        request->completed_ns = now;
    }
}

/*
 * Handed over, the guest is the destination's alone, whatever of its memory has
 * not followed yet: with that QEMU it has ended, and no other may run it.
 */
static void migrate_parked(struct op *op, struct err **error)
{
    struct err *lost = NULL;
    if (!op_pivoted(op) || vm_state(op_dst_vm(op)) != VM_GONE) {
        return;
    }
    (void)err_set(&lost, -ESRCH, vm_name(op_dst_vm(op)),
                  "the destination QEMU, which had the guest, is gone, and the"
                  " guest has ended with it");
    err_hint(&lost,
             "its disks are the destination's, as it has left them: %sstart the"
             " VM anew from these, never from the source's",
             vm_state(op_vm(op)) == VM_GONE
                 ? ""
                 : "end the source QEMU, which must not run it again, and ");
    if (lost != NULL) {
        err_free(*error);
        *error = lost;
    }
}

static void migrate_on_event(struct op *op, const char *name,
                             const json_t *event)
{
    struct migrate_request *request = op_request(op);
    const json_t *data = json_object_get(event, "data");
    const char *status = json_string_value(json_object_get(data, "status"));
    if (strcmp(name, "SHUTDOWN") == 0 && !op_pivoted(op)) {
        op_warn(op, "the guest powers off");
    } else if (request == NULL) {
        return;
    } else if (strcmp(name, "STOP") == 0 && request->stop_ns == 0) {
        request->stop_ns = uv_hrtime();
    } else if (strcmp(name, "RESUME") == 0) {
        request->stop_ns = 0;
    } else if (strcmp(name, "MIGRATION") == 0) {
        see_phase(request, status);
    }
}

static void migrate_on_dst_event(struct op *op, const char *name,
                                 const json_t *event)
{
    struct migrate_request *request = op_request(op);
    (void)event;
    if (request != NULL && strcmp(name, "RESUME") == 0 && op_pivoted(op)) {
        request->resume_ns = uv_hrtime();
    }
}
