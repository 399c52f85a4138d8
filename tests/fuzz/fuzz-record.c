/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The two files that a copy reads back: its record ('r' and the bytes) and a
 * manifest ('m' and the text). Half written, cut, or somebody's: they are
 * read, taken for empty, or refused.
 */
#include <jansson.h>
#include <stdlib.h>

#include "base/err.h"
#include "bulk/digest.h"
#include "bulk/resume.h"
#include "fuzz-dir.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void try_record(const uint8_t *data, size_t size)
{
    _cleanup_(record_closep) struct record *record = NULL;
    _cleanup_err_ struct err *err = NULL;
    (void)fuzz_file("copy-0123456789abcde.record", data, size);
    if (record_open(fuzz_dir(), "0123456789abcde", &record, &err) < 0) {
        return;
    }
    const struct digests *digests = record_digests(record);
    if (record_head(record) == NULL) {
        return; /* taken for empty */
    }
    if (record_safe_count(record) > digests->units) {
        abort();
    }
    if (digests->units > 0) {
        struct digest digest = {{0}};
        record_written(record, digests->units - 1, digest);
        if (record_flush_begin(record)) {
            (void)record_flush_end(record, NULL);
        }
    }
}

static void try_manifest(const uint8_t *data, size_t size)
{
    _cleanup_(digests_freep) struct digests *digests = NULL;
    _cleanup_err_ struct err *err = NULL;
    const char *path = fuzz_file("manifest", data, size);
    if (manifest_read(path, &digests, &err) < 0) {
        if (err == NULL) {
            abort();
        }
        return;
    }
    _cleanup_(digests_freep) struct digests *again = NULL;
    if (manifest_write(digests, path, NULL) < 0 ||
        manifest_read(path, &again, NULL) < 0 || again->size != digests->size) {
        abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size > 0 && data[0] == 'r') {
        try_record(data + 1, size - 1);
    } else if (size > 0) {
        try_manifest(data + 1, size - 1);
    }
    return 0;
}
