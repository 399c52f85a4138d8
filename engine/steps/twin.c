/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "steps/twin.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "base/err.h"
#include "base/str.h"
#include "run/op.h"
#include "steps/act-on.h"
#include "vm/graph.h"
#include "vm/vm.h"

enum {
    DISKS_MAX = 64,
    TELL_MS = 1000,
    LOOK_MS = 250,
    BROKEN_LOOKS = 2,
    PROOF_LOOKS = 50,
    PROOF_MS = 100,
    /* write-blocking: so long may the former disk hold up a guest's write. */
    STALL_MS = 5000,
    NS_PER_US = 1000,
    WHY_MAX = 256,
};

struct watched {
    uint64_t offset; /* of the job, when it last moved */
    uint64_t moved_ms;
    uint64_t warned_ms;
    unsigned broken;     /* looks in a row: a drain pauses it for a moment */
    uint64_t operations; /* when the window was first looked at */
    uint64_t time_ns;
    uint64_t latency_us; /* 0: nothing was written since */
};

struct window {
    unsigned looks; /* at the graph */
    bool based;     /* 'operations' and 'time_ns' of the disks are set */
    uint64_t ends_ms;
    uint64_t told_ms;
    struct watched disks[DISKS_MAX];
};

static void window_look(struct act *act);
static void window_on_graph(struct act *act, const struct err *err,
                            const struct graph *graph);
static void window_on_jobs(struct act *act, const struct job_list *jobs);
static void window_end(struct act *act, const char *why);

static struct name twin_name(const struct act *act, unsigned disk)
{
    return name_of(act_op_id(act), disk, NAME_TWIN);
}

/* Should they stall, what may be cut is the way to the former disks only. */
static void yank_former(struct act *act)
{
    const struct plan *plan = act_plan(act);
    json_auto_t *names = json_array();
    for (unsigned i = 0; i < plan->n_disks; i++) {
        json_auto_t *former = plan_disk_former_nodes(&plan->disks[i]);
        (void)json_array_extend(names, former);
    }
    vm_yank_only(act_vm(act), names);
}

/* --- the mirror back --- */

json_t *twin_command(const char *op, const struct plan *plan,
                     const struct plan_disk *disk)
{
    struct name id = name_of(op, disk->index, NAME_TWIN);
    struct name top = name_of(op, disk->index, NAME_TWIN_TOP);
    struct name target = name_of(op, disk->index, NAME_TARGET);
    bool filtered = *disk->replaces != '\0';
    json_t *args = json_pack(
        "{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:b, s:b, s:s}", "job-id", id.text,
        "device", filtered ? disk->root : target.text, "target", disk->active,
        "sync", "none", "copy-mode", "write-blocking", "on-source-error",
        "report",
        /*
         * It pauses and the guest goes on. An end by itself would free what
         * the guest's writes on their way still use (block/mirror.c).
         */
        "on-target-error", "stop", "auto-finalize", !plan->group,
        "auto-dismiss", 0, "filter-node-name", top.text);
    if (filtered) {
        (void)json_object_set_new(args, "replaces", json_string(target.text));
    }
    return json_pack("{s:s, s:o}", "execute", "blockdev-mirror", "arguments",
                     args);
}

static void start_on_reply(struct act *act, const struct err *err,
                           json_t *result)
{
    (void)result;
    if (err == NULL) {
        act_set_facts(act, json_pack("{s:b}", "twin", 1));
    }
    act_end(act, err);
}

void twin_start(struct act *act)
{
    if (!act_stands_still(act)) {
        _cleanup_err_ struct err *err = NULL;
        (void)err_set(&err, -ESTALE, act_disk(act)->disk,
                      "the guest may have written since the pivot: there is no"
                      " undo window");
        act_end(act, err);
        return;
    }
    yank_former(act);
    act_command(act, start_on_reply);
}

