/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What an act has storage do, in threads that cannot be stopped. Storage that
 * never answers is not waited for: what only looks has failed then, as if it
 * had said so; what changes something may do that yet, so the operation parks
 * and stays locked until the thread has ended, or the process.
 */
#include <errno.h>
#include <inttypes.h>

#include "base/str.h"
#include "bulk/check.h"
#include "bulk/copy.h"
#include "run/op-private.h"

enum {
    ANSWER_MS = 300000,   /* where the plan does not say */
    FREEING_MS = 1800000, /* more: to free much takes a while */
    CANCELLED_MS = 20000,
    LET_GO_MS = 5000,
    ASK_LATE_MS = 1000,
};

static void act_on_storage(void *data, const struct err *err,
                           struct volume_result *result);
static void act_on_asked(void *data, const struct err *err,
                         struct volume_result *result);
static void act_on_checked(void *data, const struct err *err,
                           const struct check_result *result);
static void act_on_progress(void *data, uint64_t bytes, uint64_t total);
static void act_on_copying(void *data, const json_t *event);
static void act_on_copied(void *data, enum copy_outcome outcome,
                          const struct err *err);
static void act_on_cancelled(struct act *act);

static uint64_t answer_ms(const struct act *act)
{
    uint64_t limit = act->op->plan->target_timeout_ms;
    return limit != 0 ? limit : ANSWER_MS;
}

/*
 * What ends by itself, in a time of its own: to leave it before would park
 * what can be undone.
 */
static uint64_t own_ms(const struct act *act)
{
    bool attaches =
        act->working == VOLUME_ATTACH || act->working == VOLUME_DETACH;
    bool creates = act->working == VOLUME_CREATE;
    return attaches  ? act->volume->ops->attach_ms
           : creates ? act->volume->ops->create_ms
                     : 0;
}

bool act_works(const struct act *act)
{
    return act->work != NULL || act->check != NULL || act->copy != NULL;
}

void act_storage(struct act *act, struct volume *volume,
                 const struct volume_request *request, act_volume_fn *then)
{
    uint64_t now = uv_now(act->op->host.loop);
    struct volume_request keeping = *request;
    keeping.keep = act->op->keep;
    act_drop_pending(act);
    act->storage = then;
    act->volume = volume;
    act->working = request->act;
    act->work_began_ms = now;
    act->work_until_ms =
        now + answer_ms(act) + (request->act == VOLUME_REMOVE ? FREEING_MS : 0);
    if (act->work_until_ms < now + own_ms(act)) {
        act->work_until_ms = now + own_ms(act);
    }
    int r = volume_submit(act->op->host.loop, volume, &keeping, act_on_storage,
                          act, &act->work);
    if (r < 0) {
        act->work = NULL;
        act_error(act, r, volume->uri);
    }
}

struct volume *act_own_volume(struct act *act, struct volume *volume)
{
    volume_free(act->own);
    act->own = volume;
    return volume;
}

int act_ask(struct act *act, struct volume *volume, act_asked_fn *then,
            void *data)
{
    struct volume_request request = {
        .act = VOLUME_ANSWER, .aside = true, .keep = act->op->keep};
    int r = act->ask != NULL
                ? -EBUSY
                : volume_submit(act->op->host.loop, volume, &request,
                                act_on_asked, act, &act->ask);
    if (r < 0) {
        volume_free(volume);
        return r;
    }
    act->asked = volume;
    act->ask_began_ms = uv_now(act->op->host.loop);
    act->ask_then = then;
    act->ask_data = data;
    return 0;
}

void act_ask_drop(struct act *act)
{
    if (act->ask == NULL) {
        return;
    }
    if (uv_now(act->op->host.loop) - act->ask_began_ms >= ASK_LATE_MS) {
        volume_work_doubt(act->ask);
    }
    volume_work_cancel(TAKE_PTR(act->ask), NULL, NULL);
    act->asked = NULL; /* it frees the volume */
}

void act_check(struct act *act, const struct check_request *request,
               act_progress_fn *progress, act_check_fn *then)
{
    struct check_callbacks callbacks = {
        .data = act, .progress = act_on_progress, .ended = act_on_checked};
    struct check_request bounded = *request;
    _cleanup_err_ struct err *err = NULL;
    act_drop_pending(act);
    act->checked = then;
    act->progress = progress;
    bounded.stall_ms = (unsigned)answer_ms(act);
    int r = check_start(act->op->host.loop, &bounded, &callbacks, &act->check,
                        &err);
    if (r < 0) {
        act->check = NULL;
        act_error(act, r, "cannot be compared");
    }
}

void act_copy(struct act *act, const struct copy_options *options,
              act_copy_event_fn *event, act_copied_fn *then)
{
    struct copy_callbacks callbacks = {
        .data = act, .event = act_on_copying, .ended = act_on_copied};
    struct copy_options bounded = *options;
    _cleanup_err_ struct err *err = NULL;
    act_drop_pending(act);
    act->copying = event;
    act->copied = then;
    bounded.stall_ms = answer_ms(act);
    int r =
        copy_start(act->op->host.loop, &bounded, &callbacks, &act->copy, &err);
    if (r < 0) {
        act->copy = NULL;
        act_error(act, r, "cannot be copied");
    }
}

/* --- when it takes too long --- */

static void shorten(struct act *act, uint64_t ms)
{
    uint64_t end = uv_now(act->op->host.loop) + ms;
    act->work_until_ms = act->work_until_ms < end ? act->work_until_ms : end;
}

