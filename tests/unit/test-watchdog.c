/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <criterion/criterion.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/err.h"
#include "run/watchdog.h"

TestSuite(watchdog, .timeout = 60);

enum { LONG_MS = 60000, SHORT_MS = 100 };

static const char *const jobs[] = {"qpv-k3f9x2-d0-mirror",
                                   "qpv-k3f9x2-d1-mirror"};

/* The two ends of a monitor: ours, which the guard inherits, and QEMU's. */
struct monitor {
    int ours;
    int qemu;
};

static struct monitor monitor_open(void)
{
    int pair[2];
    int flags = SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK;
    cr_assert_eq(socketpair(AF_UNIX, flags, 0, pair), 0);
    return (struct monitor){pair[0], pair[1]};
}

/* What comes to QEMU: 'n' commands. */
static void read_cancels(const struct monitor *monitor, unsigned n,
                         char out[2048])
{
    size_t len = 0;
    unsigned found = 0;
    while (found < n && len < 2047) {
        struct pollfd data = {.fd = monitor->qemu, .events = POLLIN};
        cr_assert_eq(poll(&data, 1, 10000), 1, "nothing came");
        ssize_t got = read(monitor->qemu, out + len, 2047 - len);
        cr_assert_gt(got, 0);
        len += (size_t)got;
        out[len] = '\0';
        found = 0;
        for (const char *p = out; (p = strstr(p, "execute")) != NULL; p++) {
            found++;
        }
    }
}

/* Whether all who had the monitor open have gone, and nothing was written. */
static void expect_silence(struct monitor *monitor)
{
    char byte;
    (void)close(monitor->ours);
    struct pollfd data = {.fd = monitor->qemu, .events = POLLIN};
    cr_assert_eq(poll(&data, 1, 10000), 1);
    cr_assert_eq(read(monitor->qemu, &byte, 1), 0, "the guard has acted");
}

Test(watchdog, a_dead_engine_lets_the_jobs_be_cancelled_and_drained)
{
    char text[2048];
    struct watchdog *guard = NULL;
    struct monitor monitor = monitor_open();
    cr_assert_eq(watchdog_arm(monitor.ours, -1, jobs, 2, WATCHDOG_LEAVES,
                              LONG_MS, &guard, NULL),
                 0);
    (void)watchdog_abandon(guard); /* the end of file is the same */
    (void)close(monitor.ours);
    read_cancels(&monitor, 2, text);
    cr_assert_not_null(strstr(text, jobs[0]));
    cr_assert_not_null(strstr(text, jobs[1]));
    /* It stays until each has its reply: QEMU drops what a hang-up left. */
    struct pollfd data = {.fd = monitor.qemu, .events = POLLIN};
    cr_assert_eq(poll(&data, 1, 0), 0);
    static const char replies[] =
        "{\"return\":{},\"id\":\"qpv-watchdog-0\"}\r\n"
        "{\"error\":{},\"id\":\"qpv-watchdog-1\"}\r\n";
    cr_assert_gt(write(monitor.qemu, replies, sizeof(replies) - 1), 0);
    cr_assert_eq(poll(&data, 1, 10000), 1);
    cr_assert_eq(read(monitor.qemu, text, sizeof(text)), 0);
}

Test(watchdog, a_stopped_guest_goes_on_after_the_jobs_are_cancelled)
{
    char text[2048];
    struct watchdog *guard = NULL;
    for (unsigned n = 0; n <= 2; n += 2) {
        struct monitor monitor = monitor_open();
        cr_assert_eq(watchdog_arm(monitor.ours, -1, jobs, n, WATCHDOG_LETS_GO,
                                  LONG_MS, &guard, NULL),
                     0);
        (void)watchdog_abandon(guard);
        (void)close(monitor.ours);
        read_cancels(&monitor, n + 1, text);
        const char *cont = strstr(text, "\"cont\"");
        const char *cancel = strstr(text, "job-cancel");
        cr_assert_not_null(cont);
        cr_assert(n == 0 ? cancel == NULL : cancel != NULL && cancel < cont);
        (void)close(monitor.qemu);
    }
}

