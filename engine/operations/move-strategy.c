/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * How a disk is copied: by a mirror of what the guest sees, or, by strategy
 * base, as the file that it is, with the internal snapshots that are in it.
 */
#include <errno.h>
#include <string.h>

#include "backends/bulk.h"
#include "base/err.h"
#include "base/str.h"
#include "operations/move-check.h"
#include "qmp/qmp.h"
#include "qpivot.h"
#include "steps/overlay.h"
#include "vm/names.h"
#include "vm/open-file.h"
#include "vm/vm.h"

enum { NAMES_TOLD = 4 };

static void refuse(struct op *op, const char *object, const char *reason,
                   const char *hint)
{
    struct err *err = NULL;
    (void)err_set(&err, -ENOTSUP, object, "strategy base: %s", reason);
    err_hint(&err, "%s", hint);
    op_problem(op, err);
}

/* --- what would be lost --- */

/* "'a', 'b' and 3 more"; NULL without memory. */
static char *names_of(const json_t *snapshots)
{
    size_t n = json_array_size(snapshots);
    char *text = strdup("");
    for (size_t i = 0; text != NULL && i < n && i < NAMES_TOLD; i++) {
        char *more =
            str_printf("%s%s'%s'", text, i > 0 ? ", " : "",
                       json_string_value(json_array_get(snapshots, i)));
        free(text);
        text = more;
    }
    if (text != NULL && n > NAMES_TOLD) {
        char *more = str_printf("%s and %zu more", text, n - NAMES_TOLD);
        free(text);
        text = more;
    }
    return text;
}

static void refuse_loss(struct op *op, const struct plan_disk *disk,
                        const json_t *snapshots, const char *why,
                        const char *hint)
{
    _cleanup_free_ char *names = names_of(snapshots);
    struct err *err = NULL;
    (void)err_set(&err, -ENOTSUP, disk->disk,
                  "holds %zu internal snapshots, which would be lost: %s (%s)",
                  json_array_size(snapshots), names != NULL ? names : "", why);
    err_hint(&err,
             "%s, or --drop-snapshots moves the disk without them; the source"
             " keeps them",
             hint);
    op_problem(op, err);
}

/* --- whether it can be --- */

static void check_source(struct op *op, const struct plan_disk *disk)
{
    static const char mirror[] = "--strategy mirror goes without an overlay";
    const struct move_request *request = op_request(op);
    const struct move_request_disk *looked = &request->disks[disk->index];
    const char *driver =
        json_string_value(json_object_get(disk->before, "protocol_driver"));
    const json_t *image = json_object_get(disk->before, "image");
    if (*disk->drive != '\0' || disk->active[0] == '#') {
        refuse(op, disk->disk, "it takes a disk of -blockdev, with a node-name",
               mirror);
    }
    /* A name may be another file's by now: a mirror does not go by names. */
    _cleanup_free_ char *path = overlay_file_of(disk->from);
    if (!str_eq(driver, "file") || !looked->source.exists || path == NULL ||
        !process_has_our_file(vm_process(op_vm(op)).pid, path)) {
        refuse(op, disk->disk,
               "its source is no file that QEMU has open and that is found by"
               " its name from here",
               mirror);
    }
    if (looked->n_layers > 1) {
        refuse(op, disk->disk, "its source has a backing chain",
               "--strategy mirror makes it one image");
    }
    if (json_is_string(json_object_get(image, "data_file"))) {
        refuse(op, disk->disk, "its data is in another file", mirror);
    }
    if (json_is_true(json_object_get(disk->before, "read_only"))) {
        refuse(op, disk->disk, "it is read-only", mirror);
    }
    if (json_array_size(disk->known_bitmaps) > 0) {
        refuse(op, disk->disk,
               "its dirty bitmaps would not see what the guest writes to the"
               " overlay",
               "remove them first, or --strategy mirror carries them");
    }
}

static void check_target(struct op *op, const struct plan_disk *disk,
                         const struct volume *volume)
{
    if (!str_eq(disk->from_format, disk->format)) {
        refuse(op, disk->to, "the image is copied as it is: its format stays",
               str_eq(disk->from_format, "qcow2")
                   ? "append format=qcow2, or use --strategy mirror"
                   : "use --strategy mirror");
    }
    if (!disk->create) {
        refuse(op, disk->to, "it makes its target itself",
               "choose a name that nothing has");
    }
    if (disk->shim) {
        refuse(op, disk->to, "the image is copied as it is: so is its size",
               "leave out size=");
    }
    if (!bulk_is_possible(volume) ||
        (volume->ops->flags & BACKEND_OF_HOST) != 0) {
        refuse(op, disk->to, "qpivot cannot copy to it at rest",
               "use --strategy mirror");
    }
}

static void check_options(struct op *op)
{
    const struct plan *plan = op_plan(op);
    const struct move_request *request = op_request(op);
    const struct qmp_schema *schema = vm_schema(op_vm(op));
    static const char *const commands[] = {"blockdev-snapshot", "block-commit"};
    if (plan->undo_window_ms != 0) {
        refuse(op, "--undo-window", "its source does not stay equal",
               "leave it out");
    }
    if (!str_eq(plan->verify, "none")) {
        refuse(op, "--verify", "it compares what a mirror has copied",
               "leave it out: compare with 'qpivot verify' afterwards");
    }
    if (request->sync != QPIVOT_SYNC_AUTO) {
        refuse(op, "--sync", "it mirrors an overlay only", "leave it out");
    }
    if (request->via == QPIVOT_VIA_DRIVE_MIRROR) {
        refuse(op, "--via drive-mirror",
               "drive-mirror cannot be given an overlay's node",
               "leave it out");
    }
    for (unsigned i = 0; i < ARRAY_SIZE(commands); i++) {
        if (!qmp_schema_has_command(schema, commands[i])) {
            refuse(op, commands[i], "this QEMU does not have it",
                   "use --strategy mirror");
        }
    }
}

