/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The stream carries the guest's memory. Whose the guest is, is never
 * guessed: up to migrate-continue the source's, from its "completed" on the
 * destination's, and in between what the source says (docs: migration).
 */
#include "steps/stream.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/err.h"
#include "base/str.h"
#include "policy/precopy.h"
#include "policy/stall.h"
#include "run/claim.h"
#include "run/op.h"
#include "steps/export.h"
#include "steps/tls.h"
#include "steps/transport.h"
#include "vm/vm.h"

enum {
    LOOK_MS = 100, /* between two looks while the guest stands still */
    FOLLOW_MS = 250,
    TELL_MS = 500,
    SETTLE_MS = 30000,
    WEDGED_MS = 1000,
    STALL_MS = 5000, /* the engine's, while the guest still runs */
};

/* What following the stream knows. */
struct following {
    uint64_t begun_ms;
    uint64_t told_ms;
    struct stall stall;
    struct precopy precopy;
    unsigned downtime_ms; /* that QEMU reckons with */
    bool known;           /* 'running' has been seen */
    bool running;
    bool ours; /* an earlier engine may have stopped the guest */
    bool gate; /* stream_gate(): the guest has been stopped already */
    bool cancelled;
    bool completed;       /* the source has handed the guest over */
    bool was_stopped;     /* by us: it is to go on */
    uint64_t wedged_ms;   /* since when it is 'cancelling' */
    struct stall disks[]; /* of one that follows: by disk of the plan */
};

static const char *text_of(const json_t *json, const char *key)
{
    const char *text = json_string_value(json_object_get(json, key));
    return text != NULL ? text : "";
}

static uint64_t count_of(const json_t *json, const char *key)
{
    json_int_t n = json_integer_value(json_object_get(json, key));
    return n > 0 ? (uint64_t)n : 0;
}

static bool is_over(const char *status)
{
    return *status == '\0' || str_eq(status, "none") ||
           str_eq(status, "failed") || str_eq(status, "cancelled");
}

/* The error of a stream that has failed, in QEMU's words. */
static void stream_error(const struct plan *plan, struct err **errp,
                         const json_t *info)
{
    const char *status = text_of(info, "status");
    const char *desc = text_of(info, "error-desc");
    (void)err_set(errp, -EIO, "migration", "%s%s%s",
                  *status != '\0' ? status : "not started",
                  *desc != '\0' ? ": " : "", desc);
    err_hint(errp, "the destination's log says more");
    tls_hint(plan, errp);
}

/* --- settings --- */

static const json_t *former(const struct act *act, const char *key)
{
    const struct plan *plan = act_plan(act);
    bool dst = act_vm(act) == act_dst_vm(act);
    return json_object_get(dst ? plan->dst_before : plan->src_before, key);
}

json_t *capabilities_command(const char *op, const struct plan *plan,
                             const struct plan_disk *disk)
{
    (void)op;
    (void)disk;
    return json_pack("{s:s, s:{s:O}}", "execute", "migrate-set-capabilities",
                     "arguments", "capabilities", plan->capabilities);
}

void capabilities_set(struct act *act)
{
    act_command(act, NULL);
}

static void restore_capabilities(struct act *act)
{
    act_qmp(act, "migrate-set-capabilities",
            json_pack("{s:O}", "capabilities", former(act, "capabilities")),
            NULL);
}

void capabilities_restore(struct act *act)
{
    claim_if_ours(act, restore_capabilities);
}

bool stream_has_parameters(const struct plan *plan,
                           const struct plan_disk *disk)
{
    (void)disk;
    return json_object_size(plan->parameters) > 0;
}

/* The most that the guest is to stand still for. */
static unsigned downtime_limit(const struct plan *plan)
{
    return (unsigned)count_of(plan->parameters, "downtime-limit");
}

/* Bitmaps do not get less while the guest runs: what they take is no choice. */
static unsigned first_downtime(const struct plan *plan)
{
    size_t i;
    const json_t *capability;
    json_array_foreach(plan->capabilities, i, capability) {
        if (str_eq(text_of(capability, "capability"), "dirty-bitmaps")) {
            return downtime_limit(plan);
        }
    }
    return precopy_downtime_ms(downtime_limit(plan), 0);
}

