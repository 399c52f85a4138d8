/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "vm/leftover.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/str.h"
#include "vm/graph.h"
#include "vm/names.h"

enum { USERS_MAX = 8, ASKED_MAX = 256 };

/* One list being made. */
struct listing {
    const struct leftover_look *look;
    json_t *items;
    json_t *disks; /* "qpv-<op>-d<n>": the use of its nodes, for objects */
    enum graph_hold *holds;
    unsigned n_asked; /* nodes whose users were looked for */
};

static const char *const uses[] = {
    [GRAPH_FREE] = "free", [GRAPH_HELD] = "held", [GRAPH_LIVE] = "live"};

static bool add(struct listing *listing, const char *kind, const char *name,
                const char *use, json_t *users)
{
    char op[OP_ID_SIZE];
    (void)name_operation(name, op);
    json_t *item = json_pack("{s:s, s:s, s:s, s:s, s:o}", "kind", kind, "name",
                             name, "op", op, "use", use, "users", users);
    /* Of the claim there is one: it is never what is left out. */
    if (json_array_size(listing->items) >= LEFTOVERS_MAX &&
        !str_eq(kind, "claim")) {
        json_decref(item);
        return false;
    }
    return json_array_append_new(listing->items, item) == 0;
}

static void tell(struct listing *listing, const char *key, const char *value)
{
    size_t n = json_array_size(listing->items);
    json_t *item = n > 0 ? json_array_get(listing->items, n - 1) : NULL;
    (void)json_object_set_new(item, key, json_string(value));
}

/* "qpv-k3f9x2-d0" of "qpv-k3f9x2-d0-file". */
static char *disk_of(const char *name)
{
    size_t head = strlen("qpv-") + OP_ID_SIZE - 1;
    return strndup(name, head + strcspn(name + head, "-"));
}

static void add_jobs(struct listing *listing, bool frozen)
{
    unsigned n;
    const struct graph_job *jobs = graph_jobs(listing->look->graph, &n);
    for (unsigned i = 0; i < n; i++) {
        bool pending = str_eq(jobs[i].status, "pending");
        if (name_is_ours(jobs[i].id) && pending == frozen &&
            add(listing, "job", jobs[i].id, "free", json_array())) {
            tell(listing, "state", jobs[i].status);
        }
    }
}

static void add_exports(struct listing *listing)
{
    unsigned n;
    const struct graph_export *exports =
        graph_exports(listing->look->graph, &n);
    for (unsigned i = 0; i < n; i++) {
        if (name_is_ours(exports[i].id) &&
            add(listing, "export", exports[i].id, "free", json_array())) {
            tell(listing, "node", exports[i].node_name);
        }
    }
}

static void add_bitmaps(struct listing *listing)
{
    unsigned n;
    const struct graph_node *nodes = graph_nodes(listing->look->graph, &n);
    for (unsigned i = 0; i < n; i++) {
        for (unsigned k = 0; k < nodes[i].n_bitmaps; k++) {
            const struct graph_bitmap *bitmap = &nodes[i].bitmaps[k];
            /* A job or an export has a busy one: of ours, it goes before. */
            if (name_is_ours(bitmap->name) &&
                add(listing, "bitmap", bitmap->name, "free", json_array())) {
                tell(listing, "node", nodes[i].name);
            }
        }
    }
}

static json_t *users_of(struct listing *listing, const struct graph_node *node)
{
    json_t *list = json_array();
    struct graph_user *users = NULL;
    unsigned n = 0;
    if (listing->n_asked++ < ASKED_MAX &&
        graph_node_users(listing->look->graph, node, &users, &n) < 0) {
        n = 0;
    }
    for (unsigned i = 0; i < n && i < USERS_MAX; i++) {
        _cleanup_free_ char *text =
            str_printf("%s%s%s", graph_kind_text(users[i].kind),
                       *users[i].name != '\0' ? " " : "", users[i].name);
        (void)json_array_append_new(list, json_string(text));
    }
    free(users);
    return list;
}

static void note_disk(struct listing *listing, const char *name,
                      enum graph_hold hold)
{
    char op[OP_ID_SIZE];
    _cleanup_free_ char *disk = name_operation(name, op) ? disk_of(name) : NULL;
    json_int_t known =
        disk != NULL ? json_integer_value(json_object_get(listing->disks, disk))
                     : 0;
    if (disk != NULL && known < (json_int_t)hold) {
        (void)json_object_set_new(listing->disks, disk, json_integer(hold));
    }
}

