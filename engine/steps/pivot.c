/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * All disks of an operation change together: every mirror is completed, all
 * are PENDING, then all are finalized by a single write. One disk alone needs
 * no PENDING and no frozen moment. What QEMU's graph says afterwards, and
 * nothing else, is whether it has happened.
 */
#include "steps/pivot.h"

#include <errno.h>

#include "base/err.h"
#include "base/str.h"
#include "run/claim.h"
#include "steps/act-on.h"
#include "steps/cancel.h"
#include "steps/disk.h"
#include "steps/hold.h"
#include "vm/graph.h"
#include "vm/vm.h"

enum {
    GROUP_MAX = 64,
    LOOK_AGAIN_MS = 100,
    LOOKS_MAX = 50,
    CANCEL_EVERY = 10,     /* looks: a cancelled job takes a moment to end */
    YANK_AFTER_MS = 30000, /* a target that takes no more writes */
    COMPLETE_MAX_MS = 60000,
};

enum stage { COMPLETING, CARRYING, FINALIZING };

struct pivoting {
    struct cancelling cancelling; /* first: see cancel_jobs() */
    struct name names[GROUP_MAX];
    const char *ids[GROUP_MAX];
    enum watchdog_guest guest; /* for the guard */
    enum stage stage;
    uint64_t since_ms; /* when the jobs were told to complete */
    bool yanked;
    uint64_t pending_ms; /* when the first was seen PENDING */
    unsigned looks;
};

static void pivot_on_status(struct act *act, const struct err *err,
                            json_t *result);
static void pivot_on_checked(struct act *act, const struct err *err,
                             const struct graph *graph);
static void pivot_on_completed(struct act *act, const struct err *err,
                               json_t *result);
static void pivot_waits(struct act *act, unsigned n_concluded);
static void pivot_on_jobs(struct act *act, const struct job_list *jobs);
static void pivot_done(struct act *act);
static void pivot_pending(struct act *act);
static void pivot_finalize(struct act *act);
static void pivot_on_carried(struct act *act, const struct err *err,
                             json_t *result);
static void pivot_on_finalized(struct act *act, const struct err *err,
                               json_t *result);
static json_t *carry_actions(const char *op, const struct plan *plan);

/*
 * The same steps are the pivot of the return, by the mirrors back: the former
 * disk is what each device is to use then, and the target what it leaves.
 */
static struct name job_name(const struct act *act, unsigned disk)
{
    return name_of(act_op_id(act), disk,
                   act_is_returning(act) ? NAME_TWIN : NAME_MIRROR);
}

static struct name filter_name(const struct act *act, unsigned disk)
{
    return name_of(act_op_id(act), disk,
                   act_is_returning(act) ? NAME_TWIN_TOP : NAME_TOP);
}

/* The names of the nodes that the device leaves and is to use. */
static const char *from_node(const struct act *act, unsigned disk,
                             struct name *target)
{
    const struct plan_disk *d = &act_plan(act)->disks[disk];
    if (plan_disk_copies_base(d)) {
        *target = name_of(act_op_id(act), disk, NAME_OVERLAY);
        return target->text;
    }
    *target = name_of(act_op_id(act), disk, NAME_TARGET);
    return act_is_returning(act) ? target->text : d->active;
}

static const char *to_node(const struct act *act, unsigned disk,
                           struct name *target)
{
    const struct plan_disk *d = &act_plan(act)->disks[disk];
    *target = name_of(act_op_id(act), disk,
                      plan_disk_copies_base(d) ? NAME_LANDING : NAME_TARGET);
    return act_is_returning(act) ? d->active : target->text;
}

/* A guest that is held until guest_cont() has its guard until then, too. */
static void thaw(struct act *act)
{
    if (!guest_owes_cont(act) && !act_owes_cont(act)) {
        act_guard_disarm(act);
    }
}

/* The same command for the job of every disk, by one write. */
static void all_jobs(struct act *act, const char *command, act_reply_fn *then)
{
    const struct plan *plan = act_plan(act);
    struct act_command commands[GROUP_MAX];
    unsigned n = plan->n_disks < GROUP_MAX ? plan->n_disks : GROUP_MAX;
    for (unsigned i = 0; i < n; i++) {
        commands[i] = (struct act_command){
            command, json_pack("{s:s}", "id", job_name(act, i).text)};
    }
    act_qmp_batch(act, commands, n, then);
}

