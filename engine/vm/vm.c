/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "vm/vm.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/err.h"
#include "base/proc.h"
#include "base/str.h"
#include "qmp/qmp.h"
#include "vm/graph.h"
#include "vm/names.h"
#include "vm/query.h"
#include "vm/schema-cache.h"

enum {
    REFRESH_MS = 250,
    RECONNECT_FOR_MS = 30000,
    RECONNECT_MIN_MS = 50,
    RECONNECT_MAX_MS = 2000,
    QUERY_TIMEOUT_MS = 30000,
    YANK_TIMEOUT_MS = 5000,
    BAD_MAX = 120, /* refreshes without a usable answer */
};

struct vm {
    uv_loop_t *loop;
    struct vm_owner owner;
    struct vm_options options;
    struct qmp_addr *addr;
    struct qmp *qmp; /* also while it is being opened */
    struct qmp_schema *schema;
    enum vm_state state;
    uv_timer_t timer;    /* refresh while UP, the next try while LOST */
    uint64_t lost_at_ms; /* loop time */
    unsigned backoff_ms;
    struct vm_process process;
    bool owns_stream;
    json_t *yanked; /* names, or NULL: ours */
    char *cache_dir;
    struct list_node waits;
    struct vm_query *refresh;
    unsigned n_bad;  /* refreshes in a row that said nothing */
    unsigned n_open; /* the timer, and connections being closed */
    bool again;      /* a job event came while a refresh was under way */
    void (*closed)(void *data);
    void *closed_data;
};

static int vm_connect(struct vm *vm, struct err **errp);
static void vm_set_state(struct vm *vm, enum vm_state state,
                         const struct err *err);
static void vm_on_open(void *data, const struct err *err);
static void vm_on_schema(void *data, const struct err *err, json_t *result);
static int vm_take_schema(struct vm *vm, const json_t *reply,
                          struct err **errp);
static void vm_is_up(struct vm *vm);
static void vm_on_lost(void *data, const struct err *err);
static void vm_on_stalled(void *data, const char *command);
static void vm_on_event(void *data, const char *name, const json_t *event);
static void vm_on_timer(uv_timer_t *timer);
static void vm_drop(struct vm *vm, const struct err *err);
static bool vm_is_dead(const struct vm *vm);
static bool process_is_qemu(uint64_t pid);
static void vm_refresh(struct vm *vm);
static void vm_on_refresh(void *data, const struct err *err,
                          json_t *const *replies);
static void vm_on_yank_list(void *data, const struct err *err, json_t *result);
static void vm_close_qmp(struct vm *vm, struct qmp *qmp);
static void vm_on_timer_closed(uv_handle_t *handle);
static void vm_on_part_closed(void *data);

int vm_open(const struct vm_options *options, const struct vm_owner *owner,
            struct vm **ret, struct err **errp)
{
    struct vm *vm = calloc(1, sizeof(*vm));
    if (vm == NULL) {
        return err_set(errp, -ENOMEM, NULL, "out of memory");
    }
    vm->loop = options->loop;
    vm->owner = *owner;
    vm->options = *options;
    vm->process = options->process;
    vm->cache_dir =
        options->cache_dir != NULL ? strdup(options->cache_dir) : NULL;
    list_init(&vm->waits);
    vm->addr = qmp_addr_copy(options->addr);
    if (vm->addr == NULL) {
        free(vm);
        return err_set(errp, -ENOMEM, NULL, "out of memory");
    }
    (void)uv_timer_init(vm->loop, &vm->timer);
    vm->timer.data = vm;
    vm->n_open = 1;
    int r = vm_connect(vm, errp);
    if (r < 0) {
        vm_close(vm, NULL, NULL);
        return r;
    }
    *ret = vm;
    return 0;
}

