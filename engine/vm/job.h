/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * QEMU's block jobs as the queries tell of them. Events only say when to ask
 * again: a job is what query-jobs and query-block-jobs say it is. Pure.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

struct err;

enum job_status {
    JOB_CREATED,
    JOB_RUNNING,
    JOB_PAUSED,
    JOB_READY,
    JOB_STANDBY,
    JOB_WAITING,
    JOB_PENDING, /* the guest's writes to this disk are frozen now */
    JOB_ABORTING,
    JOB_CONCLUDED,
    JOB_NULL,
    JOB_OTHER, /* a state of a later QEMU */
};

struct job {
    char *id;
    char *type;
    enum job_status status;
    uint64_t offset; /* bytes done ... */
    uint64_t len;    /* ... of these, which grow as the guest writes */
    uint64_t speed;
    bool no_space;        /* paused because the target is full */
    bool io_error;        /* paused because of another I/O error */
    bool actively_synced; /* of a write-blocking mirror, since QEMU 8.2 */
    char *error;          /* of a concluded job, QEMU's words, or NULL */
};

struct job_list {
    struct job *jobs;
    unsigned n_jobs;
};

/* Reads both replies; at most 4096 jobs. 'list' must be zero or done. */
int job_list_init(struct job_list *list, const json_t *query_jobs,
                  const json_t *query_block_jobs, struct err **errp);
void job_list_done(struct job_list *list);
const struct job *job_list_find(const struct job_list *list, const char *id);
/*
 * Whether a mirror may still get to its end, as one that waits for space may:
 * 0, -EREMOTEIO with QEMU's words for 'object' and 'command', or -EIO if it
 * has paused because a read or a write of it failed.
 */
int job_check(const struct job *job, const char *object, const char *command,
              struct err **errp);
const char *job_status_name(enum job_status status);
