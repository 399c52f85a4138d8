/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Digests of a volume's units, and the manifest, their form as a file.
 *
 * A unit's digest is XXH3-128 over its blocks that are not all zeroes, with
 * the mask of these blocks as the seed; a unit of zeroes has 16 zero bytes.
 * So it tells of the content only, never of holes, and zeroes cost nothing.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"

struct err;

struct digest {
    uint8_t bytes[16];
};

enum { DIGEST_TEXT = 33 };

struct digests {
    uint64_t size; /* of the volume */
    uint64_t units;
    struct digest *of;
    uint8_t *known; /* 0: of[] says nothing; else the record's states */
};

struct digest digest_unit(const void *buffer, size_t length, uint16_t mask);
bool digest_equal(const struct digest *a, const struct digest *b);
const char *digest_text(const struct digest *digest, char out[DIGEST_TEXT]);

int digests_new(uint64_t size, struct digests **ret);
struct digests *digests_free(struct digests *digests);
DEFINE_CLEANUP(struct digests, digests_free)
/* One digest of all: of size and digests. */
struct digest digests_all(const struct digests *digests);

/* Blocking. Writes beside 'path' and renames: never half a manifest. */
int manifest_write(const struct digests *digests, const char *path,
                   struct err **errp);
int manifest_read(const char *path, struct digests **ret, struct err **errp);
