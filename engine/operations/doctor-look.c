/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * doctor's looks at QEMU and at the journal: what there is, and what may be
 * done about it. In doubt nothing may.
 */
#include <errno.h>
#include <string.h>

#include "base/err.h"
#include "base/str.h"
#include "operations/doctor.h"
#include "run/claim.h"
#include "run/journal.h"
#include "vm/leftover.h"
#include "vm/vm.h"

static struct doctor *doctor_of(const struct act *act)
{
    return op_request(act_op(act));
}

/* The looks after the first serve what is to be removed. */
static bool is_needless(const struct doctor *doctor)
{
    return doctor->first != NULL && !doctor->fix;
}

static void keep_text(char **text, const char *found)
{
    free(*text);
    *text = found != NULL ? strdup(found) : NULL;
}

/* --- QEMU --- */

static void objects_on_reply(struct act *act, const struct err *err,
                             json_t *result)
{
    struct doctor *doctor = doctor_of(act);
    json_decref(doctor->objects);
    doctor->objects = json_incref(result);
    act_end(act, err);
}

void doctor_look_objects(struct act *act)
{
    if (is_needless(doctor_of(act))) {
        act_end(act, NULL);
        return;
    }
    act_qmp(act, "qom-list", json_pack("{s:s}", "path", "/objects"),
            objects_on_reply);
}

static void chardevs_on_reply(struct act *act, const struct err *err,
                              json_t *result)
{
    struct doctor *doctor = doctor_of(act);
    json_decref(doctor->chardevs);
    doctor->chardevs = json_incref(result);
    act_end(act, err);
}

void doctor_look_chardevs(struct act *act)
{
    if (is_needless(doctor_of(act))) {
        act_end(act, NULL);
        return;
    }
    act_qmp(act, "query-chardev", NULL, chardevs_on_reply);
}

static void claim_on_reply(struct act *act, const struct err *err,
                           json_t *result)
{
    struct doctor *doctor = doctor_of(act);
    const char *holder = json_string_value(result);
    bool absent = err != NULL && str_eq(err->class, "DeviceNotFound");
    bool answered = err == NULL || err->code == -EREMOTEIO;
    /* There, but not readable: whose it is cannot be told. */
    keep_text(&doctor->holder, absent ? NULL : holder != NULL ? holder : "");
    act_end(act, answered ? NULL : err);
}

void doctor_look_claim(struct act *act)
{
    if (is_needless(doctor_of(act))) {
        act_end(act, NULL);
        return;
    }
    act_qmp(act, "qom-get", claim_holder_arguments(), claim_on_reply);
}

/* What has no more to say about the disks. */
static bool stream_is_over(const char *status)
{
    static const char *const over[] = {"none", "completed", "failed",
                                       "cancelled"};
    for (unsigned i = 0; i < ARRAY_SIZE(over); i++) {
        if (str_eq(status, over[i])) {
            return true;
        }
    }
    return status == NULL;
}

/* From QEMU 9 at least one that waits for a stream says so, too. */
static void waits_on_reply(struct act *act, const struct err *err,
                           json_t *result)
{
    const char *status = json_string_value(json_object_get(result, "status"));
    if (err == NULL && str_eq(status, "inmigrate")) {
        keep_text(&doctor_of(act)->stream, NULL);
    }
    act_end(act, err == NULL || err->code == -EREMOTEIO ? NULL : err);
}

static void stream_on_reply(struct act *act, const struct err *err,
                            json_t *result)
{
    const char *status = json_string_value(json_object_get(result, "status"));
    bool answered = err == NULL || err->code == -EREMOTEIO;
    /* A mirror that is taken away under it would lose the guest's writes. */
    keep_text(&doctor_of(act)->stream, stream_is_over(status) ? NULL : status);
    if (answered && str_eq(status, "setup")) {
        act_qmp(act, "query-status", NULL, waits_on_reply);
    } else {
        act_end(act, answered ? NULL : err);
    }
}

void doctor_look_stream(struct act *act)
{
    if (is_needless(doctor_of(act))) {
        act_end(act, NULL);
        return;
    }
    act_qmp(act, "query-migrate", NULL, stream_on_reply);
}

/* --- the journal --- */

static bool is_over(const char *state)
{
    return str_eq(state, "done") || str_eq(state, "undone") ||
           str_eq(state, "refused");
}

