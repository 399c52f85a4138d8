/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A QEMU with state, behind the scripted peer of fake/fake-qmp: nodes, the
 * devices on top of them, jobs and objects, as far as an operation sees them.
 * It refuses what QEMU 7.2 refuses, its replies have the shape of
 * the recordings in tests/unit/graph, and its guest writes before and after every
 * command, so that what a disk must hold is known at every moment.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "fake/fake-qmp.h"
#include "fake/fake-vm-store.h"

enum {
    FAKE_NODES = 48,
    FAKE_DEVICES = 4,
    FAKE_JOBS = 16,
    FAKE_EXPORTS = 4,
    FAKE_NAME = 40,
    FAKE_PATH = 108,
    FAKE_NOBODY = -1,
};

enum fake_status {
    FAKE_CREATED,
    FAKE_RUNNING,
    FAKE_READY,
    FAKE_WAITING,
    FAKE_PENDING,
    FAKE_CONCLUDED,
};

struct fake_node {
    bool used;
    bool owned;  /* by the monitor: stays without parents */
    bool active; /* of a QEMU that waits for a guest: it was exported */
    char name[FAKE_NAME];
    char driver[16];
    char path[STORE_NAME]; /* of a protocol node: its volume */
    char bitmap[16];
    bool persistent;         /* that one is, ... */
    bool busy;               /* ... is in a stream, ... */
    bool unstored;           /* ... and was: it is not stored at the end */
    char ours[2][FAKE_NAME]; /* bitmaps by names of ours */
    int child;               /* "file", or what a filter is on */
    int backing;             /* what it stands on, or FAKE_NOBODY */
    bool frozen;             /* read-only below an overlay */
    uint64_t size;
};

struct fake_device {
    char qdev[64];
    char drive[16];                     /* legacy drive id, or "" */
    int root;                           /* FAKE_NOBODY: it was unplugged */
    uint64_t writes[STORE_WRITES / 64]; /* acknowledged */
};

struct fake_job {
    bool used;
    char id[FAKE_NAME];
    bool mirror;   /* or commit; else create */
    bool commit;   /* 'source' is an overlay of 'target' */
    bool soft;     /* told to end without a pivot */
    bool twin;     /* copies what is written from now on, at once */
    bool blocking; /* copy-mode */
    bool synced;   /* actively-synced */
    enum fake_status status;
    bool auto_finalize;
    int source, target, filter, replaced;
    char error[64];
};

struct fake_export {
    bool used;
    char id[FAKE_NAME];
    int node;
};

enum fake_runstate {
    FAKE_RUNS,
    FAKE_PAUSED,
    FAKE_INMIGRATE,
    FAKE_FINISH_MIGRATE,
    FAKE_POSTMIGRATE,
};

/* query-migrate's status of the side that sends. */
enum fake_phase {
    FAKE_NO_STREAM,
    FAKE_SETUP,
    FAKE_ACTIVE,
    FAKE_GATE, /* pre-switchover */
    FAKE_DEVICE,
    FAKE_COMPLETED,
    FAKE_FAILED,
    FAKE_CANCELLING,
    FAKE_CANCELLED,
    FAKE_POSTCOPY, /* the guest is there, a part of its memory is not */
    FAKE_POSTCOPY_PAUSED,
};

struct fake_stream {
    enum fake_phase phase;
    unsigned passes;
    bool was_running;       /* the guest, when the stream stopped it */
    bool listens;           /* migrate-incoming has been told */
    bool connected;         /* ... and a source has come */
    bool by_socket;         /* as the source was told, a unix one */
    bool loaded;            /* all of the guest is here */
    bool postcopy;          /* migrate-start-postcopy has been told */
    unsigned pages;         /* looks for which its memory follows it yet */
    char socket[FAKE_PATH]; /* where it listens, or "": by TCP */
    bool autostart;         /* it runs once it is loaded: no -S */
    json_t *capabilities;   /* by name */
    json_t *parameters;
};

struct fake_vm {
    struct store *store;
    struct fake_vm *peer; /* where nbd nodes and streams go, or NULL */
    enum fake_runstate runstate;
    struct fake_stream stream;
    struct fake_export exports[FAKE_EXPORTS];
    unsigned serves;           /* port of its NBD server, 0: none */
    char serves_at[FAKE_PATH]; /* ... or a unix socket, and 'serves' is 1 */
    bool serves_tls;           /* ... to who speaks TLS only */
    unsigned taken; /* the first port that was asked for: somebody has it */
    bool was_incoming;
    bool ends; /* its process is about to end: the owner sees to it */
    bool dead;
    bool never_gate;      /* streams go on for ever */
    bool still;           /* ... and this one not at all: somebody looks */
    bool never_ends;      /* a mirror that was told to end does not */
    bool changes_jobs;    /* 8.2: block-job-change, and jobs tell of it */
    bool stays_behind;    /* then mirrors are READY, and never equal */
    bool wedges;          /* a cancelled stream waits for migrate-continue */
    bool never_told;      /* that its peer has all: their cable is cut */
    bool loses_link;      /* ... while the memory follows by postcopy */
    bool lacks_postcopy;  /* the capability */
    bool keeps_old_state; /* 10.0: a paused guest is 'paused' again */
    struct fake_qmp *qmp; /* set by the owner, for events */
    struct fake_node nodes[FAKE_NODES];
    struct fake_device devices[FAKE_DEVICES];
    unsigned n_devices;
    struct fake_job jobs[FAKE_JOBS];
    json_t *objects;  /* by id */
    json_t *chardevs; /* paths of sockets that listen, by id */
    char shutdown[16];
    bool never_ready; /* mirrors run for ever */
    unsigned n_writes;
    unsigned n_anonymous;
};

