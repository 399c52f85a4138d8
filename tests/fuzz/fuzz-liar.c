/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A whole operation against a QEMU that lies (fake/fake-liar.h): it cannot
 * crash the engine, hang it, or make it free the guest's or others' volumes.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "fake/fake-liar.h"
#include "fuzz-dir.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct liar_verdict verdict;
    const char *dir = fuzz_dir();
    fuzz_empty();
    liar_run((const char *)data, size, dir, &verdict);
    if (verdict.violation[0] != '\0' || !verdict.whole || !verdict.once ||
        !verdict.source_there || !verdict.foreign_there) {
        (void)fprintf(stderr, "%s; whole %d, source %d, foreign %d\n",
                      verdict.violation, verdict.whole, verdict.source_there,
                      verdict.foreign_there);
        abort();
    }
    return 0;
}
