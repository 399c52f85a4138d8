/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What speaks against a move: each check adds its problems to the operation. */
#pragma once

#include <stdbool.h>

#include "backends/backend.h"
#include "run/op.h"

struct graph;
struct graph_disk;
struct graph_layer;

struct move_request_disk {
    bool found;  /* the source disk is known */
    bool looked; /* 'target' is filled in */
    bool secret; /* QEMU needs one to open the target */
    unsigned n_layers;
    bool shares_base;    /* another disk stands on the same one */
    uint64_t data;       /* so much of the source is data for sure */
    uint32_t block_size; /* the source's; 0: unknown */
    struct volume_info target;
    struct volume_info source; /* exists: it can be read from here */
};

/* What a move was asked for, beside its plan, and has seen so far. */
struct move_request {
    unsigned flags;    /* QPIVOT_DELETE_SOURCE, ... */
    unsigned via;      /* enum qpivot_via */
    unsigned sync;     /* enum qpivot_sync */
    unsigned strategy; /* enum qpivot_strategy */
    json_t *notes;
    struct move_request_disk *disks;
};

void move_note(struct move_request *request, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

void move_check_schema(struct op *op);
/* Disks and targets against each other. */
void move_check_pairs(struct op *op);
/* Also fills in what the check finds: bitmaps, layers. */
void move_check_source(struct op *op, struct plan_disk *disk,
                       const struct graph *graph,
                       const struct graph_disk *found);
/* --- move-strategy.c --- */

/*
 * Whether the image is copied at rest, or mirrored; what speaks against that,
 * and what would be lost by it. After the target's format, before its nodes.
 */
void move_decide_strategy(struct op *op, struct plan_disk *disk,
                          const struct volume *volume);
/* Where the guest's last writes are if QEMU has ended before the commit. */
void move_parked(struct op *op, struct err **error);
/* Of a disk in the result: how it was copied. */
void move_add_base(const struct op *op, const struct plan_disk *disk,
                   json_t *json);

/* --- move-base.c --- */

/* Of a backing chain: whether the target is to stand on it (--sync top). */
void move_look_base(struct op *op, struct plan_disk *disk,
                    const struct graph *graph, const struct graph_disk *found);
/* Once the nodes are decided: what of the target speaks against it. */
void move_decide_base(struct op *op, struct plan_disk *disk);

/* --- */

/* A target by itself, its format decided: whether it can become one. */
int move_target_fits(const struct volume *volume,
                     const struct volume_info *info, struct err **errp);
void move_check_target(struct op *op, const struct plan_disk *disk,
                       const struct volume *volume,
                       const struct volume_info *info);
/* --- move-fit.c --- */

/* Whether the target can be opened as its node will be. */
void move_check_direct(struct op *op, const struct plan_disk *disk,
                       const struct volume *volume,
                       const struct volume_info *info);
/* Free space, for all disks that go to one place together. */
void move_check_space(struct op *op);

/* --- */

/* A target that this very QEMU has open: NFS and RBD know no locks. */
void move_check_open_targets(struct op *op, const struct graph *graph);
/* Persistent bitmaps need a qcow2 node to live in. */
void move_check_bitmap_targets(struct op *op, const struct plan_disk *disk);
/* --delete-source; 'source' NULL: of no kind that is known. */
void move_check_removal(struct op *op, const struct plan_disk *disk,
                        const struct volume *source);
/* Where the new description goes, and what it cannot say. */
void move_check_persist(struct op *op);
/*
 * Where a file of this host is that QEMU has open by the relative 'name': new
 * text, or NULL when that cannot be told for sure.
 */
char *move_relative_source(struct op *op, const char *name);
/* What an image anywhere on this host can call it; NULL: nothing, or ENOMEM. */
char *move_name_of_base(struct op *op, const struct graph_layer *base);
void move_check_drive_mirror(struct op *op, const struct plan_disk *disk);
/* --verify: where the scratch images go; what cannot be read beside QEMU. */
void move_decide_verify(struct op *op);
/* Where its scratch images are; 'state' NULL: root's. The caller frees it. */
char *move_verify_dir(const char *id, const char *state);
void move_check_verify(struct op *op, const struct plan_disk *disk,
                       const struct volume *target);
bool move_is_qcow2_name(const char *name);
