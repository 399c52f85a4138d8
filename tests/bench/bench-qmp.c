/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One measurement of the control plane for tools/bench, by qpivot's QMP
 * library or by the least that C can do, which is the yardstick:
 *
 *   bench-qmp raw|raw-oob|library ADDR SECONDS
 *       round trips of query-version, one after the other; raw-oob has enabled
 *       out-of-band commands, as the library always does: QEMU then reads its
 *       monitor in a thread and hands each command over
 *   bench-qmp raw-fan|library-fan DIR LISTENERS MONITORS SECONDS
 *       attach MONITORS fake ones, then one command under way on each
 *
 *   bench-qmp library-events DIR LISTENERS MONITORS SECONDS
 *       the same with 1,000 that are asked four times a second; the others get
 *       the events of 'fake-monitors ... events': how long each takes to its
 *       handler
 *
 * It prints one JSON object. The raw kinds look for the end of a line and
 * parse nothing; nobody who needs the result of a command can be faster.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "base/err.h"
#include "qmp/qmp.h"

enum { BATCH = 256, LINE = 512, CHATTING = 1000, EVENTS_MAX = 1 << 20 };

static const char capabilities[] =
    "{\"execute\":\"qmp_capabilities\",\"id\":0}\n";
static const char capabilities_oob[] =
    "{\"execute\":\"qmp_capabilities\",\"arguments\":{\"enable\":[\"oob\"]},"
    "\"id\":0}\n";
static const char command[] = "{\"execute\":\"query-version\",\"id\":1}\n";

