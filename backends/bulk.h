/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The bulk channel: the bytes of a volume at rest, many requests at a time. A
 * channel belongs to one thread, which submits, waits in bulk_turn() and gets
 * each completion from there; another thread opens a channel of its own.
 *
 * A storage kind whose calls block (files, devices) does its work within
 * submit: one memory-hot block, read, judged and written by one thread, is
 * faster than any hand-over. The others keep many requests under way.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/cleanup.h"

struct bulk;
struct bulk_request;
struct err;
struct volume;

enum bulk_open_flags {
    BULK_WRITE = 1 << 0,
    BULK_FRESH = 1 << 1, /* nothing that this host has cached may answer */
    BULK_SHARE = 1 << 2, /* open an image though a QEMU has it locked */
    /* ... and though it shares nothing: a mirror's target, by its own engine */
    BULK_UNLOCKED = 1 << 3,
};

enum bulk_act { BULK_READ, BULK_PUT, BULK_ZERO, BULK_FLUSH };

/* From bulk_turn() only; result 0 or -E. May submit again. */
typedef void bulk_done_fn(struct bulk_request *request, int result);

struct bulk_request {
    enum bulk_act act;
    uint64_t offset;
    uint64_t length; /* read, put: at most BULK_UNIT; zero: BULK_ZERO_MAX */
    void *buffer;    /* BULK_ALIGN; untouched by others until it is done */
    bulk_done_fn *cb;
    void *data;
    /* The channel's own. */
    struct bulk *bulk;
    struct bulk_request *next;
    int result;
    void *private;
};

enum {
    BULK_UNIT = 1 << 20,
    BULK_ALIGN = 4096,
    BULK_ZERO_MAX = 64 << 20,
};

/* A range that may hold data; what is not told reads as zeroes. In order. */
typedef int bulk_extent_fn(void *data, uint64_t offset, uint64_t length);

struct bulk_ops {
    /* blocking, bounded: sets the members below that it knows better */
    int (*open)(const struct volume *volume, unsigned flags, struct bulk **ret,
                struct err **errp);
    /* Ends what is under way (its callbacks have come or never will). */
    void (*close)(struct bulk *bulk);
    /* Takes the request; bulk_finish() tells its end, at once or later. */
    void (*submit)(struct bulk *bulk, struct bulk_request *request);
    /* What to poll for; -1: the channel has nothing to wait for. */
    int (*fd)(struct bulk *bulk, short *ret_events);
    /* After a poll, and every 100 ms without one. */
    void (*service)(struct bulk *bulk, short revents);
    /*
     * blocking: makes 'to', which is of this kind too and blank, share all
     * that 'from' has, durably; NULL or -ENOTSUP: the storage cannot.
     */
    int (*clone)(const struct volume *from, const struct volume *to,
                 struct err **errp);
    /* blocking; NULL or -ENOTSUP: it cannot tell. */
    int (*extents)(struct bulk *bulk, bulk_extent_fn *cb, void *data,
                   struct err **errp);
    /*
     * blocking, or all four NULL: keeps what each act of the volume would set
     * up anew, a connection above all, until it is released. While it is held
     * and good, all who ask get the same.
     */
    int (*hold)(const struct volume *volume, void **ret, struct err **errp);
    void (*release)(void *held);
    /* Any thread, never blocking: whether the next one that holds gets it. */
    bool (*is_good)(void *held);
    /* Likewise: what the volume's acts use may hang; nobody gets it now. */
    void (*doubt)(const struct volume *volume);
};

struct bulk {
    const struct bulk_ops *ops;
    const struct volume *volume; /* outlives the channel */
    uint64_t size;
    bool blocking;  /* each request is done within submit */
    unsigned lanes; /* threads, with a channel each, that are worth while */
    unsigned depth; /* requests under way that are; 0: as many as there are */
    char stamp[96]; /* changes with the content; "" where nothing tells */
    bool lost;      /* the way to the storage is; a new channel may find it */
    char *detail;   /* the storage's own words for the last error, or NULL */
    unsigned pending;
    struct bulk_request *done;
    struct bulk_request **done_end;
};

/*
 * Opens a channel to a volume that exists; blocking, in a worker. -ENOTSUP
 * where the storage kind has none. QEMU reads and writes the formats that are
 * not raw: a private NBD server of it is started for the channel's life.
 */
int bulk_open(const struct volume *volume, unsigned flags, struct bulk **ret,
              struct err **errp);
/* Whether there is a channel for this volume's kind and format. */
bool bulk_is_possible(const struct volume *volume);
/* Whether bulk_bitmap() is built in. */
bool bulk_has_bitmaps(void);
struct bulk *bulk_close(struct bulk *bulk);
DEFINE_CLEANUP(struct bulk, bulk_close)

void bulk_submit(struct bulk *bulk, struct bulk_request *request);
/*
 * Waits up to 'timeout_ms' for any request of the channels to be done and
 * calls its callback. Returns how many came.
 */
unsigned bulk_turn(struct bulk *const *channels, unsigned n,
                   unsigned timeout_ms);
/* Submits and waits for the end of it, -ETIMEDOUT after 'timeout_ms'. */
int bulk_call(struct bulk *bulk, struct bulk_request *request,
              unsigned timeout_ms);
/* *ret NULL: there is nothing to be kept. */
int bulk_hold(const struct volume *volume, void **ret, struct err **errp);
void bulk_release(const struct volume *volume, void *held);
void bulk_doubt(const struct volume *volume);
void bulk_doubt_uri(const char *uri); /* NULL: of nothing */
/* Lets the storage copy by itself; -ENOTSUP: nothing was done. */
int bulk_clone(const struct volume *from, const struct volume *to,
               struct err **errp);
int bulk_extents(struct bulk *bulk, bulk_extent_fn *cb, void *data,
                 struct err **errp);
/*
 * The ranges that a persistent dirty bitmap of a qcow2 image has set; blocking.
 * -ENOTSUP where NBD is not built in.
 */
int bulk_bitmap(const struct volume *volume, const char *bitmap,
                bulk_extent_fn *cb, void *data, struct err **errp);

/*
 * The ranges that an image of an NBD export holds itself, above its backing
 * file; blocking. -ENOTSUP where its server does not tell, or NBD is not built
 * in.
 */
int bulk_own(const struct volume *volume, bulk_extent_fn *cb, void *data,
             struct err **errp);

/* --- for the storage kinds --- */

void bulk_init(struct bulk *bulk, const struct bulk_ops *ops,
               const struct volume *volume);
void bulk_finish(struct bulk_request *request, int result);

extern const struct bulk_ops bulk_file;
extern const struct bulk_ops bulk_rbd;
extern const struct bulk_ops bulk_nfs;
extern const struct bulk_ops bulk_nbd;
extern const struct bulk_ops bulk_image; /* what is not raw: through QEMU */
