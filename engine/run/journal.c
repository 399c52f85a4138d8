/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "run/journal.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sqlite3.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/stat.h>

#include "base/err.h"
#include "base/list.h"
#include "base/str.h"

enum { SCHEMA_VERSION = 1, BUSY_TIMEOUT_MS = 5000 };

struct record {
    struct list_node node;
    char *op;
    enum journal_kind kind;
    char *step;
    int disk;
    char *data; /* JSON text or NULL */
    uint64_t time_us;
    journal_fn *cb;
    void *cb_data;
};

struct journal {
    uv_loop_t *loop;
    char *dir;
    char *path;
    sqlite3 *db;           /* the writer's: only the worker uses it */
    sqlite3 *reader;       /* the loop's */
    sqlite3_stmt *version; /* what its file is at */
    uv_work_t work;
    struct list_node waiting; /* for the next commit */
    struct list_node writing; /* in the worker's hands */
    struct list_node written; /* whose callbacks are to come */
    struct err *error;        /* of this commit */
    bool working;
};

struct journal_lock {
    int fd;
    atomic_uint n_users;
};

static const char schema[] =
    "CREATE TABLE IF NOT EXISTS operations("
    " id TEXT PRIMARY KEY, kind TEXT NOT NULL, version INTEGER NOT NULL,"
    " qmp TEXT NOT NULL, plan TEXT NOT NULL, state TEXT NOT NULL,"
    " created INTEGER NOT NULL, updated INTEGER NOT NULL, result TEXT);"
    "CREATE TABLE IF NOT EXISTS records("
    " seq INTEGER PRIMARY KEY AUTOINCREMENT, op TEXT NOT NULL,"
    " time INTEGER NOT NULL, kind TEXT NOT NULL, step TEXT NOT NULL,"
    " disk INTEGER NOT NULL, data TEXT);"
    "CREATE INDEX IF NOT EXISTS records_op ON records(op, seq);"
    "PRAGMA user_version=1;";

static const char *const kind_names[] = {
    [JOURNAL_OPERATION] = "operation", [JOURNAL_STATE] = "state",
    [JOURNAL_INTENT] = "intent",       [JOURNAL_END] = "end",
    [JOURNAL_UNDO] = "undo",           [JOURNAL_UNDONE] = "undone",
    [JOURNAL_OWNER] = "owner",         [JOURNAL_REQUEST] = "request",
    [JOURNAL_ANSWER] = "answer",
};

static int open_database(struct journal *journal, sqlite3 **ret,
                         struct err **errp);
static int make_directory(const char *dir, struct err **errp);
static off_t lock_offset(const char *op);
static int check_version(struct journal *journal, struct err **errp);
static void journal_commit(uv_work_t *work);
static void journal_on_commit(uv_work_t *work, int status);
static void journal_kick(struct journal *journal);
static struct record *record_free(struct record *record);
static int write_record(sqlite3 *db, const struct record *record);
static int read_rows(struct journal *journal, const char *sql, const char *op,
                     json_t *(*row)(sqlite3_stmt *), json_t **ret,
                     struct err **errp);
static json_t *operation_row(sqlite3_stmt *stmt);
static json_t *record_row(sqlite3_stmt *stmt);
static int64_t data_version(struct journal *journal);

int journal_open(uv_loop_t *loop, const char *dir, struct journal **ret,
                 struct err **errp)
{
    _cleanup_(journal_closep) struct journal *journal =
        calloc(1, sizeof(*journal));
    if (journal == NULL) {
        return err_set(errp, -ENOMEM, dir, "out of memory");
    }
    list_init(&journal->waiting);
    list_init(&journal->writing);
    list_init(&journal->written);
    journal->loop = loop;
    journal->dir = strdup(dir);
    journal->path = str_printf("%s/journal.db", dir);
    if (journal->dir == NULL || journal->path == NULL) {
        return err_set(errp, -ENOMEM, dir, "out of memory");
    }
    int r = make_directory(dir, errp);
    if (r < 0) {
        return r;
    }
    r = open_database(journal, &journal->db, errp);
    if (r < 0) {
        return r;
    }
    r = check_version(journal, errp);
    if (r < 0) {
        return r;
    }
    r = open_database(journal, &journal->reader, errp);
    if (r < 0) {
        return r;
    }
    (void)sqlite3_prepare_v2(journal->reader, "PRAGMA data_version", -1,
                             &journal->version, NULL);
    *ret = TAKE_PTR(journal);
    return 0;
}

