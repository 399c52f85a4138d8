/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Comparing beside QEMU: what is read, what is told, the scratch image. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/err.h"
#include "base/spawn.h"
#include "base/str.h"
#include "bulk/check-work.h"

enum { N_UNITS = 5 };

static const uint64_t SIZE = (uint64_t)N_UNITS * UNIT - 4096;

static char dir[] = "/tmp/qpivot-check-XXXXXX";
static char paths[2][64];
static char sub[64];
static char scratch[80];

static void fill(const char *path)
{
    char block[4096];
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    memset(block, 'x', sizeof(block));
    cr_assert(fd >= 0);
    for (uint64_t at = 0; at < SIZE; at += sizeof(block)) {
        cr_assert_eq(pwrite(fd, block, sizeof(block), (off_t)at), 4096);
    }
    (void)close(fd);
}

static void setup(void)
{
    cr_assert_not_null(mkdtemp(dir));
    (void)snprintf(sub, sizeof(sub), "%s/sub", dir);
    (void)snprintf(scratch, sizeof(scratch), "%s/d0.qcow2", sub);
    for (unsigned i = 0; i < 2; i++) {
        (void)snprintf(paths[i], sizeof(paths[i]), "%s/v%u", dir, i);
        fill(paths[i]);
    }
}

static void teardown(void)
{
    (void)unlink(paths[0]);
    (void)unlink(paths[1]);
    (void)rmdir(dir);
}

TestSuite(check, .init = setup, .fini = teardown);

static void spoil(uint64_t offset)
{
    int fd = open(paths[1], O_RDWR | O_CLOEXEC);
    cr_assert(fd >= 0 && pwrite(fd, "spoilt", 6, (off_t)offset) == 6);
    (void)close(fd);
}

struct outcome {
    bool came;
    int code;
    struct check_result result;
    char *ranges;
};

static void on_ended(void *data, const struct err *err,
                     const struct check_result *result)
{
    struct outcome *outcome = data;
    outcome->came = true;
    outcome->code = err != NULL ? err->code : 0;
    if (result != NULL) {
        outcome->result = *result;
        outcome->ranges = json_dumps(result->ranges, JSON_COMPACT);
    }
}

static struct outcome run(enum check_act act, bool again, const char *image,
                          const json_t *ranges)
{
    uv_loop_t loop;
    struct check *check = NULL;
    struct outcome outcome = {0};
    struct check_callbacks callbacks = {.data = &outcome, .ended = on_ended};
    struct check_request request = {.act = act,
                                    .dir = sub,
                                    .scratch = image,
                                    .source = paths[0],
                                    .source_format = "raw",
                                    .target = paths[1],
                                    .target_format = "raw",
                                    .size = SIZE,
                                    .seed = "abc123",
                                    .again = again,
                                    .ranges = ranges};
    cr_assert_eq(uv_loop_init(&loop), 0);
    cr_assert_eq(check_start(&loop, &request, &callbacks, &check, NULL), 0);
    cr_assert_not(outcome.came, "not from inside the call");
    (void)uv_run(&loop, UV_RUN_DEFAULT);
    cr_assert_eq(uv_loop_close(&loop), 0);
    cr_assert(outcome.came);
    return outcome;
}

static void done(struct outcome *outcome)
{
    free(outcome->ranges);
}

Test(check, equal_volumes_are_read_whole_and_differ_nowhere)
{
    struct outcome o = run(CHECK_COMPARE, false, NULL, NULL);
    cr_assert_eq(o.code, 0);
    cr_assert_eq(o.result.chosen, SIZE);
    cr_assert_eq(o.result.looked, SIZE);
    cr_assert_eq(o.result.differing, 0);
    cr_assert_str_eq(o.ranges, "[]");
    done(&o);
}

Test(check, a_difference_is_told_by_sector_and_kept_by_block)
{
    spoil(UNIT + 3 * BLOCK + 512);
    spoil(4 * UNIT - 6);
    struct outcome o = run(CHECK_COMPARE, false, NULL, NULL);
    cr_assert_eq(o.code, 0);
    cr_assert_eq(o.result.differing, 1024);
    cr_assert_str_eq(o.ranges, "[1245184,65536,4128768,65536]");
    cr_assert_not_null(strstr(o.result.where, "512 at offset 1245696"));
    done(&o);
}

Test(check, again_reads_only_what_it_is_told_to)
{
    json_auto_t *ranges = json_pack("[i, i]", 2 * UNIT, BLOCK);
    spoil(2 * UNIT + 100);
    spoil(3 * UNIT);
    struct outcome o = run(CHECK_COMPARE, true, NULL, ranges);
    cr_assert_eq(o.code, 0);
    cr_assert_eq(o.result.looked, BLOCK);
    cr_assert_str_eq(o.ranges, "[2097152,65536]");
    done(&o);
}

