/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A comparison of two volumes, or of one or two with a manifest. */
#include <errno.h>
#include <string.h>

#include "backends/bulk.h"
#include "base/err.h"
#include "base/str.h"
#include "bulk/work.h"

static int open_both(struct work *work, struct err **errp);
static int compare(struct work *work, struct err **errp);
static int check_manifest(struct work *work, const struct volume *volume,
                          const struct extents *map, uint64_t size,
                          struct err **errp);
static int judge(struct work *work, const struct pipeline *p,
                 const char *object, const char *what, struct err **errp);

int work_verify(struct work *work, struct err **errp)
{
    const struct copy_options *o = &work->options;
    work->changed = false;
    if (o->target == NULL && o->manifest == NULL) {
        return err_set(errp, -EINVAL, o->source, "nothing to compare it with");
    }
    if (o->manifest != NULL) {
        int r = manifest_read(o->manifest, &work->manifest, errp);
        if (r < 0) {
            return r;
        }
    }
    int r = open_both(work, errp);
    if (r < 0) {
        return r;
    }
    /* From here on it is no refusal that the volumes differ. */
    work->changed = true;
    r = work->manifest != NULL
            ? check_manifest(work, work->a, work->map, work->map->size, errp)
            : 0;
    if (r == 0 && work->manifest != NULL && work->b != NULL) {
        r = check_manifest(work, work->b, work->b_map, work->b_map->size, errp);
    }
    return r == 0 && work->b != NULL ? compare(work, errp) : r;
}

static int open_both(struct work *work, struct err **errp)
{
    const struct copy_options *o = &work->options;
    unsigned flags = BULK_FRESH | (o->force_share ? BULK_SHARE : 0);
    uint64_t a_size = 0;
    uint64_t b_size = 0;
    int r = work_look(work, o->source, &work->a, &work->a_info, errp);
    if (r == 0) {
        r = work_check_read(work, work->a, &work->a_info, errp);
    }
    if (r == 0 && o->target != NULL) {
        r = work_look(work, o->target, &work->b, &work->b_info, errp);
        if (r == 0) {
            r = work_check_read(work, work->b, &work->b_info, errp);
        }
    }
    if (r == 0) {
        r = work_map(work, work->a, flags, &a_size, &work->map, errp);
    }
    if (r == 0 && o->target != NULL) {
        r = work_map(work, work->b, flags, &b_size, &work->b_map, errp);
    }
    work->size = a_size > b_size ? a_size : b_size;
    return r;
}

/* The longer one's rest must be zeroes, as 'qemu-img compare' has it. */
static int compare(struct work *work, struct err **errp)
{
    struct pipeline *p = &work->copied;
    work_pipeline(work, p);
    p->mode = PIPELINE_COMPARE;
    p->a = work->a;
    p->a_map = work->map;
    p->a_flags |= BULK_FRESH;
    p->b = work->b;
    p->b_map = work->b_map;
    p->b_flags |= BULK_FRESH;
    int r = work_run_through(work, "verify", p, errp);
    return r < 0 ? r : judge(work, p, work->b->name, work->a->name, errp);
}

static int check_manifest(struct work *work, const struct volume *volume,
                          const struct extents *map, uint64_t size,
                          struct err **errp)
{
    struct pipeline *p = &work->copied;
    const char *path = work->options.manifest;
    if (size < work->manifest->size) {
        return err_set(errp, -EIO, volume->name,
                       "is shorter than manifest '%s' says: %llu bytes, not "
                       "%llu",
                       path, (unsigned long long)size,
                       (unsigned long long)work->manifest->size);
    }
    work_pipeline(work, p);
    p->mode = PIPELINE_CHECK;
    p->a = volume;
    p->a_map = map;
    p->a_flags |= BULK_FRESH;
    p->size = work->manifest->size;
    p->digests = work->manifest;
    int r = work_run_through(work, "verify", p, errp);
    return r < 0 ? r : judge(work, p, volume->name, path, errp);
}

static int judge(struct work *work, const struct pipeline *p,
                 const char *object, const char *what, struct err **errp)
{
    if (atomic_load(&p->differing) == 0) {
        return 0;
    }
    _cleanup_free_ char *where = work_differences(p);
    work->tell(work->data,
               json_pack("{s:s, s:s, s:o}", "event", "differences", "disk",
                         object, "ranges", work_differences_json(p)));
    return err_set(errp, -EIO, object, "is not equal to '%s': %s", what,
                   where != NULL ? where : "");
}
