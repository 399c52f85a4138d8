/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The end of mirrors that shall not finish. A cancelled mirror frees its
 * bitmap of what is in flight, and only then waits for the guest's own writes
 * to the target, which use it (the end of mirror_run() in block/mirror.c, as
 * late as 11.1): QEMU may end of it. So a guest that runs stands still for the
 * moment in which mirrors that take its writes are cancelled; after that they
 * take none. For the same reason such a mirror must not end by itself: see
 * "on-target-error" in steps/mirror.c.
 */
#pragma once

#include "run/step.h"

/* What it knows: the first member of what the act has in its scratch. */
struct cancelling {
    const char *const *ids;
    unsigned n_ids;
    act_reply_fn *then;
    bool stops;
};

/*
 * job-cancel, by force, of 'ids' (at most 64, which must live until 'then');
 * 'write_block': they may take the guest's writes. 'then' is called as that of
 * act_qmp_batch(): -EREMOTEIO is that one was refused, as its job is over.
 */
void cancel_jobs(struct act *act, const char *const *ids, unsigned n_ids,
                 bool write_block, act_reply_fn *then);
