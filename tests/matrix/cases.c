/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "matrix/cases.h"

#include <stdio.h>

#include "base/cleanup.h"
#include "base/str.h"

/* One step, out or back, of one scenario. */
struct making {
    const struct scenario *scenario;
    const struct baseline *base;
    const struct step *step;
    int index;
    bool undoing;
    bool after_pivot;
    case_fn *run;
};

static const char *kind_name(enum fault_kind kind)
{
    static const char *const names[] = {
        [FAULT_NONE] = "nothing",
        [FAULT_ERROR] = "refused",
        [FAULT_DONE_ERROR] = "done and refused",
        [FAULT_SILENCE] = "never answered",
        [FAULT_LOST] = "connection lost",
        [FAULT_LOST_REPLY] = "done, reply lost",
        [FAULT_KILL] = "done, engine killed",
        [FAULT_DIES] = "QEMU dies",
        [FAULT_DONE_DIES] = "done, QEMU dies",
        [FAULT_UNPLUG] = "done, a disk unplugged",
        [FAULT_PEER_DIES] = "done, the other QEMU dies",
        [FAULT_STORE_ERROR] = "storage refuses",
        [FAULT_STORE_DONE_ERROR] = "storage does and refuses",
        [FAULT_STORE_SILENCE] = "storage never answers",
        [FAULT_STORE_DONE_SILENCE] = "storage does and never answers",
        [FAULT_KILL_BEFORE] = "engine killed before",
        [FAULT_KILL_AFTER] = "engine killed after",
        [FAULT_FULL] = "journal full at",
        [FAULT_FULL_ONCE] = "journal full for a moment at",
        [FAULT_READ_ONLY] = "journal read-only at",
        [FAULT_LATE] = "time is up at",
    };
    return names[kind];
}

/* A sanitized process takes ten times as long to fork: every fifth case. */
#ifdef __SANITIZE_ADDRESS__
enum { EVERY = 5 };
#else
enum { EVERY = 1 };
#endif

/*
 * Pairwise: of a thinned scenario every step has some of the faults, and every
 * fault strikes at some of the steps; the steps take turns.
 */
static bool is_thinned(const struct making *making, const struct fault *fault)
{
    unsigned thin = fault->loses_journal ? making->scenario->thin_lost
                                         : making->scenario->thin;
    unsigned which = (unsigned)fault->kind + (fault->for_good ? N_FAULTS : 0) +
                     (unsigned)(fault->disk + 1) + (unsigned)fault->record +
                     fault->nth;
    thin = (thin > 1 ? thin : 1) * EVERY;
    return thin > 1 && (which + (unsigned)making->index) % thin != 0;
}

static void make_one(const struct making *making, const struct fault *fault,
                     const char *at)
{
    char name[192];
    (void)snprintf(name, sizeof(name), "%s%s, %s%s%s",
                   making->undoing ? "undo of " : "", making->step->name, at,
                   fault->for_good ? " for good" : "",
                   fault->doctors         ? ", journal lost, doctor asked"
                   : fault->loses_journal ? ", journal lost"
                                          : "");
    if (!is_thinned(making, fault)) {
        making->run(name, making->base->verb, fault);
    }
}

/* An engine that is killed may take its journal with it. */
static void make(const struct making *making, const struct fault *fault,
                 const char *at)
{
    make_one(making, fault, at);
    if (fault->kind == FAULT_KILL || fault->kind == FAULT_KILL_AFTER) {
        struct fault lost = *fault;
        lost.loses_journal = true;
        make_one(making, &lost, at);
        lost.doctors = true;
        make_one(making, &lost, at);
    }
}

/* --- commands --- */

static bool only_looks(const char *command)
{
    return str_starts(command, "query-") || str_starts(command, "x-") ||
           str_eq(command, "qom-get");
}

/* A look is worth a fault only the first time that a step takes it. */
static bool seen_before(const struct baseline *base, unsigned i)
{
    for (unsigned k = 0; k < i; k++) {
        if (base->log[k].tag == base->log[i].tag &&
            base->log[k].side == base->log[i].side &&
            str_eq(base->log[k].command, base->log[i].command)) {
            return true;
        }
    }
    return false;
}

/* Whether that fault says anything new of such a command. */
static bool is_apt(const struct making *making, enum fault_kind kind,
                   bool looks)
{
    bool migrates = scenario_migrates(making->scenario);
    bool changes = kind == FAULT_DONE_ERROR || kind == FAULT_KILL ||
                   kind == FAULT_LOST || kind == FAULT_DONE_DIES;
    return !(looks && changes) && !(kind == FAULT_PEER_DIES && !migrates) &&
           !(kind == FAULT_DONE_DIES && !migrates) &&
           !(kind == FAULT_UNPLUG && migrates);
}

static void make_for(const struct making *making, const struct logged *at,
                     struct fault fault)
{
    char text[128];
    fault.command = at->command;
    fault.nth = at->nth;
    fault.side = at->side;
    (void)snprintf(text, sizeof(text), "%s%s %u %s",
                   at->side == DESTINATION ? "destination's " : "", at->command,
                   at->nth, kind_name(fault.kind));
    make(making, &fault, text);
}

