/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A stream takes the bitmaps that block-bitmap-mapping names on both sides. A
 * destination that does not find a node drops all of them, and only its log
 * tells; so it is looked at while there is a way back (docs:
 * migration/block-dirty-bitmap.c).
 */
#include "steps/bitmap.h"

#include <errno.h>

#include "base/err.h"
#include "base/str.h"
#include "policy/stall.h"
#include "run/claim.h"
#include "run/op.h"
#include "steps/stream.h"
#include "vm/graph.h"
#include "vm/names.h"
#include "vm/vm.h"

enum {
    LOOK_MS = 50,
    ARRIVE_MS = 10000, /* they are at the stream's very beginning */
    STILL_MS = 2000,   /* a stream that moves has moved by then */
    KEEP_MS = 10000,   /* for a stream that has ended to let go of them */
};

/* What QEMU says where all was well up to a transaction's "abort". */
static const char ABORTED[] = "Transaction aborted using Abort action";

static const char *text_of(const json_t *json, const char *key)
{
    const char *text = json_string_value(json_object_get(json, key));
    return text != NULL ? text : "";
}

bool bitmap_is_streamed(const struct plan_disk *disk, const json_t *bitmap)
{
    return !str_eq(disk->how, "share") ||
           !json_is_true(json_object_get(bitmap, "persistent"));
}

/* The next that the stream carries from 'at' on, or NULL; it moves on. */
static const json_t *next_streamed(const struct plan_disk *disk, size_t *at)
{
    while (*at < json_array_size(disk->bitmaps)) {
        const json_t *bitmap = json_array_get(disk->bitmaps, (*at)++);
        if (bitmap_is_streamed(disk, bitmap)) {
            return bitmap;
        }
    }
    return NULL;
}

bool bitmaps_are_streamed(const struct plan *plan, const struct plan_disk *disk)
{
    for (unsigned i = 0; disk == NULL && i < plan->n_disks; i++) {
        if (bitmaps_are_streamed(plan, &plan->disks[i])) {
            return true;
        }
    }
    size_t at = 0;
    return disk != NULL && next_streamed(disk, &at) != NULL;
}

bool bitmaps_are_carried(const struct plan *plan, const struct plan_disk *disk)
{
    for (unsigned i = 0; disk == NULL && i < plan->n_disks; i++) {
        if (bitmaps_are_carried(plan, &plan->disks[i])) {
            return true;
        }
    }
    return disk != NULL && json_array_size(disk->bitmaps) > 0;
}

static const struct graph_bitmap *find(const struct graph_node *node,
                                       const char *name)
{
    for (unsigned i = 0; node != NULL && i < node->n_bitmaps; i++) {
        if (str_eq(node->bitmaps[i].name, name)) {
            return &node->bitmaps[i];
        }
    }
    return NULL;
}

static bool is_as_it_was(const struct graph_bitmap *there,
                         const json_t *planned)
{
    json_int_t granularity =
        json_integer_value(json_object_get(planned, "granularity"));
    return there != NULL && !there->inconsistent &&
           there->granularity == (uint64_t)granularity &&
           there->recording ==
               json_is_true(json_object_get(planned, "recording")) &&
           there->persistent ==
               json_is_true(json_object_get(planned, "persistent"));
}

/* --- their names in the stream --- */

/* 'op' NULL: nodes and bitmaps under the names that they have there. */
static json_t *mapping(const char *op, const struct plan *plan, bool dst)
{
    json_t *nodes = json_array();
    for (unsigned i = 0; i < plan->n_disks; i++) {
        const struct plan_disk *disk = &plan->disks[i];
        const char *node = dst ? disk->dst_node : disk->active;
        struct name alias = name_of(op != NULL ? op : "", i, NAME_TARGET);
        json_t *bitmaps = json_array();
        size_t at = 0;
        for (const json_t *it; (it = next_streamed(disk, &at)) != NULL;) {
            json_t *name = json_object_get(it, "name");
            (void)json_array_append_new(
                bitmaps, json_pack("{s:O, s:O}", "name", name, "alias", name));
        }
        /* A node that QEMU has named itself ('#') can have no such alias. */
        bool named = op != NULL || *node != '#';
        if (json_array_size(bitmaps) > 0 && named) {
            (void)json_array_append_new(
                nodes,
                json_pack("{s:s, s:s, s:O}", "node-name", node, "alias",
                          op != NULL ? alias.text : node, "bitmaps", bitmaps));
        }
        json_decref(bitmaps);
    }
    return json_pack("{s:o}", "block-bitmap-mapping", nodes);
}

