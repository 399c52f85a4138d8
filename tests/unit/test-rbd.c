/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What needs no cluster; the rest is in tests/live. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "backends/backend.h"
#include "base/err.h"
#include "base/str.h"

static struct volume *parsed(const char *uri)
{
    struct volume *volume = NULL;
    int r = volume_parse(uri, &volume, NULL);
    if (r == -ENOTSUP) {
        cr_skip_test("built without librbd");
    }
    cr_assert_eq(r, 0, "%s", uri);
    return volume;
}

Test(rbd, node_has_what_was_given)
{
    _cleanup_(volume_freep) struct volume *v =
        parsed("rbd:pool/space/image?conf=/c&id=me&keyring=/k");
    json_auto_t *node = v->ops->node_options(v, "sec0");
    json_auto_t *wanted =
        json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:[s]}", "driver",
                  "rbd", "discard", "unmap", "pool", "pool", "image", "image",
                  "namespace", "space", "conf", "/c", "user", "me",
                  "key-secret", "sec0", "auth-client-required", "cephx");
    cr_assert(json_equal(node, wanted));
    cr_assert_null(strstr(v->name, "/k"));
}

Test(rbd, node_without_options_is_bare)
{
    _cleanup_(volume_freep) struct volume *v = parsed("rbd:pool/image");
    json_auto_t *node = v->ops->node_options(v, NULL);
    json_auto_t *wanted =
        json_pack("{s:s, s:s, s:s, s:s}", "driver", "rbd", "discard", "unmap",
                  "pool", "pool", "image", "image");
    cr_assert(json_equal(node, wanted));
}

Test(rbd, legacy_name_is_escaped)
{
    _cleanup_(volume_freep) struct volume *v =
        parsed("rbd:p/s/im%40ge?conf=/a:b&id=x%3Dy");
    _cleanup_free_ char *name = v->ops->legacy_name(v);
    cr_assert_str_eq(name, "rbd:p/s/im\\@ge:id=x\\=y:conf=/a\\:b");
    _cleanup_(volume_freep) struct volume *again = NULL;
    cr_assert_eq(volume_from_node("rbd", name, &again), 0);
    _cleanup_free_ char *same = again->ops->legacy_name(again);
    cr_assert_str_eq(same, name);
}

Test(rbd, bad_names_are_refused)
{
    (void)volume_free(parsed("rbd:p/i"));
    static const char *const bad[] = {
        "rbd:",         "rbd:p",        "rbd:/i",
        "rbd:p/",       "rbd:p//i",     "rbd:p/s/x/i",
        "rbd:p/i@snap", "rbd:p/i:id=x", "rbd:p/i?key=AAAA",
    };
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        struct volume *v = NULL;
        cr_assert_eq(volume_parse(bad[i], &v, NULL), -EINVAL, "%s", bad[i]);
    }
}

/* The first two as QEMU 7.2 was seen to tell them. */
Test(rbd, comes_back_from_a_node)
{
    (void)volume_free(parsed("rbd:p/i"));
    static const char *const names[][2] = {
        {"json:{\"pool\": \"rbd\", \"image\": \"img\", \"conf\": \"/c\", "
         "\"driver\": \"rbd\", \"namespace\": \"\"}",   "rbd:rbd/img?conf=/c"    },
        {"json:{\"pool\": \"rbd\", \"image\": \"img\", \"driver\": \"rbd\", "
         "\"namespace\": \"sp\", \"user\": \"admin\"}", "rbd:rbd/sp/img?id=admin"},
        {"rbd:pool/img",                                         "rbd:pool/img"           },
        {"rbd:pool/sp/img:id=a:conf=/c\\:d:key=SECRET:x",
         "rbd:pool/sp/img?id=a&conf=/c%3Ad"                                               },
    };
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        _cleanup_(volume_freep) struct volume *v = NULL;
        cr_assert_eq(volume_from_node("rbd", names[i][0], &v), 0, "%s",
                     names[i][0]);
        cr_assert_str_eq(v->uri, names[i][1]);
    }
}

Test(rbd, snapshots_and_nonsense_are_enoent)
{
    (void)volume_free(parsed("rbd:p/i"));
    static const char *const bad[] = {
        "rbd:p/i@snap",
        "rbd:p",
        "rbd:/",
        "",
        "json:{\"driver\":\"rbd\"}",
        "json:{\"driver\":\"rbd\",\"pool\":\"p\",\"image\":\"i\","
        "\"snapshot\":\"s\"}",
        "json:{\"driver\":\"nbd\",\"pool\":\"p\",\"image\":\"i\"}",
    };
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        struct volume *v = NULL;
        cr_assert_eq(volume_from_node("rbd", bad[i], &v), -ENOENT, "%s",
                     bad[i]);
    }
}

static int secret_of(const char *id, const char *keyring, char **ret,
                     struct err **errp)
{
    char path[] = "/tmp/test-rbd-XXXXXX";
    int fd = mkstemp(path);
    cr_assert_geq(fd, 0);
    cr_assert_eq(write(fd, keyring, strlen(keyring)), (ssize_t)strlen(keyring));
    (void)close(fd);
    _cleanup_free_ char *uri = str_printf("rbd:p/i?id=%s&keyring=%s", id, path);
    _cleanup_(volume_freep) struct volume *v = parsed(uri);
    int r = v->ops->secret(v, ret, errp);
    (void)unlink(path);
    return r;
}

Test(rbd, secret_is_the_users_key)
{
    static const char keyring[] = "[client.admin]\n\tkey = AAAA\n"
                                  "[client.me]\n  caps mon = \"allow r\"\n"
                                  "\tkey=BBBB==\n";
    char *secret = NULL;
    _cleanup_err_ struct err *err = NULL;
    cr_assert_eq(secret_of("admin", keyring, &secret, &err), 0);
    cr_assert_str_eq(secret, "AAAA");
    str_wipe_free(secret);
    secret = NULL;
    cr_assert_eq(secret_of("nobody", keyring, &secret, &err), -ENOENT);
    cr_assert_null(secret);
    cr_assert_not_null(strstr(err->desc, "client.nobody"));
    /* "BBBB==" is no base64: 6 characters. */
    cr_assert_eq(secret_of("me", keyring, &secret, &err), -ENOENT);
}

Test(rbd, no_keyring_no_secret)
{
    _cleanup_(volume_freep) struct volume *v = parsed("rbd:p/i?id=me");
    char *secret = NULL;
    cr_assert_eq(v->ops->secret(v, &secret, NULL), 0);
    cr_assert_null(secret);
}
