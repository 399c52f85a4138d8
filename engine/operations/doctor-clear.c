/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * doctor's removals, one kind each. What QEMU refuses is kept in its words;
 * the look that follows tells what is left, not the replies.
 */
#include <errno.h>

#include "base/err.h"
#include "base/str.h"
#include "operations/doctor.h"
#include "run/claim.h"
#include "steps/cancel.h"
#include "vm/graph.h"
#include "vm/vm.h"

enum {
    YANK_AFTER_MS = 5000,
    WAIT_MS = 15000,
    LOOK_AGAIN_MS = 100,
    TORN_AGAIN_MS = 500,
    TORN_MAX = 3,
};

/* How far the removal of one kind has come. */
struct clearing {
    struct cancelling cancelling; /* first: see cancel_jobs() */
    const char *id;
    uint64_t since_ms;
    size_t at;       /* in doctor->items, or in doctor->order */
    unsigned n_torn; /* looks at a graph that changed meanwhile */
    bool yanked;
    bool begun;
};

static struct doctor *doctor_of(const struct act *act)
{
    return op_request(act_op(act));
}

/* NULL: there is nothing to do, or no memory; the act has ended. */
static struct clearing *begin(struct act *act, const char *kind)
{
    const struct doctor *doctor = doctor_of(act);
    struct clearing *clearing = act_scratch(act, sizeof(*clearing));
    bool any = false;
    size_t i;
    json_t *item;
    json_array_foreach(doctor->items, i, item) {
        any = any || (str_eq(doctor_text(item, "kind"), kind) &&
                      doctor_removes(doctor, item));
    }
    if (!any || clearing == NULL) {
        act_end(act, NULL);
        return NULL;
    }
    clearing->at = 0; /* it may begin anew after a lost connection */
    if (!clearing->begun) {
        clearing->begun = true;
        clearing->since_ms = act_now_ms(act);
    }
    return clearing;
}

/* The next item of the kind from clearing->at on, or NULL; at is behind it. */
static json_t *next_of(const struct act *act, struct clearing *clearing,
                       const char *kind)
{
    const struct doctor *doctor = doctor_of(act);
    while (clearing->at < json_array_size(doctor->items)) {
        json_t *item = json_array_get(doctor->items, clearing->at++);
        if (str_eq(doctor_text(item, "kind"), kind) &&
            doctor_removes(doctor, item)) {
            return item;
        }
    }
    return NULL;
}

/* Of the item that clearing->at is just behind. */
static const json_t *current(const struct act *act,
                             const struct clearing *clearing)
{
    return json_array_get(doctor_of(act)->items, clearing->at - 1);
}

/* Whether it was QEMU's own answer; else the act has ended. */
static bool take_refusal(struct act *act, const struct err *err,
                         const char *kind, const char *name)
{
    if (err == NULL) {
        return true;
    }
    if (err->code != -EREMOTEIO) {
        act_end(act, err);
        return false;
    }
    doctor_refused(doctor_of(act), kind, name, err);
    return true;
}

/* --- jobs: those first that freeze the guest --- */

static void jobs_on_jobs(struct act *act, const struct job_list *jobs);

static void jobs_on_reply(struct act *act, const struct err *err,
                          json_t *result)
{
    struct clearing *clearing = act_scratch(act, sizeof(*clearing));
    (void)result;
    if (take_refusal(act, err, "job",
                     doctor_text(current(act, clearing), "name"))) {
        act_wait_jobs(act, jobs_on_jobs);
    }
}

/* Each is asked once for each verb: what it came to, the jobs tell. */
static bool is_asked(json_t *item, const char *verb)
{
    bool asked = str_eq(doctor_text(item, "asked"), verb);
    (void)json_object_set_new(item, "asked", json_string(verb));
    return asked;
}

static void jobs_on_jobs(struct act *act, const struct job_list *jobs)
{
    struct clearing *clearing = act_scratch(act, sizeof(*clearing));
    uint64_t lasted = act_now_ms(act) - clearing->since_ms;
    bool waits = false;
    json_t *item;
    clearing->at = 0;
    while ((item = next_of(act, clearing, "job")) != NULL) {
        const char *id = doctor_text(item, "name");
        const struct job *job = job_list_find(jobs, id);
        if (job == NULL || job->status == JOB_NULL) {
            continue;
        }
        /* Always by force: a soft end would be a clean copy nobody wants. */
        const char *verb =
            job->status == JOB_CONCLUDED ? "job-dismiss" : "job-cancel";
        if (is_asked(item, verb)) {
            waits = true;
            continue;
        }
        clearing->id = id;
        if (job->status == JOB_CONCLUDED) {
            act_qmp(act, verb, json_pack("{s:s}", "id", id), jobs_on_reply);
        } else {
            cancel_jobs(act, &clearing->id, 1, str_eq(job->type, "mirror"),
                        jobs_on_reply);
        }
        return;
    }
    if (!waits || lasted > WAIT_MS) {
        act_end(act, NULL);
    } else if (lasted > YANK_AFTER_MS && !clearing->yanked) {
        /* It answered, and stays: its NBD server is stalled, not dead. */
        clearing->yanked = true;
        vm_yank(act_vm(act));
    }
}

