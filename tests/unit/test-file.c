/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backends/backend.h"
#include "base/err.h"
#include "base/str.h"
#include "fake/scratch.h"

static char directory[SCRATCH_PATH];
static struct volume *volume;
static struct volume_info info;
static struct err *err;

static int unlink_one(const char *path, _unused_ const struct stat *st,
                      _unused_ int flag, _unused_ struct FTW *ftw)
{
    return remove(path);
}

static void at(const char *name)
{
    volume = volume_free(volume);
    err = err_free(err);
    _cleanup_free_ char *path = str_printf("%s/%s", directory, name);
    cr_assert_eq(volume_parse(path, &volume, &err), 0);
}

static void put(const char *name, const void *data, size_t length)
{
    _cleanup_free_ char *path = str_printf("%s/%s", directory, name);
    FILE *file = fopen(path, "we");
    cr_assert_not_null(file);
    cr_assert_eq(fwrite(data, 1, length, file), length);
    cr_assert_eq(fclose(file), 0);
}

static bool there(const char *name)
{
    _cleanup_free_ char *path = str_printf("%s/%s", directory, name);
    struct stat st;
    return lstat(path, &st) == 0;
}

static void setup(void)
{
    scratch_make("file", directory);
    at("a.raw");
}

static void teardown(void)
{
    volume = volume_free(volume);
    err = err_free(err);
    (void)nftw(directory, unlink_one, 8, FTW_DEPTH | FTW_PHYS);
}

TestSuite(file, .init = setup, .fini = teardown);

Test(file, absent_file_is_no_error_and_tells_the_space)
{
    cr_assert_eq(volume->ops->probe(volume, &info, &err), 0);
    cr_assert_not(info.exists);
    cr_assert_neq(info.available, UINT64_MAX);
}

Test(file, holes_are_no_data_and_an_open_by_o_direct_is_tried)
{
    _cleanup_free_ char *path = str_printf("%s/sparse", directory);
    char block[4096];
    memset(block, 'x', sizeof(block));
    _cleanup_close_ int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    cr_assert_eq(ftruncate(fd, 1 << 20), 0);
    cr_assert_eq(pwrite(fd, block, sizeof(block), 256 << 10), sizeof(block));
    struct volume *sparse = NULL;
    cr_assert_eq(volume_parse(path, &sparse, NULL), 0);
    cr_assert_eq(sparse->ops->probe(sparse, &info, &err), 0);
    cr_assert_geq(info.data, sizeof(block));
    cr_assert_lt(info.data, 1 << 20, "%llu", (unsigned long long)info.data);
    cr_assert_neq(*info.space, '\0');
    cr_assert_neq(info.direct, DIRECT_UNKNOWN);
    volume_free(sparse);
    struct volume_info absent;
    cr_assert_eq(volume->ops->probe(volume, &absent, &err), 0);
    cr_assert_eq(absent.direct, info.direct, "the same file system");
    cr_assert_str_eq(absent.space, info.space);
}

static mode_t created_mode(const char *like, struct stat *st)
{
    _cleanup_free_ char *path = str_printf("%s/tmp", directory);
    free(volume->like);
    volume->like = str_printf("%s/%s", directory, like);
    cr_assert_eq(volume->ops->create(volume, "tmp", 512, &info, &err), 0);
    cr_assert_eq(stat(path, st), 0);
    return st->st_mode & 07777;
}

Test(file, created_file_can_be_opened_by_who_can_open_the_source)
{
    struct stat st;
    _cleanup_free_ char *path = str_printf("%s/source", directory);
    put("source", "x", 1);
    cr_assert_eq(chmod(path, 0750), 0);
    if (geteuid() == 0) {
        cr_assert_eq(chown(path, 65534, 65533), 0);
    }
    cr_assert_eq(created_mode("source", &st), 0640);
    cr_assert_eq(st.st_uid, geteuid() == 0 ? 65534 : geteuid());
    if (geteuid() == 0) {
        cr_assert_eq(st.st_gid, 65533);
    }
    cr_assert_eq(created_mode("none", &st), 0600);
}

