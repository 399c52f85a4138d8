/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qpivot.h compiles as strict C99 and as C++11, alone and twice, and its
 * structures are used the way libqpivot(3) says. This file is compiled as
 * both, so it is written in what they have in common.
 */
#include "qpivot.h"
#include "qpivot.h" /* a second time: the guard holds */

#include <string.h>

static void on_event(void *data, const char *json)
{
    (void)data;
    (void)json;
}

static void on_ended(void *data, enum qpivot_outcome outcome)
{
    *(enum qpivot_outcome *)data = outcome;
}

static void on_reply(void *data, const char *error, const char *result)
{
    (void)data;
    (void)error;
    (void)result;
}

static int sizes_come_first(void)
{
    struct qpivot_engine_options engine;
    struct qpivot_move_options move;
    struct qpivot_recover_options recover;
    memset(&engine, 0, sizeof(engine));
    memset(&move, 0, sizeof(move));
    memset(&recover, 0, sizeof(recover));
    engine.size = sizeof(engine);
    move.size = sizeof(move);
    recover.size = sizeof(recover);
    return (void *)&engine.size == (void *)&engine &&
           (void *)&move.size == (void *)&move &&
           (void *)&recover.size == (void *)&recover;
}

int main(void)
{
    enum qpivot_outcome outcome = QPIVOT_FAILED;
    struct qpivot_callbacks callbacks;
    qpivot_reply_fn *reply = on_reply;
    callbacks.data = &outcome;
    callbacks.event = on_event;
    callbacks.ended = on_ended;
    callbacks.event(callbacks.data, "{}");
    callbacks.ended(callbacks.data, QPIVOT_DONE);
    reply(NULL, NULL, "{}");
    if (outcome != QPIVOT_DONE || !sizes_come_first()) {
        return 1;
    }
    return QPIVOT_COPY_AUTO == 0 && QPIVOT_VIA_AUTO == 0 &&
                   QPIVOT_SYNC_AUTO == 0
               ? 0
               : 1;
}
