/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/err.h"
#include "bulk/digest.h"
#include "bulk/extents.h"

static char unit[UNIT];

static struct digest of(size_t length)
{
    return digest_unit(unit, length, blocks_scan(unit, length));
}

Test(digest, zeroes_have_the_digest_of_nothing)
{
    static const struct digest none;
    struct digest d = of(UNIT);
    cr_assert(digest_equal(&d, &none));
}

Test(digest, the_same_block_elsewhere_has_another_digest)
{
    unit[0] = 1;
    struct digest first = of(UNIT);
    unit[0] = 0;
    unit[BLOCK] = 1;
    struct digest second = of(UNIT);
    cr_assert_not(digest_equal(&first, &second));
    cr_assert_not(digest_equal(&first, &(struct digest){{0}}));
}

Test(digest, the_stack_before_it_does_not_matter)
{
    unit[3 * BLOCK] = 1;
    struct digest first = of(UNIT);
    for (unsigned i = 0; i < 64; i++) {
        char junk[4096];
        memset(junk, (int)i, sizeof(junk));
        __asm__ volatile("" : : "r"(junk) : "memory");
        struct digest again = of(UNIT);
        cr_assert(digest_equal(&first, &again));
    }
}

static const char *temp(void)
{
    static char path[64];
    (void)snprintf(path, sizeof(path), "/tmp/qpivot-digest-%d", getpid());
    return path;
}

Test(digest, manifest_comes_back_as_it_was)
{
    _cleanup_(digests_freep) struct digests *a = NULL;
    _cleanup_(digests_freep) struct digests *b = NULL;
    cr_assert_eq(digests_new(3 * UNIT + 5, &a), 0);
    memset(&a->of[1], 0xab, sizeof(a->of[1]));
    memset(&a->of[3], 0x01, sizeof(a->of[3]));
    cr_assert_eq(manifest_write(a, temp(), NULL), 0);
    cr_assert_eq(manifest_read(temp(), &b, NULL), 0);
    (void)unlink(temp());
    cr_assert_eq(b->size, a->size);
    for (unsigned i = 0; i < 4; i++) {
        cr_assert(digest_equal(&a->of[i], &b->of[i]));
        cr_assert_eq(b->known[i], 1);
    }
}

static void refused(const char *text)
{
    _cleanup_err_ struct err *err = NULL;
    _cleanup_(digests_freep) struct digests *d = NULL;
    FILE *out = fopen(temp(), "we");
    cr_assert_not_null(out);
    (void)fputs(text, out);
    (void)fclose(out);
    int r = manifest_read(temp(), &d, &err);
    (void)unlink(temp());
    cr_assert(r < 0, "taken: %s", text);
    cr_assert_not_null(err);
    cr_assert_null(d);
}

Test(digest, a_damaged_manifest_is_refused)
{
    static const char head[] =
        "qpivot-manifest 1\nsize 1048576\nunit 1048576\n";
    char text[512];
    refused("");
    refused("hello\n");
    refused("qpivot-manifest 1\nsize x\n");
    refused("qpivot-manifest 1\nsize 1\nunit 2\n");
    refused(head);
    const char *const bodies[] = {
        "all 00\n",
        "all 00000000000000000000000000000000\n",
        "1048576 00000000000000000000000000000000\n",
        "5 00000000000000000000000000000000\n",
        "0 zz000000000000000000000000000000\n",
        "-1 00000000000000000000000000000000\n",
    };
    for (unsigned i = 0; i < ARRAY_SIZE(bodies); i++) {
        (void)snprintf(text, sizeof(text), "%s%s", head, bodies[i]);
        refused(text);
    }
}
