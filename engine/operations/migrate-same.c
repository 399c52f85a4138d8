/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Whether source and destination use one storage. To guess wrong loses the
 * disk: a copy onto itself, or a guest on a disk that nobody has filled.
 */
#include <dirent.h>
#include <inttypes.h>
#include <sys/stat.h>

#include "base/str.h"
#include "operations/migrate-plan.h"
#include "vm/graph.h"
#include "vm/vm.h"

/*
 * The process must have it open: by that it is known to be the QEMU itself,
 * and not what only forwards its monitor from another host.
 */
static bool has_open(uint64_t pid, const struct stat *wanted)
{
    _cleanup_free_ char *path = str_printf("/proc/%" PRIu64 "/fd", pid);
    DIR *dir = path != NULL ? opendir(path) : NULL;
    bool found = false;
    const struct dirent *entry;
    while (dir != NULL && !found && (entry = readdir(dir)) != NULL) {
        struct stat open;
        found = fstatat(dirfd(dir), entry->d_name, &open, 0) == 0 &&
                open.st_dev == wanted->st_dev && open.st_ino == wanted->st_ino;
    }
    if (dir != NULL) {
        (void)closedir(dir);
    }
    return found;
}

/* As the process sees it, which may have another root. */
static bool stat_there(uint64_t pid, const char *filename, struct stat *ret)
{
    const char *from = *filename == '/' ? "root" : "cwd/";
    _cleanup_free_ char *path =
        str_printf("/proc/%" PRIu64 "/%s%s", pid, from, filename);
    return pid != 0 && *filename != '\0' && path != NULL &&
           stat(path, ret) == 0 && has_open(pid, ret);
}

static enum migrate_same same_file(struct op *op, const char *src,
                                   const char *dst)
{
    struct stat a, b;
    if (!stat_there(vm_process(op_vm(op)).pid, src, &a) ||
        !stat_there(vm_process(op_dst_vm(op)).pid, dst, &b)) {
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
    if (is_local(driver) && is_local(there->driver)) {
        return same_file(op, filename, there->filename);
    }
    if (are_apart(driver, there->driver) || are_apart(there->driver, driver)) {
        return MIGRATE_DIFFERENT;
    }
    struct volume *a = NULL, *b = NULL;
    enum migrate_same same = MIGRATE_UNPROVED;
    (void)volume_from_node(driver, filename, &a);
    (void)volume_from_node(there->driver, there->filename, &b);
    if (a != NULL && b != NULL && str_eq(driver, there->driver)) {
        /* A server has many names; an image of another name is another one. */
        same = str_eq(a->uri, b->uri) ? MIGRATE_SAME
               : str_eq(driver, "rbd") && !str_eq(a->name, b->name)
                   ? MIGRATE_DIFFERENT
                   : MIGRATE_UNPROVED;
    }
    volume_free(a);
    volume_free(b);
    return same;
}
