/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The runner: carries a table of steps out, back, or to where a person must
 * look. It knows the journal and the order of things; what a step does to
 * QEMU or storage is the step's.
 *
 *                  +-> REFUSED
 *   PLANNING ------+-> RUNNING --+--------------> DONE
 *                        |  ^    |  (error or abort before the pivot)
 *   (journal) -> PROBING-+  |    +-> UNDOING ---> UNDONE
 *                  |        |          |
 *                  +--------+-> PARKED <+  (error after the pivot, in doubt,
 *                                           or an undo that failed)
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "qpivot.h"
#include "run/step.h"
#include "vm/vm.h"

struct journal;
struct journal_lock;
struct op;

struct operation {
    const char *kind;
    int version; /* of the table: a journalled plan names it */
    const struct step *plan_steps; /* only look; not journalled */
    unsigned n_plan_steps;
    const struct step *steps;
    unsigned n_steps;
    /* After the plan's steps: fills the plan or adds to op_problem(). */
    void (*decide)(struct op *op);
    /* The "disks" of the result, from plan and facts; new reference. */
    json_t *(*result)(struct op *op);
    /* What QEMU tells meanwhile; may warn or op_fail(). */
    void (*event)(struct op *op, const char *name, const json_t *event);
    /* The same of the destination's QEMU. */
    void (*dst_event)(struct op *op, const char *name, const json_t *event);
    /*
     * Whether the guest, pivoted, could still go back to its source, as the
     * journal's facts tell; NULL: never. See op-return.c.
     */
    bool (*may_return)(const struct op *op);
    /* Adds to the result of an operation that is done; may be NULL. */
    void (*total)(struct op *op, json_t *result);
    /* May say more definitely why it is parked, instead of *error; or NULL. */
    void (*parked)(struct op *op, struct err **error);
    /*
     * Another process asks for 'word' (not "abort", which is the runner's);
     * -ENOTSUP for what it does not know. Called from the tick; NULL: none.
     */
    int (*request)(struct op *op, const char *word, const json_t *args,
                   struct err **errp);
    bool no_volumes; /* but those of plan_disk_has_volume() */
};

enum op_state {
    OP_PLANNING,
    OP_RUNNING,
    OP_UNDOING,
    OP_DONE,
    OP_UNDONE,
    OP_REFUSED,
    OP_PARKED,
    OP_DETACHED,
};

enum { ALL_DISKS = -1 }; /* in the place of a disk's index */

/* What another process may ask for, see journal_news(). */
#define OP_WORD_ABORT "abort"
/* Back after the pivot: an operation with may_return() takes that word. */
#define OP_WORD_UNDO "undo"

/* What an operation needs of its engine. */
struct op_host {
    uv_loop_t *loop;
    struct journal *journal;
    struct qmp_trace *trace;
    const char *state_dir; /* or NULL */
    int (*born)(void *data,
                struct op *op); /* it is alive from now on; or NULL */
    void (*gone)(void *data, struct op *op); /* it is about to be freed */
    void *data;
};

/*
 * A new operation with an id of its own; starts planning in the next turn of
 * the loop. 'request' belongs to the operation's kind and is freed by free().
 * Steals plan.
 */
int op_new(const struct op_host *host, const struct operation *operation,
           struct plan *plan, void *request, void (*request_free)(void *),
           const struct qpivot_callbacks *callbacks, struct op **ret,
           struct err **errp);

/*
 * One from the journal (journal_load()), whose lock is held; 'qmp' NULL: where
 * it was; 'undo' as in qpivot_recover_options. Steals lock, also when it
 * fails.
 */
int op_load(const struct op_host *host, const struct operation *operation,
            const json_t *journalled, struct journal_lock *lock,
            const char *qmp, int undo, const struct qpivot_callbacks *callbacks,
            struct op **ret, struct err **errp);

const char *op_id(const struct op *op);
enum op_state op_state(const struct op *op);
const char *op_state_name(enum op_state state);
const char *op_state_dir(const struct op *op); /* or NULL */
bool op_pivoted(const struct op *op);
/*
 * Whether the pivot has been begun, by this engine or an earlier one, and its
 * probe has not denied it: until then there is no way back.
 */
bool op_pivoting(const struct op *op);
/* Whether what is in this QEMU is of no use, or not ours. */
bool op_lost_qemu(const struct op *op);
int op_abort(struct op *op);
/* Back after the pivot, while the undo window is open: -EALREADY if not. */
int op_return(struct op *op);
void op_detach(struct op *op);

/* --- for operations --- */

struct op *act_op(const struct act *act);
struct plan *op_plan(struct op *op);
void *op_request(struct op *op);
struct vm *op_vm(struct op *op);
struct vm *op_dst_vm(struct op *op); /* NULL in a move */
/* While planning: now that they are known, there are so many disks. */
int op_set_disks(struct op *op, unsigned n_disks);
struct volume *op_volume(struct op *op, unsigned disk);
/* Steals 'volume'. */
void op_set_volume(struct op *op, unsigned disk, struct volume *volume);
/* A problem of the plan: all are told at once. Steals 'err'. */
void op_problem(struct op *op, struct err *err);
/* Goes back, with this reason, if it still can. */
void op_fail(struct op *op, const struct err *err);
void op_emit(struct op *op, const char *event, json_t *data); /* steals data */
void op_warn(struct op *op, const char *message);
const json_t *op_fact(const struct op *op, const char *step, int disk,
                      const char *key);
/* NULL when there is none; borrowed. */
const json_t *op_problems(const struct op *op);
/* The commands of all steps of the plan, in order; new reference. */
json_t *op_commands(const struct op *op);
/*
 * From decide(): it is the operation 'id' of this other kind, found as op_plan()
 * has it; 'why' it cannot go on, or NULL. Then its steps, as they were found.
 */
#define OP_UNKNOWN_VOLUME "/not-known" /* of a disk that nothing is left of */
int op_adopt(struct op *op, const struct operation *operation, const char *id,
             bool undo, const struct err *why);
void op_adopt_step(struct op *op, const char *step, int disk, bool ended);
/*
 * From decide(), where all was in the plan's steps: tells the last event and
 * ends; nothing is journalled. Steals 'data'.
 */
void op_conclude(struct op *op, const char *event, json_t *data,
                 enum qpivot_outcome outcome);
/*
 * The plan's steps are about to change something: one that stops from now on
 * is parked, not refused, and 'next' is what to run. Copied.
 */
void op_set_next(struct op *op, const char *next);
bool op_dry_run(const struct op *op);
void op_set_dry_run(struct op *op);
