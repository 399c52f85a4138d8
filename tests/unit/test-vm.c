/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/err.h"
#include "base/str.h"
#include "fake/fake-qmp.h"
#include "qmp/qmp.h"
#include "vm/vm.h"

static uv_loop_t loop;
static struct fake_qmp *fake;
static struct vm *vm;
static bool closed;

/* What the owner was told. */
static unsigned n_changes;
static enum vm_state last;
static int last_code;
static unsigned n_warnings;
static json_t *yanked; /* the instances of the last yank */

static void on_changed(void *data, enum vm_state state, const struct err *err)
{
    (void)data;
    n_changes++;
    last = state;
    last_code = err_code(err, 0);
}

static void on_warning(void *data, const char *message)
{
    (void)data;
    (void)message;
    n_warnings++;
}

static void on_closed(void *data)
{
    (void)data;
    closed = true;
}

static json_t *answer(void *data, const char *command, const json_t *args)
{
    (void)data;
    if (str_eq(command, "query-yank")) {
        return json_pack("[{s:s, s:s}, {s:s, s:s}, {s:s}]", "type",
                         "block-node", "node-name", "qpv-k3f9x2-d0-file",
                         "type", "block-node", "node-name", "owners-nbd",
                         "type", "migration");
    }
    if (str_eq(command, "yank")) {
        json_decref(yanked);
        yanked = json_incref(json_object_get(args, "instances"));
        return json_object();
    }
    return str_starts(command, "query-") ? json_array() : json_object();
}

static void open_at(const char *address, const struct vm_options *more)
{
    struct qmp_addr *addr = NULL;
    struct vm_options options = *more;
    struct vm_owner owner = {.changed = on_changed, .warning = on_warning};
    cr_assert_eq(qmp_addr_parse(address, &addr, NULL), 0);
    options.loop = &loop;
    options.addr = addr;
    cr_assert_eq(vm_open(&options, &owner, &vm, NULL), 0);
    qmp_addr_free(addr);
    cr_assert_eq(n_changes, 0, "never from inside the call");
}

static void wait_for(enum vm_state state)
{
    while (last != state || n_changes == 0) {
        cr_assert(uv_run(&loop, UV_RUN_ONCE));
    }
}

static void begin(void)
{
    cr_assert_eq(uv_loop_init(&loop), 0);
    struct fake_qmp_options options = {.loop = &loop, .answer = answer};
    cr_assert_eq(fake_qmp_new(&options, &fake), 0);
}

static void finish(void)
{
    if (vm != NULL) {
        vm_close(vm, on_closed, NULL);
        while (!closed) {
            (void)uv_run(&loop, UV_RUN_ONCE);
        }
    }
    if (fake != NULL) {
        fake_qmp_close(fake);
    }
    (void)uv_run(&loop, UV_RUN_DEFAULT);
    cr_assert_eq(uv_loop_close(&loop), 0);
    json_decref(yanked);
}

TestSuite(vm, .timeout = 20, .init = begin, .fini = finish);

static const struct vm_options plain;

Test(vm, one_that_cannot_be_reached_is_told_at_once)
{
    open_at("unix:/tmp/qpivot-nobody-listens-here", &plain);
    wait_for(VM_UNKNOWN);
    cr_assert_eq(last_code, -ENOENT);
    cr_assert_eq(n_changes, 1);
    cr_assert_null(vm_qmp(vm));
}

Test(vm, it_is_up_when_its_schema_is_read)
{
    open_at(fake_qmp_address(fake), &plain);
    wait_for(VM_UP);
    cr_assert_not_null(vm_qmp(vm));
    cr_assert_not_null(vm_schema(vm));
    cr_assert_eq(fake_qmp_count(fake, "query-qmp-schema"), 1);
}

Test(vm, a_lost_connection_is_made_again)
{
    open_at(fake_qmp_address(fake), &plain);
    wait_for(VM_UP);
    fake_qmp_hang_up(fake);
    wait_for(VM_LOST);
    cr_assert_null(vm_qmp(vm));
    wait_for(VM_UP);
    cr_assert_eq(n_changes, 3);
    cr_assert_not_null(vm_qmp(vm));
}

