/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "qmp/transport.h"

#include <assert.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "base/cleanup.h"
#include "base/err.h"
#include "qmp/child.h"

/* One connect() under way; its handle outlives the attempt by one turn. */
struct attempt {
    uv_poll_t poll;
    struct transport *transport;
    int fd;
};

struct transport {
    uv_loop_t *loop;
    const struct qmp_addr *addr;
    uv_timer_t timer; /* tells from the loop what was known in the submit */
    uv_getaddrinfo_t resolver;
    bool resolving;
    struct addrinfo *addresses;
    const struct addrinfo *next;
    struct attempt *attempt;
    struct child *child;
    struct err *err; /* the result until it is told: this, or the fd */
    int fd;
    unsigned n_open;       /* handles, requests, the child */
    transport_open_fn *cb; /* NULL once it came */
    void *data;
    transport_close_fn *close_cb;
    void *close_data;
};

static void transport_start(struct transport *transport);
static void start_unix(struct transport *transport, const char *path);
static void start_resolver(struct transport *transport);
static void start_exec(struct transport *transport);
static void start_ssh(struct transport *transport);
static void transport_on_resolved(uv_getaddrinfo_t *request, int status,
                                  struct addrinfo *addresses);
static void transport_on_ssh_ready(void *data, const struct err *err);
static void transport_try_next(struct transport *transport, int error);
static int transport_connect(struct transport *transport, int family,
                             const struct sockaddr *address, socklen_t size);
static int attempt_start(struct transport *transport, int fd);
static void attempt_on_poll(uv_poll_t *poll, int status, int events);
static void attempt_end(struct transport *transport);
static void attempt_on_closed(uv_handle_t *handle);
static void transport_connected(struct transport *transport, int fd);
static void transport_failed(struct transport *transport, int code,
                             const char *what);
static void transport_on_timer(uv_timer_t *timer);
static void transport_on_timer_closed(uv_handle_t *handle);
static void transport_on_child_closed(void *data);
static void transport_unref(struct transport *transport);

int transport_open(uv_loop_t *loop, const struct qmp_addr *addr,
                   transport_open_fn *cb, void *data, struct transport **ret)
{
    struct transport *transport = calloc(1, sizeof(*transport));
    if (transport == NULL) {
        return -ENOMEM;
    }
    transport->loop = loop;
    transport->addr = addr;
    transport->cb = cb;
    transport->data = data;
    transport->fd = -1;
    (void)uv_timer_init(loop, &transport->timer);
    transport->timer.data = transport;
    transport->n_open = 1;
    transport_start(transport);
    *ret = transport;
    return 0;
}

int transport_lifeline_fd(const struct transport *transport)
{
    return transport != NULL && transport->child != NULL
               ? child_lifeline_fd(transport->child)
               : -1;
}

char *transport_forwarded(const struct transport *transport, const char *name)
{
    return transport != NULL && transport->child != NULL
               ? child_forwarded(transport->child, name)
               : NULL;
}

const char *transport_words(const struct transport *transport)
{
    return transport->child != NULL ? child_words(transport->child) : "";
}

void transport_close(struct transport *transport, transport_close_fn *cb,
                     void *data)
{
    transport->cb = NULL;
    transport->close_cb = cb;
    transport->close_data = data;
    if (transport->attempt != NULL) {
        (void)close(transport->attempt->fd);
        attempt_end(transport);
    }
    if (transport->fd >= 0) {
        (void)close(transport->fd);
        transport->fd = -1;
    }
    if (transport->resolving) {
        /* one that runs already comes to its end in its own time */
        (void)uv_cancel((uv_req_t *)&transport->resolver);
    }
    if (transport->child != NULL) {
        child_close(transport->child, transport_on_child_closed, transport);
    }
    uv_close((uv_handle_t *)&transport->timer, transport_on_timer_closed);
}

