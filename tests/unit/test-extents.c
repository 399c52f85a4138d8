/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <criterion/criterion.h>
#include <string.h>

#include "bulk/extents.h"

static char unit[UNIT];

static void put(size_t at)
{
    unit[at] = 1;
}

Test(extents, map_covers_each_block_that_a_range_touches)
{
    _cleanup_(extents_freep) struct extents *e = NULL;
    cr_assert_eq(extents_new(4 * UNIT, &e), 0);
    cr_assert_eq(extents_bytes(e), 0);
    cr_assert_eq(extents_add(e, BLOCK - 1, 2), 0);
    cr_assert_eq(extents_unit(e, 0), 3);
    cr_assert_eq(extents_add(e, UNIT + 1, 2 * UNIT), 0);
    cr_assert_eq(extents_unit(e, 1), UINT16_MAX);
    cr_assert_eq(extents_unit(e, 2), UINT16_MAX);
    cr_assert_eq(extents_unit(e, 3), 1);
    cr_assert_eq(extents_bytes(e), 3 * BLOCK + 2 * UNIT);
}

Test(extents, what_is_beyond_the_end_is_cut_off)
{
    _cleanup_(extents_freep) struct extents *e = NULL;
    cr_assert_eq(extents_new(UNIT + 777, &e), 0);
    cr_assert_eq(e->units, 2);
    cr_assert_eq(extents_add(e, UNIT, UINT64_MAX - UNIT), 0);
    cr_assert_eq(extents_add(e, 5 * (uint64_t)UNIT, 1), 0);
    cr_assert_eq(extents_unit(e, 1), 1);
    cr_assert_eq(extents_unit(e, 2), 0);
    cr_assert_eq(extents_bytes(e), 777);
    cr_assert_eq(extents_length(e->size, 0), UNIT);
    cr_assert_eq(extents_length(e->size, 1), 777);
    extents_fill(e);
    cr_assert_eq(extents_bytes(e), UNIT + 777);
}

Test(extents, an_empty_volume_has_no_units)
{
    _cleanup_(extents_freep) struct extents *e = NULL;
    cr_assert_eq(extents_new(0, &e), 0);
    extents_fill(e);
    cr_assert_eq(e->units, 0);
    cr_assert_eq(extents_bytes(e), 0);
}

Test(extents, scan_finds_a_single_byte_wherever_it_is)
{
    cr_assert_eq(blocks_scan(unit, UNIT), 0);
    for (size_t at = 0; at < BLOCK; at += at < 40 ? 1 : 997) {
        put(2 * BLOCK + at);
        cr_assert_eq(blocks_scan(unit, UNIT), 1U << 2, "byte %zu", at);
        unit[2 * BLOCK + at] = 0;
    }
    put(UNIT - 1);
    cr_assert_eq(blocks_scan(unit, UNIT), 1U << 15);
    cr_assert_eq(blocks_scan(unit, UNIT - 1), 0);
    for (size_t n = 0; n < 40; n++) {
        cr_assert(is_zero(unit, n));
    }
    put(20);
    cr_assert(is_zero(unit, 20));
    cr_assert_not(is_zero(unit, 21));
}

Test(extents, ranges_are_cut_to_pages_and_cover_all)
{
    struct range r[RANGES_MAX];
    put(BLOCK + 5 * PAGE + 7);
    put(2 * BLOCK + PAGE);
    put(UNIT - 1);
    uint16_t mask = blocks_scan(unit, UNIT);
    unsigned n = blocks_ranges(unit, UNIT, mask, true, r);
    cr_assert_eq(n, 4);
    cr_assert(!r[0].data && r[0].length == BLOCK + 5 * PAGE);
    cr_assert(r[1].data && r[1].length == BLOCK - 5 * PAGE + 2 * PAGE);
    cr_assert(!r[2].data);
    cr_assert(r[3].data && r[3].offset == UNIT - PAGE && r[3].length == PAGE);
    n = blocks_ranges(unit, UNIT, mask, false, r);
    cr_assert_eq(n, 4);
    cr_assert(r[1].data && r[1].offset == BLOCK && r[1].length == 2 * BLOCK);
}

Test(extents, ranges_of_all_and_of_nothing_are_one)
{
    struct range r[RANGES_MAX];
    cr_assert_eq(blocks_ranges(unit, 777, 0, true, r), 1);
    cr_assert(!r[0].data && r[0].length == 777);
    put(776);
    cr_assert_eq(blocks_ranges(unit, 777, 1, true, r), 1);
    cr_assert(r[0].data && r[0].length == 777 && r[0].offset == 0);
    uint16_t every_other = 0x5555;
    for (unsigned i = 0; i < BLOCKS; i += 2) {
        put((size_t)i * BLOCK);
    }
    cr_assert_eq(blocks_ranges(unit, UNIT, every_other, false, r), BLOCKS);
}

Test(extents, single_blocks_of_zeroes_between_data_are_closed)
{
    cr_assert_eq(blocks_close(0, UNIT), 0);
    cr_assert_eq(blocks_close(0x5, UNIT), 0x7);
    cr_assert_eq(blocks_close(0x9, UNIT), 0x9);
    cr_assert_eq(blocks_close(0x8002, UNIT), 0x8002);
    cr_assert_eq(blocks_close(0x5, 2 * BLOCK + 1), 0x7);
    cr_assert_eq(blocks_close(0x15, 5 * BLOCK), 0x1f);
}
