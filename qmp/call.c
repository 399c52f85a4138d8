/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Calls: ids, the window, deadlines, and the watchdog over in-band commands.
 *
 * A call that timed out or was cancelled after it was sent keeps its place
 * until QEMU replies: QEMU executes in-band commands one by one, and with OOB
 * on it stops reading when more than 8 wait (docs/interop/qmp-spec), so that
 * not even an out-of-band command would reach it.
 */
#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/cleanup.h"
#include "base/err.h"
#include "base/str.h"
#include "qmp/conn.h"
#include "qmp/trace.h"

enum { ID_MAX = 40, AS_VALUE = JSON_COMPACT | JSON_ENCODE_ANY };

#define FRAME "{\"exec-oob\":,\"arguments\":,\"id\":\"\"}\n"

enum call_state {
    CALL_WAITING,
    CALL_FLYING,
    CALL_GIVEN_UP, /* sent, and nobody waits for the reply any more */
};

struct qmp_call {
    struct list_node node;
    struct qmp *qmp;
    enum call_state state;
    bool oob;
    char id[ID_MAX];
    const char *command; /* both are in 'names' */
    const char *object;
    char *text; /* what is to be sent; NULL once it was */
    size_t length;
    json_t *traced; /* the same for the trace; NULL without one */
    unsigned timeout_ms;
    uint64_t due; /* ms; 0: none */
    qmp_reply_fn *cb;
    void *data;
    char names[];
};

static int call_new(struct qmp *qmp, const struct qmp_command *what,
                    const struct qmp_call_options *options,
                    struct qmp_call **ret);
static int call_encode(struct qmp_call *call, const json_t *args);
static size_t quote(const char *text, char *to, size_t size);
static int call_keep_traced(struct qmp_call *call, const json_t *args);
static struct qmp_call *call_free(struct qmp_call *call);
DEFINE_CLEANUP(struct qmp_call, call_free)
static struct qmp_call *call_of(struct list_node *node);
static void call_set_state(struct qmp_call *call, enum call_state state);
static void call_deliver(struct qmp_call *call, const struct err *err,
                         json_t *result);
static void call_expire(struct qmp_call *call);
static int call_start(struct qmp_call *call);
static void call_take_off(struct qmp_call *call);
static void call_unlink(struct qmp_call *call);
static void calls_pump(struct qmp *qmp);
static struct qmp_call *calls_find(struct calls *calls, const char *id);
static struct qmp_call *calls_first_due(struct calls *calls, uint64_t now,
                                        uint64_t *ret_next);
static bool calls_check_stall(struct qmp *qmp, uint64_t now);
static void calls_on_progress(struct qmp *qmp);

int qmp_execute(struct qmp *qmp, const char *command, const json_t *args,
                const struct qmp_call_options *options, qmp_reply_fn *cb,
                void *data, struct qmp_call **ret)
{
    static const struct qmp_call_options defaults = {0};
    options = options != NULL ? options : &defaults;
    if (qmp->state != QMP_OPEN) {
        return -ENOTCONN;
    }
    if (options->oob && !qmp->oob) {
        return -ENOTSUP;
    }
    struct qmp_command what = {.command = command,
                               .args = args,
                               .object = options->object,
                               .cb = cb,
                               .data = data};
    struct qmp_call *call = NULL;
    int r = call_new(qmp, &what, options, &call);
    if (r == 0) {
        r = call_start(call);
    }
    if (r < 0) {
        (void)call_free(call);
        return r;
    }
    if (ret != NULL) {
        *ret = call;
    }
    return 0;
}

int qmp_execute_batch(struct qmp *qmp, const struct qmp_command *commands,
                      unsigned n_commands, unsigned timeout_ms)
{
    if (n_commands == 0 || n_commands > QMP_BATCH_MAX) {
        return -EINVAL;
    }
    if (qmp->state != QMP_OPEN) {
        return -ENOTCONN;
    }
    /* what waits before them would make it two writes */
    if (!list_empty(&qmp->calls.waiting) || !out_empty(&qmp->out)) {
        return -EAGAIN;
    }
    const struct qmp_call_options options = {.timeout_ms = timeout_ms};
    struct qmp_call *calls[QMP_BATCH_MAX] = {NULL};
    struct out all = {0};
    int r = 0;
    for (unsigned i = 0; i < n_commands && r == 0; i++) {
        r = call_new(qmp, &commands[i], &options, &calls[i]);
        if (r == 0) {
            r = out_append(&all, calls[i]->text, calls[i]->length);
        }
    }
    if (r == 0) {
        r = conn_send(qmp, all.data, all.end);
    }
    for (unsigned i = 0; i < n_commands; i++) {
        if (r < 0) {
            (void)call_free(calls[i]);
        } else {
            call_take_off(calls[i]);
            if (commands[i].ret != NULL) {
                *commands[i].ret = calls[i];
            }
        }
    }
    out_done(&all);
    return r;
}

