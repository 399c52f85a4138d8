/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "operations/adopt.h"

#include <errno.h>
#include <string.h>

#include "base/err.h"
#include "base/str.h"
#include "operations/move.h"
#include "qmp/qmp.h"
#include "qpivot.h"
#include "run/claim.h"
#include "run/journal.h"
#include "vm/graph.h"
#include "vm/leftover.h"
#include "vm/vm.h"

enum { COMMAND_TIMEOUT_MS = 30000, FREEZE_LIMIT_MS = 2000 };

static step_fn look_claim, look_stream, look_capabilities, look_parameters,
    look_status, look_objects, look_jobs, look_graph;
static void adopt_decide(struct op *op);

/* clang-format off */
static const struct step adopt_steps[] = {
    {"look-claim", "see which operation has claimed the VM",
     look_claim, NULL, NULL, NULL, NULL, 0},
    {"look-stream", "see whether the guest is being migrated",
     look_stream, NULL, NULL, NULL, NULL, 0},
    {"look-capabilities", "see what a migration has switched on",
     look_capabilities, NULL, NULL, NULL, NULL, 0},
    {"look-parameters", "see what limits a migration has set",
     look_parameters, NULL, NULL, NULL, NULL, 0},
    {"look-status", "see whether the guest is here",
     look_status, NULL, NULL, NULL, NULL, 0},
    {"look-objects", "see which objects there are",
     look_objects, NULL, NULL, NULL, NULL, 0},
    {"look-jobs", "see how its jobs were started",
     look_jobs, NULL, NULL, NULL, NULL, 0},
    {"look-graph", "read the block graph",
     look_graph, NULL, NULL, NULL, NULL, 0},
};
/* clang-format on */

const struct operation adopt_operation = {
    .kind = "recover",
    .version = 1,
    .plan_steps = adopt_steps,
    .n_plan_steps = ARRAY_SIZE(adopt_steps),
    .decide = adopt_decide,
    .no_volumes = true,
};

static void adopt_free(void *data)
{
    struct adopt *adopt = data;
    free(adopt->wanted);
    free(adopt->holder);
    free(adopt->stream);
    free(adopt->status);
    json_decref(adopt->objects);
    json_decref(adopt->block_jobs);
    json_decref(adopt->capabilities);
    json_decref(adopt->parameters);
    err_free(adopt->unclear);
    free(adopt);
}

int adopt_start(const struct op_host *host,
                const struct qpivot_recover_options *options,
                const struct qpivot_callbacks *callbacks, struct op **ret,
                struct err **errp)
{
    struct plan *plan = NULL;
    struct adopt *adopt = calloc(1, sizeof(*adopt));
    if (options->op != NULL && !op_id_valid(options->op)) {
        free(adopt);
        return err_set(errp, -ENOENT, options->op, "is no operation's id");
    }
    int r = adopt != NULL ? plan_new("move", 0, &plan) : -ENOMEM;
    if (r == 0) {
        adopt->journal = host->journal;
        adopt->undo = options->undo != 0;
        adopt->wanted = options->op != NULL ? strdup(options->op) : NULL;
        plan->qmp = strdup(options->qmp);
        plan->emit_config =
            strdup(options->emit_config != NULL ? options->emit_config : "");
        plan->persist_hook =
            strdup(options->persist_hook != NULL ? options->persist_hook : "");
        plan->command_timeout_ms = COMMAND_TIMEOUT_MS;
        plan->freeze_limit_ms = FREEZE_LIMIT_MS;
        plan->copy_mode = QPIVOT_COPY_AUTO;
        r = plan->qmp == NULL || plan->emit_config == NULL ||
                    plan->persist_hook == NULL ||
                    (options->op != NULL && adopt->wanted == NULL)
                ? -ENOMEM
                : 0;
    }
    if (r < 0) {
        plan_free(plan);
        if (adopt != NULL) {
            adopt_free(adopt);
        }
        return err_set(errp, r, "recover", "out of memory");
    }
    r = op_new(host, &adopt_operation, plan, adopt, adopt_free, callbacks, ret,
               errp);
    if (r < 0) {
        adopt_free(adopt);
    }
    return r;
}

