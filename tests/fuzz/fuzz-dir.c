/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "fuzz-dir.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "fake/scratch.h"

static char dir[SCRATCH_PATH];
static char path[128];

void fuzz_empty(void)
{
    DIR *open = opendir(dir);
    for (struct dirent *it; open != NULL && (it = readdir(open)) != NULL;) {
        (void)unlinkat(dirfd(open), it->d_name, 0); /* "." stays */
    }
    if (open != NULL) {
        (void)closedir(open);
    }
}

const char *fuzz_dir(void)
{
    if (dir[0] == '\0') {
        scratch_root(access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
        scratch_make("fuzz", dir);
    }
    return dir;
}

const char *fuzz_file(const char *name, const void *data, size_t size)
{
    (void)snprintf(path, sizeof(path), "%s/%s", fuzz_dir(), name);
    FILE *file = fopen(path, "we");
    if (file == NULL || fwrite(data, 1, size, file) != size) {
        abort();
    }
    (void)fclose(file);
    return path;
}
