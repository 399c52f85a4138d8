/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What every storage kind gives: a name, an identity, and the acts that make
 * a volume, show it to QEMU and take it away again. A backend knows its
 * storage and QEMU's JSON node options; it never knows a QMP connection, the
 * engine, or another backend.
 *
 * A backend's functions are written as plain blocking code with bounded
 * waits. Only volume_submit() calls those marked "worker": one at a time for
 * a volume, in a thread, so they may block, keep no state but the
 * volume's, and touch nothing of the loop.
 *
 * How a volume is made without ever freeing somebody else's:
 *   create   makes it under a name of ours, and tells its identity
 *   publish  gives it the wanted name, and refuses a name that is taken
 *   remove   takes away what has that very identity, under either name
 * so a crash between any two of them leaves something that is ours by name or
 * by an identity that the journal holds.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "base/cleanup.h"

struct backend_ops;
struct bulk_ops;
struct err;
struct keep;

enum backend_format { FORMAT_RAW, FORMAT_QCOW2 };

enum backend_cache { CACHE_AUTO, CACHE_NONE, CACHE_WRITEBACK };

/* A named volume: what a URI says. Backends extend it by embedding. */
struct volume {
    const struct backend_ops *ops;
    char *uri;  /* as given: parses again, and no option of ours is a secret */
    char *name; /* the URI without its options: what messages call it */
    enum backend_format format;
    bool format_given;
    uint64_t size; /* bytes wanted by size=, 0: the source's */
    enum backend_cache cache;
    bool existing; /* existing=yes: use what is there; block:, nbd: always */
    char *like;    /* local file that a new one's owner and mode follow */
    bool busy;     /* a submitted act is under way (volume_submit) */
};

/* Whether it can be opened with O_DIRECT. */
enum volume_direct { DIRECT_UNKNOWN, DIRECT_WORKS, DIRECT_REFUSED };

/* What looking at a volume tells. Figures are bytes. */
struct volume_info {
    bool exists;
    uint64_t size;       /* virtual size of the raw volume or file length */
    uint64_t allocated;  /* what it really holds, UINT64_MAX: unknown */
    uint64_t data;       /* so much at least is no hole; 0: unknown */
    uint64_t available;  /* free space where it is or would be, or UINT64_MAX */
    char space[96];      /* where that is: equal texts share it; "": unknown */
    uint32_t block_size; /* logical, for O_DIRECT; 0: unknown */
    uint32_t direct_size;       /* what QEMU up to 10.0 takes it for; or 0 */
    enum volume_direct direct;  /* by a trial */
    enum backend_format format; /* by its magic; raw if there is none */
    uint64_t format_size;       /* virtual size by the qcow2 header, or 0 */
    bool has_backing;           /* a qcow2 header that names a backing file */
    bool zero;                  /* proved to read as zeroes all over */
    bool read_only;             /* it cannot be written, or not be made */
    bool in_use;                /* somebody holds it open or locked */
    bool no_flush; /* its server takes no flush: a dead one is not noticed */
    char in_use_by[96]; /* who, as far as the storage tells */
    unsigned holders; /* so many live ones have it open to write; 0: unknown */
    char identity[160]; /* compare whole; see each backend's head */
    /*
     * answer: changes when the server may have forgotten what it had taken
     * and not yet written out; "" where nothing tells, or nothing can be lost.
     */
    char life[40];
    bool torn;  /* answer: it is there, and its end cannot be read */
    bool rival; /* answer, which fails then: another host has it open, too */
    /*
     * How it stands on this host, for detach to give back; "": QEMU can open
     * it as it is, and attach has nothing to do.
     */
    char state[16];
    /* attach, also one that fails: there is nothing of it to give back. */
    bool untouched;
    /* probe, answer: why not every copy gets every write; "": each does. */
    char degraded[96];
    bool heals; /* ... which mends itself in a while */
    /* probe of an absent one: what is made there may hold what was there. */
    bool stale;
    bool fills; /* thin, but zeroes that are written take up their space */
    /* probe: why a user on another host would not be seen; "": he would. */
    char alone[96];
};