/* --- looking --- */

static struct adopt *adopt_of(const struct act *act)
{
    return op_request(act_op(act));
}

static void keep_text(char **text, const json_t *value)
{
    const char *found = json_string_value(value);
    free(*text);
    *text = found != NULL ? strdup(found) : NULL;
}

static void claim_on_reply(struct act *act, const struct err *err,
                           json_t *result)
{
    bool absent = err != NULL && str_eq(err->class, "DeviceNotFound");
    keep_text(&adopt_of(act)->holder, err == NULL ? result : NULL);
    act_end(act, absent ? NULL : err);
}

static void look_claim(struct act *act)
{
    act_qmp(act, "qom-get", claim_holder_arguments(), claim_on_reply);
}

static void stream_on_reply(struct act *act, const struct err *err,
                            json_t *result)
{
    keep_text(&adopt_of(act)->stream, json_object_get(result, "status"));
    act_end(act, err);
}

static void look_stream(struct act *act)
{
    act_qmp(act, "query-migrate", NULL, stream_on_reply);
}

static void capabilities_on_reply(struct act *act, const struct err *err,
                                  json_t *result)
{
    struct adopt *adopt = adopt_of(act);
    size_t i;
    json_t *entry;
    json_decref(adopt->capabilities);
    adopt->capabilities = json_array();
    json_array_foreach(result, i, entry) {
        if (json_is_true(json_object_get(entry, "state"))) {
            (void)json_array_append(adopt->capabilities,
                                    json_object_get(entry, "capability"));
        }
    }
    act_end(act, err);
}

static void look_capabilities(struct act *act)
{
    act_qmp(act, "query-migrate-capabilities", NULL, capabilities_on_reply);
}

static void parameters_on_reply(struct act *act, const struct err *err,
                                json_t *result)
{
    struct adopt *adopt = adopt_of(act);
    json_decref(adopt->parameters);
    adopt->parameters = json_incref(result);
    act_end(act, err);
}

static void look_parameters(struct act *act)
{
    act_qmp(act, "query-migrate-parameters", NULL, parameters_on_reply);
}

static void status_on_reply(struct act *act, const struct err *err,
                            json_t *result)
{
    keep_text(&adopt_of(act)->status, json_object_get(result, "status"));
    act_end(act, err);
}

static void look_status(struct act *act)
{
    act_qmp(act, "query-status", NULL, status_on_reply);
}

static void objects_on_reply(struct act *act, const struct err *err,
                             json_t *result)
{
    adopt_of(act)->objects = json_incref(result);
    act_end(act, err);
}

static void look_objects(struct act *act)
{
    act_qmp(act, "qom-list", json_pack("{s:s}", "path", "/objects"),
            objects_on_reply);
}

static void jobs_on_reply(struct act *act, const struct err *err,
                          json_t *result)
{
    adopt_of(act)->block_jobs = json_incref(result);
    act_end(act, err);
}

static void look_jobs(struct act *act)
{
    act_qmp(act, "query-block-jobs", NULL, jobs_on_reply);
}

/* Whose it is, and that it is nobody's else: an error that refuses, or 0. */
static int check_owner(const struct op *op, const struct adopt *adopt,
                       struct err **errp)
{
    json_auto_t *known = NULL;
    const char *id = adopt->holder;
    (void)op;
    if (id == NULL) {
        (void)err_set(errp, -ENOENT, "claim",
                      "no operation has claimed this VM%s%s",
                      adopt->wanted != NULL ? ", nor has " : "",
                      adopt->wanted != NULL ? adopt->wanted : "");
        err_hint(errp, "'qpivot doctor --qmp ADDR' shows, and removes, what is"
                       " left of operations that have ended");
        return -ENOENT;
    }
    if (!op_id_valid(id)) {
        return err_set(errp, -EPROTO, "claim", "'%s' is no operation's id", id);
    }
    if (adopt->wanted != NULL && !str_eq(id, adopt->wanted)) {
        return err_set(errp, -ESTALE, adopt->wanted,
                       "operation %s has claimed this VM, not this one", id);
    }
    if (journal_load(adopt->journal, id, &known, NULL) != -ENOENT) {
        (void)err_set(errp, -EEXIST, id, "this journal knows it");
        err_hint(errp, "'qpivot recover %s' goes by the journal", id);
        return -EEXIST;
    }
    return 0;
}

