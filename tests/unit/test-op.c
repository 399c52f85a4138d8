/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The runner with a table of steps that do nothing but say so. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/err.h"
#include "base/str.h"
#include "fake/fake-qmp.h"
#include "fake/fake-vm.h"
#include "fake/scratch.h"
#include "run/journal.h"
#include "run/op-private.h"

enum { FOREVER = 1000, SAID_MAX = 2048, HOUR_MS = 3600000 };

static uv_loop_t loop;
static char dir[SCRATCH_PATH];
static struct journal *journal;
static struct store *store;
static struct fake_vm *vm;
static struct fake_qmp *qmp;

/* What the steps do, and have done. */
static char said[SAID_MAX];
static const char *failing; /* this step's run */
static unsigned n_failures; /* how often an undo of 'failing_undo' fails */
static const char *failing_undo;
static const char *hanging; /* this step's run never ends */
static const char *losing;  /* this step's undo asks QEMU once, and waits */
static enum probe_verdict verdict;
static unsigned detach_after; /* so many step events */
static bool abort_at_hang;
static const char *ask_at_hang[2]; /* as another process does */
static bool hour_at_hang;          /* passes, once all were taken up */
static struct op *running;
static bool ended;
static enum qpivot_outcome outcome;

static void say(const struct act *act, const char *what)
{
    size_t len = strlen(said);
    if (act->disk >= 0) {
        (void)snprintf(said + len, SAID_MAX - len, "%s%s%d ", what,
                       act->step->name, act->disk);
    } else {
        (void)snprintf(said + len, SAID_MAX - len, "%s%s ", what,
                       act->step->name);
    }
}

static void step_end(struct act *act, bool fails)
{
    _cleanup_err_ struct err *err = NULL;
    if (fails) {
        (void)err_set(&err, -EREMOTEIO, act->step->name, "told to fail");
    }
    act_end(act, err);
}

static void fake_run(struct act *act)
{
    say(act, "");
    if (str_eq(act->step->name, hanging)) {
        act_again(act, FOREVER * 1000, fake_run);
        return;
    }
    act_set_facts(act, json_pack("{s:s}", "said", act->step->name));
    step_end(act, str_eq(act->step->name, failing));
}

static void undo_by_asking(struct act *act)
{
    bool *asked = act_scratch(act, sizeof(*asked));
    if (*asked) {
        act_again(act, FOREVER * 1000, undo_by_asking);
    } else {
        *asked = true;
        act_qmp(act, "query-status", NULL, NULL);
    }
}

static void fake_undo(struct act *act)
{
    say(act, "-");
    if (str_eq(act->step->name, losing)) {
        undo_by_asking(act);
        return;
    }
    bool fails = str_eq(act->step->name, failing_undo) && n_failures > 0;
    n_failures -= fails;
    step_end(act, fails);
}

static void fake_probe(struct act *act)
{
    say(act, "?");
    act_probed(act, verdict);
}

/* clang-format off */
static const struct step steps[] = {
    {"a", "one", fake_run, fake_undo, NULL, NULL, NULL, 0},
    {"b", "for each disk", fake_run, fake_undo, NULL, NULL, NULL,
     STEP_PER_DISK},
    {"c", "leaves nothing", fake_run, NULL, NULL, NULL, NULL, 0},
    {"p", "pivot", fake_run, fake_undo, fake_probe, NULL, NULL, STEP_PIVOT},
    {"z", "after it", fake_run, NULL, NULL, NULL, NULL, 0},
};

/* clang-format on */

static void decide(struct op *op)
{
    (void)op;
}

static json_t *result(struct op *op)
{
    (void)op;
    return json_array();
}

static unsigned n_requests, n_expected;

static int on_request(struct op *op, const char *word, const json_t *args,
                      struct err **errp)
{
    n_requests += str_eq(word, "hurry") && json_is_object(args);
    return str_eq(word, "hurry")
               ? 0
               : err_set(errp, -ENOTSUP, op_id(op), "knows no '%s'", word);
}

static const struct operation operation = {
    .kind = "fake",
    .version = 1,
    .steps = steps,
    .n_steps = ARRAY_SIZE(steps),
    .decide = decide,
    .result = result,
    .request = on_request,
};

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

static void on_ended(void *data, enum qpivot_outcome how)
{
    (void)data;
    ended = true;
    outcome = how;
}

static struct op_host host(void)
{
    return (struct op_host){
        .loop = &loop, .journal = journal, .born = on_born, .gone = on_gone};
}

static void start(void)
{
    scratch_make("op", dir);
    cr_assert_eq(uv_loop_init(&loop), 0);
    cr_assert_eq(journal_open(&loop, dir, &journal, NULL), 0);
    store = store_new();
    vm = fake_vm_new(store);
    struct fake_qmp_options options = {
        .loop = &loop, .answer = fake_vm_answer, .data = vm};
    cr_assert_eq(fake_qmp_new(&options, &qmp), 0);
    vm->qmp = qmp;
}

