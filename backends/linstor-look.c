/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * How a resource stands, by the controller and by this host's devices. It
 * changes nothing, and never opens a device that nobody has promoted.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/utsname.h>

#include "base/err.h"
#include "base/str.h"
#include "device.h"
#include "linstor-private.h"
#include "linstor.h"
#include "volume.h"

enum {
    READY_MS = 60000,
    GONE_MS = 60000,
    CALL_MS = 180000, /* satellites do it one after the other */
    LOOKING_MS = 60000,
    AGAIN_MS = 250,
};

static const struct linstor_places system_places = {
    "/dev", "/sys", S_IFBLK, READY_MS, GONE_MS, CALL_MS, AGAIN_MS};
static const struct linstor_places *places = &system_places;

const char linstor_mark[] = "Aux/qpivot/volume";
const char linstor_state_away[] = "away";

static int look_absent(struct linstor_session *session, struct volume_info *ret,
                       struct err **errp);
static void look_last(const struct linstor_volume *self,
                      struct volume_info *ret);

void linstor_set_places_for_tests(const struct linstor_places *other)
{
    places = other != NULL ? other : &system_places;
}

const struct linstor_places *linstor_places(void)
{
    return places;
}

unsigned linstor_ready_ms(void)
{
    return places->ready_ms;
}

/* --- asking --- */

/* GET; 404 is 0 with *ret_absent only if it is what 'absent' says. */
static int get(struct linstor_session *session, const char *path,
               const char *what, unsigned absent, bool *ret_absent,
               struct linstor_reply *ret, struct err **errp)
{
    unsigned code = 0;
    int r = linstor_call(session, "GET", path, NULL, ret, errp);
    if (r == 0) {
        r = linstor_check(session->self, what, ret, &code, errp);
    }
    if (ret_absent != NULL) {
        *ret_absent = r < 0 && ret->status == 404 && code == absent;
        if (*ret_absent) {
            r = 0;
            if (errp != NULL) {
                *errp = err_free(*errp);
            }
        }
    }
    return r;
}

static int no_node(const struct linstor_session *session, const char *name,
                   struct err **errp)
{
    (void)err_set(errp, -ENOENT, session->self->volume.name,
                  "the controller knows no node '%s'", name);
    err_hint(errp, "node=NAME tells how LINSTOR calls this host: see 'linstor"
                   " node list'");
    return -ENOENT;
}

int linstor_find_node(struct linstor_session *session, char ret[64],
                      struct err **errp)
{
    const struct linstor_volume *self = session->self;
    _cleanup_reply_ struct linstor_reply reply = {0};
    struct utsname host = {0};
    (void)uname(&host);
    const char *wanted = self->node != NULL ? self->node : host.nodename;
    int r = get(session, "/v1/nodes", "cannot list the nodes", 0, NULL, &reply,
                errp);
    if (r < 0) {
        return r;
    }
    size_t i = 0, brief = strcspn(wanted, ".");
    const json_t *entry = NULL, *found = NULL;
    json_array_foreach(reply.json, i, entry) {
        const char *name = json_string_value(json_object_get(entry, "name"));
        bool same = name != NULL && strcasecmp(name, wanted) == 0;
        bool short_name = name != NULL && self->node == NULL &&
                          strlen(name) == brief &&
                          strncasecmp(name, wanted, brief) == 0;
        found = same || (short_name && found == NULL) ? entry : found;
    }
    if (found == NULL) {
        return no_node(session, wanted, errp);
    }
    const char *name = json_string_value(json_object_get(found, "name"));
    const char *state =
        json_string_value(json_object_get(found, "connection_status"));
    (void)snprintf(ret, 64, "%s", name);
    return str_eq(state, "ONLINE")
               ? 0
               : err_set(errp, -EHOSTDOWN, self->volume.name,
                         "node '%s' is %s for the controller", name,
                         state != NULL ? state : "unknown");
}