json_t *parameters_command(const char *op, const struct plan *plan,
                           const struct plan_disk *disk)
{
    (void)op;
    (void)disk;
    json_auto_t *first = json_copy(plan->parameters);
    (void)json_object_set_new(first, "downtime-limit",
                              json_integer(first_downtime(plan)));
    return json_pack("{s:s, s:O}", "execute", "migrate-set-parameters",
                     "arguments", first);
}

void parameters_set(struct act *act)
{
    act_command(act, NULL);
}

static void restore_parameters(struct act *act)
{
    act_qmp(act, "migrate-set-parameters",
            json_incref((json_t *)(uintptr_t)former(act, "parameters")), NULL);
}

void parameters_restore(struct act *act)
{
    claim_if_ours(act, restore_parameters);
}

/* --- the stream --- */

static char *stream_uri(struct act *act, struct err **errp)
{
    const struct plan *plan = act_plan(act);
    const json_t *port = op_fact(act_op(act), "incoming", ALL_DISKS, "port");
    _cleanup_free_ char *path = NULL;
    if (transport_has_sockets(plan, NULL)) {
        return transport_path(act, TRANSPORT_STREAM, &path, errp) == 0
                   ? str_printf("unix:%s", path)
                   : NULL;
    }
    bool v6 = strchr(plan->address, ':') != NULL;
    return str_printf("tcp:%s%s%s:%d", v6 ? "[" : "", plan->address,
                      v6 ? "]" : "", (int)json_integer_value(port));
}

/*
 * QEMU stops the guest by itself when the stream comes to its end. If nobody
 * follows it by then, the guard lets the guest go on.
 */
int stream_guard(struct act *act, struct err **errp)
{
    uint64_t limit_ms = act_plan(act)->freeze_limit_ms;
    limit_ms = limit_ms > STALL_MS ? limit_ms : STALL_MS;
    return act_guard_stream(act, (unsigned)limit_ms, stream_must_thaw(act),
                            errp);
}

static void stream_send(struct act *act)
{
    _cleanup_err_ struct err *error = NULL;
    _cleanup_free_ char *uri = stream_uri(act, &error);
    vm_own_stream(act_vm(act), true);
    if (error != NULL || stream_guard(act, &error) < 0) {
        act_end(act, error);
        return;
    }
    act_qmp(act, "migrate", json_pack("{s:s*}", "uri", uri), NULL);
}

static bool is_set(const json_t *capabilities, const json_t *wanted)
{
    size_t i;
    json_t *entry;
    json_array_foreach(capabilities, i, entry) {
        if (json_equal(entry, wanted)) {
            return true;
        }
    }
    return false;
}

static void stream_on_capabilities(struct act *act, const struct err *err,
                                   json_t *result)
{
    _cleanup_err_ struct err *error = err_copy(err);
    size_t i;
    json_t *wanted;
    json_array_foreach(act_plan(act)->capabilities, i, wanted) {
        if (error == NULL && !is_set(result, wanted)) {
            (void)err_set(&error, -ESTALE, vm_name(act_vm(act)),
                          "capability '%s' has been switched off meanwhile",
                          text_of(wanted, "capability"));
        }
    }
    if (error != NULL) {
        act_end(act, error);
    } else {
        stream_send(act);
    }
}

/*
 * Without pause-before-switchover the guest would go over before its disks:
 * what the journal says was set may have been set back since.
 */
static void stream_on_status(struct act *act, const struct err *err,
                             json_t *result)
{
    if (err != NULL) {
        act_end(act, err);
        return;
    }
    bool running = str_eq(text_of(result, "status"), "running");
    act_set_facts(act, json_pack("{s:b}", "running", running));
    act_qmp(act, "query-migrate-capabilities", NULL, stream_on_capabilities);
}

void stream_start(struct act *act)
{
    act_qmp(act, "query-status", NULL, stream_on_status);
}

static void stream_on_runstate(struct act *act, const struct err *err,
                               json_t *result)
{
    bool over = str_eq(text_of(result, "status"), "postmigrate");
    act_probed(act, err != NULL ? PROBE_UNKNOWN
                    : over      ? PROBE_DONE
                                : PROBE_NOT_DONE);
}

