/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The order of things: what the end of an act means, which step is next, when
 * there is no way back, and how an operation ends.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "backends/keep.h"
#include "base/str.h"
#include "qmp/qmp.h"
#include "run/claim.h"
#include "run/op-private.h"
#include "run/watchdog.h"
#include "vm/vm.h"

enum { RETRY_MS = 500 };

static void op_on_journalled(void *data, const struct err *err);
static bool op_set_state(struct op *op, enum op_state state, journal_fn *cb);
static void op_on_end_state(void *data, const struct err *err);
static void op_step(struct op *op);
static void op_step_plan(struct op *op);
static void op_step_run(struct op *op);
static void op_step_undo(struct op *op);
static void op_planned(struct op *op);
static void op_on_vm_closed(void *data);
static void op_on_kept_closed(void *data);
static void op_on_tick_closed(uv_handle_t *handle);

static bool wanted(const struct op *op, const struct step *step, int disk)
{
    return op_is_table(op, step) &&
           (step->when == NULL ||
            step->when(op->plan, disk >= 0 ? &op->plan->disks[disk] : NULL));
}

static void first_and_last(const struct op *op, const struct step *step,
                           int *first, int *last)
{
    bool per_disk = (step->flags & STEP_PER_DISK) != 0;
    *first = per_disk ? 0 : ALL_DISKS;
    *last = per_disk ? (int)op->plan->n_disks - 1 : ALL_DISKS;
}

json_t *op_commands(const struct op *op)
{
    json_t *commands = json_array();
    for (unsigned i = 0; i < op->operation->n_steps; i++) {
        const struct step *step = &op->operation->steps[i];
        int first, last;
        first_and_last(op, step, &first, &last);
        for (int disk = first; step->command != NULL && disk <= last; disk++) {
            const struct plan_disk *about =
                disk >= 0 ? &op->plan->disks[disk] : NULL;
            if (wanted(op, step, disk)) {
                json_t *command = step->command(op->id, op->plan, about);
                if (json_is_array(command)) {
                    (void)json_array_extend(commands, command);
                    json_decref(command);
                } else {
                    (void)json_array_append_new(commands, command);
                }
            }
        }
    }
    return commands;
}

void op_fail(struct op *op, const struct err *err)
{
    if (op->state != OP_UNDOING && !op->pivoted && !op_pivoting(op)) {
        op_break(op, err);
    }
}

/* Stops what is under way; the next turn goes back, or parks. */
void op_break(struct op *op, const struct err *err)
{
    if (op->closing) {
        return;
    }
    if (op->error == NULL) {
        op->error = err_copy(err);
        if (op->error == NULL) {
            (void)err_set(&op->error, -ENOMEM, op->id, "out of memory");
        }
    }
    op_cancel_acts(op);
    op_turn(op);
}

/* --- an act is over --- */

void op_emit_step(const struct act *act, const char *state)
{
    struct op *op = act->op;
    if (!op_journals(op, act->step)) {
        return;
    }
    json_t *data = json_pack("{s:s, s:s, s:s}", "step", act->step->name,
                             "state", state, "what", act->step->does);
    if (act->disk >= 0) {
        (void)json_object_set_new(data, "disk",
                                  json_string(op->plan->disks[act->disk].disk));
    }
    op_emit(op, "step", data);
}

/* An end record could not be written: what it says would be lost. */
static void op_on_end_written(void *data, const struct err *err)
{
    struct op *op = data;
    if (err != NULL && op->state == OP_RUNNING) {
        op_break(op, err);
    }
}

/*
 * The next step does not wait for this record: its own intent is written
 * behind it, so when that is durable this is too.
 */
