/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A volume of a DRBD resource that drbd-utils have configured on this host:
 * kernels 8.4 and 9. To QEMU it is a block device like any other, but one that
 * only the host with the Primary role may open, so here is what it takes to
 * make it usable and to give that back: see 'attach' in backend.h. Which
 * resources there are, and where, is not decided here.
 *
 * Identity: "block:147:<minor>", as that of any block device, so that it is
 * known again whatever name led there; and it is looked up by the resource's
 * name each time. DRBD's own data generation changes with what is written and
 * with each connection that is lost, so it identifies no volume.
 *
 * Nothing is ever opened on a Secondary: 8.4 refuses that (EMEDIUMTYPE), 9 may
 * promote it. Sizes come from sysfs, or of a resource that is down, from its
 * metadata. A size is rounded by DRBD's own metadata: the mirror's shim and
 * block_resize care for that.
 *
 * /dev/drbd/by-res/RES/VOL (8.4: by-res/RES where the configuration names no
 * volume) is udev's: it comes late and may dangle. So it is used where it is
 * there and right when the volume is looked at, else /dev/drbd<minor>.
 */
#include "drbd.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>

#include "base/err.h"
#include "base/str.h"
#include "bulk.h"
#include "device.h"
#include "drbd-command.h"
#include "drbd-private.h"
#include "lock.h"
#include "registry.h"
#include "uri.h"
#include "volume.h"

enum {
    VOLUME_MAX = 65535,
    READY_MS = 30000,   /* the device node, its size, and its peers */
    ATTACH_MS = 300000, /* all the deadlines of one attach */
};

static const struct drbd_places system_places = {"/dev", "/sys", S_IFBLK,
                                                 READY_MS};
static const struct drbd_places *places = &system_places;

static int look_down(struct drbd_volume *self, struct volume_info *ret,
                     struct err **errp);
static int look_up(struct drbd_volume *self, const struct drbd_status *status,
                   bool manual, struct volume_info *ret, struct err **errp);
static void look_users(struct drbd_volume *self,
                       const struct drbd_status *status,
                       struct volume_info *ret);
static bool is_device(const char *path, dev_t *ret);
static char *path_of_link(const char *resource, unsigned number,
                          bool by_volume);
static char *path_of_minor(unsigned minor);
static char *find_link(const struct drbd_volume *self, unsigned minor);
static uint64_t sysfs_number(unsigned minor, const char *what);
static bool backing_fills(const struct drbd_volume *self);

void drbd_set_places_for_tests(const struct drbd_places *other)
{
    places = other != NULL ? other : &system_places;
}

struct drbd_volume *drbd_of(const struct volume *volume)
{
    return (struct drbd_volume *)(uintptr_t)volume; /* its first member */
}

struct drbd_name drbd_name_of(const struct drbd_volume *self)
{
    return (struct drbd_name){self->volume.name, self->resource, self->number};
}

static void drbd_free(struct volume *volume)
{
    struct drbd_volume *self = drbd_of(volume);
    volume_done(volume);
    free(self->resource);
    free(self->path);
    free(self);
}

/* --- its name --- */

/* It becomes a word of a command line: "-x" and "all" mean something there. */
static bool is_resource(const char *name)
{
    bool valid = *name != '\0' && *name != '-' && *name != '.' &&
                 !str_eq(name, "all") && strlen(name) < 128;
    for (const char *c = name; *c != '\0'; c++) {
        unsigned char byte = (unsigned char)*c;
        valid = valid && byte < 0x80 &&
                (isalnum(byte) || strchr("_-.", byte) != NULL);
    }
    return valid;
}

static int read_name(struct drbd_volume *self, const struct uri *uri,
                     struct err **errp)
{
    size_t length = strcspn(uri->rest, "/");
    const char *slash = uri->rest[length] == '/' ? uri->rest + length : NULL;
    uint64_t number = 0;
    int r = uri_decode(uri, uri->rest, length, &self->resource, errp);
    if (r == 0 &&
        (!is_resource(self->resource) ||
         (slash != NULL && str_to_u64(slash + 1, VOLUME_MAX, &number) < 0))) {
        (void)err_set(errp, -EINVAL, uri->object,
                      "is no DRBD resource or volume");
        err_hint(errp, "this is written drbd:RESOURCE or drbd:RESOURCE/NUMBER");
        r = -EINVAL;
    }
    self->number = (unsigned)number;
    return r;
}

