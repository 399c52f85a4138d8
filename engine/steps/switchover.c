/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * migrate-continue: from here on the source decides whose the guest is. It
 * says "completed", and never runs it again, or it says "failed" and runs it.
 * Nothing is started on the destination before the former is heard.
 *
 * By postcopy it sends the devices in one piece, and never runs the guest
 * again once that has gone: then the destination holds it when it says
 * 'paused' and the source, asked after that, that the rest is on its way.
 */
#include <errno.h>

#include "base/err.h"
#include "base/str.h"
#include "policy/stall.h"
#include "run/claim.h"
#include "run/op.h"
#include "steps/stream.h"
#include "vm/graph.h"
#include "vm/vm.h"

enum {
    LOOK_MS = 50,
    LOOK_SOON_MS = 5, /* the guest stands, and no event tells of its end */
    LOOK_AGAIN_MS = 200,
    LOOKS_MAX = 25,
    STANDS = 4,        /* times that pre-switchover is seen */
    SETTLE_MS = 30000, /* from the cut on */
};

/* How long the source has been handing the guest over. */
struct handing {
    uint64_t begun_ms; /* 0: it has not been seen to */
    struct stall stall;
    uint64_t cut_ms; /* 0: not yet */
    uint64_t again_ms;
};

/* What the probe has found out so far. */
struct asking {
    struct handing handing;
    unsigned looks;
    unsigned waits;
    unsigned stands;
    bool cancelled;
};

static void continue_look(struct act *act);
static void half_look(struct act *act);
static void ask_source(struct act *act);
static void ask_destination(struct act *act);
static void ask_half(struct act *act);

static const char *text_of(const json_t *json, const char *key)
{
    const char *text = json_string_value(json_object_get(json, key));
    return text != NULL ? text : "";
}

json_t *switchover_command(const char *op, const struct plan *plan,
                           const struct plan_disk *disk)
{
    (void)op;
    (void)plan;
    (void)disk;
    return json_pack("{s:s, s:{s:s}}", "execute", "migrate-continue",
                     "arguments", "state", "pre-switchover");
}

static void tell(struct act *act)
{
    json_t *disks = json_array();
    const struct plan *plan = act_plan(act);
    for (unsigned i = 0; i < plan->n_disks; i++) {
        (void)json_array_append_new(disks, json_string(plan->disks[i].disk));
    }
    act_emit(act, "pivot",
             json_pack("{s:o, s:s}", "disks", disks, "to", plan->dst_qmp));
}

/*
 * The source sends the last of the memory, for which QEMU has reckoned with the
 * downtime limit, and waits for the destination to say that it has it: as long
 * as TCP tries, if the link is cut. 'migrate_cancel' is no way out of this
 * state (QEMU 7.2 dies of it); without a connection the source fails, and goes
 * on with the guest. Whichever it says then holds. Returns for how long that
 * has not helped.
 */
static uint64_t cut_if_stuck(struct act *act, struct handing *handing,
                             const json_t *info)
{
    const struct plan *plan = act_plan(act);
    uint64_t limit = plan->freeze_limit_ms;
    uint64_t now = act_now_ms(act);
    uint64_t sent = (uint64_t)json_integer_value(
        json_object_get(json_object_get(info, "ram"), "transferred"));
    uint64_t sends = (uint64_t)json_integer_value(
        json_object_get(plan->parameters, "downtime-limit"));
    if (handing->begun_ms == 0) {
        handing->begun_ms = now;
    }
    bool stands = stall_sample(&handing->stall, now, sent) > limit ||
                  now - handing->begun_ms > limit + 2 * sends;
    if (handing->cut_ms == 0 && stands) {
        act_warn(act,
                 "the source has waited for the destination for longer than"
                 " the freeze limit of %u ms: it is to keep the guest",
                 (unsigned)limit);
        handing->cut_ms = handing->again_ms = now;
        vm_yank(act_vm(act));
    } else if (handing->cut_ms != 0 && now - handing->again_ms > limit) {
        handing->again_ms = now;
        vm_yank(act_vm(act));
    }
    return handing->cut_ms != 0 ? now - handing->cut_ms : 0;
}

