/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * An operation whose journal is lost: QEMU's claim tells its id, our names in
 * the graph what it had made, the jobs how far it was. From that comes a plan
 * of a move and which of its steps were done; the runner does the rest. Nothing
 * on storage is ever removed: every target counts as one that was there.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>

#include "run/op.h"
#include "vm/names.h"

struct graph;
struct graph_device;
struct graph_node;
struct qpivot_recover_options;

extern const struct operation adopt_operation;

/* -EINVAL, -ENOMEM; what QEMU tells against it comes as an outcome. */
int adopt_start(const struct op_host *host,
                const struct qpivot_recover_options *options,
                const struct qpivot_callbacks *callbacks, struct op **ret,
                struct err **errp);

/* --- between its files --- */

enum { ADOPT_DISKS_MAX = 64 };

/* What was found of a disk. */
struct adopt_disk {
    bool key, file, create, image, target, job; /* is there, by name */
    bool uses_target; /* a device uses the target already */
    bool uses_source; /* a device was found whose disk the job copies */
    bool finishing;   /* its job was told to complete: it may be over */
    bool copies;      /* its job copies, or is ready */
    bool overlay;     /* one of strategy base's, or its file */
    bool client;      /* the target is an NBD client's node itself: migrate */
    bool bitmaps;     /* the source has some */
    bool volume;      /* we know what the target is on storage */
    bool twin;        /* its mirror back is there, or what is left of that */
    bool returned;    /* by which the guest has gone back to its source */
};

struct adopt {
    struct journal *journal;
    char *wanted; /* the id that the user told, or NULL */
    bool undo;
    char *holder; /* the claim's, or NULL */
    char *stream; /* query-migrate's status, or NULL */
    char *status; /* query-status */
    json_t *objects;
    json_t *block_jobs;
    json_t *capabilities; /* for migration, that are on: their names */
    json_t *parameters;   /* for migration, as they are */
    struct adopt_disk disks[ADOPT_DISKS_MAX];
    bool verifies;       /* it has left something of --verify */
    struct err *unclear; /* why nobody can decide: a person must look */
};

/* Whether QEMU has an object of this name. */
bool adopt_has_object(const struct adopt *adopt, const char *name);
/* Whether anything but a mirror back is there of the disk, by name. */
bool adopt_has_found(const struct adopt_disk *disk);
/* How many disks the names of this operation tell of. */
unsigned adopt_count(const struct adopt *adopt, const struct graph *graph,
                     const char *id);
/* Fills plan and adopt->disks; -ENOMEM. */
int adopt_disks(struct op *op, struct adopt *adopt, const struct graph *graph,
                const char *id);
/* What the mirror back of an undo window, if there is one, tells of a disk. */
void adopt_twin(struct adopt_disk *disk, const struct graph *graph,
                const char *id, unsigned index);
/* The former disk, which that mirror has as its target: fills 'disk'. */
int adopt_former(struct plan_disk *disk, const struct graph *graph,
                 const struct graph_device *device, const char *id);
/*
 * Whether the guest has gone back from its window, with all its disks; that of
 * some it has, and of others not, sets 'errp'.
 */
bool adopt_has_returned(const struct adopt *adopt, const struct plan *plan,
                        struct err **errp);
/*
 * Whether a guest is on its way: -EUNATCH, and 'errp' says what is certain and
 * what to look at.
 */
int adopt_check_stream(struct op *op, const struct adopt *adopt,
                       const struct graph *graph, struct err **errp);
/* Whether a stream's capabilities tell that it is no move. */
bool adopt_is_migration(const struct adopt *adopt);
/* The last of the node's file children, or the node; NULL of NULL. */
const struct graph_node *adopt_protocol(const struct graph *graph,
                                        const struct graph_node *node);
/* As a URI, where it is of a kind that we know; -ENOMEM. */
int adopt_name_source(struct plan_disk *disk, const struct graph_node *node);
/* The same of what --verify has left. */
int adopt_verify(struct op *op, struct adopt *adopt, const struct graph *graph,
                 const char *id);
