/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "operations/doctor.h"

#include <errno.h>
#include <string.h>

#include "base/err.h"
#include "base/str.h"
#include "qmp/qmp.h"
#include "qpivot.h"
#include "run/journal.h"

enum { VERSION = 1, FREEZE_LIMIT_MS = 2000, COMMAND_TIMEOUT_MS = 30000 };

static void doctor_decide(struct op *op);
static void doctor_free(void *data);

/* clang-format off */
/* Looked at again before each kind that rests on the others being gone. */
#define LOOK                                                                   \
    {"look-objects", "see which objects there are",                            \
     doctor_look_objects, NULL, NULL, NULL, NULL, 0},                          \
    {"look-chardevs", "see which character devices there are",                 \
     doctor_look_chardevs, NULL, NULL, NULL, NULL, 0},                         \
    {"look-claim", "see who has claimed the VM",                               \
     doctor_look_claim, NULL, NULL, NULL, NULL, 0},                            \
    {"look-stream", "see whether the guest is being migrated",                 \
     doctor_look_stream, NULL, NULL, NULL, NULL, 0},                           \
    {"look-graph", "read the block graph and the journal",                     \
     doctor_look_graph, NULL, NULL, NULL, NULL, 0}

static const struct step doctor_steps[] = {
    LOOK,
    {"clear-jobs", "cancel and dismiss jobs",
     doctor_clear_jobs, NULL, NULL, NULL, NULL, 0},
    {"clear-exports", "end exports",
     doctor_clear_exports, NULL, NULL, NULL, NULL, 0},
    {"clear-bitmaps", "remove dirty bitmaps",
     doctor_clear_bitmaps, NULL, NULL, NULL, NULL, 0},
    {"clear-nodes", "close nodes that nothing uses, top down",
     doctor_clear_nodes, NULL, NULL, NULL, NULL, 0},
    LOOK,
    {"clear-objects", "remove secrets that no disk needs",
     doctor_clear_objects, NULL, NULL, NULL, NULL, 0},
    {"clear-chardevs", "close sockets that took a file's place",
     doctor_clear_chardevs, NULL, NULL, NULL, NULL, 0},
    LOOK,
    {"clear-claim", "give the claim back where all else is gone",
     doctor_clear_claim, NULL, NULL, NULL, NULL, 0},
    LOOK,
};
/* clang-format on */

const struct operation doctor_operation = {
    .kind = "doctor",
    .version = VERSION,
    .steps = doctor_steps, /* none of them: all are the plan's */
    .plan_steps = doctor_steps,
    .n_plan_steps = ARRAY_SIZE(doctor_steps),
    .decide = doctor_decide,
    .no_volumes = true,
};

static struct doctor *doctor_new(const struct qpivot_doctor_options *options,
                                 struct journal *journal)
{
    struct doctor *doctor = calloc(1, sizeof(*doctor));
    if (doctor == NULL) {
        return NULL;
    }
    doctor->journal = journal;
    doctor->fix = options->fix != 0;
    if (options->op != NULL) {
        memcpy(doctor->op, options->op, strlen(options->op) + 1);
    }
    doctor->ops = json_object();
    doctor->refusals = json_object();
    doctor->again = str_printf("qpivot doctor --qmp %s --fix%s%s", options->qmp,
                               options->op != NULL ? " --op " : "", doctor->op);
    if (doctor->ops == NULL || doctor->refusals == NULL ||
        doctor->again == NULL) {
        doctor_free(doctor);
        return NULL;
    }
    return doctor;
}

int doctor_start(const struct op_host *host,
                 const struct qpivot_doctor_options *options,
                 const struct qpivot_callbacks *callbacks, struct op **ret,
                 struct err **errp)
{
    if (options->op != NULL && !op_id_valid(options->op)) {
        return err_set(errp, -EINVAL, options->op, "is no operation's id");
    }
    if (!str_is_utf8(options->qmp)) {
        return err_set(errp, -EINVAL, "doctor",
                       "the monitor's address is no UTF-8");
    }
    struct doctor *doctor = doctor_new(options, host->journal);
    _cleanup_(plan_freep) struct plan *plan = NULL;
    if (doctor == NULL || plan_new("doctor", 0, &plan) < 0 ||
        (plan->qmp = qmp_addr_absolute(options->qmp)) == NULL) {
        doctor_free(doctor);
        return err_set(errp, -ENOMEM, "doctor", "out of memory");
    }
    plan->freeze_limit_ms = FREEZE_LIMIT_MS;
    plan->command_timeout_ms = options->command_timeout_ms != 0
                                   ? options->command_timeout_ms
                                   : COMMAND_TIMEOUT_MS;
    int r = op_new(host, &doctor_operation, TAKE_PTR(plan), doctor, doctor_free,
                   callbacks, ret, errp);
    if (r < 0) {
        doctor_free(doctor);
    }
    return r;
}