int linstor_look_definition(struct linstor_session *session,
                            struct linstor_definition *ret, struct err **errp)
{
    const struct linstor_volume *self = session->self;
    _cleanup_reply_ struct linstor_reply reply = {0};
    _cleanup_free_ char *path =
        str_printf("/v1/resource-definitions/%s", self->resource);
    bool absent = false;
    memset(ret, 0, sizeof(*ret));
    int r = path == NULL ? -ENOMEM
                         : get(session, path, "cannot look for the resource",
                               LINSTOR_NO_DEFINITION, &absent, &reply, errp);
    if (r < 0 || absent) {
        return r;
    }
    const char *uuid = json_string_value(json_object_get(reply.json, "uuid"));
    const char *group =
        json_string_value(json_object_get(reply.json, "resource_group_name"));
    const char *mark = json_string_value(
        json_object_get(json_object_get(reply.json, "props"), linstor_mark));
    size_t i = 0;
    const json_t *flag = NULL;
    if (uuid == NULL || group == NULL || strlen(uuid) > 50) {
        return err_set(errp, -EPROTO, self->volume.name,
                       "what the controller tells of it cannot be understood");
    }
    ret->there = true;
    ret->plain = linstor_is_plain(json_object_get(reply.json, "layer_data"));
    (void)snprintf(ret->identity, sizeof(ret->identity), "linstor:%s", uuid);
    (void)snprintf(ret->group, sizeof(ret->group), "%s", group);
    (void)snprintf(ret->mark, sizeof(ret->mark), "%s",
                   mark != NULL ? mark : "");
    json_array_foreach(json_object_get(reply.json, "flags"), i, flag) {
        ret->deleting =
            ret->deleting || str_eq(json_string_value(flag), "DELETE");
    }
    return 0;
}

int linstor_look_view(struct linstor_session *session, struct linstor_view *ret,
                      struct err **errp)
{
    const struct linstor_volume *self = session->self;
    _cleanup_reply_ struct linstor_reply reply = {0};
    _cleanup_free_ char *path =
        str_printf("/v1/view/resources?resources=%s", self->resource);
    int r = path == NULL ? -ENOMEM
                         : get(session, path, "cannot look at the resource", 0,
                               NULL, &reply, errp);
    return r < 0 ? r : linstor_view_read(reply.json, self->resource, ret, errp);
}

/* --- this host's devices --- */

static bool device_of(const char *path, dev_t *ret)
{
    struct stat st;
    bool found = path != NULL && *path != '\0' && stat(path, &st) == 0 &&
                 (st.st_mode & S_IFMT) == places->kind;
    if (found) {
        *ret = st.st_rdev;
    }
    return found;
}

static uint64_t sysfs_number(dev_t device, const char *what)
{
    _cleanup_free_ char *path = str_printf("%s/dev/block/%u:%u/%s", places->sys,
                                           major(device), minor(device), what);
    return device_number_in(path);
}

char *linstor_link_of(const struct linstor_volume *self)
{
    return str_printf("%s/drbd/by-res/%s/0", places->dev, self->resource);
}

/*
 * The controller's device is another one's on another host: only udev's link,
 * which has the name, tells that this is the host that 'node' means.
 */
bool linstor_is_ready(const struct linstor_volume *self,
                      const struct linstor_replica *replica, char ret[128])
{
    _cleanup_free_ char *link = linstor_link_of(self);
    dev_t wanted = 0, found = 0;
    *ret = '\0';
    if (!replica->drbd) {
        (void)snprintf(ret, 128, "it is not replicated by DRBD");
    } else if (!str_eq(replica->disk, "UpToDate") &&
               !str_eq(replica->disk, "Diskless")) {
        (void)snprintf(ret, 128, "its disk on '%.48s' is %.31s", replica->node,
                       *replica->disk != '\0' ? replica->disk : "unknown");
    } else if (!device_of(replica->device, &wanted)) {
        (void)snprintf(ret, 128, "there is no device '%.64s' on this host",
                       replica->device);
    } else if (!device_of(link, &found) || found != wanted) {
        (void)snprintf(ret, 128, "/dev/drbd/by-res/%.48s/0 does not lead to it",
                       self->resource);
    } else if (sysfs_number(wanted, "size") == 0) {
        (void)snprintf(ret, 128, "it has no size");
    }
    return *ret == '\0';
}

/* --- what it comes to --- */

static void tell_users(const struct linstor_view *view, struct volume_info *ret)
{
    const struct linstor_replica *user = linstor_view_user(view);
    const struct linstor_replica *silent = linstor_view_silent(view);
    if (user != NULL) {
        ret->in_use = true;
        (void)snprintf(ret->in_use_by, sizeof(ret->in_use_by),
                       "node '%.60s', where it is Primary", user->node);
    }
    if (silent != NULL) {
        (void)snprintf(ret->alone, sizeof(ret->alone),
                       "node '%.48s' does not answer", silent->node);
    }
}

static void tell_away(const struct linstor_view *view, struct volume_info *ret)
{
    for (unsigned i = 0; i < view->n; i++) {
        if (view->replicas[i].size > ret->size) {
            ret->size = view->replicas[i].size;
        }
    }
    ret->data = ret->size;
    (void)snprintf(ret->state, sizeof(ret->state), "%s", linstor_state_away);
}

