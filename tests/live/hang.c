/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Preloaded into the program: to make a volume never returns, as on a folder
 * whose server is dead, as long as the file HANG is there.
 */
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* In place of libc's, whose own declaration it must not meet. */
int open_or_hang(const char *path, int flags, ...) __asm__("open64");

int open_or_hang(const char *path, int flags, ...)
{
    const char *while_there = getenv("HANG");
    va_list ap;
    va_start(ap, flags);
    mode_t mode = (flags & O_CREAT) != 0 ? va_arg(ap, mode_t) : 0;
    va_end(ap);
    while (while_there != NULL && (flags & O_EXCL) != 0 &&
           strstr(path, "-new") != NULL && access(while_there, F_OK) == 0) {
        (void)pause();
    }
    return (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}