static void continue_on_info(struct act *act, const struct err *err,
                             json_t *result)
{
    const char *status = text_of(result, "status");
    _cleanup_err_ struct err *error = NULL;
    if (err != NULL) {
        act_end(act, err);
    } else if (str_eq(status, "completed")) {
        const json_t *ram = json_object_get(result, "ram");
        json_t *bytes = json_object_get(ram, "transferred");
        act_set_facts(act, json_pack("{s:O*}", "bytes", bytes));
        tell(act);
        act_end(act, NULL);
    } else if (stream_is_postcopy(status)) {
        half_look(act);
    } else if (str_eq(status, "failed") || str_eq(status, "cancelled") ||
               *status == '\0' || str_eq(status, "none")) {
        (void)err_set(&error, -EIO, "switchover", "%s: %s", status,
                      text_of(result, "error-desc"));
        act_end(act, error);
    } else if (cut_if_stuck(act, act_scratch(act, sizeof(struct handing)),
                            result) >= SETTLE_MS) {
        (void)err_set(&error, -ETIMEDOUT, "switchover", "the source stays '%s'",
                      status);
        act_end(act, error);
    } else {
        act_again_on_event(act, LOOK_MS, continue_look);
    }
}

static void continue_look(struct act *act)
{
    act_qmp(act, "query-migrate", NULL, continue_on_info);
}

static void continue_on_reply(struct act *act, const struct err *err,
                              json_t *result)
{
    (void)result;
    if (err != NULL) {
        act_end(act, err);
    } else {
        act_again_on_event(act, LOOK_MS, continue_look);
    }
}

/* --- by postcopy: the destination has it before the source is done --- */

static void half_on_source(struct act *act, const struct err *err,
                           json_t *result)
{
    const char *status = text_of(result, "status");
    if (err != NULL) {
        act_end(act, err);
    } else if (stream_is_postcopy(status) || str_eq(status, "completed")) {
        vm_own_stream(act_vm(act), false); /* a cut would help nobody now */
        tell(act);
        act_end(act, NULL);
    } else {
        continue_on_info(act, NULL, result); /* it has failed after all */
    }
}

static void half_on_status(struct act *act, const struct err *err,
                           json_t *result)
{
    struct handing *handing = act_scratch(act, sizeof(*handing));
    const char *status = text_of(result, "status");
    _cleanup_err_ struct err *error = NULL;
    if (err != NULL) {
        act_end(act, err);
        return;
    }
    act_turn_to(act, ACT_SOURCE);
    if (str_eq(status, "paused") || str_eq(status, "running")) {
        act_qmp(act, "query-migrate", NULL, half_on_source);
    } else if (act_now_ms(act) - handing->begun_ms > SETTLE_MS) {
        (void)err_set(&error, -ETIMEDOUT, "switchover",
                      "the source has sent the guest, and the destination is"
                      " '%s'",
                      status);
        act_end(act, error);
    } else {
        act_again_on_event(act, LOOK_SOON_MS, continue_look);
    }
}

static void half_look(struct act *act)
{
    struct handing *handing = act_scratch(act, sizeof(*handing));
    if (handing->begun_ms == 0) {
        handing->begun_ms = act_now_ms(act);
    }
    act_turn_to(act, ACT_DESTINATION);
    act_qmp(act, "query-status", NULL, half_on_status);
}

/* --- let it go --- */

static void switchover_commit(struct act *act)
{
    _cleanup_err_ struct err *err = NULL;
    if (act_guard_commit(act, &err) < 0) {
        act_end(act, err);
        return;
    }
    vm_own_stream(act_vm(act), true);
    act_command(act, continue_on_reply);
}

