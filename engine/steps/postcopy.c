/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Postcopy: the guest goes over with its devices, and runs there while its
 * memory follows. From then on neither QEMU has all of the guest (docs:
 * migration, "Postcopy"): the source must not end, must not be cancelled (a
 * QEMU 7.2 would do it) and not be cut off, whatever the stream does.
 */
#include <errno.h>

#include "base/err.h"
#include "base/str.h"
#include "policy/stall.h"
#include "run/op.h"
#include "steps/stream.h"
#include "vm/vm.h"

enum { FOLLOW_MS = 250, SETTLE_MS = 30000 };

struct paging {
    uint64_t begun_ms; /* 0: not yet */
    uint64_t told_ms;
    uint64_t done_ms; /* when the source has said 'completed' last */
    uint64_t sent;
    struct stall stall;
};

static void paging_look(struct act *act);

static const char *text_of(const json_t *json, const char *key)
{
    const char *text = json_string_value(json_object_get(json, key));
    return text != NULL ? text : "";
}

bool stream_may_postcopy(const struct plan *plan, const struct plan_disk *disk)
{
    (void)disk;
    return plan->postcopy || plan->postcopy_ms != 0;
}

bool stream_may_leave(const struct plan *plan, const struct plan_disk *disk)
{
    return stream_may_suspend(plan, disk) || stream_may_postcopy(plan, disk);
}

/* --- up to the gate --- */

json_t *postcopy_command(const char *op, const struct plan *plan,
                         const struct plan_disk *disk)
{
    (void)op;
    (void)plan;
    (void)disk;
    return json_pack("{s:s}", "execute", "migrate-start-postcopy");
}

/* QEMU only notes it; its stream stops at pre-switchover, as without it. */
void postcopy_start(struct act *act)
{
    _cleanup_err_ struct err *err = NULL;
    if (!stream_goes_over(act)) {
        act_end(act, NULL);
    } else if (stream_guard(act, &err) < 0) {
        act_end(act, err);
    } else {
        act_command(act, NULL);
    }
}

void postcopy_go_back(struct act *act)
{
    stream_go_back(act, stream_must_thaw(act));
}

/* --- once the guest is there --- */

static const char both[] =
    "the guest runs at the destination and a part of its memory is still at"
    " the source: end neither of them, and cancel nothing";

/* Whoever needs the missing memory waits for it, be it with QEMU's own lock. */
static void paging_is_lost(struct act *act, const char *how)
{
    _cleanup_err_ struct err *err = NULL;
    (void)err_set(&err, -ESRCH, vm_name(act_src_vm(act)),
                  "the source QEMU is gone with a part of the guest's memory"
                  " (%s): the guest cannot go on",
                  how);
    err_hint(&err, "its disks are the destination's: end the destination QEMU,"
                   " and start the VM anew from these, never from the"
                   " source's");
    act_give_up(act, err);
}

/* All of it is there when the destination says so, who has waited for it. */
static void paging_on_there(struct act *act, const struct err *err,
                            json_t *result)
{
    const struct paging *p = act_scratch(act, sizeof(*p));
    const char *status = text_of(result, "status");
    bool up = vm_state(act_src_vm(act)) == VM_UP;
    bool gone = vm_state(act_src_vm(act)) == VM_GONE;
    _cleanup_err_ struct err *error = NULL;
    if (err != NULL && err->code == -ETIMEDOUT && gone && p->done_ms == 0) {
        paging_is_lost(act, "the destination does not answer, as one that"
                            " waits for it");
    } else if (err != NULL) {
        act_end(act, err);
    } else if (str_eq(status, "completed")) {
        double seconds = (double)(act_now_ms(act) - p->begun_ms) / 1000.0;
        act_set_facts(act, json_pack("{s:f, s:I}", "seconds", seconds, "bytes",
                                     (json_int_t)p->sent));
        act_end(act, NULL);
    } else if (up &&
               (p->done_ms == 0 || act_now_ms(act) - p->done_ms < SETTLE_MS)) {
        act_again_on_event(act, FOLLOW_MS, paging_look);
    } else if (gone) {
        _cleanup_free_ char *how =
            str_printf("its stream is '%s' at the destination", status);
        paging_is_lost(act, how != NULL ? how : "");
    } else {
        (void)err_set(&error, -ENOLINK, vm_name(act_vm(act)),
                      "the guest's stream is '%s' there, and the source, which"
                      " had the rest of its memory, %s",
                      status,
                      up ? "has 'completed'" : "is gone, or out of reach");
        err_hint(&error, "while the source is there end neither QEMU; see"
                         " qpivot-migrate(1), POSTCOPY");
        act_give_up(act, error);
    }
}

