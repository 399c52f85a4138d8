/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Thousands of fake monitors for tools/bench, in one process beside the one
 * that is measured. Each connection gets QEMU's greeting and a reply of
 * query-version's size to every command: QEMU shall not be the limit.
 *
 * Usage: fake-monitors DIR LISTENERS [events]. The sockets are DIR/0, DIR/1,
 * ...: a listener's queue holds fewer clients than come at once. With 'events'
 * a client that only attached gets one about each millisecond, one client after
 * the other, with the time of CLOCK_MONOTONIC in it.
 */
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { BATCH = 256, READ_SIZE = 64 << 10, ID_MAX = 64, CLIENTS_MAX = 1 << 20 };

static const char greeting[] =
    "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 22, \"minor\": 2, "
    "\"major\": 7}, \"package\": \"bench\"}, \"capabilities\": "
    "[\"oob\"]}}\r\n";

/* What is known of a client's unfinished command. */
struct client {
    unsigned depth;
    bool in_string;
    bool escaped;
    char text[512];
    size_t n;
    unsigned n_commands;
};

static struct client *clients[CLIENTS_MAX]; /* by fd; NULL for a listener */

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void watch(int epoll, int fd)
{
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    if (fd >= CLIENTS_MAX || epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0) {
        die("epoll_ctl");
    }
}

static int listen_at(const char *dir, int number)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    (void)snprintf(address.sun_path, sizeof(address.sun_path), "%s/%d", dir,
                   number);
    if (fd < 0 ||
        bind(fd, (const struct sockaddr *)&address, sizeof(address)) < 0 ||
        listen(fd, 4096) < 0) {
        die(address.sun_path);
    }
    return fd;
}

static void accept_all(int epoll, int listener)
{
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd < 0 && errno == EAGAIN) {
            return;
        }
        if (fd < 0) {
            die("accept");
        }
        watch(epoll, fd);
        clients[fd] = calloc(1, sizeof(*clients[fd]));
        if (clients[fd] == NULL ||
            send(fd, greeting, sizeof(greeting) - 1, MSG_NOSIGNAL) < 0) {
            die("greeting");
        }
    }
}

/* The command's id as it was written, string or number. */
static void copy_id(const char *text, char id[static ID_MAX])
{
    const char *at = strstr(text, "\"id\":");
    size_t n = 0;
    for (at = at ? at + 5 : "0"; *at == ' '; at++) {
    }
    while (at[n] != '\0' && at[n] != ',' && at[n] != '}' && n < ID_MAX - 1) {
        id[n] = at[n];
        n++;
    }
    id[n] = '\0';
}

static void answer(int fd, struct client *client)
{
    char id[ID_MAX], reply[256];
    client->text[client->n] = '\0';
    copy_id(client->text, id);
    int n = snprintf(reply, sizeof(reply),
                     "{\"return\": {\"qemu\": {\"micro\": 22, \"minor\": 2, "
                     "\"major\": 7}, \"package\": \"bench\"}, \"id\": %s}\r\n",
                     id);
    client->n = 0;
    client->n_commands++;
    if (send(fd, reply, (size_t)n, MSG_NOSIGNAL) != n && errno != EPIPE &&
        errno != ECONNRESET) {
        die("reply");
    }
}

static void take(int fd, struct client *client, char c)
{
    bool whole = false;
    if (client->n < sizeof(client->text) - 1) {
        client->text[client->n++] = c;
    }
    if (client->escaped) {
        client->escaped = false;
    } else if (client->in_string) {
        client->escaped = c == '\\';
        client->in_string = c != '"';
    } else if (c == '"') {
        client->in_string = true;
    } else if (c == '{') {
        client->depth++;
    } else if (c == '}') {
        whole = --client->depth == 0;
    }
    if (whole) {
        answer(fd, client);
    }
}

static void read_commands(int fd)
{
    static char bytes[READ_SIZE];
    ssize_t n = read(fd, bytes, sizeof(bytes));
    if (n < 0 && errno == EAGAIN) {
        return;
    }
    if (n <= 0) {
        free(clients[fd]);
        clients[fd] = NULL;
        (void)close(fd);
        return;
    }
    for (ssize_t i = 0; i < n; i++) {
        take(fd, clients[fd], bytes[i]);
    }
}

static long long now_ns(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* An event to the next client that has attached and is idle since. */
static void tell_one(unsigned limit)
{
    static unsigned fd;
    static long long last;
    char event[128];
    long long now = now_ns();
    for (unsigned i = 0; now - last >= 1000000 && i < limit; i++) {
        fd = (fd + 1) % limit;
        if (clients[fd] != NULL && clients[fd]->n_commands == 1) {
            int n = snprintf(event, sizeof(event),
                             "{\"event\": \"BENCH\", \"data\": {\"ns\": "
                             "%lld}}\r\n",
                             now);
            (void)send(fd, event, (size_t)n, MSG_NOSIGNAL);
            last = now;
        }
    }
}

int main(int argc, char **argv)
{
    bool events_too = argc == 4 && strcmp(argv[3], "events") == 0;
    struct rlimit files;
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    if ((argc != 3 && !events_too) || epoll < 0) {
        die("usage: fake-monitors DIR LISTENERS [events]");
    }
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &files);
    }
    for (int i = 0; i < atoi(argv[2]); i++) {
        watch(epoll, listen_at(argv[1], i));
    }
    (void)puts("ready");
    (void)fflush(stdout);
    for (;;) {
        struct epoll_event events[BATCH];
        int n = epoll_wait(epoll, events, BATCH, events_too ? 1 : -1);
        if (events_too) {
            tell_one((unsigned)files.rlim_cur < CLIENTS_MAX
                         ? (unsigned)files.rlim_cur
                         : CLIENTS_MAX);
        }
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            if (clients[fd] == NULL) {
                accept_all(epoll, fd);
            } else {
                read_commands(fd);
            }
        }
    }
}
