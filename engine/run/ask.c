/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "run/ask.h"

#include <errno.h>
#include <string.h>

#include "base/err.h"
#include "base/proc.h"
#include "base/str.h"
#include "run/journal.h"
#include "run/op-private.h"

enum { LOOK_MS = 200, ID_SIZE = 20 };

struct ask {
    uv_loop_t *loop;
    struct journal *journal;
    struct ask_callbacks callbacks;
    char *op;
    char *word;
    json_t *args;
    char id[ID_SIZE]; /* what the answer to this request carries */
    unsigned n_asked; /* each engine that takes it up is asked anew */
    unsigned notice_ms;
    unsigned timeout_ms;
    uint64_t begun_ms;
    uint64_t asked_ms; /* 0: not yet */
    bool written;      /* ... and the journal has it */
    struct journal_place place;
    bool accepted;
    bool parked; /* ... and it has stopped for a person since */
    uv_timer_t timer;
};

static void ask_on_timer(uv_timer_t *timer);
static bool ask_read(struct ask *ask);
static bool ask_on_record(struct ask *ask, const json_t *record);
static void ask_request(struct ask *ask);
static void ask_on_written(void *data, const struct err *err);
static void ask_end(struct ask *ask, enum ask_end end, const struct err *err);
static void report_read(const json_t *operation, struct ask_report *ret);
static void ask_free(struct ask *ask);
static void ask_on_closed(uv_handle_t *handle);

int ask_start(const struct ask_options *options,
              const struct ask_callbacks *callbacks, struct ask **ret,
              struct err **errp)
{
    json_auto_t *operation = NULL;
    int r = journal_load(options->journal, options->op, &operation, errp);
    if (r < 0) {
        return r;
    }
    struct ask *ask = calloc(1, sizeof(*ask));
    if (ask == NULL) {
        return err_set(errp, -ENOMEM, options->op, "out of memory");
    }
    ask->loop = options->loop;
    ask->journal = options->journal;
    ask->callbacks = *callbacks;
    ask->op = strdup(options->op);
    ask->word = strdup(options->word);
    ask->args =
        options->args != NULL ? json_deep_copy(options->args) : json_object();
    ask->notice_ms = options->notice_ms;
    ask->timeout_ms = options->timeout_ms;
    ask->begun_ms = uv_now(options->loop);
    if (ask->op == NULL || ask->word == NULL || ask->args == NULL ||
        uv_timer_init(ask->loop, &ask->timer) < 0) {
        ask_free(ask);
        return err_set(errp, -ENOMEM, options->op, "out of memory");
    }
    const json_t *records = json_object_get(operation, "records");
    size_t n = json_array_size(records);
    if (n > 0) {
        ask->place.seq = json_integer_value(
            json_object_get(json_array_get(records, n - 1), "seq"));
    }
    ask->timer.data = ask;
    (void)uv_timer_start(&ask->timer, ask_on_timer, 0, LOOK_MS);
    *ret = ask;
    return 0;
}

void ask_stop(struct ask *ask)
{
    if (ask != NULL && !uv_is_closing((uv_handle_t *)&ask->timer)) {
        journal_forget(ask->journal, ask);
        uv_close((uv_handle_t *)&ask->timer, ask_on_closed);
    }
}

/* The records first: an engine writes how it ended before it lets go. */
static void ask_on_timer(uv_timer_t *timer)
{
    struct ask *ask = timer->data;
    uint64_t now = uv_now(ask->loop);
    bool held = journal_is_locked(ask->journal, ask->op);
    if (ask_read(ask)) {
        return;
    }
    if (!held) {
        ask_end(ask, ask->parked ? ASK_OVER : ASK_FREE, NULL);
    } else if (ask->asked_ms == 0) {
        ask_request(ask);
    } else if (!ask->accepted && now - ask->asked_ms >= ask->notice_ms) {
        ask_end(ask, ASK_SILENT, NULL);
    } else if (now - ask->begun_ms >= ask->timeout_ms) {
        ask_end(ask, ask->accepted ? ASK_LATE : ASK_SILENT, NULL);
    }
}

/* Whether that was the end of it. */
static bool ask_read(struct ask *ask)
{
    json_auto_t *records = NULL;
    _cleanup_err_ struct err *err = NULL;
    int r = journal_news(ask->journal, ask->op, JOURNAL_ANY, &ask->place,
                         &records, &err);
    if (r < 0) {
        ask_end(ask, ASK_FAILED, err);
        return true;
    }
    size_t i;
    json_t *record;
    json_array_foreach(records, i, record) {
        if (uv_is_closing((uv_handle_t *)&ask->timer) ||
            ask_on_record(ask, record)) {
            return true;
        }
    }
    return uv_is_closing((uv_handle_t *)&ask->timer);
}

static bool is_over(const char *state)
{
    return str_eq(state, "done") || str_eq(state, "undone") ||
           str_eq(state, "refused");
}