/* Whatever carries our names, and is another operation's. */
static void tell_others(struct op *op, const struct adopt *adopt,
                        const struct graph *graph)
{
    const struct leftover_look what = {
        .graph = graph, .objects = adopt->objects, .holder = adopt->holder};
    json_auto_t *items = leftover_list(&what);
    json_auto_t *told = json_object();
    size_t i;
    json_t *item;
    json_array_foreach(items, i, item) {
        const char *id = json_string_value(json_object_get(item, "op"));
        const char *use = json_string_value(json_object_get(item, "use"));
        if (id == NULL || *id == '\0' || str_eq(id, adopt->holder) ||
            str_eq(use, "live") || json_object_get(told, id) != NULL) {
            continue;
        }
        (void)json_object_set_new(told, id, json_true());
        _cleanup_free_ char *text = str_printf(
            "operation %s has left something here, too: it is not touched;"
            " 'qpivot doctor' shows it",
            id);
        op_warn(op, text != NULL ? text : id);
    }
}

/* The stream's parameters name them, and what those were nobody knows. */
static void tell_certificates(struct op *op, const struct adopt *adopt)
{
    struct name tls = name_once(adopt->holder, NAME_TLS);
    size_t i;
    json_t *object;
    json_array_foreach(adopt->objects, i, object) {
        const char *name = json_string_value(json_object_get(object, "name"));
        if (str_eq(name, tls.text)) {
            _cleanup_free_ char *text = str_printf(
                "its certificates stay in QEMU as '%s', and the migration's"
                " parameters name them: set 'tls-creds' to \"\", then 'qpivot"
                " doctor --fix --op %s' removes them",
                tls.text, adopt->holder);
            op_warn(op, text != NULL ? text : tls.text);
        }
    }
}

static void look_on_graph(struct act *act, const struct err *err,
                          const struct graph *graph)
{
    struct op *op = act_op(act);
    struct adopt *adopt = adopt_of(act);
    _cleanup_err_ struct err *error = err_copy(err);
    if (error == NULL && check_owner(op, adopt, &error) == 0 &&
        adopt_check_stream(op, adopt, graph, &adopt->unclear) == 0) {
        if (graph_edges(graph) != GRAPH_EDGES_ALL &&
            graph_edges(graph) != GRAPH_EDGES_CHILDREN) {
            (void)err_set(&adopt->unclear, -ENOTSUP, adopt->holder,
                          "this QEMU does not show its graph: which disk is"
                          " where cannot be told");
        } else if (adopt_disks(op, adopt, graph, adopt->holder) < 0) {
            (void)err_set(&error, -ENOMEM, adopt->holder, "out of memory");
        } else {
            tell_others(op, adopt, graph);
            tell_certificates(op, adopt);
        }
    }
    if (error != NULL) {
        op_problem(op, TAKE_PTR(error));
    }
    act_end(act, NULL);
}

static void look_graph(struct act *act)
{
    act_graph(act, look_on_graph);
}

/* --- deciding --- */

/* Whether the pivot may have begun: then its probe decides, and nobody else. */
static bool has_begun(const struct adopt *adopt, const struct plan *plan)
{
    for (unsigned i = 0; i < plan->n_disks; i++) {
        if (adopt->disks[i].uses_target ||
            (adopt->disks[i].finishing && !adopt_is_migration(adopt))) {
            return true;
        }
    }
    return false;
}

/* Why it can only go back, or NULL. */
static const char *why_back(const struct adopt *adopt, const struct plan *plan)
{
    bool drive_mirror = false;
    if (plan->n_disks == 0) {
        return "only its claim is there";
    }
    if (adopt->verifies) {
        return "it compares its disks, and what it found is not known";
    }
    for (unsigned i = 0; i < plan->n_disks; i++) {
        const struct adopt_disk *disk = &adopt->disks[i];
        drive_mirror = drive_mirror || plan->disks[i].drive_mirror;
        if (disk->client || adopt_is_migration(adopt)) {
            return "it is a migration that has not handed the guest over";
        }
        if (!disk->copies || !disk->uses_source) {
            return "not all of its disks are being copied";
        }
        if (!disk->volume) {
            return "what its target is on storage cannot be told";
        }
        if (disk->bitmaps && !plan->group) {
            return "its disk has bitmaps, which it was not to carry";
        }
    }
    return drive_mirror && plan->group
               ? "whether all disks of its group are here cannot be told"
               : NULL;
}

