/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One connection: greeting, negotiation, reading and writing, its end. It
 * knows nothing of what the commands mean.
 *
 * Busy and hung are two things (seen on QEMU 7.2 to 11.1): a monitor that
 * another client holds accepts the connection and stays silent; a QEMU whose
 * main loop is frozen greets (its monitor thread does that) and then does not
 * answer qmp_capabilities.
 */
#include "qmp/conn.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/cleanup.h"
#include "base/err.h"
#include "base/str.h"
#include "qmp/trace.h"
#include "qmp/transport.h"

enum {
    DEFAULT_TIMEOUT_MS = 5000,
    SSH_CONNECT_TIMEOUT_MS = 20000, /* names, keys, jump hosts */
    READ_FIRST = 4 << 10, /* most replies; a large free() costs the next ones */
    READ_SIZE = 64 << 10,
    READS_AT_ONCE = 16, /* then other handles of the loop have their turn */
};

static bool conn_alive(const struct qmp *qmp);
static void conn_set_state(struct qmp *qmp, enum qmp_state state);
static void conn_start_phase(struct qmp *qmp, enum qmp_state state,
                             unsigned timeout_ms);
static void conn_on_connect(void *data, const struct err *err, int fd);
static void conn_on_poll(uv_poll_t *poll, int status, int events);
static void conn_on_timer(uv_timer_t *timer);
static void conn_on_phase_timeout(struct qmp *qmp);
static void conn_on_capabilities(void *data, const struct err *err,
                                 json_t *result);
static void conn_watch(struct qmp *qmp);
static void conn_read(struct qmp *qmp, bool to_end);
static bool conn_take_messages(struct qmp *qmp);
static void conn_on_message(struct qmp *qmp, json_t *message);
static void conn_on_greeting(struct qmp *qmp, const json_t *message);
static int conn_keep_version(struct qmp *qmp, const json_t *greeting);
static void conn_on_eof(struct qmp *qmp);
static void conn_fail(struct qmp *qmp, const struct err *err);
static void conn_fail_code(struct qmp *qmp, int code, const char *what);
static void conn_stop_io(struct qmp *qmp);
static void conn_on_handle_closed(uv_handle_t *handle);
static void conn_on_transport_closed(void *data);
static void conn_unref(struct qmp *qmp);
static void conn_finish(struct qmp *qmp);
static struct qmp *conn_free(struct qmp *qmp);

int qmp_open(const struct qmp_options *options, const struct qmp_owner *owner,
             qmp_open_fn *cb, void *data, struct qmp **ret, struct err **errp)
{
    const char *name = qmp_addr_text(options->addr);
    struct qmp *qmp = calloc(1, sizeof(*qmp));
    if (qmp == NULL) {
        return err_set(errp, -ENOMEM, name, "out of memory");
    }
    qmp->loop = options->loop;
    qmp->trace = options->trace;
    qmp->owner = owner != NULL ? *owner : (struct qmp_owner){0};
    unsigned timeout = options->greeting_timeout_ms;
    qmp->greeting_timeout_ms = timeout ? timeout : DEFAULT_TIMEOUT_MS;
    timeout = options->watchdog_ms;
    qmp->watchdog_ms = timeout ? timeout : DEFAULT_TIMEOUT_MS;
    timeout = options->connect_timeout_ms;
    qmp->fd = -1;
    qmp->open_cb = cb;
    qmp->open_data = data;
    wire_init(&qmp->wire, options->max_message);
    calls_init(&qmp->calls);
    list_init(&qmp->subs);
    qmp->addr = qmp_addr_copy(options->addr);
    int r = qmp->addr == NULL ? -ENOMEM : 0;
    if (r == 0) {
        bool ssh = qmp->addr->kind == QMP_ADDR_SSH;
        qmp->connect_timeout_ms = timeout ? timeout
                                  : ssh   ? SSH_CONNECT_TIMEOUT_MS
                                          : DEFAULT_TIMEOUT_MS;
        r = transport_open(qmp->loop, qmp->addr, conn_on_connect, qmp,
                           &qmp->transport);
    }
    if (r < 0) {
        (void)conn_free(qmp);
        return err_set(errp, r, name, "cannot connect: %s", strerror(-r));
    }
    (void)uv_timer_init(qmp->loop, &qmp->timer);
    qmp->timer.data = qmp;
    qmp->n_handles = 2; /* the timer and the transport */
    conn_start_phase(qmp, QMP_CONNECTING, qmp->connect_timeout_ms);
    *ret = qmp;
    return 0;
}

