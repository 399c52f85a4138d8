/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "qmp/child.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/cleanup.h"
#include "base/err.h"
#include "base/str.h"
#include "qmp/transport.h"

enum { KILL_AFTER_MS = 2000, WORDS_MAX = 256, SSH_ARGS = 48 };

struct child {
    uv_loop_t *loop;
    uv_process_t process;
    uv_timer_t timer; /* while it is being ended */
    uv_poll_t out;    /* ssh: "ready" */
    uv_poll_t err;
    int in_fd; /* ssh: its end tells the shell that we are gone */
    int out_fd;
    int err_fd;
    bool running;
    unsigned n_handles;
    char *dir; /* ssh; gone once 'path' is, unless there are forwards */
    char *path;
    const struct qmp_addr *addr;
    size_t n_words;
    char words[WORDS_MAX];
    child_ready_fn *ready_cb; /* NULL once it came */
    void *ready_data;
    child_close_fn *close_cb;
    void *close_data;
};

/* What -L takes: "<here>:<there>". */
struct forwards {
    char *texts[1 + FORWARDS_MAX];
    unsigned n;
    char *script; /* of the shell that runs ssh */
};

/* The ends of the program's stdin, stdout and stderr. */
struct stdio {
    int fds[3];
};

/*
 * ssh would outlive us when we are killed: with -N it does not mind its stdin.
 * So a shell waits for the end of that, in the same process group. In between
 * it takes away what is left in our directory, $0, by its names and no others:
 * who else gets hold of that path must not have our rights.
 */
#define SSH_BEGIN "ssh \"$@\" & exec >/dev/null 2>&1; read -r _;"
#define SSH_END " kill 0"

static int child_new(uv_loop_t *loop, struct child **ret);
static int child_prepare_ssh(struct child *child, struct stdio *stdio);
static int forwards_make(const struct child *child, struct forwards *forwards);
static char *ssh_script(const struct qmp_addr *addr);
static void forwards_done(struct forwards *forwards);
static void ssh_args(const struct child *child, const struct forwards *forwards,
                     const char *args[SSH_ARGS]);
static int child_spawn(struct child *child, const char *const *args,
                       const struct stdio *stdio);
static int child_watch(struct child *child, uv_poll_t *poll, int fd,
                       uv_poll_cb cb);
static void child_on_out(uv_poll_t *poll, int status, int events);
static void child_on_err(uv_poll_t *poll, int status, int events);
static void child_on_exit(uv_process_t *process, int64_t status, int signal);
static void child_on_kill(uv_timer_t *timer);
static bool child_read_words(struct child *child);
static void child_kill(const struct child *child, int signal);
static void child_on_handle_closed(uv_handle_t *handle);
static void stop_watching(uv_poll_t *poll, int *fd);
static int make_pipe(int *ret_read, int *ret_write);
static void stdio_done(struct stdio *stdio);

int child_exec(uv_loop_t *loop, const char *command, int *ret_fd,
               struct child **ret)
{
    int r = child_new(loop, ret);
    if (r < 0) {
        return r;
    }
    struct child *child = *ret;
    _cleanup_(stdio_done) struct stdio stdio = {
        {-1, -1, -1}
    };
    int pair[2];
    /* one socket both ways, so that there is one fd that speaks QMP */
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0) {
        return -errno;
    }
    _cleanup_close_ int fd = pair[0];
    stdio.fds[0] = pair[1];
    stdio.fds[1] = fcntl(pair[1], F_DUPFD_CLOEXEC, 0);
    if (stdio.fds[1] < 0 || fcntl(fd, F_SETFL, O_NONBLOCK) < 0) {
        return -errno;
    }
    r = make_pipe(&child->err_fd, &stdio.fds[2]);
    if (r < 0) {
        return r;
    }
    const char *args[] = {"/bin/sh", "-c", command, NULL};
    r = child_spawn(child, args, &stdio);
    if (r == 0) {
        *ret_fd = TAKE_FD(fd);
    }
    return r;
}

