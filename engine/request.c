/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Asking for the end of an operation, whoever works on it: its engine by the
 * journal, or this one where there is none any more. What is told at the end
 * is what the journal holds by then, or what is not known.
 */
#include "request.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "api.h"
#include "base/err.h"
#include "base/str.h"
#include "engine.h"
#include "qmp/qmp.h"
#include "qpivot.h"
#include "run/ask.h"
#include "run/journal.h"
#include "run/recover.h"

enum { NOTICE_MS = 10000, TIMEOUT_MS = 180000, REAL_DIGITS = 15 };

struct qpivot_request {
    struct list_node node;
    struct qpivot_engine *engine;
    struct qpivot_callbacks callbacks;
    char *id;
    char *qmp; /* where its QEMU is now, or NULL */
    bool undo; /* from an undo window; else: abort, before the pivot */
    unsigned timeout_ms;
    uint64_t begun_ms;
    struct ask *ask; /* another engine works on it */
    struct op *op;   /* this one does */
    json_t *failed;  /* why the undo that was asked for did not happen */
    uv_timer_t timer;
    bool detached;
    bool late; /* this engine has not ended it in time */
    enum qpivot_outcome outcome;
};

static int ask(struct qpivot_request *request, struct err **errp);
static void request_on_record(void *data, const json_t *record);
static void request_on_ended(void *data, enum ask_end end,
                             const struct ask_report *report,
                             const struct err *err);
static void take_over(struct qpivot_request *request);
static void op_on_event(void *data, const char *text);
static void op_on_ended(void *data, enum qpivot_outcome outcome);
static void request_on_timer(uv_timer_t *timer);
static void tell_over(struct qpivot_request *request,
                      const struct ask_report *report);
static json_t *command(const char *verb, const char *op);
static bool tell_back(struct qpivot_request *request, json_t *event);
static void tell_late(struct qpivot_request *request, json_t *event);
static void tell_unknown(struct qpivot_request *request, enum ask_end end,
                         const struct ask_report *report);
static void refuse(struct qpivot_request *request, const struct err *err,
                   enum qpivot_outcome outcome);
static void emit(struct qpivot_request *request, const char *event,
                 json_t *data);
static void request_end(struct qpivot_request *request,
                        enum qpivot_outcome outcome);
static void request_on_closed(uv_handle_t *handle);
static void request_free(struct qpivot_request *request);

static int start(struct qpivot_engine *engine,
                 const struct qpivot_abort_options *options, bool undo,
                 const struct qpivot_callbacks *callbacks,
                 struct qpivot_request **ret, char **ret_error);

int qpivot_abort(struct qpivot_engine *engine,
                 const struct qpivot_abort_options *options,
                 const struct qpivot_callbacks *callbacks,
                 struct qpivot_request **ret, char **ret_error)
{
    return start(engine, options, false, callbacks, ret, ret_error);
}

int qpivot_undo(struct qpivot_engine *engine,
                const struct qpivot_abort_options *options,
                const struct qpivot_callbacks *callbacks,
                struct qpivot_request **ret, char **ret_error)
{
    return start(engine, options, true, callbacks, ret, ret_error);
}

static int start(struct qpivot_engine *engine,
                 const struct qpivot_abort_options *options, bool undo,
                 const struct qpivot_callbacks *callbacks,
                 struct qpivot_request **ret, char **ret_error)
{
    _cleanup_err_ struct err *err = NULL;
    if (engine == NULL || options == NULL || callbacks == NULL ||
        options->size < sizeof(*options) || options->op == NULL ||
        engine_journal(engine) == NULL) {
        return -EINVAL;
    }
    struct qpivot_request *request = calloc(1, sizeof(*request));
    if (request == NULL) {
        return -ENOMEM;
    }
    request->engine = engine;
    request->undo = undo;
    request->callbacks = *callbacks;
    request->id = strdup(options->op);
    request->qmp =
        options->qmp != NULL ? qmp_addr_absolute(options->qmp) : NULL;
    request->timeout_ms =
        options->timeout_ms != 0 ? options->timeout_ms : TIMEOUT_MS;
    request->begun_ms = uv_now(engine_loop(engine));
    int r =
        request->id == NULL || (options->qmp != NULL && request->qmp == NULL)
            ? -ENOMEM
            : ask(request, &err);
    if (r < 0) {
        request_free(request);
        return api_error(err, r, ret_error);
    }
    (void)uv_timer_init(engine_loop(engine), &request->timer);
    request->timer.data = request;
    engine_hold(engine);
    list_append(engine_requests(engine), &request->node);
    if (ret != NULL) {
        *ret = request;
    }
    return 0;
}

