/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "steps/act-on.h"

#include <errno.h>
#include <string.h>

#include "base/err.h"
#include "base/str.h"
#include "steps/alive.h"
#include "steps/cancel.h"
#include "vm/graph.h"
#include "vm/vm.h"

enum {
    YANK_AFTER_MS = 5000,
    GIVE_UP_MS = 30000,
    LOOK_AGAIN_MS = 250,
};

/* How far clearing a job has come. */
struct clearing {
    union { /* first, as neither knows more of it; one after the other */
        struct alive_return back;
        struct cancelling cancelling;
    };
    struct name job;
    const char *id;
    bool writes;    /* the guest does, by this job */
    bool goes_back; /* the guest needs the target no more */
    step_fn *then;  /* NULL: the act ends */
    uint64_t since_ms;
    uint64_t yanked_ms;
    bool cancelled;
    bool dismissed;
};

static void clear_begin(struct act *act);
static void clear_paid(struct act *act);
static void clear_on_jobs(struct act *act, const struct job_list *jobs);
static void clear_on_reply(struct act *act, const struct err *err,
                           json_t *result);
static void delete_on_graph(struct act *act, const struct err *err,
                            const struct graph *graph);
static void probe_on_graph(struct act *act, const struct err *err,
                           const struct graph *graph);

struct name act_name(const struct act *act, enum name_what what)
{
    return name_of(act_op_id(act), act_disk(act)->index, what);
}

uint64_t act_patience_ms(const struct act *act)
{
    enum { PATIENCE_MS = 20000 };

    uint64_t limit = act_plan(act)->target_timeout_ms;
    return limit != 0 && limit < PATIENCE_MS ? limit : PATIENCE_MS;
}

void act_clear_job(struct act *act, enum name_what what, step_fn *then)
{
    struct clearing *clearing = act_scratch(act, sizeof(*clearing));
    if (clearing == NULL) {
        act_end(act, NULL);
        return;
    }
    clearing->job = act_name(act, what);
    clearing->id = clearing->job.text;
    clearing->writes =
        what == NAME_TWIN || act_writes_block(act, act_disk(act)->index);
    clearing->then = then;
    /* After the pivot the guest needs the target. */
    clearing->goes_back = what == NAME_MIRROR && then != NULL;
    if (clearing->goes_back) {
        alive_wait(act, clear_begin);
    } else {
        clear_begin(act);
    }
}

static void clear_begin(struct act *act)
{
    cancel_pay(act, clear_paid);
}

static void clear_paid(struct act *act)
{
    struct clearing *clearing = act_scratch(act, sizeof(*clearing));
    clearing->since_ms = act_now_ms(act);
    act_wait_jobs(act, clear_on_jobs);
}

/*
 * What the guest writes waits for the server, and so would 'stop': cut off, it
 * fails, the mirror pauses and the guest goes on.
 */
static void cut_first(struct act *act)
{
    const struct clearing *clearing = act_scratch(act, sizeof(*clearing));
    const struct plan_disk *disk = act_disk(act);
    if (clearing->goes_back && clearing->writes &&
        (disk->nbd || str_eq(disk->how, "nbd"))) {
        vm_yank(act_vm(act));
    }
}

static void clear_on_jobs(struct act *act, const struct job_list *jobs)
{
    struct clearing *clearing = act_scratch(act, sizeof(*clearing));
    const struct job *job = job_list_find(jobs, clearing->id);
    uint64_t waited_ms = act_now_ms(act) - clearing->since_ms;
    if ((job == NULL || job->status == JOB_NULL) && clearing->then != NULL) {
        clearing->then(act);
    } else if (job == NULL || job->status == JOB_NULL) {
        act_end(act, NULL);
    } else if (job->status == JOB_CONCLUDED) {
        if (!clearing->dismissed) {
            clearing->dismissed = true;
            act_qmp(act, "job-dismiss", json_pack("{s:s}", "id", clearing->id),
                    clear_on_reply);
        }
    } else if (!clearing->cancelled) {
        /* Always by force: a soft end would be a clean copy nobody wants. */
        clearing->cancelled = true;
        cut_first(act);
        cancel_jobs(act, &clearing->id, 1, clearing->writes, clear_on_reply);
    } else if (waited_ms > GIVE_UP_MS) {
        _cleanup_err_ struct err *err = NULL;
        (void)err_set(&err, -ETIMEDOUT, clearing->id,
                      "the job does not end: cancelled, its connections cut,"
                      " and still there after %u s",
                      (unsigned)GIVE_UP_MS / 1000);
        err_hint(&err, "its target takes no more requests: end the target's"
                       " server, or wait for it");
        act_give_up(act, err);
    } else if (waited_ms - clearing->yanked_ms > YANK_AFTER_MS) {
        /* It answered, and stays: its NBD server is stalled, not dead. */
        clearing->yanked_ms = waited_ms;
        vm_cut(act_vm(act));
    }
}