static void doctor_free(void *data)
{
    struct doctor *doctor = data;
    if (doctor == NULL) {
        return;
    }
    for (unsigned i = 0; i < doctor->n_locks; i++) {
        journal_unlock(doctor->locks[i]);
    }
    json_t *const kept[] = {doctor->objects, doctor->chardevs, doctor->items,
                            doctor->foreign, doctor->frozen,   doctor->first,
                            doctor->ops,     doctor->refusals, doctor->order};
    for (unsigned i = 0; i < ARRAY_SIZE(kept); i++) {
        json_decref(kept[i]);
    }
    free(doctor->again);
    free(doctor->holder);
    free(doctor->stream);
    free(doctor);
}

const char *doctor_text(const json_t *json, const char *key)
{
    const char *text = json_string_value(json_object_get(json, key));
    return text != NULL ? text : "";
}

bool doctor_counts(const struct doctor *doctor, const json_t *item)
{
    const char *use = doctor_text(item, "use");
    /* Somebody may name his own nodes so; but the claim keeps us all off. */
    bool ours = *doctor_text(item, "op") != '\0' ||
                str_eq(doctor_text(item, "kind"), "claim");
    return ours && !str_eq(use, "live") && !str_eq(use, "filter") &&
           (*doctor->op == '\0' || str_eq(doctor_text(item, "op"), doctor->op));
}

bool doctor_removes(const struct doctor *doctor, const json_t *item)
{
    const json_t *of = json_object_get(doctor->ops, doctor_text(item, "op"));
    return doctor->stream == NULL && json_is_true(json_object_get(of, "fix")) &&
           doctor_counts(doctor, item) &&
           !str_eq(doctor_text(item, "use"), "held");
}

static char *item_key(const char *kind, const char *name)
{
    return str_printf("%s %s", kind, name);
}

void doctor_refused(struct doctor *doctor, const char *kind, const char *name,
                    const struct err *err)
{
    _cleanup_free_ char *key = item_key(kind, name);
    if (key != NULL) {
        (void)json_object_set_new(
            doctor->refusals, key,
            json_string(err->desc != NULL ? err->desc : "was refused"));
    }
}

/* --- telling --- */

/* Why it is there still, in QEMU's words or ours. */
static char *why_of(const struct doctor *doctor, const json_t *item)
{
    _cleanup_free_ char *key =
        item_key(doctor_text(item, "kind"), doctor_text(item, "name"));
    const char *refusal =
        key != NULL ? json_string_value(json_object_get(doctor->refusals, key))
                    : NULL;
    if (doctor->stream != NULL) {
        return str_printf("the guest is being migrated (%s)", doctor->stream);
    }
    return refusal != NULL ? strdup(refusal) : NULL;
}

static bool tell_item(const struct doctor *doctor, json_t *item)
{
    bool counts = doctor_counts(doctor, item);
    _cleanup_free_ char *why = counts ? why_of(doctor, item) : NULL;
    if (why != NULL) {
        (void)json_object_set_new(item, "why", json_string(why));
    }
    return counts;
}

static bool is_there(const json_t *items, const json_t *item)
{
    size_t i;
    json_t *other;
    json_array_foreach(items, i, other) {
        if (str_eq(doctor_text(other, "name"), doctor_text(item, "name")) &&
            str_eq(doctor_text(other, "kind"), doctor_text(item, "kind")) &&
            str_eq(doctor_text(other, "node"), doctor_text(item, "node"))) {
            return true;
        }
    }
    return false;
}

/* What was there at first, and is no more. */
static json_t *removed(const struct doctor *doctor)
{
    json_t *list = json_array();
    size_t i;
    json_t *item;
    json_array_foreach(doctor->first, i, item) {
        if (!is_there(doctor->items, item)) {
            (void)json_array_append(list, item);
        }
    }
    return list;
}

static json_t *operations(const struct doctor *doctor)
{
    json_t *list = json_array();
    const char *id;
    json_t *of;
    json_object_foreach(doctor->ops, id, of) {
        json_t *copy = json_copy(of);
        (void)json_object_del(copy, "fix");
        (void)json_array_append_new(list, copy);
    }
    return list;
}

static void doctor_decide(struct op *op)
{
    const struct doctor *doctor = op_request(op);
    unsigned n_left = 0;
    const char *next = "";
    size_t i;
    json_t *item;
    json_array_foreach(doctor->items, i, item) {
        if (!tell_item(doctor, item)) {
            continue;
        }
        const json_t *of =
            json_object_get(doctor->ops, doctor_text(item, "op"));
        n_left++;
        next = *next == '\0' ? doctor_text(of, "next") : next;
    }
    json_t *data = json_pack(
        "{s:s, s:b, s:I, s:O, s:O, s:o, s:o, s:O, s:s*}", "qmp",
        op_plan(op)->qmp, "fix", doctor->fix, "remain", (json_int_t)n_left,
        "frozen", doctor->frozen, "items", doctor->items, "operations",
        operations(doctor), "removed", removed(doctor), "foreign",
        doctor->foreign, "stream", doctor->stream);
    if (n_left > 0 && *next != '\0') {
        (void)json_object_set_new(data, "next", json_string(next));
    }
    op_conclude(op, n_left > 0 ? "parked" : "done", data,
                n_left > 0 ? QPIVOT_PARKED : QPIVOT_DONE);
}
