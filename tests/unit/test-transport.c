/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "unit/qmp-fixture.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/str.h"
#include "fake/scratch.h"

TestSuite(transport, .timeout = 15);

static const struct qmp_options DEFAULTS = {0};

Test(transport, addresses_have_a_canonical_form)
{
    static const struct {
        const char *text;
        const char *canonical;
    } cases[] = {
        {"/run/vm/qmp",                  "unix:/run/vm/qmp"            },
        {"unix:/run/vm/qmp",             "unix:/run/vm/qmp"            },
        {"relative",                     "unix:relative"               },
        {"tcp:host:4444",                "tcp:host:4444"               },
        {"tcp:[::1]:04444",              "tcp:[::1]:4444"              },
        {"ssh://host/run/qmp",           "ssh://host/run/qmp"          },
        {"ssh://me@host:22/run/qmp",     "ssh://me@host:22/run/qmp"    },
        {"ssh://me@[fe80::1%eth0]:22/q", "ssh://me@[fe80::1%eth0]:22/q"},
        {"exec:nc -U /x",                "exec:nc -U /x"               },
    };

    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        struct qmp_addr *addr = NULL;
        _cleanup_err_ struct err *err = NULL;
        cr_assert_eq(qmp_addr_parse(cases[i].text, &addr, &err), 0, "%s",
                     cases[i].text);
        cr_assert_str_eq(qmp_addr_text(addr), cases[i].canonical);
        (void)qmp_addr_free(addr);
    }
}

Test(transport, only_a_relative_socket_is_made_absolute)
{
    static const char *const kept[] = {"/run/qmp", "unix:/run/qmp", "tcp:h:1",
                                       "ssh://h/run/qmp", "exec:nc -U x"};
    for (unsigned i = 0; i < ARRAY_SIZE(kept); i++) {
        _cleanup_free_ char *same = qmp_addr_absolute(kept[i]);
        cr_assert_str_eq(same, kept[i]);
    }
    cr_assert_eq(chdir("/tmp"), 0);
    _cleanup_free_ char *plain = qmp_addr_absolute("vm.qmp");
    cr_assert_str_eq(plain, "unix:/tmp/vm.qmp");
    _cleanup_free_ char *named = qmp_addr_absolute("unix:run/vm.qmp");
    cr_assert_str_eq(named, "unix:/tmp/run/vm.qmp");
}

Test(transport, bad_addresses_are_refused_with_a_reason)
{
    static const char *const cases[] = {
        "",
        "unix:",
        "tcp:host",
        "tcp::4444",
        "tcp:host:0",
        "tcp:host:65536",
        "tcp:host:x",
        "tcp:ho st:1",
        "ssh://host",
        "ssh://host/",
        "ssh://-oProxyCommand=x/run/qmp",
        "ssh://-l@host/run/qmp",
        "ssh://@host/run/qmp",
        "ssh://me:secret@host/run/qmp",
        "ssh://host/run:x",
        "ssh://host/run%d",
        "ssh://host:0/run",
        "exec: ",
    };
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        struct qmp_addr *addr = NULL;
        _cleanup_err_ struct err *err = NULL;
        cr_assert_eq(qmp_addr_parse(cases[i], &addr, &err), -EINVAL, "%s",
                     cases[i]);
        _cleanup_free_ char *text = err_text(err);
        cr_assert_null(strstr(text, "secret"));
    }
    char path[200];
    memset(path, 'x', sizeof(path));
    path[sizeof(path) - 1] = '\0';
    struct qmp_addr *addr = NULL;
    cr_assert_eq(qmp_addr_parse(path, &addr, NULL), -EINVAL);
}

Test(addr, tells_the_other_host)
{
    static const struct {
        const char *text;
        const char *host;
        bool is_unix;
    } cases[] = {
        {"/run/vm.sock",                 NULL,    true },
        {"tcp:host2:4444",               "host2", false},
        {"ssh://root@host2/run/vm.sock", "host2", false},
        {"exec:nc -U /run/vm.sock",      NULL,    false},
    };

    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct qmp_addr *addr = NULL;
        cr_assert_eq(qmp_addr_parse(cases[i].text, &addr, NULL), 0);
        const char *host = qmp_addr_host(addr);
        cr_assert_eq(host == NULL, cases[i].host == NULL);
        cr_assert(host == NULL || strcmp(host, cases[i].host) == 0);
        cr_assert_eq(qmp_addr_is_unix(addr), cases[i].is_unix);
        qmp_addr_free(addr);
    }
}