static void transport_start(struct transport *transport)
{
    switch (transport->addr->kind) {
    case QMP_ADDR_UNIX:
        start_unix(transport, transport->addr->path);
        return;
    case QMP_ADDR_TCP:
        start_resolver(transport);
        return;
    case QMP_ADDR_SSH:
        start_ssh(transport);
        return;
    case QMP_ADDR_EXEC:
        start_exec(transport);
        return;
    }
    assert(false);
}

static void start_unix(struct transport *transport, const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t length = strlen(path);
    assert(length < sizeof(address.sun_path));
    memcpy(address.sun_path, path, length + 1);
    int r = transport_connect(
        transport, AF_UNIX, (const struct sockaddr *)&address, sizeof(address));
    if (r == -EAGAIN) {
        /* the listener's queue is full of clients that nobody accepts */
        transport_failed(transport, -EBUSY,
                         "other clients wait in line for this socket");
    } else if (r < 0) {
        transport_failed(transport, r, NULL);
    }
}

static void start_resolver(struct transport *transport)
{
    const struct addrinfo hints = {.ai_family = AF_UNSPEC,
                                   .ai_socktype = SOCK_STREAM};
    transport->resolver.data = transport;
    int r = uv_getaddrinfo(transport->loop, &transport->resolver,
                           transport_on_resolved, transport->addr->host,
                           transport->addr->port, &hints);
    if (r < 0) {
        transport_failed(transport, r, uv_strerror(r));
        return;
    }
    transport->resolving = true;
    transport->n_open++;
}

static void start_exec(struct transport *transport)
{
    int fd = -1;
    int r = child_exec(transport->loop, transport->addr->command, &fd,
                       &transport->child);
    transport->n_open += transport->child != NULL;
    if (r < 0) {
        transport_failed(transport, r, NULL);
        return;
    }
    transport_connected(transport, fd);
}

static void start_ssh(struct transport *transport)
{
    int r = child_ssh(transport->loop, transport->addr, transport_on_ssh_ready,
                      transport, &transport->child);
    transport->n_open += transport->child != NULL;
    if (r < 0) {
        transport_failed(transport, r, NULL);
    }
}

static void transport_on_resolved(uv_getaddrinfo_t *request, int status,
                                  struct addrinfo *addresses)
{
    struct transport *transport = request->data;
    transport->resolving = false;
    if (transport->close_cb != NULL) {
        uv_freeaddrinfo(addresses);
        transport_unref(transport);
        return;
    }
    transport->n_open--; /* the timer still holds it */
    if (status < 0) {
        transport_failed(transport, -EHOSTUNREACH, uv_strerror(status));
        return;
    }
    transport->addresses = addresses;
    transport->next = addresses;
    transport_try_next(transport, -EHOSTUNREACH);
}

static void transport_on_ssh_ready(void *data, const struct err *err)
{
    struct transport *transport = data;
    if (err != NULL) {
        transport_failed(transport, err->code, err->desc);
        return;
    }
    start_unix(transport, child_path(transport->child));
    child_settle(transport->child);
}

/* 'error' is that of the address before; it stands if there is no other. */
static void transport_try_next(struct transport *transport, int error)
{
    while (transport->next != NULL) {
        const struct addrinfo *address = transport->next;
        transport->next = address->ai_next;
        error = transport_connect(transport, address->ai_family,
                                  address->ai_addr, address->ai_addrlen);
        if (error == 0) {
            return;
        }
    }
    transport_failed(transport, error, NULL);
}

