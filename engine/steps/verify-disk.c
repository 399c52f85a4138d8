/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One disk in one round: the bitmap of what the guest has rewritten is handed
 * over, the mirror is given time to copy it, both sides are flushed, and what
 * is to be read is read.
 */
#include <errno.h>

#include "base/err.h"
#include "base/str.h"
#include "steps/act-on.h"
#include "steps/hold.h"
#include "steps/verify-private.h"

enum {
    LOOK_MS = 20,
};

static void disk_sync(struct act *act);
static void disk_flush(struct act *act);
static void disk_compare(struct act *act);
static void keep(struct act *act, const struct check_result *result);
static void disk_end(struct act *act);
static uint64_t left_ms(struct act *act);
static struct err *too_late(struct act *act);

/* --- mark, and hand over --- */

static json_t *add_action(const char *node, const char *bitmap, bool scratch)
{
    return json_pack("{s:s, s:{s:s, s:s, s:i, s:b, s:b}}", "type",
                     "block-dirty-bitmap-add", "data", "node", node, "name",
                     bitmap, "granularity", (int)CHECK_GRANULARITY,
                     "persistent", scratch, "disabled", scratch);
}

/*
 * What was recorded so far goes into the scratch image. The next bitmap
 * records before this one stops: no write is in neither.
 */
static json_t *hand_over(const struct act *act, const struct plan_disk *disk,
                         unsigned round, bool last)
{
    struct name scratch = name_of(act_op_id(act), disk->index, NAME_SCRATCH);
    struct name now = verify_dirty_name(act, disk->index, round);
    struct name next = verify_dirty_name(act, disk->index, round + 1);
    json_t *actions = json_array();
    if (!last) {
        (void)json_array_append_new(actions,
                                    add_action(disk->active, next.text, false));
        (void)json_array_append_new(
            actions, json_pack("{s:s, s:{s:s, s:s}}", "type",
                               "block-dirty-bitmap-disable", "data", "node",
                               disk->active, "name", now.text));
    }
    (void)json_array_append_new(actions,
                                add_action(scratch.text, CHECK_BITMAP, true));
    (void)json_array_append_new(
        actions, json_pack("{s:s, s:{s:s, s:s, s:[{s:s, s:s}]}}", "type",
                           "block-dirty-bitmap-merge", "data", "node",
                           scratch.text, "target", CHECK_BITMAP, "bitmaps",
                           "node", disk->active, "name", now.text));
    return json_pack("{s:o}", "actions", actions);
}

static void next_on_reply(struct act *act, const struct err *err,
                          json_t *result)
{
    (void)result;
    if (err != NULL) {
        act_end(act, err);
    } else {
        verifying_of(act)->counted = false;
        disk_sync(act);
    }
}

static void over_on_dropped(struct act *act, const struct err *err,
                            json_t *result)
{
    (void)result;
    if (err != NULL) {
        act_end(act, err);
    } else {
        act_qmp(act, "blockdev-del", verify_scratch_name(act), next_on_reply);
    }
}

static void over_on_done(struct act *act, const struct err *err, json_t *result)
{
    const struct verifying *v = verifying_of(act);
    const struct plan_disk *disk = verify_disk(act);
    if (err != NULL || v->rest) {
        over_on_dropped(act, err, result);
        return;
    }
    struct name past = verify_dirty_name(act, disk->index, v->round - 1);
    act_qmp(act, "block-dirty-bitmap-remove",
            json_pack("{s:s, s:s}", "node", disk->active, "name", past.text),
            over_on_dropped);
}

static void over_on_emptied(struct act *act, const struct err *err,
                            json_t *result)
{
    (void)err; /* the first time there is none */
    (void)result;
    const struct verifying *v = verifying_of(act);
    unsigned recorded = v->rest ? v->round : v->round - 1;
    act_qmp(act, "transaction",
            hand_over(act, verify_disk(act), recorded, v->rest), over_on_done);
}

static void over_on_open(struct act *act, const struct err *err, json_t *result)
{
    (void)result;
    struct name scratch =
        name_of(act_op_id(act), verify_disk(act)->index, NAME_SCRATCH);
    if (err != NULL) {
        act_end(act, err);
        return;
    }
    act_qmp(act, "block-dirty-bitmap-remove",
            json_pack("{s:s, s:s}", "node", scratch.text, "name", CHECK_BITMAP),
            over_on_emptied);
}