void vm_close(struct vm *vm, void (*closed)(void *data), void *data)
{
    vm->owner = (struct vm_owner){0};
    vm->state = VM_CLOSED;
    vm->closed = closed;
    vm->closed_data = data;
    if (vm->refresh != NULL) {
        vm_query_cancel(vm->refresh);
        vm->refresh = NULL;
    }
    if (vm->qmp != NULL) {
        struct qmp *qmp = TAKE_PTR(vm->qmp);
        vm_close_qmp(vm, qmp);
    }
    uv_close((uv_handle_t *)&vm->timer, vm_on_timer_closed);
}

enum vm_state vm_state(const struct vm *vm)
{
    return vm->state;
}

struct qmp *vm_qmp(struct vm *vm)
{
    return vm->state == VM_UP ? vm->qmp : NULL;
}

const struct qmp_schema *vm_schema(const struct vm *vm)
{
    return vm->schema;
}

const char *vm_name(const struct vm *vm)
{
    return qmp_addr_text(vm->addr);
}

uv_loop_t *vm_loop(const struct vm *vm)
{
    return vm->loop;
}

bool vm_process_lives(struct vm_process process)
{
    return process.pid != 0 && process.start != 0 &&
           proc_start(process.pid) == process.start;
}

struct vm_process vm_process(const struct vm *vm)
{
    return vm->process;
}

int vm_no_shutdown(const struct vm *vm)
{
    enum { ARGS_MAX = 65536 };

    char path[64];
    _cleanup_free_ char *args = malloc(ARGS_MAX);
    if (vm->process.pid == 0 || args == NULL) {
        return -1;
    }
    (void)snprintf(path, sizeof(path), "/proc/%" PRIu64 "/cmdline",
                   vm->process.pid);
    _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd >= 0 ? read(fd, args, ARGS_MAX - 1) : -1;
    if (n <= 0 || n == ARGS_MAX - 1) {
        return -1;
    }
    args[n] = '\0';
    const char *last = "";
    for (const char *arg = args; arg < args + n; arg += strlen(arg) + 1) {
        bool action = str_eq(last, "-action") || str_eq(last, "--action");
        if (str_eq(arg, "-no-shutdown") || str_eq(arg, "--no-shutdown") ||
            (action && strstr(arg, "shutdown=pause") != NULL)) {
            return 1;
        }
        last = arg;
    }
    return 0;
}

void vm_wait_start(struct vm *vm, struct vm_wait *wait)
{
    list_append(&vm->waits, &wait->node);
    if (vm->state == VM_UP) {
        vm_refresh(vm);
        (void)uv_timer_start(&vm->timer, vm_on_timer, REFRESH_MS, REFRESH_MS);
    }
}

void vm_wait_stop(struct vm_wait *wait)
{
    list_remove(&wait->node);
}

static int vm_connect(struct vm *vm, struct err **errp)
{
    struct qmp_options options = {.loop = vm->loop,
                                  .addr = vm->addr,
                                  .trace = vm->options.trace,
                                  .watchdog_ms = vm->options.watchdog_ms};
    struct qmp_owner owner = {
        .data = vm, .lost = vm_on_lost, .stalled = vm_on_stalled};
    return qmp_open(&options, &owner, vm_on_open, vm, &vm->qmp, errp);
}

static void vm_set_state(struct vm *vm, enum vm_state state,
                         const struct err *err)
{
    /* OPENING -> UP | UNKNOWN; UP -> LOST | GONE; LOST -> UP | GONE | UNKNOWN */
    assert(vm->state != VM_CLOSED && vm->state != VM_GONE);
    vm->state = state;
    if (vm->owner.changed != NULL) {
        vm->owner.changed(vm->owner.data, state, err);
    }
}

