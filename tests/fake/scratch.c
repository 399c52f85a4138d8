/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "fake/scratch.h"

#include <ftw.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { ROOT_SIZE = 32, DEPTH = 16, TRIES = 50, AGAIN_MS = 100 };

static char root[ROOT_SIZE];
static pid_t owner; /* a forked process has a root of its own */

static void check(bool ok, const char *what)
{
    if (!ok) {
        perror(what);
        abort();
    }
}

static int remove_one(const char *path, const struct stat *st, int type,
                      struct FTW *at)
{
    (void)st;
    (void)type;
    (void)at;
    (void)remove(path);
    return 0;
}

/* Waits for the end of the process behind the pidfd, and sweeps. */
static void sweep_after(int pidfd)
{
    enum { KEPT = 3 };

    (void)setsid(); /* who kills a group of processes does not mean us */
    (void)prctl(PR_SET_NAME, "scratch");
    (void)dup2(pidfd, KEPT);
    for (int fd = 0; fd < KEPT; fd++) {
        (void)close(fd);
    }
    (void)syscall(SYS_close_range, (unsigned)KEPT + 1, ~0U, 0U);
    (void)signal(SIGINT, SIG_IGN);
    (void)signal(SIGTERM, SIG_IGN);
    struct pollfd ended = {.fd = KEPT, .events = POLLIN};
    while (poll(&ended, 1, -1) < 0) {
    }
    /* What the process had started may write for a moment still. */
    for (int i = 0; i < TRIES && access(root, F_OK) == 0; i++) {
        (void)poll(NULL, 0, i > 0 ? AGAIN_MS : 0);
        (void)nftw(root, remove_one, DEPTH, FTW_DEPTH | FTW_PHYS);
    }
}

/* No child of the test's, which may count its children. */
static void start_broom(void)
{
    int pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);
    check(pidfd >= 0, "pidfd_open");
    pid_t pid = fork();
    check(pid >= 0, "fork");
    if (pid == 0) {
        if (fork() == 0) {
            sweep_after(pidfd);
        }
        _exit(0);
    }
    (void)close(pidfd);
    (void)waitpid(pid, NULL, 0);
}

void scratch_root(const char *parent)
{
    owner = getpid();
    (void)snprintf(root, sizeof(root), "%s/qpivot-test-XXXXXX", parent);
    check(mkdtemp(root) != NULL, root);
    start_broom();
}

void scratch_make(const char *name, char out[SCRATCH_PATH])
{
    if (owner != getpid()) {
        scratch_root("/tmp");
    }
    (void)snprintf(out, SCRATCH_PATH, "%s/%.20s-XXXXXX", root, name);
    check(mkdtemp(out) != NULL, out);
}
