/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A storage kind in memory, with faults on demand: "fake:NAME". QEMU is told
 * of it as the file /fake/NAME, so that node and file name lead back here.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "backends/backend.h"

enum fake_fault {
    FAKE_ERROR, /* nothing is done, 'code' is told */
    FAKE_LOST,  /* it is done, and 'code' is told all the same */
    FAKE_HANG,  /* it waits for fake_backend_release(), then is done */
};

/* Registers "fake:" in front of all other kinds, with nothing in store. */
void fake_backend_start(void);
/* Takes it away; acts that hang go on first. */
void fake_backend_stop(void);

/* The 'nth' (from 1) act of this kind from now on meets the fault. */
void fake_backend_fault(enum volume_act act, unsigned nth,
                        enum fake_fault fault, int code);
void fake_backend_release(void);
/* Returns when an act hangs: only then is it sure to be under way. */
void fake_backend_wait_hung(void);

/* How many connections were made for keeping, and are not given back. */
unsigned fake_backend_made(void);
unsigned fake_backend_open(void);
/* The last to give one back waits for fake_backend_release(). */
void fake_backend_hang_at_release(void);

/* Puts a volume there as somebody else's would be. */
void fake_backend_put(const char *name, uint64_t size, bool in_use);
bool fake_backend_has(const char *name);
/* How many volumes there are, temporary names too. */
unsigned fake_backend_count(void);