Test(watchdog, a_guest_that_runs_is_stopped_before_and_goes_on_afterwards)
{
    char text[2048];
    struct watchdog *guard = NULL;
    struct monitor monitor = monitor_open();
    cr_assert_eq(watchdog_arm(monitor.ours, -1, jobs, 2, WATCHDOG_STOPS,
                              LONG_MS, &guard, NULL),
                 0);
    (void)watchdog_abandon(guard);
    (void)close(monitor.ours);
    read_cancels(&monitor, 4, text);
    const char *stop = strstr(text, "\"stop\"");
    const char *cancel = strstr(text, "job-cancel");
    const char *cont = strstr(text, "\"cont\"");
    cr_assert(stop != NULL && cancel != NULL && cont != NULL);
    cr_assert(stop < cancel && cancel < cont);
    cr_assert_null(strstr(cont, "job-cancel"), "a job could take its writes");
    (void)close(monitor.qemu);
}

Test(watchdog, a_killed_process_is_a_dead_engine)
{
    char text[2048];
    struct monitor monitor = monitor_open();
    pid_t pid = fork();
    cr_assert_geq(pid, 0);
    if (pid == 0) {
        struct watchdog *guard = NULL;
        (void)watchdog_arm(monitor.ours, -1, jobs, 1, WATCHDOG_LEAVES, LONG_MS,
                           &guard, NULL);
        (void)raise(SIGKILL);
    }
    (void)close(monitor.ours);
    (void)waitpid(pid, NULL, 0);
    read_cancels(&monitor, 1, text);
}

Test(watchdog, the_limit_passes_and_no_reply_is_stolen)
{
    char text[2048];
    struct watchdog *guard = NULL;
    struct monitor monitor = monitor_open();
    cr_assert_eq(watchdog_arm(monitor.ours, -1, jobs, 2, WATCHDOG_LEAVES,
                              SHORT_MS, &guard, NULL),
                 0);
    read_cancels(&monitor, 2, text);
    static const char reply[] = "{\"return\":{},\"id\":\"qpv-watchdog-0\"}";
    cr_assert_gt(write(monitor.qemu, reply, sizeof(reply) - 1), 0);
    (void)watchdog_disarm(guard);
    ssize_t got = read(monitor.ours, text, sizeof(text));
    cr_assert_eq(got, (ssize_t)sizeof(reply) - 1, "the engine's to read");
}

Test(watchdog, a_stopped_guest_is_let_go_on_after_the_jobs)
{
    char text[2048];
    struct watchdog *guard = NULL;
    struct monitor monitor = monitor_open();
    cr_assert_eq(watchdog_arm(monitor.ours, -1, jobs, 2, WATCHDOG_LETS_GO,
                              LONG_MS, &guard, NULL),
                 0);
    (void)watchdog_abandon(guard);
    read_cancels(&monitor, 2, text); /* all of it is one write */
    const char *cont = strstr(text, "\"execute\":\"cont\"");
    cr_assert_not_null(cont);
    cr_assert_null(strstr(cont, "job-cancel"), "a job could hold its writes");
    cr_assert_eq(
        watchdog_arm(-1, -1, NULL, 0, WATCHDOG_LETS_GO, LONG_MS, &guard, NULL),
        -EINVAL);
}

Test(watchdog, disarmed_it_does_nothing)
{
    struct watchdog *guard = NULL;
    struct monitor monitor = monitor_open();
    cr_assert_eq(watchdog_arm(monitor.ours, -1, jobs, 2, WATCHDOG_LEAVES,
                              LONG_MS, &guard, NULL),
                 0);
    cr_assert_null(watchdog_disarm(guard));
    expect_silence(&monitor);
    cr_assert_null(watchdog_disarm(NULL));
    cr_assert_null(watchdog_abandon(NULL));
}

Test(watchdog, holding_off_starts_the_limit_anew)
{
    struct watchdog *guard = NULL;
    struct monitor monitor = monitor_open();
    cr_assert_eq(watchdog_arm(monitor.ours, -1, jobs, 1, WATCHDOG_LEAVES, 1000,
                              &guard, NULL),
                 0);
    struct pollfd data = {.fd = monitor.qemu, .events = POLLIN};
    for (unsigned i = 0; i < 20; i++) {
        cr_assert_eq(poll(&data, 1, 75), 0, "it acted though held off");
        watchdog_hold_off(guard);
    }
    (void)watchdog_disarm(guard);
    expect_silence(&monitor);
}

