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
        cr_skip_test("built without libnbd");
    }
    cr_assert_eq(r, 0, "%s", uri);
    return volume;
}

Test(nbd, tcp_node)
{
    _cleanup_(volume_freep) struct volume *v = parsed("nbd://[::1]:99/ex%20p");
    cr_assert(v->existing);
    cr_assert_neq(v->ops->flags & BACKEND_NBD, 0);
    json_auto_t *node = v->ops->node_options(v, NULL);
    json_auto_t *wanted =
        json_pack("{s:s, s:s, s:{s:s, s:s, s:s}, s:s, s:i}", "driver", "nbd",
                  "discard", "unmap", "server", "type", "inet", "host", "::1",
                  "port", "99", "export", "ex p", "reconnect-delay", 0);
    cr_assert(json_equal(node, wanted));
}

Test(nbd, unix_node_and_default_export)
{
    _cleanup_(volume_freep) struct volume *v =
        parsed("nbd+unix:///?socket=/run/a%20b");
    json_auto_t *node = v->ops->node_options(v, NULL);
    json_auto_t *wanted = json_pack(
        "{s:s, s:s, s:{s:s, s:s}, s:i}", "driver", "nbd", "discard", "unmap",
        "server", "type", "unix", "path", "/run/a b", "reconnect-delay", 0);
    cr_assert(json_equal(node, wanted));
    cr_assert_str_eq(v->name, "nbd+unix:///?socket=/run/a b");
}

Test(nbd, port_has_a_default)
{
    _cleanup_(volume_freep) struct volume *v = parsed("nbd://h");
    _cleanup_free_ char *name = v->ops->legacy_name(v);
    cr_assert_str_eq(name, "nbd://h:10809/");
}

Test(nbd, bad_addresses_are_refused)
{
    (void)volume_free(parsed("nbd://h/x"));
    static const char *const bad[] = {
        "nbd:h:1",
        "nbd:///x",
        "nbd://h:0/x",
        "nbd://h:65536/x",
        "nbd://h:/x",
        "nbd+unix:///x",
        "nbd+unix:///x?socket=rel",
        "nbd+unix://h/x?socket=/s",
        "nbd://h/x?socket=/s",
        "nbd://h/x?existing=no",
    };
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        struct volume *v = NULL;
        cr_assert_eq(volume_parse(bad[i], &v, NULL), -EINVAL, "%s", bad[i]);
    }
}

/* The first three as QEMU 7.2 was seen to tell them. */
Test(nbd, comes_back_from_a_node)
{
    (void)volume_free(parsed("nbd://h/x"));
    static const char *const names[][2] = {
        {"nbd://127.0.0.1:10900/ex p",                       "nbd://127.0.0.1:10900/ex%20p"},
        {"nbd+unix://?socket=/run/nbd sock",
         "nbd+unix:///?socket=/run/nbd%20sock"                                             },
        {"nbd+unix:///a/b?socket=/s",                        "nbd+unix:///a/b?socket=/s"   },
        {"json:{\"driver\":\"nbd\",\"server.host\":\"h\","
         "\"server.port\":\"1\",\"export\":\"e\"}", "nbd://h:1/e"                 },
        {"json:{\"driver\":\"nbd\",\"server\":{\"type\":\"unix\","
         "\"path\":\"/s\"}}",                       "nbd+unix:///?socket=/s"      },
    };
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        _cleanup_(volume_freep) struct volume *v = NULL;
        cr_assert_eq(volume_from_node("nbd", names[i][0], &v), 0, "%s",
                     names[i][0]);
        cr_assert_str_eq(v->uri, names[i][1]);
    }
}
