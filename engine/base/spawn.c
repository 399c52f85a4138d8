/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/spawn.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/err.h"
#include "base/str.h"

enum { OUTPUT_MAX = 64 * 1024, N_HANDLES = 4 };

struct stream {
    struct spawn *spawn;
    uv_pipe_t pipe;
    char *text;
    size_t len;
    bool open;
};

struct spawn {
    uv_process_t process;
    uv_timer_t timer;
    struct stream out, err;
    char *command;
    spawn_fn *cb; /* NULL once called or cancelled */
    void *data;
    int64_t status;
    int signal;
    unsigned n_open; /* handles that are not closed yet */
    bool exited;
    bool timed_out;
    bool closing;
};

static int spawn_run(struct spawn *spawn, const char *input,
                     const char *const *env, uv_loop_t *loop);
static int input_file(const char *input);
static void spawn_on_exit(uv_process_t *process, int64_t status, int signal);
static void spawn_on_timeout(uv_timer_t *timer);
static void stream_alloc(uv_handle_t *handle, size_t size, uv_buf_t *buf);
static void stream_on_read(uv_stream_t *uv, ssize_t n, const uv_buf_t *buf);
static void spawn_finish(struct spawn *spawn);
static void spawn_close(struct spawn *spawn);
static void spawn_on_close(uv_handle_t *handle);
static char **environment(const char *const *extra);

int spawn_start(uv_loop_t *loop, const char *command, const char *input,
                const char *const *env, unsigned timeout_ms, spawn_fn *cb,
                void *data, struct spawn **ret, struct err **errp)
{
    struct spawn *spawn = calloc(1, sizeof(*spawn));
    if (spawn == NULL) {
        return err_set(errp, -ENOMEM, command, "out of memory");
    }
    spawn->command = strdup(command);
    (void)uv_timer_init(loop, &spawn->timer);
    (void)uv_pipe_init(loop, &spawn->out.pipe, 0);
    (void)uv_pipe_init(loop, &spawn->err.pipe, 0);
    spawn->out.spawn = spawn->err.spawn = spawn;
    spawn->out.pipe.data = &spawn->out;
    spawn->err.pipe.data = &spawn->err;
    spawn->timer.data = spawn;
    spawn->process.data = spawn;
    spawn->n_open = N_HANDLES;
    int r = spawn->command == NULL
                ? -ENOMEM
                : spawn_run(spawn, input != NULL ? input : "", env, loop);
    if (r < 0) {
        spawn_close(spawn);
        return err_set(errp, r, command, "cannot be started: %s",
                       uv_strerror(r));
    }
    if (timeout_ms != 0) {
        (void)uv_timer_start(&spawn->timer, spawn_on_timeout, timeout_ms, 0);
    }
    spawn->cb = cb;
    spawn->data = data;
    if (ret != NULL) {
        *ret = spawn;
    }
    return 0;
}

void spawn_cancel(struct spawn *spawn)
{
    spawn->cb = NULL;
    if (!spawn->exited) {
        /* Its process group: a shell's children must not outlive it. */
        (void)kill(-uv_process_get_pid(&spawn->process), SIGKILL);
    }
    spawn_close(spawn);
}

static int spawn_run(struct spawn *spawn, const char *input,
                     const char *const *env, uv_loop_t *loop)
{
    _cleanup_close_ int in = input_file(input);
    if (in < 0) {
        return in;
    }
    char sh[] = "/bin/sh", c[] = "-c";
    char *args[] = {sh, c, spawn->command, NULL};
    uv_stdio_container_t stdio[] = {
        {.flags = UV_INHERIT_FD,                     .data.fd = in},
        {.flags = UV_CREATE_PIPE | UV_WRITABLE_PIPE,
         .data.stream = (uv_stream_t *)&spawn->out.pipe           },
        {.flags = UV_CREATE_PIPE | UV_WRITABLE_PIPE,
         .data.stream = (uv_stream_t *)&spawn->err.pipe           },
    };
    _cleanup_free_ char **environment_block = environment(env);
    uv_process_options_t options = {
        .exit_cb = spawn_on_exit,
        .file = sh,
        .args = args,
        .env = environment_block,
        .flags = UV_PROCESS_DETACHED, /* a process group of its own */
        .stdio = stdio,
        .stdio_count = 3,
    };
    if (environment_block == NULL) {
        return -ENOMEM;
    }
    int r = uv_spawn(loop, &spawn->process, &options);
    if (r < 0) {
        return r;
    }
    spawn->out.open = spawn->err.open = true;
    (void)uv_read_start((uv_stream_t *)&spawn->out.pipe, stream_alloc,
                        stream_on_read);
    (void)uv_read_start((uv_stream_t *)&spawn->err.pipe, stream_alloc,
                        stream_on_read);
    return 0;
}

/*
 * A file, not a pipe: writing to a program that has ended would raise SIGPIPE,
 * which a library must neither suffer nor switch off.
 */
