/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "vm/job.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/str.h"

enum { JOBS_MAX = 4096 };

static const char *const status_names[] = {
    [JOB_CREATED] = "created",     [JOB_RUNNING] = "running",
    [JOB_PAUSED] = "paused",       [JOB_READY] = "ready",
    [JOB_STANDBY] = "standby",     [JOB_WAITING] = "waiting",
    [JOB_PENDING] = "pending",     [JOB_ABORTING] = "aborting",
    [JOB_CONCLUDED] = "concluded", [JOB_NULL] = "null",
    [JOB_OTHER] = "other",
};

static int read_job(struct job *job, const json_t *json, struct err **errp);
static void read_block_job(struct job_list *list, const json_t *json);
static uint64_t count_of(const json_t *json, const char *member);

int job_list_init(struct job_list *list, const json_t *query_jobs,
                  const json_t *query_block_jobs, struct err **errp)
{
    size_t n = json_array_size(query_jobs);
    struct job_list fresh = {0};
    if (!json_is_array(query_jobs) || n > JOBS_MAX) {
        return err_set(errp, -EPROTO, "query-jobs",
                       "answer is no list, or too long");
    }
    fresh.jobs = calloc(n > 0 ? n : 1, sizeof(*fresh.jobs));
    if (fresh.jobs == NULL) {
        return err_set(errp, -ENOMEM, "query-jobs", "out of memory");
    }
    size_t i;
    json_t *json;
    json_array_foreach(query_jobs, i, json) {
        int r = read_job(&fresh.jobs[fresh.n_jobs++], json, errp);
        if (r < 0) {
            job_list_done(&fresh);
            return r;
        }
    }
    json_array_foreach(query_block_jobs, i, json) {
        read_block_job(&fresh, json);
    }
    *list = fresh;
    return 0;
}

void job_list_done(struct job_list *list)
{
    for (unsigned i = 0; i < list->n_jobs; i++) {
        free(list->jobs[i].id);
        free(list->jobs[i].type);
        free(list->jobs[i].error);
    }
    free(list->jobs);
    *list = (struct job_list){0};
}

const struct job *job_list_find(const struct job_list *list, const char *id)
{
    for (unsigned i = 0; i < list->n_jobs; i++) {
        if (str_eq(list->jobs[i].id, id)) {
            return &list->jobs[i];
        }
    }
    return NULL;
}

const char *job_status_name(enum job_status status)
{
    return status_names[status];
}

static int read_job(struct job *job, const json_t *json, struct err **errp)
{
    const char *id = json_string_value(json_object_get(json, "id"));
    const char *type = json_string_value(json_object_get(json, "type"));
    const char *status = json_string_value(json_object_get(json, "status"));
    const char *error = json_string_value(json_object_get(json, "error"));
    if (id == NULL || type == NULL || status == NULL) {
        return err_set(errp, -EPROTO, "query-jobs",
                       "a job without id, type or status");
    }
    job->id = strdup(id);
    job->type = strdup(type);
    job->error = error != NULL ? strdup(error) : NULL;
    if (job->id == NULL || job->type == NULL ||
        (error != NULL && job->error == NULL)) {
        return err_set(errp, -ENOMEM, "query-jobs", "out of memory");
    }
    job->status = JOB_OTHER;
    for (unsigned i = 0; i < JOB_OTHER; i++) {
        if (strcmp(status, status_names[i]) == 0) {
            job->status = (enum job_status)i;
        }
    }
    job->offset = count_of(json, "current-progress");
    job->len = count_of(json, "total-progress");
    return 0;
}

static void read_block_job(struct job_list *list, const json_t *json)
{
    const char *id = json_string_value(json_object_get(json, "device"));
    const char *io = json_string_value(json_object_get(json, "io-status"));
    for (unsigned i = 0; id != NULL && i < list->n_jobs; i++) {
        struct job *job = &list->jobs[i];
        if (!str_eq(job->id, id)) {
            continue;
        }
        job->speed = count_of(json, "speed");
        job->no_space = str_eq(io, "nospace");
        job->io_error = str_eq(io, "failed");
        job->actively_synced =
            json_is_true(json_object_get(json, "actively-synced"));
    }
}

int job_check(const struct job *job, const char *object, const char *command,
              struct err **errp)
{
    bool paused = job->status == JOB_PAUSED || job->status == JOB_STANDBY;
    if (job->error != NULL) {
        return err_set_qmp(errp, object, command, "GenericError", job->error);
    }
    return paused && job->io_error
               ? err_set(errp, -EIO, object,
                         "the mirror has paused: it could not read the source,"
                         " or not write to the target")
               : 0;
}

static uint64_t count_of(const json_t *json, const char *member)
{
    json_int_t value = json_integer_value(json_object_get(json, member));
    return value > 0 ? (uint64_t)value : 0;
}
