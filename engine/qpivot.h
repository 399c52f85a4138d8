/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qpivot - moves the disks of running QEMU virtual machines over QMP.
 *
 * Everything here runs on one libuv loop and is called from its thread only.
 * Nothing blocks but where it says so. A callback comes from the loop, never
 * from inside the call that asked for it; text that a callback gets is
 * borrowed for its duration. JSON crosses as UTF-8 text, so that neither
 * jansson nor libuv is part of this interface.
 *
 * Errors are JSON objects: {"object","command","class","desc","hint"}, see
 * libqpivot(3). Where a function takes 'char **ret_error' it may be NULL; else
 * it is set on failure only and the caller releases it by qpivot_free().
 *
 * Structures start with their own size, so that later versions can grow them:
 * zero them, set .size = sizeof(the structure), then what you need.
 */
#ifndef QPIVOT_H
#define QPIVOT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define QPIVOT_API __attribute__((visibility("default")))
#else
#define QPIVOT_API
#endif

struct uv_loop_s; /* uv_loop_t */
struct qpivot_engine;
struct qpivot_op;
struct qpivot_request;
struct qpivot_monitor;
struct qpivot_transfer;

/* The release of the library that is loaded, "0.1.0". */
QPIVOT_API const char *qpivot_version(void);
/*
 * What was built in: {"version","backends":[{"scheme","title","available"}],
 * "libraries":{..}}; released by qpivot_free().
 */
QPIVOT_API char *qpivot_build_info(void);
QPIVOT_API void qpivot_free(char *text);

/* --- the engine: one per loop --- */

struct qpivot_engine_options {
    size_t size;
    struct uv_loop_s *loop; /* the caller's; NULL: one of the engine's own */
    const char *state_dir;  /* where the journal is; NULL: none, for monitors */
    const char *trace_file; /* every QMP line both ways; NULL: none */
};

/*
 * Blocks while the journal is opened. -EINVAL, -ENOMEM, or what opening the
 * state directory said.
 */
QPIVOT_API int qpivot_engine_new(const struct qpivot_engine_options *options,
                                 struct qpivot_engine **ret, char **ret_error);
/*
 * Runs the loop until no operation and no monitor of this engine is left, for
 * callers without a loop of their own. 0, or -EINVAL on a foreign loop.
 */
QPIVOT_API int qpivot_engine_run(struct qpivot_engine *engine);
/*
 * Detaches from operations that still run (they are left to recover, as after
 * a crash) and frees the engine from the loop; 'closed' may be NULL. With an
 * own loop it blocks until that is done.
 */
QPIVOT_API void qpivot_engine_close(struct qpivot_engine *engine,
                                    void (*closed)(void *data), void *data);
/*
 * Threads of this process, of whatever engine, that are held by storage that
 * does not answer; nobody waits for them. While there are any, end the process
 * by _exit(): exit() takes away what librados still uses in them, and aborts.
 */
QPIVOT_API unsigned qpivot_hung_threads(void);

/* --- operations --- */

/* How an operation ended; the values are the exit codes of qpivot(1). */
enum qpivot_outcome {
    QPIVOT_DONE = 0,       /* the guest uses the targets, all is tidy */
    QPIVOT_FAILED = 1,     /* rolled back: all is as it was before */
    QPIVOT_REFUSED = 2,    /* nothing was changed */
    QPIVOT_PARKED = 3,     /* stopped for a person; see qpivot_recover() */
    QPIVOT_UNREACHABLE = 4 /* no monitor, or a busy one */
};

struct qpivot_callbacks {
    void *data;
    /*
     * One JSON object: "time", "op", "event" (plan step progress ready pivot
     * proof warning done failed parked) and what qpivot-move(1) lists. NULL:
     * not interested.
     */
    void (*event)(void *data, const char *json);
    /* Once, after the last event; 'op' must not be used afterwards. */
    void (*ended)(void *data, enum qpivot_outcome outcome);
};

struct qpivot_disk {
    const char *disk;   /* device id, drive id or node name */
    const char *target; /* URI, see qpivot(7) */
};

enum qpivot_copy_mode {
    QPIVOT_COPY_AUTO = 0,
    QPIVOT_COPY_BACKGROUND,
    QPIVOT_COPY_WRITE_BLOCKING
};

enum qpivot_via {
    QPIVOT_VIA_AUTO = 0, /* blockdev-mirror where the target allows it */
    QPIVOT_VIA_BLOCKDEV_MIRROR,
    QPIVOT_VIA_DRIVE_MIRROR
};

