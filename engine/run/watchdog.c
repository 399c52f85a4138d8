/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "run/watchdog.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/err.h"
#include "base/str.h"

enum {
    JOBS_MAX = 64,
    DRAIN_MS = 5000,
    COMMIT_MS = 2000,
    LOOKS = 10,
    LOOK_MS = 100,
    LOOKS_OVER = 30,
    LOOKS_WEDGED = 10,
    LOOKS_SILENT = 24, /* that had no answer for DRAIN_MS each */
    TICKS = 10,
    TICKS_WEDGED = 5,
    TICK_MS = 200,
    LINE_SIZE = 16384,
    MESSAGE_MAX = (JOBS_MAX + 2) * 112,
};

#define WATCHDOG_ID "qpv-watchdog-"

static const char cont_message[] =
    "{\"execute\":\"cont\",\"id\":\"" WATCHDOG_ID "c\"}\r\n";
/*
 * Up to QEMU 7.2 at least a stream that is cancelled just as it stops the guest
 * can wait for this for ever: see steps/stream.c. Refused in any other state.
 */
static const char unwedge_message[] =
    "{\"execute\":\"migrate-continue\",\"arguments\":"
    "{\"state\":\"cancelling\"},\"id\":\"" WATCHDOG_ID "w\"}\r\n";

struct watchdog {
    /*
     * Our end: bytes hold off, 'd' disarms, 'c' commits (answered 'c', or 'a'
     * when it has acted), end of file = we died.
     */
    int fd;
};

/* What the guard's process needs; all of it is there when it is forked. */
struct guarded {
    int monitor;
    int lifeline;
    const char *message;
    size_t len;
    unsigned n_replies;
    unsigned limit_ms;
    bool stream;  /* that is what it cancels */
    bool thaws;   /* a guest that a stream had stopped */
    bool lets_go; /* the guest, by the last command */
};

struct message {
    char text[MESSAGE_MAX];
    size_t len;
    unsigned n_commands;
};

static int start(const struct guarded *guarded, struct watchdog **ret,
                 struct err **errp);
static void guard(const struct guarded *guarded, int engine);
static int add_command(struct message *message, const char *command,
                       const char *job);

int watchdog_arm(int monitor_fd, int lifeline_fd, const char *const *jobs,
                 unsigned n_jobs, enum watchdog_guest guest, unsigned limit_ms,
                 struct watchdog **ret, struct err **errp)
{
    struct message message = {0}; /* no malloc() in the child */
    int r = n_jobs > JOBS_MAX || monitor_fd < 0 ? -EINVAL : 0;
    if (r == 0 && guest == WATCHDOG_STOPS) {
        r = add_command(&message, "stop", NULL);
    }
    for (unsigned i = 0; r == 0 && i < n_jobs; i++) {
        r = add_command(&message, "job-cancel", jobs[i]);
    }
    if (r == 0 && guest != WATCHDOG_LEAVES) {
        r = add_command(&message, "cont", NULL);
    }
    if (r < 0) {
        return err_set(errp, -EINVAL, "freeze guard", "cannot be armed");
    }
    struct guarded guarded = {
        .monitor = monitor_fd,
        .lifeline = lifeline_fd,
        .message = message.text,
        .len = message.len,
        .n_replies = message.n_commands,
        .limit_ms = limit_ms,
        .lets_go = guest != WATCHDOG_LEAVES,
    };
    return start(&guarded, ret, errp);
}

static int arm_stream(int monitor_fd, int lifeline_fd, unsigned limit_ms,
                      bool thaws, struct watchdog **ret, struct err **errp)
{
    static const char message[] =
        "{\"execute\":\"migrate_cancel\",\"id\":\"" WATCHDOG_ID "0\"}\r\n";
    struct guarded guarded = {
        .monitor = monitor_fd,
        .lifeline = lifeline_fd,
        .message = message,
        .len = sizeof(message) - 1,
        .n_replies = 1,
        .limit_ms = limit_ms,
        .stream = true,
        .thaws = thaws,
    };
    if (monitor_fd < 0) {
        return err_set(errp, -EINVAL, "freeze guard", "cannot be armed");
    }
    return start(&guarded, ret, errp);
}

int watchdog_arm_stream(int monitor_fd, int lifeline_fd, unsigned limit_ms,
                        struct watchdog **ret, struct err **errp)
{
    return arm_stream(monitor_fd, lifeline_fd, limit_ms, false, ret, errp);
}