static void end(void)
{
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

TestSuite(op, .timeout = 30, .init = start, .fini = end);

static const struct qpivot_callbacks callbacks = {.ended = on_ended};

static bool marks_are(unsigned n)
{
    json_auto_t *list = NULL, *one = NULL;
    (void)journal_list(journal, &list, NULL);
    const char *id =
        json_string_value(json_object_get(json_array_get(list, 0), "op"));
    return id != NULL && journal_load(journal, id, &one, NULL) == 0 &&
           json_array_size(json_object_get(one, "records")) >= n;
}

/* By a loop of its own: the operation does nothing meanwhile. */
static void ask(const char *id, const char *word)
{
    json_auto_t *args = json_pack("{s:s}", "id", word);
    struct journal *other = NULL;
    uv_loop_t its;
    cr_assert_eq(uv_loop_init(&its), 0);
    cr_assert_eq(journal_open(&its, dir, &other, NULL), 0);
    cr_assert_eq(journal_append(other, id, JOURNAL_REQUEST, word, -1, args,
                                1000, NULL, NULL),
                 0);
    while (!journal_is_idle(other)) {
        (void)uv_run(&its, UV_RUN_ONCE);
    }
    journal_close(other);
    (void)uv_run(&its, UV_RUN_DEFAULT);
    cr_assert_eq(uv_loop_close(&its), 0);
}

/* What the newest operation's records of this kind hold, in order. */
static json_t *records_of(const char *kind)
{
    json_auto_t *list = NULL, *one = NULL;
    json_t *found = json_array();
    cr_assert_eq(journal_list(journal, &list, NULL), 0);
    const char *id =
        json_string_value(json_object_get(json_array_get(list, 0), "op"));
    cr_assert_eq(journal_load(journal, id, &one, NULL), 0);
    size_t i;
    json_t *record;
    json_array_foreach(json_object_get(one, "records"), i, record) {
        if (str_eq(json_string_value(json_object_get(record, "kind")), kind)) {
            (void)json_array_append(found, json_object_get(record, "data"));
        }
    }
    return found;
}

static void at_hang(void)
{
    if (abort_at_hang) {
        abort_at_hang = false;
        cr_assert_eq(op_abort(running), 0);
    }
    if (hour_at_hang && ask_at_hang[0] == NULL && n_requests == n_expected) {
        hour_at_hang = false;
        running->started_ms -= HOUR_MS;
    }
    for (unsigned i = 0; i < ARRAY_SIZE(ask_at_hang); i++) {
        if (ask_at_hang[i] != NULL) {
            ask(op_id(running), ask_at_hang[i]);
            ask_at_hang[i] = NULL;
        }
    }
}

static void run_to_end(void)
{
    while (!ended) {
        (void)uv_run(&loop, UV_RUN_ONCE);
        if (hanging != NULL && running != NULL &&
            strstr(said, hanging) != NULL) {
            at_hang();
        }
        if (detach_after > 0 && running != NULL && marks_are(detach_after)) {
            detach_after = 0;
            op_detach(running);
        }
    }
}

static void run(unsigned n_disks, unsigned timeout_ms)
{
    struct plan *plan = NULL;
    struct op_host h = host();
    cr_assert_eq(plan_new("fake", n_disks, &plan), 0);
    for (unsigned i = 0; i < n_disks; i++) {
        plan->disks[i].disk = str_printf("d%u", i);
        plan->disks[i].to = str_printf("/nowhere/d%u", i);
    }
    plan->qmp = strdup(fake_qmp_address(qmp));
    plan->command_timeout_ms = HOUR_MS;
    plan->timeout_ms = timeout_ms;
    ended = false;
    cr_assert_eq(
        op_new(&h, &operation, plan, NULL, NULL, &callbacks, &running, NULL),
        0);
    run_to_end();
}

static void state_is(const char *wanted)
{
    while (!journal_is_idle(journal)) {
        (void)uv_run(&loop, UV_RUN_ONCE);
    }
    json_auto_t *list = NULL;
    cr_assert_eq(journal_list(journal, &list, NULL), 0);
    const char *state =
        json_string_value(json_object_get(json_array_get(list, 0), "state"));
    cr_assert(str_eq(state, wanted), "'%s' is not '%s'", state, wanted);
}

/* As another engine that finds the journal. */
static void recover(bool undo)
{
    struct op_host h = host();
    struct journal_lock *lock = NULL;
    json_auto_t *list = NULL, *journalled = NULL;
    while (!journal_is_idle(journal)) {
        (void)uv_run(&loop, UV_RUN_ONCE);
    }
    cr_assert_eq(journal_list(journal, &list, NULL), 0);
    const char *id =
        json_string_value(json_object_get(json_array_get(list, 0), "op"));
    cr_assert_eq(journal_load(journal, id, &journalled, NULL), 0);
    said[0] = '\0';
    ended = false;
    cr_assert_eq(journal_lock(journal, id, &lock, NULL), 0);
    cr_assert_eq(op_load(&h, &operation, journalled, lock, NULL, undo,
                         &callbacks, &running, NULL),
                 0);
    run_to_end();
}

Test(op, steps_run_in_the_order_of_the_table_and_for_each_disk)
{
    run(3, 0);
    cr_assert_eq(outcome, QPIVOT_DONE);
    cr_assert_str_eq(said, "a b0 b1 b2 c p z ");
    state_is("done");
}

Test(op, undo_runs_in_strict_reverse_from_the_failing_step)
{
    failing = "c";
    run(2, 0);
    cr_assert_eq(outcome, QPIVOT_FAILED);
    cr_assert_str_eq(said, "a b0 b1 c -b1 -b0 -a ");
    state_is("undone");
}

Test(op, the_failing_step_itself_is_undone_too)
{
    failing = "a";
    run(1, 0);
    cr_assert_eq(outcome, QPIVOT_FAILED);
    cr_assert_str_eq(said, "a -a ");
}

Test(op, an_undo_that_fails_once_is_tried_again)
{
    failing = "c";
    failing_undo = "b";
    n_failures = 1;
    run(1, 0);
    cr_assert_eq(outcome, QPIVOT_FAILED);
    cr_assert_str_eq(said, "a b0 c -b0 -b0 -a ");
}

Test(op, an_undo_whose_command_was_lost_asks_again)
{
    failing = "c";
    losing = "a";
    fake_qmp_fault(qmp, "query-status", 0, FAKE_CLOSE);
    run(1, 0);
    cr_assert_eq(outcome, QPIVOT_FAILED);
    cr_assert_str_eq(said, "a b0 c -b0 -a -a ");
    cr_assert_eq(fake_qmp_count(qmp, "query-status"), 2);
    state_is("undone");
}

Test(op, an_undo_that_fails_for_good_parks_and_goes_on_from_there)
{
    failing = "c";
    failing_undo = "b";
    n_failures = 3;
    run(1, 0);
    cr_assert_eq(outcome, QPIVOT_PARKED);
    cr_assert_str_eq(said, "a b0 c -b0 -b0 -b0 ");
    state_is("parked");
    failing = NULL;
    recover(false);
    cr_assert_eq(outcome, QPIVOT_FAILED, "on the way back it stays");
    cr_assert_str_eq(said, "-b0 -a ");
    state_is("undone");
}

Test(op, nothing_is_undone_after_the_pivot)
{
    failing = "z";
    run(1, 0);
    cr_assert_eq(outcome, QPIVOT_PARKED);
    cr_assert_str_eq(said, "a b0 c p z z z ");
    failing = NULL;
    recover(true);
    cr_assert_eq(outcome, QPIVOT_DONE, "also when asked to");
    cr_assert_str_eq(said, "z ");
}

Test(op, a_pivot_in_doubt_that_its_probe_finds_done_goes_on)
{
    failing = "p";
    verdict = PROBE_DONE;
    run(1, 0);
    cr_assert_eq(outcome, QPIVOT_DONE);
    cr_assert_str_eq(said, "a b0 c p ?p z ");
}

Test(op, a_pivot_in_doubt_that_its_probe_finds_not_done_is_undone)
{
    failing = "p";
    verdict = PROBE_NOT_DONE;
    run(1, 0);
    cr_assert_eq(outcome, QPIVOT_FAILED);
    cr_assert_str_eq(said, "a b0 c p ?p -p -b0 -a ");
}

Test(op, a_pivot_that_stays_in_doubt_parks_and_undoes_nothing)
{
    failing = "p";
    verdict = PROBE_UNKNOWN;
    run(1, 0);
    cr_assert_eq(outcome, QPIVOT_PARKED);
    cr_assert_str_eq(said, "a b0 c p ?p ");
    state_is("parked");
}

Test(op, abort_goes_back_from_the_middle_of_a_step)
{
    hanging = "c";
    abort_at_hang = true;
    run(1, 0);
    cr_assert_eq(outcome, QPIVOT_FAILED);
    cr_assert_str_eq(said, "a b0 c -b0 -a ");
}

Test(op, another_process_may_ask_for_the_way_back)
{
    hanging = "c";
    ask_at_hang[0] = "abort";
    ask_at_hang[1] = "abort";
    run(1, 0);
    cr_assert_eq(outcome, QPIVOT_FAILED);
    cr_assert_str_eq(said, "a b0 c -b0 -a ");
    state_is("undone");
    json_auto_t *answers = records_of("answer");
    cr_assert_eq(json_array_size(answers), 2, "each is answered");
    const json_t *answer = json_array_get(answers, 0);
    cr_assert(json_is_true(json_object_get(answer, "accepted")));
    cr_assert_str_eq(json_string_value(json_object_get(answer, "id")), "abort");
}

Test(op, asked_after_the_pivot_it_says_too_late_and_goes_on)
{
    hanging = "z";
    ask_at_hang[0] = "abort";
    ask_at_hang[1] = "abort";
    detach_after = 14; /* 10 records, 2 requests, 2 answers */
    run(1, 0);
    json_auto_t *answers = records_of("answer");
    const json_t *answer = json_array_get(answers, 0);
    cr_assert(json_is_false(json_object_get(answer, "accepted")));
    hanging = NULL;
    recover(false);
    cr_assert_eq(outcome, QPIVOT_DONE);
}

Test(op, a_word_that_is_the_operations_own_goes_to_it)
{
    hanging = "c";
    ask_at_hang[0] = "sing";
    ask_at_hang[1] = "hurry";
    hour_at_hang = true;
    n_expected = 1;
    run(1, HOUR_MS);
    cr_assert_eq(n_requests, 1);
    json_auto_t *answers = records_of("answer");
    cr_assert(
        json_is_false(json_object_get(json_array_get(answers, 0), "accepted")));
    cr_assert_not_null(json_object_get(json_array_get(answers, 0), "error"));
    cr_assert(
        json_is_true(json_object_get(json_array_get(answers, 1), "accepted")));
}

Test(op, a_request_to_an_engine_that_died_is_history_for_the_next)
{
    hanging = "c";
    detach_after = 6;
    run(1, 0);
    cr_assert_eq(outcome, QPIVOT_PARKED);
    json_auto_t *list = NULL;
    cr_assert_eq(journal_list(journal, &list, NULL), 0);
    ask(json_string_value(json_object_get(json_array_get(list, 0), "op")),
        "abort");
    hanging = NULL;
    recover(false);
    cr_assert_eq(outcome, QPIVOT_DONE);
    json_auto_t *owners = records_of("owner");
    cr_assert_eq(json_array_size(owners), 2, "and it has another owner");
}

Test(op, the_timeout_of_the_whole_goes_back)
{
    hanging = "c";
    hour_at_hang = true;
    run(1, HOUR_MS);
    cr_assert_eq(outcome, QPIVOT_FAILED);
    cr_assert_str_eq(said, "a b0 c -b0 -a ");
}

/* 13 records: an intent and an end for each act of one disk, and more. */
Test(op, recovery_goes_on_from_every_record)
{
    for (unsigned i = 1; i <= 10; i++) {
        said[0] = '\0';
        verdict = PROBE_DONE;
        detach_after = i;
        run(1, 0);
        if (outcome == QPIVOT_DONE) {
            continue; /* it was faster */
        }
        cr_assert_eq(outcome, QPIVOT_PARKED, "detached");
        recover(false);
        cr_assert_eq(outcome, QPIVOT_DONE, "after record %u: %s", i, said);
        state_is("done");
    }
}

Test(op, recovery_undoes_when_asked_before_the_pivot)
{
    hanging = "c";
    detach_after = 6;
    run(1, 0);
    cr_assert_eq(outcome, QPIVOT_PARKED);
    hanging = NULL;
    recover(true);
    cr_assert_eq(outcome, QPIVOT_FAILED);
    cr_assert_str_eq(said, "-b0 -a ");
}

Test(op, facts_of_a_step_outlive_the_engine)
{
    hanging = "c";
    detach_after = 6;
    run(1, 0);
    json_auto_t *list = NULL, *journalled = NULL;
    cr_assert_eq(journal_list(journal, &list, NULL), 0);
    const char *id =
        json_string_value(json_object_get(json_array_get(list, 0), "op"));
    cr_assert_eq(journal_load(journal, id, &journalled, NULL), 0);
    const json_t *record =
        json_array_get(json_object_get(journalled, "records"), 2);
    const json_t *facts = json_object_get(record, "data");
    cr_assert_str_eq(json_string_value(json_object_get(facts, "said")), "a");
}

Test(op, a_vm_that_cannot_be_reached_changes_nothing)
{
    struct plan *plan = NULL;
    struct op_host h = host();
    cr_assert_eq(plan_new("fake", 1, &plan), 0);
    plan->qmp = strdup("unix:/tmp/qpivot-nobody-listens-here");
    ended = false;
    cr_assert_eq(
        op_new(&h, &operation, plan, NULL, NULL, &callbacks, &running, NULL),
        0);
    run_to_end();
    cr_assert_eq(outcome, QPIVOT_UNREACHABLE);
    cr_assert_str_eq(said, "");
}
