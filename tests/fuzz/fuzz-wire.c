/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The wire, fed whole and in pieces: both must give the same messages. The
 * first byte says how long the pieces are.
 */
#include <jansson.h>
#include <stdint.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "base/err.h"
#include "qmp/wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What came, as an array; ends with the code of the end. */
static json_t *read_all(const uint8_t *data, size_t size, size_t piece)
{
    struct wire wire;
    wire_init(&wire, 4096);
    json_t *all = json_array();
    int r = 0;
    for (size_t at = 0; at < size && r >= 0; at += piece) {
        size_t n = size - at < piece ? size - at : piece;
        if (wire_feed(&wire, data + at, n) < 0) {
            abort();
        }
        for (;;) {
            json_t *json = NULL;
            _cleanup_err_ struct err *err = NULL;
            r = wire_next(&wire, &json, &err);
            if (r <= 0) {
                break;
            }
            if (!json_is_object(json)) {
                abort();
            }
            (void)json_array_append_new(all, json);
        }
    }
    (void)json_array_append_new(all, json_integer(r));
    (void)json_array_append_new(all, json_boolean(wire_in_message(&wire)));
    wire_done(&wire);
    return all;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1) {
        return 0;
    }
    size_t piece = 1 + (size_t)data[0] % 64;
    json_auto_t *whole = read_all(data + 1, size - 1, size);
    json_auto_t *pieces = read_all(data + 1, size - 1, piece);
    if (!json_equal(whole, pieces)) {
        abort();
    }
    return 0;
}
