/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a LINSTOR controller's answers mean. Pure.
 *
 * A change is answered by an array of {"ret_code", "message", ...}, where
 * ret_code is a bit field in a signed number: 63-62 the kind (both: an error;
 * the upper one alone: a warning, which is negative too), the low 15 what it
 * is. The HTTP status follows the first error, and 2xx can carry warnings that
 * matter. So nothing here looks at a number's sign.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "base/err.h"
#include "base/str.h"
#include "linstor-private.h"

enum { CODE_BITS = 0x7fff };

#define KIND_MASK UINT64_C(0xC000000000000000)
#define KIND_WARNING UINT64_C(0x8000000000000000)

bool linstor_is_error(json_int_t ret_code)
{
    return ((uint64_t)ret_code & KIND_MASK) == KIND_MASK;
}

static bool is_warning(json_int_t ret_code)
{
    return ((uint64_t)ret_code & KIND_MASK) == KIND_WARNING;
}

unsigned linstor_code_of(json_int_t ret_code)
{
    return (unsigned)((uint64_t)ret_code & CODE_BITS);
}

static json_int_t ret_code_of(const json_t *entry)
{
    return json_integer_value(json_object_get(entry, "ret_code"));
}

/* Also of a lone object, as the document has it. */
static const json_t *first_error(const json_t *json)
{
    size_t i = 0;
    const json_t *entry = NULL;
    if (json_is_object(json) && linstor_is_error(ret_code_of(json))) {
        return json;
    }
    json_array_foreach(json, i, entry) {
        if (linstor_is_error(ret_code_of(entry))) {
            return entry;
        }
    }
    return NULL;
}

/* The first line: the server writes paragraphs. */
static int first_line(const char *text)
{
    return text != NULL ? (int)strcspn(text, "\r\n") : 0;
}

int linstor_check(const struct linstor_volume *self, const char *what,
                  const struct linstor_reply *reply, unsigned *ret_code,
                  struct err **errp)
{
    const json_t *entry = first_error(reply->json);
    if (ret_code != NULL) {
        *ret_code = entry != NULL ? linstor_code_of(ret_code_of(entry)) : 0;
    }
    if (entry == NULL && reply->status >= 200 && reply->status < 300) {
        return 0;
    }
    if (entry == NULL) {
        return err_set(errp, -EREMOTEIO, self->volume.name, "%s: HTTP %ld",
                       what, reply->status);
    }
    const char *message = json_string_value(json_object_get(entry, "message"));
    const char *cause = json_string_value(json_object_get(entry, "cause"));
    const char *report = json_string_value(
        json_array_get(json_object_get(entry, "error_report_ids"), 0));
    (void)err_set(errp, -EREMOTEIO, self->volume.name, "%s: %.*s%s%.*s (%u)",
                  what, first_line(message), message != NULL ? message : "",
                  cause != NULL ? ": " : "", first_line(cause),
                  cause != NULL ? cause : "",
                  linstor_code_of(ret_code_of(entry)));
    if (report != NULL) {
        err_hint(errp, "linstor error-reports show %.64s", report);
    }
    return -EREMOTEIO;
}

bool linstor_warns_of(const struct linstor_reply *reply, const char *node)
{
    _cleanup_free_ char *quoted = str_printf("'%s'", node);
    size_t i = 0;
    const json_t *entry = NULL;
    json_array_foreach(reply->json, i, entry) {
        json_int_t ret_code = ret_code_of(entry);
        unsigned code = linstor_code_of(ret_code);
        const json_t *refs = json_object_get(entry, "obj_refs");
        const char *ref = json_string_value(json_object_get(refs, "Node"));
        const char *words =
            json_string_value(json_object_get(entry, "message"));
        bool names = (ref != NULL && strcasecmp(ref, node) == 0) ||
                     (words != NULL && quoted != NULL &&
                      strcasestr(words, quoted) != NULL);
        if (is_warning(ret_code) && names &&
            (code == LINSTOR_NOT_CONNECTED || code == LINSTOR_NOT_UPDATED)) {
            return true;
        }
    }
    return false;
}

unsigned linstor_rest_version(const char *text)
{
    unsigned major = 0, minor = 0;
    if (text == NULL || sscanf(text, "%3u.%3u", &major, &minor) != 2) {
        return 0;
    }
    return major * 1000 + minor;
}

/* --- the view of a resource --- */