static bool writes_block(const struct act *act)
{
    bool any = act_is_returning(act);
    for (unsigned i = 0; i < act_plan(act)->n_disks; i++) {
        any = any || act_writes_block(act, i);
    }
    return any;
}

/* The ids of all jobs, kept for as long as the act; NULL without memory. */
static const char *const *all_ids(struct act *act)
{
    struct pivoting *pivoting = act_scratch(act, sizeof(*pivoting));
    for (unsigned i = 0; pivoting != NULL && i < act_plan(act)->n_disks; i++) {
        pivoting->names[i] = job_name(act, i);
        pivoting->ids[i] = pivoting->names[i].text;
    }
    return pivoting != NULL ? pivoting->ids : NULL;
}

static void cancel_all(struct act *act, act_reply_fn *then)
{
    const char *const *ids = all_ids(act);
    if (ids != NULL) {
        cancel_jobs(act, ids, act_plan(act)->n_disks, writes_block(act), then);
    } else {
        all_jobs(act, "job-cancel", then);
    }
}

/* --- pivot --- */

static void add_for_all(json_t *commands, const char *op,
                        const struct plan *plan, const char *command)
{
    for (unsigned i = 0; i < plan->n_disks; i++) {
        struct name id = name_of(op, i, NAME_MIRROR);
        (void)json_array_append_new(
            commands, json_pack("{s:s, s:{s:s}}", "execute", command,
                                "arguments", "id", id.text));
    }
}

json_t *pivot_command(const char *op, const struct plan *plan,
                      const struct plan_disk *disk)
{
    (void)disk;
    json_t *commands = json_array();
    json_auto_t *actions = carry_actions(op, plan);
    add_for_all(commands, op, plan, "job-complete");
    if (json_array_size(actions) > 0) {
        (void)json_array_append_new(
            commands, json_pack("{s:s, s:{s:O}}", "execute", "transaction",
                                "arguments", "actions", actions));
    }
    if (plan->group) {
        add_for_all(commands, op, plan, "job-finalize");
    }
    return commands;
}

void pivot_run(struct act *act)
{
    _cleanup_err_ struct err *err = NULL;
    if (act_scratch(act, sizeof(struct pivoting)) == NULL) {
        (void)err_set(&err, -ENOMEM, "pivot", "out of memory");
        act_end(act, err);
        return;
    }
    if (writes_block(act) || guest_owes_cont(act)) {
        act_qmp(act, "query-status", NULL, pivot_on_status);
    } else {
        act_graph(act, pivot_on_checked);
    }
}

/* Its guard cannot ask. */
static void pivot_on_status(struct act *act, const struct err *err,
                            json_t *result)
{
    struct pivoting *pivoting = act_scratch(act, sizeof(*pivoting));
    if (err != NULL) {
        act_end(act, err);
        return;
    }
    pivoting->guest = guest_runs(result)     ? WATCHDOG_STOPS
                      : guest_owes_cont(act) ? WATCHDOG_LETS_GO
                                             : WATCHDOG_LEAVES;
    act_graph(act, pivot_on_checked);
}

/*
 * While a mirror runs, QEMU lets nobody change what is below it: what was
 * copied is what was planned, or there is no pivot.
 */
static void pivot_on_checked(struct act *act, const struct err *err,
                             const struct graph *graph)
{
    const struct plan *plan = act_plan(act);
    struct pivoting *pivoting = act_scratch(act, sizeof(*pivoting));
    _cleanup_err_ struct err *error = err_copy(err);
    for (unsigned i = 0; error == NULL && i < plan->n_disks; i++) {
        if (!act_is_returning(act)) {
            (void)disk_is_as_planned(graph, &plan->disks[i], &error);
        }
    }
    bool guarded = guest_owes_cont(act) && act_guard_is_armed(act);
    if (error == NULL && plan->group && !guarded) {
        (void)act_guard_arm(act, all_ids(act), plan->n_disks, pivoting->guest,
                            &error);
    }
    if (error != NULL) {
        act_end(act, error);
        return;
    }
    pivoting->since_ms = act_now_ms(act);
    all_jobs(act, "job-complete", pivot_on_completed);
}

static void pivot_on_completed(struct act *act, const struct err *err,
                               json_t *result)
{
    (void)result;
    if (err != NULL) {
        act_end(act, err);
    } else {
        act_wait_jobs(act, pivot_on_jobs);
    }
}

