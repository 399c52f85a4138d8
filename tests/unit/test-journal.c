/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <criterion/criterion.h>
#include <errno.h>
#include <sqlite3.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/err.h"
#include "base/str.h"
#include "fake/scratch.h"
#include "run/journal.h"

static uv_loop_t loop;
static char dir[SCRATCH_PATH];
static struct journal *journal;

static void open_again(void)
{
    cr_assert_eq(journal_open(&loop, dir, &journal, NULL), 0);
}

static void close_again(void)
{
    while (!journal_is_idle(journal)) {
        (void)uv_run(&loop, UV_RUN_ONCE);
    }
    journal = journal_close(journal);
}

static void start(void)
{
    scratch_make("journal", dir);
    cr_assert_eq(uv_loop_init(&loop), 0);
    open_again();
}

static void end(void)
{
    if (journal != NULL) {
        close_again();
    }
    (void)uv_loop_close(&loop);
}

TestSuite(journal, .timeout = 20, .init = start, .fini = end);

struct heard {
    unsigned n;
    int code;
    void *forget; /* whose callbacks shall not come any more */
};

static void on_written(void *data, const struct err *err)
{
    struct heard *heard = data;
    heard->n++;
    heard->code = err_code(err, 0);
    if (heard->forget != NULL) {
        journal_forget(journal, heard->forget);
    }
}

static void add(enum journal_kind kind, const char *step, const json_t *data,
                struct heard *heard)
{
    cr_assert_eq(journal_append(journal, "k3f9x2", kind, step, -1, data, 1000,
                                heard != NULL ? on_written : NULL, heard),
                 0);
}

static void add_operation(struct heard *heard)
{
    json_auto_t *data = json_pack("{s:s, s:i, s:s, s:{s:i}}", "kind", "move",
                                  "version", 1, "qmp", "/q", "plan", "n", 7);
    add(JOURNAL_OPERATION, "running", data, heard);
}

static json_t *load(void)
{
    json_t *json = NULL;
    cr_assert_eq(journal_load(journal, "k3f9x2", &json, NULL), 0);
    return json;
}

Test(journal, a_record_is_told_when_another_process_would_see_it)
{
    struct heard heard = {0};
    add_operation(NULL);
    add(JOURNAL_INTENT, "claim", NULL, &heard);
    cr_assert_eq(heard.n, 0, "never from inside the call");
    while (heard.n == 0) {
        (void)uv_run(&loop, UV_RUN_ONCE);
    }
    cr_assert_eq(heard.code, 0);
    json_auto_t *json = load();
    const json_t *record = json_array_get(json_object_get(json, "records"), 0);
    cr_assert_str_eq(json_string_value(json_object_get(record, "kind")),
                     "intent");
    cr_assert_str_eq(json_string_value(json_object_get(record, "step")),
                     "claim");
}

Test(journal, records_keep_their_order_also_in_one_commit)
{
    struct heard heard = {0};
    add_operation(&heard);
    for (int i = 0; i < 100; i++) {
        json_auto_t *data = json_pack("{s:i}", "i", i);
        add(i % 2 == 0 ? JOURNAL_INTENT : JOURNAL_END, "s", data, &heard);
    }
    while (!journal_is_idle(journal)) {
        (void)uv_run(&loop, UV_RUN_ONCE);
    }
    cr_assert_eq(heard.n, 101);
    json_auto_t *json = load();
    const json_t *records = json_object_get(json, "records");
    cr_assert_eq(json_array_size(records), 100);
    for (size_t i = 0; i < 100; i++) {
        const json_t *data =
            json_object_get(json_array_get(records, i), "data");
        cr_assert_eq(json_integer_value(json_object_get(data, "i")),
                     (json_int_t)i);
    }
}

Test(journal, opened_again_it_knows_all_and_the_last_state)
{
    add_operation(NULL);
    json_auto_t *result = json_pack("{s:[]}", "disks");
    add(JOURNAL_STATE, "done", result, NULL);
    close_again();
    open_again();
    json_auto_t *json = load();
    cr_assert_str_eq(json_string_value(json_object_get(json, "state")), "done");
    cr_assert_str_eq(json_string_value(json_object_get(json, "qmp")), "/q");
    cr_assert_eq(json_integer_value(json_object_get(json, "version")), 1);
    json_auto_t *list = NULL;
    cr_assert_eq(journal_list(journal, &list, NULL), 0);
    cr_assert_eq(json_array_size(list), 1);
    json_t *none = NULL;
    cr_assert_eq(journal_load(journal, "nobody", &none, NULL), -ENOENT);
}

