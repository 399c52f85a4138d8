/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the runner's files share: op.c (the object), op-turn.c (the order of
 * things), act.c (one step).
 */
#pragma once

#include <uv.h>

#include "base/err.h"
#include "base/list.h"
#include "qmp/qmp.h"
#include "run/journal.h"
#include "run/op.h"
#include "vm/names.h"

enum { ACT_CALLS_MAX = QMP_BATCH_MAX, ACT_TRIES_MAX = 3 };

enum act_mode { ACT_RUN, ACT_UNDO, ACT_PROBE };

/* Skipped: it could not be undone, and the rest of the way back goes on. */
enum mark_status {
    MARK_NONE,
    MARK_INTENT,
    MARK_END,
    MARK_UNDONE,
    MARK_SKIPPED
};

/* How far a step has come for one disk (or for the operation). */
struct mark {
    enum mark_status status;
    json_t *facts;
};

/* One step being carried out for one disk. */
struct act {
    struct list_node node;
    struct op *op;
    const struct step *step;
    int disk; /* ALL_DISKS, or its index */
    enum act_mode mode;
    unsigned tries;
    uint64_t deadline_ms; /* 0: none */
    uint64_t again_ms;    /* 0: no act_again() */
    step_fn *again;
    bool wakes; /* an event of QEMU's brings 'again' forward */
    bool woken; /* one came since it last looked */
    enum act_side side;
    json_t *facts;
    bool recording; /* not begun: its record is on its way to the journal */
    bool held;      /* the connection broke: goes on when it is back */
    uint64_t held_ms;
    bool cancelled; /* waits for storage work that cannot be stopped */
    bool repeated;  /* an earlier try may have had an effect */
    bool ended;

    /* what it waits for */
    struct {
        struct act *act;
        struct qmp_call *call;
    } calls[ACT_CALLS_MAX];

    unsigned n_calls;
    unsigned n_open;
    struct err *call_err; /* first error of a batch */
    act_reply_fn *reply;
    struct vm_query *query;
    act_graph_fn *graph;
    struct vm_wait wait;
    bool waiting;
    uint64_t heard_ms; /* while it waits: when QEMU told of its jobs last */
    act_jobs_fn *jobs;
    struct volume_work *work;
    struct volume *volume; /* that it is about */
    enum volume_act working;
    uint64_t work_began_ms;
    uint64_t work_until_ms;
    act_volume_fn *storage;
    struct volume *asked; /* act_ask() */
    struct volume_work *ask;
    uint64_t ask_began_ms;
    act_asked_fn *ask_then;
    void *ask_data;
    struct check *check;
    act_check_fn *checked;
    act_progress_fn *progress;
    struct copy *copy;
    act_copy_event_fn *copying;
    act_copied_fn *copied;
    struct spawn *spawn;
    act_spawn_fn *spawned;
    void *scratch;
    const char *waits; /* act_set_waiting() */
    const char *waits_for;
    struct volume *own;
};

struct op {
    struct op_host host;
    const struct operation *operation;
    struct plan *plan;
    void *request;
    void (*request_free)(void *);
    struct qpivot_callbacks callbacks;
    char id[OP_ID_SIZE];
    struct vm *vm;
    struct vm *dst_vm;       /* NULL in a move */
    struct volume **volumes; /* of plan->n_disks */
    struct keep *keep;       /* their acts share its connections */
    struct journal_lock *lock;
    struct watchdog *guard; /* armed while the pivot may freeze the guest */
    enum op_state state;
    unsigned pos; /* the step being run */
    struct mark *marks;
    struct list_node acts;
    struct err *error; /* why it goes back, or parks */
    json_t *problems;
    uv_timer_t tick;
    uint64_t started_ms;
    bool journalled; /* the operation's record is durable */
    bool recovered;
    bool recorded; /* that record is on its way, or durable */
    bool undo_asked;
    bool dst_left;    /* something could not be undone at the destination */
    bool dst_stalled; /* it does not answer: no more is asked of it */
    bool abort_asked; /* acted upon by the tick: it may come from a callback */
    bool detach_asked;
    bool pivot_denied; /* its probe has said: not happened */
    bool identifying;  /* a new connection: is this our QEMU? */
    bool stranger;     /* it is not: what was ours died with the other */
    bool pivoted;
    bool returning;      /* the steps of STEP_RETURN are the table */
    bool return_asked;   /* acted upon by the tick */
    bool return_or_park; /* nobody is here for what else there is to do */
    bool standstill;     /* the guest was stopped, and has not run since */
    uint64_t standstill_ms;
    bool owes_cont;        /* see act_owes_cont() */
    uint64_t writes_block; /* by disk: see act_writes_block() */
    bool dry_run;
    bool turning;
    bool again;
    bool must_park;
    struct qmp_call *identity;
    struct qmp_call *beat; /* does the destination answer? */
    uint64_t beat_ms;      /* when it was asked last */
    uint64_t asked_ms;     /* when requests were looked for last */
    struct journal_place asked;
    bool dst_doubted; /* its connection was new since it was claimed */
    bool closing;
    bool ending; /* its last record is being written */
    bool told;
    char *next; /* op_set_next(), or NULL */
    enum qpivot_outcome outcome;
};

