/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "operations/shareable.h"

#include <errno.h>

#include "base/err.h"
#include "base/str.h"
#include "run/op.h"
#include "vm/graph.h"

bool shareable_is_suspected(const struct plan *plan,
                            const struct plan_disk *disk)
{
    (void)plan;
    return json_is_true(json_object_get(disk->before, "shares_writes")) &&
           !str_eq(disk->how, "share") && !str_eq(disk->how, "skip");
}

/* Flash and SD cards let others write too, and have no such property. */
static void look_on_reply(struct act *act, const struct err *err,
                          json_t *result)
{
    struct err *problem = NULL;
    if (err != NULL && !str_eq(err->class, "GenericError")) {
        problem = err_copy(err);
        err_prefix(&problem, "whether others may write to '%s' is not known",
                   act_disk(act)->disk);
        op_problem(act_op(act), problem);
    } else if (json_is_true(result)) {
        (void)err_set(&problem, -EPERM, act_disk(act)->disk,
                      "others may write to the disk (share-rw=on): the copy"
                      " would lack what they write");
        err_hint(&problem, "end its other users, and start the VM without"
                           " share-rw=on for it");
        op_problem(act_op(act), problem);
    }
    act_end(act, NULL);
}

void shareable_look(struct act *act)
{
    _cleanup_free_ char *path = graph_device_path(act_disk(act)->device);
    act_qmp(act, "qom-get",
            json_pack("{s:s*, s:s}", "path", path, "property", "share-rw"),
            look_on_reply);
}
