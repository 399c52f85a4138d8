/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One step being carried out: what its body may use, and how everything that
 * is under way is let go. It decides nothing about order: that is op.c.
 */
#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/spawn.h"
#include "base/str.h"
#include "qmp/qmp.h"
#include "run/op-private.h"
#include "vm/vm.h"

enum { DEADLINE_MS = 60000 };

static void act_begin(struct act *act);
static bool act_waits_for_vm(const struct act *act);
static bool act_lacks_vm(struct act *act);
static void act_on_intent(void *data, const struct err *err);
static void act_on_reply(void *data, const struct err *err, json_t *result);
static void act_on_graph(void *data, const struct err *err,
                         const struct graph *graph);
static void act_on_jobs(struct vm_wait *wait, const struct job_list *jobs);
static void act_on_spawn(void *data, const struct err *err, const char *output);
static void act_forget(struct act *act);
static bool act_hold(struct act *act, const struct err *err);
static void act_set_held(struct act *act);

void act_start(struct op *op, const struct step *step, int disk,
               enum act_mode mode)
{
    struct act *act = calloc(1, sizeof(*act));
    if (act == NULL) {
        _cleanup_err_ struct err *err = NULL;
        (void)err_set(&err, -ENOMEM, step->name, "out of memory");
        op->must_park = op->pivoted || op->returning || op_pivoting(op) ||
                        op->state == OP_UNDOING;
        op_break(op, err);
        return;
    }
    act->op = op;
    act->step = step;
    act->disk = disk;
    act->mode = mode;
    act->side = (step->flags & STEP_DST) != 0 ? ACT_DESTINATION : ACT_SOURCE;
    list_append(&op->acts, &act->node);
    struct mark *mark = op_mark(op, step, disk);
    if (mode == ACT_PROBE || !op_journals(op, step)) {
        act_begin(act);
        return;
    }
    if (mode == ACT_RUN) {
        act->repeated = mark->status == MARK_INTENT; /* by one who died */
        mark->status = MARK_INTENT;
        if ((step->flags & (STEP_LOOKS | STEP_REPEATS)) != 0) {
            act_begin(act);
            return;
        }
    }
    int r =
        journal_append(op->host.journal, op->id,
                       mode == ACT_RUN ? JOURNAL_INTENT : JOURNAL_UNDO,
                       step->name, disk, NULL, op_now_us(), act_on_intent, act);
    if (r < 0) {
        act_error(act, r, "journal cannot be written");
    } else {
        act->recording = true;
    }
}

void act_cancel(struct act *act)
{
    if (act_works(act)) {
        act_cancel_work(act); /* its end frees the act */
        return;
    }
    journal_forget(act->op->host.journal, act);
    act_drop_pending(act);
    act_free(act);
}

bool act_poke(struct act *act, uint64_t now_ms)
{
    if (act->cancelled || act_works(act)) {
        return false;
    }
    if (act->held) {
        /* One that is held again at once would be begun without an end. */
        if (act_waits_for_vm(act) || act->held_ms == now_ms) {
            return false;
        }
        act->held = false;
        /* A reply may have been lost with the connection: look first. */
        if (act->mode == ACT_RUN && act->step->probe != NULL &&
            op_journals(act->op, act->step)) {
            act->mode = ACT_PROBE;
        }
        /* A command may have been lost, too: nothing counts as asked. */
        act_forget(act);
        act_begin(act);
        return true;
    }
    if (act->again_ms != 0 && now_ms >= act->again_ms) {
        step_fn *fn = act->again;
        act->again_ms = 0;
        act->woken = false;
        fn(act);
        return true;
    }
    /* A copy that lasts waits for a QEMU that is silent; a short act cannot. */
    if (act->waiting && act->deadline_ms != 0 &&
        now_ms - act->heard_ms > act->op->plan->command_timeout_ms) {
        act_drop_pending(act);
        act_error(act, -ETIMEDOUT, "QEMU does not tell of its jobs");
        return true;
    }
    if (act->deadline_ms != 0 && now_ms >= act->deadline_ms) {
        act->deadline_ms = 0;
        act_drop_pending(act);
        act_error(act, -ETIMEDOUT, "did not end in time");
        return true;
    }
    return false;
}