void qmp_call_cancel(struct qmp_call *call)
{
    if (call->state == CALL_WAITING) {
        call_unlink(call);
        (void)call_free(call);
        return;
    }
    if (call->state == CALL_FLYING) {
        call_set_state(call, CALL_GIVEN_UP);
    }
}

void calls_init(struct calls *calls)
{
    list_init(&calls->waiting);
    list_init(&calls->flying);
    /*
     * QEMU may answer a command of the client before us to us. An id that we
     * never use again keeps its reply from being taken for one of ours. Where
     * there is no randomness at all yet, the address must do.
     */
    if (getrandom(&calls->nonce, sizeof(calls->nonce), GRND_NONBLOCK) !=
        (ssize_t)sizeof(calls->nonce)) {
        calls->nonce = (uint32_t)((uintptr_t)calls >> 4) ^ (uint32_t)getpid();
    }
}

int calls_negotiate(struct qmp *qmp, const json_t *args, qmp_reply_fn *cb)
{
    const struct qmp_call_options options = {0};
    struct qmp_command what = {
        .command = "qmp_capabilities", .args = args, .cb = cb, .data = qmp};
    struct qmp_call *call = NULL;
    int r = call_new(qmp, &what, &options, &call);
    if (r == 0) {
        r = call_start(call);
    }
    if (r < 0) {
        (void)call_free(call);
    }
    return r;
}

void calls_on_reply(struct qmp *qmp, json_t *message)
{
    /*
     * An id that is not ours is no fault: the freeze watchdog of engine/run
     * writes into this very socket, and replies to a former client happen.
     */
    const char *id = json_string_value(json_object_get(message, "id"));
    struct qmp_call *call = id ? calls_find(&qmp->calls, id) : NULL;
    if (call == NULL) {
        return;
    }
    bool oob = call->oob;
    call_unlink(call);
    calls_pump(qmp);
    _cleanup_err_ struct err *err = NULL;
    const json_t *error = json_object_get(message, "error");
    if (error != NULL) {
        const char *class = json_string_value(json_object_get(error, "class"));
        const char *desc = json_string_value(json_object_get(error, "desc"));
        (void)err_set_qmp(&err, call->object ? call->object : qmp_name(qmp),
                          call->command, class ? class : "GenericError",
                          desc ? desc : "no description");
    }
    call_deliver(call, error ? err_or_nomem(err) : NULL,
                 json_object_get(message, "return"));
    (void)call_free(call);
    if (!oob) {
        calls_on_progress(qmp);
    }
}

void calls_on_time(struct qmp *qmp, uint64_t now)
{
    uint64_t next = UINT64_MAX;
    for (;;) {
        struct qmp_call *call = calls_first_due(&qmp->calls, now, &next);
        if (call == NULL) {
            break;
        }
        call_expire(call);
        if (qmp->state >= QMP_LOST) {
            return;
        }
    }
    if (next != UINT64_MAX) {
        conn_wake_at(qmp, next);
    }
    if (calls_check_stall(qmp, now) && qmp->owner.stalled != NULL) {
        list_foreach(node, &qmp->calls.flying) {
            if (!call_of(node)->oob) {
                qmp->owner.stalled(qmp->owner.data, call_of(node)->command);
                return;
            }
        }
    }
}

void calls_fail(struct qmp *qmp, const struct err *err)
{
    struct calls *calls = &qmp->calls;
    for (;;) {
        struct list_node *node = !list_empty(&calls->flying)
                                     ? calls->flying.next
                                     : calls->waiting.next;
        if (node == &calls->waiting) {
            return;
        }
        struct qmp_call *call = call_of(node);
        call_unlink(call);
        /* a connection that is closed meanwhile cancels the rest just here */
        call_deliver(call, err_or_nomem(err), NULL);
        (void)call_free(call);
    }
}