Test(journal, forgotten_callbacks_do_not_come_but_records_stay)
{
    struct heard first = {0}, second = {0}, third = {0};
    add_operation(&first);
    /* These two are one commit: the first one's callback ends the other. */
    first.forget = &second;
    add(JOURNAL_INTENT, "a", NULL, &third);
    third.forget = &second;
    add(JOURNAL_INTENT, "b", NULL, &second);
    while (!journal_is_idle(journal)) {
        (void)uv_run(&loop, UV_RUN_ONCE);
    }
    cr_assert_eq(first.n, 1);
    cr_assert_eq(third.n, 1);
    cr_assert_eq(second.n, 0);
    json_auto_t *json = load();
    cr_assert_eq(json_array_size(json_object_get(json, "records")), 2);
}

Test(journal, forgetting_from_a_callback_of_the_same_commit_works)
{
    struct heard one = {0}, other = {0};
    add_operation(NULL); /* is being written while the next two wait */
    add(JOURNAL_INTENT, "a", NULL, &one);
    add(JOURNAL_INTENT, "b", NULL, &other);
    one.forget = &other;
    while (!journal_is_idle(journal)) {
        (void)uv_run(&loop, UV_RUN_ONCE);
    }
    cr_assert_eq(one.n, 1);
    cr_assert_eq(other.n, 0);
}

Test(journal, a_living_engine_keeps_others_off_and_a_dead_one_does_not)
{
    struct journal_lock *lock = NULL, *other = NULL;
    int ready[2], go[2];
    char byte;
    cr_assert_eq(pipe(ready), 0);
    cr_assert_eq(pipe(go), 0);
    pid_t pid = fork();
    if (pid == 0) {
        (void)close(go[1]);
        (void)journal_lock(journal, "k3f9x2", &lock, NULL);
        (void)!write(ready[1], "r", 1);
        (void)!read(go[0], &byte, 1);
        _exit(0);
    }
    cr_assert_eq(read(ready[0], &byte, 1), 1);
    _cleanup_err_ struct err *err = NULL;
    cr_assert_eq(journal_lock(journal, "k3f9x2", &other, &err), -EBUSY);
    cr_assert_not_null(err);
    cr_assert(journal_is_locked(journal, "k3f9x2"));
    cr_assert_not(journal_is_locked(journal, "another"));
    cr_assert_eq(journal_lock(journal, "another", &other, NULL), 0);
    cr_assert(journal_is_locked(journal, "another"));
    cr_assert_null(journal_unlock(other));
    (void)close(go[1]);
    (void)waitpid(pid, NULL, 0);
    cr_assert_not(journal_is_locked(journal, "k3f9x2"));
    cr_assert_eq(journal_lock(journal, "k3f9x2", &lock, NULL), 0);
    cr_assert_null(journal_unlock(lock));
    cr_assert_null(journal_unlock(NULL));
}

static void idle(struct journal *which)
{
    while (!journal_is_idle(which)) {
        (void)uv_run(&loop, UV_RUN_ONCE);
    }
}

static json_t *news(struct journal *which, int kind,
                    struct journal_place *place)
{
    json_t *records = NULL;
    cr_assert_eq(journal_news(which, "k3f9x2", kind, place, &records, NULL), 0);
    return records;
}