static int tell_device(struct linstor_volume *self,
                       const struct linstor_replica *here,
                       struct volume_info *ret, struct err **errp)
{
    char lacks[128];
    dev_t device = 0;
    if (!linstor_is_ready(self, here, lacks)) {
        return err_set(errp, -ENODATA, self->volume.name, "cannot be used: %s",
                       lacks);
    }
    char *path = linstor_link_of(self);
    if (path == NULL) {
        return -ENOMEM;
    }
    free(self->path);
    self->path = path;
    (void)device_of(path, &device);
    ret->size = sysfs_number(device, "size") * 512;
    ret->data = ret->size; /* QEMU knows no holes of a device */
    ret->block_size =
        (uint32_t)sysfs_number(device, "queue/logical_block_size");
    ret->direct = DIRECT_WORKS;
    ret->direct_size = ret->block_size;
    ret->read_only = faccessat(AT_FDCWD, path, W_OK, AT_EACCESS) < 0;
    return 0;
}

int linstor_tell(struct linstor_volume *self,
                 const struct linstor_definition *definition,
                 const struct linstor_view *view, const char *node,
                 struct volume_info *ret, struct err **errp)
{
    const struct linstor_replica *here = linstor_view_at(view, node);
    int r = 0;
    ret->exists = true;
    (void)snprintf(ret->identity, sizeof(ret->identity), "%s",
                   definition->identity);
    tell_users(view, ret);
    linstor_view_degraded(view, node, ret->degraded, &ret->heals);
    for (unsigned i = 0; i < view->n; i++) {
        const struct linstor_replica *at = &view->replicas[i];
        /* Thin LVM writes zeroes out. */
        ret->fills =
            ret->fills || (!at->diskless && str_eq(at->pool, "LVM_THIN"));
        if (!at->diskless && at->allocated != UINT64_MAX) {
            ret->allocated = at->allocated;
        }
    }
    if (here == NULL || here->tiebreaker || here->deleting) {
        tell_away(view, ret);
    } else {
        r = tell_device(self, here, ret, errp);
    }
    return r;
}

static int check_group(const struct linstor_volume *self,
                       const struct linstor_definition *definition,
                       struct err **errp)
{
    if (definition->deleting) {
        return err_set(errp, -EBUSY, self->volume.name,
                       "LINSTOR is about to delete it");
    }
    return strcasecmp(definition->group, self->group) == 0
               ? 0
               : err_set(errp, -EINVAL, self->volume.name,
                         "is of resource group '%s'", definition->group);
}

int linstor_begin(struct linstor_session *session,
                  const struct linstor_volume *self, unsigned limit_ms,
                  char node[64], struct linstor_definition *ret,
                  struct err **errp)
{
    int r = linstor_session_open(session, self, limit_ms, errp);
    if (r == 0) {
        r = linstor_find_node(session, node, errp);
    }
    return r < 0 ? r : linstor_look_definition(session, ret, errp);
}

int linstor_probe(struct volume *volume, struct volume_info *ret,
                  struct err **errp)
{
    struct linstor_volume *self =
        (struct linstor_volume *)(uintptr_t)linstor_of(volume);
    _cleanup_session_ struct linstor_session session = {0};
    struct linstor_definition definition;
    _cleanup_view_ struct linstor_view view = {0};
    char node[64] = "";
    volume_info_init(ret);
    int r = linstor_begin(&session, self, LOOKING_MS, node, &definition, errp);
    if (r < 0) {
        return r;
    }
    if (!definition.there) {
        return look_absent(&session, ret, errp);
    }
    r = check_group(self, &definition, errp);
    if (r == 0) {
        r = linstor_look_view(&session, &view, errp);
    }
    return r < 0 ? r : linstor_tell(self, &definition, &view, node, ret, errp);
}

/*
 * Two QEMUs on one disk: whatever else it is, it is no target any more. Where
 * this host has not got it open, another one's may be the QEMU that it is for.
 */
static int check_alone(const struct linstor_volume *self,
                       const struct linstor_view *view, const char *node,
                       struct volume_info *ret, struct err **errp)
{
    const struct linstor_replica *here = linstor_view_at(view, node);
    const struct linstor_replica *rival = linstor_view_rival(view, node);
    ret->rival = here != NULL && here->in_use && rival != NULL;
    return !ret->rival ? 0
                       : err_set(errp, -EBUSY, self->volume.name,
                                 "is in use on node '%s', too", rival->node);
}

