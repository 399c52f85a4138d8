/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "operations/move-window.h"

#include <errno.h>

#include "base/err.h"
#include "base/str.h"
#include "operations/move-check.h"
#include "operations/move-plan.h"

bool move_has_window(const struct plan *plan, const struct plan_disk *disk)
{
    (void)disk;
    return plan->undo_window_ms != 0;
}

static void refuse(struct op *op, const struct plan_disk *disk,
                   const char *reason)
{
    struct err *err = NULL;
    (void)err_set(&err, -ENOTSUP, disk->disk, "no undo window: %s", reason);
    err_hint(&err, "leave --undo-window out");
    op_problem(op, err);
}

/*
 * How the source would be opened by a cold start, for the persist hook of an
 * undo: by its own node names, as far as its kind is known.
 */
static json_t *describe_source(const struct plan_disk *disk)
{
    _cleanup_(volume_freep) struct volume *volume = NULL;
    if (volume_parse(disk->from, &volume, NULL) < 0 || volume == NULL) {
        return NULL;
    }
    json_t *file = volume->ops->node_options(volume, NULL);
    if (file == NULL) {
        return NULL;
    }
    (void)json_object_set_new(file, "node-name", json_string(disk->protocol));
    if (str_eq(disk->protocol, disk->active)) {
        move_carry_options(disk, file);
        return json_pack("[o]", file);
    }
    json_t *node = json_pack("{s:s, s:s, s:s, s:s}", "driver",
                             disk->from_format, "node-name", disk->active,
                             "file", disk->protocol, "discard", "unmap");
    move_carry_options(disk, node);
    json_t *cache = json_object_get(node, "cache");
    if (cache != NULL) {
        (void)json_object_set(file, "cache", cache);
    }
    return json_pack("[o, o]", file, node);
}

void move_decide_window(struct op *op, struct plan_disk *disk)
{
    struct move_request *request = op_request(op);
    /*
     * No other node can hold it: with one on it before the mirror, QEMU does
     * not mirror it ("Need a root block node"), and one that is put on it
     * later follows the guest, as each parent does (bdrv_replace_node()).
     */
    if (*disk->drive != '\0' || disk->active[0] == '#') {
        refuse(op, disk,
               "QEMU closes a disk of -drive when the guest leaves it; it"
               " takes one of -blockdev, with a node-name");
    } else if (json_is_true(json_object_get(disk->before, "read_only"))) {
        refuse(op, disk, "it is read-only, QEMU would not write to it");
    } else if (request->disks[disk->index].shares_base &&
               !plan_disk_keeps_base(disk)) {
        /* Cut off when it stalls, its base would be lost to the others. */
        refuse(op, disk, "another disk stands on the same base");
    }
    move_note(request,
              "%s: within the undo window each write of the guest waits for"
              " %s, too",
              disk->disk, disk->from);
    if (disk->shim) {
        move_note(request,
                  "%s: the larger target shows its size after the window only",
                  disk->disk);
    }
    disk->from_blockdevs = describe_source(disk);
}

bool move_may_return(const struct op *op)
{
    return json_is_true(op_fact(op, "guest-cont", ALL_DISKS, "open")) &&
           op_fact(op, "window", ALL_DISKS, "closed") == NULL;
}

int move_on_request(struct op *op, const char *word, const json_t *args,
                    struct err **errp)
{
    (void)args;
    if (!str_eq(word, OP_WORD_UNDO)) {
        return err_set(errp, -ENOTSUP, op_id(op),
                       "a move cannot be asked to '%s'", word);
    }
    return op_return(op) == 0 ? 0
                              : err_set(errp, -EALREADY, op_id(op),
                                        "has no undo window, or it is over");
}

void move_total(struct op *op, json_t *result)
{
    const json_t *closed = op_fact(op, "window", ALL_DISKS, "closed");
    const json_t *frozen = op_fact(op, "guest-cont", ALL_DISKS, "frozen_ms");
    if (op_plan(op)->undo_window_ms != 0) {
        json_t *window =
            json_pack("{s:b, s:I}", "opened", frozen != NULL, "frozen_ms",
                      (json_int_t)json_integer_value(frozen));
        if (closed != NULL) {
            (void)json_object_set_new(window, "closed", json_deep_copy(closed));
        }
        (void)json_object_set_new(result, "undo_window", window);
    }
}

void move_add_latency(const struct op *op, const struct plan_disk *disk,
                      json_t *json)
{
    json_t *before = json_object_get(
        op_fact(op, "latency-look", ALL_DISKS, "latency"), disk->disk);
    json_t *within = json_object_get(
        op_fact(op, "window", ALL_DISKS, "latency"), disk->disk);
    if (before != NULL) {
        (void)json_object_set(json, "write_latency_before_us", before);
    }
    if (within != NULL) {
        (void)json_object_set(json, "write_latency_window_us", within);
    }
}