Test(journal, a_request_of_another_process_is_news_once_and_so_is_its_answer)
{
    struct journal *other = NULL;
    struct journal_place engine = {0}, asker = {0};
    json_auto_t *args = json_pack("{s:s}", "id", "r1");
    add_operation(NULL);
    add(JOURNAL_INTENT, "claim", NULL, NULL);
    idle(journal);
    cr_assert_eq(journal_open(&loop, dir, &other, NULL), 0);
    cr_assert_null(news(journal, JOURNAL_REQUEST, &engine));
    cr_assert_eq(journal_append(other, "k3f9x2", JOURNAL_REQUEST, "abort", -1,
                                args, 1000, NULL, NULL),
                 0);
    cr_assert_eq(journal_append(other, "zzzzzz", JOURNAL_REQUEST, "abort", -1,
                                args, 1000, NULL, NULL),
                 0);
    idle(other);
    json_auto_t *asked = news(journal, JOURNAL_REQUEST, &engine);
    cr_assert_eq(json_array_size(asked), 1, "only for this operation");
    const json_t *request = json_array_get(asked, 0);
    cr_assert_str_eq(json_string_value(json_object_get(request, "step")),
                     "abort");
    cr_assert(json_equal(json_object_get(request, "data"), args));
    cr_assert_null(news(journal, JOURNAL_REQUEST, &engine), "once");
    asker.seq = json_integer_value(json_object_get(request, "seq"));
    cr_assert_null(news(other, JOURNAL_ANY, &asker));
    add(JOURNAL_ANSWER, "abort", args, NULL);
    idle(journal);
    json_auto_t *answered = news(other, JOURNAL_ANY, &asker);
    cr_assert_eq(json_array_size(answered), 1);
    cr_assert_null(journal_close(other));
}

Test(journal, who_made_an_operation_is_known)
{
    json_auto_t *data = json_pack("{s:s, s:i, s:s, s:{s:i}, s:{s:i}}", "kind",
                                  "move", "version", 1, "qmp", "/q", "plan",
                                  "n", 7, "engine", "pid", 5);
    add(JOURNAL_OPERATION, "running", data, NULL);
    idle(journal);
    json_auto_t *json = load();
    const json_t *record = json_array_get(json_object_get(json, "records"), 0);
    cr_assert_str_eq(json_string_value(json_object_get(record, "kind")),
                     "owner");
    cr_assert_eq(json_integer_value(
                     json_object_get(json_object_get(record, "data"), "pid")),
                 5);
}

Test(journal, what_cannot_be_written_is_told)
{
    struct heard heard = {0};
    sqlite3 *db = NULL;
    _cleanup_free_ char *path = str_printf("%s/journal.db", dir);
    add_operation(NULL);
    while (!journal_is_idle(journal)) {
        (void)uv_run(&loop, UV_RUN_ONCE);
    }
    /* As a disk that fails: the table is gone under the writer's feet. */
    cr_assert_eq(sqlite3_open(path, &db), SQLITE_OK);
    cr_assert_eq(sqlite3_exec(db, "DROP TABLE records", NULL, NULL, NULL),
                 SQLITE_OK);
    (void)sqlite3_close(db);
    add(JOURNAL_INTENT, "claim", NULL, &heard);
    while (heard.n == 0) {
        (void)uv_run(&loop, UV_RUN_ONCE);
    }
    cr_assert_lt(heard.code, 0);
}

Test(journal, a_directory_that_cannot_be_made_is_an_error)
{
    struct journal *other = NULL;
    _cleanup_err_ struct err *err = NULL;
    _cleanup_free_ char *path = str_printf("%s/journal.db/below", dir);
    cr_assert_lt(journal_open(&loop, path, &other, &err), 0);
    cr_assert_null(other);
    cr_assert_not_null(err);
}

Test(journal, the_file_is_for_its_owner_alone)
{
    struct stat st;
    _cleanup_free_ char *path = str_printf("%s/journal.db", dir);
    cr_assert_eq(stat(path, &st), 0);
    cr_assert_eq(st.st_mode & 0777, 0600);
}

Test(journal, one_of_a_later_version_is_refused)
{
    sqlite3 *db = NULL;
    _cleanup_free_ char *path = str_printf("%s/journal.db", dir);
    close_again();
    cr_assert_eq(sqlite3_open(path, &db), SQLITE_OK);
    cr_assert_eq(sqlite3_exec(db, "PRAGMA user_version=99", NULL, NULL, NULL),
                 SQLITE_OK);
    (void)sqlite3_close(db);
    _cleanup_err_ struct err *err = NULL;
    cr_assert_eq(journal_open(&loop, dir, &journal, &err), -EPROTO);
    cr_assert_not_null(strstr(err->desc, "99"));
    journal = NULL;
}
