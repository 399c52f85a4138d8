/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Whether the target lives: asked of its storage, over a connection that is
 * not QEMU's, before the mirror, while it runs, right before the pivot, and
 * before QEMU is told to close it.
 *
 * The last one matters most: in query-named-block-nodes QEMU asks an NFS server
 * for a file's length and an RBD image for its first bytes, and it flushes in
 * blockdev-del, all that in its main loop. Storage that is gone then stops QEMU
 * and the guest until it is back; yank knows NBD only. So no step may look at
 * the graph, or change it, while such a target is silent.
 */
#pragma once

#include "policy/alive.h"
#include "run/step.h"

/* Sees that it answers while QEMU has it open, and what it is. */
step_fn alive_learn;
/* Undo of it: alive_wait(). */
step_fn alive_return;

/* The beginning of an act's scratch memory, for alive_wait(). */
struct alive_return {
    uint64_t since_ms;
    unsigned disk;
    step_fn *then;
};

/*
 * On the way back: goes on with 'then' when every target answers at which QEMU
 * would stand still, or gives the act up. Before a job is cancelled, too: since
 * 8.2 the end of any job changes the graph, and that waits for all I/O that is
 * under way (seen on 10.0).
 */
void alive_wait(struct act *act, step_fn *then);

/* Right before the pivot: it answers, and is still what it was. */
step_fn alive_prove;

/* While an act waits for its job; zero it to begin. */
struct alive_watch {
    struct alive alive;
    uint64_t silent_ms; /* how long when it was told */
    bool begun;
    bool off; /* it cannot be asked while QEMU has it open */
    char why[160];
    char changed[160]; /* what is not as it was; "": nothing */
    char degraded[96]; /* as last told; "": every replica gets every write */
    bool heals;        /* ... in a while, which is worth waiting for */
};

/* Asks, tells, and ends the act when the target is lost: then false. */
bool alive_watch(struct act *act, struct alive_watch *watch);
