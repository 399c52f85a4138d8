/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/command.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/err.h"
#include "base/str.h"

enum {
    OUTPUT_MAX = 256 * 1024,
    TAKE_MAX = 1024 * 1024, /* at once: no pipe of a user's holds more */
    KILLED_MS = 2000,
    STEP_MS = 20,
    STUCK_MAX = 64,
};

struct stream {
    int fd; /* -1: at its end */
    char *text;
    size_t len;
};

struct command {
    pid_t pid;
    struct stream out, err;
    int pidfd; /* -1: this kernel has none */
};

static int start(struct command *command, const char *const *argv);
static int spawn_into(struct command *command, const char *const *argv, int out,
                      int err);
static bool follow(struct command *command, uint64_t until_ms, int *ret_status);
static void take(struct stream *stream);
static void leave(struct command *command);
static void reap_stuck(void);

/* Killed ones that hang in the kernel: each is reaped by a later call. */
static pthread_mutex_t stuck_lock = PTHREAD_MUTEX_INITIALIZER;

static struct stuck {
    pid_t pid; /* 0: free */
    int pidfd; /* its number may be another child's, should who embeds us
                  have waited for any */
} stuck[STUCK_MAX];

static uint64_t now_ms(void)
{
    struct timespec now = {0};
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

int command_run(const char *const *argv, unsigned timeout_ms,
                struct command_result *ret, struct err **errp)
{
    struct command command = {
        .pid = 0, .out.fd = -1, .err.fd = -1, .pidfd = -1};
    int status = 0;
    reap_stuck();
    int r = start(&command, argv);
    if (r < 0) {
        return err_set(errp, r, argv[0], "cannot be started: %s", strerror(-r));
    }
    bool ended = follow(&command, now_ms() + timeout_ms, &status);
    if (!ended) {
        (void)kill(-command.pid, SIGKILL);
        /* What hangs in the kernel is not waited for. */
        if (!follow(&command, now_ms() + KILLED_MS, &status)) {
            leave(&command);
        }
        r = err_set(errp, -ETIMEDOUT, argv[0],
                    "did not end in %u s and was killed", timeout_ms / 1000);
    }
    closep(&command.out.fd);
    closep(&command.err.fd);
    closep(&command.pidfd);
    ret->status =
        WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
    ret->output = command.out.text != NULL ? command.out.text : strdup("");
    ret->errors = command.err.text != NULL ? command.err.text : strdup("");
    if (r == 0 && (ret->output == NULL || ret->errors == NULL)) {
        r = -ENOMEM;
    }
    if (r < 0) {
        command_result_done(ret);
    }
    return r;
}

void command_result_done(struct command_result *result)
{
    free(result->output);
    free(result->errors);
    result->output = result->errors = NULL;
}

static int start(struct command *command, const char *const *argv)
{
    int out[2], err[2];
    if (pipe2(out, O_CLOEXEC) < 0) {
        return -errno;
    }
    _cleanup_close_ int out_end = out[1];
    command->out.fd = out[0];
    if (pipe2(err, O_CLOEXEC) < 0) {
        int r = -errno;
        closep(&command->out.fd);
        return r;
    }
    _cleanup_close_ int err_end = err[1];
    command->err.fd = err[0];
    int r = spawn_into(command, argv, out_end, err_end);
    if (r < 0) {
        closep(&command->out.fd);
        closep(&command->err.fd);
        return r;
    }
    (void)fcntl(command->out.fd, F_SETFL, O_NONBLOCK);
    (void)fcntl(command->err.fd, F_SETFL, O_NONBLOCK);
    command->pidfd = (int)syscall(SYS_pidfd_open, command->pid, 0);
    return 0;
}

/* LC_ALL instead of any that is there: messages are read by their words. */
static char **environment(void)
{
    static char english[] = "LC_ALL=C";
    size_t n = 0;
    while (environ != NULL && environ[n] != NULL) {
        n++;
    }
    char **block = calloc(n + 2, sizeof(*block));
    if (block != NULL) {
        size_t to = 0;
        block[to++] = english;
        for (size_t i = 0; i < n; i++) {
            if (!str_starts(environ[i], "LC_ALL=")) {
                block[to++] = environ[i];
            }
        }
    }
    return block;
}

static int spawn_into(struct command *command, const char *const *argv, int out,
                      int err)
{
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attributes;
    sigset_t none, standard;
    _cleanup_free_ char **block = environment();
    if (block == NULL) {
        return -ENOMEM;
    }
    (void)sigemptyset(&none);
    (void)sigemptyset(&standard);
    (void)sigaddset(&standard, SIGPIPE);
    (void)posix_spawn_file_actions_init(&files);
    (void)posix_spawnattr_init(&attributes);
    (void)posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
    (void)posix_spawn_file_actions_adddup2(&files, out, 1);
    (void)posix_spawn_file_actions_adddup2(&files, err, 2);
    (void)posix_spawn_file_actions_addclosefrom_np(&files, 3);
    (void)posix_spawnattr_setpgroup(&attributes, 0);
    (void)posix_spawnattr_setsigmask(&attributes, &none);
    (void)posix_spawnattr_setsigdefault(&attributes, &standard);
    (void)posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP |
                                                    POSIX_SPAWN_SETSIGMASK |
                                                    POSIX_SPAWN_SETSIGDEF);
    int r = posix_spawnp(&command->pid, argv[0], &files, &attributes,
                         (char *const *)(uintptr_t)argv, block);
    (void)posix_spawn_file_actions_destroy(&files);
    (void)posix_spawnattr_destroy(&attributes);
    return -r;
}

