/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The blocking half of a check, in a thread of its own; check*.c only. */
#pragma once

#include <pthread.h>
#include <stdatomic.h>

#include "bulk/check.h"
#include "bulk/extents.h"
#include "bulk/pipeline.h"

struct check_work {
    struct check_request request;
    atomic_bool cancel;
    struct check_result result;
    pthread_mutex_t lock;     /* of 'watched' */
    struct pipeline *watched; /* while it runs */
};

int check_work_run(struct check_work *work, struct err **errp);
/* What a sample of so many bytes takes. */
int check_sample(uint64_t size, const char *seed, struct extents **ret);
/* The set blocks as [offset, length, ...], gaps closed until they are few. */
json_t *check_ranges(const struct extents *map);
