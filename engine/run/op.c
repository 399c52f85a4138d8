/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * An operation as an object: how it is made, anew or from the journal, what
 * it hands out, and what wakes it up. What comes next is op-turn.c's.
 */
#include "run/op.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "backends/keep.h"
#include "base/str.h"
#include "qmp/qmp.h"
#include "run/claim.h"
#include "run/op-private.h"
#include "run/watchdog.h"

enum {
    TICK_MS = 50,
    BEAT_MS = 2000,
    BEAT_LIMIT_MS = 5000,
    REAL_DIGITS = 15, /* 0.265, not 0.26500000000000001 */
};

static int op_alloc(const struct op_host *host,
                    const struct operation *operation, struct plan *plan,
                    const struct qpivot_callbacks *callbacks, struct op **ret);
static int op_open_vms(struct op *op, struct err **errp);
static int op_open_vm(struct op *op, bool dst, struct err **errp);
static void op_on_vm(void *data, enum vm_state state, const struct err *err);
static void op_on_stalled(void *data);
static void op_on_vm_event(void *data, const char *name, const json_t *event);
static void op_on_dst(void *data, enum vm_state state, const struct err *err);
static void op_on_dst_event(void *data, const char *name, const json_t *event);
static void op_wake(struct op *op, const char *event);
static void op_on_vm_warning(void *data, const char *message);
static void op_on_tick(uv_timer_t *timer);
static void op_poke(struct op *op);
static void op_identify(struct op *op);
static void op_on_identity(void *data, const struct err *err, json_t *result);
static void op_on_gone(struct op *op, const struct err *err);
static void op_on_unreachable(struct op *op, const struct err *err);

unsigned op_n_marks(const struct op *op)
{
    return op->operation->n_steps * (op->plan->n_disks + 1);
}

int op_new(const struct op_host *host, const struct operation *operation,
           struct plan *plan, void *request, void (*request_free)(void *),
           const struct qpivot_callbacks *callbacks, struct op **ret,
           struct err **errp)
{
    struct op *op = NULL;
    unsigned char random[8];
    int r = op_alloc(host, operation, plan, callbacks, &op);
    if (r < 0) {
        plan_free(plan);
        return err_set(errp, r, operation->kind, "out of memory");
    }
    op->request = request;
    op->request_free = request_free;
    r = uv_random(NULL, NULL, random, sizeof(random), 0, NULL);
    if (r == 0) {
        op_id_from(random, op->id);
        op->state = OP_PLANNING;
        r = op_open_vms(op, errp);
    }
    if (r < 0) {
        op->callbacks = (struct qpivot_callbacks){0};
        op->request_free = NULL;
        op_end(op, OP_REFUSED, QPIVOT_REFUSED);
        return r;
    }
    *ret = op;
    return 0;
}

int op_load(const struct op_host *host, const struct operation *operation,
            const json_t *journalled, struct journal_lock *lock,
            const char *qmp, int undo, const struct qpivot_callbacks *callbacks,
            struct op **ret, struct err **errp)
{
    struct op *op = NULL;
    struct plan *plan = NULL;
    const char *id = json_string_value(json_object_get(journalled, "op"));
    const char *state = json_string_value(json_object_get(journalled, "state"));
    int r = plan_from_json(json_object_get(journalled, "plan"), &plan, errp);
    if (r < 0) {
        journal_unlock(lock);
        return r;
    }
    if (qmp != NULL) {
        free(plan->qmp);
        plan->qmp = strdup(qmp);
    }
    r = plan->qmp == NULL || !op_id_valid(id)
            ? -EPROTO
            : op_alloc(host, operation, plan, callbacks, &op);
    if (r < 0) {
        plan_free(plan);
        journal_unlock(lock);
        return err_set(errp, r, id, "journal's plan is not usable");
    }
    op->lock = lock;
    (void)snprintf(op->id, sizeof(op->id), "%s", id);
    op->recovered = true;
    op->journalled = op->recorded = true;
    op->undo_asked = undo == 1;
    op->return_asked = undo != 0;
    op->return_or_park = undo > 1;
    op->state = str_eq(state, "undoing") ? OP_UNDOING : OP_RUNNING;
    r = op_restore_marks(op, json_object_get(journalled, "records"));
    op->state = str_eq(state, "undoing") ? OP_UNDOING : op->state;
    if (r == 0 && undo > 1 && !op_has_window(op)) {
        r = err_set(errp, -EALREADY, id, "has no undo window, or it is over");
    }
    op_own(op, json_object_get(journalled, "records"));
    for (unsigned i = 0; r == 0 && i < plan->n_disks; i++) {
        const struct plan_disk *disk = &plan->disks[i];
        if (!operation->no_volumes || plan_disk_has_volume(disk)) {
            r = volume_parse(disk->to, &op->volumes[i], errp);
        }
    }
    if (r == 0) {
        r = op_open_vms(op, errp);
    }
    if (r < 0) {
        op->callbacks = (struct qpivot_callbacks){0};
        op_end(op, OP_DETACHED, QPIVOT_PARKED);
        return r;
    }
    *ret = op;
    return 0;
}

