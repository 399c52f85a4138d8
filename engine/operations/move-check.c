/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "operations/move-check.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/err.h"
#include "base/str.h"
#include "qmp/qmp.h"
#include "qpivot.h"
#include "steps/act-on.h"
#include "steps/persist.h"
#include "vm/graph.h"
#include "vm/names.h"
#include "vm/vm.h"

static void check_users(struct op *op, const struct plan_disk *disk,
                        const struct graph *graph,
                        const struct graph_disk *found);
static void check_content(struct op *op, struct plan_disk *disk,
                          const struct graph_disk *found);
static void check_bitmaps(struct op *op, struct plan_disk *disk,
                          const struct graph_node *node);
static void check_sizes(struct op *op, const struct plan_disk *disk,
                        const struct volume *volume);

void move_note(struct move_request *request, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    _cleanup_free_ char *text = str_vprintf(fmt, ap);
    va_end(ap);
    (void)json_array_append_new(request->notes, json_string(text));
}

void move_check_schema(struct op *op)
{
    static const char *const commands[] = {
        "blockdev-add", "blockdev-del", "blockdev-mirror", "blockdev-reopen",
        "job-complete", "job-finalize", "query-jobs"};
    const struct qmp_schema *schema = vm_schema(op_vm(op));
    for (unsigned i = 0; i < ARRAY_SIZE(commands); i++) {
        if (!qmp_schema_has_command(schema, commands[i])) {
            struct err *err = NULL;
            (void)err_set(&err, -ENOTSUP, vm_name(op_vm(op)),
                          "this QEMU has no '%s'", commands[i]);
            err_hint(&err, "qpivot needs QEMU 6.1 or later");
            op_problem(op, err);
        }
    }
}

/* Of volumes that are not there yet: no identity tells them apart. */
static bool same_node(const struct volume *a, const struct volume *b)
{
    json_auto_t *one = a->ops->node_options(a, NULL);
    json_auto_t *other = b->ops->node_options(b, NULL);
    (void)json_object_del(one, "cache");
    (void)json_object_del(other, "cache");
    return one != NULL && a->ops == b->ops && json_equal(one, other);
}

/* "/a/x" and "/a/../a/x": the probe has just looked at both directories. */
static bool same_file(const struct volume *a, const struct volume *b)
{
    if (!str_eq(a->ops->scheme, "file") || a->ops != b->ops) {
        return false;
    }
    _cleanup_free_ char *one = a->ops->legacy_name(a);
    _cleanup_free_ char *other = b->ops->legacy_name(b);
    char *slash = one != NULL ? strrchr(one, '/') : NULL;
    char *other_slash = other != NULL ? strrchr(other, '/') : NULL;
    struct stat st, other_st;
    if (slash == NULL || other_slash == NULL || !str_eq(slash, other_slash)) {
        return false;
    }
    slash[1] = other_slash[1] = '\0';
    return stat(one, &st) == 0 && stat(other, &other_st) == 0 &&
           st.st_dev == other_st.st_dev && st.st_ino == other_st.st_ino;
}

static bool same_target(struct op *op, unsigned a, unsigned b)
{
    const struct move_request *request = op_request(op);
    const struct volume *one = op_volume(op, a), *other = op_volume(op, b);
    const struct volume_info *info = &request->disks[a].target;
    const struct volume_info *other_info = &request->disks[b].target;
    if (info->exists && other_info->exists && *info->identity != '\0') {
        return strcmp(info->identity, other_info->identity) == 0;
    }
    return str_eq(op_plan(op)->disks[a].to, op_plan(op)->disks[b].to) ||
           (one != NULL && other != NULL &&
            (same_node(one, other) || same_file(one, other)));
}

static bool attached_with(struct op *op, unsigned a, unsigned b)
{
    const struct volume *one = op_volume(op, a), *other = op_volume(op, b);
    return one != NULL && other != NULL && one->ops->is_attached_with != NULL &&
           one->ops->is_attached_with(one, other);
}