bool journal_is_idle(const struct journal *journal)
{
    return !journal->working && list_empty(&journal->waiting);
}

struct journal *journal_close(struct journal *journal)
{
    if (journal == NULL) {
        return NULL;
    }
    assert(journal_is_idle(journal));
    (void)sqlite3_finalize(journal->version);
    (void)sqlite3_close(journal->reader);
    (void)sqlite3_close(journal->db);
    err_free(journal->error);
    free(journal->dir);
    free(journal->path);
    free(journal);
    return NULL;
}

int journal_append(struct journal *journal, const char *op,
                   enum journal_kind kind, const char *step, int disk,
                   const json_t *data, uint64_t now_us, journal_fn *cb,
                   void *cb_data)
{
    struct record *record = calloc(1, sizeof(*record));
    if (record == NULL) {
        return -ENOMEM;
    }
    record->op = strdup(op);
    record->step = strdup(step);
    record->data = data != NULL ? json_dumps(data, JSON_COMPACT) : NULL;
    if (record->op == NULL || record->step == NULL ||
        (data != NULL && record->data == NULL)) {
        record_free(record);
        return -ENOMEM;
    }
    record->kind = kind;
    record->disk = disk;
    record->time_us = now_us;
    record->cb = cb;
    record->cb_data = cb_data;
    list_append(&journal->waiting, &record->node);
    journal_kick(journal);
    return 0;
}

void journal_forget(struct journal *journal, const void *cb_data)
{
    if (journal == NULL) {
        return;
    }
    struct list_node *lists[] = {&journal->waiting, &journal->writing,
                                 &journal->written};
    for (unsigned i = 0; i < ARRAY_SIZE(lists); i++) {
        list_foreach(it, lists[i]) {
            struct record *record = container_of(it, struct record, node);
            if (record->cb_data == cb_data) {
                record->cb = NULL;
            }
        }
    }
}

int journal_list(struct journal *journal, json_t **ret, struct err **errp)
{
    return read_rows(journal,
                     "SELECT id, kind, state, qmp, created, updated, result,"
                     " NULL, 0 FROM operations ORDER BY created DESC, id",
                     NULL, operation_row, ret, errp);
}

int journal_load(struct journal *journal, const char *op, json_t **ret,
                 struct err **errp)
{
    json_auto_t *rows = NULL, *records = NULL;
    int r = read_rows(journal,
                      "SELECT id, kind, state, qmp, created, updated, result,"
                      " plan, version FROM operations WHERE id = ?",
                      op, operation_row, &rows, errp);
    if (r < 0) {
        return r;
    }
    if (json_array_size(rows) == 0) {
        return err_set(errp, -ENOENT, op, "no such operation in %s",
                       journal->path);
    }
    r = read_rows(journal,
                  "SELECT time, kind, step, disk, data, seq FROM records"
                  " WHERE op = ? ORDER BY seq",
                  op, record_row, &records, errp);
    if (r < 0) {
        return r;
    }
    json_t *operation = json_array_get(rows, 0);
    if (json_object_set(operation, "records", records) < 0) {
        return err_set(errp, -ENOMEM, op, "out of memory");
    }
    *ret = json_incref(operation);
    return 0;
}