static void die(const char *what)
{
    (void)fprintf(stderr, "bench-qmp: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double now(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static double cpu(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static long rss(void)
{
    long pages = 0;
    FILE *file = fopen("/proc/self/statm", "re");
    if (file == NULL || fscanf(file, "%*s %ld", &pages) != 1) {
        die("/proc/self/statm");
    }
    (void)fclose(file);
    return pages * sysconf(_SC_PAGESIZE);
}

/* --- what is measured --- */

struct peer {
    struct bench *bench;
    struct qmp *qmp;
};

struct bench {
    uv_loop_t loop;
    uv_timer_t timer;
    struct peer *peers;
    unsigned n_peers;
    unsigned n_open;
    unsigned long n_replies;
    uv_timer_t tick; /* asks the next ones, once a millisecond */
    unsigned n_asked;
    double *delays; /* of events, in seconds; NULL: nobody listens */
    unsigned n_delays;
    double seconds; /* how long to measure; 0 once that is over */
    double began, attached, cpu_began, took, cpu_took;
    long rss_before, rss_idle;
};

static void print(const struct bench *b)
{
    (void)printf("{\"monitors\": %u, \"attach_s\": %.6f, \"rss_before\": %ld, "
                 "\"rss_idle\": %ld, \"rt_per_s\": %.1f, \"cpu_us\": %.3f",
                 b->n_peers, b->attached, b->rss_before, b->rss_idle,
                 (double)b->n_replies / b->took,
                 b->cpu_took * 1e6 / (double)b->n_replies);
    if (b->n_delays > 0) {
        (void)printf(", \"events\": %u, \"event_p50\": %.6f, "
                     "\"event_p99\": %.6f",
                     b->n_delays, b->delays[b->n_delays / 2],
                     b->delays[(size_t)b->n_delays * 99 / 100]);
    }
    (void)printf("}\n");
}

static int compare(const void *a, const void *b)
{
    double one = *(const double *)a, other = *(const double *)b;
    return one < other ? -1 : one > other;
}

static void begin(struct bench *b)
{
    b->attached = now() - b->began;
    b->rss_idle = rss();
    b->n_replies = 0;
    b->began = now();
    b->cpu_began = cpu();
}

static void end(struct bench *b)
{
    b->took = now() - b->began;
    b->cpu_took = cpu() - b->cpu_began;
    if (b->n_delays > 0) {
        qsort(b->delays, b->n_delays, sizeof(*b->delays), compare);
    }
}

static void address_of(const char *dir, int listeners, unsigned i, char *ret,
                       size_t size)
{
    if (listeners == 0) {
        (void)snprintf(ret, size, "%s", dir);
    } else {
        (void)snprintf(ret, size, "%s/%u", dir, i % (unsigned)listeners);
    }
}

/* --- by the library --- */

static void ask(struct peer *peer);

static void bench_on_reply(void *data, const struct err *err, json_t *result)
{
    struct peer *peer = data;
    if (peer->bench->seconds <= 0) {
        return; /* closing */
    }
    if (err != NULL || json_object_get(result, "qemu") == NULL) {
        die(err != NULL ? err->desc : "a reply without version");
    }
    peer->bench->n_replies++;
    if (peer->bench->delays == NULL) {
        ask(peer);
    }
}

static void bench_on_event(void *data, const char *name, const json_t *event)
{
    struct bench *b = ((struct peer *)data)->bench;
    const json_t *ns = json_object_get(json_object_get(event, "data"), "ns");
    (void)name;
    if (b->n_replies > 0 && b->seconds > 0 && b->n_delays < EVENTS_MAX) {
        b->delays[b->n_delays++] = now() - (double)json_integer_value(ns) / 1e9;
    }
}

static void ask(struct peer *peer)
{
    if (peer->bench->seconds > 0 &&
        qmp_execute(peer->qmp, "query-version", NULL, NULL, bench_on_reply,
                    peer, NULL) < 0) {
        die("qmp_execute");
    }
}

static void bench_on_tick(uv_timer_t *tick)
{
    struct bench *b = tick->data;
    unsigned n = b->n_peers < CHATTING ? b->n_peers : CHATTING;
    for (unsigned i = 0; i < CHATTING * 4 / 1000; i++) {
        ask(&b->peers[b->n_asked++ % n]);
    }
}

static void bench_on_end(uv_timer_t *timer)
{
    struct bench *b = timer->data;
    end(b);
    b->seconds = 0;
    uv_close((uv_handle_t *)timer, NULL);
    uv_close((uv_handle_t *)&b->tick, NULL);
    for (unsigned i = 0; i < b->n_peers; i++) {
        qmp_close(b->peers[i].qmp, NULL, NULL);
    }
}

/* All are attached; let the allocator's dust settle, then ask. */
static void bench_on_quiet(uv_timer_t *timer)
{
    struct bench *b = timer->data;
    double attached = b->attached;
    begin(b);
    b->attached = attached;
    for (unsigned i = 0; i < b->n_peers && b->delays == NULL; i++) {
        ask(&b->peers[i]);
    }
    if (b->delays != NULL) {
        (void)uv_timer_start(&b->tick, bench_on_tick, 1, 1);
    }
    (void)uv_timer_start(timer, bench_on_end, (uint64_t)(b->seconds * 1000), 0);
}

static void bench_on_open(void *data, const struct err *err)
{
    struct peer *peer = data;
    struct bench *b = peer->bench;
    if (err != NULL) {
        errno = -err->code;
        die(err->desc);
    }
    if (++b->n_open == b->n_peers) {
        b->attached = now() - b->began;
        (void)uv_timer_start(&b->timer, bench_on_quiet, 200, 0);
    }
}

static void library(struct bench *b, const char *dir, int listeners)
{
    char text[sizeof(((struct sockaddr_un *)0)->sun_path)];
    struct err *err = NULL;
    (void)uv_loop_init(&b->loop);
    (void)uv_timer_init(&b->loop, &b->timer);
    (void)uv_timer_init(&b->loop, &b->tick);
    b->timer.data = b->tick.data = b;
    for (unsigned i = 0; i < b->n_peers; i++) {
        struct peer *peer = &b->peers[i];
        struct qmp_addr *addr = NULL;
        address_of(dir, listeners, i, text, sizeof(text));
        if (qmp_addr_parse(text, &addr, &err) < 0) {
            die(text);
        }
        struct qmp_options options = {.loop = &b->loop,
                                      .addr = addr,
                                      .connect_timeout_ms = 60000,
                                      .greeting_timeout_ms = 60000};
        struct qmp_owner owner = {.data = peer};
        peer->bench = b;
        if (qmp_open(&options, &owner, bench_on_open, peer, &peer->qmp, &err) <
            0) {
            die(err != NULL ? err->desc : text);
        }
        (void)qmp_addr_free(addr);
        struct qmp_sub *sub = NULL;
        if (b->delays != NULL &&
            qmp_subscribe(peer->qmp, "BENCH", bench_on_event, peer, &sub) < 0) {
            die("qmp_subscribe");
        }
    }
    (void)uv_run(&b->loop, UV_RUN_DEFAULT);
    (void)uv_loop_close(&b->loop);
}

/* --- by hand --- */

static int connect_to(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    (void)snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    if (fd < 0 ||
        connect(fd, (const struct sockaddr *)&address, sizeof(address)) < 0) {
        die(path);
    }
    return fd;
}

/* Reads until the end of a line; 'bytes' is large enough for what comes. */
static void read_line(int fd)
{
    static char bytes[16 << 10];
    size_t n = 0;
    do {
        ssize_t r = read(fd, bytes + n, sizeof(bytes) - n);
        if (r <= 0) {
            die("read");
        }
        n += (size_t)r;
    } while (bytes[n - 1] != '\n' || memchr(bytes, '}', n) == NULL);
}

static void send_to(int fd, const char *text, size_t n)
{
    if (write(fd, text, n) != (ssize_t)n) {
        die("write");
    }
}

static void raw(struct bench *b, const char *path, bool oob)
{
    int fd = connect_to(path);
    read_line(fd);
    if (oob) {
        send_to(fd, capabilities_oob, sizeof(capabilities_oob) - 1);
    } else {
        send_to(fd, capabilities, sizeof(capabilities) - 1);
    }
    read_line(fd);
    begin(b);
    for (double until = now() + b->seconds; now() < until; b->n_replies++) {
        send_to(fd, command, sizeof(command) - 1);
        read_line(fd);
    }
    end(b);
    (void)close(fd);
}

static void raw_attach(struct bench *b, const char *dir, int listeners,
                       int epoll, int *fds)
{
    char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
    for (unsigned i = 0; i < b->n_peers; i++) {
        address_of(dir, listeners, i, path, sizeof(path));
        fds[i] = connect_to(path);
    }
    for (unsigned i = 0; i < b->n_peers; i++) {
        read_line(fds[i]);
        send_to(fds[i], capabilities, sizeof(capabilities) - 1);
    }
    for (unsigned i = 0; i < b->n_peers; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fds[i]};
        read_line(fds[i]);
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, fds[i], &event) < 0) {
            die("epoll_ctl");
        }
    }
}

