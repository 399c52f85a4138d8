/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "steps/alive.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "base/err.h"
#include "base/str.h"
#include "run/op.h"
#include "steps/act-on.h"

enum {
    ASK_AGAIN_MS = 1000,
    HEALS_MS = 45000,       /* right before the pivot; the copy waits longer */
    NBD_GIVE_UP_MS = 30000, /* QEMU does not connect to a dead one again */
};

static const char learn_step[] = "target-asked";

static struct volume *volume_of(const struct act *act)
{
    struct volume *volume = NULL;
    return volume_parse(act_disk(act)->to, &volume, NULL) == 0 ? volume : NULL;
}

/* Asks a volume that it takes over, NULL without memory. */
static void ask(struct act *act, struct volume *volume, act_volume_fn *then)
{
    static const struct volume_request request = {.act = VOLUME_ANSWER};
    _cleanup_err_ struct err *err = NULL;
    if (act_own_volume(act, volume) == NULL) {
        (void)err_set(&err, -ENOMEM, act_disk(act)->to, "out of memory");
        act_end(act, err);
        return;
    }
    act_storage(act, volume, &request, then);
}

static bool was_learnt(const struct act *act)
{
    return act_fact(act, learn_step, "identity") != NULL;
}

/* What is not as it was when the copy began; false: nothing. */
static bool has_changed(const struct act *act, const struct volume_info *info,
                        char ret[160])
{
    const struct plan_disk *disk = act_disk(act);
    const char *identity =
        json_string_value(act_fact(act, learn_step, "identity"));
    const char *life = json_string_value(act_fact(act, learn_step, "life"));
    json_int_t size = json_integer_value(act_fact(act, learn_step, "size"));
    if (!info->exists) {
        (void)snprintf(ret, 160, "is gone: somebody has removed it");
    } else if (!str_eq(info->identity, identity)) {
        (void)snprintf(ret, 160,
                       "is another one now: somebody has replaced it");
    } else if (str_eq(disk->format, "raw") && info->size < (uint64_t)size) {
        (void)snprintf(ret, 160,
                       "has shrunk from %" PRIu64 " to %" PRIu64 " bytes",
                       (uint64_t)size, info->size);
    } else if (info->torn) {
        (void)snprintf(ret, 160,
                       "cannot be read to its end: what it held may be lost");
    } else if (!str_eq(info->life, life)) {
        (void)snprintf(ret, 160,
                       "has a server that was started anew: what it had taken"
                       " and not yet written out may be lost");
    } else {
        return false;
    }
    return true;
}

/* --- before the mirror --- */

static void learn_on_answer(struct act *act, const struct err *err,
                            struct volume_result *result)
{
    const struct volume_info *info = &result->info;
    if (err == NULL && info->exists) {
        act_set_facts(act, json_pack("{s:s, s:s, s:I, s:s, s:b}", "identity",
                                     info->identity, "life", info->life, "size",
                                     (json_int_t)info->size, "degraded",
                                     info->degraded, "heals", info->heals));
    } else if (err != NULL && info->rival) {
        act_end(act, err);
        return;
    } else {
        _cleanup_free_ char *text = err != NULL ? err_text(err) : NULL;
        act_warn(act,
                 "target cannot be asked while QEMU has it open, so that only"
                 " QEMU can tell whether it lives: %s",
                 text != NULL ? text : "it is not there");
    }
    act_end(act, NULL);
}

void alive_learn(struct act *act)
{
    ask(act, volume_of(act), learn_on_answer);
}

/* --- while it runs --- */

static bool is_gated(const struct act *act, const struct volume_info *info)
{
    return info->exists && *info->degraded != '\0' &&
           !act_plan(act)->allow_degraded;
}

static void watch_replicas(struct act *act, struct alive_watch *watch,
                           const struct volume_info *info)
{
    const char *to = act_disk(act)->to;
    watch->heals = is_gated(act, info) && info->heals;
    if (!info->exists || str_eq(watch->degraded, info->degraded)) {
        return;
    }
    (void)snprintf(watch->degraded, sizeof(watch->degraded), "%s",
                   info->degraded);
    if (*info->degraded == '\0') {
        act_warn(act, "target %s is degraded no more", to);
    } else {
        act_warn(act, "target %s is degraded: %s%s", to, info->degraded,
                 act_plan(act)->allow_degraded ? "" : ": no pivot so far");
    }
}