static int drbd_parse(const char *text, struct volume **ret, struct err **errp)
{
    _cleanup_uri_ struct uri uri = {0};
    int r = uri_split(text, &uri, errp);
    if (r < 0) {
        return r;
    }
    struct drbd_volume *self = calloc(1, sizeof(*self));
    if (self == NULL) {
        return -ENOMEM;
    }
    r = read_name(self, &uri, errp);
    if (r == 0) {
        r = volume_init(&self->volume, &backend_drbd, &uri, errp);
    }
    if (r == 0) {
        /* The same for "r0" and "r0/0": names are compared. */
        free(self->volume.name);
        self->volume.name =
            str_printf("drbd:%s/%u", self->resource, self->number);
        r = self->volume.name != NULL ? 0 : -ENOMEM;
    }
    if (r < 0) {
        drbd_free(&self->volume);
        return r;
    }
    *ret = &self->volume;
    return 0;
}

/* Whose link leads to this device: a resource "r0" or a volume "r0/0". */
static int name_of_device(dev_t device, char ret[160])
{
    char base[96];
    (void)snprintf(base, sizeof(base), "%s/drbd/by-res", places->dev);
    DIR *resources = opendir(base);
    int r = -ENOENT;
    for (const struct dirent *it;
         r < 0 && resources != NULL && (it = readdir(resources)) != NULL;) {
        dev_t found = 0;
        _cleanup_free_ char *path = str_printf("%s/%s", base, it->d_name);
        DIR *volumes = NULL;
        if (path == NULL || it->d_name[0] == '.') {
            continue;
        }
        if (is_device(path, &found) && found == device) {
            (void)snprintf(ret, 160, "%.127s", it->d_name);
            r = 0;
            break;
        }
        volumes = opendir(path);
        for (const struct dirent *at;
             r < 0 && volumes != NULL && (at = readdir(volumes)) != NULL;) {
            _cleanup_free_ char *link = str_printf("%s/%s", path, at->d_name);
            if (link != NULL && is_device(link, &found) && found == device) {
                (void)snprintf(ret, 160, "%.127s/%.16s", it->d_name,
                               at->d_name);
                r = 0;
            }
        }
        if (volumes != NULL) {
            (void)closedir(volumes);
        }
    }
    if (resources != NULL) {
        (void)closedir(resources);
    }
    return r;
}

/* By the links that udev keeps, as the kernel's name tells no resource. */
static int drbd_from_node(const char *driver, const char *filename,
                          struct volume **ret)
{
    char name[160] = "";
    dev_t device = 0;
    json_auto_t *node =
        str_eq(driver, "host_device") ? node_json(driver, filename) : NULL;
    const char *path =
        node != NULL ? node_text(node, NULL, "filename") : filename;
    _cleanup_free_ char *own = str_printf("%s/drbd", places->dev);
    if (!str_eq(driver, "host_device") || own == NULL || path == NULL ||
        !str_starts(path, own) || !is_device(path, &device) ||
        name_of_device(device, name) < 0) {
        return -ENOENT;
    }
    _cleanup_free_ char *uri = str_printf("drbd:%s", name);
    return uri == NULL                       ? -ENOMEM
           : drbd_parse(uri, ret, NULL) == 0 ? 0
                                             : -ENOENT;
}

/* --- its node --- */

static char *device_path(const struct drbd_volume *self)
{
    struct stat st;
    if (self->path != NULL) {
        return strdup(self->path);
    }
    char *path = path_of_link(self->resource, self->number, true);
    if (path != NULL && self->number == 0 && lstat(path, &st) < 0) {
        char *other = path_of_link(self->resource, self->number, false);
        if (other != NULL && is_device(other, NULL)) {
            free(path);
            return other;
        }
        free(other);
    }
    return path;
}

/*
 * Without auto-read-only: with it QEMU opens it for reading only and asks for
 * more when the guest is about to write, which is too late to be refused.
 */
static json_t *drbd_node_options(const struct volume *volume,
                                 _unused_ const char *secret_id)
{
    json_auto_t *node = volume_node(volume, "host_device");
    _cleanup_free_ char *path = device_path(drbd_of(volume));
    if (node == NULL || path == NULL ||
        json_object_set_new(node, "filename", json_string(path)) < 0 ||
        json_object_set_new(node, "auto-read-only", json_false()) < 0) {
        return NULL;
    }
    return TAKE_PTR(node);
}

static char *drbd_legacy_name(const struct volume *volume)
{
    return device_path(drbd_of(volume));
}

/* --- looking --- */

int drbd_probe(struct volume *volume, struct volume_info *ret,
               struct err **errp)
{
    struct drbd_volume *self = drbd_of(volume);
    struct drbd_name name = drbd_name_of(self);
    struct drbd_status status;
    bool manual = true;
    volume_info_init(ret);
    int r = drbd_look(&name, &status, &manual, errp);
    if (r == DRBD_E_UNDEFINED) {
        return 0;
    }
    if (r == DRBD_E_DOWN) {
        return look_down(self, ret, errp);
    }
    return r < 0 ? r : look_up(self, &status, manual, ret, errp);
}