/* A QEMU of its own process; its address to 'out'. */
static pid_t fork_qemu(char out[128])
{
    int pair[2];
    cr_assert_eq(pipe(pair), 0);
    pid_t pid = fork();
    cr_assert_geq(pid, 0);
    if (pid == 0) {
        (void)prctl(PR_SET_NAME, "qemu-fake"); /* a relay's end is no proof */
        uv_loop_t own;
        struct fake_qmp *qemu = NULL;
        struct fake_qmp_options options = {.loop = &own, .answer = answer};
        (void)uv_loop_init(&own);
        (void)fake_qmp_new(&options, &qemu);
        const char *address = fake_qmp_address(qemu);
        (void)!write(pair[1], address, strlen(address) + 1);
        (void)uv_run(&own, UV_RUN_DEFAULT);
        _exit(0);
    }
    cr_assert_gt(read(pair[0], out, 128), 0);
    (void)close(pair[0]);
    (void)close(pair[1]);
    return pid;
}

Test(vm, a_qemu_whose_process_is_gone_is_gone)
{
    char address[128];
    pid_t pid = fork_qemu(address);
    open_at(address, &plain);
    wait_for(VM_UP);
    (void)kill(pid, SIGKILL);
    (void)waitpid(pid, NULL, 0);
    wait_for(VM_GONE);
    cr_assert_eq(n_changes, 2);
    cr_assert_null(vm_qmp(vm));
    (void)unlink(address + strlen("unix:"));
    *strrchr(address, '/') = '\0';
    (void)rmdir(address + strlen("unix:"));
}

/* --- waiting --- */

struct heard {
    struct vm_wait wait;
    unsigned n;
    unsigned until; /* stops itself then */
    struct vm_wait *other;
};

static void on_jobs(struct vm_wait *wait, const struct job_list *jobs)
{
    struct heard *heard = container_of(wait, struct heard, wait);
    cr_assert_eq(jobs->n_jobs, 0);
    heard->n++;
    if (heard->other != NULL) {
        vm_wait_stop(heard->other);
    }
    if (heard->n == heard->until) {
        vm_wait_stop(wait);
    }
}

Test(vm, a_waiter_is_called_without_any_event_again_and_again)
{
    struct heard heard = {.wait.fn = on_jobs, .until = 3};
    open_at(fake_qmp_address(fake), &plain);
    wait_for(VM_UP);
    vm_wait_start(vm, &heard.wait);
    cr_assert_eq(heard.n, 0, "never from inside the call");
    while (heard.n < 3) {
        (void)uv_run(&loop, UV_RUN_ONCE);
    }
    vm_wait_stop(&heard.wait); /* twice is fine */
}

Test(vm, a_waiter_may_stop_another_that_has_not_been_called)
{
    struct heard second = {.wait.fn = on_jobs};
    struct heard first = {
        .wait.fn = on_jobs, .until = 2, .other = &second.wait};
    open_at(fake_qmp_address(fake), &plain);
    wait_for(VM_UP);
    vm_wait_start(vm, &first.wait);
    vm_wait_start(vm, &second.wait);
    while (first.n < 2) {
        (void)uv_run(&loop, UV_RUN_ONCE);
    }
    cr_assert_eq(second.n, 0);
}

Test(vm, a_waiter_goes_on_after_the_connection_is_back)
{
    struct heard heard = {.wait.fn = on_jobs};
    open_at(fake_qmp_address(fake), &plain);
    wait_for(VM_UP);
    vm_wait_start(vm, &heard.wait);
    while (heard.n == 0) {
        (void)uv_run(&loop, UV_RUN_ONCE);
    }
    fake_qmp_hang_up(fake);
    wait_for(VM_LOST);
    unsigned before = heard.n;
    wait_for(VM_UP);
    cr_assert_eq(heard.n, before, "not while it was lost");
    while (heard.n == before) {
        (void)uv_run(&loop, UV_RUN_ONCE);
    }
    vm_wait_stop(&heard.wait);
}

/* --- a stall --- */

Test(vm, a_stalled_qemu_has_only_our_nbd_nodes_cut)
{
    struct vm_options options = {.watchdog_ms = 100};
    open_at(fake_qmp_address(fake), &options);
    wait_for(VM_UP);
    fake_qmp_fault(fake, "query-status", 0, FAKE_SILENCE);
    cr_assert_eq(
        qmp_execute(vm_qmp(vm), "query-status", NULL, NULL, NULL, NULL, NULL),
        0);
    while (yanked == NULL) {
        (void)uv_run(&loop, UV_RUN_ONCE);
    }
    cr_assert_eq(json_array_size(yanked), 1);
    cr_assert_str_eq(json_string_value(json_object_get(
                         json_array_get(yanked, 0), "node-name")),
                     "qpv-k3f9x2-d0-file");
    cr_assert_eq(n_warnings, 2);
}