void doctor_clear_jobs(struct act *act)
{
    if (begin(act, "job") != NULL) {
        act_wait_jobs(act, jobs_on_jobs);
    }
}

/* --- exports --- */

static void exports_look(struct act *act);

static void exports_on_reply(struct act *act, const struct err *err,
                             json_t *result)
{
    struct clearing *clearing = act_scratch(act, sizeof(*clearing));
    (void)result;
    if (take_refusal(act, err, "export",
                     doctor_text(current(act, clearing), "name"))) {
        exports_look(act);
    }
}

static bool has_export(const json_t *list, const char *id)
{
    size_t i;
    json_t *entry;
    json_array_foreach(list, i, entry) {
        if (str_eq(doctor_text(entry, "id"), id)) {
            return true;
        }
    }
    return false;
}

static void server_on_reply(struct act *act, const struct err *err,
                            json_t *result)
{
    bool answered = err == NULL || err->code == -EREMOTEIO;
    (void)result;
    act_end(act, answered ? NULL : err); /* not running is as good */
}

static void exports_on_list(struct act *act, const struct err *err,
                            json_t *result)
{
    struct clearing *clearing = act_scratch(act, sizeof(*clearing));
    bool waits = false;
    json_t *item;
    if (err != NULL) {
        act_end(act, err);
        return;
    }
    clearing->at = 0;
    while ((item = next_of(act, clearing, "export")) != NULL) {
        const char *id = doctor_text(item, "name");
        if (!has_export(result, id)) {
            continue;
        }
        if (!is_asked(item, "block-export-del")) {
            act_qmp(act, "block-export-del",
                    json_pack("{s:s, s:s}", "id", id, "mode", "hard"),
                    exports_on_reply);
            return;
        }
        waits = true;
    }
    if (!waits && json_array_size(result) == 0) {
        /*
         * It has no name, and nothing tells whether it runs; but where we had
         * an export we had started it, and nobody else can have done so since.
         */
        act_qmp(act, "nbd-server-stop", NULL, server_on_reply);
    } else if (!waits || act_now_ms(act) - clearing->since_ms > WAIT_MS) {
        act_end(act, NULL);
    } else {
        act_again_on_event(act, LOOK_AGAIN_MS, exports_look);
    }
}

static void exports_look(struct act *act)
{
    act_qmp(act, "query-block-exports", NULL, exports_on_list);
}

void doctor_clear_exports(struct act *act)
{
    if (begin(act, "export") != NULL) {
        exports_look(act);
    }
}

/* --- bitmaps, objects, character devices: one command each --- */

static void bitmaps_next(struct act *act);

static void bitmaps_on_reply(struct act *act, const struct err *err,
                             json_t *result)
{
    struct clearing *clearing = act_scratch(act, sizeof(*clearing));
    (void)result;
    if (take_refusal(act, err, "bitmap",
                     doctor_text(current(act, clearing), "name"))) {
        bitmaps_next(act);
    }
}

static void bitmaps_next(struct act *act)
{
    struct clearing *clearing = act_scratch(act, sizeof(*clearing));
    const json_t *item = next_of(act, clearing, "bitmap");
    if (item == NULL) {
        act_end(act, NULL);
    } else {
        act_qmp(act, "block-dirty-bitmap-remove",
                json_pack("{s:s, s:s}", "node", doctor_text(item, "node"),
                          "name", doctor_text(item, "name")),
                bitmaps_on_reply);
    }
}

void doctor_clear_bitmaps(struct act *act)
{
    if (begin(act, "bitmap") != NULL) {
        bitmaps_next(act);
    }
}

static void objects_next(struct act *act);

static void objects_on_reply(struct act *act, const struct err *err,
                             json_t *result)
{
    struct clearing *clearing = act_scratch(act, sizeof(*clearing));
    (void)result;
    if (take_refusal(act, err, "object",
                     doctor_text(current(act, clearing), "name"))) {
        objects_next(act);
    }
}

static void objects_next(struct act *act)
{
    struct clearing *clearing = act_scratch(act, sizeof(*clearing));
    const json_t *item = next_of(act, clearing, "object");
    if (item == NULL) {
        act_end(act, NULL);
    } else {
        act_qmp(act, "object-del",
                json_pack("{s:s}", "id", doctor_text(item, "name")),
                objects_on_reply);
    }
}