static void add_nodes(struct listing *listing)
{
    unsigned n;
    const struct graph_node *nodes = graph_nodes(listing->look->graph, &n);
    for (unsigned i = 0; i < n; i++) {
        enum graph_hold hold = listing->holds[i];
        if (!name_is_ours(nodes[i].name)) {
            continue;
        }
        const char *use = nodes[i].job_filter ? "filter" : uses[hold];
        if (!nodes[i].job_filter && !name_is_overlay(nodes[i].name)) {
            note_disk(listing, nodes[i].name, hold);
        }
        if (json_array_size(listing->items) < LEFTOVERS_MAX) {
            (void)add(listing, "node", nodes[i].name, use,
                      users_of(listing, &nodes[i]));
        }
    }
}

/* A secret is of use as long as the disk is that it opened. */
static void add_objects(struct listing *listing)
{
    size_t i;
    json_t *object;
    json_array_foreach(listing->look->objects, i, object) {
        const char *name = json_string_value(json_object_get(object, "name"));
        const char *type = json_string_value(json_object_get(object, "type"));
        char op[OP_ID_SIZE];
        if (name == NULL || !name_is_ours(name) || str_eq(name, NAME_CLAIM)) {
            continue;
        }
        _cleanup_free_ char *disk =
            name_operation(name, op) ? disk_of(name) : NULL;
        json_int_t hold =
            disk != NULL
                ? json_integer_value(json_object_get(listing->disks, disk))
                : GRAPH_FREE;
        if (add(listing, "object", name, uses[hold], json_array())) {
            tell(listing, "state", type != NULL ? type : "");
        }
    }
}

/* By which a file is taken away: a socket in its place, see steps/target.c. */
static void add_chardevs(struct listing *listing)
{
    size_t i;
    json_t *chardev;
    json_array_foreach(listing->look->chardevs, i, chardev) {
        const char *name = json_string_value(json_object_get(chardev, "label"));
        if (name != NULL && name_is_ours(name)) {
            (void)add(listing, "chardev", name, "free", json_array());
        }
    }
}

static void add_claim(struct listing *listing)
{
    const char *holder = listing->look->holder;
    if (holder != NULL &&
        add(listing, "claim", NAME_CLAIM, "free", json_array())) {
        tell(listing, "op", op_id_valid(holder) ? holder : "");
    }
}

json_t *leftover_list(const struct leftover_look *look)
{
    struct listing listing = {.look = look};
    if (graph_holds(look->graph, name_is_ours, &listing.holds) < 0) {
        return NULL;
    }
    listing.items = json_array();
    listing.disks = json_object();
    add_jobs(&listing, true);
    add_jobs(&listing, false);
    add_exports(&listing);
    add_bitmaps(&listing);
    add_nodes(&listing);
    add_objects(&listing);
    add_chardevs(&listing);
    add_claim(&listing);
    json_decref(listing.disks);
    free(listing.holds);
    return listing.items;
}

static void append(json_t *list, const char *name)
{
    if (json_array_size(list) < LEFTOVERS_MAX && !name_is_ours(name)) {
        (void)json_array_append_new(list, json_string(name));
    }
}

json_t *leftover_foreign(const struct graph *graph)
{
    json_t *jobs = json_array(), *nodes = json_array(), *exports = json_array();
    unsigned n;
    const struct graph_job *job = graph_jobs(graph, &n);
    for (unsigned i = 0; i < n; i++) {
        append(jobs, job[i].id);
    }
    const struct graph_node *node = graph_nodes(graph, &n);
    for (unsigned i = 0; i < n; i++) {
        if (!node[i].anonymous) {
            append(nodes, node[i].name);
        }
    }
    const struct graph_export *export = graph_exports(graph, &n);
    for (unsigned i = 0; i < n; i++) {
        append(exports, export[i].id);
    }
    return json_pack("{s:o, s:o, s:o}", "jobs", jobs, "nodes", nodes, "exports",
                     exports);
}

json_t *leftover_frozen(const struct graph *graph)
{
    json_t *list = json_array();
    unsigned n;
    const struct graph_job *jobs = graph_jobs(graph, &n);
    for (int ours = 1; ours >= 0; ours--) {
        for (unsigned i = 0; i < n; i++) {
            if (str_eq(jobs[i].status, "pending") &&
                name_is_ours(jobs[i].id) == (ours == 1)) {
                (void)json_array_append_new(list, json_string(jobs[i].id));
            }
        }
    }
    return list;
}
