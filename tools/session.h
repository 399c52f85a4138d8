/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One run of the program: the loop, the engine on it, at most one monitor.
 * Its functions wait by turning the loop; they are called from the verbs, not
 * from callbacks (libuv's loop cannot be entered twice).
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <uv.h>

#include "options.h"
#include "qpivot.h"

typedef void session_event_fn(void *data, const char *json);

struct session {
    uv_loop_t *loop;
    struct qpivot_engine *engine;
    struct qpivot_monitor *monitor;
    bool closed;
    bool opened;
    bool lost;
    char *error; /* of the monitor: why it did not open, or was lost */
    session_event_fn *on_event;
    void *data;
};

/* Starts loop and engine; prints why not. Returns 0 or an exit code. */
int session_start(struct session *s, const struct common_values *common);
/* The same without the journal: for verbs that only talk to a monitor. */
int session_start_looking(struct session *s,
                          const struct common_values *common);
/* Frees everything; fine on a session that did not start. */
void session_end(struct session *s);

/* Turns the loop until *flag is true; false when nothing can set it any more. */
bool session_wait(struct session *s, const bool *flag);
/* One turn; waits for something to happen. */
void session_turn(struct session *s);

/* Opens the monitor; 'cb' may be NULL. Prints why not; 0 or an exit code. */
int session_monitor(struct session *s, const char *qmp, session_event_fn *cb,
                    void *data);
/*
 * Sends a command and waits. Returns 0 with the result; 1, or 4 when the
 * monitor is gone, with the error ('ret_error', JSON, the caller frees).
 */
int session_execute(struct session *s, const char *command,
                    const json_t *arguments, json_t **ret, char **ret_error);
/* The same, the error printed. */
int session_query(struct session *s, const char *command, json_t **ret);
int session_names(struct session *s, const char *command, json_t **ret);
int session_graph(struct session *s, json_t **ret);
int session_destination(struct session *s,
                        const struct qpivot_destination_options *options,
                        json_t **ret);
/* Prints that the monitor went away; returns EXIT_UNREACHABLE. */
int session_say_lost(const struct session *s);
