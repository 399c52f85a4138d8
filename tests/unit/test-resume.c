/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/err.h"
#include "bulk/extents.h"
#include "bulk/resume.h"
#include "fake/scratch.h"

static char dir[SCRATCH_PATH];

static void setup(void)
{
    scratch_make("resume", dir);
}

static void path_of(char out[128])
{
    (void)snprintf(out, 128, "%s/copy-k.record", dir);
}

static void teardown(void)
{
    char path[128];
    path_of(path);
    (void)unlink(path);
    (void)rmdir(dir);
}

TestSuite(resume, .init = setup, .fini = teardown);

static struct record *opened(void)
{
    struct record *record = NULL;
    cr_assert_eq(record_open(dir, "k", &record, NULL), 0);
    return record;
}

static struct record_head head_of(uint64_t size)
{
    struct record_head head;
    memset(&head, 0, sizeof(head));
    head.size = size;
    (void)snprintf(head.source, sizeof(head.source), "file:1:2");
    (void)snprintf(head.stamp, sizeof(head.stamp), "12.5");
    head.zero = 1;
    return head;
}

Test(resume, a_key_is_the_same_each_time_and_of_both)
{
    char a[16];
    char b[16];
    record_key("x", "y", a);
    record_key("x", "y", b);
    cr_assert_str_eq(a, b);
    record_key("y", "x", b);
    cr_assert_str_neq(a, b);
    cr_assert_eq(strlen(a), 13);
}

Test(resume, only_what_was_flushed_is_safe_afterwards)
{
    struct record *record = opened();
    cr_assert_null(record_head(record));
    struct record_head head = head_of(10 * UNIT + 1);
    cr_assert_eq(record_begin(record, &head, NULL), 0);
    struct digest digest = {{7}};
    record_written(record, 3, digest);
    record_written(record, 10, digest);
    cr_assert(record_flush_begin(record));
    record_written(record, 4, digest); /* behind the flush's back */
    cr_assert_eq(record_flush_end(record, NULL), 0);
    cr_assert(record_is_safe(record, 3) && !record_is_safe(record, 4));
    record = record_close(record);

    record = opened();
    cr_assert_not_null(record_head(record));
    cr_assert_eq(record_head(record)->size, head.size);
    cr_assert_str_eq(record_head(record)->source, "file:1:2");
    cr_assert_eq(record_safe_count(record), 2);
    cr_assert(record_is_safe(record, 10) && !record_is_safe(record, 4));
    cr_assert(digest_equal(&record_digests(record)->of[3], &digest));
    record_remove(record);
    record = record_close(record);
    record = opened();
    cr_assert_null(record_head(record));
    record = record_close(record);
}

/* A flush that failed, and one on a new connection. */
Test(resume, what_is_forgotten_is_not_safe_after_the_next_flush)
{
    struct record *record = opened();
    struct record_head head = head_of(10 * UNIT);
    struct digest digest = {{7}};
    cr_assert_eq(record_begin(record, &head, NULL), 0);
    for (uint64_t i = 0; i < 4; i++) {
        record_written(record, i, digest);
    }
    cr_assert(record_flush_begin(record));
    record_written(record, 4, digest);
    record_forget_written(record);
    cr_assert_not(record_flush_begin(record));
    record_written(record, 0, digest);
    record_written(record, 9, digest);
    cr_assert(record_flush_begin(record));
    cr_assert_eq(record_flush_end(record, NULL), 0);
    cr_assert_eq(record_safe_count(record), 2);
    record = record_close(record);
}

Test(resume, nothing_written_needs_no_flush)
{
    struct record *record = opened();
    struct record_head head = head_of(UNIT);
    cr_assert_eq(record_begin(record, &head, NULL), 0);
    cr_assert_not(record_flush_begin(record));
    record = record_close(record);
}

Test(resume, a_second_process_is_kept_out)
{
    _cleanup_err_ struct err *err = NULL;
    struct record *record = opened();
    struct record *other = NULL;
    cr_assert_eq(record_open(dir, "k", &other, &err), -EBUSY);
    cr_assert_not_null(err);
    record = record_close(record);
    cr_assert_eq(record_open(dir, "k", &other, NULL), 0);
    other = record_close(other);
}

Test(resume, a_damaged_record_counts_as_none)
{
    char path[128];
    path_of(path);
    struct record *record = opened();
    struct record_head head = head_of(4 * UNIT);
    cr_assert_eq(record_begin(record, &head, NULL), 0);
    record = record_close(record);
    struct stat st;
    cr_assert_eq(stat(path, &st), 0);
    for (off_t size = st.st_size - 1; size > 0; size /= 2) {
        cr_assert_eq(truncate(path, size), 0);
        record = opened();
        cr_assert_null(record_head(record));
        record = record_close(record);
    }
}

Test(resume, a_record_tells_of_its_copy_and_is_not_locked_for_that)
{
    struct record_head head = head_of(2 * UNIT + 5);
    (void)snprintf(head.about, sizeof(head.about), "{\"source\":\"/a\"}");
    struct record *record = opened();
    json_auto_t *none = records_list(dir, NULL);
    cr_assert_eq(json_array_size(none), 0, "no head yet");
    cr_assert_eq(record_begin(record, &head, NULL), 0);
    record_written(record, 2, (struct digest){{1}});
    cr_assert(record_flush_begin(record));
    cr_assert_eq(record_flush_end(record, NULL), 0);
    for (unsigned i = 0; i < 2; i++) {
        json_auto_t *list = records_list(dir, "k");
        const json_t *one = json_array_get(list, 0);
        const char *state = json_string_value(json_object_get(one, "state"));
        const char *source = json_string_value(json_object_get(one, "source"));
        cr_assert_str_eq(state, i == 0 ? "running" : "interrupted");
        cr_assert_str_eq(source, "/a");
        cr_assert_eq(json_integer_value(json_object_get(one, "bytes_done")), 5);
        if (i == 0) {
            record = record_close(record);
        }
    }
    json_auto_t *other = records_list(dir, "kk");
    cr_assert_eq(json_array_size(other), 0);
}
