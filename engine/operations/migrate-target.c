/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Targets of a migration that are volumes by themselves: a file that the
 * destination's QEMU makes, in the stead of the placeholder that its device
 * was started on, and network storage that the source writes directly.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/err.h"
#include "base/str.h"
#include "operations/migrate-plan.h"
#include "operations/move-check.h"
#include "operations/move-plan.h"
#include "qmp/qmp.h"
#include "steps/target.h"
#include "vm/graph.h"
#include "vm/names.h"
#include "vm/vm.h"

static void replace(char **text, const char *with)
{
    free(*text);
    *text = strdup(with);
}

/* --- what was asked for --- */

bool migrate_is_target(const char *how)
{
    return !str_eq(how, "share") && !str_eq(how, "nbd") &&
           !str_eq(how, "direct");
}

static bool is_file(const struct volume *volume)
{
    return str_eq(volume->ops->scheme, "file");
}

int migrate_target_check(const char *disk, const char *how, struct err **errp)
{
    _cleanup_(volume_freep) struct volume *volume = NULL;
    if (!migrate_is_target(how)) {
        return 0;
    }
    if (how[strcspn(how, "/:")] == '\0') {
        return err_set(errp, -EINVAL, disk,
                       "'%s' is neither 'share', 'nbd', 'direct' nor a target",
                       how);
    }
    int r = volume_parse(how, &volume, errp);
    if (r < 0) {
        return r;
    }
    if (is_file(volume) && *how != '/' && !str_starts(how, "file:/")) {
        return err_set(errp, -EINVAL, disk,
                       "'%s' is relative, and its directory is of another"
                       " host",
                       how);
    }
    if (!is_file(volume) && ((volume->ops->flags & BACKEND_CREATES) == 0 ||
                             (volume->ops->flags & BACKEND_OF_HOST) != 0)) {
        r = err_set(errp, -ENOTSUP, disk,
                    "%s targets are not made by qpivot, nor opened at the"
                    " destination",
                    volume->ops->title);
        err_hint(errp, "start the destination with it and say 'nbd', 'direct'"
                       " or 'share'");
        return r;
    }
    return 0;
}

/* --- what the destination's device stands on --- */

bool migrate_is_placeholder(const struct graph_disk *there)
{
    return str_eq(there->active->driver, "null-co") ||
           str_eq(there->active->driver, "null-aio");
}

static void decide_format(struct plan_disk *disk, struct volume *volume)
{
    bool may = (volume->ops->flags & BACKEND_FORMATS) != 0;
    bool qcow2 = volume->format_given ? volume->format == FORMAT_QCOW2
                                      : may && move_is_qcow2_name(volume->name);
    volume->format = qcow2 ? FORMAT_QCOW2 : FORMAT_RAW;
    replace(&disk->format, qcow2 ? "qcow2" : "raw");
    disk->make_format = disk->create && qcow2;
    disk->target_size =
        disk->create && volume->size != 0 ? volume->size : disk->size;
}

/*
 * QEMU's nfs and ssh drivers ask for a file's length when they open it, and
 * never again: what another QEMU has written behind that end since reads as
 * zeroes (7.2 and 10.0: block/nfs.c has no bdrv_co_getlength).
 */
bool migrate_grows_unseen(const char *driver, const char *format)
{
    return (str_eq(driver, "nfs") || str_eq(driver, "ssh")) &&
           !str_eq(format, "raw");
}