void move_check_pairs(struct op *op)
{
    struct plan *plan = op_plan(op);
    struct move_request *request = op_request(op);
    for (unsigned i = 0; i < plan->n_disks; i++) {
        const struct plan_disk *a = &plan->disks[i];
        struct move_request_disk *look = &request->disks[i];
        struct err *err = NULL;
        for (unsigned k = 0; k < plan->n_disks; k++) {
            const struct plan_disk *source = &plan->disks[k];
            if (look->looked && look->target.exists &&
                source->source_identity != NULL &&
                *look->target.identity != '\0' &&
                str_eq(source->source_identity, look->target.identity)) {
                err = NULL;
                (void)err_set(&err, -EINVAL, source->disk,
                              "source and target are the same: %s", a->to);
                op_problem(op, err);
            }
        }
        for (unsigned k = 0; k < i; k++) {
            const struct plan_disk *b = &plan->disks[k];
            err = NULL;
            if (str_eq(a->disk, b->disk)) {
                (void)err_set(&err, -EINVAL, a->disk, "is given twice");
                op_problem(op, err);
            } else if (a->device != NULL && str_eq(a->device, b->device)) {
                (void)err_set(&err, -EINVAL, a->disk,
                              "is the same disk as '%s'", b->disk);
                op_problem(op, err);
            } else if (same_target(op, i, k)) {
                (void)err_set(&err, -EINVAL, a->to,
                              "is the target of '%s' and of '%s'", b->disk,
                              a->disk);
                op_problem(op, err);
            } else if (attached_with(op, i, k)) {
                /* All disks' acts run at once, and each undoes its own. */
                (void)err_set(&err, -ENOTSUP, a->to,
                              "is of the same resource as %s, the target of"
                              " '%s'",
                              b->to, b->disk);
                err_hint(&err, "move one of the disks after the other");
                op_problem(op, err);
            }
        }
    }
}

void move_check_source(struct op *op, struct plan_disk *disk,
                       const struct graph *graph,
                       const struct graph_disk *found)
{
    struct move_request *request = op_request(op);
    request->disks[disk->index].n_layers = found->n_layers;
    check_users(op, disk, graph, found);
    check_content(op, disk, found);
    check_bitmaps(op, disk, found->active);
    move_look_base(op, disk, graph, found);
    if (found->device->io_status[0] != '\0' &&
        strcmp(found->device->io_status, "ok") != 0) {
        struct err *err = NULL;
        (void)err_set(&err, -EIO, disk->disk,
                      "the disk has had an I/O error (%s)",
                      found->device->io_status);
        err_hint(&err, "see to the source's storage and let the guest go on"
                       " ('cont') first");
        op_problem(op, err);
    }
}

/* Clones of one base read it side by side. */
static bool shares_base_only(const struct graph *graph, unsigned device,
                             const struct graph_disk *found)
{
    unsigned n = 0;
    const struct graph_node *root = graph_devices(graph, &n)[device].root;
    return root != NULL && !graph_reaches(graph, root, found->active) &&
           !graph_reaches(graph, root, found->protocol);
}

static void check_users(struct op *op, const struct plan_disk *disk,
                        const struct graph *graph,
                        const struct graph_disk *found)
{
    struct move_request *request = op_request(op);
    for (unsigned i = 0; i < found->n_others; i++) {
        const struct graph_user *user = &found->others[i];
        struct err *err = NULL;
        switch (user->kind) {
        case GRAPH_JOB:
            (void)err_set(&err, -EBUSY, disk->disk,
                          "job '%s' works on this disk", user->name);
            err_hint(&err, "wait for it, or see 'qpivot jobs'");
            break;
        case GRAPH_DEVICE:
            if (shares_base_only(graph, user->index, found)) {
                request->disks[disk->index].shares_base = true;
            } else {
                (void)err_set(&err, -EBUSY, disk->disk,
                              "device '%s' uses the same image", user->name);
            }
            break;
        case GRAPH_EXPORT:
            if (op_plan(op)->undo_window_ms != 0) {
                (void)err_set(&err, -EBUSY, disk->disk,
                              "export '%s' can write while the guest stands"
                              " still: no undo window",
                              user->name);
                err_hint(&err, "end the export, or leave --undo-window out");
                break;
            }
            move_note(request,
                      "%s: export '%s' will show the target after the pivot",
                      disk->disk, user->name);
            break;
        case GRAPH_NODE:
        case GRAPH_BACKEND:
            break;
        }
        if (err != NULL) {
            op_problem(op, err);
        }
    }
    if (found->job_filter != NULL && found->n_others == 0) {
        struct err *err = NULL;
        (void)err_set(&err, -EBUSY, disk->disk,
                      "a job has put '%s' on top of this disk",
                      found->job_filter->name);
        op_problem(op, err);
    }
}

