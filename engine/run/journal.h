/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The journal: what every operation wanted, meant to do next, and did. One
 * SQLite file in WAL mode with synchronous=FULL: what a callback here reports
 * as written survives a power cut. It knows records, not what they mean.
 *
 * Records that wait at the same time are committed together, in libuv's pool;
 * the loop never waits for the disk.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "base/cleanup.h"

struct err;
struct journal;
struct journal_lock;

enum journal_kind {
    /* data: {"kind","version","qmp","plan","engine"}: a new one, with owner */
    JOURNAL_OPERATION,
    JOURNAL_STATE,  /* step: the operation's state; data: error or result */
    JOURNAL_INTENT, /* about to run the step */
    JOURNAL_END,    /* it ran; data: its facts */
    JOURNAL_UNDO,   /* about to undo the step */
    JOURNAL_UNDONE,
    JOURNAL_OWNER,   /* an engine works on it from now on: {"pid","start"} */
    JOURNAL_REQUEST, /* step: a word for that engine, see journal_news() */
    JOURNAL_ANSWER,  /* it has taken notice; both data have the same "id" */
};

typedef void journal_fn(void *data, const struct err *err);

/* Creates the directory (0700) and the file (0600) when they are missing. */
int journal_open(uv_loop_t *loop, const char *dir, struct journal **ret,
                 struct err **errp);
/* Whether all that was appended is written and told. */
bool journal_is_idle(const struct journal *journal);
/* Only when it is idle. NULL is fine. */
struct journal *journal_close(struct journal *journal);
DEFINE_CLEANUP(struct journal, journal_close)

/*
 * Appends one record; all arguments are copied. 'disk' is its index, -1 for
 * the whole operation. 'cb' comes once, when it is durable or has failed.
 */
int journal_append(struct journal *journal, const char *op,
                   enum journal_kind kind, const char *step, int disk,
                   const json_t *data, uint64_t now_us, journal_fn *cb,
                   void *cb_data);
/*
 * The callbacks of 'cb_data' will not come; the records are still written.
 * NULL is fine.
 */
void journal_forget(struct journal *journal, const void *cb_data);

/*
 * New arrays and objects, read at once (blocking):
 * list: [{"op","kind","state","qmp","created","updated","error"?}], newest
 * first. load: that, with "version", "plan", "result" and "records":
 * [{"seq","time","kind","step","disk","data"}] in order; -ENOENT if there is
 * none.
 */
int journal_list(struct journal *journal, json_t **ret, struct err **errp);
int journal_load(struct journal *journal, const char *op, json_t **ret,
                 struct err **errp);

/*
 * How one process asks the engine that works on an operation for something:
 * it appends a request and looks for the answer, and for what else is written
 * of the operation. Both look by this from a timer: it costs a glance at
 * shared memory as long as nobody writes.
 *
 * 'ret' is a new array of the records after 'place', as above, or NULL when
 * there are none; the place moves on. 'kind' is the only one that is wanted,
 * or JOURNAL_ANY. A zeroed place is the beginning.
 */
struct journal_place {
    int64_t seq;
    int64_t version; /* of the file, when it was looked at last */
};

enum { JOURNAL_ANY = -1 };

int journal_news(struct journal *journal, const char *op, int kind,
                 struct journal_place *place, json_t **ret, struct err **errp);

/* "intent" and so on, as in the file. */
const char *journal_kind_name(enum journal_kind kind);

/*
 * The lock of a living engine on its operation: it dies with the process.
 * -EBUSY when another process holds it.
 */
int journal_lock(struct journal *journal, const char *op,
                 struct journal_lock **ret, struct err **errp);
/* Whether some process holds it, this one included; asks, takes nothing. */
bool journal_is_locked(const struct journal *journal, const char *op);
/* It has one more user, who calls journal_unlock() too; from any thread. */
struct journal_lock *journal_hold(struct journal_lock *lock);
struct journal_lock *journal_unlock(struct journal_lock *lock);
