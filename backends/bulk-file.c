/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The bytes of local files and block devices. What goes round the page cache
 * does so through io_uring where it is there; other calls block, and threads
 * of the caller's give depth. It knows the page cache and when to go round it:
 *
 *   block devices    O_DIRECT: the device's page cache costs 2x and more
 *   files, read      buffered, read ahead by the kernel
 *   files, written   buffered, each block sent to the disk at once, so that
 *                    the flush at the end has little left
 *   fresh            O_DIRECT where it works, the cached pages dropped before
 *
 * What O_DIRECT takes is found by trial, and a range that is not made of
 * whole pages always goes through the cache: no page sees both ways.
 */
#include <errno.h>
#include <fcntl.h>
#ifdef HAVE_URING
#include <liburing.h>
#endif
#include <linux/falloc.h>
#include <linux/fs.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "backend.h"
#include "base/err.h"
#include "bulk.h"
#include "volume.h"

enum {
    FILE_LANES = 4,
    DIRECT_LANES = 4,
    LOCK_FROM = 100,
    LOCK_BYTES = 200,
    SAMPLES = 8,
    RING_DEPTH = 8,
};

struct file_bulk {
    struct bulk bulk;
    int fd;
    int direct; /* the same without the cache, or -1 */
    bool device;
    bool write;
    bool keep_cached; /* its pages are in the cache for somebody else */
    bool no_punch;    /* it was tried in vain */
    bool no_zero_range;
    void *zeroes;
#ifdef HAVE_URING
    struct io_uring ring;
    unsigned under_way;
    bool zeroing; /* one at a time: they would wait for the inode, spinning */
    struct bulk_request *to_zero;
#endif
};

static int open_fds(struct file_bulk *file, const char *path, unsigned flags,
                    struct err **errp);
static int look(struct file_bulk *file, struct err **errp);
static int lock(const struct file_bulk *file, struct err **errp);
static bool is_cached(const struct file_bulk *file);
static bool direct_works(int fd);
static bool ring_open(struct file_bulk *file);
static void ring_close(struct file_bulk *file);
static bool ring_submit(struct file_bulk *file, struct bulk_request *request);
#ifdef HAVE_URING
static void zero_next(struct file_bulk *file);
#endif
static int transfer(struct file_bulk *file, const struct bulk_request *request);
static int chosen_fd(const struct file_bulk *file,
                     const struct bulk_request *request);
static int zero(struct file_bulk *file, uint64_t offset, uint64_t length);
static int write_zeroes(struct file_bulk *file, uint64_t offset,
                        uint64_t length);

static struct file_bulk *file_of(struct bulk *bulk)
{
    return container_of(bulk, struct file_bulk, bulk);
}

static void file_close(struct bulk *bulk)
{
    struct file_bulk *file = file_of(bulk);
    ring_close(file);
    if (file->fd >= 0) {
        if (!file->device && !file->keep_cached) {
            (void)posix_fadvise(file->fd, 0, 0, POSIX_FADV_DONTNEED);
        }
        (void)close(file->fd);
    }
    if (file->direct >= 0) {
        (void)close(file->direct);
    }
    free(file->zeroes);
    free(file);
}

static int file_open(const struct volume *volume, unsigned flags,
                     struct bulk **ret, struct err **errp)
{
    _cleanup_free_ char *path = volume->ops->legacy_name(volume);
    struct file_bulk *file = calloc(1, sizeof(*file));
    if (path == NULL || file == NULL) {
        free(file);
        return -ENOMEM;
    }
    bulk_init(&file->bulk, &bulk_file, volume);
    file->bulk.blocking = true;
    file->fd = -1;
    file->direct = -1;
    file->write = (flags & BULK_WRITE) != 0;
    int r = open_fds(file, path, flags, errp);
    if (r < 0) {
        file_close(&file->bulk);
        return r;
    }
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    if (ring_open(file)) {
        *ret = &file->bulk;
        return 0;
    }
    file->bulk.lanes = file->direct >= 0 || cores >= FILE_LANES ? DIRECT_LANES
                       : cores > 1                              ? 2
                                                                : 1;
    *ret = &file->bulk;
    return 0;
}

static void file_submit(struct bulk *bulk, struct bulk_request *request)
{
    struct file_bulk *file = file_of(bulk);
    int r = 0;
    switch (request->act) {
    case BULK_READ:
    case BULK_PUT:
        if (ring_submit(file, request)) {
            return;
        }
        r = transfer(file, request);
        break;
    case BULK_ZERO:
        if (!file->no_punch && ring_submit(file, request)) {
            return;
        }
        r = zero(file, request->offset, request->length);
        break;
    case BULK_FLUSH:
        r = fdatasync(file->fd) < 0 ? -errno : 0;
        break;
    }
    bulk_finish(request, r);
}

