/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Whole pipelines over local files, and over a channel that fails. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "backends/backend.h"
#include "backends/bulk.h"
#include "backends/volume.h"
#include "base/err.h"
#include "base/str.h"
#include "bulk/extents.h"
#include "bulk/pipeline.h"
#include "bulk/resume.h"
#include "fake/scratch.h"

enum { SIZE = 5 * UNIT + 777 };

static char dir[SCRATCH_PATH];
static struct volume *a;
static struct volume *b;
static struct extents *map;
static struct record *record;

/* A channel that keeps requests until it is served, and fails one of them. */
struct slow {
    struct bulk bulk;
    struct bulk_request *kept[128];
    unsigned n;
    unsigned most;
};

static unsigned slow_most;
static uint64_t slow_fails_at = UINT64_MAX;
static bool slow_gets_lost;   /* with the first failure, and all that it had */
static unsigned slow_puts[8]; /* for each unit */
static unsigned slow_reads[8];

static const struct bulk_ops slow_ops;

static int slow_open(const struct volume *volume, unsigned flags,
                     struct bulk **ret, struct err **errp)
{
    (void)flags;
    (void)errp;
    struct slow *slow = calloc(1, sizeof(*slow));
    cr_assert_not_null(slow);
    bulk_init(&slow->bulk, &slow_ops, volume);
    slow->bulk.size = SIZE;
    *ret = &slow->bulk;
    return 0;
}

static void slow_close(struct bulk *bulk)
{
    free(container_of(bulk, struct slow, bulk));
}

static void slow_submit(struct bulk *bulk, struct bulk_request *request)
{
    struct slow *slow = container_of(bulk, struct slow, bulk);
    cr_assert_lt(slow->n, ARRAY_SIZE(slow->kept));
    slow->kept[slow->n++] = request;
    slow_most = slow->n > slow_most ? slow->n : slow_most;
}

static void slow_service(struct bulk *bulk, short revents)
{
    (void)revents;
    struct slow *slow = container_of(bulk, struct slow, bulk);
    while (slow->n > 0) { /* the last one first */
        struct bulk_request *request = slow->kept[--slow->n];
        bool fails = (request->act == BULK_PUT || slow_gets_lost) &&
                     request->offset <= slow_fails_at &&
                     slow_fails_at < request->offset + request->length;
        slow->bulk.lost = slow->bulk.lost || (fails && slow_gets_lost);
        if (request->act == BULK_PUT) {
            slow_puts[request->offset / UNIT]++;
        } else if (request->act == BULK_READ) {
            slow_reads[request->offset / UNIT]++;
            memset(request->buffer, 0, request->length);
        }
        bulk_finish(request, slow->bulk.lost ? -EIO : fails ? -ENOSPC : 0);
    }
}

static const struct bulk_ops slow_ops = {
    .open = slow_open,
    .close = slow_close,
    .submit = slow_submit,
    .service = slow_service,
};

static struct volume *file(const char *name)
{
    char path[128];
    (void)snprintf(path, sizeof(path), "%s/%s", dir, name);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    cr_assert(fd >= 0 && ftruncate(fd, SIZE) == 0);
    (void)close(fd);
    struct volume *volume = NULL;
    cr_assert_eq(volume_parse(path, &volume, NULL), 0);
    return volume;
}

static void put(const struct volume *volume, uint64_t offset, size_t length)
{
    int fd = open(volume->name, O_RDWR | O_CLOEXEC);
    char bytes[4096];
    memset(bytes, 'x', sizeof(bytes));
    cr_assert(length <= sizeof(bytes) && fd >= 0);
    cr_assert_eq(pwrite(fd, bytes, length, (off_t)offset), (ssize_t)length);
    (void)close(fd);
}

static void setup(void)
{
    struct record_head head;
    memset(&head, 0, sizeof(head));
    head.size = SIZE;
    scratch_make("pipeline", dir);
    a = file("a");
    b = file("b");
    cr_assert_eq(extents_new(SIZE, &map), 0);
    extents_fill(map);
    cr_assert_eq(record_open(dir, "k", &record, NULL), 0);
    cr_assert_eq(record_begin(record, &head, NULL), 0);
}

static void teardown(void)
{
    record_remove(record);
    record = record_close(record);
    map = extents_free(map);
    (void)unlink(a->name);
    (void)unlink(b->name);
    a = volume_free(a);
    b = volume_free(b);
    (void)rmdir(dir);
}

TestSuite(pipeline, .init = setup, .fini = teardown);

static struct pipeline of(enum pipeline_mode mode)
{
    struct pipeline p = {
        .mode = mode,
        .a = a,
        .a_map = map,
        .b = mode == PIPELINE_CHECK ? NULL : b,
        .b_map = map,
        .b_flags = mode == PIPELINE_COPY ? BULK_WRITE : 0,
        .size = SIZE,
        .memory = 64 * UNIT,
        .record = record,
        .digests = record_digests(record),
    };
    return p;
}

