/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "bulk/check-work.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backends/backend.h"
#include "backends/bulk.h"
#include "base/cleanup.h"
#include "base/err.h"
#include "base/str.h"
#include "bulk/image.h"

enum {
    RANGES_TOLD = 512, /* pairs */
    SHARE_OF_SAMPLE = 100,
    SAMPLE_MIN = 64, /* units */
    HEAD = 4,        /* units: partition table, first superblock */
};

static const uint64_t MEMORY = 32 << 20;
static const uint64_t MEMORY_LITTLE = 4 << 20; /* one lane: quick to begin */
static const unsigned FLAGS = BULK_FRESH | BULK_SHARE | BULK_UNLOCKED;

static int prepare(const struct check_request *request, struct err **errp);
static int remove_scratch(const struct check_request *request,
                          struct err **errp);
static int compare(struct check_work *work, struct err **errp);
static int own(struct check_work *work, struct err **errp);
static int map_of(const struct volume *volume, uint64_t size,
                  struct extents **ret, struct err **errp);
static int map_again(const struct check_request *request, struct extents **ret,
                     struct err **errp);
static int run(struct check_work *work, struct pipeline *pipeline,
               struct err **errp);
static void tell(const struct pipeline *p, struct check_result *result);

int check_work_run(struct check_work *work, struct err **errp)
{
    switch (work->request.act) {
    case CHECK_PREPARE:
        return prepare(&work->request, errp);
    case CHECK_REMOVE:
        return remove_scratch(&work->request, errp);
    case CHECK_OWN:
        return own(work, errp);
    case CHECK_COMPARE:
        break;
    }
    return compare(work, errp);
}

static int open_volume(const char *uri, const char *format, struct volume **ret,
                       struct err **errp)
{
    int r = volume_parse(uri, ret, errp);
    if (r == 0) {
        (*ret)->format = str_eq(format, "qcow2") ? FORMAT_QCOW2 : FORMAT_RAW;
    }
    return r;
}

/* --- the scratch image --- */

static int scratch_volume(const struct check_request *request,
                          struct volume **ret, struct err **errp)
{
    return open_volume(request->scratch, "qcow2", ret, errp);
}

/* QEMU's user gets the file, never the directory: nothing there is replaced. */
static int give_away(const struct check_request *request, struct err **errp)
{
    if (geteuid() != 0 ||
        lchown(request->scratch, (uid_t)request->owner, (gid_t)-1) == 0) {
        return 0;
    }
    return err_set(errp, -errno, request->scratch,
                   "cannot be given to QEMU's user: %s", strerror(errno));
}

static int make_dir(const struct check_request *request, struct err **errp)
{
    struct stat st;
    if (mkdir(request->dir, 0711) < 0 && errno != EEXIST) {
        return err_set(errp, -errno, request->dir, "cannot be made: %s",
                       strerror(errno));
    }
    if (lstat(request->dir, &st) < 0 || !S_ISDIR(st.st_mode) ||
        (st.st_mode & 0022) != 0 || st.st_uid != geteuid()) {
        return err_set(errp, -EEXIST, request->dir,
                       "is there, and not a directory of ours");
    }
    return 0;
}

static int try_to_read(const char *uri, const char *format, struct err **errp)
{
    _cleanup_(volume_freep) struct volume *volume = NULL;
    struct bulk *bulk = NULL;
    int r = open_volume(uri, format, &volume, errp);
    r = r == 0 ? bulk_open(volume, FLAGS, &bulk, errp) : r;
    if (r < 0) {
        err_hint(errp, "--verify reads it beside QEMU; without --verify the"
                       " move needs only QEMU's own access");
        return r;
    }
    (void)bulk_close(bulk);
    return 0;
}

static int prepare(const struct check_request *request, struct err **errp)
{
    _cleanup_(volume_freep) struct volume *scratch = NULL;
    int r = try_to_read(request->source, request->source_format, errp);
    r = r == 0 ? try_to_read(request->target, request->target_format, errp) : r;
    r = r == 0 ? make_dir(request, errp) : r;
    r = r == 0 ? scratch_volume(request, &scratch, errp) : r;
    r = r == 0 ? image_create(scratch, request->size, errp) : r;
    return r == 0 ? give_away(request, errp) : r;
}