static void vm_on_open(void *data, const struct err *err)
{
    struct vm *vm = data;
    int r = 0;
    _cleanup_err_ struct err *error = NULL;
    if (err == NULL) {
        uint64_t pid = (uint64_t)qmp_peer_pid(vm->qmp);
        pid = process_is_qemu(pid) ? pid : 0;
        vm->process = (struct vm_process){pid, proc_start(pid)};
        struct qmp_sub *sub;
        r = qmp_subscribe(vm->qmp, NULL, vm_on_event, vm, &sub);
    }
    json_auto_t *known =
        err == NULL && r == 0
            ? schema_cache_load(vm->cache_dir, qmp_version(vm->qmp))
            : NULL;
    if (known != NULL && vm_take_schema(vm, known, NULL) == 0) {
        vm_is_up(vm);
        return;
    }
    if (err == NULL && r == 0) {
        struct qmp_call_options options = {.timeout_ms = QUERY_TIMEOUT_MS};
        r = qmp_execute(vm->qmp, "query-qmp-schema", NULL, &options,
                        vm_on_schema, vm, NULL);
    }
    if (r < 0) {
        (void)err_set(&error, r, vm_name(vm), "cannot be queried");
        err = error;
    }
    if (err != NULL) {
        vm_drop(vm, err);
    }
}

static void vm_on_schema(void *data, const struct err *err, json_t *result)
{
    struct vm *vm = data;
    _cleanup_err_ struct err *error = NULL;
    if (vm->state == VM_CLOSED) {
        return;
    }
    if (err == NULL && vm_take_schema(vm, result, &error) < 0) {
        err = error;
    }
    if (err != NULL) {
        vm_drop(vm, err);
        return;
    }
    schema_cache_store(vm->cache_dir, qmp_version(vm->qmp), result);
    vm_is_up(vm);
}

static int vm_take_schema(struct vm *vm, const json_t *reply, struct err **errp)
{
    struct qmp_schema *schema = NULL;
    int r = qmp_schema_new(reply, &schema, errp);
    if (r == 0) {
        qmp_schema_free(vm->schema);
        vm->schema = schema;
    }
    return r;
}

static void vm_is_up(struct vm *vm)
{
    vm->backoff_ms = 0;
    vm->lost_at_ms = 0;
    vm_set_state(vm, VM_UP, NULL);
    if (vm->state == VM_UP && !list_empty(&vm->waits)) {
        vm_refresh(vm);
        (void)uv_timer_start(&vm->timer, vm_on_timer, REFRESH_MS, REFRESH_MS);
    }
}

static void vm_on_lost(void *data, const struct err *err)
{
    vm_drop(data, err);
}

/*
 * A connection failed or broke. The first one is not tried again: a user who
 * mistyped a path wants to hear of it now.
 */
static void vm_drop(struct vm *vm, const struct err *err)
{
    if (vm->state == VM_CLOSED || vm->qmp == NULL) {
        return;
    }
    struct qmp *qmp = TAKE_PTR(vm->qmp);
    (void)uv_timer_stop(&vm->timer);
    if (vm->refresh != NULL) {
        vm_query_cancel(vm->refresh);
        vm->refresh = NULL;
    }
    vm_close_qmp(vm, qmp);
    if (vm->state == VM_OPENING && !vm_is_dead(vm)) {
        vm_set_state(vm, VM_UNKNOWN, err);
        return;
    }
    if (vm_is_dead(vm)) {
        vm_set_state(vm, VM_GONE, err);
        return;
    }
    uint64_t now = uv_now(vm->loop);
    unsigned limit = vm->options.reconnect_for_ms != 0
                         ? vm->options.reconnect_for_ms
                         : RECONNECT_FOR_MS;
    vm->lost_at_ms = vm->lost_at_ms != 0 ? vm->lost_at_ms : now;
    if (now - vm->lost_at_ms >= limit) {
        vm_set_state(vm, VM_UNKNOWN, err);
        return;
    }
    vm->backoff_ms = vm->backoff_ms == 0 ? RECONNECT_MIN_MS
                     : vm->backoff_ms * 2 < RECONNECT_MAX_MS
                         ? vm->backoff_ms * 2
                         : RECONNECT_MAX_MS;
    (void)uv_timer_start(&vm->timer, vm_on_timer, vm->backoff_ms, 0);
    if (vm->state == VM_UP) {
        vm_set_state(vm, VM_LOST, err);
    }
}

/*
 * Only what proves death counts: QEMU's own process is no more. A socket
 * that nobody listens on, or that is gone, may be another's doing.
 */
