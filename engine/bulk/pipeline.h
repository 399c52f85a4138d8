/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Moves or compares the bytes of volumes, many requests at a time, within a
 * bound of memory. It knows channels, maps and digests, not where they come
 * from, and no storage.
 *
 * Lanes are threads: each one claims units, reads, scans, digests and writes
 * them on channels of its own, and hands nothing over. uv's pool is not for
 * this: it has four threads for everything, and a hand-over for each block
 * costs more than the block (see STYLE.md, rule 24, which is broken here).
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct bulk;
struct digests;
struct err;
struct extents;
struct record;
struct volume;

enum pipeline_mode {
    PIPELINE_COPY,    /* a -> b; digests go to the record */
    PIPELINE_CHECK,   /* a against digests that are known */
    PIPELINE_COMPARE, /* a against b */
    PIPELINE_DIGEST,  /* of a, to 'digests' */
};

enum { DIFFERENCES_MAX = 64 };

struct difference {
    uint64_t offset;
    uint64_t length;
};

struct pipeline {
    /* Set by the caller. */
    enum pipeline_mode mode;
    const struct volume *a;
    const struct volume *b; /* copy, compare */
    struct bulk *a_open;    /* a channel to 'a', which is taken, or NULL */
    unsigned a_flags;       /* of bulk_open */
    unsigned b_flags;
    uint64_t size; /* to go through; beyond a volume's end are zeroes */
    const struct extents *a_map;
    const struct extents *b_map; /* compare */
    bool blank;                  /* copy: b reads as zeroes where not written */
    struct record *record;       /* copy */
    struct digests *digests;     /* check: to compare with; digest: result */
    struct extents *differs;     /* compare: gets the blocks that do; or NULL */
    uint64_t memory;             /* bytes of buffers */
    uint64_t speed;              /* bytes a second read, 0: any */
    bool low_priority;
    const atomic_bool *cancel;

    /* To be looked at from any thread meanwhile. */
    _Atomic uint64_t passed; /* bytes of the volume that are dealt with */
    _Atomic uint64_t read;
    _Atomic uint64_t written;
    _Atomic uint64_t zeroed;
    _Atomic uint64_t skipped; /* holes that nothing was done for */
    _Atomic uint64_t resumed; /* safe already */
    _Atomic uint64_t differing;
    unsigned lanes;
    bool lost; /* failed by a lost connection: see pipeline_again() */

    /* By offset, the lowest of them. */
    struct difference differences[DIFFERENCES_MAX];
    unsigned n_differences;

    /* The pipeline's own. */
    pthread_mutex_t lock;
    uint64_t next;   /* unit */
    uint8_t *judged; /* all but copy: units that need not be read again */
    uint8_t *late;   /* units of zeroes that were read, to be zeroed in runs */
    uint64_t n_late;
    uint64_t late_first; /* none before it */
    uint64_t allowed_ns;
    uint64_t saved_ns;
    uint64_t since_save;
    bool flushing;
    unsigned running;
    bool again;
    _Atomic bool stop;
    struct err *err;
};

/*
 * Blocks until all is done, has failed, or *cancel was set (-ECANCELED).
 * Differences are no error. Zero the structure, then set the upper members.
 */
int pipeline_run(struct pipeline *pipeline, struct err **errp);
/*
 * After it has failed: it can be run once more, on new channels. What was not
 * flushed, or not judged, is done again; the figures go on.
 */
void pipeline_again(struct pipeline *pipeline);
/* It is not: frees what was kept for that, if there is any. */
void pipeline_done(struct pipeline *pipeline);
