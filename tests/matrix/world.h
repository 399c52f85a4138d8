/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a case of the matrix happens in: a fake QEMU, or the two of a migration,
 * and a storage that stay, and engines that are forked, do their work against them, and die. Nothing
 * here waits for time: an engine's clock goes on only when it and QEMU have
 * nothing left to do, and then to its next timer at once (engine-child.c);
 * engine and QEMU work in turns, so that a case always runs the same way.
 */
#pragma once

#include <stdbool.h>
#include <uv.h>

#include "engine.h"
#include "fake/fake-qmp.h"
#include "fake/fake-vm.h"
#include "fake/scratch.h"
#include "run/journal.h"
#include "run/op.h"

enum { WORLD_STEPS = 96, WORLD_LOG = 1024, NO_DISK = -1 };

enum side { SOURCE, DESTINATION, N_SIDES }; /* a move has a source only */

/* Where an engine is: which step, out or back. */
static inline int world_tag(int step, bool undoing)
{
    return step * 2 + undoing;
}

/* What an engine was started for. */
enum engine_verb {
    ENGINE_RUN,
    ENGINE_ABORT,
    ENGINE_RECOVER,
    ENGINE_UNDO,   /* recovers, and goes back if it can */
    ENGINE_RETURN, /* goes back from within the undo window */
    ENGINE_ADOPT,  /* recover --from-qemu */
    ENGINE_LOOK,   /* doctor */
    ENGINE_FIX,    /* doctor --fix */
};

struct engine_request {
    enum engine_verb verb;
    const struct operation *operation;
    struct qpivot_move_options move; /* one of them, as 'operation' says */
    struct qpivot_migrate_options migrate;
    int abort_at;      /* of ENGINE_ABORT: when this step begins */
    bool remote;       /* the QEMUs' processes cannot be seen */
    enum side asked;   /* of ENGINE_ADOPT, _LOOK, _FIX: the QEMU that is */
    const char *fixed; /* of ENGINE_FIX: the operation named, or NULL */
};

/* How it ended. */
enum engine_end {
    END_OUTCOME, /* 'outcome' tells */
    END_NOTHING, /* there was nothing to recover */
    END_KILLED,  /* by the fault of the case */
    END_STUCK,   /* nothing would ever have happened any more */
    END_ERROR,   /* it could not even begin */
    END_CRASH,
};

enum fault_kind {
    FAULT_NONE,
    /* of a QMP command */
    FAULT_ERROR,      /* not done, and refused */
    FAULT_DONE_ERROR, /* done, and refused all the same */
    FAULT_SILENCE,    /* not done, never answered */
    FAULT_LOST,       /* not done, the connection breaks */
    FAULT_LOST_REPLY, /* done, the connection breaks before the reply */
    FAULT_KILL,       /* done, and the engine dies at that moment */
    FAULT_DIES,       /* not done: this QEMU dies at that moment */
    FAULT_DONE_DIES,  /* done, and it dies before the reply */
    FAULT_UNPLUG,     /* done, and the first disk's device is unplugged */
    FAULT_PEER_DIES,  /* done, and the other QEMU dies at that moment */
    /* of an act of the storage */
    FAULT_STORE_ERROR,
    FAULT_STORE_DONE_ERROR,
    FAULT_STORE_SILENCE,
    FAULT_STORE_DONE_SILENCE,
    /* of a record of the journal */
    FAULT_KILL_BEFORE, /* the engine dies before it is written */
    FAULT_KILL_AFTER,  /* ... when it is durable, nothing else was done */
    FAULT_FULL,        /* it cannot be written, nor can any other */
    FAULT_FULL_ONCE,   /* it cannot be written, the next ones can */
    FAULT_READ_ONLY,   /* nothing can be written any more */
    FAULT_LATE,        /* the time is up just then */
    N_FAULTS
};

struct fault {
    enum fault_kind kind;
    bool for_good;
    bool loses_journal; /* the engine that was killed: only QEMU knows */
    bool doctors;       /* ... and doctor is asked, nobody recovers */
    bool stands;        /* the guest: nobody may let it go on, now or later */
    enum side side;     /* which QEMU's command */
    unsigned nth; /* of the command of that name, or of the storage's acts */
    const char *command;
    enum journal_kind record;
    const char *step;
    int disk;
};

/* Written by an engine, read when it is dead. */
struct told {
    enum engine_end end;
    enum qpivot_outcome outcome;
    int tag;
    bool fired;
    char state[16]; /* the journal's, of the last operation; "" for none */
    char why[256];
    char listed[96]; /* what doctor tells wrongly, or "" */
    bool streams;    /* it says that the guest is on its way */
    bool left;       /* a warning named a file that is, or may be, left */
    /* By step and record kind: a bit for each disk, bit 0 for no disk. */
    unsigned seen[WORLD_STEPS][JOURNAL_UNDONE + 1];
};

struct logged {
    int tag;
    enum side side;
    unsigned nth; /* of that name */
    char command[32];
};

/* One QEMU. */
struct world_side {
    struct world *world;
    enum side side;
    struct fake_vm *vm;
    struct fake_qmp *qmp; /* NULL: it is dead */
    pid_t process;        /* stands for its process: dies with it */
};

struct world {
    uv_loop_t loop;
    struct store *store;
    struct world_side sides[N_SIDES];
    struct fake_vm *vm;     /* the source's */
    struct fake_vm *dst_vm; /* NULL in a move */
    char addresses[N_SIDES][64];
    struct told *told;      /* shared with the engines */
    char dir[SCRATCH_PATH]; /* the journal */
    const struct fault *fault;
    bool faulty; /* the first engine runs: the fault may strike */
    bool fired;
    bool unplugged;
    bool process_left;
    uint64_t kept; /* the volumes there were when the journal was lost */
    int lost_tag;  /* where the engine was then */
    bool exported; /* whether the destination had an export then */
    pid_t engine;
    int control;
    struct logged log[WORLD_LOG];
    unsigned n_log;
};

int world_init(struct world *world);
void world_done(struct world *world);
/* Fresh QEMUs without disks, an empty storage and journal, no fault. */
void world_begin(struct world *world, bool migrates);
void world_end(struct world *world);
/* The journal is gone; the QEMUs and the storage are as they were. */
void world_lose_journal(struct world *world);
void world_set_fault(struct world *world, const struct fault *fault);

/* Whether the fault of the case is the end of a QEMU. */
bool world_qemu_died(const struct world *world);

/* Forks an engine and runs the world until it is dead; see world->told. */
void world_run(struct world *world, const struct engine_request *request);

/* In the forked process; does not return. */
void engine_child(struct world *world, const struct engine_request *request,
                  int control) __attribute__((noreturn));