static bool vm_is_dead(const struct vm *vm)
{
    return vm->process.pid != 0 && vm->process.start != 0 &&
           proc_start(vm->process.pid) != vm->process.start;
}

/*
 * The peer of a unix socket may be a relay, or whoever opened it for QEMU:
 * its end would prove nothing, its command line tells nothing.
 */
static bool process_is_qemu(uint64_t pid)
{
    char path[64], name[32] = "";
    (void)snprintf(path, sizeof(path), "/proc/%" PRIu64 "/comm", pid);
    _cleanup_close_ int fd = pid != 0 ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0 || read(fd, name, sizeof(name) - 1) <= 0) {
        return false;
    }
    return str_starts(name, "qemu") || str_starts(name, "kvm");
}

static void vm_on_timer(uv_timer_t *timer)
{
    struct vm *vm = timer->data;
    _cleanup_err_ struct err *err = NULL;
    if (vm->state == VM_UP) {
        if (list_empty(&vm->waits)) {
            (void)uv_timer_stop(timer);
        } else {
            vm_refresh(vm);
        }
    } else if (vm->state == VM_LOST && vm->qmp == NULL &&
               vm_connect(vm, &err) < 0) {
        vm_set_state(vm, VM_UNKNOWN, err);
    }
}

static void vm_on_event(void *data, const char *name, const json_t *event)
{
    struct vm *vm = data;
    if (vm->state != VM_UP) {
        return;
    }
    if ((str_starts(name, "JOB_") || str_starts(name, "BLOCK_JOB_")) &&
        !list_empty(&vm->waits)) {
        vm_refresh(vm);
    }
    if (vm->owner.event != NULL) {
        vm->owner.event(vm->owner.data, name, event);
    }
}

static void vm_refresh(struct vm *vm)
{
    static const char *const commands[] = {"query-jobs", "query-block-jobs"};
    if (vm->refresh != NULL) {
        vm->again = true;
        return;
    }
    vm->again = false;
    (void)vm_query_start(vm, commands, ARRAY_SIZE(commands), vm_on_refresh, vm,
                         &vm->refresh);
}

/* A fresh connection may help; where it did not, nothing will. */
static void vm_on_nonsense(struct vm *vm, const struct err *err)
{
    bool again = vm->n_bad > BAD_MAX;
    vm_drop(vm, err);
    if (again && vm->state == VM_LOST) {
        (void)uv_timer_stop(&vm->timer);
        vm_set_state(vm, VM_UNKNOWN, err);
    }
}

static void vm_on_refresh(void *data, const struct err *err,
                          json_t *const *replies)
{
    struct vm *vm = data;
    struct job_list list = {0};
    vm->refresh = NULL;
    _cleanup_err_ struct err *bad = NULL;
    if (vm->state != VM_UP) {
        return;
    }
    if (err != NULL || job_list_init(&list, replies[0], replies[1], &bad) < 0) {
        /* The next tick asks again, but not for ever. */
        if (++vm->n_bad >= BAD_MAX) {
            vm_on_nonsense(vm, err != NULL ? err : bad);
        }
        return;
    }
    vm->n_bad = 0;
    /*
     * A waiter may stop itself, others, or close the vm: each round takes the
     * first that has not been called yet, found by moving it to the end.
     */
    struct list_node called;
    list_init(&called);
    while (vm->state == VM_UP && !list_empty(&vm->waits)) {
        struct list_node *node = vm->waits.next;
        list_remove(node);
        list_append(&called, node);
        struct vm_wait *wait = container_of(node, struct vm_wait, node);
        wait->fn(wait, &list);
    }
    while (!list_empty(&called)) {
        struct list_node *node = called.next;
        list_remove(node);
        list_append(&vm->waits, node);
    }
    job_list_done(&list);
    if (vm->state == VM_UP && vm->again) {
        vm_refresh(vm);
    }
}

/*
 * An in-band command hangs: QEMU's main loop waits, most often for an NBD
 * server that is stalled, not dead. Only out-of-band commands are answered
 * now; yank shuts the connections of our own NBD nodes, their jobs fail with
 * EIO and the guest goes on (docs: yank in qapi/yank.json).
 */
