/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Who holds a local file or device: by the locks that QEMU and others take. */
#pragma once

#include <stdbool.h>

struct volume_info;

/*
 * Sets in_use and in_use_by if anybody but us has a POSIX or OFD lock on it.
 * QEMU's file and host_device drivers hold shared locks at the bytes 100 +
 * permission and 200 + permission (docs/system/qemu-block-drivers, "Disk
 * image file locking"); a QEMU that waits for an incoming migration, and one
 * started with locking=off, hold none.
 */
void lock_look(int fd, struct volume_info *info);
