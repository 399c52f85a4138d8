/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "steps/cancel.h"

#include <errno.h>

#include "base/err.h"
#include "base/str.h"
#include "qmp/qmp.h"
#include "steps/hold.h"

static void cancel_on_status(struct act *act, const struct err *err,
                             json_t *result);
static void cancel_on_stopped(struct act *act, const struct err *err,
                              json_t *result);
static void cancel_send(struct act *act);
static void cancel_on_replies(struct act *act, const struct err *err,
                              json_t *result);
static void cancel_on_cont(struct act *act, const struct err *err,
                           json_t *result);

/* The guest runs. */
static void cancel_over(struct act *act)
{
    act_set_owes_cont(act, false);
    act_guard_disarm(act);
}

static struct cancelling *cancelling_of(struct act *act)
{
    return act_scratch(act, sizeof(struct cancelling));
}

void cancel_jobs(struct act *act, const char *const *ids, unsigned n_ids,
                 bool writes, act_reply_fn *then)
{
    *cancelling_of(act) = (struct cancelling){
        .ids = ids,
        .n_ids = n_ids,
        .then = then,
    };
    if (writes) {
        act_qmp(act, "query-status", NULL, cancel_on_status);
    } else {
        cancel_send(act);
    }
}

static void cancel_on_status(struct act *act, const struct err *err,
                             json_t *result)
{
    struct cancelling *cancelling = cancelling_of(act);
    const char *status = json_string_value(json_object_get(result, "status"));
    _cleanup_err_ struct err *error = err_copy(err);
    cancelling->stops =
        guest_runs(result) || (act_owes_cont(act) && str_eq(status, "paused"));
    if (error == NULL && cancelling->stops) {
        (void)act_guard_arm(act, cancelling->ids, cancelling->n_ids,
                            WATCHDOG_STOPS, &error);
    }
    if (error != NULL) {
        cancelling->then(act, error, NULL);
    } else if (cancelling->stops) {
        act_set_owes_cont(act, true);
        act_qmp(act, "stop", NULL, cancel_on_stopped);
    } else {
        cancel_send(act);
    }
}

/* Alone, as QEMU reads nothing out of band behind a queue that is full. */
static void cancel_on_stopped(struct act *act, const struct err *err,
                              json_t *result)
{
    (void)result;
    if (err == NULL) {
        cancel_send(act);
        return;
    }
    if (err->code == -EREMOTEIO) {
        cancel_over(act);
    } /* else it may stand: the guard stays */
    cancelling_of(act)->then(act, err, NULL);
}

static void cancel_send(struct act *act)
{
    struct cancelling *cancelling = cancelling_of(act);
    struct act_command commands[QMP_BATCH_MAX];
    unsigned n =
        cancelling->n_ids < QMP_BATCH_MAX ? cancelling->n_ids : QMP_BATCH_MAX;
    cancelling->sent = true;
    for (unsigned i = 0; i < n; i++) {
        commands[i] = (struct act_command){
            "job-cancel", json_pack("{s:s}", "id", cancelling->ids[i])};
    }
    act_qmp_batch(act, commands, n, cancel_on_replies);
}

static void cancel_on_replies(struct act *act, const struct err *err,
                              json_t *result)
{
    struct cancelling *cancelling = cancelling_of(act);
    bool refused = err != NULL && err->code == -EREMOTEIO;
    if (!cancelling->stops || (err != NULL && !refused)) {
        cancelling->then(act, err, result);
        return;
    }
    cancelling->refused = refused;
    act_qmp(act, "cont", NULL, cancel_on_cont);
}

/* In words that tell a person what is left to be done. */
static struct err *still_stands(const struct err *err)
{
    struct err *error = NULL;
    (void)err_set(&error, -EBUSY, "guest",
                  "was stopped for a moment and does not go on: 'cont': %s",
                  err->desc);
    err_hint(&error, "'cont' in 'qpivot monitor' lets it go on");
    return error;
}

static void pay_on_cont(struct act *act, const struct err *err, json_t *result)
{
    const struct cancelling *cancelling = cancelling_of(act);
    (void)result;
    if (err != NULL) {
        _cleanup_err_ struct err *error =
            err->code == -EREMOTEIO ? still_stands(err) : err_copy(err);
        act_end(act, error != NULL ? error : err);
    } else {
        cancel_over(act);
        cancelling->paid(act);
    }
}

void cancel_pay(struct act *act, step_fn *then)
{
    struct cancelling *cancelling = cancelling_of(act);
    if (!act_owes_cont(act)) {
        then(act);
        return;
    }
    cancelling->paid = then;
    act_qmp(act, "cont", NULL, pay_on_cont);
}

static void cancel_on_cont(struct act *act, const struct err *err,
                           json_t *result)
{
    const struct cancelling *cancelling = cancelling_of(act);
    _cleanup_err_ struct err *error = NULL;
    if (err != NULL) {
        error = still_stands(err);
        cancelling->then(act, error != NULL ? error : err, NULL);
        return;
    }
    cancel_over(act);
    if (cancelling->refused) {
        (void)err_set(&error, -EREMOTEIO, cancelling->ids[0],
                      "job-cancel was refused");
    }
    cancelling->then(act, error, result);
}
