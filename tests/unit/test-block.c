/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What needs no device; the rest is in tests/live. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "backends/backend.h"
#include "base/err.h"

Test(block, is_always_existing)
{
    _cleanup_(volume_freep) struct volume *v = NULL;
    cr_assert_eq(volume_parse("block:/dev/vg/lv", &v, NULL), 0);
    cr_assert(v->existing);
    cr_assert_eq(v->ops->flags & BACKEND_CREATES, 0);
}

Test(block, creating_it_is_refused)
{
    struct volume *v = NULL;
    _cleanup_err_ struct err *err = NULL;
    cr_assert_eq(volume_parse("block:/dev/x?existing=no", &v, &err), -EINVAL);
    cr_assert_not_null(strstr(err->desc, "cannot be created"));
}

Test(block, path_is_absolute)
{
    struct volume *v = NULL;
    cr_assert_eq(volume_parse("block:sda", &v, NULL), -EINVAL);
    cr_assert_eq(volume_parse("block:", &v, NULL), -EINVAL);
}

Test(block, node_is_a_host_device)
{
    _cleanup_(volume_freep) struct volume *v = NULL;
    cr_assert_eq(volume_parse("block:/dev/x?cache=writeback", &v, NULL), 0);
    json_auto_t *node = v->ops->node_options(v, NULL);
    json_auto_t *wanted = json_pack("{s:s, s:s, s:s, s:{s:b}}", "driver",
                                    "host_device", "discard", "unmap",
                                    "filename", "/dev/x", "cache", "direct", 0);
    cr_assert(json_equal(node, wanted));
}

Test(block, comes_back_from_a_node)
{
    _cleanup_(volume_freep) struct volume *v = NULL;
    cr_assert_eq(volume_from_node("host_device", "/dev/disk/by-id/a b", &v), 0);
    cr_assert_str_eq(v->uri, "block:/dev/disk/by-id/a%20b");
    struct volume *none = NULL;
    cr_assert_eq(volume_from_node("host_cdrom", "/dev/sr0", &none), -ENOENT);
}

Test(block, absent_device_is_no_error)
{
    _cleanup_(volume_freep) struct volume *v = NULL;
    struct volume_info info;
    cr_assert_eq(volume_parse("block:/dev/no-such-device", &v, NULL), 0);
    cr_assert_eq(v->ops->probe(v, &info, NULL), 0);
    cr_assert_not(info.exists);
}

Test(block, what_is_no_device_is_refused)
{
    _cleanup_(volume_freep) struct volume *v = NULL;
    _cleanup_err_ struct err *err = NULL;
    struct volume_info info;
    cr_assert_eq(volume_parse("block:/etc/passwd", &v, NULL), 0);
    cr_assert_eq(v->ops->probe(v, &info, &err), -ENOTBLK);
    cr_assert_not_null(strstr(err->hint, "/etc/passwd"));
}