void qmp_close(struct qmp *qmp, qmp_close_fn *cb, void *data)
{
    assert(qmp->state != QMP_CLOSING);
    conn_set_state(qmp, QMP_CLOSING);
    qmp->close_cb = cb;
    qmp->close_data = data;
    conn_stop_io(qmp);
    uv_close((uv_handle_t *)&qmp->timer, conn_on_handle_closed);
    transport_close(TAKE_PTR(qmp->transport), conn_on_transport_closed, qmp);
}

bool qmp_has_oob(const struct qmp *qmp)
{
    return qmp->oob;
}

const char *qmp_version(const struct qmp *qmp)
{
    return qmp->version != NULL ? qmp->version : "unknown";
}

const char *qmp_name(const struct qmp *qmp)
{
    return qmp_addr_text(qmp->addr);
}

int qmp_fd(const struct qmp *qmp)
{
    return qmp->fd;
}

char *qmp_forwarded(const struct qmp *qmp, const char *name)
{
    return transport_forwarded(qmp->transport, name);
}

int qmp_lifeline_fd(const struct qmp *qmp)
{
    return transport_lifeline_fd(qmp->transport);
}

pid_t qmp_peer_pid(const struct qmp *qmp)
{
    return qmp->peer_pid;
}

int conn_send(struct qmp *qmp, const char *bytes, size_t n)
{
    size_t sent = 0;
    if (out_empty(&qmp->out)) {
        ssize_t r = send(qmp->fd, bytes, n, MSG_NOSIGNAL | MSG_DONTWAIT);
        sent = r > 0 ? (size_t)r : 0;
    }
    /*
     * A failed write is found again by the loop, which then tells: nobody is
     * called back from inside a submit.
     */
    int r = sent < n ? out_append(&qmp->out, bytes + sent, n - sent) : 0;
    if (r < 0 && sent > 0) {
        (void)shutdown(qmp->fd, SHUT_RDWR); /* half a command is no stream */
        return 0;
    }
    conn_watch(qmp);
    return r;
}

uint64_t conn_now(struct qmp *qmp)
{
    /* the loop's own value is as old as its last turn: too early a deadline */
    uv_update_time(qmp->loop);
    return uv_now(qmp->loop);
}

void conn_wake_at(struct qmp *qmp, uint64_t due)
{
    if (qmp->timer_due != 0 && qmp->timer_due <= due) {
        return;
    }
    uint64_t now = uv_now(qmp->loop);
    qmp->timer_due = due;
    (void)uv_timer_start(&qmp->timer, conn_on_timer, due > now ? due - now : 0,
                         0);
}

const struct err *err_or_nomem(const struct err *err)
{
    static char desc[] = "out of memory";
    static const struct err nomem = {.code = -ENOMEM, .desc = desc};
    return err != NULL ? err : &nomem;
}

static bool conn_alive(const struct qmp *qmp)
{
    return qmp->state < QMP_LOST;
}

static void conn_set_state(struct qmp *qmp, enum qmp_state state)
{
    static const unsigned allowed[N_QMP_STATES] = {
        [QMP_CONNECTING] = 1U << QMP_GREETING | 1U << QMP_LOST,
        [QMP_GREETING] = 1U << QMP_NEGOTIATING | 1U << QMP_LOST,
        [QMP_NEGOTIATING] = 1U << QMP_OPEN | 1U << QMP_LOST,
        [QMP_OPEN] = 1U << QMP_LOST,
    };
    /* its owner may close it in every state, once */
    assert(state == QMP_CLOSING ? qmp->state != QMP_CLOSING
                                : (allowed[qmp->state] & 1U << state) != 0);
    qmp->state = state;
}

