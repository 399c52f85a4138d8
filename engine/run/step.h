/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a step is, and what its body may use. An operation is a const table of
 * steps; the runner (run/op) owns order, journal, deadlines, cancel, rollback
 * and recovery, and a body knows none of these.
 *
 * A body does one thing: it sends one command or waits for one condition, and
 * ends by act_end() or act_probed(), exactly once, now or later. What it
 * learns goes to act_facts(); nothing else outlives it. Each runs again after
 * a crash, so: 'run' takes "it is there already" as success where it can,
 * 'undo' takes "not there" as success, 'probe' only looks.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>

#include "backends/backend.h"
#include "run/plan.h"
#include "run/watchdog.h"
#include "vm/job.h"

struct act;
struct check_request;
struct check_result;
struct copy_options;
struct err;
struct graph;
struct op;
struct vm;

typedef void step_fn(struct act *act);
/* Decided from the plan alone, so that it is the same after a crash. */
typedef bool step_when_fn(const struct plan *plan,
                          const struct plan_disk *disk);

/*
 * The QMP command that the step sends: {"execute","arguments"}, or an array
 * of them, a new reference. The plan shows it; a body that sends just one
 * sends this very one, by act_command().
 */
typedef json_t *step_command_fn(const char *op, const struct plan *plan,
                                const struct plan_disk *disk);

enum step_flags {
    STEP_PER_DISK = 1 << 0,   /* one act for each disk, all at once */
    STEP_PIVOT = 1 << 1,      /* after it, only forward; one in a table */
    STEP_LONG = 1 << 2,       /* no deadline: it lasts as long as the copy */
    STEP_STORAGE = 1 << 3,    /* touches storage, not QEMU */
    STEP_LOOKS = 1 << 5,      /* changes nothing: needs no intent */
    STEP_TIDY = 1 << 4,       /* after the pivot: of no use once QEMU is gone */
    STEP_DST = 1 << 6,        /* begins with the destination's QEMU */
    STEP_REPEATS = 1 << 7,    /* twice is as good as once: needs no intent */
    STEP_ASKS_BOTH = 1 << 8,  /* its probe bears a QEMU that is gone */
    STEP_RETURN = 1 << 9,     /* of the table that an undo takes up instead */
    STEP_WINDOW = 1 << 10,    /* waits for nothing else than that, or its end */
    STEP_SPARE = 1 << 11,     /* after the pivot: failing is a warning */
    STEP_OUTLIVES = 1 << 12,  /* its undo bears a QEMU that is gone */
    STEP_LONG_UNDO = 1 << 13, /* its undo has no deadline */
};

struct step {
    const char *name; /* journal key: on-disk format, never renamed */
    const char *does; /* one phrase, for plan, progress and manual */
    step_fn *run;
    step_fn *undo;      /* NULL: leaves nothing to undo */
    step_fn *probe;     /* did it take effect? NULL: run it again to know */
    step_when_fn *when; /* NULL: always */
    step_command_fn *command; /* NULL: none that is known beforehand */
    unsigned flags;
};

enum probe_verdict {
    PROBE_DONE,
    PROBE_NOT_DONE,
    PROBE_UNKNOWN, /* a person must look */
};

/* --- what the body is about --- */

const struct plan *act_plan(const struct act *act);
const struct plan_disk *act_disk(const struct act *act); /* NULL: no disk */
const char *act_op_id(const struct act *act);
const char *act_step_name(const struct act *act);
/* The QEMU that the act talks to: its step's, until act_turn_to(). */
struct vm *act_vm(const struct act *act);
/* The QEMU that the guest comes from, and where it goes (NULL in a move). */
struct vm *act_src_vm(const struct act *act);
struct vm *act_dst_vm(const struct act *act);

enum act_side { ACT_SOURCE, ACT_DESTINATION };

/* Which QEMU the next calls go to. Begun anew, the act turns back. */
void act_turn_to(struct act *act, enum act_side side);
/*
 * Whether the destination may be another QEMU than the one that was claimed,
 * since the connection to it is not the first one.
 */
bool act_dst_is_doubted(const struct act *act);
struct volume *act_volume(const struct act *act, unsigned disk); /* target */
/* The fact 'key' of an earlier step for this disk; borrowed or NULL. */
const json_t *act_fact(const struct act *act, const char *step,
                       const char *key);
/* Sets the facts that the end record carries. Steals 'facts'. */
void act_set_facts(struct act *act, json_t *facts);
json_t *act_facts(const struct act *act); /* these; borrowed or NULL */

/* --- how it ends --- */

void act_end(struct act *act, const struct err *err); /* NULL: success */
void act_probed(struct act *act, enum probe_verdict verdict);
/* The same with an error that another try would not change. */
void act_give_up(struct act *act, const struct err *err);

/* --- what it may do: one at a time --- */

typedef void act_reply_fn(struct act *act, const struct err *err,
                          json_t *result);
/*
 * Sends a command and calls 'then' with the reply; 'then' NULL ends the act
 * by it. Steals 'args' (NULL for none; want of memory is found here).
 */
void act_qmp(struct act *act, const char *command, json_t *args,
             act_reply_fn *then);

/* Sends the step's own command; 'then' as above. */
void act_command(struct act *act, act_reply_fn *then);

/* Several commands by one write: see qmp_execute_batch(). Steals all args. */
struct act_command {
    const char *command;
    json_t *args; /* or NULL */
};