/* --- where the overlays are --- */

/* Beside 'uri', under a name of ours. */
static char *beside(struct op *op, const struct plan_disk *disk,
                    const char *uri, enum name_what what)
{
    struct name name = name_of(op_id(op), disk->index, what);
    int length = (int)strcspn(uri, "?");
    while (length > 0 && uri[length - 1] != '/') {
        length--;
    }
    return str_printf("%.*s%s", length, uri, name.text);
}

static int place_overlays(struct op *op, struct plan_disk *disk,
                          const struct volume *volume)
{
    _cleanup_(volume_freep) struct volume *source = NULL;
    bool same = volume_parse(disk->from, &source, NULL) == 0 &&
                source->ops == volume->ops;
    free(disk->overlay);
    free(disk->landing);
    disk->overlay = beside(op, disk, disk->from, NAME_OVERLAY);
    disk->landing =
        beside(op, disk, same ? disk->to : disk->from, NAME_LANDING);
    if (disk->overlay == NULL || disk->landing == NULL) {
        return -ENOMEM;
    }
    move_note(op_request(op),
              "%s: while it is copied the guest writes to %s, and at the target"
              " that goes through %s; both are removed",
              disk->disk, disk->overlay, disk->landing);
    return 0;
}

void move_decide_strategy(struct op *op, struct plan_disk *disk,
                          const struct volume *volume)
{
    const struct move_request *request = op_request(op);
    const json_t *snapshots = json_object_get(disk->before, "snapshots");
    bool carry = json_array_size(snapshots) > 0 &&
                 (request->flags & QPIVOT_DROP_SNAPSHOTS) == 0;
    bool base = request->strategy == QPIVOT_STRATEGY_BASE;
    if (carry && !str_eq(disk->format, "qcow2")) {
        refuse_loss(op, disk, snapshots, "the target is raw",
                    "take a qcow2 file as the target");
        return;
    }
    if (carry && request->strategy == QPIVOT_STRATEGY_MIRROR) {
        refuse_loss(op, disk, snapshots, "a mirror does not carry them",
                    "leave --strategy out");
        return;
    }
    if (!base && !carry) {
        return;
    }
    disk->make_format = false;
    check_source(op, disk);
    check_target(op, disk, volume);
    check_options(op);
    if (place_overlays(op, disk, volume) < 0) {
        refuse(op, disk->disk, "out of memory", "try again");
    }
}

/* --- telling --- */

/* What every disk stood on whose overlay may hold the last of its data. */
static char *overlays_left(struct op *op)
{
    const struct plan *plan = op_plan(op);
    char *text = NULL;
    for (unsigned i = 0; i < plan->n_disks; i++) {
        const struct plan_disk *disk = &plan->disks[i];
        if (!plan_disk_copies_base(disk) ||
            op_fact(op, "base-commit", (int)i, "committed") != NULL) {
            continue;
        }
        /* In doubt the guest may not have come to the target yet. */
        _cleanup_free_ char * or
            = op_pivoted(op)
                  ? strdup("")
                  : str_printf(", or %s of %s", disk->overlay, disk->from);
        char *more =
            str_printf("%s%s%s of %s%s (disk %s)", text != NULL ? text : "",
                       text != NULL ? "; " : "", disk->landing, disk->to,
                       or != NULL ? or : "", disk->disk);
        free(text);
        text = more;
    }
    return text;
}

void move_parked(struct op *op, struct err **error)
{
    bool over = op_pivoted(op) || op_pivoting(op);
    _cleanup_free_ char *left =
        over && op_lost_qemu(op) ? overlays_left(op) : NULL;
    if (left == NULL) {
        return;
    }
    *error = err_free(*error);
    (void)err_set(error, -ESRCH, "QEMU",
                  "has ended while the guest's last data was in overlays: %s",
                  left);
    err_hint(error,
             "start the VM anew on the overlays; or, unless it was started from"
             " an image below since, 'qemu-img commit OVERLAY' and then remove"
             " it, each. If it was, keep both: they hold different data");
}

void move_add_base(const struct op *op, const struct plan_disk *disk,
                   json_t *json)
{
    static const char *const keys[] = {"bytes_read", "bytes_written",
                                       "bytes_resumed", "seconds"};
    bool base = plan_disk_copies_base(disk);
    (void)json_object_set_new(json, "strategy",
                              json_string(base ? "base" : "mirror"));
    json_t *copied = base ? json_object() : NULL;
    for (unsigned i = 0; copied != NULL && i < ARRAY_SIZE(keys); i++) {
        const json_t *fact =
            op_fact(op, "base-copy", (int)disk->index, keys[i]);
        if (fact != NULL) {
            (void)json_object_set_new(copied, keys[i], json_deep_copy(fact));
        }
    }
    if (json_object_size(copied) > 0) {
        (void)json_object_set(json, "base", copied);
    }
    json_decref(copied);
}
