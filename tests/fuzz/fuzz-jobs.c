/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What QEMU may answer to the queries about jobs: it is read or refused, and
 * what was read has names. Input: {"jobs","block_jobs"}.
 */
#include <stdint.h>
#include <stdlib.h>

#include "base/err.h"
#include "vm/job.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    json_auto_t *json =
        json_loadb((const char *)data, size, JSON_ALLOW_NUL, NULL);
    struct job_list list = {0};
    _cleanup_err_ struct err *err = NULL;
    if (job_list_init(&list, json_object_get(json, "jobs"),
                      json_object_get(json, "block_jobs"), &err) < 0) {
        if (err == NULL || list.jobs != NULL) {
            abort();
        }
        return 0;
    }
    for (unsigned i = 0; i < list.n_jobs; i++) {
        const struct job *job = &list.jobs[i];
        if (job_list_find(&list, job->id) == NULL || job->type == NULL ||
            job_status_name(job->status) == NULL) {
            abort();
        }
    }
    job_list_done(&list);
    return 0;
}
