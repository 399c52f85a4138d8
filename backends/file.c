/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Local and mounted files. Knows file systems and QEMU's 'file' driver.
 *
 * Identity: "file:<st_dev>:<inode>[:<time of birth>]". File systems give an
 * inode's number to the next file at once; the time of birth tells them apart
 * where the file system knows it.
 *
 * QEMU 7.2 reports the file name that it was given, without "file:", symbolic
 * links and relative names (of QEMU's own directory) as they are.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <sys/types.h>

#include "base/err.h"
#include "base/str.h"
#include "bulk.h"
#include "direct.h"
#include "lock.h"
#include "registry.h"
#include "uri.h"
#include "volume.h"

struct file_volume {
    struct volume volume;
    char *path; /* absolute */
};

/* Where a volume really is: symbolic links followed. */
struct place {
    char *path;
    char *directory;
};

static void place_done(struct place *place);
static int place_find(const struct volume *volume, struct place *ret,
                      struct err **errp);
static char *place_temp(const struct place *place, const char *temp);
static int file_read_path(struct file_volume *file, const struct uri *uri,
                          struct err **errp);
static int look_absent(struct volume *volume, struct volume_info *ret,
                       struct err **errp);
static int look(const struct volume *volume, const char *path, int *ret_fd,
                struct volume_info *ret, struct err **errp);
static int look_fd(const struct volume *volume, int fd, struct volume_info *ret,
                   struct err **errp);
static void look_space(int fd, struct volume_info *info);
static void look_data(int fd, struct volume_info *info);
static int look_statx(int fd, struct volume_info *info);
static int refuse_kind(const struct volume *volume, mode_t mode,
                       struct err **errp);
static void give_to_owner_of(int fd, const char *directory);
static void make_like(int fd, const char *like, const char *directory);
static int sync_directory(const struct volume *volume, const char *directory,
                          struct err **errp);
static int remove_path(const struct volume *volume, const char *path,
                       const char *identity, struct err **errp);
static int rename_noreplace(const char *from, const char *to);
static int fail_create(const struct volume *volume, int code,
                       const char *directory, struct err **errp);

static const struct file_volume *file_of(const struct volume *volume)
{
    return (const struct file_volume *)volume; /* its first member */
}

static void file_free(struct volume *volume)
{
    struct file_volume *file = container_of(volume, struct file_volume, volume);
    volume_done(volume);
    free(file->path);
    free(file);
}

static int file_parse(const char *text, struct volume **ret, struct err **errp)
{
    _cleanup_uri_ struct uri uri = {0};
    int r = uri_split(text, &uri, errp);
    if (r < 0) {
        return r;
    }
    struct file_volume *file = calloc(1, sizeof(*file));
    if (file == NULL) {
        return -ENOMEM;
    }
    r = file_read_path(file, &uri, errp);
    if (r == 0) {
        r = volume_init(&file->volume, &backend_file, &uri, errp);
    }
    if (r < 0) {
        file_free(&file->volume);
        return r;
    }
    *ret = &file->volume;
    return 0;
}

static int file_from_node(const char *driver, const char *filename,
                          struct volume **ret)
{
    if (!str_eq(driver, "file")) {
        return -ENOENT;
    }
    json_auto_t *node = node_json(driver, filename);
    const char *path =
        node != NULL ? node_text(node, NULL, "filename") : filename;
    /* A relative name is of QEMU's directory; an fd set is in its hands. */
    if (path == NULL || path[0] != '/' || str_starts(path, "/dev/fdset/")) {
        return -ENOENT;
    }
    if (strchr(path, '?') == NULL) {
        return file_parse(path, ret, NULL);
    }
    _cleanup_free_ char *encoded = uri_encode(path);
    _cleanup_free_ char *uri =
        encoded != NULL ? str_printf("file:%s", encoded) : NULL;
    return uri != NULL ? file_parse(uri, ret, NULL) : -ENOMEM;
}

static json_t *file_node_options(const struct volume *volume,
                                 _unused_ const char *secret_id)
{
    json_auto_t *node = volume_node(volume, "file");
    if (node == NULL ||
        json_object_set_new(node, "filename",
                            json_string(file_of(volume)->path)) < 0) {
        return NULL;
    }
    return TAKE_PTR(node);
}

static char *file_legacy_name(const struct volume *volume)
{
    return strdup(file_of(volume)->path);
}

static int file_probe(struct volume *volume, struct volume_info *ret,
                      struct err **errp)
{
    _cleanup_close_ int fd = -1;
    int r = look(volume, file_of(volume)->path, &fd, ret, errp);
    if (r == 0) {
        look_data(fd, ret);
        direct_look(file_of(volume)->path, ret);
    }
    return r == -ENOENT ? look_absent(volume, ret, errp) : r;
}

/* Not its extents: a network asks its server for each. */
static int file_answer(struct volume *volume, struct volume_info *ret,
                       struct err **errp)
{
    _cleanup_close_ int fd = -1;
    int r = look(volume, file_of(volume)->path, &fd, ret, errp);
    return r == -ENOENT ? 0 : r; /* it answers: there is no such file */
}

static int file_create(struct volume *volume, const char *temp, uint64_t size,
                       struct volume_info *ret, struct err **errp)
{
    _cleanup_(place_done) struct place place = {0};
    int r = place_find(volume, &place, errp);
    if (r < 0) {
        return r;
    }
    _cleanup_free_ char *path = place_temp(&place, temp);
    if (path == NULL) {
        return -ENOMEM;
    }
    r = remove_path(volume, path, NULL, errp);
    if (r < 0) {
        return r;
    }
    _cleanup_close_ int fd =
        open(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0) {
        return fail_create(volume, -errno, place.directory, errp);
    }
    make_like(fd, volume->like, place.directory);
    if (ftruncate(fd, (off_t)size) < 0 || fsync(fd) < 0) {
        r = volume_fail(errp, volume, -errno, "cannot give it %llu bytes",
                        (unsigned long long)size);
    }
    if (r == 0) {
        r = sync_directory(volume, place.directory, errp);
    }
    if (r == 0) {
        r = look_fd(volume, fd, ret, errp);
    }
    if (r < 0) {
        (void)unlink(path);
        return r;
    }
    ret->zero = true; /* a new file that nobody wrote to is one hole */
    return 0;
}

static int file_publish(struct volume *volume, const char *temp,
                        const char *identity, struct err **errp)
{
    _cleanup_(place_done) struct place place = {0};
    int r = place_find(volume, &place, errp);
    if (r < 0) {
        return r;
    }
    _cleanup_free_ char *path = place_temp(&place, temp);
    if (path == NULL) {
        return -ENOMEM;
    }
    _cleanup_close_ int there_fd = -1;
    _cleanup_close_ int temp_fd = -1;
    struct volume_info there;
    struct volume_info ours;
    r = look(volume, place.path, &there_fd, &there, errp);
    if (r == 0 && str_eq(there.identity, identity)) {
        /* An earlier try did it; link and unlink leave both names. */
        return remove_path(volume, path, identity, errp);
    }
    if (r != -ENOENT) {
        return r < 0 ? r : volume_taken(volume, errp);
    }
    r = look(volume, path, &temp_fd, &ours, errp);
    if (r < 0) {
        return r == -ENOENT
                   ? err_set(errp, r, volume->name,
                             "'%s', to be given this name, is gone", path)
                   : r;
    }
    if (!str_eq(ours.identity, identity)) {
        return err_set(errp, -ESTALE, volume->name,
                       "'%s' is not the file that was created", path);
    }
    r = rename_noreplace(path, place.path);
    if (r == -EEXIST) {
        return volume_taken(volume, errp);
    }
    if (r < 0) {
        return volume_fail(errp, volume, r, "cannot rename '%s'", path);
    }
    return sync_directory(volume, place.directory, errp);
}

static int file_remove(struct volume *volume, const char *temp,
                       const char *identity, struct err **errp)
{
    _cleanup_(place_done) struct place place = {0};
    int r = place_find(volume, &place, errp);
    if (r < 0) {
        return r;
    }
    if (temp != NULL) {
        _cleanup_free_ char *path = place_temp(&place, temp);
        r = path != NULL ? remove_path(volume, path, NULL, errp) : -ENOMEM;
    }
    if (r == 0 && identity != NULL) {
        r = remove_path(volume, place.path, identity, errp);
    }
    return r == 0 ? sync_directory(volume, place.directory, errp) : r;
}

const struct backend_ops backend_file = {
    .scheme = "file",
    .title = "file",
    .flags = BACKEND_CREATES | BACKEND_FORMATS | BACKEND_LEGACY_NAME,
    .parse = file_parse,
    .from_node = file_from_node,
    .free = file_free,
    .node_options = file_node_options,
    .legacy_name = file_legacy_name,
    .probe = file_probe,
    .answer = file_answer,
    .create = file_create,
    .publish = file_publish,
    .remove = file_remove,
    .bulk = &bulk_file,
};

static int file_read_path(struct file_volume *file, const struct uri *uri,
                          struct err **errp)
{
    _cleanup_free_ char *path = NULL;
    const char *rest = uri->rest;
    if (!uri->plain && str_starts(rest, "///")) {
        rest += 2; /* file:///path, as RFC 8089 has it */
    } else if (!uri->plain && str_starts(rest, "//")) {
        (void)err_set(errp, -EINVAL, uri->object,
                      "'%.*s' would be the name of a host here",
                      (int)strcspn(rest + 2, "/"), rest + 2);
        err_hint(errp, "write file:/PATH or file:///PATH");
        return -EINVAL;
    }
    int r = uri_decode(uri, rest, strlen(rest), &path, errp);
    if (r < 0) {
        return r;
    }
    size_t length = strlen(path);
    if (length == 0 || path[length - 1] == '/') {
        return err_set(errp, -EINVAL, uri->object, "a file name is missing");
    }
    if (path[0] != '/') {
        _cleanup_free_ char *cwd = getcwd(NULL, 0);
        if (cwd == NULL) {
            return err_set(errp, -errno, uri->object,
                           "the working directory is unknown");
        }
        file->path = str_printf("%s/%s", cwd, path);
    } else {
        file->path = TAKE_PTR(path);
    }
    return file->path != NULL ? 0 : -ENOMEM;
}

static void place_done(struct place *place)
{
    free(place->path);
    free(place->directory);
}

static int place_find(const struct volume *volume, struct place *ret,
                      struct err **errp)
{
    const char *path = file_of(volume)->path;
    ret->path = realpath(path, NULL);
    if (ret->path == NULL && errno != ENOENT) {
        return volume_fail(errp, volume, -errno, "cannot look at it");
    }
    if (ret->path != NULL) {
        ret->directory =
            strndup(ret->path, (size_t)(strrchr(ret->path, '/') - ret->path));
    } else {
        const char *slash = strrchr(path, '/');
        _cleanup_free_ char *directory =
            slash == path ? strdup("/") : strndup(path, (size_t)(slash - path));
        ret->directory = directory != NULL ? realpath(directory, NULL) : NULL;
        if (directory != NULL && ret->directory == NULL) {
            return volume_fail(errp, volume, -errno, "directory '%s'",
                               directory);
        }
        ret->path = ret->directory != NULL
                        ? str_printf("%s%s", ret->directory, slash)
                        : NULL;
    }
    return ret->path != NULL && ret->directory != NULL ? 0 : -ENOMEM;
}

static char *place_temp(const struct place *place, const char *temp)
{
    return str_printf("%s/%s", place->directory, temp);
}

/* Nothing is there: could it be made there, and how large? */
static int look_absent(struct volume *volume, struct volume_info *ret,
                       struct err **errp)
{
    const char *path = file_of(volume)->path;
    struct stat st;
    if (lstat(path, &st) == 0) {
        return err_set(errp, -ENOENT, volume->name,
                       "is a symbolic link to something that is not there");
    }
    _cleanup_(place_done) struct place place = {0};
    int r = place_find(volume, &place, errp);
    if (r < 0) {
        err_hint(errp, "create the directory first");
        return r;
    }
    if (faccessat(AT_FDCWD, place.directory, W_OK | X_OK, AT_EACCESS) < 0) {
        return fail_create(volume, -errno, place.directory, errp);
    }
    _cleanup_close_ int fd =
        open(place.directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        look_space(fd, ret);
        direct_look_absent(place.directory, ret);
    }
    return 0;
}

/* -ENOENT without a message if there is nothing. */
static int look(const struct volume *volume, const char *path, int *ret_fd,
                struct volume_info *ret, struct err **errp)
{
    volume_info_init(ret);
    struct stat st;
    /* First: opening a FIFO would wait, and a device may do things. */
    if (stat(path, &st) < 0) {
        return errno == ENOENT
                   ? -ENOENT
                   : volume_fail(errp, volume, -errno, "cannot look at it");
    }
    int r = refuse_kind(volume, st.st_mode, errp);
    if (r < 0) {
        return r;
    }
    _cleanup_close_ int fd =
        open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (fd < 0) {
        return volume_fail(errp, volume, -errno, "cannot open it");
    }
    r = look_fd(volume, fd, ret, errp);
    if (r == 0) {
        ret->read_only = faccessat(AT_FDCWD, path, W_OK, AT_EACCESS) < 0;
        *ret_fd = TAKE_FD(fd);
    }
    return r;
}

static int look_fd(const struct volume *volume, int fd, struct volume_info *ret,
                   struct err **errp)
{
    volume_info_init(ret);
    struct stat st;
    if (fstat(fd, &st) < 0) {
        return volume_fail(errp, volume, -errno, "cannot look at it");
    }
    int r = refuse_kind(volume, st.st_mode, errp);
    if (r < 0) {
        return r;
    }
    ret->exists = true;
    ret->size = (uint64_t)st.st_size;
    ret->allocated = (uint64_t)st.st_blocks * 512;
    r = look_statx(fd, ret);
    if (r < 0) {
        return volume_fail(errp, volume, r, "cannot look at it");
    }
    look_space(fd, ret);
    char head[FORMAT_HEAD];
    ssize_t n = pread(fd, head, sizeof(head), 0);
    if (n < 0) {
        return volume_fail(errp, volume, -errno, "cannot read it");
    }
    volume_info_format(ret, head, (size_t)n);
    lock_look(fd, ret);
    return 0;
}

static int look_statx(int fd, struct volume_info *info)
{
    struct statx stx;
    if (statx(fd, "", AT_EMPTY_PATH, STATX_INO | STATX_BTIME, &stx) < 0) {
        return -errno;
    }
    int n = snprintf(info->identity, sizeof(info->identity), "file:%u:%u:%llu",
                     stx.stx_dev_major, stx.stx_dev_minor,
                     (unsigned long long)stx.stx_ino);
    if ((stx.stx_mask & STATX_BTIME) != 0) {
        (void)snprintf(info->identity + n, sizeof(info->identity) - (size_t)n,
                       ":%lld.%09u", (long long)stx.stx_btime.tv_sec,
                       stx.stx_btime.tv_nsec);
    }
    direct_look_size(fd, info);
    return 0;
}

static void look_space(int fd, struct volume_info *info)
{
    struct stat st;
    struct statvfs fs;
    /* ramfs and its like have no size at all. */
    if (fstat(fd, &st) < 0 || fstatvfs(fd, &fs) < 0 || fs.f_blocks == 0) {
        return;
    }
    info->available = (uint64_t)fs.f_bavail * fs.f_frsize;
    (void)snprintf(info->space, sizeof(info->space), "fs:%u:%u",
                   major(st.st_dev), minor(st.st_dev));
}

/* What QEMU's mirror reads as data; unwritten extents are holes to both. */
static void look_data(int fd, struct volume_info *info)
{
    enum { EXTENTS_MAX = 65536 };

    off_t at = 0;
    for (unsigned i = 0; i < EXTENTS_MAX; i++) {
        off_t data = lseek(fd, at, SEEK_DATA);
        at = data >= 0 ? lseek(fd, data, SEEK_HOLE) : -1;
        if (at < 0) {
            return;
        }
        info->data += (uint64_t)(at - data);
    }
}

static int refuse_kind(const struct volume *volume, mode_t mode,
                       struct err **errp)
{
    if (S_ISREG(mode)) {
        return 0;
    }
    const char *what = S_ISDIR(mode)    ? "a directory"
                       : S_ISBLK(mode)  ? "a block device"
                       : S_ISCHR(mode)  ? "a character device"
                       : S_ISFIFO(mode) ? "a FIFO"
                                        : "a socket";
    (void)err_set(errp, -EINVAL, volume->name, "is %s, not a file", what);
    if (S_ISDIR(mode)) {
        err_hint(errp, "name a file in it: %s/NAME", file_of(volume)->path);
    } else if (S_ISBLK(mode)) {
        err_hint(errp, "name it block:%s", file_of(volume)->path);
    }
    return -EINVAL;
}

/*
 * QEMU may well run as another user than a root engine. The directory's owner
 * is who it was made for; where that is not enough, QEMU's own message tells.
 */
static void give_to_owner_of(int fd, const char *directory)
{
    struct stat st;
    if (geteuid() == 0 && stat(directory, &st) == 0 && st.st_uid != 0 &&
        fchown(fd, st.st_uid, st.st_gid) < 0) {
        return;
    }
}

/*
 * Who can open the former disk's file is to open this one too. What we may not
 * give away stays ours, and then no other group gets in by the mode.
 */
static void make_like(int fd, const char *like, const char *directory)
{
    struct stat st;
    struct stat ours;
    if (like == NULL || stat(like, &st) < 0 || !S_ISREG(st.st_mode)) {
        give_to_owner_of(fd, directory);
        return;
    }
    mode_t mode = (st.st_mode & 0666) | 0600;
    if (fchown(fd, st.st_uid, st.st_gid) < 0 &&
        fchown(fd, (uid_t)-1, st.st_gid) < 0 &&
        (fstat(fd, &ours) < 0 || ours.st_gid != st.st_gid)) {
        mode &= ~(mode_t)0060;
    }
    (void)fchmod(fd, mode);
}

static int sync_directory(const struct volume *volume, const char *directory,
                          struct err **errp)
{
    _cleanup_close_ int fd =
        open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    /* Some network file systems cannot sync a directory: EINVAL. */
    if (fd < 0 || (fsync(fd) < 0 && errno != EINVAL)) {
        return volume_fail(errp, volume, -errno, "cannot sync directory '%s'",
                           directory);
    }
    return 0;
}

/* identity NULL: by its name alone. Nothing there is success. */
static int remove_path(const struct volume *volume, const char *path,
                       const char *identity, struct err **errp)
{
    _cleanup_close_ int fd = -1;
    struct volume_info info;
    int r = look(volume, path, &fd, &info, errp);
    if (r < 0) {
        return r == -ENOENT ? 0 : r;
    }
    if (identity != NULL && !str_eq(identity, info.identity)) {
        (void)err_set(errp, -ESTALE, volume->name,
                      "'%s' is another file by now: not removed", path);
        return -ESTALE;
    }
    if (info.in_use) {
        return err_set(errp, -EBUSY, volume->name,
                       "'%s' is in use by %s: not removed", path,
                       info.in_use_by);
    }
    if (unlink(path) < 0 && errno != ENOENT) {
        return volume_fail(errp, volume, -errno, "cannot remove '%s'", path);
    }
    return 0;
}

/* File systems without RENAME_NOREPLACE have link(), which is as exclusive. */
static int rename_noreplace(const char *from, const char *to)
{
    if (renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE) == 0) {
        return 0;
    }
    if (errno != EINVAL && errno != ENOSYS) {
        return -errno;
    }
    if (link(from, to) < 0 || unlink(from) < 0) {
        return -errno;
    }
    return 0;
}

static int fail_create(const struct volume *volume, int code,
                       const char *directory, struct err **errp)
{
    (void)volume_fail(errp, volume, code, "cannot create a file in '%s'",
                      directory);
    if (code == -EACCES) {
        err_hint(errp, "the directory must be writable for user %u",
                 (unsigned)geteuid());
    }
    return code;
}