static void act_record_end(struct act *act)
{
    struct op *op = act->op;
    const struct step *step = act->step;
    struct mark *mark = op_mark(op, step, act->disk);
    bool undoing = act->mode == ACT_UNDO;
    if (op_journals(op, step)) {
        if (act->facts != NULL) {
            json_decref(mark->facts);
            mark->facts = json_incref(act->facts);
        }
        mark->status = undoing ? MARK_UNDONE : MARK_END;
        op->pivoted =
            op->pivoted || (!undoing && (step->flags & STEP_PIVOT) != 0);
        int r = journal_append(op->host.journal, op->id,
                               undoing ? JOURNAL_UNDONE : JOURNAL_END,
                               step->name, act->disk, mark->facts, op_now_us(),
                               op_on_end_written, op);
        op_emit_step(act, undoing ? "undone" : "end");
        if (r < 0) {
            _cleanup_err_ struct err *err = NULL;
            (void)err_set(&err, r, op->id, "journal cannot be written");
            act_free(act);
            op_on_end_written(op, err);
            return;
        }
    }
    act_free(act);
    op_turn(op);
}

static void act_retry(struct act *act)
{
    struct op *op = act->op;
    const struct step *step = act->step;
    int disk = act->disk;
    enum act_mode mode = act->mode;
    unsigned tries = act->tries;
    act_free(act);
    act_start(op, step, disk, mode);
    if (!list_empty(&op->acts)) {
        struct act *next = container_of(op->acts.prev, struct act, node);
        next->tries = tries;
    }
}

/*
 * The way back goes on: what is left on the source may hold up the guest. The
 * claims stay, for whoever takes it up; the journal has it still to be undone.
 */
static void op_skip_undo(struct act *act, const struct err *err)
{
    struct op *op = act->op;
    op_mark(op, act->step, act->disk)->status = MARK_SKIPPED;
    op->dst_stalled = op->dst_stalled || err->code == -ETIMEDOUT;
    if (!op->dst_left) {
        err_free(op->error);
        op->error = err_copy(err);
    }
    op->dst_left = true;
    op_warn(op, "the destination cannot be set back: going on at the source");
    act_free(act);
    op_turn(op);
}

void op_on_act_end(struct act *act, const struct err *err)
{
    struct op *op = act->op;
    const struct step *step = act->step;
    bool undoing = act->mode == ACT_UNDO;
    if (err == NULL) {
        act_record_end(act);
        return;
    }
    if (!undoing && op->pivoted && (step->flags & STEP_SPARE) != 0) {
        _cleanup_free_ char *text = err_text(err);
        op_warn(op, text != NULL ? text : step->name);
        act_record_end(act);
        return;
    }
    if ((undoing || op->pivoted) && ++act->tries < ACT_TRIES_MAX &&
        err->code != -ECHILD && vm_state(act_vm(act)) != VM_GONE) {
        /* Both ways out need it: a busy node or job may be free soon. */
        act->ended = false;
        act_again(act, RETRY_MS, act_retry);
        return;
    }
    if (!undoing && (step->flags & STEP_PIVOT) != 0) {
        /* In doubt: the guest's own graph decides. */
        if (op->error == NULL) {
            op->error = err_copy(err);
        }
        int disk = act->disk;
        act_free(act);
        act_start(op, step, disk, ACT_PROBE);
        return;
    }
    if (undoing && (step->flags & STEP_DST) != 0) {
        op_skip_undo(act, err);
        return;
    }
    if (undoing) {
        /* Both copies stay: say what could not be taken back, and why. */
        op->must_park = true;
        op->error = err_free(op->error);
    }
    act_free(act);
    op_break(op, err);
}

/* Once more, though an earlier try may have left something. */
static void act_repeat(struct op *op, const struct step *step, int disk)
{
    act_start(op, step, disk, ACT_RUN);
    if (!list_empty(&op->acts)) {
        container_of(op->acts.prev, struct act, node)->repeated = true;
    }
}

