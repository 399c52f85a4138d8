/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A trial of O_DIRECT, which is how QEMU opens what has cache=none. It changes
 * nothing: what is there is read, what is not there is tried on a file without
 * a name.
 */
#pragma once

#include "backend.h"

/* Sets direct and direct_size. */
void direct_look(const char *path, struct volume_info *info);
/* Sets block_size where the kernel tells it (6.1). */
void direct_look_size(int fd, struct volume_info *info);
/* Both, for a new file in 'directory'. */
void direct_look_absent(const char *directory, struct volume_info *info);
