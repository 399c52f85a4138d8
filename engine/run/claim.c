/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "run/claim.h"

#include <errno.h>

#include "base/err.h"
#include "base/str.h"
#include "run/op.h"
#include "vm/names.h"
#include "vm/vm.h"

json_t *claim_holder_arguments(void)
{
    return json_pack("{s:s, s:s}", "path", "/objects/" NAME_CLAIM, "property",
                     "data");
}

static bool is_absent(const struct err *err)
{
    /* qom-get of a path that does not exist: class DeviceNotFound. */
    return err != NULL && str_eq(err->class, "DeviceNotFound");
}

static int refuse(const struct act *act, const char *holder, struct err **errp)
{
    int r = err_set(errp, -EBUSY, vm_name(act_vm(act)),
                    "operation %s is at work on this VM", holder);
    err_hint(errp,
             "wait for it, if 'qpivot list' shows it as running; take it up"
             " with 'qpivot recover %s' if its engine is gone",
             holder);
    return r;
}

/* --- take --- */

static void claim_on_holder(struct act *act, const struct err *err,
                            json_t *result)
{
    const char *holder = json_string_value(result);
    _cleanup_err_ struct err *error = NULL;
    if (is_absent(err)) {
        act_command(act, NULL);
        return;
    }
    if (err == NULL && !str_eq(holder, act_op_id(act))) {
        (void)refuse(act, holder != NULL ? holder : "(unknown)", &error);
        err = error;
    }
    act_end(act, err); /* ours already: it was taken before a crash */
}

void claim_take(struct act *act)
{
    act_qmp(act, "qom-get", claim_holder_arguments(), claim_on_holder);
}

json_t *claim_command(const char *op, const struct plan *plan,
                      const struct plan_disk *disk)
{
    (void)plan;
    (void)disk;
    return json_pack("{s:s, s:{s:s, s:s, s:s}}", "execute", "object-add",
                     "arguments", "qom-type", "secret", "id", NAME_CLAIM,
                     "data", op);
}

/* --- give back --- */

static void claim_on_mine(struct act *act, const struct err *err,
                          json_t *result)
{
    if (is_absent(err) ||
        (err == NULL && !str_eq(json_string_value(result), act_op_id(act)))) {
        act_end(act, NULL);
    } else if (err != NULL) {
        act_end(act, err);
    } else {
        act_qmp(act, "object-del", json_pack("{s:s}", "id", NAME_CLAIM), NULL);
    }
}

json_t *claim_give_command(const char *op, const struct plan *plan,
                           const struct plan_disk *disk)
{
    (void)op;
    (void)plan;
    (void)disk;
    return json_pack("{s:s, s:{s:s}}", "execute", "object-del", "arguments",
                     "id", NAME_CLAIM);
}

void claim_give(struct act *act)
{
    act_qmp(act, "qom-get", claim_holder_arguments(), claim_on_mine);
}

/* --- look --- */

static void claim_on_probe(struct act *act, const struct err *err,
                           json_t *result)
{
    if (is_absent(err)) {
        act_probed(act, PROBE_NOT_DONE);
    } else if (err != NULL) {
        act_probed(act, PROBE_UNKNOWN);
    } else {
        bool ours = str_eq(json_string_value(result), act_op_id(act));
        act_probed(act, ours ? PROBE_DONE : PROBE_NOT_DONE);
    }
}

void claim_probe(struct act *act)
{
    act_qmp(act, "qom-get", claim_holder_arguments(), claim_on_probe);
}

struct ours {
    step_fn *then;
};

static void claim_on_ours(struct act *act, const struct err *err,
                          json_t *result)
{
    const struct ours *ours = act_scratch(act, sizeof(*ours));
    if (err == NULL && str_eq(json_string_value(result), act_op_id(act))) {
        ours->then(act);
    } else {
        act_end(act, is_absent(err) ? NULL : err);
    }
}

void claim_if_ours(struct act *act, step_fn *then)
{
    struct ours *ours = act_scratch(act, sizeof(*ours));
    if (ours == NULL) {
        _cleanup_err_ struct err *err = NULL;
        (void)err_set(&err, -ENOMEM, NAME_CLAIM, "out of memory");
        act_end(act, err);
        return;
    }
    ours->then = then;
    act_qmp(act, "qom-get", claim_holder_arguments(), claim_on_ours);
}

static void claim_on_check(struct act *act, const struct err *err,
                           json_t *result)
{
    if (!is_absent(err)) {
        struct err *problem = err_copy(err);
        if (err == NULL) {
            const char *holder = json_string_value(result);
            (void)refuse(act, holder != NULL ? holder : "(unknown)", &problem);
        }
        op_problem(act_op(act), problem);
    }
    act_end(act, NULL);
}

void claim_check(struct act *act)
{
    act_qmp(act, "qom-get", claim_holder_arguments(), claim_on_check);
}
