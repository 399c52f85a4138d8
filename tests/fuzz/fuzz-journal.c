/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A journal that somebody wrote: a file of any bytes, or rows of any content
 * as {"operations":[[id,kind,version,qmp,plan,state,result]],
 * "records":[[op,kind,step,disk,data]]}. It is listed, loaded, and each of
 * its operations taken up as far as a monitor that nobody answers at.
 */
#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "engine.h"
#include "fuzz-dir.h"
#include "qpivot.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void on_ended(void *data, enum qpivot_outcome outcome)
{
    (void)data;
    if (outcome == QPIVOT_DONE) {
        abort(); /* nobody was there */
    }
}

static void bind_value(sqlite3_stmt *stmt, int i, const json_t *value)
{
    const char *text = json_string_value(value);
    if (json_is_integer(value)) {
        (void)sqlite3_bind_int64(stmt, i, json_integer_value(value));
    } else if (text != NULL) {
        (void)sqlite3_bind_text(stmt, i, text, -1, SQLITE_TRANSIENT);
    } else if (value != NULL && !json_is_null(value)) {
        char *dump = json_dumps(value, JSON_ENCODE_ANY);
        (void)sqlite3_bind_text(stmt, i, dump, -1, free);
    }
}

static void insert(sqlite3 *db, const char *sql, const json_t *rows, int n)
{
    for (size_t i = 0; i < json_array_size(rows) && i < 64; i++) {
        sqlite3_stmt *stmt = NULL;
        if (sqlite3_prepare_v2(db, sql, -1, &stmt, NULL) == SQLITE_OK) {
            for (int k = 0; k < n; k++) {
                bind_value(stmt, k + 1,
                           json_array_get(json_array_get(rows, i), (size_t)k));
            }
            (void)sqlite3_step(stmt);
        }
        (void)sqlite3_finalize(stmt);
    }
}

static void insert_rows(const uint8_t *data, size_t size)
{
    json_auto_t *json = json_loadb((const char *)data, size, 0, NULL);
    char path[128];
    sqlite3 *db = NULL;
    (void)snprintf(path, sizeof(path), "%s/journal.db", fuzz_dir());
    if (sqlite3_open(path, &db) == SQLITE_OK) {
        insert(db,
               "INSERT OR IGNORE INTO operations(id, kind, version, qmp, plan,"
               " state, result, created, updated) VALUES(?,?,?,?,?,?,?,1,2)",
               json_object_get(json, "operations"), 7);
        insert(db,
               "INSERT INTO records(op, kind, step, disk, data, time)"
               " VALUES(?,?,?,?,?,1)",
               json_object_get(json, "records"), 5);
    }
    (void)sqlite3_close(db);
}

static void take_up(struct qpivot_engine *engine, const char *op, int undo)
{
    struct qpivot_recover_options options = {
        .size = sizeof(options), .op = op, .qmp = "/nowhere/qmp", .undo = undo};
    struct qpivot_callbacks callbacks = {.ended = on_ended};
    char *shown = NULL;
    if (qpivot_show(engine, op, &shown, NULL) == 0) {
        qpivot_free(shown);
    }
    if (qpivot_recover(engine, &options, &callbacks, NULL, NULL) == 0) {
        (void)qpivot_engine_run(engine);
    }
}

static void open_and_read(void)
{
    struct qpivot_engine *engine = NULL;
    struct qpivot_engine_options options = {.size = sizeof(options),
                                            .state_dir = fuzz_dir()};
    char *text = NULL;
    if (qpivot_engine_new(&options, &engine, NULL) < 0) {
        return;
    }
    json_auto_t *list = NULL;
    if (qpivot_list(engine, &text, NULL) == 0) {
        list = json_loads(text, 0, NULL);
        qpivot_free(text);
    }
    for (size_t i = 0; i < json_array_size(list) && i < 4; i++) {
        const char *op =
            json_string_value(json_object_get(json_array_get(list, i), "op"));
        take_up(engine, op, 0);
        take_up(engine, op, 1);
    }
    qpivot_engine_close(engine, NULL, NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char magic[] = "SQLite format 3";
    fuzz_empty();
    if (size >= sizeof(magic) && memcmp(data, magic, sizeof(magic)) == 0) {
        (void)fuzz_file("journal.db", data, size);
    } else {
        open_and_read(); /* makes it */
        insert_rows(data, size);
    }
    open_and_read();
    return 0;
}
