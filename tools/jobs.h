/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* QEMU's jobs as query-jobs and query-block-jobs together tell of them. */
#pragma once

#include <jansson.h>

#include "session.h"
#include "terminal.h"

/*
 * [{"id","type","status","bytes","total","speed"?,"io_status"?,"ready"?,
 * "error"?}]; prints why not. 0 or an exit code.
 */
int jobs_read(struct session *s, json_t **ret);
/* "mirror running 40%, 1.0 GiB of 2.5 GiB"; the caller frees it. */
char *job_text(const json_t *job);
/*
 * Shows each job as a live line; jobs of 'before' (may be NULL) that are gone
 * are said so.
 */
void jobs_live(struct terminal *t, const json_t *jobs, const json_t *before);