static void conn_start_phase(struct qmp *qmp, enum qmp_state state,
                             unsigned timeout_ms)
{
    if (state != qmp->state) {
        conn_set_state(qmp, state);
    }
    qmp->phase_due = conn_now(qmp) + timeout_ms;
    conn_wake_at(qmp, qmp->phase_due);
}

static void conn_on_connect(void *data, const struct err *err, int fd)
{
    struct qmp *qmp = data;
    if (qmp->state != QMP_CONNECTING) {
        if (err == NULL) {
            (void)close(fd); /* too late: the owner was told of a time-out */
        }
        return;
    }
    if (err != NULL) {
        conn_fail(qmp, err);
        return;
    }
    int r = uv_poll_init(qmp->loop, &qmp->poll, fd);
    if (r < 0) {
        (void)close(fd);
        conn_fail_code(qmp, r, uv_strerror(r));
        return;
    }
    qmp->fd = fd;
    qmp->polling = true;
    qmp->n_handles++;
    qmp->poll.data = qmp;
    struct ucred peer;
    socklen_t size = sizeof(peer);
    if (qmp->addr->kind == QMP_ADDR_UNIX &&
        getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0) {
        qmp->peer_pid = peer.pid;
    }
    conn_start_phase(qmp, QMP_GREETING, qmp->greeting_timeout_ms);
    conn_watch(qmp);
}

static void conn_on_poll(uv_poll_t *poll, int status, int events)
{
    struct qmp *qmp = poll->data;
    if (status < 0) {
        /* libuv says EBADF for any trouble: let the socket say it itself */
        conn_read(qmp, true);
        if (conn_alive(qmp)) {
            conn_fail_code(qmp, status, uv_strerror(status));
        }
        return;
    }
    if ((events & UV_READABLE) != 0) {
        conn_read(qmp, false);
    }
    if (conn_alive(qmp) && (events & UV_WRITABLE) != 0) {
        int r = out_flush(&qmp->out, qmp->fd);
        if (r < 0) {
            /* the last words of a peer that is gone come first */
            conn_read(qmp, true);
        }
        if (r < 0 && conn_alive(qmp)) {
            conn_fail_code(qmp, r, strerror(-r));
        }
    }
    if (conn_alive(qmp)) {
        conn_watch(qmp);
    }
}

static void conn_on_timer(uv_timer_t *timer)
{
    struct qmp *qmp = timer->data;
    qmp->timer_due = 0;
    /*
     * When the loop was held up, replies wait in the socket while their
     * deadlines pass: what has arrived, has arrived in time.
     */
    if (conn_alive(qmp) && qmp->polling) {
        conn_read(qmp, false);
    }
    if (!conn_alive(qmp)) {
        return;
    }
    uint64_t now = uv_now(qmp->loop);
    if (qmp->phase_due != 0 && now >= qmp->phase_due) {
        conn_on_phase_timeout(qmp);
        return;
    }
    if (qmp->phase_due != 0) {
        conn_wake_at(qmp, qmp->phase_due);
    }
    calls_on_time(qmp, now);
}

static void conn_on_phase_timeout(struct qmp *qmp)
{
    _cleanup_err_ struct err *err = NULL;
    unsigned ms = qmp->greeting_timeout_ms;
    if (qmp->state == QMP_CONNECTING) {
        (void)err_set(&err, -ETIMEDOUT, NULL, "no connection within %u ms",
                      qmp->connect_timeout_ms);
    } else if (qmp->state == QMP_GREETING) {
        (void)err_set(&err, -EBUSY, NULL, "no greeting within %u ms", ms);
        err_hint(&err, "another client holds this monitor; close it, or give "
                       "the VM a second -qmp socket");
    } else {
        (void)err_set(&err, -ETIMEDOUT, NULL,
                      "greeted, but qmp_capabilities was not answered within "
                      "%u ms",
                      ms);
        err_hint(&err, "the main loop of this QEMU hangs; only a connection "
                       "that was there before can wake it, by yank");
    }
    conn_fail(qmp, err);
}