void act_wake(struct act *act)
{
    act->woken = true;
    if (act->wakes && act->again_ms != 0) {
        act->again_ms = 1;
    }
}

static void act_set_held(struct act *act)
{
    act->held = true;
    act->held_ms = uv_now(act->op->host.loop);
}

static enum act_side act_home(const struct act *act)
{
    bool dst = (act->step->flags & STEP_DST) != 0;
    return dst ? ACT_DESTINATION : ACT_SOURCE;
}

void act_release(struct act *act)
{
    /* One that waits for its record has not begun: it will look by itself. */
    if (!act->cancelled && !act->recording && !act_works(act) &&
        (act->step->flags & STEP_STORAGE) == 0) {
        act_drop_pending(act);
        act->side = act_home(act); /* there it begins anew */
        act_set_held(act);
    }
}

void act_free(struct act *act)
{
    list_remove(&act->node);
    json_decref(act->facts);
    err_free(act->call_err);
    act_forget(act);
    volume_free(act->own);
    free(act);
}

struct op *act_op(const struct act *act)
{
    return act->op;
}

const struct plan *act_plan(const struct act *act)
{
    return act->op->plan;
}

const struct plan_disk *act_disk(const struct act *act)
{
    return act->disk >= 0 ? &act->op->plan->disks[act->disk] : NULL;
}

const char *act_op_id(const struct act *act)
{
    return act->op->id;
}

struct vm *act_vm(const struct act *act)
{
    return act->side == ACT_DESTINATION ? act->op->dst_vm : act->op->vm;
}

struct vm *act_src_vm(const struct act *act)
{
    return act->op->vm;
}

struct vm *act_dst_vm(const struct act *act)
{
    return act->op->dst_vm;
}

void act_turn_to(struct act *act, enum act_side side)
{
    act_drop_pending(act);
    act->side = side;
}

bool act_dst_is_doubted(const struct act *act)
{
    return act->op->recovered || act->op->dst_doubted;
}

struct volume *act_volume(const struct act *act, unsigned disk)
{
    return act->op->volumes[disk];
}

const json_t *act_fact(const struct act *act, const char *step, const char *key)
{
    return op_fact(act->op, step, act->disk, key);
}

void act_set_facts(struct act *act, json_t *facts)
{
    json_decref(act->facts);
    act->facts = facts;
}

json_t *act_facts(const struct act *act)
{
    return act->facts;
}

void act_end(struct act *act, const struct err *err)
{
    assert(!act->ended && act->mode != ACT_PROBE);
    if (err != NULL && act_hold(act, err)) {
        return;
    }
    act_drop_pending(act);
    act->ended = true;
    op_on_act_end(act, err);
}

void act_give_up(struct act *act, const struct err *err)
{
    act->tries = ACT_TRIES_MAX;
    act_end(act, err);
}

void act_probed(struct act *act, enum probe_verdict verdict)
{
    assert(!act->ended);
    act_drop_pending(act);
    act->ended = true;
    op_on_act_probed(act, verdict);
}

void act_qmp(struct act *act, const char *command, json_t *args,
             act_reply_fn *then)
{
    act_qmp_batch(act, &(struct act_command){command, args}, 1, then);
}

void act_command(struct act *act, act_reply_fn *then)
{
    struct op *op = act->op;
    json_auto_t *command = act->step->command(op->id, op->plan, act_disk(act));
    const char *name = json_string_value(json_object_get(command, "execute"));
    if (name == NULL) {
        act_error(act, -ENOMEM, act->step->name);
        return;
    }
    act_qmp(act, name, json_incref(json_object_get(command, "arguments")),
            then);
}