static int transport_connect(struct transport *transport, int family,
                             const struct sockaddr *address, socklen_t size)
{
    _cleanup_close_ int fd =
        socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return -errno;
    }
    if (family != AF_UNIX) {
        int on = 1;
        (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
        (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    }
    if (connect(fd, address, size) == 0) {
        transport_connected(transport, TAKE_FD(fd));
        return 0;
    }
    if (errno != EINPROGRESS) {
        return -errno;
    }
    int r = attempt_start(transport, fd);
    if (r == 0) {
        (void)TAKE_FD(fd);
    }
    return r;
}

static int attempt_start(struct transport *transport, int fd)
{
    struct attempt *attempt = calloc(1, sizeof(*attempt));
    if (attempt == NULL) {
        return -ENOMEM;
    }
    int r = uv_poll_init(transport->loop, &attempt->poll, fd);
    if (r < 0) {
        free(attempt);
        return r;
    }
    attempt->poll.data = attempt;
    attempt->transport = transport;
    attempt->fd = fd;
    transport->attempt = attempt;
    transport->n_open++;
    (void)uv_poll_start(&attempt->poll, UV_WRITABLE, attempt_on_poll);
    return 0;
}

static void attempt_on_poll(uv_poll_t *poll, int status, int events)
{
    struct attempt *attempt = poll->data;
    struct transport *transport = attempt->transport;
    int fd = attempt->fd;
    int error = 0;
    socklen_t size = sizeof(error);
    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0) {
        error = errno;
    } else if (error == 0 && status < 0) {
        error = -status;
    }
    attempt_end(transport);
    if (error != 0) {
        (void)close(fd);
        transport_try_next(transport, -error);
        return;
    }
    transport_connected(transport, fd);
}

/* Leaves the fd to the caller. */
static void attempt_end(struct transport *transport)
{
    struct attempt *attempt = TAKE_PTR(transport->attempt);
    uv_close((uv_handle_t *)&attempt->poll, attempt_on_closed);
}

static void attempt_on_closed(uv_handle_t *handle)
{
    struct attempt *attempt = handle->data;
    struct transport *transport = attempt->transport;
    free(attempt);
    transport_unref(transport);
}

static void transport_connected(struct transport *transport, int fd)
{
    transport->fd = fd;
    (void)uv_timer_start(&transport->timer, transport_on_timer, 0, 0);
}

static void transport_failed(struct transport *transport, int code,
                             const char *what)
{
    struct stat st;
    bool there = transport->addr->kind == QMP_ADDR_UNIX &&
                 stat(transport->addr->path, &st) == 0;
    if (there && !S_ISSOCK(st.st_mode)) {
        what = S_ISDIR(st.st_mode) ? "it is a directory, no socket"
                                   : "it is no socket";
    }
    (void)err_set(&transport->err, code, qmp_addr_text(transport->addr),
                  "cannot connect: %s", what != NULL ? what : strerror(-code));
    if (there && !S_ISSOCK(st.st_mode)) {
        err_hint(&transport->err, "name the socket of -qmp unix:PATH");
    } else if (code == -ECONNREFUSED &&
               transport->addr->kind == QMP_ADDR_UNIX) {
        err_hint(&transport->err, "no process listens there: the QEMU that "
                                  "made this socket is gone");
    }
    (void)uv_timer_start(&transport->timer, transport_on_timer, 0, 0);
}

static void transport_on_timer(uv_timer_t *timer)
{
    struct transport *transport = timer->data;
    transport_open_fn *cb = TAKE_PTR(transport->cb);
    int fd = TAKE_FD(transport->fd);
    assert(cb != NULL);
    _cleanup_err_ struct err *err = TAKE_PTR(transport->err);
    if (fd < 0 && err == NULL) {
        static char desc[] = "out of memory";
        static const struct err nomem = {.code = -ENOMEM, .desc = desc};
        cb(transport->data, &nomem, -1);
        return;
    }
    cb(transport->data, err, fd);
}

static void transport_on_timer_closed(uv_handle_t *handle)
{
    transport_unref(handle->data);
}

static void transport_on_child_closed(void *data)
{
    transport_unref(data);
}

static void transport_unref(struct transport *transport)
{
    assert(transport->n_open > 0);
    transport->n_open--;
    if (transport->n_open > 0) {
        return;
    }
    transport_close_fn *cb = transport->close_cb;
    void *data = transport->close_data;
    if (transport->addresses != NULL) {
        uv_freeaddrinfo(transport->addresses);
    }
    (void)err_free(transport->err);
    free(transport);
    cb(data);
}
