/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* qpivot graph: the block graph of a QEMU. */
#include <signal.h>
#include <stdlib.h>

#include "cmd.h"
#include "errors.h"
#include "graph-view.h"
#include "session.h"

struct graph_values {
    struct common_values common;
    const char *qmp;
    unsigned format;
};

#define AT(member) offsetof(struct graph_values, member)

enum graph_format { FORMAT_TEXT, FORMAT_DOT, FORMAT_SVG, FORMAT_JSON };

static const struct option_row rows[] = {
    {"qmp",    "ADDR",              OPTION_TEXT,   true,  AT(qmp),    "the VM's monitor"},
    {"format", "text|dot|svg|json", OPTION_CHOICE, false, AT(format),
     "how to print it (default text; svg needs graphviz)"                               },
};

/* The run of graphviz' dot(1): its input, and how it ended. */
struct draw {
    uv_process_t process;
    uv_pipe_t input;
    uv_write_t write;
    bool exited;
    bool closed;
    int64_t status;
};

static int run(const void *values, char **operands, unsigned n);
static int print(struct session *s, const json_t *graph,
                 enum graph_format format);
static int print_svg(struct session *s, const json_t *graph);
static int draw_spawn(struct session *s, struct draw *d);
static void draw_on_written(uv_write_t *write, int status);
static void draw_on_exit(uv_process_t *process, int64_t status, int signal);
static void draw_on_closed(uv_handle_t *handle);

const struct verb verb_graph = {
    .name = "graph",
    .operands = "",
    .summary = "Show the block graph of a QEMU: devices, nodes, jobs, exports.",
    VERB_OPTIONS(rows),
    .values_size = sizeof(struct graph_values),
    .run = run,
};

static int run(const void *values, char **operands, unsigned n)
{
    (void)operands;
    (void)n;
    const struct graph_values *v = values;
    struct session session;
    int code = session_start_looking(&session, &v->common);
    if (code != 0) {
        return code;
    }
    json_auto_t *graph = NULL;
    code = session_monitor(&session, v->qmp, NULL, NULL);
    if (code == 0) {
        code = session_graph(&session, &graph);
    }
    if (code == 0) {
        code = print(&session, graph, (enum graph_format)v->format);
    }
    session_end(&session);
    return code;
}

static int print(struct session *s, const json_t *graph,
                 enum graph_format format)
{
    switch (format) {
    case FORMAT_DOT:
        graph_view_dot(graph, stdout);
        return 0;
    case FORMAT_SVG:
        return print_svg(s, graph);
    case FORMAT_JSON:
        (void)json_dumpf(graph, stdout, JSON_INDENT(2));
        (void)printf("\n");
        return 0;
    case FORMAT_TEXT:
    default:
        graph_view_text(graph, stdout);
        return 0;
    }
}

static int print_svg(struct session *s, const json_t *graph)
{
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    if (out == NULL) {
        error_print(NULL);
        return EXIT_FAILURE;
    }
    graph_view_dot(graph, out);
    (void)fclose(out);
    struct draw d = {0};
    int r = draw_spawn(s, &d);
    if (r < 0) {
        error_say("program 'dot'", "%s", uv_strerror(r));
        error_hint("install the package graphviz, or use --format dot");
        free(text);
        return EXIT_USAGE;
    }
    /* dot may end before it has read all. */
    (void)signal(SIGPIPE, SIG_IGN);
    uv_buf_t buffer = uv_buf_init(text, (unsigned)size);
    r = uv_write(&d.write, (uv_stream_t *)&d.input, &buffer, 1,
                 draw_on_written);
    if (r < 0) {
        uv_close((uv_handle_t *)&d.input, draw_on_closed);
    }
    (void)session_wait(s, &d.exited);
    (void)session_wait(s, &d.closed);
    free(text);
    if (d.status != 0) {
        error_say("program 'dot'", "exit status %d", (int)d.status);
        return EXIT_FAILURE;
    }
    return 0;
}

static int draw_spawn(struct session *s, struct draw *d)
{
    char name[] = "dot";
    char format[] = "-Tsvg";
    char *argv[] = {name, format, NULL};
    (void)uv_pipe_init(s->loop, &d->input, 0);
    d->input.data = d;
    d->process.data = d;
    uv_stdio_container_t stdio[3] = {
        {.flags = UV_CREATE_PIPE | UV_READABLE_PIPE,
         .data.stream = (uv_stream_t *)&d->input                 },
        {.flags = UV_INHERIT_FD,                     .data.fd = 1},
        {.flags = UV_INHERIT_FD,                     .data.fd = 2}
    };
    uv_process_options_t options = {.exit_cb = draw_on_exit,
                                    .file = name,
                                    .args = argv,
                                    .stdio = stdio,
                                    .stdio_count = 3};
    int r = uv_spawn(s->loop, &d->process, &options);
    if (r < 0) {
        uv_close((uv_handle_t *)&d->process, NULL);
        uv_close((uv_handle_t *)&d->input, draw_on_closed);
        (void)session_wait(s, &d->closed);
    }
    return r;
}

static void draw_on_written(uv_write_t *write, int status)
{
    (void)status;
    uv_close((uv_handle_t *)write->handle, draw_on_closed);
}

static void draw_on_exit(uv_process_t *process, int64_t status, int signal)
{
    struct draw *d = process->data;
    d->exited = true;
    d->status = signal != 0 ? signal : status;
    uv_close((uv_handle_t *)process, NULL);
}

static void draw_on_closed(uv_handle_t *handle)
{
    struct draw *d = handle->data;
    d->closed = true;
}