void qpivot_request_detach(struct qpivot_request *request)
{
    if (request != NULL && !request->detached) {
        request->detached = true;
        if (request->op != NULL) {
            op_detach(request->op);
        } else {
            (void)uv_timer_start(&request->timer, request_on_timer, 0, 0);
        }
    }
}

void request_detach_all(const struct list_node *requests)
{
    list_foreach(node, requests) {
        qpivot_request_detach(container_of(node, struct qpivot_request, node));
    }
}

/* --- another engine works on it --- */

static unsigned left_ms(const struct qpivot_request *request)
{
    uint64_t spent = uv_now(engine_loop(request->engine)) - request->begun_ms;
    return spent < request->timeout_ms ? request->timeout_ms - (unsigned)spent
                                       : 0;
}

static int ask(struct qpivot_request *request, struct err **errp)
{
    struct ask_options options = {
        .loop = engine_loop(request->engine),
        .journal = engine_journal(request->engine),
        .op = request->id,
        .word = request->undo ? OP_WORD_UNDO : OP_WORD_ABORT,
        .notice_ms = NOTICE_MS,
        .timeout_ms = left_ms(request),
    };
    struct ask_callbacks callbacks = {.data = request,
                                      .record = request_on_record,
                                      .ended = request_on_ended};
    return ask_start(&options, &callbacks, &request->ask, errp);
}

/* As the operation's own events: step by step. */
static void request_on_record(void *data, const json_t *record)
{
    static const struct {
        enum journal_kind kind;
        const char *state;
    } rows[] = {
        {JOURNAL_INTENT, "start" },
        {JOURNAL_END,    "end"   },
        {JOURNAL_UNDO,   "undo"  },
        {JOURNAL_UNDONE, "undone"},
    };

    struct qpivot_request *request = data;
    const char *kind = json_string_value(json_object_get(record, "kind"));
    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
        if (str_eq(kind, journal_kind_name(rows[i].kind))) {
            emit(request, "step",
                 json_pack("{s:O, s:s}", "step",
                           json_object_get(record, "step"), "state",
                           rows[i].state));
        }
    }
    json_t *why = json_object_get(json_object_get(record, "data"), "error");
    if (request->undo && str_eq(kind, journal_kind_name(JOURNAL_STATE)) &&
        str_eq(json_string_value(json_object_get(record, "step")), "running") &&
        why != NULL) {
        /* It has tried, and goes on forward: nothing else will come of it. */
        json_decref(request->failed);
        request->failed = json_incref(why);
        request->detached = true;
        (void)uv_timer_start(&request->timer, request_on_timer, 0, 0);
    }
}

static void request_on_ended(void *data, enum ask_end end,
                             const struct ask_report *report,
                             const struct err *err)
{
    struct qpivot_request *request = data;
    request->ask = NULL;
    if (report == NULL || end == ASK_FAILED) {
        refuse(request, err, QPIVOT_PARKED);
        return;
    }
    switch (end) {
    case ASK_OVER:
        tell_over(request, report);
        break;
    case ASK_FREE:
        take_over(request);
        break;
    case ASK_REFUSED:
        if (err != NULL && str_eq(err->class, "EALREADY")) {
            tell_late(request, json_object());
            request_end(request, QPIVOT_REFUSED);
        } else {
            refuse(request, err, QPIVOT_PARKED);
        }
        break;
    case ASK_SILENT:
    case ASK_LATE:
    case ASK_FAILED:
        tell_unknown(request, end, report);
        break;
    }
}