int journal_news(struct journal *journal, const char *op, int kind,
                 struct journal_place *place, json_t **ret, struct err **errp)
{
    json_auto_t *rows = NULL;
    int64_t version = data_version(journal);
    *ret = NULL;
    if (version != 0 && version == place->version) {
        return 0;
    }
    _cleanup_free_ char *sql = str_printf(
        "SELECT time, kind, step, disk, data, seq FROM records WHERE op = ?"
        " AND seq > %" PRId64 "%s%s%s ORDER BY seq",
        place->seq, kind >= 0 ? " AND kind = '" : "",
        kind >= 0 ? kind_names[kind] : "", kind >= 0 ? "'" : "");
    int r = sql != NULL ? read_rows(journal, sql, op, record_row, &rows, errp)
                        : err_set(errp, -ENOMEM, op, "out of memory");
    if (r < 0) {
        return r;
    }
    size_t n = json_array_size(rows);
    place->version = version;
    if (n > 0) {
        const json_t *last = json_array_get(rows, n - 1);
        place->seq = json_integer_value(json_object_get(last, "seq"));
        *ret = json_incref(rows);
    }
    return 0;
}

const char *journal_kind_name(enum journal_kind kind)
{
    return kind_names[kind];
}

int journal_lock(struct journal *journal, const char *op,
                 struct journal_lock **ret, struct err **errp)
{
    _cleanup_close_ int fd = -1;
    _cleanup_free_ char *path = str_printf("%s/locks", journal->dir);
    if (path == NULL) {
        return err_set(errp, -ENOMEM, op, "out of memory");
    }
    fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) {
        return err_set(errp, -errno, path, "cannot be opened: %s",
                       strerror(errno));
    }
    /* One byte of one file for each operation: nothing is left behind. */
    struct flock range = {.l_type = F_WRLCK,
                          .l_whence = SEEK_SET,
                          .l_start = lock_offset(op),
                          .l_len = 1};
    if (fcntl(fd, F_OFD_SETLK, &range) < 0) {
        return errno == EAGAIN || errno == EACCES
                   ? err_set(errp, -EBUSY, op,
                             "another qpivot process works on this operation")
                   : err_set(errp, -errno, path, "cannot be locked: %s",
                             strerror(errno));
    }
    struct journal_lock *lock = calloc(1, sizeof(*lock));
    if (lock == NULL) {
        return err_set(errp, -ENOMEM, op, "out of memory");
    }
    lock->fd = TAKE_FD(fd);
    atomic_init(&lock->n_users, 1);
    *ret = lock;
    return 0;
}

bool journal_is_locked(const struct journal *journal, const char *op)
{
    _cleanup_free_ char *path = str_printf("%s/locks", journal->dir);
    _cleanup_close_ int fd =
        path != NULL ? open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW) : -1;
    struct flock range = {.l_type = F_WRLCK,
                          .l_whence = SEEK_SET,
                          .l_start = lock_offset(op),
                          .l_len = 1};
    return fd >= 0 && fcntl(fd, F_OFD_GETLK, &range) == 0 &&
           range.l_type != F_UNLCK;
}

struct journal_lock *journal_hold(struct journal_lock *lock)
{
    if (lock != NULL) {
        (void)atomic_fetch_add(&lock->n_users, 1);
    }
    return lock;
}

struct journal_lock *journal_unlock(struct journal_lock *lock)
{
    if (lock != NULL && atomic_fetch_sub(&lock->n_users, 1) == 1) {
        (void)close(lock->fd);
        free(lock);
    }
    return NULL;
}

static off_t lock_offset(const char *op)
{
    /* The row of a damaged journal may hold any text: it wraps around. */
    uint64_t offset = 0;
    for (const char *p = op; *p != '\0'; p++) {
        unsigned char c = (unsigned char)*p;
        offset = offset * 36 + (uint64_t)(c >= 'a' ? c - 'a' : 26 + c - '0');
    }
    return (off_t)(offset & (UINT64_MAX >> 2));
}

static int make_directory(const char *dir, struct err **errp)
{
    _cleanup_free_ char *path = strdup(dir);
    if (path == NULL) {
        return err_set(errp, -ENOMEM, dir, "out of memory");
    }
    for (char *slash = path + 1;; slash++) {
        if (*slash != '/' && *slash != '\0') {
            continue;
        }
        char end = *slash;
        *slash = '\0';
        if (mkdir(path, 0700) < 0 && errno != EEXIST) {
            int code = -errno;
            return err_set(errp, code, dir,
                           "state directory cannot be made: %s",
                           strerror(-code));
        }
        *slash = end;
        if (end == '\0') {
            return 0;
        }
    }
}

