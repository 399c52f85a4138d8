/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The bulk channel of files, and what all channels share. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "backends/backend.h"
#include "backends/bulk.h"
#include "base/err.h"
#include "base/str.h"
#include "fake/scratch.h"

enum { SIZE = 3 * BULK_UNIT + 777, LIMIT_MS = 5000 };

static char dir[SCRATCH_PATH];
static char path[SCRATCH_PATH + 8];
static char *buffer;

static void setup(void)
{
    void *p = NULL;
    scratch_make("bulk", dir);
    (void)snprintf(path, sizeof(path), "%s/file", dir);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    cr_assert(fd >= 0 && ftruncate(fd, SIZE) == 0);
    (void)close(fd);
    cr_assert_eq(posix_memalign(&p, BULK_ALIGN, BULK_UNIT), 0);
    buffer = p;
}

static void teardown(void)
{
    free(buffer);
    (void)unlink(path);
    (void)rmdir(dir);
}

TestSuite(bulk, .init = setup, .fini = teardown);

static struct volume *parsed(const char *options)
{
    struct volume *volume = NULL;
    char uri[96];
    (void)snprintf(uri, sizeof(uri), "%s%s", path, options);
    cr_assert_eq(volume_parse(uri, &volume, NULL), 0);
    return volume;
}

static int call(struct bulk *bulk, enum bulk_act act, uint64_t offset,
                uint64_t length)
{
    struct bulk_request request = {
        .act = act, .offset = offset, .length = length, .buffer = buffer};
    return bulk_call(bulk, &request, LIMIT_MS);
}

static void round_trip(const char *options)
{
    struct volume *volume = parsed(options);
    struct bulk *bulk = NULL;
    cr_assert_eq(bulk_open(volume, BULK_WRITE, &bulk, NULL), 0);
    cr_assert_eq(bulk->size, SIZE);
    memset(buffer, 'x', BULK_UNIT);
    cr_assert_eq(call(bulk, BULK_PUT, BULK_UNIT, BULK_UNIT), 0);
    cr_assert_eq(call(bulk, BULK_PUT, SIZE - 777, 777), 0);
    cr_assert_eq(call(bulk, BULK_ZERO, BULK_UNIT + 512, 5000), 0);
    cr_assert_eq(call(bulk, BULK_FLUSH, 0, 0), 0);
    bulk = bulk_close(bulk);
    cr_assert_eq(bulk_open(volume, BULK_FRESH, &bulk, NULL), 0);
    cr_assert_eq(call(bulk, BULK_READ, BULK_UNIT, BULK_UNIT), 0);
    cr_assert(buffer[511] == 'x' && buffer[512] == 0);
    cr_assert(buffer[5511] == 0 && buffer[5512] == 'x');
    cr_assert_eq(call(bulk, BULK_READ, SIZE - 777, 777), 0);
    cr_assert(buffer[0] == 'x' && buffer[776] == 'x');
    bulk = bulk_close(bulk);
    volume = volume_free(volume);
}

Test(bulk, odd_ranges_go_with_and_without_the_cache)
{
    round_trip("");
    round_trip("?cache=none");
    round_trip("?cache=writeback");
}

static int count_extent(void *data, uint64_t offset, uint64_t length)
{
    uint64_t *sum = data;
    (void)offset;
    *sum += length;
    return 0;
}

Test(bulk, extents_tell_of_data_only)
{
    struct volume *volume = parsed("");
    struct bulk *bulk = NULL;
    uint64_t sum = 0;
    cr_assert_eq(bulk_open(volume, BULK_WRITE, &bulk, NULL), 0);
    memset(buffer, 'x', 4096);
    cr_assert_eq(call(bulk, BULK_PUT, 2 * BULK_UNIT, 4096), 0);
    cr_assert_eq(bulk_extents(bulk, count_extent, &sum, NULL), 0);
    cr_assert(sum >= 4096 && sum <= BULK_UNIT, "%llu", (unsigned long long)sum);
    bulk = bulk_close(bulk);
    volume = volume_free(volume);
}

Test(bulk, a_read_beyond_the_end_is_an_error)
{
    struct volume *volume = parsed("");
    struct bulk *bulk = NULL;
    cr_assert_eq(bulk_open(volume, 0, &bulk, NULL), 0);
    cr_assert_eq(call(bulk, BULK_READ, SIZE - 10, 11), -EIO);
    bulk = bulk_close(bulk);
    volume = volume_free(volume);
}

Test(bulk, a_volume_that_is_written_counts_as_in_use)
{
    struct volume *volume = parsed("");
    struct bulk *first = NULL;
    struct bulk *second = NULL;
    struct volume_info info;
    cr_assert_eq(bulk_open(volume, BULK_WRITE, &first, NULL), 0);
    cr_assert_eq(bulk_open(volume, BULK_WRITE, &second, NULL), 0);
    cr_assert_eq(volume->ops->probe(volume, &info, NULL), 0);
    cr_assert(info.in_use);
    first = bulk_close(first);
    second = bulk_close(second);
    cr_assert_eq(volume->ops->probe(volume, &info, NULL), 0);
    cr_assert_not(info.in_use);
    volume = volume_free(volume);
}

Test(bulk, what_is_not_there_has_a_message)
{
    _cleanup_err_ struct err *err = NULL;
    struct bulk *bulk = NULL;
    struct volume *volume = parsed("x");
    cr_assert_eq(bulk_open(volume, 0, &bulk, &err), -ENOENT);
    cr_assert_not_null(err);
    cr_assert_str_eq(err->object, volume->name);
    volume = volume_free(volume);
}
