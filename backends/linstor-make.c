/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Makes a resource, removes it, makes it available on this host and gives that
 * back. A resource cannot be renamed, so it has its name from the beginning,
 * and a property that says for which operation and disk it was made: 'temp',
 * which nothing else is called. Without it nothing is ever removed.
 *
 * What the controller answers to a change decides little: it may be an error
 * after the change, or nothing at all. So what there is decides, and no change
 * is sent twice.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "base/err.h"
#include "base/str.h"
#include "linstor-private.h"
#include "linstor.h"
#include "volume.h"

enum {
    KIB = 1024,
    SIZE_MIN = 3 << 20, /* below that pools of some kinds refuse */
    REST_EXACT = 1022,  /* sizes to the byte, and properties with a spawn */
    CREATE_MS = LINSTOR_CREATE_MS,
    REMOVE_MS = LINSTOR_REMOVE_MS,
    APPEARS_MS = 10000, /* what was asked for, though the answer is lost */
    CLOSES_MS = 10000,  /* QEMU and DRBD let go a little later */
};

struct making {
    struct linstor_session *session;
    const struct linstor_volume *self;
    const char *temp;
    uint64_t size;
    char node[64];
    unsigned replicas; /* with a disk, that there have to be; 0: any */
};

static int check_server(struct linstor_session *session, struct err **errp);
static int spawn(const struct making *making, struct err **errp);
static int place(struct making *making, struct err **errp);
static int wait_ready(const struct making *making, struct err **errp);
static int tell_made(const struct making *making, struct volume_info *ret,
                     struct err **errp);
static int take_away(struct linstor_session *session, const char *temp,
                     const char *identity, bool unseen, struct err **errp);
static int wait_closed(struct linstor_session *session, bool known,
                       const char *node, struct err **errp);
static int wait_gone(struct linstor_session *session, struct err **errp);

uint64_t linstor_round(uint64_t size)
{
    uint64_t whole = size <= INT64_MAX ? (size + KIB - 1) / KIB * KIB : size;
    return whole < SIZE_MIN ? SIZE_MIN : whole;
}

static struct linstor_volume *own(struct volume *volume)
{
    return (struct linstor_volume *)(uintptr_t)linstor_of(volume);
}

static uint64_t soon(unsigned ms)
{
    unsigned most = linstor_places()->gone_ms;
    return linstor_now_ms() + (ms < most ? ms : most);
}

/* --- create --- */

static int make(struct making *making, struct volume_info *ret,
                struct err **errp)
{
    int r = check_server(making->session, errp);
    if (r == 0) {
        r = linstor_find_node(making->session, making->node, errp);
    }
    if (r == 0) {
        r = spawn(making, errp);
    }
    if (r == 0) {
        r = place(making, errp);
    }
    if (r == 0) {
        r = wait_ready(making, errp);
    }
    return r == 0 ? tell_made(making, ret, errp) : r;
}

/* What it is refused for can pass, or somebody know better. */
static void hint_delete(const struct linstor_volume *self, int r,
                        struct err **errp)
{
    if (r < 0 && r != -ESTALE && r != -ENOTEMPTY) {
        err_hint(errp,
                 "when nobody uses it: 'linstor resource-definition"
                 " delete %s'",
                 self->resource);
    }
}

/* Whoever has no step of his own for that needs it gone when it failed. */
static void clean_up(struct making *making)
{
    _cleanup_session_ struct linstor_session again = {0};
    if (linstor_session_open(&again, making->self, REMOVE_MS, NULL) == 0) {
        (void)take_away(&again, making->temp, NULL, true, NULL);
    }
}