void drbd_tell_identity(unsigned minor, char *ret, size_t size)
{
    enum { DRBD_MAJOR = 147 }; /* registered for it; 8.4 and 9 */

    (void)snprintf(ret, size, "block:%d:%u", DRBD_MAJOR, minor);
}

static void tell_identity(unsigned minor, struct volume_info *ret)
{
    ret->exists = true;
    drbd_tell_identity(minor, ret->identity, sizeof(ret->identity));
}

static int keep_path(struct drbd_volume *self, char *path)
{
    free(self->path);
    self->path = path;
    return path != NULL ? 0 : -ENOMEM;
}

static int look_down(struct drbd_volume *self, struct volume_info *ret,
                     struct err **errp)
{
    struct drbd_name name = drbd_name_of(self);
    unsigned minor = 0;
    int r = drbd_configured_minor(&name, &minor, errp);
    if (r != 0) {
        return r < 0 ? r : 0;
    }
    ret->size = drbd_stored_size(&name);
    if (ret->size == 0) {
        (void)err_set(errp, -ENODATA, name.object,
                      "the resource is down, and its metadata tell no size");
        err_hint(errp, "'drbdadm up %s' first", name.resource);
        return -ENODATA;
    }
    ret->data = ret->size;
    (void)snprintf(ret->state, sizeof(ret->state), "%s", drbd_state_down);
    tell_identity(minor, ret);
    return keep_path(self, path_of_minor(minor));
}

static int look_up(struct drbd_volume *self, const struct drbd_status *status,
                   bool manual, struct volume_info *ret, struct err **errp)
{
    char *link = find_link(self, status->minor);
    int r = keep_path(self, link != NULL ? link : path_of_minor(status->minor));
    if (r < 0) {
        return r;
    }
    ret->size = sysfs_number(status->minor, "size") * 512;
    if (ret->size == 0) {
        (void)err_set(errp, -ENODATA, self->volume.name,
                      "has no size: its disk is %s",
                      *status->disk != '\0' ? status->disk : "not attached");
        err_hint(errp,
                 "'drbdadm adjust %s' attaches it, 'drbdadm status %s'"
                 " tells how it stands",
                 self->resource, self->resource);
        return -ENODATA;
    }
    tell_identity(status->minor, ret);
    ret->data = ret->size; /* QEMU knows no holes of a device */
    ret->block_size =
        (uint32_t)sysfs_number(status->minor, "queue/logical_block_size");
    ret->direct = DIRECT_WORKS;
    ret->direct_size = ret->block_size;
    (void)snprintf(ret->state, sizeof(ret->state), "%s",
                   drbd_state_of(status, manual));
    ret->fills = backing_fills(self);
    drbd_status_degraded(status, ret->degraded, &ret->heals);
    if (!drbd_status_is_primary(status)) {
        (void)drbd_status_is_alone(status, ret->alone);
    }
    look_users(self, status, ret);
    return 0;
}

static void look_users(struct drbd_volume *self,
                       const struct drbd_status *status,
                       struct volume_info *ret)
{
    const struct drbd_peer *peer = drbd_status_primary_peer(status);
    char head[FORMAT_HEAD];
    if (peer != NULL) {
        ret->in_use = true;
        (void)snprintf(ret->in_use_by, sizeof(ret->in_use_by),
                       "peer '%.48s', where it is Primary", peer->name);
        return;
    }
    ret->read_only = faccessat(AT_FDCWD, self->path, W_OK, AT_EACCESS) < 0;
    if (!drbd_status_is_primary(status)) {
        return; /* and nobody can have it open */
    }
    if (*status->suspended != '\0') {
        return; /* to read from it would hang */
    }
    _cleanup_close_ int fd =
        open(self->path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) < 0) {
        return;
    }
    ssize_t n = pread(fd, head, sizeof(head), 0);
    volume_info_format(ret, head, n > 0 ? (size_t)n : 0);
    lock_look(fd, ret);
    device_look_users(self->path, st.st_rdev, ret);
    if (status->open && !ret->in_use) {
        ret->in_use = true;
        (void)snprintf(ret->in_use_by, sizeof(ret->in_use_by),
                       "somebody on this host, who has it open");
    }
}

/*
 * By DRBD's own word, and where that is allowed, by its last block. Suspended
 * I/O is silence: whoever reads, or has QEMU flush, would hang.
 */
