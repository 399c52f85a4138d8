/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Asking an engine: the test is that engine, by the journal that both have. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/err.h"
#include "base/proc.h"
#include "base/str.h"
#include "fake/scratch.h"
#include "run/ask.h"
#include "run/journal.h"

#define OP "k3f9x2"

enum { LONG_MS = 60000, ANSWERS_MAX = 4 };

static uv_loop_t loop;
static char dir[SCRATCH_PATH];
static struct journal *journal;
static struct journal_lock *lock;

/* What the engine does when it sees a request, in this order. */
enum reaction {
    NOTHING,
    ACCEPTS,
    REFUSES,
    ENDS, /* ... as undone */
    PARKS,
    LETS_GO,
    CHANGES, /* another one has taken it up, and has not seen the request */
};

static enum reaction reactions[ANSWERS_MAX];
static unsigned n_requests;
static char first_id[32], id[32];

static struct ask *asking;
static unsigned n_ended;
static enum ask_end end;
static int code;
static char class[32];
static char state[16], step[32], disk[16], phase[16];
static bool asked, alive, stopped;
static uint64_t pid;

static void add(enum journal_kind kind, const char *what, int number,
                const json_t *data)
{
    cr_assert_eq(
        journal_append(journal, OP, kind, what, number, data, 1000, NULL, NULL),
        0);
}

static void add_owner(uint64_t who)
{
    json_auto_t *data = json_pack("{s:I, s:I}", "pid", (json_int_t)who, "start",
                                  (json_int_t)proc_start(who));
    add(JOURNAL_OWNER, "", -1, data);
}

static void settle(void)
{
    while (!journal_is_idle(journal)) {
        (void)uv_run(&loop, UV_RUN_ONCE);
    }
}

static void take_up(void)
{
    cr_assert_eq(journal_lock(journal, OP, &lock, NULL), 0);
}

static void let_go(void)
{
    lock = journal_unlock(lock);
}

static void setup(void)
{
    json_auto_t *data = json_pack(
        "{s:s, s:i, s:s, s:{s:[{s:s}, {s:s}]}}", "kind", "move", "version", 1,
        "qmp", "/q", "plan", "disks", "disk", "vda", "disk", "vdb");
    scratch_make("ask", dir);
    cr_assert_eq(uv_loop_init(&loop), 0);
    cr_assert_eq(journal_open(&loop, dir, &journal, NULL), 0);
    add(JOURNAL_OPERATION, "running", -1, data);
    settle();
}

static void teardown(void)
{
    settle();
    let_go();
    journal = journal_close(journal);
    (void)uv_run(&loop, UV_RUN_DEFAULT);
    cr_assert_eq(uv_loop_close(&loop), 0);
}

TestSuite(ask, .timeout = 20, .init = setup, .fini = teardown);

static void answer(const char *to, bool accepted)
{
    json_auto_t *data = json_pack("{s:s, s:b}", "id", to, "accepted", accepted);
    if (!accepted) {
        _cleanup_err_ struct err *err = NULL;
        (void)err_set(&err, -EALREADY, OP, "too late");
        (void)json_object_set_new(data, "error", err_to_json(err));
    }
    add(JOURNAL_ANSWER, "abort", -1, data);
}

static void react(enum reaction reaction)
{
    switch (reaction) {
    case NOTHING:
        break;
    case ACCEPTS:
    case REFUSES:
        answer(id, reaction == ACCEPTS);
        break;
    case ENDS:
        add(JOURNAL_STATE, "undone", -1, NULL);
        break;
    case PARKS:
        add(JOURNAL_STATE, "parked", -1, NULL);
        break;
    case LETS_GO:
        settle();
        let_go();
        break;
    case CHANGES:
        add_owner((uint64_t)getpid());
        answer(first_id, false); /* what the former one would have said */
        break;
    }
}

