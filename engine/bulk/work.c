/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A copy from beginning to end, as blocking code. The order is what makes it
 * safe to kill at any point: the record names the target's identity before
 * the target gets its name, and is removed only after the last flush.
 */
#include "work.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "backends/bulk.h"
#include "backends/volume.h"
#include "base/err.h"
#include "base/str.h"
#include "bulk/image.h"

static int check_target(struct work *work, struct err **errp);
static int check_sizes(const struct work *work, struct err **errp);
static int begin(struct work *work, struct err **errp);
static int go_on(struct work *work, const struct record_head *head,
                 struct err **errp);
static int start_over(struct work *work, struct err **errp);
static void tell_about(const struct work *work, struct record_head *head);
static int create(struct work *work, struct record_head *head,
                  struct err **errp);
static int copy_bytes(struct work *work, struct err **errp);
static int offload(struct work *work, struct err **errp);
static int check_source_again(struct work *work, struct err **errp);
static int verify_target(struct work *work, struct err **errp);
static int check_wanted(const struct work *work);
static void clean(struct work *work);
static void tell_plan(struct work *work, bool resumes);
static bool can_resume(const struct work *work, const struct record_head *head);

int work_copy(struct work *work, struct err **errp)
{
    const struct copy_options *o = &work->options;
    unsigned share = o->force_share || o->frozen ? BULK_SHARE : 0;
    int r = work_look(work, o->source, &work->a, &work->a_info, errp);
    if (r == 0) {
        r = work_check_read(work, work->a, &work->a_info, errp);
    }
    if (r == 0) {
        r = work_look(work, o->target, &work->b, &work->b_info, errp);
    }
    if (r == 0) {
        r = work_map(work, work->a, share, &work->size, &work->map, errp);
    }
    if (r == 0) {
        r = check_target(work, errp);
    }
    if (r == 0) {
        r = check_wanted(work);
    }
    if (r == 0) {
        r = begin(work, errp);
    }
    if (r < 0 || o->dry_run) {
        return r;
    }
    r = check_wanted(work);
    if (r == 0) {
        r = copy_bytes(work, errp);
    }
    if (r == 0) {
        r = check_source_again(work, errp);
    }
    if (r == 0 && o->verify) {
        r = verify_target(work, errp);
    }
    if (r == 0) {
        r = check_wanted(work);
    }
    if (r == 0 && o->manifest != NULL) {
        r = manifest_write(record_digests(work->record), o->manifest, errp);
    }
    if (r == 0) {
        r = check_wanted(work);
    }
    if (r == 0) {
        record_remove(work->record);
    } else if (o->clean && work_decide(work, WORK_CLEANS)) {
        clean(work);
    } else if (errp != NULL && *errp != NULL && (*errp)->hint == NULL) {
        err_hint(errp, "what is copied is kept: the same command goes on");
    }
    return r;
}

bool work_decide(struct work *work, enum work_end end)
{
    unsigned undecided = WORK_GOES_ON;
    return atomic_compare_exchange_strong(&work->end, &undecided, end);
}

void work_release(struct work *work)
{
    work->a_open = bulk_close(work->a_open);
    if (work->a != NULL) {
        bulk_release(work->a, work->a_held);
        work->a_held = NULL;
    }
    if (work->b != NULL) {
        bulk_release(work->b, work->b_held);
        work->b_held = NULL;
    }
}

void work_done(struct work *work)
{
    work->record = record_close(work->record);
    work->map = extents_free(work->map);
    work->b_map = extents_free(work->b_map);
    work->manifest = digests_free(work->manifest);
    work->a = volume_free(work->a);
    work->b = volume_free(work->b);
}