/*
 * A guest that ran a moment ago, and that neither engine nor guard may let go
 * on ever again: no QEMU refuses that. What comes later cannot know who stopped
 * it: see judge_stood().
 */
static bool stands_for_good(const struct making *making,
                            const struct logged *at)
{
    return making->undoing && str_eq(making->step->name, "mirror") &&
           str_eq(at->command, "cont");
}

static void command_cases(const struct making *making)
{
    const struct baseline *base = making->base;
    int tag = world_tag(making->index, making->undoing);
    for (unsigned i = 0; i < base->n_log; i++) {
        const struct logged *at = &base->log[i];
        bool looks = only_looks(at->command);
        if (at->tag != tag || (looks && seen_before(base, i))) {
            continue;
        }
        for (int kind = FAULT_ERROR; kind <= FAULT_PEER_DIES; kind++) {
            if (is_apt(making, (enum fault_kind)kind, looks)) {
                make_for(making, at,
                         (struct fault){.kind = (enum fault_kind)kind});
            }
        }
        if (making->undoing || making->after_pivot) {
            make_for(making, at,
                     (struct fault){.kind = FAULT_ERROR,
                                    .for_good = true,
                                    .stands = stands_for_good(making, at)});
        }
    }
}

/* --- storage --- */

static void storage_cases(const struct making *making)
{
    static const struct fault once = {.kind = FAULT_STORE_ERROR};
    static const struct fault done = {.kind = FAULT_STORE_DONE_ERROR};
    static const struct fault good = {.kind = FAULT_STORE_ERROR,
                                      .for_good = true};
    static const struct fault hangs = {.kind = FAULT_STORE_SILENCE};
    static const struct fault done_hangs = {.kind = FAULT_STORE_DONE_SILENCE};
    const struct fault *const faults[] = {&once, &done, &good, &hangs,
                                          &done_hangs};

    const struct baseline *base = making->base;
    int tag = world_tag(making->index, making->undoing);
    bool retried = making->undoing || making->after_pivot;
    for (unsigned i = 0; i < base->n_calls && i < STORE_CALLS; i++) {
        for (unsigned k = 0; k < ARRAY_SIZE(faults); k++) {
            struct fault fault = *faults[k];
            char text[128];
            if (base->tags[i] != tag || (fault.for_good && !retried)) {
                continue;
            }
            fault.nth = i;
            (void)snprintf(text, sizeof(text), "act %u: %s", i,
                           kind_name(fault.kind));
            make(making, &fault, text);
        }
    }
}

/* --- records --- */

static bool is_recorded(const struct making *making, const struct fault *fault)
{
    /* A step that only looks, or may be repeated, has no intent. */
    bool none = fault->record == JOURNAL_INTENT &&
                (making->step->flags & (STEP_LOOKS | STEP_REPEATS)) != 0;
    bool begins =
        fault->record == JOURNAL_INTENT || fault->record == JOURNAL_UNDO;
    if (fault->kind == FAULT_LATE) {
        return begins;
    }
    return fault->kind == FAULT_KILL_AFTER || !none;
}

static void record_cases(const struct making *making, enum journal_kind record)
{
    static const enum fault_kind kinds[] = {FAULT_KILL_BEFORE, FAULT_KILL_AFTER,
                                            FAULT_FULL,        FAULT_FULL_ONCE,
                                            FAULT_READ_ONLY,   FAULT_LATE};

    unsigned seen = making->base->told.seen[making->index][record];
    for (int disk = NO_DISK; disk < SCENARIO_DISKS; disk++) {
        for (unsigned k = 0; k < ARRAY_SIZE(kinds); k++) {
            struct fault fault = {.kind = kinds[k],
                                  .record = record,
                                  .step = making->step->name,
                                  .disk = disk};
            char text[128];
            if ((seen >> (disk + 1) & 1) == 0 || !is_recorded(making, &fault)) {
                continue;
            }
            (void)snprintf(text, sizeof(text), "%s %s of disk %d",
                           kind_name(fault.kind), journal_kind_name(record),
                           disk);
            make(making, &fault, text);
        }
    }
}

void cases_make(const struct scenario *scenario, const struct baseline *forward,
                const struct baseline *back, const struct baseline *undo,
                case_fn *run)
{
    const struct operation *operation = scenario->operation;
    struct making making = {.scenario = scenario, .run = run};
    for (unsigned i = 0; i < operation->n_steps; i++) {
        making.step = &operation->steps[i];
        making.index = (int)i;
        bool returns = (making.step->flags & STEP_RETURN) != 0;
        if (returns && !scenario->window) {
            continue;
        }
        if (returns && (operation->steps[i - 1].flags & STEP_RETURN) == 0) {
            making.after_pivot = false; /* a table with a pivot of its own */
        }
        making.base = returns ? undo : forward;
        making.undoing = false;
        command_cases(&making);
        storage_cases(&making);
        record_cases(&making, JOURNAL_INTENT);
        record_cases(&making, JOURNAL_END);
        if (making.step->undo != NULL && !returns) {
            making.base = back;
            making.undoing = true;
            command_cases(&making);
            storage_cases(&making);
            record_cases(&making, JOURNAL_UNDO);
            record_cases(&making, JOURNAL_UNDONE);
        }
        making.after_pivot |= (making.step->flags & STEP_PIVOT) != 0;
    }
}