void op_on_act_probed(struct act *act, enum probe_verdict verdict)
{
    struct op *op = act->op;
    const struct step *step = act->step;
    int disk = act->disk;
    bool pivot = (step->flags & STEP_PIVOT) != 0;
    switch (verdict) {
    case PROBE_DONE:
        if (pivot) {
            op->error = err_free(op->error);
        }
        act_record_end(act);
        return;
    case PROBE_NOT_DONE:
        act_free(act);
        op->pivot_denied = op->pivot_denied || pivot;
        if (!pivot) {
            act_repeat(op, step, disk);
        } else if (op->error != NULL) {
            op_turn(op);
        } else {
            _cleanup_err_ struct err *err = NULL;
            (void)err_set(&err, -ECANCELED, op->id, "the pivot did not happen");
            op_break(op, err);
        }
        return;
    case PROBE_UNKNOWN:
        act_free(act);
        op->must_park = true;
        if (op->error == NULL) {
            (void)err_set(&op->error, -EREMOTEIO, op->id,
                          "step '%s' may or may not have happened", step->name);
        }
        op_turn(op);
        return;
    }
}

/* --- what is next --- */

void op_turn(struct op *op)
{
    op->again = true;
    if (op->turning) {
        return;
    }
    op->turning = true;
    while (op->again && !op->closing) {
        op->again = false;
        op_step(op);
    }
    op->turning = false;
}

bool op_lost_qemu(const struct op *op)
{
    return op->stranger || vm_state(op->vm) == VM_GONE;
}

/* The pivot is in doubt: its probe decides before anything else is done. */
static void op_step_doubt(struct op *op)
{
    if (op_lost_qemu(op)) {
        op->must_park = true;
        op->again = true;
        return;
    }
    if (vm_state(op->vm) == VM_UP) {
        act_start(op, op_pivot_step(op), ALL_DISKS, ACT_PROBE);
    }
}

static bool is_opening(const struct op *op)
{
    return vm_state(op->vm) == VM_OPENING ||
           (op->dst_vm != NULL && vm_state(op->dst_vm) == VM_OPENING);
}

static bool is_up(const struct op *op)
{
    return vm_state(op->vm) == VM_UP &&
           (op->dst_vm == NULL || vm_state(op->dst_vm) == VM_UP);
}

static void op_step(struct op *op)
{
    if (!list_empty(&op->acts)) {
        return;
    }
    if (op->must_park && op->state != OP_PLANNING) {
        op_end(op, OP_PARKED, QPIVOT_PARKED);
    } else if (op->state == OP_PLANNING) {
        op_step_plan(op);
    } else if (op->state == OP_UNDOING) {
        op_step_undo(op);
    } else if (op->identifying) {
        return;
    } else if ((op->error != NULL || op->undo_asked) && op_pivoting(op)) {
        op_step_doubt(op);
    } else if (op->error != NULL && op->pivoted) {
        op_end(op, OP_PARKED, QPIVOT_PARKED);
    } else if (op->error != NULL || (op->undo_asked && !op->pivoted)) {
        if (op->error == NULL) {
            (void)err_set(&op->error, -ECANCELED, NULL, "undone on request");
        }
        (void)op_set_state(op, OP_UNDOING, NULL);
        op->again = true;
    } else if (!is_opening(op)) {
        op_step_run(op);
    }
}

static void op_step_plan(struct op *op)
{
    if (!is_up(op)) {
        if (op->error != NULL) {
            bool refused = op->problems != NULL;
            op_end(op, OP_REFUSED,
                   refused ? QPIVOT_REFUSED : QPIVOT_UNREACHABLE);
        }
        return;
    }
    if (op->error != NULL && op->problems == NULL) {
        op_end(op, OP_REFUSED,
               op->error->code == -ETIMEDOUT ? QPIVOT_UNREACHABLE
                                             : QPIVOT_REFUSED);
        return;
    }
    const struct operation *operation = op->operation;
    while (op->pos < operation->n_plan_steps) {
        const struct step *step = &operation->plan_steps[op->pos++];
        int first, last;
        first_and_last(op, step, &first, &last);
        for (int disk = first; disk <= last; disk++) {
            if (wanted(op, step, disk)) {
                act_start(op, step, disk, ACT_RUN);
            }
        }
        if (!list_empty(&op->acts) || op->closing) {
            return;
        }
    }
    op_planned(op);
}