const char *op_id(const struct op *op)
{
    return op->id;
}

enum op_state op_state(const struct op *op)
{
    return op->state;
}

const char *op_state_name(enum op_state state)
{
    static const char *const names[] = {
        [OP_PLANNING] = "planning", [OP_RUNNING] = "running",
        [OP_UNDOING] = "undoing",   [OP_DONE] = "done",
        [OP_UNDONE] = "undone",     [OP_REFUSED] = "refused",
        [OP_PARKED] = "parked",     [OP_DETACHED] = "detached",
    };
    return names[state];
}

bool op_pivoted(const struct op *op)
{
    return op->pivoted;
}

/*
 * Both may come from the user's event callback, in the middle of an act: the
 * next tick acts upon them.
 */
int op_abort(struct op *op)
{
    op->abort_asked = !op->pivoted && !op->returning;
    return op->abort_asked ? 0 : -EALREADY;
}

void op_detach(struct op *op)
{
    op->detach_asked = true;
}

struct plan *op_plan(struct op *op)
{
    return op->plan;
}

void *op_request(struct op *op)
{
    return op->request;
}

struct vm *op_vm(struct op *op)
{
    return op->vm;
}

struct vm *op_dst_vm(struct op *op)
{
    return op->dst_vm;
}

int op_set_disks(struct op *op, unsigned n_disks)
{
    struct volume **volumes = calloc(n_disks + 1, sizeof(struct volume *));
    if (volumes == NULL || plan_set_disks(op->plan, n_disks) < 0) {
        free(volumes);
        return -ENOMEM;
    }
    free(op->volumes);
    op->volumes = volumes;
    return 0;
}

struct volume *op_volume(struct op *op, unsigned disk)
{
    return op->volumes[disk];
}

void op_set_volume(struct op *op, unsigned disk, struct volume *volume)
{
    volume_free(op->volumes[disk]);
    op->volumes[disk] = volume;
}

bool op_dry_run(const struct op *op)
{
    return op->dry_run;
}

void op_set_dry_run(struct op *op)
{
    op->dry_run = true;
}

void op_problem(struct op *op, struct err *err)
{
    if (op->problems == NULL) {
        op->problems = json_array();
    }
    (void)json_array_append_new(op->problems, err_to_json(err));
    if (op->error == NULL) {
        op->error = err;
    } else {
        err_free(err);
    }
}

const json_t *op_problems(const struct op *op)
{
    return op->problems;
}

void op_emit(struct op *op, const char *event, json_t *data)
{
    char time[STR_TIME_MAX];
    json_auto_t *json = data != NULL ? data : json_object();
    (void)json_object_set_new(json, "time",
                              json_string(str_time(op_now_us(), time)));
    (void)json_object_set_new(json, "op", json_string(op->id));
    (void)json_object_set_new(json, "event", json_string(event));
    _cleanup_free_ char *text =
        json_dumps(json, JSON_COMPACT | JSON_REAL_PRECISION(REAL_DIGITS));
    if (text != NULL && op->callbacks.event != NULL) {
        op->callbacks.event(op->callbacks.data, text);
    }
}

void op_warn(struct op *op, const char *message)
{
    op_emit(op, "warning", json_pack("{s:s}", "message", message));
}

const json_t *op_fact(const struct op *op, const char *step, int disk,
                      const char *key)
{
    for (unsigned i = 0; op->marks != NULL && i < op->operation->n_steps; i++) {
        const struct step *found = &op->operation->steps[i];
        if (strcmp(found->name, step) == 0) {
            bool per_disk = (found->flags & STEP_PER_DISK) != 0;
            return json_object_get(
                op_mark(op, found, per_disk ? disk : ALL_DISKS)->facts, key);
        }
    }
    return NULL;
}

