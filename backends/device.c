/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "device.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "backend.h"
#include "base/cleanup.h"
#include "base/str.h"

enum { LAST_BLOCK = 4096 }; /* a multiple of every device's own */

static bool look_holders(dev_t device, struct volume_info *info);
static bool look_mounts(dev_t device, struct volume_info *info);

/* The kernel's own users hold it exclusively; QEMU never does. */
void device_look_users(const char *path, dev_t device, struct volume_info *info)
{
    if (look_holders(device, info) || look_mounts(device, info)) {
        return;
    }
    _cleanup_close_ int fd =
        open(path, O_RDONLY | O_EXCL | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0 && errno == EBUSY && !info->in_use) {
        info->in_use = true;
        (void)snprintf(info->in_use_by, sizeof(info->in_use_by),
                       "a mounted partition, swap or another exclusive user");
    }
}

int device_is_torn(int fd, uint64_t size)
{
    _cleanup_free_ void *block = NULL;
    if (posix_memalign(&block, LAST_BLOCK, LAST_BLOCK) != 0) {
        return -ENOMEM;
    }
    uint64_t last = size > 0 ? (size - 1) / LAST_BLOCK : 0;
    return pread(fd, block, LAST_BLOCK, (off_t)(last * LAST_BLOCK)) < 0;
}

/* Device mapper, MD and bcache on top of it. */
static bool look_holders(dev_t device, struct volume_info *info)
{
    char path[64];
    (void)snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/holders",
                   major(device), minor(device));
    DIR *directory = opendir(path);
    if (directory == NULL) {
        return false;
    }
    const struct dirent *entry = NULL;
    do {
        entry = readdir(directory);
    } while (entry != NULL && entry->d_name[0] == '.');
    if (entry != NULL) {
        info->in_use = true;
        (void)snprintf(info->in_use_by, sizeof(info->in_use_by),
                       "device '%.64s'", entry->d_name);
    }
    (void)closedir(directory);
    return entry != NULL;
}

/* proc(5): "36 35 98:0 /root /mount/point ..." */
static bool look_mounts(dev_t device, struct volume_info *info)
{
    FILE *mounts = fopen("/proc/self/mountinfo", "re");
    if (mounts == NULL) {
        return false;
    }
    bool found = false;
    _cleanup_free_ char *line = NULL;
    size_t size = 0;
    while (!found && getline(&line, &size, mounts) > 0) {
        unsigned major_number = 0;
        unsigned minor_number = 0;
        char where[72] = "";
        if (sscanf(line, "%*u %*u %u:%u %*s %71s", &major_number, &minor_number,
                   where) == 3 &&
            makedev(major_number, minor_number) == device) {
            info->in_use = true;
            (void)snprintf(info->in_use_by, sizeof(info->in_use_by),
                           "the mount at '%s'", where);
            found = true;
        }
    }
    (void)fclose(mounts);
    return found;
}

uint64_t device_number_in(const char *path)
{
    uint64_t number = 0;
    char text[32] = "";
    _cleanup_close_ int fd =
        path != NULL ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    ssize_t n = fd >= 0 ? read(fd, text, sizeof(text) - 1) : -1;
    if (n <= 0) {
        return 0;
    }
    text[strcspn(text, "\n")] = '\0';
    return str_to_u64(text, INT64_MAX / 512, &number) == 0 ? number : 0;
}
