/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "steps/mirror.h"

#include <errno.h>

#include "base/err.h"
#include "base/str.h"
#include "policy/converge.h"
#include "policy/latency.h"
#include "policy/progress.h"
#include "policy/stall.h"
#include "qmp/qmp.h"
#include "qpivot.h"
#include "steps/act-on.h"
#include "steps/alive.h"
#include "steps/export.h"
#include "steps/pivot.h"
#include "vm/vm.h"

enum {
    TELL_MS = 500,    /* between two progress events of a disk */
    POLICY_MS = 1000, /* between two looks of the policies */
    RESUME_MS = 2000, /* between two tries of a job that waits for space */
    HOOK_MS = 60000,
    STALL_BYTES = 16 * 1024 * 1024, /* what QEMU has under way at most */
    STALL_FIRST = 10,               /* times as long before the first byte */
    ZERO_RATE = 64 * 1024,          /* bytes a millisecond, of slow zeroing */
};

/* What following one job needs; it begins anew after a crash. */
struct follow {
    struct alive_watch watch;
    struct progress progress;
    struct stall stall;
    bool copies; /* what it is to copy is known: it zeroes no more */
    struct converge converge;
    struct latency latency;
    uint64_t begun_ms;
    uint64_t told_ms;
    uint64_t policy_ms;
    uint64_t resumed_ms;
    uint64_t full_offset; /* where the target was full */
    uint64_t wr_operations;
    uint64_t wr_total_time_ns;
    uint64_t speed;
    const char *phase;
    bool waits_for_space;
    bool hook_ran;
    bool was_ready;
    bool vanished;
    bool tried_again; /* one that is paused, and QEMU says not why */
};

static void follow_on_jobs(struct act *act, const struct job_list *jobs);
static void follow_ready(struct act *act, const struct job *job,
                         const struct job_list *jobs);
static void follow_ended(struct act *act, const struct job *job);
static void ended_on_graph(struct act *act, const struct err *err,
                           const struct graph *graph);
static void follow_pending(struct act *act);
static bool follow_stalls(struct act *act, const struct job *job);
static void follow_tell(struct act *act, const struct job *job,
                        const char *phase);
static bool follow_tries_again(struct act *act);
static void follow_space(struct act *act, const struct job *job);
static bool follow_policies(struct act *act, const struct job *job);

/* --- start --- */

static json_t *common_arguments(const char *op, const struct plan *plan,
                                const struct plan_disk *disk)
{
    struct name id = name_of(op, disk->index, NAME_MIRROR);
    struct name over = name_of(op, disk->index, NAME_OVERLAY);
    bool filtered = *disk->replaces != '\0', base = plan_disk_copies_base(disk);
    /* It waits for us to end it: see steps/cancel.h. */
    bool stays = disk->may_write_block;
    json_t *args =
        json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:b, s:b}", "job-id", id.text,
                  "device", base && !filtered ? over.text : disk->root, "sync",
                  disk->sync, "copy-mode", disk->copy_mode, "on-source-error",
                  stays ? "stop" : "report",
                  /* A full target is a pause, not a lost copy. */
                  "on-target-error", stays ? "stop" : "enospc", "auto-finalize",
                  !plan->group,
                  /* An error must not vanish with its job. */
                  "auto-dismiss", 0);
    if (filtered) {
        (void)json_object_set_new(
            args, "replaces", json_string(base ? over.text : disk->replaces));
    }
    if (plan->speed != 0) {
        (void)json_object_set_new(args, "speed",
                                  json_integer((json_int_t)plan->speed));
    }
    return args;
}

