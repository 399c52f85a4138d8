/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* One running operation and the signals of its user. */
#include "follow.h"

#include <errno.h>
#include <signal.h>
#include <string.h>

#include "errors.h"

static int run(struct session *session, const struct follow_values *values,
               follow_begin_fn *begin, const void *options);
static int catch_signals(struct follow *f);
static int outcome(struct follow *f, int r, const char *error);
static void op_on_event(void *data, const char *json);
static void op_on_ended(void *data, enum qpivot_outcome outcome);
static void user_on_signal(uv_signal_t *handle, int number);
static void signal_on_closed(uv_handle_t *handle);
static bool ignored(int number);
static void close_signals(struct follow *f);

int follow_run(const struct common_values *common,
               const struct follow_values *values, follow_begin_fn *begin,
               const void *options)
{
    struct session session;
    int code = session_start(&session, common);
    return code != 0 ? code : run(&session, values, begin, options);
}

int follow_run_looking(const struct common_values *common,
                       const struct follow_values *values,
                       follow_begin_fn *begin, const void *options)
{
    struct session session;
    int code = session_start_looking(&session, common);
    return code != 0 ? code : run(&session, values, begin, options);
}

static int run(struct session *session, const struct follow_values *values,
               follow_begin_fn *begin, const void *options)
{
    struct events events;
    events_init(&events, values->json, values->quiet);
    struct follow follow;
    int code = follow_one(&follow, session, &events, begin, options);
    events_done(&events);
    session_end(session);
    return code;
}

int follow_one(struct follow *f, struct session *session, struct events *events,
               follow_begin_fn *begin, const void *options)
{
    *f = (struct follow){.session = session, .events = events};
    struct qpivot_callbacks callbacks = {
        .data = f, .event = op_on_event, .ended = op_on_ended};
    char *error = NULL;
    int r = catch_signals(f);
    if (r == 0) {
        r = begin(f, &callbacks, options, &error);
    }
    int code = outcome(f, r, error);
    close_signals(f);
    qpivot_free(error);
    return code;
}

static int catch_signals(struct follow *f)
{
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};
    /* A reader of our lines that goes away must not end a move half-way. */
    (void)signal(SIGPIPE, SIG_IGN);
    for (unsigned i = 0; i < 3; i++) {
        if (numbers[i] == SIGHUP && ignored(SIGHUP)) {
            continue; /* nohup */
        }
        uv_signal_t *handle = &f->signals[f->n_open];
        int r = uv_signal_init(f->session->loop, handle);
        if (r < 0) {
            return r;
        }
        handle->data = f;
        f->n_open++;
        (void)uv_signal_start(handle, user_on_signal, numbers[i]);
        /* Alone it must not keep the loop going. */
        uv_unref((uv_handle_t *)handle);
    }
    return 0;
}

/*
 * Waits until it has ended; with a negative 'r' (what the library returned
 * instead of an operation) it only prints 'error'. Returns the exit code.
 */
static int outcome(struct follow *f, int r, const char *error)
{
    int code = EXIT_USAGE;
    if (r < 0) {
        events_refused(f->events, error != NULL ? error : strerror(-r));
    } else if (!session_wait(f->session, &f->ended)) {
        events_refused(f->events, "the operation stopped without a result");
        code = EXIT_PARKED;
    } else {
        code = f->outcome;
    }
    if (!f->events->told_end && code == EXIT_PARKED) {
        error_say(NULL, "let go of the operation; it stays as it is now");
        error_hint("qpivot recover");
    }
    return code;
}

static void op_on_event(void *data, const char *json)
{
    struct follow *f = data;
    events_show(f->events, json);
}

static void op_on_ended(void *data, enum qpivot_outcome outcome)
{
    struct follow *f = data;
    f->op = NULL;
    f->transfer = NULL;
    f->request = NULL;
    f->outcome = (int)outcome;
    f->ended = true;
}

static void user_on_signal(uv_signal_t *handle, int number)
{
    struct follow *f = handle->data;
    if (f->transfer != NULL) {
        terminal_hide(&f->events->terminal);
        qpivot_transfer_cancel(f->transfer);
        return;
    }
    if (f->request != NULL) {
        terminal_hide(&f->events->terminal);
        qpivot_request_detach(f->request);
        return;
    }
    if (f->op == NULL) {
        return;
    }
    f->n_signals++;
    if (f->n_signals > 1) {
        qpivot_op_detach(f->op);
        return;
    }
    terminal_hide(&f->events->terminal);
    const char *name = number == SIGINT ? "interrupted" : "told to stop";
    int r = qpivot_op_abort(f->op);
    if (r == -EALREADY) {
        error_say(NULL, "%s: too late, the guest uses the targets; going on",
                  name);
    } else {
        error_say(NULL, "%s: going back; once more lets go at once", name);
    }
}

static void signal_on_closed(uv_handle_t *handle)
{
    struct follow *f = handle->data;
    f->n_open--;
    f->signals_closed = f->n_open == 0;
}

static bool ignored(int number)
{
    struct sigaction action;
    return sigaction(number, NULL, &action) == 0 &&
           action.sa_handler == SIG_IGN;
}

static void close_signals(struct follow *f)
{
    unsigned n = f->n_open;
    for (unsigned i = 0; i < n; i++) {
        uv_close((uv_handle_t *)&f->signals[i], signal_on_closed);
    }
    f->signals_closed = n == 0;
    (void)session_wait(f->session, &f->signals_closed);
}
