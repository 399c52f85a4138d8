/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "steps/cancel.h"

#include <assert.h>
#include <errno.h>

#include "base/err.h"
#include "base/str.h"
#include "qmp/qmp.h"
#include "steps/hold.h"

static void cancel_on_status(struct act *act, const struct err *err,
                             json_t *result);
static void cancel_send(struct act *act);
static void cancel_on_replies(struct act *act, const struct err *err,
                              json_t *result);

static struct cancelling *cancelling_of(struct act *act)
{
    return act_scratch(act, sizeof(struct cancelling));
}

void cancel_jobs(struct act *act, const char *const *ids, unsigned n_ids,
                 bool write_block, act_reply_fn *then)
{
    *cancelling_of(act) = (struct cancelling){ids, n_ids, then, false};
    if (write_block) {
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
                            WATCHDOG_LETS_GO, &error);
    }
    if (error != NULL) {
        cancelling->then(act, error, NULL);
        return;
    }
    cancel_send(act);
}

static void cancel_send(struct act *act)
{
    const struct cancelling *cancelling = cancelling_of(act);
    struct act_command commands[QMP_BATCH_MAX];
    unsigned n = 0;
    assert(cancelling->n_ids + 2 <= QMP_BATCH_MAX);
    if (cancelling->stops) {
        act_set_owes_cont(act, true);
        commands[n++] = (struct act_command){"stop", NULL};
    }
    for (unsigned i = 0; i < cancelling->n_ids; i++) {
        commands[n++] = (struct act_command){
            "job-cancel", json_pack("{s:s}", "id", cancelling->ids[i])};
    }
    if (cancelling->stops) {
        commands[n++] = (struct act_command){"cont", NULL};
    }
    act_qmp_batch(act, commands, n, cancel_on_replies);
}

/* Without all replies it may still stand, and its guard stays. */
static void cancel_on_replies(struct act *act, const struct err *err,
                              json_t *result)
{
    const struct cancelling *cancelling = cancelling_of(act);
    if (cancelling->stops && (err == NULL || err->code == -EREMOTEIO)) {
        act_set_owes_cont(act, false);
        act_guard_disarm(act);
    }
    cancelling->then(act, err, result);
}