void doctor_clear_objects(struct act *act)
{
    if (begin(act, "object") != NULL) {
        objects_next(act);
    }
}

static void chardevs_next(struct act *act);

static void chardevs_on_reply(struct act *act, const struct err *err,
                              json_t *result)
{
    struct clearing *clearing = act_scratch(act, sizeof(*clearing));
    (void)result;
    if (take_refusal(act, err, "chardev",
                     doctor_text(current(act, clearing), "name"))) {
        chardevs_next(act);
    }
}

static void chardevs_next(struct act *act)
{
    struct clearing *clearing = act_scratch(act, sizeof(*clearing));
    const json_t *item = next_of(act, clearing, "chardev");
    if (item == NULL) {
        act_end(act, NULL);
    } else {
        act_qmp(act, "chardev-remove",
                json_pack("{s:s}", "id", doctor_text(item, "name")),
                chardevs_on_reply);
    }
}

void doctor_clear_chardevs(struct act *act)
{
    if (begin(act, "chardev") != NULL) {
        chardevs_next(act);
    }
}

/* --- nodes: every one before its children --- */

static void nodes_next(struct act *act);
static void nodes_look(struct act *act);

static void nodes_on_reply(struct act *act, const struct err *err,
                           json_t *result)
{
    const struct doctor *doctor = doctor_of(act);
    const struct clearing *clearing = act_scratch(act, sizeof(*clearing));
    const char *name =
        json_string_value(json_array_get(doctor->order, clearing->at - 1));
    (void)result;
    if (take_refusal(act, err, "node", name)) {
        nodes_next(act);
    }
}

static void nodes_next(struct act *act)
{
    const struct doctor *doctor = doctor_of(act);
    struct clearing *clearing = act_scratch(act, sizeof(*clearing));
    json_t *name = json_array_get(doctor->order, clearing->at);
    if (name != NULL) {
        clearing->at++;
        act_qmp(act, "blockdev-del", json_pack("{s:O}", "node-name", name),
                nodes_on_reply);
    } else if (json_array_size(doctor->order) == 0 &&
               ++clearing->n_torn < TORN_MAX) {
        /* What has just let go of them may still be in the graph. */
        act_again(act, TORN_AGAIN_MS, nodes_look);
    } else {
        act_end(act, NULL);
    }
}

static void nodes_on_graph(struct act *act, const struct err *err,
                           const struct graph *graph)
{
    struct doctor *doctor = doctor_of(act);
    struct clearing *clearing = act_scratch(act, sizeof(*clearing));
    json_auto_t *names = json_array();
    const json_t *item;
    if (err != NULL) {
        act_end(act, err);
        return;
    }
    clearing->at = 0;
    while ((item = next_of(act, clearing, "node")) != NULL) {
        (void)json_array_append(names, json_object_get(item, "name"));
    }
    json_decref(doctor->order);
    doctor->order = graph_deletable(graph, names);
    clearing->at = 0;
    nodes_next(act);
}

static void nodes_look(struct act *act)
{
    act_graph(act, nodes_on_graph);
}

void doctor_clear_nodes(struct act *act)
{
    if (begin(act, "node") != NULL) {
        nodes_look(act);
    }
}

/* --- the claim, last --- */

/* It keeps others off what is left. */
static bool is_last(const struct doctor *doctor, const json_t *claim)
{
    size_t i;
    json_t *item;
    json_array_foreach(doctor->items, i, item) {
        if (item != claim && doctor_counts(doctor, item) &&
            str_eq(doctor_text(item, "op"), doctor_text(claim, "op"))) {
            return false;
        }
    }
    return true;
}

static void claim_on_deleted(struct act *act, const struct err *err,
                             json_t *result)
{
    (void)result;
    if (take_refusal(act, err, "claim", NAME_CLAIM)) {
        act_end(act, NULL);
    }
}

static void claim_on_holder(struct act *act, const struct err *err,
                            json_t *result)
{
    struct clearing *clearing = act_scratch(act, sizeof(*clearing));
    const char *holder = doctor_text(current(act, clearing), "op");
    if (err == NULL && str_eq(json_string_value(result), holder)) {
        act_qmp(act, "object-del", json_pack("{s:s}", "id", NAME_CLAIM),
                claim_on_deleted);
    } else if (err == NULL || err->code == -EREMOTEIO) {
        act_end(act, NULL); /* gone, or another's by now */
    } else {
        act_end(act, err);
    }
}

void doctor_clear_claim(struct act *act)
{
    struct clearing *clearing = begin(act, "claim");
    if (clearing == NULL) {
        return;
    }
    const json_t *claim = next_of(act, clearing, "claim");
    if (is_last(doctor_of(act), claim)) {
        act_qmp(act, "qom-get", claim_holder_arguments(), claim_on_holder);
    } else {
        act_end(act, NULL);
    }
}