/* One walk from the start: asking again for each block is quadratic on some
 * file systems. */
static int file_extents(struct bulk *bulk, bulk_extent_fn *cb, void *data,
                        struct err **errp)
{
    const struct file_bulk *file = file_of(bulk);
    if (file->device) {
        return -ENOTSUP;
    }
    off_t at = 0;
    for (;;) {
        off_t start = lseek(file->fd, at, SEEK_DATA);
        if (start < 0) {
            int r = errno == ENXIO ? 0 : errno == EINVAL ? -ENOTSUP : -errno;
            return r < 0 && r != -ENOTSUP
                       ? volume_fail(errp, bulk->volume, r, "cannot map it")
                       : r;
        }
        at = lseek(file->fd, start, SEEK_HOLE);
        if (at < 0) {
            return volume_fail(errp, bulk->volume, -errno, "cannot map it");
        }
        int r = cb(data, (uint64_t)start, (uint64_t)(at - start));
        if (r != 0) {
            return r;
        }
    }
}

/* Reflink: XFS, Btrfs and others share the blocks until one is written. */
static int file_clone(const struct volume *from, const struct volume *to,
                      struct err **errp)
{
    _cleanup_free_ char *from_path = from->ops->legacy_name(from);
    _cleanup_free_ char *to_path = to->ops->legacy_name(to);
    if (from_path == NULL || to_path == NULL) {
        return -ENOMEM;
    }
    _cleanup_close_ int from_fd = open(from_path, O_RDONLY | O_CLOEXEC);
    _cleanup_close_ int to_fd = open(to_path, O_RDWR | O_CLOEXEC);
    if (from_fd < 0 || to_fd < 0 || ioctl(to_fd, FICLONE, from_fd) < 0) {
        return -ENOTSUP; /* whatever it was: copying will tell */
    }
    return fsync(to_fd) < 0 ? volume_fail(errp, to, -errno, "cannot flush it")
                            : 0;
}

#ifdef HAVE_URING
static int file_fd(struct bulk *bulk, short *ret_events)
{
    const struct file_bulk *file = file_of(bulk);
    *ret_events = POLLIN;
    return file->under_way > 0 ? file->ring.ring_fd : -1;
}

static void file_service(struct bulk *bulk, _unused_ short revents)
{
    struct file_bulk *file = file_of(bulk);
    struct io_uring_cqe *entry = NULL;
    if (file->under_way > 0 && io_uring_sq_ready(&file->ring) > 0) {
        (void)io_uring_submit(&file->ring); /* the kernel was short before */
    }
    while (file->under_way > 0 && io_uring_peek_cqe(&file->ring, &entry) == 0) {
        struct bulk_request *request = io_uring_cqe_get_data(entry);
        int r = entry->res;
        io_uring_cqe_seen(&file->ring, entry);
        file->under_way--;
        if (request->act == BULK_ZERO) {
            r = r < 0 ? zero(file, request->offset, request->length) : 0;
            file->zeroing = false;
            zero_next(file);
        } else if (r >= 0 && (uint64_t)r == request->length) {
            r = 0;
        } else if (r >= 0 || r == -EINVAL || r == -EAGAIN || r == -EINTR) {
            r = transfer(file, request); /* all of it, the other way */
        }
        bulk_finish(request, r);
    }
}
#else
static int file_fd(_unused_ struct bulk *bulk, _unused_ short *ret_events)
{
    return -1;
}

static void file_service(_unused_ struct bulk *bulk, _unused_ short revents)
{
}
#endif

const struct bulk_ops bulk_file = {
    .open = file_open,
    .close = file_close,
    .submit = file_submit,
    .fd = file_fd,
    .service = file_service,
    .clone = file_clone,
    .extents = file_extents,
};

