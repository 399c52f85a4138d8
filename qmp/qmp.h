/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One connection to one QEMU, as its users see it: open, call, subscribe,
 * close. It knows transports, the wire, deadlines and QEMU's schema; it knows
 * nothing of VMs, disks or operations.
 *
 * Rules of every callback here: it comes from the loop, never from inside the
 * function that asked for it; 'err' is NULL on success; err and results are
 * borrowed for the duration; the callback may close the connection.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

struct err;
struct qmp;
struct qmp_addr;
struct qmp_call;
struct qmp_schema;
struct qmp_sub;
struct qmp_trace;

/* --- addresses (qmp/addr.c) --- */

/*
 * PATH, unix:PATH, tcp:HOST:PORT, ssh://[user@]host[:port]/path, exec:COMMAND.
 * Returns -EINVAL with the reason in errp. ssh runs the ssh program with
 * BatchMode and lets it forward the remote unix socket; exec runs
 * /bin/sh -c COMMAND and speaks QMP on its stdio.
 */
int qmp_addr_parse(const char *text, struct qmp_addr **ret, struct err **errp);
/* The text form, canonical, for messages and the journal; borrowed. */
const char *qmp_addr_text(const struct qmp_addr *addr);
/* The other host, of tcp and ssh; NULL of the rest; borrowed. */
const char *qmp_addr_host(const struct qmp_addr *addr);
/* Whether it is a socket of this host's file system. */
bool qmp_addr_is_unix(const struct qmp_addr *addr);
bool qmp_addr_is_ssh(const struct qmp_addr *addr);
struct qmp_addr *qmp_addr_copy(const struct qmp_addr *addr); /* or NULL */
struct qmp_addr *qmp_addr_free(struct qmp_addr *addr);
/*
 * New path of a socket called 'name' beside the monitor's, on QEMU's host; NULL
 * where the address tells no path, or without memory.
 */
char *qmp_addr_beside(const struct qmp_addr *addr, const char *name);
/*
 * Of ssh: a command for sh(1) on this host that runs 'command', text for the
 * shell there, by a connection of its own; new text, NULL as above.
 */
char *qmp_addr_remotely(const struct qmp_addr *addr, const char *command);
/*
 * Of ssh: has the connection bring that socket to this host, too, see
 * qmp_forwarded(). It need not be there yet. -ENOTSUP, -E2BIG, -ENOMEM.
 */
int qmp_addr_forward(struct qmp_addr *addr, const char *name);
/*
 * New text that means the same in another directory: the path of a unix socket
 * made absolute. One that would be too long then for a socket stays as it is.
 */
char *qmp_addr_absolute(const char *text);

/* --- tracing (qmp/trace.c) --- */

/*
 * Appends each line both ways to a file (mode 0600), one JSON object a line:
 * {"time":"<ISO 8601 UTC, us>","addr":..,"dir":">"|"<","msg":{..}}. The data
 * of secrets (object-add secret 'data', 'password', and the like: any member
 * called data/password/key under an object-add) is replaced by "<redacted>".
 */
int qmp_trace_open(const char *path, struct qmp_trace **ret, struct err **errp);
struct qmp_trace *qmp_trace_close(struct qmp_trace *trace);
/*
 * A deep copy of a command (the whole message, or {"execute","arguments"})
 * without what is secret in it, for whoever shows or stores one.
 */
json_t *qmp_redact(const json_t *message);

/* --- connection (qmp/conn.c) --- */

struct qmp_options {
    uv_loop_t *loop;              /* borrowed, outlives the connection */
    const struct qmp_addr *addr;  /* copied */
    struct qmp_trace *trace;      /* borrowed, or NULL */
    unsigned connect_timeout_ms;  /* 0: 5000, for ssh 20000 */
    unsigned greeting_timeout_ms; /* greeting, then negotiation; 0: 5000 */
    unsigned watchdog_ms;         /* in-band command without reply; 0: 5000 */
    size_t max_message;           /* bytes; 0: 64 MiB */
};

/*
 * What the owner is told unasked. Each may be NULL.
 * 'lost' comes at most once, after every pending call got its error; the
 * connection must then be closed by its owner. 'stalled' comes when an
 * in-band command was not answered for watchdog_ms (once per stall; the
 * command stays pending and its late reply is delivered as usual), 'flowing'
 * when replies come again.
 */
struct qmp_owner {
    void *data;
    void (*lost)(void *data, const struct err *err);
    void (*stalled)(void *data, const char *command);
    void (*flowing)(void *data);
};

typedef void qmp_open_fn(void *data, const struct err *err);
typedef void qmp_close_fn(void *data);

/*
 * Connects, waits for the greeting, negotiates OOB where it is offered.
 * 'cb' comes once: with an error of these codes that a person acts on:
 *   -EBUSY      connected, but no greeting in time: another client holds it
 *   -ETIMEDOUT  no connection, or negotiation, in time
 *   else        what connect() or the peer said (ENOENT, ECONNREFUSED, ...)
 * After an error the owner still calls qmp_close().
 */
int qmp_open(const struct qmp_options *options, const struct qmp_owner *owner,
             qmp_open_fn *cb, void *data, struct qmp **ret, struct err **errp);

/*
 * Pending calls (and an open that did not come yet) come with -ECANCELED, from
 * the loop, before 'cb' (which may be NULL); only then is the connection
 * freed, and its subscriptions with it. An ssh or exec child is ended.
 */
void qmp_close(struct qmp *qmp, qmp_close_fn *cb, void *data);