/* --- nobody does: this one takes it up --- */

static void take_over(struct qpivot_request *request)
{
    _cleanup_err_ struct err *err = NULL;
    struct op_host host = engine_host(request->engine);
    struct qpivot_callbacks callbacks = {
        .data = request, .event = op_on_event, .ended = op_on_ended};
    struct qpivot_recover_options options = {.size = sizeof(options),
                                             .op = request->id,
                                             .qmp = request->qmp,
                                             .undo = request->undo ? 2 : 1};
    int r = recover_start(&host, engine_operation, &options, &callbacks,
                          &request->op, &err);
    if (r == -EBUSY || (r == -EALREADY && !request->undo)) {
        /* Somebody was faster: it is his now, or over. */
        r = ask(request, &err);
        if (r == 0) {
            return;
        }
    }
    if (r < 0) {
        refuse(request, err, r == -EALREADY ? QPIVOT_REFUSED : QPIVOT_PARKED);
        return;
    }
    (void)uv_timer_start(&request->timer, request_on_timer, left_ms(request),
                         0);
}

/* The way back is what was asked for: that it failed is the operation's. */
static void op_on_event(void *data, const char *text)
{
    struct qpivot_request *request = data;
    json_auto_t *event = json_loads(text, 0, NULL);
    const char *name = json_string_value(json_object_get(event, "event"));
    if (str_eq(name, "done")) {
        tell_late(request, json_incref(event));
    } else if (str_eq(name, "failed")) {
        tell_back(request, json_incref(event));
    } else if (str_eq(name, "parked")) {
        if (request->late) {
            _cleanup_err_ struct err *err = NULL;
            (void)err_set(&err, -ETIMEDOUT, request->id,
                          "is not back after %u ms: this engine has let go of"
                          " it",
                          request->timeout_ms);
            (void)json_object_set_new(event, "error", err_to_json(err));
        }
        (void)json_object_set_new(event, "answer", json_string("unknown"));
        emit(request, "parked", json_incref(event));
    } else if (request->callbacks.event != NULL) {
        request->callbacks.event(request->callbacks.data, text);
    }
}

static void op_on_ended(void *data, enum qpivot_outcome outcome)
{
    struct qpivot_request *request = data;
    request->op = NULL;
    request_end(request, outcome == QPIVOT_DONE     ? QPIVOT_REFUSED
                         : outcome == QPIVOT_FAILED ? QPIVOT_DONE
                                                    : outcome);
}

/* Too long, or the user follows no more. */
static void request_on_timer(uv_timer_t *timer)
{
    struct qpivot_request *request = timer->data;
    if (request->op != NULL) {
        request->late = true;
        op_detach(request->op);
    } else if (request->ask != NULL) {
        _cleanup_err_ struct err *err = NULL;
        ask_stop(TAKE_PTR(request->ask));
        if (request->failed != NULL) {
            emit(request, "failed",
                 json_pack("{s:s, s:O}", "answer", "too-late", "error",
                           request->failed));
            request_end(request, QPIVOT_REFUSED);
            return;
        }
        (void)err_set(&err, -ECANCELED, request->id,
                      "not followed any more: what was asked for stays asked");
        refuse(request, err, QPIVOT_PARKED);
    }
}

/* --- what is told --- */

static void tell_over(struct qpivot_request *request,
                      const struct ask_report *report)
{
    if (str_eq(report->state, "done")) {
        tell_late(request, json_object());
        request_end(request, QPIVOT_REFUSED);
        return;
    }
    if (str_eq(report->state, "parked")) {
        emit(request, "parked",
             json_pack(
                 "{s:s, s:O*, s:s, s:s, s:s, s:o*}", "answer", "unknown",
                 "error",
                 json_object_get(json_object_get(report->operation, "result"),
                                 "error"),
                 "step", report->step, "phase", report->phase, "disk",
                 report->disk, "next",
                 command(request->undo ? "undo" : "abort", request->id)));
        request_end(request, QPIVOT_PARKED);
        return;
    }
    bool back = tell_back(request, json_object());
    request_end(request, back ? QPIVOT_DONE : QPIVOT_REFUSED);
}