/* The link is lost. Only a person knows where there is another. */
static void paging_paused(struct act *act)
{
    _cleanup_err_ struct err *err = NULL;
    bool there = vm_state(act_dst_vm(act)) == VM_UP;
    (void)err_set(&err, -ENOLINK, "migration", "postcopy-paused: %s",
                  there ? both
                        : "the destination, which had the guest, does not"
                          " answer, and a part of its memory is still at the"
                          " source: end neither of them");
    err_hint(&err, "send the destination 'migrate-recover' (out-of-band, uri"
                   " tcp:ADDRESS:PORT), then the source 'migrate' with that uri"
                   " and resume=true; 'qpivot recover' follows it to its end");
    act_give_up(act, err);
}

/* Nothing is cut: what comes later than expected is as good. */
static void paging_stalls(struct act *act)
{
    _cleanup_err_ struct err *err = NULL;
    (void)err_set(&err, -ETIMEDOUT, "migration",
                  "nothing of the memory was sent for %u s: %s",
                  (unsigned)(act_plan(act)->command_timeout_ms / 1000), both);
    err_hint(&err, "it goes on by itself when the link is back, and 'qpivot"
                   " recover' follows it; where it is gone for good, send both"
                   " 'migrate-pause' (out-of-band), and see qpivot-migrate(1)");
    act_give_up(act, err);
}

static void paging_on_info(struct act *act, const struct err *err,
                           json_t *result)
{
    struct paging *p = act_scratch(act, sizeof(*p));
    const char *status = text_of(result, "status");
    _cleanup_err_ struct err *error = NULL;
    if (err != NULL) {
        act_end(act, err);
        return;
    }
    json_int_t sent = json_integer_value(
        json_object_get(json_object_get(result, "ram"), "transferred"));
    p->sent = sent > 0 ? (uint64_t)sent : p->sent;
    uint64_t stands_ms = stall_sample(&p->stall, act_now_ms(act), p->sent);
    if (str_eq(status, "completed")) {
        p->done_ms = p->done_ms != 0 ? p->done_ms : act_now_ms(act);
        act_turn_to(act, ACT_DESTINATION);
        act_qmp(act, "query-migrate", NULL, paging_on_there);
    } else if (str_eq(status, "postcopy-paused")) {
        paging_paused(act);
    } else if (!stream_is_postcopy(status)) {
        (void)err_set(&error, -ESTALE, vm_name(act_src_vm(act)),
                      "the stream is '%s': somebody has ended it, and the"
                      " guest at the destination lacks a part of its memory",
                      *status != '\0' ? status : "none");
        act_give_up(act, error);
    } else if (stands_ms >= act_plan(act)->command_timeout_ms) {
        paging_stalls(act);
    } else {
        stream_tell(act, result, "postcopy", &p->told_ms);
        act_again_on_event(act, FOLLOW_MS, paging_look);
    }
}

static void paging_look(struct act *act)
{
    enum vm_state state = vm_state(act_src_vm(act));
    if (state == VM_LOST || state == VM_OPENING) {
        act_again(act, FOLLOW_MS, paging_look);
    } else if (state == VM_UP) {
        act_turn_to(act, ACT_SOURCE);
        act_qmp(act, "query-migrate", NULL, paging_on_info);
    } else {
        act_turn_to(act, ACT_DESTINATION);
        act_qmp(act, "query-migrate", NULL, paging_on_there);
    }
}

void postcopy_follow(struct act *act)
{
    struct paging *p = act_scratch(act, sizeof(*p));
    _cleanup_err_ struct err *err = NULL;
    if (p == NULL) {
        (void)err_set(&err, -ENOMEM, "migration", "out of memory");
        act_end(act, err);
        return;
    }
    p->begun_ms = act_now_ms(act);
    vm_own_stream(act_src_vm(act), false); /* never to be cut by us */
    paging_look(act);
}
