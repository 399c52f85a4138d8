/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The frozen moment's guard, as steps use it: one at a time. */
#include "base/err.h"
#include "base/str.h"
#include "qmp/qmp.h"
#include "run/op-private.h"
#include "run/watchdog.h"
#include "vm/vm.h"

int act_guard_arm(struct act *act, const char *const *jobs, unsigned n_jobs,
                  enum watchdog_guest guest, struct err **errp)
{
    struct op *op = act->op;
    struct watchdog *guard = NULL;
    struct qmp *qmp = vm_qmp(op->vm);
    int r = watchdog_arm(qmp_fd(qmp), qmp_lifeline_fd(qmp), jobs, n_jobs, guest,
                         (unsigned)op->plan->freeze_limit_ms, &guard, errp);
    if (r == 0) {
        /* Only now: there must be one at any time. */
        (void)watchdog_disarm(op->guard);
        op->guard = guard;
    }
    return r;
}

int act_guard_stream(struct act *act, unsigned limit_ms, bool thaws,
                     struct err **errp)
{
    struct op *op = act->op;
    struct watchdog *guard = NULL;
    struct qmp *qmp = vm_qmp(op->vm);
    int r = thaws ? watchdog_arm_postcopy(qmp_fd(qmp), qmp_lifeline_fd(qmp),
                                          limit_ms, &guard, errp)
                  : watchdog_arm_stream(qmp_fd(qmp), qmp_lifeline_fd(qmp),
                                        limit_ms, &guard, errp);
    if (r == 0) {
        /* Only now: there must be one at any time. */
        (void)watchdog_disarm(op->guard);
        op->guard = guard;
    }
    return r;
}

void act_set_owes_cont(struct act *act, bool owes)
{
    act->op->owes_cont = owes;
}

bool act_owes_cont(const struct act *act)
{
    return act->op->owes_cont;
}

/* The connection broke where the guest was stopped for a moment. */
void op_pay_cont(struct op *op)
{
    struct qmp_call_options options = {
        .timeout_ms = (unsigned)op->plan->command_timeout_ms};
    if (op->owes_cont && qmp_execute(vm_qmp(op->vm), "cont", NULL, &options,
                                     NULL, NULL, NULL) == 0) {
        op->owes_cont = false;
    }
}

void act_set_writes_block(struct act *act, unsigned disk)
{
    act->op->writes_block |= UINT64_C(1) << disk % 64;
}

bool act_writes_block(const struct act *act, unsigned disk)
{
    const struct plan_disk *d = &act->op->plan->disks[disk];
    bool switched = (act->op->writes_block >> disk % 64 & 1) != 0;
    return str_eq(d->copy_mode, "write-blocking") ||
           (d->may_write_block && (switched || act->op->recovered));
}

bool act_guard_is_armed(const struct act *act)
{
    return act->op->guard != NULL;
}

int act_guard_commit(struct act *act, struct err **errp)
{
    int r = act->op->guard != NULL ? watchdog_commit(act->op->guard) : 0;
    return r == 0 ? 0
                  : err_set(errp, r, "freeze guard",
                            "the guest stood longer than the freeze limit");
}

void act_guard_hold_off(struct act *act)
{
    if (act->op->guard != NULL) {
        watchdog_hold_off(act->op->guard);
    }
}

void act_guard_disarm(struct act *act)
{
    act->op->guard = watchdog_disarm(act->op->guard);
}