/* A stream's guard whose engine has died while it committed, and is asked. */
static struct monitor committed_and_dead(void)
{
    char text[2048];
    struct watchdog *guard = NULL;
    struct monitor monitor = monitor_open();
    cr_assert_eq(watchdog_arm_stream(monitor.ours, -1, LONG_MS, &guard, NULL),
                 0);
    cr_assert_eq(watchdog_commit(guard), 0);
    (void)watchdog_abandon(guard);
    (void)close(monitor.ours);
    read_cancels(&monitor, 1, text);
    cr_assert_not_null(strstr(text, "query-migrate"));
    cr_assert_null(strstr(text, "migrate_cancel"));
    return monitor;
}

static void answer(const struct monitor *monitor, const char *text)
{
    cr_assert_eq(write(monitor->qemu, text, strlen(text)),
                 (ssize_t)strlen(text));
}

static const char still_there[] =
    "{\"event\": \"MIGRATION\"}\r\n{\"return\": {\"status\":"
    " \"pre-switchover\"}, \"id\": \"qpv-watchdog-q\"}\r\n";

Test(watchdog, a_stream_that_was_not_continued_is_cancelled)
{
    char text[2048] = "query-migrate";
    struct monitor monitor = committed_and_dead();
    unsigned asked = 0;
    while (strstr(text, "query-migrate") != NULL && asked < 100) {
        answer(&monitor, still_there);
        read_cancels(&monitor, 1, text);
        asked++;
    }
    cr_assert_gt(asked, 5);
    cr_assert_not_null(strstr(text, "migrate_cancel"));
}

/* migrate-continue wakes a thread, which then changes the state. */
Test(watchdog, a_stream_that_goes_on_late_is_left_alone)
{
    char text[2048], byte;
    struct monitor monitor = committed_and_dead();
    answer(&monitor, still_there);
    read_cancels(&monitor, 1, text);
    cr_assert_not_null(strstr(text, "query-migrate"));
    answer(&monitor, "{\"return\": {\"status\": \"device\"},"
                     " \"id\": \"qpv-watchdog-q\"}\r\n");
    struct pollfd data = {.fd = monitor.qemu, .events = POLLIN};
    cr_assert_eq(poll(&data, 1, 10000), 1);
    cr_assert_eq(read(monitor.qemu, &byte, 1), 0, "the guard has acted");
}

Test(watchdog, a_stream_that_was_continued_is_left_alone)
{
    char byte;
    struct monitor monitor = committed_and_dead();
    answer(&monitor,
           "{\"event\": \"MIGRATION\", \"data\": {\"status\":"
           " \"pre-switchover\"}}\r\n{\"return\": {\"status\": \"device\"},"
           " \"id\": \"qpv-watchdog-q\"}\r\n");
    struct pollfd data = {.fd = monitor.qemu, .events = POLLIN};
    cr_assert_eq(poll(&data, 1, 10000), 1);
    cr_assert_eq(read(monitor.qemu, &byte, 1), 0, "the guard has acted");
}

/* Whether a guest by postcopy is told to go on, while its stream is so. */
static bool goes_on(const struct monitor *monitor, const char *status)
{
    char text[2048], reply[128];
    (void)snprintf(reply, sizeof(reply),
                   "{\"return\": {\"status\": \"%s\"}, \"id\":"
                   " \"qpv-watchdog-t\"}\r\n",
                   status);
    answer(monitor, reply);
    read_cancels(monitor, 1, text);
    bool asks = strstr(text, "query-migrate") != NULL;
    cr_assert(asks || strstr(text, "\"cont\"") != NULL, "%s", text);
    return !asks;
}