int linstor_create(struct volume *volume, const char *temp, uint64_t size,
                   struct volume_info *ret, struct err **errp)
{
    _cleanup_session_ struct linstor_session session = {0};
    struct linstor_definition there = {0};
    struct making making = {.session = &session,
                            .self = linstor_of(volume),
                            .temp = temp,
                            .size = linstor_round(size)};
    volume_info_init(ret);
    int r = linstor_session_open(&session, making.self, CREATE_MS, errp);
    if (r == 0) {
        r = linstor_look_definition(&session, &there, errp);
    }
    if (r == 0 && there.there) {
        r = str_eq(there.mark, temp)
                ? take_away(&session, temp, NULL, false, errp)
                : volume_taken(volume, errp);
    }
    if (r < 0) {
        if (there.there && str_eq(there.mark, temp)) {
            hint_delete(making.self, r, errp);
        }
        return r;
    }
    r = make(&making, ret, errp);
    if (r < 0) {
        clean_up(&making);
    }
    return r;
}

static int check_server(struct linstor_session *session, struct err **errp)
{
    const struct linstor_volume *self = session->self;
    _cleanup_reply_ struct linstor_reply reply = {0};
    int r = linstor_call(session, "GET", "/v1/controller/version", NULL, &reply,
                         errp);
    if (r == 0) {
        r = linstor_check(self, "cannot ask for its version", &reply, NULL,
                          errp);
    }
    const char *version =
        json_string_value(json_object_get(reply.json, "rest_api_version"));
    if (r == 0 && linstor_rest_version(version) < REST_EXACT) {
        (void)err_set(errp, -ENOTSUP, self->volume.name,
                      "the controller's interface is of version %s",
                      version != NULL ? version : "unknown");
        err_hint(errp, "LINSTOR 1.27 can make volumes of an exact size; or make"
                       " it yourself and append existing=yes");
        r = -ENOTSUP;
    }
    return r;
}

/* The definition, if it is ours and whole; *ret false: there is none. */
static int look_spawned(const struct making *making, bool *ret,
                        struct err **errp)
{
    struct linstor_definition there;
    _cleanup_reply_ struct linstor_reply reply = {0};
    _cleanup_free_ char *path =
        str_printf("/v1/resource-definitions/%s/volume-definitions",
                   making->self->resource);
    int r = path == NULL
                ? -ENOMEM
                : linstor_look_definition(making->session, &there, errp);
    *ret = false;
    if (r < 0 || !there.there) {
        return r;
    }
    if (!str_eq(there.mark, making->temp)) {
        return volume_taken(&making->self->volume, errp);
    }
    r = linstor_call(making->session, "GET", path, NULL, &reply, errp);
    if (r == 0) {
        r = linstor_check(making->self, "cannot look at its volume", &reply,
                          NULL, errp);
    }
    const json_t *kib =
        json_object_get(json_array_get(reply.json, 0), "size_kib");
    *ret = r == 0 && json_array_size(reply.json) == 1 &&
           json_integer_value(kib) == (json_int_t)(making->size / KIB);
    return r;
}

/* After an error, or without an answer. 'err' says what went wrong. */
static int look_after(const struct making *making, bool lost, struct err *err,
                      struct err **errp)
{
    uint64_t end = soon(APPEARS_MS);
    int failed = err_code(err, lost ? -ETIMEDOUT : -EREMOTEIO);
    for (;;) {
        _cleanup_err_ struct err *looking = NULL;
        bool there = false;
        int r = look_spawned(making, &there, &looking);
        if (there) {
            return 0;
        }
        if (r == -EEXIST || !lost || linstor_now_ms() >= end) {
            if (errp != NULL) {
                *errp = err_copy(r == -EEXIST ? looking : err);
            }
            return r == -EEXIST ? r : failed;
        }
        linstor_pause();
    }
}

