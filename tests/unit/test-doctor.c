/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* doctor against the fake QEMU: what it removes, in which order, and not. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/err.h"
#include "base/str.h"
#include "fake/fake-qmp.h"
#include "fake/fake-vm.h"
#include "fake/scratch.h"
#include "operations/doctor.h"
#include "qpivot.h"
#include "run/journal.h"

enum { SAID_MAX = 4096 };

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
static struct op *running;
static unsigned steal_at; /* this look at the claim finds another's */

static void give_claim_to(const char *op)
{
    (void)json_object_set_new(json_object_get(vm->objects, "qpv-claim"), "data",
                              json_string(op));
}

static json_t *answer(void *data, const char *command, const json_t *args)
{
    if (str_eq(command, "query-migrate")) {
        return stream != NULL ? json_pack("{s:s}", "status", stream)
                              : json_object();
    }
    if (str_eq(command, "qom-get") && steal_at > 0 && --steal_at == 0) {
        give_claim_to("aaaaaa");
    }
    return fake_vm_answer(data, command, args);
}

static json_t *ask(const char *command, json_t *args)
{
    json_t *result = fake_vm_answer(vm, command, args);
    json_decref(args);
    cr_assert_not_null(result);
    return result;
}

static void act_on(const char *command, json_t *args)
{
    json_decref(ask(command, args));
}

static void start(void)
{
    scratch_make("doctor", dir);
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
}