void migrate_match_target(struct op *op, struct plan_disk *disk,
                          const struct graph_disk *there)
{
    struct volume *volume = NULL;
    struct err *err = NULL;
    if (json_is_true(json_object_get(disk->before, "read_only"))) {
        migrate_problem(op, -EROFS, disk->disk,
                        "is read-only: what the destination has is used as it"
                        " is; copy it with 'qpivot copy' first");
        return;
    }
    if (!migrate_is_placeholder(there)) {
        migrate_problem(op, -EEXIST, disk->disk,
                        "has a volume at the destination already, '%s': say"
                        " 'nbd', 'direct' or 'share', or start the destination"
                        " with a placeholder: see 'qpivot destination-argv'",
                        there->protocol->filename);
        return;
    }
    if (there->n_filters > 0) {
        migrate_problem(op, -ENOTSUP, disk->disk,
                        "has the filter '%s' above the placeholder: give it a"
                        " volume of the same size, and say 'nbd' or 'direct'",
                        there->filters[0]->name);
        return;
    }
    if (volume_parse(disk->to, &volume, &err) < 0) {
        op_problem(op, err);
        return;
    }
    op_set_volume(op, disk->index, volume);
    struct name node = name_of(op_id(op), disk->index, NAME_TARGET);
    disk->made_there = is_file(volume);
    disk->attach = true;
    disk->create = !volume->existing;
    decide_format(disk, volume);
    replace(&disk->dst_node, node.text);
    replace(&disk->placeholder, there->active->name);
    bool grows = !str_eq(disk->format, "raw");
    replace(&disk->how, disk->made_there || grows ? "nbd" : "direct");
    replace(&disk->reason,
            disk->made_there
                ? "a file of the destination's host: it writes it itself"
            : grows
                ? "an image that grows: the destination writes it itself, for"
                  " its QEMU might not see it grow"
                : "network storage that both sides can open: the source"
                  " writes it, without a way round by the destination");
}

void migrate_match_direct(struct op *op, struct plan_disk *disk,
                          const struct graph_disk *there)
{
    struct volume *volume = NULL;
    if (!str_eq(there->format, "raw")) {
        migrate_problem(op, -ENOTSUP, disk->disk,
                        "'%s' is an image that grows, and the destination's"
                        " QEMU may not see it grow: say 'nbd'",
                        there->protocol->filename);
        return;
    }
    (void)volume_from_node(there->protocol->driver, there->protocol->filename,
                           &volume);
    if (volume == NULL || is_file(volume) ||
        (volume->ops->flags & BACKEND_CREATES) == 0) {
        migrate_problem(op, -ENOTSUP, disk->disk,
                        "'%s' is no network storage that the source could"
                        " open: say 'nbd'",
                        there->protocol->filename);
        volume_free(volume);
        return;
    }
    volume->existing = true;
    volume->format = str_eq(there->format, "qcow2") ? FORMAT_QCOW2 : FORMAT_RAW;
    volume->format_given = true;
    op_set_volume(op, disk->index, volume);
}

/* --- looking --- */

static struct migrate_look *look_of(struct act *act)
{
    struct migrate_request *request = op_request(act_op(act));
    return &request->looks[act_disk(act)->index];
}

static void target_on_volume(struct act *act, const struct err *err,
                             struct volume_result *result)
{
    if (err != NULL) {
        op_problem(act_op(act), err_copy(err));
    } else {
        look_of(act)->info = result->info;
        look_of(act)->looked = true;
    }
    act_end(act, NULL);
}

void migrate_look_target(struct act *act)
{
    struct volume *volume = act_volume(act, act_disk(act)->index);
    struct volume_request probe = {.act = VOLUME_PROBE};
    if (volume == NULL) {
        act_end(act, NULL);
    } else {
        act_storage(act, volume, &probe, target_on_volume);
    }
}

bool migrate_overwrites(const struct plan *plan, const struct plan_disk *disk)
{
    bool any = false;
    for (unsigned i = 0; disk != NULL && i < plan->n_disks; i++) {
        any = any ||
              (str_eq(plan->disks[i].how, "direct") && !plan->disks[i].create);
    }
    return any;
}

static void origin_on_volume(struct act *act, const struct err *err,
                             struct volume_result *result)
{
    if (err == NULL && result->info.exists) {
        struct plan *plan = op_plan(act_op(act));
        replace(&plan->disks[act_disk(act)->index].source_identity,
                result->info.identity);
    }
    act_end(act, NULL);
}

void migrate_look_origin(struct act *act)
{
    const json_t *before = act_disk(act)->before;
    const char *driver =
        json_string_value(json_object_get(before, "protocol_driver"));
    const char *filename =
        json_string_value(json_object_get(before, "protocol_filename"));
    struct volume_request probe = {.act = VOLUME_PROBE};
    struct volume *volume = NULL;
    if (driver == NULL || filename == NULL ||
        volume_from_node(driver, filename, &volume) < 0) {
        act_end(act, NULL);
    } else {
        act_storage(act, act_own_volume(act, volume), &probe, origin_on_volume);
    }
}