static json_t *command(const char *verb, const char *op)
{
    _cleanup_free_ char *text = str_printf("qpivot %s %s", verb, op);
    return json_string(text != NULL ? text : "");
}

/* What the undoing of the mirrors has proved; steals 'event'. */
static bool tell_back(struct qpivot_request *request, json_t *event)
{
    json_auto_t *operation = NULL;
    json_t *disks = json_array(), *unproved = json_array();
    (void)journal_load(engine_journal(request->engine), request->id, &operation,
                       NULL);
    const json_t *planned =
        json_object_get(json_object_get(operation, "plan"), "disks");
    size_t i;
    json_t *record;
    json_array_foreach(json_object_get(operation, "records"), i, record) {
        const char *kind = json_string_value(json_object_get(record, "kind"));
        json_int_t disk = json_integer_value(json_object_get(record, "disk"));
        const char *step = json_string_value(json_object_get(record, "step"));
        json_t *source = json_object_get(json_object_get(record, "data"),
                                         request->undo ? "node" : "source");
        const json_t *about = json_array_get(planned, (size_t)disk);
        enum journal_kind wanted = request->undo ? JOURNAL_END : JOURNAL_UNDONE;
        if (!str_eq(kind, journal_kind_name(wanted)) ||
            !str_eq(step, request->undo ? "return-prove" : "mirror")) {
            continue;
        }
        if (source == NULL) {
            (void)json_array_append(unproved, json_object_get(about, "disk"));
        } else {
            (void)json_array_append_new(
                disks,
                json_pack("{s:O*, s:O*, s:O}", "disk",
                          json_object_get(about, "disk"), "from",
                          json_object_get(about, "from"), "source", source));
        }
    }
    if (request->undo && json_array_size(disks) == 0) {
        /* It had never pivoted, or was over before: nothing was undone now. */
        json_decref(disks);
        json_decref(unproved);
        tell_late(request, event);
        return false;
    }
    (void)json_object_del(event, "error");
    (void)json_object_set_new(event, "disks", disks);
    (void)json_object_set_new(event, "not_proved", unproved);
    (void)json_object_set_new(event, "answer", json_string("back"));
    emit(request, "done", event);
    return true;
}

/* Steals 'event'. */
static void tell_late(struct qpivot_request *request, json_t *event)
{
    _cleanup_err_ struct err *err = NULL;
    if (request->undo) {
        (void)err_set(&err, -EALREADY, request->id,
                      "has no undo window, or it is over");
        err_hint(&err, "'qpivot show %s' tells what has become of it",
                 request->id);
    } else {
        (void)err_set(&err, -EALREADY, request->id, "too late, pivoted");
        err_hint(&err,
                 "the guest uses the targets; 'qpivot show %s' tells how far"
                 " it is; 'qpivot undo' goes back within an undo window",
                 request->id);
    }
    (void)json_object_set_new(event, "error", err_to_json(err));
    (void)json_object_set_new(event, "answer", json_string("too-late"));
    emit(request, "failed", event);
}

/* Who works on it, and what a person can do about it. */
static char *next_command(const struct qpivot_request *request,
                          const struct ask_report *report)
{
    if (report->stopped) {
        return str_printf("kill -CONT %llu", (unsigned long long)report->pid);
    }
    return str_printf("qpivot show %s", request->id);
}

static const char *what_is_known(enum ask_end end,
                                 const struct ask_report *report)
{
    return end == ASK_LATE ? "has taken notice, but is not back in time"
           : report->asked ? "has not taken notice of the request in time"
                           : "cannot be asked: the journal is held by an"
                             " engine that writes to it, perhaps this one";
}

