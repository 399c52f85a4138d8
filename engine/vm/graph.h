/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The block graph of one QEMU as it was when it was asked: what exists, who
 * uses whom, and the decisions that rest on it: which disk a person means,
 * whether a pivot has really happened, what may be deleted. Pure: it is built
 * from replies, sends nothing and knows no operation.
 *
 * All that is handed out borrows from the graph and dies with it.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/cleanup.h"

struct err;
struct graph;

/* --- building --- */

/*
 * Replies of QEMU, the "return" member each, all borrowed. NULL where it was
 * not asked or refused. They are separate commands: a graph that changed in
 * between is found by graph_proof(), which then says -EAGAIN.
 */
struct graph_replies {
    const json_t *nodes;      /* query-named-block-nodes, flat=true */
    const json_t *block;      /* query-block */
    const json_t *jobs;       /* query-jobs */
    const json_t *block_jobs; /* query-block-jobs */
    const json_t *exports;    /* query-block-exports */
    const json_t *edges;      /* x-debug-query-block-graph: see graph_edges */
    /* {"<id>": qom-get /objects/<id> limits}: graph_throttle_groups() */
    const json_t *throttle_groups;
};

enum {
    GRAPH_NODES_MAX = 65536, /* more is refused with -E2BIG */
    GRAPH_EDGES_MAX = 262144,
};

/*
 * Where the edges come from, best first. With children (QEMU 11) the nodes'
 * edges are known, and the devices' from query-block; those of jobs are not.
 */
enum graph_edges { GRAPH_EDGES_NONE, GRAPH_EDGES_CHILDREN, GRAPH_EDGES_ALL };

/*
 * Members that are missing, extra, or of another type are as if untold: only
 * replies that are no arrays at all, too many objects (-E2BIG) and want of
 * memory are errors.
 */
int graph_build(const struct graph_replies *replies, struct graph **ret,
                struct err **errp);
struct graph *graph_free(struct graph *graph);
DEFINE_CLEANUP(struct graph, graph_free)
#define _cleanup_graph_ _cleanup_(graph_freep)

enum graph_edges graph_edges(const struct graph *graph);

/* --- what there is --- */

struct graph_bitmap {
    const char *name; /* "": QEMU's own, as a mirror's */
    uint64_t granularity;
    uint64_t count; /* dirty bytes */
    bool recording;
    bool persistent;
    bool busy;
    bool inconsistent;
};

struct graph_node {
    const char *name;
    const char *driver;
    const char *filename; /* as QEMU tells it; can be json:{...}; never NULL */
    const char *format;   /* image.format; the driver where it is untold */
    uint64_t size;        /* virtual size in bytes */
    bool anonymous;       /* '#' name: QEMU's own, gone with its last parent */
    bool filter;          /* its data is that of its one child */
    bool job_filter;      /* a filter that a job put there: mirror_top, ... */
    bool read_only;
    bool encrypted;
    bool inactive;             /* QEMU 10: active=false */
    const char *detect_zeroes; /* "off" "on" "unmap", or "" */
    bool cache_known;
    bool cache_direct;
    bool cache_no_flush;
    const char *throttle_group; /* of driver throttle, else NULL */
    unsigned backing_depth;     /* backing_file_depth */
    const char *backing_file;   /* what QEMU calls its backing, or NULL */
    uint64_t cluster_size;      /* 0: untold */
    const char *compat;         /* qcow2: "1.1", or NULL */
    const char *data_file;      /* qcow2 with external data, or NULL */
    bool extended_l2;
    bool corrupt;
    const char *const *snapshots; /* internal ones, by name */
    unsigned n_snapshots;
    const struct graph_bitmap *bitmaps;
    unsigned n_bitmaps;
    unsigned index; /* in graph_nodes() */
};

/* A BlockBackend that query-block tells of: a guest device, or a drive. */
struct graph_device {
    const char *id;    /* of -device, or NULL */
    const char *drive; /* legacy drive id, or "" */
    const char *qdev;  /* as QEMU tells it, or NULL: no guest device */
    const char *key;   /* qdev, else drive: for graph_find_device() */
    const char *label; /* id, else drive, else qdev: for people */
    /*
     * What the device is attached to, job filters included; NULL if it is
     * empty or its node is untold.
     */
    const struct graph_node *root;
    bool removable;
    bool empty; /* no medium */
    bool tray_open;
    bool cdrom; /* a guess: removable, with a tray, no floppy */
    bool locked;
    bool read_only;
    bool shares_writes; /* lets others write to 'root': share-rw=on, or flash */
    bool writeback;     /* the write cache that the guest sees */
    const char *io_status;  /* "ok" "failed" "nospace", or "" */
    const char *group;      /* throttle group of the drive, or NULL */
    const json_t *limits;   /* {"iops":..} of the drive, non-zero ones */
    const char *query_node; /* query-block's node-name, or NULL */
    unsigned index;         /* in graph_devices() */
};