static int open_fds(struct file_bulk *file, const char *path, unsigned flags,
                    struct err **errp)
{
    const struct volume *volume = file->bulk.volume;
    int mode = (file->write ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK;
    file->fd = open(path, mode);
    if (file->fd < 0) {
        return volume_fail(errp, volume, -errno, "cannot open it");
    }
    int r = look(file, errp);
    if (r == 0 && file->write) {
        r = lock(file, errp);
    }
    if (r < 0) {
        return r;
    }
    bool fresh = (flags & BULK_FRESH) != 0;
    if (!file->device) {
        (void)posix_fadvise(file->fd, 0, 0, POSIX_FADV_SEQUENTIAL);
        file->keep_cached = !file->write && !fresh && is_cached(file);
        if (fresh) {
            (void)posix_fadvise(file->fd, 0, 0, POSIX_FADV_DONTNEED);
        }
    } else if (fresh) {
        /* Not possible for all; O_DIRECT is what counts. */
        (void)ioctl(file->fd, BLKFLSBUF, 0);
    }
    bool direct = volume->cache == CACHE_AUTO ? file->device || fresh
                                              : volume->cache == CACHE_NONE;
    if (direct) {
        file->direct = open(path, mode | O_DIRECT);
    }
    if (file->direct >= 0 && !direct_works(file->direct)) {
        (void)close(file->direct);
        file->direct = -1;
    }
    return 0;
}

static int look(struct file_bulk *file, struct err **errp)
{
    struct bulk *bulk = &file->bulk;
    struct stat st;
    if (fstat(file->fd, &st) < 0) {
        return volume_fail(errp, bulk->volume, -errno, "cannot look at it");
    }
    file->device = S_ISBLK(st.st_mode);
    if (file->device) {
        if (ioctl(file->fd, BLKGETSIZE64, &bulk->size) < 0) {
            return volume_fail(errp, bulk->volume, -errno,
                               "cannot ask for its size");
        }
        return 0;
    }
    bulk->size = (uint64_t)st.st_size;
    (void)snprintf(bulk->stamp, sizeof(bulk->stamp), "%lld.%09ld/%lld.%09ld",
                   (long long)st.st_mtim.tv_sec, st.st_mtim.tv_nsec,
                   (long long)st.st_ctim.tv_sec, st.st_ctim.tv_nsec);
    return 0;
}

/*
 * QEMU asks for the bytes 100 and 200 + permission before it opens an image
 * (docs/system/qemu-block-drivers, "Disk image file locking"): with a lock on
 * all of them no QEMU opens what we write. Shared between our own channels.
 */
static int lock(const struct file_bulk *file, struct err **errp)
{
    struct flock region = {.l_type = F_RDLCK,
                           .l_whence = SEEK_SET,
                           .l_start = LOCK_FROM,
                           .l_len = LOCK_BYTES};
    if (fcntl(file->fd, F_OFD_SETLK, &region) == 0 || errno == ENOLCK ||
        errno == EINVAL) {
        return 0;
    }
    return err_set(errp, -EBUSY, file->bulk.volume->name,
                   "is in use by another process (by its lock)");
}

/* Most of a few samples: what was cold before is to be cold afterwards. */
static bool is_cached(const struct file_bulk *file)
{
    unsigned cached = 0;
    for (uint64_t i = 0; i < SAMPLES; i++) {
        char byte = 0;
        struct iovec one = {.iov_base = &byte, .iov_len = 1};
        cached +=
            preadv2(file->fd, &one, 1, (off_t)(file->bulk.size / SAMPLES * i),
                    RWF_NOWAIT) == 1;
    }
    return cached > SAMPLES / 2;
}

static bool direct_works(int fd)
{
    void *page = NULL;
    if (posix_memalign(&page, BULK_ALIGN, BULK_ALIGN) != 0) {
        return false;
    }
    bool works = pread(fd, page, BULK_ALIGN, 0) >= 0;
    free(page);
    return works;
}

#ifdef HAVE_URING
/* Not where the kernel has none, or a container forbids it. */
static bool ring_open(struct file_bulk *file)
{
    if (file->direct < 0 ||
        io_uring_queue_init(2 * RING_DEPTH, &file->ring, 0) < 0) {
        return false;
    }
    file->bulk.blocking = false;
    file->bulk.depth = RING_DEPTH;
    return true;
}

static void ring_close(struct file_bulk *file)
{
    if (file->bulk.depth == 0) {
        return;
    }
    while (file->under_way > 0) { /* the kernel has their buffers */
        struct io_uring_cqe *entry = NULL;
        (void)io_uring_submit_and_wait(&file->ring, 1);
        if (io_uring_peek_cqe(&file->ring, &entry) == 0) {
            io_uring_cqe_seen(&file->ring, entry);
            file->under_way--;
        }
    }
    io_uring_queue_exit(&file->ring);
}

static bool ring_submit(struct file_bulk *file, struct bulk_request *request)
{
    if (file->bulk.depth == 0 || (request->act != BULK_ZERO &&
                                  chosen_fd(file, request) != file->direct)) {
        return false;
    }
    if (request->act == BULK_ZERO && file->zeroing) {
        request->next = file->to_zero;
        file->to_zero = request;
        return true;
    }
    struct io_uring_sqe *entry = io_uring_get_sqe(&file->ring);
    if (entry == NULL) {
        return false;
    }
    unsigned length = (unsigned)request->length;
    if (request->act == BULK_ZERO) {
        file->zeroing = true;
        io_uring_prep_fallocate(entry, file->fd,
                                FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                (off_t)request->offset, (off_t)request->length);
    } else if (request->act == BULK_PUT) {
        io_uring_prep_write(entry, file->direct, request->buffer, length,
                            request->offset);
    } else {
        io_uring_prep_read(entry, file->direct, request->buffer, length,
                           request->offset);
    }
    io_uring_sqe_set_data(entry, request);
    /* What the kernel does not take now goes with the next turn. */
    (void)io_uring_submit(&file->ring);
    file->under_way++;
    return true;
}

/* The ring is never so full that it has no place for this one. */
static void zero_next(struct file_bulk *file)
{
    struct bulk_request *request = file->to_zero;
    if (request != NULL) {
        file->to_zero = request->next;
        request->next = NULL;
        if (!ring_submit(file, request)) {
            bulk_finish(request, zero(file, request->offset, request->length));
            zero_next(file);
        }
    }
}
#else
static bool ring_open(_unused_ struct file_bulk *file)
{
    return false;
}

static void ring_close(_unused_ struct file_bulk *file)
{
}

static bool ring_submit(_unused_ struct file_bulk *file,
                        _unused_ struct bulk_request *request)
{
    return false;
}
#endif

static int transfer(struct file_bulk *file, const struct bulk_request *request)
{
    int fd = chosen_fd(file, request);
    char *at = request->buffer;
    uint64_t offset = request->offset;
    uint64_t left = request->length;
    bool put = request->act == BULK_PUT;
    while (left > 0) {
        ssize_t n = put ? pwrite(fd, at, left, (off_t)offset)
                        : pread(fd, at, left, (off_t)offset);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0 && errno == EINVAL && fd != file->fd) {
            fd = file->fd; /* O_DIRECT does not like this range */
            continue;
        }
        if (n <= 0) {
            return n < 0 ? -errno : -EIO; /* it became shorter */
        }
        at += n;
        offset += (uint64_t)n;
        left -= (uint64_t)n;
        if (fd != file->fd && (offset % BULK_ALIGN != 0)) {
            fd = file->fd;
        }
    }
    if (put && fd == file->fd && !file->device) {
        (void)sync_file_range(fd, (off_t)request->offset,
                              (off_t)request->length, SYNC_FILE_RANGE_WRITE);
    }
    return 0;
}

