/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Letting go of the source: only ever after the proof and the hook. */
#include "steps/source.h"

#include <errno.h>

#include "base/err.h"
#include "steps/act-on.h"
#include "vm/graph.h"

static void detach_next(struct act *act);

enum { LOOK_AGAIN_MS = 500, LOOKS_MAX = 3 };

struct detaching {
    unsigned next; /* of plan_disk_former_nodes() */
    unsigned looks;
};

/* --- out of QEMU --- */

static void detach_on_graph(struct act *act, const struct err *err,
                            const struct graph *graph)
{
    const struct plan_disk *disk = act_disk(act);
    json_auto_t *left = NULL;
    if (err != NULL) {
        act_end(act, err);
        return;
    }
    json_auto_t *names = plan_disk_former_nodes(disk);
    left = graph_deletable(graph, names);
    struct detaching *detaching = act_scratch(act, sizeof(*detaching));
    if (json_array_size(left) > 0 && detaching != NULL &&
        ++detaching->looks < LOOKS_MAX) {
        /* A command was refused or lost: nobody uses them, so they can go. */
        act_again(act, LOOK_AGAIN_MS, source_detach);
        return;
    }
    _cleanup_err_ struct err *stays = NULL;
    size_t i;
    json_t *name;
    json_array_foreach(left, i, name) {
        const char *text = json_string_value(name);
        act_warn(act, "node '%s' of the former disk stays in QEMU", text);
        if (act_plan(act)->delete_source) {
            (void)err_set(&stays, -EBUSY, disk->from,
                          "is still open in QEMU as node '%s'", text);
        }
    }
    act_end(act, stays); /* removing it would park, and never look again */
}

static void detach_on_reply(struct act *act, const struct err *err,
                            json_t *result)
{
    (void)err; /* gone with its parent, or in use by another disk: see below */
    (void)result;
    detach_next(act);
}

static void detach_next(struct act *act)
{
    struct detaching *detaching = act_scratch(act, sizeof(*detaching));
    json_auto_t *names = plan_disk_former_nodes(act_disk(act));
    while (detaching != NULL && detaching->next < json_array_size(names)) {
        json_t *name = json_array_get(names, detaching->next++);
        if (json_string_value(name)[0] != '#') {
            act_qmp(act, "blockdev-del", json_pack("{s:O}", "node-name", name),
                    detach_on_reply);
            return;
        }
    }
    act_graph(act, detach_on_graph);
}

json_t *source_detach_command(const char *op, const struct plan *plan,
                              const struct plan_disk *disk)
{
    (void)op;
    (void)plan;
    json_t *commands = json_array();
    json_auto_t *names = plan_disk_former_nodes(disk);
    size_t i;
    json_t *name;
    json_array_foreach(names, i, name) {
        if (json_string_value(name)[0] != '#') {
            (void)json_array_append_new(
                commands, json_pack("{s:s, s:{s:O}}", "execute", "blockdev-del",
                                    "arguments", "node-name", name));
        }
    }
    return commands;
}

void source_detach(struct act *act)
{
    struct detaching *detaching = act_scratch(act, sizeof(*detaching));
    if (detaching != NULL) {
        detaching->next = 0; /* it may begin anew when a reply was lost */
    }
    detach_next(act);
}

/* --- off its storage --- */

bool source_is_removed(const struct plan *plan, const struct plan_disk *disk)
{
    (void)disk;
    return plan->delete_source;
}

static void remove_on_volume(struct act *act, const struct err *err,
                             struct volume_result *result)
{
    (void)result;
    act_end(act, err);
}

static void remove_now(struct act *act)
{
    const struct plan_disk *disk = act_disk(act);
    struct volume_request request = {.act = VOLUME_REMOVE,
                                     .identity = disk->source_identity};
    struct volume *volume = NULL;
    _cleanup_err_ struct err *error = NULL;
    if (volume_parse(disk->from, &volume, &error) < 0) {
        act_end(act, error);
    } else {
        act_storage(act, act_own_volume(act, volume), &request,
                    remove_on_volume);
    }
}

/* Nor is the last copy freed that has all replicas of its own. */
static void remove_on_target(struct act *act, const struct err *err,
                             struct volume_result *result)
{
    const struct volume_info *info = &result->info;
    _cleanup_err_ struct err *error = err_copy(err);
    if (error == NULL && *info->degraded != '\0' &&
        !act_plan(act)->allow_degraded) {
        (void)err_set(&error, -ENOLINK, act_disk(act)->to,
                      "is degraded: %s: the source is not removed",
                      info->degraded);
        err_hint(&error, "when that is over: 'qpivot recover %s'",
                 act_op_id(act));
    }
    if (error != NULL) {
        act_end(act, error);
    } else {
        remove_now(act);
    }
}

static void remove_on_graph(struct act *act, const struct err *err,
                            const struct graph *graph)
{
    const struct plan_disk *disk = act_disk(act);
    struct volume *volume = NULL;
    struct name target = act_name(act, NAME_TARGET);
    struct graph_claim claim = {.device = disk->device,
                                .target = target.text,
                                .source = disk->active,
                                .source_protocol = disk->protocol};
    _cleanup_err_ struct err *error = NULL;
    int r = 0;
    if (err != NULL) {
        act_end(act, err);
        return;
    }
    /* Proved once is not enough: time has passed since. */
    r = graph_proof(graph, &claim, &error);
    if (r == 0 && *disk->source_identity == '\0') {
        r = err_set(&error, -ENOTSUP, disk->from,
                    "its identity was not known when the move began");
    }
    if (r == 0) {
        r = volume_parse(disk->from, &volume, &error);
    }
    const struct graph_node *open =
        r == 0 ? graph_opens(graph, act_own_volume(act, volume)) : NULL;
    if (open != NULL) {
        r = err_set(&error, -EBUSY, disk->from,
                    "is still open in QEMU as node '%s'", open->name);
    }
    if (r < 0) {
        act_end(act, error);
        return;
    }
    struct volume *to = act_volume(act, disk->index);
    struct volume_request ask = {.act = VOLUME_ANSWER};
    if (to != NULL && to->ops->attach != NULL) {
        act_storage(act, to, &ask, remove_on_target);
    } else {
        remove_now(act);
    }
}

void source_remove(struct act *act)
{
    if (json_is_true(act_fact(act, "prove", "unplugged"))) {
        act_end(act, NULL); /* nobody can prove any more what it is good for */
        return;
    }
    act_graph(act, remove_on_graph);
}
