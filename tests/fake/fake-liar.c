/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "fake/fake-liar.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/str.h"
#include "base/worker.h"
#include "fake/fake-qmp.h"
#include "fake/fake-vm.h"
#include "qpivot.h"

enum {
    LIES_MAX = 64,
    WORKS_MAX = 64,
    TURNS_MAX = 20000,
    COMMANDS_MAX = 2000,
};

static const uint64_t LET_GO_NS = UINT64_C(600000000000);
static const uint64_t MS = 1000000;

struct lie {
    const char *line; /* not terminated: up to the blank */
    size_t n_key;
    bool event;
    json_t *json;
};

struct deferred {
    uv_work_t *work;
    uv_after_work_cb after;
    struct worker *worker; /* instead */
};

/* A thread that has done its work at once. */
struct worker {
    const struct worker_ops *ops;
    void *data;
    bool left;
};

static struct {
    bool active; /* the clock and the pool are ours */
    uint64_t now_ns;
    struct deferred works[WORKS_MAX];
    unsigned n_works;
    uv_loop_t loop;
    struct fake_vm *vm, *dst; /* dst: of a migration, else NULL */
    struct fake_qmp *qmp, *dst_qmp;
    struct lie lies[LIES_MAX];
    unsigned n_lies;
    unsigned n_commands;
    bool ended, closed;
    int outcome;
} liar;

static struct store *store; /* one for all runs */

int __real_uv_queue_work(uv_loop_t *loop, uv_work_t *req, uv_work_cb work,
                         uv_after_work_cb after);
int __wrap_uv_queue_work(uv_loop_t *loop, uv_work_t *req, uv_work_cb work,
                         uv_after_work_cb after);
int __wrap_worker_start(uv_loop_t *loop, const struct worker_ops *ops,
                        void *data, struct worker **ret);
void __wrap_worker_leave(struct worker *worker);
int __real_uv_cancel(uv_req_t *req);
int __wrap_uv_cancel(uv_req_t *req);

/* --- in front of libc and libuv --- */

int clock_gettime(clockid_t clock, struct timespec *ts)
{
    if (!liar.active || clock == CLOCK_REALTIME) {
        return (int)syscall(SYS_clock_gettime, clock, ts);
    }
    ts->tv_sec = (time_t)(liar.now_ns / 1000000000);
    ts->tv_nsec = (long)(liar.now_ns % 1000000000);
    return 0;
}

int __wrap_uv_queue_work(uv_loop_t *loop, uv_work_t *req, uv_work_cb work,
                         uv_after_work_cb after)
{
    if (!liar.active) {
        return __real_uv_queue_work(loop, req, work, after);
    }
    if (liar.n_works == WORKS_MAX) {
        abort();
    }
    work(req);
    liar.works[liar.n_works++] = (struct deferred){req, after, NULL};
    return 0;
}

int __wrap_worker_start(uv_loop_t *loop, const struct worker_ops *ops,
                        void *data, struct worker **ret)
{
    struct worker *worker = calloc(1, sizeof(*worker));
    (void)loop;
    if (worker == NULL || liar.n_works == WORKS_MAX) {
        abort();
    }
    *worker = (struct worker){ops, data, false};
    *ret = worker;
    ops->run(data);
    liar.works[liar.n_works++] = (struct deferred){NULL, NULL, worker};
    return 0;
}

void __wrap_worker_leave(struct worker *worker)
{
    worker->left = true;
}

int __wrap_uv_cancel(uv_req_t *req)
{
    return liar.active ? UV_EBUSY : __real_uv_cancel(req);
}

/* --- lying --- */

static void read_lies(const char *text, size_t size)
{
    const char *end = text + size;
    while (text < end && liar.n_lies < LIES_MAX) {
        const char *eol = memchr(text, '\n', (size_t)(end - text));
        eol = eol != NULL ? eol : end;
        const char *blank = memchr(text, ' ', (size_t)(eol - text));
        json_t *json = blank != NULL
                           ? json_loadb(blank, (size_t)(eol - blank),
                                        JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL)
                           : NULL;
        if (json != NULL) {
            struct lie *lie = &liar.lies[liar.n_lies++];
            lie->event = *text == '!';
            lie->line = text + lie->event;
            lie->n_key = (size_t)(blank - lie->line);
            lie->json = json;
        }
        text = eol < end ? eol + 1 : end;
    }
}

static bool is_meant(const struct lie *lie, const char *key)
{
    return strlen(key) == lie->n_key && memcmp(lie->line, key, lie->n_key) == 0;
}

/* The reply as the fake QMP has them. */
static json_t *reply_of(const struct lie *lie)
{
    const json_t *error = json_object_get(lie->json, "error");
    const char *class = json_string_value(json_object_get(error, "class"));
    const char *desc = json_string_value(json_object_get(error, "desc"));
    return class != NULL && desc != NULL ? fake_qmp_error(class, desc)
                                         : json_deep_copy(lie->json);
}