static int spawn(const struct making *making, struct err **errp)
{
    const struct linstor_volume *self = making->self;
    _cleanup_reply_ struct linstor_reply reply = {0};
    _cleanup_err_ struct err *err = NULL;
    json_auto_t *body = json_pack(
        "{s:s, s:[I], s:b, s:{s:s, s:s}}", "resource_definition_name",
        self->resource, "volume_sizes", (json_int_t)(making->size / KIB),
        "definitions_only", 1, "resource_definition_props",
        "DrbdOptions/ExactSize", "True", linstor_mark, making->temp);
    _cleanup_free_ char *path =
        str_printf("/v1/resource-groups/%s/spawn", self->group);
    if (body == NULL || path == NULL) {
        return -ENOMEM;
    }
    int r = linstor_call(making->session, "POST", path, body, &reply, &err);
    bool lost = r == LINSTOR_E_LOST;
    if (r == 0) {
        r = linstor_check(self, "cannot be made", &reply, NULL, &err);
    }
    return r == 0 ? 0 : look_after(making, lost, err, errp);
}

/*
 * 0 also if the answer is lost: it is waited for then. -EHOSTDOWN if the node
 * has not been told.
 */
static int make_available(struct linstor_session *session, const char *node,
                          bool diskful, bool *ret_lost, struct err **errp)
{
    const struct linstor_volume *self = session->self;
    _cleanup_reply_ struct linstor_reply reply = {0};
    json_auto_t *body = json_pack("{s:b}", "diskful", diskful);
    _cleanup_free_ char *path =
        str_printf("/v1/resource-definitions/%s/resources/%s/make-available",
                   self->resource, node);
    if (body == NULL || path == NULL) {
        return -ENOMEM;
    }
    _cleanup_err_ struct err *lost = NULL;
    int r = linstor_call(session, "POST", path, body, &reply, &lost);
    if (r == LINSTOR_E_LOST) {
        *ret_lost = true;
        return 0;
    }
    if (r < 0) {
        if (errp != NULL) {
            *errp = TAKE_PTR(lost);
        }
        return r;
    }
    r = linstor_check(self, "cannot be made available on this host", &reply,
                      NULL, errp);
    if (r == 0 && linstor_warns_of(&reply, node)) {
        r = err_set(errp, -EHOSTDOWN, self->volume.name,
                    "node '%s' is not connected with the controller", node);
    }
    return r;
}

static bool is_here(const struct linstor_replica *replica)
{
    return replica != NULL && !replica->tiebreaker && !replica->deleting;
}

/* How many replicas the group wants, and whether it names no other layers. */
static int look_group(const struct making *making, unsigned *ret_count,
                      bool *ret_plain, struct err **errp)
{
    _cleanup_reply_ struct linstor_reply reply = {0};
    _cleanup_free_ char *path =
        str_printf("/v1/resource-groups/%s", making->self->group);
    int r = path == NULL ? -ENOMEM
                         : linstor_call(making->session, "GET", path, NULL,
                                        &reply, errp);
    if (r == 0) {
        r = linstor_check(making->self, "cannot look at the group", &reply,
                          NULL, errp);
    }
    const json_t *filter = json_object_get(reply.json, "select_filter");
    json_int_t count =
        json_integer_value(json_object_get(filter, "place_count"));
    *ret_count = count > 0 && count < LINSTOR_NODES ? (unsigned)count : 1;
    *ret_plain =
        r == 0 && linstor_is_plain(json_object_get(filter, "layer_stack"));
    return r;
}

static int autoplace(struct making *making, struct err **errp)
{
    const struct linstor_volume *self = making->self;
    _cleanup_reply_ struct linstor_reply reply = {0};
    _cleanup_err_ struct err *err = NULL;
    json_auto_t *body = json_object();
    _cleanup_free_ char *path =
        str_printf("/v1/resource-definitions/%s/autoplace", self->resource);
    if (body == NULL || path == NULL) {
        return -ENOMEM;
    }
    int r = linstor_call(making->session, "POST", path, body, &reply, &err);
    if (r == LINSTOR_E_LOST) {
        bool plain = false;
        return look_group(making, &making->replicas, &plain, errp);
    }
    if (r == 0) {
        r = linstor_check(self, "cannot be placed", &reply, NULL, &err);
    }
    if (errp != NULL) {
        *errp = TAKE_PTR(err);
    }
    return r;
}