struct mark *op_mark(const struct op *op, const struct step *step, int disk)
{
    static struct mark none; /* of a plan step, which leaves no mark */
    if (!op_journals(op, step)) {
        none = (struct mark){0};
        return &none;
    }
    size_t row = (size_t)(step - op->operation->steps);
    return &op->marks[row * (op->plan->n_disks + 1) + (size_t)(disk + 1)];
}

uint64_t op_now_us(void)
{
    uv_timeval64_t now;
    return uv_gettimeofday(&now) == 0
               ? (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_usec
               : 0;
}

bool op_journals(const struct op *op, const struct step *step)
{
    return step >= op->operation->steps &&
           step < op->operation->steps + op->operation->n_steps;
}

/* --- making one --- */

static int op_alloc(const struct op_host *host,
                    const struct operation *operation, struct plan *plan,
                    const struct qpivot_callbacks *callbacks, struct op **ret)
{
    struct op *op = calloc(1, sizeof(*op));
    struct volume **volumes =
        calloc(plan->n_disks + 1, sizeof(struct volume *));
    if (op == NULL || volumes == NULL) {
        free(op);
        free(volumes);
        return -ENOMEM;
    }
    op->host = *host;
    op->operation = operation;
    op->plan = plan;
    op->volumes = volumes;
    op->callbacks = *callbacks;
    op->started_ms = uv_now(host->loop);
    list_init(&op->acts);
    int r = keep_new(&op->keep);
    if (r == 0 && host->born != NULL) {
        r = host->born(host->data, op);
    }
    if (r < 0) {
        keep_unref(op->keep);
        free(op);
        free(volumes);
        return r;
    }
    (void)uv_timer_init(host->loop, &op->tick);
    op->tick.data = op;
    (void)uv_timer_start(&op->tick, op_on_tick, TICK_MS, TICK_MS);
    *ret = op;
    return 0;
}

static int op_open_vms(struct op *op, struct err **errp)
{
    const char *dst = op->plan->dst_qmp;
    int r = op_open_vm(op, false, errp);
    return r == 0 && dst != NULL && *dst != '\0' ? op_open_vm(op, true, errp)
                                                 : r;
}

/* Stream and exports are to come by the connection of its monitor. */
static int open_tunnel(const struct op *op, struct qmp_addr *addr,
                       struct err **errp)
{
    static const enum name_once sockets[] = {NAME_STREAM, NAME_EXPORTS};

    int r = 0;
    for (unsigned i = 0; r == 0 && i < ARRAY_SIZE(sockets); i++) {
        r = qmp_addr_forward(addr, name_once(op->id, sockets[i]).text);
    }
    /* Where no tunnel goes the plan says so, with all the rest. */
    return r < 0 && r != -ENOTSUP
               ? err_set(errp, r, qmp_addr_text(addr),
                         "no tunnel goes there: %s", strerror(-r))
               : 0;
}

static int op_open_vm(struct op *op, bool dst, struct err **errp)
{
    struct qmp_addr *addr = NULL;
    const struct plan *plan = op->plan;
    int r = qmp_addr_parse(dst ? plan->dst_qmp : plan->qmp, &addr, errp);
    if (r < 0) {
        return r;
    }
    if (dst && plan->tunnel) {
        r = open_tunnel(op, addr, errp);
    }
    if (r < 0) {
        qmp_addr_free(addr);
        return r;
    }
    struct vm_options options = {
        .loop = op->host.loop,
        .addr = addr,
        .trace = op->host.trace,
        .cache_dir = op->host.state_dir,
        .process = {dst ? plan->dst_pid : plan->qemu_pid,
                    dst ? plan->dst_start : plan->qemu_start}
    };
    struct vm_owner owner = {.data = op,
                             .changed = dst ? op_on_dst : op_on_vm,
                             .event = dst ? op_on_dst_event : op_on_vm_event,
                             .stalled = dst ? NULL : op_on_stalled,
                             .warning = op_on_vm_warning};
    r = vm_open(&options, &owner, dst ? &op->dst_vm : &op->vm, errp);
    qmp_addr_free(addr);
    return r;
}

/* --- what wakes it up --- */

/*
 * Its main loop waits, perhaps for who stalls at the other end of the tunnel:
 * yank does not wake who writes to a unix socket (QEMU up to 10), the end of
 * its peer does. The destination's monitor goes with it, and comes back.
 */
static void op_on_stalled(void *data)
{
    struct op *op = data;
    if (op->plan->tunnel && op->dst_vm != NULL) {
        op_warn(op, "cutting the tunnel");
        vm_reconnect(op->dst_vm);
    }
}

static void op_on_vm(void *data, enum vm_state state, const struct err *err)
{
    struct op *op = data;
    switch (state) {
    case VM_UP:
        op_identify(op);
        break;
    case VM_LOST:
        op->identity = NULL; /* it was told, as every pending call */
        op->standstill = false;
        /* A single-client monitor is held as long as the guard has it. */
        op->guard = watchdog_abandon(op->guard);
        op_warn(op, "the monitor's connection is lost; trying again");
        return;
    case VM_GONE:
        op->identity = NULL;
        op_warn(op, "QEMU is gone");
        op_on_gone(op, err);
        break;
    case VM_UNKNOWN:
        op_on_unreachable(op, err);
        break;
    case VM_OPENING:
    case VM_CLOSED:
        return;
    }
    op_turn(op);
}

/*
 * A connection is open. While the claim is ours it must hold our id, or this
 * is not the QEMU that we left: started anew, or another one altogether.
 */
static void op_identify(struct op *op)
{
    bool claimed = false;
    for (unsigned i = 0; op->marks != NULL && i < op->operation->n_steps; i++) {
        const struct step *step = &op->operation->steps[i];
        enum mark_status status = op_mark(op, step, ALL_DISKS)->status;
        if ((step->flags & STEP_DST) != 0) {
            continue; /* see act_dst_is_doubted() */
        }
        if (step->run == claim_take) {
            claimed = status == MARK_END;
        } else if (step->run == claim_give && status != MARK_NONE) {
            claimed = false;
        }
    }
    struct qmp_call_options options = {
        .timeout_ms = (unsigned)op->plan->command_timeout_ms};
    json_auto_t *args = claim_holder_arguments();
    if (!claimed) {
        op_poke(op);
        return;
    }
    op->identifying = true;
    if (qmp_execute(vm_qmp(op->vm), "qom-get", args, &options, op_on_identity,
                    op, &op->identity) < 0) {
        op->identifying = false;
        op->must_park = true;
    }
}

bool op_is_same_qemu(const struct op *op)
{
    struct vm_process now = vm_process(op->vm);
    return now.pid != 0 && now.pid == op->plan->qemu_pid &&
           now.start == op->plan->qemu_start;
}

static void op_on_identity(void *data, const struct err *err, json_t *result)
{
    struct op *op = data;
    bool absent = err != NULL && str_eq(err->class, "DeviceNotFound");
    op->identity = NULL;
    op->identifying = false;
    if (err != NULL && !absent) {
        if (err->code == -ETIMEDOUT || err->code == -EREMOTEIO) {
            op->must_park = true;
            op_break(op, err);
        }
        return; /* else the connection broke again: lost or gone will come */
    }
    if (absent ? op_is_same_qemu(op)
               : str_eq(json_string_value(result), op->id)) {
        /*
         * A way back that could not be written down has given the claim back:
         * what the journal calls done may be undone, so only back is safe.
         */
        op->undo_asked = op->undo_asked || (absent && op->recovered);
        op_pay_cont(op);
        op_poke(op);
        op_turn(op);
        return;
    }
    _cleanup_err_ struct err *stranger = NULL;
    struct vm_process ours = {op->plan->qemu_pid, op->plan->qemu_start};
    (void)err_set(&stranger, -ESTALE, vm_name(op->vm),
                  "this is not the QEMU that the operation worked on%s",
                  vm_process_lives(ours) ? ", which still runs" : "");
    err_hint(&stranger,
             absent ? "it was started anew, or --qmp names another one, or all"
                      " was taken back when the journal could not be written:"
                      " look which disks the guest uses ('qpivot graph'), then"
                      " 'qpivot recover --undo'"
                    : "it was started anew, or --qmp names another one;"
                      " look which disks the guest uses: 'qpivot graph'");
    /* Nothing is taken back while the right one may still use it. */
    if (vm_process_lives(ours) || (ours.pid == 0 && !op->undo_asked)) {
        op->must_park = true;
    }
    op->stranger = true;
    op_on_gone(op, stranger);
    op_turn(op);
}

/* What was ours in QEMU is no more. */
static void op_on_gone(struct op *op, const struct err *err)
{
    if (op->state == OP_PLANNING) {
        op->error = op->error != NULL ? op->error : err_copy(err);
        op_cancel_acts(op);
        op_end(op, OP_REFUSED, QPIVOT_UNREACHABLE);
        return;
    }
    bool forward = op->pivoted || op->returning || op_pivoting(op);
    if (op->state == OP_RUNNING && (!forward || op->stranger)) {
        op->must_park = op->must_park || forward;
        op_break(op, err);
        return;
    }
    if (op_pivoting(op)) {
        op->must_park = true; /* nobody can tell any more */
        op_break(op, err);
        return;
    }
    list_foreach_safe(it, &op->acts) {
        act_release(container_of(it, struct act, node));
    }
    op_poke(op);
}

static void op_on_unreachable(struct op *op, const struct err *err)
{
    if (op->dst_vm != NULL && op->pivoted && op->state == OP_RUNNING) {
        op_warn(op, "the source is out of reach: the guest is no more there");
        op_poke(op);
        return;
    }
    if (op->error == NULL) {
        op->error = err_copy(err);
    }
    op_cancel_acts(op);
    if (op->state == OP_PLANNING) {
        op_end(op, OP_REFUSED, QPIVOT_UNREACHABLE);
    } else if (op->recovered && op->pos == 0 && err != NULL) {
        op_end(op, OP_DETACHED, QPIVOT_UNREACHABLE);
    } else {
        op->must_park = true;
    }
}

static void op_on_vm_event(void *data, const char *name, const json_t *event)
{
    struct op *op = data;
    if (strcmp(name, "RESUME") == 0 || strcmp(name, "WAKEUP") == 0) {
        op->standstill = op->owes_cont = false;
    }
    if (op->operation->event != NULL && op->state != OP_PLANNING) {
        op->operation->event(op, name, event);
    }
    op_wake(op, name);
}

static void op_on_dst(void *data, enum vm_state state, const struct err *err)
{
    struct op *op = data;
    switch (state) {
    case VM_UP:
        op_poke(op);
        break;
    case VM_LOST:
        op->dst_doubted = true;
        op_warn(op, "the connection to the destination's monitor is lost;"
                    " trying again");
        return;
    case VM_GONE:
        if (!op->pivoted && op->state == OP_UNDOING) {
            op_poke(op); /* a destination that failed ends by itself */
            break;
        }
        op_warn(op, "the destination QEMU is gone");
        list_foreach_safe(it, &op->acts) {
            struct act *act = container_of(it, struct act, node);
            if (act_vm(act) == op->dst_vm) {
                act_release(act);
            }
        }
        op_poke(op);
        op_fail(op, err); /* in the pivot the source tells what became of it */
        break;
    case VM_UNKNOWN:
        if (op->state == OP_PLANNING) {
            op->error = op->error != NULL ? op->error : err_copy(err);
            op_cancel_acts(op);
            op_end(op, OP_REFUSED, QPIVOT_UNREACHABLE);
            return;
        }
        op_warn(op, "the destination's monitor is out of reach");
        if (op->pivoted) {
            op->error = op->error != NULL ? op->error : err_copy(err);
            op->must_park = true;
            op_cancel_acts(op);
        }
        op_poke(op);
        op_fail(op, err);
        break;
    case VM_OPENING:
    case VM_CLOSED:
        return;
    }
    op_turn(op);
}

static void op_on_dst_event(void *data, const char *name, const json_t *event)
{
    struct op *op = data;
    if (op->operation->dst_event != NULL && op->state != OP_PLANNING) {
        op->operation->dst_event(op, name, event);
    }
    op_wake(op, name);
}

/* Events of a stream or of the guest: what waits for them looks at once. */
static void op_wake(struct op *op, const char *event)
{
    static const char *const names[] = {"MIGRATION", "MIGRATION_PASS", "STOP",
                                        "RESUME", "BLOCK_EXPORT_DELETED"};
    for (unsigned i = 0; i < ARRAY_SIZE(names); i++) {
        if (strcmp(names[i], event) == 0) {
            list_foreach(it, &op->acts) {
                act_wake(container_of(it, struct act, node));
            }
            op_poke(op);
            return;
        }
    }
}

static void op_on_vm_warning(void *data, const char *message)
{
    op_warn(data, message);
}

void op_tick_soon(struct op *op)
{
    (void)uv_timer_start(&op->tick, op_on_tick, 0, TICK_MS);
}

/* One that can say what it waits for, or NULL. */
static const struct act *waiting_act(const struct op *op)
{
    list_foreach(it, &op->acts) {
        const struct act *act = container_of(it, struct act, node);
        if (act->waits != NULL && act->disk >= 0) {
            return act;
        }
    }
    return NULL;
}

static void op_on_beat(void *data, const struct err *err, json_t *result)
{
    struct op *op = data;
    (void)result;
    op->beat = NULL;
    if (err != NULL && err->code == -ETIMEDOUT && !op->closing) {
        _cleanup_err_ struct err *error = NULL;
        (void)err_set(&error, -ETIMEDOUT, vm_name(op->dst_vm),
                      "the destination does not answer for %d ms",
                      BEAT_LIMIT_MS);
        op_fail(op, error);
    }
}

/*
 * While disks and memory are on their way only the source is asked. One that
 * stalls at the other end holds up the guest's writes, and says nothing.
 */
static void op_beat(struct op *op, uint64_t now)
{
    bool lasts = op->state == OP_RUNNING && op->error == NULL && !op->pivoted &&
                 op->pos < op->operation->n_steps &&
                 (op->operation->steps[op->pos].flags &
                  (STEP_LONG | STEP_PIVOT)) == STEP_LONG;
    if (op->dst_vm == NULL || !lasts || op->beat != NULL ||
        vm_state(op->dst_vm) != VM_UP || now - op->beat_ms < BEAT_MS) {
        return;
    }
    struct qmp_call_options options = {.timeout_ms = BEAT_LIMIT_MS};
    op->beat_ms = now;
    if (qmp_execute(vm_qmp(op->dst_vm), "query-status", NULL, &options,
                    op_on_beat, op, &op->beat) < 0) {
        op->beat = NULL;
    }
}

/* Each may end others, or the operation: the walk starts again. */
static void op_leave_late(struct op *op, uint64_t now)
{
    bool left = true;
    while (left) {
        left = false;
        list_foreach(it, &op->acts) {
            if (act_leave_late(container_of(it, struct act, node), now)) {
                left = true;
                break;
            }
        }
    }
}

static void op_on_tick(uv_timer_t *timer)
{
    struct op *op = timer->data;
    uint64_t now = uv_now(op->host.loop);
    op_leave_late(op, now);
    if (op->closing) {
        return;
    }
    if (op->detach_asked) {
        op_cancel_acts(op);
        op_end(op, OP_DETACHED, QPIVOT_PARKED);
        return;
    }
    op_look_for_requests(op, now);
    if (op->abort_asked && !op_pivoting(op)) {
        _cleanup_err_ struct err *err = NULL;
        op->abort_asked = false;
        (void)err_set(&err, -ECANCELED, NULL, "aborted by the user");
        op_fail(op, err);
    }
    bool late = op->plan->timeout_ms != 0 && op->state == OP_RUNNING &&
                op->error == NULL && !op->returning &&
                now - op->started_ms >= op->plan->timeout_ms;
    if (late) {
        _cleanup_err_ struct err *err = NULL;
        const struct act *waiter = waiting_act(op);
        (void)err_set(&err, -ETIMEDOUT, NULL,
                      "no pivot within the %u ms of --timeout%s%s%s%s%s%s",
                      (unsigned)op->plan->timeout_ms, waiter ? ": " : "",
                      waiter ? op->plan->disks[waiter->disk].disk : "",
                      waiter ? " " : "", waiter ? waiter->waits : "",
                      waiter ? " " : "", waiter ? waiter->waits_for : "");
        op_fail(op, err);
    }
    op_beat(op, now);
    op_look_return(op);
    op_poke(op);
}

/*
 * Lets every act go on whose time has come. Each may end others, so the walk
 * starts again after each; what woke an act is gone by then.
 */
static void op_poke(struct op *op)
{
    uint64_t now = uv_now(op->host.loop);
    bool poked = true;
    while (poked && !op->closing) {
        poked = false;
        list_foreach(it, &op->acts) {
            if (act_poke(container_of(it, struct act, node), now)) {
                poked = true;
                break;
            }
        }
    }
}
