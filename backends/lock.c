/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "lock.h"

#include <fcntl.h>
#include <stdio.h>

#include "volume.h"

void lock_look(int fd, struct volume_info *info)
{
    /* Asked for writing, any lock is in the way; asking takes none itself. */
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    if (fcntl(fd, F_OFD_GETLK, &lock) < 0 || lock.l_type == F_UNLCK) {
        return;
    }
    info->in_use = true;
    bool qemu = lock.l_start >= 100 && lock.l_start < 300;
    if (lock.l_pid > 0) {
        (void)snprintf(info->in_use_by, sizeof(info->in_use_by), "process %d",
                       (int)lock.l_pid);
    } else {
        (void)snprintf(info->in_use_by, sizeof(info->in_use_by), "%s",
                       qemu ? "a QEMU (by its image lock)"
                            : "another process (by its lock)");
    }
}