static void raw_fan(struct bench *b, const char *dir, int listeners)
{
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    int *fds = calloc(b->n_peers, sizeof(*fds));
    if (epoll < 0 || fds == NULL) {
        die("epoll_create1");
    }
    raw_attach(b, dir, listeners, epoll, fds);
    begin(b);
    double until = now() + b->seconds;
    for (unsigned i = 0; i < b->n_peers; i++) {
        send_to(fds[i], command, sizeof(command) - 1);
    }
    while (now() < until) {
        struct epoll_event events[BATCH];
        int n = epoll_wait(epoll, events, BATCH, -1);
        for (int i = 0; i < n; i++, b->n_replies++) {
            read_line(events[i].data.fd);
            send_to(events[i].data.fd, command, sizeof(command) - 1);
        }
    }
    end(b);
    free(fds);
}

static void allow_files(unsigned n)
{
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &files);
    }
    if (files.rlim_cur < n + 64) {
        errno = EMFILE;
        die("more monitors than open files");
    }
}

int main(int argc, char **argv)
{
    struct bench b = {.n_peers = 1};
    const char *kind = argc > 1 ? argv[1] : "";
    bool events = strcmp(kind, "library-events") == 0;
    bool fan = events || strstr(kind, "-fan") != NULL;
    if (argc != (fan ? 6 : 4)) {
        errno = EINVAL;
        die("arguments");
    }
    int listeners = fan ? atoi(argv[3]) : 0;
    b.n_peers = fan ? (unsigned)atoi(argv[4]) : 1;
    b.seconds = atof(argv[argc - 1]);
    allow_files(b.n_peers);
    b.peers = calloc(b.n_peers, sizeof(*b.peers));
    b.delays = events ? calloc(EVENTS_MAX, sizeof(*b.delays)) : NULL;
    if (b.peers == NULL || (events && b.delays == NULL)) {
        die("memory");
    }
    b.rss_before = rss();
    b.began = now();
    if (strncmp(kind, "library", 7) == 0) {
        library(&b, argv[2], listeners);
    } else if (fan) {
        raw_fan(&b, argv[2], listeners);
    } else {
        raw(&b, argv[2], strcmp(kind, "raw-oob") == 0);
    }
    print(&b);
    free(b.peers);
    free(b.delays);
    return 0;
}
