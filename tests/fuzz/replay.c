/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Runs a fuzz target over the files of the folders given: so every build, and
 * not only one with libFuzzer, runs what was found once.
 */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int replay_file(const char *dir, const char *name)
{
    char path[4096];
    (void)snprintf(path, sizeof(path), "%s/%s", dir, name);
    FILE *file = fopen(path, "re");
    if (file == NULL) {
        perror(path);
        return -1;
    }
    /* its own size, so that a sanitizer sees what reads beyond */
    uint8_t *data = malloc(1 << 20);
    size_t size = data != NULL ? fread(data, 1, 1 << 20, file) : 0;
    (void)fclose(file);
    uint8_t *exact = size > 0 ? realloc(data, size) : data;
    (void)LLVMFuzzerTestOneInput(exact, size);
    free(exact);
    return 0;
}

int main(int argc, char **argv)
{
    unsigned n = 0;
    for (int i = 1; i < argc; i++) {
        DIR *dir = opendir(argv[i]);
        if (dir == NULL) {
            perror(argv[i]);
            return 1;
        }
        for (struct dirent *d = readdir(dir); d != NULL; d = readdir(dir)) {
            if (d->d_name[0] == '.') {
                continue;
            }
            if (replay_file(argv[i], d->d_name) < 0) {
                return 1;
            }
            n++;
        }
        (void)closedir(dir);
    }
    (void)printf("%u files\n", n);
    return n > 0 ? 0 : 1;
}