enum backend_flags {
    BACKEND_CREATES = 1 << 0,     /* can make volumes */
    BACKEND_FORMATS = 1 << 1,     /* can hold qcow2: a file that grows */
    BACKEND_LEGACY_NAME = 1 << 2, /* has a file name for drive-mirror */
    BACKEND_COARSE = 1 << 4,      /* QEMU sees clusters far above a mirror's */
    BACKEND_STALLS =
        1 << 5, /* QEMU stands still where it looks at a dead one */
    BACKEND_OF_HOST = 1 << 6, /* what it makes is a device of this host */
    BACKEND_NBD = 1 << 3, /* nodes are NBD clients: QEMU needs yank for them */
};

/* What a plan knew of a volume that is to be made usable, or given back. */
struct volume_planned {
    const char *identity; /* NULL or "": unknown */
    const char *state;    /* volume_info.state */
    bool again;           /* an earlier try may have changed that */
    bool alone;           /* also where users elsewhere would not be seen */
};

struct backend_ops {
    const char *scheme; /* "file", "nfs", "rbd", "block", "drbd", ... */
    const char *title;  /* for messages: "NFS file" */
    const char *needs;  /* packages to build with; told where it is absent */
    unsigned flags;

    /*
     * Pure, but for the working directory that a relative path starts from:
     * from the URI (scheme kept) to a new volume.
     */
    int (*parse)(const char *uri, struct volume **ret, struct err **errp);
    /*
     * Pure: from the options or the file name that QEMU tells of an open
     * protocol node ('driver', 'filename' of query-named-block-nodes) to a
     * new volume; -ENOENT if it is none of this backend's.
     */
    int (*from_node)(const char *driver, const char *filename,
                     struct volume **ret);
    void (*free)(struct volume *volume);

    /*
     * Pure: the blockdev-add options of the protocol node, without
     * node-name, as QEMU's BlockdevOptions{driver,...}; new reference, NULL
     * without memory. 'secret_id' is the secret object to refer to, or NULL.
     */
    json_t *(*node_options)(const struct volume *volume, const char *secret_id);
    /* Pure: the file name for drive-mirror; caller frees; NULL: none. */
    char *(*legacy_name)(const struct volume *volume);

    /* worker: look, change nothing. An absent volume is exists=false. */
    int (*probe)(struct volume *volume, struct volume_info *ret,
                 struct err **errp);
    /*
     * worker: one round trip to what holds the volume's last bytes, over a
     * connection that is not QEMU's; bounded, cheap, and no cache may answer.
     * Fills in exists, size, identity, life, torn, degraded and heals only.
     * NULL: probe is as good.
     */
    int (*answer)(struct volume *volume, struct volume_info *ret,
                  struct err **errp);
    /*
     * worker: make 'size' bytes that read as zero under the name 'temp' (in
     * the same directory, pool, ... as the volume); a 'temp' that is there
     * already is an earlier try of ours and is replaced. ret as probe; where
     * they may not read as zero, its 'zero' is false. A volume that cannot be
     * renamed has its own name at once, and 'temp' marks it.
     */
    int (*create)(struct volume *volume, const char *temp, uint64_t size,
                  struct volume_info *ret, struct err **errp);
    /*
     * worker: give 'temp' the volume's name; -EEXIST if that is taken by
     * something of another identity; 0 if it is done already.
     */
    int (*publish)(struct volume *volume, const char *temp,
                   const char *identity, struct err **errp);
    /*
     * worker: remove 'temp' (may be NULL) and what the volume's name holds,
     * the latter only if its identity is 'identity' (NULL: only temp; another
     * one there: -ESTALE). Both only if nobody holds them (-EBUSY). Nothing
     * there is success.
     */
    int (*remove)(struct volume *volume, const char *temp, const char *identity,
                  struct err **errp);
    /*
     * worker: make it usable on this host: QEMU can open it for writing then;
     * done by an earlier try is success. -ESTALE when it is not what was
     * planned, or stands otherwise; -EBUSY when somebody uses it. ret as
     * probe, and 'untouched' however it ends. NULL: it always is usable.
     */
    int (*attach)(struct volume *volume, const struct volume_planned *planned,
                  struct volume_info *ret, struct err **errp);
    /*
     * worker: give that back: as it was planned. Its state NULL: it is not
     * needed on this host any more, but what was brought up stays up. As it
     * was already, or another volume now, is success; -EBUSY when somebody has
     * it open.
     */
    int (*detach)(struct volume *volume, const struct volume_planned *planned,
                  struct err **errp);
    unsigned attach_ms; /* both end in that by themselves; 0: as any other */
    unsigned create_ms; /* the same of create */
    /* Pure: what one has that is made for so many bytes. NULL: just these. */
    uint64_t (*round)(uint64_t size);
    /* Pure: to attach one is to attach the other. NULL: never. */
    bool (*is_attached_with)(const struct volume *a, const struct volume *b);
    /*
     * worker: the secret that QEMU needs, base64 text for object-add secret
     * with format=base64; *ret NULL if none is needed. The caller wipes and
     * frees it.
     */
    int (*secret)(struct volume *volume, char **ret, struct err **errp);

