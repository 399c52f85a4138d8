/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a migration looks at on both sides before it decides, and what it
 * decides: every mismatch in one go, and for each disk how it gets there.
 */
#pragma once

#include <stdbool.h>

#include "run/op.h"

struct qpivot_migrate_options;

/* What the user said of a disk. */
struct migrate_want {
    char *disk;
    char *how; /* "share", "nbd", "direct", or a target */
    bool met;  /* the source has it */
};

/* What was seen of a disk's target. */
struct migrate_look {
    bool looked; /* 'info' is filled in */
    bool secret; /* QEMU needs one to open it */
    bool base;   /* there is a file by the name of the source's base */
    struct volume_info info;
};

/* What a migration was asked for, beside its plan, and has seen so far. */
struct migrate_request {
    unsigned flags; /* QPIVOT_DROP_BITMAPS, ... */
    unsigned sync;  /* enum qpivot_sync */
    uint64_t bandwidth;
    unsigned downtime_limit_ms;
    unsigned multifd;
    uint64_t xbzrle_cache;
    uint32_t asked; /* enum migrate_option */
    struct migrate_want *wants;
    unsigned n_wants;
    struct migrate_look *looks; /* by disk */
    json_t *notes;
    json_t *empty; /* keys of the source's devices without a medium */
    json_t *src;   /* replies by command, see migrate_look */
    json_t *dst;
    /* Nanoseconds of the loop's clock: the guest stops and goes on. */
    uint64_t stop_ns;
    uint64_t gate_ns;     /* pre-switchover */
    uint64_t continue_ns; /* the mirrors are ended */
    uint64_t completed_ns;
    uint64_t resume_ns;
};

int migrate_request_new(const struct qpivot_migrate_options *options,
                        struct plan **ret_plan, struct migrate_request **ret,
                        struct err **errp);
void migrate_request_free(void *request);

/* Has both QEMUs switch it on; a problem where 'needed' and not there. */
void migrate_want_capability(struct op *op, const char *name, bool needed);
/* Of the step's QEMU: what it is and can do; then its graph. */
step_fn migrate_look, migrate_look_source, migrate_look_destination;
void migrate_decide(struct op *op);

/* --- migrate-match.c: both sides against each other --- */

void migrate_note(struct migrate_request *request, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
void migrate_problem(struct op *op, int code, const char *object,
                     const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

struct graph;
struct graph_disk;
struct graph_node;

/* What of a source disk no stream and no mirror carries. */
void migrate_check_source(struct op *op, const struct plan_disk *disk,
                          const struct graph_disk *found);
/* Finds each disk's counterpart and how it gets there. */
void migrate_match_disks(struct op *op, const struct graph *graph);
/* Machine, memory, run states, jobs, capabilities. */
void migrate_check_machines(struct op *op);

/* --- migrate-bitmap.c --- */

/* What plan_disk.bitmaps begins with: "fault" says what ails one. */
json_t *migrate_bitmaps_of(const struct graph_node *node);
/* Of a disk that has its counterpart: leaves those that go over. */
void migrate_match_bitmaps(struct op *op, struct plan_disk *disk,
                           const struct graph *graph);
/* The capability: on where the stream carries some, else off. */
void migrate_want_bitmaps(struct op *op);

/* --- migrate-target.c: what is not there yet, or not as a disk --- */

/* Whether 'how' is a target, and no word; -EINVAL with the reason. */
int migrate_target_check(const char *disk, const char *how, struct err **errp);
bool migrate_is_target(const char *how);
/* Whether the destination's device stands on nothing, until it is given some */
bool migrate_is_placeholder(const struct graph_disk *there);
/* The disk's 'to' is to take a placeholder's stead. */
void migrate_match_target(struct op *op, struct plan_disk *disk,
                          const struct graph_disk *there);
/* The source is to write the destination's own volume, without an export. */
void migrate_match_direct(struct op *op, struct plan_disk *disk,
                          const struct graph_disk *there);
/* What there is already, where the plan can look. */
step_fn migrate_look_target, migrate_look_secret, migrate_look_file;
/* Each disk's source, where a target is written that was there before. */
step_fn migrate_look_origin;
step_when_fn migrate_overwrites, migrate_is_file_there;
/* Whether a QEMU that has it open sees what another one appends to it. */
bool migrate_grows_unseen(const char *driver, const char *format);
void migrate_decide_targets(struct op *op);

/* --- migrate-same.c --- */

enum migrate_same { MIGRATE_UNPROVED, MIGRATE_SAME, MIGRATE_DIFFERENT };

/*
 * By what both call it; not of files. 'one_host': what is local to a host, as
 * 127.0.0.1, is the same to both.
 */
enum migrate_same migrate_same_name(const char *driver, const char *src,
                                    const char *dst_driver, const char *dst,
                                    bool one_host);
/* Whether a disk of the source is the same storage as 'there'. */
enum migrate_same migrate_same(struct op *op, const struct plan_disk *disk,
                               const struct graph_node *there);
/* The same, of any two files, by drivers and names. */
enum migrate_same migrate_same_open(struct op *op, const char *driver,
                                    const char *src, const char *dst_driver,
                                    const char *dst);
/* Of an RBD image that is to be shared by two hosts: ask its cluster. */
step_when_fn migrate_is_shared_image;
step_fn migrate_look_shared;
extern const char migrate_as_asked[]; /* plan_disk.reason: the user said so */

/* --- migrate-base.c: linked clones --- */

/* Of the source: what a base at the destination would have to equal. */
void migrate_look_base(struct op *op, struct plan_disk *disk,
                       const struct graph_disk *found);
/* Of an image that is to be filled: whether it may have its base. */
bool migrate_match_base(struct op *op, struct plan_disk *disk,
                        const struct graph_disk *there);
/* Of one that the destination is to make. */
void migrate_decide_base(struct op *op, struct plan_disk *disk);
void migrate_forget_base(struct plan_disk *disk); /* unless it is copied */
/* The plan: whether the destination has a base by the source's name for it. */
step_when_fn migrate_may_stand_on_base;
step_fn migrate_look_base_there;

/*
 * 'base-open': of an image to be made; 'base-compare': leaves the facts "equal"
 * and "reason"; 'base-drop': unless it is equal; 'base-overlay': of an image
 * that was there, leaves "empty".
 */
step_when_fn base_is_compared, base_is_opened, base_has_overlay;
step_command_fn base_open_command;
step_fn base_open, base_open_probe, base_compare, base_drop, base_see_empty;
