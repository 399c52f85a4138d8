/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "steps/commit.h"

#include <errno.h>
#include <stdio.h>

#include "base/err.h"
#include "base/str.h"
#include "policy/progress.h"
#include "steps/act-on.h"
#include "vm/graph.h"
#include "vm/vm.h"

enum { TELL_MS = 500, LOOK_AGAIN_MS = 100, LOOKS_MAX = 50, REFUSED_MAX = 3 };

/* How far it has come; begun anew after a crash. */
struct committing {
    struct progress progress;
    uint64_t told_ms;
    unsigned looks;
    unsigned refused;
    bool back;
    bool completes;  /* the job was told to */
    bool completed;  /* and it did */
    char error[160]; /* with which it ended, else */
};

static void commit_look(struct act *act);
static void commit_on_jobs(struct act *act, const struct job_list *jobs);

static struct name top_name(const char *op, unsigned disk, bool back)
{
    return name_of(op, disk, back ? NAME_OVERLAY : NAME_LANDING);
}

static struct name base_name(const char *op, const struct plan_disk *disk)
{
    return name_of(op, disk->index, NAME_TARGET);
}

static json_t *command(const char *op, const struct plan_disk *disk, bool back)
{
    struct name top = top_name(op, disk->index, back);
    struct name base = base_name(op, disk);
    struct name id = name_of(op, disk->index, NAME_COMMIT);
    struct name filter = name_of(op, disk->index, NAME_COMMIT_TOP);
    const char *below = back ? disk->active : base.text;
    return json_pack("{s:s, s:{s:s, s:s, s:s, s:s, s:s, s:b}}", "execute",
                     "block-commit", "arguments", "job-id", id.text, "device",
                     /* QEMU takes a root node, of which 'top' may be part. */
                     *disk->replaces != '\0' ? disk->root : top.text,
                     "top-node", top.text, "base-node", below,
                     "filter-node-name", filter.text, "auto-dismiss", 0);
}

json_t *commit_command(const char *op, const struct plan *plan,
                       const struct plan_disk *disk)
{
    (void)plan;
    return command(op, disk, false);
}

/* --- what is there --- */

enum found {
    FOUND_NOTHING, /* no such overlay: there is nothing to do */
    FOUND_ON_TOP,  /* the guest's writes are in it, or may be */
    FOUND_BELOW,   /* the guest is on the image below */
    FOUND_ELSEWHERE,
};

static enum found find(const struct act *act, const struct graph *graph,
                       bool back, bool completed)
{
    const struct plan_disk *disk = act_disk(act);
    struct name top_text = top_name(act_op_id(act), disk->index, back);
    struct name base_text = base_name(act_op_id(act), disk);
    const struct graph_node *top = graph_find_node(graph, top_text.text);
    const struct graph_node *base =
        graph_find_node(graph, back ? disk->active : base_text.text);
    const struct graph_device *device = graph_find_device(graph, disk->device);
    const struct graph_node *root = device != NULL ? device->root : NULL;
    /* QEMU leaves it standing there when it is committed. */
    bool stands = top != NULL && base != NULL &&
                  graph_reaches(graph, top, base) && !completed;
    if (root == NULL) {
        /* Unplugged: only the job itself tells, see commit_clear(). */
        return stands ? FOUND_ON_TOP : FOUND_NOTHING;
    }
    if (top != NULL && graph_reaches(graph, root, top)) {
        return FOUND_ON_TOP;
    }
    if (base != NULL && graph_reaches(graph, root, base)) {
        return FOUND_BELOW;
    }
    /* Or another device has that name: the overlay holds what this one wrote. */
    return back && !stands ? FOUND_NOTHING : FOUND_ELSEWHERE;
}

/* --- the job --- */

static void started_on_reply(struct act *act, const struct err *err,
                             json_t *result)
{
    (void)result;
    if (err != NULL) {
        act_end(act, err);
    } else {
        act_wait_jobs(act, commit_on_jobs);
    }
}

static void start(struct act *act)
{
    const struct committing *committing = act_scratch(act, sizeof(*committing));
    json_auto_t *json =
        command(act_op_id(act), act_disk(act), committing->back);
    act_qmp(act, "block-commit",
            json_incref(json_object_get(json, "arguments")), started_on_reply);
}

/* It may have changed meanwhile: a look tells; but not for ever. */
static bool is_refused(struct act *act, const struct err *err)
{
    struct committing *committing = act_scratch(act, sizeof(*committing));
    if (err == NULL) {
        return false;
    }
    if (err->code != -EREMOTEIO || ++committing->refused > REFUSED_MAX) {
        act_end(act, err);
    } else {
        act_again(act, LOOK_AGAIN_MS, commit_look);
    }
    return true;
}

