/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * doctor: what carries our names in a QEMU, whose it is, and its removal. All
 * of it is plan steps: it looks, takes away, looks again, and leaves no trace
 * in the journal, since a second run does the same.
 */
#pragma once

#include <stdbool.h>

#include "run/op.h"
#include "vm/names.h"

struct journal;
struct journal_lock;
struct qpivot_doctor_options;

extern const struct operation doctor_operation;

/* Checks and copies the options. -EINVAL, -ENOMEM. */
int doctor_start(const struct op_host *host,
                 const struct qpivot_doctor_options *options,
                 const struct qpivot_callbacks *callbacks, struct op **ret,
                 struct err **errp);

/* --- between its files --- */

enum { DOCTOR_OPS_MAX = 256 };

struct doctor {
    struct journal *journal; /* or NULL */
    bool fix;
    char op[OP_ID_SIZE]; /* this operation only; "": none was named */
    char *again;         /* the command that does all this once more */
    /* the last look */
    json_t *objects;
    json_t *chardevs;
    char *holder; /* of the claim, "" if it cannot be told; NULL: no claim */
    char *stream; /* the migration that is under way, its status; or NULL */
    json_t *items;
    json_t *foreign;
    json_t *frozen;
    json_t *first; /* the items of the first look */
    /* by id: {"op","journal","kind","state","next"} and "fix": it may go */
    json_t *ops;
    json_t *refusals; /* "KIND NAME": QEMU's own words */
    json_t *order;    /* nodes, every one before its children */
    struct journal_lock *locks[DOCTOR_OPS_MAX];
    unsigned n_locks;
};

/* Whether the item is to be removed now: its operation, and its use, say so. */
bool doctor_removes(const struct doctor *doctor, const json_t *item);
/*
 * Whether it counts: what is of a live disk, goes with a job, or only looks
 * like ours does not.
 */
bool doctor_counts(const struct doctor *doctor, const json_t *item);
/* Of an item's or an operation's member; "" where there is none. */
const char *doctor_text(const json_t *json, const char *key);
/* Keeps QEMU's words for the item, NULL forgets them. */
void doctor_refused(struct doctor *doctor, const char *kind, const char *name,
                    const struct err *err);

step_fn doctor_look_objects, doctor_look_chardevs, doctor_look_claim;
step_fn doctor_look_stream, doctor_look_graph;
step_fn doctor_clear_jobs, doctor_clear_exports, doctor_clear_bitmaps;
step_fn doctor_clear_nodes, doctor_clear_objects, doctor_clear_chardevs;
step_fn doctor_clear_claim;
