/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Loop, engine and monitor of one run. It turns callbacks into waiting, so
 * that a verb reads top to bottom; it knows no verb.
 */
#include "session.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "errors.h"
#include "text.h"

enum { COMMAND_TIMEOUT_MS = 30000 };

struct reply {
    bool done;
    char *error;
    char *result;
};

static int start(struct session *s, const char *state, const char *trace);
static void loop_end(uv_loop_t *loop);
static void engine_on_closed(void *data);
static void monitor_on_opened(void *data, const char *error);
static void monitor_on_event(void *data, const char *json);
static void monitor_on_lost(void *data, const char *error);
static void call_on_reply(void *data, const char *error, const char *result);
static int finish(struct session *s, struct reply *reply, json_t **ret,
                  char **ret_error);
static int print_failed(int code, char *error);
static char *copy(const char *text);

int session_start(struct session *s, const struct common_values *common)
{
    return start(s, common->state, common->trace);
}

int session_start_looking(struct session *s, const struct common_values *common)
{
    return start(s, NULL, common->trace);
}

static int start(struct session *s, const char *state, const char *trace)
{
    *s = (struct session){.loop = calloc(1, sizeof(*s->loop))};
    int r = s->loop != NULL ? uv_loop_init(s->loop) : UV_ENOMEM;
    if (r < 0) {
        error_say("event loop", "%s", uv_strerror(r));
        free(s->loop);
        return EXIT_USAGE;
    }
    struct qpivot_engine_options options = {.size = sizeof(options),
                                            .loop = s->loop,
                                            .state_dir = state,
                                            .trace_file = trace};
    char *error = NULL;
    r = qpivot_engine_new(&options, &s->engine, &error);
    if (r < 0) {
        if (error == NULL) {
            error_say(state, "%s", strerror(-r));
        } else {
            error_print(error);
        }
        qpivot_free(error);
        loop_end(s->loop);
        s->engine = NULL;
        return EXIT_USAGE;
    }
    return 0;
}

/*
 * A thread that hangs in a call to storage that is gone is left to the end of
 * the process: it may wake up yet, and must find its loop.
 */
static void loop_end(uv_loop_t *loop)
{
    static uv_loop_t *left;
    (void)uv_run(loop, UV_RUN_NOWAIT);
    if (uv_loop_close(loop) == 0) {
        free(loop);
    } else {
        loop->data = left;
        left = loop;
    }
}

void session_end(struct session *s)
{
    if (s->engine == NULL) {
        return;
    }
    if (s->monitor != NULL) {
        qpivot_monitor_close(s->monitor);
        s->monitor = NULL;
    }
    qpivot_engine_close(s->engine, engine_on_closed, s);
    (void)session_wait(s, &s->closed);
    s->engine = NULL;
    loop_end(s->loop);
    free(s->error);
    s->error = NULL;
}

bool session_wait(struct session *s, const bool *flag)
{
    while (!*flag) {
        if (uv_run(s->loop, UV_RUN_ONCE) == 0 && !*flag) {
            return false;
        }
    }
    return true;
}

void session_turn(struct session *s)
{
    (void)uv_run(s->loop, UV_RUN_ONCE);
}

int session_monitor(struct session *s, const char *qmp, session_event_fn *cb,
                    void *data)
{
    struct qpivot_monitor_callbacks callbacks = {.data = s,
                                                 .opened = monitor_on_opened,
                                                 .event = monitor_on_event,
                                                 .lost = monitor_on_lost};
    s->on_event = cb;
    s->data = data;
    char *error = NULL;
    int r =
        qpivot_monitor_open(s->engine, qmp, &callbacks, &s->monitor, &error);
    if (r < 0) {
        s->monitor = NULL;
        error_print(error);
        qpivot_free(error);
        /* -EINVAL: the address itself is wrong, nothing was tried. */
        return r == -EINVAL ? EXIT_USAGE : EXIT_UNREACHABLE;
    }
    if (!session_wait(s, &s->opened) || s->error != NULL) {
        error_print(s->error != NULL ? s->error : "the monitor never answered");
        return EXIT_UNREACHABLE;
    }
    return 0;
}

