/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Source and destination against each other. A stream that does not fit fails
 * when everything has been sent; so all that can be seen is seen before.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/err.h"
#include "base/str.h"
#include "operations/migrate-plan.h"
#include "qpivot.h"
#include "vm/graph.h"
#include "vm/vm.h"

void migrate_note(struct migrate_request *request, const char *fmt, ...)
{
    char *text = NULL;
    va_list ap;
    va_start(ap, fmt);
    int r = vasprintf(&text, fmt, ap);
    va_end(ap);
    if (r >= 0) {
        (void)json_array_append_new(request->notes, json_string(text));
        free(text);
    }
}

void migrate_problem(struct op *op, int code, const char *object,
                     const char *fmt, ...)
{
    struct err *err = NULL;
    char *text = NULL;
    va_list ap;
    va_start(ap, fmt);
    int r = vasprintf(&text, fmt, ap);
    va_end(ap);
    (void)err_set(&err, code, object, "%s", r >= 0 ? text : fmt);
    if (r >= 0) {
        free(text);
    }
    op_problem(op, err);
}

static const char *text_of(const json_t *json, const char *key)
{
    const char *text = json_string_value(json_object_get(json, key));
    return text != NULL ? text : "";
}

static void replace(char **text, const char *with)
{
    free(*text);
    *text = strdup(with);
}

/* --- one side --- */

void migrate_check_source(struct op *op, const struct plan_disk *disk,
                          const struct graph_disk *found)
{
    for (unsigned i = 0; i < found->n_others; i++) {
        const struct graph_user *user = &found->others[i];
        if (user->kind == GRAPH_JOB) {
            migrate_problem(op, -EBUSY, disk->disk,
                            "job '%s' works on this disk", user->name);
        }
    }
    if (found->active->corrupt) {
        migrate_problem(op, -EUCLEAN, disk->disk,
                        "QEMU has marked the image as corrupt");
    }
    if (found->device->io_status[0] != '\0' &&
        !str_eq(found->device->io_status, "ok")) {
        migrate_problem(op, -EIO, disk->disk,
                        "the disk has had an I/O error (%s)",
                        found->device->io_status);
    }
}

/* A mirror carries the content, and no snapshots. */
static void check_lost(struct op *op, const struct plan_disk *disk)
{
    const struct migrate_request *request = op_request(op);
    size_t n_snapshots =
        json_array_size(json_object_get(disk->before, "snapshots"));
    if (n_snapshots > 0 && (request->flags & QPIVOT_DROP_SNAPSHOTS) == 0) {
        migrate_problem(op, -ENOTSUP, disk->disk,
                        "holds %zu internal snapshots that a mirror does not"
                        " carry; --drop-snapshots goes without them",
                        n_snapshots);
    }
}

/* --- disks --- */

const char migrate_as_asked[] = "as asked for";

/* What is done where nobody says; NULL where that would be a guess. */
static const char *choose_how(enum migrate_same same, bool read_only,
                              const char **ret_reason)
{
    if (same == MIGRATE_SAME) {
        *ret_reason = "both sides see the same storage: nothing is copied";
        return "share";
    }
    if (read_only) {
        *ret_reason = "read-only: the destination's own is used as it is";
        return "skip";
    }
    if (same == MIGRATE_DIFFERENT) {
        *ret_reason = "the destination has a volume of its own: it is filled";
        return "nbd";
    }
    return NULL;
}

