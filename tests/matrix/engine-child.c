/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * An engine in a process of its own. The linker puts the functions below in
 * front of the journal, SQLite and libuv (--wrap), and the clock in front of
 * libc's, so that the engine itself is the very code that ships: it runs in
 * one thread, its time is ours, and it can be made to die at any record.
 */
#include <errno.h>
#include <jansson.h>
#include <poll.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/err.h"
#include "base/str.h"
#include "base/worker.h"
#include "bulk/check.h"
#include "bulk/copy.h"
#include "matrix/world.h"
#include "qmp/qmp.h"
#include "qpivot.h"

enum { WORKS_MAX = 64, TURNS_MAX = 200000, SILENT_MAX = 16 };

/* Virtual time after which an engine counts as one that never ends. */
static const uint64_t FOREVER_NS = UINT64_C(7200000000000);
static const uint64_t MS = 1000000;
static const uint64_t LATE_MS = 100000;

struct deferred {
    uv_work_t *work;
    uv_after_work_cb after;
    struct worker *worker; /* instead */
};

/* A thread that has done its work at once, or never will. */
struct worker {
    const struct worker_ops *ops;
    void *data;
    bool left;
};

static struct {
    bool active; /* this is an engine's process */
    struct world *world;
    uint64_t now_ns;
    struct deferred works[WORKS_MAX];
    unsigned n_works;
    bool dying; /* what was written before stays, nothing is from now on */
    bool full;  /* the journal's disk */
    bool read_only;
    bool ended;
    bool closed;
    bool abort_wanted;
    bool return_wanted;
    bool returned;     /* that was asked for */
    bool told_world;   /* QEMU may have something to say */
    unsigned n_silent; /* turns in which it was not asked */
    unsigned n_turns;
    const struct engine_request *request;
    struct qpivot_engine *engine;
    struct qpivot_op *op;
    int control;
} child;

/* What the linker calls instead, and the real ones. */
int __real_journal_append(struct journal *journal, const char *op,
                          enum journal_kind kind, const char *step, int disk,
                          const json_t *data, uint64_t now_us, journal_fn *cb,
                          void *cb_data);
int __wrap_journal_append(struct journal *journal, const char *op,
                          enum journal_kind kind, const char *step, int disk,
                          const json_t *data, uint64_t now_us, journal_fn *cb,
                          void *cb_data);
int __real_sqlite3_exec(sqlite3 *db, const char *sql,
                        int (*row)(void *, int, char **, char **), void *data,
                        char **ret_error);
int __wrap_sqlite3_exec(sqlite3 *db, const char *sql,
                        int (*row)(void *, int, char **, char **), void *data,
                        char **ret_error);
int __real_uv_queue_work(uv_loop_t *loop, uv_work_t *req, uv_work_cb work,
                         uv_after_work_cb after);
int __wrap_uv_queue_work(uv_loop_t *loop, uv_work_t *req, uv_work_cb work,
                         uv_after_work_cb after);
int __wrap_worker_start(uv_loop_t *loop, const struct worker_ops *ops,
                        void *data, struct worker **ret);
void __wrap_worker_leave(struct worker *worker);
int __wrap_check_start(uv_loop_t *loop, const struct check_request *request,
                       const struct check_callbacks *callbacks,
                       struct check **ret, struct err **errp);
void __wrap_check_cancel(struct check *check);
bool __wrap_check_has_scratch(const char *dir, const char *scratch);
int __wrap_copy_start(uv_loop_t *loop, const struct copy_options *options,
                      const struct copy_callbacks *callbacks, struct copy **ret,
                      struct err **errp);
void __wrap_copy_cancel(struct copy *copy);
int __real_uv_cancel(uv_req_t *req);
int __wrap_uv_cancel(uv_req_t *req);
pid_t __wrap_qmp_peer_pid(const struct qmp *qmp);
bool __wrap_process_has_our_file(uint64_t pid, const char *filename);
int __real_conn_send(struct qmp *qmp, const char *bytes, size_t n);
int __wrap_conn_send(struct qmp *qmp, const char *bytes, size_t n);
int __real_qmp_open(const struct qmp_options *options,
                    const struct qmp_owner *owner, qmp_open_fn *cb, void *data,
                    struct qmp **ret, struct err **errp);
int __wrap_qmp_open(const struct qmp_options *options,
                    const struct qmp_owner *owner, qmp_open_fn *cb, void *data,
                    struct qmp **ret, struct err **errp);

/* --- in front of the engine's libraries --- */