static void ready_on_info(struct act *act, const struct err *err,
                          json_t *result)
{
    const char *fault = text_of(result, "error-desc");
    _cleanup_err_ struct err *error = NULL;
    if (err == NULL && *fault != '\0') {
        (void)err_set(&error, -EIO, "switchover", "%s", fault);
        err = error;
    }
    if (err != NULL) {
        act_end(act, err);
    } else {
        switchover_commit(act);
    }
}

static void ready_on_status(struct act *act, const struct err *err,
                            json_t *result)
{
    const char *status = text_of(result, "status");
    _cleanup_err_ struct err *error = NULL;
    if (err == NULL && !str_eq(status, "inmigrate")) {
        (void)err_set(&error, -ESTALE, vm_name(act_vm(act)),
                      "the destination does not wait for the guest any more:"
                      " it is '%s'",
                      status);
        err = error;
    }
    if (err != NULL) {
        act_end(act, err);
        return;
    }
    act_turn_to(act, ACT_SOURCE);
    act_qmp(act, "query-migrate", NULL, ready_on_info);
}

/*
 * A QEMU 10.0 whose connection is broken by the time that it lets a guest go
 * by postcopy stays 'device' for ever, and the guest stands in it: so both are
 * asked right before.
 */
void switchover_run(struct act *act)
{
    _cleanup_err_ struct err *err = NULL;
    if (act_scratch(act, sizeof(struct handing)) == NULL) {
        (void)err_set(&err, -ENOMEM, "switchover", "out of memory");
        act_end(act, err);
    } else if (stream_goes_over(act)) {
        act_turn_to(act, ACT_DESTINATION);
        act_qmp(act, "query-status", NULL, ready_on_status);
    } else {
        switchover_commit(act);
    }
}

/* --- in doubt: ask both --- */

static void unknown(struct act *act, const char *why)
{
    act_warn(act,
             "whose the guest is, is not known: %s; nothing is started. Ask"
             " both QEMUs 'query-migrate' and 'query-status': the guest may be"
             " started on the destination only where the source has"
             " 'completed'%s, and never on the source then",
             why,
             stream_goes_over(act)
                 ? ", or sends the rest ('postcopy-active') to"
                   " a destination that is 'paused'"
                 : "");
    act_guard_disarm(act);
    act_probed(act, PROBE_UNKNOWN);
}

static bool is_silent(const struct err *err)
{
    return err != NULL && err->code == -ETIMEDOUT;
}

static void destination_on_status(struct act *act, const struct err *err,
                                  json_t *result)
{
    const char *status = text_of(result, "status");
    struct asking *asking = act_scratch(act, sizeof(*asking));
    if (err == NULL &&
        (str_eq(status, "paused") || str_eq(status, "running"))) {
        tell(act);
        act_probed(act, PROBE_DONE);
    } else if (err == NULL && str_eq(status, "inmigrate") &&
               asking->looks++ < LOOKS_MAX) {
        act_again(act, LOOK_AGAIN_MS, ask_destination);
    } else {
        unknown(act, "the destination does not hold it");
    }
}

static void destination_on_claim(struct act *act, const struct err *err,
                                 json_t *result)
{
    if (err == NULL && str_eq(json_string_value(result), act_op_id(act))) {
        act_qmp(act, "query-status", NULL, destination_on_status);
    } else {
        unknown(act, is_silent(err)
                         ? "the destination does not answer"
                         : "another QEMU answers at the destination");
    }
}

static void ask_destination(struct act *act)
{
    enum vm_state state = vm_state(act_dst_vm(act));
    if (state == VM_LOST || state == VM_OPENING) {
        act_again(act, LOOK_AGAIN_MS, ask_destination);
    } else if (state != VM_UP) {
        unknown(act, "the source has handed it over, and the destination is"
                     " out of reach");
    } else {
        act_turn_to(act, ACT_DESTINATION);
        act_qmp(act, "qom-get", claim_holder_arguments(), destination_on_claim);
    }
}

/*
 * It was cancelled when it had gone already, which QEMU 7.2 does: whoever runs
 * it there is not to have a second one here.
 */
