/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "digest.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define XXH_STATIC_LINKING_ONLY /* for a state on the stack */
#ifdef HAVE_XXH_DISPATCH
#include <xxh_x86dispatch.h> /* the same digests by wider registers: 3x */
#else
#include <xxhash.h>
#endif

#include "base/err.h"
#include "base/str.h"
#include "extents.h"

#define MANIFEST_HEAD "qpivot-manifest 1"

static const uint64_t MANIFEST_SIZE_MAX = UINT64_C(1) << 48;

static struct digest from_hash(XXH128_hash_t hash);
static int write_lines(const struct digests *digests, FILE *out);
static int read_lines(const char *path, FILE *in, struct digests **ret,
                      struct err **errp);
static int read_digest(const char *text, struct digest *ret);

struct digest digest_unit(const void *buffer, size_t length, uint16_t mask)
{
    const char *bytes = buffer;
    if (mask == 0) {
        return (struct digest){{0}};
    }
    unsigned blocks = (unsigned)((length + BLOCK - 1) / BLOCK);
    if (mask == (uint16_t)((1U << blocks) - 1)) {
        return from_hash(XXH3_128bits_withSeed(buffer, length, mask));
    }
    XXH3_state_t state;
    XXH3_INITSTATE(&state); /* else its reset looks at an earlier seed */
    (void)XXH3_128bits_reset_withSeed(&state, mask);
    for (size_t at = 0; at < length; at += BLOCK) {
        size_t n = length - at < BLOCK ? length - at : BLOCK;
        if ((mask & 1U << at / BLOCK) != 0) {
            (void)XXH3_128bits_update(&state, bytes + at, n);
        }
    }
    return from_hash(XXH3_128bits_digest(&state));
}

bool digest_equal(const struct digest *a, const struct digest *b)
{
    return memcmp(a, b, sizeof(*a)) == 0;
}

const char *digest_text(const struct digest *digest, char out[DIGEST_TEXT])
{
    for (unsigned i = 0; i < sizeof(digest->bytes); i++) {
        (void)snprintf(out + (size_t)2 * i, 3, "%02x", digest->bytes[i]);
    }
    return out;
}

int digests_new(uint64_t size, struct digests **ret)
{
    _cleanup_(digests_freep) struct digests *digests =
        calloc(1, sizeof(*digests));
    if (digests == NULL) {
        return -ENOMEM;
    }
    digests->size = size;
    digests->units = size / UNIT + (size % UNIT != 0);
    digests->of = calloc(digests->units + 1, sizeof(*digests->of));
    digests->known = calloc(digests->units + 1, 1);
    if (digests->of == NULL || digests->known == NULL) {
        return -ENOMEM;
    }
    *ret = TAKE_PTR(digests);
    return 0;
}

struct digests *digests_free(struct digests *digests)
{
    if (digests != NULL) {
        free(digests->of);
        free(digests->known);
        free(digests);
    }
    return NULL;
}

struct digest digests_all(const struct digests *digests)
{
    return from_hash(XXH3_128bits_withSeed(
        digests->of, digests->units * sizeof(*digests->of), digests->size));
}

int manifest_write(const struct digests *digests, const char *path,
                   struct err **errp)
{
    _cleanup_free_ char *part = str_printf("%s.part", path);
    if (part == NULL) {
        return -ENOMEM;
    }
    FILE *out = fopen(part, "we");
    if (out == NULL) {
        return err_set(errp, -errno, part, "cannot write it: %s",
                       strerror(errno));
    }
    int r = write_lines(digests, out);
    if (fflush(out) != 0 || fsync(fileno(out)) < 0) {
        r = -errno;
    }
    (void)fclose(out);
    if (r == 0 && rename(part, path) < 0) {
        r = -errno;
    }
    if (r < 0) {
        (void)unlink(part);
        return err_set(errp, r, path, "cannot write it: %s", strerror(-r));
    }
    return 0;
}