static void conn_on_capabilities(void *data, const struct err *err,
                                 json_t *result)
{
    struct qmp *qmp = data;
    if (qmp->state != QMP_NEGOTIATING) {
        return; /* the connection ended; that is told elsewhere */
    }
    if (err != NULL) {
        conn_fail(qmp, err);
        return;
    }
    conn_set_state(qmp, QMP_OPEN);
    qmp->phase_due = 0;
    qmp->oob = qmp->offers_oob;
    qmp_open_fn *cb = TAKE_PTR(qmp->open_cb);
    cb(qmp->open_data, NULL);
}

static void conn_watch(struct qmp *qmp)
{
    int events = UV_READABLE | (out_empty(&qmp->out) ? 0 : UV_WRITABLE);
    if (events != qmp->watched &&
        uv_poll_start(&qmp->poll, events, conn_on_poll) == 0) {
        qmp->watched = events;
    }
}

static void conn_read(struct qmp *qmp, bool to_end)
{
    for (unsigned i = 0; i < READS_AT_ONCE; i++) {
        char *to = NULL;
        size_t want = i == 0 ? READ_FIRST : READ_SIZE;
        int r = wire_reserve(&qmp->wire, want, &to);
        if (r < 0) {
            conn_fail_code(qmp, r, "out of memory");
            return;
        }
        ssize_t n = recv(qmp->fd, to, want, MSG_DONTWAIT);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0 && errno == EAGAIN) {
            return;
        }
        if (n < 0) {
            r = -errno;
            conn_fail_code(qmp, r, strerror(-r));
            return;
        }
        if (n == 0) {
            conn_on_eof(qmp);
            return;
        }
        wire_commit(&qmp->wire, (size_t)n);
        if (!conn_take_messages(qmp)) {
            return;
        }
        if ((size_t)n < want && !to_end) {
            break; /* that was all there is */
        }
    }
    wire_trim(&qmp->wire);
}

/* Whether the connection is still there afterwards. */
static bool conn_take_messages(struct qmp *qmp)
{
    for (;;) {
        json_t *message = NULL;
        _cleanup_err_ struct err *err = NULL;
        int r = wire_next(&qmp->wire, &message, &err);
        if (r == 0) {
            return true;
        }
        if (r < 0) {
            conn_fail(qmp, err);
            return false;
        }
        if (qmp->trace != NULL) {
            trace_message(qmp->trace, qmp_name(qmp), '<', message);
        }
        conn_on_message(qmp, message);
        json_decref(message);
        if (!conn_alive(qmp)) {
            return false;
        }
    }
}

static void conn_on_message(struct qmp *qmp, json_t *message)
{
    if (qmp->state == QMP_GREETING) {
        conn_on_greeting(qmp, message);
    } else if (json_object_get(message, "event") != NULL) {
        if (qmp->state == QMP_OPEN) {
            event_dispatch(qmp, message);
        }
    } else if (json_object_get(message, "return") != NULL ||
               json_object_get(message, "error") != NULL) {
        calls_on_reply(qmp, message);
    }
    /* anything else is of a later protocol, or of no meaning: traced */
}

static void conn_on_greeting(struct qmp *qmp, const json_t *message)
{
    const json_t *greeting = json_object_get(message, "QMP");
    if (greeting == NULL) {
        /*
         * A reply to the client before us may come first. The phase's
         * deadline bounds how long we listen to such.
         */
        return;
    }
    size_t i;
    const json_t *name;
    json_array_foreach(json_object_get(greeting, "capabilities"), i, name) {
        if (str_eq(json_string_value(name), "oob")) {
            qmp->offers_oob = true;
        }
    }
    json_auto_t *args =
        json_pack("{s:[s]}", "enable", qmp->offers_oob ? "oob" : "none");
    int r = args == NULL ? -ENOMEM : conn_keep_version(qmp, greeting);
    if (r == 0) {
        conn_start_phase(qmp, QMP_NEGOTIATING, qmp->greeting_timeout_ms);
        r = calls_negotiate(qmp, qmp->offers_oob ? args : NULL,
                            conn_on_capabilities);
    }
    if (r < 0) {
        conn_fail_code(qmp, r, strerror(-r));
    }
}