json_t *mirror_command(const char *op, const struct plan *plan,
                       const struct plan_disk *disk)
{
    struct name target =
        name_of(op, disk->index,
                plan_disk_copies_base(disk) ? NAME_LANDING : NAME_TARGET);
    struct name top = name_of(op, disk->index, NAME_TOP);
    json_t *args = common_arguments(op, plan, disk);
    if (disk->drive_mirror) {
        json_auto_t *more = json_pack(
            "{s:s, s:s, s:s, s:s}", "target", disk->legacy_name, "format",
            disk->format, "node-name", target.text, "mode", "existing");
        (void)json_object_update(args, more);
    } else {
        json_auto_t *more = json_pack("{s:s, s:s}", "target", target.text,
                                      "filter-node-name", top.text);
        (void)json_object_update(args, more);
    }
    if (disk->target_is_zero) {
        (void)json_object_set_new(args, "target-is-zero", json_true());
    }
    return json_pack("{s:s, s:o}", "execute",
                     disk->drive_mirror ? "drive-mirror" : "blockdev-mirror",
                     "arguments", args);
}

/* Another host's: its base is proved to be equal, and nothing hides it. */
static bool stays_linked(const struct act *act)
{
    return json_is_true(act_fact(act, "base-compare", "equal")) &&
           (act_disk(act)->attach ||
            json_is_true(act_fact(act, "base-overlay", "empty")));
}

static void start_on_graph(struct act *act, const struct err *err,
                           const struct graph *graph)
{
    const struct plan_disk *disk = act_disk(act);
    _cleanup_err_ struct err *error = err_copy(err);
    if (error == NULL) {
        (void)disk_is_as_planned(graph, disk, &error);
    }
    if (error != NULL) {
        act_end(act, error);
        return;
    }
    json_auto_t *command = mirror_command(act_op_id(act), act_plan(act), disk);
    json_t *args = json_object_get(command, "arguments");
    if (json_is_object(disk->linked) && !stays_linked(act)) {
        (void)json_object_set_new(args, "sync", json_string("full"));
    } else if (act_is_repeated(act)) {
        /* An earlier try may have written: the target is not zero any more. */
        (void)json_object_del(args, "target-is-zero");
        if (!plan_disk_keeps_base(disk) && !plan_disk_copies_base(disk)) {
            (void)json_object_set_new(args, "sync", json_string("full"));
        }
    }
    act_qmp(act, disk->drive_mirror ? "drive-mirror" : "blockdev-mirror",
            json_incref(args), NULL);
}

void mirror_start(struct act *act)
{
    const struct plan_disk *disk = act_disk(act);
    const json_t *zero = act_fact(act, "target-create", "zero");
    _cleanup_err_ struct err *err = NULL;
    /* A landing is a new image each time. */
    bool skips = disk->target_is_zero ||
                 (str_eq(disk->sync, "top") && !plan_disk_copies_base(disk));
    if (skips && !json_is_object(disk->linked) && !json_is_true(zero)) {
        /* Stale data would show through, without any error. */
        (void)err_set(&err, -EINVAL, disk->to,
                      "is not proved to read as zeroes");
        act_end(act, err);
        return;
    }
    act_graph(act, start_on_graph);
}

static void back_on_graph(struct act *act, const struct err *err,
                          const struct graph *graph)
{
    _cleanup_err_ struct err *error = NULL;
    const struct graph_node *source = NULL;
    if (err == NULL && disk_is_back(graph, act_op_id(act), act_disk(act),
                                    &source, &error) < 0) {
        err = error;
    }
    if (source != NULL) {
        act_set_facts(act, json_pack("{s:s}", "source", source->name));
    }
    act_end(act, err);
}

static void mirror_prove_back(struct act *act)
{
    act_graph(act, back_on_graph);
}

static void mirror_may_look(struct act *act)
{
    alive_wait(act, mirror_prove_back);
}

/* That the job is gone is not enough: the guest must use its source. */
void mirror_cancel(struct act *act)
{
    act_clear_job(act, NAME_MIRROR, mirror_may_look);
}

json_t *mirror_dismiss_command(const char *op, const struct plan *plan,
                               const struct plan_disk *disk)
{
    (void)plan;
    struct name id = name_of(op, disk->index, NAME_MIRROR);
    return json_pack("{s:s, s:{s:s}}", "execute", "job-dismiss", "arguments",
                     "id", id.text);
}