static const char *const before_pivot[] = {"latency-look", "verify",
                                           "guest-look",   "guest-stop",
                                           "verify-rest",  "verify-clean"};

static void adopt_marks(struct op *op, const struct adopt *adopt, bool begun)
{
    const struct plan *plan = op_plan(op);
    if (plan->hold_shutdown) {
        op_adopt_step(op, "power", ALL_DISKS, true);
        op_adopt_step(op, "power-hold", ALL_DISKS, true);
    }
    op_adopt_step(op, "claim", ALL_DISKS, true);
    for (unsigned i = 0; i < plan->n_disks; i++) {
        const struct adopt_disk *disk = &adopt->disks[i];

        const struct {
            const char *step;
            bool done;
            bool ended;
        } steps[] = {
            {"target-secret",  disk->key,                                    true },
            {"target-file",    disk->file,                                   true },
            {"target-format",  disk->create,                                 false},
            {"target-image",   disk->image,                                  true },
            {"target-node",    disk->target && !plan->disks[i].drive_mirror, true },
            {"verify-scratch", adopt->verifies,                              true },
            {"verify-try",     adopt->verifies,                              true },
            {"mirror",         disk->job || begun,                           true },
            {"mirror-ready",   begun,                                        true },
            {"twin",           begun || disk->twin,                          true },
        };

        for (unsigned k = 0; k < ARRAY_SIZE(steps); k++) {
            if (steps[k].done) {
                op_adopt_step(op, steps[k].step, (int)i, steps[k].ended);
            }
        }
    }
    /* What they have found is lost, but the pivot came after them. */
    for (unsigned i = 0; begun && i < ARRAY_SIZE(before_pivot); i++) {
        op_adopt_step(op, before_pivot[i], ALL_DISKS, true);
    }
    if (begun) {
        op_adopt_step(op, "pivot", ALL_DISKS, false);
    }
}

/* Whether a stream had taken them only the journal would tell. */
static void tell_bitmaps(struct op *op, const struct adopt *adopt)
{
    const struct plan *plan = op_plan(op);
    for (unsigned i = 0; i < plan->n_disks; i++) {
        size_t k;
        json_t *bitmap;
        json_array_foreach(plan->disks[i].bitmaps, k, bitmap) {
            bool persistent =
                json_is_true(json_object_get(bitmap, "persistent"));
            _cleanup_free_ char *text = str_printf(
                "dirty bitmap '%s' of %s may not be stored when QEMU ends: make"
                " it anew, and take a full backup",
                json_string_value(json_object_get(bitmap, "name")),
                plan->disks[i].disk);
            if (adopt->disks[i].client && persistent && text != NULL) {
                op_warn(op, text);
            }
        }
    }
}

static void tell_plan(struct op *op)
{
    const struct plan *plan = op_plan(op);
    json_t *disks = json_array();
    for (unsigned i = 0; i < plan->n_disks; i++) {
        (void)json_array_append_new(
            disks,
            json_pack("{s:s, s:s, s:s}", "disk", plan->disks[i].disk, "from",
                      plan->disks[i].from, "to", plan->disks[i].to));
    }
    op_emit(op, "plan", json_pack("{s:o, s:b}", "disks", disks, "adopted", 1));
}

/* Steals 'text', which may be NULL; "text, name", or NULL without memory. */
static char *listed(char *text, const char *name)
{
    char *more = str_printf("%s%s%s", text != NULL ? text : "",
                            text != NULL ? ", " : "", name);
    free(text);
    return more;
}

