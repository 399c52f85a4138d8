/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A copy that outlives the restart of a server: its connections are made
 * anew, for a bounded time, and only to the same volumes.
 */
#include <errno.h>
#include <poll.h>
#include <uv.h>

#include "backends/volume.h"
#include "base/err.h"
#include "base/str.h"
#include "bulk/work.h"

enum { LOST_S = 30, NAP_MS = 100, NAPS = 10, IN_VAIN_MAX = 3 };

static const uint64_t SECOND_NS = 1000000000;

static bool wait_for_both(struct work *work, uint64_t end_ns,
                          struct err **errp);
static int is_back(struct volume *volume, const struct volume_info *before,
                   struct err **errp);

int work_run_through(struct work *work, const char *phase, struct pipeline *p,
                     struct err **errp)
{
    uint64_t safe = record_safe_count(p->record);
    unsigned in_vain = 0;
    for (;;) {
        struct err *lost = NULL;
        int r = work_run(work, phase, p, &lost);
        uint64_t now_safe = record_safe_count(p->record);
        in_vain = now_safe > safe ? 0 : in_vain + 1;
        safe = now_safe;
        if (r == 0 || !p->lost || in_vain > IN_VAIN_MAX ||
            atomic_load(&work->cancel)) {
            if (errp != NULL) {
                *errp = TAKE_PTR(lost);
            }
            (void)err_free(lost);
            return r;
        }
        work_warn(work, "%s; trying again for %d s",
                  lost != NULL ? lost->desc : "a connection is lost", LOST_S);
        struct err *why = NULL;
        bool back = wait_for_both(work, uv_hrtime() + LOST_S * SECOND_NS, &why);
        if (!back) {
            /* What has happened first says more, but for another volume. */
            bool other = why != NULL && why->code == -ESTALE;
            r = other ? why->code : r;
            struct err **told = other ? &why : &lost;
            if (errp != NULL) {
                *errp = TAKE_PTR(*told);
            }
            (void)err_free(why);
            (void)err_free(lost);
            return r;
        }
        (void)err_free(why);
        (void)err_free(lost);
        pipeline_again(p);
    }
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
        if (r == 0) {
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
    if (r == 0 && !str_eq(now.identity, before->identity)) {
        r = err_set(errp, -ESTALE, volume->name,
                    "is not the same any more after its server came back");
    }
    return r;
}
