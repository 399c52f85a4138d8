/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Before a migration stops its guest: whether what the mirrors still owe fits
 * into the downtime. READY says nothing of that: it was true once, and a slow
 * target may be many seconds behind since. Pure: figures in, a verdict and
 * its reason out.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

enum blackout_verdict {
    BLACKOUT_GO,
    BLACKOUT_WAIT,    /* it does not fit yet */
    BLACKOUT_GIVE_UP, /* nor did it for as long as is borne */
};

enum { BLACKOUT_REASON_MAX = 224 };

#define BLACKOUT_UNKNOWN UINT64_MAX

struct blackout_disk {
    const char *name;
    uint64_t remaining; /* bytes that the target lacks */
    uint64_t rate;      /* copied bytes a second; 0: not measured */
    bool synced; /* equal, and every write since has gone to both sides */
};

struct blackout_limits {
    uint64_t budget_ms;   /* what is left may take so long */
    uint64_t patience_ms; /* 0: it must fit now */
};

/*
 * How long the guest would stand still for its disks, all of them at once; or
 * BLACKOUT_UNKNOWN. 'ret_worst' is the disk that takes longest, if any does.
 */
uint64_t blackout_expected_ms(const struct blackout_disk *disks,
                              unsigned n_disks, unsigned *ret_worst);

/*
 * 'waited_ms': since the first time that this was asked. 'reason' is one
 * phrase for the user with the figures that decided, always set.
 */
enum blackout_verdict blackout_judge(const struct blackout_limits *limits,
                                     uint64_t waited_ms,
                                     const struct blackout_disk *disks,
                                     unsigned n_disks,
                                     char reason[BLACKOUT_REASON_MAX]);