/* Until it has ended, not until a grandchild lets go of the pipes. */
static bool follow(struct command *command, uint64_t until_ms, int *ret_status)
{
    for (;;) {
        struct pollfd ready[] = {
            {.fd = command->out.fd, .events = POLLIN},
            {.fd = command->err.fd, .events = POLLIN},
            {.fd = command->pidfd,  .events = POLLIN},
        };
        pid_t ended = waitpid(command->pid, ret_status, WNOHANG);
        take(&command->out);
        take(&command->err);
        if (ended != 0) {
            /* An embedder that waits for any child takes the status away. */
            *ret_status = ended < 0 ? W_EXITCODE(255, 0) : *ret_status;
            return true;
        }
        uint64_t now = now_ms();
        if (now >= until_ms) {
            return false;
        }
        uint64_t left = until_ms - now;
        bool blind = command->pidfd < 0 && left > STEP_MS;
        (void)poll(ready, ARRAY_SIZE(ready),
                   blind              ? STEP_MS
                   : left > INT32_MAX ? INT32_MAX
                                      : (int)left);
    }
}

/* All that is there now, but not what is written as fast as it is read. */
static void take(struct stream *stream)
{
    char bytes[4096];
    for (size_t taken = 0; stream->fd >= 0 && taken < TAKE_MAX;) {
        ssize_t n = read(stream->fd, bytes, sizeof(bytes));
        if (n < 0) {
            return; /* later */
        }
        if (n == 0) {
            closep(&stream->fd);
            stream->fd = -1;
            return;
        }
        taken += (size_t)n;
        size_t room = OUTPUT_MAX - stream->len;
        size_t more = (size_t)n < room ? (size_t)n : room;
        char *text = realloc(stream->text, stream->len + more + 1);
        if (text != NULL) {
            memcpy(text + stream->len, bytes, more);
            stream->text = text;
            stream->len += more;
            text[stream->len] = '\0';
        }
    }
}

/* --- what does not end --- */

static void leave(struct command *command)
{
    (void)pthread_mutex_lock(&stuck_lock);
    for (unsigned i = 0; i < STUCK_MAX; i++) {
        if (stuck[i].pid == 0) {
            stuck[i] = (struct stuck){command->pid, command->pidfd};
            command->pidfd = -1;
            break;
        }
    }
    (void)pthread_mutex_unlock(&stuck_lock);
}

static bool is_reaped(const struct stuck *it)
{
    siginfo_t info = {0};
    bool by_fd = it->pidfd >= 0;
    int r =
        waitid(by_fd ? P_PIDFD : P_PID, by_fd ? (id_t)it->pidfd : (id_t)it->pid,
               &info, WEXITED | WNOHANG);
    return (r == 0 && info.si_pid != 0) || (r < 0 && errno == ECHILD);
}

static void reap_stuck(void)
{
    (void)pthread_mutex_lock(&stuck_lock);
    for (unsigned i = 0; i < STUCK_MAX; i++) {
        if (stuck[i].pid != 0 && is_reaped(&stuck[i])) {
            closep(&stuck[i].pidfd);
            stuck[i] = (struct stuck){0};
        }
    }
    (void)pthread_mutex_unlock(&stuck_lock);
}