struct fake_vm *fake_vm_new(struct store *store);
struct fake_vm *fake_vm_free(struct fake_vm *vm);

/*
 * A disk on the volume 'path': nodes "fmt<N>" on "file<N>" of a -blockdev
 * guest's device "vd<N>", or with 'drive' those of -drive id=drv<N>.
 */
void fake_vm_add_disk(struct fake_vm *vm, const char *path, bool qcow2,
                      bool drive);

/* The last disk added stands on a base: the node "base<N>", of 'path'. */
void fake_vm_add_base(struct fake_vm *vm, const char *path);

/* The same on a placeholder, which is no volume. */
void fake_vm_add_placeholder(struct fake_vm *vm, uint64_t size, bool drive);

/* A fake_answer_fn; 'data' is the fake_vm. */
json_t *fake_vm_answer(void *data, const char *command, const json_t *args);

/* --- for checks --- */

/* The volume that the device uses now, or NULL. */
struct store_volume *fake_vm_volume(struct fake_vm *vm, unsigned device);
/* Whether that volume has all that the guest was told is written. */
bool fake_vm_is_whole(struct fake_vm *vm, unsigned device);
bool fake_vm_is_whole_on(const struct fake_vm *vm, unsigned device,
                         const struct store_volume *volume);
/* Whether a device does, by itself or by the nodes above. */
bool fake_vm_uses(const struct fake_vm *vm, const char *node);
/* What there is of ours beyond what devices use: an array of texts. */
json_t *fake_vm_leftovers(const struct fake_vm *vm);

/* Makes it one that waits for a guest, as -incoming defer [-S] does. */
void fake_vm_await(struct fake_vm *vm, bool autostart);
/* The device is gone, as after device_del. */
void fake_vm_unplug(struct fake_vm *vm, unsigned device);
/* Its process ends, now: what it was to its peer is no more. */
void fake_vm_die(struct fake_vm *vm);
/* Whether it has the guest: all of it, and the right to run it. */
bool fake_vm_holds_guest(const struct fake_vm *vm);
/* Whether a part of the memory is here of a guest that runs on its peer. */
bool fake_vm_is_halved(const struct fake_vm *vm);

/* --- between its files --- */

typedef json_t *fake_command_fn(struct fake_vm *vm, const json_t *args);

json_t *fake_vm_refuse(const char *fmt, ...)
    __attribute__((format(printf, 1, 2)));
int fake_vm_add_node(struct fake_vm *vm, const char *name, const char *driver,
                     int child, bool owned);
struct store_volume *fake_vm_volume_of(const struct fake_vm *vm, int node);
struct fake_job *fake_vm_find_job(struct fake_vm *vm, const char *id);
void fake_vm_event(struct fake_vm *vm, const char *name, json_t *data);
/* What must never happen has happened: the first such is kept. */
void fake_vm_violation(struct fake_vm *vm, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
/* Closes what nobody holds any more; the storage learns what is open. */
void fake_vm_settle(struct fake_vm *vm);
/* fake-vm-jobs.c */
bool fake_vm_job_lives(const struct fake_job *job);
/* The mirror whose filter 'node' is, or NULL. */
const struct fake_job *fake_vm_job_above(const struct fake_vm *vm, int node);
void fake_vm_tick(struct fake_vm *vm);
json_t *fake_vm_jobs(struct fake_vm *vm, const char *command,
                     const json_t *args);
/* fake-vm-stream.c, fake-vm-export.c: their commands; NULL: it is none. */
json_t *fake_vm_stream(struct fake_vm *vm, const char *command,
                       const json_t *args);
json_t *fake_vm_exports(struct fake_vm *vm, const char *command,
                        const json_t *args);
/* fake-vm-file.c: files by their names */
json_t *fake_vm_files(struct fake_vm *vm, const char *command,
                      const json_t *args);
json_t *fake_vm_look_for(struct fake_vm *vm, const json_t *args);
json_t *fake_vm_create_file(struct fake_vm *vm, const json_t *options);
/* fake-vm-bitmap.c */
json_t *fake_vm_bitmaps(struct fake_vm *vm, const char *command,
                        const json_t *args);
/* A socket's name on disk, which stays where nobody takes it away. */
void fake_vm_bind(char to[FAKE_PATH], const char *path);
void fake_vm_unbind(char path[FAKE_PATH]);
/* Of the stream, as a fresh QEMU has them; new reference. */
json_t *fake_vm_default_parameters(void);
/* NULL, or why an object that 'args' names by 'key' is not there. */
json_t *fake_vm_lacks_object(const struct fake_vm *vm, const json_t *args,
                             const char *key);
/* The stream begins: false where that is its end. */
bool fake_vm_send_bitmaps(struct fake_vm *vm);
/* It has ended; 'loaded': the peer has the guest. */
void fake_vm_end_bitmaps(struct fake_vm *vm, bool loaded);
/* An NBD client node: what the peer exports by that name. */
json_t *fake_vm_add_client(struct fake_vm *vm, const json_t *args);
struct store_volume *fake_vm_exported(const struct fake_vm *vm,
                                      const char *name);

int fake_vm_find(const struct fake_vm *vm, const char *name);
bool fake_vm_has_parent(const struct fake_vm *vm, int node);
const char *fake_vm_status_name(enum fake_status status);
/* fake-vm-look.c: the queries; NULL: it is none. */
json_t *fake_vm_look(struct fake_vm *vm, const char *command);