static void watch_on_answer(struct act *act, void *data, const struct err *err,
                            struct volume_result *result)
{
    struct alive_watch *watch = data;
    alive_answered(&watch->alive, act_now_ms(act), err == NULL);
    if (err != NULL && result->info.rival) {
        (void)snprintf(watch->changed, sizeof(watch->changed), "%s", err->desc);
    } else if (err != NULL) {
        _cleanup_free_ char *text = err_text(err);
        (void)snprintf(watch->why, sizeof(watch->why), ": %s",
                       text != NULL ? text : "out of memory");
    } else {
        (void)has_changed(act, &result->info, watch->changed);
        watch_replicas(act, watch, &result->info);
    }
}

static void watch_begin(struct act *act, struct alive_watch *watch)
{
    uint64_t limit = act_plan(act)->target_timeout_ms;
    watch->begun = true;
    watch->off = !was_learnt(act);
    watch->heals = json_is_true(act_fact(act, learn_step, "heals")) &&
                   !act_plan(act)->allow_degraded;
    const char *degraded =
        json_string_value(act_fact(act, learn_step, "degraded"));
    (void)snprintf(watch->degraded, sizeof(watch->degraded), "%s",
                   degraded != NULL ? degraded : "");
    if (act_disk(act)->nbd && (limit == 0 || limit > NBD_GIVE_UP_MS)) {
        limit = NBD_GIVE_UP_MS;
    }
    watch->alive.limits.give_up_ms = limit;
    alive_begin(&watch->alive, act_now_ms(act));
}

static void watch_tell(struct act *act, struct alive_watch *watch)
{
    const struct plan_disk *disk = act_disk(act);
    uint64_t seconds = watch->silent_ms / 1000;
    bool blocks = str_eq(disk->copy_mode, "write-blocking");
    act_set_waiting(act, "waits for an answer of", disk->to);
    act_warn(act, "target %s does not answer since %" PRIu64 " s%s: %s",
             disk->to, seconds, watch->why,
             blocks ? "the guest's writes wait with it"
                    : "the guest goes on undisturbed");
}

bool alive_watch(struct act *act, struct alive_watch *watch)
{
    _cleanup_err_ struct err *err = NULL;
    const struct plan_disk *disk = act_disk(act);
    uint64_t now = act_now_ms(act);
    if (!watch->begun) {
        watch_begin(act, watch);
    }
    if (watch->off) {
        return true;
    }
    if (alive_is_due(&watch->alive, now)) {
        struct volume *volume = volume_of(act);
        if (volume != NULL &&
            act_ask(act, volume, watch_on_answer, watch) == 0) {
            alive_asked(&watch->alive, now);
        } /* else at the next look: that it was not asked says nothing */
    }
    if (watch->changed[0] != '\0') {
        (void)err_set(&err, -ESTALE, disk->to, "%s", watch->changed);
        act_end(act, err);
        return false;
    }
    enum alive_verdict verdict = alive_look(&watch->alive, now);
    if (verdict == ALIVE_SILENT) {
        watch->silent_ms = alive_silent_ms(&watch->alive, now);
        watch_tell(act, watch);
    } else if (verdict == ALIVE_BACK) {
        act_set_waiting(act, NULL, NULL);
        act_warn(act, "target %s answers again", disk->to);
        watch->why[0] = '\0';
    } else if (verdict == ALIVE_DEAD) {
        (void)err_set(&err, -ETIMEDOUT, disk->to,
                      "does not answer since %" PRIu64 " s%s",
                      alive_silent_ms(&watch->alive, now) / 1000, watch->why);
        act_end(act, err);
    }
    return verdict != ALIVE_DEAD;
}

/* --- right before the pivot --- */