static json_t *answer(void *data, const char *command, const json_t *args)
{
    struct fake_vm *vm = data;
    char number[16];
    (void)snprintf(number, sizeof(number), "%u", liar.n_commands++);
    /* It is done all the same: only what is told differs. */
    json_t *honest = fake_vm_answer(vm, command, args);
    for (unsigned i = 0; i < liar.n_lies; i++) {
        const struct lie *lie = &liar.lies[i];
        if (lie->event && is_meant(lie, number)) {
            char *text = json_dumps(lie->json, JSON_ENCODE_ANY);
            fake_qmp_raw(vm->qmp, text, strlen(text));
            free(text);
        } else if (!lie->event &&
                   (is_meant(lie, number) || is_meant(lie, command))) {
            json_decref(honest);
            honest = reply_of(lie);
        }
    }
    return honest;
}

/* --- the loop --- */

static void run_deferred(void)
{
    struct deferred works[WORKS_MAX];
    unsigned n = liar.n_works;
    memcpy(works, liar.works, sizeof(works));
    liar.n_works = 0;
    for (unsigned i = 0; i < n; i++) {
        struct worker *worker = works[i].worker;
        if (worker == NULL) {
            works[i].after(works[i].work, 0);
            continue;
        }
        (worker->left ? worker->ops->gone : worker->ops->ended)(worker->data);
        free(worker);
    }
}

/* Time goes on to the next timer when there is nothing else to do. */
static void bury(void);

static void turn(void)
{
    struct pollfd ready = {.fd = uv_backend_fd(&liar.loop), .events = POLLIN};
    (void)uv_run(&liar.loop, UV_RUN_NOWAIT);
    bury();
    run_deferred();
    (void)uv_run(&liar.loop, UV_RUN_NOWAIT);
    int wait_ms = uv_backend_timeout(&liar.loop);
    if (liar.n_works == 0 && wait_ms != 0 && poll(&ready, 1, 0) == 0) {
        liar.now_ns += (uint64_t)(wait_ms > 0 ? wait_ms : 1000) * MS;
    }
}

static void on_event(void *data, const char *json)
{
    (void)data;
    if (secure_getenv("LIAR_VERBOSE") != NULL) {
        (void)fprintf(stderr, "%s\n", json);
    }
}

static void on_ended(void *data, enum qpivot_outcome outcome)
{
    (void)data;
    liar.ended = true;
    liar.outcome = (int)outcome;
}

static void on_closed(void *data)
{
    (void)data;
    liar.closed = true;
}

/* --- one run --- */

static void begin(void)
{
    memset(&liar, 0, sizeof(liar));
    liar.now_ns = UINT64_C(1000000000);
    liar.active = true;
    if (store == NULL) {
        store = store_new();
        store_register(store);
    }
    store_clear(store);
    liar.vm = fake_vm_new(store);
    store_add(store, "/fake/source", 1 << 20);
    store_add(store, "/fake/foreign", 1 << 20);
    fake_vm_add_disk(liar.vm, "/fake/source", false, false);
    json_auto_t *foreign =
        json_pack("{s:s, s:s, s:s}", "driver", "file", "node-name", "theirs",
                  "filename", "/fake/foreign");
    json_decref(fake_vm_answer(liar.vm, "blockdev-add", foreign));
    struct fake_qmp_options options = {
        .loop = &liar.loop, .answer = answer, .data = liar.vm};
    if (uv_loop_init(&liar.loop) < 0 || fake_qmp_new(&options, &liar.qmp) < 0) {
        abort();
    }
    liar.vm->qmp = liar.qmp;
}

/* The QEMU that waits for the guest, with a disk of its own. */
static void await(void)
{
    store_add(store, "/fake/there", 1 << 20);
    liar.dst = fake_vm_new(store);
    fake_vm_add_disk(liar.dst, "/fake/there", false, false);
    fake_vm_await(liar.dst, false);
    liar.vm->peer = liar.dst;
    liar.dst->peer = liar.vm;
    struct fake_qmp_options options = {
        .loop = &liar.loop, .answer = answer, .data = liar.dst};
    if (fake_qmp_new(&options, &liar.dst_qmp) < 0) {
        abort();
    }
    liar.dst->qmp = liar.dst_qmp;
}

/* A QEMU that was told to end, or has nothing to wait for, does. */
static void bury(void)
{
    struct fake_vm *both[] = {liar.vm, liar.dst};
    for (unsigned i = 0; i < ARRAY_SIZE(both); i++) {
        if (both[i] != NULL && both[i]->ends && !both[i]->dead) {
            fake_vm_die(both[i]);
            fake_qmp_hang_up(both[i]->qmp);
        }
    }
}