void verify_disk_begin(struct act *act)
{
    const struct verifying *v = verifying_of(act);
    const struct plan_disk *disk = verify_disk(act);
    struct name first = verify_dirty_name(act, disk->index, 0);
    if (v->round > 0 || v->rest) {
        act_qmp(act, "blockdev-add",
                verify_scratch_node(act_op_id(act), act_plan(act), disk),
                over_on_open);
        return;
    }
    act_qmp(act, "block-dirty-bitmap-add",
            json_pack("{s:s, s:s, s:i}", "node", disk->active, "name",
                      first.text, "granularity", (int)CHECK_GRANULARITY),
            next_on_reply);
}

/* --- has the mirror copied all? --- */

/* The mirror's own bitmap has no name, and is on the node or its filter. */
static bool has_dirty(const json_t *nodes, const struct plan_disk *disk,
                      const char *top)
{
    size_t i, k;
    json_t *node, *bitmap;
    json_array_foreach(nodes, i, node) {
        const char *name =
            json_string_value(json_object_get(node, "node-name"));
        bool legacy = name != NULL && *name == '#';
        bool its = str_eq(name, disk->active) || str_eq(name, disk->root) ||
                   str_eq(name, top) || legacy;
        if (!its) {
            continue;
        }
        json_array_foreach(json_object_get(node, "dirty-bitmaps"), k, bitmap) {
            const json_t *count = json_object_get(bitmap, "count");
            if (json_object_get(bitmap, "name") == NULL &&
                json_integer_value(count) > 0) {
                return true;
            }
        }
    }
    return false;
}

static void sync_again(struct act *act)
{
    struct verifying *v = verifying_of(act);
    _cleanup_err_ struct err *err = NULL;
    v->counted = false;
    if (left_ms(act) > 0) {
        act_again(act, LOOK_MS, disk_sync);
    } else {
        (void)err_set(&err, -ETIMEDOUT, verify_disk(act)->disk,
                      "the mirror did not catch up within the freeze limit of"
                      " %u ms",
                      (unsigned)act_plan(act)->freeze_limit_ms);
        err_hint(&err, "give a longer --freeze-limit, or --copy-mode"
                       " write-blocking");
        act_end(act, err);
    }
}

static void sync_on_nodes(struct act *act, const struct err *err,
                          json_t *result)
{
    struct verifying *v = verifying_of(act);
    const struct plan_disk *disk = verify_disk(act);
    struct name top = name_of(act_op_id(act), disk->index, NAME_TOP);
    if (err != NULL) {
        act_end(act, err);
    } else if (has_dirty(result, disk, top.text)) {
        sync_again(act);
    } else {
        v->counted = true;
        disk_sync(act);
    }
}

/*
 * A mirror counts what is in flight before it takes it out of its bitmap: if
 * the bitmap was empty, and later nothing remains, all has arrived. The nodes
 * are asked only when it looks like that, as seldom as can be: QEMU 10 asks
 * RBD and NFS for their size then, which they survive in an iothread mostly.
 */
static void sync_on_jobs(struct act *act, const struct job_list *jobs)
{
    struct verifying *v = verifying_of(act);
    const struct plan_disk *disk = verify_disk(act);
    struct name id = name_of(act_op_id(act), disk->index, NAME_MIRROR);
    const struct job *job = job_list_find(jobs, id.text);
    _cleanup_err_ struct err *err = NULL;
    if (job != NULL && job_check(job, disk->disk, "mirror", &err) < 0) {
        act_end(act, err);
    } else if (job == NULL || job->status >= JOB_ABORTING) {
        (void)err_set(&err, -EIO, disk->disk,
                      "the mirror was ended by somebody else");
        act_end(act, err);
    } else if (job->offset < job->len) {
        sync_again(act);
    } else if (!v->counted) {
        act_qmp(act, "query-named-block-nodes", json_pack("{s:b}", "flat", 1),
                sync_on_nodes);
    } else {
        disk_flush(act);
    }
}

/* In a round what lags behind is read again: only the rest must be certain. */
static void disk_sync(struct act *act)
{
    if (verifying_of(act)->rest) {
        act_wait_jobs(act, sync_on_jobs);
    } else {
        disk_flush(act);
    }
}

/* --- flush --- */

/*
 * What QEMU may hold back from other readers, and what a flush of one node is
 * safe for. 'qemu-io NODE flush' enters the node from the main loop: QEMU 10's
 * RBD driver, in an iothread, does not survive that.
 */