static void copy_text(char *ret, size_t size, const json_t *json,
                      const char *key)
{
    const char *text = json_string_value(json_object_get(json, key));
    (void)snprintf(ret, size, "%s", text != NULL ? text : "");
}

static void read_flags(const json_t *flags, struct linstor_replica *ret)
{
    size_t i = 0;
    const json_t *flag = NULL;
    json_array_foreach(flags, i, flag) {
        const char *text = json_string_value(flag);
        ret->diskless = ret->diskless || str_eq(text, "DISKLESS") ||
                        str_eq(text, "DRBD_DISKLESS");
        ret->tiebreaker = ret->tiebreaker || str_eq(text, "TIE_BREAKER");
        ret->deleting = ret->deleting || str_eq(text, "DELETE") ||
                        str_eq(text, "DRBD_DELETE");
    }
}

static bool layer_is(const json_t *layer, const char *kind)
{
    const char *type = json_string_value(json_object_get(layer, "type"));
    return type != NULL && strcasecmp(type, kind) == 0;
}

static void read_connections(const json_t *drbd, struct linstor_replica *ret)
{
    const char *peer = NULL;
    json_t *connection = NULL;
    json_object_foreach(json_object_get(drbd, "connections"), peer,
                        connection) {
        const char *words =
            json_string_value(json_object_get(connection, "message"));
        if (json_is_true(json_object_get(connection, "connected"))) {
            continue;
        }
        bool connecting = str_eq(words, "Connecting");
        ret->connecting =
            connecting && (*ret->lacks == '\0' || ret->connecting);
        (void)snprintf(ret->lacks, sizeof(ret->lacks), "'%.40s' is %.32s", peer,
                       words != NULL ? words : "not connected");
    }
}

static uint64_t kib_of(const json_t *json, const char *key)
{
    const json_t *number = json_object_get(json, key);
    json_int_t kib = json_integer_value(number);
    return json_is_integer(number) && kib >= 0 && kib < INT64_MAX / 1024
               ? (uint64_t)kib * 1024
               : UINT64_MAX;
}

/* By the tree that there is: DRBD, and below it STORAGE alone. */
static bool is_plain_tree(const json_t *layer)
{
    const json_t *below = json_object_get(layer, "children");
    bool plain = layer_is(layer, "DRBD") && json_array_size(below) > 0;
    size_t i = 0;
    const json_t *child = NULL;
    json_array_foreach(below, i, child) {
        plain = plain && layer_is(child, "STORAGE") &&
                json_array_size(json_object_get(child, "children")) == 0;
    }
    return plain;
}

static void read_volume(const json_t *entry, struct linstor_replica *ret)
{
    const json_t *layer = json_object_get(entry, "layer_object");
    const json_t *drbd = json_object_get(layer, "drbd");
    const json_t *of_drbd =
        json_array_get(json_object_get(drbd, "drbd_volumes"), 0);
    const json_t *volume = json_array_get(json_object_get(entry, "volumes"), 0);
    const json_t *state = json_object_get(volume, "state");
    ret->drbd = drbd != NULL;
    ret->plain = is_plain_tree(layer);
    copy_text(ret->device, sizeof(ret->device), volume, "device_path");
    copy_text(ret->pool, sizeof(ret->pool), volume, "provider_kind");
    copy_text(ret->disk, sizeof(ret->disk), state, "disk_state");
    ret->allocated = kib_of(volume, "allocated_size_kib");
    uint64_t size = kib_of(of_drbd, "usable_size_kib");
    ret->size = size != UINT64_MAX ? size : 0;
    read_connections(drbd, ret);
}

void linstor_view_done(struct linstor_view *view)
{
    free(view->replicas);
    *view = (struct linstor_view){0};
}