    const struct bulk_ops *bulk; /* see bulk.h; NULL: no copying */
};

/* --- registry.c --- */

/*
 * Parses PATH or SCHEME:... with the common options format=, size=, cache=,
 * existing= and the backend's own. A scheme that this build lacks tells the
 * package to install; an unknown option is refused by name. A URI is
 * percent-decoded; of a plain PATH only what follows its last '?' is.
 */
int volume_parse(const char *uri, struct volume **ret, struct err **errp);
/* The volume behind an open protocol node of QEMU; -ENOENT if unknown. */
int volume_from_node(const char *driver, const char *filename,
                     struct volume **ret);
struct volume *volume_free(struct volume *volume);
DEFINE_CLEANUP(struct volume, volume_free)

/* All backends, NULL-ended; those not in this build have no 'parse'. */
extern const struct backend_ops *const backends[];

/* --- backend.c: blocking acts made asynchronous --- */

enum volume_act {
    VOLUME_PROBE,
    VOLUME_ANSWER,
    VOLUME_CREATE,
    VOLUME_PUBLISH,
    VOLUME_REMOVE,
    VOLUME_SECRET,
    VOLUME_ATTACH,
    VOLUME_DETACH,
};

struct volume_request {
    enum volume_act act;
    uint64_t size;        /* create */
    const char *temp;     /* create, publish, remove; copied */
    const char *identity; /* publish, remove, attach, detach; copied */
    const char *state;    /* attach, detach; copied, may be NULL */
    bool again;           /* attach: an earlier try may have done it */
    bool alone;           /* attach: see volume_planned */
    /*
     * create: a local file whose user can open the new one too, because it
     * gets its owner, group and mode as far as we may; NULL: unknown. Copied.
     */
    const char *like;
    /* -EAGAIN if too many such are under way. */
    bool aside;
    struct keep *keep; /* see keep.h; NULL: the act sets up all it needs */
};

struct volume_result {
    struct volume_info info; /* probe, answer, create, attach */
    char *secret;            /* secret; wiped and freed after the callback */
};

typedef void volume_done_fn(void *data, const struct err *err,
                            struct volume_result *result);

struct volume_work;

/*
 * Starts an act in a thread. The callback comes exactly once from the
 * loop; an act that the backend lacks fails there with -ENOTSUP (a missing
 * 'secret' means that none is needed). 'volume' must live until then and takes no second act meanwhile
 * (-EBUSY). An act cannot be stopped: after volume_work_cancel() it ends
 * unheard, if it ever does, and only then is the volume free: that is why the
 * work takes the volume over when it is cancelled.
 */
int volume_submit(uv_loop_t *loop, struct volume *volume,
                  const struct volume_request *request, volume_done_fn *cb,
                  void *data, struct volume_work **ret);
typedef void volume_left_fn(void *data);
/*
 * It is late: what it uses may hang, and no act that begins from now on gets
 * the same. To be called before it is cancelled.
 */
void volume_work_doubt(const struct volume_work *work);
/*
 * The callback will not come. Steals the volume, which the work now frees.
 * 'left' (NULL: none) is called when the act has ended, from its thread, or
 * from the loop: from then on it changes nothing any more.
 */
void volume_work_cancel(struct volume_work *work, volume_left_fn *left,
                        void *data);