static int remove_scratch(const struct check_request *request,
                          struct err **errp)
{
    if (unlink(request->scratch) < 0 && errno != ENOENT && errno != ENOTDIR) {
        return err_set(errp, -errno, request->scratch, "cannot be removed: %s",
                       strerror(errno));
    }
    if (rmdir(request->dir) < 0 && errno != ENOENT && errno != ENOTEMPTY &&
        errno != EEXIST) {
        return err_set(errp, -errno, request->dir, "cannot be removed: %s",
                       strerror(errno));
    }
    return 0;
}

/* --- comparing --- */

static int compare(struct check_work *work, struct err **errp)
{
    const struct check_request *request = &work->request;
    struct check_result *result = &work->result;
    _cleanup_(volume_freep) struct volume *a = NULL;
    _cleanup_(volume_freep) struct volume *b = NULL;
    _cleanup_(extents_freep) struct extents *differs = NULL;
    _cleanup_(extents_freep) struct extents *map = NULL;
    _cleanup_(extents_freep) struct extents *b_map = NULL;
    bool chosen = request->again || request->sample;
    int r = open_volume(request->source, request->source_format, &a, errp);
    r = r == 0 ? open_volume(request->target, request->target_format, &b, errp)
               : r;
    r = r == 0 ? extents_new(request->size, &differs) : r;
    if (r == 0 && request->again) {
        r = map_again(request, &map, errp);
    } else if (r == 0 && request->sample) {
        r = check_sample(request->size, request->seed, &map);
    } else if (r == 0) {
        r = map_of(a, request->size, &map, errp);
        r = r == 0 ? map_of(b, request->size, &b_map, errp) : r;
    }
    if (r < 0) {
        return r;
    }
    result->chosen = request->sample
                         ? check_sample_bytes(request->size, request->seed)
                         : request->size;
    result->looked = chosen ? extents_bytes(map) : request->size;
    struct pipeline p = {.mode = PIPELINE_COMPARE,
                         .a = a,
                         .b = b,
                         .a_flags = FLAGS,
                         .b_flags = FLAGS,
                         .size = request->size,
                         .a_map = map,
                         .b_map = chosen ? map : b_map,
                         .differs = differs,
                         .memory = request->again ? MEMORY_LITTLE : MEMORY,
                         .speed = request->speed,
                         .cancel = &work->cancel};
    r = result->looked > 0 ? run(work, &p, errp) : 0;
    if (r < 0) {
        return r;
    }
    tell(&p, result);
    result->ranges = check_ranges(differs);
    if (result->ranges == NULL) {
        return -ENOMEM;
    }
    return 0;
}

static int own_on_extent(void *data, uint64_t offset, uint64_t length)
{
    struct check_result *result = data;
    if (result->differing == 0) {
        (void)snprintf(result->where, sizeof(result->where),
                       "%llu at offset %llu", (unsigned long long)length,
                       (unsigned long long)offset);
    }
    result->differing += length;
    return 0;
}

static int own(struct check_work *work, struct err **errp)
{
    _cleanup_(volume_freep) struct volume *volume = NULL;
    int r = open_volume(work->request.target, "raw", &volume, errp);
    return r == 0 ? bulk_own(volume, own_on_extent, &work->result, errp) : r;
}

static int run(struct check_work *work, struct pipeline *p, struct err **errp)
{
    (void)pthread_mutex_lock(&work->lock);
    work->watched = p;
    (void)pthread_mutex_unlock(&work->lock);
    int r = pipeline_run(p, errp);
    pipeline_done(p);
    (void)pthread_mutex_lock(&work->lock);
    work->watched = NULL;
    (void)pthread_mutex_unlock(&work->lock);
    return r;
}

/* What reads as zeroes on both sides need not be read. */
static int map_of(const struct volume *volume, uint64_t size,
                  struct extents **ret, struct err **errp)
{
    struct bulk *bulk = NULL;
    int r = bulk_open(volume, FLAGS, &bulk, errp);
    if (r < 0) {
        return r;
    }
    r = extents_new(size, ret);
    r = r == 0 ? bulk_extents(bulk, extents_add, *ret, errp) : r;
    if (r == -ENOTSUP) {
        extents_fill(*ret);
        r = 0;
    }
    (void)bulk_close(bulk);
    return r;
}

