/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One running operation: its events are shown, the first SIGINT, SIGTERM or
 * SIGHUP aborts it, the second one lets go of it. Where another engine's is
 * only followed, the first one ends that.
 */
#pragma once

#include <stdbool.h>

#include "events.h"
#include "session.h"

struct follow {
    struct session *session;
    struct events *events;
    struct qpivot_op *op;
    struct qpivot_transfer *transfer; /* instead of it: copy, verify */
    struct qpivot_request *request;   /* or: abort */
    uv_signal_t signals[3];
    unsigned n_open;
    unsigned n_signals; /* that came */
    bool ended;
    bool signals_closed;
    int outcome;
};

/* What every verb that starts something lets choose, and its rows. */
struct follow_values {
    bool json;
    bool quiet;
};

#define FOLLOW_ROWS(offset)                                                    \
    {"json",                                                                   \
     NULL,                                                                     \
     OPTION_FLAG,                                                              \
     false,                                                                    \
     (offset) + offsetof(struct follow_values, json),                          \
     "print one JSON object per line"},                                        \
    {                                                                          \
        "quiet", NULL, OPTION_FLAG, false,                                     \
            (offset) + offsetof(struct follow_values, quiet),                  \
            "print errors only"                                                \
    }

/*
 * The verb's own call of the library on f->session->engine, with f->op or
 * f->transfer for its result; returns what the library returned.
 */
typedef int follow_begin_fn(struct follow *f,
                            const struct qpivot_callbacks *callbacks,
                            const void *options, char **ret_error);

/* From the session's start to its end; returns the exit code. */
int follow_run(const struct common_values *common,
               const struct follow_values *values, follow_begin_fn *begin,
               const void *options);
/* The same for what needs no journal. */
int follow_run_looking(const struct common_values *common,
                       const struct follow_values *values,
                       follow_begin_fn *begin, const void *options);
/* One of several in a session. Signals are caught while it runs. */
int follow_one(struct follow *f, struct session *session, struct events *events,
               follow_begin_fn *begin, const void *options);
