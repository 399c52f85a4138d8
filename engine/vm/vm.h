/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One QEMU: its monitor, what it can do, its jobs kept fresh, and whether it
 * is there at all. It reconnects by itself and frees a QEMU that hangs on a
 * stalled NBD peer of ours; it knows nothing of operations.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <uv.h>

#include "base/list.h"
#include "vm/job.h"

struct err;
struct graph;
struct qmp;
struct qmp_addr;
struct qmp_schema;
struct qmp_trace;
struct vm;

enum vm_state {
    VM_OPENING, /* connecting for the first time */
    VM_UP,
    VM_LOST,    /* the connection broke; trying again */
    VM_GONE,    /* this QEMU is proved dead: its state died with it */
    VM_UNKNOWN, /* not reachable for too long, perhaps alive */
    VM_CLOSED
};

/* QEMU's process where it is on this host: its pid and start time. */
struct vm_process {
    uint64_t pid; /* 0: unknown */
    uint64_t start;
};

struct vm_options {
    uv_loop_t *loop;
    const struct qmp_addr *addr; /* copied */
    struct qmp_trace *trace;     /* borrowed or NULL */
    unsigned watchdog_ms;        /* 0: default of qmp.h */
    unsigned reconnect_for_ms;   /* 0: 30000 */
    const char *cache_dir;       /* vm/schema-cache.h; NULL: none; copied */
    struct vm_process process;   /* of an earlier engine, or zero */
};

/* What the owner is told; all from the loop. */
struct vm_owner {
    void *data;
    /* Every change to UP, LOST, GONE, UNKNOWN; err where there is one. */
    void (*changed)(void *data, enum vm_state state, const struct err *err);
    void (*event)(void *data, const char *name, const json_t *event);
    void (*warning)(void *data, const char *message);
    /* It hangs on a peer of ours, and vm_cut() is at work. */
    void (*stalled)(void *data);
};

/*
 * Opens the monitor and reads the schema; owner.changed tells VM_UP, or
 * VM_UNKNOWN with the reason when it cannot be reached (no retry at first).
 */
int vm_open(const struct vm_options *options, const struct vm_owner *owner,
            struct vm **ret, struct err **errp);
/* No callback comes any more, but 'closed' (may be NULL) at the end. */
void vm_close(struct vm *vm, void (*closed)(void *data), void *data);

enum vm_state vm_state(const struct vm *vm);
/* NULL unless VM_UP. */
struct qmp *vm_qmp(struct vm *vm);
const struct qmp_schema *vm_schema(const struct vm *vm);
const char *vm_name(const struct vm *vm);
uv_loop_t *vm_loop(const struct vm *vm);
struct vm_process vm_process(const struct vm *vm);
/* Whether that very process still runs; false for an unknown one. */
bool vm_process_lives(struct vm_process process);
/* Whether QEMU's process was started with -no-shutdown: 1, 0, -1 unknown. */
int vm_no_shutdown(const struct vm *vm);

/* Lets the connection go, and all that comes by it, and makes it anew. */
void vm_reconnect(struct vm *vm);

/*
 * Cuts the connections of NBD nodes of ours out-of-band, so that a job that
 * waits for a stalled server fails with EIO (qapi/yank.json).
 */
void vm_yank(struct vm *vm);
/* The same for a QEMU that hangs already: its owner cuts what else it can. */
void vm_cut(struct vm *vm);
/*
 * From now on only the nodes of these names (copied) are cut, not ours: the
 * guest may use ours. NULL: ours again.
 */
void vm_yank_only(struct vm *vm, const json_t *names);
/* Whether the migration stream is ours too, to be cut by vm_yank(). */
void vm_own_stream(struct vm *vm, bool ours);

/*
 * Level-triggered waiting: 'fn' is called from the loop with a fresh list of
 * jobs at once, after every job event, and at least 4 times a second, until
 * vm_wait_stop(). Nothing is called while the connection is lost.
 */
struct vm_wait {
    struct list_node node;
    void (*fn)(struct vm_wait *wait, const struct job_list *jobs);
};

void vm_wait_start(struct vm *vm, struct vm_wait *wait);
void vm_wait_stop(struct vm_wait *wait);

/* Reads the whole block graph; one error if any of the queries fails. */
typedef void vm_graph_fn(void *data, const struct err *err,
                         const struct graph *graph);
struct vm_query;
int vm_graph(struct vm *vm, vm_graph_fn *cb, void *data, struct vm_query **ret);
/* The callback will not come. */
void vm_query_cancel(struct vm_query *query);