static int check_job(const struct plan_disk *disk, const struct job *job,
                     struct err **errp)
{
    if (job == NULL) {
        return err_set(errp, -ENOENT, disk->disk,
                       "the mirror job has vanished from QEMU");
    }
    return job_check(job, disk->disk, "job-complete", errp);
}

static void pivot_on_jobs(struct act *act, const struct job_list *jobs)
{
    struct pivoting *pivoting = act_scratch(act, sizeof(*pivoting));
    const struct plan *plan = act_plan(act);
    unsigned n_pending = 0, n_concluded = 0;
    _cleanup_err_ struct err *err = NULL;
    for (unsigned i = 0; i < plan->n_disks; i++) {
        const struct job *job = job_list_find(jobs, job_name(act, i).text);
        if (check_job(&plan->disks[i], job, &err) < 0) {
            act_end(act, err);
            return;
        }
        n_pending += job->status == JOB_PENDING;
        n_concluded += job->status == JOB_CONCLUDED;
    }
    if (n_concluded == plan->n_disks) {
        pivot_done(act);
        act_end(act, NULL);
    } else if (pivoting->stage != COMPLETING) {
        return;
    } else if (plan->group && n_pending == plan->n_disks) {
        pivot_pending(act);
    } else if (n_pending == 0) {
        if (!guest_owes_cont(act)) {
            act_guard_hold_off(act);
        }
        pivot_waits(act, n_concluded);
    } else if (pivoting->pending_ms == 0) {
        pivoting->pending_ms = act_now_ms(act);
    } else if (act_now_ms(act) - pivoting->pending_ms > plan->freeze_limit_ms) {
        (void)err_set(&err, -ETIMEDOUT, "pivot",
                      "only %u of %u disks were pending within the freeze"
                      " limit of %u ms",
                      n_pending, plan->n_disks,
                      (unsigned)plan->freeze_limit_ms);
        act_end(act, err);
    }
}

/* Nothing is frozen yet, and nothing has changed: not for ever, though. */
static void pivot_waits(struct act *act, unsigned n_concluded)
{
    struct pivoting *pivoting = act_scratch(act, sizeof(*pivoting));
    uint64_t waited_ms = act_now_ms(act) - pivoting->since_ms;
    uint64_t limit_ms =
        guest_owes_cont(act) ? act_plan(act)->freeze_limit_ms : COMPLETE_MAX_MS;
    _cleanup_err_ struct err *err = NULL;
    if (n_concluded > 0) {
        return;
    }
    if (act_abort_asked(act)) {
        (void)err_set(&err, -EINTR, NULL, "aborted by the user");
    } else if (waited_ms > limit_ms) {
        (void)err_set(&err, -ETIMEDOUT, "pivot",
                      "the mirrors did not complete within %u ms",
                      (unsigned)limit_ms);
        err_hint(&err, "a target takes no more writes, or the guest writes"
                       " faster than it does");
    } else if (waited_ms > YANK_AFTER_MS && !pivoting->yanked) {
        pivoting->yanked = true;
        vm_yank(act_vm(act));
    }
    if (err != NULL) {
        act_end(act, err); /* the probe ends the jobs, and sees who won */
    }
}

static void pivot_done(struct act *act)
{
    const struct plan *plan = act_plan(act);
    json_t *disks = json_array();
    for (unsigned i = 0; i < plan->n_disks; i++) {
        (void)json_array_append_new(disks, json_string(plan->disks[i].disk));
    }
    thaw(act);
    if (act_is_returning(act)) {
        vm_yank_only(act_vm(act), NULL); /* the guest uses the others now */
    }
    act_emit(act, act_is_returning(act) ? "return" : "pivot",
             json_pack("{s:o}", "disks", disks));
}

/* The guest's writes to these disks stand still from here to finalize. */
static void pivot_pending(struct act *act)
{
    struct pivoting *pivoting = act_scratch(act, sizeof(*pivoting));
    /* The twin has had every write: the former disk's own are true still. */
    json_t *actions = act_is_returning(act)
                          ? json_array()
                          : carry_actions(act_op_id(act), act_plan(act));
    if (json_array_size(actions) > 0) {
        pivoting->stage = CARRYING;
        act_qmp(act, "transaction", json_pack("{s:o}", "actions", actions),
                pivot_on_carried);
        return;
    }
    json_decref(actions);
    pivot_finalize(act);
}