int clock_gettime(clockid_t clock, struct timespec *ts)
{
    if (!child.active || clock == CLOCK_REALTIME) {
        return (int)syscall(SYS_clock_gettime, clock, ts);
    }
    ts->tv_sec = (time_t)(child.now_ns / 1000000000);
    ts->tv_nsec = (long)(child.now_ns % 1000000000);
    return 0;
}

/* Done at once, told later from the loop: as a pool that is never late. */
int __wrap_uv_queue_work(uv_loop_t *loop, uv_work_t *req, uv_work_cb work,
                         uv_after_work_cb after)
{
    if (!child.active || child.n_works == WORKS_MAX) {
        return __real_uv_queue_work(loop, req, work, after);
    }
    work(req);
    child.works[child.n_works++] = (struct deferred){req, after, NULL};
    return 0;
}

int __wrap_worker_start(uv_loop_t *loop, const struct worker_ops *ops,
                        void *data, struct worker **ret)
{
    struct worker *worker = calloc(1, sizeof(*worker));
    (void)loop;
    if (worker == NULL || child.n_works == WORKS_MAX) {
        abort();
    }
    *worker = (struct worker){ops, data, false};
    *ret = worker;
    ops->run(data);
    if (!child.world->store->hangs) {
        child.works[child.n_works++] = (struct deferred){NULL, NULL, worker};
    }
    child.world->store->hangs = false;
    return 0;
}

void __wrap_worker_leave(struct worker *worker)
{
    worker->left = true;
}

int __wrap_uv_cancel(uv_req_t *req)
{
    return child.active ? UV_EBUSY : __real_uv_cancel(req);
}

int __wrap_sqlite3_exec(sqlite3 *db, const char *sql,
                        int (*row)(void *, int, char **, char **), void *data,
                        char **ret_error)
{
    if (child.read_only && str_eq(sql, "BEGIN IMMEDIATE")) {
        return SQLITE_READONLY;
    }
    if (child.full && str_eq(sql, "COMMIT")) {
        child.full = child.world->fault->kind != FAULT_FULL_ONCE;
        return SQLITE_FULL;
    }
    return __real_sqlite3_exec(db, sql, row, data, ret_error);
}

int __wrap_conn_send(struct qmp *qmp, const char *bytes, size_t n)
{
    child.told_world = true;
    return __real_conn_send(qmp, bytes, n);
}

int __wrap_qmp_open(const struct qmp_options *options,
                    const struct qmp_owner *owner, qmp_open_fn *cb, void *data,
                    struct qmp **ret, struct err **errp)
{
    child.told_world = true;
    return __real_qmp_open(options, owner, cb, data, ret, errp);
}

/* Of a fake QEMU, what the store has. */
bool __wrap_process_has_our_file(uint64_t pid, const char *filename)
{
    return pid != 0 && str_starts(filename, "/fake/");
}

/* Each QEMU has a process of its own, as far as the engine can see. */
pid_t __wrap_qmp_peer_pid(const struct qmp *qmp)
{
    struct world *world = child.world;
    for (int i = 0; i < N_SIDES && !child.request->remote; i++) {
        if (str_eq(qmp_name(qmp), world->addresses[i])) {
            return world->sides[i].process;
        }
    }
    return 0;
}

static int step_of(const char *name)
{
    const struct operation *operation = child.request->operation;
    for (unsigned i = 0; i < operation->n_steps; i++) {
        if (str_eq(operation->steps[i].name, name)) {
            return (int)i;
        }
    }
    return -1;
}

static void die(void)
{
    child.world->told->end = END_KILLED;
    _exit(0);
}

int __wrap_journal_append(struct journal *journal, const char *op,
                          enum journal_kind kind, const char *step, int disk,
                          const json_t *data, uint64_t now_us, journal_fn *cb,
                          void *cb_data)
{
    struct told *told = child.world->told;
    const struct fault *fault = child.world->fault;
    int index = step_of(step);
    if (index >= 0) {
        told->seen[index][kind] |= 1U << (disk + 1);
    }
    if (child.dying) {
        return 0;
    }
    bool here = child.world->faulty && kind == fault->record &&
                disk == fault->disk && str_eq(step, fault->step);
    if (here && fault->kind == FAULT_KILL_BEFORE) {
        told->fired = child.dying = true;
        return 0;
    }
    if (here && (fault->kind == FAULT_FULL || fault->kind == FAULT_FULL_ONCE)) {
        told->fired = child.full = true;
    } else if (here && fault->kind == FAULT_READ_ONLY) {
        told->fired = child.read_only = true;
    }
    int r = __real_journal_append(journal, op, kind, step, disk, data, now_us,
                                  cb, cb_data);
    if (here && fault->kind == FAULT_KILL_AFTER &&
        (kind == JOURNAL_END || kind == JOURNAL_UNDONE)) {
        told->fired = child.dying = true;
    }
    return r;
}

