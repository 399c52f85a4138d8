/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A monitor for looking: the public face of one QMP connection. It claims
 * nothing and changes nothing but by the commands that it is given.
 */
#include <errno.h>

#include "api.h"
#include "base/err.h"
#include "engine.h"
#include "monitor.h"
#include "qmp/qmp.h"
#include "vm/graph.h"
#include "vm/vm.h"

struct qpivot_monitor {
    struct qpivot_engine *engine;
    struct qpivot_monitor_callbacks cb;
    struct vm *vm;
    struct list_node asks;
    bool opened;
    uv_idle_t idle;
};

static void monitor_on_vm(void *data, enum vm_state state,
                          const struct err *err);
static void monitor_on_event(void *data, const char *name, const json_t *event);
static void monitor_on_closed(void *data);
static void monitor_on_freed(uv_handle_t *handle);
static void monitor_on_idle(uv_idle_t *idle);
static void ask_on_reply(void *data, const struct err *err, json_t *result);
static void ask_on_graph(void *data, const struct err *err,
                         const struct graph *graph);

int qpivot_monitor_open(struct qpivot_engine *engine, const char *qmp,
                        const struct qpivot_monitor_callbacks *cb,
                        struct qpivot_monitor **ret, char **ret_error)
{
    _cleanup_err_ struct err *err = NULL;
    struct qmp_addr *addr = NULL;
    if (engine == NULL || qmp == NULL || cb == NULL || ret == NULL ||
        cb->opened == NULL) {
        return -EINVAL;
    }
    int r = qmp_addr_parse(qmp, &addr, &err);
    if (r < 0) {
        return api_error(err, r, ret_error);
    }
    struct qpivot_monitor *monitor = calloc(1, sizeof(*monitor));
    if (monitor == NULL) {
        qmp_addr_free(addr);
        return -ENOMEM;
    }
    monitor->engine = engine;
    monitor->cb = *cb;
    list_init(&monitor->asks);
    struct vm_options options = {.loop = engine_loop(engine),
                                 .addr = addr,
                                 .trace = engine_trace(engine),
                                 .reconnect_for_ms = 1};
    struct vm_owner owner = {
        .data = monitor, .changed = monitor_on_vm, .event = monitor_on_event};
    r = vm_open(&options, &owner, &monitor->vm, &err);
    qmp_addr_free(addr);
    if (r < 0) {
        free(monitor);
        return api_error(err, r, ret_error);
    }
    (void)uv_idle_init(engine_loop(engine), &monitor->idle);
    monitor->idle.data = monitor;
    engine_hold(engine);
    *ret = monitor;
    return 0;
}

void qpivot_monitor_close(struct qpivot_monitor *monitor)
{
    _cleanup_err_ struct err *err = NULL;
    if (monitor == NULL) {
        return;
    }
    monitor->cb = (struct qpivot_monitor_callbacks){0};
    (void)err_set(&err, -ECANCELED, vm_name(monitor->vm),
                  "the monitor is closed");
    while (!list_empty(&monitor->asks)) {
        struct ask *ask = container_of(monitor->asks.next, struct ask, node);
        if (ask->call != NULL) {
            qmp_call_cancel(ask->call);
        }
        if (ask->query != NULL) {
            vm_query_cancel(ask->query);
        }
        ask_end(ask, err, NULL);
    }
    vm_close(monitor->vm, monitor_on_closed, monitor);
}

int qpivot_monitor_execute(struct qpivot_monitor *monitor, const char *command,
                           const char *arguments, unsigned timeout_ms,
                           qpivot_reply_fn *reply, void *data, char **ret_error)
{
    _cleanup_err_ struct err *err = NULL;
    json_auto_t *args = NULL;
    struct ask *ask = NULL;
    if (monitor == NULL || command == NULL || reply == NULL) {
        return -EINVAL;
    }
    if (arguments != NULL) {
        json_error_t error;
        args = json_loads(arguments, JSON_REJECT_DUPLICATES, &error);
        if (!json_is_object(args)) {
            int r = err_set(&err, -EINVAL, command,
                            "arguments are no JSON object: %s", error.text);
            return api_error(err, r, ret_error);
        }
    }
    struct qmp *qmp = vm_qmp(monitor->vm);
    if (qmp == NULL) {
        int r = err_set(&err, -ENOTCONN, vm_name(monitor->vm),
                        "the monitor is not open");
        return api_error(err, r, ret_error);
    }
    int r = ask_new(monitor, reply, data, &ask);
    if (r == 0) {
        struct qmp_call_options options = {.timeout_ms = timeout_ms};
        r = qmp_execute(qmp, command, args, &options, ask_on_reply, ask,
                        &ask->call);
        if (r < 0) {
            ask_drop(ask);
        }
    }
    if (r < 0) {
        (void)err_set(&err, r, command, "cannot be sent");
    }
    return api_error(err, r, ret_error);
}

