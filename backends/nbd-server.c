/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The server gets a listening socket, as systemd gives it to services. Its
 * name is an abstract one, which is nowhere but in the kernel; anybody on this
 * host could connect to it. So our own connection is there before the server
 * is, in a queue that has no second place, and the server takes one client.
 */
#include "nbd-server.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"

enum {
    FIRST_FD = 3, /* of LISTEN_FDS */
    WORDS_MAX = 16,
    TRIES = 3,
    NAP_MS = 10,
    END_MS = 10000,
    KILLED_MS = 2000,
};

static int listen_nameless(int *ret_listening, int *ret_connected);
static int spawn_with(int listening, char *const argv[], pid_t *ret);
static int wait_for_end(pid_t pid, unsigned limit_ms, int *ret_status);

int nbd_server_start(char *const argv[], pid_t *ret_pid, int *ret_fd)
{
    _cleanup_close_ int listening = -1;
    _cleanup_close_ int connected = -1;
    int r = -EAGAIN;
    for (unsigned i = 0; r == -EAGAIN && i < TRIES; i++) {
        r = listen_nameless(&listening, &connected);
    }
    if (r == 0) {
        r = spawn_with(listening, argv, ret_pid);
    }
    if (r == 0) {
        *ret_fd = TAKE_FD(connected);
    }
    return r;
}

int nbd_server_end(pid_t pid)
{
    int status = 0;
    if (wait_for_end(pid, END_MS, &status) < 0) {
        (void)kill(pid, SIGKILL);
        /* One that hangs in the kernel is left to whoever inherits it. */
        if (wait_for_end(pid, KILLED_MS, &status) < 0) {
            return -1;
        }
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* -EAGAIN: somebody else was there first; all of it is thrown away. */
static int listen_nameless(int *ret_listening, int *ret_connected)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    uint64_t random[2];
    if (getrandom(random, sizeof(random), 0) != sizeof(random)) {
        return -errno;
    }
    int n = snprintf(name.sun_path + 1, sizeof(name.sun_path) - 1,
                     "qpivot-%016llx%016llx", (unsigned long long)random[0],
                     (unsigned long long)random[1]);
    socklen_t length =
        (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)n);
    const struct sockaddr *address = (const struct sockaddr *)&name;
    _cleanup_close_ int listening =
        socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    _cleanup_close_ int connected =
        socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (listening < 0 || connected < 0 ||
        bind(listening, address, length) < 0 || listen(listening, 0) < 0 ||
        connect(connected, address, length) < 0) {
        return -errno;
    }
    *ret_listening = TAKE_FD(listening);
    *ret_connected = TAKE_FD(connected);
    return 0;
}

/*
 * A shell: LISTEN_PID is the server's own, and that is known only there. It is
 * told when the thread dies that has started it: one whose client goes before
 * they have greeted each other would wait for another, for ever.
 */
static int spawn_with(int listening, char *const argv[], pid_t *ret)
{
    static char script[] = "unset LISTEN_FDNAMES; "
                           "LISTEN_PID=$$ LISTEN_FDS=1 exec setpriv "
                           "--pdeathsig TERM -- \"$0\" \"$@\"";
    static char shell[] = "sh", option[] = "-c";
    char *words[WORDS_MAX + 4] = {shell, option, script};
    for (unsigned i = 0; argv[i] != NULL; i++) {
        if (i == WORDS_MAX) {
            return -E2BIG;
        }
        words[3 + i] = argv[i];
    }
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t none, all;
    (void)sigemptyset(&none);
    (void)sigfillset(&all);
    (void)posix_spawn_file_actions_init(&actions);
    (void)posix_spawnattr_init(&attributes);
    int r = posix_spawn_file_actions_addopen(&actions, STDIN_FILENO,
                                             "/dev/null", O_RDONLY, 0);
    r = r == 0 ? posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO,
                                                  "/dev/null", O_WRONLY, 0)
               : r;
    r = r == 0 ? posix_spawn_file_actions_adddup2(&actions, listening, FIRST_FD)
               : r;
    /* A group of its own: a terminal's interrupt is for us, not for it. */
    (void)posix_spawnattr_setpgroup(&attributes, 0);
    (void)posix_spawnattr_setsigmask(&attributes, &none);
    (void)posix_spawnattr_setsigdefault(&attributes, &all);
    (void)posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP |
                                                    POSIX_SPAWN_SETSIGMASK |
                                                    POSIX_SPAWN_SETSIGDEF);
    if (r == 0) {
        r = posix_spawn(ret, "/bin/sh", &actions, &attributes, words, environ);
    }
    (void)posix_spawnattr_destroy(&attributes);
    (void)posix_spawn_file_actions_destroy(&actions);
    return -r;
}

static int wait_for_end(pid_t pid, unsigned limit_ms, int *ret_status)
{
    for (unsigned ms = 0; ms <= limit_ms; ms += NAP_MS) {
        pid_t r = waitpid(pid, ret_status, WNOHANG);
        if (r == pid || (r < 0 && errno != EINTR)) {
            return 0;
        }
        (void)poll(NULL, 0, NAP_MS);
    }
    return -ETIMEDOUT;
}