Test(watchdog, a_guest_by_postcopy_goes_on_once_its_stream_is_over)
{
    char text[2048], byte;
    struct watchdog *guard = NULL;
    struct monitor monitor = monitor_open();
    cr_assert_eq(watchdog_arm_postcopy(monitor.ours, -1, LONG_MS, &guard, NULL),
                 0);
    (void)watchdog_abandon(guard);
    (void)close(monitor.ours);
    read_cancels(&monitor, 1, text);
    cr_assert_not_null(strstr(text, "migrate_cancel"));
    answer(&monitor, "{\"return\": {}, \"id\": \"qpv-watchdog-0\"}\r\n");
    read_cancels(&monitor, 1, text);
    cr_assert_not_null(strstr(text, "query-migrate"));
    cr_assert_not(goes_on(&monitor, "cancelling"));
    cr_assert(goes_on(&monitor, "cancelled"));
    answer(&monitor, "{\"error\": {\"desc\": \"not finalized\"}, \"id\":"
                     " \"qpv-watchdog-c\"}\r\n");
    read_cancels(&monitor, 1, text);
    cr_assert_not_null(strstr(text, "query-migrate"));
    cr_assert(goes_on(&monitor, "failed"));
    answer(&monitor, "{\"return\": {}, \"id\": \"qpv-watchdog-c\"}\r\n");
    struct pollfd data = {.fd = monitor.qemu, .events = POLLIN};
    cr_assert_eq(poll(&data, 1, 10000), 1);
    cr_assert_eq(read(monitor.qemu, &byte, 1), 0, "the guard goes on");
}

/* 'cont' works on a source that has handed the guest over, too. */
Test(watchdog, a_guest_that_has_gone_by_postcopy_is_never_told_to_go_on)
{
    /* The last is where QEMU 7.2 goes when the way there breaks. */
    static const char *const statuses[] = {"completed", "device",
                                           "postcopy-paused", "failed"};
    char text[2048], byte;
    struct watchdog *guard = NULL;
    struct monitor monitor = monitor_open();
    cr_assert_eq(watchdog_arm_postcopy(monitor.ours, -1, LONG_MS, &guard, NULL),
                 0);
    cr_assert_eq(watchdog_commit(guard), 0);
    (void)watchdog_abandon(guard);
    (void)close(monitor.ours);
    read_cancels(&monitor, 1, text);
    answer(&monitor, "{\"return\": {\"status\": \"postcopy-active\"},"
                     " \"id\": \"qpv-watchdog-q\"}\r\n");
    read_cancels(&monitor, 1, text);
    for (unsigned i = 0; i < 29; i++) {
        cr_assert_not(goes_on(&monitor, statuses[i % 4]), "%u", i);
    }
    answer(&monitor, "{\"return\": {\"status\": \"completed\"},"
                     " \"id\": \"qpv-watchdog-t\"}\r\n");
    struct pollfd data = {.fd = monitor.qemu, .events = POLLIN};
    cr_assert_eq(poll(&data, 1, 10000), 1);
    cr_assert_eq(read(monitor.qemu, &byte, 1), 0, "the guard goes on");
}

/* Between two looks it can become active and fail: the event has told. */
Test(watchdog, a_guest_that_has_gone_between_two_looks_is_not_told_either)
{
    char text[2048];
    struct watchdog *guard = NULL;
    struct monitor monitor = monitor_open();
    cr_assert_eq(watchdog_arm_postcopy(monitor.ours, -1, LONG_MS, &guard, NULL),
                 0);
    cr_assert_eq(watchdog_commit(guard), 0);
    (void)watchdog_abandon(guard);
    (void)close(monitor.ours);
    read_cancels(&monitor, 1, text);
    answer(&monitor, "{\"event\": \"MIGRATION\", \"data\": {\"status\":"
                     " \"postcopy-active\"}}\r\n{\"return\": {\"status\":"
                     " \"failed\"}, \"id\": \"qpv-watchdog-q\"}\r\n");
    read_cancels(&monitor, 1, text);
    cr_assert_not(goes_on(&monitor, "failed"));
}

/* Members of a reply are named like its statuses. */
Test(watchdog, a_guest_that_never_went_goes_on_when_its_stream_fails)
{
    char text[2048];
    struct watchdog *guard = NULL;
    struct monitor monitor = monitor_open();
    cr_assert_eq(watchdog_arm_postcopy(monitor.ours, -1, LONG_MS, &guard, NULL),
                 0);
    cr_assert_eq(watchdog_commit(guard), 0);
    (void)watchdog_abandon(guard);
    (void)close(monitor.ours);
    read_cancels(&monitor, 1, text);
    answer(&monitor, "{\"return\": {\"status\": \"device\", \"ram\":"
                     " {\"postcopy-requests\": 0, \"postcopy-bytes\": 0}},"
                     " \"id\": \"qpv-watchdog-q\"}\r\n");
    read_cancels(&monitor, 1, text);
    cr_assert(goes_on(&monitor, "failed"));
    (void)close(monitor.qemu);
}