int work_look(struct work *work, const char *uri, struct volume **ret,
              struct volume_info *ret_info, struct err **errp)
{
    int r = volume_parse(uri, ret, errp);
    if (r < 0) {
        return r;
    }
    struct volume *volume = *ret;
    size_t n = strlen(volume->name);
    if (work->options.bytes) {
        volume->format = FORMAT_RAW;
        volume->format_given = true;
    } else if (!volume->format_given && n > 6 &&
               str_eq(volume->name + n - 6, ".qcow2") &&
               (volume->ops->flags & BACKEND_FORMATS) != 0) {
        volume->format = FORMAT_QCOW2;
        volume->format_given = true;
    }
    volume_info_init(ret_info);
    r = bulk_hold(volume, ret == &work->a ? &work->a_held : &work->b_held,
                  errp);
    if (r < 0) {
        return r;
    }
    r = volume->ops->probe(volume, ret_info, errp);
    return r < 0 ? r : atomic_load(&work->cancel) ? -ECANCELED : 0;
}

int work_check_read(const struct work *work, const struct volume *volume,
                    const struct volume_info *info, struct err **errp)
{
    if (!info->exists) {
        return err_set(errp, -ENOENT, volume->name, "does not exist");
    }
    if (info->in_use && !work->options.force_share && !work->options.frozen) {
        (void)err_set(errp, -EBUSY, volume->name, "is in use by %s",
                      info->in_use_by);
        err_hint(errp, "a running VM's disk is moved by 'qpivot move'; "
                       "--force-share reads it as it changes");
        return -EBUSY;
    }
    if (!volume->format_given && info->format == FORMAT_QCOW2) {
        /* A guest may have written that header into its raw disk, to be
         * given a file of the host: never believed unasked. */
        (void)err_set(errp, -EINVAL, volume->name,
                      "holds a qcow2 header, and no format was said");
        err_hint(errp, "add ?format=qcow2 for its content, ?format=raw for "
                       "its bytes");
        return -EINVAL;
    }
    if (volume->format == FORMAT_QCOW2 && info->format != FORMAT_QCOW2) {
        return err_set(errp, -EINVAL, volume->name, "is no qcow2 image");
    }
    return 0;
}

static int check_target(struct work *work, struct err **errp)
{
    struct volume *b = work->b;
    const struct volume_info *info = &work->b_info;
    if (work->options.existing) {
        b->existing = true;
    }
    if (!info->exists) {
        if (b->existing || b->ops->create == NULL) {
            return err_set(errp, -ENOENT, b->name, "does not exist");
        }
        if (b->format != FORMAT_RAW && (b->ops->flags & BACKEND_FORMATS) == 0) {
            return err_set(errp, -EINVAL, b->name, "a %s cannot hold qcow2",
                           b->ops->title);
        }
        return check_sizes(work, errp);
    }
    if (work->options.identity != NULL &&
        !str_eq(info->identity, work->options.identity)) {
        return err_set(errp, -ESTALE, b->name,
                       "is another one now: somebody has replaced it");
    }
    if (str_eq(info->identity, work->a_info.identity)) {
        return err_set(errp, -EINVAL, b->name, "is the source itself");
    }
    if (info->in_use) {
        (void)err_set(errp, -EBUSY, b->name, "is in use by %s",
                      info->in_use_by);
        if (str_eq(b->ops->scheme, "rbd")) {
            err_hint(errp, "a client that was killed counts for half a minute");
        }
        return -EBUSY;
    }
    if (*info->alone != '\0') {
        return err_set(errp, -ENOTCONN, b->name,
                       "%s: it may have the volume in use", info->alone);
    }
    if (info->read_only) {
        return err_set(errp, -EROFS, b->name, "cannot be written");
    }
    return 0;
}

