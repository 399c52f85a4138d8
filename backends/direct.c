/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "direct.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"

enum { TRIAL_MAX = 4096 };

static void guess(int fd, struct volume_info *info);

void direct_look(const char *path, struct volume_info *info)
{
    _cleanup_close_ int fd =
        open(path, O_RDONLY | O_DIRECT | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (fd >= 0) {
        guess(fd, info);
    } else if (errno == EINVAL) {
        info->direct = DIRECT_REFUSED;
    }
}

void direct_look_absent(const char *directory, struct volume_info *info)
{
    enum { HOW = O_TMPFILE | O_RDWR | O_CLOEXEC };

    _cleanup_close_ int plain = open(directory, HOW, 0600);
    if (plain < 0) {
        return; /* no files without a name here: nothing is known */
    }
    _cleanup_close_ int fd = open(directory, HOW | O_DIRECT, 0600);
    if (fd >= 0 && ftruncate(fd, TRIAL_MAX) == 0) {
        direct_look_size(fd, info);
        guess(fd, info);
    } else if (fd < 0 && errno == EINVAL) {
        info->direct = DIRECT_REFUSED;
    }
}

void direct_look_size(int fd, struct volume_info *info)
{
#ifdef STATX_DIOALIGN
    struct statx stx;
    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx) == 0 &&
        (stx.stx_mask & STATX_DIOALIGN) != 0) {
        info->block_size = stx.stx_dio_offset_align;
    }
#else
    (void)fd;
    (void)info;
#endif
}

/*
 * QEMU up to 10.0 takes the smallest read that works; a read of one byte works
 * in a hole and tells nothing, so it takes the largest then (block/file-posix.c,
 * raw_probe_alignment).
 */
static void guess(int fd, struct volume_info *info)
{
    static const unsigned sizes[] = {1, 512, 1024, 2048, TRIAL_MAX};
    void *buffer = NULL;
    if (posix_memalign(&buffer, TRIAL_MAX, TRIAL_MAX) != 0) {
        return;
    }
    info->direct = DIRECT_REFUSED;
    for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        if (pread(fd, buffer, sizes[i], 0) >= 0) {
            info->direct = DIRECT_WORKS;
            info->direct_size = sizes[i] == 1 ? TRIAL_MAX : sizes[i];
            break;
        }
        if (errno != EINVAL) {
            info->direct = DIRECT_UNKNOWN;
            break;
        }
    }
    free(buffer);
}
