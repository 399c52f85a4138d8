/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the journal says of operations, for the verbs that read it. */
#pragma once

#include <jansson.h>
#include <stdbool.h>

#include "session.h"

/* The operations, newest first; prints why not. 0 or an exit code. */
int journal_read(struct session *s, json_t **ret);
/* One operation with its records, read from start to end; as above. */
int journal_show(const struct common_values *common, const char *op,
                 json_t **ret);
/* Whether there is one: reading must not make it. */
bool journal_there(const struct common_values *common);
/* Whether nothing is left to do for it. */
bool journal_finished(const json_t *operation);
/* A volume at rest: not recovered, but gone on with by the same command. */
bool journal_is_copy(const json_t *operation);
/* That command; the caller frees it; NULL where it is not known. */
char *journal_resume(const struct common_values *common,
                     const json_t *operation);
/* Its state for people: "running", "waits for recover", "parked", "done".. */
const char *journal_state(const json_t *operation);
