/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Makes a volume usable on this host, and gives that back: up and down, role.
 * Nothing is promoted that a peer may have Primary, and nothing is taken back
 * that was not done here.
 */
#include <errno.h>
#include <stdio.h>
#include <time.h>

#include "base/err.h"
#include "base/str.h"
#include "drbd-command.h"
#include "drbd-private.h"
#include "volume.h"

enum { AGAIN_MS = 200 };

const char drbd_state_down[] = "down";
static const char state_secondary[] = "secondary";
static const char state_primary[] = "primary";
static const char state_auto[] = "auto"; /* QEMU's opening promotes it */

static const char alone_hint[] =
    "connect it; where a person knows that no peer has it Primary,"
    " --allow-degraded does without";

/* How it stands right now, as volume_info.state has it. */
struct stand {
    struct drbd_status status; /* not of one that is down */
    bool manual;
    const char *state;
    char identity[32];
};

const char *drbd_state_of(const struct drbd_status *status, bool manual)
{
    return !manual                          ? state_auto
           : drbd_status_is_primary(status) ? state_primary
                                            : state_secondary;
}

static int look_stand(const struct drbd_volume *self, struct stand *ret,
                      struct err **errp)
{
    struct drbd_name name = drbd_name_of(self);
    unsigned minor = 0;
    int r = drbd_look(&name, &ret->status, &ret->manual, errp);
    if (r == DRBD_E_DOWN) {
        ret->state = drbd_state_down;
        r = drbd_configured_minor(&name, &minor, errp);
    } else if (r == 0) {
        ret->state = drbd_state_of(&ret->status, ret->manual);
        minor = ret->status.minor;
    }
    if (r == DRBD_E_UNDEFINED) {
        r = err_set(errp, -ENOENT, name.object, "is not there any more");
    }
    drbd_tell_identity(minor, ret->identity, sizeof(ret->identity));
    return r;
}

static bool is_other(const struct volume_planned *planned, const char *identity)
{
    return planned->identity != NULL && *planned->identity != '\0' &&
           !str_eq(planned->identity, identity);
}

/* As it was, or what an earlier try of ours has made of it. */
static bool is_as_planned(const struct volume_planned *planned,
                          const char *state)
{
    return str_eq(state, planned->state) ||
           (planned->again && !str_eq(state, drbd_state_down) &&
            (str_eq(planned->state, drbd_state_down) ||
             (str_eq(planned->state, state_secondary) &&
              str_eq(state, state_primary))));
}

/* What was not changed by us is not ours to change back. */
static int check_planned(const struct drbd_volume *self,
                         const struct volume_planned *planned,
                         const struct stand *now, struct err **errp)
{
    if (is_other(planned, now->identity)) {
        return err_set(errp, -ESTALE, self->volume.name,
                       "is another device now: %s, not %s", now->identity,
                       planned->identity);
    }
    return is_as_planned(planned, now->state)
               ? 0
               : err_set(errp, -ESTALE, self->volume.name,
                         "somebody has changed it since the plan was made: it"
                         " was %s, now it is %s",
                         planned->state, now->state);
}

/* Two Primaries would part for good. */
static int check_peers(const struct drbd_volume *self,
                       const struct volume_planned *planned,
                       const struct drbd_status *status, struct err **errp)
{
    const struct drbd_peer *peer = drbd_status_primary_peer(status);
    char alone[DRBD_DEGRADED];
    int r = 0;
    if (peer != NULL) {
        r = err_set(errp, -EBUSY, self->volume.name, "peer '%s' has it Primary",
                    peer->name);
    } else if (drbd_status_is_alone(status, alone) && !planned->alone) {
        r = err_set(errp, -ENOTCONN, self->volume.name,
                    "%s: it may have it Primary", alone);
        err_hint(errp, "%s", alone_hint);
    }
    return r;
}

/* A peer that went away meanwhile could have done the same. */
static int promote(const struct drbd_volume *self,
                   const struct volume_planned *planned,
                   struct drbd_status *status, struct err **errp)
{
    struct drbd_name name = drbd_name_of(self);
    int r = drbd_promote(&name, errp);
    if (r == 0) {
        r = drbd_look(&name, status, NULL, errp);
    }
    if (r > 0) {
        r = err_set(errp, -ENOENT, name.object, "is not there any more");
    }
    return r < 0 ? r : check_peers(self, planned, status, errp);
}

/* It is Primary: by an earlier try, or by the plan. */
static int use_as_it_is(struct volume *volume, struct volume_info *ret,
                        struct err **errp)
{
    int r = drbd_probe(volume, ret, errp);
    if (r == 0 && ret->in_use) {
        r = err_set(errp, -EBUSY, volume->name, "is in use by %s",
                    ret->in_use_by);
        ret->untouched = true;
    }
    return r;
}