static void pivot_on_carried(struct act *act, const struct err *err,
                             json_t *result)
{
    (void)result;
    if (err != NULL) {
        act_end(act, err);
    } else {
        pivot_finalize(act);
    }
}

static void pivot_finalize(struct act *act)
{
    struct pivoting *pivoting = act_scratch(act, sizeof(*pivoting));
    pivoting->stage = FINALIZING;
    all_jobs(act, "job-finalize", pivot_on_finalized);
}

static void pivot_on_finalized(struct act *act, const struct err *err,
                               json_t *result)
{
    (void)result;
    if (err != NULL) {
        act_end(act, err); /* the probe finds out what that means */
    } else {
        act_wait_jobs(act, pivot_on_jobs);
    }
}

/*
 * Bitmaps stay with the node that a disk leaves, and would see no write any
 * more. While all is PENDING they cannot change: make them anew on the target
 * and merge (docs/interop/bitmaps.rst).
 */
static json_t *carry_actions(const char *op, const struct plan *plan)
{
    json_t *actions = json_array();
    for (unsigned i = 0; i < plan->n_disks; i++) {
        const struct plan_disk *disk = &plan->disks[i];
        struct name target = name_of(op, i, NAME_TARGET);
        size_t k;
        json_t *bitmap;
        json_array_foreach(disk->bitmaps, k, bitmap) {
            json_t *name = json_object_get(bitmap, "name");
            json_t *add = json_pack(
                "{s:s, s:{s:s, s:O, s:O, s:O, s:b}}", "type",
                "block-dirty-bitmap-add", "data", "node", target.text, "name",
                name, "granularity", json_object_get(bitmap, "granularity"),
                "persistent", json_object_get(bitmap, "persistent"), "disabled",
                json_is_false(json_object_get(bitmap, "recording")));
            json_t *merge = json_pack(
                "{s:s, s:{s:s, s:O, s:[{s:s, s:O}]}}", "type",
                "block-dirty-bitmap-merge", "data", "node", target.text,
                "target", name, "bitmaps", "node", disk->active, "name", name);
            (void)json_array_append_new(actions, add);
            (void)json_array_append_new(actions, merge);
        }
    }
    return actions;
}

/* --- back: the guest's writes go on before anything else --- */

static void undo_on_graph(struct act *act, const struct err *err,
                          const struct graph *graph)
{
    const struct plan *plan = act_plan(act);
    _cleanup_err_ struct err *error = err_copy(err);
    for (unsigned i = 0; error == NULL && i < plan->n_disks; i++) {
        if (pivot_has_happened(act, graph, i)) {
            (void)err_set(&error, -EBUSY, plan->disks[i].disk,
                          "uses the other side already: there is no way back");
        }
    }
    act_end(act, error);
}

/* A refused cancel means that the job is over, or was about to be. */
static void undo_on_jobs(struct act *act, const struct job_list *jobs)
{
    const struct plan *plan = act_plan(act);
    for (unsigned i = 0; i < plan->n_disks; i++) {
        const struct job *job = job_list_find(jobs, job_name(act, i).text);
        if (job != NULL && job->status != JOB_CONCLUDED &&
            job->status != JOB_NULL) {
            return;
        }
    }
    act_graph(act, undo_on_graph);
}

static void undo_on_cancelled(struct act *act, const struct err *err,
                              json_t *result)
{
    (void)result;
    thaw(act);
    if (err != NULL && err->code != -EREMOTEIO) {
        act_end(act, err);
    } else {
        act_wait_jobs(act, undo_on_jobs);
    }
}

void pivot_undo(struct act *act)
{
    cancel_all(act, undo_on_cancelled);
}

/* --- in doubt: ask the graph --- */

/* What is to be proved, and its names. */
struct proof {
    struct name target, source, twin, twin_top;
    struct graph_claim claim;
};

static const struct graph_node *root_of(const struct act *act,
                                        const struct graph *graph,
                                        unsigned disk)
{
    const struct graph_device *device =
        graph_find_device(graph, act_plan(act)->disks[disk].device);
    return device != NULL ? device->root : NULL;
}

/*
 * Whether a landing has gone into its target, or must have: an engine after a
 * crash proves the pivot once more, whatever was done behind it.
 */
