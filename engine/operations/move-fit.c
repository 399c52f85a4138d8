/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Whether a move fits where it goes: the space that is free there, and what
 * O_DIRECT asks of a target.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/err.h"
#include "base/str.h"
#include "operations/move-check.h"

static void check_alignment(struct op *op, const struct plan_disk *disk,
                            const struct volume *volume,
                            const struct volume_info *info);
static bool first_there(struct op *op, unsigned disk);
static void check_place(struct op *op, unsigned first);
static uint64_t sure_data(struct op *op, const struct plan_disk *disk);

static const char *append(const struct volume *volume)
{
    return strchr(volume->uri, '?') != NULL ? "&" : "?";
}

void move_check_direct(struct op *op, const struct plan_disk *disk,
                       const struct volume *volume,
                       const struct volume_info *info)
{
    const json_t *cache = json_object_get(disk->file_options, "cache");
    struct move_request *request = op_request(op);
    uint32_t source = request->disks[disk->index].block_size;
    if (!json_is_true(json_object_get(cache, "direct"))) {
        return;
    }
    if (info->direct == DIRECT_REFUSED) {
        struct err *err = NULL;
        (void)err_set(&err, -EINVAL, volume->name,
                      "cannot be opened with O_DIRECT, %s",
                      volume->cache == CACHE_NONE
                          ? "which cache=none asks for"
                          : "as the source is (its cache is 'none')");
        err_hint(&err, "append %scache=writeback", append(volume));
        op_problem(op, err);
        return;
    }
    check_alignment(op, disk, volume, info);
    if (source != 0 && info->block_size > source) {
        move_note(request,
                  "%s: blocks of %" PRIu32 " bytes there, %" PRIu32
                  " at the source: QEMU has to read before it writes less than"
                  " a block",
                  disk->disk, info->block_size, source);
    }
}

/*
 * A raw file that does not end with a block cannot be written by O_DIRECT:
 * "Image size is not a multiple of request alignment", says QEMU once the
 * mirror begins, or once the shim of a larger one goes, after the pivot.
 * Formats have room behind the end.
 */
static void check_alignment(struct op *op, const struct plan_disk *disk,
                            const struct volume *volume,
                            const struct volume_info *info)
{
    uint64_t size = disk->target_size;
    if (strcmp(disk->format, "raw") != 0) {
        return;
    }
    if (info->block_size != 0 && size % info->block_size != 0) {
        struct err *err = NULL;
        (void)err_set(&err, -EINVAL, volume->name,
                      "size %" PRIu64 " is no multiple of %" PRIu32
                      ", the block size there, as O_DIRECT needs it",
                      size, info->block_size);
        if (disk->create) {
            err_hint(&err, "append %scache=writeback or %ssize=%" PRIu64,
                     append(volume), append(volume),
                     (size / info->block_size + 1) * info->block_size);
        } else {
            err_hint(&err, "append %scache=writeback", append(volume));
        }
        op_problem(op, err);
    } else if (info->direct_size != 0 && size % info->direct_size != 0) {
        move_note(op_request(op),
                  "%s: size %" PRIu64 " is no multiple of %" PRIu32
                  ": QEMU up to 10.0 may refuse to write it with O_DIRECT;"
                  " %scache=writeback goes round that",
                  disk->disk, size, info->direct_size, append(volume));
    }
}

void move_check_space(struct op *op)
{
    const struct plan *plan = op_plan(op);
    for (unsigned i = 0; i < plan->n_disks; i++) {
        if (plan->disks[i].create && first_there(op, i)) {
            check_place(op, i);
        }
    }
}

/* Made in the same place: with the same name and as much left. */
static bool together(struct op *op, unsigned a, unsigned b)
{
    const struct move_request *request = op_request(op);
    const struct volume_info *one = &request->disks[a].target;
    const struct volume_info *other = &request->disks[b].target;
    return a == b ||
           (op_plan(op)->disks[b].create && request->disks[b].looked &&
            *one->space != '\0' && strcmp(one->space, other->space) == 0 &&
            one->available == other->available);
}

static bool first_there(struct op *op, unsigned disk)
{
    const struct move_request *request = op_request(op);
    bool first = request->disks[disk].looked;
    for (unsigned i = 0; i < disk; i++) {
        first = first && !together(op, disk, i);
    }
    return first;
}

/*
 * Storage may be thin and grow while the copy waits for it, so only data that
 * is sure to be written there, and nobody who was told to see to the space,
 * make it a refusal.
 */
static void check_place(struct op *op, unsigned first)
{
    char have[STR_BYTES_MAX], want[STR_BYTES_MAX];
    const struct plan *plan = op_plan(op);
    struct move_request *request = op_request(op);
    uint64_t available = request->disks[first].target.available;
    uint64_t most = 0, sure = 0;
    unsigned n = 0;
    for (unsigned i = first; i < plan->n_disks; i++) {
        if (together(op, first, i)) {
            most += plan->disks[i].size;
            sure += sure_data(op, &plan->disks[i]);
            n++;
        }
    }
    const char *name = plan->disks[first].disk;
    _cleanup_free_ char *whose =
        n > 1 ? str_printf("%u disks together have", n) : NULL;
    const char *who = whose != NULL ? whose : "the disk has";
    if (sure > available && *plan->space_hook == '\0') {
        struct err *err = NULL;
        (void)err_set(&err, -ENOSPC, plan->disks[first].to,
                      "%" PRIu64 " bytes (%s) are free there, %s %" PRIu64
                      " bytes (%s) of data",
                      available, str_bytes(available, have), who, sure,
                      str_bytes(sure, want));
        err_hint(&err, "make room, or give --space-hook CMD: then the copy"
                       " waits for space and CMD is told");
        op_problem(op, err);
    } else if (most > available) {
        move_note(request,
                  "%s: %s are free there, %s %s: if it fills up, the copy"
                  " waits for space",
                  name, str_bytes(available, have), who, str_bytes(most, want));
    }
}

/* What a mirror will find to be data and write as it is. */
static uint64_t sure_data(struct op *op, const struct plan_disk *disk)
{
    const struct move_request *request = op_request(op);
    const char *detects =
        json_string_value(json_object_get(disk->node_options, "detect-zeroes"));
    bool raw = disk->from_format != NULL && str_eq(disk->from_format, "raw");
    bool sparse = detects != NULL ||
                  json_object_get(disk->copy_options, "detect-zeroes") != NULL;
    if (!raw || sparse || request->disks[disk->index].n_layers != 1) {
        return 0;
    }
    uint64_t data = request->disks[disk->index].data;
    return data < disk->size ? data : disk->size;
}