static int open_database(struct journal *journal, sqlite3 **ret,
                         struct err **errp)
{
    /* SQLite would make the file by the umask: it is for us alone. */
    int fd = open(journal->path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) {
        return err_set(errp, -errno, journal->path, "cannot be opened: %s",
                       strerror(errno));
    }
    (void)close(fd);
    int r =
        sqlite3_open_v2(journal->path, ret,
                        SQLITE_OPEN_READWRITE | SQLITE_OPEN_FULLMUTEX, NULL);
    if (r == SQLITE_OK) {
        (void)sqlite3_busy_timeout(*ret, BUSY_TIMEOUT_MS);
        r = sqlite3_exec(*ret,
                         "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;",
                         NULL, NULL, NULL);
    }
    if (r != SQLITE_OK) {
        return err_set(errp, -EIO, journal->path,
                       "journal cannot be opened: %s", sqlite3_errmsg(*ret));
    }
    return 0;
}

static int check_version(struct journal *journal, struct err **errp)
{
    sqlite3_stmt *stmt = NULL;
    int version = -1;
    if (sqlite3_prepare_v2(journal->db, "PRAGMA user_version", -1, &stmt,
                           NULL) == SQLITE_OK &&
        sqlite3_step(stmt) == SQLITE_ROW) {
        version = sqlite3_column_int(stmt, 0);
    }
    (void)sqlite3_finalize(stmt);
    if (version > SCHEMA_VERSION) {
        return err_set(errp, -EPROTO, journal->path,
                       "journal of a later qpivot (version %d, this one knows"
                       " %d)",
                       version, SCHEMA_VERSION);
    }
    if (version == SCHEMA_VERSION) {
        return 0;
    }
    if (version < 0 ||
        sqlite3_exec(journal->db, schema, NULL, NULL, NULL) != SQLITE_OK) {
        return err_set(errp, -EIO, journal->path,
                       "journal cannot be set up: %s",
                       sqlite3_errmsg(journal->db));
    }
    return 0;
}

static void journal_kick(struct journal *journal)
{
    if (journal->working || list_empty(&journal->waiting)) {
        return;
    }
    list_foreach_safe(it, &journal->waiting) {
        list_remove(it);
        list_append(&journal->writing, it);
    }
    journal->working = true;
    journal->work.data = journal;
    (void)uv_queue_work(journal->loop, &journal->work, journal_commit,
                        journal_on_commit);
}

static void journal_commit(uv_work_t *work)
{
    struct journal *journal = work->data;
    sqlite3 *db = journal->db;
    int r = sqlite3_exec(db, "BEGIN IMMEDIATE", NULL, NULL, NULL);
    list_foreach(it, &journal->writing) {
        if (r == SQLITE_OK) {
            r = write_record(db, container_of(it, struct record, node));
        }
    }
    if (r == SQLITE_OK) {
        r = sqlite3_exec(db, "COMMIT", NULL, NULL, NULL);
    }
    if (r != SQLITE_OK) {
        (void)err_set(&journal->error, r == SQLITE_FULL ? -ENOSPC : -EIO,
                      journal->path, "journal cannot be written: %s",
                      sqlite3_errmsg(db));
        if (sqlite3_get_autocommit(db) == 0) {
            (void)sqlite3_exec(db, "ROLLBACK", NULL, NULL, NULL);
        }
    }
}

static void journal_on_commit(uv_work_t *work, int status)
{
    struct journal *journal = work->data;
    (void)status;
    _cleanup_err_ struct err *error = TAKE_PTR(journal->error);
    list_foreach_safe(it, &journal->writing) {
        list_remove(it);
        list_append(&journal->written, it);
    }
    journal->working = false;
    /* Kick first: a callback may append, and may close its operation. */
    journal_kick(journal);
    while (!list_empty(&journal->written)) {
        struct record *record =
            container_of(journal->written.next, struct record, node);
        list_remove(&record->node);
        if (record->cb != NULL) {
            record->cb(record->cb_data, error);
        }
        record_free(record);
    }
}