/*
 * A copy on this host first: it is read from there. A host without a pool, or
 * with a full one, gets none, and reaches the others' over the network.
 */
static int place(struct making *making, struct err **errp)
{
    _cleanup_view_ struct linstor_view view = {0};
    _cleanup_err_ struct err *err = NULL;
    bool lost = false;
    int r = make_available(making->session, making->node, true, &lost, &err);
    if (r == 0 && !lost) {
        return autoplace(making, errp);
    }
    if (r == 0) {
        r = linstor_look_view(making->session, &view, errp);
        return r == 0 ? autoplace(making, errp) : r;
    }
    if (r == -EREMOTEIO &&
        linstor_look_view(making->session, &view, NULL) == 0 &&
        linstor_view_at(&view, making->node) == NULL) {
        r = autoplace(making, errp);
        return r == 0 ? make_available(making->session, making->node, false,
                                       &lost, errp)
                      : r;
    }
    if (errp != NULL) {
        *errp = TAKE_PTR(err);
    }
    return r;
}

static unsigned count_disks(const struct linstor_view *view)
{
    unsigned n = 0;
    for (unsigned i = 0; i < view->n; i++) {
        n += !view->replicas[i].diskless && !view->replicas[i].deleting;
    }
    return n;
}

/* It can say that all is well, and the device be there a while later. */
static int wait_ready(const struct making *making, struct err **errp)
{
    uint64_t end = linstor_now_ms() + linstor_ready_ms();
    char lacks[128] = "it is not there yet";
    for (;;) {
        _cleanup_view_ struct linstor_view view = {0};
        int r = linstor_look_view(making->session, &view, errp);
        const struct linstor_replica *here =
            r == 0 ? linstor_view_at(&view, making->node) : NULL;
        if (r < 0) {
            return r;
        }
        if (is_here(here) && linstor_is_ready(making->self, here, lacks)) {
            if (count_disks(&view) >= making->replicas) {
                return 0;
            }
            (void)snprintf(lacks, sizeof(lacks), "it has %u of %u replicas",
                           count_disks(&view), making->replicas);
        }
        if (linstor_now_ms() >= end || (is_here(here) && !here->drbd)) {
            break;
        }
        linstor_pause();
    }
    return err_set(errp, -ETIMEDOUT, making->self->volume.name,
                   "was made, but cannot be used: %s", lacks);
}

static int tell_made(const struct making *making, struct volume_info *ret,
                     struct err **errp)
{
    struct linstor_volume *self =
        (struct linstor_volume *)(uintptr_t)making->self;
    struct linstor_definition definition;
    _cleanup_view_ struct linstor_view view = {0};
    int r = linstor_look_definition(making->session, &definition, errp);
    if (r == 0) {
        r = linstor_look_view(making->session, &view, errp);
    }
    if (r == 0) {
        r = linstor_tell(self, &definition, &view, making->node, ret, errp);
    }
    if (r == 0 && ret->size != making->size) {
        r = err_set(errp, -EPROTO, self->volume.name,
                    "was made with %" PRIu64 " bytes, not %" PRIu64, ret->size,
                    making->size);
    }
    unsigned count = 0;
    bool plain = false;
    ret->zero = r == 0 && definition.plain && linstor_view_is_thin(&view) &&
                look_group(making, &count, &plain, NULL) == 0 && plain;
    return r;
}

/* --- its name, which it has --- */

