/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* QEMU's jobs, read and shown. It changes none. */
#include "jobs.h"

#include <stdlib.h>
#include <string.h>

#include "text.h"

static json_t *merged(const json_t *job, const json_t *block_jobs);
static const json_t *with_id(const json_t *list, const char *name,
                             const char *id);
static const char *word(const json_t *object, const char *name);
static uint64_t bytes(const json_t *object, const char *name);

int jobs_read(struct session *s, json_t **ret)
{
    json_auto_t *jobs = NULL;
    json_auto_t *block_jobs = NULL;
    int code = session_query(s, "query-jobs", &jobs);
    if (code == 0) {
        code = session_query(s, "query-block-jobs", &block_jobs);
    }
    if (code != 0) {
        return code;
    }
    json_t *list = json_array();
    size_t i;
    json_t *job;
    json_array_foreach(jobs, i, job) {
        (void)json_array_append_new(list, merged(job, block_jobs));
    }
    *ret = list;
    return 0;
}

char *job_text(const json_t *job)
{
    char done[TEXT_BYTES_MAX];
    char total[TEXT_BYTES_MAX];
    char speed[TEXT_BYTES_MAX];
    uint64_t n_done = bytes(job, "bytes");
    uint64_t n_total = bytes(job, "total");
    const char *status = word(job, "status");
    bool ready = json_is_true(json_object_get(job, "ready"));
    /* A job that has only begun says 0 of 0; so does one of an empty disk. */
    int percent = n_total > 0 ? (int)((double)n_done / (double)n_total * 100)
                  : ready || strcmp(status, "concluded") == 0 ? 100
                                                              : 0;
    const char *io = word(job, "io_status");
    const char *error = word(job, "error");
    bool limited = bytes(job, "speed") > 0;
    return text_printf(
        "%s %s%s %d%%, %s of %s%s%s%s%s%s%s%s", word(job, "type"), status,
        ready && strcmp(status, "ready") != 0 ? ", ready" : "", percent,
        text_bytes(n_done, done), text_bytes(n_total, total),
        limited ? ", at most " : "",
        limited ? text_bytes(bytes(job, "speed"), speed) : "",
        limited ? "/s" : "", strcmp(io, "ok") != 0 && io[0] ? ", I/O " : "",
        strcmp(io, "ok") != 0 ? io : "", error[0] ? ": " : "", error);
}

void jobs_live(struct terminal *t, const json_t *jobs, const json_t *before)
{
    size_t i;
    json_t *job;
    json_array_foreach(jobs, i, job) {
        const char *id = word(job, "id");
        char *text = job_text(job);
        char *line = text_printf("%s: %s", id, text != NULL ? text : "?");
        uint64_t total = bytes(job, "total");
        char *news = text_printf(
            "%s %d", word(job, "status"),
            total > 0 ? (int)(bytes(job, "bytes") / ((total + 9) / 10)) : 10);
        if (line != NULL && news != NULL) {
            terminal_live(t, id, news, line);
        }
        free(news);
        free(line);
        free(text);
    }
    json_array_foreach(before, i, job) {
        const char *id = word(job, "id");
        if (with_id(jobs, "id", id) == NULL) {
            terminal_still(t, id);
            terminal_say(t, "%s: gone", id);
        }
    }
}

/* A block job is in both lists, its id is 'device' in the older one. */
static json_t *merged(const json_t *job, const json_t *block_jobs)
{
    const char *id = word(job, "id");
    const json_t *block = with_id(block_jobs, "device", id);
    return json_pack("{s:s, s:s, s:s, s:O*, s:O*, s:O*, s:O*, s:O*, s:O*}",
                     "id", id, "type", word(job, "type"), "status",
                     word(job, "status"), "bytes",
                     json_object_get(job, "current-progress"), "total",
                     json_object_get(job, "total-progress"), "speed",
                     json_object_get(block, "speed"), "io_status",
                     json_object_get(block, "io-status"), "ready",
                     json_object_get(block, "ready"), "error",
                     json_object_get(job, "error"));
}

static const json_t *with_id(const json_t *list, const char *name,
                             const char *id)
{
    size_t i;
    json_t *item;
    json_array_foreach(list, i, item) {
        if (strcmp(word(item, name), id) == 0) {
            return item;
        }
    }
    return NULL;
}

static const char *word(const json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));
    return text != NULL ? text : "";
}

static uint64_t bytes(const json_t *object, const char *name)
{
    double value = json_number_value(json_object_get(object, name));
    return value > 0 && value < 1e19 ? (uint64_t)value : 0;
}