static void program_on_exit(void *data, const struct err *err,
                            const char *output)
{
    (void)output;
    *(int *)data = err != NULL ? err->code : 0;
}

static int shell(const char *command)
{
    _cleanup_free_ char *env = str_printf("D=%s", scratch);
    const char *const block[] = {env, NULL};
    struct spawn *spawn = NULL;
    int code = -1;
    uv_loop_t loop;
    cr_assert_eq(uv_loop_init(&loop), 0);
    cr_assert_eq(spawn_start(&loop, command, NULL, block, 30000,
                             program_on_exit, &code, &spawn, NULL),
                 0);
    (void)uv_run(&loop, UV_RUN_DEFAULT);
    cr_assert_eq(uv_loop_close(&loop), 0);
    return code;
}

/* The engine's own qemu-img and qemu-nbd, and a bitmap as QEMU leaves it. */
Test(check, a_bitmap_in_the_scratch_image_tells_what_to_read)
{
    if (shell("command -v qemu-nbd qemu-img qemu-io >/dev/null") != 0) {
        cr_skip("qemu-utils is not there");
    }
    struct stat st;
    json_auto_t *ranges = json_pack("[i, i]", 3 * UNIT, BLOCK);
    struct outcome o = run(CHECK_PREPARE, false, scratch, NULL);
    cr_assert_eq(o.code, 0);
    cr_assert(stat(sub, &st) == 0 && (st.st_mode & 0022) == 0);
    cr_assert_eq(shell("qemu-img bitmap --add -g 64k $D dirty && qemu-io -c"
                       " 'write 1M 4k' $D >/dev/null"),
                 0);
    spoil(0);            /* not told of: not looked at */
    spoil(UNIT);         /* dirty */
    spoil(3 * UNIT + 5); /* of the ranges */
    o = run(CHECK_COMPARE, true, scratch, ranges);
    cr_assert_eq(o.code, 0);
    cr_assert_eq(o.result.looked, 2 * BLOCK);
    cr_assert_str_eq(o.ranges, "[1048576,65536,3145728,65536]");
    done(&o);
    o = run(CHECK_REMOVE, false, scratch, NULL);
    cr_assert_eq(o.code, 0);
    cr_assert_eq(access(sub, F_OK), -1);
    o = run(CHECK_REMOVE, false, scratch, NULL);
    cr_assert_eq(o.code, 0, "nothing there is success");
}

Test(check, a_directory_of_somebody_else_is_not_used)
{
    cr_assert_eq(mkdir(sub, 0755), 0);
    cr_assert_eq(chmod(sub, 0777), 0);
    struct outcome o = run(CHECK_PREPARE, false, scratch, NULL);
    cr_assert_eq(o.code, -EEXIST);
    (void)rmdir(sub);
}

Test(check, a_source_that_is_not_there_is_an_error)
{
    (void)unlink(paths[0]);
    struct outcome o = run(CHECK_COMPARE, false, NULL, NULL);
    cr_assert_lt(o.code, 0);
}

Test(check, a_sample_has_both_ends_and_is_the_same_each_time)
{
    struct extents *a = NULL, *b = NULL;
    uint64_t size = (uint64_t)20000 * UNIT + 512;
    cr_assert_eq(check_sample(size, "k3f9x2", &a), 0);
    cr_assert_eq(check_sample(size, "k3f9x2", &b), 0);
    cr_assert_eq(memcmp(a->map, b->map, a->units * sizeof(*a->map)), 0);
    cr_assert_eq(a->map[0], UINT16_MAX);
    cr_assert_neq(a->map[a->units - 1], 0);
    uint64_t bytes = extents_bytes(a);
    cr_assert(bytes >= size / 100 && bytes <= size / 100 + 8 * UNIT);
    b = extents_free(b);
    cr_assert_eq(check_sample(size, "another", &b), 0);
    cr_assert_neq(memcmp(a->map, b->map, a->units * sizeof(*a->map)), 0);
    (void)extents_free(a);
    (void)extents_free(b);
    cr_assert_eq(check_sample_bytes((uint64_t)60 * UNIT, "x"),
                 (uint64_t)60 * UNIT, "a small disk is read whole");
}

Test(check, many_ranges_become_few_that_hold_them_all)
{
    struct extents *map = NULL;
    cr_assert_eq(extents_new((uint64_t)4096 * UNIT, &map), 0);
    for (uint64_t i = 0; i < map->units; i++) {
        map->map[i] = 1;
    }
    json_auto_t *list = check_ranges(map);
    cr_assert_leq(json_array_size(list), 1024);
    cr_assert_eq(json_integer_value(json_array_get(list, 0)), 0);
    (void)extents_free(map);
}