static int call_new(struct qmp *qmp, const struct qmp_command *what,
                    const struct qmp_call_options *options,
                    struct qmp_call **ret)
{
    if (qmp->calls.n_pending >= CALL_PENDING_MAX) {
        return -ENOBUFS;
    }
    size_t n_command = strlen(what->command) + 1;
    size_t n_object = what->object != NULL ? strlen(what->object) + 1 : 0;
    _cleanup_(call_freep) struct qmp_call *call =
        calloc(1, sizeof(*call) + n_command + n_object);
    if (call == NULL) {
        return -ENOMEM;
    }
    call->command = memcpy(call->names, what->command, n_command);
    if (n_object > 0) {
        call->object = memcpy(call->names + n_command, what->object, n_object);
    }
    call->qmp = qmp;
    call->oob = options->oob;
    call->cb = what->cb;
    call->data = what->data;
    call->timeout_ms = options->timeout_ms;
    if (options->timeout_ms > 0) {
        call->due = conn_now(qmp) + options->timeout_ms;
    }
    qmp->calls.serial++;
    (void)snprintf(call->id, sizeof(call->id), "qpv-%08x-%llu",
                   qmp->calls.nonce, (unsigned long long)qmp->calls.serial);
    int r = call_encode(call, what->args);
    if (r == 0) {
        *ret = TAKE_PTR(call);
    }
    return r;
}

/*
 * By hand, as the frame is always the same: the members of a JSON object that
 * is built only to be written out cost more than all the rest of a call.
 */
static int call_encode(struct qmp_call *call, const json_t *args)
{
    size_t n_name = quote(call->command, NULL, 0);
    size_t n_args = args != NULL ? json_dumpb(args, NULL, 0, AS_VALUE) : 0;
    if (n_name == 0 || (args != NULL && n_args == 0)) {
        return -EINVAL; /* a command that is not UTF-8, or no memory */
    }
    char *text = malloc(n_name + n_args + ID_MAX + sizeof(FRAME));
    if (text == NULL) {
        return -ENOMEM;
    }
    call->text = text;
    char *at = stpcpy(text, call->oob ? "{\"exec-oob\":" : "{\"execute\":");
    size_t written = quote(call->command, at, n_name);
    at += n_name;
    if (args != NULL) {
        at = stpcpy(at, ",\"arguments\":");
        written += json_dumpb(args, at, n_args, AS_VALUE);
        at += n_args;
    }
    at = stpcpy(stpcpy(stpcpy(at, ",\"id\":\""), call->id), "\"}\n");
    call->length = (size_t)(at - text);
    if (written != n_name + n_args) {
        return -ENOMEM;
    }
    return call->qmp->trace != NULL ? call_keep_traced(call, args) : 0;
}

/* Like json_dumpb(), of a text; QEMU's names are JSON as they stand. */
static size_t quote(const char *text, char *to, size_t size)
{
    size_t n = 0;
    while (isalnum((unsigned char)text[n]) || text[n] == '-' ||
           text[n] == '_') {
        n++;
    }
    if (text[n] != '\0') {
        json_auto_t *json = json_string(text);
        return json_dumpb(json, to, size, AS_VALUE);
    }
    if (size >= n + 2) {
        to[0] = to[n + 1] = '"';
        memcpy(to + 1, text, n);
    }
    return n + 2;
}

/* A copy: the caller's args may change before their turn comes. */
static int call_keep_traced(struct qmp_call *call, const json_t *args)
{
    json_auto_t *message =
        json_pack("{s:s, s:O*, s:s}", call->oob ? "exec-oob" : "execute",
                  call->command, "arguments", args, "id", call->id);
    call->traced = message != NULL ? qmp_redact(message) : NULL;
    return 0;
}

static struct qmp_call *call_free(struct qmp_call *call)
{
    if (call != NULL) {
        if (call->text != NULL) {
            explicit_bzero(call->text, call->length);
        }
        free(call->text);
        json_decref(call->traced);
        free(call);
    }
    return NULL;
}

static struct qmp_call *call_of(struct list_node *node)
{
    return container_of(node, struct qmp_call, node);
}

static void call_set_state(struct qmp_call *call, enum call_state state)
{
    assert(state == call->state + 1); /* there is no other way */
    call->state = state;
    if (state == CALL_GIVEN_UP) {
        call->cb = NULL;
        call->due = 0;
    }
}

static void call_deliver(struct qmp_call *call, const struct err *err,
                         json_t *result)
{
    qmp_reply_fn *cb = TAKE_PTR(call->cb);
    if (cb != NULL) {
        cb(call->data, err, err == NULL ? result : NULL);
    }
}