int watchdog_arm_postcopy(int monitor_fd, int lifeline_fd, unsigned limit_ms,
                          struct watchdog **ret, struct err **errp)
{
    return arm_stream(monitor_fd, lifeline_fd, limit_ms, true, ret, errp);
}

static int start(const struct guarded *guarded, struct watchdog **ret,
                 struct err **errp)
{
    int pair[2];
    struct watchdog *watchdog = calloc(1, sizeof(*watchdog));
    if (watchdog == NULL) {
        return err_set(errp, -ENOMEM, "freeze guard", "out of memory");
    }
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0) {
        int code = -errno;
        free(watchdog);
        return err_set(errp, code, "freeze guard", "no socket: %s",
                       strerror(-code));
    }
    /*
     * The middle process ends at once, so that the guard has no parent that
     * would have to reap it. Between fork() and _exit() only calls that are
     * async-signal-safe: other threads may have held any lock.
     */
    pid_t pid = fork();
    if (pid == 0) {
        pid_t inner = fork();
        if (inner == 0) {
            guard(guarded, pair[1]);
        }
        _exit(inner < 0 ? errno : 0);
    }
    (void)close(pair[1]);
    int status = 0;
    while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    if (pid < 0 || status != 0) {
        int code = pid < 0             ? -errno
                   : WIFEXITED(status) ? -WEXITSTATUS(status)
                                       : -ECHILD;
        (void)close(pair[0]);
        free(watchdog);
        return err_set(errp, code, "freeze guard", "no process: %s",
                       strerror(-code));
    }
    watchdog->fd = pair[0];
    *ret = watchdog;
    return 0;
}

void watchdog_hold_off(struct watchdog *watchdog)
{
    (void)send(watchdog->fd, "h", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
}

int watchdog_commit(struct watchdog *watchdog)
{
    char answer = 0;
    struct pollfd data = {.fd = watchdog->fd, .events = POLLIN};
    if (send(watchdog->fd, "c", 1, MSG_NOSIGNAL) != 1 ||
        poll(&data, 1, COMMIT_MS) != 1 || read(watchdog->fd, &answer, 1) != 1) {
        return -ETIMEDOUT;
    }
    return answer == 'c' ? 0 : -ETIMEDOUT;
}

struct watchdog *watchdog_disarm(struct watchdog *watchdog)
{
    if (watchdog != NULL) {
        (void)send(watchdog->fd, "d", 1, MSG_NOSIGNAL);
        return watchdog_abandon(watchdog);
    }
    return NULL;
}

struct watchdog *watchdog_abandon(struct watchdog *watchdog)
{
    if (watchdog != NULL) {
        (void)close(watchdog->fd);
        free(watchdog);
    }
    return NULL;
}

static int add_command(struct message *message, const char *command,
                       const char *job)
{
    size_t room = sizeof(message->text) - message->len;
    int n =
        job != NULL
            ? snprintf(message->text + message->len, room,
                       "{\"execute\":\"%s\",\"arguments\":{\"id\":\"%s\"},"
                       "\"id\":\"" WATCHDOG_ID "%u\"}\r\n",
                       command, job, message->n_commands)
            : snprintf(message->text + message->len, room,
                       "{\"execute\":\"%s\",\"id\":\"" WATCHDOG_ID "%u\"}\r\n",
                       command, message->n_commands);
    if (n < 0 || (size_t)n >= room) {
        return -E2BIG;
    }
    message->len += (size_t)n;
    message->n_commands++;
    return 0;
}

/* --- the guard's process: async-signal-safe calls only --- */

static int64_t now_ms(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* The monitor's fd is non-blocking: wait for room, but not for ever. */
static void write_all(int fd, const char *bytes, size_t len)
{
    int64_t end = now_ms() + DRAIN_MS;
    while (len > 0 && now_ms() < end) {
        ssize_t n = write(fd, bytes, len);
        if (n > 0) {
            bytes += n;
            len -= (size_t)n;
        } else if (n < 0 && errno == EAGAIN) {
            struct pollfd room = {.fd = fd, .events = POLLOUT};
            (void)poll(&room, 1, 100);
        } else if (n < 0 && errno != EINTR) {
            return;
        }
    }
}

/*
 * QEMU drops commands that it has queued when the connection closes before it
 * ran them: stay until each has its reply; for one that lets a guest go on,
 * however long that takes.
 */
static void drain(int fd, unsigned n_replies, bool to_the_end)
{
    static const char id[] = WATCHDOG_ID;
    char bytes[512];
    size_t matched = 0;
    int64_t end = to_the_end ? INT64_MAX : now_ms() + DRAIN_MS;
    while (n_replies > 0 && now_ms() < end) {
        struct pollfd data = {.fd = fd, .events = POLLIN};
        if (poll(&data, 1, 100) <= 0) {
            continue;
        }
        ssize_t n = read(fd, bytes, sizeof(bytes));
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
            return;
        }
        for (ssize_t i = 0; i < n; i++) {
            matched = bytes[i] == id[matched] ? matched + 1
                      : bytes[i] == id[0]     ? 1
                                              : 0;
            if (matched == sizeof(id) - 1) {
                matched = 0;
                n_replies -= n_replies > 0;
            }
        }
    }
}

static bool has(const char *reply, const char *word)
{
    return reply != NULL && strstr(reply, word) != NULL;
}

/* The statuses whose guest may run at the destination already. */
static bool tells_handed_over(const char *line)
{
    static const char *const words[] = {
        "\"postcopy-active\"", "\"postcopy-paused\"", "\"postcopy-recover",
        "\"postcopy-device\"", "\"completed\""};
    bool tells = false;
    for (unsigned i = 0; i < ARRAY_SIZE(words); i++) {
        tells = tells || has(line, words[i]);
    }
    return tells;
}

/* Of this process: a reply or an event has said so, for good. */
static bool handed_over;

/*
 * The reply of this id, a line that lives until the next call; NULL: not in
 * time. It may come yet, and is then taken for that of the next command.
 */
static const char *reply_of(int fd, const char *id)
{
    static char line[LINE_SIZE];
    size_t used = 0;
    int64_t end = now_ms() + DRAIN_MS;
    while (now_ms() < end) {
        struct pollfd data = {.fd = fd, .events = POLLIN};
        if (poll(&data, 1, 100) <= 0) {
            continue;
        }
        ssize_t n = read(fd, line + used, 1);
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
            _exit(0); /* QEMU has gone: nothing is left to guard */
        }
        if (n < 0) {
            continue;
        }
        if (line[used] == '\n') {
            line[used] = '\0';
            bool found = has(line, id);
            if (found || has(line, "\"MIGRATION\"")) {
                handed_over = handed_over || tells_handed_over(line);
            }
            if (found) {
                return line;
            }
            used = 0;
        } else if (used + 2 < LINE_SIZE) {
            used++; /* what is longer is none of ours */
        }
    }
    return NULL;
}