static int check_sizes(const struct work *work, struct err **errp)
{
    const struct volume *b = work->b;
    const struct volume_info *info = &work->b_info;
    bool qcow2 = b->format == FORMAT_QCOW2;
    uint64_t size = !info->exists ? b->size
                    : qcow2       ? info->format_size
                                  : info->size;
    char is[STR_BYTES_MAX];
    char wanted[STR_BYTES_MAX];
    if (info->exists && qcow2 && info->format != FORMAT_QCOW2) {
        return err_set(errp, -EINVAL, b->name, "is no qcow2 image");
    }
    if ((size > 0 || info->exists) && size < work->size) {
        return err_set(errp, -EFBIG, b->name,
                       "is too small: it has %llu bytes (%s), the source "
                       "%llu (%s)",
                       (unsigned long long)size, str_bytes(size, is),
                       (unsigned long long)work->size,
                       str_bytes(work->size, wanted));
    }
    return 0;
}

/* Where a copy of the same pair stopped, or at the beginning. */
static int begin(struct work *work, struct err **errp)
{
    int r =
        record_open(work->options.state_dir, work->key, &work->record, errp);
    if (r < 0) {
        return r;
    }
    const struct record_head *head = record_head(work->record);
    bool resumes = head != NULL && work->b_info.exists &&
                   str_eq(head->target, work->b_info.identity);
    if (resumes && !can_resume(work, head)) {
        if (!work->options.existing || work->options.frozen) {
            (void)err_set(errp, -ESTALE, work->a->name,
                          "has changed since its copy began: the part that "
                          "is at the target is of no use");
            err_hint(errp, "--existing copies all of it again, into what is "
                           "there");
            return -ESTALE;
        }
        resumes = false;
    }
    if (!resumes && work->b_info.exists && !work->b->existing) {
        (void)err_set(errp, -EEXIST, work->b->name, "exists already");
        err_hint(errp, "--existing overwrites all of it");
        r = -EEXIST;
    } else {
        r = resumes && work->b->format != FORMAT_RAW ? 0
                                                     : check_sizes(work, errp);
    }
    if (r == 0) {
        tell_plan(work, resumes);
    }
    if (r < 0 || work->options.dry_run) {
        if (head == NULL) {
            record_remove(work->record);
        }
        return r;
    }
    return resumes ? go_on(work, head, errp) : start_over(work, errp);
}

static bool can_resume(const struct work *work, const struct record_head *head)
{
    return head->size == work->size &&
           str_eq(head->source, work->a_info.identity) &&
           str_eq(head->stamp, work->stamp);
}

static int go_on(struct work *work, const struct record_head *head,
                 struct err **errp)
{
    uint64_t safe = record_safe_count(work->record);
    work->changed = true;
    work->created = head->zero != 0;
    work->resumed = true;
    /*
     * What an earlier try wrote beyond the record was of the same content if
     * a stamp says so; else zeroes may lie where it wrote something.
     */
    work->blank = head->zero != 0 && *work->stamp != '\0';
    if (work->b->format != FORMAT_RAW && head->zero != 0 && safe == 0) {
        work->blank = true;
        return image_create(work->b, work->size, errp);
    }
    return work_check_unproved(work, false, errp);
}

static int start_over(struct work *work, struct err **errp)
{
    struct record_head head;
    memset(&head, 0, sizeof(head));
    head.size = work->size;
    head.zero = !work->b_info.exists || work->options.blank;
    (void)snprintf(head.source, sizeof(head.source), "%s",
                   work->a_info.identity);
    (void)snprintf(head.stamp, sizeof(head.stamp), "%s", work->stamp);
    (void)snprintf(head.target, sizeof(head.target), "%s",
                   work->b_info.identity);
    tell_about(work, &head);
    work->changed = true;
    work->blank = head.zero != 0;
    return work->b_info.exists ? record_begin(work->record, &head, errp)
                               : create(work, &head, errp);
}