static uint64_t now_ms(void)
{
    struct timespec now = {0};
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* A peer that is about to connect may have it Primary: it is waited for. */
static int wait_up(const struct drbd_volume *self,
                   const struct volume_planned *planned, struct stand *now,
                   struct err **errp)
{
    const struct timespec pause = {.tv_nsec = AGAIN_MS * 1000000L};
    struct drbd_name name = drbd_name_of(self);
    uint64_t end = now_ms() + drbd_ready_ms();
    char lacks[128] = "it is down still";
    for (;;) {
        bool ready = false;
        int r = drbd_look(&name, &now->status, &now->manual, errp);
        if (r < 0) {
            return r;
        }
        if (r == 0) {
            ready = drbd_is_ready(&now->status, lacks);
        }
        if (ready && !drbd_status_is_alone(&now->status, lacks)) {
            return 0;
        }
        if (now_ms() >= end && ready && planned->alone) {
            return 0;
        }
        if (now_ms() >= end) {
            break;
        }
        (void)nanosleep(&pause, NULL);
    }
    (void)err_set(errp, -ETIMEDOUT, name.object,
                  "is up, but cannot be used: %s", lacks);
    err_hint(errp, "%s", alone_hint);
    return -ETIMEDOUT;
}

static int bring_up(struct drbd_volume *self,
                    const struct volume_planned *planned, struct stand *now,
                    bool *ret_untouched, struct err **errp)
{
    struct drbd_name name = drbd_name_of(self);
    int r = 0;
    if (str_eq(now->state, drbd_state_down)) {
        *ret_untouched = false;
        r = drbd_adjust(&name, errp);
    }
    if (r == 0) {
        r = wait_up(self, planned, now, errp);
    }
    if (r == 0) {
        drbd_tell_identity(now->status.minor, now->identity,
                           sizeof(now->identity));
        r = is_other(planned, now->identity)
                ? check_planned(self, planned, now, errp)
                : check_peers(self, planned, &now->status, errp);
    }
    if (r == 0 && now->manual && !drbd_status_is_primary(&now->status)) {
        *ret_untouched = false;
        r = promote(self, planned, &now->status, errp);
    }
    return r;
}

int drbd_attach(struct volume *volume, const struct volume_planned *planned,
                struct volume_info *ret, struct err **errp)
{
    struct drbd_volume *self = drbd_of(volume);
    struct stand now = {.manual = true};
    volume_info_init(ret);
    ret->untouched = !planned->again;
    int r = look_stand(self, &now, errp);
    if (r < 0) {
        return r;
    }
    r = check_planned(self, planned, &now, errp);
    if (r < 0) {
        ret->untouched = true;
        return r;
    }
    if (*now.status.suspended != '\0') {
        return err_set(errp, -EAGAIN, volume->name, "its I/O is suspended (%s)",
                       now.status.suspended);
    }
    if (drbd_status_is_primary(&now.status)) {
        return use_as_it_is(volume, ret, errp);
    }
    r = bring_up(self, planned, &now, &ret->untouched, errp);
    return r < 0 ? r : drbd_probe(volume, ret, errp);
}

int drbd_detach(struct volume *volume, const struct volume_planned *planned,
                struct err **errp)
{
    struct drbd_volume *self = drbd_of(volume);
    struct drbd_name name = drbd_name_of(self);
    const char *state = planned->state;
    struct stand now = {.manual = true};
    if (str_eq(state, state_primary) || str_eq(state, state_auto)) {
        return 0;
    }
    int r = drbd_look(&name, &now.status, &now.manual, errp);
    if (r != 0) {
        return r < 0 ? r : 0; /* it is down */
    }
    drbd_tell_identity(now.status.minor, now.identity, sizeof(now.identity));
    if (is_other(planned, now.identity) || (state == NULL && !now.manual)) {
        return 0;
    }
    if (drbd_status_is_primary(&now.status)) {
        r = drbd_demote(&name, errp);
    }
    if (r == 0 && str_eq(state, drbd_state_down)) {
        r = drbd_down(&name, errp);
    }
    if (r < 0) {
        err_hint(errp, "when nobody has it open: 'drbdadm %s %s'",
                 str_eq(state, drbd_state_down) ? "down" : "secondary",
                 name.resource);
    }
    return r;
}

/* Its role, and up or down, are the resource's. */
bool drbd_is_attached_with(const struct volume *a, const struct volume *b)
{
    return a->ops == b->ops &&
           str_eq(drbd_of(a)->resource, drbd_of(b)->resource);
}