void act_cancel_work(struct act *act)
{
    act->cancelled = true;
    if (act->check != NULL) {
        check_cancel(act->check); /* it bounds itself */
    }
    if (act->copy != NULL) {
        copy_cancel(act->copy); /* so does this */
    }
    uint64_t ms = act->work != NULL ? own_ms(act) : 0;
    shorten(act, ms > CANCELLED_MS ? ms : CANCELLED_MS);
}

void act_hurry(struct act *act)
{
    shorten(act, LET_GO_MS);
}

/* The thread has the volume for good: another one takes its place. */
static void replace_volume(struct act *act)
{
    struct op *op = act->op;
    const struct volume *lost = act->volume;
    struct volume *volume = NULL;
    if (act->own == lost) {
        act->own = NULL;
        return;
    }
    if (volume_parse(lost->uri, &volume, NULL) == 0) {
        volume->format = lost->format;
        volume->format_given = lost->format_given;
    }
    for (unsigned i = 0; i < op->plan->n_disks; i++) {
        if (op->volumes[i] == lost) {
            op->volumes[i] = volume;
            return;
        }
    }
    volume_free(volume);
}

/* In the thread. */
static void on_left(void *data)
{
    (void)journal_unlock(data);
}

static struct err *leave(struct act *act, bool changes)
{
    struct op *op = act->op;
    struct err *err = NULL;
    uint64_t ms = uv_now(op->host.loop) - act->work_began_ms;
    (void)err_set(&err, -ETIMEDOUT, act->volume->name,
                  "does not answer since %" PRIu64 " s%s", ms / 1000,
                  changes ? ": what was asked of it may happen yet" : "");
    if (changes) {
        err_hint(&err, "when it answers again: 'qpivot recover %s'", op->id);
    }
    replace_volume(act);
    volume_work_doubt(act->work);
    volume_work_cancel(TAKE_PTR(act->work), changes ? on_left : NULL,
                       changes ? journal_hold(op->lock) : NULL);
    act->volume = NULL;
    return err;
}

/* The act is no more; what it may have changed keeps all others from going on. */
static void go_on(struct op *op, bool changes, const struct err *err)
{
    if (op->closing) {
        op_let_go(op);
    } else if (changes) {
        op->must_park = true;
        op->error = err_free(op->error);
        op_break(op, err);
    } else {
        op_turn(op);
    }
}

bool act_leave_late(struct act *act, uint64_t now_ms)
{
    struct op *op = act->op;
    if (act->work == NULL || now_ms < act->work_until_ms) {
        return false;
    }
    bool changes =
        act->working == VOLUME_CREATE || act->working == VOLUME_PUBLISH ||
        act->working == VOLUME_REMOVE || act->working == VOLUME_ATTACH ||
        act->working == VOLUME_DETACH;
    _cleanup_err_ struct err *err = leave(act, changes);
    if (act->cancelled || changes) {
        act_free(act);
        go_on(op, changes, err);
    } else {
        struct volume_result none = {0};
        act->storage(act, err, &none);
    }
    return true;
}

/* --- what storage answers --- */

/* Nothing was done: what is as it would have to be undone is another's. */
static void act_forget_intent(const struct act *act)
{
    struct op *op = act->op;
    op_mark(op, act->step, act->disk)->status = MARK_UNDONE;
    if (journal_append(op->host.journal, op->id, JOURNAL_UNDONE,
                       act->step->name, act->disk, NULL, op_now_us(), NULL,
                       NULL) < 0) {
        op_warn(op, "the journal cannot be written");
    }
}

static void act_on_storage(void *data, const struct err *err,
                           struct volume_result *result)
{
    struct act *act = data;
    act->work = NULL;
    if (err != NULL && act->working == VOLUME_ATTACH &&
        result->info.untouched) {
        act_forget_intent(act);
    }
    if (act->cancelled) {
        act_on_cancelled(act);
    } else {
        act->storage(act, err, result);
    }
}

static void act_on_checked(void *data, const struct err *err,
                           const struct check_result *result)
{
    struct act *act = data;
    act->check = NULL;
    if (act->cancelled) {
        act_on_cancelled(act);
    } else {
        act->checked(act, err, result);
    }
}

static void act_on_copying(void *data, const json_t *event)
{
    struct act *act = data;
    if (!act->cancelled) {
        act->copying(act, event);
    }
}

static void act_on_copied(void *data, enum copy_outcome outcome,
                          const struct err *err)
{
    struct act *act = data;
    _cleanup_err_ struct err *untold = NULL;
    act->copy = NULL;
    if (act->cancelled) {
        act_on_cancelled(act);
        return;
    }
    if (outcome != COPY_DONE && err == NULL) {
        (void)err_set(&untold, -ENOMEM, act->step->name, "out of memory");
        err = untold;
    }
    act->copied(act, outcome == COPY_DONE ? NULL : err);
}

static void act_on_progress(void *data, uint64_t bytes, uint64_t total)
{
    struct act *act = data;
    if (!act->cancelled && act->progress != NULL) {
        act->progress(act, bytes, total);
    }
}

/* What could not be stopped has ended: now the act can go. */
static void act_on_cancelled(struct act *act)
{
    struct op *op = act->op;
    act_free(act);
    go_on(op, false, NULL);
}

static void act_on_asked(void *data, const struct err *err,
                         struct volume_result *result)
{
    struct act *act = data;
    act->ask = NULL;
    act->asked = volume_free(act->asked);
    act->ask_then(act, act->ask_data, err, result);
}