static void end(void)
{
    json_decref(last);
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

TestSuite(doctor, .timeout = 60, .init = start, .fini = end);

/* --- the world --- */

static void add_node(const char *name, const char *driver, const char *on)
{
    act_on("blockdev-add", str_eq(driver, "file")
                               ? json_pack("{s:s, s:s, s:s}", "node-name", name,
                                           "driver", driver, "filename", on)
                               : json_pack("{s:s, s:s, s:s}", "node-name", name,
                                           "driver", driver, "file", on));
}

/* As a killed move leaves it: claim, secret, nodes, and a READY mirror. */
static void leave_move(bool mirror)
{
    store_add(store, "/fake/target", 1 << 20);
    act_on("object-add", json_pack("{s:s, s:s, s:s}", "qom-type", "secret",
                                   "id", "qpv-claim", "data", OP));
    act_on("object-add", json_pack("{s:s, s:s, s:s}", "qom-type", "secret",
                                   "id", "qpv-" OP "-d0-key", "data", "a2V5"));
    add_node("qpv-" OP "-d0-file", "file", "/fake/target");
    add_node("qpv-" OP "-d0", "raw", "qpv-" OP "-d0-file");
    if (mirror) {
        act_on("blockdev-mirror",
               json_pack("{s:s, s:s, s:s, s:s, s:b}", "job-id",
                         "qpv-" OP "-d0-mirror", "device", "fmt0", "target",
                         "qpv-" OP "-d0", "filter-node-name",
                         "qpv-" OP "-d0-top", "auto-finalize", 0));
    }
}

/* Somebody's own nodes and job, beside ours. */
static void add_foreign(void)
{
    store_add(store, "/fake/foreign", 1 << 20);
    store_add(store, "/fake/foreign2", 1 << 20);
    fake_vm_add_disk(vm, "/fake/foreign", false, false);
    add_node("theirs2", "file", "/fake/foreign2");
    act_on("blockdev-mirror",
           json_pack("{s:s, s:s, s:s, s:s, s:b}", "job-id", "their-job",
                     "device", "fmt1", "target", "theirs2", "filter-node-name",
                     "their-top", "auto-finalize", 0));
}

static void on_written(void *data, const struct err *err)
{
    bool *done = data;
    cr_assert_null(err);
    *done = true;
}

static void journal_says(const char *state)
{
    bool done = false;
    json_auto_t *data = json_pack("{s:s, s:i, s:s, s:{}}", "kind", "move",
                                  "version", 1, "qmp", "x", "plan");
    cr_assert_eq(journal_append(journal, OP, JOURNAL_OPERATION, "running", -1,
                                data, 1, NULL, NULL),
                 0);
    cr_assert_eq(journal_append(journal, OP, JOURNAL_STATE, state, -1, NULL, 1,
                                on_written, &done),
                 0);
    while (!done) {
        (void)uv_run(&loop, UV_RUN_ONCE);
    }
}

static void on_event(void *data, const char *json)
{
    (void)data;
    json_decref(last);
    last = json_loads(json, 0, NULL);
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
    running = op;
    return 0;
}

static void on_gone(void *data, struct op *op)
{
    (void)data;
    (void)op;
    running = NULL;
}

static enum qpivot_outcome doctor_with(struct journal *with, bool fix,
                                       const char *op)
{
    struct op_host host = {
        .loop = &loop, .journal = with, .born = on_born, .gone = on_gone};
    struct qpivot_doctor_options options = {.size = sizeof(options),
                                            .qmp = fake_qmp_address(qmp),
                                            .op = op,
                                            .fix = fix,
                                            .command_timeout_ms = 2000};
    struct qpivot_callbacks callbacks = {.event = on_event, .ended = on_ended};
    struct op *started = NULL;
    ended = false;
    cr_assert_eq(doctor_start(&host, &options, &callbacks, &started, NULL), 0);
    while (!ended) {
        (void)uv_run(&loop, UV_RUN_ONCE);
    }
    return outcome;
}

static enum qpivot_outcome doctor(bool fix, const char *op)
{
    return doctor_with(journal, fix, op);
}

/* --- what it did --- */

/* The commands that change something, with what they name. */
static const char *changes(void)
{
    static const char *const verbs[] = {"job-cancel",
                                        "job-dismiss",
                                        "blockdev-del",
                                        "block-export-del",
                                        "object-del",
                                        "chardev-remove",
                                        "nbd-server-stop",
                                        "block-dirty-bitmap-"
                                        "remove"};
    static char said[SAID_MAX];
    said[0] = '\0';
    size_t i;
    json_t *message;
    json_array_foreach(fake_qmp_log(qmp), i, message) {
        const char *verb =
            json_string_value(json_object_get(message, "execute"));
        const json_t *args = json_object_get(message, "arguments");
        for (unsigned k = 0; k < ARRAY_SIZE(verbs); k++) {
            const char *name = doctor_text(args, "id");
            name = *name != '\0' ? name : doctor_text(args, "node-name");
            name = *name != '\0' ? name : doctor_text(args, "name");
            size_t len = strlen(said);
            if (str_eq(verb, verbs[k])) {
                (void)snprintf(said + len, SAID_MAX - len, "%s %s\n", verb,
                               name);
            }
        }
    }
    return said;
}

static const json_t *item_of(const char *name)
{
    size_t i;
    json_t *item;
    json_array_foreach(json_object_get(last, "items"), i, item) {
        if (str_eq(doctor_text(item, "name"), name)) {
            return item;
        }
    }
    return NULL;
}

static const char *told_of_op(const char *key)
{
    return doctor_text(json_array_get(json_object_get(last, "operations"), 0),
                       key);
}

static bool foreign_stays(void)
{
    return vm->jobs[1].used && fake_vm_find(vm, "theirs2") != FAKE_NOBODY &&
           fake_vm_find(vm, "their-top") != FAKE_NOBODY;
}

/* --- the tests --- */

Test(doctor, finds_nothing_in_a_clean_vm)
{
    cr_expect_eq(doctor(true, NULL), QPIVOT_DONE);
    cr_expect_str_eq(changes(), "");
    cr_expect_str_eq(doctor_text(last, "event"), "done");
}

Test(doctor, only_looks_unless_told_to_fix)
{
    leave_move(true);
    cr_expect_eq(doctor(false, OP), QPIVOT_PARKED);
    cr_expect_str_eq(changes(), "");
    cr_expect_str_eq(told_of_op("journal"), "unknown");
    cr_expect_not_null(item_of("qpv-" OP "-d0-mirror"));
}

Test(doctor, leaves_an_unknown_operation_that_is_not_named)
{
    leave_move(true);
    cr_expect_eq(doctor(true, NULL), QPIVOT_PARKED);
    cr_expect_str_eq(changes(), "");
    cr_expect_not_null(strstr(told_of_op("next"), "--fix --op " OP));
}

Test(doctor, needs_no_journal)
{
    leave_move(true);
    cr_expect_eq(doctor_with(NULL, true, NULL), QPIVOT_PARKED);
    cr_expect_str_eq(changes(), "");
    cr_expect_eq(doctor_with(NULL, true, OP), QPIVOT_DONE);
}

/* As a migration that is killed while it takes back what it made. */
Test(doctor, ends_an_export_with_its_server_and_a_socket_in_a_file_s_place)
{
    _cleanup_free_ char *path = str_printf("%s/made", dir);
    act_on("object-add", json_pack("{s:s, s:s, s:s}", "qom-type", "secret",
                                   "id", "qpv-claim", "data", OP));
    fake_vm_await(vm, false);
    json_auto_t *addr = json_pack("{s:{s:s, s:{s:s, s:s}}}", "addr", "type",
                                  "inet", "data", "host", "::", "port", "7");
    vm->taken = 1;
    act_on("nbd-server-start", json_incref(addr));
    act_on("block-export-add",
           json_pack("{s:s, s:s}", "id", "qpv-" OP "-d0-export", "node-name",
                     "fmt0"));
    act_on("chardev-add",
           json_pack("{s:s, s:{s:{s:{s:{s:s}}}}}", "id", "qpv-" OP "-d0-unlink",
                     "backend", "data", "addr", "data", "path", path));
    act_on("chardev-add",
           json_pack("{s:s, s:{s:{s:{s:{s:s}}}}}", "id", "theirs", "backend",
                     "data", "addr", "data", "path", path));
    cr_expect_eq(doctor(true, OP), QPIVOT_DONE);
    cr_expect_str_eq(changes(), "block-export-del qpv-" OP "-d0-export\n"
                                "nbd-server-stop \n"
                                "chardev-remove qpv-" OP "-d0-unlink\n"
                                "object-del qpv-claim\n");
    cr_expect_eq(vm->serves, 0);
    cr_expect_not_null(json_object_get(vm->chardevs, "theirs"));
}

Test(doctor, removes_top_down_and_the_claim_last)
{
    leave_move(true);
    add_foreign();
    cr_expect_eq(doctor(true, OP), QPIVOT_DONE);
    cr_expect_str_eq(changes(), "job-cancel qpv-" OP "-d0-mirror\n"
                                "job-dismiss qpv-" OP "-d0-mirror\n"
                                "blockdev-del qpv-" OP "-d0\n"
                                "blockdev-del qpv-" OP "-d0-file\n"
                                "object-del qpv-" OP "-d0-key\n"
                                "object-del qpv-claim\n");
    cr_expect(foreign_stays());
    cr_expect(fake_vm_is_whole(vm, 0));
    cr_expect_eq(json_array_size(json_object_get(last, "items")), 0);
    cr_expect_eq(json_array_size(json_object_get(last, "removed")), 6);
}

Test(doctor, thaws_a_frozen_guest_first)
{
    leave_move(true);
    while (vm->jobs[0].status != FAKE_READY) {
        json_decref(ask("query-jobs", json_object()));
    }
    act_on("job-complete", json_pack("{s:s}", "id", "qpv-" OP "-d0-mirror"));
    while (vm->jobs[0].status != FAKE_PENDING) {
        json_decref(ask("query-jobs", json_object()));
    }
    cr_expect_eq(doctor(false, NULL), QPIVOT_PARKED);
    cr_expect_str_eq(
        json_string_value(json_array_get(json_object_get(last, "frozen"), 0)),
        "qpv-" OP "-d0-mirror");
    cr_expect_eq(doctor(true, OP), QPIVOT_DONE);
    cr_expect(str_starts(changes(), "job-cancel qpv-" OP "-d0-mirror\n"));
    cr_expect_str_eq(vm->nodes[vm->devices[0].root].name, "fmt0");
    cr_expect(fake_vm_is_whole(vm, 0));
}

Test(doctor, leaves_an_operation_whose_engine_lives)
{
    struct journal_lock *lock = NULL;
    leave_move(true);
    journal_says("running");
    cr_assert_eq(journal_lock(journal, OP, &lock, NULL), 0);
    cr_expect_eq(doctor(true, OP), QPIVOT_PARKED);
    cr_expect_str_eq(changes(), "");
    cr_expect_str_eq(told_of_op("next"), "qpivot abort " OP);
    journal_unlock(lock);
}

Test(doctor, leaves_what_recover_can_finish)
{
    leave_move(true);
    journal_says("parked");
    cr_expect_eq(doctor(true, OP), QPIVOT_PARKED);
    cr_expect_str_eq(changes(), "");
    cr_expect_str_eq(told_of_op("next"), "qpivot recover " OP);
}

Test(doctor, removes_what_an_ended_operation_left)
{
    leave_move(true);
    journal_says("undone");
    cr_expect_eq(doctor(true, NULL), QPIVOT_DONE);
    cr_expect_not_null(strstr(changes(), "object-del qpv-claim"));
}

Test(doctor, leaves_other_operations_than_the_named_one)
{
    leave_move(true);
    journal_says("undone");
    cr_expect_eq(doctor(true, "zzzzzz"), QPIVOT_DONE, "none of zzzzzz");
    cr_expect_str_eq(changes(), "");
}

Test(doctor, leaves_the_disk_that_the_guest_uses)
{
    leave_move(false);
    int root = fake_vm_find(vm, "qpv-" OP "-d0");
    vm->devices[0].root = root;
    cr_expect_eq(doctor(true, OP), QPIVOT_DONE);
    cr_expect_str_eq(changes(), "object-del qpv-claim\n");
    cr_expect_str_eq(doctor_text(item_of("qpv-" OP "-d0-file"), "use"), "live");
    cr_expect_str_eq(doctor_text(item_of("qpv-" OP "-d0-key"), "use"), "live",
                     "the secret that opened it");
}

Test(doctor, leaves_a_node_that_somebody_else_uses)
{
    leave_move(false);
    add_node("their-view", "raw", "qpv-" OP "-d0");
    cr_expect_eq(doctor(true, OP), QPIVOT_PARKED);
    cr_expect_str_eq(changes(), "");
    cr_expect_str_eq(doctor_text(item_of("qpv-" OP "-d0-file"), "use"), "held");
    cr_expect_not_null(item_of("qpv-claim"), "it keeps others off");
}

Test(doctor, leaves_all_while_the_guest_is_migrated)
{
    leave_move(true);
    stream = "active";
    cr_expect_eq(doctor(true, OP), QPIVOT_PARKED);
    cr_expect_str_eq(changes(), "");
    stream = "completed";
    cr_expect_eq(doctor(true, OP), QPIVOT_DONE);
}

/* A QEMU >= 9 that waits for its first stream; a source that begins one. */
Test(doctor, takes_one_that_waits_for_a_guest_for_no_migration)
{
    leave_move(false);
    stream = "setup";
    cr_expect_eq(doctor(true, OP), QPIVOT_PARKED);
    cr_expect_str_eq(changes(), "");
    vm->runstate = FAKE_INMIGRATE;
    stream = "active";
    cr_expect_eq(doctor(true, OP), QPIVOT_PARKED);
    cr_expect_str_eq(changes(), "");
    stream = "setup";
    cr_expect_eq(doctor(true, OP), QPIVOT_DONE);
}

Test(doctor, tells_what_qemu_refuses)
{
    leave_move(false);
    fake_qmp_fault(qmp, "blockdev-del", 0, FAKE_ERROR);
    cr_expect_eq(doctor(true, OP), QPIVOT_PARKED);
    cr_expect_str_eq(doctor_text(item_of("qpv-" OP "-d0"), "why"), "injected");
    cr_expect_not_null(item_of("qpv-claim"));
    cr_expect_eq(doctor(true, OP), QPIVOT_DONE, "a second try may do");
}

Test(doctor, goes_on_after_a_lost_connection)
{
    leave_move(true);
    fake_qmp_fault(qmp, "blockdev-del", 0, FAKE_DONE_CLOSE);
    cr_expect_eq(doctor(true, OP), QPIVOT_DONE);
    cr_expect(fake_vm_is_whole(vm, 0));
}

Test(doctor, does_not_take_a_claim_that_is_anothers_by_now)
{
    leave_move(false);
    steal_at = 4; /* each of the three looks before has asked once */
    cr_expect_eq(doctor(true, OP), QPIVOT_DONE);
    cr_expect_eq(steal_at, 0);
    cr_expect_null(strstr(changes(), "qpv-claim"));
    cr_expect_str_eq(doctor_text(item_of("qpv-claim"), "op"), "aaaaaa");
}

Test(doctor, leaves_names_that_only_look_like_ours)
{
    static const char *const names[] = {"qpv-", "qpv-copy-1", "qpv-K3F9X2-d0",
                                        "qpv-" OP, "qpv-../../x"};
    store_add(store, "/fake/other", 1 << 20);
    for (unsigned i = 0; i < ARRAY_SIZE(names); i++) {
        add_node(names[i], "file", "/fake/other");
    }
    cr_expect_eq(doctor(true, OP), QPIVOT_DONE);
    cr_expect_eq(doctor(true, NULL), QPIVOT_DONE);
    cr_expect_str_eq(changes(), "");
}

Test(doctor, leaves_a_claim_of_nobody_knows_whom)
{
    act_on("object-add", json_pack("{s:s, s:s, s:s}", "qom-type", "secret",
                                   "id", "qpv-claim", "data", "somebody"));
    cr_expect_eq(doctor(true, NULL), QPIVOT_PARKED);
    cr_expect_str_eq(changes(), "");
}

Test(doctor, says_parked_when_it_is_stopped_half_way)
{
    leave_move(true);
    fake_qmp_fault(qmp, "job-cancel", 0, FAKE_HOLD);
    struct op_host host = {
        .loop = &loop, .journal = journal, .born = on_born, .gone = on_gone};
    struct qpivot_doctor_options options = {.size = sizeof(options),
                                            .qmp = fake_qmp_address(qmp),
                                            .op = OP,
                                            .fix = 1};
    struct qpivot_callbacks callbacks = {.event = on_event, .ended = on_ended};
    struct op *op = NULL;
    cr_assert_eq(doctor_start(&host, &options, &callbacks, &op, NULL), 0);
    bool asked = false;
    while (!ended) {
        (void)uv_run(&loop, UV_RUN_ONCE);
        if (!asked && fake_qmp_count(qmp, "job-cancel") > 0) {
            asked = true;
            (void)op_abort(running);
        }
    }
    cr_expect_eq(outcome, QPIVOT_PARKED);
    cr_expect_not_null(strstr(doctor_text(last, "next"), "qpivot doctor"));
}

Test(doctor, refuses_what_is_no_id)
{
    struct op_host host = {.loop = &loop, .journal = journal};
    struct qpivot_doctor_options options = {
        .size = sizeof(options), .qmp = "x", .op = "../../etc"};
    struct qpivot_callbacks callbacks = {0};
    struct op *op = NULL;
    cr_expect_eq(doctor_start(&host, &options, &callbacks, &op, NULL), -EINVAL);
}