int qpivot_monitor_names(struct qpivot_monitor *monitor, const char *command,
                         qpivot_reply_fn *reply, void *data)
{
    struct ask *ask = NULL;
    if (monitor == NULL || reply == NULL) {
        return -EINVAL;
    }
    if (vm_schema(monitor->vm) == NULL) {
        return -ENOTCONN;
    }
    int r = ask_new(monitor, reply, data, &ask);
    if (r == 0) {
        /* Known already, but a callback never comes from inside. */
        ask->names = qmp_schema_names(vm_schema(monitor->vm), command);
        (void)uv_idle_start(&monitor->idle, monitor_on_idle);
    }
    return r;
}

int qpivot_monitor_graph(struct qpivot_monitor *monitor, qpivot_reply_fn *reply,
                         void *data)
{
    struct ask *ask = NULL;
    if (monitor == NULL || reply == NULL) {
        return -EINVAL;
    }
    int r = ask_new(monitor, reply, data, &ask);
    if (r == 0) {
        r = vm_graph(monitor->vm, ask_on_graph, ask, &ask->query);
        if (r < 0) {
            ask_drop(ask);
        }
    }
    return r;
}

static void monitor_on_vm(void *data, enum vm_state state,
                          const struct err *err)
{
    struct qpivot_monitor *monitor = data;
    struct qpivot_monitor_callbacks cb = monitor->cb;
    _cleanup_free_ char *text = err != NULL ? api_text(err) : NULL;
    if (!monitor->opened) {
        monitor->opened = true;
        cb.opened(cb.data, state == VM_UP ? NULL : text != NULL ? text : "{}");
    } else if (state != VM_UP && state != VM_LOST && cb.lost != NULL) {
        cb.lost(cb.data, text != NULL ? text : "{}");
    }
}

static void monitor_on_event(void *data, const char *name, const json_t *event)
{
    struct qpivot_monitor *monitor = data;
    (void)name;
    if (monitor->cb.event != NULL) {
        _cleanup_free_ char *text = json_dumps(event, JSON_COMPACT);
        if (text != NULL) {
            monitor->cb.event(monitor->cb.data, text);
        }
    }
}

static void monitor_on_idle(uv_idle_t *idle)
{
    struct qpivot_monitor *monitor = idle->data;
    (void)uv_idle_stop(idle);
    list_foreach(it, &monitor->asks) {
        struct ask *ask = container_of(it, struct ask, node);
        if (ask->names != NULL) {
            (void)uv_idle_start(idle, monitor_on_idle); /* for the next */
            ask_end(ask, NULL, ask->names);
            return;
        }
    }
}

static void monitor_on_closed(void *data)
{
    struct qpivot_monitor *monitor = data;
    uv_close((uv_handle_t *)&monitor->idle, monitor_on_freed);
}

static void monitor_on_freed(uv_handle_t *handle)
{
    struct qpivot_monitor *monitor = handle->data;
    struct qpivot_engine *engine = monitor->engine;
    free(monitor);
    engine_release(engine);
}

struct vm *monitor_vm(const struct qpivot_monitor *monitor)
{
    return monitor->vm;
}

int ask_new(struct qpivot_monitor *monitor, qpivot_reply_fn *reply, void *data,
            struct ask **ret)
{
    struct ask *ask = calloc(1, sizeof(*ask));
    if (ask == NULL) {
        return -ENOMEM;
    }
    ask->monitor = monitor;
    ask->reply = reply;
    ask->data = data;
    list_append(&monitor->asks, &ask->node);
    *ret = ask;
    return 0;
}

void ask_drop(struct ask *ask)
{
    list_remove(&ask->node);
    json_decref(ask->names);
    if (ask->free_more != NULL) {
        ask->free_more(ask->more);
    }
    free(ask);
}

void ask_end(struct ask *ask, const struct err *err, const json_t *result)
{
    _cleanup_free_ char *error = err != NULL ? api_text(err) : NULL;
    _cleanup_free_ char *text =
        result != NULL ? json_dumps(result, JSON_COMPACT | JSON_ENCODE_ANY)
                       : NULL;
    qpivot_reply_fn *reply = ask->reply;
    void *data = ask->data;
    ask_drop(ask);
    if (error == NULL && text == NULL) {
        reply(data, "{\"class\":\"ENOMEM\",\"desc\":\"out of memory\"}", NULL);
    } else {
        reply(data, error, error == NULL ? text : NULL);
    }
}

static void ask_on_reply(void *data, const struct err *err, json_t *result)
{
    struct ask *ask = data;
    ask->call = NULL;
    ask_end(ask, err, result);
}

static void ask_on_graph(void *data, const struct err *err,
                         const struct graph *graph)
{
    struct ask *ask = data;
    json_auto_t *json = graph != NULL ? graph_to_json(graph) : NULL;
    ask->query = NULL;
    ask_end(ask, err, json);
}