Test(addr, names_what_is_beside_the_monitor)
{
    static const struct {
        const char *text;
        const char *beside;
    } cases[] = {
        {"/run/vm.sock",                    "/run/x"   },
        {"ssh://root@host2/run/vm/mon.qmp", "/run/vm/x"},
        {"/vm.sock",                        "/x"       },
        {"tcp:host2:4444",                  NULL       },
        {"exec:nc -U /run/vm.sock",         NULL       },
    };

    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        struct qmp_addr *addr = NULL;
        cr_assert_eq(qmp_addr_parse(cases[i].text, &addr, NULL), 0);
        _cleanup_free_ char *beside = qmp_addr_beside(addr, "x");
        cr_assert(str_eq(beside, cases[i].beside), "%s: %s", cases[i].text,
                  beside);
        qmp_addr_free(addr);
    }
}

Test(addr, only_ssh_brings_other_sockets_and_runs_a_command)
{
    struct qmp_addr *addr = NULL;
    cr_assert_eq(qmp_addr_parse("/run/vm.sock", &addr, NULL), 0);
    cr_assert_eq(qmp_addr_forward(addr, "a"), -ENOTSUP);
    cr_assert_null(qmp_addr_remotely(addr, "true"));
    qmp_addr_free(addr);

    cr_assert_eq(qmp_addr_parse("ssh://me@host2:22/run/vm.sock", &addr, NULL),
                 0);
    cr_assert_eq(qmp_addr_forward(addr, "a"), 0);
    cr_assert_eq(qmp_addr_forward(addr, "b"), 0);
    cr_assert_eq(qmp_addr_forward(addr, "c"), -E2BIG);
    struct qmp_addr *copy = qmp_addr_copy(addr);
    cr_assert_eq(qmp_addr_forward(copy, "c"), -E2BIG);
    _cleanup_free_ char *command = qmp_addr_remotely(copy, "rm -f -- 'a b'");
    static const char end[] =
        " -p 22 -l 'me' -- 'host2' 'rm -f -- '\\''a b'\\'''";
    size_t n = strlen(command), m = strlen(end);
    cr_assert(n > m && str_eq(command + n - m, end), "%s", command);
    qmp_addr_free(copy);
    qmp_addr_free(addr);
}

