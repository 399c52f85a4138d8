/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What --verify needs: both sides can be read beside QEMU, and here. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "backends/bulk.h"
#include "base/err.h"
#include "base/str.h"
#include "operations/move-check.h"
#include "steps/verify.h"

enum { SECTOR = 512 };

static void problem(struct op *op, const char *object, const char *what)
{
    struct err *err = NULL;
    (void)err_set(&err, -ENOTSUP, object, "%s", what);
    err_hint(&err, "--verify reads source and target beside QEMU, from this"
                   " host; leave it out, or compare later with"
                   " 'qpivot verify'");
    op_problem(op, err);
}

/* Of a process that may be another user's: its directory need not tell. */
static int user_of(uint64_t pid, uint64_t *ret)
{
    char path[64], line[128];
    unsigned user;
    bool found = false;
    (void)snprintf(path, sizeof(path), "/proc/%" PRIu64 "/status", pid);
    FILE *file = fopen(path, "re");
    while (file != NULL && !found && fgets(line, sizeof(line), file) != NULL) {
        found = sscanf(line, "Uid: %*u %u", &user) == 1;
    }
    if (file != NULL) {
        (void)fclose(file);
    }
    if (!found) {
        return -ESRCH;
    }
    *ret = user;
    return 0;
}

void move_decide_verify(struct op *op)
{
    struct plan *plan = op_plan(op);
    const char *state = op_state_dir(op);
    if (!verify_is_wanted(plan, NULL)) {
        return;
    }
    if (plan->qemu_pid == 0 || user_of(plan->qemu_pid, &plan->qemu_uid) < 0) {
        problem(op, plan->qmp, "its QEMU does not run on this host");
        return;
    }
    if (!bulk_has_bitmaps()) {
        problem(op, "--verify", "was built without libnbd (libnbd-dev)");
    }
    /* QEMU's user gets at it below /run only if that is another one's. */
    free(plan->verify_dir);
    plan->verify_dir =
        move_verify_dir(op_id(op), geteuid() == 0 ? NULL : state);
}

char *move_verify_dir(const char *id, const char *state)
{
    return state == NULL ? str_printf("/run/qpivot-%s", id)
                         : str_printf("%s/verify-%s", state, id);
}

static void check_source(struct op *op, const struct plan_disk *disk,
                         const struct volume_info *info)
{
    const struct move_request *request = op_request(op);
    bool qcow2 = str_eq(disk->from_format, "qcow2");
    uint64_t size = qcow2 ? info->format_size : info->size;
    if (!info->exists) {
        problem(op, disk->disk, "its source cannot be read from here");
    } else if (!qcow2 && !str_eq(disk->from_format, "raw")) {
        problem(op, disk->disk, "its source is neither raw nor qcow2");
    } else if (request->disks[disk->index].n_layers > 1) {
        problem(op, disk->disk, "its source has a backing chain");
    } else if (size > disk->size + SECTOR - 1 || size + SECTOR <= disk->size) {
        problem(op, disk->disk, "it shows a part of its source only");
    }
}

void move_check_verify(struct op *op, const struct plan_disk *disk,
                       const struct volume *target)
{
    struct move_request *request = op_request(op);
    if (!verify_is_wanted(op_plan(op), disk)) {
        return;
    }
    check_source(op, disk, &request->disks[disk->index].source);
    if (!bulk_is_possible(target)) {
        problem(op, target->name, "it can be read by QEMU only");
        return;
    }
    move_note(
        request, "%s: compared before the pivot, %s; read as %s%s", disk->disk,
        str_eq(op_plan(op)->verify, "full") ? "whole" : "a sample of it",
        target->ops->title,
        target->format == FORMAT_QCOW2 ? " by a qemu-nbd of its own" : "");
}
