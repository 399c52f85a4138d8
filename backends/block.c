/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Existing block devices: loop, LVM, iSCSI, StorPool and the like. Knows the
 * kernel's block layer and QEMU's 'host_device' driver. It never creates nor
 * removes: whose device it is, made it.
 *
 * Identity: "block:<major>:<minor>", whatever name led there.
 *
 * QEMU 7.2 reports the file name that it was given, symbolic links as they
 * are; -drive file=/dev/x without a driver becomes host_device too.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "base/err.h"
#include "base/str.h"
#include "bulk.h"
#include "device.h"
#include "direct.h"
#include "lock.h"
#include "registry.h"
#include "uri.h"
#include "volume.h"

struct block_volume {
    struct volume volume;
    char *path;
};

static int look_device(const struct volume *volume, int fd, dev_t device,
                       struct volume_info *ret, struct err **errp);

static const struct block_volume *block_of(const struct volume *volume)
{
    return (const struct block_volume *)volume; /* its first member */
}

static void block_free(struct volume *volume)
{
    struct block_volume *block =
        container_of(volume, struct block_volume, volume);
    volume_done(volume);
    free(block->path);
    free(block);
}

static int block_parse(const char *text, struct volume **ret, struct err **errp)
{
    _cleanup_uri_ struct uri uri = {0};
    int r = uri_split(text, &uri, errp);
    if (r < 0) {
        return r;
    }
    struct block_volume *block = calloc(1, sizeof(*block));
    if (block == NULL) {
        return -ENOMEM;
    }
    r = uri_decode(&uri, uri.rest, strlen(uri.rest), &block->path, errp);
    if (r == 0 && block->path[0] != '/') {
        r = err_set(errp, -EINVAL, uri.object,
                    "this is written block:/dev/NAME");
    }
    if (r == 0) {
        r = volume_init(&block->volume, &backend_block, &uri, errp);
    }
    if (r < 0) {
        block_free(&block->volume);
        return r;
    }
    *ret = &block->volume;
    return 0;
}

static int block_from_node(const char *driver, const char *filename,
                           struct volume **ret)
{
    if (!str_eq(driver, "host_device")) {
        return -ENOENT;
    }
    json_auto_t *node = node_json(driver, filename);
    const char *path =
        node != NULL ? node_text(node, NULL, "filename") : filename;
    if (path == NULL || path[0] != '/' || str_starts(path, "/dev/fdset/")) {
        return -ENOENT;
    }
    _cleanup_free_ char *encoded = uri_encode(path);
    _cleanup_free_ char *uri =
        encoded != NULL ? str_printf("block:%s", encoded) : NULL;
    return uri != NULL ? block_parse(uri, ret, NULL) : -ENOMEM;
}

static json_t *block_node_options(const struct volume *volume,
                                  _unused_ const char *secret_id)
{
    json_auto_t *node = volume_node(volume, "host_device");
    if (node == NULL ||
        json_object_set_new(node, "filename",
                            json_string(block_of(volume)->path)) < 0) {
        return NULL;
    }
    return TAKE_PTR(node);
}

static char *block_legacy_name(const struct volume *volume)
{
    return strdup(block_of(volume)->path);
}

static int block_probe(struct volume *volume, struct volume_info *ret,
                       struct err **errp)
{
    const char *path = block_of(volume)->path;
    volume_info_init(ret);
    struct stat st;
    if (stat(path, &st) < 0) {
        return errno == ENOENT
                   ? 0
                   : volume_fail(errp, volume, -errno, "cannot look at it");
    }
    if (!S_ISBLK(st.st_mode)) {
        (void)err_set(errp, -ENOTBLK, volume->name, "is no block device");
        if (S_ISREG(st.st_mode)) {
            err_hint(errp, "it is a file: name it %s", path);
        }
        return -ENOTBLK;
    }
    _cleanup_close_ int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) {
        int r = volume_fail(errp, volume, -errno, "cannot open it");
        if (r == -EMEDIUMTYPE) {
            err_hint(errp, "a DRBD device that is Secondary here: name it"
                           " drbd:RESOURCE");
        }
        return r;
    }
    return look_device(volume, fd, st.st_rdev, ret, errp);
}

/* Of the last block, as a device that has lost its end still has a begin. */
static int block_answer(struct volume *volume, struct volume_info *ret,
                        struct err **errp)
{
    const char *path = block_of(volume)->path;
    volume_info_init(ret);
    _cleanup_close_ int fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) < 0 ||
        ioctl(fd, BLKGETSIZE64, &ret->size) < 0) {
        return volume_fail(errp, volume, -errno, "cannot open it");
    }
    int torn = device_is_torn(fd, ret->size);
    if (torn < 0) {
        return torn;
    }
    ret->torn = torn != 0;
    ret->exists = true;
    (void)snprintf(ret->identity, sizeof(ret->identity), "block:%u:%u",
                   major(st.st_rdev), minor(st.st_rdev));
    return 0;
}

const struct backend_ops backend_block = {
    .scheme = "block",
    .title = "block device",
    .flags = BACKEND_LEGACY_NAME,
    .parse = block_parse,
    .from_node = block_from_node,
    .free = block_free,
    .node_options = block_node_options,
    .legacy_name = block_legacy_name,
    .probe = block_probe,
    .answer = block_answer,
    .bulk = &bulk_file,
};

static int look_device(const struct volume *volume, int fd, dev_t device,
                       struct volume_info *ret, struct err **errp)
{
    int block_size = 0;
    int read_only = 0;
    if (ioctl(fd, BLKGETSIZE64, &ret->size) < 0 ||
        ioctl(fd, BLKSSZGET, &block_size) < 0 ||
        ioctl(fd, BLKROGET, &read_only) < 0) {
        return volume_fail(errp, volume, -errno, "cannot ask for its size");
    }
    ret->exists = true;
    ret->block_size = (uint32_t)block_size;
    ret->data = ret->size; /* QEMU knows no holes of a device */
    const char *path = block_of(volume)->path;
    direct_look(path, ret);
    ret->direct_size = ret->block_size; /* QEMU asks the device, too */
    ret->read_only =
        read_only != 0 || faccessat(AT_FDCWD, path, W_OK, AT_EACCESS) < 0;
    (void)snprintf(ret->identity, sizeof(ret->identity), "block:%u:%u",
                   major(device), minor(device));
    char head[FORMAT_HEAD];
    ssize_t n = pread(fd, head, sizeof(head), 0);
    if (n < 0) {
        return volume_fail(errp, volume, -errno, "cannot read it");
    }
    volume_info_format(ret, head, (size_t)n);
    lock_look(fd, ret);
    device_look_users(path, device, ret);
    return 0;
}