static void hint_next(struct err **errp, const struct qpivot_request *request,
                      const struct ask_report *report)
{
    unsigned long long pid = report->pid;
    const char *stays = report->asked ? "the request stays" : "ask again";
    if (report->stopped) {
        err_hint(errp,
                 "'kill -CONT %llu': %s; or 'kill -KILL %llu', then"
                 " 'qpivot abort %s'",
                 pid, report->asked ? "it goes back then" : stays, pid,
                 request->id);
    } else {
        err_hint(errp,
                 "%s: 'qpivot abort %s' follows it; where its engine hangs,"
                 " kill that before",
                 stays, request->id);
    }
}

static void tell_unknown(struct qpivot_request *request, enum ask_end end,
                         const struct ask_report *report)
{
    _cleanup_err_ struct err *err = NULL;
    _cleanup_free_ char *next = next_command(request, report);
    _cleanup_free_ char *pid =
        str_printf("pid %llu", (unsigned long long)report->pid);
    (void)err_set(&err, -ETIMEDOUT, request->id, "its engine (%s%s) %s",
                  report->pid != 0 && pid != NULL ? pid : "of unknown pid",
                  report->stopped    ? ", stopped by a signal"
                  : report->alive    ? ", alive"
                  : report->pid != 0 ? ", not seen from here"
                                     : "",
                  what_is_known(end, report));
    hint_next(&err, request, report);
    emit(request, "parked",
         json_pack("{s:s, s:o*, s:b, s:b, s:{s:I, s:b, s:b}, s:s, s:s, s:s,"
                   " s:s, s:s}",
                   "answer", "unknown", "error", err_to_json(err), "asked",
                   report->asked, "acknowledged", end == ASK_LATE, "engine",
                   "pid", (json_int_t)report->pid, "alive", report->alive,
                   "stopped", report->stopped, "state", report->state, "step",
                   report->step, "phase", report->phase, "disk", report->disk,
                   "next", next != NULL ? next : ""));
    request_end(request, QPIVOT_PARKED);
}

static void refuse(struct qpivot_request *request, const struct err *err,
                   enum qpivot_outcome outcome)
{
    emit(request, outcome == QPIVOT_PARKED ? "parked" : "failed",
         json_pack("{s:s, s:o*}", "answer", "unknown", "error",
                   err_to_json(err)));
    request_end(request, outcome);
}

/* Steals 'data'. */
static void emit(struct qpivot_request *request, const char *event,
                 json_t *data)
{
    json_auto_t *json = data;
    char time[STR_TIME_MAX];
    uv_timeval64_t now = {0};
    (void)uv_gettimeofday(&now);
    uint64_t us = (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_usec;
    uint64_t ms = uv_now(engine_loop(request->engine)) - request->begun_ms;
    (void)json_object_set_new(json, "time", json_string(str_time(us, time)));
    (void)json_object_set_new(json, "op", json_string(request->id));
    (void)json_object_set_new(json, "event", json_string(event));
    if (!str_eq(event, "step")) {
        (void)json_object_set_new(json, "seconds",
                                  json_real((double)ms / 1000.0));
    }
    _cleanup_free_ char *text =
        json_dumps(json, JSON_COMPACT | JSON_REAL_PRECISION(REAL_DIGITS));
    if (text != NULL && request->callbacks.event != NULL) {
        request->callbacks.event(request->callbacks.data, text);
    }
}

static void request_end(struct qpivot_request *request,
                        enum qpivot_outcome outcome)
{
    request->outcome = outcome;
    request->detached = true;
    uv_close((uv_handle_t *)&request->timer, request_on_closed);
}

static void request_on_closed(uv_handle_t *handle)
{
    struct qpivot_request *request = handle->data;
    struct qpivot_engine *engine = request->engine;
    struct qpivot_callbacks callbacks = request->callbacks;
    enum qpivot_outcome outcome = request->outcome;
    list_remove(&request->node);
    request_free(request);
    if (callbacks.ended != NULL) {
        callbacks.ended(callbacks.data, outcome);
    }
    engine_release(engine);
}

static void request_free(struct qpivot_request *request)
{
    free(request->id);
    free(request->qmp);
    json_decref(request->failed);
    free(request);
}