static bool has_landed(const struct act *act, const struct graph *graph,
                       unsigned disk)
{
    const struct graph_node *root = root_of(act, graph, disk);
    struct name landing = name_of(act_op_id(act), disk, NAME_LANDING);
    struct name target = name_of(act_op_id(act), disk, NAME_TARGET);
    const struct graph_node *above = graph_find_node(graph, landing.text);
    const struct graph_node *node = graph_find_node(graph, target.text);
    return plan_disk_copies_base(&act_plan(act)->disks[disk]) &&
           (str_eq(act_step_name(act), "base-prove") ||
            (root != NULL && node != NULL && graph_reaches(graph, root, node) &&
             (above == NULL || !graph_reaches(graph, root, above))));
}

/*
 * The mirror back of an undo window may be on the target already, after a crash
 * in it; once that has been dropped, it may not.
 */
static void proof_of(const struct act *act, const struct graph *graph,
                     unsigned disk, struct proof *ret)
{
    const struct plan_disk *d = &act_plan(act)->disks[disk];
    bool back = act_is_returning(act);
    bool bare = back || str_starts(act_step_name(act), "drop-") ||
                str_eq(act_step_name(act), "base-prove");
    bool base = plan_disk_copies_base(d);
    /* With strategy base there is no window: it is the commit's, by then. */
    ret->twin = name_of(act_op_id(act), disk, base ? NAME_COMMIT : NAME_TWIN);
    ret->twin_top =
        name_of(act_op_id(act), disk, base ? NAME_COMMIT_TOP : NAME_TWIN_TOP);
    ret->claim =
        (struct graph_claim){.device = d->device,
                             .target = to_node(act, disk, &ret->target),
                             .source = from_node(act, disk, &ret->source),
                             .source_protocol = back ? NULL : d->protocol,
                             .job = bare ? NULL : ret->twin.text,
                             .filter = bare ? NULL : ret->twin_top.text};
    if (has_landed(act, graph, disk)) {
        ret->target = name_of(act_op_id(act), disk, NAME_TARGET);
    }
}

bool pivot_has_happened(const struct act *act, const struct graph *graph,
                        unsigned disk)
{
    const struct graph_node *root = root_of(act, graph, disk);
    struct name target, top = filter_name(act, disk);
    const struct graph_node *node =
        graph_find_node(graph, to_node(act, disk, &target));
    return root != NULL && node != NULL &&
           graph_find_node(graph, top.text) == NULL &&
           graph_reaches(graph, root, node);
}

static bool is_unplugged(const struct act *act, const struct graph *graph,
                         unsigned disk)
{
    const char *device = act_plan(act)->disks[disk].device;
    return *device != '\0' && graph_find_device(graph, device) == NULL;
}

static bool has_ended(const struct graph_job *job)
{
    return job != NULL && str_eq(job->status, "concluded");
}

/*
 * Whether it is certain that the guest uses the source, and will; or that an
 * unplugged device has left no more than that.
 */
static bool has_stayed(const struct act *act, const struct graph *graph,
                       unsigned disk)
{
    const struct graph_node *root = root_of(act, graph, disk);
    struct name target;
    const struct graph_node *active =
        graph_find_node(graph, from_node(act, disk, &target));
    const struct graph_node *node =
        graph_find_node(graph, to_node(act, disk, &target));
    const struct graph_job *job =
        graph_find_job(graph, job_name(act, disk).text);
    if (is_unplugged(act, graph, disk)) {
        return has_ended(job) && job->error != NULL;
    }
    return root != NULL && active != NULL &&
           graph_reaches(graph, root, active) &&
           (node == NULL || !graph_reaches(graph, root, node)) &&
           (job == NULL || has_ended(job));
}

/* Whether its job went through, and no device is there to use either side. */
static bool has_gone(const struct act *act, const struct graph *graph,
                     unsigned disk)
{
    const struct graph_job *job =
        graph_find_job(graph, job_name(act, disk).text);
    return is_unplugged(act, graph, disk) && has_ended(job) &&
           job->error == NULL;
}

static void tell_unplugged(struct act *act, const struct graph *graph)
{
    const struct plan *plan = act_plan(act);
    for (unsigned i = 0; i < plan->n_disks; i++) {
        if (is_unplugged(act, graph, i)) {
            act_warn(act, "%s: the device was unplugged in the middle",
                     plan->disks[i].disk);
        }
    }
}