static void source_on_other(struct act *act, const struct err *err,
                            json_t *result)
{
    bool runs = err == NULL && str_eq(text_of(result, "status"), "running");
    if (runs || is_silent(err)) {
        unknown(act, "the source has lost its stream, and the destination runs"
                     " the guest, or does not answer");
    } else {
        act_probed(act, PROBE_NOT_DONE);
    }
}

static void source_has_it(struct act *act)
{
    if (stream_goes_over(act) && vm_state(act_dst_vm(act)) == VM_UP) {
        act_turn_to(act, ACT_DESTINATION);
        act_qmp(act, "query-status", NULL, source_on_other);
    } else {
        act_probed(act, PROBE_NOT_DONE);
    }
}

static void source_on_status(struct act *act, const struct err *err,
                             json_t *result)
{
    const char *status = text_of(result, "status");
    struct asking *asking = act_scratch(act, sizeof(*asking));
    /* The last is up to QEMU 7.2 what became of a guest that stood. */
    if (err == NULL && (str_eq(status, "running") || str_eq(status, "paused") ||
                        str_eq(status, "postmigrate"))) {
        source_has_it(act);
    } else if (err == NULL && asking->looks++ < LOOKS_MAX) {
        act_again(act, LOOK_AGAIN_MS, ask_source);
    } else {
        unknown(act, "the source has not got it back");
    }
}

/* It has let the guest go, or fails to yet: has that arrived? */
static void half_again(struct act *act, const char *why)
{
    struct asking *asking = act_scratch(act, sizeof(*asking));
    act_turn_to(act, ACT_SOURCE);
    if (asking->looks++ < LOOKS_MAX) {
        act_again_on_event(act, LOOK_AGAIN_MS, ask_source);
    } else {
        unknown(act, why);
    }
}

static void half_on_there(struct act *act, const struct err *err,
                          json_t *result)
{
    const char *status = text_of(result, "status");
    if (err == NULL &&
        (str_eq(status, "paused") || str_eq(status, "running"))) {
        vm_own_stream(act_src_vm(act), false);
        tell(act);
        act_probed(act, PROBE_DONE);
    } else {
        half_again(act, "the source has let go of it by postcopy, and it has"
                        " not come to the destination");
    }
}

static void half_on_claim(struct act *act, const struct err *err,
                          json_t *result)
{
    if (err == NULL && str_eq(json_string_value(result), act_op_id(act))) {
        act_qmp(act, "query-status", NULL, half_on_there);
    } else {
        unknown(act, is_silent(err)
                         ? "the destination does not answer"
                         : "another QEMU answers at the destination");
    }
}

static void ask_half(struct act *act)
{
    if (vm_state(act_dst_vm(act)) == VM_UP) {
        act_turn_to(act, ACT_DESTINATION);
        act_qmp(act, "qom-get", claim_holder_arguments(), half_on_claim);
    } else {
        half_again(act, "the source has let go of it by postcopy, and the"
                        " destination is out of reach");
    }
}

static void source_on_completed(struct act *act, const struct err *err,
                                json_t *result)
{
    if (err == NULL && str_eq(text_of(result, "status"), "postmigrate")) {
        ask_destination(act);
    } else {
        unknown(act, "the source has handed it over, and is not at rest");
    }
}

static void source_on_cancelled(struct act *act, const struct err *err,
                                json_t *result)
{
    (void)err; /* the next look tells */
    (void)result;
    act_again_on_event(act, LOOK_AGAIN_MS, ask_source);
}