static bool ask_on_record(struct ask *ask, const json_t *record)
{
    const char *kind = json_string_value(json_object_get(record, "kind"));
    const char *step = json_string_value(json_object_get(record, "step"));
    const json_t *data = json_object_get(record, "data");
    const char *id = json_string_value(json_object_get(data, "id"));
    if (ask->callbacks.record != NULL) {
        ask->callbacks.record(ask->callbacks.data, record);
    }
    if (str_eq(kind, journal_kind_name(JOURNAL_OWNER))) {
        ask->written = false;
        ask->id[0] = '\0';
        ask->asked_ms = 0; /* what the one before was asked is history */
        ask->accepted = ask->parked = false;
    } else if (str_eq(kind, journal_kind_name(JOURNAL_STATE))) {
        ask->parked = ask->accepted && str_eq(step, "parked");
        if (is_over(step)) {
            ask_end(ask, ASK_OVER, NULL);
            return true;
        }
    } else if (str_eq(kind, journal_kind_name(JOURNAL_ANSWER)) &&
               str_eq(id, ask->id)) {
        _cleanup_err_ struct err *err =
            err_from_json(json_object_get(data, "error"));
        if (!json_is_true(json_object_get(data, "accepted"))) {
            ask_end(ask, ASK_REFUSED, err);
            return true;
        }
        ask->accepted = true;
    }
    return false;
}

static void ask_request(struct ask *ask)
{
    _cleanup_err_ struct err *err = NULL;
    (void)snprintf(ask->id, sizeof(ask->id), "%d-%x%u", uv_os_getpid(),
                   (unsigned)op_now_us() & 0xffffff, ask->n_asked++);
    ask->asked_ms = uv_now(ask->loop);
    int r = json_object_set_new(ask->args, "id", json_string(ask->id));
    if (r == 0) {
        r = journal_append(ask->journal, ask->op, JOURNAL_REQUEST, ask->word,
                           ALL_DISKS, ask->args, op_now_us(), ask_on_written,
                           ask);
    }
    if (r < 0) {
        (void)err_set(&err, r, ask->op, "journal cannot be written");
        ask_end(ask, ASK_FAILED, err);
    }
}

static void ask_on_written(void *data, const struct err *err)
{
    struct ask *ask = data;
    ask->written = err == NULL;
    if (err != NULL) {
        ask_end(ask, ASK_FAILED, err);
    }
}

static void ask_end(struct ask *ask, enum ask_end end, const struct err *err)
{
    struct ask_callbacks callbacks = ask->callbacks;
    json_auto_t *operation = NULL;
    struct ask_report report = {0};
    int r = journal_load(ask->journal, ask->op, &operation, NULL);
    if (r == 0) {
        report_read(operation, &report);
        report.asked = ask->written;
        end = end == ASK_FREE && is_over(report.state) ? ASK_OVER : end;
    }
    ask_stop(ask);
    callbacks.ended(callbacks.data, end, r == 0 ? &report : NULL, err);
}

static void report_read(const json_t *operation, struct ask_report *ret)
{
    static const struct {
        const char *kind;
        const char *phase;
    } phases[] = {
        {"intent", "run"   },
        {"end",    "ended" },
        {"undo",   "undo"  },
        {"undone", "undone"}
    };

    uint64_t start = 0;
    const json_t *disks =
        json_object_get(json_object_get(operation, "plan"), "disks");
    *ret = (struct ask_report){
        .operation = operation, .step = "", .disk = "", .phase = "run"};
    ret->state = json_string_value(json_object_get(operation, "state"));
    size_t i;
    json_t *record;
    json_array_foreach(json_object_get(operation, "records"), i, record) {
        const char *kind = json_string_value(json_object_get(record, "kind"));
        const char *step = json_string_value(json_object_get(record, "step"));
        const json_t *data = json_object_get(record, "data");
        json_int_t disk = json_integer_value(json_object_get(record, "disk"));
        const char *name = json_string_value(
            json_object_get(json_array_get(disks, (size_t)disk), "disk"));
        for (unsigned k = 0; k < ARRAY_SIZE(phases); k++) {
            if (str_eq(kind, phases[k].kind)) {
                ret->step = step;
                ret->phase = phases[k].phase;
                ret->disk = disk >= 0 && name != NULL ? name : "";
            }
        }
        if (str_eq(kind, journal_kind_name(JOURNAL_OWNER))) {
            ret->pid =
                (uint64_t)json_integer_value(json_object_get(data, "pid"));
            start =
                (uint64_t)json_integer_value(json_object_get(data, "start"));
        }
    }
    ret->alive = ret->pid != 0 && start != 0 && proc_start(ret->pid) == start;
    ret->stopped = ret->alive && proc_is_stopped(ret->pid);
}

static void ask_free(struct ask *ask)
{
    free(ask->op);
    free(ask->word);
    json_decref(ask->args);
    free(ask);
}

static void ask_on_closed(uv_handle_t *handle)
{
    ask_free(handle->data);
}
