/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "run/recover.h"

#include <errno.h>

#include "base/err.h"
#include "base/str.h"
#include "qpivot.h"
#include "run/journal.h"
#include "vm/names.h"

static int check(const json_t *journalled, const struct operation *operation,
                 const char *id, struct err **errp);
static int put_in_plan(json_t *journalled, const char *name, const char *value,
                       const char *id, struct err **errp);

int recover_start(const struct op_host *host,
                  const struct operation *(*find)(const char *kind),
                  const struct qpivot_recover_options *options,
                  const struct qpivot_callbacks *callbacks, struct op **ret,
                  struct err **errp)
{
    json_auto_t *journalled = NULL;
    struct journal_lock *lock = NULL;
    if (!op_id_valid(options->op)) {
        return err_set(errp, -ENOENT, options->op, "is no operation's id");
    }
    /* The lock first: what is read before it may be history by then. */
    int r = journal_lock(host->journal, options->op, &lock, errp);
    if (r < 0) {
        return r;
    }
    r = journal_load(host->journal, options->op, &journalled, errp);
    if (r == 0) {
        const struct operation *operation =
            find(json_string_value(json_object_get(journalled, "kind")));
        r = check(journalled, operation, options->op, errp);
        if (r == 0) {
            r = put_in_plan(journalled, "emit_config", options->emit_config,
                            options->op, errp);
        }
        if (r == 0) {
            r = put_in_plan(journalled, "persist_hook", options->persist_hook,
                            options->op, errp);
        }
        if (r == 0) {
            return op_load(host, operation, journalled, lock, options->qmp,
                           options->undo, callbacks, ret, errp);
        }
    }
    journal_unlock(lock);
    return r;
}

static int check(const json_t *journalled, const struct operation *operation,
                 const char *id, struct err **errp)
{
    const char *kind = json_string_value(json_object_get(journalled, "kind"));
    const char *state = json_string_value(json_object_get(journalled, "state"));
    json_int_t version =
        json_integer_value(json_object_get(journalled, "version"));
    if (operation == NULL || version != operation->version) {
        return err_set(errp, -EPROTO, id,
                       "was made by another version of qpivot ('%s' %d)",
                       kind != NULL ? kind : "?", (int)version);
    }
    if (str_eq(state, "done") || str_eq(state, "undone") ||
        str_eq(state, "refused")) {
        return err_set(errp, -EALREADY, id, "has ended already: %s", state);
    }
    return 0;
}

/* What the caller asks for now stands for what the journal holds. */
static int put_in_plan(json_t *journalled, const char *name, const char *value,
                       const char *id, struct err **errp)
{
    json_t *plan = json_object_get(journalled, "plan");
    if (value == NULL) {
        return 0;
    }
    return json_object_set_new(plan, name, json_string(value)) == 0
               ? 0
               : err_set(errp, -EINVAL, id, "%s: not UTF-8 text", name);
}