static void stream_on_probe(struct act *act, const struct err *err,
                            json_t *result)
{
    if (err == NULL && str_eq(text_of(result, "status"), "completed")) {
        /* Or it is the stream by which the guest came here. */
        act_qmp(act, "query-status", NULL, stream_on_runstate);
        return;
    }
    act_probed(act, err != NULL                          ? PROBE_UNKNOWN
                    : is_over(text_of(result, "status")) ? PROBE_NOT_DONE
                                                         : PROBE_DONE);
}

void stream_probe(struct act *act)
{
    act_qmp(act, "query-migrate", NULL, stream_on_probe);
}

/* --- follow it up to the gate --- */

static void follow_look(struct act *act);
static bool was_decided(const struct act *act, const char *what);
static double follow_seconds(struct act *act);

/* Bytes a second; 0: not measured yet. */
static uint64_t rate_of(const json_t *ram)
{
    double mbps = json_number_value(json_object_get(ram, "mbps"));
    return mbps > 0 ? (uint64_t)(mbps * 125000.0) : 0;
}

bool stream_is_postcopy(const char *status)
{
    return str_starts(status, "postcopy-");
}

void stream_tell(struct act *act, const json_t *info, const char *phase,
                 uint64_t *told_ms)
{
    const json_t *ram = json_object_get(info, "ram");
    uint64_t now = act_now_ms(act);
    if (ram == NULL || now - *told_ms < TELL_MS) {
        return;
    }
    *told_ms = now;
    uint64_t sent = count_of(ram, "transferred");
    uint64_t left = count_of(ram, "remaining");
    act_emit(act, "progress",
             json_pack("{s:s, s:s, s:I, s:I, s:I, s:I}", "disk", "memory",
                       "phase", phase, "bytes", (json_int_t)sent, "total",
                       (json_int_t)(sent + left), "remaining", (json_int_t)left,
                       "rate", (json_int_t)rate_of(ram)));
}

/* A link that is cut ends no connection: what was sent tells. */
static bool follow_stalls(struct act *act, const json_t *info,
                          struct err **errp)
{
    struct following *f = act_scratch(act, sizeof(*f));
    uint64_t sent = count_of(json_object_get(info, "ram"), "transferred");
    uint64_t ms = stall_sample(&f->stall, act_now_ms(act), sent);
    bool sends = str_eq(text_of(info, "status"), "active") ||
                 str_eq(text_of(info, "status"), "setup");
    if (!sends || ms < act_plan(act)->command_timeout_ms) {
        return false;
    }
    (void)err_set(errp, -ETIMEDOUT, "migration",
                  "nothing of the memory was sent for %u s: the link to the"
                  " destination is cut, or it stands still",
                  (unsigned)(ms / 1000));
    return true;
}

static struct precopy_sample follow_sample(const struct act *act,
                                           const json_t *info)
{
    const json_t *ram = json_object_get(info, "ram");
    uint64_t page = count_of(ram, "page-size");
    return (struct precopy_sample){
        .now_ms = act_now_ms(act),
        .passes = count_of(ram, "dirty-sync-count"),
        .remaining = count_of(ram, "remaining"),
        .rate = rate_of(ram),
        .dirty = count_of(ram, "dirty-pages-rate") * page,
        .throttle = (unsigned)count_of(info, "cpu-throttle-percentage"),
    };
}

/* The guest runs yet: is it time to end that for the stream? */
static enum precopy_verdict follow_judge(struct act *act,
                                         const struct precopy_sample *sample)
{
    struct following *f = act_scratch(act, sizeof(*f));
    char reason[PRECOPY_REASON_MAX];
    /* Not before it is known whether there is a guest to start again. */
    if (f->gate || !f->known) {
        return PRECOPY_KEEP;
    }
    enum precopy_verdict verdict = precopy_sample(&f->precopy, sample, reason);
    if (verdict != PRECOPY_KEEP) {
        act_warn(act, "%s", reason);
    }
    return verdict;
}

