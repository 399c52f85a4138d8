/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qpivot abort, qpivot undo: ask for the way back, before the pivot and after
 * it, whoever works on the operation.
 */
#include <string.h>

#include "cmd.h"
#include "errors.h"
#include "follow.h"
#include "journal-text.h"

struct back_values {
    struct common_values common;
    struct follow_values follow;
    const char *qmp;
    unsigned timeout;
};

#define AT(member) offsetof(struct back_values, member)

static const struct option_row rows[] = {
    {"timeout", "T",    OPTION_TIME, false, AT(timeout),
     "how long to wait until it is back (default: 3m)"     },
    {"qmp",     "ADDR", OPTION_TEXT, false, AT(qmp),
     "where the VM's monitor is now, if its engine is gone"},
    FOLLOW_ROWS(AT(follow)),
};

typedef int begin_fn(struct follow *f, const struct qpivot_callbacks *callbacks,
                     const void *options, char **ret_error);

static int run_abort(const void *values, char **operands, unsigned n);
static int run_undo(const void *values, char **operands, unsigned n);

const struct verb verb_abort = {
    .name = "abort",
    .operands = "OP",
    .min_operands = 1,
    .max_operands = 1,
    .summary = "Take a running operation back, if it has not pivoted.",
    VERB_OPTIONS(rows),
    .values_size = sizeof(struct back_values),
    .operation = true,
    .run = run_abort,
};

const struct verb verb_undo = {
    .name = "undo",
    .operands = "OP",
    .min_operands = 1,
    .max_operands = 1,
    .summary = "Go back to the former disks, in the undo window of a move.",
    VERB_OPTIONS(rows),
    .values_size = sizeof(struct back_values),
    .operation = true,
    .run = run_undo,
};

static int run(const struct back_values *v, const char *op, begin_fn *begin)
{
    if (!journal_there(&v->common)) {
        error_say(op, "no journal in %s", v->common.state);
        return EXIT_USAGE;
    }
    struct qpivot_abort_options options = {
        .size = sizeof(options),
        .op = op,
        .qmp = v->qmp,
        .timeout_ms = v->timeout,
    };
    return follow_run(&v->common, &v->follow, begin, &options);
}

static int begin_abort(struct follow *f,
                       const struct qpivot_callbacks *callbacks,
                       const void *options, char **ret_error)
{
    return qpivot_abort(f->session->engine, options, callbacks, &f->request,
                        ret_error);
}

static int run_abort(const void *values, char **operands, unsigned n)
{
    (void)n;
    return run(values, operands[0], begin_abort);
}

static int begin_undo(struct follow *f,
                      const struct qpivot_callbacks *callbacks,
                      const void *options, char **ret_error)
{
    return qpivot_undo(f->session->engine, options, callbacks, &f->request,
                       ret_error);
}

static int run_undo(const void *values, char **operands, unsigned n)
{
    (void)n;
    return run(values, operands[0], begin_undo);
}