struct graph_job {
    const char *id;
    const char *type;   /* "mirror", ... */
    const char *status; /* "running", ...; "" if untold */
    const char *error;  /* or NULL */
    bool block;         /* query-block-jobs knows it */
    unsigned index;     /* in graph_jobs() */
};

struct graph_export {
    const char *id;
    const char *type; /* "nbd", ... */
    const char *node_name;
    bool shutting_down;
    unsigned index;
};

/* Contiguous arrays; empty ones may be NULL. */
const struct graph_node *graph_nodes(const struct graph *graph,
                                     unsigned *ret_n);
const struct graph_device *graph_devices(const struct graph *graph,
                                         unsigned *ret_n);
const struct graph_job *graph_jobs(const struct graph *graph, unsigned *ret_n);
const struct graph_export *graph_exports(const struct graph *graph,
                                         unsigned *ret_n);

/* NULL if there is none. */
const struct graph_node *graph_find_node(const struct graph *graph,
                                         const char *name);
/* Its path in QEMU's object tree, by its key; NULL without memory. */
char *graph_device_path(const char *key);
/* By key; NULL if there is none. */
const struct graph_device *graph_find_device(const struct graph *graph,
                                             const char *key);
const struct graph_job *graph_find_job(const struct graph *graph,
                                       const char *id);

/* The node's child by an edge of this role ("file", "backing"), or NULL. */
const struct graph_node *graph_child(const struct graph *graph,
                                     const struct graph_node *node,
                                     const char *role);

/*
 * A new array of the ids of all throttle groups that nodes refer to: what
 * qom-get is to be asked for. NULL without memory.
 */
json_t *graph_throttle_groups(const json_t *nodes);

/* --- who uses what --- */

enum graph_kind {
    GRAPH_NODE,
    GRAPH_DEVICE,
    GRAPH_JOB,
    GRAPH_EXPORT,
    GRAPH_BACKEND /* a BlockBackend that nobody tells more of */
};

const char *graph_kind_text(enum graph_kind kind); /* "device", "job", ... */

struct graph_user {
    enum graph_kind kind;
    const char *name; /* node name, device label, job id, export id, or "" */
    unsigned index;   /* in the array of its kind; of backends: any number */
};

/*
 * Everything at the top of a path to 'node', each once: devices, jobs,
 * exports, backends, and nodes that nothing uses ('node' itself excepted).
 * The caller frees *ret by free(); it is NULL when there are none.
 */
int graph_node_users(const struct graph *graph, const struct graph_node *node,
                     struct graph_user **ret, unsigned *ret_n);

/* Whether 'to' is 'from' or somewhere below it. */
bool graph_reaches(const struct graph *graph, const struct graph_node *from,
                   const struct graph_node *to);

/* --- a disk --- */

/* One image of a backing chain. */
struct graph_layer {
    const struct graph_node *node;
    const struct graph_node *protocol; /* last of its file children, or node */
};

struct graph_disk {
    const struct graph_device *device;
    /* What blockdev-mirror's 'device' must be: the topmost explicit node. */
    const struct graph_node *root;
    /* Between the device and the active layer, top-down; no job filters. */
    const struct graph_node **filters;
    unsigned n_filters;
    const struct graph_node *job_filter; /* a job's filter on top, or NULL */
    const struct graph_node *active;     /* the active layer */
    const struct graph_node *protocol;   /* of the active layer */
    struct graph_layer *layers; /* the backing chain, the active layer first */
    unsigned n_layers;          /* 1: no backing */
    const struct graph_node **nodes; /* all below the device, top-down */
    unsigned n_nodes;
    /* Who else uses one of 'nodes', by this device's paths or others. */
    struct graph_user *others;
    unsigned n_others;
    const struct graph_node *shared; /* topmost node with another user */
    uint64_t size;                   /* what the guest sees, bytes */
    const char *format; /* of the active layer; a bare protocol node: "raw" */
};

/*
 * Resolves what a person calls a disk: a device id, a legacy drive id, the
 * name of a node from the device's root down to its active layer, or a whole
 * qdev path. -ENOENT: nothing of that name; -EEXIST: several; -ENODEV: a node
 * that is not on top of a device; all with the candidates in the hint.
 * -ENOMEDIUM: the drive is empty. -ENOTSUP: the edges are not known.
 */
