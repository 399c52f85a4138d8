/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Preloaded into the program: it dies by SIGKILL the moment that it has said
 * what the file DOOM holds.  A test that reads this and kills it then comes
 * too late on a busy machine.
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool says_it(FILE *f)
{
    const char *path = f == stdout ? getenv("DOOM") : NULL;
    int fd = path != NULL ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) {
        return false;
    }
    char words[256];
    ssize_t n = read(fd, words, sizeof(words));
    (void)close(fd);
    size_t said = (size_t)(f->_IO_write_ptr - f->_IO_write_base);
    return n > 0 && memmem(f->_IO_write_base, said, words, (size_t)n) != NULL;
}

int fflush(FILE *f)
{
    /* POSIX has it that a function fits into such a pointer. */
    int (*flush)(FILE *) = (int (*)(FILE *))dlsym(RTLD_NEXT, "fflush");
    bool dies = f != NULL && says_it(f);
    int r = flush != NULL ? flush(f) : EOF;
    if (dies) {
        (void)kill(getpid(), SIGKILL);
    }
    return r;
}
