/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Which dirty bitmaps go over, and how: a backup that trusts one which has
 * missed writes is worth nothing, so what does not go is a problem of the plan.
 */
#include <errno.h>
#include <string.h>

#include "base/str.h"
#include "operations/migrate-plan.h"
#include "qpivot.h"
#include "steps/bitmap.h"
#include "vm/graph.h"
#include "vm/names.h"

enum { ALIAS_MAX = 255 }; /* of block-bitmap-mapping, in bytes */

static const char CAPABILITY[] = "dirty-bitmaps";

static const char *text_of(const json_t *json, const char *key)
{
    const char *text = json_string_value(json_object_get(json, key));
    return text != NULL ? text : "";
}

json_t *migrate_bitmaps_of(const struct graph_node *node)
{
    json_t *list = json_array();
    for (unsigned i = 0; i < node->n_bitmaps; i++) {
        const struct graph_bitmap *it = &node->bitmaps[i];
        if (*it->name != '\0') {
            const char *fault = it->busy           ? "in use"
                                : it->inconsistent ? "inconsistent"
                                                   : NULL;
            (void)json_array_append_new(
                list, json_pack("{s:s, s:I, s:b, s:b, s:s*}", "name", it->name,
                                "granularity", (json_int_t)it->granularity,
                                "recording", it->recording, "persistent",
                                it->persistent, "fault", fault));
        }
    }
    return list;
}

/* Any bitmap that is in use or inconsistent, or NULL. */
static const json_t *first_unfit(const json_t *found)
{
    size_t i;
    json_t *bitmap;
    json_array_foreach(found, i, bitmap) {
        if (json_object_get(bitmap, "fault") != NULL) {
            return bitmap;
        }
    }
    return NULL;
}

static bool has_bitmap(const struct graph_node *node, const char *name)
{
    for (unsigned i = 0; node != NULL && i < node->n_bitmaps; i++) {
        if (str_eq(node->bitmaps[i].name, name)) {
            return true;
        }
    }
    return false;
}

/*
 * Why the stream cannot carry it; NULL: it can. QEMU does not ask whether the
 * destination's image can store what it is to store. 'there' NULL: that image
 * is yet to be made.
 */
static char *why_not(const struct plan_disk *disk, const json_t *found,
                     const json_t *bitmap, const struct graph_node *there)
{
    const char *name = text_of(bitmap, "name");
    const json_t *unfit = first_unfit(found);
    bool persistent = json_is_true(json_object_get(bitmap, "persistent"));
    bool stored = str_eq(disk->format, "qcow2") &&
                  (there == NULL || !str_eq(there->compat, "0.10"));
    if (json_object_get(bitmap, "fault") != NULL) {
        return str_printf("is %s", text_of(bitmap, "fault"));
    }
    if (unfit != NULL) {
        /* QEMU sends nothing from a node that has such a one. */
        return str_printf("cannot go while '%s' is %s", text_of(unfit, "name"),
                          text_of(unfit, "fault"));
    }
    if (json_is_true(json_object_get(disk->before, "read_only"))) {
        return str_printf("is on a read-only disk, which QEMU does not send");
    }
    if (strlen(name) > ALIAS_MAX) {
        return str_printf("has a name of more than %d bytes", ALIAS_MAX);
    }
    if (has_bitmap(there, name)) {
        return str_printf("is at the destination already");
    }
    return persistent && !stored
               ? str_printf("is persistent, and cannot be stored in %s",
                            disk->to)
               : NULL;
}

static void match_streamed(struct op *op, struct plan_disk *disk,
                           const json_t *found, json_t *bitmap,
                           const struct graph_node *there)
{
    struct migrate_request *request = op_request(op);
    const char *name = text_of(bitmap, "name");
    _cleanup_free_ char *why = why_not(disk, found, bitmap, there);
    if ((request->flags & QPIVOT_DROP_BITMAPS) != 0) {
        migrate_note(request, "%s: dirty bitmap '%s' is left behind",
                     disk->disk, name);
    } else if (why != NULL) {
        migrate_problem(op, -ENOTSUP, disk->disk,
                        "dirty bitmap '%s' %s; --drop-bitmaps goes without"
                        " them",
                        name, why);
    } else {
        (void)json_array_append(disk->bitmaps, bitmap);
    }
}

/* The image that both see has it; QEMU stores it, and loads it there. */
static void match_stored(struct op *op, struct plan_disk *disk, json_t *bitmap)
{
    const char *name = text_of(bitmap, "name");
    const char *fault = text_of(bitmap, "fault");
    if (str_eq(fault, "in use")) {
        migrate_problem(op, -EBUSY, disk->disk, "dirty bitmap '%s' is in use",
                        name);
    } else if (*fault != '\0') {
        migrate_note(op_request(op),
                     "%s: dirty bitmap '%s' is %s, and stays so", disk->disk,
                     name, fault);
    } else {
        (void)json_array_append(disk->bitmaps, bitmap);
    }
}

void migrate_match_bitmaps(struct op *op, struct plan_disk *disk,
                           const struct graph *graph)
{
    const struct graph_node *there = graph_find_node(graph, disk->dst_node);
    json_auto_t *found = disk->bitmaps;
    size_t i;
    json_t *bitmap;
    disk->bitmaps = json_array();
    json_array_foreach(found, i, bitmap) {
        if (str_eq(disk->how, "skip") ||
            name_is_ours(text_of(bitmap, "name"))) {
            migrate_note(op_request(op), "%s: dirty bitmap '%s' is left behind",
                         disk->disk, text_of(bitmap, "name"));
        } else if (bitmap_is_streamed(disk, bitmap)) {
            match_streamed(op, disk, found, bitmap, there);
        } else {
            match_stored(op, disk, bitmap);
        }
    }
}

static bool is_on(const json_t *replies)
{
    size_t i;
    json_t *entry;
    json_array_foreach(json_object_get(replies, "query-migrate-capabilities"),
                       i, entry) {
        if (str_eq(text_of(entry, "capability"), CAPABILITY)) {
            return json_is_true(json_object_get(entry, "state"));
        }
    }
    return false;
}

void migrate_want_bitmaps(struct op *op)
{
    const struct migrate_request *request = op_request(op);
    if (bitmaps_are_streamed(op_plan(op), NULL)) {
        migrate_want_capability(op, CAPABILITY, true);
    } else if (is_on(request->src) || is_on(request->dst)) {
        /* Else it would carry what is to stay, or what the image has. */
        (void)json_array_append_new(
            op_plan(op)->capabilities,
            json_pack("{s:s, s:b}", "capability", CAPABILITY, "state", 0));
    }
}
