/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A QEMU's description of itself, whatever it says: every question to it ends.
 * Input: the reply of query-qmp-schema.
 */
#include <jansson.h>
#include <stdint.h>

#include "base/err.h"
#include "qmp/qmp.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void ask(const struct qmp_schema *schema, const char *command)
{
    static const char *const paths[] = {
        "target-is-zero",
        "type=mirror.copy-mode",
        "a",
        "a.b.c",
        "driver=file.b",
        "",
        ".",
        "=",
        "driver=",
        "a=.b",
    };
    json_auto_t *names = qmp_schema_names(schema, command);
    (void)qmp_schema_has_command(schema, command);
    (void)qmp_schema_has_event(schema, command);
    (void)qmp_schema_allows_oob(schema, command);
    for (unsigned i = 0; i < sizeof(paths) / sizeof(paths[0]); i++) {
        (void)qmp_schema_has_arg(schema, command, paths[i]);
        (void)qmp_schema_has_value(schema, command, paths[i], "file");
        (void)qmp_schema_has_result(schema, command, paths[i]);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    json_auto_t *json =
        json_loadb((const char *)data, size, JSON_ALLOW_NUL, NULL);
    struct qmp_schema *schema = NULL;
    _cleanup_err_ struct err *err = NULL;
    if (qmp_schema_new(json, &schema, &err) < 0) {
        return 0;
    }
    json_auto_t *all = qmp_schema_names(schema, NULL);
    for (size_t i = 0; i < json_array_size(all) && i < 16; i++) {
        ask(schema, json_string_value(json_array_get(all, i)));
    }
    ask(schema, "blockdev-add");
    ask(schema, "no-such-command");
    qmp_schema_free(schema);
    return 0;
}