/* What the steps behind this one are to do about it. */
static void follow_leave(struct act *act, enum precopy_verdict verdict)
{
    const struct following *f = act_scratch(act, sizeof(*f));
    act_set_facts(act, json_pack("{s:b, s:b, s:b, s:f}", "suspend",
                                 verdict == PRECOPY_SUSPEND, "postcopy",
                                 verdict == PRECOPY_POSTCOPY, "running",
                                 f->running, "seconds", follow_seconds(act)));
    act_end(act, NULL);
}

static void follow_on_runstate(struct act *act, const struct err *err,
                               json_t *result)
{
    struct following *f = act_scratch(act, sizeof(*f));
    const char *status = text_of(result, "status");
    if (err == NULL && !f->ours &&
        (str_eq(status, "running") || str_eq(status, "paused"))) {
        f->known = true;
        f->running = str_eq(status, "running");
    }
    act_again_on_event(act, FOLLOW_MS, follow_look);
}

/* Whether the guest runs is asked for while it does. */
static void follow_next(struct act *act)
{
    const struct following *f = act_scratch(act, sizeof(*f));
    if (f->gate) {
        act_again_on_event(act, FOLLOW_MS, follow_look);
    } else {
        act_qmp(act, "query-status", NULL, follow_on_runstate);
    }
}

static void follow_on_longer(struct act *act, const struct err *err,
                             json_t *result)
{
    (void)err; /* it has just ended, or goes on as it was */
    (void)result;
    follow_next(act);
}

/* The memory changes too fast for the downtime that QEMU reckons with. */
static void follow_active(struct act *act, const struct precopy_sample *sample)
{
    struct following *f = act_scratch(act, sizeof(*f));
    unsigned ms = precopy_downtime(&f->precopy, sample);
    if (ms <= f->downtime_ms) {
        follow_next(act);
        return;
    }
    f->downtime_ms = ms;
    act_qmp(act, "migrate-set-parameters",
            json_pack("{s:I}", "downtime-limit", (json_int_t)ms),
            follow_on_longer);
}

static double follow_seconds(struct act *act)
{
    const struct following *f = act_scratch(act, sizeof(*f));
    return (double)(act_now_ms(act) - f->begun_ms) / 1000.0;
}

/* Pre-switchover: the guest stands. From now on the freeze limit counts. */
static void follow_at_gate(struct act *act, const json_t *info)
{
    struct following *f = act_scratch(act, sizeof(*f));
    _cleanup_err_ struct err *err = NULL;
    (void)act_guard_stream(act, (unsigned)act_plan(act)->freeze_limit_ms,
                           stream_must_thaw(act), &err);
    json_t *facts = json_pack(
        "{s:f, s:I}", "seconds", follow_seconds(act), "bytes",
        (json_int_t)count_of(json_object_get(info, "ram"), "transferred"));
    if (f->known) {
        (void)json_object_set_new(facts, "running", json_boolean(f->running));
        (void)json_object_set_new(facts, "suspend", json_boolean(f->ours));
    }
    act_set_facts(act, facts);
    act_end(act, err);
}

static void follow_on_info(struct act *act, const struct err *err,
                           json_t *result)
{
    struct following *f = act_scratch(act, sizeof(*f));
    const char *status = text_of(result, "status");
    _cleanup_err_ struct err *error = NULL;
    if (err != NULL) {
        act_end(act, err);
    } else if (str_eq(status, "pre-switchover")) {
        follow_at_gate(act, result);
    } else if (is_over(status) || str_eq(status, "completed")) {
        stream_error(act_plan(act), &error, result);
        act_end(act, error);
    } else if (follow_stalls(act, result, &error)) {
        act_end(act, error);
    } else {
        struct precopy_sample sample = follow_sample(act, result);
        enum precopy_verdict verdict = follow_judge(act, &sample);
        if (verdict == PRECOPY_SUSPEND || verdict == PRECOPY_POSTCOPY) {
            follow_leave(act, verdict);
            return;
        }
        stream_tell(act, result, "stream", &f->told_ms);
        if (str_eq(status, "active")) {
            follow_active(act, &sample);
        } else {
            act_again_on_event(act, FOLLOW_MS, follow_look);
        }
    }
}

