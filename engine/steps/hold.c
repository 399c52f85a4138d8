/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "steps/hold.h"

#include <errno.h>

#include "base/err.h"
#include "base/str.h"
#include "steps/act-on.h"
#include "steps/twin.h"
#include "steps/verify.h"

enum { GROUP_MAX = 64 };

bool guest_is_held(const struct plan *plan, const struct plan_disk *disk)
{
    return verify_is_wanted(plan, disk) || plan->undo_window_ms != 0;
}

/* There are three brackets: for the pivot, the end of the twins, the return. */
static bool drops(const struct act *act)
{
    return str_starts(act_step_name(act), "drop-");
}

static bool was_running(const struct act *act)
{
    return json_is_true(act_fact(act,
                                 act_is_returning(act) ? "return-look"
                                 : drops(act)          ? "drop-look"
                                                       : "guest-look",
                                 "running"));
}

bool guest_owes_cont(const struct act *act)
{
    return json_is_true(act_fact(act,
                                 act_is_returning(act) ? "return-stop"
                                 : drops(act)          ? "drop-stop"
                                                       : "guest-stop",
                                 "stopped"));
}

/* --- whether it runs --- */

bool guest_runs(const json_t *status)
{
    return json_is_true(json_object_get(status, "running"));
}

static void look_on_status(struct act *act, const struct err *err,
                           json_t *result)
{
    const char *status = json_string_value(json_object_get(result, "status"));
    _cleanup_err_ struct err *error = err_copy(err);
    if (error == NULL && str_eq(status, "suspended") && !drops(act)) {
        /* 'stop' does not hold one that may wake up by itself. */
        (void)err_set(&error, -EBUSY, "guest",
                      "it sleeps (suspended) and cannot be held");
        err_hint(&error,
                 "wake it up, or move it without --verify and --undo-window");
    }
    if (error == NULL) {
        act_set_facts(act, json_pack("{s:b}", "running", guest_runs(result)));
    }
    act_end(act, error);
}

void guest_look(struct act *act)
{
    act_qmp(act, "query-status", NULL, look_on_status);
}

/* --- stop --- */

json_t *guest_stop_command(const char *op, const struct plan *plan,
                           const struct plan_disk *disk)
{
    (void)op;
    (void)plan;
    (void)disk;
    return json_pack("{s:s}", "execute", "stop");
}

static void stop_end(struct act *act, bool stopped)
{
    act_set_standstill(act, true);
    act_set_facts(act, json_pack("{s:b}", "stopped", stopped));
    act_end(act, NULL);
}

static void stop_on_reply(struct act *act, const struct err *err,
                          json_t *result)
{
    (void)result;
    if (err != NULL) {
        if (err->code == -EREMOTEIO) {
            act_guard_disarm(act); /* it runs */
        }
        act_end(act, err);
    } else {
        stop_end(act, true);
    }
}

/* From here to cont: whoever dies or stalls, the guest goes on in time. */
int guest_guard(struct act *act, struct err **errp)
{
    const struct plan *plan = act_plan(act);
    struct name names[GROUP_MAX];
    const char *ids[GROUP_MAX];
    unsigned n = plan->group ? plan->n_disks : 0;
    for (unsigned i = 0; i < n; i++) {
        names[i] = name_of(act_op_id(act), i,
                           act_is_returning(act) || drops(act) ? NAME_TWIN
                                                               : NAME_MIRROR);
        ids[i] = names[i].text;
    }
    return act_guard_arm(act, ids, n, WATCHDOG_STOPS, errp);
}

static void stop_on_status(struct act *act, const struct err *err,
                           json_t *result)
{
    _cleanup_err_ struct err *error = err_copy(err);
    if (error == NULL && !guest_runs(result)) {
        /* An earlier try may have stopped it: then it is ours to let go. */
        stop_end(act, act_is_repeated(act) && was_running(act));
        return;
    }
    if (error == NULL) {
        (void)guest_guard(act, &error);
    }
    if (error != NULL) {
        act_end(act, error);
        return;
    }
    act_qmp(act, "stop", NULL, stop_on_reply);
}

void guest_stop(struct act *act)
{
    act_qmp(act, "query-status", NULL, stop_on_status);
}

/* Not to be known from QEMU, who stopped it: begun anew, it finds out. */
void guest_stop_probe(struct act *act)
{
    act_probed(act, PROBE_NOT_DONE);
}

static void let_go(struct act *act, const struct err *err)
{
    act_set_standstill(act, false);
    act_guard_disarm(act);
    act_end(act, err);
}

static void undo_on_cont(struct act *act, const struct err *err, json_t *result)
{
    (void)result;
    if (err != NULL) {
        act_end(act, err);
    } else {
        let_go(act, NULL);
    }
}

static void undo_on_status(struct act *act, const struct err *err,
                           json_t *result)
{
    const char *status = json_string_value(json_object_get(result, "status"));
    if (err != NULL) {
        act_end(act, err);
    } else if (str_eq(status, "paused") && was_running(act)) {
        act_qmp(act, "cont", NULL, undo_on_cont);
    } else {
        let_go(act, NULL);
    }
}

void guest_stop_undo(struct act *act)
{
    act_qmp(act, "query-status", NULL, undo_on_status);
}

/* --- cont --- */

json_t *guest_cont_command(const char *op, const struct plan *plan,
                           const struct plan_disk *disk)
{
    (void)op;
    (void)plan;
    (void)disk;
    return json_pack("{s:s}", "execute", "cont");
}

static void cont_end(struct act *act)
{
    uint64_t ms = act_now_ms(act) - act_stands_since_ms(act);
    bool *open = act_scratch(act, sizeof(*open));
    if (open != NULL && *open) {
        act_set_facts(act, twin_opened(ms));
    } else if (!act_is_returning(act) && !drops(act)) {
        act_set_facts(act, json_pack("{s:b}", "open", 0));
    }
    let_go(act, NULL);
}

static void cont_on_reply(struct act *act, const struct err *err,
                          json_t *result)
{
    (void)result;
    if (err != NULL) {
        act_end(act, err);
    } else {
        cont_end(act);
    }
}

/*
 * The twins are true only if nobody wrote between the pivot and the last of
 * them: the guest stands still now, and was not seen to run since.
 */
static void cont_on_status(struct act *act, const struct err *err,
                           json_t *result)
{
    const char *status = json_string_value(json_object_get(result, "status"));
    bool *open = act_scratch(act, sizeof(*open));
    if (err != NULL) {
        act_end(act, err);
        return;
    }
    if (open != NULL) {
        *open = !act_is_returning(act) && !drops(act) && !guest_runs(result) &&
                act_stands_still(act) && twin_all_began(act);
    }
    if (str_eq(status, "paused") && guest_owes_cont(act)) {
        act_qmp(act, "cont", NULL, cont_on_reply);
    } else {
        cont_end(act);
    }
}

void guest_cont(struct act *act)
{
    act_qmp(act, "query-status", NULL, cont_on_status);
}
