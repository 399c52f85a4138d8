/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The progress record of one copy, in the state directory: which units are
 * safe on the target, with their digests, so that the same command goes on
 * where it was. It knows nothing of how they got there.
 *
 * A unit is "written" when the target has answered, and "safe" only when the
 * target was flushed after that; only safe units are in the file. Not thread
 * safe: the pipeline's lock is held around each call.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "bulk/digest.h"

struct err;
struct record;

/* What must be the same for a copy to be gone on with. */
struct record_head {
    uint64_t size;
    char source[160]; /* volume_info.identity */
    char stamp[96];   /* bulk.stamp */
    char target[160]; /* volume_info.identity */
    char format[32];  /* "raw qcow2" */
    uint64_t zero;    /* the target was blank when the copy began */
    /* For people, as JSON: how it was asked for. "" where that is too long. */
    char about[3584];
};

enum record_state {
    RECORD_TODO = 0,
    RECORD_WRITTEN,
    RECORD_FLUSHING,
    RECORD_SAFE,
};

/* The name of the record of this pair in 'dir', and of the operation. */
void record_key(const char *source, const char *target, char out[16]);

/*
 * Opens and locks the record, or makes an empty one; -EBUSY when another
 * process copies the same. An unreadable one is taken for an empty one.
 */
int record_open(const char *dir, const char *key, struct record **ret,
                struct err **errp);
/* Takes the file away, if there is one. */
void record_forget(const char *dir, const char *key);
/* Closes; the file stays. */
struct record *record_close(struct record *record);
DEFINE_CLEANUP(struct record, record_close)
/* Takes the file away; the record is still to be closed. */
void record_remove(struct record *record);

/* The head of an earlier try, or NULL. */
const struct record_head *record_head(const struct record *record);
/* Begins anew; durable when it returns. */
int record_begin(struct record *record, const struct record_head *head,
                 struct err **errp);

/*
 * What the records in 'dir' tell of copies that run or were interrupted, as
 * qpivot-list(1) has it, by file names; 'key' NULL: of all. Blocking; nothing
 * is locked meanwhile, so that no copy is kept from its record.
 */
json_t *records_list(const char *dir, const char *key);

/* Borrowed; 'known' has enum record_state. */
struct digests *record_digests(struct record *record);
bool record_is_safe(const struct record *record, uint64_t unit);
uint64_t record_safe_count(const struct record *record);

void record_written(struct record *record, uint64_t unit, struct digest digest);
/* What is not safe is lost: it was written to a server that has gone. */
void record_forget_written(struct record *record);
/* What is written now is safe when the flush that starts now has ended. */
bool record_flush_begin(struct record *record);
/* It has; blocking until the file says so. */
int record_flush_end(struct record *record, struct err **errp);