Test(file, created_file_is_zero_and_only_under_the_other_name)
{
    cr_assert_eq(volume->ops->create(volume, "tmp", 1000000, &info, &err), 0);
    cr_assert(info.exists && info.zero);
    cr_assert_eq(info.size, 1000000);
    cr_assert_eq(info.allocated, 0);
    cr_assert(str_starts(info.identity, "file:"));
    cr_assert(there("tmp") && !there("a.raw"));
}

Test(file, create_replaces_an_earlier_try)
{
    put("tmp", "old", 3);
    cr_assert_eq(volume->ops->create(volume, "tmp", 4096, &info, &err), 0);
    cr_assert_eq(info.size, 4096);
}

Test(file, publish_renames_once_and_is_content_the_second_time)
{
    cr_assert_eq(volume->ops->create(volume, "tmp", 4096, &info, &err), 0);
    cr_assert_eq(volume->ops->publish(volume, "tmp", info.identity, &err), 0);
    cr_assert(there("a.raw") && !there("tmp"));
    cr_assert_eq(volume->ops->publish(volume, "tmp", info.identity, &err), 0);
    struct volume_info now;
    cr_assert_eq(volume->ops->probe(volume, &now, &err), 0);
    cr_assert_str_eq(now.identity, info.identity);
    cr_assert_not(now.zero, "only its creator knows that");
}

Test(file, publish_never_replaces)
{
    cr_assert_eq(volume->ops->create(volume, "tmp", 4096, &info, &err), 0);
    put("a.raw", "precious", 8);
    cr_assert_eq(volume->ops->publish(volume, "tmp", info.identity, &err),
                 -EEXIST);
    cr_assert_not_null(strstr(err->desc, "taken"));
    struct volume_info now;
    cr_assert_eq(volume->ops->probe(volume, &now, NULL), 0);
    cr_assert_eq(now.size, 8);
}

Test(file, publish_finishes_what_link_began)
{
    cr_assert_eq(volume->ops->create(volume, "tmp", 4096, &info, &err), 0);
    _cleanup_free_ char *from = str_printf("%s/tmp", directory);
    _cleanup_free_ char *to = str_printf("%s/a.raw", directory);
    cr_assert_eq(link(from, to), 0);
    cr_assert_eq(volume->ops->publish(volume, "tmp", info.identity, &err), 0);
    cr_assert(there("a.raw") && !there("tmp"));
}

Test(file, publish_of_something_else_is_refused)
{
    put("tmp", "x", 1);
    cr_assert_eq(volume->ops->publish(volume, "tmp", "file:0:0:0", &err),
                 -ESTALE);
    cr_assert_eq(volume->ops->publish(volume, "gone", "file:0:0:0", &err),
                 -ENOENT);
}

Test(file, remove_wants_the_identity)
{
    put("a.raw", "precious", 8);
    cr_assert_eq(volume->ops->remove(volume, NULL, "file:1:2:3", &err),
                 -ESTALE);
    cr_assert(there("a.raw"));
    cr_assert_eq(volume->ops->remove(volume, "tmp", NULL, &err), 0);
    cr_assert(there("a.raw"));
    cr_assert_eq(volume->ops->probe(volume, &info, &err), 0);
    cr_assert_eq(volume->ops->remove(volume, NULL, info.identity, &err), 0);
    cr_assert_not(there("a.raw"));
    cr_assert_eq(volume->ops->remove(volume, NULL, info.identity, &err), 0);
}

Test(file, locked_file_is_in_use_and_stays)
{
    put("a.raw", "data", 4);
    _cleanup_free_ char *path = str_printf("%s/a.raw", directory);
    _cleanup_close_ int fd = open(path, O_RDWR | O_CLOEXEC);
    /* As QEMU does: a shared lock of the byte of a permission. */
    struct flock lock = {.l_type = F_RDLCK, .l_start = 101, .l_len = 1};
    cr_assert_eq(fcntl(fd, F_OFD_SETLK, &lock), 0);
    cr_assert_eq(volume->ops->probe(volume, &info, &err), 0);
    cr_assert(info.in_use);
    cr_assert_not_null(strstr(info.in_use_by, "QEMU"));
    cr_assert_eq(volume->ops->remove(volume, NULL, info.identity, &err),
                 -EBUSY);
    cr_assert_eq(volume->ops->create(volume, "a.raw", 1, &info, &err), -EBUSY);
    cr_assert(there("a.raw"));
}

