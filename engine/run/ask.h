/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Asking the engine that works on an operation for something, by the journal,
 * and following what it writes until the operation is over. It knows the
 * journal and nothing of QEMU; it never works on an operation itself.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

struct ask;
struct err;
struct journal;

enum ask_end {
    ASK_OVER,    /* it has ended, or has parked since: see its state */
    ASK_FREE,    /* no engine works on it (any more), and it has not */
    ASK_REFUSED, /* the engine's answer, in err: it goes on as it was */
    ASK_SILENT,  /* the engine has not taken notice in time */
    ASK_LATE,    /* it has, but the operation has not ended in time */
    ASK_FAILED,  /* the journal cannot be read or written */
};

/* What is known; borrowed for the duration of the callback. */
struct ask_report {
    const char *state;       /* as journalled */
    const json_t *operation; /* journal_load() */
    const char *step;        /* the last one that it tells of, or "" */
    const char *disk;        /* ... and its disk, or "" */
    const char *phase;       /* of it: "run" "ended" "undo" "undone" */
    bool asked;              /* the request is in the journal */
    uint64_t pid;            /* of the engine, 0: not known */
    bool alive;              /* that process is seen here, and lives */
    bool stopped;            /* ... but stands still, by a signal */
};

struct ask_callbacks {
    void *data;
    /* Every record since it was asked, see journal_load(). May be NULL. */
    void (*record)(void *data, const json_t *record);
    /* Once; the asking is over and freed by then. 'report' NULL: no memory. */
    void (*ended)(void *data, enum ask_end end, const struct ask_report *report,
                  const struct err *err);
};

struct ask_options {
    uv_loop_t *loop;
    struct journal *journal;
    const char *op;
    const char *word;    /* such as OP_WORD_ABORT */
    const json_t *args;  /* an object for the operation, or NULL */
    unsigned notice_ms;  /* until the engine takes notice */
    unsigned timeout_ms; /* until the operation has ended */
};

/* All is copied. -ENOENT when the journal does not know the operation. */
int ask_start(const struct ask_options *options,
              const struct ask_callbacks *callbacks, struct ask **ret,
              struct err **errp);
/* No callback comes any more; what was asked for stays asked. */
void ask_stop(struct ask *ask);
