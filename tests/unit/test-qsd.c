/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The connection against a part of the real QEMU: qemu-storage-daemon. */
#include "fake/scratch.h"
#include "unit/qmp-fixture.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/str.h"

TestSuite(qsd, .timeout = 30);

struct daemon {
    pid_t pid;
    char dir[SCRATCH_PATH];
    char *socket;
};

/* --daemonize: what was started ends when its socket listens. */
static void daemon_start(struct daemon *daemon)
{
    scratch_make("qsd", daemon->dir);
    daemon->socket = str_printf("%s/qmp", daemon->dir);
    _cleanup_free_ char *pidfile = str_printf("%s/pid", daemon->dir);
    _cleanup_free_ char *chardev =
        str_printf("socket,id=m,path=%s,server=on,wait=off", daemon->socket);
    const char *args[] = {"qemu-storage-daemon",
                          "--daemonize",
                          "--pidfile",
                          pidfile,
                          "--chardev",
                          chardev,
                          "--monitor",
                          "chardev=m",
                          NULL};
    cr_assert_eq(prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
    pid_t pid = 0;
    int r = posix_spawnp(&pid, args[0], NULL, NULL, (char **)(uintptr_t)args,
                         environ);
    if (r == ENOENT) {
        (void)rmdir(daemon->dir);
        cr_skip_test("qemu-storage-daemon is missing: install "
                     "qemu-system-common");
    }
    cr_assert_eq(r, 0);
    int status = 0;
    cr_assert_eq(waitpid(pid, &status, 0), pid);
    cr_assert_eq(status, 0);
    FILE *file = fopen(pidfile, "re");
    cr_assert_not_null(file);
    cr_assert_eq(fscanf(file, "%d", &daemon->pid), 1);
    (void)fclose(file);
}

static void daemon_end(struct daemon *daemon)
{
    (void)kill(daemon->pid, SIGTERM);
    (void)waitpid(daemon->pid, NULL, 0);
    _cleanup_free_ char *pidfile = str_printf("%s/pid", daemon->dir);
    (void)unlink(pidfile);
    (void)unlink(daemon->socket);
    (void)rmdir(daemon->dir);
    free(daemon->socket);
}

static void open_daemon(struct fixture *f, struct daemon *daemon)
{
    fixture_connect(f, daemon->socket, (struct qmp_options){0});
    fixture_until(f, f->opened);
    cr_assert_eq(f->open_code, 0, "%s", f->open_text);
}

static void call(struct fixture *f, const char *command, const char *args,
                 struct reply *reply)
{
    json_auto_t *json = args ? json_loads(args, 0, NULL) : NULL;
    cr_assert_eq(
        qmp_execute(f->qmp, command, json, NULL, reply_on_result, reply, NULL),
        0);
    fixture_until(f, reply->n > 0);
}

Test(qsd, speaks_as_we_expect)
{
    struct daemon daemon;
    daemon_start(&daemon);
    struct fixture f;
    fixture_init(&f, NULL);
    open_daemon(&f, &daemon);
    cr_assert(qmp_has_oob(f.qmp));
    cr_assert_eq(qmp_peer_pid(f.qmp), daemon.pid);
    cr_assert_neq(qmp_version(f.qmp)[0], '\0');

    struct reply reply = {0};
    call(&f, "blockdev-del", "{\"node-name\":\"nothing\"}", &reply);
    cr_assert_str_eq(reply.class, "GenericError");
    reply_done(&reply);
    call(&f, "no-such-command", NULL, &reply);
    cr_assert_str_eq(reply.class, "CommandNotFound");
    reply_done(&reply);

    struct reply oob = {0};
    const struct qmp_call_options options = {.oob = true};
    cr_assert_eq(qmp_execute(f.qmp, "query-yank", NULL, &options,
                             reply_on_result, &oob, NULL),
                 0);
    fixture_until(&f, oob.n > 0);
    reply_done(&oob);
    fixture_done(&f);
    daemon_end(&daemon);
}

Test(qsd, its_schema_is_walked)
{
    struct daemon daemon;
    daemon_start(&daemon);
    struct fixture f;
    fixture_init(&f, NULL);
    open_daemon(&f, &daemon);
    struct reply reply = {0};
    call(&f, "query-qmp-schema", NULL, &reply);
    cr_assert_eq(reply.code, 0, "%s", reply.text);
    struct qmp_schema *s = NULL;
    cr_assert_eq(qmp_schema_new(reply.result, &s, NULL), 0);
    reply_done(&reply);
    cr_assert(qmp_schema_has_command(s, "blockdev-mirror"));
    cr_assert(qmp_schema_has_event(s, "JOB_STATUS_CHANGE"));
    cr_assert(qmp_schema_has_arg(s, "blockdev-mirror", "copy-mode"));
    cr_assert(qmp_schema_has_value(s, "blockdev-mirror", "sync", "top"));
    cr_assert(
        qmp_schema_has_arg(s, "blockdev-add", "driver=nbd.reconnect-delay"));
    cr_assert(qmp_schema_has_arg(s, "blockdev-add",
                                 "driver=qcow2.file.driver=file.filename"));
    cr_assert(!qmp_schema_has_arg(s, "blockdev-add", "driver=file.export"));
    cr_assert(qmp_schema_has_result(s, "query-named-block-nodes", "node-name"));
    cr_assert(qmp_schema_has_feature(s, "blockdev-snapshot",
                                     "allow-write-only-overlay"));
    json_auto_t *names = qmp_schema_names(s, NULL);
    cr_assert_gt(json_array_size(names), 20);
    (void)qmp_schema_free(s);
    fixture_done(&f);
    daemon_end(&daemon);
}

Test(qsd, batch_is_executed_in_order)
{
    struct daemon daemon;
    daemon_start(&daemon);
    struct fixture f;
    fixture_init(&f, NULL);
    open_daemon(&f, &daemon);
    struct reply replies[3] = {0};
    struct qmp_command commands[3] = {
        {.command = "blockdev-add", .object = "node 'a'"},
        {.command = "blockdev-add", .object = "node 'b'"},
        {.command = "blockdev-del", .object = "node 'a'"},
    };
    json_auto_t *a = json_pack("{s:s, s:s, s:i}", "driver", "null-co",
                               "node-name", "a", "size", 1 << 20);
    json_auto_t *b = json_pack("{s:s, s:s, s:i}", "driver", "null-co",
                               "node-name", "b", "size", 1 << 20);
    json_auto_t *del = json_pack("{s:s}", "node-name", "a");
    commands[0].args = a;
    commands[1].args = b;
    commands[2].args = del;
    for (unsigned i = 0; i < 3; i++) {
        commands[i].cb = reply_on_result;
        commands[i].data = &replies[i];
    }
    cr_assert_eq(qmp_execute_batch(f.qmp, commands, 3, 5000), 0);
    fixture_until(&f, replies[2].n > 0);
    for (unsigned i = 0; i < 3; i++) {
        cr_assert_eq(replies[i].code, 0, "%s", replies[i].text);
        cr_assert_eq(replies[i].order, i + 1);
        reply_done(&replies[i]);
    }
    fixture_done(&f);
    daemon_end(&daemon);
}

Test(qsd, a_second_client_finds_it_busy)
{
    struct daemon daemon;
    daemon_start(&daemon);
    struct fixture f;
    fixture_init(&f, NULL);
    open_daemon(&f, &daemon);
    struct qmp *first = f.qmp;
    f.opened = false;
    fixture_connect(&f, daemon.socket,
                    (struct qmp_options){.greeting_timeout_ms = 100});
    fixture_until(&f, f.opened);
    cr_assert_eq(f.open_code, -EBUSY);
    qmp_close(first, NULL, NULL);
    fixture_done(&f);
    daemon_end(&daemon);
}

Test(qsd, its_end_is_told)
{
    struct daemon daemon;
    daemon_start(&daemon);
    struct fixture f;
    fixture_init(&f, NULL);
    open_daemon(&f, &daemon);
    (void)kill(daemon.pid, SIGKILL);
    fixture_until(&f, f.n_lost > 0);
    fixture_done(&f);
    daemon_end(&daemon);
}