static void decide_how(struct op *op, struct plan_disk *disk,
                       const struct graph_disk *there, bool read_only)
{
    enum migrate_same same = migrate_same(op, disk, there->protocol);
    const char *how = disk->how, *reason = migrate_as_asked;
    if (*how == '\0') {
        how = choose_how(same, read_only, &reason);
    }
    if (how == NULL) {
        migrate_problem(op, -EINVAL, disk->disk,
                        "whether '%s' is the same storage for both cannot be"
                        " seen from here: say by --disk %s=share or --disk"
                        " %s=nbd",
                        there->protocol->filename, disk->disk, disk->disk);
        return;
    }
    if (str_eq(how, "share") && same == MIGRATE_DIFFERENT) {
        migrate_problem(op, -EINVAL, disk->disk,
                        "cannot be shared: '%s' is another storage at the"
                        " destination",
                        there->protocol->filename);
    } else if (str_eq(how, "share") && !read_only &&
               migrate_grows_unseen(there->protocol->driver, there->format)) {
        migrate_problem(op, -ENOTSUP, disk->disk,
                        "cannot be shared: '%s' is an image that grows, and"
                        " the destination's QEMU would not see what has been"
                        " written behind its end since it was opened; mount"
                        " that storage and use the file, or give the"
                        " destination a volume of its own",
                        there->protocol->filename);
    } else if (str_eq(how, "share") && same == MIGRATE_UNPROVED) {
        struct migrate_request *request = op_request(op);
        migrate_note(request,
                     "%s: the destination calls it '%s': that it is the same"
                     " storage is taken from you",
                     disk->disk, there->protocol->filename);
    } else if (!str_eq(how, "share") && same == MIGRATE_SAME) {
        migrate_problem(op, -EINVAL, disk->disk,
                        "source and destination are the same: '%s'",
                        there->protocol->filename);
    }
    _cleanup_free_ char *before = disk->how; /* 'how' may point into it */
    disk->how = strdup(how);
    replace(&disk->reason, reason);
}

static void match_copy(struct op *op, struct plan_disk *disk,
                       const struct graph_disk *there)
{
    if (there->device->read_only) {
        migrate_problem(op, -EROFS, disk->disk,
                        "is read-only at the destination: it cannot be"
                        " filled");
    }
    if (!migrate_match_base(op, disk, there)) {
        migrate_problem(op, -ENOTSUP, disk->disk,
                        "has a backing file at the destination: a whole image"
                        " is needed");
    }
    check_lost(op, disk);
}

static void match_disk(struct op *op, struct plan_disk *disk,
                       const struct graph *graph,
                       const struct graph_device *device)
{
    _cleanup_graph_disk_ struct graph_disk *there = NULL;
    struct volume *volume = NULL;
    struct err *err = NULL;
    if (graph_disk(graph, device, &there, &err) < 0) {
        op_problem(op, err);
        return;
    }
    bool read_only = json_is_true(json_object_get(disk->before, "read_only"));
    if (there->size != disk->size) {
        migrate_problem(op, -EINVAL, disk->disk,
                        "has %" PRIu64 " bytes at the source, %" PRIu64
                        " at the destination",
                        disk->size, there->size);
    }
    if (read_only != device->read_only) {
        migrate_problem(op, -EINVAL, disk->disk,
                        "is %s at the source, %s at the destination",
                        read_only ? "read-only" : "writable",
                        device->read_only ? "read-only" : "writable");
    }
    if (*disk->to != '\0') {
        migrate_match_target(op, disk, there);
        check_lost(op, disk);
        return;
    }
    if (migrate_is_placeholder(there)) {
        migrate_problem(op, -ENODEV, disk->disk,
                        "the destination's device stands on a placeholder:"
                        " name what it is to get by --disk %s=TARGET",
                        disk->disk);
        return;
    }
    (void)volume_from_node(there->protocol->driver, there->protocol->filename,
                           &volume);
    replace(&disk->to,
            volume != NULL ? volume->uri : there->protocol->filename);
    volume_free(volume);
    replace(&disk->format, there->format);
    replace(&disk->dst_node, there->active->name);
    decide_how(op, disk, there, read_only);
    if (str_eq(disk->how, "nbd") || str_eq(disk->how, "direct")) {
        match_copy(op, disk, there);
    }
    if (str_eq(disk->how, "direct")) {
        migrate_match_direct(op, disk, there);
    }
}

