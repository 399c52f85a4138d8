/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A storage in memory that processes share: the fake QEMU opens its volumes,
 * and a forked engine makes and removes them through a backend of its own
 * ("fake:/NAME"). A volume holds no bytes but the numbers of the guest's
 * writes that are in it.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

enum {
    STORE_VOLUMES = 16,
    STORE_WRITES = 16384,
    STORE_NAME = 64,
    STORE_CALLS = 128,
    STORE_STATE = 12
};

/* How a volume stands on the host, where that matters: volume_info.state. */
#define STORE_DOWN "down"
#define STORE_UP "up"
#define STORE_USABLE "usable" /* only so QEMU can open it */

struct store_volume {
    bool used;
    char name[STORE_NAME]; /* "/fake/..." */
    char identity[24];
    uint64_t size;
    uint64_t format_size;    /* of the qcow2 image in it, 0: raw */
    bool open;               /* a node of the fake QEMU has it */
    bool guest;              /* and a device reaches that node */
    char state[STORE_STATE]; /* "": it is always usable */
    unsigned looks;          /* at the last of these it is degraded, 0: never */
    bool degraded;
    uint64_t writes[STORE_WRITES / 64];
};

enum store_fault {
    STORE_FINE,
    STORE_ERROR,      /* not done, and told so */
    STORE_DONE_ERROR, /* done, and told otherwise */
    STORE_SILENCE,    /* not done, and never told */
    STORE_DONE_SILENCE,
};

struct store {
    struct store_volume volumes[STORE_VOLUMES];
    unsigned n_made;
    int tag;          /* set by the engine's side: what it is about now */
    unsigned n_calls; /* of the backend's acts, but for secrets */
    int tags[STORE_CALLS];
    /* The act of this number goes wrong; 'for_good': all after it too. */
    unsigned fault_at;
    enum store_fault fault;
    bool for_good;
    bool fired;
    bool hangs;          /* the act that has just been called never returns */
    char violation[160]; /* what must never happen, and did */
};

/* Shared by all children that this process forks from now on. */
struct store *store_new(void);
struct store *store_free(struct store *store);
void store_clear(struct store *store);

/* A volume with that name; NULL: there is none. */
struct store_volume *store_find(struct store *store, const char *name);
struct store_volume *store_add(struct store *store, const char *name,
                               uint64_t size);

void store_write(struct store_volume *volume, unsigned number);
bool store_has(const struct store_volume *volume, unsigned number);
bool store_is_usable(const struct store_volume *volume);

/*
 * Instead of check_start(), whose --wrap calls this: a scratch image is a
 * volume here, and what is compared is equal unless 'differs' says otherwise.
 */
struct check_request;
struct check_result;
struct err;
int store_check(const struct check_request *request, struct check_result *ret,
                struct err **errp);

/* The same of copy_start(): all that the one volume holds, onto the other. */
struct copy_options;
int store_copy(const struct copy_options *options, struct err **errp);

/* Puts the backend in front of all others. */
void store_register(struct store *store);