static void probe_again(struct act *act, const struct err *err, json_t *result)
{
    (void)err; /* refused, lost or done: the graph tells */
    (void)result;
    act_again(act, LOOK_AGAIN_MS, pivot_probe);
}

/*
 * All over, or none and no job that could still do it. Whatever else: with
 * some over, the others follow; with none, the jobs are ended; then look
 * again, and in the end a person must.
 */
static void probe_on_graph(struct act *act, const struct err *err,
                           const struct graph *graph)
{
    const struct plan *plan = act_plan(act);
    struct pivoting *pivoting = act_scratch(act, sizeof(*pivoting));
    unsigned n_pivoted = 0, n_stayed = 0;
    for (unsigned i = 0; err == NULL && i < plan->n_disks; i++) {
        n_pivoted +=
            pivot_has_happened(act, graph, i) || has_gone(act, graph, i);
        n_stayed += has_stayed(act, graph, i);
    }
    if (err == NULL && n_pivoted == plan->n_disks) {
        pivot_done(act);
        act_probed(act, PROBE_DONE);
    } else if (err == NULL && n_stayed == plan->n_disks) {
        tell_unplugged(act, graph);
        thaw(act);
        act_probed(act, PROBE_NOT_DONE);
    } else if (pivoting == NULL || pivoting->looks++ >= LOOKS_MAX) {
        thaw(act);
        act_probed(act, PROBE_UNKNOWN);
    } else if (err == NULL) {
        /* One that somebody else has kept from it is completed first. */
        const char *forward =
            pivoting->looks % 2 == 0 ? "job-complete" : "job-finalize";
        if (n_pivoted > 0) {
            all_jobs(act, forward, probe_again);
        } else if (pivoting->looks % CANCEL_EVERY == 1) {
            cancel_all(act, probe_again);
        } else {
            act_again(act, LOOK_AGAIN_MS, pivot_probe);
        }
    } else {
        act_again(act, LOOK_AGAIN_MS, pivot_probe);
    }
}

static void probe_on_claim(struct act *act, const struct err *err,
                           json_t *result)
{
    bool ours =
        err == NULL && str_eq(json_string_value(result), act_op_id(act));
    if (!ours && !act_is_same_qemu(act)) {
        /*
         * Another QEMU answers, or this one was started anew: what it uses
         * now says nothing of what the guest last wrote to.
         */
        act_probed(act, PROBE_UNKNOWN);
        return;
    }
    act_graph(act, probe_on_graph);
}

void pivot_probe(struct act *act)
{
    act_qmp(act, "qom-get", claim_holder_arguments(), probe_on_claim);
}

/* --- the proof --- */

static void prove_on_graph(struct act *act, const struct err *err,
                           const struct graph *graph)
{
    const struct plan_disk *disk = act_disk(act);
    _cleanup_err_ struct err *error = NULL;
    struct pivoting *pivoting = act_scratch(act, sizeof(*pivoting));
    struct proof proof;
    if (err != NULL || pivoting == NULL) {
        act_end(act, err);
        return;
    }
    if (is_unplugged(act, graph, disk->index)) {
        act_warn(act,
                 "%s: the device was unplugged in the middle: %s and %s both"
                 " stay",
                 disk->disk, disk->from, disk->to);
        act_set_facts(act, json_pack("{s:b}", "unplugged", 1));
        act_end(act, NULL);
        return;
    }
    proof_of(act, graph, disk->index, &proof);
    int r = graph_proof(graph, &proof.claim, &error);
    if ((r == -EBUSY || r == -EAGAIN) && pivoting->looks++ < LOOKS_MAX) {
        act_again(act, LOOK_AGAIN_MS, pivot_prove);
        return;
    }
    if (r < 0) {
        act_end(act, error);
        return;
    }
    const struct graph_node *node = graph_find_node(graph, proof.claim.target);
    const struct graph_node *file = graph_child(graph, node, "file");
    act_set_facts(act, json_pack("{s:s, s:o*}", "node", proof.claim.target,
                                 "after", disk_facts(graph, disk)));
    act_emit(act, "proof",
             json_pack("{s:s, s:s, s:s}", "device", disk->device, "node",
                       proof.claim.target, "filename",
                       file != NULL ? file->filename : node->filename));
    act_end(act, NULL);
}

void pivot_prove(struct act *act)
{
    act_graph(act, prove_on_graph);
}