/* What a dead engine has left, for the doctor. */
static void leave(void)
{
    static const char *const lines[][2] = {
        {"object-add",
         "{\"qom-type\":\"secret\",\"id\":\"qpv-claim\",\"data\":\"k3f9x2\"}"      },
        {"blockdev-add",
         "{\"driver\":\"file\",\"node-name\":\"qpv-k3f9x2-d0-file\","
         "\"filename\":\"/fake/target\"}"                                          },
        {"blockdev-add",    "{\"driver\":\"raw\",\"node-name\":\"qpv-k3f9x2-d0\","
                         "\"file\":\"qpv-k3f9x2-d0-file\"}"},
        {"blockdev-mirror",
         "{\"job-id\":\"qpv-k3f9x2-d0-mirror\",\"device\":\"fmt0\",\"target\":"
         "\"qpv-k3f9x2-d0\",\"filter-node-name\":\"qpv-k3f9x2-d0-top\"}"           },
    };
    store_add(store, "/fake/target", 1 << 20);
    for (unsigned i = 0; i < ARRAY_SIZE(lines); i++) {
        json_auto_t *args = json_loads(lines[i][1], 0, NULL);
        json_decref(fake_vm_answer(liar.vm, lines[i][0], args));
    }
}

static int start(struct qpivot_engine *engine, const char *verb, size_t n)
{
    struct qpivot_callbacks callbacks = {.event = on_event, .ended = on_ended};
    const char *qmp = fake_qmp_address(liar.qmp);
    bool fix = n == 3 && memcmp(verb, "fix", n) == 0;
    if (fix || (n == 4 && memcmp(verb, "look", n) == 0)) {
        struct qpivot_doctor_options options = {
            .size = sizeof(options), .qmp = qmp, .op = "k3f9x2", .fix = fix};
        leave();
        return qpivot_doctor(engine, &options, &callbacks, NULL, NULL);
    }
    if (n == 7 && memcmp(verb, "migrate", n) == 0) {
        await();
        struct qpivot_disk there = {"vd0", "nbd"};
        struct qpivot_migrate_options options = {
            .size = sizeof(options),
            .qmp = qmp,
            .to = fake_qmp_address(liar.dst_qmp),
            .disks = &there,
            .n_disks = 1,
            .address = "127.0.0.1"};
        return qpivot_migrate(engine, &options, &callbacks, NULL, NULL);
    }
    struct qpivot_disk disk = {"vd0", "fake:/fake/to"};
    struct qpivot_move_options options = {
        .size = sizeof(options), .qmp = qmp, .disks = &disk, .n_disks = 1};
    options.flags = n == 4 && memcmp(verb, "plan", n) == 0 ? QPIVOT_DRY_RUN : 0;
    return qpivot_move(engine, &options, &callbacks, NULL, NULL);
}

static void judge(struct liar_verdict *ret)
{
    bool here = fake_vm_holds_guest(liar.vm);
    bool there = liar.dst != NULL && fake_vm_holds_guest(liar.dst);
    struct fake_vm *holder = there ? liar.dst : liar.vm;
    const struct store_volume *volume = fake_vm_volume(holder, 0);
    *ret = (struct liar_verdict){
        .ended = liar.ended,
        .whole = volume != NULL && fake_vm_is_whole(holder, 0),
        .once = here != there,
        .source_there = store_find(store, "/fake/source") != NULL,
        .foreign_there = store_find(store, "/fake/foreign") != NULL &&
                         fake_vm_find(liar.vm, "theirs") != FAKE_NOBODY,
        .outcome = liar.outcome,
        .n_commands = liar.n_commands,
    };
    (void)snprintf(ret->violation, sizeof(ret->violation), "%s",
                   store->violation);
}

void liar_run(const char *text, size_t size, const char *state,
              struct liar_verdict *ret)
{
    struct qpivot_engine *engine = NULL;
    begin();
    const char *eol = size > 0 ? memchr(text, '\n', size) : NULL;
    size_t n_verb = eol != NULL ? (size_t)(eol - text) : size;
    read_lies(text + n_verb, size - n_verb);
    struct qpivot_engine_options options = {
        .size = sizeof(options), .loop = &liar.loop, .state_dir = state};
    if (qpivot_engine_new(&options, &engine, NULL) < 0) {
        abort();
    }
    bool runs = start(engine, text, n_verb) == 0;
    unsigned n_turns = 0;
    while (runs && !liar.ended && ++n_turns < TURNS_MAX &&
           liar.n_commands < COMMANDS_MAX && liar.now_ns < LET_GO_NS) {
        turn();
    }
    if (secure_getenv("LIAR_VERBOSE") != NULL) {
        (void)fprintf(stderr,
                      "turns %u commands %u now %g ended %d outcome %d\n",
                      n_turns, liar.n_commands, (double)liar.now_ns / 1e9,
                      liar.ended, liar.outcome);
    }
    judge(ret);
    qpivot_engine_close(engine, on_closed, NULL);
    while (!liar.closed) {
        turn();
    }
    liar.qmp = fake_qmp_close(liar.qmp);
    if (liar.dst_qmp != NULL) {
        liar.dst_qmp = fake_qmp_close(liar.dst_qmp);
    }
    while (uv_run(&liar.loop, UV_RUN_NOWAIT) != 0) {
        turn();
    }
    if (uv_loop_close(&liar.loop) < 0) {
        abort(); /* something was left open */
    }
    fake_vm_free(liar.vm);
    fake_vm_free(liar.dst);
    for (unsigned i = 0; i < liar.n_lies; i++) {
        json_decref(liar.lies[i].json);
    }
    liar.active = false;
}