/* --- comparing: no thread, and nothing to read --- */

struct checked {
    uv_work_t work; /* the first: what is deferred is this */
    struct check_callbacks callbacks;
    struct check_result result;
    struct err *err;
    int code;
};

static void checked_nothing(uv_work_t *work)
{
    (void)work;
}

static void checked_after(uv_work_t *work, int status)
{
    struct checked *checked = (struct checked *)work;
    (void)status;
    checked->callbacks.ended(checked->callbacks.data, checked->err,
                             checked->code < 0 ? NULL : &checked->result);
    json_decref(checked->result.ranges);
    (void)err_free(checked->err);
    free(checked);
}

int __wrap_check_start(uv_loop_t *loop, const struct check_request *request,
                       const struct check_callbacks *callbacks,
                       struct check **ret, struct err **errp)
{
    struct checked *checked = calloc(1, sizeof(*checked));
    (void)errp;
    checked->callbacks = *callbacks;
    checked->code = store_check(request, &checked->result, &checked->err);
    *ret = (struct check *)checked;
    return uv_queue_work(loop, &checked->work, checked_nothing, checked_after);
}

void __wrap_check_cancel(struct check *check)
{
    (void)check;
}

bool __wrap_check_has_scratch(const char *dir, const char *scratch)
{
    (void)dir;
    return store_find(child.world->store, scratch) != NULL;
}

/* --- copying: the same --- */

struct copied {
    uv_work_t work; /* the first: what is deferred is this */
    struct copy_callbacks callbacks;
    struct err *err;
    int code;
};

static void copied_after(uv_work_t *work, int status)
{
    struct copied *copied = (struct copied *)work;
    (void)status;
    copied->callbacks.ended(copied->callbacks.data,
                            copied->code < 0 ? COPY_FAILED : COPY_DONE,
                            copied->err);
    (void)err_free(copied->err);
    free(copied);
}

int __wrap_copy_start(uv_loop_t *loop, const struct copy_options *options,
                      const struct copy_callbacks *callbacks, struct copy **ret,
                      struct err **errp)
{
    struct copied *copied = calloc(1, sizeof(*copied));
    (void)errp;
    copied->callbacks = *callbacks;
    copied->code = store_copy(options, &copied->err);
    *ret = (struct copy *)copied;
    return uv_queue_work(loop, &copied->work, checked_nothing, copied_after);
}

void __wrap_copy_cancel(struct copy *copy)
{
    (void)copy;
}

/* --- its loop --- */

static void run_deferred(void)
{
    while (child.n_works > 0) {
        struct deferred works[WORKS_MAX];
        unsigned n = child.n_works;
        memcpy(works, child.works, sizeof(works));
        child.n_works = 0;
        for (unsigned i = 0; i < n; i++) {
            struct worker *worker = works[i].worker;
            if (worker == NULL) {
                works[i].after(works[i].work, 0);
                continue;
            }
            (worker->left ? worker->ops->gone
                          : worker->ops->ended)(worker->data);
            free(worker);
        }
    }
}

static void stuck(void)
{
    child.world->told->end = END_STUCK;
    _exit(0);
}

static void run_once(uv_loop_t *loop)
{
    (void)uv_run(loop, UV_RUN_NOWAIT);
    if (++child.n_turns > TURNS_MAX) {
        stuck(); /* it asks again and again without a pause */
    }
}

/*
 * QEMU has done all that was asked of it when it answers. It does nothing
 * unasked, but for what a freeze guard tells it.
 */
static void ask_world(void)
{
    char byte;
    if (!child.told_world && ++child.n_silent < SILENT_MAX) {
        return;
    }
    child.told_world = false;
    child.n_silent = 0;
    if (send(child.control, "p", 1, MSG_NOSIGNAL) != 1 ||
        recv(child.control, &byte, 1, 0) != 1) {
        _exit(0);
    }
}

static bool has_input(uv_loop_t *loop)
{
    struct pollfd ready = {.fd = uv_backend_fd(loop), .events = POLLIN};
    run_once(loop);
    return child.n_works > 0 || poll(&ready, 1, 0) > 0;
}