int session_execute(struct session *s, const char *command,
                    const json_t *arguments, json_t **ret, char **ret_error)
{
    char *text = arguments != NULL ? json_dumps(arguments, JSON_COMPACT) : NULL;
    struct reply *reply = calloc(1, sizeof(*reply));
    char *error = NULL;
    int r = reply == NULL
                ? -ENOMEM
                : qpivot_monitor_execute(s->monitor, command, text,
                                         COMMAND_TIMEOUT_MS, call_on_reply,
                                         reply, &error);
    free(text);
    if (r < 0) {
        *ret_error = copy(error != NULL ? error : strerror(-r));
        qpivot_free(error);
        free(reply);
        return EXIT_FAILURE;
    }
    return finish(s, reply, ret, ret_error);
}

int session_query(struct session *s, const char *command, json_t **ret)
{
    char *error = NULL;
    int code = session_execute(s, command, NULL, ret, &error);
    return code == 0 ? 0 : print_failed(code, error);
}

int session_names(struct session *s, const char *command, json_t **ret)
{
    struct reply *reply = calloc(1, sizeof(*reply));
    int r = reply == NULL ? -ENOMEM
                          : qpivot_monitor_names(s->monitor, command,
                                                 call_on_reply, reply);
    if (r < 0) {
        free(reply);
        return EXIT_FAILURE;
    }
    char *error = NULL;
    int code = finish(s, reply, ret, &error);
    free(error);
    return code;
}

int session_graph(struct session *s, json_t **ret)
{
    struct reply *reply = calloc(1, sizeof(*reply));
    int r = reply == NULL
                ? -ENOMEM
                : qpivot_monitor_graph(s->monitor, call_on_reply, reply);
    if (r < 0) {
        error_say("block graph", "%s", strerror(-r));
        free(reply);
        return EXIT_FAILURE;
    }
    char *error = NULL;
    int code = finish(s, reply, ret, &error);
    return code == 0 ? 0 : print_failed(code, error);
}

int session_destination(struct session *s,
                        const struct qpivot_destination_options *options,
                        json_t **ret)
{
    char *error = NULL;
    struct reply *reply = calloc(1, sizeof(*reply));
    int r = reply == NULL
                ? -ENOMEM
                : qpivot_monitor_destination(s->monitor, options, call_on_reply,
                                             reply, &error);
    if (r < 0) {
        free(reply);
        error_print(error != NULL ? error : strerror(-r));
        qpivot_free(error);
        return EXIT_USAGE;
    }
    int code = finish(s, reply, ret, &error);
    return code == 0                                       ? 0
           : print_failed(code, error) == EXIT_UNREACHABLE ? EXIT_UNREACHABLE
                                                           : EXIT_USAGE;
}

int session_say_lost(const struct session *s)
{
    error_print(s->error != NULL ? s->error : "the monitor was closed");
    return EXIT_UNREACHABLE;
}

static void engine_on_closed(void *data)
{
    struct session *s = data;
    s->closed = true;
}

static void monitor_on_opened(void *data, const char *error)
{
    struct session *s = data;
    s->opened = true;
    if (error != NULL) {
        s->error = copy(error);
    }
}

static void monitor_on_event(void *data, const char *json)
{
    struct session *s = data;
    if (s->on_event != NULL) {
        s->on_event(s->data, json);
    }
}

static void monitor_on_lost(void *data, const char *error)
{
    struct session *s = data;
    s->lost = true;
    if (s->error == NULL && error != NULL) {
        s->error = copy(error);
    }
}

static void call_on_reply(void *data, const char *error, const char *result)
{
    struct reply *reply = data;
    reply->done = true;
    reply->error = copy(error);
    reply->result = copy(result);
}

/*
 * Takes 'reply'. Every accepted call gets its reply; should the loop run dry
 * before, it is left alone, because it may still be written to.
 */
static int finish(struct session *s, struct reply *reply, json_t **ret,
                  char **ret_error)
{
    int code = 0;
    if (!session_wait(s, &reply->done)) {
        *ret_error = copy("the monitor was closed");
        return EXIT_UNREACHABLE;
    }
    if (reply->error != NULL) {
        *ret_error = copy(reply->error);
        code = s->lost ? EXIT_UNREACHABLE : EXIT_FAILURE;
    } else {
        *ret = json_loads(reply->result != NULL ? reply->result : "null",
                          JSON_DECODE_ANY, NULL);
        if (*ret == NULL) {
            *ret_error = copy("the answer is no JSON");
            code = EXIT_FAILURE;
        }
    }
    free(reply->error);
    free(reply->result);
    free(reply);
    return code;
}

static int print_failed(int code, char *error)
{
    error_print(error);
    free(error);
    return code;
}

static char *copy(const char *text)
{
    return text != NULL ? text_printf("%s", text) : NULL;
}