int linstor_publish(struct volume *volume, const char *temp,
                    const char *identity, struct err **errp)
{
    _cleanup_session_ struct linstor_session session = {0};
    struct linstor_definition there;
    int r = linstor_session_open(&session, linstor_of(volume), REMOVE_MS, errp);
    if (r == 0) {
        r = linstor_look_definition(&session, &there, errp);
    }
    if (r < 0) {
        return r;
    }
    if (!there.there) {
        return err_set(errp, -ESTALE, volume->name, "is not there any more");
    }
    return str_eq(there.identity, identity) && str_eq(there.mark, temp)
               ? 0
               : volume_taken(volume, errp);
}

/* --- remove --- */

int linstor_remove(struct volume *volume, const char *temp,
                   const char *identity, struct err **errp)
{
    _cleanup_session_ struct linstor_session session = {0};
    int r = linstor_session_open(&session, linstor_of(volume), REMOVE_MS, errp);
    if (r == 0) {
        r = take_away(&session, temp, identity, false, errp);
    }
    hint_delete(linstor_of(volume), r, errp);
    return r;
}

/* 1: it is to be removed. */
static int check_ours(const struct linstor_volume *self,
                      const struct linstor_definition *there, const char *temp,
                      const char *identity, struct err **errp)
{
    bool marked = temp != NULL ? str_eq(there->mark, temp)
                               : str_starts(there->mark, "qpv-");
    if (!there->there || (identity == NULL && !marked)) {
        return 0;
    }
    if (identity != NULL && !str_eq(there->identity, identity)) {
        return err_set(errp, -ESTALE, self->volume.name,
                       "is another resource now: it is left alone");
    }
    return marked ? 1
                  : err_set(errp, -ESTALE, self->volume.name,
                            "is not marked as ours: it is left alone");
}

/*
 * Somebody may have put a volume of his own beside ours, and it would go with
 * it. 1: nobody has; 0: the definition is gone.
 */
static int check_single(struct linstor_session *session, struct err **errp)
{
    const struct linstor_volume *self = session->self;
    _cleanup_reply_ struct linstor_reply reply = {0};
    _cleanup_err_ struct err *err = NULL;
    _cleanup_free_ char *path = str_printf(
        "/v1/resource-definitions/%s/volume-definitions", self->resource);
    unsigned code = 0;
    int r = path == NULL
                ? -ENOMEM
                : linstor_call(session, "GET", path, NULL, &reply, &err);
    if (r == 0) {
        r = linstor_check(self, "cannot look at its volume", &reply, &code,
                          &err);
    }
    if (r < 0) {
        bool gone = code == LINSTOR_NO_DEFINITION;
        if (!gone && errp != NULL) {
            *errp = TAKE_PTR(err);
        }
        return gone ? 0 : r;
    }
    const json_t *number =
        json_object_get(json_array_get(reply.json, 0), "volume_number");
    if (json_array_size(reply.json) == 1 && json_is_integer(number) &&
        json_integer_value(number) == 0) {
        return 1;
    }
    (void)err_set(errp, -ENOTEMPTY, self->volume.name,
                  "holds not just the one volume that was made: it is left"
                  " alone");
    err_hint(errp, "see 'linstor volume-definition list -r %s'",
             self->resource);
    return -ENOTEMPTY;
}

/*
 * A server before 1.33.2 marks what is in use as to be deleted, and then
 * deletes it once it is closed: so it is asked before. Only who has just made
 * it, and has told nobody ('unseen'), needs no word of each satellite: later
 * somebody may have found it and opened it.
 */
