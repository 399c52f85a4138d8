/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Going back after the pivot. The rule of the runner stands: one pivot in a
 * plan, before it back, after it only forward. So the way back is not the undo
 * of a pivot but a table of its own, whose pivot is the return; its steps are
 * the rows with STEP_RETURN. An operation carries out one table at a time:
 *
 *     first table  ... pivot ... STEP_WINDOW ... end: done
 *                                 |      ^
 *                            asked|      |undone: before its own pivot
 *                                 v      |
 *     return table              ... pivot ... end: rolled back
 *
 * The journal needs no word for it: the table is that of the last record.
 */
#include <errno.h>

#include "base/str.h"
#include "run/op-private.h"

bool op_is_table(const struct op *op, const struct step *step)
{
    return ((step->flags & STEP_RETURN) != 0) == op->returning;
}

const struct step *op_pivot_step(const struct op *op)
{
    for (unsigned i = 0; i < op->operation->n_steps; i++) {
        const struct step *step = &op->operation->steps[i];
        if ((step->flags & STEP_PIVOT) != 0 && op_is_table(op, step)) {
            return step;
        }
    }
    return NULL;
}

static bool may_return(const struct op *op)
{
    return op->state == OP_RUNNING && op->pivoted && !op->returning &&
           !op->closing && op->error == NULL &&
           op->operation->may_return != NULL && op->operation->may_return(op);
}

bool op_has_window(const struct op *op)
{
    return op->returning || (op->pivoted && op->operation->may_return != NULL &&
                             op->operation->may_return(op));
}

int op_return(struct op *op)
{
    if (!may_return(op)) {
        return -EALREADY;
    }
    op->return_asked = true;
    return 0;
}

void op_look_return(struct op *op)
{
    bool waits = op->pos < op->operation->n_steps &&
                 (op->operation->steps[op->pos].flags & STEP_WINDOW) != 0;
    if (op->return_asked && waits && may_return(op)) {
        op_cancel_acts(op);
        op_turn(op);
    }
}

void op_take_return(struct op *op)
{
    if (!op->return_asked || !may_return(op)) {
        return;
    }
    op->return_asked = op->undo_asked = false;
    op->returning = true;
    op->pivoted = op->pivot_denied = false;
    op->pos = 0;
    for (unsigned i = 0; i < op->operation->n_steps; i++) {
        const struct step *step = &op->operation->steps[i];
        for (int disk = ALL_DISKS; disk < (int)op->plan->n_disks; disk++) {
            if ((step->flags & STEP_RETURN) != 0) {
                op_mark(op, step, disk)->status = MARK_NONE;
            }
        }
    }
}

void op_leave_return(struct op *op)
{
    _cleanup_free_ char *why = op->error != NULL ? err_text(op->error) : NULL;
    _cleanup_free_ char *message =
        str_printf("the undo did not happen, the guest is on the targets: %s",
                   why != NULL ? why : "it was interrupted");
    op->returning = false;
    op->pivoted = true;
    op->pivot_denied = false;
    op->pos = 0;
    op_warn(op, message != NULL ? message : "the undo did not happen");
    if (op->return_or_park) {
        op->must_park = true;
    } else {
        op->error = err_free(op->error);
    }
    op->again = true;
}

void op_end_return(struct op *op)
{
    if (op->error == NULL) {
        (void)err_set(&op->error, -ECANCELED, NULL,
                      "undone on request: the guest is back on its source");
    }
    op_end(op, OP_UNDONE, QPIVOT_FAILED);
}

/* --- what steps see of it --- */

const char *act_step_name(const struct act *act)
{
    return act->step->name;
}

bool act_is_returning(const struct act *act)
{
    return (act->step->flags & STEP_RETURN) != 0;
}

void act_set_standstill(struct act *act, bool still)
{
    act->op->standstill = still;
    act->op->standstill_ms = act_now_ms(act);
}

bool act_stands_still(const struct act *act)
{
    return act->op->standstill;
}

uint64_t act_stands_since_ms(const struct act *act)
{
    return act->op->standstill_ms;
}
