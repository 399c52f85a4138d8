/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/proc.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { STAT_MAX = 1024, FIELD_NAME = 2, FIELD_START = 22 };

/* Behind the name, which may hold anything: " S 1 ..", or NULL. */
static const char *read_stat(uint64_t pid, char stat[STAT_MAX])
{
    char path[64];
    (void)snprintf(path, sizeof(path), "/proc/%" PRIu64 "/stat", pid);
    int fd = pid != 0 ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) {
        return NULL;
    }
    ssize_t n = read(fd, stat, STAT_MAX - 1);
    (void)close(fd);
    stat[n > 0 ? n : 0] = '\0';
    const char *end = strrchr(stat, ')');
    return end != NULL && end[1] != '\0' ? end + 1 : NULL;
}

uint64_t proc_start(uint64_t pid)
{
    char stat[STAT_MAX];
    const char *p = read_stat(pid, stat);
    if (p == NULL || p[1] == 'Z' || p[1] == 'X') {
        return 0;
    }
    for (unsigned field = FIELD_NAME + 1; p != NULL && field < FIELD_START;
         field++) {
        p = strchr(p + 1, ' ');
    }
    return p != NULL ? strtoull(p + 1, NULL, 10) : 0;
}

bool proc_is_stopped(uint64_t pid)
{
    char stat[STAT_MAX];
    const char *p = read_stat(pid, stat);
    return p != NULL && (p[1] == 'T' || p[1] == 't');
}