static void source_on_info(struct act *act, const struct err *err,
                           json_t *result)
{
    const char *status = text_of(result, "status");
    struct asking *asking = act_scratch(act, sizeof(*asking));
    bool waits = str_eq(status, "active") || str_eq(status, "setup");
    bool stands = str_eq(status, "pre-switchover");
    if (err != NULL) {
        unknown(act, "the source does not say");
    } else if (str_eq(status, "completed")) {
        act_qmp(act, "query-status", NULL, source_on_completed);
    } else if (stream_is_postcopy(status)) {
        ask_half(act);
    } else if (str_eq(status, "device") || str_eq(status, "cancelling") ||
               str_eq(status, "failing")) {
        (void)cut_if_stuck(act, &asking->handing, result);
        act_again_on_event(act, LOOK_AGAIN_MS, ask_source);
    } else if (str_eq(status, "failed") || str_eq(status, "cancelled")) {
        act_qmp(act, "query-status", NULL, source_on_status);
    } else if (*status == '\0' || str_eq(status, "none")) {
        act_probed(act, PROBE_NOT_DONE); /* it was never begun */
    } else if (stands && asking->stands++ < STANDS) {
        /* migrate-continue only wakes the thread that changes the state. */
        act_again(act, LOOK_AGAIN_MS, ask_source);
    } else if ((waits || stands) && !asking->cancelled) {
        /* migrate-continue may be on its way yet: end it, then look. */
        asking->cancelled = true;
        act_qmp(act, "migrate_cancel", NULL, source_on_cancelled);
    } else if ((waits || stands) && asking->waits++ < LOOKS_MAX) {
        act_again_on_event(act, LOOK_AGAIN_MS, ask_source);
    } else if (waits) {
        act_probed(act, PROBE_NOT_DONE);
    } else {
        unknown(act, "the source's stream does not come to an end");
    }
}

static void source_on_claim(struct act *act, const struct err *err,
                            json_t *result)
{
    bool ours =
        err == NULL && str_eq(json_string_value(result), act_op_id(act));
    /* A way back that was not written down has given the claim back. */
    if (ours || act_is_same_qemu(act)) {
        act_qmp(act, "query-migrate", NULL, source_on_info);
    } else {
        unknown(act, is_silent(err) ? "the source does not answer"
                                    : "another QEMU answers at the source");
    }
}

static void ask_source(struct act *act)
{
    enum vm_state state = vm_state(act_src_vm(act));
    if (act_scratch(act, sizeof(struct asking)) == NULL || state == VM_GONE ||
        state == VM_UNKNOWN) {
        unknown(act, "the source is out of reach");
    } else if (state != VM_UP) {
        act_again(act, LOOK_AGAIN_MS, ask_source);
    } else {
        vm_own_stream(act_src_vm(act), true);
        act_qmp(act, "qom-get", claim_holder_arguments(), source_on_claim);
    }
}

void switchover_probe(struct act *act)
{
    ask_source(act);
}

/* --- the destination's graph --- */

static void disk_on_graph(struct act *act, const struct err *err,
                          const struct graph *graph)
{
    const struct plan_disk *disk = act_disk(act);
    _cleanup_err_ struct err *error = NULL;
    if (err != NULL) {
        act_end(act, err);
        return;
    }
    const struct graph_device *device = graph_find_device(graph, disk->device);
    const struct graph_node *node = graph_find_node(graph, disk->dst_node);
    unsigned n_exports = 0;
    const struct graph_export *exports = graph_exports(graph, &n_exports);
    if (device == NULL || device->root == NULL || node == NULL ||
        !graph_reaches(graph, device->root, node)) {
        (void)err_set(&error, -EBUSY, disk->disk,
                      "the destination's device does not use node '%s'",
                      disk->dst_node);
    }
    for (unsigned i = 0; i < n_exports; i++) {
        if (str_eq(exports[i].node_name, disk->dst_node)) {
            (void)err_set(&error, -EBUSY, disk->disk,
                          "export '%s' still writes to the guest's disk",
                          exports[i].id);
        }
    }
    if (error == NULL) {
        act_emit(act, "proof",
                 json_pack("{s:s, s:s, s:s}", "device", disk->device, "node",
                           disk->dst_node, "filename", node->filename));
    }
    act_end(act, error);
}

void guest_prove_disk(struct act *act)
{
    if (act_disk(act)->dst_node[0] == '\0') {
        act_end(act, NULL); /* an empty drive */
        return;
    }
    act_graph(act, disk_on_graph);
}
