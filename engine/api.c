/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The public functions: check arguments, call inside, nothing else. */
#include "api.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "backends/backend.h"
#include "base/err.h"
#include "base/str.h"
#include "base/worker.h"
#include "bulk/resume.h"
#include "engine.h"
#include "operations/adopt.h"
#include "operations/doctor.h"
#include "operations/migrate.h"
#include "operations/move.h"
#include "qmp/qmp.h"
#include "qpivot.h"
#include "run/journal.h"
#include "run/recover.h"
#include "steps/persist.h"
#include "vm/names.h"

static bool disks_are_whole(const struct qpivot_disk *disks, unsigned n);
static char *text_of(const json_t *json);
static void tell_alive(const struct journal *journal, json_t *operation);
static void add_transfers(struct qpivot_engine *engine, json_t *list);

const char *qpivot_version(void)
{
    return QPIVOT_VERSION;
}

char *qpivot_build_info(void)
{
    json_auto_t *list = json_array();
    for (unsigned i = 0; backends[i] != NULL; i++) {
        (void)json_array_append_new(
            list, json_pack("{s:s, s:s, s:b}", "scheme", backends[i]->scheme,
                            "title", backends[i]->title, "available",
                            backends[i]->parse != NULL));
    }
    json_auto_t *info = json_pack(
        "{s:s, s:O, s:{s:s, s:s}}", "version", QPIVOT_VERSION, "backends", list,
        "libraries", "libuv", uv_version_string(), "jansson", JANSSON_VERSION);
    return text_of(info);
}

unsigned qpivot_hung_threads(void)
{
    return worker_n_hung();
}

void qpivot_free(char *text)
{
    free(text);
}

int qpivot_engine_new(const struct qpivot_engine_options *options,
                      struct qpivot_engine **ret, char **ret_error)
{
    _cleanup_err_ struct err *err = NULL;
    if (options == NULL || ret == NULL || options->size < sizeof(*options)) {
        return -EINVAL;
    }
    int r = engine_new(options->loop, options->state_dir, options->trace_file,
                       ret, &err);
    return api_error(err, r, ret_error);
}

int qpivot_engine_run(struct qpivot_engine *engine)
{
    if (engine == NULL || !engine_has_own_loop(engine)) {
        return -EINVAL;
    }
    engine_run(engine);
    return 0;
}

void qpivot_engine_close(struct qpivot_engine *engine,
                         void (*closed)(void *data), void *data)
{
    if (engine != NULL) {
        engine_close(engine, closed, data);
    }
}

int qpivot_move(struct qpivot_engine *engine,
                const struct qpivot_move_options *options,
                const struct qpivot_callbacks *callbacks,
                struct qpivot_op **ret, char **ret_error)
{
    _cleanup_err_ struct err *err = NULL;
    struct op *op = NULL;
    if (engine == NULL || options == NULL || callbacks == NULL ||
        options->size < sizeof(*options) || options->qmp == NULL ||
        !disks_are_whole(options->disks, options->n_disks) ||
        engine_journal(engine) == NULL) {
        return -EINVAL;
    }
    struct op_host host = engine_host(engine);
    int r = move_start(&host, options, callbacks, &op, &err);
    if (r == 0 && ret != NULL) {
        *ret = (struct qpivot_op *)op;
    }
    return api_error(err, r, ret_error);
}

int qpivot_migrate(struct qpivot_engine *engine,
                   const struct qpivot_migrate_options *options,
                   const struct qpivot_callbacks *callbacks,
                   struct qpivot_op **ret, char **ret_error)
{
    _cleanup_err_ struct err *err = NULL;
    struct op *op = NULL;
    if (engine == NULL || options == NULL || callbacks == NULL ||
        options->size < sizeof(*options) || options->qmp == NULL ||
        options->to == NULL ||
        !disks_are_whole(options->disks, options->n_disks) ||
        engine_journal(engine) == NULL) {
        return -EINVAL;
    }
    struct op_host host = engine_host(engine);
    int r = migrate_start(&host, options, callbacks, &op, &err);
    if (r == 0 && ret != NULL) {
        *ret = (struct qpivot_op *)op;
    }
    return api_error(err, r, ret_error);
}

int qpivot_recover(struct qpivot_engine *engine,
                   const struct qpivot_recover_options *options,
                   const struct qpivot_callbacks *callbacks,
                   struct qpivot_op **ret, char **ret_error)
{
    _cleanup_err_ struct err *err = NULL;
    struct op *op = NULL;
    if (engine == NULL || options == NULL || callbacks == NULL ||
        options->size < sizeof(*options) || engine_journal(engine) == NULL ||
        (options->from_qemu ? options->qmp : options->op) == NULL) {
        return -EINVAL;
    }
    struct op_host host = engine_host(engine);
    struct qpivot_recover_options given = *options;
    _cleanup_free_ char *qmp = NULL;
    _cleanup_free_ char *emit_config = NULL;
    int r = 0;
    if (options->qmp != NULL) {
        given.qmp = qmp = qmp_addr_absolute(options->qmp);
        r = qmp == NULL ? -ENOMEM : 0;
    }
    if (r == 0 && options->emit_config != NULL) {
        given.emit_config = emit_config =
            persist_absolute(options->emit_config);
        r = persist_check_file(emit_config, &err);
    }
    if (r == 0 && options->from_qemu) {
        r = adopt_start(&host, &given, callbacks, &op, &err);
    } else if (r == 0) {
        r = recover_start(&host, engine_operation, &given, callbacks, &op,
                          &err);
    }
    if (r == 0 && ret != NULL) {
        *ret = (struct qpivot_op *)op;
    }
    return api_error(err, r, ret_error);
}