static void follow_on_jobs(struct act *act, const struct job_list *jobs)
{
    struct following *f = act_scratch(act, sizeof(*f));
    _cleanup_err_ struct err *err = NULL;
    if (copy_jobs_move(act, jobs, f->disks, &err) < 0) {
        act_end(act, err);
    } else {
        act_qmp(act, "query-migrate", NULL, follow_on_info);
    }
}

static void follow_look(struct act *act)
{
    act_guard_hold_off(act);
    act_wait_jobs(act, follow_on_jobs);
}

/* Follows on; what an earlier engine has seen of the guest holds. */
static void follow_begin(struct act *act, bool gate)
{
    struct following *f = act_scratch(act, sizeof(*f) + act_plan(act)->n_disks *
                                                            sizeof(*f->disks));
    _cleanup_err_ struct err *err = NULL;
    if (f == NULL) {
        (void)err_set(&err, -ENOMEM, "migration", "out of memory");
        act_end(act, err);
        return;
    }
    f->begun_ms = act_now_ms(act);
    f->precopy = (struct precopy){.suspend = act_plan(act)->suspend,
                                  .suspend_ms = act_plan(act)->suspend_ms,
                                  .postcopy = act_plan(act)->postcopy,
                                  .postcopy_ms = act_plan(act)->postcopy_ms,
                                  .downtime_ms = downtime_limit(act_plan(act)),
                                  .begun_ms = f->begun_ms};
    f->downtime_ms = first_downtime(act_plan(act));
    f->gate = gate;
    f->ours = was_decided(act, "suspend");
    f->known = f->ours || stream_goes_over(act);
    f->running = stream_guest_ran(act);
    vm_own_stream(act_vm(act), true);
    if (!act_guard_is_armed(act) && stream_guard(act, &err) < 0) {
        act_end(act, err);
    } else {
        follow_look(act);
    }
}

void stream_follow(struct act *act)
{
    follow_begin(act, false);
}

void stream_gate(struct act *act)
{
    if (was_decided(act, "suspend") || stream_goes_over(act)) {
        follow_begin(act, true);
    } else {
        act_end(act, NULL); /* it is there already */
    }
}

/* Whether the guest ran when the stream took it. */
bool stream_guest_ran(const struct act *act)
{
    const struct op *op = act_op(act);
    const json_t *seen = op_fact(op, "stream-follow", ALL_DISKS, "running");
    if (seen == NULL) {
        seen = op_fact(op, "stream", ALL_DISKS, "running");
    }
    return seen != NULL ? json_is_true(seen) : act_plan(act)->was_running;
}

/* What following the stream has come to. */
static bool was_decided(const struct act *act, const char *what)
{
    return json_is_true(op_fact(act_op(act), "stream-follow", ALL_DISKS, what));
}

bool stream_goes_over(const struct act *act)
{
    return was_decided(act, "postcopy");
}

bool stream_must_thaw(const struct act *act)
{
    return (stream_goes_over(act) || was_decided(act, "suspend")) &&
           stream_guest_ran(act);
}

/* --- stop the guest for the stream's sake --- */

bool stream_may_suspend(const struct plan *plan, const struct plan_disk *disk)
{
    (void)disk;
    return plan->suspend || plan->suspend_ms != 0;
}

static bool is_suspended(const struct act *act)
{
    return was_decided(act, "suspend") && stream_guest_ran(act);
}

/* The guard lets it go on from here, too: QEMU does not by itself. */
void suspend_stop(struct act *act)
{
    _cleanup_err_ struct err *err = NULL;
    if (!is_suspended(act) || stream_guard(act, &err) < 0) {
        act_end(act, err);
        return;
    }
    act_warn(act, "the guest is paused until the destination runs it");
    act_qmp(act, "stop", NULL, NULL);
}

/* --- back: the guest goes on at the source --- */

static void cancel_look(struct act *act);

void stream_go_back(struct act *act, bool was_stopped)
{
    struct following *f = act_scratch(act, sizeof(*f));
    if (f == NULL) {
        _cleanup_err_ struct err *err = NULL;
        (void)err_set(&err, -ENOMEM, "migration", "out of memory");
        act_end(act, err);
        return;
    }
    f->begun_ms = act_now_ms(act);
    f->was_stopped = was_stopped;
    vm_own_stream(act_vm(act), true);
    cancel_look(act);
}