void mirror_dismiss(struct act *act)
{
    act_clear_job(act, NAME_MIRROR, NULL);
}

static void probe_on_jobs(struct act *act, const struct job_list *jobs)
{
    struct name id = act_name(act, NAME_MIRROR);
    act_probed(act, job_list_find(jobs, id.text) != NULL ? PROBE_DONE
                                                         : PROBE_NOT_DONE);
}

void mirror_probe(struct act *act)
{
    act_wait_jobs(act, probe_on_jobs);
}

/* --- follow until ready --- */

void mirror_ready(struct act *act)
{
    struct follow *follow = act_scratch(act, sizeof(*follow));
    const struct plan *plan = act_plan(act);
    const struct plan_disk *disk = act_disk(act);
    if (follow == NULL) {
        _cleanup_err_ struct err *err = NULL;
        (void)err_set(&err, -ENOMEM, disk->disk, "out of memory");
        act_end(act, err);
        return;
    }
    converge_init(&follow->converge,
                  plan->copy_mode == QPIVOT_COPY_AUTO &&
                      qmp_schema_has_arg(vm_schema(act_vm(act)),
                                         "block-job-change",
                                         "type=mirror.copy-mode"),
                  str_eq(disk->copy_mode, "write-blocking"));
    follow->latency.limits = (struct latency_limits){
        .max_ns = plan->max_guest_latency_ms * 1000000,
        .ceiling = plan->speed,
    };
    follow->speed = plan->speed;
    follow->begun_ms = act_now_ms(act);
    act_wait_jobs(act, follow_on_jobs);
}

static void follow_on_jobs(struct act *act, const struct job_list *jobs)
{
    struct follow *follow = act_scratch(act, sizeof(*follow));
    struct name id = act_name(act, NAME_MIRROR);
    const struct job *job = job_list_find(jobs, id.text);
    bool paused = job != NULL &&
                  (job->status == JOB_PAUSED || job->status == JOB_STANDBY);
    if (job == NULL || job->status >= JOB_ABORTING || job->io_error) {
        follow_ended(act, job);
        return;
    }
    if (!alive_watch(act, &follow->watch)) {
        return;
    }
    if (paused && !job->no_space && follow_tries_again(act)) {
        return;
    }
    progress_sample(&follow->progress, act_now_ms(act),
                    paused ? PROGRESS_PAUSED : PROGRESS_COPY, job->offset,
                    job->len);
    if (paused && job->no_space) {
        follow_space(act, job);
        return;
    }
    if (job->status == JOB_PENDING) {
        follow_pending(act);
        return;
    }
    if (follow_stalls(act, job)) {
        return;
    }
    if (job->status == JOB_READY) {
        follow_ready(act, job, jobs);
        return;
    }
    if (follow->waits_for_space && job->offset <= follow->full_offset &&
        job->status == JOB_RUNNING) {
        return; /* it tries again, nothing has come through yet */
    }
    follow->waits_for_space = follow->hook_ran = false;
    if (!follow->watch.alive.told) {
        act_set_waiting(act, NULL, NULL);
    }
    follow_tell(act, job, paused ? "paused" : "copy");
    if (!paused && !follow->watch.alive.told) {
        (void)follow_policies(act, job);
    }
}

/* Ready ends it for all disks at once: until then each is looked after. */
static void follow_ready(struct act *act, const struct job *job,
                         const struct job_list *jobs)
{
    struct follow *follow = act_scratch(act, sizeof(*follow));
    const struct plan *plan = act_plan(act);
    if (!follow->was_ready) {
        follow->was_ready = true;
        follow->told_ms = 0;
        double seconds = (double)(act_now_ms(act) - follow->begun_ms) / 1000.0;
        act_set_facts(act,
                      json_pack("{s:I, s:f}", "bytes_copied",
                                (json_int_t)job->offset, "seconds", seconds));
        act_emit(act, "ready", json_object());
    }
    follow_tell(act, job, "ready");
    if (follow->watch.heals && !follow->watch.off) {
        act_set_waiting(act, "waits for the replicas of", act_disk(act)->to);
        return;
    }
    for (unsigned i = 0; i < plan->n_disks; i++) {
        if (!plan_disk_is_mirrored(&plan->disks[i])) {
            continue; /* of a migration, and not copied */
        }
        struct name id = name_of(act_op_id(act), i, NAME_MIRROR);
        const struct job *other = job_list_find(jobs, id.text);
        bool over = other == NULL || other->status == JOB_CONCLUDED;
        if (!over && other->status != JOB_READY) {
            return; /* its own act tells what it means that one is over */
        }
    }
    act_end(act, NULL);
}