void act_qmp_batch(struct act *act, const struct act_command *commands,
                   unsigned n_commands, act_reply_fn *then);

/* 'fn' is called with fresh jobs until the act ends or does something else. */
typedef void act_jobs_fn(struct act *act, const struct job_list *jobs);
void act_wait_jobs(struct act *act, act_jobs_fn *fn);

typedef void act_graph_fn(struct act *act, const struct err *err,
                          const struct graph *graph);
void act_graph(struct act *act, act_graph_fn *then);

typedef void act_volume_fn(struct act *act, const struct err *err,
                           struct volume_result *result);
void act_storage(struct act *act, struct volume *volume,
                 const struct volume_request *request, act_volume_fn *then);

/* Compares volumes, or cares for the scratch image: see bulk/check.h. */
typedef void act_check_fn(struct act *act, const struct err *err,
                          const struct check_result *result);
typedef void act_progress_fn(struct act *act, uint64_t bytes, uint64_t total);
void act_check(struct act *act, const struct check_request *request,
               act_progress_fn *progress, act_check_fn *then);

/*
 * Copies a volume: see bulk/copy.h, whose events 'event' gets. An act that is
 * cancelled ends the copy.
 */
typedef void act_copy_event_fn(struct act *act, const json_t *event);
typedef void act_copied_fn(struct act *act, const struct err *err);
void act_copy(struct act *act, const struct copy_options *options,
              act_copy_event_fn *event, act_copied_fn *then);

/* Keeps a volume for the act's own use, freed with it. Steals 'volume'. */
struct volume *act_own_volume(struct act *act, struct volume *volume);

/*
 * Asks a volume on the side, while the act waits for something else: 'then'
 * comes once, unless the act ends before. One at a time (-EBUSY), and few in
 * all (-EAGAIN: later). Steals 'volume', also when it fails.
 */
typedef void act_asked_fn(struct act *act, void *data, const struct err *err,
                          struct volume_result *result);
int act_ask(struct act *act, struct volume *volume, act_asked_fn *then,
            void *data);

/* Runs a command of the user's with 'input' on stdin. */
typedef void act_spawn_fn(struct act *act, const struct err *err,
                          const char *output);
void act_spawn(struct act *act, const char *command, const char *input,
               unsigned timeout_ms, act_spawn_fn *then);

/* Calls 'fn' after 'ms': for asking again what answered "not yet". */
void act_again(struct act *act, unsigned ms, step_fn *fn);
/* The same, and at once when a QEMU tells of its stream or its guest. */
void act_again_on_event(struct act *act, unsigned ms, step_fn *fn);

/* --- what it may tell --- */

/* An event for the user, "time" and "op" added. Steals 'data'. */
void act_emit(struct act *act, const char *event, json_t *data);
void act_warn(struct act *act, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
/*
 * What the act waits for just now, for the error when the time is up; both
 * borrowed and of the plan's or static storage; NULL: nothing worth telling.
 */
void act_set_waiting(struct act *act, const char *what, const char *object);
/* Whether an earlier try of this very act may have had an effect. */
bool act_is_repeated(const struct act *act);
/*
 * Whether the QEMU that answers is the very process of the plan: it needs no
 * claim to be known. False where the process is not seen from here.
 */
bool act_is_same_qemu(const struct act *act);
/* Whether the QEMU of the plan is gone, or another one answers in its place. */
bool act_has_lost_qemu(const struct act *act);
/* Whether the user wants to go back, while it is the pivot's turn. */
bool act_abort_asked(const struct act *act);
/* Milliseconds of the loop's clock. */
uint64_t act_now_ms(const struct act *act);
/* Zeroed memory of the act's own, freed with it; NULL without memory. */
void *act_scratch(struct act *act, size_t size);

/* --- going back after the pivot: see run/op-return.c --- */

/* Whether the step is of the table that goes back to the source. */
bool act_is_returning(const struct act *act);
/*
 * The guest stands still from now on, which 'false' ends. It also ends when
 * the guest is seen to go on, and when that could have been missed: by a
 * connection that broke, or an engine before this one.
 */
void act_set_standstill(struct act *act, bool still);
bool act_stands_still(const struct act *act);
/* Since when, by act_now_ms(). */
uint64_t act_stands_since_ms(const struct act *act);

/* --- the frozen moment: see run/watchdog.h --- */

int act_guard_arm(struct act *act, const char *const *jobs, unsigned n_jobs,
                  enum watchdog_guest guest, struct err **errp);
/*
 * The same for a stream, which stops the guest before the switchover; 'thaws':
 * by postcopy, and the guest ran.
 */
int act_guard_stream(struct act *act, unsigned limit_ms, bool thaws,
                     struct err **errp);
bool act_guard_is_armed(const struct act *act);
/* Before migrate-continue: see watchdog_commit(). */
int act_guard_commit(struct act *act, struct err **errp);
void act_guard_hold_off(struct act *act); /* nothing is frozen yet */
void act_guard_disarm(struct act *act);
/*
 * Whether a guest that ran is stopped, or may be, by an act that lets it go on
 * itself: what is to be known when that is begun anew.
 */
void act_set_owes_cont(struct act *act, bool owes);
bool act_owes_cont(const struct act *act);
/*
 * Whether the guest's writes to a disk wait for the mirror's target, as far as
 * is known: from the start, since it was switched, or perhaps by an engine
 * before this one.
 */
void act_set_writes_block(struct act *act, unsigned disk);
bool act_writes_block(const struct act *act, unsigned disk);