static void on_record(void *data, const json_t *record)
{
    const json_t *about = json_object_get(record, "data");
    (void)data;
    if (!str_eq(json_string_value(json_object_get(record, "kind")),
                "request")) {
        return;
    }
    cr_assert_str_eq(json_string_value(json_object_get(record, "step")),
                     "abort");
    cr_assert_eq(json_integer_value(json_object_get(about, "n")), 7);
    (void)snprintf(id, sizeof(id), "%s",
                   json_string_value(json_object_get(about, "id")));
    if (n_requests++ == 0) {
        (void)snprintf(first_id, sizeof(first_id), "%s", id);
    }
}

static void on_ended(void *data, enum ask_end how,
                     const struct ask_report *report, const struct err *err)
{
    (void)data;
    n_ended++;
    asking = NULL;
    end = how;
    code = err_code(err, 0);
    (void)snprintf(class, sizeof(class), "%s",
                   err != NULL && err->class != NULL ? err->class : "");
    cr_assert_not_null(report);
    (void)snprintf(state, sizeof(state), "%s", report->state);
    (void)snprintf(step, sizeof(step), "%s", report->step);
    (void)snprintf(disk, sizeof(disk), "%s", report->disk);
    (void)snprintf(phase, sizeof(phase), "%s", report->phase);
    asked = report->asked;
    alive = report->alive;
    stopped = report->stopped;
    pid = report->pid;
}

static int begin(const char *op, unsigned notice_ms, unsigned timeout_ms)
{
    json_auto_t *args = json_pack("{s:i}", "n", 7);
    struct ask_options options = {.loop = &loop,
                                  .journal = journal,
                                  .op = op,
                                  .word = "abort",
                                  .args = args,
                                  .notice_ms = notice_ms,
                                  .timeout_ms = timeout_ms};
    struct ask_callbacks callbacks = {.record = on_record, .ended = on_ended};
    return ask_start(&options, &callbacks, &asking, NULL);
}

/* At each request the engine does what is next, up to where it CHANGES. */
static void serve(void)
{
    static unsigned n_served, next;
    bool more = n_requests > n_served;
    n_served = n_requests;
    while (more && next < ANSWERS_MAX) {
        more = reactions[next] != CHANGES;
        react(reactions[next++]);
    }
}

/* Until it has ended. */
static void ask(unsigned notice_ms, unsigned timeout_ms)
{
    cr_assert_eq(begin(OP, notice_ms, timeout_ms), 0);
    cr_assert_eq(n_ended, 0, "never from inside the call");
    while (n_ended == 0) {
        (void)uv_run(&loop, UV_RUN_ONCE);
        serve();
    }
    cr_assert_eq(n_ended, 1);
}

Test(ask, engine_that_goes_back_is_followed_to_the_end)
{
    reactions[0] = ACCEPTS;
    reactions[1] = ENDS;
    take_up();
    ask(LONG_MS, LONG_MS);
    cr_assert_eq(end, ASK_OVER);
    cr_assert_str_eq(state, "undone");
    cr_assert(asked && code == 0 && n_requests == 1);
}

Test(ask, operation_that_nobody_works_on_is_free_and_not_asked)
{
    ask(LONG_MS, LONG_MS);
    cr_assert_eq(end, ASK_FREE);
    cr_assert_str_eq(state, "running");
    cr_assert(!asked && n_requests == 0);
}

Test(ask, operation_that_has_ended_is_over)
{
    add(JOURNAL_STATE, "done", -1, NULL);
    settle();
    ask(LONG_MS, LONG_MS);
    cr_assert_eq(end, ASK_OVER);
    cr_assert_str_eq(state, "done");
    cr_assert_eq(n_requests, 0);
}

Test(ask, refusal_comes_with_the_engines_words)
{
    reactions[0] = REFUSES;
    take_up();
    ask(LONG_MS, LONG_MS);
    cr_assert_eq(end, ASK_REFUSED);
    cr_assert_str_eq(class, "EALREADY");
}

