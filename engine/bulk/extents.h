/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Where a volume may hold data, and which blocks of what was read do. Pure.
 *
 * The map has one bit for a block of 64 KiB, 16 of them for a unit of 1 MiB,
 * so its size depends on the volume's size only, however fragmented it is:
 * 2 MiB of map for 1 TiB.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"

enum {
    UNIT = 1 << 20,
    BLOCK = 64 << 10,
    BLOCKS = UNIT / BLOCK,
    PAGE = 4096, /* to which the edges of data are cut for a blank target */
};

struct extents {
    uint64_t size;
    uint64_t units;
    uint16_t *map; /* a set bit: the block may hold data */
};

/* Of 'size' bytes; nothing holds data. */
int extents_new(uint64_t size, struct extents **ret);
struct extents *extents_free(struct extents *extents);
DEFINE_CLEANUP(struct extents, extents_free)

/* A bulk_extent_fn: this range may hold data; beyond the end is cut off. */
int extents_add(void *extents, uint64_t offset, uint64_t length);
/* All may hold data. */
void extents_fill(struct extents *extents);
/* The unit's bits; none beyond the end. */
uint16_t extents_unit(const struct extents *extents, uint64_t unit);
/* How many bytes the set bits stand for. */
uint64_t extents_bytes(const struct extents *extents);
/* The length of a unit: the last one may be shorter. */
size_t extents_length(uint64_t size, uint64_t unit);

/* One bit for each block that is not all zeroes. */
uint16_t blocks_scan(const void *buffer, size_t length);

/* The mask with each single block of zeroes between data set, too: a call of
 * its own costs more than writing it. */
uint16_t blocks_close(uint16_t mask, size_t length);

struct range {
    size_t offset;
    size_t length;
    bool data;
};

enum { RANGES_MAX = 2 * BLOCKS + 1 };

/*
 * Cuts 'length' bytes into ranges of data and of zeroes, in order; 'cut'
 * moves the edges of data inward to the first and last page with a one in it.
 * Returns how many there are.
 */
unsigned blocks_ranges(const void *buffer, size_t length, uint16_t mask,
                       bool cut, struct range ret[RANGES_MAX]);
bool is_zero(const void *buffer, size_t length);