/* act.c */
void act_start(struct op *op, const struct step *step, int disk,
               enum act_mode mode);
void act_cancel(struct act *act);
/* Goes on if its time has come or its connection is back: whether it did. */
bool act_poke(struct act *act, uint64_t now_ms);
void act_free(struct act *act);
/* An event that some acts wait for has come. */
void act_wake(struct act *act);
/* QEMU is gone: nothing it waits for will come; it goes on by act_poke(). */
void act_release(struct act *act);

/* What it waits for is dropped; it ends with an error of its own. */
void act_drop_pending(struct act *act);
void act_error(struct act *act, int code, const char *what);

/* act-storage.c */
/* Whether it waits for storage: a thread that cannot be stopped. */
bool act_works(const struct act *act);
/* Nobody waits for what comes of it: soon the thread is left alone. */
void act_cancel_work(struct act *act);
/* Nobody waits for an answer on the side any more. */
void act_ask_drop(struct act *act);
/* The operation lets go: it is, sooner. */
void act_hurry(struct act *act);
/* Leaves a thread that is late: whether there was one. */
bool act_leave_late(struct act *act, uint64_t now_ms);

/* op-turn.c: an act is over; the runner decides what that means. */
void op_on_act_end(struct act *act, const struct err *err);
void op_on_act_probed(struct act *act, enum probe_verdict verdict);
void op_turn(struct op *op);
/* Stops what is under way; the next turn goes back, or parks. */
void op_break(struct op *op, const struct err *err);
void op_cancel_acts(struct op *op);
/* Whether the process that answers is the plan's own. */
bool op_is_same_qemu(const struct op *op);
void op_end(struct op *op, enum op_state state, enum qpivot_outcome outcome);
/* It has ended: lets go of all, as soon as no storage work is under way. */
void op_let_go(struct op *op);

/* op-adopt.c */
json_t *op_adopted_marks(const struct op *op); /* new reference */
/* [{"disk","volume","command"}]: what nobody uses any more. */
json_t *op_left(const struct op *op, bool back);

/* op-request.c */
json_t *op_owner(void); /* who works on it: this process; new reference */
/* The journal learns that this engine has taken it up. */
void op_own(struct op *op, const json_t *records);
void op_look_for_requests(struct op *op, uint64_t now_ms);

/* act-guard.c: our QEMU is back, and its guest stood when it was lost */
void op_pay_cont(struct op *op);

/* op-marks.c */
/* From the "records" of journal_load(). */
int op_restore_marks(struct op *op, const json_t *records);

/* op-return.c */
/* Whether the step is of the table that is carried out just now. */
bool op_is_table(const struct op *op, const struct step *step);
/* That table's pivot, or NULL. */
const struct step *op_pivot_step(const struct op *op);
/* Whether it goes back already, or still could. */
bool op_has_window(const struct op *op);
/* The tick's: stops waiting for the window to close. */
void op_look_return(struct op *op);
/* A turn's: takes up the other table if that was asked for, and can be. */
void op_take_return(struct op *op);
/* All of it is undone: the first table goes on. */
void op_leave_return(struct op *op);
/* It is through: the guest is back. */
void op_end_return(struct op *op);

/* op.c */
void op_tick_soon(struct op *op); /* in the next turn of the loop */
unsigned op_n_marks(const struct op *op);
void op_emit_step(const struct act *act, const char *state);
struct mark *op_mark(const struct op *op, const struct step *step, int disk);
uint64_t op_now_us(void);
/* Whether the step leaves a trace in the journal: plan steps do not. */
bool op_journals(const struct op *op, const struct step *step);