static int take_away(struct linstor_session *session, const char *temp,
                     const char *identity, bool unseen, struct err **errp)
{
    const struct linstor_volume *self = session->self;
    struct linstor_definition there;
    _cleanup_reply_ struct linstor_reply reply = {0};
    _cleanup_err_ struct err *err = NULL;
    _cleanup_free_ char *path =
        str_printf("/v1/resource-definitions/%s", self->resource);
    int r =
        path == NULL ? -ENOMEM : linstor_look_definition(session, &there, errp);
    if (r == 0) {
        r = check_ours(self, &there, temp, identity, errp);
    }
    if (r > 0) {
        r = check_single(session, errp);
    }
    if (r > 0) {
        r = wait_closed(session, !unseen, NULL, errp);
        r = r == 0 ? 1 : r;
    }
    if (r <= 0) {
        return r;
    }
    unsigned code = 0;
    r = linstor_call(session, "DELETE", path, NULL, &reply, &err);
    if (r == 0) {
        r = linstor_check(self, "cannot be removed", &reply, &code, &err);
    }
    if (r < 0 && (linstor_look_definition(session, &there, NULL) < 0 ||
                  (there.there && !there.deleting) || code == LINSTOR_IN_USE)) {
        if (errp != NULL) {
            *errp = TAKE_PTR(err);
        }
        return code == LINSTOR_IN_USE ? -EBUSY : r;
    }
    return wait_gone(session, errp);
}

/* 'node' NULL: on all of them. 'known': silence of one is no leave. */
static int wait_closed(struct linstor_session *session, bool known,
                       const char *node, struct err **errp)
{
    const struct linstor_volume *self = session->self;
    uint64_t end = soon(CLOSES_MS);
    for (;;) {
        _cleanup_view_ struct linstor_view view = {0};
        int r = linstor_look_view(session, &view, errp);
        const struct linstor_replica *user = linstor_view_user(&view);
        const struct linstor_replica *silent = linstor_view_silent(&view);
        if (node != NULL && r == 0) {
            const struct linstor_replica *at = linstor_view_at(&view, node);
            user = at != NULL && at->in_use ? at : NULL;
            silent = at != NULL && !at->answers ? at : NULL;
        }
        if (r < 0 || (user == NULL && (silent == NULL || !known))) {
            return r;
        }
        if (linstor_now_ms() >= end && user != NULL) {
            return err_set(errp, -EBUSY, self->volume.name,
                           "is in use on node '%s'", user->node);
        }
        if (linstor_now_ms() >= end) {
            return err_set(errp, -EBUSY, self->volume.name,
                           "node '%s' does not answer: it may be in use there",
                           silent->node);
        }
        linstor_pause();
    }
}

static int wait_gone(struct linstor_session *session, struct err **errp)
{
    uint64_t end = linstor_now_ms() + linstor_places()->gone_ms;
    for (;;) {
        struct linstor_definition there;
        int r = linstor_look_definition(session, &there, errp);
        if (r < 0 || !there.there) {
            return r;
        }
        if (linstor_now_ms() >= end) {
            return err_set(errp, -ETIMEDOUT, session->self->volume.name,
                           "%s: a satellite may be away",
                           there.deleting ? "is being deleted still"
                                          : "was told to go, and is there");
        }
        linstor_pause();
    }
}

/* --- on this host --- */

static int check_planned(const struct linstor_volume *self,
                         const struct volume_planned *planned,
                         const struct linstor_definition *there,
                         const struct linstor_view *view, const char *node,
                         struct err **errp)
{
    const char *object = self->volume.name;
    const struct linstor_replica *user = linstor_view_user(view);
    const struct linstor_replica *silent = linstor_view_silent(view);
    if (!there->there || there->deleting ||
        (planned->identity != NULL && *planned->identity != '\0' &&
         !str_eq(planned->identity, there->identity))) {
        return err_set(errp, -ESTALE, object, "is not what was planned with");
    }
    if (is_here(linstor_view_at(view, node)) && !planned->again) {
        return err_set(errp, -ESTALE, object,
                       "somebody has made it available here since the plan");
    }
    if (user != NULL) {
        return err_set(errp, -EBUSY, object, "is in use on node '%s'",
                       user->node);
    }
    if (silent != NULL && !planned->alone) {
        return err_set(errp, -ENOTCONN, object,
                       "node '%s' does not answer: it may be in use there",
                       silent->node);
    }
    return 0;
}

