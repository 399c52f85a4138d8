/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <criterion/criterion.h>
#include <errno.h>

#include "base/cleanup.h"
#include "base/err.h"
#include "qmp/qmp.h"

TestSuite(feature, .timeout = 10);

/* Cut from the reply of QEMU 7.2.22; the shapes and numbers are its own. */
static const char REPLY[] =
    "[{\"name\":\"blockdev-mirror\",\"ret-type\":\"0\","
    "\"meta-type\":\"command\",\"arg-type\":\"40\"},"
    "{\"name\":\"40\",\"members\":[{\"name\":\"device\",\"type\":\"str\"},"
    "{\"name\":\"sync\",\"type\":\"280\"},{\"name\":\"copy-mode\","
    "\"default\":null,\"type\":\"289\"}],\"meta-type\":\"object\"},"
    "{\"name\":\"280\",\"members\":[{\"name\":\"top\"},{\"name\":\"full\"}],"
    "\"meta-type\":\"enum\",\"values\":[\"top\",\"full\"]},"
    "{\"name\":\"289\",\"meta-type\":\"enum\","
    "\"values\":[\"background\",\"write-blocking\"]},"
    "{\"name\":\"str\",\"json-type\":\"string\",\"meta-type\":\"builtin\"},"
    "{\"name\":\"int\",\"json-type\":\"int\",\"meta-type\":\"builtin\"},"
    "{\"name\":\"0\",\"members\":[],\"meta-type\":\"object\"},"
    "{\"name\":\"yank\",\"ret-type\":\"0\",\"allow-oob\":true,"
    "\"meta-type\":\"command\",\"arg-type\":\"221\"},"
    "{\"name\":\"221\",\"members\":[{\"name\":\"instances\","
    "\"type\":\"[222]\"}],\"meta-type\":\"object\"},"
    "{\"name\":\"[222]\",\"element-type\":\"222\",\"meta-type\":\"array\"},"
    "{\"name\":\"222\",\"tag\":\"type\",\"variants\":[{\"case\":\"block-node\","
    "\"type\":\"488\"},{\"case\":\"migration\",\"type\":\"0\"}],"
    "\"members\":[{\"name\":\"type\",\"type\":\"487\"}],"
    "\"meta-type\":\"object\"},"
    "{\"name\":\"487\",\"members\":[{\"name\":\"block-node\"},"
    "{\"name\":\"migration\"}],\"meta-type\":\"enum\"},"
    "{\"name\":\"488\",\"members\":[{\"name\":\"node-name\","
    "\"type\":\"str\"}],\"meta-type\":\"object\"},"
    "{\"name\":\"blockdev-snapshot\",\"ret-type\":\"0\","
    "\"meta-type\":\"command\",\"arg-type\":\"27\","
    "\"features\":[\"allow-write-only-overlay\"]},"
    "{\"name\":\"BLOCK_JOB_READY\",\"meta-type\":\"event\","
    "\"arg-type\":\"59\"},"
    "{\"name\":\"blockdev-add\",\"ret-type\":\"0\","
    "\"meta-type\":\"command\",\"arg-type\":\"49\"},"
    "{\"name\":\"49\",\"tag\":\"driver\",\"variants\":[{\"case\":\"nbd\","
    "\"type\":\"310\"},{\"case\":\"qcow2\",\"type\":\"316\"}],\"members\":["
    "{\"name\":\"driver\",\"type\":\"291\"}],\"meta-type\":\"object\"},"
    "{\"name\":\"291\",\"members\":[{\"name\":\"nbd\"},{\"name\":\"qcow2\"}],"
    "\"meta-type\":\"enum\"},"
    "{\"name\":\"310\",\"members\":[{\"name\":\"export\",\"default\":null,"
    "\"type\":\"str\"},{\"name\":\"reconnect-delay\",\"default\":null,"
    "\"type\":\"int\"}],\"meta-type\":\"object\"},"
    "{\"name\":\"316\",\"members\":[{\"name\":\"file\",\"type\":\"518\"}],"
    "\"meta-type\":\"object\"},"
    "{\"name\":\"518\",\"members\":[{\"type\":\"49\"},{\"type\":\"str\"}],"
    "\"meta-type\":\"alternate\"},"
    "{\"name\":\"query-named-block-nodes\",\"ret-type\":\"[33]\","
    "\"meta-type\":\"command\",\"arg-type\":\"32\"},"
    "{\"name\":\"[33]\",\"element-type\":\"33\",\"meta-type\":\"array\"},"
    "{\"name\":\"33\",\"members\":[{\"name\":\"ro\",\"type\":\"bool\"}],"
    "\"meta-type\":\"object\"}]";

static struct qmp_schema *parse(const char *text)
{
    json_auto_t *reply = json_loads(text, 0, NULL);
    cr_assert_not_null(reply);
    struct qmp_schema *schema = NULL;
    cr_assert_eq(qmp_schema_new(reply, &schema, NULL), 0);
    return schema; /* the reply is gone by now */
}

Test(feature, commands_and_events_are_told_apart)
{
    struct qmp_schema *s = parse(REPLY);
    cr_assert(qmp_schema_has_command(s, "blockdev-mirror"));
    cr_assert(!qmp_schema_has_command(s, "BLOCK_JOB_READY"));
    cr_assert(!qmp_schema_has_command(s, "40"));
    cr_assert(!qmp_schema_has_command(s, "block-job-change"));
    cr_assert(qmp_schema_has_event(s, "BLOCK_JOB_READY"));
    cr_assert(!qmp_schema_has_event(s, "yank"));
    (void)qmp_schema_free(s);
}