/* TOP: the target of a linked clone stands on the base of its source. */
enum qpivot_sync { QPIVOT_SYNC_AUTO = 0, QPIVOT_SYNC_FULL, QPIVOT_SYNC_TOP };

/* Source and target are read and compared before the pivot. */
enum qpivot_verify_mode {
    QPIVOT_VERIFY_NONE = 0,
    QPIVOT_VERIFY_SAMPLE, /* 1 %, at least 64 MiB, and both ends */
    QPIVOT_VERIFY_FULL
};

enum {
    QPIVOT_DRY_RUN = 1 << 0,          /* plan only, change nothing */
    QPIVOT_DELETE_SOURCE = 1 << 1,    /* remove the source after the proof */
    QPIVOT_DROP_BITMAPS = 1 << 2,     /* go on though bitmaps would be lost */
    QPIVOT_DROP_SNAPSHOTS = 1 << 3,   /* go on though snapshots would be lost */
    QPIVOT_AUTO_CONVERGE = 1 << 4,    /* QEMU may slow the guest down */
    QPIVOT_SUSPEND = 1 << 5,          /* pause the guest for the last pass */
    QPIVOT_KEEP_SOURCE = 1 << 6,      /* leave the source's QEMU, paused */
    QPIVOT_TIMEOUT_SUSPENDS = 1 << 7, /* timeout_ms pauses, not aborts */
    QPIVOT_XBZRLE = 1 << 8,           /* send what changed in a page */
    QPIVOT_UNIX = 1 << 9,             /* by unix sockets of this host */
    QPIVOT_TUNNEL = 1 << 10,          /* by the ssh connection of 'to' */
    QPIVOT_POSTCOPY = 1 << 11, /* the guest goes over before its memory */
    QPIVOT_TIMEOUT_POSTCOPIES = 1 << 12, /* timeout_ms has it do so */
    QPIVOT_ALLOW_DEGRADED = 1 << 13      /* pivot though a replica is behind */
};

/* How the bytes get there. */
enum qpivot_strategy {
    QPIVOT_STRATEGY_AUTO = 0, /* base where internal snapshots are carried */
    QPIVOT_STRATEGY_MIRROR = 1,
    QPIVOT_STRATEGY_BASE = 2 /* the image as it is, below an overlay */
};

struct qpivot_move_options {
    size_t size;
    const char *qmp; /* PATH unix:PATH tcp:HOST:PORT ssh://HOST/PATH exec:.. */
    const struct qpivot_disk *disks;
    unsigned n_disks;
    unsigned flags;
    enum qpivot_copy_mode copy_mode;
    enum qpivot_via via;
    enum qpivot_sync sync;
    uint64_t speed;                /* bytes/s of each disk, 0: no limit */
    unsigned max_guest_latency_ms; /* of guest writes, 0: do not govern */
    unsigned timeout_ms;           /* until the pivot, else back; 0: none */
    unsigned freeze_limit_ms;      /* of a group's frozen moment, 0: 2000 */
    unsigned command_timeout_ms;   /* of one QMP command; 0: 30000 */
    const char *emit_config;       /* file for the new description, or NULL */
    const char *persist_hook;      /* command that gets it on stdin, or NULL */
    const char *space_hook;     /* command run when a target is full, or NULL */
    unsigned target_timeout_ms; /* without an answer of it; 0: 300000 */
    enum qpivot_verify_mode verify;
    /*
     * After the pivot: so long each source is kept equal to its target, and
     * qpivot_op_return() goes back to it; in milliseconds, 0: not at all.
     */
    unsigned undo_window_ms;
    enum qpivot_strategy strategy;
};

/*
 * Plans the move of the named disks and carries it out. Returns 0 and 'ended'
 * comes exactly once, or -EINVAL, -ENOMEM and no callback ever comes. What
 * the plan refuses comes as a 'failed' event with all problems and
 * QPIVOT_REFUSED. All texts are copied.
 */
QPIVOT_API int qpivot_move(struct qpivot_engine *engine,
                           const struct qpivot_move_options *options,
                           const struct qpivot_callbacks *callbacks,
                           struct qpivot_op **ret, char **ret_error);