static void clear_look(struct act *act)
{
    act_wait_jobs(act, clear_on_jobs);
}

static void clear_on_reply(struct act *act, const struct err *err,
                           json_t *result)
{
    (void)result;
    struct clearing *clearing = act_scratch(act, sizeof(*clearing));
    /*
     * A refusal means that it changed meanwhile: a later look tells. At once
     * would be without end and without a pause where it is always refused.
     */
    bool unsent = !clearing->dismissed && !clearing->cancelling.sent;
    if (err != NULL && (unsent || act_owes_cont(act))) {
        act_end(act, err);
        return;
    }
    if (err != NULL && err->code == -EREMOTEIO) {
        clearing->dismissed = false;
        act_again(act, LOOK_AGAIN_MS, clear_look);
        return;
    }
    act_wait_jobs(act, clear_on_jobs);
}

void act_delete_node(struct act *act, enum name_what what)
{
    enum name_what *kept = act_scratch(act, sizeof(*kept));
    if (kept != NULL) {
        *kept = what;
    }
    act_graph(act, delete_on_graph);
}

static void delete_on_graph(struct act *act, const struct err *err,
                            const struct graph *graph)
{
    const enum name_what *what = act_scratch(act, sizeof(*what));
    if (err != NULL) {
        act_end(act, err);
        return;
    }
    struct name name = act_name(act, *what);
    if (graph_find_node(graph, name.text) == NULL) {
        act_end(act, NULL);
    } else {
        act_qmp(act, "blockdev-del", json_pack("{s:s}", "node-name", name.text),
                NULL);
    }
}

void act_probe_node(struct act *act, enum name_what what)
{
    enum name_what *kept = act_scratch(act, sizeof(*kept));
    if (kept != NULL) {
        *kept = what;
    }
    act_graph(act, probe_on_graph);
}

static void probe_on_graph(struct act *act, const struct err *err,
                           const struct graph *graph)
{
    const enum name_what *what = act_scratch(act, sizeof(*what));
    struct name name = act_name(act, *what);
    act_probed(act, err != NULL ? PROBE_UNKNOWN
                    : graph_find_node(graph, name.text) != NULL
                        ? PROBE_DONE
                        : PROBE_NOT_DONE);
}

static bool same_nodes(const struct graph_disk *found,
                       const struct plan_disk *disk)
{
    size_t at = 0;
    for (unsigned i = 0; i < found->n_nodes; i++) {
        bool filter = found->nodes[i]->job_filter;
        for (unsigned k = 0; k < found->n_filters; k++) {
            filter = filter || found->filters[k] == found->nodes[i];
        }
        const char *over = disk_overlay(disk);
        size_t len = over != NULL ? strlen(over) : 0;
        bool ours =
            over != NULL && (str_eq(found->nodes[i]->name, over) ||
                             (strncmp(found->nodes[i]->name, over, len) == 0 &&
                              str_eq(found->nodes[i]->name + len, "-file")));
        if (filter || ours) {
            continue;
        }
        const char *planned =
            json_string_value(json_array_get(disk->source_nodes, at++));
        if (!str_eq(found->nodes[i]->name, planned)) {
            return false;
        }
    }
    return at == json_array_size(disk->source_nodes);
}

/* New ones since the plan would be lost without a word. */
static bool same_bitmaps(const struct graph_node *node,
                         const struct plan_disk *disk)
{
    for (unsigned i = 0; i < node->n_bitmaps; i++) {
        bool known = *node->bitmaps[i].name == '\0';
        size_t k;
        json_t *bitmap;
        json_array_foreach(disk->known_bitmaps, k, bitmap) {
            known = known ||
                    str_eq(json_string_value(bitmap), node->bitmaps[i].name);
        }
        if (!known) {
            return false;
        }
    }
    return true;
}