/* One turn; time goes on when nobody has anything else left to do. */
static void turn(uv_loop_t *loop)
{
    run_once(loop);
    run_deferred();
    if (child.dying && journal_is_idle(engine_journal(child.engine))) {
        die();
    }
    if (has_input(loop)) {
        return;
    }
    ask_world();
    if (has_input(loop)) {
        return;
    }
    if (child.abort_wanted && !child.ended) {
        child.abort_wanted = false;
        (void)qpivot_op_abort(child.op);
        return;
    }
    if (child.return_wanted && !child.ended) {
        child.return_wanted = false;
        child.returned = true;
        (void)qpivot_op_return(child.op);
        return;
    }
    int wait_ms = uv_backend_timeout(loop);
    if (child.ended || child.closed) {
        return;
    }
    if (wait_ms < 0 || child.now_ns > FOREVER_NS) {
        stuck();
    }
    child.now_ns += (uint64_t)wait_ms * MS;
}

/* --- what it does --- */

static bool lists(const json_t *items, const char *kind, const char *name)
{
    size_t i;
    json_t *item;
    json_array_foreach(items, i, item) {
        if (str_eq(json_string_value(json_object_get(item, "kind")), kind) &&
            str_eq(json_string_value(json_object_get(item, "name")), name)) {
            return true;
        }
    }
    return false;
}

/*
 * What doctor lists: all that carries our names, and nothing else. This process
 * was forked when it was so in QEMU.
 */
static void check_listed(struct world *world, const json_t *items)
{
    struct told *told = world->told;
    const struct world_side *side = &world->sides[child.request->asked];
    json_auto_t *left = fake_vm_leftovers(side->vm);
    size_t i;
    json_t *item;
    json_array_foreach(items, i, item) {
        const char *name = json_string_value(json_object_get(item, "name"));
        if (!str_starts(name, "qpv-")) {
            (void)snprintf(told->listed, sizeof(told->listed),
                           "lists '%.40s' as ours", name);
        }
    }
    json_array_foreach(left, i, item) {
        const char *line = json_string_value(item);
        _cleanup_free_ char *kind = strndup(line, strcspn(line, " "));
        const char *name = line + strlen(kind) + 1;
        bool claim = str_eq(name, "qpv-claim");
        if (str_starts(name, "qpv-") &&
            !lists(items, claim ? "claim" : kind, name)) {
            (void)snprintf(told->listed, sizeof(told->listed),
                           "does not list %.60s", line);
        }
    }
}

static void on_event(void *data, const char *text)
{
    static const struct {
        const char *state;
        bool undoing;
        enum journal_kind record;
    } states[] = {
        {"start", false, JOURNAL_INTENT},
        {"undo",  true,  JOURNAL_UNDO  },
    };

    struct world *world = data;
    struct told *told = world->told;
    json_auto_t *json = json_loads(text, 0, NULL);
    const char *event = json_string_value(json_object_get(json, "event"));
    const char *step = json_string_value(json_object_get(json, "step"));
    const char *state = json_string_value(json_object_get(json, "state"));
    const char *disk = json_string_value(json_object_get(json, "disk"));
    if (getenv("MATRIX_VERBOSE") != NULL) {
        (void)fprintf(stderr, "  %s\n", text);
    }
    const char *message = json_string_value(json_object_get(json, "message"));
    told->left = told->left ||
                 (message != NULL && strstr(message, "left on the") != NULL);
    json_t *error = json_object_get(json, "error");
    if (error != NULL) {
        _cleanup_free_ char *why = json_dumps(error, JSON_COMPACT);
        (void)snprintf(told->why, sizeof(told->why), "%s", why);
    }
    told->streams |= json_object_get(json, "stream") != NULL;
    if (child.request->verb == ENGINE_LOOK &&
        json_object_get(json, "items") != NULL) {
        check_listed(world, json_object_get(json, "items"));
    }
    for (unsigned i = 0; str_eq(event, "step") && i < ARRAY_SIZE(states); i++) {
        if (!str_eq(state, states[i].state)) {
            continue;
        }
        const struct fault *fault = world->fault;
        int index = step_of(step);
        /* A disk is called vd<N>, see matrix.c. */
        int number = disk != NULL ? disk[strlen(disk) - 1] - '0' : NO_DISK;
        told->tag = world->store->tag = world_tag(index, states[i].undoing);
        told->seen[index][states[i].record] |= 1U << (number + 1);
        bool here = world->faulty && fault->record == states[i].record &&
                    str_eq(fault->step, step) && fault->disk == number;
        if (here && fault->kind == FAULT_KILL_AFTER) {
            told->fired = true;
            die();
        } else if (here && fault->kind == FAULT_LATE) {
            told->fired = true;
            child.now_ns += LATE_MS * MS;
        }
        child.abort_wanted |= child.request->verb == ENGINE_ABORT &&
                              index == child.request->abort_at;
        child.return_wanted |= child.request->verb == ENGINE_RETURN &&
                               !child.returned && str_eq(step, "window");
    }
}