json_t *bitmaps_map_command(const char *op, const struct plan *plan,
                            const struct plan_disk *disk)
{
    (void)disk;
    return json_pack("{s:s, s:o}", "execute", "migrate-set-parameters",
                     "arguments", mapping(op, plan, false));
}

json_t *bitmaps_map_command_there(const char *op, const struct plan *plan,
                                  const struct plan_disk *disk)
{
    (void)disk;
    return json_pack("{s:s, s:o}", "execute", "migrate-set-parameters",
                     "arguments", mapping(op, plan, true));
}

void bitmaps_map(struct act *act)
{
    act_command(act, NULL);
}

static void unmap(struct act *act)
{
    const struct plan *plan = act_plan(act);
    bool dst = act_vm(act) == act_dst_vm(act);
    json_t *former =
        json_object_get(dst ? plan->dst_before : plan->src_before, "mapping");
    act_qmp(act, "migrate-set-parameters",
            former != NULL ? json_pack("{s:O}", "block-bitmap-mapping", former)
                           : mapping(NULL, plan, dst),
            NULL);
}

/*
 * QEMU cannot forget that there is a mapping, and one that does not name a
 * bitmap keeps it from every later stream: where there was none, what is left
 * says what would be without it.
 */
void bitmaps_unmap(struct act *act)
{
    claim_if_ours(act, unmap);
}

/* --- before the stream --- */

static const char *what_ails(const struct graph_bitmap *bitmap,
                             const json_t *planned)
{
    return bitmap == NULL         ? "is gone"
           : bitmap->busy         ? "is in use"
           : bitmap->inconsistent ? "is inconsistent"
           : !is_as_it_was(bitmap, planned)
               ? "is another than when the plan was made"
               : NULL;
}

static void check_on_graph(struct act *act, const struct err *err,
                           const struct graph *graph)
{
    const struct plan *plan = act_plan(act);
    _cleanup_err_ struct err *error = err_copy(err);
    for (unsigned i = 0; error == NULL && i < plan->n_disks; i++) {
        const struct plan_disk *disk = &plan->disks[i];
        const struct graph_node *node = graph_find_node(graph, disk->active);
        size_t at = 0;
        const json_t *planned;
        while (error == NULL && (planned = next_streamed(disk, &at)) != NULL) {
            const char *name = text_of(planned, "name");
            const char *what = what_ails(find(node, name), planned);
            if (what != NULL) {
                (void)err_set(&error, -ESTALE, disk->disk,
                              "dirty bitmap '%s' %s", name, what);
            }
        }
    }
    act_end(act, error);
}

/* QEMU would say no more than "failed". */
void bitmaps_check(struct act *act)
{
    act_graph(act, check_on_graph);
}

/* --- back: persistent ones are to be stored again --- */

/* The bitmap whose turn it is, and since when. */
struct keeping {
    unsigned disk;
    size_t next;
    uint64_t since_ms;
};

static void keep_look(struct act *act);

static void keep_next(struct act *act)
{
    struct keeping *keeping = act_scratch(act, sizeof(*keeping));
    keeping->next++;
    keeping->since_ms = act_now_ms(act);
    keep_look(act);
}

static void keep_again(struct act *act, const char *name, const char *why)
{
    const struct keeping *keeping = act_scratch(act, sizeof(*keeping));
    if (act_now_ms(act) - keeping->since_ms < KEEP_MS) {
        act_again(act, LOOK_MS, keep_look);
        return;
    }
    act_warn(act,
             "dirty bitmap '%s' of %s will not be stored when QEMU ends (%s):"
             " make it anew, and take a full backup",
             name, act_plan(act)->disks[keeping->disk].disk, why);
    keep_next(act);
}

