/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* recover --from-qemu: what one QEMU's word of a migration is good for. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/err.h"
#include "base/str.h"
#include "fake/fake-qmp.h"
#include "fake/fake-vm.h"
#include "fake/scratch.h"
#include "operations/adopt.h"
#include "qpivot.h"
#include "run/journal.h"

#define OP "k3f9x2"

static uv_loop_t loop;
static char dir[SCRATCH_PATH];
static struct journal *journal;
static struct store *store;
static struct fake_vm *vm;
static struct fake_qmp *qmp;
static bool ended;
static enum qpivot_outcome outcome;
static json_t *last; /* the last event */
static const char *stream;
static char warned[4096];

static json_t *answer(void *data, const char *command, const json_t *args)
{
    if (str_eq(command, "query-migrate") && stream != NULL) {
        return json_pack("{s:s}", "status", stream);
    }
    return fake_vm_answer(data, command, args);
}

static void act_on(const char *command, json_t *args)
{
    json_auto_t *result = fake_vm_answer(vm, command, args);
    json_decref(args);
    cr_assert_not_null(result);
}

/* A VM with a disk, which the operation has claimed. */
static void start(void)
{
    scratch_make("adopt", dir);
    cr_assert_eq(uv_loop_init(&loop), 0);
    cr_assert_eq(journal_open(&loop, dir, &journal, NULL), 0);
    store = store_new();
    vm = fake_vm_new(store);
    struct fake_qmp_options options = {
        .loop = &loop, .answer = answer, .data = vm};
    cr_assert_eq(fake_qmp_new(&options, &qmp), 0);
    vm->qmp = qmp;
    store_add(store, "/fake/source", 1 << 20);
    fake_vm_add_disk(vm, "/fake/source", false, false);
    act_on("object-add", json_pack("{s:s, s:s, s:s}", "qom-type", "secret",
                                   "id", "qpv-claim", "data", OP));
    stream = NULL;
    *warned = '\0';
}

static void end(void)
{
    json_decref(last);
    last = NULL;
    while (!journal_is_idle(journal)) {
        (void)uv_run(&loop, UV_RUN_ONCE);
    }
    journal_close(journal);
    fake_qmp_close(qmp);
    (void)uv_run(&loop, UV_RUN_DEFAULT);
    fake_vm_free(vm);
    store_free(store);
    cr_assert_eq(uv_loop_close(&loop), 0);
}

TestSuite(adopt, .timeout = 60, .init = start, .fini = end);

static void on_event(void *data, const char *json)
{
    (void)data;
    json_decref(last);
    last = json_loads(json, 0, NULL);
    const char *message = json_string_value(json_object_get(last, "message"));
    if (message != NULL) {
        size_t len = strlen(warned);
        (void)snprintf(warned + len, sizeof(warned) - len, "%s\n", message);
    }
}

static void on_ended(void *data, enum qpivot_outcome how)
{
    (void)data;
    ended = true;
    outcome = how;
}

static int on_born(void *data, struct op *op)
{
    (void)data;
    (void)op;
    return 0;
}

static void on_gone(void *data, struct op *op)
{
    (void)data;
    (void)op;
}

static enum qpivot_outcome adopt(void)
{
    struct op_host host = {
        .loop = &loop, .journal = journal, .born = on_born, .gone = on_gone};
    struct qpivot_recover_options options = {.size = sizeof(options),
                                             .qmp = fake_qmp_address(qmp),
                                             .from_qemu = 1,
                                             .undo = 1};
    struct qpivot_callbacks callbacks = {.event = on_event, .ended = on_ended};
    struct op *op = NULL;
    ended = false;
    cr_assert_eq(adopt_start(&host, &options, &callbacks, &op, NULL), 0);
    while (!ended) {
        (void)uv_run(&loop, UV_RUN_ONCE);
    }
    return outcome;
}

static const char *said(const char *key)
{
    const char *text =
        json_string_value(json_object_get(json_object_get(last, "error"), key));
    return text != NULL ? text : "";
}

/* It has only looked: nothing was sent that could change a thing. */
static bool has_only_looked(void)
{
    size_t i;
    json_t *message;
    json_array_foreach(fake_qmp_log(qmp), i, message) {
        const char *verb =
            json_string_value(json_object_get(message, "execute"));
        if (verb != NULL && !str_starts(verb, "query-") &&
            !str_starts(verb, "qom-") && !str_starts(verb, "x-") &&
            !str_eq(verb, "qmp_capabilities")) {
            return false;
        }
    }
    return true;
}

