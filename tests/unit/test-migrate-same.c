/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What two names prove of one storage: to guess wrong loses the disk. */
#include <criterion/criterion.h>

#include "operations/migrate-plan.h"

static enum migrate_same rbd(const char *src, const char *dst)
{
    return migrate_same_name("rbd", src, "rbd", dst, false);
}

static enum migrate_same nfs(const char *src, const char *dst)
{
    return migrate_same_name("nfs", src, "nfs", dst, false);
}

static enum migrate_same nbd(const char *src, const char *dst)
{
    return migrate_same_name("nbd", src, "nbd", dst, false);
}

Test(migrate_same, one_name_is_one_storage)
{
    cr_assert_eq(rbd("rbd:pool/a:conf=/c", "rbd:pool/a:conf=/c"), MIGRATE_SAME);
    cr_assert_eq(nfs("nfs://h/export/a", "nfs://h/export/a"), MIGRATE_SAME);
    cr_assert_eq(nbd("nbd://h:10809/a", "nbd://h:10809/a"), MIGRATE_SAME);
}

Test(migrate_same, a_server_by_two_names_is_unproved_and_not_different)
{
    cr_assert_eq(nfs("nfs://h/export/a", "nfs://192.0.2.1/export/a"),
                 MIGRATE_UNPROVED);
    cr_assert_eq(nbd("nbd://h:10809/a", "nbd://h.example:10809/a"),
                 MIGRATE_UNPROVED);
    cr_assert_eq(nbd("nbd://h:10809/a", "nbd://h:10810/a"), MIGRATE_UNPROVED);
}

Test(migrate_same, one_image_by_another_conf_or_user_is_unproved)
{
    cr_assert_eq(rbd("rbd:pool/a:conf=/c", "rbd:pool/a:conf=/d"),
                 MIGRATE_UNPROVED);
    cr_assert_eq(rbd("rbd:pool/a:id=x", "rbd:pool/a:id=y"), MIGRATE_UNPROVED);
}

Test(migrate_same, another_image_is_another_one)
{
    cr_assert_eq(rbd("rbd:pool/a:conf=/c", "rbd:pool/b:conf=/c"),
                 MIGRATE_DIFFERENT);
    cr_assert_eq(rbd("rbd:pool/a:conf=/c", "rbd:else/a:conf=/c"),
                 MIGRATE_DIFFERENT);
}

/* Which path is which on a server, its exports tell: two may be one file. */
Test(migrate_same, another_path_of_a_server_is_unproved)
{
    cr_assert_eq(nfs("nfs://h/export/a", "nfs://h/export/b"), MIGRATE_UNPROVED);
    cr_assert_eq(nbd("nbd://h:10809/a", "nbd://h:10809/b"), MIGRATE_UNPROVED);
}

Test(migrate_same, an_image_in_rados_is_no_file)
{
    cr_assert_eq(migrate_same_name("rbd", "rbd:pool/a", "nfs",
                                   "nfs://h/export/a", false),
                 MIGRATE_DIFFERENT);
    cr_assert_eq(migrate_same_name("file", "/a", "rbd", "rbd:pool/a", false),
                 MIGRATE_DIFFERENT);
}

Test(migrate_same, a_mapped_device_or_an_export_may_be_anything)
{
    cr_assert_eq(migrate_same_name("rbd", "rbd:pool/a", "host_device",
                                   "/dev/rbd0", false),
                 MIGRATE_UNPROVED);
    cr_assert_eq(
        migrate_same_name("rbd", "rbd:pool/a", "nbd", "nbd://h:10809/a", false),
        MIGRATE_UNPROVED);
    cr_assert_eq(
        migrate_same_name("file", "/a", "nfs", "nfs://h/export/a", false),
        MIGRATE_UNPROVED);
}

Test(migrate_same, what_is_local_to_a_host_is_another_one_on_another)
{
    static const char *const names[] = {
        "nbd://localhost:10809/a",       "nbd://LocalHost:10809/a",
        "nbd://127.0.0.1:10809/a",       "nbd://[::1]:10809/a",
        "nbd+unix:///a?socket=/run/nbd",
    };
    for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        cr_assert_eq(nbd(names[i], names[i]), MIGRATE_UNPROVED, "%s", names[i]);
        cr_assert_eq(migrate_same_name("nbd", names[i], "nbd", names[i], true),
                     MIGRATE_SAME, "%s", names[i]);
    }
    cr_assert_eq(nfs("nfs://localhost/export/a", "nfs://localhost/export/a"),
                 MIGRATE_UNPROVED);
    /* It only looks like one. */
    cr_assert_eq(nbd("nbd://192.127.0.1:10809/a", "nbd://192.127.0.1:10809/a"),
                 MIGRATE_SAME);
}

Test(migrate_same, what_nobody_can_read_proves_nothing)
{
    cr_assert_eq(nbd("json:{", "json:{"), MIGRATE_UNPROVED);
    cr_assert_eq(migrate_same_name("luks", "x", "luks", "x", true),
                 MIGRATE_UNPROVED);
}