struct qpivot_migrate_options {
    size_t size;
    const char *qmp; /* the source, as above */
    const char *to;  /* the destination: QEMU with -incoming defer -S */
    /*
     * 'target' is "share", "nbd", "direct", or a URI that takes the place of
     * the destination's placeholder; disks left out are decided on.
     */
    const struct qpivot_disk *disks;
    unsigned n_disks;
    unsigned flags;
    uint64_t bandwidth;          /* bytes/s of disks and memory, 0: no limit */
    unsigned downtime_limit_ms;  /* 0: QEMU's own */
    unsigned multifd;            /* channels, 0: one plain stream */
    unsigned timeout_ms;         /* until the switchover; 0: none */
    unsigned freeze_limit_ms;    /* the guest stands at the source; 0: 5000 */
    unsigned command_timeout_ms; /* of one QMP command; 0: 30000 */
    unsigned export_port;        /* of the destination's NBD server, 0: any */
    const char *address;      /* of the destination, as the source reaches it */
    const char *emit_config;  /* file for where the VM is now, or NULL */
    const char *persist_hook; /* command that gets it on stdin, or NULL */
    uint64_t xbzrle_cache;    /* bytes, 0: QEMU's own */
    /* Stream and exports by TLS with these X.509 credentials; NULL: plain. */
    const char *tls_dir;      /* as the source's QEMU sees it */
    const char *tls_dir_to;   /* the destination's; NULL: by the same path */
    const char *tls_hostname; /* of its certificate; NULL: 'address' */
    const char *tls_authz;    /* the one client name it takes; NULL: any */
    /*
     * Linked clones: AUTO leaves those on their base whose base is proved to
     * be at the destination, TOP fails for others, FULL makes one image of each.
     */
    enum qpivot_sync sync;
};

/*
 * Plans the migration of the VM to the QEMU 'to' and carries it out; as
 * qpivot_move(). The done event has "blackout_ms".
 */
QPIVOT_API int qpivot_migrate(struct qpivot_engine *engine,
                              const struct qpivot_migrate_options *options,
                              const struct qpivot_callbacks *callbacks,
                              struct qpivot_op **ret, char **ret_error);

struct qpivot_recover_options {
    size_t size;
    const char *op;  /* the operation's id */
    const char *qmp; /* where its QEMU is now; NULL: as in the journal */
    /*
     * 1: back instead of forward, before the pivot or in an undo window; 2:
     * only from an undo window, else -EALREADY and nothing is changed.
     */
    int undo;
    const char *emit_config;  /* instead of the journal's; NULL: as there */
    const char *persist_hook; /* instead of the journal's; NULL: as there */
    /*
     * The journal is lost: found by what is in 'qmp', which must be given. 'op'
     * may be NULL. -EEXIST as an outcome where this journal knows it.
     */
    int from_qemu;
};

/*
 * Takes up an operation whose engine is gone: reads the journal, asks the
 * real world, then goes on, goes back or parks. As qpivot_move(). -EBUSY when
 * the engine that owns it still lives.
 */
QPIVOT_API int qpivot_recover(struct qpivot_engine *engine,
                              const struct qpivot_recover_options *options,
                              const struct qpivot_callbacks *callbacks,
                              struct qpivot_op **ret, char **ret_error);

struct qpivot_doctor_options {
    size_t size;
    const char *qmp; /* the QEMU to look at */
    const char *op;  /* this operation only; NULL: all that are found */
    int fix;         /* remove what is left over */
    unsigned command_timeout_ms; /* of one QMP command; 0: 30000 */
};

/*
 * Tells what carries our names in a QEMU, to which operation each belongs and
 * what uses it; with 'fix' removes what is left of operations that have ended,
 * and of one that this journal does not know if 'op' names it. What a guest's
 * device reaches, or anybody else uses, stays. The last event is done, or
 * parked where something remains: qpivot-doctor(1) lists its members. Without
 * a state directory every operation is an unknown one. As qpivot_move(), but
 * nothing is journalled, and nothing is undone.
 */
QPIVOT_API int qpivot_doctor(struct qpivot_engine *engine,
                             const struct qpivot_doctor_options *options,
                             const struct qpivot_callbacks *callbacks,
                             struct qpivot_op **ret, char **ret_error);

struct qpivot_abort_options {
    size_t size;
    const char *op;      /* the operation's id */
    const char *qmp;     /* where its QEMU is now; NULL: as in the journal */
    unsigned timeout_ms; /* until it is back; 0: 180000 */
};