/*
 * Somebody else has completed it: the guest's writes to this disk stand still
 * until it is finalized or cancelled, and the other disks are not ready.
 */
static void follow_pending(struct act *act)
{
    _cleanup_err_ struct err *err = NULL;
    (void)err_set(&err, -ESTALE, act_disk(act)->disk,
                  "the mirror job was completed by somebody else: it is"
                  " cancelled, so that the guest's writes go on");
    act_end(act, err);
}

/*
 * How long nothing may be copied. QEMU first zeroes a target that may hold
 * something, and until then counts only what the guest writes meanwhile.
 */
static uint64_t stall_limit_ms(const struct act *act, struct follow *follow,
                               const struct job *job)
{
    uint64_t limit = act_plan(act)->command_timeout_ms;
    limit *= job->offset == 0 ? STALL_FIRST : 1;
    follow->copies = follow->copies || job->len - job->offset > STALL_BYTES;
    limit += follow->copies ? 0 : act_disk(act)->size / ZERO_RATE;
    if (follow->speed != 0) {
        limit += STALL_BYTES * UINT64_C(1000) / follow->speed;
    }
    return limit;
}

/*
 * On the way to another host: a link that is cut ends no connection, and the
 * destination may answer by another way.
 */
static bool follow_stalls(struct act *act, const struct job *job)
{
    struct follow *follow = act_scratch(act, sizeof(*follow));
    _cleanup_err_ struct err *err = NULL;
    if (job->status == JOB_READY) {
        (void)copy_stalls(act, act_disk(act), job, &follow->stall, &err);
        if (err != NULL) {
            act_end(act, err);
        }
        return err != NULL;
    }
    if (!str_eq(act_disk(act)->how, "nbd") || job->status != JOB_RUNNING) {
        stall_reset(&follow->stall);
        return false;
    }
    uint64_t ms =
        stall_sample(&follow->stall, act_now_ms(act), job->offset + job->len);
    if (ms < stall_limit_ms(act, follow, job)) {
        return false;
    }
    (void)err_set(&err, -ETIMEDOUT, act_disk(act)->disk,
                  "nothing was copied for %u s: the link to the destination is"
                  " cut, or its storage stands still",
                  (unsigned)(ms / 1000));
    act_end(act, err);
    return true;
}

static void follow_ended(struct act *act, const struct job *job)
{
    struct follow *follow = act_scratch(act, sizeof(*follow));
    _cleanup_err_ struct err *err = NULL;
    const struct plan_disk *disk = act_disk(act);
    if (job != NULL &&
        job_check(job, disk->disk,
                  disk->drive_mirror ? "drive-mirror" : "blockdev-mirror",
                  &err) < 0) {
        act_end(act, err);
    } else if (job == NULL || job->status == JOB_CONCLUDED) {
        /* Without an error it may have pivoted: the graph tells. */
        follow->vanished = job == NULL;
        act_graph(act, ended_on_graph);
    }
}