/* A medium that only one side has: the guest sees it change, and no write. */
static void match_empty(struct op *op, struct plan_disk *disk,
                        const struct graph_device *device)
{
    bool read_only = json_is_true(json_object_get(disk->before, "read_only"));
    if (!device->removable || !read_only) {
        migrate_problem(op, -ENOMEDIUM, disk->disk,
                        "the destination's device is empty");
        return;
    }
    replace(&disk->how, "skip");
    replace(&disk->reason, "the destination's drive is empty: the guest finds"
                           " no medium there");
}

/* Whether the source has the device, without a medium. */
static bool is_empty_there(struct op *op, const struct graph_device *device)
{
    struct migrate_request *request = op_request(op);
    size_t i;
    json_t *key;
    json_array_foreach(request->empty, i, key) {
        if (str_eq(json_string_value(key), device->key)) {
            migrate_note(request,
                         "%s: no medium at the source, the guest finds the"
                         " destination's: skipped",
                         device->label);
            return true;
        }
    }
    return false;
}

void migrate_match_disks(struct op *op, const struct graph *graph)
{
    struct plan *plan = op_plan(op);
    unsigned n = 0;
    const struct graph_device *devices = graph_devices(graph, &n);
    for (unsigned i = 0; i < plan->n_disks; i++) {
        struct plan_disk *disk = &plan->disks[i];
        if (disk->device == NULL) {
            continue; /* the source was a problem already */
        }
        const struct graph_device *device =
            graph_find_device(graph, disk->device);
        if (device == NULL) {
            migrate_problem(op, -ENODEV, disk->disk,
                            "the destination has no such device");
        } else if (device->empty || device->root == NULL) {
            match_empty(op, disk, device);
        } else {
            match_disk(op, disk, graph, device);
        }
        migrate_match_bitmaps(op, disk, graph);
        migrate_forget_base(disk);
    }
    for (unsigned i = 0; i < n; i++) {
        bool known = devices[i].empty || devices[i].root == NULL ||
                     (devices[i].qdev == NULL && devices[i].id == NULL);
        for (unsigned k = 0; !known && k < plan->n_disks; k++) {
            known = str_eq(plan->disks[k].device, devices[i].key);
        }
        if (!known && !is_empty_there(op, &devices[i])) {
            migrate_problem(op, -ENODEV, devices[i].label,
                            "the source has no such device, the destination"
                            " has");
        }
    }
}

/* --- machines --- */

static void check_same(struct op *op, const json_t *src, const json_t *dst,
                       const char *what)
{
    if (src != NULL && dst != NULL && !json_equal(src, dst)) {
        _cleanup_free_ char *a = json_dumps(src, JSON_ENCODE_ANY);
        _cleanup_free_ char *b = json_dumps(dst, JSON_ENCODE_ANY);
        migrate_problem(op, -EINVAL, what,
                        "is %s at the source, %s at the"
                        " destination",
                        a != NULL ? a : "?", b != NULL ? b : "?");
    }
}

static void check_source_state(struct op *op, const json_t *src)
{
    const char *name = vm_name(op_vm(op));
    const char *status =
        text_of(json_object_get(src, "query-status"), "status");
    const json_t *stream = json_object_get(src, "query-migrate");
    size_t i;
    json_t *item;
    if (!str_eq(status, "running") && !str_eq(status, "paused")) {
        migrate_problem(op, -EBUSY, name,
                        "the source is '%s', neither running nor paused",
                        status);
    }
    json_array_foreach(json_object_get(stream, "blocked-reasons"), i, item) {
        migrate_problem(op, -ENOTSUP, name, "%s", json_string_value(item));
    }
    json_array_foreach(json_object_get(src, "query-jobs"), i, item) {
        migrate_problem(op, -EBUSY, name,
                        "job '%s' is there: it would fail"
                        " the switchover",
                        text_of(item, "id"));
    }
    const char *phase = text_of(stream, "status");
    if (str_eq(phase, "setup") || str_eq(phase, "active") ||
        str_eq(phase, "pre-switchover") || str_eq(phase, "device")) {
        migrate_problem(op, -EBUSY, name, "a migration is under way (%s)",
                        phase);
    }
}

