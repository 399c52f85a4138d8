/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A migration whose journal is lost. One QEMU alone does not know whose the
 * guest is: where it is on its way, or may be, nothing is changed and nothing
 * started, and what a person has to look at is said.
 */
#include <errno.h>

#include "base/err.h"
#include "base/str.h"
#include "operations/adopt.h"
#include "vm/graph.h"

static bool stream_is_over(const char *status)
{
    return status == NULL || str_eq(status, "none") ||
           str_eq(status, "failed") || str_eq(status, "cancelled");
}

static bool is_ours(const char *name, const char *id)
{
    char owner[OP_ID_SIZE];
    return name_operation(name, owner) && str_eq(owner, id);
}

static bool has_exports(const struct adopt *adopt, const struct graph *graph)
{
    unsigned n = 0;
    const struct graph_export *exports = graph_exports(graph, &n);
    for (unsigned i = 0; i < n; i++) {
        if (is_ours(exports[i].id, adopt->holder)) {
            return true;
        }
    }
    return false;
}

/* Which no destination of a migration has. */
static bool has_mirrors(const struct adopt *adopt, const struct graph *graph)
{
    for (unsigned i = 0; i < ADOPT_DISKS_MAX; i++) {
        struct name mirror = name_of(adopt->holder, i, NAME_MIRROR);
        struct name twin = name_of(adopt->holder, i, NAME_TWIN);
        if (graph_find_job(graph, mirror.text) != NULL ||
            graph_find_job(graph, twin.text) != NULL) {
            return true;
        }
    }
    return false;
}

/* --- what is said --- */

static void tell_waiting(const char *id, struct err **errp)
{
    (void)err_set(errp, -EUNATCH, id,
                  "this QEMU is the destination of a migration, whose guest"
                  " has not come");
    err_hint(errp, "look at the source: if the guest runs there, or stands"
                   " paused, end this QEMU; a migration needs a new one");
}

/* Its source may have ended since, or it may have failed and gone on. */
static void tell_arrived(const char *id, const char *qmp, bool runs,
                         struct err **errp)
{
    if (runs) {
        (void)err_set(errp, -EUNATCH, id,
                      "this QEMU is the destination of a migration, and has the"
                      " guest");
        err_hint(errp,
                 "never let the source go on, do not start the other one: end"
                 " it; then 'qpivot doctor --qmp %s --fix --op %s' removes here"
                 " what is left",
                 qmp, id);
        return;
    }
    (void)err_set(errp, -EUNATCH, id,
                  "this QEMU is the destination of a migration, and has all of"
                  " the guest, paused: it may be the only one that has it");
    err_hint(errp,
             "do not end it, and do not start it yet: ask the source"
             " 'query-status' and 'query-migrate'. If it says 'postmigrate' and"
             " 'completed', the guest is this QEMU's: 'qpivot doctor --qmp %s"
             " --fix --op %s', then 'cont' here, and never there. If the guest"
             " runs at the source, or its stream has failed, it is the"
             " source's: end this QEMU",
             qmp, id);
}

static void tell_sent(const char *id, struct err **errp)
{
    (void)err_set(errp, -EUNATCH, id,
                  "this QEMU is the source of a migration, and has handed the"
                  " guest over");
    err_hint(errp, "never 'cont' here: 'qpivot recover --from-qemu --qmp"
                   " DESTINATION' says what is there, and what to do; do not"
                   " end this QEMU before that has the guest");
}

/* QEMU 7.2 calls a guest so that stood before its stream failed. */
static void tell_failed(const char *id, const char *qmp, const char *stream,
                        struct err **errp)
{
    (void)err_set(errp, -EUNATCH, id,
                  "this QEMU is the source of a migration, its stream '%s', and"
                  " the guest stands here",
                  stream);
    err_hint(errp,
             "ask the destination 'query-status': unless the guest runs there"
             " it is this QEMU's; end the destination, then 'qpivot doctor"
             " --qmp %s --fix --op %s' removes here what is left",
             qmp, id);
}

/* A guest that is on its way: which QEMU holds it cannot be told from one. */
int adopt_check_stream(struct op *op, const struct adopt *adopt,
                       const struct graph *graph, struct err **errp)
{
    const char *id = adopt->holder, *qmp = op_plan(op)->qmp;
    const char *status = adopt->status != NULL ? adopt->status : "unknown";
    const char *stream = adopt->stream != NULL ? adopt->stream : "none";
    bool here = str_eq(status, "running") || str_eq(status, "paused");
    bool sent = str_eq(status, "postmigrate");
    bool completed = str_eq(stream, "completed");
    bool exports = has_exports(adopt, graph);
    if (here && completed && !exports && has_mirrors(adopt, graph)) {
        return 0; /* it is the stream by which the guest once came here */
    }
    if (str_eq(status, "inmigrate")) {
        tell_waiting(id, errp);
    } else if (here && completed) {
        tell_arrived(id, qmp, str_eq(status, "running"), errp);
    } else if (sent && completed) {
        tell_sent(id, errp);
    } else if (sent && stream_is_over(stream) && !exports) {
        tell_failed(id, qmp, stream, errp);
    } else if (exports || !stream_is_over(stream) || sent ||
               str_eq(status, "finish-migrate")) {
        (void)err_set(errp, -EUNATCH, id,
                      "is a migration, its stream '%s' and the guest '%s' here",
                      stream, status);
        err_hint(errp, "see with 'query-status' which QEMU holds the guest; do"
                       " not start the other one");
    } else {
        return 0;
    }
    return -EUNATCH;
}

/*
 * The mirror of a disk that its source writes at once looks like a move's; but
 * only a migration sets this, right after its claim.
 */
bool adopt_is_migration(const struct adopt *adopt)
{
    size_t i;
    json_t *name;
    json_array_foreach(adopt->capabilities, i, name) {
        if (str_eq(json_string_value(name), "pause-before-switchover")) {
            return true;
        }
    }
    return false;
}