static void probe_on_jobs(struct act *act, const struct job_list *jobs)
{
    struct name id = act_name(act, NAME_TWIN);
    act_probed(act, job_list_find(jobs, id.text) != NULL ? PROBE_DONE
                                                         : PROBE_NOT_DONE);
}

void twin_probe(struct act *act)
{
    act_wait_jobs(act, probe_on_jobs);
}

bool twin_all_began(const struct act *act)
{
    const struct plan *plan = act_plan(act);
    for (unsigned i = 0; i < plan->n_disks; i++) {
        if (!json_is_true(op_fact(act_op(act), "twin", (int)i, "twin"))) {
            return false;
        }
    }
    return true;
}

json_t *twin_opened(uint64_t ms)
{
    uv_timeval64_t now = {0};
    (void)uv_gettimeofday(&now);
    return json_pack("{s:b, s:I, s:I}", "open", 1, "opened",
                     (json_int_t)now.tv_sec, "frozen_ms", (json_int_t)ms);
}

json_t *twin_drop_command(const char *op, const struct plan *plan,
                          const struct plan_disk *disk)
{
    struct name id = name_of(op, disk->index, NAME_TWIN);
    (void)plan;
    return json_pack("{s:s, s:{s:s}}", "execute", "job-cancel", "arguments",
                     "id", id.text);
}

/*
 * While the guest stands still: a cancelled mirror frees its bitmap of what is
 * in flight and only then waits for the guest's own writes, which use it.
 */
void twin_drop(struct act *act)
{
    yank_former(act);
    act_clear_job(act, NAME_TWIN, NULL);
}

/* --- whether they follow --- */

/* Why there is no way back for this disk, in 'why'; or NULL. */
static const char *broken(const struct job *job, char why[WHY_MAX])
{
    if (job == NULL) {
        (void)snprintf(why, WHY_MAX, "its mirror has vanished from QEMU");
        return why;
    }
    if (job->status == JOB_PAUSED || job->status == JOB_STANDBY) {
        (void)snprintf(why, WHY_MAX, "a write to it has failed");
        return why;
    }
    if (job->status <= JOB_READY) {
        return NULL;
    }
    (void)snprintf(why, WHY_MAX, "its mirror is %s%s%s",
                   job_status_name(job->status), job->error != NULL ? ": " : "",
                   job->error != NULL ? job->error : "");
    return why;
}

struct checking {
    unsigned broken; /* looks in a row */
    unsigned looks;  /* at the graph */
};

/* The guest is on the target, and its mirror back copies onto the former disk. */
static int prove_twin(const struct act *act, const struct graph *graph,
                      const struct plan_disk *disk, bool others,
                      struct err **errp)
{
    struct name twin = twin_name(act, disk->index);
    struct name top = name_of(act_op_id(act), disk->index, NAME_TWIN_TOP);
    struct name target = name_of(act_op_id(act), disk->index, NAME_TARGET);
    struct graph_claim claim = {
        .device = disk->device,
        .target = target.text,
        .source = disk->active,
        .source_protocol = disk->protocol,
        .job = twin.text,
        .filter = top.text,
        .copies_to = disk->active,
        .others = others,
    };
    /* One that was unplugged is nobody's: its twin is all there is to see. */
    bool unplugged =
        *disk->device != '\0' && graph_find_device(graph, disk->device) == NULL;
    return unplugged ? 0 : graph_proof(graph, &claim, errp);
}

/* 'others': jobs that are not ours may be on the targets, a backup say. */
static int prove_twins(const struct act *act, const struct graph *graph,
                       bool others, struct err **errp)
{
    const struct plan *plan = act_plan(act);
    int r = 0;
    for (unsigned i = 0; r == 0 && i < plan->n_disks; i++) {
        r = prove_twin(act, graph, &plan->disks[i], others, errp);
    }
    return r;
}

