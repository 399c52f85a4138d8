/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The blocking half of a copy, in a thread of its own; copy.c and work*.c. */
#pragma once

#include <stdatomic.h>

#include "backends/backend.h"
#include "bulk/copy.h"
#include "bulk/digest.h"
#include "bulk/extents.h"
#include "bulk/pipeline.h"
#include "bulk/resume.h"

/* How it ends, decided once, by whoever comes first. */
enum work_end {
    WORK_GOES_ON = 0,
    WORK_CLEANS, /* this thread: the target is on its way out */
    WORK_LEFT,   /* the loop: told to have failed, and nothing may change */
};

struct work {
    /* Set by copy.c. */
    struct copy_options options;
    const char *key;
    atomic_bool cancel;
    atomic_uint end; /* enum work_end */
    void *data;
    /* Steals 'event'; from this thread. */
    void (*tell)(void *data, json_t *event);
    /* What is under way from now on, NULL: nothing; from this thread. */
    void (*watch)(void *data, const char *phase, const struct pipeline *p);

    /* This thread's. */
    struct volume *a;
    struct volume *b;
    struct bulk *a_open; /* copy: by which the source was looked at */
    void *a_held;
    void *b_held;
    struct volume_info a_info;
    struct volume_info b_info;
    uint64_t size;
    char stamp[96];
    struct extents *map;
    struct extents *b_map;
    struct record *record;
    struct digests *manifest;
    bool changed; /* the world, by us: a failure is no refusal any more */
    bool created;
    bool resumed;
    bool blank;
    bool offloaded;         /* the storage has copied by itself */
    bool digested;          /* the record has the digests of all units */
    struct pipeline copied; /* figures of the copy, or of the comparison */
};

/* Whether the end is this one now: not if another was first. */
bool work_decide(struct work *work, enum work_end end);
/* work.c: all of a copy; work-verify.c: of a comparison. */
int work_copy(struct work *work, struct err **errp);
int work_verify(struct work *work, struct err **errp);
/* The blocking part of the end; work_done(): the rest, in any thread. */
void work_release(struct work *work);
void work_done(struct work *work);

/* --- between them --- */

/* Parses, gives a format by the name's end if none is said, and looks. */
int work_look(struct work *work, const char *uri, struct volume **ret,
              struct volume_info *ret_info, struct err **errp);
/* A volume to be read is there, at rest, and of a format that was said. */
int work_check_read(const struct work *work, const struct volume *volume,
                    const struct volume_info *info, struct err **errp);
/* What the volume's channel says: size, stamp and a map of the size's units. */
int work_map(struct work *work, struct volume *volume, unsigned flags,
             uint64_t *io_size, struct extents **ret, struct err **errp);
/* As the options have it. */
void work_pipeline(const struct work *work, struct pipeline *ret);
int work_run(struct work *work, const char *phase, struct pipeline *pipeline,
             struct err **errp);
/* Where a connection is lost, once more when the server is back. */
int work_run_through(struct work *work, const char *phase,
                     struct pipeline *pipeline, struct err **errp);
/*
 * What is on record, against those of both sides that have nothing but their
 * content to be known by: -ESTALE if that is not the same any more.
 */
int work_check_unproved(struct work *work, bool again, struct err **errp);
/* "4096 bytes from offset 0, ..." of the first of them; NULL without memory. */
char *work_differences(const struct pipeline *pipeline);
json_t *work_differences_json(const struct pipeline *pipeline);
void work_warn(struct work *work, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
