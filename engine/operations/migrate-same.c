/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Whether source and destination use one storage. To guess wrong loses the
 * disk: a copy onto itself, or a guest on a disk that nobody has filled.
 */
#include <inttypes.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#include "base/err.h"
#include "base/str.h"
#include "operations/migrate-plan.h"
#include "run/op.h"
#include "vm/graph.h"
#include "vm/open-file.h"
#include "vm/vm.h"

static enum migrate_same same_file(struct op *op, const char *src,
                                   const char *dst)
{
    struct stat a, b;
    if (!process_has_file(vm_process(op_vm(op)).pid, src, &a) ||
        !process_has_file(vm_process(op_dst_vm(op)).pid, dst, &b)) {
        return MIGRATE_UNPROVED;
    }
    bool inode = a.st_ino == b.st_ino;
    if (a.st_dev == b.st_dev && inode) {
        return MIGRATE_SAME;
    }
    if (S_ISREG(a.st_mode) && S_ISREG(b.st_mode)) {
        /* One number twice may be one volume that is mounted twice. */
        return inode ? MIGRATE_UNPROVED : MIGRATE_DIFFERENT;
    }
    bool devices = (S_ISBLK(a.st_mode) && S_ISBLK(b.st_mode)) ||
                   (S_ISCHR(a.st_mode) && S_ISCHR(b.st_mode));
    /* Two devices may be two ways to one volume. */
    return devices && a.st_rdev == b.st_rdev ? MIGRATE_SAME : MIGRATE_UNPROVED;
}

static bool is_local(const char *driver)
{
    return str_eq(driver, "file") || str_eq(driver, "host_device");
}

/* An image in RADOS is no file, unless that is a mapped device. */
static bool are_apart(const char *a, const char *b)
{
    return str_eq(a, "rbd") && (str_eq(b, "file") || str_eq(b, "nfs"));
}

/* Names that mean another server, or socket, on another host. */
static bool is_of_one_host(const struct volume *volume)
{
    static const char *const hosts[] = {"localhost", "127.", "[::1]",
                                        "[::ffff:127."};
    const char *host = strstr(volume->uri, "://");
    if (str_starts(volume->uri, "nbd+unix:")) {
        return true;
    }
    for (unsigned i = 0; host != NULL && i < ARRAY_SIZE(hosts); i++) {
        if (strncasecmp(host + 3, hosts[i], strlen(hosts[i])) == 0) {
            return true;
        }
    }
    return false;
}

enum migrate_same migrate_same_name(const char *driver, const char *src,
                                    const char *dst_driver, const char *dst,
                                    bool one_host)
{
    if (are_apart(driver, dst_driver) || are_apart(dst_driver, driver)) {
        return MIGRATE_DIFFERENT;
    }
    struct volume *a = NULL, *b = NULL;
    enum migrate_same same = MIGRATE_UNPROVED;
    (void)volume_from_node(driver, src, &a);
    (void)volume_from_node(dst_driver, dst, &b);
    if (a != NULL && b != NULL && str_eq(driver, dst_driver)) {
        /* A server has many names; an image of another name is another one. */
        bool equal = str_eq(a->uri, b->uri);
        bool other = str_eq(driver, "rbd") && !str_eq(a->name, b->name);
        same = equal && (one_host || !is_of_one_host(a)) ? MIGRATE_SAME
               : other                                   ? MIGRATE_DIFFERENT
                                                         : MIGRATE_UNPROVED;
    }
    volume_free(a);
    volume_free(b);
    return same;
}

static bool is_one(uint64_t a, uint64_t b, const char *namespace)
{
    _cleanup_free_ char *src =
        str_printf("/proc/%" PRIu64 "/ns/%s", a, namespace);
    _cleanup_free_ char *dst =
        str_printf("/proc/%" PRIu64 "/ns/%s", b, namespace);
    struct stat x, y;
    return src != NULL && dst != NULL && stat(src, &x) == 0 &&
           stat(dst, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

/* Whether one address, or socket, is the same to both. */
static bool are_on_one_host(struct op *op)
{
    uint64_t a = vm_process(op_vm(op)).pid, b = vm_process(op_dst_vm(op)).pid;
    return a != 0 && b != 0 && is_one(a, b, "net") && is_one(a, b, "mnt");
}

enum migrate_same migrate_same_open(struct op *op, const char *driver,
                                    const char *src, const char *dst_driver,
                                    const char *dst)
{
    if (is_local(driver) && is_local(dst_driver)) {
        return same_file(op, src, dst);
    }
    return migrate_same_name(driver, src, dst_driver, dst, are_on_one_host(op));
}

enum migrate_same migrate_same(struct op *op, const struct plan_disk *disk,
                               const struct graph_node *there)
{
    const char *driver =
        json_string_value(json_object_get(disk->before, "protocol_driver"));
    const char *filename =
        json_string_value(json_object_get(disk->before, "protocol_filename"));
    if (driver == NULL || filename == NULL) {
        return MIGRATE_UNPROVED;
    }
    return migrate_same_open(op, driver, filename, there->driver,
                             there->filename);
}

/* --- an image that both call the same --- */

bool migrate_is_shared_image(const struct plan *plan,
                             const struct plan_disk *disk)
{
    (void)plan;
    return disk != NULL && str_eq(disk->how, "share") &&
           !json_is_true(json_object_get(disk->before, "read_only")) &&
           str_eq(json_string_value(
                      json_object_get(disk->before, "protocol_driver")),
                  "rbd");
}

/*
 * Two clusters may have images of one name, mirrored ones do. Both QEMUs have
 * it open by now, so that its cluster knows of two or it is not the same.
 */
static void shared_on_volume(struct act *act, const struct err *err,
                             struct volume_result *result)
{
    struct op *op = act_op(act);
    const struct plan_disk *disk = act_disk(act);
    const char *why = err != NULL ? err->desc
                      : result->info.holders == 0
                          ? "nobody is known to have it open"
                          : NULL;
    if (why == NULL && result->info.holders < 2) {
        migrate_problem(op, -EINVAL, disk->disk,
                        "cannot be shared: one client of its cluster has '%s'"
                        " open, not two: the destination's is another"
                        " cluster's",
                        disk->to);
    } else if (why != NULL && str_eq(disk->reason, migrate_as_asked)) {
        migrate_note(op_request(op),
                     "%s: that it is the same image for both cannot be seen"
                     " from here (%s) and is taken from you",
                     disk->disk, why);
    } else if (why != NULL) {
        migrate_problem(op, -EINVAL, disk->disk,
                        "whether '%s' is one image for both cannot be seen"
                        " from here (%s): say by --disk %s=share or --disk"
                        " %s=nbd",
                        disk->to, why, disk->disk, disk->disk);
    }
    act_end(act, NULL);
}

void migrate_look_shared(struct act *act)
{
    const struct plan_disk *disk = act_disk(act);
    struct volume_request probe = {.act = VOLUME_PROBE};
    struct volume *volume = NULL;
    const char *filename =
        json_string_value(json_object_get(disk->before, "protocol_filename"));
    if (are_on_one_host(act_op(act)) || filename == NULL ||
        volume_from_node("rbd", filename, &volume) < 0) {
        act_end(act, NULL);
    } else {
        act_storage(act, act_own_volume(act, volume), &probe, shared_on_volume);
    }
}