/*
 * A stream was cancelled: is that so, and does its guest go on? One that stands
 * for postcopy goes on here only where the stream is seen to be over, for
 * 'cont' works on a source that has handed it over, too: QEMU 7.2 goes from
 * postcopy-active to failed while the destination may run it. Before a
 * cancelled stream has let go of the guest, 'cont' is refused.
 */
static void see_it_end(const struct guarded *guarded)
{
    static const char ask[] =
        "{\"execute\":\"query-migrate\",\"id\":\"" WATCHDOG_ID "t\"}\r\n";
    unsigned wedged = 0, looks = 0, silent = 0;
    while (looks < LOOKS_OVER && silent < LOOKS_SILENT) {
        if (looks + silent > 0) {
            (void)poll(NULL, 0, LOOK_MS);
        }
        write_all(guarded->monitor, ask, sizeof(ask) - 1);
        const char *reply = reply_of(guarded->monitor, WATCHDOG_ID "t");
        if (reply == NULL) {
            silent++;
            continue;
        }
        looks++;
        bool cancelling = has(reply, "\"cancelling\"");
        bool over = has(reply, "\"cancelled\"") || has(reply, "\"failed\"");
        if (cancelling && ++wedged % LOOKS_WEDGED == 0) {
            write_all(guarded->monitor, unwedge_message,
                      sizeof(unwedge_message) - 1);
            (void)reply_of(guarded->monitor, WATCHDOG_ID "w");
        } else if (!cancelling && !guarded->thaws) {
            return; /* QEMU itself lets it go on */
        } else if (over && !handed_over) {
            write_all(guarded->monitor, cont_message, sizeof(cont_message) - 1);
            if (has(reply_of(guarded->monitor, WATCHDOG_ID "c"),
                    "\"return\"")) {
                return;
            }
        }
    }
}