int linstor_view_read(const json_t *json, const char *resource,
                      struct linstor_view *ret, struct err **errp)
{
    linstor_view_done(ret);
    if (!json_is_array(json) || json_array_size(json) > LINSTOR_NODES) {
        return err_set(errp, -EPROTO, resource,
                       "the controller's view of it cannot be understood");
    }
    size_t i = 0;
    const json_t *entry = NULL;
    ret->replicas = calloc(LINSTOR_NODES, sizeof(*ret->replicas));
    if (ret->replicas == NULL) {
        return -ENOMEM;
    }
    json_array_foreach(json, i, entry) {
        struct linstor_replica *replica = &ret->replicas[ret->n];
        const char *name = json_string_value(json_object_get(entry, "name"));
        const json_t *use =
            json_object_get(json_object_get(entry, "state"), "in_use");
        if (name == NULL || strcasecmp(name, resource) != 0) {
            continue;
        }
        copy_text(replica->node, sizeof(replica->node), entry, "node_name");
        read_flags(json_object_get(entry, "flags"), replica);
        read_volume(entry, replica);
        replica->answers = json_is_boolean(use);
        replica->in_use = json_is_true(use);
        ret->n++;
    }
    return 0;
}

const struct linstor_replica *linstor_view_at(const struct linstor_view *view,
                                              const char *node)
{
    for (unsigned i = 0; i < view->n; i++) {
        if (strcasecmp(view->replicas[i].node, node) == 0) {
            return &view->replicas[i];
        }
    }
    return NULL;
}

const struct linstor_replica *linstor_view_user(const struct linstor_view *view)
{
    for (unsigned i = 0; i < view->n; i++) {
        if (view->replicas[i].in_use) {
            return &view->replicas[i];
        }
    }
    return NULL;
}

const struct linstor_replica *linstor_view_rival(
    const struct linstor_view *view, const char *node)
{
    for (unsigned i = 0; i < view->n; i++) {
        const struct linstor_replica *at = &view->replicas[i];
        if (at->in_use && strcasecmp(at->node, node) != 0) {
            return at;
        }
    }
    return NULL;
}

const struct linstor_replica *linstor_view_silent(
    const struct linstor_view *view)
{
    for (unsigned i = 0; i < view->n; i++) {
        if (!view->replicas[i].answers) {
            return &view->replicas[i];
        }
    }
    return NULL;
}

bool linstor_is_thin(const char *kind)
{
    return str_eq(kind, "LVM_THIN") || str_eq(kind, "ZFS") ||
           str_eq(kind, "ZFS_THIN");
}

/* Its elements are names, or objects with a type. */
bool linstor_is_plain(const json_t *layers)
{
    size_t i = 0;
    const json_t *layer = NULL;
    json_array_foreach(layers, i, layer) {
        const json_t *type =
            json_is_object(layer) ? json_object_get(layer, "type") : layer;
        const char *name = json_string_value(type);
        if (name == NULL || (strcasecmp(name, "DRBD") != 0 &&
                             strcasecmp(name, "STORAGE") != 0)) {
            return false;
        }
    }
    return layers == NULL || json_is_null(layers) || json_is_array(layers);
}

bool linstor_view_is_thin(const struct linstor_view *view)
{
    bool any = false;
    for (unsigned i = 0; i < view->n; i++) {
        const struct linstor_replica *replica = &view->replicas[i];
        if (!replica->diskless &&
            (!replica->plain || !linstor_is_thin(replica->pool))) {
            return false;
        }
        any = any || !replica->diskless;
    }
    return any;
}

/* A disk that is being brought up to date, or is about to be. */
static bool is_healing(const char *disk)
{
    static const char *const states[] = {"Inconsistent", "Outdated",
                                         "Consistent",   "Attaching",
                                         "Negotiating",  "SyncTarget"};
    for (size_t i = 0; i < ARRAY_SIZE(states); i++) {
        if (str_starts(disk, states[i])) {
            return true;
        }
    }
    return false;
}

void linstor_view_degraded(const struct linstor_view *view, const char *node,
                           char ret[96], bool *ret_heals)
{
    *ret = '\0';
    *ret_heals = false;
    for (unsigned i = 0; i < view->n && *ret == '\0'; i++) {
        const struct linstor_replica *at = &view->replicas[i];
        if (at->deleting) {
            continue;
        }
        if (!at->answers) {
            (void)snprintf(ret, 96, "node '%.48s' does not answer", at->node);
        } else if (!at->diskless && !str_eq(at->disk, "UpToDate")) {
            (void)snprintf(ret, 96, "the disk on '%.48s' is %.24s", at->node,
                           *at->disk != '\0' ? at->disk : "unknown");
            *ret_heals = is_healing(at->disk);
        } else if (*at->lacks != '\0' && strcasecmp(at->node, node) == 0) {
            (void)snprintf(ret, 96, "peer %.80s", at->lacks);
            *ret_heals = at->connecting;
        }
    }
}