int child_ssh(uv_loop_t *loop, const struct qmp_addr *addr, child_ready_fn *cb,
              void *data, struct child **ret)
{
    int r = child_new(loop, ret);
    if (r < 0) {
        return r;
    }
    struct child *child = *ret;
    child->ready_cb = cb;
    child->ready_data = data;
    _cleanup_(stdio_done) struct stdio stdio = {
        {-1, -1, -1}
    };
    r = child_prepare_ssh(child, &stdio);
    if (r < 0) {
        return r;
    }
    struct forwards forwards = {.n = 0};
    const char *args[SSH_ARGS];
    child->addr = addr;
    r = forwards_make(child, &forwards);
    if (r == 0) {
        ssh_args(child, &forwards, args);
        r = child_spawn(child, args, &stdio);
    }
    forwards_done(&forwards);
    return r;
}

char *child_forwarded(const struct child *child, const char *name)
{
    for (unsigned i = 0; child->addr != NULL && i < child->addr->n_forwards;
         i++) {
        if (str_eq(child->addr->forwards[i], name)) {
            return str_printf("%s/%s", child->dir, name);
        }
    }
    return NULL;
}

int child_lifeline_fd(const struct child *child)
{
    return child->in_fd;
}

const char *child_path(const struct child *child)
{
    return child->path;
}

void child_settle(struct child *child)
{
    if (child->path != NULL) {
        (void)unlink(child->path);
        (void)rmdir(child->dir); /* not with forwards in it */
        free(TAKE_PTR(child->path));
    }
}

/* ssh does not take the names of its sockets away. */
static void remove_forwards(struct child *child)
{
    for (unsigned i = 0; child->addr != NULL && i < child->addr->n_forwards;
         i++) {
        _cleanup_free_ char *path =
            child_forwarded(child, child->addr->forwards[i]);
        if (path != NULL) {
            (void)unlink(path);
        }
    }
    if (child->addr != NULL && child->addr->n_forwards > 0) {
        (void)rmdir(child->dir);
    }
}

const char *child_words(struct child *child)
{
    if (child->err_fd >= 0) {
        /* what it said may be there, and the loop not have come to it */
        (void)child_read_words(child);
    }
    char *line = child->words;
    line[child->n_words] = '\0';
    size_t n = child->n_words;
    while (n > 0 && strchr("\r\n ", line[n - 1]) != NULL) {
        line[--n] = '\0';
    }
    char *last = strrchr(line, '\n');
    return last != NULL ? last + 1 : line;
}

void child_close(struct child *child, child_close_fn *cb, void *data)
{
    child->close_cb = cb;
    child->close_data = data;
    child->ready_cb = NULL;
    stop_watching(&child->out, &child->out_fd);
    stop_watching(&child->err, &child->err_fd);
    if (child->in_fd >= 0) {
        (void)close(child->in_fd);
        child->in_fd = -1;
    }
    if (child->running) {
        child_kill(child, SIGTERM);
        (void)uv_timer_start(&child->timer, child_on_kill, KILL_AFTER_MS, 0);
        return;
    }
    uv_close((uv_handle_t *)&child->timer, child_on_handle_closed);
    if (child->process.type == UV_PROCESS) {
        uv_close((uv_handle_t *)&child->process, child_on_handle_closed);
    }
}

static int child_new(uv_loop_t *loop, struct child **ret)
{
    struct child *child = calloc(1, sizeof(*child));
    if (child == NULL) {
        *ret = NULL;
        return -ENOMEM;
    }
    child->loop = loop;
    child->in_fd = -1;
    child->out_fd = -1;
    child->err_fd = -1;
    (void)uv_timer_init(loop, &child->timer);
    child->timer.data = child;
    child->n_handles = 1;
    *ret = child;
    return 0;
}

static int child_prepare_ssh(struct child *child, struct stdio *stdio)
{
    char dir[] = "/tmp/qpivot-ssh-XXXXXX";
    if (mkdtemp(dir) == NULL) { /* 0700: no one else comes to the VM by it */
        return -errno;
    }
    child->dir = strdup(dir);
    child->path = child->dir ? str_printf("%s/qmp", dir) : NULL;
    if (child->path == NULL) {
        (void)rmdir(dir);
        return -ENOMEM;
    }
    int r = make_pipe(&stdio->fds[0], &child->in_fd);
    if (r == 0) {
        /* the shell's read must block; ours of the others must not */
        r = fcntl(stdio->fds[0], F_SETFL, 0) < 0 ? -errno : 0;
    }
    if (r == 0) {
        r = make_pipe(&child->out_fd, &stdio->fds[1]);
    }
    if (r == 0) {
        r = make_pipe(&child->err_fd, &stdio->fds[2]);
    }
    return r;
}

