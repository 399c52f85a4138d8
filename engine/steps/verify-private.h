/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the steps of --verify share: verify.c has the scratch image and the
 * order of rounds, verify-disk.c what is done for one disk in a round.
 */
#pragma once

#include "bulk/check.h"
#include "policy/progress.h"
#include "run/step.h"
#include "vm/names.h"

/* An act's memory; it begins anew after a crash. */
struct verifying {
    unsigned disk;
    unsigned round; /* from 0 */
    bool rest;      /* the guest stands still: what differs now, differs */
    bool counted;   /* the mirror's bitmap was seen empty */
    uint64_t begun_ms;
    uint64_t took_ms; /* of reading in the round */
    uint64_t looked;  /* bytes in the round, all disks */
    uint64_t differing;
    struct progress progress;
    step_fn *then; /* when all is clean, or all disks are done */
    unsigned tries;
};

/* The act's memory; NULL: the act has ended, without memory. */
struct verifying *verify_begins(struct act *act);
struct verifying *verifying_of(struct act *act);
/* The disk of the act, or the one it is at. */
const struct plan_disk *verify_disk(struct act *act);

char *verify_scratch_path(const struct plan *plan,
                          const struct plan_disk *disk);
json_t *verify_scratch_node(const char *op, const struct plan *plan,
                            const struct plan_disk *disk);
json_t *verify_scratch_name(struct act *act);
/* The bitmap that records in this round. */
struct name verify_dirty_name(const struct act *act, unsigned disk,
                              unsigned round);
/* Bitmaps and scratch nodes of ours are away, then 'then'. */
void verify_clean_then(struct act *act, step_fn *then);

/* All that a round is for this disk and those after it, then v->then. */
void verify_disk_begin(struct act *act);
/* The act's facts so far: {"round","seconds","disks":[{...}]}; borrowed. */
json_t *verify_facts(struct act *act);