static struct record *record_free(struct record *record)
{
    free(record->op);
    free(record->step);
    free(record->data);
    free(record);
    return NULL;
}

static int bind_text(sqlite3_stmt *stmt, int i, const char *text)
{
    return text != NULL ? sqlite3_bind_text(stmt, i, text, -1, SQLITE_STATIC)
                        : sqlite3_bind_null(stmt, i);
}

static int write_operation(sqlite3 *db, const struct record *record,
                           const json_t *data)
{
    _cleanup_free_ char *plan =
        json_dumps(json_object_get(data, "plan"), JSON_COMPACT);
    sqlite3_stmt *stmt = NULL;
    int r = sqlite3_prepare_v2(db,
                               "INSERT INTO operations(id, kind, version, qmp,"
                               " plan, state, created, updated)"
                               " VALUES(?,?,?,?,?,?,?,?)",
                               -1, &stmt, NULL);
    if (r == SQLITE_OK) {
        (void)bind_text(stmt, 1, record->op);
        (void)bind_text(stmt, 2,
                        json_string_value(json_object_get(data, "kind")));
        (void)sqlite3_bind_int64(
            stmt, 3, json_integer_value(json_object_get(data, "version")));
        (void)bind_text(stmt, 4,
                        json_string_value(json_object_get(data, "qmp")));
        (void)bind_text(stmt, 5, plan);
        (void)bind_text(stmt, 6, record->step);
        (void)sqlite3_bind_int64(stmt, 7, (sqlite3_int64)record->time_us);
        (void)sqlite3_bind_int64(stmt, 8, (sqlite3_int64)record->time_us);
        r = sqlite3_step(stmt);
    }
    (void)sqlite3_finalize(stmt);
    return r == SQLITE_DONE ? SQLITE_OK : r;
}

static int write_state(sqlite3 *db, const struct record *record)
{
    sqlite3_stmt *stmt = NULL;
    int r = sqlite3_prepare_v2(db,
                               "UPDATE operations SET state=?, updated=?,"
                               " result=coalesce(?, result) WHERE id=?",
                               -1, &stmt, NULL);
    if (r == SQLITE_OK) {
        (void)bind_text(stmt, 1, record->step);
        (void)sqlite3_bind_int64(stmt, 2, (sqlite3_int64)record->time_us);
        (void)bind_text(stmt, 3, record->data);
        (void)bind_text(stmt, 4, record->op);
        r = sqlite3_step(stmt);
    }
    (void)sqlite3_finalize(stmt);
    return r == SQLITE_DONE ? SQLITE_OK : r;
}

static int write_step(sqlite3 *db, const struct record *record,
                      enum journal_kind kind, const char *step,
                      const char *data)
{
    sqlite3_stmt *stmt = NULL;
    int r = sqlite3_prepare_v2(db,
                               "INSERT INTO records(op, time, kind, step,"
                               " disk, data) VALUES(?,?,?,?,?,?)",
                               -1, &stmt, NULL);
    if (r == SQLITE_OK) {
        (void)bind_text(stmt, 1, record->op);
        (void)sqlite3_bind_int64(stmt, 2, (sqlite3_int64)record->time_us);
        (void)bind_text(stmt, 3, kind_names[kind]);
        (void)bind_text(stmt, 4, step);
        (void)sqlite3_bind_int(stmt, 5, record->disk);
        (void)bind_text(stmt, 6, data);
        r = sqlite3_step(stmt);
    }
    (void)sqlite3_finalize(stmt);
    return r == SQLITE_DONE ? SQLITE_OK : r;
}

/* What an earlier engine had done, of one whose journal was lost. */
static int write_marks(sqlite3 *db, const struct record *record,
                       const json_t *data)
{
    int r = SQLITE_OK;
    size_t i;
    json_t *mark;
    json_array_foreach(json_object_get(data, "marks"), i, mark) {
        struct record about = *record;
        bool ended = json_is_true(json_object_get(mark, "ended"));
        about.disk = (int)json_integer_value(json_object_get(mark, "disk"));
        if (r == SQLITE_OK) {
            r = write_step(db, &about, ended ? JOURNAL_END : JOURNAL_INTENT,
                           json_string_value(json_object_get(mark, "step")),
                           NULL);
        }
    }
    return r;
}

