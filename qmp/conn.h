/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the files of one connection share: the object, and what conn.c asks of
 * call.c and event.c. Not for users of qmp.h.
 */
#pragma once

#include "base/list.h"
#include "qmp/out.h"
#include "qmp/qmp.h"
#include "qmp/wire.h"

struct transport;

enum qmp_state {
    QMP_CONNECTING,  /* the transport works on it */
    QMP_GREETING,    /* connected; nothing was sent yet */
    QMP_NEGOTIATING, /* qmp_capabilities is under way */
    QMP_OPEN,
    QMP_LOST,    /* told to the owner, who has to close */
    QMP_CLOSING, /* no callback but those of the end */
    N_QMP_STATES,
};

enum {
    CALL_WINDOW = 8,         /* in-band commands on the wire */
    CALL_PENDING_MAX = 4096, /* on the wire, waiting, given up: together */
};

struct calls {
    struct list_node waiting; /* struct qmp_call, not sent yet */
    struct list_node flying;  /* sent, in the order of sending */
    unsigned n_pending;       /* members of both */
    unsigned n_in_band;       /* in-band members of 'flying' */
    uint64_t serial;          /* of the last id */
    uint32_t nonce;           /* makes ids differ from a former client's */
    uint64_t progress;        /* ms: an in-band reply came, or the first flew */
    bool stalled;
};

struct qmp {
    uv_loop_t *loop;
    struct qmp_addr *addr;
    struct qmp_trace *trace;
    struct qmp_owner owner;
    unsigned connect_timeout_ms;
    unsigned greeting_timeout_ms;
    unsigned watchdog_ms;
    enum qmp_state state;
    struct transport *transport;
    int fd;
    uv_poll_t poll;
    int watched; /* events that it is started for */
    uv_timer_t timer;
    uint64_t timer_due; /* ms; 0: not running */
    uint64_t phase_due; /* ms; of the state before QMP_OPEN */
    unsigned n_handles; /* not closed yet, the transport counts as one */
    bool polling;       /* 'poll' is initialized */
    bool offers_oob;
    bool oob;
    char *version;
    pid_t peer_pid;
    struct wire wire;
    struct out out;
    struct calls calls;
    struct list_node subs;
    unsigned dispatching; /* depth of event_dispatch() */
    qmp_open_fn *open_cb; /* NULL once it came */
    void *open_data;
    qmp_close_fn *close_cb;
    void *close_data;
};

/* --- conn.c for call.c --- */

/*
 * Puts bytes on the wire by one write() when nothing waits before them, else
 * behind what waits. -ENOMEM. A broken connection shows later, from the loop.
 */
int conn_send(struct qmp *qmp, const char *bytes, size_t n);
/* The timer comes at 'due' (uv_now() terms) or before. */
void conn_wake_at(struct qmp *qmp, uint64_t due);
uint64_t conn_now(struct qmp *qmp);
/* A callback must not take the want of memory for success. */
const struct err *err_or_nomem(const struct err *err);

/* --- call.c for conn.c --- */

void calls_init(struct calls *calls);
/* A reply: {"return"|"error", "id"}. */
void calls_on_reply(struct qmp *qmp, json_t *message);
/* Expires calls, watches for a stall, asks for the next wake-up. */
void calls_on_time(struct qmp *qmp, uint64_t now);
/* Every pending call gets 'err'; the callbacks may close the connection. */
void calls_fail(struct qmp *qmp, const struct err *err);
/* qmp_capabilities, which must go out before the connection is open. */
int calls_negotiate(struct qmp *qmp, const json_t *args, qmp_reply_fn *cb);

/* --- event.c for conn.c --- */

void event_dispatch(struct qmp *qmp, const json_t *message);
void event_done(struct qmp *qmp);