static void vm_on_stalled(void *data, const char *command)
{
    struct vm *vm = data;
    if (vm->state != VM_UP) {
        return;
    }
    if (vm->owner.warning != NULL) {
        _cleanup_free_ char *message =
            str_printf("QEMU does not answer '%s'", command);
        vm->owner.warning(vm->owner.data, message);
    }
    vm_cut(vm);
}

void vm_cut(struct vm *vm)
{
    vm_yank(vm);
    if (vm->owner.stalled != NULL) {
        vm->owner.stalled(vm->owner.data);
    }
}

void vm_reconnect(struct vm *vm)
{
    _cleanup_err_ struct err *err = NULL;
    (void)err_set(&err, -ECONNABORTED, vm_name(vm), "let go");
    if (vm->state == VM_UP) {
        vm_drop(vm, err);
    }
}

void vm_yank(struct vm *vm)
{
    if (vm->state == VM_UP && qmp_has_oob(vm->qmp)) {
        struct qmp_call_options options = {.oob = true,
                                           .timeout_ms = YANK_TIMEOUT_MS};
        (void)qmp_execute(vm->qmp, "query-yank", NULL, &options,
                          vm_on_yank_list, vm, NULL);
    }
}

void vm_yank_only(struct vm *vm, const json_t *names)
{
    json_decref(vm->yanked);
    vm->yanked = names != NULL ? json_deep_copy(names) : NULL;
}

/* Whether the node may be cut off, so that QEMU and the guest go on. */
static bool may_yank(const struct vm *vm, const char *node)
{
    size_t i;
    json_t *name;
    json_array_foreach(vm->yanked, i, name) {
        if (str_eq(json_string_value(name), node)) {
            return true;
        }
    }
    return vm->yanked == NULL && name_is_ours(node);
}

void vm_own_stream(struct vm *vm, bool ours)
{
    vm->owns_stream = ours;
}

static void vm_on_yank_list(void *data, const struct err *err, json_t *result)
{
    struct vm *vm = data;
    json_auto_t *ours = json_array();
    size_t i;
    json_t *instance;
    if (err != NULL || vm->state != VM_UP) {
        return;
    }
    json_array_foreach(result, i, instance) {
        const char *node =
            json_string_value(json_object_get(instance, "node-name"));
        const char *type = json_string_value(json_object_get(instance, "type"));
        if ((node != NULL && may_yank(vm, node)) ||
            (vm->owns_stream && str_eq(type, "migration"))) {
            (void)json_array_append(ours, instance);
        }
    }
    if (json_array_size(ours) == 0) {
        return;
    }
    if (vm->owner.warning != NULL) {
        vm->owner.warning(vm->owner.data,
                          "cutting the connections of this operation, so that"
                          " QEMU and the guest go on");
    }
    struct qmp_call_options options = {.oob = true,
                                       .timeout_ms = YANK_TIMEOUT_MS};
    json_auto_t *args = json_pack("{s:O}", "instances", ours);
    if (vm->state == VM_UP) {
        (void)qmp_execute(vm->qmp, "yank", args, &options, NULL, NULL, NULL);
    }
}

/* An ssh or exec child takes its time to end: the vm lives until then. */
static void vm_close_qmp(struct vm *vm, struct qmp *qmp)
{
    vm->n_open++;
    qmp_close(qmp, vm_on_part_closed, vm);
}

static void vm_on_timer_closed(uv_handle_t *handle)
{
    vm_on_part_closed(handle->data);
}

static void vm_on_part_closed(void *data)
{
    struct vm *vm = data;
    if (--vm->n_open > 0) {
        return;
    }
    void (*closed)(void *data) = vm->closed;
    void *closed_data = vm->closed_data;
    qmp_schema_free(vm->schema);
    qmp_addr_free(vm->addr);
    json_decref(vm->yanked);
    free(vm->cache_dir);
    free(vm);
    if (closed != NULL) {
        closed(closed_data);
    }
}