/* What the guest has rewritten, and what did not match before. */
static int map_again(const struct check_request *request, struct extents **ret,
                     struct err **errp)
{
    _cleanup_(volume_freep) struct volume *scratch = NULL;
    _cleanup_(extents_freep) struct extents *map = NULL;
    _cleanup_(extents_freep) struct extents *sample = NULL;
    int r =
        request->scratch != NULL ? scratch_volume(request, &scratch, errp) : 0;
    r = r == 0 ? extents_new(request->size, &map) : r;
    if (r == 0 && request->scratch != NULL) {
        r = bulk_bitmap(scratch, CHECK_BITMAP, extents_add, map, errp);
    }
    if (r == 0 && request->sample) {
        r = check_sample(request->size, request->seed, &sample);
    }
    if (r < 0) {
        return r;
    }
    for (size_t i = 0; i + 1 < json_array_size(request->ranges); i += 2) {
        json_int_t at = json_integer_value(json_array_get(request->ranges, i));
        json_int_t length =
            json_integer_value(json_array_get(request->ranges, i + 1));
        (void)extents_add(map, (uint64_t)at, (uint64_t)length);
    }
    for (size_t i = 0; sample != NULL && i < map->units; i++) {
        map->map[i] &= sample->map[i];
    }
    *ret = TAKE_PTR(map);
    return 0;
}

static void tell(const struct pipeline *p, struct check_result *result)
{
    size_t used = 0;
    result->differing = atomic_load(&p->differing);
    result->where[0] = '\0';
    for (unsigned i = 0; i < p->n_differences && i < 3; i++) {
        int n = snprintf(result->where + used, sizeof(result->where) - used,
                         "%s%llu at offset %llu", i == 0 ? "" : ", ",
                         (unsigned long long)p->differences[i].length,
                         (unsigned long long)p->differences[i].offset);
        used += n > 0 ? (size_t)n : 0;
    }
    if (p->n_differences > 3) {
        (void)snprintf(result->where + used, sizeof(result->where) - used,
                       ", ...");
    }
}

/* --- which blocks --- */

static uint64_t next_random(uint64_t *state)
{
    /* splitmix64: what matters is that it is the same each time. */
    uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

int check_sample(uint64_t size, const char *seed, struct extents **ret)
{
    int r = extents_new(size, ret);
    if (r < 0) {
        return r;
    }
    uint64_t units = (*ret)->units;
    uint64_t wanted = units / SHARE_OF_SAMPLE;
    uint64_t state = 0;
    for (const char *c = seed; c != NULL && *c != '\0'; c++) {
        state = state * 131 + (unsigned char)*c;
    }
    wanted = wanted < SAMPLE_MIN ? SAMPLE_MIN : wanted;
    if (wanted + HEAD + 2 >= units) {
        extents_fill(*ret);
        return 0;
    }
    (void)extents_add(*ret, 0, (uint64_t)HEAD * UNIT);
    /* The copy of the partition table is at the very end. */
    (void)extents_add(*ret, size > UNIT ? size - UNIT : 0, UNIT);
    for (uint64_t n = 0; n < wanted;) {
        uint64_t unit = next_random(&state) % units;
        if ((*ret)->map[unit] != UINT16_MAX) {
            n++;
            (void)extents_add(*ret, unit * UNIT, UNIT);
            (*ret)->map[unit] = UINT16_MAX; /* also the last one: it is cut */
        }
    }
    return 0;
}

uint64_t check_sample_bytes(uint64_t size, const char *seed)
{
    _cleanup_(extents_freep) struct extents *map = NULL;
    return check_sample(size, seed, &map) == 0 ? extents_bytes(map) : 0;
}

static bool is_set(const struct extents *map, uint64_t block)
{
    return (map->map[block / BLOCKS] >> block % BLOCKS & 1) != 0;
}

static json_t *ranges_with(const struct extents *map, uint64_t gap)
{
    uint64_t blocks = map->units * BLOCKS;
    json_t *list = json_array();
    for (uint64_t at = 0; at < blocks;) {
        if (!is_set(map, at)) {
            at++;
            continue;
        }
        uint64_t end = at + 1;
        for (uint64_t k = end; k < blocks && k - end <= gap; k++) {
            end = is_set(map, k) ? k + 1 : end;
        }
        (void)json_array_append_new(list, json_integer((json_int_t)at * BLOCK));
        (void)json_array_append_new(
            list, json_integer((json_int_t)(end - at) * BLOCK));
        at = end;
        if (json_array_size(list) > 2 * RANGES_TOLD) {
            break;
        }
    }
    return list;
}

json_t *check_ranges(const struct extents *map)
{
    for (uint64_t gap = 0;; gap = gap * 2 + 1) {
        json_t *list = ranges_with(map, gap);
        if (list == NULL || json_array_size(list) <= 2 * RANGES_TOLD) {
            return list;
        }
        json_decref(list);
    }
}