enum flushing { FLUSH_NEEDLESS, FLUSH_BY_NODE, FLUSH_BY_STOP };

static enum flushing how_to_flush(const char *format, const char *driver)
{
    bool local = str_eq(driver, "file") || str_eq(driver, "host_device");
    if (str_eq(format, "qcow2")) {
        return local ? FLUSH_BY_NODE : FLUSH_BY_STOP; /* its tables */
    }
    return str_eq(driver, "rbd") ? FLUSH_BY_STOP : FLUSH_NEEDLESS;
}

static enum flushing target_flushing(const struct plan_disk *disk)
{
    const json_t *driver = json_object_get(disk->file_options, "driver");
    return how_to_flush(disk->format, json_string_value(driver));
}

static enum flushing source_flushing(const struct plan_disk *disk)
{
    const json_t *driver = json_object_get(disk->before, "protocol_driver");
    return how_to_flush(disk->from_format, json_string_value(driver));
}

static void flush_node(struct act *act, const char *node, act_reply_fn *then)
{
    _cleanup_free_ char *line = str_printf("qemu-io %s \"flush\"", node);
    act_qmp(act, "human-monitor-command",
            json_pack("{s:s*}", "command-line", line), then);
}

/* A flush that failed makes a difference at worst: it hides none. */
static void flush_on_reply(struct act *act, const struct err *err,
                           json_t *result)
{
    (void)result;
    if (err != NULL) {
        act_end(act, err);
    } else {
        disk_compare(act);
    }
}

static void flush_source(struct act *act)
{
    const struct plan_disk *disk = verify_disk(act);
    if (source_flushing(disk) == FLUSH_BY_NODE) {
        flush_node(act, disk->active, flush_on_reply);
    } else {
        disk_compare(act);
    }
}

static void flush_on_target(struct act *act, const struct err *err,
                            json_t *result)
{
    (void)result;
    if (err != NULL) {
        act_end(act, err);
    } else {
        flush_source(act);
    }
}

/*
 * 'stop' flushes every node, also where the guest stands still already. Never
 * one that the guard has let go: that may have written, and the guard is no
 * more.
 */
static void stop_on_status(struct act *act, const struct err *err,
                           json_t *status)
{
    _cleanup_err_ struct err *error = err_copy(err);
    if (error == NULL && (guest_runs(status) || left_ms(act) == 0)) {
        error = too_late(act);
    }
    if (err == NULL && error == NULL) {
        act_qmp(act, "stop", NULL, flush_on_reply);
    } else {
        act_end(act, error);
    }
}

static void disk_flush(struct act *act)
{
    const struct plan_disk *disk = verify_disk(act);
    struct name target = name_of(act_op_id(act), disk->index, NAME_TARGET);
    if (verifying_of(act)->rest) {
        act_qmp(act, "query-status", NULL, stop_on_status);
    } else if (target_flushing(disk) == FLUSH_BY_NODE) {
        flush_node(act, target.text, flush_on_target);
    } else {
        flush_source(act);
    }
}

/* --- compare --- */

/* The facts of this act so far: {"round","disks":[{...}]}. */
json_t *verify_facts(struct act *act)
{
    json_t *facts = act_facts(act);
    if (facts == NULL) {
        json_t *disks = json_array();
        for (unsigned i = 0; i < act_plan(act)->n_disks; i++) {
            (void)json_array_append_new(disks, json_object());
        }
        facts = json_pack("{s:o}", "disks", disks);
        act_set_facts(act, facts);
    }
    return facts;
}

static json_t *disk_facts(struct act *act)
{
    return json_array_get(json_object_get(verify_facts(act), "disks"),
                          verify_disk(act)->index);
}

static void compare_on_progress(struct act *act, uint64_t bytes, uint64_t total)
{
    struct verifying *v = verifying_of(act);
    progress_sample(&v->progress, act_now_ms(act), PROGRESS_COPY, bytes, total);
    uint64_t eta_ms = progress_eta_ms(&v->progress);
    json_t *data = json_pack("{s:s, s:s, s:I, s:I, s:I, s:I}", "disk",
                             verify_disk(act)->disk, "phase", "verify", "bytes",
                             (json_int_t)bytes, "total", (json_int_t)total,
                             "remaining", (json_int_t)(total - bytes), "rate",
                             (json_int_t)progress_rate(&v->progress));
    if (eta_ms != PROGRESS_UNKNOWN) {
        (void)json_object_set_new(data, "eta_seconds",
                                  json_real((double)eta_ms / 1000.0));
    }
    act_emit(act, "progress", data);
}