static void check_content(struct op *op, struct plan_disk *disk,
                          const struct graph_disk *found)
{
    const struct graph_node *node = found->active;
    struct err *err = NULL;
    if (node->encrypted) {
        (void)err_set(&err, -ENOTSUP, disk->disk,
                      "is encrypted; the target would be in clear");
        op_problem(op, err);
        err = NULL;
    }
    if (node->corrupt) {
        (void)err_set(&err, -EUCLEAN, disk->disk,
                      "QEMU has marked the image as corrupt");
        err_hint(&err, "repair it with 'qemu-img check -r' while the VM is"
                       " off");
        op_problem(op, err);
    }
    if (disk->size == 0) {
        err = NULL;
        (void)err_set(&err, -EINVAL, disk->disk, "has no size");
        op_problem(op, err);
    }
}

static void check_bitmaps(struct op *op, struct plan_disk *disk,
                          const struct graph_node *node)
{
    struct move_request *request = op_request(op);
    disk->bitmaps = json_array();
    disk->known_bitmaps = json_array();
    for (unsigned i = 0; i < node->n_bitmaps; i++) {
        const struct graph_bitmap *bitmap = &node->bitmaps[i];
        if (*bitmap->name == '\0') {
            continue;
        }
        (void)json_array_append_new(disk->known_bitmaps,
                                    json_string(bitmap->name));
        if ((bitmap->busy || bitmap->inconsistent) &&
            (request->flags & QPIVOT_DROP_BITMAPS) == 0) {
            struct err *err = NULL;
            (void)err_set(&err, -EBUSY, disk->disk, "dirty bitmap '%s' is %s",
                          bitmap->name,
                          bitmap->busy ? "in use" : "inconsistent");
            err_hint(&err, "--drop-bitmaps moves the disk without bitmaps");
            op_problem(op, err);
            continue;
        }
        if ((request->flags & QPIVOT_DROP_BITMAPS) == 0) {
            (void)json_array_append_new(
                disk->bitmaps,
                json_pack("{s:s, s:I, s:b, s:b}", "name", bitmap->name,
                          "granularity", (json_int_t)bitmap->granularity,
                          "recording", bitmap->recording, "persistent",
                          bitmap->persistent));
        }
    }
}

void move_check_open_targets(struct op *op, const struct graph *graph)
{
    const struct plan *plan = op_plan(op);
    for (unsigned i = 0; i < plan->n_disks; i++) {
        const struct volume *target = op_volume(op, i);
        const struct graph_node *node =
            target != NULL ? graph_opens(graph, target) : NULL;
        if (node != NULL) {
            struct err *err = NULL;
            (void)err_set(&err, -EBUSY, target->name,
                          "is open in this QEMU as node '%s'", node->name);
            op_problem(op, err);
        }
    }
}

void move_check_bitmap_targets(struct op *op, const struct plan_disk *disk)
{
    size_t i;
    json_t *bitmap;
    json_array_foreach(disk->bitmaps, i, bitmap) {
        bool persistent = json_is_true(json_object_get(bitmap, "persistent"));
        if (!persistent ||
            (strcmp(disk->format, "qcow2") == 0 && !disk->image)) {
            continue;
        }
        struct err *err = NULL;
        (void)err_set(&err, -ENOTSUP, disk->disk,
                      "persistent dirty bitmap '%s' cannot be stored in %s",
                      json_string_value(json_object_get(bitmap, "name")),
                      disk->to);
        err_hint(&err, "take a qcow2 target of the source's size, or leave"
                       " the bitmaps behind with --drop-bitmaps");
        op_problem(op, err);
    }
}

static bool has_open(uint64_t pid, const struct stat *wanted)
{
    _cleanup_free_ char *path = str_printf("/proc/%" PRIu64 "/fd", pid);
    DIR *fds = path != NULL ? opendir(path) : NULL;
    bool found = false;
    for (struct dirent *it; fds != NULL && (it = readdir(fds)) != NULL;) {
        struct stat st;
        found = found ||
                (fstatat(dirfd(fds), it->d_name, &st, 0) == 0 &&
                 st.st_dev == wanted->st_dev && st.st_ino == wanted->st_ino);
    }
    if (fds != NULL) {
        (void)closedir(fds);
    }
    return found;
}

/* QEMU may have changed its directory since (-daemonize): it must be open. */
char *move_relative_source(struct op *op, const char *name)
{
    char cwd[PATH_MAX];
    uint64_t pid = vm_process(op_vm(op)).pid;
    _cleanup_free_ char *link = str_printf("/proc/%" PRIu64 "/cwd", pid);
    ssize_t n =
        pid != 0 && link != NULL ? readlink(link, cwd, sizeof(cwd)) : -1;
    if (n <= 0 || n == (ssize_t)sizeof(cwd)) {
        return NULL;
    }
    _cleanup_free_ char *path = str_printf("%.*s/%s", (int)n, cwd, name);
    struct stat st;
    bool sure = path != NULL && str_is_utf8(path) && stat(path, &st) == 0 &&
                S_ISREG(st.st_mode) && has_open(pid, &st);
    return sure ? TAKE_PTR(path) : NULL;
}

