/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "extents.h"

#include <errno.h>
#include <string.h>

static void cut_edges(const char *buffer, struct range *range);

int extents_new(uint64_t size, struct extents **ret)
{
    _cleanup_(extents_freep) struct extents *extents =
        calloc(1, sizeof(*extents));
    if (extents == NULL) {
        return -ENOMEM;
    }
    extents->size = size;
    extents->units = size / UNIT + (size % UNIT != 0);
    extents->map = calloc(extents->units + 1, sizeof(*extents->map));
    if (extents->map == NULL) {
        return -ENOMEM;
    }
    *ret = TAKE_PTR(extents);
    return 0;
}

struct extents *extents_free(struct extents *extents)
{
    if (extents != NULL) {
        free(extents->map);
        free(extents);
    }
    return NULL;
}

int extents_add(void *data, uint64_t offset, uint64_t length)
{
    struct extents *extents = data;
    if (offset >= extents->size || length == 0) {
        return 0;
    }
    if (length > extents->size - offset) {
        length = extents->size - offset;
    }
    uint64_t block = offset / BLOCK;
    uint64_t last = (offset + length - 1) / BLOCK;
    while (block <= last) {
        if (block % BLOCKS == 0 && last - block >= BLOCKS) {
            extents->map[block / BLOCKS] = UINT16_MAX;
            block += BLOCKS;
        } else {
            extents->map[block / BLOCKS] |= (uint16_t)(1U << block % BLOCKS);
            block++;
        }
    }
    return 0;
}

void extents_fill(struct extents *extents)
{
    (void)extents_add(extents, 0, extents->size);
}

uint16_t extents_unit(const struct extents *extents, uint64_t unit)
{
    return unit < extents->units ? extents->map[unit] : 0;
}

uint64_t extents_bytes(const struct extents *extents)
{
    uint64_t blocks = 0;
    for (uint64_t i = 0; i < extents->units; i++) {
        blocks += (unsigned)__builtin_popcount(extents->map[i]);
    }
    uint64_t bytes = blocks * BLOCK;
    uint64_t tail = extents->size % BLOCK;
    uint64_t last = extents->size / BLOCK;
    if (tail != 0 && (extents->map[last / BLOCKS] & 1U << last % BLOCKS) != 0) {
        bytes -= BLOCK - tail;
    }
    return bytes;
}

size_t extents_length(uint64_t size, uint64_t unit)
{
    uint64_t left = size - unit * UNIT;
    return left < UNIT ? (size_t)left : UNIT;
}

bool is_zero(const void *buffer, size_t length)
{
    const char *bytes = buffer;
    /* libc's memcmp is the fastest scan there is; data ends it at once. */
    static const char none[BLOCK];
    while (length > sizeof(none)) {
        if (memcmp(bytes, none, sizeof(none)) != 0) {
            return false;
        }
        bytes += sizeof(none);
        length -= sizeof(none);
    }
    return memcmp(bytes, none, length) == 0;
}

uint16_t blocks_scan(const void *buffer, size_t length)
{
    uint16_t mask = 0;
    const char *bytes = buffer;
    for (size_t at = 0; at < length; at += BLOCK) {
        size_t n = length - at < BLOCK ? length - at : BLOCK;
        if (!is_zero(bytes + at, n)) {
            mask |= (uint16_t)(1U << at / BLOCK);
        }
    }
    return mask;
}

uint16_t blocks_close(uint16_t mask, size_t length)
{
    unsigned blocks = (unsigned)((length + BLOCK - 1) / BLOCK);
    uint16_t alone = (uint16_t)(~mask & mask << 1 & mask >> 1);
    return (uint16_t)((mask | alone) & ((1U << blocks) - 1));
}

unsigned blocks_ranges(const void *buffer, size_t length, uint16_t mask,
                       bool cut, struct range ret[RANGES_MAX])
{
    unsigned n = 0;
    size_t told = 0;
    for (size_t at = 0; at < length;) {
        size_t end = at;
        bool data = (mask & 1U << at / BLOCK) != 0;
        while (end < length && ((mask & 1U << end / BLOCK) != 0) == data) {
            end += BLOCK;
        }
        end = end < length ? end : length;
        struct range range = {at, end - at, true};
        if (data && cut) {
            cut_edges(buffer, &range);
        }
        if (data && range.offset > told) {
            ret[n++] = (struct range){told, range.offset - told, false};
        }
        if (data) {
            ret[n++] = range;
            told = range.offset + range.length;
        }
        at = end;
    }
    if (told < length) {
        ret[n++] = (struct range){told, length - told, false};
    }
    return n;
}

/* Inward, page by page; there is a one somewhere, so this ends. */
static void cut_edges(const char *buffer, struct range *range)
{
    while (range->length > PAGE && is_zero(buffer + range->offset, PAGE)) {
        range->offset += PAGE;
        range->length -= PAGE;
    }
    for (;;) {
        size_t tail = range->length % PAGE != 0 ? range->length % PAGE : PAGE;
        if (range->length <= tail ||
            !is_zero(buffer + range->offset + range->length - tail, tail)) {
            return;
        }
        range->length -= tail;
    }
}
