/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The events of an operation as lines for a person, or as they are (--json).
 * Members that are missing or not known are no error: the library may be
 * newer than this program.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "terminal.h"

struct events {
    struct terminal terminal;
    bool json;
    bool dry_run;
    const char *recovers; /* the operation that is being recovered, or NULL */
    const char *reason;   /* ... and why it goes back, as first journalled */
    char step[64];        /* the one printed last, on a pipe */
    uint64_t began_ms;    /* of the first progress */
    bool told_end;        /* done, failed or parked was seen */
    json_t *problems;     /* of the plan, until they are printed */
};

void events_init(struct events *e, bool json, bool quiet);
void events_done(struct events *e);

void events_show(struct events *e, const char *json);
/*
 * Where no operation came to be: prints the error, and with --json the
 * 'failed' object that ends every such stream.
 */
void events_refused(struct events *e, const char *error);
