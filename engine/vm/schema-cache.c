/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "vm/schema-cache.h"

#include <ctype.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "base/str.h"

enum { SCHEMA_MAX = 8 * 1024 * 1024 };

static char *path_of(const char *dir, const char *version);

json_t *schema_cache_load(const char *dir, const char *version)
{
    _cleanup_free_ char *path = path_of(dir, version);
    struct stat status;
    _cleanup_close_ int fd =
        path != NULL ? open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW) : -1;
    if (fd < 0 || fstat(fd, &status) < 0 || status.st_uid != geteuid() ||
        !S_ISREG(status.st_mode) || status.st_size > SCHEMA_MAX) {
        return NULL;
    }
    json_t *schema = json_loadfd(fd, 0, NULL);
    if (!json_is_array(schema) || json_array_size(schema) == 0) {
        json_decref(schema);
        return NULL;
    }
    return schema;
}

void schema_cache_store(const char *dir, const char *version,
                        const json_t *schema)
{
    _cleanup_free_ char *path = path_of(dir, version);
    _cleanup_free_ char *temp =
        path != NULL ? str_printf("%s.%d", path, (int)getpid()) : NULL;
    _cleanup_close_ int fd =
        temp != NULL ? open(temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600)
                     : -1;
    if (fd < 0) {
        return;
    }
    /* Whole or not at all: a reader may come at any time. */
    if (json_dumpfd(schema, fd, JSON_COMPACT) < 0 || rename(temp, path) < 0) {
        (void)unlink(temp);
    }
}

/* "7.2.22 Debian 1:7.2+..." -> DIR/schema-7.2.22-Debian-1-7.2+....json */
static char *path_of(const char *dir, const char *version)
{
    if (dir == NULL || version == NULL || strchr(version, ' ') == NULL) {
        return NULL;
    }
    _cleanup_free_ char *name = strdup(version);
    for (char *c = name; c != NULL && *c != '\0'; c++) {
        if (!isalnum((unsigned char)*c) && *c != '.' && *c != '+') {
            *c = '-';
        }
    }
    return name != NULL && strlen(name) < 128
               ? str_printf("%s/schema-%s.json", dir, name)
               : NULL;
}