static const char *kept_name(struct act *act)
{
    const struct keeping *keeping = act_scratch(act, sizeof(*keeping));
    const struct plan_disk *disk = &act_plan(act)->disks[keeping->disk];
    return text_of(json_array_get(disk->bitmaps, keeping->next), "name");
}

static void keep_on_reply(struct act *act, const struct err *err,
                          json_t *result)
{
    (void)result;
    if (err != NULL && err->code != -EREMOTEIO) {
        act_end(act, err); /* not QEMU's word */
    } else if (err != NULL && str_eq(err->desc, ABORTED)) {
        keep_next(act);
    } else {
        keep_again(act, kept_name(act),
                   err != NULL ? err->desc : "it was not refused");
    }
}

static void keep_on_graph(struct act *act, const struct err *err,
                          const struct graph *graph)
{
    const struct keeping *keeping = act_scratch(act, sizeof(*keeping));
    const struct plan_disk *disk = &act_plan(act)->disks[keeping->disk];
    const char *name = kept_name(act);
    const struct graph_bitmap *it =
        err == NULL ? find(graph_find_node(graph, disk->active), name) : NULL;
    if (err != NULL) {
        act_end(act, err);
    } else if (it == NULL || !it->persistent) {
        keep_next(act); /* its owner has removed it */
    } else if (it->busy) {
        keep_again(act, name, "it is in use");
    } else {
        act_qmp(act, "transaction",
                json_pack("{s:[{s:s, s:{s:s, s:s}}, {s:s, s:{}}]}", "actions",
                          "type", "block-dirty-bitmap-remove", "data", "node",
                          disk->active, "name", name, "type", "abort", "data"),
                keep_on_reply);
    }
}

static void keep_look(struct act *act)
{
    struct keeping *keeping = act_scratch(act, sizeof(*keeping));
    const struct plan *plan = act_plan(act);
    while (keeping->disk < plan->n_disks) {
        const struct plan_disk *disk = &plan->disks[keeping->disk];
        const json_t *it = json_array_get(disk->bitmaps, keeping->next);
        if (it == NULL) {
            keeping->disk++;
            keeping->next = 0;
        } else if (bitmap_is_streamed(disk, it) &&
                   json_is_true(json_object_get(it, "persistent"))) {
            act_graph(act, keep_on_graph);
            return;
        } else {
            keeping->next++;
        }
    }
    act_end(act, NULL);
}

/*
 * What a stream has taken QEMU does not store any more, and nothing tells: not
 * even when the stream came to nothing (bdrv_dirty_bitmap_skip_store()). To
 * remove a bitmap in a transaction that is then aborted takes that mark away
 * again, and nothing else of it; there is no moment without the bitmap.
 */
void bitmaps_keep(struct act *act)
{
    struct keeping *keeping = act_scratch(act, sizeof(*keeping));
    if (keeping == NULL) {
        _cleanup_err_ struct err *err = NULL;
        (void)err_set(&err, -ENOMEM, "bitmaps", "out of memory");
        act_end(act, err);
        return;
    }
    *keeping = (struct keeping){.since_ms = act_now_ms(act)};
    keep_look(act);
}

/* --- there, while there is a way back --- */

struct arriving {
    uint64_t since_ms; /* the stream is under way */
    struct stall stall;
    uint64_t still_ms; /* ... and has not moved for so long */
};

static void arrive_look(struct act *act);

