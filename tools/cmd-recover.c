/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* qpivot recover: finishes or undoes operations whose engine is gone. */
#include <stdlib.h>
#include <string.h>

#include "cmd.h"
#include "errors.h"
#include "follow.h"
#include "journal-text.h"

struct recover_values {
    struct common_values common;
    struct follow_values shown;
    const char *qmp;
    const char *emit_config;
    const char *persist_hook;
    bool undo;
    bool from_qemu;
};

#define AT(member) offsetof(struct recover_values, member)

static const struct option_row rows[] = {
    {"qmp",          "ADDR", OPTION_TEXT, false, AT(qmp),
     "where the VM's monitor is now (default: where it was)"              },
    {"undo",         NULL,   OPTION_FLAG, false, AT(undo),
     "before the pivot: go back instead of forward"                       },
    {"from-qemu",    NULL,   OPTION_FLAG, false, AT(from_qemu),
     "the journal is lost: go by what is in the QEMU at --qmp"            },
    {"emit-config",  "FILE", OPTION_TEXT, false, AT(emit_config),
     "write the new -blockdev description to FILE, not where it was to go"},
    {"persist-hook", "CMD",  OPTION_TEXT, false, AT(persist_hook),
     "run CMD instead of the hook that the operation was started with"    },
    FOLLOW_ROWS(AT(shown)),
};

static int run(const void *values, char **operands, unsigned n);
static int recover_from_qemu(const struct recover_values *v, const char *op);
static int recover_all(struct session *s, const struct recover_values *v);
static int recover_one(struct session *s, const struct recover_values *v,
                       const char *op, bool *ret_stop);
static follow_begin_fn begin;
static char *first_reason(struct session *s, const char *op);
static bool waits(const json_t *operation);
static int worse(int a, int b);

const struct verb verb_recover = {
    .name = "recover",
    .operands = "[OP]",
    .max_operands = 1,
    .summary = "Finish or undo operations whose engine is gone.",
    VERB_OPTIONS(rows),
    .values_size = sizeof(struct recover_values),
    .operation = true,
    .run = run,
};

static int run(const void *values, char **operands, unsigned n)
{
    const struct recover_values *v = values;
    struct session session;
    if (v->from_qemu) {
        return recover_from_qemu(v, n == 1 ? operands[0] : NULL);
    }
    if (n == 0 && (v->emit_config != NULL || v->persist_hook != NULL)) {
        return verb_usage(&verb_recover,
                          "--emit-config and --persist-hook need an OP");
    }
    if (!journal_there(&v->common)) {
        if (n == 1 || v->common.state_given) {
            error_say(n == 1 ? operands[0] : v->common.state,
                      "no journal in %s", v->common.state);
            return EXIT_USAGE;
        }
        if (!v->shown.json && !v->shown.quiet) {
            (void)printf("nothing to recover\n");
        }
        return 0;
    }
    int code = session_start(&session, &v->common);
    if (code != 0) {
        return code;
    }
    bool stop = false;
    code = n == 1 ? recover_one(&session, v, operands[0], &stop)
                  : recover_all(&session, v);
    session_end(&session);
    return code;
}

/* The journal is lost: it is made anew, of what QEMU tells. */
static int recover_from_qemu(const struct recover_values *v, const char *op)
{
    struct session session;
    bool stop = false;
    if (v->qmp == NULL) {
        return verb_usage(&verb_recover, "--from-qemu needs --qmp ADDR");
    }
    int code = session_start(&session, &v->common);
    if (code != 0) {
        return code;
    }
    code = recover_one(&session, v, op, &stop);
    session_end(&session);
    return code;
}

static bool waits(const json_t *operation)
{
    return !journal_finished(operation) && !journal_is_copy(operation);
}

/* Oldest first: a later operation may rest on what an earlier one left. */
static int recover_all(struct session *s, const struct recover_values *v)
{
    json_auto_t *list = NULL;
    int code = journal_read(s, &list);
    if (code != 0) {
        return code;
    }
    unsigned n = 0, n_all = 0;
    bool stop = false;
    for (size_t i = 0; i < json_array_size(list); i++) {
        n_all += waits(json_array_get(list, i));
    }
    for (size_t i = json_array_size(list); i-- > 0 && !stop;) {
        const json_t *operation = json_array_get(list, i);
        const char *op = json_string_value(json_object_get(operation, "op"));
        if (op != NULL && waits(operation)) {
            n++;
            if (n_all > 1 && !v->shown.json && !v->shown.quiet) {
                (void)printf("operation %s\n", op);
            }
            code = worse(code, recover_one(s, v, op, &stop));
        }
    }
    if (n == 0 && !v->shown.json && !v->shown.quiet) {
        (void)printf("nothing to recover\n");
    }
    return code;
}

/* 'ret_stop': the user does not want the next one started. */
static int recover_one(struct session *s, const struct recover_values *v,
                       const char *op, bool *ret_stop)
{
    struct events events;
    events_init(&events, v->shown.json, v->shown.quiet);
    char *reason = op != NULL ? first_reason(s, op) : NULL;
    events.recovers = op != NULL ? op : "";
    events.reason = reason;
    struct qpivot_recover_options options = {
        .size = sizeof(options),
        .op = op,
        .qmp = v->qmp,
        .undo = v->undo ? 1 : 0,
        .emit_config = v->emit_config,
        .persist_hook = v->persist_hook,
        .from_qemu = v->from_qemu,
    };
    struct follow follow;
    int code = follow_one(&follow, s, &events, begin, &options);
    if (code == QPIVOT_FAILED) {
        code = 0; /* undone: nothing of it is left to recover */
    }
    *ret_stop = follow.n_signals > 0;
    events_done(&events);
    free(reason);
    return code;
}

static int begin(struct follow *f, const struct qpivot_callbacks *callbacks,
                 const void *options, char **ret_error)
{
    return qpivot_recover(f->session->engine, options, callbacks, &f->op,
                          ret_error);
}

/* What went wrong at first: later errors are of the way back. Or NULL. */
static char *first_reason(struct session *s, const char *op)
{
    char *text = NULL;
    char *line = NULL;
    if (qpivot_show(s->engine, op, &text, NULL) < 0) {
        return NULL;
    }
    json_auto_t *operation = json_loads(text, 0, NULL);
    qpivot_free(text);
    size_t i;
    json_t *record;
    json_array_foreach(json_object_get(operation, "records"), i, record) {
        const json_t *error =
            json_object_get(json_object_get(record, "data"), "error");
        const char *kind = json_string_value(json_object_get(record, "kind"));
        if (line == NULL && error != NULL && kind != NULL &&
            strcmp(kind, "state") == 0) {
            line = error_line(error);
        }
    }
    return line;
}

/*
 * The exit code of several: parked before unreachable before refused before
 * done.
 */
static int worse(int a, int b)
{
    static const int order[] = {[QPIVOT_DONE] = 0,
                                [QPIVOT_FAILED] = 0,
                                [QPIVOT_REFUSED] = 1,
                                [QPIVOT_PARKED] = 3,
                                [QPIVOT_UNREACHABLE] = 2};
    return order[b] > order[a] ? b : a;
}
