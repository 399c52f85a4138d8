/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A program that has a loop of its own and moves a disk on it: what an
 * orchestrator that embeds libqpivot looks like. Its own work goes on
 * meanwhile; here that is a clock that ticks.
 *
 *     example-orchestrator ADDR DISK TARGET STATE_DIR
 *
 * Its exit code is the operation's outcome.
 */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uv.h>

#include "qpivot.h"

enum { TICK_MS = 100 };

struct orchestrator {
    uv_loop_t loop;
    uv_timer_t clock;
    unsigned ticks;
    struct qpivot_engine *engine;
    struct qpivot_op *op;
    enum qpivot_outcome outcome;
};

static int start_move(struct orchestrator *o, char **argv);
static void stop(struct orchestrator *o);
static void clock_on_tick(uv_timer_t *timer);
static void op_on_event(void *data, const char *json);
static void op_on_ended(void *data, enum qpivot_outcome outcome);
static void print_error(const char *what, char *error);

int main(int argc, char **argv)
{
    if (argc != 5) {
        (void)fprintf(stderr, "usage: %s ADDR DISK TARGET STATE_DIR\n",
                      argv[0]);
        return QPIVOT_REFUSED;
    }
    struct orchestrator o = {.outcome = QPIVOT_REFUSED};
    if (uv_loop_init(&o.loop) < 0) {
        return QPIVOT_REFUSED;
    }
    (void)uv_timer_init(&o.loop, &o.clock);
    o.clock.data = &o;
    (void)uv_timer_start(&o.clock, clock_on_tick, TICK_MS, TICK_MS);
    if (start_move(&o, argv) < 0) {
        stop(&o);
    }
    (void)uv_run(&o.loop, UV_RUN_DEFAULT);
    if (uv_loop_close(&o.loop) != 0) {
        (void)fprintf(stderr, "something is left on the loop\n");
        return EXIT_FAILURE;
    }
    (void)printf("ended with %d after %u ticks of our own clock\n",
                 (int)o.outcome, o.ticks);
    return (int)o.outcome;
}

static int start_move(struct orchestrator *o, char **argv)
{
    struct qpivot_engine_options engine = {
        .size = sizeof(engine), .loop = &o->loop, .state_dir = argv[4]};
    char *error = NULL;
    int r = qpivot_engine_new(&engine, &o->engine, &error);
    if (r < 0) {
        print_error("engine", error);
        return r;
    }
    struct qpivot_disk disk = {.disk = argv[2], .target = argv[3]};
    struct qpivot_move_options options = {
        .size = sizeof(options), .qmp = argv[1], .disks = &disk, .n_disks = 1};
    struct qpivot_callbacks callbacks = {
        .data = o, .event = op_on_event, .ended = op_on_ended};
    r = qpivot_move(o->engine, &options, &callbacks, &o->op, &error);
    if (r < 0) {
        print_error("move", error);
        return r;
    }
    (void)printf("operation %s\n", qpivot_op_id(o->op));
    return 0;
}

/* With nothing left on the loop, uv_run() in main() returns. */
static void stop(struct orchestrator *o)
{
    uv_close((uv_handle_t *)&o->clock, NULL);
    if (o->engine != NULL) {
        qpivot_engine_close(o->engine, NULL, NULL);
        o->engine = NULL;
    }
}

static void clock_on_tick(uv_timer_t *timer)
{
    struct orchestrator *o = timer->data;
    o->ticks++;
}

static void op_on_event(void *data, const char *json)
{
    (void)data;
    const char *event = NULL;
    const char *disk = NULL;
    json_int_t bytes = 0;
    json_int_t total = 0;
    json_auto_t *object = json_loads(json, 0, NULL);
    if (json_unpack(object, "{s:s, s?s, s?I, s?I}", "event", &event, "disk",
                    &disk, "bytes", &bytes, "total", &total) < 0) {
        (void)printf("%s\n", json);
    } else if (strcmp(event, "progress") == 0 && disk != NULL) {
        (void)printf("%s: %lld of %lld bytes\n", disk, (long long)bytes,
                     (long long)total);
    } else if (strcmp(event, "failed") == 0 || strcmp(event, "parked") == 0) {
        (void)printf("%s\n", json);
    } else {
        (void)printf("%s\n", event);
    }
    (void)fflush(stdout);
}

/* The operation is over; the engine may be closed from its own callback. */
static void op_on_ended(void *data, enum qpivot_outcome outcome)
{
    struct orchestrator *o = data;
    o->op = NULL;
    o->outcome = outcome;
    stop(o);
}

static void print_error(const char *what, char *error)
{
    (void)fprintf(stderr, "%s: %s\n", what, error != NULL ? error : "failed");
    qpivot_free(error);
}