int linstor_attach(struct volume *volume, const struct volume_planned *planned,
                   struct volume_info *ret, struct err **errp)
{
    struct linstor_volume *self = own(volume);
    _cleanup_session_ struct linstor_session session = {0};
    struct making making = {.session = &session, .self = self};
    struct linstor_definition there;
    _cleanup_view_ struct linstor_view view = {0};
    bool lost = false;
    volume_info_init(ret);
    ret->untouched = !planned->again;
    int r = linstor_begin(&session, self, CREATE_MS, making.node, &there, errp);
    if (r == 0) {
        r = linstor_look_view(&session, &view, errp);
    }
    if (r == 0) {
        r = check_planned(self, planned, &there, &view, making.node, errp);
    }
    if (r == 0 && !is_here(linstor_view_at(&view, making.node))) {
        ret->untouched = false;
        r = make_available(&session, making.node, false, &lost, errp);
    }
    if (r == 0) {
        r = wait_ready(&making, errp);
    }
    if (r == 0) {
        r = linstor_look_view(&session, &view, errp);
    }
    return r < 0 ? r
                 : linstor_tell(self, &there, &view, making.node, ret, errp);
}

static int wait_away(struct linstor_session *session, const char *node,
                     struct err **errp)
{
    uint64_t end = linstor_now_ms() + linstor_places()->gone_ms;
    for (;;) {
        _cleanup_view_ struct linstor_view view = {0};
        int r = linstor_look_view(session, &view, errp);
        const struct linstor_replica *here =
            r == 0 ? linstor_view_at(&view, node) : NULL;
        if (r < 0 || here == NULL || here->tiebreaker) {
            return r;
        }
        if (linstor_now_ms() >= end) {
            return err_set(errp, -ETIMEDOUT, session->self->volume.name,
                           "is on node '%s' still", node);
        }
        linstor_pause();
    }
}

static int send_away(struct linstor_session *session, const char *node,
                     struct err **errp)
{
    const struct linstor_volume *self = session->self;
    _cleanup_reply_ struct linstor_reply reply = {0};
    _cleanup_err_ struct err *err = NULL;
    /* One that was a tiebreaker before becomes that again. */
    _cleanup_free_ char *path = str_printf(
        "/v1/resource-definitions/%s/resources/%s?keep_tiebreaker=true",
        self->resource, node);
    int r = path == NULL
                ? -ENOMEM
                : linstor_call(session, "DELETE", path, NULL, &reply, &err);
    if (r == 0) {
        r = linstor_check(self, "cannot be taken off this host", &reply, NULL,
                          &err);
    }
    if (r >= 0) {
        return wait_away(session, node, errp);
    }
    if (errp != NULL) {
        *errp = TAKE_PTR(err);
    }
    err_hint(errp, "when nobody has it open: 'linstor resource delete %s %s'",
             node, self->resource);
    return r;
}

/* What has a disk here by now is another's doing. */
int linstor_detach(struct volume *volume, const struct volume_planned *planned,
                   struct err **errp)
{
    const struct linstor_volume *self = linstor_of(volume);
    _cleanup_session_ struct linstor_session session = {0};
    struct linstor_definition there;
    _cleanup_view_ struct linstor_view view = {0};
    char node[64] = "";
    if (!str_eq(planned->state, linstor_state_away)) {
        return 0;
    }
    int r = linstor_begin(&session, self, REMOVE_MS, node, &there, errp);
    if (r < 0 || !there.there || there.deleting ||
        (planned->identity != NULL && *planned->identity != '\0' &&
         !str_eq(planned->identity, there.identity))) {
        return r;
    }
    r = linstor_look_view(&session, &view, errp);
    const struct linstor_replica *here =
        r == 0 ? linstor_view_at(&view, node) : NULL;
    if (!is_here(here) || !here->diskless) {
        return r;
    }
    r = wait_closed(&session, true, node, errp);
    return r == 0 ? send_away(&session, node, errp) : r;
}