/* The values of what a migration may have set. */
static char *list_parameters(const struct adopt *adopt)
{
    static const char *const names[] = {
        "max-bandwidth",    "downtime-limit",    "max-postcopy-bandwidth",
        "multifd-channels", "xbzrle-cache-size", "tls-creds",
        "tls-hostname"};

    char *text = NULL;
    for (unsigned i = 0; i < ARRAY_SIZE(names); i++) {
        const json_t *value = json_object_get(adopt->parameters, names[i]);
        const char *word = json_string_value(value);
        _cleanup_free_ char *pair =
            json_is_integer(value)
                ? str_printf("%s=%lld", names[i],
                             (long long)json_integer_value(value))
            : word != NULL && *word != '\0'
                ? str_printf("%s=%s", names[i], word)
                : NULL;
        text = pair != NULL ? listed(text, pair) : text;
    }
    return text;
}

/* Those of a migration's source stay: it is not known what they were before. */
static void tell_settings(struct op *op, const struct adopt *adopt)
{
    const struct plan *plan = op_plan(op);
    char *names = NULL;
    bool migrates = plan->n_disks == 0;
    size_t i;
    json_t *name;
    for (unsigned k = 0; k < plan->n_disks; k++) {
        migrates = migrates || adopt->disks[k].client;
    }
    json_array_foreach(adopt->capabilities, i, name) {
        names = listed(names, json_string_value(name));
    }
    _cleanup_free_ char *values = list_parameters(adopt);
    _cleanup_free_ char *text =
        migrates && names != NULL
            ? str_printf("migration capabilities that are on in this QEMU stay"
                         " so (%s), and parameters as they are (%s): what they"
                         " were before a migration is not known; set what is"
                         " not yours by 'migrate-set-capabilities' and"
                         " 'migrate-set-parameters'",
                         names, values != NULL ? values : "none")
            : NULL;
    free(names);
    if (text != NULL) {
        op_warn(op, text);
    }
}

/* Of no disk: the table of a move knows nothing of them. */
static void tell_objects(struct op *op, const struct adopt *adopt)
{
    static const enum name_once whats[] = {NAME_TLS, NAME_AUTHZ};

    for (unsigned i = 0; i < ARRAY_SIZE(whats); i++) {
        struct name name = name_once(adopt->holder, whats[i]);
        _cleanup_free_ char *text =
            adopt_has_object(adopt, name.text)
                ? str_printf("object '%s' stays: 'qpivot doctor --qmp %s --fix"
                             " --op %s' removes it",
                             name.text, op_plan(op)->qmp, adopt->holder)
                : NULL;
        if (text != NULL) {
            op_warn(op, text);
        }
    }
}

static void park(struct op *op, const struct err *err)
{
    op_conclude(op, "parked", json_pack("{s:o*}", "error", err_to_json(err)),
                QPIVOT_PARKED);
}

static void adopt_decide(struct op *op)
{
    struct adopt *adopt = op_request(op);
    const struct plan *plan = op_plan(op);
    _cleanup_err_ struct err *why = NULL;
    if (op_problems(op) != NULL) {
        return;
    }
    if (adopt->unclear != NULL) {
        park(op, adopt->unclear);
        return;
    }
    bool returned = adopt_has_returned(adopt, plan, &why);
    if (why != NULL) {
        park(op, why);
        return;
    }
    bool begun = !returned && has_begun(adopt, plan);
    for (unsigned i = 0; begun && i < plan->n_disks; i++) {
        if (!adopt->disks[i].volume) {
            (void)err_set(&why, -ENOTSUP, plan->disks[i].disk,
                          "may use its target already, and what that is on"
                          " storage cannot be told: nothing was changed");
            park(op, why);
            return;
        }
    }
    const char *back = begun      ? NULL
                       : returned ? "it had gone back from its undo window"
                                  : why_back(adopt, plan);
    if (back != NULL) {
        (void)err_set(&why, -ECANCELED, adopt->holder, "goes back: %s", back);
        tell_settings(op, adopt);
        tell_objects(op, adopt);
    }
    if (op_adopt(op, &move_operation, adopt->holder, adopt->undo, why) < 0) {
        (void)err_set(&why, -ENOMEM, adopt->holder, "out of memory");
        park(op, why);
        return;
    }
    adopt_marks(op, adopt, begun);
    tell_plan(op);
    tell_bitmaps(op, adopt);
}