static void secret_on_volume(struct act *act, const struct err *err,
                             struct volume_result *result)
{
    if (err != NULL) {
        op_problem(act_op(act), err_copy(err));
    } else {
        look_of(act)->secret = result->secret != NULL;
    }
    act_end(act, NULL);
}

void migrate_look_secret(struct act *act)
{
    struct volume *volume = act_volume(act, act_disk(act)->index);
    struct volume_request request = {.act = VOLUME_SECRET};
    if (volume == NULL || volume->ops->secret == NULL) {
        act_end(act, NULL);
    } else {
        act_storage(act, volume, &request, secret_on_volume);
    }
}

/* A file of another host: only QEMU can see it. */
static char *path_of(struct act *act)
{
    const struct volume *volume = act_volume(act, act_disk(act)->index);
    json_auto_t *node = volume->ops->node_options(volume, NULL);
    const char *path = json_string_value(json_object_get(node, "filename"));
    return path != NULL ? strdup(path) : NULL;
}

static void directory_on_look(struct act *act, const struct err *err,
                              json_t *result)
{
    (void)result;
    if (target_there(err) == TARGET_ABSENT) {
        migrate_problem(act_op(act), -ENOENT, act_disk(act)->to,
                        "its directory does not exist on the destination's"
                        " host");
    }
    act_end(act, NULL); /* "not a regular file": it is there */
}

static void look_directory(struct act *act)
{
    _cleanup_free_ char *path = path_of(act);
    char *slash = path != NULL ? strrchr(path, '/') : NULL;
    if (slash == NULL || slash == path) {
        act_end(act, NULL);
        return;
    }
    *slash = '\0';
    act_qmp(act, "blockdev-add",
            target_look_arguments(act_op_id(act), act_disk(act), path),
            directory_on_look);
}

static void file_on_look(struct act *act, const struct err *err, json_t *result)
{
    const struct plan_disk *disk = act_disk(act);
    struct err *error = NULL;
    (void)result;
    enum target_there there = target_there(err);
    if (there == TARGET_UNKNOWN) {
        op_problem(act_op(act), err_copy(err));
    } else if (there == TARGET_THERE && disk->create) {
        (void)err_set(&error, -EEXIST, disk->to,
                      "exists already on the destination's host");
        err_hint(&error,
                 "choose another name, or append %sexisting=yes to have it"
                 " overwritten",
                 strchr(disk->to, '?') != NULL ? "&" : "?");
        op_problem(act_op(act), error);
    } else if (there == TARGET_ABSENT && !disk->create) {
        (void)err_set(&error, -ENOENT, disk->to,
                      "does not exist on the destination's host");
        err_hint(&error, "leave existing=yes out to have it made");
        op_problem(act_op(act), error);
    } else if (there == TARGET_ABSENT) {
        look_directory(act);
        return;
    }
    act_end(act, NULL);
}

bool migrate_is_file_there(const struct plan *plan,
                           const struct plan_disk *disk)
{
    (void)plan;
    return disk->made_there;
}

void migrate_look_file(struct act *act)
{
    _cleanup_free_ char *path = path_of(act);
    act_qmp(act, "blockdev-add",
            target_look_arguments(act_op_id(act), act_disk(act), path),
            file_on_look);
}

/* --- deciding --- */

static int decide_nodes(struct op *op, struct plan_disk *disk,
                        const struct volume *volume, bool secret)
{
    struct name key = name_of(op_id(op), disk->index, NAME_KEY);
    disk->secret = secret;
    disk->copy_options = json_object();
    /* Discard on every level, or nothing can be zeroed cheaply. */
    disk->node_options =
        json_pack("{s:s, s:s}", "driver", disk->format, "discard", "unmap");
    disk->file_options =
        volume->ops->node_options(volume, secret ? key.text : NULL);
    json_t *cache = json_object_get(disk->file_options, "cache");
    if (cache != NULL) {
        (void)json_object_set(disk->node_options, "cache", cache);
    }
    move_carry_options(disk, disk->node_options);
    cache = json_object_get(disk->node_options, "cache");
    if (cache != NULL) {
        (void)json_object_set(disk->file_options, "cache", cache);
    }
    if (str_eq(disk->format, "qcow2")) {
        (void)json_object_set_new(disk->node_options, "backing", json_null());
    }
    if (disk->create && (volume->ops->flags & BACKEND_COARSE) != 0) {
        /* See move-plan.c: holes would be copied as data. */
        (void)json_object_set_new(disk->copy_options, "detect-zeroes",
                                  json_string("unmap"));
    }
    return disk->node_options != NULL && disk->file_options != NULL ? 0
                                                                    : -ENOMEM;
}