static void check_on_graph(struct act *act, const struct err *err,
                           const struct graph *graph)
{
    struct checking *checking = act_scratch(act, sizeof(*checking));
    _cleanup_err_ struct err *error = err_copy(err);
    int r = err != NULL ? err->code : prove_twins(act, graph, false, &error);
    if ((r == -EBUSY || r == -EAGAIN) && checking->looks++ < PROOF_LOOKS) {
        act_again(act, PROOF_MS, twin_check);
    } else {
        if (r == -EBUSY && prove_twins(act, graph, true, NULL) == 0) {
            err_hint(&error, "end that job first, then ask again: the undo"
                             " window stays open");
        }
        act_end(act, error);
    }
}

static void check_on_jobs(struct act *act, const struct job_list *jobs)
{
    const struct plan *plan = act_plan(act);
    _cleanup_err_ struct err *err = NULL;
    struct checking *checking = act_scratch(act, sizeof(*checking));
    const struct plan_disk *bad = NULL;
    bool waits = false;
    char why[WHY_MAX];
    for (unsigned i = 0; i < plan->n_disks && bad == NULL; i++) {
        const struct job *job = job_list_find(jobs, twin_name(act, i).text);
        bad = broken(job, why) != NULL ? &plan->disks[i] : NULL;
        /* One that is not ready yet has just been started. */
        waits = waits || (bad == NULL && job->status != JOB_READY);
    }
    checking->broken = bad != NULL ? checking->broken + 1 : 0;
    if (checking->broken >= BROKEN_LOOKS) {
        (void)err_set(&err, -EIO, bad->disk,
                      "the former disk does not follow any more: %s", why);
        act_end(act, err);
    } else if (bad == NULL && !waits) {
        act_graph(act, check_on_graph);
    }
}

void twin_check(struct act *act)
{
    if (act_scratch(act, sizeof(struct checking)) == NULL) {
        _cleanup_err_ struct err *err = NULL;
        (void)err_set(&err, -ENOMEM, "undo window", "out of memory");
        act_end(act, err);
        return;
    }
    yank_former(act);
    act_wait_jobs(act, check_on_jobs);
}

/* --- how long writes take --- */

static uint64_t counter(const json_t *stats, const char *member)
{
    json_int_t value = json_integer_value(json_object_get(stats, member));
    return value > 0 ? (uint64_t)value : 0;
}

static void latency_on_stats(struct act *act, const struct err *err,
                             json_t *result)
{
    const struct plan *plan = act_plan(act);
    json_t *us = json_object();
    for (unsigned i = 0; err == NULL && i < plan->n_disks; i++) {
        const json_t *stats = disk_device_stats(result, &plan->disks[i]);
        uint64_t n = counter(stats, "wr_operations");
        uint64_t ns = counter(stats, "wr_total_time_ns");
        if (n > 0) {
            (void)json_object_set_new(
                us, plan->disks[i].disk,
                json_integer((json_int_t)(ns / n / NS_PER_US)));
        }
    }
    act_set_facts(act, json_pack("{s:o}", "latency", us));
    act_end(act, NULL); /* nice to know, no more */
}

void twin_look_latency(struct act *act)
{
    act_qmp(act, "query-blockstats", NULL, latency_on_stats);
}

/* --- the window --- */

/*
 * What an engine before this one has left of the time, by the clock on the
 * wall; from there on by the loop's, which nobody sets.
 */
static uint64_t left_ms(const struct act *act)
{
    uv_timeval64_t now = {0};
    uint64_t opened = (uint64_t)json_integer_value(
        op_fact(act_op(act), "guest-cont", ALL_DISKS, "opened"));
    uint64_t lasts_ms = act_plan(act)->undo_window_ms;
    (void)uv_gettimeofday(&now);
    uint64_t past_ms = (uint64_t)now.tv_sec > opened
                           ? ((uint64_t)now.tv_sec - opened) * 1000
                           : 0;
    return past_ms < lasts_ms ? lasts_ms - past_ms : 0;
}

