/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * An operation that no journal knows: what was found of it in QEMU becomes its
 * record, and from there it is one that is recovered.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "run/op-private.h"

int op_adopt(struct op *op, const struct operation *operation, const char *id,
             bool undo, const struct err *why)
{
    op->operation = operation;
    (void)snprintf(op->id, sizeof(op->id), "%s", id);
    op->undo_asked = undo;
    op->recovered = true;
    op->plan->adopted = true;
    op->marks = calloc(op_n_marks(op), sizeof(*op->marks));
    err_free(op->error);
    op->error = err_copy(why);
    return op->marks != NULL && (why == NULL || op->error != NULL) ? 0
                                                                   : -ENOMEM;
}

void op_adopt_step(struct op *op, const char *step, int disk, bool ended)
{
    for (unsigned i = 0; i < op->operation->n_steps; i++) {
        const struct step *found = &op->operation->steps[i];
        if (strcmp(found->name, step) == 0) {
            op_mark(op, found, disk)->status = ended ? MARK_END : MARK_INTENT;
        }
    }
}

/* They are written with the operation's own record: without them it is none. */
json_t *op_adopted_marks(const struct op *op)
{
    unsigned width = op->plan->n_disks + 1;
    json_t *marks = json_array();
    for (unsigned i = 0; op->plan->adopted && i < op_n_marks(op); i++) {
        const struct step *step = &op->operation->steps[i / width];
        enum mark_status status = op->marks[i].status;
        if (status != MARK_NONE) {
            (void)json_array_append_new(
                marks,
                json_pack("{s:b, s:s, s:i}", "ended", status == MARK_END,
                          "step", step->name, "disk", (int)(i % width) - 1));
        }
    }
    return marks;
}

/* What a person may want to remove, by which command. */
static void add_left(json_t *left, const char *disk, const char *uri)
{
    _cleanup_free_ char *command = NULL;
    _cleanup_free_ char *name = strndup(uri, strcspn(uri, "?"));
    if (name != NULL && str_starts(name, "rbd:")) {
        command = str_printf("rbd rm '%s'", name + strlen("rbd:"));
    } else if (name != NULL && name[0] == '/') {
        command = str_printf("rm -- '%s'", name);
    }
    (void)json_array_append_new(left,
                                json_pack("{s:s, s:s, s:s*}", "disk", disk,
                                          "volume", uri, "command", command));
}

json_t *op_left(const struct op *op, bool back)
{
    json_t *left = json_array();
    for (unsigned i = 0; i < op->plan->n_disks; i++) {
        const struct plan_disk *disk = &op->plan->disks[i];
        const char *uri = back ? disk->to : disk->from;
        if (uri != NULL && *uri != '\0' && !str_eq(uri, OP_UNKNOWN_VOLUME)) {
            add_left(left, disk->disk, uri);
        }
    }
    return left;
}
