/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the acts of one operation use one after the other, and would set up
 * anew each: a connection to a cluster above all. It does not know any
 * storage: see 'hold' in bulk.h. What a thread hangs in stays with that
 * thread, and no other act gets it.
 */
#pragma once

#include <stdbool.h>
#include <uv.h>

struct err;
struct keep;
struct volume;

int keep_new(struct keep **ret);
/*
 * Shared by the operation and by each of its acts, which may outlive it.
 * Any thread; NULL is fine.
 */
struct keep *keep_ref(struct keep *keep);
void keep_unref(struct keep *keep);

/* Worker: around an act of the volume. *ret NULL: there is nothing to keep. */
int keep_begin(struct keep *keep, const struct volume *volume, void **ret,
               struct err **errp);
void keep_end(struct keep *keep, const struct volume *volume, void *held);

typedef void keep_closed_fn(void *data);
/*
 * Lets go of all, in a thread, as that may block. False: there was nothing;
 * else the callback comes from the loop, within seconds: a thread that is late
 * is left alone. Nothing is kept from then on; the reference stays.
 */
bool keep_close(struct keep *keep, uv_loop_t *loop, keep_closed_fn *cb,
                void *data);