/* What this journal knows of the operation, and what its user can do. */
static json_t *look_up(const struct doctor *doctor, const char *id)
{
    json_auto_t *known = NULL;
    const char *tells = "unknown", *state = "", *kind = "";
    _cleanup_err_ struct err *err = NULL;
    _cleanup_free_ char *next = NULL;
    int r = doctor->journal != NULL
                ? journal_load(doctor->journal, id, &known, &err)
                : -ENOENT;
    if (r == 0) {
        state = doctor_text(known, "state");
        kind = doctor_text(known, "kind");
        tells = is_over(state) ? "ended" : "dead";
    } else if (r != -ENOENT) {
        tells = "unreadable"; /* it may well be at work */
    }
    if (doctor->journal != NULL && journal_is_locked(doctor->journal, id)) {
        tells = "live";
    }
    if (str_eq(tells, "live")) {
        next = str_printf("qpivot abort %s", id);
    } else if (str_eq(tells, "dead")) {
        next = str_printf("qpivot recover %s", id);
    } else if (str_eq(tells, "ended") || *doctor->op != '\0') {
        next = strdup(doctor->again);
    } else {
        next = str_printf("%s --op %s", doctor->again, id);
    }
    return json_pack("{s:s, s:s, s:s, s:s, s:s*}", "op", id, "journal", tells,
                     "kind", kind, "state", state, "next", next);
}

/* Its lock keeps an engine of this host off until we are done. */
static bool may_fix(struct doctor *doctor, const char *id, json_t *of)
{
    const char *tells = doctor_text(of, "journal");
    bool named = str_eq(doctor->op, id);
    bool wanted =
        doctor->fix && (named || *doctor->op == '\0') &&
        (str_eq(tells, "ended") || (str_eq(tells, "unknown") && named));
    if (!wanted || doctor->n_locks == DOCTOR_OPS_MAX) {
        return false;
    }
    if (doctor->journal != NULL) {
        struct journal_lock *lock = NULL;
        if (journal_lock(doctor->journal, id, &lock, NULL) < 0) {
            (void)json_object_set_new(of, "journal", json_string("live"));
            return false;
        }
        doctor->locks[doctor->n_locks++] = lock;
    }
    return true;
}

/* Once for each operation: what is ours from now on shows as locked. */
static void judge(struct doctor *doctor)
{
    size_t i;
    json_t *item;
    json_array_foreach(doctor->items, i, item) {
        const char *id = doctor_text(item, "op");
        if (!op_id_valid(id) || json_object_get(doctor->ops, id) != NULL ||
            json_object_size(doctor->ops) >= DOCTOR_OPS_MAX) {
            continue;
        }
        json_t *of = look_up(doctor, id);
        bool fix = of != NULL && may_fix(doctor, id, of);
        (void)json_object_set_new(of, "fix", json_boolean(fix));
        (void)json_object_set_new(doctor->ops, id, of);
    }
}

static bool takes_graph(struct doctor *doctor, const struct graph *graph)
{
    const struct leftover_look look = {.graph = graph,
                                       .objects = doctor->objects,
                                       .chardevs = doctor->chardevs,
                                       .holder = doctor->holder};
    json_decref(doctor->items);
    json_decref(doctor->foreign);
    json_decref(doctor->frozen);
    doctor->items = leftover_list(&look);
    doctor->foreign = leftover_foreign(graph);
    doctor->frozen = leftover_frozen(graph);
    if (doctor->items == NULL || doctor->foreign == NULL ||
        doctor->frozen == NULL) {
        return false;
    }
    if (doctor->first == NULL) {
        doctor->first = json_deep_copy(doctor->items);
    }
    judge(doctor);
    return doctor->first != NULL;
}

static void graph_on_reply(struct act *act, const struct err *err,
                           const struct graph *graph)
{
    struct doctor *doctor = doctor_of(act);
    _cleanup_err_ struct err *error = NULL;
    if (err == NULL && !takes_graph(doctor, graph)) {
        (void)err_set(&error, -ENOMEM, "doctor", "out of memory");
        err = error;
    }
    if (err == NULL && doctor->fix) {
        op_set_next(act_op(act), doctor->again);
    }
    act_end(act, err);
}

void doctor_look_graph(struct act *act)
{
    if (is_needless(doctor_of(act))) {
        act_end(act, NULL);
        return;
    }
    act_graph(act, graph_on_reply);
}
