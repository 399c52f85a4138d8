/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "resume.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <xxhash.h>

#include "base/err.h"
#include "base/str.h"
#include "bulk/extents.h"

#define MAGIC "qpvcopy1"
#define PREFIX "copy-"
#define SUFFIX ".record"

enum { HEAD_SIZE = 4096, BATCH = 1024 };

struct file_head {
    char magic[8];
    struct record_head head;
};

struct entry {
    struct digest digest;
    uint8_t safe;
    uint8_t reserved[7];
};

struct record {
    char *path;
    int fd;
    bool has_head;
    struct record_head head;
    struct digests *digests;
    uint64_t first; /* the range of units that changed since the last flush */
    uint64_t last;
    uint64_t flush_first;
    uint64_t flush_last;
};

_Static_assert(sizeof(struct file_head) <= HEAD_SIZE, "the head has a page");

static int open_locked(struct record *record, struct err **errp);
static int load(struct record *record);
static void end_texts(struct record_head *head);
static json_t *look(const char *dir, const char *name);
static json_t *about(const struct record *record, const struct stat *st,
                     bool alive);
static int save(const struct record *record, uint64_t first, uint64_t last);
static int write_all(int fd, const void *bytes, size_t n, uint64_t offset);
static int fail(const struct record *record, int code, struct err **errp);

void record_key(const char *source, const char *target, char out[16])
{
    XXH64_hash_t hash = XXH3_64bits_withSeed(
        source, strlen(source), XXH3_64bits(target, strlen(target)));
    (void)snprintf(out, 16, "c%012llx",
                   (unsigned long long)hash & 0xffffffffffffULL);
}

/* Those of a step have names of ours, and are no copies by themselves. */
static char *path_of(const char *dir, const char *key)
{
    return str_printf("%s/%s%s" SUFFIX, dir,
                      str_starts(key, "qpv-") ? "" : PREFIX, key);
}

void record_forget(const char *dir, const char *key)
{
    _cleanup_free_ char *path = path_of(dir, key);
    if (path != NULL) {
        (void)unlink(path);
    }
}

int record_open(const char *dir, const char *key, struct record **ret,
                struct err **errp)
{
    _cleanup_(record_closep) struct record *record = calloc(1, sizeof(*record));
    if (record == NULL) {
        return -ENOMEM;
    }
    record->fd = -1;
    record->path = path_of(dir, key);
    if (record->path == NULL) {
        return -ENOMEM;
    }
    int r = open_locked(record, errp);
    if (r < 0) {
        return r;
    }
    r = load(record);
    if (r == -ENOMEM) {
        return r;
    }
    *ret = TAKE_PTR(record);
    return 0;
}

struct record *record_close(struct record *record)
{
    if (record != NULL) {
        if (record->fd >= 0) {
            (void)close(record->fd);
        }
        (void)digests_free(record->digests);
        free(record->path);
        free(record);
    }
    return NULL;
}

void record_remove(struct record *record)
{
    (void)unlink(record->path);
}

const struct record_head *record_head(const struct record *record)
{
    return record->has_head ? &record->head : NULL;
}

int record_begin(struct record *record, const struct record_head *head,
                 struct err **errp)
{
    struct file_head page = {.magic = MAGIC};
    /* The bytes between and behind the texts are in the file, too. */
    memcpy(&page.head, head, sizeof(*head));
    record->digests = digests_free(record->digests);
    int r = digests_new(head->size, &record->digests);
    if (r < 0) {
        return r;
    }
    record->head = *head;
    record->has_head = true;
    record->first = UINT64_MAX;
    record->last = 0;
    if (ftruncate(record->fd, 0) < 0 || fdatasync(record->fd) < 0) {
        return fail(record, -errno, errp);
    }
    off_t length =
        HEAD_SIZE + (off_t)(record->digests->units * sizeof(struct entry));
    r = ftruncate(record->fd, length) < 0
            ? -errno
            : write_all(record->fd, &page, sizeof(page), 0);
    if (r == 0 && fdatasync(record->fd) < 0) {
        r = -errno;
    }
    return r < 0 ? fail(record, r, errp) : 0;
}