int qpivot_doctor(struct qpivot_engine *engine,
                  const struct qpivot_doctor_options *options,
                  const struct qpivot_callbacks *callbacks,
                  struct qpivot_op **ret, char **ret_error)
{
    _cleanup_err_ struct err *err = NULL;
    struct op *op = NULL;
    if (engine == NULL || options == NULL || callbacks == NULL ||
        options->size < sizeof(*options) || options->qmp == NULL) {
        return -EINVAL;
    }
    struct op_host host = engine_host(engine);
    int r = doctor_start(&host, options, callbacks, &op, &err);
    if (r == 0 && ret != NULL) {
        *ret = (struct qpivot_op *)op;
    }
    return api_error(err, r, ret_error);
}

const char *qpivot_op_id(const struct qpivot_op *op)
{
    return op != NULL ? op_id((const struct op *)op) : NULL;
}

int qpivot_op_abort(struct qpivot_op *op)
{
    return op != NULL ? op_abort((struct op *)op) : -EINVAL;
}

int qpivot_op_return(struct qpivot_op *op)
{
    return op != NULL ? op_return((struct op *)op) : -EINVAL;
}

void qpivot_op_detach(struct qpivot_op *op)
{
    if (op != NULL) {
        op_detach((struct op *)op);
    }
}

int qpivot_list(struct qpivot_engine *engine, char **ret_json, char **ret_error)
{
    _cleanup_err_ struct err *err = NULL;
    json_auto_t *json = NULL;
    if (engine == NULL || ret_json == NULL || engine_journal(engine) == NULL) {
        return -EINVAL;
    }
    int r = journal_list(engine_journal(engine), &json, &err);
    for (size_t i = 0; r == 0 && i < json_array_size(json); i++) {
        tell_alive(engine_journal(engine), json_array_get(json, i));
    }
    if (r == 0) {
        add_transfers(engine, json);
    }
    if (r == 0 && (*ret_json = text_of(json)) == NULL) {
        r = -ENOMEM;
    }
    return api_error(err, r, ret_error);
}

int qpivot_show(struct qpivot_engine *engine, const char *op, char **ret_json,
                char **ret_error)
{
    _cleanup_err_ struct err *err = NULL;
    json_auto_t *json = NULL;
    if (engine == NULL || op == NULL || ret_json == NULL ||
        engine_journal(engine) == NULL) {
        return -EINVAL;
    }
    int r = journal_load(engine_journal(engine), op, &json, &err);
    tell_alive(engine_journal(engine), json);
    if (r == -ENOENT) {
        json_auto_t *found = records_list(engine_state_dir(engine), op);
        json = json_incref(json_array_get(found, 0));
        r = json != NULL ? 0 : r;
    }
    if (r == 0 && (*ret_json = text_of(json)) == NULL) {
        r = -ENOMEM;
    }
    return api_error(err, r, ret_error);
}

char *qpivot_explain(const char *operation)
{
    /* The way back from a move's undo window is a table of the move's own. */
    bool back = str_eq(operation, "undo");
    const struct operation *found = engine_operation(back ? "move" : operation);
    if (found == NULL) {
        return NULL;
    }
    json_auto_t *steps = json_array();
    for (unsigned i = 0; i < found->n_steps; i++) {
        const struct step *step = &found->steps[i];
        if (((step->flags & STEP_RETURN) != 0) != back) {
            continue;
        }
        json_t *flags = json_array();
        if ((step->flags & STEP_PER_DISK) != 0) {
            (void)json_array_append_new(flags, json_string("per-disk"));
        }
        if ((step->flags & STEP_PIVOT) != 0) {
            (void)json_array_append_new(flags, json_string("pivot"));
        }
        if (step->when != NULL) {
            (void)json_array_append_new(flags, json_string("when-needed"));
        }
        (void)json_array_append_new(
            steps,
            json_pack("{s:s, s:s, s:b, s:o}", "step", step->name, "does",
                      step->does, "undo", step->undo != NULL, "flags", flags));
    }
    return text_of(steps);
}

char *api_text(const struct err *err)
{
    json_auto_t *json = err_to_json(err);
    return text_of(json);
}

int api_error(const struct err *err, int code, char **ret_error)
{
    if (code < 0 && ret_error != NULL) {
        *ret_error = api_text(err);
    }
    return code;
}

/* The newest first, as the others are. */
static void add_transfers(struct qpivot_engine *engine, json_t *list)
{
    json_auto_t *copies = records_list(engine_state_dir(engine), NULL);
    size_t i;
    json_t *copy;
    json_array_foreach(copies, i, copy) {
        const char *created =
            json_string_value(json_object_get(copy, "created"));
        size_t at = 0;
        while (at < json_array_size(list)) {
            const char *other = json_string_value(
                json_object_get(json_array_get(list, at), "created"));
            if (created != NULL && other != NULL &&
                strcmp(created, other) > 0) {
                break;
            }
            at++;
        }
        (void)json_array_insert(list, at, copy);
    }
}

/* A killed engine leaves the same record as one that is at work. */
static void tell_alive(const struct journal *journal, json_t *operation)
{
    const char *op = json_string_value(json_object_get(operation, "op"));
    if (op != NULL) {
        (void)json_object_set_new(operation, "alive",
                                  json_boolean(journal_is_locked(journal, op)));
    }
}

static bool disks_are_whole(const struct qpivot_disk *disks, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        if (disks == NULL || disks[i].disk == NULL || disks[i].target == NULL) {
            return false;
        }
    }
    return true;
}

static char *text_of(const json_t *json)
{
    /* 15 digits: 0.265 stays that. */
    return json != NULL
               ? json_dumps(json, JSON_COMPACT | JSON_REAL_PRECISION(15))
               : NULL;
}