static void end_with_difference(struct act *act,
                                const struct check_result *result)
{
    const struct plan_disk *disk = verify_disk(act);
    _cleanup_err_ struct err *err = NULL;
    (void)err_set(&err, -EIO, disk->disk,
                  "its copy '%s' is not equal to '%s': %llu bytes differ: %s",
                  disk->to, disk->from, (unsigned long long)result->differing,
                  result->where);
    err_hint(&err, "the guest goes on with the source; see to the target's"
                   " storage, and that nobody else writes to it, before"
                   " another try");
    act_end(act, err);
}

static void compare_on_end(struct act *act, const struct err *err,
                           const struct check_result *result)
{
    struct verifying *v = verifying_of(act);
    _cleanup_err_ struct err *error = err_copy(err);
    if (err != NULL) {
        if (v->rest && err->code == -ETIMEDOUT) {
            error = err_free(error);
            error = too_late(act);
        }
        act_end(act, error);
        return;
    }
    keep(act, result);
    /* While the guest writes, a difference may be a write on its way. */
    if (v->rest && result->differing > 0) {
        end_with_difference(act, result);
    } else {
        disk_end(act);
    }
}

/* What the next round, and the result, need to know of this one. */
static void keep(struct act *act, const struct check_result *result)
{
    struct verifying *v = verifying_of(act);
    json_t *facts = disk_facts(act);
    (void)json_object_set_new(facts, v->rest ? "rechecked" : "last",
                              json_integer((json_int_t)result->looked));
    (void)json_object_set_new(facts, "verified_bytes",
                              json_integer((json_int_t)result->chosen));
    (void)json_object_set(facts, "ranges", result->ranges);
    v->looked += result->looked;
    v->took_ms += result->ms;
    v->differing += result->differing;
}

static void disk_end(struct act *act)
{
    struct verifying *v = verifying_of(act);
    v->disk++;
    if (v->disk < act_plan(act)->n_disks) {
        verify_disk_begin(act);
    } else {
        v->then(act);
    }
}

/* What is not equal yet is carried from round to round, and into the rest. */
static const json_t *ranges_of(struct act *act)
{
    const struct verifying *v = verifying_of(act);
    if (!v->rest) {
        return json_object_get(disk_facts(act), "ranges");
    }
    const json_t *disks = act_fact(act, "verify", "disks");
    return json_object_get(json_array_get(disks, v->disk), "ranges");
}

static uint64_t left_ms(struct act *act)
{
    uint64_t budget_ms = act_plan(act)->freeze_limit_ms / 4 * 3;
    uint64_t spent_ms = act_now_ms(act) - verifying_of(act)->begun_ms;
    return spent_ms < budget_ms ? budget_ms - spent_ms : 0;
}

static struct err *too_late(struct act *act)
{
    struct err *err = NULL;
    (void)err_set(&err, -ETIMEDOUT, verify_disk(act)->disk,
                  "what the guest had rewritten could not be compared within"
                  " the freeze limit of %u ms",
                  (unsigned)act_plan(act)->freeze_limit_ms);
    err_hint(&err, "give a longer --freeze-limit");
    return err;
}

static void disk_compare(struct act *act)
{
    struct verifying *v = verifying_of(act);
    const struct plan *plan = act_plan(act);
    const struct plan_disk *disk = verify_disk(act);
    _cleanup_free_ char *path = verify_scratch_path(plan, disk);
    uint64_t limit_ms = left_ms(act) + 1;
    struct check_request request = {.act = CHECK_COMPARE,
                                    .dir = plan->verify_dir,
                                    .scratch = path,
                                    .source = disk->from,
                                    .source_format = disk->from_format,
                                    .target = disk->to,
                                    .target_format = disk->format,
                                    .size = disk->size,
                                    .sample = str_eq(plan->verify, "sample"),
                                    .seed = act_op_id(act),
                                    .again = v->rest || v->round > 0,
                                    .ranges = ranges_of(act),
                                    .speed = v->rest ? 0 : plan->speed,
                                    .limit_ms =
                                        v->rest ? (unsigned)limit_ms : 0};
    v->progress = (struct progress){0};
    act_check(act, &request, v->rest ? NULL : compare_on_progress,
              compare_on_end);
}