/* Whether QEMU's command line has '-S': 1, 0, -1 unknown. */
static int waits_for_cont(uint64_t pid)
{
    enum { ARGS_MAX = 65536 };

    char path[64];
    _cleanup_free_ char *args = malloc(ARGS_MAX);
    (void)snprintf(path, sizeof(path), "/proc/%" PRIu64 "/cmdline", pid);
    _cleanup_close_ int fd = pid != 0 ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    ssize_t n = fd >= 0 && args != NULL ? read(fd, args, ARGS_MAX - 1) : -1;
    if (n <= 0 || n == ARGS_MAX - 1) {
        return -1;
    }
    args[n] = '\0';
    for (const char *arg = args; arg < args + n; arg += strlen(arg) + 1) {
        if (str_eq(arg, "-S") || str_eq(arg, "--S")) {
            return 1;
        }
    }
    return 0;
}

static void check_destination_state(struct op *op, const json_t *dst)
{
    struct migrate_request *request = op_request(op);
    const char *name = vm_name(op_dst_vm(op));
    const char *status =
        text_of(json_object_get(dst, "query-status"), "status");
    const json_t *stream = json_object_get(dst, "query-migrate");
    if (!str_eq(status, "inmigrate")) {
        migrate_problem(op, -EBUSY, name,
                        "the destination is '%s', not waiting for a guest:"
                        " start it with -incoming defer -S",
                        status);
    } else if (*text_of(stream, "status") != '\0' &&
               !str_eq(text_of(stream, "status"), "none")) {
        migrate_problem(op, -EBUSY, name,
                        "the destination listens already: start it with"
                        " -incoming defer -S");
    }
    int waits = waits_for_cont(vm_process(op_dst_vm(op)).pid);
    if (waits == 0) {
        migrate_note(request, "the destination was started without -S: it is"
                              " told not to run the guest by itself");
    }
    if (json_array_size(json_object_get(dst, "query-block-exports")) > 0) {
        migrate_problem(op, -EBUSY, name,
                        "the destination has exports already");
    }
}

static void check_tpms(struct op *op, const json_t *src, const json_t *dst)
{
    size_t i, k;
    json_t *tpm, *other;
    json_array_foreach(src, i, tpm) {
        bool found = false;
        json_array_foreach(dst, k, other) {
            found = found ||
                    (str_eq(text_of(tpm, "id"), text_of(other, "id")) &&
                     str_eq(text_of(tpm, "model"), text_of(other, "model")));
        }
        if (!found) {
            migrate_problem(op, -ENODEV, text_of(tpm, "id"),
                            "the destination has no such TPM (%s)",
                            text_of(tpm, "model"));
        } else {
            migrate_note(op_request(op),
                         "%s: what the TPM keeps goes over with the memory, to"
                         " the emulator that the destination has",
                         text_of(tpm, "id"));
        }
    }
}

void migrate_check_machines(struct op *op)
{
    const struct migrate_request *request = op_request(op);
    const json_t *src = request->src, *dst = request->dst;
    check_source_state(op, src);
    check_destination_state(op, dst);
    check_same(op, json_object_get(src, "qom-get"),
               json_object_get(dst, "qom-get"), "machine type");
    check_same(
        op,
        json_object_get(json_object_get(src, "query-memory-size-summary"),
                        "base-memory"),
        json_object_get(json_object_get(dst, "query-memory-size-summary"),
                        "base-memory"),
        "memory size");
    check_tpms(op, json_object_get(src, "query-tpm"),
               json_object_get(dst, "query-tpm"));
}