static void equal(void)
{
    struct pipeline p = of(PIPELINE_COMPARE);
    cr_assert_eq(pipeline_run(&p, NULL), 0);
    cr_assert_eq(p.differing, 0);
    cr_assert_eq(p.passed, SIZE);
}

Test(pipeline, copies_and_records_each_unit)
{
    put(a, 0, 1);
    put(a, UNIT - 10, 20);
    put(a, SIZE - 1, 1);
    put(b, 2 * UNIT + 5, 4096); /* what was there before */
    struct pipeline p = of(PIPELINE_COPY);
    cr_assert_eq(pipeline_run(&p, NULL), 0);
    equal();
    cr_assert_eq(record_safe_count(record), 6);
    cr_assert_eq(p.written + p.zeroed, SIZE);
    p = of(PIPELINE_CHECK);
    cr_assert_eq(pipeline_run(&p, NULL), 0);
    cr_assert_eq(p.differing, 0);
    put(a, 3 * UNIT, 1);
    p = of(PIPELINE_CHECK);
    cr_assert_eq(pipeline_run(&p, NULL), 0);
    cr_assert_eq(p.n_differences, 1);
    cr_assert_eq(p.differences[0].offset, 3 * UNIT);
}

Test(pipeline, a_blank_target_gets_data_only)
{
    put(a, 3 * UNIT + BLOCK, 10);
    struct pipeline p = of(PIPELINE_COPY);
    p.blank = true;
    cr_assert_eq(pipeline_run(&p, NULL), 0);
    cr_assert_eq(p.written, 4096);
    cr_assert_eq(p.skipped, SIZE - 4096);
    equal();
}

Test(pipeline, holes_are_neither_read_nor_trusted_in_the_target)
{
    put(b, 4 * UNIT, 4096);
    map = extents_free(map);
    cr_assert_eq(extents_new(SIZE, &map), 0);
    struct pipeline p = of(PIPELINE_COPY);
    cr_assert_eq(pipeline_run(&p, NULL), 0);
    cr_assert_eq(p.read, 0);
    cr_assert_eq(p.zeroed, SIZE);
    extents_fill(map);
    equal();
}

/* Each other unit: they are kept, and none of them is forgotten. */
Test(pipeline, zeroes_that_were_read_are_zeroed_before_the_end)
{
    for (uint64_t at = 0; at < SIZE; at += 4096) {
        put(b, at, SIZE - at < 4096 ? SIZE - at : 4096);
    }
    put(a, UNIT, 4096);
    put(a, 3 * UNIT + 2 * BLOCK, 1);
    struct pipeline p = of(PIPELINE_COPY);
    cr_assert_eq(pipeline_run(&p, NULL), 0);
    equal();
    cr_assert_eq(record_safe_count(record), 6);
    cr_assert_eq(atomic_load(&p.zeroed) + atomic_load(&p.written), SIZE);
}

Test(pipeline, what_is_safe_is_not_touched_again)
{
    put(a, 0, 4096);
    record_written(record, 0, (struct digest){{1}});
    cr_assert(record_flush_begin(record));
    cr_assert_eq(record_flush_end(record, NULL), 0);
    struct pipeline p = of(PIPELINE_COPY);
    p.blank = true;
    cr_assert_eq(pipeline_run(&p, NULL), 0);
    cr_assert_eq(p.resumed, UNIT);
    cr_assert_eq(p.written, 0);
    cr_assert_eq(p.read, SIZE - UNIT);
}

Test(pipeline, differences_are_told_by_sectors_in_order)
{
    put(a, 1000, 1);
    put(a, 4 * UNIT, 1024);
    put(b, SIZE - 1, 1);
    struct pipeline p = of(PIPELINE_COMPARE);
    cr_assert_eq(pipeline_run(&p, NULL), 0);
    cr_assert_eq(p.n_differences, 3);
    cr_assert_eq(p.differences[0].offset, 512);
    cr_assert_eq(p.differences[1].length, 1024);
    cr_assert_eq(p.differences[2].offset, 5 * UNIT + 512);
    cr_assert_eq(p.differences[2].length, 265);
}

Test(pipeline, more_differences_than_it_tells_are_counted)
{
    for (uint64_t i = 0; i < 200; i++) {
        put(a, i * 8192, 1);
    }
    struct pipeline p = of(PIPELINE_COMPARE);
    cr_assert_eq(pipeline_run(&p, NULL), 0);
    cr_assert_eq(p.n_differences, DIFFERENCES_MAX);
    cr_assert_eq(p.differences[0].offset, 0);
    cr_assert_eq(p.differing, 200 * 512);
}