static void window_tell(struct act *act)
{
    const struct plan *plan = act_plan(act);
    const struct window *window = act_scratch(act, sizeof(*window));
    uint64_t now = act_now_ms(act);
    uint64_t left = window->ends_ms > now ? window->ends_ms - now : 0;
    for (unsigned i = 0; i < plan->n_disks; i++) {
        const struct plan_disk *disk = &plan->disks[i];
        json_t *before = json_object_get(
            op_fact(act_op(act), "latency-look", ALL_DISKS, "latency"),
            disk->disk);
        json_t *data = json_pack(
            "{s:s, s:s, s:I, s:I, s:I, s:I}", "disk", disk->disk, "phase",
            "undo-window", "bytes", (json_int_t)disk->size, "total",
            (json_int_t)disk->size, "remaining", (json_int_t)0, "seconds_left",
            (json_int_t)((left + 999) / 1000));
        if (before != NULL) {
            (void)json_object_set(data, "write_latency_before_us", before);
        }
        if (window->disks[i].latency_us != 0) {
            (void)json_object_set_new(
                data, "write_latency_window_us",
                json_integer((json_int_t)window->disks[i].latency_us));
        }
        act_emit(act, "progress", data);
    }
}

static void window_on_status(struct act *act, const struct err *err,
                             json_t *result)
{
    const char *status = json_string_value(json_object_get(result, "status"));
    if (err == NULL && str_eq(status, "shutdown")) {
        window_end(act, "the guest has powered off");
        return;
    }
    window_tell(act);
    act_again(act, LOOK_MS, window_look);
}

static void window_on_stats(struct act *act, const struct err *err,
                            json_t *result)
{
    const struct plan *plan = act_plan(act);
    struct window *window = act_scratch(act, sizeof(*window));
    for (unsigned i = 0; err == NULL && i < plan->n_disks; i++) {
        const json_t *stats = disk_device_stats(result, &plan->disks[i]);
        struct watched *disk = &window->disks[i];
        uint64_t n = counter(stats, "wr_operations");
        uint64_t ns = counter(stats, "wr_total_time_ns");
        if (!window->based || n < disk->operations) {
            disk->operations = n;
            disk->time_ns = ns;
        } else if (n > disk->operations && ns > disk->time_ns) {
            disk->latency_us =
                (ns - disk->time_ns) / (n - disk->operations) / NS_PER_US;
        }
    }
    window->based = window->based || err == NULL;
    act_qmp(act, "query-status", NULL, window_on_status);
}

/* How long a write has been on its way to the former disk. */
static uint64_t stalled_ms(const struct act *act, const struct job *job,
                           struct watched *disk)
{
    uint64_t now = act_now_ms(act);
    if (disk->moved_ms == 0 || job->offset != disk->offset ||
        job->offset >= job->len) {
        disk->offset = job->offset;
        disk->moved_ms = disk->warned_ms = now;
    }
    return now - disk->moved_ms;
}

/*
 * A guest's write waits for it. Cut off, its writes fail, its mirror pauses
 * and the window closes; what cannot be cut (no NBD) can only be waited for:
 * to end the mirror meanwhile could end QEMU, see twin_drop().
 */
static void window_stalled(struct act *act, const struct plan_disk *disk,
                           struct watched *watched)
{
    if (act_now_ms(act) - watched->warned_ms > STALL_MS) {
        watched->warned_ms = act_now_ms(act);
        act_warn(act,
                 "%s: the former disk %s takes no more writes, and the guest"
                 " waits for it",
                 disk->disk, disk->from);
        vm_yank(act_vm(act));
    }
}