void move_check_removal(struct op *op, const struct plan_disk *disk,
                        const struct volume *source)
{
    struct err *err = NULL;
    if (op_plan(op)->delete_source &&
        (source == NULL || (source->ops->flags & BACKEND_CREATES) == 0)) {
        const char *driver =
            json_string_value(json_object_get(disk->before, "protocol_driver"));
        bool relative = source == NULL && str_eq(driver, "file") &&
                        disk->from[0] != '/' &&
                        !str_starts(disk->from, "json:");
        (void)err_set(&err, -ENOTSUP, disk->from, "%s",
                      relative ? "is named relative to QEMU's working"
                                 " directory: qpivot cannot tell which file"
                               : "is of a kind that qpivot does not remove");
        err_hint(&err, "leave out --delete-source");
        op_problem(op, err);
    }
}

int move_target_fits(const struct volume *volume,
                     const struct volume_info *info, struct err **errp)
{
    bool creates = (volume->ops->flags & BACKEND_CREATES) != 0;
    bool qcow2 = volume->format == FORMAT_QCOW2;
    int r = 0;
    if (info->exists && !volume->existing) {
        r = err_set(errp, -EEXIST, volume->name, "exists already");
        err_hint(errp,
                 "choose another name, or append %sexisting=yes to have it"
                 " overwritten",
                 strchr(volume->uri, '?') != NULL ? "&" : "?");
    } else if (!info->exists && (volume->existing || !creates)) {
        r = err_set(errp, -ENOENT, volume->name, "does not exist");
        err_hint(errp,
                 creates ? "leave existing=yes out to have it made"
                         : "%s targets are not made by qpivot",
                 volume->ops->title);
    } else if (info->exists && info->read_only) {
        r = err_set(errp, -EROFS, volume->name, "is read-only");
    } else if (!info->exists && info->read_only) {
        r = err_set(errp, -EACCES, volume->name,
                    "cannot be made there: the storage lets us only read");
        err_hint(errp, "give the user who is named in the URI the right to"
                       " write");
    } else if (info->exists && info->in_use) {
        r = err_set(errp, -EBUSY, volume->name, "is in use by %s",
                    *info->in_use_by ? info->in_use_by : "somebody");
    } else if (info->exists && info->no_flush) {
        /*
         * QEMU's mirror proves a target by its last flush; without one it
         * completes onto a connection that is dead (tried on 7.2 and 10.0).
         */
        r = err_set(errp, -ENOTSUP, volume->name,
                    "its server takes no flush: QEMU would not notice that"
                    " it is dead");
        err_hint(errp, "use a server that offers flush, as qemu-nbd does");
    } else if (qcow2 && (volume->ops->flags & BACKEND_FORMATS) == 0) {
        r = err_set(errp, -ENOTSUP, volume->name,
                    "%s targets hold raw data only", volume->ops->title);
    } else if (qcow2 && info->exists && info->has_backing) {
        /* Its holes would be zeroes for us, and the backing's later on. */
        r = err_set(errp, -EINVAL, volume->name,
                    "is an image that names a backing file");
        err_hint(errp, "have a new one made, or rebase it with 'qemu-img"
                       " rebase -u -b \"\"' first");
    } else if (qcow2 && info->exists && info->format != FORMAT_QCOW2) {
        r = err_set(errp, -EINVAL, volume->name, "is no qcow2 image");
        err_hint(errp, "use format=raw, or a new name");
    }
    return r;
}

/* What mends itself may have done so by then; the pivot asks once more. */
static void check_replicas(struct op *op, const struct plan_disk *disk,
                           const struct volume *volume,
                           const struct volume_info *info)
{
    bool allowed = op_plan(op)->allow_degraded;
    struct err *err = NULL;
    if (*info->alone != '\0' && !allowed && !info->in_use &&
        (*info->degraded == '\0' || info->heals)) {
        (void)err_set(&err, -ENOTCONN, volume->name,
                      "%s: it may have the volume in use", info->alone);
        err_hint(&err, "connect it; where a person knows that nobody has,"
                       " --allow-degraded does without");
        op_problem(op, err);
        return;
    }
    if (*info->degraded == '\0') {
        return;
    }
    if (allowed || info->heals) {
        move_note(op_request(op), "%s: the target is degraded: %s%s",
                  disk->disk, info->degraded,
                  allowed ? "" : "; no pivot before that is over");
        return;
    }
    (void)err_set(&err, -ENOLINK, volume->name, "is degraded: %s",
                  info->degraded);
    err_hint(&err, "--allow-degraded moves onto it all the same");
    op_problem(op, err);
}