static void ended_on_graph(struct act *act, const struct err *err,
                           const struct graph *graph)
{
    const struct follow *follow = act_scratch(act, sizeof(*follow));
    const struct plan_disk *disk = act_disk(act);
    _cleanup_err_ struct err *error = err_copy(err);
    if (error == NULL && pivot_has_happened(act, graph, disk->index)) {
        act_warn(act, "somebody else has completed the mirror: the guest uses"
                      " the target already, and the rest follows");
    } else if (error == NULL && follow->vanished) {
        (void)err_set(&error, -ENOENT, disk->disk,
                      "the mirror job has vanished from QEMU");
        err_hint(&error, "QEMU was restarted, or somebody else cancelled and"
                         " dismissed the job");
    } else if (error == NULL) {
        (void)err_set(&error, -ESTALE, disk->disk,
                      "the mirror job was ended by somebody else");
    }
    act_end(act, error);
}

static void follow_tell(struct act *act, const struct job *job,
                        const char *phase)
{
    struct follow *follow = act_scratch(act, sizeof(*follow));
    uint64_t now = act_now_ms(act);
    if (str_eq(phase, follow->phase) && now - follow->told_ms < TELL_MS) {
        return;
    }
    follow->phase = phase;
    follow->told_ms = now;
    uint64_t eta_ms = progress_eta_ms(&follow->progress);
    json_t *data = json_pack(
        "{s:s, s:I, s:I, s:I, s:I}", "phase", phase, "bytes",
        (json_int_t)job->offset, "total", (json_int_t)job->len, "remaining",
        (json_int_t)(job->len > job->offset ? job->len - job->offset : 0),
        "rate", (json_int_t)progress_rate(&follow->progress));
    if (eta_ms != PROGRESS_UNKNOWN) {
        (void)json_object_set_new(data, "eta_seconds",
                                  json_real((double)eta_ms / 1000.0));
    }
    act_emit(act, "progress", data);
}

/* --- a full target: wait, tell, try again --- */

static void resume_on_reply(struct act *act, const struct err *err,
                            json_t *result)
{
    (void)err; /* "not paused" any more, or still full: the jobs tell */
    (void)result;
    act_wait_jobs(act, follow_on_jobs);
}

static void space_on_hook(struct act *act, const struct err *err,
                          const char *output)
{
    (void)output;
    if (err != NULL) {
        _cleanup_free_ char *text = err_text(err);
        act_warn(act, "space hook: %s", text != NULL ? text : "failed");
    }
    act_wait_jobs(act, follow_on_jobs);
}

/*
 * One that has paused for an error looks like one that somebody has paused once
 * the guest has been stopped and let go on, which resets its io-status: where
 * that could have been missed it is tried once more, and QEMU tells again.
 */
static bool follow_tries_again(struct act *act)
{
    struct follow *follow = act_scratch(act, sizeof(*follow));
    struct name id = act_name(act, NAME_MIRROR);
    if (!act_is_repeated(act) || follow->tried_again) {
        return false;
    }
    follow->tried_again = true;
    act_qmp(act, "job-resume", json_pack("{s:s}", "id", id.text),
            resume_on_reply);
    return true;
}

static void follow_space(struct act *act, const struct job *job)
{
    struct follow *follow = act_scratch(act, sizeof(*follow));
    const struct plan *plan = act_plan(act);
    struct name id = act_name(act, NAME_MIRROR);
    uint64_t now = act_now_ms(act);
    follow_tell(act, job, "waiting-for-space");
    act_set_waiting(act, "waits for space on", act_disk(act)->to);
    if (!follow->waits_for_space || job->offset > follow->full_offset) {
        follow->full_offset = job->offset;
    }
    if (!follow->waits_for_space) {
        follow->waits_for_space = true;
        follow->resumed_ms = now;
        act_warn(act,
                 "target %s is full: the copy waits until there is space, the"
                 " guest goes on undisturbed",
                 act_disk(act)->to);
    }
    if (*plan->space_hook != '\0' && !follow->hook_ran) {
        follow->hook_ran = true;
        _cleanup_free_ char *input = NULL;
        json_auto_t *json =
            json_pack("{s:s, s:s, s:s, s:I}", "op", act_op_id(act), "disk",
                      act_disk(act)->disk, "target", act_disk(act)->to, "size",
                      (json_int_t)act_disk(act)->size);
        input = json_dumps(json, JSON_COMPACT);
        act_spawn(act, plan->space_hook, input, HOOK_MS, space_on_hook);
    } else if (now - follow->resumed_ms >= RESUME_MS) {
        follow->resumed_ms = now;
        act_qmp(act, "job-resume", json_pack("{s:s}", "id", id.text),
                resume_on_reply);
    }
}