/* Whether it is waited for; else 'ret' tells why there is no pivot. */
static bool prove_replicas(struct act *act, const struct volume_info *info,
                           struct err **ret)
{
    uint64_t *since_ms = act_scratch(act, sizeof(*since_ms));
    const char *to = act_disk(act)->to;
    if (since_ms != NULL && *since_ms == 0) {
        *since_ms = act_now_ms(act);
    }
    if (info->heals && since_ms != NULL &&
        act_now_ms(act) - *since_ms < HEALS_MS) {
        act_set_waiting(act, "waits for the replicas of", to);
        act_again(act, ASK_AGAIN_MS, alive_prove);
        return true;
    }
    (void)err_set(ret, -ENOLINK, to, "no pivot onto a degraded target: %s",
                  info->degraded);
    err_hint(ret, "--allow-degraded pivots all the same");
    return false;
}

static void prove_on_answer(struct act *act, const struct err *err,
                            struct volume_result *result)
{
    char changed[160];
    _cleanup_err_ struct err *error = err_copy(err);
    if (error != NULL) {
        err_prefix(&error, "no pivot onto a target that does not answer");
    } else if (has_changed(act, &result->info, changed)) {
        (void)err_set(&error, -ESTALE, act_disk(act)->to, "%s", changed);
    } else if (is_gated(act, &result->info) &&
               prove_replicas(act, &result->info, &error)) {
        return;
    }
    act_end(act, error);
}

void alive_prove(struct act *act)
{
    if (was_learnt(act)) {
        ask(act, volume_of(act), prove_on_answer);
    } else {
        act_end(act, NULL);
    }
}

/* --- on the way back --- */

static void wait_next(struct act *act);

/* Whether QEMU would stand still at a target that is gone, and which it is. */
static struct volume *stalling(const struct act *act, unsigned disk)
{
    struct volume *volume = NULL;
    if (op_fact(act_op(act), learn_step, (int)disk, "identity") == NULL ||
        volume_parse(act_plan(act)->disks[disk].to, &volume, NULL) < 0) {
        return NULL;
    }
    return (volume->ops->flags & BACKEND_STALLS) != 0 ? volume
                                                      : volume_free(volume);
}

static void wait_gives_up(struct act *act, const struct err *why)
{
    const struct alive_return *back = act_scratch(act, sizeof(*back));
    _cleanup_err_ struct err *error = NULL;
    _cleanup_free_ char *text = err_text(why);
    (void)err_set(&error, -ETIMEDOUT, act_plan(act)->disks[back->disk].to,
                  "does not answer, and QEMU would stand still at letting it"
                  " go: it stays open there (%s)",
                  text != NULL ? text : "out of memory");
    err_hint(&error,
             "the guest goes on at its source; when the target answers:"
             " 'qpivot recover %s'",
             act_op_id(act));
    act_give_up(act, error);
}

static void wait_on_answer(struct act *act, const struct err *err,
                           struct volume_result *result)
{
    struct alive_return *back = act_scratch(act, sizeof(*back));
    (void)result;
    if (err == NULL) {
        back->disk++;
        wait_next(act);
    } else if (act_now_ms(act) - back->since_ms < act_patience_ms(act)) {
        act_again(act, ASK_AGAIN_MS, wait_next);
    } else {
        wait_gives_up(act, err);
    }
}

static void wait_next(struct act *act)
{
    struct alive_return *back = act_scratch(act, sizeof(*back));
    for (; back->disk < act_plan(act)->n_disks; back->disk++) {
        struct volume *volume = stalling(act, back->disk);
        if (volume != NULL) {
            ask(act, volume, wait_on_answer);
            return;
        }
    }
    back->then(act);
}

void alive_wait(struct act *act, step_fn *then)
{
    struct alive_return *back = act_scratch(act, sizeof(*back));
    if (back == NULL) {
        then(act);
        return;
    }
    back->since_ms = act_now_ms(act);
    back->disk = 0;
    back->then = then;
    wait_next(act);
}

static void return_end(struct act *act)
{
    act_end(act, NULL);
}

void alive_return(struct act *act)
{
    alive_wait(act, return_end);
}