static void dismissed_on_reply(struct act *act, const struct err *err,
                               json_t *result)
{
    struct committing *committing = act_scratch(act, sizeof(*committing));
    _cleanup_err_ struct err *error = NULL;
    (void)result;
    if (is_refused(act, err)) {
        return;
    }
    if (*committing->error != '\0') {
        (void)err_set_qmp(&error, act_disk(act)->disk, "block-commit",
                          "GenericError", committing->error);
        act_end(act, error);
    } else {
        commit_look(act);
    }
}

static void dismiss(struct act *act)
{
    struct committing *committing = act_scratch(act, sizeof(*committing));
    struct name id = act_name(act, NAME_COMMIT);
    committing->completed = committing->completes = false;
    act_qmp(act, "job-dismiss", json_pack("{s:s}", "id", id.text),
            dismissed_on_reply);
}

/* It has ended; where it did what it was to, it stays as the proof of that. */
static void conclude(struct act *act, const struct job *job)
{
    struct committing *committing = act_scratch(act, sizeof(*committing));
    (void)snprintf(committing->error, sizeof(committing->error), "%s",
                   job->error != NULL ? job->error : "");
    if (job->error != NULL) {
        dismiss(act);
    } else {
        committing->completed = true;
        commit_look(act);
    }
}

static void tell(struct act *act, const struct job *job)
{
    struct committing *committing = act_scratch(act, sizeof(*committing));
    uint64_t now = act_now_ms(act);
    progress_sample(&committing->progress, now, PROGRESS_COPY, job->offset,
                    job->len);
    if (now - committing->told_ms < TELL_MS) {
        return;
    }
    committing->told_ms = now;
    act_emit(act, "progress",
             json_pack("{s:s, s:I, s:I, s:I}", "phase", "commit", "bytes",
                       (json_int_t)job->offset, "total", (json_int_t)job->len,
                       "rate",
                       (json_int_t)progress_rate(&committing->progress)));
}

static void completed_on_reply(struct act *act, const struct err *err,
                               json_t *result)
{
    struct committing *committing = act_scratch(act, sizeof(*committing));
    (void)result;
    committing->completes = err == NULL;
    if (!is_refused(act, err)) {
        act_wait_jobs(act, commit_on_jobs);
    }
}

static void commit_on_jobs(struct act *act, const struct job_list *jobs)
{
    struct committing *committing = act_scratch(act, sizeof(*committing));
    struct name id = act_name(act, NAME_COMMIT);
    const struct job *job = job_list_find(jobs, id.text);
    if (job == NULL || job->status == JOB_NULL) {
        commit_look(act);
    } else if (job->status == JOB_CONCLUDED) {
        conclude(act, job);
    } else if (job->status == JOB_READY && !committing->completes) {
        committing->completes = true;
        act_qmp(act, "job-complete", json_pack("{s:s}", "id", id.text),
                completed_on_reply);
    } else {
        tell(act, job);
    }
}

static void commit_on_graph(struct act *act, const struct err *err,
                            const struct graph *graph)
{
    struct committing *committing = act_scratch(act, sizeof(*committing));
    const struct plan_disk *disk = act_disk(act);
    struct name id = act_name(act, NAME_COMMIT);
    _cleanup_err_ struct err *error = NULL;
    if (err != NULL) {
        act_end(act, err);
        return;
    }
    bool job = graph_find_job(graph, id.text) != NULL;
    if (job && !committing->completed) {
        act_wait_jobs(act, commit_on_jobs);
        return;
    }
    switch (find(act, graph, committing->back, committing->completed)) {
    case FOUND_ON_TOP:
        if (committing->completed && committing->looks++ < LOOKS_MAX) {
            act_again(act, LOOK_AGAIN_MS, commit_look);
        } else if (job) {
            dismiss(act); /* somebody has cancelled it */
        } else {
            start(act);
        }
        return;
    case FOUND_NOTHING:
    case FOUND_BELOW:
        act_set_facts(act, json_pack("{s:b}", "committed", 1));
        act_end(act, NULL);
        return;
    case FOUND_ELSEWHERE:
        (void)err_set(&error, -ESTALE, disk->disk,
                      "is neither on its overlay nor on the image below it:"
                      " whether the overlay holds what the guest has written"
                      " last is not known");
        act_end(act, error);
        return;
    }
}

static void commit_look(struct act *act)
{
    act_graph(act, commit_on_graph);
}

static void begin(struct act *act, bool back)
{
    struct committing *committing = act_scratch(act, sizeof(*committing));
    _cleanup_err_ struct err *err = NULL;
    if (committing == NULL) {
        (void)err_set(&err, -ENOMEM, act_disk(act)->disk, "out of memory");
        act_end(act, err);
        return;
    }
    committing->back = back;
    commit_look(act);
}

void commit_run(struct act *act)
{
    begin(act, false);
}

void commit_back(struct act *act)
{
    begin(act, true);
}

/*
 * Not before the end is recorded: QEMU leaves the overlay on the image that it
 * was committed to, and a second time would undo what was written there since.
 */
void commit_clear(struct act *act, step_fn *then)
{
    act_clear_job(act, NAME_COMMIT, then);
}