void act_qmp_batch(struct act *act, const struct act_command *commands,
                   unsigned n_commands, act_reply_fn *then)
{
    struct qmp_command lines[ACT_CALLS_MAX];
    struct qmp *qmp = vm_qmp(act_vm(act));
    const struct plan_disk *disk = act_disk(act);
    unsigned timeout_ms = (unsigned)act->op->plan->command_timeout_ms;
    assert(n_commands <= ACT_CALLS_MAX);
    act_drop_pending(act);
    act->reply = then;
    act->n_calls = n_commands;
    act->n_open = n_commands;
    for (unsigned i = 0; i < n_commands; i++) {
        act->calls[i].act = act;
        lines[i] =
            (struct qmp_command){.command = commands[i].command,
                                 .args = commands[i].args,
                                 .object = disk != NULL ? disk->disk : NULL,
                                 .cb = act_on_reply,
                                 .data = &act->calls[i],
                                 .ret = &act->calls[i].call};
    }
    int r = -ENOTCONN;
    if (qmp != NULL && n_commands == 1) {
        struct qmp_call_options options = {.timeout_ms = timeout_ms,
                                           .object = lines[0].object};
        r = qmp_execute(qmp, lines[0].command, lines[0].args, &options,
                        act_on_reply, &act->calls[0], &act->calls[0].call);
    } else if (qmp != NULL) {
        r = qmp_execute_batch(qmp, lines, n_commands, timeout_ms);
    }
    for (unsigned i = 0; i < n_commands; i++) {
        json_decref(commands[i].args);
    }
    if (r < 0) {
        act->n_calls = act->n_open = 0;
        act_error(act, r, commands[0].command);
    }
}

void act_wait_jobs(struct act *act, act_jobs_fn *fn)
{
    act_drop_pending(act);
    act->jobs = fn;
    act->wait.fn = act_on_jobs;
    act->waiting = true;
    act->heard_ms = uv_now(act->op->host.loop);
    vm_wait_start(act_vm(act), &act->wait);
}

void act_graph(struct act *act, act_graph_fn *then)
{
    act_drop_pending(act);
    act->graph = then;
    int r = vm_graph(act_vm(act), act_on_graph, act, &act->query);
    if (r < 0) {
        act->query = NULL;
        act_error(act, r, "block graph cannot be read");
    }
}

void act_spawn(struct act *act, const char *command, const char *input,
               unsigned timeout_ms, act_spawn_fn *then)
{
    _cleanup_err_ struct err *err = NULL;
    _cleanup_free_ char *env = str_printf("QPIVOT_OP=%s", act->op->id);
    const char *const block[] = {env, NULL};
    act_drop_pending(act);
    act->spawned = then;
    if (spawn_start(act->op->host.loop, command, input, block, timeout_ms,
                    act_on_spawn, act, &act->spawn, &err) < 0) {
        act->spawn = NULL;
        act_end(act, err);
    }
}

void act_again(struct act *act, unsigned ms, step_fn *fn)
{
    act_drop_pending(act);
    act->again = fn;
    act->wakes = false;
    act->again_ms = uv_now(act->op->host.loop) + ms;
}

void act_again_on_event(struct act *act, unsigned ms, step_fn *fn)
{
    act_again(act, ms, fn);
    act->wakes = true;
    if (act->woken) {
        /* It came while the answer was on its way: that may be stale. */
        act->again_ms = 1;
        op_tick_soon(act->op);
    }
}

void act_emit(struct act *act, const char *event, json_t *data)
{
    const struct plan_disk *disk = act_disk(act);
    if (disk != NULL && data != NULL) {
        (void)json_object_set_new(data, "disk", json_string(disk->disk));
    }
    op_emit(act->op, event, data);
}

void act_warn(struct act *act, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    _cleanup_free_ char *message = str_vprintf(fmt, ap);
    va_end(ap);
    act_emit(act, "warning", json_pack("{s:s*}", "message", message));
}

uint64_t act_now_ms(const struct act *act)
{
    return uv_now(act->op->host.loop);
}

bool act_is_repeated(const struct act *act)
{
    return act->repeated || act->tries > 0;
}