static void call_expire(struct qmp_call *call)
{
    struct qmp *qmp = call->qmp;
    _cleanup_err_ struct err *err = NULL;
    bool sent = call->state != CALL_WAITING;
    (void)err_set(&err, -ETIMEDOUT, call->object ? call->object : qmp_name(qmp),
                  sent ? "%s: no reply within %u ms, what it did is unknown"
                       : "%s: not sent within %u ms, the commands before it "
                         "are not answered",
                  call->command, call->timeout_ms);
    qmp_reply_fn *cb = call->cb;
    void *data = call->data;
    if (sent) {
        call_set_state(call, CALL_GIVEN_UP);
    } else {
        call_unlink(call);
        (void)call_free(call);
    }
    if (cb != NULL) {
        cb(data, err_or_nomem(err), NULL);
    }
}

/* Sends it, or lets it wait for its turn. */
static int call_start(struct qmp_call *call)
{
    struct qmp *qmp = call->qmp;
    struct calls *calls = &qmp->calls;
    if (!call->oob &&
        (!list_empty(&calls->waiting) || calls->n_in_band >= CALL_WINDOW)) {
        list_append(&calls->waiting, &call->node);
        calls->n_pending++;
        if (call->due != 0) {
            conn_wake_at(qmp, call->due);
        }
        return 0;
    }
    int r = conn_send(qmp, call->text, call->length);
    if (r == 0) {
        call_take_off(call);
    }
    return r;
}

/* It is on the wire: from now on a reply is due. */
static void call_take_off(struct qmp_call *call)
{
    struct qmp *qmp = call->qmp;
    struct calls *calls = &qmp->calls;
    explicit_bzero(call->text, call->length);
    free(TAKE_PTR(call->text));
    if (call->traced != NULL) {
        trace_message(qmp->trace, qmp_name(qmp), '>', call->traced);
    }
    call_set_state(call, CALL_FLYING);
    list_append(&calls->flying, &call->node);
    calls->n_pending++;
    if (call->due != 0) {
        conn_wake_at(qmp, call->due);
    }
    if (call->oob) {
        return;
    }
    calls->n_in_band++;
    if (calls->n_in_band == 1) {
        calls->progress = conn_now(qmp);
        conn_wake_at(qmp, calls->progress + qmp->watchdog_ms);
    }
}

static void call_unlink(struct qmp_call *call)
{
    struct calls *calls = &call->qmp->calls;
    list_remove(&call->node);
    calls->n_pending--;
    if (call->state != CALL_WAITING && !call->oob) {
        calls->n_in_band--;
    }
}

static void calls_pump(struct qmp *qmp)
{
    struct calls *calls = &qmp->calls;
    while (!list_empty(&calls->waiting) && calls->n_in_band < CALL_WINDOW) {
        struct qmp_call *call = call_of(calls->waiting.next);
        if (conn_send(qmp, call->text, call->length) < 0) {
            return; /* no memory now: the next reply tries again */
        }
        call_unlink(call);
        call_take_off(call);
    }
}

static struct qmp_call *calls_find(struct calls *calls, const char *id)
{
    list_foreach(node, &calls->flying) {
        if (str_eq(call_of(node)->id, id)) {
            return call_of(node);
        }
    }
    return NULL;
}

/* One that is due; 'ret_next' is when the others are, if there is none. */
static struct qmp_call *calls_first_due(struct calls *calls, uint64_t now,
                                        uint64_t *ret_next)
{
    struct list_node *heads[] = {&calls->flying, &calls->waiting};
    *ret_next = UINT64_MAX;
    for (unsigned i = 0; i < ARRAY_SIZE(heads); i++) {
        list_foreach(node, heads[i]) {
            struct qmp_call *call = call_of(node);
            if (call->due == 0) {
                continue;
            }
            if (call->due <= now) {
                return call;
            }
            *ret_next = call->due < *ret_next ? call->due : *ret_next;
        }
    }
    return NULL;
}

/* Whether a stall begins now. */
static bool calls_check_stall(struct qmp *qmp, uint64_t now)
{
    struct calls *calls = &qmp->calls;
    if (calls->n_in_band == 0 || calls->stalled || qmp->state != QMP_OPEN) {
        return false;
    }
    uint64_t due = calls->progress + qmp->watchdog_ms;
    if (now < due) {
        conn_wake_at(qmp, due);
        return false;
    }
    calls->stalled = true;
    return true;
}

static void calls_on_progress(struct qmp *qmp)
{
    struct calls *calls = &qmp->calls;
    if (qmp->state != QMP_OPEN) {
        return;
    }
    calls->progress = conn_now(qmp);
    if (calls->n_in_band > 0) {
        conn_wake_at(qmp, calls->progress + qmp->watchdog_ms);
    }
    if (calls->stalled) {
        calls->stalled = false;
        if (qmp->owner.flowing != NULL) {
            qmp->owner.flowing(qmp->owner.data);
        }
    }
}