/* What is open is read from, too: by who has it open, it is promoted. */
int linstor_answer(struct volume *volume, struct volume_info *ret,
                   struct err **errp)
{
    const struct linstor_volume *self = linstor_of(volume);
    _cleanup_session_ struct linstor_session session = {0};
    struct linstor_definition definition;
    _cleanup_view_ struct linstor_view view = {0};
    char node[64] = "";
    volume_info_init(ret);
    int r = linstor_begin(&session, self, LOOKING_MS, node, &definition, errp);
    if (r < 0 || !definition.there) {
        return r;
    }
    r = linstor_look_view(&session, &view, errp);
    if (r == 0) {
        r = check_alone(self, &view, node, ret, errp);
    }
    const struct linstor_replica *here =
        r == 0 ? linstor_view_at(&view, node) : NULL;
    if (r == 0) {
        ret->exists = true;
        (void)snprintf(ret->identity, sizeof(ret->identity), "%s",
                       definition.identity);
        linstor_view_degraded(&view, node, ret->degraded, &ret->heals);
    }
    dev_t device = 0;
    if (here != NULL && device_of(here->device, &device)) {
        ret->size = sysfs_number(device, "size") * 512;
        if (here->in_use) {
            look_last(self, ret);
        }
    }
    return r;
}

static void look_last(const struct linstor_volume *self,
                      struct volume_info *ret)
{
    _cleanup_free_ char *path = linstor_link_of(self);
    _cleanup_close_ int fd =
        path != NULL ? open(path, O_RDONLY | O_DIRECT | O_CLOEXEC) : -1;
    ret->torn = fd >= 0 && device_is_torn(fd, ret->size) > 0;
}

/* --- where it would be --- */

/* Of all pools that the group may take: which ones, is decided only then. */
static int look_pools(struct linstor_session *session, const json_t *filter,
                      bool *ret_thin, struct err **errp)
{
    _cleanup_reply_ struct linstor_reply reply = {0};
    const json_t *names = json_object_get(filter, "storage_pool_list");
    const char *only =
        json_string_value(json_object_get(filter, "storage_pool"));
    bool any = false, thin = true;
    int r = get(session, "/v1/view/storage-pools", "cannot list storage pools",
                0, NULL, &reply, errp);
    size_t i = 0, k = 0;
    const json_t *pool = NULL, *name = NULL;
    json_array_foreach(reply.json, i, pool) {
        const char *called =
            json_string_value(json_object_get(pool, "storage_pool_name"));
        const char *kind =
            json_string_value(json_object_get(pool, "provider_kind"));
        bool wanted = json_array_size(names) == 0 && only == NULL;
        if (only != NULL && called != NULL) {
            wanted = strcasecmp(called, only) == 0;
        }
        json_array_foreach(names, k, name) {
            const char *listed = json_string_value(name);
            wanted = wanted || (called != NULL && listed != NULL &&
                                strcasecmp(called, listed) == 0);
        }
        if (wanted && !str_eq(kind, "DISKLESS")) {
            any = true;
            thin = thin && linstor_is_thin(kind);
        }
    }
    *ret_thin = any && thin;
    return r;
}

/* Servers from 1.21 on can tell; where one does not, it is unknown. */
static void look_space(struct linstor_session *session, struct volume_info *ret)
{
    const struct linstor_volume *self = session->self;
    _cleanup_reply_ struct linstor_reply reply = {0};
    json_auto_t *body = json_pack("{s:{}}", "select_filter");
    _cleanup_free_ char *path =
        str_printf("/v1/resource-groups/%s/query-size-info", self->group);
    if (path == NULL || body == NULL ||
        linstor_call(session, "POST", path, body, &reply, NULL) != 0 ||
        reply.status != 200) {
        return;
    }
    const json_t *info = json_object_get(reply.json, "space_info");
    const json_t *most = json_object_get(info, "max_vlm_size_in_kib");
    json_int_t kib = json_integer_value(most);
    if (json_is_integer(most) && kib >= 0 && kib < INT64_MAX / 1024) {
        ret->available = (uint64_t)kib * 1024;
        (void)snprintf(ret->space, sizeof(ret->space), "linstor:%.40s/%.40s",
                       self->controllers, self->group);
    }
}

static int look_absent(struct linstor_session *session, struct volume_info *ret,
                       struct err **errp)
{
    const struct linstor_volume *self = session->self;
    _cleanup_reply_ struct linstor_reply reply = {0};
    _cleanup_free_ char *path =
        str_printf("/v1/resource-groups/%s", self->group);
    bool absent = false, thin = false;
    int r = path == NULL ? -ENOMEM
                         : get(session, path, "cannot look at the group",
                               LINSTOR_NO_GROUP, &absent, &reply, errp);
    const json_t *filter = json_object_get(reply.json, "select_filter");
    if (r == 0 && absent) {
        r = err_set(errp, -ENOENT, self->volume.name,
                    "there is no resource group '%s'", self->group);
    }
    if (r == 0) {
        r = look_pools(session, filter, &thin, errp);
    }
    if (r == 0) {
        ret->stale =
            !thin || !linstor_is_plain(json_object_get(filter, "layer_stack"));
        look_space(session, ret);
    }
    return r;
}
