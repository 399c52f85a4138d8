/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Lines from stdin while the loop turns. It knows no command. */
#include "shell.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#ifdef HAVE_READLINE
#include <readline/history.h>
#include <readline/readline.h>
#endif

#include "monitor-line.h"
#include "text.h"

enum { LINE_MAX_BYTES = 1024 * 1024, HISTORY_LINES = 500 };

/* One per process: readline has no handle to hang it on. */
static struct shell {
    struct session *session;
    shell_line_fn *cb;
    void *data;
    bool edit;   /* readline drives the terminal */
    bool prompt; /* a prompt is on the screen */
    bool ready;  /* stdin has something */
    bool polled; /* it can be waited for; a file cannot, and is always ready */
    bool end;
    uv_poll_t poll;
    char *line; /* what was read and not yet ended by a newline */
    size_t n;
} shell;

static void input_on_ready(uv_poll_t *poll, int status, int events);
static void read_more(void);
static void take_lines(void);
static void edit_start(const char *history);
static void edit_stop(const char *history);
static void edit_read(void);

void shell_run(struct session *s, const char *history, shell_line_fn *cb,
               void *data)
{
    shell = (struct shell){.session = s, .cb = cb, .data = data};
    shell.polled = uv_poll_init(s->loop, &shell.poll, STDIN_FILENO) == 0;
    shell.ready = !shell.polled;
    edit_start(history);
    while (!shell.end && !s->lost) {
        if (!shell.ready) {
            (void)uv_poll_start(&shell.poll, UV_READABLE, input_on_ready);
            session_turn(s);
            continue;
        }
        shell.ready = !shell.polled;
        if (shell.edit) {
            edit_read();
        } else {
            read_more();
        }
    }
    edit_stop(history);
    free(shell.line);
    if (shell.polled) {
        uv_close((uv_handle_t *)&shell.poll, NULL);
        session_turn(s);
    }
}

/* Once: while a command runs, input that waits must not keep us spinning. */
static void input_on_ready(uv_poll_t *poll, int status, int events)
{
    (void)status;
    (void)events;
    shell.ready = true;
    (void)uv_poll_stop(poll);
}

static void read_more(void)
{
    char chunk[4096];
    ssize_t n = read(STDIN_FILENO, chunk, sizeof(chunk));
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) {
        return;
    }
    bool end = n <= 0;
    if (!end) {
        char *line = realloc(shell.line, shell.n + (size_t)n + 2);
        if (line == NULL || shell.n > LINE_MAX_BYTES) {
            shell.line = line != NULL ? line : shell.line;
            shell.end = true;
            return;
        }
        memcpy(line + shell.n, chunk, (size_t)n);
        shell.line = line;
        shell.n += (size_t)n;
    } else if (shell.n > 0) {
        shell.line[shell.n++] = '\n'; /* the last line had none */
    }
    take_lines();
    shell.end = shell.end || end;
}

static void take_lines(void)
{
    char *at = shell.line;
    char *newline = NULL;
    while (!shell.end && !shell.session->lost && shell.n > 0 &&
           (newline = memchr(at, '\n', shell.n)) != NULL) {
        *newline = '\0';
        shell.n -= (size_t)(newline + 1 - at);
        char *line = at;
        at = newline + 1;
        if (line[strspn(line, " \t\r")] != '\0') {
            shell.end = !shell.cb(shell.data, line);
        }
    }
    if (shell.n > 0) {
        memmove(shell.line, at, shell.n);
    }
}

#ifdef HAVE_READLINE

static json_t *names; /* what the word could be; owned */

static void edit_on_line(char *line);
static char **complete(const char *text, int start, int end);
static char *next_name(const char *text, int state);

void shell_print(const char *text)
{
    if (shell.prompt) {
        (void)rl_clear_visible_line();
    }
    (void)printf("%s\n", text);
    (void)fflush(stdout);
    if (shell.prompt) {
        (void)rl_on_new_line();
        rl_redisplay();
    }
}

static void edit_start(const char *history)
{
    shell.edit = isatty(STDIN_FILENO) && isatty(STDOUT_FILENO);
    if (!shell.edit) {
        return;
    }
    static char breaks[] = " \t";
    rl_basic_word_break_characters = breaks;
    rl_attempted_completion_function = complete;
    using_history();
    stifle_history(HISTORY_LINES);
    if (history != NULL) {
        (void)read_history(history);
    }
    rl_callback_handler_install("qpivot> ", edit_on_line);
    shell.prompt = true;
}

static void edit_stop(const char *history)
{
    if (!shell.edit) {
        return;
    }
    rl_callback_handler_remove();
    shell.prompt = false;
    mode_t before = umask(077);
    if (history != NULL) {
        (void)write_history(history);
    }
    (void)umask(before);
    clear_history();
    json_decref(names);
    names = NULL;
}

static void edit_read(void)
{
    rl_callback_read_char();
}

static void edit_on_line(char *line)
{
    shell.prompt = false;
    if (line == NULL) {
        (void)printf("\n");
        shell.end = true;
    } else if (line[strspn(line, " \t")] != '\0') {
        if (!monitor_line_secret(line)) {
            add_history(line);
        }
        shell.end = !shell.cb(shell.data, line);
    }
    free(line);
    shell.prompt = !shell.end;
}

/* Commands for the first word, then the command's arguments. */
static char **complete(const char *text, int start, int end)
{
    (void)end;
    rl_attempted_completion_over = 1;
    size_t skip = strspn(rl_line_buffer, " \t");
    bool first = (size_t)start <= skip;
    char *command = first ? NULL
                          : strndup(rl_line_buffer + skip,
                                    strcspn(rl_line_buffer + skip, " \t"));
    json_decref(names);
    names = NULL;
    (void)session_names(shell.session, command, &names);
    free(command);
    rl_completion_append_character = first ? ' ' : '=';
    return rl_completion_matches(text, next_name);
}

static char *next_name(const char *text, int state)
{
    static size_t next;
    next = state == 0 ? 0 : next;
    while (next < json_array_size(names)) {
        const json_t *item = json_array_get(names, next++);
        const char *name =
            json_is_object(item)
                ? json_string_value(json_object_get(item, "name"))
                : json_string_value(item);
        if (name != NULL && strncmp(name, text, strlen(text)) == 0) {
            return strdup(name);
        }
    }
    return NULL;
}

#else

void shell_print(const char *text)
{
    (void)printf("%s\n", text);
    (void)fflush(stdout);
}

static void edit_start(const char *history)
{
    (void)history;
}

static void edit_stop(const char *history)
{
    (void)history;
}

static void edit_read(void)
{
}

#endif