void move_check_target(struct op *op, const struct plan_disk *disk,
                       const struct volume *volume,
                       const struct volume_info *info)
{
    struct err *err = NULL;
    check_replicas(op, disk, volume, info);
    if (move_target_fits(volume, info, &err) < 0) {
        op_problem(op, err);
    } else {
        check_sizes(op, disk, volume);
    }
}

static void check_sizes(struct op *op, const struct plan_disk *disk,
                        const struct volume *volume)
{
    char have[STR_BYTES_MAX], want[STR_BYTES_MAX];
    struct move_request *request = op_request(op);
    struct err *err = NULL;
    if (!disk->create && volume->size != 0 &&
        volume->size != disk->target_size) {
        (void)err_set(&err, -EINVAL, volume->name,
                      "has %" PRIu64 " bytes, not size=%" PRIu64,
                      disk->target_size, volume->size);
        err_hint(&err, "leave size= out: a volume that is there keeps its"
                       " size");
    } else if (disk->target_size < disk->size) {
        (void)err_set(&err, -ENOSPC, volume->name,
                      "target has %" PRIu64 " bytes (%s), source '%s' has"
                      " %" PRIu64 " bytes (%s)",
                      disk->target_size, str_bytes(disk->target_size, have),
                      disk->disk, disk->size, str_bytes(disk->size, want));
        err_hint(&err, "take a target of at least %" PRIu64 " bytes",
                 disk->size);
    } else if (disk->target_size % 512 != 0) {
        (void)err_set(&err, -EINVAL, volume->name,
                      "size %" PRIu64 " is no multiple of 512",
                      disk->target_size);
    }
    if (err != NULL) {
        op_problem(op, err);
        return;
    }
    if (disk->shim) {
        move_note(request,
                  "%s: the target is larger (%s, source %s): the guest sees"
                  " the source's size until it is resized (block_resize) or"
                  " started anew",
                  disk->disk, str_bytes(disk->target_size, have),
                  str_bytes(disk->size, want));
    }
    if (request->disks[disk->index].target.fills) {
        move_note(request,
                  "%s: the target is thin, and will be filled: zeroes take up"
                  " their space there; 'fstrim' in the guest gives it back",
                  disk->disk);
    }
}

void move_check_persist(struct op *op)
{
    const struct plan *plan = op_plan(op);
    struct move_request *request = op_request(op);
    struct err *err = NULL;
    if (*plan->emit_config != '\0' &&
        persist_check_file(plan->emit_config, &err) < 0) {
        op_problem(op, err);
    }
    for (unsigned i = 0; i < plan->n_disks; i++) {
        const struct plan_disk *disk = &plan->disks[i];
        const json_t *limits = json_object_get(
            json_object_get(disk->before, "throttle"), "drive_limits");
        if (persist_is_wanted(plan, disk) && disk->drive != NULL &&
            *disk->drive != '\0' && json_object_size(limits) > 0) {
            move_note(request,
                      "%s: the emitted description does not hold the limits"
                      " of -drive id=%s: give them to the -device of the next"
                      " start (a throttle group), and name the emitted node"
                      " in its drive=",
                      disk->disk, disk->drive);
        }
    }
}

void move_check_drive_mirror(struct op *op, const struct plan_disk *disk)
{
    struct err *err = NULL;
    if (*disk->legacy_name == '\0') {
        (void)err_set(&err, -ENOTSUP, disk->to,
                      "has no file name that drive-mirror could open");
    } else if (disk->secret) {
        (void)err_set(&err, -ENOTSUP, disk->to,
                      "drive-mirror cannot be given a secret");
        err_hint(&err, "name the keyring in the conf= file, or use"
                       " --via blockdev-mirror");
    } else if (disk->shim) {
        (void)err_set(&err, -ENOTSUP, disk->to,
                      "drive-mirror needs a target of the source's size");
        err_hint(&err, "use --via blockdev-mirror");
    }
    if (err != NULL) {
        op_problem(op, err);
    }
}

bool move_is_qcow2_name(const char *name)
{
    size_t len = strlen(name);
    return len > 6 && strcmp(name + len - 6, ".qcow2") == 0;
}