Test(feature, arguments_are_found_through_arrays_unions_and_alternates)
{
    struct qmp_schema *s = parse(REPLY);
    cr_assert(qmp_schema_has_arg(s, "blockdev-mirror", "copy-mode"));
    cr_assert(!qmp_schema_has_arg(s, "blockdev-mirror", "target-is-zero"));
    cr_assert(!qmp_schema_has_arg(s, "block-job-change", "id"));
    cr_assert(qmp_schema_has_arg(s, "blockdev-add", "driver"));
    cr_assert(qmp_schema_has_arg(s, "blockdev-add", "driver=nbd"));
    cr_assert(
        qmp_schema_has_arg(s, "blockdev-add", "driver=nbd.reconnect-delay"));
    cr_assert(
        !qmp_schema_has_arg(s, "blockdev-add", "driver=qcow2.reconnect-delay"));
    cr_assert(!qmp_schema_has_arg(s, "blockdev-add", "reconnect-delay"));
    cr_assert(!qmp_schema_has_arg(s, "blockdev-add", "driver=rbd"));
    cr_assert(!qmp_schema_has_arg(s, "blockdev-add", "export=nbd"));
    cr_assert(qmp_schema_has_arg(s, "blockdev-add",
                                 "driver=qcow2.file.driver=nbd.export"));
    cr_assert(
        qmp_schema_has_arg(s, "yank", "instances.type=block-node.node-name"));
    cr_assert(qmp_schema_has_arg(s, "yank", "instances.type=migration"));
    (void)qmp_schema_free(s);
}

Test(feature, odd_paths_are_found_nowhere)
{
    struct qmp_schema *s = parse(REPLY);
    static const char *const paths[] = {"",         ".",       "=",  "..",
                                        "device.x", "device.", "=x", "driver="};
    for (unsigned i = 0; i < ARRAY_SIZE(paths); i++) {
        cr_assert(!qmp_schema_has_arg(s, "blockdev-mirror", paths[i]), "%s",
                  paths[i]);
        cr_assert(!qmp_schema_has_arg(s, "blockdev-add", paths[i]));
    }
    char huge[1000];
    memset(huge, 'x', sizeof(huge));
    huge[sizeof(huge) - 1] = '\0';
    cr_assert(!qmp_schema_has_arg(s, "blockdev-add", huge));
    (void)qmp_schema_free(s);
}

Test(feature, enum_values_are_found_in_both_their_forms)
{
    struct qmp_schema *s = parse(REPLY);
    cr_assert(qmp_schema_has_value(s, "blockdev-mirror", "sync", "top"));
    cr_assert(!qmp_schema_has_value(s, "blockdev-mirror", "sync", "some"));
    cr_assert(qmp_schema_has_value(s, "blockdev-mirror", "copy-mode",
                                   "write-blocking"));
    cr_assert(!qmp_schema_has_value(s, "blockdev-mirror", "device", "x"));
    cr_assert(qmp_schema_has_value(s, "yank", "instances.type", "migration"));
    (void)qmp_schema_free(s);
}

Test(feature, results_oob_and_features_are_found)
{
    struct qmp_schema *s = parse(REPLY);
    cr_assert(qmp_schema_has_result(s, "query-named-block-nodes", "ro"));
    cr_assert(!qmp_schema_has_result(s, "query-named-block-nodes", "children"));
    cr_assert(qmp_schema_allows_oob(s, "yank"));
    cr_assert(!qmp_schema_allows_oob(s, "blockdev-add"));
    cr_assert(!qmp_schema_allows_oob(s, "nothing"));
    cr_assert(qmp_schema_has_feature(s, "blockdev-snapshot",
                                     "allow-write-only-overlay"));
    cr_assert(!qmp_schema_has_feature(s, "yank", "deprecated"));
    (void)qmp_schema_free(s);
}

Test(feature, names_are_listed_for_completion)
{
    struct qmp_schema *s = parse(REPLY);
    json_auto_t *commands = qmp_schema_names(s, NULL);
    cr_assert_eq(json_array_size(commands), 5);
    json_auto_t *args = qmp_schema_names(s, "blockdev-mirror");
    json_auto_t *want = json_pack("[s, s, s]", "device", "sync", "copy-mode");
    cr_assert(json_equal(args, want));
    json_auto_t *none = qmp_schema_names(s, "nothing");
    cr_assert_eq(json_array_size(none), 0);
    (void)qmp_schema_free(s);
}

Test(feature, hostile_schemas_end)
{
    struct qmp_schema *s = parse(
        "[1, null, {}, {\"name\":7}, {\"name\":\"c\",\"meta-type\":\"command\","
        "\"arg-type\":\"a\",\"ret-type\":\"l\"},"
        "{\"name\":\"a\",\"meta-type\":\"alternate\",\"members\":["
        "{\"type\":\"a\"},{\"type\":\"a\"},{\"type\":\"l\"},3,{\"type\":4}]},"
        "{\"name\":\"l\",\"meta-type\":\"array\",\"element-type\":\"l\"}]");
    cr_assert(!qmp_schema_has_arg(s, "c", "x"));
    cr_assert(!qmp_schema_has_arg(s, "c", "x=y"));
    cr_assert(!qmp_schema_has_result(s, "c", "x"));
    cr_assert(!qmp_schema_has_value(s, "c", "x", "y"));
    (void)qmp_schema_free(s);
    json_auto_t *object = json_object();
    cr_assert_eq(qmp_schema_new(object, &s, NULL), -EBADMSG);
}
