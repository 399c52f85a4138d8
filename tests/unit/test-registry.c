/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "backends/backend.h"
#include "base/err.h"
#include "base/str.h"
#include "fake/fake-backend.h"

static struct volume *parsed(const char *uri)
{
    struct volume *volume = NULL;
    _cleanup_err_ struct err *err = NULL;
    cr_assert_eq(volume_parse(uri, &volume, &err), 0, "%s: %s", uri,
                 err != NULL ? err->desc : "?");
    return volume;
}

static struct err *refused(const char *uri, int code)
{
    struct volume *volume = NULL;
    struct err *err = NULL;
    cr_assert_eq(volume_parse(uri, &volume, &err), code, "%s", uri);
    cr_assert_null(volume);
    cr_assert_not_null(err);
    cr_assert_eq(err->code, code);
    return err;
}

Test(registry, plain_path_is_a_file)
{
    _cleanup_(volume_freep) struct volume *v = parsed("/srv/a.raw");
    cr_assert_str_eq(v->ops->scheme, "file");
    cr_assert_str_eq(v->uri, "/srv/a.raw");
    cr_assert_str_eq(v->name, "/srv/a.raw");
    cr_assert_eq(v->format, FORMAT_RAW);
    cr_assert_not(v->format_given);
    cr_assert_not(v->existing);
    cr_assert_eq(v->cache, CACHE_AUTO);
}

Test(registry, common_options_are_read)
{
    _cleanup_(volume_freep) struct volume *v =
        parsed("/srv/a?format=qcow2&size=1.5G&cache=writeback&existing=yes");
    cr_assert_eq(v->format, FORMAT_QCOW2);
    cr_assert(v->format_given);
    cr_assert_eq(v->size, UINT64_C(3) << 29);
    cr_assert_eq(v->cache, CACHE_WRITEBACK);
    cr_assert(v->existing);
    cr_assert_str_eq(v->name, "/srv/a");
    _cleanup_(volume_freep) struct volume *again = parsed(v->uri);
    cr_assert_eq(again->size, v->size);
}

Test(registry, unknown_option_is_refused_by_name)
{
    _cleanup_err_ struct err *err = refused("/srv/a?sise=1G", -EINVAL);
    cr_assert_str_eq(err->desc, "unknown option 'sise'");
    cr_assert_str_eq(err->object, "/srv/a");
}

Test(registry, bad_values_are_refused)
{
    static const char *const bad[] = {
        "",
        "/a?size=-1",
        "/a?size=0",
        "/a?size=9999999P",
        "/a?size=",
        "/a?size",
        "/a?format=vmdk",
        "/a?cache=unsafe",
        "/a?=1",
        "/a?size=1&size=1",
        "/a?existing=1",
        "/a?format=%zz",
        "file:/a%z1",
        "file:/a%0",
        "file:/a%",
        "file:/a%00b",
        "file:",
        "/a/",
    };
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        _cleanup_err_ struct err *err = refused(bad[i], -EINVAL);
        cr_assert_null(strchr(err->desc, '\n'), "%s", bad[i]);
    }
}

Test(registry, uri_is_decoded_and_a_plain_path_is_not)
{
    _cleanup_(volume_freep) struct volume *uri = parsed("file:/a%20b%25%3fc");
    _cleanup_free_ char *decoded = uri->ops->legacy_name(uri);
    cr_assert_str_eq(decoded, "/a b%?c");
    _cleanup_(volume_freep) struct volume *plain = parsed("/a%20b?c?size=1");
    _cleanup_free_ char *kept = plain->ops->legacy_name(plain);
    cr_assert_str_eq(kept, "/a%20b?c");
}

Test(registry, unknown_scheme_names_the_known_ones)
{
    _cleanup_err_ struct err *err = refused("foo:bar", -EINVAL);
    cr_assert_not_null(strstr(err->desc, "'foo:'"));
    cr_assert_not_null(strstr(err->hint, "block:"));
}

/* Which kinds a build lacks is its own affair. */
Test(registry, absent_kind_tells_what_to_install)
{
    static const char *const kinds[][2] = {
        {"linstor://c/gr/re?node=n", "libcurl"},
        {"rbd:pool/image",           "librbd" },
        {"nfs://host/export/file",   "libnfs" },
    };
    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
        struct volume *volume = NULL;
        _cleanup_err_ struct err *err = NULL;
        int r = volume_parse(kinds[i][0], &volume, &err);
        volume_free(volume);
        cr_assert(r == 0 ||
                  (r == -ENOTSUP && strstr(err->hint, kinds[i][1]) != NULL));
    }
}

Test(registry, secrets_in_foreign_forms_are_not_repeated)
{
    static const char *const leaks[] = {
        "rbd:pool/image:key=SECRET", "rbd:pool/image?key=SECRET",
        "nbd://user:SECRET@host/x",  "nfs://SECRET@host/x/y",
        "/a?password=SECRET",        "foo://user:SECRET@host/x",
    };
    for (size_t i = 0; i < ARRAY_SIZE(leaks); i++) {
        struct volume *volume = NULL;
        _cleanup_err_ struct err *err = NULL;
        cr_assert_lt(volume_parse(leaks[i], &volume, &err), 0);
        _cleanup_free_ char *text = err_text(err);
        cr_assert_null(strstr(text, "SECRET"), "%s", text);
        cr_assert(err->hint == NULL || strstr(err->hint, "SECRET") == NULL);
    }
}

Test(registry, unknown_node_is_enoent)
{
    struct volume *volume = NULL;
    cr_assert_eq(volume_from_node("ssh", "ssh://h/a", &volume), -ENOENT);
    cr_assert_eq(volume_from_node("file", "relative.raw", &volume), -ENOENT);
    cr_assert_eq(volume_from_node("file", "/dev/fdset/2", &volume), -ENOENT);
    cr_assert_eq(volume_from_node("file", "json:{", &volume), -ENOENT);
    cr_assert_eq(volume_from_node("file", "", &volume), -ENOENT);
}

Test(registry, extra_kind_comes_first)
{
    fake_backend_start();
    _cleanup_(volume_freep) struct volume *v = parsed("fake:a");
    cr_assert_str_eq(v->ops->scheme, "fake");
    _cleanup_(volume_freep) struct volume *of_node = NULL;
    cr_assert_eq(volume_from_node("file", "/fake/a", &of_node), 0);
    cr_assert_str_eq(of_node->uri, "fake:a");
    fake_backend_stop();
    _cleanup_err_ struct err *err = refused("fake:a", -EINVAL);
    cr_assert_not_null(err->hint);
}

Test(registry, freeing_nothing_is_fine)
{
    cr_assert_null(volume_free(NULL));
}