bool act_is_same_qemu(const struct act *act)
{
    return op_is_same_qemu(act->op);
}

bool act_has_lost_qemu(const struct act *act)
{
    return op_lost_qemu(act->op);
}

bool act_abort_asked(const struct act *act)
{
    return act->op->abort_asked;
}

void act_set_waiting(struct act *act, const char *what, const char *object)
{
    act->waits = what;
    act->waits_for = object;
}

void *act_scratch(struct act *act, size_t size)
{
    if (act->scratch == NULL) {
        act->scratch = calloc(1, size);
    }
    return act->scratch;
}

static void act_on_intent(void *data, const struct err *err)
{
    struct act *act = data;
    act->recording = false;
    /* Going back must not stop because it cannot be written down. */
    if (err != NULL && act->mode == ACT_RUN) {
        act->ended = true;
        op_on_act_end(act, err);
        return;
    }
    act_begin(act);
}

static void act_begin(struct act *act)
{
    struct op *op = act->op;
    const struct step *step = act->step;
    uint64_t timeout_ms = op->plan->command_timeout_ms + DEADLINE_MS;
    unsigned lasting = act->mode == ACT_RUN    ? STEP_LONG
                       : act->mode == ACT_UNDO ? STEP_LONG_UNDO
                                               : 0;
    bool lasts = (step->flags & lasting) != 0;
    if (lasts) {
        act->deadline_ms = 0;
    } else if (act->deadline_ms == 0) {
        act->deadline_ms = uv_now(op->host.loop) + timeout_ms;
    }
    act->side = (step->flags & STEP_DST) != 0 ? ACT_DESTINATION : ACT_SOURCE;
    if (act->mode != ACT_PROBE) {
        op_emit_step(act, act->mode == ACT_RUN ? "start" : "undo");
    }
    bool asks = act->mode == ACT_PROBE && (step->flags & STEP_ASKS_BOTH) != 0;
    if ((step->flags & STEP_STORAGE) == 0 && !asks && act_lacks_vm(act)) {
        return;
    }
    switch (act->mode) {
    case ACT_RUN:
        step->run(act);
        break;
    case ACT_UNDO:
        step->undo(act);
        break;
    case ACT_PROBE:
        step->probe(act);
        break;
    }
}

/* Whether its QEMU may still come back, or has to be proved dead. */
static bool act_waits_for_vm(const struct act *act)
{
    enum vm_state state = vm_state(act_vm(act));
    if (act->side == ACT_SOURCE && act->op->identifying) {
        return true;
    }
    bool asks =
        act->mode == ACT_PROBE && (act->step->flags & STEP_ASKS_BOTH) != 0;
    bool leaves = act->mode == ACT_UNDO && act->side == ACT_DESTINATION;
    /* The guest has left it: it has ended, or does so unseen. */
    bool left = act->op->pivoted && act->op->dst_vm != NULL &&
                act->side == ACT_SOURCE && (act->step->flags & STEP_TIDY) != 0;
    bool given_up = state == VM_UNKNOWN && (asks || leaves || left);
    return state != VM_UP && state != VM_GONE && !given_up;
}

/* Whether its QEMU is not there: then the act is over already, or held. */
static bool act_lacks_vm(struct act *act)
{
    const struct op *op = act->op;
    const struct step *step = act->step;
    bool stranger = op->stranger && act->side == ACT_SOURCE;
    if (act_waits_for_vm(act) && !stranger) {
        act_set_held(act);
    } else if (vm_state(act_vm(act)) == VM_UP && !stranger) {
        return false;
    } else if (act->mode == ACT_PROBE) {
        act_probed(act, op->pivoted || (step->flags & STEP_PIVOT) != 0
                            ? PROBE_UNKNOWN
                            : PROBE_NOT_DONE);
    } else if (act->mode == ACT_UNDO && (step->flags & STEP_OUTLIVES) != 0) {
        return false;
    } else if (act->mode == ACT_UNDO || (step->flags & STEP_TIDY) != 0) {
        /*
         * What was in QEMU died with it. A destination out of reach has never
         * run the guest and is of no use any more: the source matters.
         */
        act_end(act, NULL);
    } else {
        act_error(act, -ESRCH,
                  act->side == ACT_DESTINATION ? "the destination QEMU is gone"
                                               : "QEMU is gone");
    }
    return true;
}