/*
 * The engine died while it committed: whether migrate-continue was sent, QEMU
 * tells, which takes what is in the stream in its order. But that command only
 * wakes the thread that changes the state: once is no proof, and to cancel
 * behind it ends a QEMU 7.2.
 */
static void settle(const struct guarded *guarded)
{
    static const char ask[] =
        "{\"execute\":\"query-migrate\",\"id\":\"" WATCHDOG_ID "q\"}\r\n";
    unsigned looks = 0, silent = 0;
    /* What had no answer in time has it later, many at the same moment. */
    while (looks < LOOKS + silent) {
        if (looks + silent > 0) {
            (void)poll(NULL, 0, LOOK_MS);
        }
        write_all(guarded->monitor, ask, sizeof(ask) - 1);
        const char *reply = reply_of(guarded->monitor, WATCHDOG_ID "q");
        if (reply == NULL && ++silent < LOOKS_SILENT) {
            continue;
        }
        if (!has(reply, "\"pre-switchover\"")) {
            if (guarded->thaws) {
                see_it_end(guarded); /* it may fail yet */
            }
            return;
        }
        looks++;
    }
    write_all(guarded->monitor, guarded->message, guarded->len);
    drain(guarded->monitor, guarded->n_replies, false);
    see_it_end(guarded);
}

/* All but these: locks of the journal must not live on in here. */
static void close_others(int keep[3])
{
    int next = 0;
    for (unsigned round = 0; round < 3; round++) {
        int lowest = -1;
        for (unsigned i = 0; i < 3; i++) {
            if (keep[i] >= next && (lowest < 0 || keep[i] < lowest)) {
                lowest = keep[i];
            }
        }
        if (lowest < 0) {
            break;
        }
        if (lowest > next) {
            (void)syscall(SYS_close_range, (unsigned)next, (unsigned)lowest - 1,
                          0U);
        }
        next = lowest + 1;
    }
    (void)syscall(SYS_close_range, (unsigned)next, ~0U, 0U);
}

/*
 * The engine only stands still, and has not committed: what QEMU says is not
 * for this process to read. Both are refused where they have nothing to do.
 */
static void nudge(const struct guarded *guarded, unsigned tick)
{
    if (tick % TICKS_WEDGED == 0) {
        write_all(guarded->monitor, unwedge_message,
                  sizeof(unwedge_message) - 1);
    }
    if (guarded->thaws) {
        write_all(guarded->monitor, cont_message, sizeof(cont_message) - 1);
    }
}

static void guard(const struct guarded *guarded, int engine)
{
    sigset_t all;
    int monitor = guarded->monitor;
    unsigned limit_ms = guarded->limit_ms;
    (void)setsid(); /* a Ctrl-C at the terminal is for the engine alone */
    (void)sigfillset(&all);
    (void)sigprocmask(SIG_SETMASK, &all, NULL);
    int keep[3] = {monitor, engine, guarded->lifeline};
    close_others(keep);
    int64_t end = now_ms() + limit_ms;
    bool acted = false, committed = false;
    unsigned ticks = 0;
    for (;;) {
        struct pollfd data = {.fd = engine, .events = POLLIN};
        int64_t left = end - now_ms();
        int timeout = acted && guarded->stream && ticks < TICKS ? TICK_MS
                      : acted || committed                      ? -1
                      : left > 0                                ? (int)left
                                                                : 0;
        int n = poll(&data, 1, timeout);
        if (n == 0 && acted) {
            nudge(guarded, ++ticks);
            continue;
        }
        if (n == 0 && !committed) {
            write_all(monitor, guarded->message, guarded->len);
            acted = true; /* it may wake up: the replies are its to read */
            continue;
        }
        char bytes[64];
        ssize_t got = n > 0 ? read(engine, bytes, sizeof(bytes)) : -1;
        if (got == 0) {
            if (committed) {
                settle(guarded);
                _exit(0);
            }
            if (!acted) {
                write_all(monitor, guarded->message, guarded->len);
            }
            drain(monitor, guarded->n_replies, guarded->lets_go);
            if (guarded->stream) {
                see_it_end(guarded);
            }
            _exit(0);
        }
        for (ssize_t i = 0; i < got; i++) {
            if (bytes[i] == 'd') {
                _exit(0);
            }
            if (bytes[i] == 'c') {
                committed = !acted;
                (void)send(engine, acted ? "a" : "c", 1, MSG_NOSIGNAL);
            }
        }
        if (got > 0) {
            end = now_ms() + limit_ms;
        }
    }
}
