/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The program between us and a QMP socket that we cannot reach ourselves: a
 * shell command that speaks QMP, or ssh.
 *
 * ssh needs nothing on the other host but sshd: it forwards a unix socket in
 * a private directory of ours to the remote path (-L). 'ssh -W', which would
 * spare us the directory, takes unix sockets since OpenSSH 9.4 only, and a
 * remote socat or nc is not there on every host.
 */
#pragma once

#include <uv.h>

struct child;
struct err;
struct qmp_addr;

/* ssh: its forwarding listens at child_path(), or why it does not. */
typedef void child_ready_fn(void *data, const struct err *err);
typedef void child_close_fn(void *data);

/*
 * Both give an object that must be closed even when they fail, unless they
 * fail with -ENOMEM and leave 'ret' NULL. exec speaks over *ret_fd, which is
 * the caller's.
 */
int child_exec(uv_loop_t *loop, const char *command, int *ret_fd,
               struct child **ret);
int child_ssh(uv_loop_t *loop, const struct qmp_addr *addr, child_ready_fn *cb,
              void *data, struct child **ret);

const char *child_path(const struct child *child);
/* The pipe whose end tells ssh's shell that we are gone, or -1. */
int child_lifeline_fd(const struct child *child);
/* New path of a socket that the address forwards, or NULL. */
char *child_forwarded(const struct child *child, const char *name);
/* The path was connected to: takes its name away, nobody else may. */
void child_settle(struct child *child);
/* The last line it printed on stderr, or "". */
const char *child_words(struct child *child);

/* Ends it: SIGTERM to all its processes, after 2 s SIGKILL. */
void child_close(struct child *child, child_close_fn *cb, void *data);
