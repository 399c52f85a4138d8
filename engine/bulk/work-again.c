/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A copy that outlives the restart of a server: its connections are made
 * anew, for a bounded time, and only to the same volumes.
 */
#include <errno.h>
#include <poll.h>
#include <uv.h>

#include "backends/bulk.h"
#include "backends/volume.h"
#include "base/err.h"
#include "base/str.h"
#include "bulk/work.h"

enum { LOST_S = 30, NAP_MS = 100, NAPS = 10, IN_VAIN_MAX = 3 };

static const uint64_t SECOND_NS = 1000000000;

static int check_finished(struct work *work, const struct volume *volume,
                          const struct extents *map, struct err **errp);
static bool is_address(const struct volume *volume);
static uint64_t done_of(const struct pipeline *p);
static int wait(struct work *work, int lost, struct err **errp);
static bool wait_for_both(struct work *work, uint64_t end_ns,
                          struct err **errp);
static int is_back(struct volume *volume, const struct volume_info *before,
                   struct err **errp);

int work_run_through(struct work *work, const char *phase, struct pipeline *p,
                     struct err **errp)
{
    uint64_t done = done_of(p);
    unsigned in_vain = 0;
    int r = work_run(work, phase, p, errp);
    while (r < 0 && p->lost) {
        uint64_t now_done = done_of(p);
        in_vain = now_done > done ? 0 : in_vain + 1;
        done = now_done;
        if (in_vain > IN_VAIN_MAX || atomic_load(&work->cancel)) {
            break;
        }
        r = wait(work, r, errp);
        if (r < 0) {
            break;
        }
        pipeline_again(p);
        r = p->mode == PIPELINE_COPY ? work_check_unproved(work, true, errp)
                                     : 0;
        if (r == 0) {
            r = work_run(work, phase, p, errp);
        }
    }
    pipeline_done(p);
    return r;
}

int work_check_unproved(struct work *work, bool again, struct err **errp)
{
    _cleanup_(extents_freep) struct extents *map = NULL;
    /* A device's number, or an address: both can be another volume's now. */
    bool source = again ? is_address(work->a) : *work->stamp == '\0';
    bool target = again ? is_address(work->b)
                        : (work->b->ops->flags & BACKEND_CREATES) == 0;
    int r = source ? check_finished(work, work->a, work->map, errp) : 0;
    if (r == 0 && target) {
        r = extents_new(work->size, &map);
        if (r == 0) {
            extents_fill(map);
            r = check_finished(work, work->b, map, errp);
        }
    }
    return r;
}

static bool is_address(const struct volume *volume)
{
    return (volume->ops->flags & BACKEND_NBD) != 0;
}

static int check_finished(struct work *work, const struct volume *volume,
                          const struct extents *map, struct err **errp)
{
    struct pipeline check;
    work_pipeline(work, &check);
    check.mode = PIPELINE_CHECK;
    check.a = volume;
    check.a_map = map;
    check.a_flags |= volume == work->b ? BULK_FRESH : 0;
    check.digests = record_digests(work->record);
    int r = work_run_through(work, "check", &check, errp);
    if (r == 0 && atomic_load(&check.differing) > 0) {
        _cleanup_free_ char *where = work_differences(&check);
        (void)err_set(errp, -ESTALE, volume->name,
                      "has changed since its copy began: %s",
                      where != NULL ? where : "");
        err_hint(errp, "to copy all of it again, remove %s/copy-%s.record%s",
                 work->options.state_dir, work->key,
                 work->created ? " and the target" : "");
        return -ESTALE;
    }
    return r;
}

/* What a connection's end does not take back; it only grows. */
static uint64_t done_of(const struct pipeline *p)
{
    return p->mode == PIPELINE_COPY ? record_safe_count(p->record)
                                    : atomic_load(&p->passed);
}

/* 'lost' and *errp are of the failure; 0: *errp is gone, and both are back. */
static int wait(struct work *work, int lost, struct err **errp)
{
    _cleanup_err_ struct err *why = NULL;
    bool told = errp != NULL && *errp != NULL;
    work_warn(work, "%s: %s; trying again for %d s",
              told ? (*errp)->object : "a server",
              told ? (*errp)->desc : "a connection is lost", LOST_S);
    bool back = wait_for_both(work, uv_hrtime() + LOST_S * SECOND_NS, &why);
    /* What has happened first says more, but for another volume. */
    if (!back && (why == NULL || why->code != -ESTALE)) {
        return lost;
    }
    if (errp != NULL) {
        (void)err_free(*errp);
        *errp = TAKE_PTR(why);
    }
    return back ? 0 : -ESTALE;
}

static bool wait_for_both(struct work *work, uint64_t end_ns, struct err **errp)
{
    for (;;) {
        for (unsigned i = 0; i < NAPS && !atomic_load(&work->cancel); i++) {
            (void)poll(NULL, 0, NAP_MS);
        }
        struct err *err = NULL;
        int r = atomic_load(&work->cancel) ? -ECANCELED : 0;
        if (r == 0) {
            r = is_back(work->a, &work->a_info, &err);
        }
        if (r == 0 && work->b != NULL) {
            r = is_back(work->b, &work->b_info, &err);
        }
        if (r == 0) {
            return true;
        }
        if (r == -ESTALE || r == -ECANCELED || uv_hrtime() > end_ns) {
            *errp = TAKE_PTR(err);
            return false;
        }
        (void)err_free(err);
    }
}

/* -ESTALE: something else has its name now. */
static int is_back(struct volume *volume, const struct volume_info *before,
                   struct err **errp)
{
    struct volume_info now;
    volume_info_init(&now);
    int r = volume->ops->probe(volume, &now, errp);
    bool fixed = (volume->ops->flags & BACKEND_CREATES) == 0;
    if (r == 0 && (!str_eq(now.identity, before->identity) ||
                   (fixed && now.size != before->size))) {
        r = err_set(errp, -ESTALE, volume->name,
                    "is not the same any more after its server came back");
    }
    return r;
}
