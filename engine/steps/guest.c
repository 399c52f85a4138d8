/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * After the switchover: the guest goes on at the destination, and only there.
 */
#include <errno.h>

#include "base/err.h"
#include "base/str.h"
#include "run/claim.h"
#include "steps/stream.h"
#include "vm/vm.h"

enum { LOOK_MS = 100 };

static const char *text_of(const json_t *json, const char *key)
{
    const char *text = json_string_value(json_object_get(json, key));
    return text != NULL ? text : "";
}

static void start_look(struct act *act);

static void start_on_status(struct act *act, const struct err *err,
                            json_t *result)
{
    const char *status = text_of(result, "status");
    _cleanup_err_ struct err *error = NULL;
    bool runs = str_eq(status, "running");
    if (err != NULL || runs) {
        act_end(act, err);
    } else if (str_eq(status, "inmigrate")) {
        /* It loads the last of it; 'cont' now would only be remembered. */
        act_again_on_event(act, LOOK_MS, start_look);
    } else if (!stream_guest_ran(act)) {
        act_end(act, NULL); /* paused stays paused */
    } else if (str_eq(status, "paused")) {
        act_qmp(act, "cont", NULL, NULL);
    } else {
        (void)err_set(&error, -ESTALE, vm_name(act_vm(act)),
                      "cannot start the guest: it is '%s'", status);
        act_end(act, error);
    }
}

static void start_look(struct act *act)
{
    act_qmp(act, "query-status", NULL, start_on_status);
}

/* Its devices are here, and the rest of its memory is yet to come. */
static void start_on_stream(struct act *act, const struct err *err,
                            json_t *result)
{
    const char *status = text_of(result, "status");
    _cleanup_err_ struct err *error = NULL;
    act_turn_to(act, ACT_DESTINATION);
    if (err == NULL &&
        (stream_is_postcopy(status) || str_eq(status, "completed"))) {
        start_look(act);
        return;
    }
    (void)err_set(&error, -ESTALE, vm_name(act_src_vm(act)),
                  "the source's stream is '%s': it has not handed the guest"
                  " over",
                  err != NULL ? "silent" : status);
    err_hint(&error, "see which QEMU holds the guest before either is started");
    act_end(act, error);
}

static void start_on_source(struct act *act, const struct err *err,
                            json_t *result)
{
    const char *status = text_of(result, "status");
    _cleanup_err_ struct err *error = NULL;
    if (err == NULL && str_eq(status, "finish-migrate") &&
        stream_goes_over(act)) {
        act_qmp(act, "query-migrate", NULL, start_on_stream);
        return;
    }
    act_turn_to(act, ACT_DESTINATION);
    if (err == NULL && str_eq(status, "postmigrate")) {
        start_look(act);
        return;
    }
    (void)err_set(&error, -ESTALE, vm_name(act_src_vm(act)),
                  "the source is '%s': it has not handed the guest over",
                  err != NULL ? "silent" : status);
    err_hint(&error, "see which QEMU holds the guest before either is started");
    act_end(act, error);
}

/* What the journal says may be old: a source that is there is asked. */
static void start_ask_source(struct act *act)
{
    if (vm_state(act_src_vm(act)) == VM_UP) {
        act_turn_to(act, ACT_SOURCE);
        act_qmp(act, "query-status", NULL, start_on_source);
    } else {
        start_look(act);
    }
}

static void start_on_claim(struct act *act, const struct err *err,
                           json_t *result)
{
    _cleanup_err_ struct err *error = NULL;
    if (err == NULL && str_eq(json_string_value(result), act_op_id(act))) {
        start_ask_source(act);
        return;
    }
    (void)err_set(&error, -ESTALE, vm_name(act_vm(act)),
                  "is not the QEMU that the guest went to");
    err_hint(&error, "see which QEMU holds the guest; the source must not be"
                     " started");
    act_end(act, error);
}

void guest_start(struct act *act)
{
    act_guard_disarm(act);
    if (act_dst_is_doubted(act)) {
        act_qmp(act, "qom-get", claim_holder_arguments(), start_on_claim);
    } else {
        start_look(act);
    }
}

static void prove_on_status(struct act *act, const struct err *err,
                            json_t *result)
{
    const char *status = text_of(result, "status");
    const char *wanted = stream_guest_ran(act) ? "running" : "paused";
    _cleanup_err_ struct err *error = NULL;
    if (err == NULL && !str_eq(status, wanted)) {
        (void)err_set(&error, -ESTALE, vm_name(act_vm(act)),
                      "the guest is '%s' there, not '%s'", status, wanted);
        err = error;
    }
    act_set_facts(act, json_pack("{s:s}", "status", status));
    act_end(act, err);
}

void guest_prove(struct act *act)
{
    act_qmp(act, "query-status", NULL, prove_on_status);
}

/* --- the source, afterwards --- */

bool source_is_quit(const struct plan *plan, const struct plan_disk *disk)
{
    (void)disk;
    return plan->quit_source;
}

bool source_is_left(const struct plan *plan, const struct plan_disk *disk)
{
    (void)disk;
    return !plan->quit_source;
}

void source_quit(struct act *act)
{
    act_qmp(act, "quit", NULL, NULL); /* gone before it answers is as good */
}