static void op_planned(struct op *op)
{
    op->operation->decide(op);
    if (op->closing) {
        return; /* op_conclude() */
    }
    if (op->problems != NULL) {
        op_end(op, OP_REFUSED, QPIVOT_REFUSED);
        return;
    }
    if (op->dry_run) {
        op_end(op, OP_DONE, QPIVOT_DONE);
        return;
    }
    if (!op->plan->adopted) {
        op->marks = calloc(op_n_marks(op), sizeof(*op->marks));
    }
    _cleanup_err_ struct err *err = NULL;
    json_auto_t *plan = plan_to_json(op->plan);
    json_auto_t *record = json_pack(
        "{s:s, s:i, s:s, s:O*, s:o*, s:o*}", "kind", op->operation->kind,
        "version", op->operation->version, "qmp", op->plan->qmp, "plan", plan,
        "engine", op_owner(), "marks", op_adopted_marks(op));
    op->pos = 0;
    op->state = OP_RUNNING;
    /* Nothing starts before the record is durable: see op_on_journalled(). */
    if (op->marks == NULL || plan == NULL || record == NULL) {
        (void)err_set(&err, -ENOMEM, op->id, "out of memory");
    } else if (journal_lock(op->host.journal, op->id, &op->lock, &err) == 0) {
        op->recorded = true;
        int r = journal_append(op->host.journal, op->id, JOURNAL_OPERATION,
                               op_state_name(OP_RUNNING), ALL_DISKS, record,
                               op_now_us(), op_on_journalled, op);
        if (r < 0) {
            (void)err_set(&err, r, op->id, "journal cannot be written");
        }
    }
    if (err != NULL) {
        op_on_journalled(op, err);
    }
}

static void op_on_journalled(void *data, const struct err *err)
{
    struct op *op = data;
    if (err != NULL) {
        if (op->error == NULL) {
            op->error = err_copy(err);
        }
        op_end(op, OP_REFUSED, QPIVOT_REFUSED);
        return;
    }
    op->journalled = true;
    op_turn(op);
}

static void op_step_run(struct op *op)
{
    const struct operation *operation = op->operation;
    if (!op->journalled) {
        return;
    }
    op_take_return(op);
    for (; op->pos < operation->n_steps; op->pos++) {
        const struct step *step = &operation->steps[op->pos];
        int first, last;
        first_and_last(op, step, &first, &last);
        for (int disk = first; disk <= last && op->error == NULL; disk++) {
            struct mark *mark = op_mark(op, step, disk);
            if (mark->status == MARK_END || !wanted(op, step, disk)) {
                continue;
            }
            bool probe = mark->status == MARK_INTENT && step->probe != NULL;
            act_start(op, step, disk, probe ? ACT_PROBE : ACT_RUN);
        }
        if (!list_empty(&op->acts) || op->closing || op->error != NULL) {
            return;
        }
    }
    if (op->returning) {
        op_end_return(op);
    } else {
        op_end(op, OP_DONE, QPIVOT_DONE);
    }
}

static void op_step_undo(struct op *op)
{
    if (is_opening(op)) {
        return;
    }
    for (unsigned i = op_n_marks(op); i-- > 0;) {
        unsigned width = op->plan->n_disks + 1;
        const struct step *step = &op->operation->steps[i / width];
        struct mark *mark = &op->marks[i];
        bool stays = !op_is_table(op, step) ||
                     (op->dst_left && step->undo == claim_give) ||
                     (op->dst_stalled && (step->flags & STEP_DST) != 0);
        if ((mark->status == MARK_INTENT || mark->status == MARK_END) &&
            step->undo != NULL && !stays) {
            act_start(op, step, (int)(i % width) - 1, ACT_UNDO);
            return;
        }
    }
    if (op->returning) {
        op_leave_return(op);
        (void)op_set_state(op, OP_RUNNING, NULL);
    } else if (op->dst_left) {
        op_end(op, OP_PARKED, QPIVOT_PARKED);
    } else {
        op_end(op, OP_UNDONE, QPIVOT_FAILED);
    }
}

/* --- states and ends --- */