/* {"version": {"qemu": {"major","minor","micro"}, "package": " (Debian…)"}} */
static int conn_keep_version(struct qmp *qmp, const json_t *greeting)
{
    const json_t *version = json_object_get(greeting, "version");
    const json_t *qemu = json_object_get(version, "qemu");
    const char *package =
        json_string_value(json_object_get(version, "package"));
    while (package != NULL && *package == ' ') {
        package++;
    }
    bool has_package = package != NULL && *package != '\0';
    free(qmp->version);
    qmp->version = str_printf(
        "%lld.%lld.%lld%s%s",
        (long long)json_integer_value(json_object_get(qemu, "major")),
        (long long)json_integer_value(json_object_get(qemu, "minor")),
        (long long)json_integer_value(json_object_get(qemu, "micro")),
        has_package ? " " : "", has_package ? package : "");
    return qmp->version == NULL ? -ENOMEM : 0;
}

static void conn_on_eof(struct qmp *qmp)
{
    _cleanup_err_ struct err *err = NULL;
    const char *words = transport_words(qmp->transport);
    (void)err_set(&err, -ECONNRESET, NULL,
                  "the peer closed the connection%s%s%s",
                  qmp->state < QMP_OPEN         ? " before it was open"
                  : wire_in_message(&qmp->wire) ? " within a message"
                                                : "",
                  words[0] != '\0' ? ": " : "", words);
    conn_fail(qmp, err);
}

static void conn_fail_code(struct qmp *qmp, int code, const char *what)
{
    _cleanup_err_ struct err *err = NULL;
    (void)err_set(&err, code, NULL, "%s", what);
    conn_fail(qmp, err);
}

/* Pending calls first, then who opened, or else who owns the connection. */
static void conn_fail(struct qmp *qmp, const struct err *cause)
{
    if (!conn_alive(qmp)) {
        return;
    }
    _cleanup_err_ struct err *err = err_copy(cause);
    if (err != NULL && err->object == NULL) {
        err_prefix(&err, "%s", qmp_name(qmp));
    }
    conn_set_state(qmp, QMP_LOST);
    qmp->phase_due = 0;
    conn_stop_io(qmp);
    (void)uv_timer_stop(&qmp->timer);
    calls_fail(qmp, err);
    if (qmp->state == QMP_CLOSING) {
        return; /* one of them closed it: the rest comes from there */
    }
    qmp_open_fn *cb = TAKE_PTR(qmp->open_cb);
    if (cb != NULL) {
        cb(qmp->open_data, err_or_nomem(err));
    } else if (qmp->owner.lost != NULL) {
        qmp->owner.lost(qmp->owner.data, err_or_nomem(err));
    }
}

static void conn_stop_io(struct qmp *qmp)
{
    if (qmp->polling) {
        qmp->polling = false;
        uv_close((uv_handle_t *)&qmp->poll, conn_on_handle_closed);
    }
    if (qmp->fd >= 0) {
        (void)close(qmp->fd);
        qmp->fd = -1;
    }
}

static void conn_on_handle_closed(uv_handle_t *handle)
{
    conn_unref(handle->data);
}

static void conn_on_transport_closed(void *data)
{
    conn_unref(data);
}

static void conn_unref(struct qmp *qmp)
{
    assert(qmp->n_handles > 0);
    qmp->n_handles--;
    if (qmp->n_handles == 0) {
        conn_finish(qmp);
    }
}

static void conn_finish(struct qmp *qmp)
{
    assert(qmp->state == QMP_CLOSING);
    _cleanup_err_ struct err *err = NULL;
    (void)err_set(&err, -ECANCELED, qmp_name(qmp), "the connection was closed");
    calls_fail(qmp, err);
    qmp_open_fn *open_cb = TAKE_PTR(qmp->open_cb);
    if (open_cb != NULL) {
        open_cb(qmp->open_data, err_or_nomem(err));
    }
    qmp_close_fn *close_cb = qmp->close_cb;
    void *close_data = qmp->close_data;
    (void)conn_free(qmp);
    if (close_cb != NULL) {
        close_cb(close_data);
    }
}

static struct qmp *conn_free(struct qmp *qmp)
{
    event_done(qmp);
    wire_done(&qmp->wire);
    out_done(&qmp->out);
    qmp_addr_free(qmp->addr);
    free(qmp->version);
    free(qmp);
    return NULL;
}
