/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * How far an operation had come, from what an earlier engine has journalled:
 * each step's mark, which of its tables it was in, and which way it went.
 */
#include <errno.h>

#include "base/str.h"
#include "run/op-private.h"

/*
 * What an earlier engine only saw is looked at once more: the world may have
 * changed since. Not what came before a pivot that was begun: the jobs of it
 * are over.
 */
static void op_look_again(struct op *op)
{
    bool begun = false;
    for (unsigned i = op->operation->n_steps; i-- > 0;) {
        const struct step *step = &op->operation->steps[i];
        if ((step->flags & STEP_PIVOT) != 0) {
            begun = begun || op_mark(op, step, ALL_DISKS)->status != MARK_NONE;
        }
        if ((step->flags & STEP_LOOKS) == 0 || begun) {
            continue;
        }
        for (int disk = ALL_DISKS; disk < (int)op->plan->n_disks; disk++) {
            op_mark(op, step, disk)->status = MARK_NONE;
        }
    }
}

int op_restore_marks(struct op *op, const json_t *records)
{
    static const enum mark_status statuses[] = {
        [JOURNAL_INTENT] = MARK_INTENT,
        [JOURNAL_END] = MARK_END,
        [JOURNAL_UNDO] = MARK_INTENT,
        [JOURNAL_UNDONE] = MARK_UNDONE,
    };

    op->marks = calloc(op_n_marks(op), sizeof(*op->marks));
    if (op->marks == NULL) {
        return -ENOMEM;
    }
    size_t i;
    json_t *record;
    json_array_foreach(records, i, record) {
        const char *name = json_string_value(json_object_get(record, "step"));
        const char *kind = json_string_value(json_object_get(record, "kind"));
        json_int_t disk = json_integer_value(json_object_get(record, "disk"));
        json_t *data = json_object_get(record, "data");
        for (unsigned s = 0; s < op->operation->n_steps; s++) {
            const struct step *step = &op->operation->steps[s];
            if (!str_eq(step->name, name) || disk < ALL_DISKS ||
                disk >= (json_int_t)op->plan->n_disks) {
                continue;
            }
            struct mark *mark = op_mark(op, step, (int)disk);
            for (int k = JOURNAL_INTENT; k <= JOURNAL_UNDONE; k++) {
                if (str_eq(kind, journal_kind_name((enum journal_kind)k))) {
                    bool back = (step->flags & STEP_RETURN) != 0;
                    mark->status = statuses[k];
                    /* On the way back it stays, wherever it stopped. */
                    op->state = k >= JOURNAL_UNDO       ? OP_UNDOING
                                : back || op->returning ? OP_RUNNING
                                                        : op->state;
                    op->returning = back;
                }
            }
            if (json_is_object(data)) {
                json_decref(mark->facts);
                mark->facts = json_incref(data);
            }
        }
    }
    const struct step *pivot = op_pivot_step(op);
    op->pivoted =
        pivot != NULL && op_mark(op, pivot, ALL_DISKS)->status == MARK_END;
    op_look_again(op);
    return 0;
}
