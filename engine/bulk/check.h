/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Compares a disk with its copy while a QEMU has both open, through channels
 * of its own: asynchronous, cancellable, by blocks of 64 KiB. And the scratch
 * image that QEMU hands over in what the guest has rewritten: a dirty bitmap
 * of it, by the name CHECK_BITMAP. It knows volumes and paths, no monitor.
 *
 * What is told as equal was so when it was read; who calls has to know what
 * may change meanwhile.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

struct check;
struct err;

#define CHECK_BITMAP "dirty"

enum { CHECK_GRANULARITY = 64 << 10 };

enum check_act {
    CHECK_PREPARE, /* make the scratch image, and try to open both sides */
    CHECK_COMPARE,
    CHECK_REMOVE, /* the scratch image; nothing there is success */
    CHECK_OWN,    /* 'differing': what 'target' holds above its backing */
};

struct check_request {
    enum check_act act;
    const char *dir;     /* of the scratch image: only we write to it */
    const char *scratch; /* its path */
    uint64_t owner;      /* QEMU's user: root gives it the image */
    const char *source;  /* URIs */
    const char *source_format;
    const char *target;
    const char *target_format;
    uint64_t size; /* bytes that are to be equal */
    bool sample;   /* only what 'seed' chooses: the same each time */
    const char *seed;
    /* Only 'ranges' and, if 'scratch' is set, what that image tells. */
    bool again;
    const json_t *ranges; /* [offset, length, ...] */
    uint64_t speed;       /* bytes a second of each side, 0: any */
    unsigned limit_ms;    /* then -ETIMEDOUT; 0: none */
    unsigned stall_ms;    /* the same, while nothing is read; 0: none */
};

struct check_result {
    uint64_t chosen;    /* bytes that are to be compared in all */
    uint64_t looked;    /* that were to be this time */
    uint64_t differing; /* bytes */
    json_t *ranges;     /* where, by blocks: a few hundred pairs at most */
    char where[160];    /* the same for people: the first of them */
    uint64_t ms;
};

struct check_callbacks {
    void *data;
    /* Every half second of a comparison; may be NULL. */
    void (*progress)(void *data, uint64_t bytes, uint64_t total);
    /* Once; 'result' is borrowed, and NULL after an error. */
    void (*ended)(void *data, const struct err *err,
                  const struct check_result *result);
};

/* All texts are copied. Starts a thread; the callbacks come from the loop. */
int check_start(uv_loop_t *loop, const struct check_request *request,
                const struct check_callbacks *callbacks, struct check **ret,
                struct err **errp);
/*
 * It ends soon, with -ECANCELED: a thread that hangs in storage is left alone
 * after 5 s.
 */
void check_cancel(struct check *check);

/* Whether CHECK_PREPARE has left something there. */
bool check_has_scratch(const char *dir, const char *scratch);

/* Bytes of a disk of this size that a sample takes; pure. */
uint64_t check_sample_bytes(uint64_t size, const char *seed);