int manifest_read(const char *path, struct digests **ret, struct err **errp)
{
    FILE *in = fopen(path, "re");
    if (in == NULL) {
        return err_set(errp, -errno, path, "cannot read it: %s",
                       strerror(errno));
    }
    int r = read_lines(path, in, ret, errp);
    (void)fclose(in);
    return r;
}

static struct digest from_hash(XXH128_hash_t hash)
{
    XXH128_canonical_t canonical;
    struct digest digest;
    XXH128_canonicalFromHash(&canonical, hash);
    memcpy(digest.bytes, canonical.digest, sizeof(digest.bytes));
    return digest;
}

/* Units of zeroes are left out. */
static int write_lines(const struct digests *digests, FILE *out)
{
    char text[DIGEST_TEXT];
    static const struct digest none;
    struct digest all = digests_all(digests);
    (void)fputs(MANIFEST_HEAD "\n", out);
    (void)fputs("size ", out);
    char line[64];
    (void)snprintf(line, sizeof(line), "%" PRIu64 "\nunit %d\n", digests->size,
                   UNIT);
    (void)fputs(line, out);
    for (uint64_t i = 0; i < digests->units; i++) {
        if (!digest_equal(&digests->of[i], &none)) {
            (void)snprintf(line, sizeof(line), "%" PRIu64 " %s\n", i * UNIT,
                           digest_text(&digests->of[i], text));
            (void)fputs(line, out);
        }
    }
    (void)snprintf(line, sizeof(line), "all %s\n", digest_text(&all, text));
    (void)fputs(line, out);
    return ferror(out) ? -EIO : 0;
}

static int read_lines(const char *path, FILE *in, struct digests **ret,
                      struct err **errp)
{
    _cleanup_(digests_freep) struct digests *digests = NULL;
    char line[80];
    char text[DIGEST_TEXT] = "";
    uint64_t size = 0;
    unsigned unit = 0;
    if (fgets(line, sizeof(line), in) == NULL ||
        !str_eq(line, MANIFEST_HEAD "\n") ||
        fscanf(in, "size %" SCNu64 " unit %u ", &size, &unit) != 2 ||
        unit != UNIT || size > INT64_MAX) {
        return err_set(errp, -EINVAL, path, "is no manifest of this release");
    }
    /* Zeroes take no line: a short file could ask for any memory. */
    if (size > MANIFEST_SIZE_MAX) {
        return err_set(errp, -EFBIG, path,
                       "is of a volume of more than 256 TiB");
    }
    int r = digests_new(size, &digests);
    if (r < 0) {
        return err_set(errp, r, path, "out of memory");
    }
    struct digest all = {{0}};
    uint64_t offset = 0;
    while (fgets(line, sizeof(line), in) != NULL && r == 0) {
        if (sscanf(line, "all %32s", text) == 1) {
            r = read_digest(text, &all);
            break;
        }
        r = sscanf(line, "%" SCNu64 " %32s", &offset, text) == 2 &&
                    offset % UNIT == 0 && offset / UNIT < digests->units
                ? read_digest(text, &digests->of[offset / UNIT])
                : -EINVAL;
    }
    struct digest found = digests_all(digests);
    if (r < 0 || !digest_equal(&found, &all)) {
        return err_set(errp, -EINVAL, path, "is a damaged manifest");
    }
    memset(digests->known, 1, digests->units);
    *ret = TAKE_PTR(digests);
    return 0;
}

static int read_digest(const char *text, struct digest *ret)
{
    if (strlen(text) != DIGEST_TEXT - 1) {
        return -EINVAL;
    }
    for (unsigned i = 0; i < sizeof(ret->bytes); i++) {
        unsigned value = 0;
        if (sscanf(text + (size_t)2 * i, "%2x", &value) != 1) {
            return -EINVAL;
        }
        ret->bytes[i] = (uint8_t)value;
    }
    return 0;
}
