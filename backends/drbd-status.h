/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What DRBD's programs print, read: how one volume of a resource stands, and
 * what a refusal means. Pure: it runs nothing.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct err;

enum { DRBD_PEERS_MAX = 32, DRBD_WORD = 20 };

struct drbd_peer {
    char name[40]; /* "peer" in 8.4, which does not tell it */
    char connection[DRBD_WORD];
    char role[DRBD_WORD];
    char replication[DRBD_WORD]; /* of the volume; "": not told */
    char disk[DRBD_WORD];        /* the peer's */
    bool client;                 /* without a disk on purpose */
};

struct drbd_status {
    char role[DRBD_WORD];
    char suspended[DRBD_WORD]; /* why its I/O stands still; "": it does not */
    bool found;                /* the volume: else the rest is empty */
    unsigned minor;
    char disk[DRBD_WORD];
    bool client;
    bool open;         /* somebody has it open, as far as it is told */
    bool no_quorum;    /* too few nodes are left to write */
    uint64_t size_kib; /* 0: unknown */
    struct drbd_peer peers[DRBD_PEERS_MAX];
    unsigned n_peers;
};

/*
 * 'drbdsetup status RES --verbose --statistics' of 8.4, and 'drbdsetup status
 * RES --json' of 9. -EPROTO when it is none.
 */
int drbd_status_from_text(const char *text, const char *resource,
                          unsigned volume, struct drbd_status *ret,
                          struct err **errp);
int drbd_status_from_json(const char *text, const char *resource,
                          unsigned volume, struct drbd_status *ret,
                          struct err **errp);

bool drbd_status_is_primary(const struct drbd_status *status);
/* The peer that has it Primary, or NULL. */
const struct drbd_peer *drbd_status_primary_peer(
    const struct drbd_status *status);

/*
 * What keeps a copy of every write from being on every node that should have
 * one: "" for nothing. 'ret_heals': DRBD is about to mend all of it by itself.
 */
enum { DRBD_DEGRADED = 96 };

void drbd_status_degraded(const struct drbd_status *status,
                          char ret[DRBD_DEGRADED], bool *ret_heals);

/*
 * Whether a peer may have it Primary without being known to: which one, and
 * why. Cleared otherwise.
 */
bool drbd_status_is_alone(const struct drbd_status *status,
                          char ret[DRBD_DEGRADED]);

/* Whether 'drbdsetup show RES' of 9 leaves promotion to who opens it. */
bool drbd_promotes_itself(const char *show);

/* "la-size-sect 131072;" of 'drbdadm dump-md': bytes; 0: it is not told. */
uint64_t drbd_metadata_size(const char *dump);

/*
 * A refusal of drbdadm or drbdsetup: sets the error with its own words and
 * number, and what to do about it. 'what' is the command, "drbdadm primary".
 */
int drbd_refusal(const char *object, const char *what, int status,
                 const char *errors, struct err **errp);
/* The number of it, "(-12)" -> -12; 0: there is none. */
int drbd_refusal_number(const char *errors);
bool drbd_says_down(const char *errors);      /* "No such resource" */
bool drbd_says_undefined(const char *errors); /* "not defined in your config" */
bool drbd_says_no_option(const char *errors); /* 8.4 knows no --json */
