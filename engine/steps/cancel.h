/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The end of mirrors that shall not finish. A cancelled mirror frees its
 * bitmap of what is in flight, and only then waits for the guest's own writes
 * to the target, which use it (the end of mirror_run() in block/mirror.c, as
 * late as 11.1): QEMU may end of it. So a guest that runs stands still for the
 * moment in which mirrors that take its writes are cancelled; after that they
 * take none. Its writes wait for the target anyway: one that does not answer is
 * waited for, or cut off, before. For the same reason such a mirror must not
 * end by itself: see "on-target-error" in steps/mirror.c.
 */
#pragma once

#include "run/step.h"

/* What it knows: the first member of what the act has in its scratch. */
struct cancelling {
    const char *const *ids;
    unsigned n_ids;
    act_reply_fn *then;
    step_fn *paid;
    bool stops;   /* the guest, around it */
    bool sent;    /* job-cancel has been */
    bool refused; /* ... for one of them */
};

/*
 * job-cancel, by force, of 'ids' (at most 64, which live as long as the act's
 * scratch); 'writes': they may take the guest's writes. 'then' is called as
 * that of act_qmp_batch(): -EREMOTEIO is that one was refused, as its job is
 * over; see 'sent' for whether any was asked for.
 */
void cancel_jobs(struct act *act, const char *const *ids, unsigned n_ids,
                 bool writes, act_reply_fn *then);

/* Goes on to 'then'; first it lets go on a guest that cancel_jobs() could not. */
void cancel_pay(struct act *act, step_fn *then);
