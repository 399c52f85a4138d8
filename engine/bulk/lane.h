/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* One thread of a pipeline; pipeline.c and lane.c only. */
#pragma once

#include "backends/bulk.h"
#include "bulk/digest.h"
#include "bulk/extents.h"
#include "bulk/pipeline.h"
#include "policy/depth.h"

enum claim { CLAIM_DATA, CLAIM_ZERO, CLAIM_WAIT, CLAIM_END };

struct lane {
    struct pipeline *pipeline;
    pthread_t thread;
    struct bulk *a;
    struct bulk *b;
    struct slot *slots;
    unsigned n_slots;
    char *buffers; /* of all slots */
    struct slot *idle;
    unsigned busy; /* slots that are not */
    struct depth depth;
    bool ended; /* nothing left to claim */
    bool last;  /* all others have ended */
    struct bulk_request flush;
    bool flush_pending;
};

struct slot {
    struct lane *lane;
    struct slot *next;
    char *buffer;
    char *other;   /* compare: of b */
    uint64_t unit; /* first one */
    uint64_t units;
    size_t length;
    unsigned pending;
    uint16_t mask;
    struct digest digest;
    struct bulk_request requests[RANGES_MAX];
};

/* Makes 'n_slots' slots and opens the channels that are not open yet. */
int lane_init(struct lane *lane, struct pipeline *pipeline, unsigned n_slots,
              struct err **errp);
void lane_done(struct lane *lane);
/* The thread's body. */
void *lane_run(void *lane);

/* --- pipeline.c --- */

/* The next units to deal with; 'ret_wait_ms' for CLAIM_WAIT. */
enum claim pipeline_claim(struct pipeline *pipeline, uint64_t *ret_unit,
                          uint64_t *ret_units, unsigned *ret_wait_ms);
/* A unit's end: copy and digest. */
void pipeline_unit_done(struct pipeline *pipeline, uint64_t unit,
                        struct digest digest);
/*
 * Copy: a unit that was read is all zeroes, which have to be written: claimed
 * again within a run of such ones, by this lane at the latest.
 */
void pipeline_zero_later(struct pipeline *pipeline, uint64_t unit);
void pipeline_differs(struct pipeline *pipeline, uint64_t offset,
                      uint64_t length);
/* Whether this lane is to flush now; 'last' also when it is too early. */
bool pipeline_flush_begin(struct pipeline *pipeline, bool last);
void pipeline_flush_end(struct pipeline *pipeline, int result,
                        const struct bulk *bulk);
/* The first error stays; all lanes stop. 'bulk' NULL: 'err', which is taken. */
void pipeline_fail(struct pipeline *pipeline, const struct bulk *bulk, int code,
                   const char *verb, uint64_t offset, struct err *err);
/* This lane has ended; true: it was the last one, and is to flush. */
bool pipeline_leave(struct pipeline *pipeline);
bool pipeline_stopped(const struct pipeline *pipeline);
uint64_t pipeline_now_ns(void);
