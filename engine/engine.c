/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "engine.h"

#include <errno.h>
#include <string.h>

#include "base/err.h"
#include "base/str.h"
#include "operations/migrate.h"
#include "operations/move.h"
#include "qmp/qmp.h"
#include "request.h"
#include "run/journal.h"
#include "transfer.h"

struct qpivot_engine {
    uv_loop_t *loop;
    bool own_loop;
    struct journal *journal;
    struct list_node transfers;
    struct list_node requests;
    struct qmp_trace *trace;
    char *state_dir;
    struct op **ops;
    unsigned n_ops;
    unsigned n_held; /* monitors */
    bool closing;
    void (*closed)(void *data);
    void *closed_data;
    uv_idle_t idle; /* the end, from the loop */
};

static const struct operation *const operations[] = {&move_operation,
                                                     &migrate_operation};

static int engine_on_op_born(void *data, struct op *op);
static void engine_on_op_gone(void *data, struct op *op);
static void engine_check_end(struct qpivot_engine *engine);
static void engine_on_end(uv_idle_t *idle);
static void engine_on_closed(uv_handle_t *handle);

int engine_new(uv_loop_t *loop, const char *state_dir, const char *trace_file,
               struct qpivot_engine **ret, struct err **errp)
{
    struct qpivot_engine *engine = calloc(1, sizeof(*engine));
    if (engine == NULL) {
        return err_set(errp, -ENOMEM, "engine", "out of memory");
    }
    int r = 0;
    list_init(&engine->transfers);
    list_init(&engine->requests);
    engine->loop = loop;
    if (loop == NULL) {
        engine->own_loop = true;
        engine->loop = calloc(1, sizeof(*engine->loop));
        r = engine->loop != NULL ? uv_loop_init(engine->loop) : -ENOMEM;
        if (r < 0) {
            free(engine->loop);
            free(engine);
            return err_set(errp, r, "engine", "no event loop: %s",
                           uv_strerror(r));
        }
    }
    if (state_dir != NULL) {
        r = journal_open(engine->loop, state_dir, &engine->journal, errp);
    }
    if (r == 0 && trace_file != NULL) {
        r = qmp_trace_open(trace_file, &engine->trace, errp);
    }
    if (r == 0 && state_dir != NULL) {
        engine->state_dir = strdup(state_dir);
        r = engine->state_dir != NULL ? 0 : -ENOMEM;
    }
    if (r < 0) {
        journal_close(engine->journal);
        if (engine->own_loop) {
            (void)uv_loop_close(engine->loop);
            free(engine->loop);
        }
        free(engine->state_dir);
        free(engine);
        return r;
    }
    (void)uv_idle_init(engine->loop, &engine->idle);
    engine->idle.data = engine;
    *ret = engine;
    return 0;
}

bool engine_has_own_loop(const struct qpivot_engine *engine)
{
    return engine->own_loop;
}

void engine_run(struct qpivot_engine *engine)
{
    while (engine->n_ops > 0 || engine->n_held > 0) {
        (void)uv_run(engine->loop, UV_RUN_ONCE);
    }
}

void engine_close(struct qpivot_engine *engine, void (*closed)(void *data),
                  void *data)
{
    engine->closing = true;
    engine->closed = closed;
    engine->closed_data = data;
    for (unsigned i = 0; i < engine->n_ops; i++) {
        op_detach(engine->ops[i]);
    }
    transfer_cancel_all(&engine->transfers);
    request_detach_all(&engine->requests);
    engine_check_end(engine);
    if (engine->own_loop) {
        uv_loop_t *loop = engine->loop;
        (void)uv_run(loop, UV_RUN_DEFAULT); /* frees the engine */
        (void)uv_loop_close(loop);
        free(loop);
    }
}

uv_loop_t *engine_loop(const struct qpivot_engine *engine)
{
    return engine->loop;
}

struct journal *engine_journal(const struct qpivot_engine *engine)
{
    return engine->journal;
}

const char *engine_state_dir(const struct qpivot_engine *engine)
{
    return engine->state_dir;
}

struct list_node *engine_transfers(struct qpivot_engine *engine)
{
    return &engine->transfers;
}

struct list_node *engine_requests(struct qpivot_engine *engine)
{
    return &engine->requests;
}

struct qmp_trace *engine_trace(const struct qpivot_engine *engine)
{
    return engine->trace;
}

struct op_host engine_host(struct qpivot_engine *engine)
{
    return (struct op_host){.loop = engine->loop,
                            .journal = engine->journal,
                            .trace = engine->trace,
                            .state_dir = engine->state_dir,
                            .born = engine_on_op_born,
                            .gone = engine_on_op_gone,
                            .data = engine};
}

void engine_hold(struct qpivot_engine *engine)
{
    engine->n_held++;
}

void engine_release(struct qpivot_engine *engine)
{
    engine->n_held--;
    engine_check_end(engine);
}

const struct operation *engine_operation(const char *kind)
{
    for (unsigned i = 0; i < ARRAY_SIZE(operations); i++) {
        if (str_eq(operations[i]->kind, kind)) {
            return operations[i];
        }
    }
    return NULL;
}

static int engine_on_op_born(void *data, struct op *op)
{
    struct qpivot_engine *engine = data;
    struct op **ops =
        realloc(engine->ops, (engine->n_ops + 1) * sizeof(struct op *));
    if (ops == NULL) {
        return -ENOMEM;
    }
    engine->ops = ops;
    engine->ops[engine->n_ops++] = op;
    return 0;
}

static void engine_on_op_gone(void *data, struct op *op)
{
    struct qpivot_engine *engine = data;
    for (unsigned i = 0; i < engine->n_ops; i++) {
        if (engine->ops[i] == op) {
            engine->ops[i] = engine->ops[--engine->n_ops];
            break;
        }
    }
    engine_check_end(engine);
}

static void engine_check_end(struct qpivot_engine *engine)
{
    if (engine->closing && engine->n_ops == 0 && engine->n_held == 0) {
        (void)uv_idle_start(&engine->idle, engine_on_end);
    }
}

static void engine_on_end(uv_idle_t *idle)
{
    const struct qpivot_engine *engine = idle->data;
    if (engine->journal != NULL && !journal_is_idle(engine->journal)) {
        return; /* the last records are on their way to the disk */
    }
    (void)uv_idle_stop(idle);
    uv_close((uv_handle_t *)idle, engine_on_closed);
}

static void engine_on_closed(uv_handle_t *handle)
{
    struct qpivot_engine *engine = handle->data;
    void (*closed)(void *data) = engine->closed;
    void *data = engine->closed_data;
    journal_close(engine->journal);
    qmp_trace_close(engine->trace);
    free(engine->ops);
    free(engine->state_dir);
    free(engine);
    if (closed != NULL) {
        closed(data);
    }
}
