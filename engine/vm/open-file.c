/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "vm/open-file.h"

#include <dirent.h>
#include <inttypes.h>

#include "base/cleanup.h"
#include "base/str.h"

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

bool process_has_our_file(uint64_t pid, const char *filename)
{
    struct stat mine, its;
    return *filename == '/' && process_has_file(pid, filename, &its) &&
           stat(filename, &mine) == 0 && mine.st_dev == its.st_dev &&
           mine.st_ino == its.st_ino;
}

bool process_has_file(uint64_t pid, const char *filename, struct stat *ret)
{
    const char *from = *filename == '/' ? "root" : "cwd/";
    _cleanup_free_ char *path =
        str_printf("/proc/%" PRIu64 "/%s%s", pid, from, filename);
    return pid != 0 && *filename != '\0' && path != NULL &&
           stat(path, ret) == 0 && has_open(pid, ret);
}
