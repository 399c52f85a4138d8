/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "steps/backlog.h"

#include <errno.h>
#include <stdlib.h>

#include "base/err.h"
#include "base/str.h"
#include "policy/blackout.h"
#include "policy/progress.h"
#include "run/op.h"
#include "steps/act-on.h"
#include "steps/export.h"

enum {
    PATIENCE_MS = 60000,
    TELL_MS = 5000, /* between two words of why it waits */
    DOWNTIME_MS = 300,
};

/* What waiting knows; it begins anew after a crash. */
struct waiting {
    uint64_t begun_ms;
    uint64_t told_ms;
    struct progress progress[]; /* by disk */
};

static void wait_on_jobs(struct act *act, const struct job_list *jobs);

/* --- write-blocking, where a mirror can become that --- */

const char *backlog_copy_mode(bool can_switch)
{
    /* Until READY the guest need not wait for what is copied anyway. */
    return can_switch ? "background" : "write-blocking";
}

bool backlog_may_switch(const struct plan *plan, const struct plan_disk *disk)
{
    return export_is_copied(plan, disk) &&
           str_eq(disk->copy_mode, "background");
}

json_t *backlog_switch_command(const char *op, const struct plan *plan,
                               const struct plan_disk *disk)
{
    (void)plan;
    struct name id = name_of(op, disk->index, NAME_MIRROR);
    return json_pack("{s:s, s:{s:s, s:s, s:s}}", "execute", "block-job-change",
                     "arguments", "id", id.text, "type", "mirror", "copy-mode",
                     "write-blocking");
}

void backlog_switch(struct act *act)
{
    act_set_writes_block(act, act_disk(act)->index);
    act_command(act, NULL);
}

/* --- how much it is --- */

/*
 * A mirror that was write-blocking from its start is equal from READY on
 * (block/mirror.c); of one that became so, QEMU tells when it is.
 */
static bool is_synced(const struct plan_disk *disk, const struct job *job)
{
    bool always = str_eq(disk->copy_mode, "write-blocking");
    return job->status == JOB_READY && (job->actively_synced || always);
}

static struct blackout_disk look_at(const struct plan_disk *disk,
                                    const struct job *job, uint64_t rate)
{
    return (struct blackout_disk){
        .name = disk->disk,
        .remaining = job->len > job->offset ? job->len - job->offset : 0,
        .rate = rate,
        .synced = is_synced(disk, job),
    };
}

static struct blackout_limits limits_of(const struct act *act,
                                        uint64_t patience_ms)
{
    const json_t *limit =
        json_object_get(act_plan(act)->parameters, "downtime-limit");
    json_int_t ms = json_integer_value(limit);
    return (struct blackout_limits){.budget_ms =
                                        ms > 0 ? (uint64_t)ms : DOWNTIME_MS,
                                    .patience_ms = patience_ms};
}

/* --- before the stream --- */

static int no_memory(struct err **errp)
{
    return err_set(errp, -ENOMEM, "migration", "out of memory");
}

void backlog_wait(struct act *act)
{
    unsigned n = act_plan(act)->n_disks;
    struct waiting *waiting =
        act_scratch(act, sizeof(*waiting) + n * sizeof(struct progress));
    _cleanup_err_ struct err *err = NULL;
    if (waiting == NULL) {
        (void)no_memory(&err);
        act_end(act, err);
        return;
    }
    waiting->begun_ms = act_now_ms(act);
    act_wait_jobs(act, wait_on_jobs);
}