static int forwards_make(const struct child *child, struct forwards *forwards)
{
    const struct qmp_addr *addr = child->addr;
    char *monitor = str_printf("%s:%s", child->path, addr->path);
    forwards->texts[forwards->n++] = monitor;
    bool made = monitor != NULL;
    for (unsigned i = 0; made && i < addr->n_forwards; i++) {
        _cleanup_free_ char *there = qmp_addr_beside(addr, addr->forwards[i]);
        char *text = there != NULL ? str_printf("%s/%s:%s", child->dir,
                                                addr->forwards[i], there)
                                   : NULL;
        forwards->texts[forwards->n++] = text;
        made = text != NULL;
    }
    forwards->script = made ? ssh_script(addr) : NULL;
    return forwards->script != NULL ? 0 : -ENOMEM;
}

static char *ssh_script(const struct qmp_addr *addr)
{
    char *script = strdup(SSH_BEGIN);
    for (unsigned i = 0; script != NULL && i < addr->n_forwards; i++) {
        _cleanup_free_ char *before = script;
        _cleanup_free_ char *name = str_shell(addr->forwards[i]);
        script = name != NULL
                     ? str_printf("%s rm -f -- \"$0\"/%s;", before, name)
                     : NULL;
    }
    _cleanup_free_ char *whole = script;
    return whole == NULL
               ? NULL
               : str_printf("%s%s" SSH_END, whole,
                            addr->n_forwards > 0 ? " rmdir -- \"$0\";" : "");
}

static void forwards_done(struct forwards *forwards)
{
    for (unsigned i = 0; i < forwards->n; i++) {
        free(forwards->texts[i]);
    }
    free(forwards->script);
}

/* 'args' ends with NULL; what it points to is borrowed. */
static void ssh_args(const struct child *child, const struct forwards *forwards,
                     const char *args[SSH_ARGS])
{
    const struct qmp_addr *addr = child->addr;
    static const char *const options[] = {
        /* never a question, never a person's agent, display or master */
        "BatchMode=yes", "ForwardAgent=no", "ForwardX11=no", "RequestTTY=no",
        "ControlMaster=no", "ControlPath=none",
        /* a host that is gone shows within 15 s */
        "ServerAliveInterval=5", "ServerAliveCountMax=3", "LogLevel=INFO",
        "ExitOnForwardFailure=yes", "StreamLocalBindMask=0177",
        /* runs once the forwarding listens: nothing needs to be polled for */
        "PermitLocalCommand=yes", "LocalCommand=echo ready"};
    unsigned n = 0;
    args[n++] = "/bin/sh";
    args[n++] = "-c";
    args[n++] = forwards->script;
    args[n++] = child->dir;
    args[n++] = "-N";
    for (unsigned i = 0; i < ARRAY_SIZE(options); i++) {
        args[n++] = "-o";
        args[n++] = options[i];
    }
    for (unsigned i = 0; i < forwards->n; i++) {
        args[n++] = "-L";
        args[n++] = forwards->texts[i];
    }
    if (addr->port != NULL) {
        args[n++] = "-p";
        args[n++] = addr->port;
    }
    if (addr->user != NULL) {
        args[n++] = "-l";
        args[n++] = addr->user;
    }
    args[n++] = "--";
    args[n++] = addr->host;
    args[n] = NULL;
}

static int child_spawn(struct child *child, const char *const *args,
                       const struct stdio *stdio)
{
    uv_stdio_container_t containers[3];
    for (unsigned i = 0; i < 3; i++) {
        containers[i].flags = UV_INHERIT_FD;
        containers[i].data.fd = stdio->fds[i];
    }
    const uv_process_options_t options = {
        .file = args[0],
        .args = (char **)(uintptr_t)args, /* uv does not change them */
        .exit_cb = child_on_exit,
        .stdio = containers,
        .stdio_count = 3,
        /* an own session: no terminal to ask at, one group to end */
        .flags = UV_PROCESS_DETACHED,
    };
    int r = uv_spawn(child->loop, &child->process, &options);
    child->process.data = child;
    child->n_handles++; /* even when it failed */
    if (r < 0) {
        return r;
    }
    child->running = true;
    r = child_watch(child, &child->err, child->err_fd, child_on_err);
    if (r == 0 && child->out_fd >= 0) {
        r = child_watch(child, &child->out, child->out_fd, child_on_out);
    }
    return r;
}