Test(transport, socket_without_listener_is_econnrefused)
{
    char dir[SCRATCH_PATH];
    scratch_make("transport", dir);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    (void)snprintf(address.sun_path, sizeof(address.sun_path), "%s/qmp", dir);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    cr_assert_eq(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    (void)close(fd);
    struct fixture f;
    fixture_init(&f, NULL);
    fixture_connect(&f, address.sun_path, DEFAULTS);
    fixture_until(&f, f.opened);
    cr_assert_eq(f.open_code, -ECONNREFUSED);
    fixture_done(&f);
    (void)unlink(address.sun_path);
    (void)rmdir(dir);
}

Test(transport, tcp_port_without_listener_is_econnrefused)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in in = {.sin_family = AF_INET,
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof(in);
    cr_assert_eq(bind(fd, (struct sockaddr *)&in, size), 0);
    cr_assert_eq(getsockname(fd, (struct sockaddr *)&in, &size), 0);
    struct fixture f;
    fixture_init(&f, NULL);
    _cleanup_free_ char *text =
        str_printf("tcp:127.0.0.1:%u", ntohs(in.sin_port));
    fixture_connect(&f, text, DEFAULTS);
    fixture_until(&f, f.opened);
    cr_assert_eq(f.open_code, -ECONNREFUSED, "%s", f.open_text);
    fixture_done(&f);
    (void)close(fd);
}

Test(transport, tcp_connects_and_the_peer_pid_is_unknown)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in in = {.sin_family = AF_INET,
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof(in);
    cr_assert_eq(bind(fd, (struct sockaddr *)&in, size), 0);
    cr_assert_eq(listen(fd, 1), 0);
    cr_assert_eq(getsockname(fd, (struct sockaddr *)&in, &size), 0);
    struct fixture f;
    fixture_init(&f, NULL);
    _cleanup_free_ char *text =
        str_printf("tcp:127.0.0.1:%u", ntohs(in.sin_port));
    fixture_connect(&f, text, (struct qmp_options){.greeting_timeout_ms = 20});
    fixture_until(&f, f.opened);
    cr_assert_eq(f.open_code, -EBUSY, "nobody greets here: %s", f.open_text);
    cr_assert_eq(qmp_peer_pid(f.qmp), 0);
    fixture_done(&f);
    (void)close(fd);
}

Test(transport, unknown_host_is_an_error_and_close_may_come_before_it)
{
    for (unsigned early = 0; early < 2; early++) {
        struct fixture f;
        fixture_init(&f, NULL);
        fixture_connect(&f, "tcp:does-not-exist.invalid:1", DEFAULTS);
        if (!early) {
            fixture_until(&f, f.opened);
            cr_assert_lt(f.open_code, 0);
        }
        fixture_done(&f);
        cr_assert(f.opened);
    }
}

static const char TALK[] =
    "exec:echo '{\"QMP\":{\"version\":{},\"capabilities\":[]}}';"
    "read -r line; id=${line#*'\"id\":'}; echo '{\"return\":{},\"id\":'$id;";

Test(transport, exec_speaks_over_one_socket)
{
    struct fixture f;
    fixture_init(&f, NULL);
    _cleanup_free_ char *text = str_printf("%s exec cat", TALK);
    fixture_connect(&f, text, DEFAULTS);
    fixture_until(&f, f.opened);
    cr_assert_eq(f.open_code, 0, "%s", f.open_text);
    struct stat st;
    cr_assert_eq(fstat(qmp_fd(f.qmp), &st), 0);
    cr_assert(S_ISSOCK(st.st_mode));
    cr_assert(fcntl(qmp_fd(f.qmp), F_GETFD) & FD_CLOEXEC);
    cr_assert_eq(qmp_peer_pid(f.qmp), 0);
    fixture_done(&f);
}

Test(transport, exec_that_fails_tells_its_last_words)
{
    struct fixture f;
    fixture_init(&f, NULL);
    fixture_connect(&f, "exec:echo first >&2; echo 'no such VM' >&2; exit 3",
                    DEFAULTS);
    fixture_until(&f, f.opened);
    cr_assert_eq(f.open_code, -ECONNRESET);
    cr_assert_not_null(strstr(f.open_text, ": no such VM"), "%s", f.open_text);
    cr_assert_null(strstr(f.open_text, ": first"));
    fixture_done(&f);
}

Test(transport, exec_child_that_ignores_sigterm_is_killed)
{
    struct fixture f;
    fixture_init(&f, NULL);
    fixture_connect(&f,
                    "exec:trap '' TERM; echo up >&2; while :; do read x; "
                    "done",
                    (struct qmp_options){.greeting_timeout_ms = 100});
    fixture_until(&f, f.opened);
    cr_assert_eq(f.open_code, -EBUSY);
    fixture_done(&f);
}

/* Puts a stand-in for ssh into PATH. */
static void install_ssh(char *dir, const char *body)
{
    scratch_make("ssh", dir);
    _cleanup_free_ char *path = str_printf("%s/ssh", dir);
    FILE *file = fopen(path, "we");
    (void)fprintf(file, "#!/bin/sh\n%s\n", body);
    (void)fclose(file);
    cr_assert_eq(chmod(path, 0755), 0);
    _cleanup_free_ char *env = str_printf("%s:%s", dir, getenv("PATH"));
    (void)setenv("PATH", env, 1);
}

static void remove_ssh(const char *dir)
{
    _cleanup_free_ char *ssh = str_printf("%s/ssh", dir);
    _cleanup_free_ char *log = str_printf("%s/log", dir);
    (void)unlink(ssh);
    (void)unlink(log);
    (void)rmdir(dir);
}

static char *read_log(const char *dir)
{
    _cleanup_free_ char *path = str_printf("%s/log", dir);
    char *text = calloc(1, 4096);
    FILE *file = fopen(path, "re");
    cr_assert_not_null(file);
    (void)fread(text, 1, 4095, file);
    (void)fclose(file);
    return text;
}

Test(transport, ssh_forwards_to_the_remote_socket)
{
    if (access("/usr/bin/socat", X_OK) < 0) {
        cr_skip_test("socat is missing");
    }
    struct fixture f;
    struct fake_qmp_options fake = {0};
    fixture_init(&f, &fake);
    char dir[SCRATCH_PATH];
    /* -L local:remote is obeyed, and LocalCommand run once it listens */
    install_ssh(dir, "echo \"$@\" >${0%/*}/log\n"
                     "while [ $# -gt 0 ]; do [ \"$1\" = -L ] && l=$2; shift; "
                     "done\n"
                     "socat -d -d UNIX-LISTEN:${l%%:*} UNIX:${l#*:} 2>&1 | "
                     "while read -r x; do case $x in *listening*) echo ready;; "
                     "esac; done");
    const char *path = fake_qmp_address(f.fake) + strlen("unix:");
    _cleanup_free_ char *text =
        str_printf("ssh://me@host.example:2222%s", path);
    fixture_connect(&f, text, DEFAULTS);
    fixture_until(&f, f.opened);
    cr_assert_eq(f.open_code, 0, "%s", f.open_text);
    struct reply reply = {0};
    cr_assert_eq(
        qmp_execute(f.qmp, "stop", NULL, NULL, reply_on_result, &reply, NULL),
        0);
    fixture_until(&f, reply.n > 0);
    cr_assert_eq(reply.code, 0);
    reply_done(&reply);
    _cleanup_free_ char *log = read_log(dir);
    cr_assert_not_null(strstr(log, "BatchMode=yes"));
    cr_assert_not_null(strstr(log, "-p 2222 -l me -- host.example"), "%s", log);
    /* the private directory is gone as soon as it was used */
    char *local = strstr(log, "/tmp/qpivot-ssh-");
    cr_assert_not_null(local);
    *strchr(local + 5, '/') = '\0';
    cr_assert_eq(access(local, F_OK), -1);
    fixture_done(&f);
    remove_ssh(dir);
}

Test(transport, ssh_that_fails_tells_its_last_words)
{
    struct fixture f;
    fixture_init(&f, NULL);
    char dir[SCRATCH_PATH];
    install_ssh(dir, "echo 'me@host: Permission denied (publickey).' >&2; "
                     "exit 255");
    fixture_connect(&f, "ssh://me@host/run/qmp", DEFAULTS);
    fixture_until(&f, f.opened);
    cr_assert_eq(f.open_code, -ECONNREFUSED);
    cr_assert_not_null(strstr(f.open_text, "Permission denied (publickey)."),
                       "%s", f.open_text);
    fixture_done(&f);
    remove_ssh(dir);
}

Test(transport, ssh_that_never_comes_is_etimedout_and_ended)
{
    struct fixture f;
    fixture_init(&f, NULL);
    char dir[SCRATCH_PATH];
    install_ssh(dir, "echo $$ >${0%/*}/log; exec tail -f /dev/null");
    fixture_connect(&f, "ssh://host/run/qmp",
                    (struct qmp_options){.connect_timeout_ms = 300});
    fixture_until(&f, f.opened);
    cr_assert_eq(f.open_code, -ETIMEDOUT);
    _cleanup_free_ char *log = read_log(dir);
    fixture_done(&f);
    cr_assert_gt(atoi(log), 0);
    /* a zombie, if nobody reaps it here, is an end as well */
    _cleanup_free_ char *path = str_printf("/proc/%d/cmdline", atoi(log));
    bool ended = false;
    for (unsigned i = 0; i < 1000 && !ended; i++) {
        char rest[8];
        FILE *file = fopen(path, "re");
        ended = file == NULL || fread(rest, 1, sizeof(rest), file) == 0;
        if (file != NULL) {
            (void)fclose(file);
        }
        (void)poll(NULL, 0, ended ? 0 : 10); /* the signal is on its way */
    }
    cr_assert(ended);
    remove_ssh(dir);
}