/* What somebody who finds the record needs to give the same command. */
static void tell_about(const struct work *work, struct record_head *head)
{
    const struct copy_options *o = &work->options;

    const struct {
        bool given;
        const char *name;
    } options[] = {
        {o->existing,     "existing"    },
        {o->force_share,  "force-share" },
        {o->verify,       "verify"      },
        {o->clean,        "clean"       },
        {o->low_priority, "low-priority"},
        {o->no_offload,   "no-offload"  },
    };

    uv_timeval64_t now = {0};
    char time[STR_TIME_MAX];
    _cleanup_free_ char *dir = getcwd(NULL, 0);
    (void)uv_gettimeofday(&now);
    json_auto_t *list = json_array();
    for (unsigned i = 0; i < ARRAY_SIZE(options); i++) {
        if (options[i].given) {
            (void)json_array_append_new(list, json_string(options[i].name));
        }
    }
    json_auto_t *json = json_pack(
        "{s:s, s:s, s:s, s:s*, s:s*, s:O*}", "created",
        str_time((uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_usec, time),
        "source", o->source, "target", o->target, "manifest", o->manifest,
        "directory", dir, "options", list);
    _cleanup_free_ char *text =
        json != NULL ? json_dumps(json, JSON_COMPACT) : NULL;
    if (text != NULL && strlen(text) < sizeof(head->about)) {
        memcpy(head->about, text, strlen(text) + 1);
    }
}

static int create(struct work *work, struct record_head *head,
                  struct err **errp)
{
    struct volume *b = work->b;
    bool qcow2 = b->format == FORMAT_QCOW2;
    uint64_t size = b->size > work->size ? b->size : work->size;
    char temp[32];
    (void)snprintf(temp, sizeof(temp), "qpv-copy-%s", work->key);
    if (str_eq(work->a->ops->scheme, "file") && b->like == NULL) {
        b->like = work->a->ops->legacy_name(work->a);
    }
    int r = b->ops->create(b, temp, qcow2 ? 0 : size, &work->b_info, errp);
    if (r < 0) {
        return r;
    }
    (void)snprintf(head->target, sizeof(head->target), "%s",
                   work->b_info.identity);
    work->blank = work->b_info.zero;
    head->zero = work->b_info.zero;
    r = record_begin(work->record, head, errp);
    if (r == 0) {
        r = b->ops->publish(b, temp, work->b_info.identity, errp);
    }
    if (r < 0) {
        (void)b->ops->remove(b, temp, NULL, NULL);
        record_remove(work->record);
        return r;
    }
    work->created = true;
    return qcow2 ? image_create(b, size, errp) : 0;
}

static int copy_bytes(struct work *work, struct err **errp)
{
    struct pipeline *p = &work->copied;
    int r = offload(work, errp);
    if (r != -ENOTSUP) {
        return r;
    }
    work_pipeline(work, p);
    p->mode = PIPELINE_COPY;
    p->a = work->a;
    p->a_open = TAKE_PTR(work->a_open);
    p->a_map = work->map;
    p->b = work->b;
    p->b_flags = BULK_WRITE;
    p->blank = work->blank;
    p->record = work->record;
    work->digested = true;
    return work_run_through(work, "copy", p, errp);
}

/* Digests are made of the source then, and only for those who ask. */
static int offload(struct work *work, struct err **errp)
{
    const struct copy_options *o = &work->options;
    if (o->no_offload || !work->blank || work->resumed ||
        work->b_info.size != work->a_info.size) {
        return -ENOTSUP;
    }
    int r = bulk_clone(work->a, work->b, errp);
    work->offloaded = r == 0;
    if (r < 0 || (!o->verify && o->manifest == NULL)) {
        return r;
    }
    struct pipeline *p = &work->copied;
    work_pipeline(work, p);
    p->mode = PIPELINE_DIGEST;
    p->a = work->a;
    p->a_map = work->map;
    p->digests = record_digests(work->record);
    work->digested = true;
    return work_run_through(work, "digest", p, errp);
}

/* A source that was written meanwhile is not what the target has. */
static int check_source_again(struct work *work, struct err **errp)
{
    char before[sizeof(work->stamp)];
    memcpy(before, work->stamp, sizeof(before));
    uint64_t size = 0;
    const struct copy_options *o = &work->options;
    unsigned share = o->force_share || o->frozen ? BULK_SHARE : 0;
    int r = work_map(work, work->a, share, &size, NULL, errp);
    bool same = r == 0 && size == work->size && str_eq(before, work->stamp);
    if (r < 0 || same) {
        return r;
    }
    if (work->options.force_share) {
        work_warn(work, "%s: was written while it was copied", work->a->name);
        return 0;
    }
    record_remove(work->record);
    return err_set(errp, -ESTALE, work->a->name,
                   "was written while it was copied: the target is neither "
                   "what it was nor what it is");
}

/* On channels of their own, round the page cache: not from our buffers. */
static int verify_target(struct work *work, struct err **errp)
{
    struct pipeline check;
    uint64_t size = work->size;
    int r = work_map(work, work->b, BULK_FRESH, &size, &work->b_map, errp);
    if (r < 0) {
        return r;
    }
    work_pipeline(work, &check);
    check.mode = PIPELINE_CHECK;
    check.a = work->b;
    check.a_map = work->b_map;
    check.a_flags = BULK_FRESH;
    check.size = work->size;
    check.digests = record_digests(work->record);
    r = work_run_through(work, "verify", &check, errp);
    if (r == 0 && atomic_load(&check.differing) > 0) {
        _cleanup_free_ char *where = work_differences(&check);
        record_remove(work->record);
        (void)err_set(errp, -EIO, work->b->name,
                      "does not give back what was written: %s",
                      where != NULL ? where : "");
        err_hint(errp, "its storage, or the way to it, cannot be trusted");
        return -EIO;
    }
    return r;
}

/* Of one that was left its end is told already. */
static int check_wanted(const struct work *work)
{
    return atomic_load(&work->end) == WORK_LEFT ? -ECANCELED : 0;
}

/*
 * Only what was made here, by its identity. To remove it can take long, and
 * may be cut short: what of it is safe by the record is that no more.
 */
static void clean(struct work *work)
{
    _cleanup_err_ struct err *err = NULL;
    struct volume *b = work->b;
    struct record_head head = *record_head(work->record);
    if (work->created &&
        (record_begin(work->record, &head, &err) < 0 ||
         b->ops->remove(b, NULL, work->b_info.identity, &err) < 0)) {
        work_warn(work, "%s: could not be removed: %s", b->name,
                  err != NULL ? err->desc : "out of memory");
        return;
    }
    record_remove(work->record);
}

static void tell_plan(struct work *work, bool resumes)
{
    const struct volume *a = work->a;
    const struct volume *b = work->b;
    uint64_t data = extents_bytes(work->map);
    static const char *const formats[] = {"raw", "qcow2"};
    json_t *disk = json_pack("{s:s, s:s, s:s, s:s, s:I, s:I}", "disk", "copy",
                             "from", a->name, "to", b->name, "format",
                             formats[b->format == FORMAT_QCOW2], "size",
                             (json_int_t)work->size, "data", (json_int_t)data);
    json_t *notes = json_array();
    if (resumes) {
        (void)json_array_append_new(
            notes,
            json_sprintf("goes on: %llu of %llu MiB are there already",
                         (unsigned long long)record_safe_count(work->record),
                         (unsigned long long)work->map->units));
    } else if (!work->b_info.exists && work->b_info.available < data) {
        char has[STR_BYTES_MAX];
        (void)json_array_append_new(
            notes, json_sprintf("only %s are free at the target",
                                str_bytes(work->b_info.available, has)));
    }
    if (work->b_info.exists && work->b->format == FORMAT_RAW &&
        work->b_info.size > work->size) {
        (void)json_array_append_new(
            notes, json_string("the target is larger; what lies behind the "
                               "source's end is left as it is"));
    }
    work->tell(work->data,
               json_pack("{s:s, s:b, s:[o], s:o, s:[], s:[]}", "event", "plan",
                         "dry_run", work->options.dry_run, "disks", disk,
                         "notes", notes, "commands", "problems"));
}