/* Whether 'cb' will come, when the journal has it or cannot have it. */
static bool op_set_state(struct op *op, enum op_state state, journal_fn *cb)
{
    static const bool allowed[OP_DETACHED + 1][OP_DETACHED + 1] = {
        [OP_PLANNING] = {[OP_RUNNING] = true,
                         [OP_REFUSED] = true,
                         [OP_DONE] = true,
                         [OP_DETACHED] = true},
        [OP_RUNNING] = {[OP_UNDOING] = true,
                         [OP_REFUSED] = true,
                         [OP_DONE] = true,
                         [OP_UNDONE] = true,   /* see op-return.c */
                        [OP_PARKED] = true,
                         [OP_DETACHED] = true},
        [OP_UNDOING] = {[OP_UNDONE] = true,
                         [OP_RUNNING] = true, /* see op-return.c */
                        [OP_PARKED] = true,
                         [OP_DETACHED] = true },
    };
    assert(allowed[op->state][state]);
    op->state = state;
    if (!op->recorded || state == OP_DETACHED) {
        return false;
    }
    json_auto_t *result = NULL;
    if (op->error != NULL) {
        result = json_pack("{s:o*}", "error", err_to_json(op->error));
    } else if (state == OP_DONE && op->operation->result != NULL) {
        result = json_pack("{s:o*}", "disks", op->operation->result(op));
        if (op->operation->total != NULL) {
            op->operation->total(op, result);
        }
    }
    int r = journal_append(op->host.journal, op->id, JOURNAL_STATE,
                           op_state_name(state), ALL_DISKS, result, op_now_us(),
                           cb, op);
    return r == 0 && cb != NULL;
}

/* Whether the pivot has been begun: from here only its probe decides. */
bool op_pivoting(const struct op *op)
{
    const struct step *step = op->marks != NULL ? op_pivot_step(op) : NULL;
    return step != NULL && op->state == OP_RUNNING && !op->pivot_denied &&
           op_mark(op, step, ALL_DISKS)->status == MARK_INTENT;
}

static double seconds_of(const struct op *op)
{
    return (double)(uv_now(op->host.loop) - op->started_ms) / 1000.0;
}

static void emit_end(struct op *op, enum op_state state)
{
    double seconds = seconds_of(op);
    json_t *data = json_pack("{s:f}", "seconds", seconds);
    if (state == OP_PARKED && op->operation->parked != NULL) {
        op->operation->parked(op, &op->error);
    }
    if (op->error != NULL) {
        (void)json_object_set_new(data, "error", err_to_json(op->error));
    }
    if (op->plan->adopted && (state == OP_DONE || state == OP_UNDONE)) {
        (void)json_object_set_new(data, "left",
                                  op_left(op, state == OP_UNDONE));
    }
    if (state == OP_DONE) {
        if (op->dry_run) {
            (void)json_object_set_new(data, "dry_run", json_true());
        }
        (void)json_object_set_new(data, "disks", op->operation->result(op));
        if (op->operation->total != NULL && !op->dry_run) {
            op->operation->total(op, data);
        }
        op_emit(op, "done", data);
    } else if (state == OP_PARKED || state == OP_DETACHED) {
        _cleanup_free_ char *next =
            op->next != NULL ? strdup(op->next)
                             : str_printf("qpivot recover %s", op->id);
        if (op->pos < op->operation->n_steps) {
            (void)json_object_set_new(
                data, "step", json_string(op->operation->steps[op->pos].name));
        }
        (void)json_object_set_new(data, "next",
                                  json_string(next != NULL ? next : ""));
        op_emit(op, "parked", data);
    } else {
        if (op->problems != NULL) {
            (void)json_object_set(data, "problems", op->problems);
        }
        if (op->returning) {
            (void)json_object_set_new(data, "returned", json_true());
        }
        op_emit(op, "failed", data);
    }
}