Test(watchdog, a_guest_by_postcopy_goes_on_when_the_engine_stands_still)
{
    char text[2048];
    struct watchdog *guard = NULL;
    struct monitor monitor = monitor_open();
    cr_assert_eq(
        watchdog_arm_postcopy(monitor.ours, -1, SHORT_MS, &guard, NULL), 0);
    read_cancels(&monitor, 3, text);
    const char *cancel = strstr(text, "migrate_cancel");
    const char *cont = strstr(text, "\"cont\"");
    cr_assert(cancel != NULL && cont != NULL && cancel < cont, "%s", text);
    cr_assert_null(strstr(text, "query"), "the replies are the engine's");
    cr_assert_eq(watchdog_commit(guard), -ETIMEDOUT);
    guard = watchdog_disarm(guard);
}

static const char unwedge[] =
    "\"migrate-continue\",\"arguments\":{\"state\":\"cancelling\"}";

/* A guard whose engine has died, and what it asks of its cancelled stream. */
static struct monitor cancelled_and_dead(bool thaws)
{
    char text[2048];
    struct watchdog *guard = NULL;
    struct monitor monitor = monitor_open();
    cr_assert_eq((thaws ? watchdog_arm_postcopy : watchdog_arm_stream)(
                     monitor.ours, -1, LONG_MS, &guard, NULL),
                 0);
    (void)watchdog_abandon(guard);
    (void)close(monitor.ours);
    read_cancels(&monitor, 1, text);
    cr_assert_not_null(strstr(text, "migrate_cancel"));
    answer(&monitor, "{\"return\": {}, \"id\": \"qpv-watchdog-0\"}\r\n");
    read_cancels(&monitor, 1, text);
    cr_assert_not_null(strstr(text, "query-migrate"));
    return monitor;
}

static void answer_status(const struct monitor *monitor, const char *status)
{
    char reply[128];
    (void)snprintf(reply, sizeof(reply),
                   "{\"return\": {\"status\": \"%s\"}, \"id\":"
                   " \"qpv-watchdog-t\"}\r\n",
                   status);
    answer(monitor, reply);
}

/* Says "cancelling" until it is told to go on; how often that was. */
static unsigned wedge(const struct monitor *monitor)
{
    char text[2048] = "query-migrate";
    unsigned asked = 0;
    while (strstr(text, "query-migrate") != NULL && asked < 100) {
        answer_status(monitor, "cancelling");
        read_cancels(monitor, 1, text);
        asked++;
    }
    cr_assert_not_null(strstr(text, unwedge), "%s", text);
    answer(monitor, "{\"return\": {}, \"id\": \"qpv-watchdog-w\"}\r\n");
    read_cancels(monitor, 1, text);
    cr_assert_not_null(strstr(text, "query-migrate"));
    return asked;
}

static void expect_end(const struct monitor *monitor)
{
    char byte;
    struct pollfd data = {.fd = monitor->qemu, .events = POLLIN};
    cr_assert_eq(poll(&data, 1, 10000), 1);
    cr_assert_eq(read(monitor->qemu, &byte, 1), 0, "the guard has acted");
}

Test(watchdog, a_cancelled_stream_that_waits_for_ever_is_ended)
{
    struct monitor monitor = cancelled_and_dead(false);
    cr_assert_gt(wedge(&monitor), 5, "it may only take its time");
    answer_status(&monitor, "cancelled");
    expect_end(&monitor); /* QEMU lets the guest go on */
    monitor = cancelled_and_dead(false);
    (void)wedge(&monitor);
    (void)wedge(&monitor); /* the first came before it waited */
    answer_status(&monitor, "cancelled");
    expect_end(&monitor);
}