Test(pipeline, many_requests_are_under_way_within_the_memory)
{
    struct backend_ops ops = *b->ops;
    const struct backend_ops *real = b->ops;
    ops.bulk = &slow_ops;
    for (uint64_t i = 0; i < 5; i++) {
        put(a, i * UNIT, 1);
    }
    b->ops = &ops;
    struct pipeline p = of(PIPELINE_COPY);
    p.blank = true;
    p.memory = 3 * UNIT;
    cr_assert_eq(pipeline_run(&p, NULL), 0);
    b->ops = real;
    cr_assert_eq(slow_most, 3);
    cr_assert_eq(record_safe_count(record), 6);
}

Test(pipeline, a_failed_write_names_its_place_and_is_not_on_record)
{
    _cleanup_err_ struct err *err = NULL;
    struct backend_ops ops = *b->ops;
    const struct backend_ops *real = b->ops;
    ops.bulk = &slow_ops;
    for (uint64_t i = 0; i < 5; i++) {
        put(a, i * UNIT, 1);
    }
    b->ops = &ops;
    slow_fails_at = 3 * UNIT;
    struct pipeline p = of(PIPELINE_COPY);
    p.blank = true;
    p.memory = 2 * UNIT;
    cr_assert_eq(pipeline_run(&p, &err), -ENOSPC);
    b->ops = real;
    cr_assert_not_null(err);
    cr_assert_not_null(strstr(err->desc, "3145728"));
    cr_assert_str_eq(err->object, b->name);
    cr_assert_not(record_is_safe(record, 3));
    cr_assert(record_is_safe(record, 0));
}

Test(pipeline, a_cancelled_one_says_so_and_keeps_what_is_done)
{
    _cleanup_err_ struct err *err = NULL;
    atomic_bool cancel = true;
    struct pipeline p = of(PIPELINE_COPY);
    p.cancel = &cancel;
    cr_assert_eq(pipeline_run(&p, &err), -ECANCELED);
    cr_assert_eq(p.written, 0);
}

/* A server that was restarted has lost what it was not made to keep. */
Test(pipeline, after_a_lost_connection_what_was_not_flushed_is_done_again)
{
    struct backend_ops ops = *b->ops;
    const struct backend_ops *real = b->ops;
    ops.bulk = &slow_ops;
    for (uint64_t i = 0; i < 5; i++) {
        put(a, i * UNIT, 1);
    }
    b->ops = &ops;
    slow_fails_at = 3 * UNIT;
    slow_gets_lost = true;
    struct pipeline p = of(PIPELINE_COPY);
    p.blank = true;
    p.memory = 2 * UNIT;
    cr_assert_eq(pipeline_run(&p, NULL), -EIO);
    cr_assert(p.lost);
    cr_assert_eq(record_safe_count(record), 0);
    uint64_t passed = atomic_load(&p.passed);
    cr_assert_gt(passed, 0);
    slow_gets_lost = false;
    slow_fails_at = UINT64_MAX;
    pipeline_again(&p);
    cr_assert_eq(atomic_load(&p.passed), 0);
    cr_assert_eq(p.digests->known[0], RECORD_TODO);
    cr_assert_eq(pipeline_run(&p, NULL), 0);
    b->ops = real;
    cr_assert_not(p.lost);
    cr_assert_eq(record_safe_count(record), 6);
    cr_assert_eq(atomic_load(&p.passed), SIZE);
    for (unsigned i = 0; i < 3; i++) {
        cr_assert_eq(slow_puts[i], 2, "unit %u: %u", i, slow_puts[i]);
    }
}

Test(pipeline, a_comparison_goes_on_behind_what_it_has_judged)
{
    struct backend_ops ops = *b->ops;
    const struct backend_ops *real = b->ops;
    ops.bulk = &slow_ops;
    put(a, UNIT, 1);
    put(a, 4 * UNIT, 1);
    b->ops = &ops;
    slow_fails_at = 3 * UNIT;
    slow_gets_lost = true;
    struct pipeline p = of(PIPELINE_COMPARE);
    p.memory = 2 * UNIT; /* one at a time */
    cr_assert_eq(pipeline_run(&p, NULL), -EIO);
    cr_assert(p.lost);
    cr_assert_eq(atomic_load(&p.passed), 3 * UNIT);
    slow_gets_lost = false;
    pipeline_again(&p);
    cr_assert_eq(pipeline_run(&p, NULL), 0);
    b->ops = real;
    cr_assert_eq(atomic_load(&p.passed), SIZE);
    cr_assert_eq(atomic_load(&p.differing), 2 * 512);
    cr_assert_eq(p.n_differences, 2);
    for (unsigned i = 0; i < 3; i++) {
        cr_assert_eq(slow_reads[i], 1, "unit %u: %u", i, slow_reads[i]);
    }
    cr_assert_eq(slow_reads[3], 2);
}