static int drbd_answer(struct volume *volume, struct volume_info *ret,
                       struct err **errp)
{
    struct drbd_volume *self = drbd_of(volume);
    struct drbd_name name = drbd_name_of(self);
    struct drbd_status status;
    volume_info_init(ret);
    int r = drbd_look(&name, &status, NULL, errp);
    if (r != 0) {
        return r < 0 ? r : 0;
    }
    if (*status.suspended != '\0') {
        return err_set(errp, -EAGAIN, name.object, "its I/O is suspended (%s)",
                       status.suspended);
    }
    tell_identity(status.minor, ret);
    ret->size = sysfs_number(status.minor, "size") * 512;
    drbd_status_degraded(&status, ret->degraded, &ret->heals);
    _cleanup_free_ char *path = path_of_minor(status.minor);
    if (!drbd_status_is_primary(&status) || path == NULL) {
        return path != NULL ? 0 : -ENOMEM;
    }
    _cleanup_close_ int fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
    if (fd < 0) {
        return volume_fail(errp, volume, -errno, "cannot open it");
    }
    r = device_is_torn(fd, ret->size);
    ret->torn = r > 0;
    return r < 0 ? r : 0;
}

/* --- devices --- */

static bool is_device(const char *path, dev_t *ret)
{
    struct stat st;
    if (stat(path, &st) < 0 || (st.st_mode & S_IFMT) != places->kind) {
        return false;
    }
    if (ret != NULL) {
        *ret = S_ISBLK(st.st_mode) ? st.st_rdev : (dev_t)st.st_ino;
    }
    return true;
}

unsigned drbd_ready_ms(void)
{
    return places->ready_ms;
}

bool drbd_is_ready(const struct drbd_status *status, char ret[128])
{
    _cleanup_free_ char *path = path_of_minor(status->minor);
    *ret = '\0';
    if (path == NULL || !is_device(path, NULL)) {
        (void)snprintf(ret, 128, "there is no device %.64s",
                       path != NULL ? path : "");
    } else if (sysfs_number(status->minor, "size") == 0) {
        (void)snprintf(ret, 128, "its disk is %s, it has no size",
                       status->disk);
    }
    return *ret == '\0';
}

static char *path_of_link(const char *resource, unsigned number, bool by_volume)
{
    return by_volume ? str_printf("%s/drbd/by-res/%s/%u", places->dev, resource,
                                  number)
                     : str_printf("%s/drbd/by-res/%s", places->dev, resource);
}

static char *path_of_minor(unsigned minor)
{
    return str_printf("%s/drbd%u", places->dev, minor);
}

/* The link that leads to the very device, or NULL. */
static char *find_link(const struct drbd_volume *self, unsigned minor)
{
    dev_t wanted = 0, found = 0;
    _cleanup_free_ char *device = path_of_minor(minor);
    if (device == NULL || !is_device(device, &wanted)) {
        return NULL;
    }
    for (int by_volume = 1; by_volume >= 0; by_volume--) {
        char *link = path_of_link(self->resource, self->number, by_volume != 0);
        bool fits = by_volume != 0 || self->number == 0;
        if (link != NULL && fits && is_device(link, &found) &&
            found == wanted) {
            return link;
        }
        free(link);
    }
    return NULL;
}

static uint64_t sysfs_number(unsigned minor, const char *what)
{
    _cleanup_free_ char *path =
        str_printf("%s/block/drbd%u/%s", places->sys, minor, what);
    return device_number_in(path);
}

/*
 * dm-thin takes discards, and has no way to write zeroes but as data: DRBD,
 * which passes them on, fills it. Loop devices and ZFS punch holes.
 */
static bool backing_fills(const struct drbd_volume *self)
{
    struct drbd_name name = drbd_name_of(self);
    struct stat st;
    _cleanup_free_ char *device = drbd_backing(&name);
    if (device == NULL || stat(device, &st) < 0 ||
        (st.st_mode & S_IFMT) != places->kind) {
        return false;
    }
    _cleanup_free_ char *queue =
        str_printf("%s/dev/block/%u:%u/queue", places->sys, major(st.st_rdev),
                   minor(st.st_rdev));
    _cleanup_free_ char *zeroes =
        str_printf("%s/write_zeroes_max_bytes", queue);
    _cleanup_free_ char *discards = str_printf("%s/discard_max_bytes", queue);
    return zeroes != NULL && access(zeroes, R_OK) == 0 &&
           device_number_in(zeroes) == 0 && device_number_in(discards) > 0;
}

const struct backend_ops backend_drbd = {
    .scheme = "drbd",
    .title = "DRBD volume",
    .flags = BACKEND_LEGACY_NAME | BACKEND_STALLS,
    .parse = drbd_parse,
    .from_node = drbd_from_node,
    .free = drbd_free,
    .node_options = drbd_node_options,
    .legacy_name = drbd_legacy_name,
    .probe = drbd_probe,
    .answer = drbd_answer,
    .attach = drbd_attach,
    .detach = drbd_detach,
    .attach_ms = ATTACH_MS,
    .is_attached_with = drbd_is_attached_with,
    .bulk = &bulk_file,
};