/* The record itself is the history, also of states. */
static int write_record(sqlite3 *db, const struct record *record)
{
    if (record->kind == JOURNAL_OPERATION) {
        json_auto_t *data = json_loads(record->data, 0, NULL);
        _cleanup_free_ char *engine =
            json_dumps(json_object_get(data, "engine"), JSON_COMPACT);
        int r = write_operation(db, record, data);
        r = r == SQLITE_OK && engine != NULL
                ? write_step(db, record, JOURNAL_OWNER, "", engine)
                : r;
        return r == SQLITE_OK ? write_marks(db, record, data) : r;
    }
    int r = record->kind == JOURNAL_STATE ? write_state(db, record) : SQLITE_OK;
    return r == SQLITE_OK ? write_step(db, record, record->kind, record->step,
                                       record->data)
                          : r;
}

static int read_rows(struct journal *journal, const char *sql, const char *op,
                     json_t *(*row)(sqlite3_stmt *), json_t **ret,
                     struct err **errp)
{
    json_auto_t *rows = json_array();
    sqlite3_stmt *stmt = NULL;
    int r = sqlite3_prepare_v2(journal->reader, sql, -1, &stmt, NULL);
    if (r == SQLITE_OK && op != NULL) {
        r = bind_text(stmt, 1, op);
    }
    while (r == SQLITE_OK || r == SQLITE_ROW) {
        r = sqlite3_step(stmt);
        if (r == SQLITE_ROW && json_array_append_new(rows, row(stmt)) < 0) {
            r = SQLITE_NOMEM;
        }
    }
    (void)sqlite3_finalize(stmt);
    if (r != SQLITE_DONE) {
        return err_set(errp, -EIO, journal->path, "journal cannot be read: %s",
                       sqlite3_errstr(r));
    }
    *ret = json_incref(rows);
    return 0;
}

static const char *column(sqlite3_stmt *stmt, int i)
{
    const unsigned char *text = sqlite3_column_text(stmt, i);
    return text != NULL ? (const char *)text : "";
}

static json_t *column_json(sqlite3_stmt *stmt, int i)
{
    return sqlite3_column_type(stmt, i) == SQLITE_NULL
               ? NULL
               : json_loads(column(stmt, i), JSON_DECODE_ANY, NULL);
}

static json_t *column_time(sqlite3_stmt *stmt, int i)
{
    char out[STR_TIME_MAX];
    return json_string(str_time((uint64_t)sqlite3_column_int64(stmt, i), out));
}

static json_t *operation_row(sqlite3_stmt *stmt)
{
    return json_pack(
        "{s:s, s:s, s:s, s:s, s:o, s:o, s:o*, s:o*, s:i}", "op",
        column(stmt, 0), "kind", column(stmt, 1), "state", column(stmt, 2),
        "qmp", column(stmt, 3), "created", column_time(stmt, 4), "updated",
        column_time(stmt, 5), "result", column_json(stmt, 6), "plan",
        column_json(stmt, 7), "version", sqlite3_column_int(stmt, 8));
}

static json_t *record_row(sqlite3_stmt *stmt)
{
    return json_pack("{s:o, s:s, s:s, s:i, s:o*, s:I}", "time",
                     column_time(stmt, 0), "kind", column(stmt, 1), "step",
                     column(stmt, 2), "disk", sqlite3_column_int(stmt, 3),
                     "data", column_json(stmt, 4), "seq",
                     (json_int_t)sqlite3_column_int64(stmt, 5));
}

/* Another one whenever any connection has written; 0: not known. */
static int64_t data_version(struct journal *journal)
{
    int64_t version = 0;
    if (journal->version != NULL &&
        sqlite3_step(journal->version) == SQLITE_ROW) {
        version = sqlite3_column_int64(journal->version, 0);
    }
    (void)sqlite3_reset(journal->version);
    return version;
}