static void act_on_reply(void *data, const struct err *err, json_t *result)
{
    struct act *act = *(struct act **)data;
    for (unsigned i = 0; i < act->n_calls; i++) {
        if (data == (void *)&act->calls[i]) {
            act->calls[i].call = NULL;
        }
    }
    if (err != NULL && act->call_err == NULL) {
        act->call_err = err_copy(err);
    }
    if (--act->n_open > 0) {
        return;
    }
    act->n_calls = 0;
    _cleanup_err_ struct err *first = TAKE_PTR(act->call_err);
    if (first != NULL && act_hold(act, first)) {
        return;
    }
    if (act->reply != NULL) {
        act->reply(act, first, result);
    } else if (act->mode == ACT_PROBE) {
        act_probed(act, PROBE_UNKNOWN);
    } else {
        act_end(act, first);
    }
}

static void act_on_graph(void *data, const struct err *err,
                         const struct graph *graph)
{
    struct act *act = data;
    act->query = NULL;
    if (err == NULL || !act_hold(act, err)) {
        act->graph(act, err, graph);
    }
}

static void act_on_jobs(struct vm_wait *wait, const struct job_list *jobs)
{
    struct act *act = container_of(wait, struct act, wait);
    act->heard_ms = uv_now(act->op->host.loop);
    act->jobs(act, jobs);
}

static void act_on_spawn(void *data, const struct err *err, const char *output)
{
    struct act *act = data;
    act->spawn = NULL;
    act->spawned(act, err, output);
}

/* An act waits for one thing at a time; taking up the next drops the last. */
void act_drop_pending(struct act *act)
{
    assert(!act_works(act));
    for (unsigned i = 0; i < act->n_calls; i++) {
        if (act->calls[i].call != NULL) {
            qmp_call_cancel(act->calls[i].call);
            act->calls[i].call = NULL;
        }
    }
    act->n_calls = act->n_open = 0;
    act->call_err = err_free(act->call_err);
    if (act->query != NULL) {
        vm_query_cancel(TAKE_PTR(act->query));
    }
    if (act->waiting) {
        vm_wait_stop(&act->wait);
        act->waiting = false;
    }
    if (act->spawn != NULL) {
        spawn_cancel(TAKE_PTR(act->spawn));
    }
    act->again_ms = 0;
}

/* What the body knows, and what it has asked on the side. */
static void act_forget(struct act *act)
{
    act_ask_drop(act);
    free(act->scratch);
    act->scratch = NULL;
}

/*
 * An error that is not QEMU's own answer, with the connection broken: what
 * was asked may have happened. The act waits until the vm is back (then it
 * looks), or is proved gone (then the runner decides). A body that gives up
 * by itself uses none of these codes.
 */
static bool act_hold(struct act *act, const struct err *err)
{
    switch (err->code) {
    case -ECONNRESET:
    case -ECONNABORTED:
    case -EPIPE:
    case -ENOTCONN:
    case -ECANCELED:
    case -EPROTO:
        break;
    default:
        return false;
    }
    if ((act->step->flags & STEP_STORAGE) != 0) {
        return false;
    }
    act_release(act);
    return true;
}

void act_error(struct act *act, int code, const char *what)
{
    _cleanup_err_ struct err *err = NULL;
    const struct plan_disk *disk = act_disk(act);
    (void)err_set(&err, code, disk != NULL ? disk->disk : act->step->name,
                  "%s: %s", what, strerror(-code));
    if (act->mode == ACT_PROBE) {
        if (!act_hold(act, err)) {
            act_probed(act, PROBE_UNKNOWN);
        }
        return;
    }
    act_end(act, err);
}
