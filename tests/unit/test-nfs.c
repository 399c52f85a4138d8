/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What needs no server; the rest is in tests/live. */
#include <criterion/criterion.h>
#include <errno.h>

#include "backends/backend.h"
#include "base/err.h"
#include "base/str.h"

static struct volume *parsed(const char *uri)
{
    struct volume *volume = NULL;
    int r = volume_parse(uri, &volume, NULL);
    if (r == -ENOTSUP) {
        cr_skip_test("built without libnfs");
    }
    cr_assert_eq(r, 0, "%s", uri);
    return volume;
}

Test(nfs, node_has_server_and_path)
{
    _cleanup_(volume_freep) struct volume *v =
        parsed("nfs://server/export/d/a%20b.raw?uid=5&gid=0");
    json_auto_t *node = v->ops->node_options(v, NULL);
    json_auto_t *wanted =
        json_pack("{s:s, s:s, s:{s:s, s:s}, s:s, s:i, s:i}", "driver", "nfs",
                  "discard", "unmap", "server", "type", "inet", "host",
                  "server", "path", "/export/d/a b.raw", "user", 5, "group", 0);
    cr_assert(json_equal(node, wanted));
    _cleanup_free_ char *name = v->ops->legacy_name(v);
    cr_assert_str_eq(name, "nfs://server/export/d/a%20b.raw?uid=5&gid=0");
}

Test(nfs, ids_are_left_out_where_not_given)
{
    _cleanup_(volume_freep) struct volume *v = parsed("nfs://s/e/a");
    json_auto_t *node = v->ops->node_options(v, NULL);
    cr_assert_null(json_object_get(node, "user"));
    cr_assert_null(json_object_get(node, "group"));
}

Test(nfs, bad_places_are_refused)
{
    (void)volume_free(parsed("nfs://s/e/a"));
    static const char *const bad[] = {
        "nfs:/e/a",
        "nfs://",
        "nfs://s",
        "nfs://s/",
        "nfs://s/a",
        "nfs://s/e/",
        "nfs:///e/a",
        "nfs://s:2049/e/a",
        "nfs://s/e/a?uid=x",
        "nfs://[::1/e/a",
        "nfs://s/e/a?uid=-1",
        "nfs://[",
        "nfs://[]:/e/a",
    };
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        struct volume *v = NULL;
        cr_assert_eq(volume_parse(bad[i], &v, NULL), -EINVAL, "%s", bad[i]);
    }
}

/* As QEMU 7.2 was seen to tell them: nothing in the path is encoded. */
Test(nfs, comes_back_from_a_node)
{
    (void)volume_free(parsed("nfs://s/e/a"));
    static const char *const names[][2] = {
        {"nfs://127.0.0.1/export/n.raw",     "nfs://127.0.0.1/export/n.raw" },
        {"nfs://localhost/e/n.raw?gid=7",    "nfs://localhost/e/n.raw?gid=7"},
        {"nfs://h/e/n b%41.raw?uid=5&gid=7",
         "nfs://h/e/n%20b%2541.raw?uid=5&gid=7"                             },
        {"nfs://h/e/what?.raw",              "nfs://h/e/what%3F.raw"        },
    };
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        _cleanup_(volume_freep) struct volume *v = NULL;
        cr_assert_eq(volume_from_node("nfs", names[i][0], &v), 0);
        cr_assert_str_eq(v->uri, names[i][1]);
    }
}

Test(nfs, strange_node_names_are_enoent)
{
    (void)volume_free(parsed("nfs://s/e/a"));
    static const char *const bad[] = {"", "nfs://", "nfs://h", "/a", "nfs:x"};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        struct volume *v = NULL;
        cr_assert_eq(volume_from_node("nfs", bad[i], &v), -ENOENT);
    }
}
