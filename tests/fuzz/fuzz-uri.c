/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Names of volumes: from a user (a URI) and from QEMU ("DRIVER FILENAME").
 * What parses must give node options, and its URI must parse again.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "backends/backend.h"
#include "base/err.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(const struct volume *volume)
{
    json_auto_t *node = volume->ops->node_options(volume, "secret0");
    _cleanup_free_ char *legacy = volume->ops->legacy_name(volume);
    _cleanup_(volume_freep) struct volume *again = NULL;
    /* Text that is no UTF-8 has no JSON: then there are no options either. */
    if (legacy == NULL || volume_parse(volume->uri, &again, NULL) < 0 ||
        strcmp(again->name, volume->name) != 0) {
        abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    _cleanup_free_ char *text = strndup((const char *)data, size);
    if (text == NULL) {
        return 0;
    }
    _cleanup_(volume_freep) struct volume *volume = NULL;
    _cleanup_err_ struct err *err = NULL;
    if (volume_parse(text, &volume, &err) == 0) {
        check(volume);
    } else if (err == NULL || err->desc == NULL) {
        abort();
    }
    char *space = strchr(text, ' ');
    if (space != NULL) {
        *space = '\0';
        _cleanup_(volume_freep) struct volume *of_node = NULL;
        if (volume_from_node(text, space + 1, &of_node) == 0) {
            check(of_node);
        }
    }
    return 0;
}