static int input_file(const char *input)
{
    size_t len = strlen(input);
    _cleanup_close_ int fd = memfd_create("qpivot-stdin", MFD_CLOEXEC);
    if (fd < 0) {
        return -errno;
    }
    ssize_t n = write(fd, input, len);
    if (n != (ssize_t)len || lseek(fd, 0, SEEK_SET) < 0) {
        return n < 0 ? -errno : -EIO;
    }
    return TAKE_FD(fd);
}

static char **environment(const char *const *extra)
{
    size_t n = 0, n_extra = 0;
    while (environ != NULL && environ[n] != NULL) {
        n++;
    }
    while (extra != NULL && extra[n_extra] != NULL) {
        n_extra++;
    }
    char **block = calloc(n + n_extra + 1, sizeof(*block));
    if (block != NULL) {
        /* First come, first served in getenv(): ours go in front. */
        for (size_t i = 0; i < n_extra; i++) {
            memcpy(&block[i], &extra[i], sizeof(block[i]));
        }
        for (size_t i = 0; i < n; i++) {
            block[n_extra + i] = environ[i];
        }
    }
    return block;
}

static void stream_alloc(uv_handle_t *handle, size_t size, uv_buf_t *buf)
{
    (void)handle;
    (void)size;
    *buf = uv_buf_init(malloc(4096), 4096);
    if (buf->base == NULL) {
        buf->len = 0;
    }
}

static void stream_on_read(uv_stream_t *uv, ssize_t n, const uv_buf_t *buf)
{
    struct stream *stream = uv->data;
    _cleanup_free_ char *bytes = buf->base;
    if (n < 0) {
        stream->open = false;
        (void)uv_read_stop(uv);
        spawn_finish(stream->spawn);
        return;
    }
    size_t room = OUTPUT_MAX - stream->len, take = (size_t)n;
    take = take < room ? take : room;
    char *text = realloc(stream->text, stream->len + take + 1);
    if (text != NULL) {
        memcpy(text + stream->len, bytes, take);
        stream->text = text;
        stream->len += take;
        text[stream->len] = '\0';
    }
}

static void spawn_on_exit(uv_process_t *process, int64_t status, int signal)
{
    struct spawn *spawn = process->data;
    spawn->exited = true;
    spawn->status = status;
    spawn->signal = signal;
    spawn_finish(spawn);
}

static void spawn_on_timeout(uv_timer_t *timer)
{
    struct spawn *spawn = timer->data;
    spawn->timed_out = true;
    if (!spawn->exited) {
        (void)kill(-uv_process_get_pid(&spawn->process), SIGKILL);
    }
    /* A grandchild that kept our pipe open must not hold us up. */
    spawn->out.open = spawn->err.open = false;
    spawn_finish(spawn);
}

static const char *last_line(char *text)
{
    if (text == NULL) {
        return "";
    }
    size_t len = strlen(text);
    while (len > 0 && text[len - 1] == '\n') {
        text[--len] = '\0';
    }
    char *newline = strrchr(text, '\n');
    return newline != NULL ? newline + 1 : text;
}

static void spawn_finish(struct spawn *spawn)
{
    _cleanup_err_ struct err *err = NULL;
    if (!spawn->exited || spawn->out.open || spawn->err.open ||
        spawn->closing) {
        return;
    }
    const char *line = last_line(spawn->err.text);
    if (spawn->timed_out) {
        (void)err_set(&err, -ETIMEDOUT, spawn->command,
                      "did not end in time and was killed");
    } else if (spawn->signal != 0) {
        (void)err_set(&err, -ECHILD, spawn->command, "was killed by signal %d",
                      spawn->signal);
    } else if (spawn->status != 0) {
        (void)err_set(&err, -ECHILD, spawn->command, "exited with %d%s%s",
                      (int)spawn->status, *line ? ": " : "", line);
    }
    spawn_fn *cb = spawn->cb;
    spawn->cb = NULL;
    if (cb != NULL) {
        cb(spawn->data, err, spawn->out.text != NULL ? spawn->out.text : "");
    }
    spawn_close(spawn);
}

static void spawn_close(struct spawn *spawn)
{
    if (spawn->closing) {
        return;
    }
    spawn->closing = true;
    uv_handle_t *handles[N_HANDLES] = {
        (uv_handle_t *)&spawn->process, (uv_handle_t *)&spawn->timer,
        (uv_handle_t *)&spawn->out.pipe, (uv_handle_t *)&spawn->err.pipe};
    for (unsigned i = 0; i < N_HANDLES; i++) {
        if (!uv_is_closing(handles[i])) {
            if (handles[i]->type == UV_UNKNOWN_HANDLE) {
                spawn->n_open--; /* the process was never initialised */
                continue;
            }
            uv_close(handles[i], spawn_on_close);
        }
    }
}

static void spawn_on_close(uv_handle_t *handle)
{
    struct spawn *spawn = handle->type == UV_NAMED_PIPE
                              ? ((struct stream *)handle->data)->spawn
                              : handle->data;
    if (--spawn->n_open == 0) {
        free(spawn->out.text);
        free(spawn->err.text);
        free(spawn->command);
        free(spawn);
    }
}