static int look_at_all(struct act *act, const struct job_list *jobs,
                       struct blackout_disk *disks, json_t *rates,
                       struct err **errp)
{
    struct waiting *waiting = act_scratch(act, sizeof(*waiting));
    const struct plan *plan = act_plan(act);
    for (unsigned i = 0; i < plan->n_disks; i++) {
        const struct plan_disk *disk = &plan->disks[i];
        struct name id = name_of(act_op_id(act), i, NAME_MIRROR);
        const struct job *job = job_list_find(jobs, id.text);
        if (!copy_is_wanted(plan, disk)) {
            (void)json_array_append_new(rates, json_integer(0));
            continue;
        }
        int r = job != NULL
                    ? job_check(job, disk->disk, "blockdev-mirror", errp)
                    : 0;
        if (r < 0) {
            return r;
        }
        if (job == NULL || job->status >= JOB_ABORTING) {
            return err_set(errp, -ESTALE, disk->disk,
                           "the mirror was ended by somebody else");
        }
        progress_sample(&waiting->progress[i], act_now_ms(act),
                        PROGRESS_CONVERGE, job->offset, job->len);
        uint64_t rate = progress_rate(&waiting->progress[i]);
        disks[i] = look_at(disk, job, rate);
        (void)json_array_append_new(rates, json_integer((json_int_t)rate));
    }
    return 0;
}

static void tell_wait(struct act *act, const char *reason)
{
    struct waiting *waiting = act_scratch(act, sizeof(*waiting));
    uint64_t now = act_now_ms(act);
    if (waiting->told_ms == 0 || now - waiting->told_ms >= TELL_MS) {
        waiting->told_ms = now;
        act_warn(act, "%s", reason);
    }
}

static void decide(struct act *act, const struct blackout_disk *disks,
                   json_t *rates)
{
    const struct waiting *waiting = act_scratch(act, sizeof(*waiting));
    struct blackout_limits limits = limits_of(act, PATIENCE_MS);
    char reason[BLACKOUT_REASON_MAX];
    unsigned n = act_plan(act)->n_disks, worst = 0;
    _cleanup_err_ struct err *err = NULL;
    switch (blackout_judge(&limits, act_now_ms(act) - waiting->begun_ms, disks,
                           n, reason)) {
    case BLACKOUT_GO:
        act_set_facts(
            act, json_pack("{s:I, s:O}", "expected_ms",
                           (json_int_t)blackout_expected_ms(disks, n, &worst),
                           "rates", rates));
        act_emit(act, "ready", json_pack("{s:s}", "reason", reason));
        act_end(act, NULL);
        return;
    case BLACKOUT_WAIT:
        tell_wait(act, reason);
        return;
    case BLACKOUT_GIVE_UP:
        (void)err_set(&err, -ETIME, "blackout", "%s", reason);
        err_hint(&err, "a faster target, or a longer --downtime-limit; the"
                       " guest was not stopped");
        act_end(act, err);
        return;
    }
}

static void wait_on_jobs(struct act *act, const struct job_list *jobs)
{
    struct blackout_disk *disks =
        calloc(act_plan(act)->n_disks + 1, sizeof(*disks));
    json_auto_t *rates = json_array();
    _cleanup_err_ struct err *err = NULL;
    if (disks == NULL || rates == NULL) {
        (void)no_memory(&err);
    } else {
        (void)look_at_all(act, jobs, disks, rates, &err);
    }
    if (err != NULL) {
        act_end(act, err);
    } else {
        decide(act, disks, rates);
    }
    free(disks);
}

/* --- at the gate --- */

int backlog_check(const struct act *act, const struct job *job,
                  struct err **errp)
{
    const struct plan_disk *disk = act_disk(act);
    const json_t *rates = op_fact(act_op(act), "backlog", ALL_DISKS, "rates");
    json_int_t rate = json_integer_value(json_array_get(rates, disk->index));
    struct blackout_limits limits = limits_of(act, 0);
    struct blackout_disk look =
        look_at(disk, job, rate > 0 ? (uint64_t)rate : 0);
    char reason[BLACKOUT_REASON_MAX];
    if (blackout_judge(&limits, 0, &look, 1, reason) == BLACKOUT_GO) {
        return 0;
    }
    (void)err_set(errp, -ETIME, "blackout", "%s", reason);
    err_hint(errp, "the guest goes on at the source; start the destination"
                   " anew, as QEMU takes no second stream, and try again");
    return -ETIME;
}
