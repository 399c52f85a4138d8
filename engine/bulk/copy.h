/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Copies a volume at rest to another one, or compares two: asynchronous,
 * cancellable, resumable. What a step of an operation or a verb starts; it
 * knows volumes, and neither QEMU's monitors nor who asks.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

struct copy;
struct err;

enum copy_kind { COPY_COPY, COPY_VERIFY };

enum copy_outcome { COPY_DONE, COPY_FAILED, COPY_REFUSED };

struct copy_options {
    enum copy_kind kind;
    const char *source; /* URIs; verify: A and B, B may be NULL */
    const char *target;
    const char *state_dir; /* where the progress record is kept */
    const char *manifest;  /* copy: written; verify: checked; or NULL */
    uint64_t memory;       /* bytes of buffers; 0: 64 MiB */
    uint64_t speed;        /* bytes a second; 0: any */
    uint64_t stall_ms;     /* it fails when nothing moves; 0: see copy.c */
    /* For a step: the record's name, and the target's identity; or NULL. */
    const char *key;
    const char *identity;
    bool bytes;       /* of both volumes, whatever format they hold */
    bool frozen;      /* the source is open elsewhere, and nobody writes it */
    bool blank;       /* the target is there, and reads as zeroes */
    bool existing;    /* the target is there and is overwritten */
    bool force_share; /* though somebody may write the source meanwhile */
    bool verify;      /* read the target back */
    bool clean;       /* remove what was made here if it fails */
    bool low_priority;
    bool no_offload;
    bool dry_run;
};

/*
 * event: of qpivot(1), without "time" and "op"; borrowed. ended: once, after
 * the last event; 'err' is NULL when all is done. The copy may not be used
 * from inside 'ended' on.
 */
struct copy_callbacks {
    void *data;
    void (*event)(void *data, const json_t *event);
    void (*ended)(void *data, enum copy_outcome outcome, const struct err *err);
};

/* All texts are copied. Starts a thread; the callbacks come from the loop. */
int copy_start(uv_loop_t *loop, const struct copy_options *options,
               const struct copy_callbacks *callbacks, struct copy **ret,
               struct err **errp);
/*
 * It ends soon, with -ECANCELED, and can be gone on with later. Where storage
 * never answers its thread is left: 'ended' comes in bounded time, and what is
 * under way may still be done afterwards.
 */
void copy_cancel(struct copy *copy);
/* "c" and 12 digits: of this pair, the same each time. */
const char *copy_id(const struct copy *copy);