int graph_find_disk(const struct graph *graph, const char *name,
                    struct graph_disk **ret, struct err **errp);
/* The same for a device; errors as above but the first three. */
int graph_disk(const struct graph *graph, const struct graph_device *device,
               struct graph_disk **ret, struct err **errp);
struct graph_disk *graph_disk_free(struct graph_disk *disk);
DEFINE_CLEANUP(struct graph_disk, graph_disk_free)
#define _cleanup_graph_disk_ _cleanup_(graph_disk_freep)

/* --- decisions --- */

struct graph_claim {
    const char *device;          /* graph_device.key */
    const char *target;          /* the node that it must reach */
    const char *source;          /* the former active layer, or NULL */
    const char *source_protocol; /* or NULL; a name that is gone is fine */
    /* A job that may be on the target, and its filter node; or NULL. */
    const char *job;
    const char *filter;
    const char *copies_to; /* the node that 'job' has to copy onto; or NULL */
    bool others;           /* may have jobs and their filters on the target */
};

/*
 * Proves a pivot (the claim) or names what is against it. 0: the device
 * reaches the target through filters only, no path from it reaches the source
 * or its protocol node, no other job uses the target (unless that is allowed),
 * the job copies onto what it has to (as far as this QEMU tells what a job uses), and query-block says
 * the same. -ENOENT: no such device, target or job; -ENOMEDIUM; -EBUSY: not so
 * (yet);
 * -EAGAIN: the replies contradict each other, ask again; -ENOTSUP: this QEMU
 * does not show its graph, so nothing is proved.
 */
int graph_proof(const struct graph *graph, const struct graph_claim *claim,
                struct err **errp);

/*
 * A new array of the node names for blockdev-del, in an order that works:
 * every node before its children. Of the names given (array of strings),
 * those are left out that are gone, are QEMU's own ('#'), or are used by
 * something that stays; all of them if the edges are not known or torn (see
 * -EAGAIN above). Ownership cannot be seen: a node that was defined
 * inside its parent's options goes with the parent, so that blockdev-del may
 * answer "Failed to find node" (it is gone) or "is not owned by the monitor"
 * (it goes with what holds it): both are no failure. NULL without memory.
 */
json_t *graph_deletable(const struct graph *graph, const json_t *names);

/*
 * What keeps each node, by its index, into a new array that the caller frees.
 * 'ours' tells by its name whether a node, job or export is going to go. Jobs'
 * own edges are known with GRAPH_EDGES_ALL only; QEMU refuses the rest.
 */
enum graph_hold {
    GRAPH_FREE, /* nothing but what goes itself */
    GRAPH_HELD, /* a node, job or export that stays, or one unknown */
    GRAPH_LIVE, /* a device reaches it: the guest may write to it */
};

int graph_holds(const struct graph *graph, bool (*ours)(const char *name),
                enum graph_hold **ret);

/* --- as JSON --- */

/*
 * {"devices":[{"id","drive","qdev","node","cdrom","read_only","empty",
 *               "locked","io_status"}],
 *  "nodes":[{"name","driver","filename","size","read_only","filter",
 *            "detect_zeroes","cache":{"direct","no_flush"},"throttle_group",
 *            "snapshots":[],"bitmaps":[{"name","granularity","recording",
 *            "persistent","count","busy","inconsistent"}]}],
 *  "edges":[{"parent","child","role","perm":[]}],
 *  "jobs":[{"id","type","status","nodes":[]}],
 *  "exports":[{"id","type","node"}]}
 * A parent is a node name or "device:ID", "job:ID", "export:ID", "backend:N".
 * A new reference, NULL without memory.
 */
json_t *graph_to_json(const struct graph *graph);

/*
 * What the guest or the owner of the VM can notice of a disk, as facts for
 * the journal: {"device","drive","qdev","root","node","protocol","driver",
 * "format","filename","protocol_driver","protocol_filename","size",
 * "read_only","detect_zeroes","cache":{},"image":{},"filters":[],
 * "throttle":{},"snapshots":[],"bitmaps":[],"backing":[]}; "backing" has the
 * file names of the images below. New reference, NULL without memory.
 */
json_t *graph_disk_facts(const struct graph *graph,
                         const struct graph_disk *disk);

/*
 * Compares two graph_disk_facts(): a new array of {"property","before",
 * "after"}, empty when nothing differs. File names are left out: to change
 * them is what a move is for. The discard option is not visible in any QEMU
 * reply and therefore not compared. NULL without memory.
 */
json_t *graph_differences(const json_t *before, const json_t *after);
