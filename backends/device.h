/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the kernel tells of a block device. */
#pragma once

#include <stdint.h>
#include <sys/types.h>

struct volume_info;

/*
 * in_use, in_use_by by who holds it in the kernel: mounts, device mapper, swap.
 * Opens it; programs that have it open take no such hold, QEMU neither.
 */
void device_look_users(const char *path, dev_t device,
                       struct volume_info *info);

/*
 * Whether its last block cannot be read: a device that has lost its end still
 * has a begin. 'fd' is open with O_DIRECT; 0, 1 or -ENOMEM.
 */
int device_is_torn(int fd, uint64_t size);

/* What a file of sysfs tells; 0 where it is not told, or 'path' is NULL. */
uint64_t device_number_in(const char *path);