/* Both wait at the same time until a look is given up. */
Test(watchdog, a_qemu_that_is_silent_for_long_is_asked_again)
{
    char text[2048];
    struct monitor committed = committed_and_dead();
    struct monitor cancelled = cancelled_and_dead(false);
    read_cancels(&cancelled, 1, text);
    cr_assert_not_null(strstr(text, "query-migrate"));
    read_cancels(&committed, 1, text);
    cr_assert_not_null(strstr(text, "query-migrate"), "%s", text);
    (void)wedge(&cancelled);
    answer_status(&cancelled, "cancelled");
    expect_end(&cancelled);
    /* Late answers come at the same moment, and tell of that one only. */
    answer(&committed, still_there);
    for (unsigned asked = 0; strstr(text, "migrate_cancel") == NULL; asked++) {
        cr_assert_lt(asked, 100);
        answer(&committed, still_there);
        read_cancels(&committed, 1, text);
    }
    (void)close(committed.qemu);
}

Test(watchdog, a_stream_that_is_cancelled_at_once_is_left_alone)
{
    struct monitor monitor = cancelled_and_dead(false);
    answer_status(&monitor, "cancelling");
    char text[2048];
    read_cancels(&monitor, 1, text);
    cr_assert_not_null(strstr(text, "query-migrate"));
    answer_status(&monitor, "cancelled");
    expect_end(&monitor);
}

Test(watchdog, a_guest_by_postcopy_goes_on_after_such_a_stream)
{
    struct monitor monitor = cancelled_and_dead(true);
    (void)wedge(&monitor);
    cr_assert(goes_on(&monitor, "cancelled"));
    answer(&monitor, "{\"return\": {}, \"id\": \"qpv-watchdog-c\"}\r\n");
    expect_end(&monitor);
}

/* Without an answer, as the replies are the engine's to read. */
Test(watchdog, such_a_stream_ends_while_the_engine_stands_still)
{
    char text[2048];
    struct watchdog *guard = NULL;
    struct monitor monitor = monitor_open();
    cr_assert_eq(watchdog_arm_stream(monitor.ours, -1, SHORT_MS, &guard, NULL),
                 0);
    read_cancels(&monitor, 3, text);
    const char *cancel = strstr(text, "migrate_cancel");
    const char *first = strstr(text, unwedge);
    cr_assert(cancel != NULL && first != NULL && cancel < first, "%s", text);
    cr_assert_not_null(strstr(first + 1, unwedge));
    cr_assert_null(strstr(text, "query"), "the replies are the engine's");
    cr_assert_eq(watchdog_commit(guard), -ETIMEDOUT);
    guard = watchdog_disarm(guard);
    expect_silence(&monitor);
}

Test(watchdog, committed_it_has_no_limit)
{
    struct watchdog *guard = NULL;
    struct monitor monitor = monitor_open();
    cr_assert_eq(watchdog_arm_stream(monitor.ours, -1, SHORT_MS, &guard, NULL),
                 0);
    cr_assert_eq(watchdog_commit(guard), 0);
    struct pollfd data = {.fd = monitor.qemu, .events = POLLIN};
    cr_assert_eq(poll(&data, 1, 3 * SHORT_MS), 0, "the guard has acted");
    guard = watchdog_disarm(guard);
    expect_silence(&monitor);
}

Test(watchdog, it_is_too_late_to_commit_when_it_has_acted)
{
    char text[2048];
    struct watchdog *guard = NULL;
    struct monitor monitor = monitor_open();
    cr_assert_eq(watchdog_arm_stream(monitor.ours, -1, SHORT_MS, &guard, NULL),
                 0);
    read_cancels(&monitor, 1, text);
    cr_assert_eq(watchdog_commit(guard), -ETIMEDOUT);
    guard = watchdog_disarm(guard);
}

Test(watchdog, what_it_cannot_guard_is_refused)
{
    struct watchdog *guard = NULL;
    const char *many[65];
    for (unsigned i = 0; i < 65; i++) {
        many[i] = "j";
    }
    cr_assert_eq(
        watchdog_arm(0, -1, many, 65, WATCHDOG_LEAVES, LONG_MS, &guard, NULL),
        -EINVAL);
    cr_assert_eq(
        watchdog_arm(-1, -1, many, 1, WATCHDOG_LEAVES, LONG_MS, &guard, NULL),
        -EINVAL);
    cr_assert_null(guard);
}
