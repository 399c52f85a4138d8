/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The fault matrix: every step of every operation's table with everything that
 * can go wrong at it (cases.h), in scenarios that differ in what is moved or
 * migrated (scenario.c), each judged by what must be true afterwards
 * (verdict.h).
 *
 *     matrix SCENARIO [PART-OF-A-CASE'S-NAME]
 *     matrix --are-all SCENARIO...
 */
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/str.h"
#include "matrix/cases.h"
#include "matrix/verdict.h"

enum { RECOVERIES = 3 };

static struct {
    struct world world;
    const struct scenario *scenario;
    const char *only;
    unsigned n_cases;
    unsigned n_failed;
} matrix;

static void result(const char *name, const char *problem)
{
    matrix.n_cases++;
    matrix.n_failed += problem != NULL;
    (void)printf("%sok %u - %s: %s\n", problem != NULL ? "not " : "",
                 matrix.n_cases, matrix.scenario->name, name);
    if (problem != NULL) {
        (void)printf("# %s\n", problem);
    }
}

static bool is_over(const struct told *told)
{
    return told->end == END_OUTCOME &&
           (told->outcome == QPIVOT_DONE || told->outcome == QPIVOT_FAILED);
}

/*
 * Until recover finds nothing to do any more; false: that never comes. What
 * was taken back while the journal could not be written may need a person.
 */
static bool recover_all(char text[VERDICT_TEXT])
{
    struct world *world = &matrix.world;
    for (unsigned i = 0; i < RECOVERIES; i++) {
        enum fault_kind kind = world->fault->kind;
        bool unwritten = kind == FAULT_FULL || kind == FAULT_READ_ONLY;
        bool last = i == RECOVERIES - 1;
        scenario_run(matrix.scenario, world,
                     last && unwritten ? ENGINE_UNDO : ENGINE_RECOVER);
        if (world->told->end == END_NOTHING || (last && is_over(world->told))) {
            return true;
        }
        if (world->told->end != END_OUTCOME) {
            (void)verdict_end(world, text);
            return false;
        }
    }
    (void)snprintf(text, VERDICT_TEXT, "recover never ends: %.200s",
                   world->told->why);
    return false;
}

/* Doctor asked; true: it ended, and what it told was right. */
static bool ask_doctor(enum side side, bool fix, const char *op,
                       char text[VERDICT_TEXT])
{
    struct world *world = &matrix.world;
    *world->told->listed = '\0';
    world->told->streams = false;
    scenario_doctor(matrix.scenario, world, side, fix, op);
    if (world->told->end != END_OUTCOME) {
        (void)verdict_end(world, text);
        return false;
    }
    (void)snprintf(text, VERDICT_TEXT, "doctor at the %s %s",
                   side == SOURCE ? "source" : "destination",
                   world->told->listed);
    return *world->told->listed == '\0';
}

static bool is_there(enum side side)
{
    return matrix.world.sides[side].qmp != NULL;
}

/* In both QEMUs; of one that is dead nothing. */
static json_t *all_left(void)
{
    json_t *left = json_array();
    for (int side = SOURCE; side < N_SIDES; side++) {
        (void)json_array_append_new(
            left, is_there((enum side)side)
                      ? fake_vm_leftovers(matrix.world.sides[side].vm)
                      : json_null());
    }
    return left;
}

/* A look at a stream takes a fake one further: not this look. */
static void keep_still(bool still)
{
    for (int side = SOURCE; side < N_SIDES; side++) {
        if (is_there((enum side)side)) {
            matrix.world.sides[side].vm->still = still;
        }
    }
}

/* What looks, or may not touch an operation that somebody can recover. */
static bool doctor_touches_nothing(bool fix, char text[VERDICT_TEXT])
{
    for (int side = SOURCE; side < N_SIDES; side++) {
        json_auto_t *before = all_left();
        if (!is_there((enum side)side)) {
            continue;
        }
        keep_still(true);
        bool right = ask_doctor((enum side)side, fix, NULL, text);
        keep_still(false);
        json_auto_t *after = all_left();
        if (right && !json_equal(before, after)) {
            (void)snprintf(text, VERDICT_TEXT,
                           "doctor has changed what is"
                           " there");
            return false;
        }
        if (!right) {
            return false;
        }
    }
    return true;
}

/* When all is recovered; of a disk that was unplugged a node may stay. */
static bool doctor_finds_nothing(char text[VERDICT_TEXT])
{
    const struct world *world = &matrix.world;
    for (int side = SOURCE; side < N_SIDES; side++) {
        if (!is_there((enum side)side)) {
            continue;
        }
        if (!ask_doctor((enum side)side, false, NULL, text)) {
            return false;
        }
        if (world->told->outcome != QPIVOT_DONE && !world->unplugged) {
            (void)snprintf(text, VERDICT_TEXT,
                           "doctor still finds something at the %s",
                           side == SOURCE ? "source" : "destination");
            return false;
        }
    }
    return true;
}

/* Of the operation whose claim it is. */
static bool doctor_fixes(enum side side, char text[VERDICT_TEXT])
{
    struct world *world = &matrix.world;
    const json_t *claim =
        json_object_get(world->sides[side].vm->objects, "qpv-claim");
    _cleanup_free_ char *op = str_printf(
        "%s", claim != NULL ? json_string_value(json_object_get(claim, "data"))
                            : "aaaaaa");
    /* It says itself that it is to be asked again, while a stream ends. */
    for (unsigned i = 0; i < RECOVERIES; i++) {
        if (!ask_doctor(side, true, op, text)) {
            return false;
        }
        if (world->told->outcome != QPIVOT_PARKED) {
            break;
        }
    }
    return verdict_doctored(world, matrix.scenario, side, text);
}

/* Nobody recovers: doctor is named the operation whose claim it is. */
static const char *judge_doctor(char text[VERDICT_TEXT])
{
    struct world *world = &matrix.world;
    /* Either side may be the first that a person thinks of. */
    int first =
        (int)(world->fault->nth + (unsigned)(world->fault->disk + 1)) % N_SIDES;
    world_lose_journal(world);
    if (!doctor_touches_nothing(false, text) ||
        !doctor_touches_nothing(true, text)) {
        return text;
    }
    for (int i = 0; i < N_SIDES; i++) {
        enum side side = (enum side)((first + i) % N_SIDES);
        if (is_there(side) && !doctor_fixes(side, text)) {
            return text;
        }
    }
    return NULL;
}

/* What only QEMU could tell of; each of them that is there is asked. */
static const char *judge_lost(char text[VERDICT_TEXT])
{
    struct world *world = &matrix.world;
    if (world->told->end != END_KILLED) {
        return "the engine was not killed";
    }
    if (world->fault->doctors) {
        return judge_doctor(text);
    }
    world_lose_journal(world);
    for (int side = SOURCE; side < N_SIDES; side++) {
        if (!is_there((enum side)side)) {
            continue;
        }
        scenario_adopt(matrix.scenario, world, (enum side)side);
        if (world->told->end != END_OUTCOME) {
            return verdict_end(world, text);
        }
        if (!verdict_without_journal(world, matrix.scenario, (enum side)side,
                                     text)) {
            return text;
        }
    }
    return NULL;
}

/*
 * It is parked with these very words, the guest paused; whoever recovers then
 * takes all the rest back, and leaves to a person whether it is to run.
 */
static const char *judge_stood(char text[VERDICT_TEXT])
{
    struct world *world = &matrix.world;
    const struct told *told = world->told;
    struct scenario stood = *matrix.scenario;
    stood.paused = true;
    if (told->end != END_OUTCOME || told->outcome != QPIVOT_PARKED ||
        !str_eq(told->state, "parked") ||
        strstr(told->why, "was stopped for a moment and does not go on") ==
            NULL) {
        (void)snprintf(text, VERDICT_TEXT, "outcome %d, '%s': %.200s",
                       (int)told->outcome, told->state, told->why);
        return text;
    }
    if (world->vm->runstate != FAKE_PAUSED) {
        return "the guest does not stand";
    }
    return verdict_is_safe(world, text) && recover_all(text) &&
                   verdict_of_journal(world, &stood, text)
               ? NULL
               : text;
}

/* What is wrong after the case, or NULL; 'text' holds it. */
static const char *judge(char text[VERDICT_TEXT])
{
    struct world *world = &matrix.world;
    const struct scenario *scenario = matrix.scenario;
    if (!world->fired && world->fault->kind != FAULT_NONE) {
        return "the fault did not strike";
    }
    if (world->fault->loses_journal) {
        return judge_lost(text);
    }
    if (world->fault->stands) {
        return judge_stood(text);
    }
    enum engine_end first = world->told->end;
    if (first == END_STUCK || first == END_ERROR || first == END_CRASH) {
        return verdict_end(world, text);
    }
    if (!verdict_is_safe(world, text)) {
        return text;
    }
    if (first == END_KILLED && !doctor_touches_nothing(true, text)) {
        return text;
    }
    world->told->end = first;
    bool parked = !is_over(world->told);
    if (!parked && !verdict_holds(world, scenario, text)) {
        return text;
    }
    if (recover_all(text)) {
        return verdict_of_journal(world, scenario, text) &&
                       (first != END_KILLED || doctor_finds_nothing(text))
                   ? NULL
                   : text;
    }
    /* Right only where nobody but a person can tell what to do. */
    char why[VERDICT_TEXT];
    return world_qemu_died(world) && parked &&
                   world->told->end == END_OUTCOME &&
                   verdict_is_lost(world, why)
               ? NULL
               : text;
}

static void one_case(const char *name, enum engine_verb verb,
                     const struct fault *fault)
{
    char text[VERDICT_TEXT];
    if (matrix.only != NULL && strstr(name, matrix.only) == NULL) {
        return;
    }
    scenario_prepare(matrix.scenario, &matrix.world);
    world_set_fault(&matrix.world, fault);
    scenario_run(matrix.scenario, &matrix.world, verb);
    result(name, judge(text));
    world_end(&matrix.world);
}

static void baseline(enum engine_verb verb, struct baseline *ret)
{
    static const struct fault none;
    struct world *world = &matrix.world;
    scenario_prepare(matrix.scenario, world);
    world_set_fault(world, &none);
    scenario_run(matrix.scenario, world, verb);
    ret->verb = verb;
    ret->told = *world->told;
    ret->n_log = world->n_log;
    memcpy(ret->log, world->log, sizeof(ret->log));
    ret->n_calls = world->store->n_calls;
    memcpy(ret->tags, world->store->tags, sizeof(ret->tags));
    char text[VERDICT_TEXT];
    const char *problem = judge(text);
    bool stays = matrix.scenario->cut || matrix.scenario->behind ||
                 matrix.scenario->degrades;
    enum qpivot_outcome wanted =
        verb == ENGINE_RUN && !stays ? QPIVOT_DONE : QPIVOT_FAILED;
    if (problem == NULL && ret->told.outcome != wanted) {
        (void)snprintf(text, sizeof(text), "outcome %d: %.200s",
                       (int)ret->told.outcome, ret->told.why);
        problem = text;
    }
    result(verb == ENGINE_ABORT    ? "abort, no fault"
           : verb == ENGINE_RETURN ? "undo, no fault"
                                   : "no fault",
           problem);
    world_end(world);
}

/* Whether the names are those of all scenarios: none is left out. */
static int are_all(int n, char **names)
{
    int missing = 0;
    for (unsigned i = 0; i < n_scenarios; i++) {
        bool named = false;
        for (int k = 0; k < n; k++) {
            named = named || str_eq(names[k], scenarios[i].name);
        }
        missing += !named;
        (void)printf("%sok %u - %s is run\n", named ? "" : "not ", i + 1,
                     scenarios[i].name);
    }
    (void)printf("1..%u\n", n_scenarios);
    return missing > 0;
}

int main(int argc, char **argv)
{
    static struct baseline forward, back, undo;
    if (argc > 1 && str_eq(argv[1], "--are-all")) {
        return are_all(argc - 2, argv + 2);
    }
    matrix.only = argc > 2 ? argv[2] : NULL;
    if (world_init(&matrix.world) < 0) {
        return 1;
    }
    for (unsigned i = 0; i < n_scenarios; i++) {
        matrix.scenario = &scenarios[i];
        if (argc > 1 && str_eq(argv[1], scenarios[i].name)) {
            baseline(ENGINE_RUN, &forward);
            baseline(ENGINE_ABORT, &back);
            if (scenarios[i].window) {
                baseline(ENGINE_RETURN, &undo);
            }
            cases_make(matrix.scenario, &forward, &back, &undo, one_case);
        }
    }
    (void)printf("1..%u\n# %u cases, %u failed\n", matrix.n_cases,
                 matrix.n_cases, matrix.n_failed);
    world_done(&matrix.world);
    return matrix.n_cases == 0;
}
