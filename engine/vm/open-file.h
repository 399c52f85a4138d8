/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Which files a process of this host has open, as /proc tells. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

/*
 * Whether the process has it open by this name, as the process sees it: it may
 * have another root, or other mounts. 'ret' is what it then is. False for a
 * process that is not seen from here, pid 0.
 */
bool process_has_file(uint64_t pid, const char *filename, struct stat *ret);
/* And whether this process finds the same file by that absolute name. */
bool process_has_our_file(uint64_t pid, const char *filename);