static int child_watch(struct child *child, uv_poll_t *poll, int fd,
                       uv_poll_cb cb)
{
    int r = uv_poll_init(child->loop, poll, fd);
    if (r < 0) {
        return r;
    }
    poll->data = child;
    child->n_handles++;
    return uv_poll_start(poll, UV_READABLE | UV_DISCONNECT, cb);
}

static void child_on_out(uv_poll_t *poll, int status, int events)
{
    struct child *child = poll->data;
    char line[64];
    ssize_t n = read(child->out_fd, line, sizeof(line));
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
        return;
    }
    if (n <= 0) {
        stop_watching(&child->out, &child->out_fd);
    }
    child_ready_fn *cb = TAKE_PTR(child->ready_cb);
    if (cb == NULL) {
        return;
    }
    _cleanup_err_ struct err *err = NULL;
    if (n <= 0) {
        const char *words = child_words(child);
        (void)err_set(&err, -ECONNREFUSED, NULL, "ssh ended%s%s",
                      words[0] != '\0' ? ": " : "", words);
        if (err == NULL) {
            return; /* no memory: the caller's deadline will tell */
        }
    }
    cb(child->ready_data, err);
}

static void child_on_err(uv_poll_t *poll, int status, int events)
{
    struct child *child = poll->data;
    if (!child_read_words(child)) {
        stop_watching(&child->err, &child->err_fd);
    }
}

static void child_on_exit(uv_process_t *process, int64_t status, int signal)
{
    struct child *child = process->data;
    child->running = false;
    if (child->close_cb != NULL) {
        uv_close((uv_handle_t *)&child->timer, child_on_handle_closed);
        uv_close((uv_handle_t *)&child->process, child_on_handle_closed);
    }
}

static void child_on_kill(uv_timer_t *timer)
{
    child_kill(timer->data, SIGKILL);
}

/* Keeps the end of what it prints; false at its end. */
static bool child_read_words(struct child *child)
{
    for (;;) {
        char text[WORDS_MAX - 1];
        ssize_t n = read(child->err_fd, text, sizeof(text));
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return n < 0 && errno == EAGAIN;
        }
        size_t keep = WORDS_MAX - 1 - (size_t)n;
        keep = keep < child->n_words ? keep : child->n_words;
        memmove(child->words, child->words + child->n_words - keep, keep);
        memcpy(child->words + keep, text, (size_t)n);
        child->n_words = keep + (size_t)n;
    }
}

static void child_kill(const struct child *child, int signal)
{
    (void)kill(-child->process.pid, signal);
}

static void child_on_handle_closed(uv_handle_t *handle)
{
    struct child *child = handle->data;
    child->n_handles--;
    if (child->n_handles > 0) {
        return;
    }
    child_close_fn *cb = child->close_cb;
    void *data = child->close_data;
    child_settle(child);
    remove_forwards(child);
    free(child->path);
    free(child->dir);
    free(child);
    cb(data);
}

static void stop_watching(uv_poll_t *poll, int *fd)
{
    if (poll->type == UV_POLL && !uv_is_closing((uv_handle_t *)poll)) {
        uv_close((uv_handle_t *)poll, child_on_handle_closed);
    }
    if (*fd >= 0) {
        (void)close(*fd);
        *fd = -1;
    }
}

/* The end that is read does not block. */
static int make_pipe(int *ret_read, int *ret_write)
{
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) < 0) {
        return -errno;
    }
    *ret_read = fds[0];
    *ret_write = fds[1];
    return fcntl(fds[0], F_SETFL, O_NONBLOCK) < 0 ? -errno : 0;
}

static void stdio_done(struct stdio *stdio)
{
    for (unsigned i = 0; i < ARRAY_SIZE(stdio->fds); i++) {
        closep(&stdio->fds[i]);
    }
}