/*
 * A guest's write that waits for storage without an answer is let go by cutting
 * its NBD connection; there is none here.
 */
static void decide_copy_mode(struct plan_disk *disk)
{
    if (str_eq(disk->how, "direct")) {
        replace(&disk->copy_mode, "background");
        disk->may_write_block = false;
    }
}

/* A volume that is new reads as zeroes: a pass of zeroes would be for nothing. */
static void decide_sync(struct op *op, struct plan_disk *disk)
{
    bool knows = qmp_schema_has_arg(vm_schema(op_vm(op)), "blockdev-mirror",
                                    "target-is-zero");
    size_t below = json_array_size(json_object_get(disk->before, "backing"));
    if (!disk->create || !str_eq(disk->how, "direct")) {
        return; /* by an export: that the target is zero is not known here */
    }
    if (knows) {
        disk->target_is_zero = true;
    } else if (below == 0) {
        replace(&disk->sync, "top");
    }
}

static void check_sizes(struct op *op, const struct plan_disk *disk,
                        const struct migrate_look *look)
{
    bool qcow2 = str_eq(disk->format, "qcow2");
    uint64_t has = !look->looked || !look->info.exists ? disk->target_size
                   : qcow2                             ? look->info.format_size
                                                       : look->info.size;
    if (has != disk->size) {
        migrate_problem(op, -EINVAL, disk->disk,
                        "has %" PRIu64 " bytes, its target %" PRIu64
                        ": they must be equal",
                        disk->size, has);
    }
}

static void decide_disk(struct op *op, struct plan_disk *disk,
                        struct volume *volume)
{
    const struct migrate_request *request = op_request(op);
    const struct migrate_look *look = &request->looks[disk->index];
    decide_format(disk, volume);
    if (look->looked) {
        /* The destination has its own open already. */
        struct volume_info info = look->info;
        struct err *err = NULL;
        info.in_use = info.in_use && disk->attach;
        if (move_target_fits(volume, &info, &err) < 0) {
            op_problem(op, err);
        }
    }
    check_sizes(op, disk, look);
    if (decide_nodes(op, disk, volume, look->secret) < 0) {
        migrate_problem(op, -ENOMEM, disk->disk, "out of memory");
    }
    decide_sync(op, disk);
    migrate_decide_base(op, disk);
    decide_copy_mode(disk);
}

/* NFS knows no locks, and a server has many names. */
static void check_origins(struct op *op, unsigned i)
{
    const struct plan *plan = op_plan(op);
    const struct migrate_request *request = op_request(op);
    const struct migrate_look *look = &request->looks[i];
    for (unsigned k = 0; look->looked && k < plan->n_disks; k++) {
        const char *identity = plan->disks[k].source_identity;
        if (identity != NULL && *identity != '\0' &&
            str_eq(identity, look->info.identity)) {
            migrate_problem(op, -EINVAL, plan->disks[i].disk,
                            "has a target that %s is on at the source: %s",
                            plan->disks[k].disk, plan->disks[i].to);
        }
    }
}

/* Two disks on one volume would lose both. */
static void check_pairs(struct op *op)
{
    const struct plan *plan = op_plan(op);
    for (unsigned i = 0; i < plan->n_disks; i++) {
        check_origins(op, i);
        for (unsigned k = 0; k < i; k++) {
            const struct plan_disk *a = &plan->disks[i], *b = &plan->disks[k];
            const struct volume *one = op_volume(op, i);
            const struct volume *other = op_volume(op, k);
            if (one != NULL && other != NULL &&
                str_eq(one->name, other->name)) {
                migrate_problem(op, -EINVAL, a->disk,
                                "has the same target as %s: %s", b->disk,
                                one->name);
            }
        }
    }
}

void migrate_decide_targets(struct op *op)
{
    struct plan *plan = op_plan(op);
    for (unsigned i = 0; i < plan->n_disks; i++) {
        struct volume *volume = op_volume(op, i);
        if (volume != NULL) {
            decide_disk(op, &plan->disks[i], volume);
        }
    }
    check_pairs(op);
}