json_t *records_list(const char *dir, const char *key)
{
    json_t *list = json_array();
    struct dirent **entries = NULL;
    int n = scandir(dir, &entries, NULL, alphasort);
    for (int i = 0; i < n; i++) {
        const char *name = entries[i]->d_name;
        size_t length = strlen(name);
        bool is_record = str_starts(name, PREFIX) &&
                         length > strlen(PREFIX SUFFIX) &&
                         str_eq(name + length - strlen(SUFFIX), SUFFIX);
        size_t of_key = length - strlen(PREFIX SUFFIX);
        if (is_record && (key == NULL ||
                          (strlen(key) == of_key &&
                           strncmp(name + strlen(PREFIX), key, of_key) == 0))) {
            json_t *one = look(dir, name);
            if (one != NULL) {
                (void)json_array_append_new(list, one);
            }
        }
        free(entries[i]);
    }
    free(entries);
    return list;
}

/* NULL where it is none, or about to be one. */
static json_t *look(const char *dir, const char *name)
{
    _cleanup_(record_closep) struct record *record = calloc(1, sizeof(*record));
    struct stat st;
    if (record == NULL) {
        return NULL;
    }
    record->fd = -1;
    record->path = str_printf("%s/%s", dir, name);
    if (record->path != NULL) {
        record->fd = open(record->path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    }
    struct flock whole = {.l_type = F_WRLCK};
    if (record->fd < 0 || fstat(record->fd, &st) < 0 ||
        fcntl(record->fd, F_OFD_GETLK, &whole) < 0 || load(record) < 0 ||
        !record->has_head) {
        return NULL;
    }
    return about(record, &st, whole.l_type != F_UNLCK);
}

static json_t *about(const struct record *record, const struct stat *st,
                     bool alive)
{
    const struct record_head *head = &record->head;
    char updated[STR_TIME_MAX];
    uint64_t us = (uint64_t)st->st_mtim.tv_sec * 1000000 +
                  (uint64_t)st->st_mtim.tv_nsec / 1000;
    uint64_t done = 0;
    for (uint64_t i = 0; i < record->digests->units; i++) {
        done += record_is_safe(record, i) ? extents_length(head->size, i) : 0;
    }
    const char *name = strrchr(record->path, '/') + 1 + strlen(PREFIX);
    json_auto_t *op = json_stringn(name, strlen(name) - strlen(SUFFIX));
    json_auto_t *asked = json_loads(head->about, 0, NULL);
    /* Older ones, and those of very long names, tell no more than these. */
    json_t *json = json_pack(
        "{s:O*, s:s, s:s, s:b, s:s*, s:s*, s:s*, s:s, s:I, s:I}", "op", op,
        "kind", "copy", "state", alive ? "running" : "interrupted", "alive",
        alive, "source", head->source, "target", head->target, "created",
        str_time(us, updated), "updated", updated, "bytes_done",
        (json_int_t)done, "size", (json_int_t)head->size);
    if (json != NULL && json_is_object(asked)) {
        (void)json_object_update(json, asked);
    }
    return json;
}

struct digests *record_digests(struct record *record)
{
    return record->digests;
}

bool record_is_safe(const struct record *record, uint64_t unit)
{
    return record->digests->known[unit] == RECORD_SAFE;
}

uint64_t record_safe_count(const struct record *record)
{
    uint64_t count = 0;
    for (uint64_t i = 0; i < record->digests->units; i++) {
        count += record_is_safe(record, i);
    }
    return count;
}

void record_written(struct record *record, uint64_t unit, struct digest digest)
{
    record->digests->of[unit] = digest;
    record->digests->known[unit] = RECORD_WRITTEN;
    record->first = unit < record->first ? unit : record->first;
    record->last = unit > record->last ? unit : record->last;
}

void record_forget_written(struct record *record)
{
    for (uint64_t i = 0; i < record->digests->units; i++) {
        if (!record_is_safe(record, i)) {
            record->digests->known[i] = RECORD_TODO;
        }
    }
    record->first = UINT64_MAX;
    record->last = 0;
}

bool record_flush_begin(struct record *record)
{
    uint8_t *known = record->digests->known;
    if (record->first == UINT64_MAX) {
        return false;
    }
    record->flush_first = record->first;
    record->flush_last = record->last;
    record->first = UINT64_MAX;
    record->last = 0;
    for (uint64_t i = record->flush_first; i <= record->flush_last; i++) {
        if (known[i] == RECORD_WRITTEN) {
            known[i] = RECORD_FLUSHING;
        }
    }
    return true;
}

int record_flush_end(struct record *record, struct err **errp)
{
    uint8_t *known = record->digests->known;
    for (uint64_t i = record->flush_first; i <= record->flush_last; i++) {
        if (known[i] == RECORD_FLUSHING) {
            known[i] = RECORD_SAFE;
        }
    }
    int r = save(record, record->flush_first, record->flush_last);
    if (r == 0 && fdatasync(record->fd) < 0) {
        r = -errno;
    }
    return r < 0 ? fail(record, r, errp) : 0;
}

/* A record that was removed while we waited for its lock is not the record. */
static int open_locked(struct record *record, struct err **errp)
{
    for (;;) {
        struct stat ours;
        struct stat there;
        record->fd = open(record->path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        if (record->fd < 0) {
            return fail(record, -errno, errp);
        }
        struct flock whole = {.l_type = F_WRLCK};
        if (fcntl(record->fd, F_OFD_SETLK, &whole) < 0) {
            return errno != EAGAIN && errno != EACCES
                       ? fail(record, -errno, errp)
                       : err_set(errp, -EBUSY, record->path,
                                 "another qpivot copies the same volume to "
                                 "the same target");
        }
        if (fstat(record->fd, &ours) == 0 && stat(record->path, &there) == 0 &&
            ours.st_ino == there.st_ino) {
            return 0;
        }
        (void)close(record->fd);
        record->fd = -1;
    }
}

static int load(struct record *record)
{
    struct file_head page;
    struct stat st;
    if (fstat(record->fd, &st) < 0 ||
        pread(record->fd, &page, sizeof(page), 0) != sizeof(page) ||
        memcmp(page.magic, MAGIC, sizeof(page.magic)) != 0 ||
        page.head.size > INT64_MAX) {
        return 0;
    }
    uint64_t units = page.head.size / UNIT + (page.head.size % UNIT != 0);
    /* Before any memory is taken for what it claims. */
    if ((uint64_t)st.st_size != HEAD_SIZE + units * sizeof(struct entry)) {
        return 0;
    }
    int r = digests_new(page.head.size, &record->digests);
    if (r < 0) {
        return r;
    }
    struct entry entries[BATCH / 8];
    for (uint64_t i = 0; i < units; i++) {
        uint64_t at = i % ARRAY_SIZE(entries);
        if (at == 0 && pread(record->fd, entries, sizeof(entries),
                             (off_t)(HEAD_SIZE + i * sizeof(*entries))) < 0) {
            return 0;
        }
        if (entries[at].safe == 1) {
            record->digests->of[i] = entries[at].digest;
            record->digests->known[i] = RECORD_SAFE;
        }
    }
    record->head = page.head;
    end_texts(&record->head);
    record->has_head = true;
    record->first = UINT64_MAX;
    return 0;
}

static void end_texts(struct record_head *head)
{
    head->source[sizeof(head->source) - 1] = '\0';
    head->stamp[sizeof(head->stamp) - 1] = '\0';
    head->target[sizeof(head->target) - 1] = '\0';
    head->format[sizeof(head->format) - 1] = '\0';
    head->about[sizeof(head->about) - 1] = '\0';
}

static int save(const struct record *record, uint64_t first, uint64_t last)
{
    int r = 0;
    struct entry entries[BATCH / 8];
    for (uint64_t i = first; r == 0 && i <= last;) {
        size_t n = 0;
        uint64_t from = i;
        for (; n < ARRAY_SIZE(entries) && i <= last; n++, i++) {
            bool safe = record_is_safe(record, i);
            entries[n] = (struct entry){.safe = safe};
            if (safe) {
                entries[n].digest = record->digests->of[i];
            }
        }
        r = write_all(record->fd, entries, n * sizeof(*entries),
                      HEAD_SIZE + from * sizeof(*entries));
    }
    return r;
}

static int write_all(int fd, const void *bytes, size_t n, uint64_t offset)
{
    ssize_t done = pwrite(fd, bytes, n, (off_t)offset);
    return done < 0 ? -errno : (size_t)done != n ? -ENOSPC : 0;
}

static int fail(const struct record *record, int code, struct err **errp)
{
    return err_set(errp, code, record->path,
                   "the progress record cannot be kept: %s", strerror(-code));
}