static void on_ended(void *data, enum qpivot_outcome outcome)
{
    struct world *world = data;
    world->told->end = END_OUTCOME;
    world->told->outcome = outcome;
    child.ended = true;
}

static void on_closed(void *data)
{
    (void)data;
    child.closed = true;
}

/* The newest operation's id if it has not ended, and its state. */
static bool unfinished(struct told *told, char op[16])
{
    char *text = NULL;
    if (qpivot_list(child.engine, &text, NULL) < 0) {
        return false;
    }
    json_auto_t *list = json_loads(text, 0, NULL);
    qpivot_free(text);
    const json_t *first = json_array_get(list, 0);
    const char *state = json_string_value(json_object_get(first, "state"));
    const char *id = json_string_value(json_object_get(first, "op"));
    (void)snprintf(op, 16, "%s", id != NULL ? id : "");
    (void)snprintf(told->state, sizeof(told->state), "%s",
                   state != NULL ? state : "");
    return first != NULL && !str_eq(state, "done") &&
           !str_eq(state, "undone") && !str_eq(state, "refused");
}

static int start(struct world *world)
{
    const struct engine_request *request = child.request;
    struct qpivot_op **ret = &child.op;
    struct qpivot_callbacks callbacks = {
        .data = world, .event = on_event, .ended = on_ended};
    char op[16];
    char *error = NULL;
    int r;
    if (request->verb == ENGINE_RECOVER || request->verb == ENGINE_UNDO) {
        if (!unfinished(world->told, op)) {
            world->told->end = END_NOTHING;
            return -1;
        }
        struct qpivot_recover_options recover = {.size = sizeof(recover),
                                                 .op = op,
                                                 .undo = request->verb ==
                                                         ENGINE_UNDO};
        r = qpivot_recover(child.engine, &recover, &callbacks, ret, &error);
    } else if (request->verb == ENGINE_ADOPT) {
        struct qpivot_recover_options recover = {
            .size = sizeof(recover),
            .qmp = world->addresses[request->asked],
            .from_qemu = 1};
        r = qpivot_recover(child.engine, &recover, &callbacks, ret, &error);
    } else if (request->verb == ENGINE_LOOK || request->verb == ENGINE_FIX) {
        struct qpivot_doctor_options doctor = {
            .size = sizeof(doctor),
            .qmp = world->addresses[request->asked],
            .op = request->fixed,
            .fix = request->verb == ENGINE_FIX};
        r = qpivot_doctor(child.engine, &doctor, &callbacks, ret, &error);
    } else if (world->dst_vm != NULL) {
        r = qpivot_migrate(child.engine, &request->migrate, &callbacks, ret,
                           &error);
    } else {
        r = qpivot_move(child.engine, &request->move, &callbacks, ret, &error);
    }
    if (r < 0) {
        world->told->end = END_ERROR;
        (void)snprintf(world->told->why, sizeof(world->told->why), "%s",
                       error != NULL ? error : "");
        qpivot_free(error);
    }
    return r;
}

static void close_all_but(int fd)
{
    (void)syscall(SYS_close_range, 3U, (unsigned)fd - 1, 0U);
    (void)syscall(SYS_close_range, (unsigned)fd + 1, ~0U, 0U);
}

void engine_child(struct world *world, const struct engine_request *request,
                  int control)
{
    uv_loop_t loop;
    char op[16];
    close_all_but(control);
    child.world = world;
    child.control = control;
    child.request = request;
    child.now_ns = UINT64_C(1000000000);
    child.active = true;
    struct qpivot_engine_options engine = {
        .size = sizeof(engine), .loop = &loop, .state_dir = world->dir};
    if (uv_loop_init(&loop) < 0 ||
        qpivot_engine_new(&engine, &child.engine, NULL) < 0) {
        world->told->end = END_ERROR;
        _exit(0);
    }
    child.ended = start(world) < 0;
    while (!child.ended) {
        turn(&loop);
    }
    while (!journal_is_idle(engine_journal(child.engine))) {
        turn(&loop);
    }
    if (child.dying) {
        die();
    }
    (void)unfinished(world->told, op);
    qpivot_engine_close(child.engine, on_closed, NULL);
    while (!child.closed) {
        turn(&loop);
    }
    _exit(0);
}