/*
 * Takes an operation back, whichever process works on it: its engine is asked
 * by the journal and followed; where that is dead this one takes it over, as
 * qpivot_recover() with 'undo'. Events are those of an operation and end with
 * 'done', 'failed' or 'parked', which have "answer":
 *   "back"      QPIVOT_DONE: jobs and nodes of ours are gone, the disks in
 *               "disks" were proved to use their source;
 *   "too-late"  QPIVOT_REFUSED: the guest uses the targets, it goes on;
 *   "unknown"   QPIVOT_PARKED: "error", "engine", "step", "phase" and "next"
 *               tell what is known.
 * 0 and 'ended' comes exactly once from the loop, or -EINVAL, -ENOMEM, or
 * -ENOENT for an operation that the journal does not know.
 */
QPIVOT_API int qpivot_abort(struct qpivot_engine *engine,
                            const struct qpivot_abort_options *options,
                            const struct qpivot_callbacks *callbacks,
                            struct qpivot_request **ret, char **ret_error);
/*
 * The same from within an undo window: the guest goes back to the sources, and
 * nothing that it wrote since the pivot is lost. "back": the guest was proved
 * to use them; "too-late": there is no window, no more, or its way back is
 * broken, as "error" tells: the guest stays on the targets.
 */
QPIVOT_API int qpivot_undo(struct qpivot_engine *engine,
                           const struct qpivot_abort_options *options,
                           const struct qpivot_callbacks *callbacks,
                           struct qpivot_request **ret, char **ret_error);
/*
 * Follows no more: 'ended' comes with QPIVOT_PARKED. What was asked of another
 * engine stays asked; what this one took over is left to recover.
 */
QPIVOT_API void qpivot_request_detach(struct qpivot_request *request);

/* The operation's id; borrowed, lives as long as the operation. */
QPIVOT_API const char *qpivot_op_id(const struct qpivot_op *op);
/*
 * Goes back if it still can; 'ended' tells. After the pivot it is too late:
 * -EALREADY, and the operation goes on forward.
 */
QPIVOT_API int qpivot_op_abort(struct qpivot_op *op);
/*
 * Goes back to the sources after the pivot, while the undo window is open;
 * 'ended' tells: QPIVOT_FAILED, and its event has "returned". Nothing that was
 * written since the pivot is lost. -EALREADY when there is no window, or no
 * more; a warning tells when it turns out that the way back is broken.
 */
QPIVOT_API int qpivot_op_return(struct qpivot_op *op);
/*
 * Lets go at once and leaves everything to recover; 'ended' comes with
 * QPIVOT_PARKED.
 */
QPIVOT_API void qpivot_op_detach(struct qpivot_op *op);

/*
 * The journal: an array of operations, newest first, or one with its steps;
 * "alive" in each tells whether an engine works on it. Copies that run or were
 * interrupted are among them, by their records: kind "copy", see
 * qpivot-list(1). Both block for a short read of the journal.
 */
QPIVOT_API int qpivot_list(struct qpivot_engine *engine, char **ret_json,
                           char **ret_error);
QPIVOT_API int qpivot_show(struct qpivot_engine *engine, const char *op,
                           char **ret_json, char **ret_error);
/*
 * The table of an operation ("move", "undo", "migrate") as JSON: [{"step","does","undo","flags"}]
 * for diagrams; released by qpivot_free(). NULL if there is none such.
 */
QPIVOT_API char *qpivot_explain(const char *operation);

/* --- volumes at rest: no QEMU is asked --- */

enum {
    QPIVOT_EXISTING = 1 << 4,     /* the target is there: overwrite it */
    QPIVOT_FORCE_SHARE = 1 << 5,  /* read what somebody may be writing */
    QPIVOT_VERIFY = 1 << 6,       /* read the target back and compare */
    QPIVOT_CLEAN = 1 << 7,        /* failed: remove what was made */
    QPIVOT_LOW_PRIORITY = 1 << 8, /* idle I/O class, nice 19 */
    QPIVOT_NO_OFFLOAD = 1 << 9    /* never let the storage copy by itself */
};

struct qpivot_copy_options {
    size_t size;
    const char *source; /* URIs, see qpivot(7) */
    const char *target;
    unsigned flags;       /* the six above, QPIVOT_DRY_RUN */
    uint64_t speed;       /* bytes a second that are read, 0: no limit */
    uint64_t memory;      /* bytes of buffers, 0: 64 MiB */
    const char *manifest; /* file that the digests are written to, or NULL */
};

/*
 * Copies a volume that nobody uses to another one, of the same size at least.
 * Events are plan, progress, warning, then done or failed, as qpivot-copy(1)
 * lists them. 0 and 'ended' comes exactly once from the loop, or -EINVAL (also
 * for an engine without a state directory), -ENOMEM and no callback comes.
 * After QPIVOT_FAILED the same call goes on where it was. Texts are copied.
 */