static void arrive_on_graph(struct act *act, const struct err *err,
                            const struct graph *graph)
{
    const struct arriving *arriving = act_scratch(act, sizeof(*arriving));
    const struct plan *plan = act_plan(act);
    _cleanup_err_ struct err *missing = NULL;
    for (unsigned i = 0; err == NULL && i < plan->n_disks; i++) {
        const struct plan_disk *disk = &plan->disks[i];
        const struct graph_node *node = graph_find_node(graph, disk->dst_node);
        size_t at = 0;
        for (const json_t *it; (it = next_streamed(disk, &at)) != NULL;) {
            if (missing == NULL && find(node, text_of(it, "name")) == NULL) {
                (void)err_set(&missing, -EIO, disk->disk,
                              "dirty bitmap '%s' does not get there",
                              text_of(it, "name"));
                err_hint(&missing, "the destination's log says why;"
                                   " --drop-bitmaps goes without them");
            }
        }
    }
    if (err != NULL || missing == NULL) {
        act_end(act, err);
    } else if (act_now_ms(act) - arriving->since_ms > ARRIVE_MS &&
               arriving->still_ms < STILL_MS) {
        act_end(act, missing);
    } else {
        act_again(act, LOOK_MS, arrive_look);
    }
}

static uint64_t sent(const json_t *info)
{
    const json_t *ram = json_object_get(info, "ram");
    return (uint64_t)json_integer_value(json_object_get(ram, "transferred"));
}

static void arrive_on_info(struct act *act, const struct err *err,
                           json_t *result)
{
    struct arriving *arriving = act_scratch(act, sizeof(*arriving));
    const char *status = text_of(result, "status");
    bool active = str_eq(status, "active");
    bool sends = str_eq(status, "setup") || active;
    if (sends) {
        act_guard_hold_off(act);
    }
    if (err != NULL || arriving == NULL) {
        act_end(act, err);
        return;
    }
    arriving->still_ms =
        sends ? stall_sample(&arriving->stall, act_now_ms(act), sent(result))
              : 0;
    if (arriving->still_ms >= act_plan(act)->command_timeout_ms) {
        act_end(act, NULL); /* the link is cut, as who follows it will find */
    } else if (str_eq(status, "setup")) {
        act_again_on_event(act, LOOK_MS, arrive_look);
    } else if (active || str_eq(status, "pre-switchover")) {
        if (arriving->since_ms == 0) {
            arriving->since_ms = act_now_ms(act);
        }
        act_turn_to(act, ACT_DESTINATION);
        act_graph(act, arrive_on_graph);
    } else {
        act_end(act, NULL); /* it is over: who follows it tells why */
    }
}

/* The step is the destination's: that the source answers is not given. */
static void arrive_look(struct act *act)
{
    enum vm_state state = vm_state(act_src_vm(act));
    if (state == VM_LOST || state == VM_OPENING) {
        act_again(act, LOOK_MS, arrive_look);
    } else if (state != VM_UP) {
        act_end(act, NULL); /* who follows the stream tells why */
    } else {
        act_turn_to(act, ACT_SOURCE);
        act_qmp(act, "query-migrate", NULL, arrive_on_info);
    }
}

void bitmaps_arrive(struct act *act)
{
    arrive_look(act);
}

/* --- there, after the switchover --- */

static void prove_on_graph(struct act *act, const struct err *err,
                           const struct graph *graph)
{
    const struct plan_disk *disk = act_disk(act);
    json_auto_t *there = json_array(), *lost = json_array();
    size_t i;
    json_t *planned;
    if (err != NULL) {
        act_end(act, err);
        return;
    }
    const struct graph_node *node = graph_find_node(graph, disk->dst_node);
    json_array_foreach(disk->bitmaps, i, planned) {
        json_t *name = json_object_get(planned, "name");
        const struct graph_bitmap *it = find(node, json_string_value(name));
        /* An image is loaded no sooner than the guest is to run. */
        bool later =
            !bitmap_is_streamed(disk, planned) && !stream_guest_ran(act);
        bool ok = later || is_as_it_was(it, planned);
        (void)json_array_append(ok ? there : lost, name);
        if (!ok) {
            act_warn(act,
                     "dirty bitmap '%s' of %s %s at the destination: the next"
                     " backup by it must be a full one",
                     json_string_value(name), disk->disk,
                     it == NULL ? "is not" : "is not as it was");
        }
    }
    act_set_facts(act, json_pack("{s:O, s:O}", "bitmaps", there, "lost", lost));
    act_end(act, NULL);
}

/* There is no way back for a bitmap's sake: what is lost is told. */
void bitmaps_prove(struct act *act)
{
    act_graph(act, prove_on_graph);
}