static int chosen_fd(const struct file_bulk *file,
                     const struct bulk_request *request)
{
    bool whole = (request->offset | request->length |
                  (uint64_t)(uintptr_t)request->buffer) %
                     BULK_ALIGN ==
                 0;
    return file->direct >= 0 && whole ? file->direct : file->fd;
}

/* The cheapest first; each that the file lacks is tried once only. */
static int zero(struct file_bulk *file, uint64_t offset, uint64_t length)
{
    if (!file->no_punch) {
        if (fallocate(file->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                      (off_t)offset, (off_t)length) == 0) {
            return 0;
        }
        file->no_punch = true;
    }
    if (!file->no_zero_range) {
        if (fallocate(file->fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
                      (off_t)offset, (off_t)length) == 0) {
            return 0;
        }
        file->no_zero_range = true;
    }
    return write_zeroes(file, offset, length);
}

static int write_zeroes(struct file_bulk *file, uint64_t offset,
                        uint64_t length)
{
    if (file->zeroes == NULL) {
        if (posix_memalign(&file->zeroes, BULK_ALIGN, BULK_UNIT) != 0) {
            file->zeroes = NULL;
            return -ENOMEM;
        }
        memset(file->zeroes, 0, BULK_UNIT);
    }
    int r = 0;
    while (r == 0 && length > 0) {
        struct bulk_request part = {.act = BULK_PUT,
                                    .offset = offset,
                                    .length =
                                        length < BULK_UNIT ? length : BULK_UNIT,
                                    .buffer = file->zeroes};
        r = transfer(file, &part);
        offset += part.length;
        length -= part.length;
    }
    return r;
}