Test(file, symbolic_link_is_followed)
{
    put("real.raw", "0123456789", 10);
    _cleanup_free_ char *path = str_printf("%s/a.raw", directory);
    cr_assert_eq(symlink("real.raw", path), 0);
    cr_assert_eq(volume->ops->probe(volume, &info, &err), 0);
    cr_assert_eq(info.size, 10);
    struct volume_info real;
    at("real.raw");
    cr_assert_eq(volume->ops->probe(volume, &real, &err), 0);
    cr_assert_str_eq(real.identity, info.identity);
}

Test(file, dangling_link_is_an_error)
{
    _cleanup_free_ char *path = str_printf("%s/a.raw", directory);
    cr_assert_eq(symlink("nowhere", path), 0);
    cr_assert_eq(volume->ops->probe(volume, &info, &err), -ENOENT);
    cr_assert_not_null(strstr(err->desc, "symbolic link"));
}

Test(file, directory_and_fifo_are_refused)
{
    _cleanup_free_ char *path = str_printf("%s/a.raw", directory);
    cr_assert_eq(mkdir(path, 0700), 0);
    cr_assert_eq(volume->ops->probe(volume, &info, &err), -EINVAL);
    cr_assert_not_null(strstr(err->desc, "directory"));
    cr_assert_eq(rmdir(path), 0);
    cr_assert_eq(mkfifo(path, 0600), 0);
    cr_assert_eq(volume->ops->probe(volume, &info, &err), -EINVAL);
    cr_assert_not_null(strstr(err->desc, "FIFO"));
}

Test(file, missing_directory_is_named)
{
    at("no/a.raw");
    cr_assert_eq(volume->ops->probe(volume, &info, &err), -ENOENT);
    cr_assert_not_null(strstr(err->desc, "/no'"));
    cr_assert_eq(volume->ops->create(volume, "tmp", 1, &info, &err), -ENOENT);
}

Test(file, qcow2_is_known_by_its_header)
{
    unsigned char head[104] = {'Q', 'F', 'I', 0xfb, 0, 0, 0, 3};
    head[27] = 0x02; /* size: 2 << 32 */
    put("a.raw", head, sizeof(head));
    cr_assert_eq(volume->ops->probe(volume, &info, &err), 0);
    cr_assert_eq(info.format, FORMAT_QCOW2);
    cr_assert_eq(info.format_size, UINT64_C(2) << 32);
    head[7] = 1;
    put("a.raw", head, sizeof(head));
    cr_assert_eq(volume->ops->probe(volume, &info, &err), 0);
    cr_assert_eq(info.format, FORMAT_RAW);
    put("a.raw", head, 8);
    cr_assert_eq(volume->ops->probe(volume, &info, &err), 0);
    cr_assert_eq(info.format_size, 0);
}

Test(file, node_options_follow_the_cache_option)
{
    volume = volume_free(volume);
    cr_assert_eq(volume_parse("/srv/a?cache=none", &volume, &err), 0);
    json_auto_t *node = volume->ops->node_options(volume, NULL);
    json_auto_t *wanted =
        json_pack("{s:s, s:s, s:s, s:{s:b}}", "driver", "file", "discard",
                  "unmap", "filename", "/srv/a", "cache", "direct", 1);
    cr_assert(json_equal(node, wanted));
}

Test(file, name_that_qemu_tells_comes_back_as_it_is)
{
    static const char *const names[] = {"/a b%41?.raw", "/a#b&c=d",
                                        "/\xc3\xa4"};
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        _cleanup_(volume_freep) struct volume *v = NULL;
        cr_assert_eq(volume_from_node("file", names[i], &v), 0);
        _cleanup_free_ char *name = v->ops->legacy_name(v);
        cr_assert_str_eq(name, names[i]);
        _cleanup_(volume_freep) struct volume *again = NULL;
        cr_assert_eq(volume_parse(v->uri, &again, NULL), 0);
        _cleanup_free_ char *same = again->ops->legacy_name(again);
        cr_assert_str_eq(same, names[i]);
    }
}