void stream_cancel(struct act *act)
{
    stream_go_back(act, false);
}

void suspend_go_on(struct act *act)
{
    stream_go_back(act, is_suspended(act));
}

static void cancel_on_reply(struct act *act, const struct err *err,
                            json_t *result)
{
    (void)err; /* the next look tells */
    (void)result;
    act_again_on_event(act, LOOK_MS, cancel_look);
}

/* The stream is over and the source kept the guest: does it run again? */
static void cancel_on_runstate(struct act *act, const struct err *err,
                               json_t *result)
{
    struct following *f = act_scratch(act, sizeof(*f));
    const char *status = text_of(result, "status");
    /*
     * A guest that stood when its stream was cancelled or failed at the gate
     * is 'postmigrate' up to QEMU 7.2 at least, 'paused' in 10.0.
     */
    bool stands = str_eq(status, "postmigrate") && !f->completed;
    bool paused = str_eq(status, "paused") || stands;
    bool late = act_now_ms(act) - f->begun_ms > SETTLE_MS;
    _cleanup_err_ struct err *error = NULL;
    if (err != NULL) {
        act_end(act, err);
    } else if (str_eq(status, "postmigrate") && !stands) {
        /* It is the destination's, run or not: never start it here. */
        (void)err_set(&error, -EALREADY, vm_name(act_vm(act)),
                      "the source has handed the guest over");
        act_end(act, error);
    } else if (str_eq(status, "running") ||
               (paused && !stream_guest_ran(act))) {
        act_guard_disarm(act);
        act_end(act, NULL);
    } else if (paused && f->was_stopped) {
        act_qmp(act, "cont", NULL, NULL);
    } else if (!late) {
        act_again_on_event(act, LOOK_MS, cancel_look);
    } else if (paused) {
        act_guard_disarm(act);
        act_warn(act, "the guest is paused: somebody has paused it meanwhile");
        act_end(act, NULL);
    } else {
        (void)err_set(&error, -ESTALE, vm_name(act_vm(act)),
                      "the guest does not run again: %s", status);
        act_end(act, error);
    }
}

/*
 * Up to QEMU 7.2 at least a stream that is cancelled just as it stops the guest
 * can wait for migrate-continue for ever (migration_maybe_pause() looks at its
 * state, and sets it a moment later). In this state that only ends the wait:
 * the guest goes on.
 */
static bool is_wedged(struct act *act)
{
    struct following *f = act_scratch(act, sizeof(*f));
    uint64_t now = act_now_ms(act);
    if (f->wedged_ms == 0) {
        f->wedged_ms = now;
    }
    return now - f->wedged_ms > WEDGED_MS;
}

static void cancel_on_info(struct act *act, const struct err *err,
                           json_t *result)
{
    struct following *f = act_scratch(act, sizeof(*f));
    const char *status = text_of(result, "status");
    _cleanup_err_ struct err *error = NULL;
    if (err != NULL) {
        act_end(act, err);
    } else if (stream_is_postcopy(status)) {
        /* Somebody has let it go over. QEMU 7.2 would take migrate_cancel. */
        (void)err_set(&error, -EALREADY, vm_name(act_vm(act)),
                      "the source has handed the guest over ('%s')", status);
        act_give_up(act, error);
    } else if (is_over(status) || str_eq(status, "completed")) {
        f->completed = str_eq(status, "completed");
        act_qmp(act, "query-status", NULL, cancel_on_runstate);
    } else if (!f->cancelled) {
        f->cancelled = true;
        act_qmp(act, "migrate_cancel", NULL, cancel_on_reply);
    } else if (str_eq(status, "cancelling") && is_wedged(act)) {
        f->wedged_ms = act_now_ms(act);
        act_qmp(act, "migrate-continue", json_pack("{s:s}", "state", status),
                cancel_on_reply);
    } else {
        act_again_on_event(act, LOOK_MS, cancel_look);
    }
}

static void cancel_look(struct act *act)
{
    act_qmp(act, "query-migrate", NULL, cancel_on_info);
}