/* --- policies: what they say is done, and told with its reason --- */

static void change_on_reply(struct act *act, const struct err *err,
                            json_t *result)
{
    struct follow *follow = act_scratch(act, sizeof(*follow));
    (void)result;
    converge_switched(&follow->converge, err == NULL);
    act_wait_jobs(act, follow_on_jobs);
}

static uint64_t counter(const json_t *stats, const char *member)
{
    json_int_t value = json_integer_value(json_object_get(stats, member));
    return value > 0 ? (uint64_t)value : 0;
}

static void stats_on_reply(struct act *act, const struct err *err,
                           json_t *result)
{
    struct follow *follow = act_scratch(act, sizeof(*follow));
    const json_t *stats = disk_device_stats(result, act_disk(act));
    struct name id = act_name(act, NAME_MIRROR);
    char reason[LATENCY_REASON_MAX];
    if (err != NULL || stats == NULL) {
        act_wait_jobs(act, follow_on_jobs);
        return;
    }
    uint64_t operations = counter(stats, "wr_operations");
    uint64_t time_ns = counter(stats, "wr_total_time_ns");
    struct latency_sample sample = {
        .wr_operations = operations - follow->wr_operations,
        .wr_total_time_ns = time_ns - follow->wr_total_time_ns,
        .rate = progress_rate(&follow->progress),
        .speed = follow->speed,
    };
    bool first = follow->wr_operations == 0;
    follow->wr_operations = operations;
    follow->wr_total_time_ns = time_ns;
    uint64_t speed;
    if (first || !latency_sample(&follow->latency, &sample, &speed, reason)) {
        act_wait_jobs(act, follow_on_jobs);
        return;
    }
    follow->speed = speed;
    act_warn(act, "%s", reason);
    act_qmp(
        act, "block-job-set-speed",
        json_pack("{s:s, s:I}", "device", id.text, "speed", (json_int_t)speed),
        resume_on_reply);
}

/* Whether it took up something else than waiting for the job. */
static bool follow_policies(struct act *act, const struct job *job)
{
    struct follow *follow = act_scratch(act, sizeof(*follow));
    uint64_t now = act_now_ms(act);
    char reason[CONVERGE_REASON_MAX];
    if (now - follow->policy_ms < POLICY_MS) {
        return false;
    }
    follow->policy_ms = now;
    struct converge_sample sample = {
        .now_ms = now,
        .remaining = progress_remaining(&follow->progress),
        .rate = progress_rate(&follow->progress),
        .ready = job->status == JOB_READY,
        .limited = follow->speed != 0,
    };
    struct name id = act_name(act, NAME_MIRROR);
    switch (converge_sample(&follow->converge, &sample, reason)) {
    case CONVERGE_SWITCH:
        act_warn(act, "%s", reason);
        act_set_writes_block(act, act_disk(act)->index);
        act_qmp(act, "block-job-change",
                json_pack("{s:s, s:s, s:s}", "id", id.text, "type", "mirror",
                          "copy-mode", "write-blocking"),
                change_on_reply);
        return true;
    case CONVERGE_LIFT:
        act_warn(act, "%s", reason);
        follow->speed = 0;
        act_qmp(act, "block-job-set-speed",
                json_pack("{s:s, s:i}", "device", id.text, "speed", 0),
                resume_on_reply);
        return true;
    case CONVERGE_TOO_SLOW:
        act_warn(act, "%s", reason);
        break;
    case CONVERGE_KEEP:
        break;
    }
    if (act_plan(act)->max_guest_latency_ms != 0) {
        act_qmp(act, "query-blockstats", NULL, stats_on_reply);
        return true;
    }
    return false;
}