static void parks(const char *what, const char *first, const char *second)
{
    cr_expect_eq(adopt(), QPIVOT_PARKED);
    cr_expect(has_only_looked());
    cr_expect_not_null(json_object_get(vm->objects, "qpv-claim"));
    cr_expect_not_null(strstr(said("desc"), what), "%s", said("desc"));
    cr_expect_not_null(strstr(said("hint"), first), "%s", said("hint"));
    cr_expect_not_null(strstr(said("hint"), second), "%s", said("hint"));
}

static void arrive(enum fake_runstate runstate)
{
    vm->was_incoming = vm->stream.loaded = true;
    vm->runstate = runstate;
}

Test(adopt, a_destination_that_has_the_paused_guest_keeps_it)
{
    arrive(FAKE_PAUSED);
    parks("may be the only one", "do not end it", "--fix --op " OP);
}

Test(adopt, a_destination_that_runs_the_guest_keeps_it)
{
    arrive(FAKE_RUNS);
    parks("has the guest", "never let the source go on", "--fix --op " OP);
}

Test(adopt, a_destination_without_the_guest_is_told_apart)
{
    fake_vm_await(vm, false);
    parks("has not come", "look at the source", "end this QEMU");
}

Test(adopt, a_source_that_has_sent_the_guest_does_not_get_it_back)
{
    vm->runstate = FAKE_POSTMIGRATE;
    stream = "completed";
    parks("has handed the guest over", "never 'cont' here", "DESTINATION");
}

Test(adopt, a_source_that_stands_and_has_not_sent_it_asks_for_a_look)
{
    vm->runstate = FAKE_POSTMIGRATE;
    stream = "failed";
    parks("'failed'", "unless the guest runs there", "--fix --op " OP);
}

Test(adopt, a_stream_in_the_middle_is_left_alone)
{
    vm->runstate = FAKE_FINISH_MIGRATE;
    stream = "device";
    parks("'device'", "query-status", "do not start the other one");
}

static void mirror(void)
{
    store_add(store, "/fake/target", 1 << 20);
    act_on("blockdev-add",
           json_pack("{s:s, s:s, s:s}", "node-name", "qpv-" OP "-d0-file",
                     "driver", "file", "filename", "/fake/target"));
    act_on("blockdev-add",
           json_pack("{s:s, s:s, s:s}", "node-name", "qpv-" OP "-d0", "driver",
                     "raw", "file", "qpv-" OP "-d0-file"));
    act_on("blockdev-mirror",
           json_pack("{s:s, s:s, s:s, s:s, s:b}", "job-id",
                     "qpv-" OP "-d0-mirror", "device", "fmt0", "target",
                     "qpv-" OP "-d0", "filter-node-name", "qpv-" OP "-d0-top",
                     "auto-finalize", 1));
}

/* The stream by which the guest came is told of for ever. */
Test(adopt, a_move_of_a_guest_that_once_came_by_a_stream_is_a_move)
{
    arrive(FAKE_RUNS);
    mirror();
    cr_expect_eq(adopt(), QPIVOT_FAILED, "%s", said("desc"));
    cr_expect_null(json_object_get(vm->objects, "qpv-claim"));
    cr_expect_eq(fake_vm_find(vm, "qpv-" OP "-d0"), FAKE_NOBODY);
    cr_expect(fake_vm_is_whole(vm, 0));
}

Test(adopt, a_mirror_does_not_make_it_the_guest_s_that_was_sent)
{
    mirror();
    vm->runstate = FAKE_POSTMIGRATE;
    stream = "completed";
    parks("has handed the guest over", "never 'cont' here", "DESTINATION");
}

/* What they were before only the journal knew: a person is told all of it. */
Test(adopt, the_settings_of_a_migration_are_told_with_their_values)
{
    act_on("migrate-set-capabilities",
           json_pack("{s:[{s:s, s:b}]}", "capabilities", "capability",
                     "pause-before-switchover", "state", 1));
    act_on("migrate-set-parameters",
           json_pack("{s:i, s:s}", "max-bandwidth", 4321, "tls-hostname", ""));
    cr_expect_eq(adopt(), QPIVOT_FAILED, "%s", said("desc"));
    cr_expect_not_null(strstr(warned, "stay so (pause-before-switchover)"),
                       "%s", warned);
    cr_expect_not_null(strstr(warned, "max-bandwidth=4321"), "%s", warned);
    cr_expect_null(strstr(warned, "tls-hostname"), "%s", warned);
}