QPIVOT_API int qpivot_copy(struct qpivot_engine *engine,
                           const struct qpivot_copy_options *options,
                           const struct qpivot_callbacks *callbacks,
                           struct qpivot_transfer **ret, char **ret_error);

struct qpivot_verify_options {
    size_t size;
    const char *a;        /* URIs, see qpivot(7) */
    const char *b;        /* may be NULL where there is a manifest */
    unsigned flags;       /* QPIVOT_FORCE_SHARE, QPIVOT_LOW_PRIORITY */
    uint64_t speed;       /* bytes a second that are read, 0: no limit */
    uint64_t memory;      /* bytes of buffers, 0: 64 MiB */
    const char *manifest; /* digests that both must have, or NULL */
};

/*
 * Compares two volumes, or one or two with a manifest; the longer one's rest
 * must be zeroes. As qpivot_copy(), but no state directory is needed.
 * QPIVOT_DONE: equal; QPIVOT_FAILED: not, and a 'differences' event has told the
 * first ranges.
 */
QPIVOT_API int qpivot_verify(struct qpivot_engine *engine,
                             const struct qpivot_verify_options *options,
                             const struct qpivot_callbacks *callbacks,
                             struct qpivot_transfer **ret, char **ret_error);

/* Of this pair, the same each time; borrowed, lives as long as it runs. */
QPIVOT_API const char *qpivot_transfer_id(
    const struct qpivot_transfer *transfer);
/* It ends soon as failed; the same call goes on where it was. */
QPIVOT_API void qpivot_transfer_cancel(struct qpivot_transfer *transfer);

/* --- looking: a monitor --- */

struct qpivot_monitor_callbacks {
    void *data;
    /* Once: 'error' NULL when it is open. After an error: close it. */
    void (*opened)(void *data, const char *error);
    /* Every event of QEMU, whole; may be NULL. */
    void (*event)(void *data, const char *json);
    /* The connection is gone; close it. May be NULL. */
    void (*lost)(void *data, const char *error);
};

QPIVOT_API int qpivot_monitor_open(struct qpivot_engine *engine,
                                   const char *qmp,
                                   const struct qpivot_monitor_callbacks *cb,
                                   struct qpivot_monitor **ret,
                                   char **ret_error);
QPIVOT_API void qpivot_monitor_close(struct qpivot_monitor *monitor);

/* 'error' NULL: 'result' is JSON. */
typedef void qpivot_reply_fn(void *data, const char *error, const char *result);

/*
 * Sends a command; 'arguments' is a JSON object or NULL. 'timeout_ms' 0: none.
 * Every call that was accepted gets its reply, -ECANCELED on close.
 */
QPIVOT_API int qpivot_monitor_execute(
    struct qpivot_monitor *monitor, const char *command, const char *arguments,
    unsigned timeout_ms, qpivot_reply_fn *reply, void *data, char **ret_error);
/*
 * The names of all commands (command NULL) or of a command's arguments, as a
 * JSON array, from this QEMU's schema.
 */
QPIVOT_API int qpivot_monitor_names(struct qpivot_monitor *monitor,
                                    const char *command, qpivot_reply_fn *reply,
                                    void *data);
/*
 * The block graph: {"nodes":[..],"devices":[..],"jobs":[..],"exports":[..],
 * "edges":[..]}, see qpivot-graph(1).
 */
QPIVOT_API int qpivot_monitor_graph(struct qpivot_monitor *monitor,
                                    qpivot_reply_fn *reply, void *data);

struct qpivot_destination_options {
    size_t size;
    /* Where the destination has a disk; those left out are as they are. */
    const struct qpivot_disk *disks;
    unsigned n_disks;
    const char *monitor; /* path of the destination's monitor, or NULL */
    int same_paths;      /* sockets keep their paths: it is on another host */
};

/*
 * The command line of a QEMU that waits for this VM: {"argv":[..],"notes":[..],
 * "monitor":PATH or null}, see qpivot-destination-argv(1). Blocks for a read of
 * /proc; -ENOENT where QEMU's process is not seen from here.
 */
QPIVOT_API int qpivot_monitor_destination(
    struct qpivot_monitor *monitor,
    const struct qpivot_destination_options *options, qpivot_reply_fn *reply,
    void *data, char **ret_error);

#ifdef __cplusplus
}
#endif
#endif