static int is_as_planned(const struct graph *graph,
                         const struct plan_disk *disk, const char *active,
                         struct err **errp)
{
    _cleanup_graph_disk_ struct graph_disk *found = NULL;
    const struct graph_device *device = graph_find_device(graph, disk->device);
    const char *what = NULL;
    if (device == NULL) {
        return err_set(errp, -ESTALE, disk->disk, "the device was unplugged");
    }
    int r = graph_disk(graph, device, &found, errp);
    if (r < 0) {
        return r;
    }
    if (!str_eq(found->active->name, active) || !same_nodes(found, disk)) {
        what = "its chain of images";
    } else if (!str_eq(active, disk->active) &&
               found->active->n_snapshots > 0) {
        what = "its internal snapshots"; /* they would go with the overlay */
    } else if (found->size != disk->size) {
        what = "its size";
    } else if (!same_bitmaps(found->active, disk)) {
        what = "its dirty bitmaps";
    }
    return what == NULL
               ? 0
               : err_set(errp, -ESTALE, disk->disk,
                         "somebody has changed %s since the plan was made",
                         what);
}

/* Its file and its node have one name. */
const char *disk_overlay(const struct plan_disk *disk)
{
    const char *slash =
        plan_disk_copies_base(disk) ? strrchr(disk->overlay, '/') : NULL;
    return slash != NULL ? slash + 1 : NULL;
}

int disk_is_as_planned(const struct graph *graph, const struct plan_disk *disk,
                       struct err **errp)
{
    const char *over = disk_overlay(disk);
    return is_as_planned(graph, disk, over != NULL ? over : disk->active, errp);
}

int disk_is_to_freeze(const struct graph *graph, const struct plan_disk *disk,
                      struct err **errp)
{
    return is_as_planned(graph, disk, disk->active, errp);
}

int disk_is_back(const struct graph *graph, const char *op,
                 const struct plan_disk *disk,
                 const struct graph_node **ret_source, struct err **errp)
{
    const struct graph_device *device = graph_find_device(graph, disk->device);
    const struct graph_node *active = graph_find_node(graph, disk->active);
    struct name name = name_of(op, disk->index, NAME_TARGET);
    const struct graph_node *target = graph_find_node(graph, name.text);
    if (device == NULL || device->root == NULL) {
        return 0;
    }
    if (target != NULL && graph_reaches(graph, device->root, target)) {
        return err_set(errp, -EBUSY, disk->disk,
                       "uses the target already: there is no way back");
    }
    if (active != NULL && graph_reaches(graph, device->root, active)) {
        *ret_source = active;
    }
    return 0;
}

const json_t *disk_device_stats(const json_t *list,
                                const struct plan_disk *disk)
{
    size_t i;
    json_t *entry;
    json_array_foreach(list, i, entry) {
        const char *qdev = json_string_value(json_object_get(entry, "qdev"));
        const char *drive = json_string_value(json_object_get(entry, "device"));
        if (str_eq(qdev, disk->device) ||
            (*disk->drive != '\0' && str_eq(drive, disk->drive))) {
            return json_object_get(entry, "stats");
        }
    }
    return NULL;
}

const struct graph_node *graph_opens(const struct graph *graph,
                                     const struct volume *volume)
{
    unsigned n = 0;
    const struct graph_node *nodes = graph_nodes(graph, &n);
    _cleanup_free_ char *path = volume->ops->legacy_name != NULL
                                    ? volume->ops->legacy_name(volume)
                                    : NULL;
    for (unsigned i = 0; i < n; i++) {
        struct volume *open = NULL;
        if (volume_from_node(nodes[i].driver, nodes[i].filename, &open) < 0) {
            continue;
        }
        /* A device may be told by another kind of name: block:, drbd:. */
        bool same = str_eq(volume->name, open->name) ||
                    (path != NULL && str_eq(path, nodes[i].filename));
        volume_free(open);
        if (same) {
            return &nodes[i];
        }
    }
    return NULL;
}

int disk_is_closed(const struct graph *graph, const struct volume *volume,
                   const char *done, struct err **errp)
{
    const struct graph_node *node = graph_opens(graph, volume);
    return node == NULL ? 0
                        : err_set(errp, -EBUSY, volume->name,
                                  "is open in QEMU as node '%s': it is not %s",
                                  node->name, done);
}
