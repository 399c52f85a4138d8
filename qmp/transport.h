/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The way to a QMP socket: from an address to one connected, non-blocking
 * stream socket. It knows sockets and the programs that stand between (ssh, a
 * shell), and nothing of what is said over them.
 */
#pragma once

#include <uv.h>

#include "qmp/qmp.h"

enum qmp_addr_kind {
    QMP_ADDR_UNIX,
    QMP_ADDR_TCP,
    QMP_ADDR_SSH,
    QMP_ADDR_EXEC,
};

enum { FORWARDS_MAX = 2 };

struct qmp_addr {
    enum qmp_addr_kind kind;
    char *text;
    char *path;                   /* unix, ssh */
    char *host;                   /* tcp, ssh */
    char *port;                   /* tcp; ssh: or NULL */
    char *user;                   /* ssh: or NULL */
    char *command;                /* exec */
    char *forwards[FORWARDS_MAX]; /* ssh: names of sockets beside 'path' */
    unsigned n_forwards;
};

struct transport;

/* On success the fd belongs to whom it is given to. */
typedef void transport_open_fn(void *data, const struct err *err, int fd);
typedef void transport_close_fn(void *data);

/* 'addr' is borrowed until the transport is closed. */
int transport_open(uv_loop_t *loop, const struct qmp_addr *addr,
                   transport_open_fn *cb, void *data, struct transport **ret);

/* child_lifeline_fd() of the program in between, or -1. */
int transport_lifeline_fd(const struct transport *transport);

/* child_forwarded() of the program in between, or NULL. */
char *transport_forwarded(const struct transport *transport, const char *name);

/* What the program in between said last on stderr, or "". */
const char *transport_words(const struct transport *transport);

/*
 * Ends what is under way and the program; 'cb' comes when all is gone. The
 * callback of transport_open() does not come any more.
 */
void transport_close(struct transport *transport, transport_close_fn *cb,
                     void *data);