static void window_on_jobs(struct act *act, const struct job_list *jobs)
{
    const struct plan *plan = act_plan(act);
    struct window *window = act_scratch(act, sizeof(*window));
    char why[WHY_MAX];
    bool hangs = false;
    for (unsigned i = 0; i < plan->n_disks; i++) {
        const struct job *job = job_list_find(jobs, twin_name(act, i).text);
        bool breaks = broken(job, why) != NULL;
        if (breaks && ++window->disks[i].broken >= BROKEN_LOOKS) {
            act_warn(act,
                     "%s: the former disk %s does not follow any more (%s):"
                     " the undo window is closed",
                     plan->disks[i].disk, plan->disks[i].from, why);
            window_end(act, "the former disk does not follow any more");
            return;
        }
        window->disks[i].broken = breaks ? window->disks[i].broken : 0;
        if (!breaks) {
            uint64_t ms = stalled_ms(act, job, &window->disks[i]);
            hangs = hangs || ms > TELL_MS;
            window_stalled(act, &plan->disks[i], &window->disks[i]);
        }
    }
    if (act_now_ms(act) >= window->ends_ms && !hangs) {
        window_end(act, "its time is over");
        return;
    }
    if (window->told_ms == 0 || act_now_ms(act) - window->told_ms >= TELL_MS) {
        window->told_ms = act_now_ms(act);
        act_qmp(act, "query-blockstats", NULL, window_on_stats);
    } else {
        act_again(act, LOOK_MS, window_look);
    }
}

static void window_on_reply(struct act *act, const struct err *err,
                            json_t *result)
{
    struct job_list jobs = {0};
    const struct window *window = act_scratch(act, sizeof(*window));
    if (err == NULL && job_list_init(&jobs, result, NULL, NULL) == 0) {
        window_on_jobs(act, &jobs);
        job_list_done(&jobs);
    } else if (act_now_ms(act) >= window->ends_ms) {
        window_end(act, "its time is over");
    } else {
        act_again(act, LOOK_MS, window_look); /* its time goes on */
    }
}

/* By its own timer, so that it ends also when QEMU answers nothing of use. */
static void window_look(struct act *act)
{
    act_qmp(act, "query-jobs", NULL, window_on_reply);
}

void twin_window(struct act *act)
{
    struct window *window = act_scratch(act, sizeof(*window));
    bool open =
        json_is_true(op_fact(act_op(act), "guest-cont", ALL_DISKS, "open"));
    bool lost = act_plan(act)->adopted;
    if (window == NULL || !open) {
        act_warn(act, "%s: the former disks may differ from the targets",
                 lost ? "the undo window is closed, its journal is lost"
                      : "there is no undo window");
        act_set_facts(
            act, json_pack("{s:s}", "closed",
                           lost ? "its journal is lost" : "it never opened"));
        act_end(act, NULL);
        return;
    }
    if (window->ends_ms == 0) {
        window->ends_ms = act_now_ms(act) + left_ms(act);
    }
    yank_former(act);
    act_graph(act, window_on_graph);
}

/* Between two engines anybody may have had a hand in it. */
static void window_on_graph(struct act *act, const struct err *err,
                            const struct graph *graph)
{
    struct window *window = act_scratch(act, sizeof(*window));
    _cleanup_err_ struct err *error = NULL;
    int r = err != NULL ? -EAGAIN : prove_twins(act, graph, true, &error);
    bool late = act_now_ms(act) >= window->ends_ms;
    if (late) {
        window_end(act, "its time is over");
    } else if ((r == -EBUSY || r == -EAGAIN) && window->looks++ < PROOF_LOOKS) {
        act_again(act, PROOF_MS, twin_window);
    } else if (error != NULL) {
        _cleanup_free_ char *why = err_text(error);
        act_warn(act, "the undo window is closed: %s", why != NULL ? why : "");
        window_end(act, "the former disk does not follow any more");
    } else {
        window_look(act);
    }
}

static void window_end(struct act *act, const char *why)
{
    const struct plan *plan = act_plan(act);
    const struct window *window = act_scratch(act, sizeof(*window));
    json_t *us = json_object();
    for (unsigned i = 0; i < plan->n_disks; i++) {
        if (window->disks[i].latency_us != 0) {
            (void)json_object_set_new(
                us, plan->disks[i].disk,
                json_integer((json_int_t)window->disks[i].latency_us));
        }
    }
    act_set_facts(act, json_pack("{s:s, s:o}", "closed", why, "latency", us));
    act_end(act, NULL);
}