/* Whether out-of-band execution was negotiated. */
bool qmp_has_oob(const struct qmp *qmp);
/* The greeting's version as text, "7.2.22 (Debian ...)"; borrowed. */
const char *qmp_version(const struct qmp *qmp);
/* The address's text; borrowed. */
const char *qmp_name(const struct qmp *qmp);
/*
 * The fd that commands are written to, for a process that shall inherit it
 * (engine/run/watchdog); still owned by the connection. It is a non-blocking
 * socket. -1 when there is none, also once the connection is lost.
 */
int qmp_fd(const struct qmp *qmp);
/*
 * What must stay open beside qmp_fd() for the connection to outlive this
 * process: ssh's lifeline; -1 where nothing is needed.
 */
int qmp_lifeline_fd(const struct qmp *qmp);
/*
 * New path, on this host, of a socket that qmp_addr_forward() named: as long
 * as the connection lives. NULL: there is none, or without memory.
 */
char *qmp_forwarded(const struct qmp *qmp, const char *name);
/*
 * The pid of the peer of a unix socket on this host, or 0: of the process that
 * called listen(), which is not QEMU where QEMU was given a socket (fd=).
 */
pid_t qmp_peer_pid(const struct qmp *qmp);

/* --- calls (qmp/call.c) --- */

typedef void qmp_reply_fn(void *data, const struct err *err, json_t *result);

struct qmp_call_options {
    unsigned timeout_ms; /* 0: none. -ETIMEDOUT means unknown, not failed */
    bool oob;            /* exec-oob; -ENOTSUP if not negotiated */
    const char *object;  /* what an error is about, copied; or NULL */
};

/*
 * Sends one command. 'args' is borrowed and may be NULL. Up to 8 in-band
 * commands are on the wire at once (docs/interop/qmp-spec: a server with OOB
 * on stops reading beyond that); the rest wait here, at most 4096. An error
 * reply comes as err with class and desc verbatim. 'ret' may be NULL; what it
 * gives is valid until the callback begins. Returns -ENOTCONN (not open, or
 * lost), -ENOBUFS (4096 pending), -ENOTSUP, -EINVAL (not UTF-8), -ENOMEM.
 */
int qmp_execute(struct qmp *qmp, const char *command, const json_t *args,
                const struct qmp_call_options *options, qmp_reply_fn *cb,
                void *data, struct qmp_call **ret);

/*
 * Sends several in-band commands by a single write(), so that QEMU sees all
 * of them or none, in this order, whatever happens to this process. Each gets
 * its own callback with data[i]. At most QMP_BATCH_MAX; they may go beyond the
 * window of 8: QEMU then reads on when it has run some of them. -EAGAIN while
 * other commands still wait to be written.
 */
enum { QMP_BATCH_MAX = 66 };

struct qmp_command {
    const char *command;
    const json_t *args; /* borrowed */
    const char *object; /* copied */
    qmp_reply_fn *cb;
    void *data;
    struct qmp_call **ret; /* or NULL */
};

int qmp_execute_batch(struct qmp *qmp, const struct qmp_command *commands,
                      unsigned n_commands, unsigned timeout_ms);

/* The callback will not come; the command may still be executed. */
void qmp_call_cancel(struct qmp_call *call);

/* --- events (qmp/event.c) --- */

/* 'event' is the whole message: {"event","data","timestamp"}. */
typedef void qmp_event_fn(void *data, const char *name, const json_t *event);

/*
 * 'name' NULL: all events. Subscribing is possible in every state; events come
 * once the connection is open. A callback may unsubscribe itself and others.
 */
int qmp_subscribe(struct qmp *qmp, const char *name, qmp_event_fn *cb,
                  void *data, struct qmp_sub **ret);
struct qmp_sub *qmp_unsubscribe(struct qmp_sub *sub); /* returns NULL */

/* --- what this QEMU can do (qmp/feature.c) --- */

/* From the reply of query-qmp-schema; pure. Unknown shapes are skipped. */
int qmp_schema_new(const json_t *reply, struct qmp_schema **ret,
                   struct err **errp);
struct qmp_schema *qmp_schema_free(struct qmp_schema *schema);
bool qmp_schema_has_command(const struct qmp_schema *schema, const char *name);
bool qmp_schema_has_event(const struct qmp_schema *schema, const char *name);
/*
 * Whether a command's arguments have the member at 'path', dots between
 * levels, through arrays and into the union branch "member=case":
 *   "target-is-zero"                  of blockdev-mirror
 *   "driver=nbd.reconnect-delay"      of blockdev-add
 *   "type=mirror.copy-mode"           of block-job-change
 */
bool qmp_schema_has_arg(const struct qmp_schema *schema, const char *command,
                        const char *path);
/* Whether the enum that is the argument at 'path' has 'value'. */
bool qmp_schema_has_value(const struct qmp_schema *schema, const char *command,
                          const char *path, const char *value);
/* Whether the result type has the member ("children" of a query). */
bool qmp_schema_has_result(const struct qmp_schema *schema, const char *command,
                           const char *path);
/* Whether QEMU executes it out of band ("yank"). */
bool qmp_schema_allows_oob(const struct qmp_schema *schema,
                           const char *command);
/* Whether a command carries a feature flag ("allow-write-only-overlay"). */
bool qmp_schema_has_feature(const struct qmp_schema *schema,
                            const char *command, const char *feature);
/*
 * For completion: a new array of the names of all commands (command NULL), or
 * of a command's top-level arguments.
 */
json_t *qmp_schema_names(const struct qmp_schema *schema, const char *command);