void op_end(struct op *op, enum op_state state, enum qpivot_outcome outcome)
{
    if (op->closing) {
        return;
    }
    op_cancel_acts(op);
    if (op->next != NULL && state == OP_REFUSED && outcome == QPIVOT_REFUSED) {
        state = OP_DETACHED; /* something may have been changed already */
        outcome = QPIVOT_PARKED;
    }
    if (op->beat != NULL) {
        qmp_call_cancel(TAKE_PTR(op->beat));
    }
    /* What is told to be over must be so for recover, too. */
    bool over = state == OP_DONE || state == OP_UNDONE;
    bool waits = op_set_state(op, state, over ? op_on_end_state : NULL);
    op->closing = true;
    list_foreach(it, &op->acts) {
        act_hurry(container_of(it, struct act, node));
    }
    op->ending = waits;
    op->outcome = outcome;
    /* Whoever lets go in the frozen moment leaves the thaw to the guard. */
    op->guard = state == OP_DETACHED || state == OP_PARKED
                    ? watchdog_abandon(op->guard)
                    : watchdog_disarm(op->guard);
    if (!waits) {
        op_let_go(op);
    }
}

void op_set_next(struct op *op, const char *next)
{
    free(op->next);
    op->next = strdup(next);
}

void op_conclude(struct op *op, const char *event, json_t *data,
                 enum qpivot_outcome outcome)
{
    if (data != NULL) {
        (void)json_object_set_new(data, "seconds", json_real(seconds_of(op)));
    }
    op_emit(op, event, data);
    op->told = true;
    op_end(op, OP_DONE, outcome);
}

static void op_on_end_state(void *data, const struct err *err)
{
    struct op *op = data;
    op->ending = false;
    if (err != NULL) {
        bool done = op->state == OP_DONE;
        err_free(op->error);
        op->error = err_copy(err);
        err_hint(&op->error,
                 "all is %s, but the journal does not know: make space there,"
                 " then 'qpivot recover' takes up what it knows",
                 done ? "done" : "rolled back");
        op->state = OP_PARKED;
        op->outcome = QPIVOT_PARKED;
    }
    op_let_go(op);
}

void op_let_go(struct op *op)
{
    if (!op->told && !op->ending) {
        op->told = true;
        emit_end(op, op->state);
    }
    /* A worker may still hold a volume of ours: see act_leave_late(). */
    if (op->told && list_empty(&op->acts)) {
        op_on_vm_closed(op);
    }
}

/* One after the other: the source's, the destination's, storage, the timer. */
static void op_on_vm_closed(void *data)
{
    struct op *op = data;
    struct vm *vm = TAKE_PTR(op->vm);
    if (vm == NULL) {
        vm = TAKE_PTR(op->dst_vm);
    }
    if (vm != NULL) {
        vm_close(vm, op_on_vm_closed, op);
        return;
    }
    if (!keep_close(op->keep, op->host.loop, op_on_kept_closed, op)) {
        op_on_kept_closed(op);
    }
}

static void op_on_kept_closed(void *data)
{
    struct op *op = data;
    uv_close((uv_handle_t *)&op->tick, op_on_tick_closed);
}

static void op_on_tick_closed(uv_handle_t *handle)
{
    struct op *op = handle->data;
    struct qpivot_callbacks callbacks = op->callbacks;
    enum qpivot_outcome outcome = op->outcome;
    struct op_host host = op->host;
    journal_forget(host.journal, op);
    journal_unlock(op->lock);
    for (unsigned i = 0; i < op->plan->n_disks; i++) {
        volume_free(op->volumes[i]);
    }
    for (unsigned i = 0; op->marks != NULL && i < op_n_marks(op); i++) {
        json_decref(op->marks[i].facts);
    }
    if (op->request_free != NULL) {
        op->request_free(op->request);
    }
    keep_unref(op->keep);
    free(op->volumes);
    free(op->marks);
    free(op->next);
    json_decref(op->problems);
    err_free(op->error);
    plan_free(op->plan);
    host.gone(host.data, op);
    free(op);
    if (callbacks.ended != NULL) {
        callbacks.ended(callbacks.data, outcome);
    }
}

void op_cancel_acts(struct op *op)
{
    list_foreach_safe(it, &op->acts) {
        act_cancel(container_of(it, struct act, node));
    }
}