Test(ask, silent_engine_is_told_with_who_it_is_and_where)
{
    add_owner((uint64_t)getpid());
    add(JOURNAL_INTENT, "claim", -1, NULL);
    add(JOURNAL_END, "claim", -1, NULL);
    add(JOURNAL_INTENT, "mirror", 1, NULL);
    settle();
    take_up();
    ask(1, LONG_MS);
    cr_assert_eq(end, ASK_SILENT);
    cr_assert(asked && alive && !stopped && pid == (uint64_t)getpid());
    cr_assert_str_eq(step, "mirror");
    cr_assert_str_eq(disk, "vdb");
    cr_assert_str_eq(phase, "run");
}

Test(ask, engine_that_is_dead_but_locks_is_not_alive)
{
    json_auto_t *data = json_pack("{s:i, s:i}", "pid", getpid(), "start", 1);
    add(JOURNAL_OWNER, "", -1, data);
    settle();
    take_up();
    ask(1, LONG_MS);
    cr_assert_eq(end, ASK_SILENT);
    cr_assert(!alive && pid == (uint64_t)getpid());
}

Test(ask, accepted_and_not_back_in_time_is_late)
{
    reactions[0] = ACCEPTS;
    take_up();
    ask(LONG_MS, 1000);
    cr_assert_eq(end, ASK_LATE);
    cr_assert_str_eq(state, "running");
}

Test(ask, parked_after_it_was_accepted_is_over)
{
    reactions[0] = ACCEPTS;
    reactions[1] = PARKS;
    reactions[2] = LETS_GO;
    take_up();
    ask(LONG_MS, LONG_MS);
    cr_assert_eq(end, ASK_OVER);
    cr_assert_str_eq(state, "parked");
}

Test(ask, parked_before_it_was_asked_is_free)
{
    add(JOURNAL_STATE, "parked", -1, NULL);
    settle();
    ask(LONG_MS, LONG_MS);
    cr_assert_eq(end, ASK_FREE);
    cr_assert_str_eq(state, "parked");
}

Test(ask, engine_that_dies_leaves_it_free)
{
    reactions[0] = LETS_GO;
    take_up();
    ask(LONG_MS, LONG_MS);
    cr_assert_eq(end, ASK_FREE);
    cr_assert(asked);
}

Test(ask, another_engine_is_asked_anew_and_must_answer_itself)
{
    reactions[0] = CHANGES;
    reactions[1] = ACCEPTS;
    reactions[2] = ENDS;
    take_up();
    ask(LONG_MS, LONG_MS);
    cr_assert_eq(end, ASK_OVER, "the first one's answer does not count");
    cr_assert_eq(n_requests, 2);
    cr_assert_str_neq(first_id, id);
}

Test(ask, what_one_engine_parked_is_free_when_the_next_one_dies)
{
    reactions[0] = ACCEPTS;
    reactions[1] = PARKS;
    reactions[2] = CHANGES;
    reactions[3] = LETS_GO;
    take_up();
    ask(LONG_MS, LONG_MS);
    cr_assert_eq(end, ASK_FREE);
}

Test(ask, parked_without_having_taken_notice_is_free)
{
    reactions[0] = PARKS;
    reactions[1] = LETS_GO;
    take_up();
    ask(LONG_MS, LONG_MS);
    cr_assert_eq(end, ASK_FREE);
    cr_assert_str_eq(state, "parked");
}

Test(ask, stopped_asking_is_not_heard_and_stays_asked)
{
    take_up();
    cr_assert_eq(begin(OP, LONG_MS, LONG_MS), 0);
    while (n_requests == 0) {
        (void)uv_run(&loop, UV_RUN_ONCE);
    }
    ask_stop(asking);
    add(JOURNAL_STATE, "undone", -1, NULL);
    settle();
    (void)uv_run(&loop, UV_RUN_DEFAULT);
    cr_assert_eq(n_ended, 0);
    struct journal_place place = {0};
    json_auto_t *requests = NULL;
    cr_assert_eq(
        journal_news(journal, OP, JOURNAL_REQUEST, &place, &requests, NULL), 0);
    cr_assert_eq(json_array_size(requests), 1);
}

Test(ask, unknown_operation_is_refused_at_once)
{
    cr_assert_eq(begin("zzzzzz", LONG_MS, LONG_MS), -ENOENT);
    cr_assert_eq(n_ended, 0);
}
