/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The block graph as a tree or for graphviz. Walks without recursion: a chain
 * is as deep as the peer says. */
#include "graph-view.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "text.h"

struct place {
    const char *name; /* "device:virtio0" or a node's name */
    const char *role;
    unsigned depth;
};

/* A QEMU may have tens of thousands of nodes: nothing is searched for. */
struct index {
    json_t *labelled; /* "device:ID", "job:ID", "export:ID", a node's name */
    json_t *children; /* a parent's name -> its edges */
    json_t *parents;  /* has an entry for each child's name */
};

struct walk {
    const struct index *index;
    FILE *out;
    json_t *seen;
    struct place *stack;
    size_t n;
    size_t room;
};

static void walk_from(struct walk *w, const char *name);
static void walk_one(struct walk *w, const struct place *place);
static void push_children(struct walk *w, const char *name, unsigned depth);
static void push(struct walk *w, struct place place);
static void walk_roots(struct walk *w, const json_t *list, const char *kind);
static void index_init(struct index *index, const json_t *graph);
static void index_done(struct index *index);
static void index_list(json_t *map, const json_t *list, const char *key,
                       const char *kind);
static char *label(const struct index *index, const char *name);
static char *node_label(const json_t *node);
static char *device_label(const json_t *device);
static void dot_box(FILE *out, const struct index *index, const char *name,
                    const char *shape);
static void dot_quoted(FILE *out, const char *text);
static const char *word(const json_t *object, const char *name);
static bool is(const json_t *object, const char *name);

void graph_view_text(const json_t *graph, FILE *out)
{
    struct index index;
    index_init(&index, graph);
    struct walk w = {.index = &index, .out = out, .seen = json_object()};
    walk_roots(&w, json_object_get(graph, "devices"), "device");
    walk_roots(&w, json_object_get(graph, "exports"), "export");
    walk_roots(&w, json_object_get(graph, "jobs"), "job");
    size_t i;
    json_t *node;
    json_array_foreach(json_object_get(graph, "nodes"), i, node) {
        if (json_object_get(index.parents, word(node, "name")) == NULL) {
            walk_from(&w, word(node, "name"));
        }
    }
    /* What only a cycle, or a parent that is not listed, leads to. */
    json_array_foreach(json_object_get(graph, "nodes"), i, node) {
        if (json_object_get(w.seen, word(node, "name")) == NULL) {
            walk_from(&w, word(node, "name"));
        }
    }
    json_decref(w.seen);
    free(w.stack);
    index_done(&index);
}

void graph_view_dot(const json_t *graph, FILE *out)
{
    static const struct {
        const char *list;
        const char *kind;
        const char *shape;
    } kinds[] = {
        {"devices", "device:", "ellipse"},
        {"exports", "export:", "cds"    },
        {"jobs",    "job:",    "hexagon"}
    };

    size_t i;
    json_t *item;
    struct index index;
    index_init(&index, graph);
    (void)fprintf(out, "digraph qemu {\n    rankdir=TB;\n"
                       "    node [fontname=\"sans-serif\", fontsize=10];\n"
                       "    edge [fontname=\"sans-serif\", fontsize=9];\n");
    for (size_t k = 0; k < 3; k++) {
        json_array_foreach(json_object_get(graph, kinds[k].list), i, item) {
            char *name = text_printf("%s%s", kinds[k].kind, word(item, "id"));
            if (name != NULL) {
                dot_box(out, &index, name, kinds[k].shape);
            }
            free(name);
        }
    }
    json_array_foreach(json_object_get(graph, "nodes"), i, item) {
        dot_box(out, &index, word(item, "name"),
                is(item, "filter") ? "box, style=rounded" : "box");
    }
    json_array_foreach(json_object_get(graph, "edges"), i, item) {
        (void)fprintf(out, "    ");
        dot_quoted(out, word(item, "parent"));
        (void)fprintf(out, " -> ");
        dot_quoted(out, word(item, "child"));
        (void)fprintf(out, " [label=");
        dot_quoted(out, word(item, "role"));
        (void)fprintf(out, "];\n");
    }
    (void)fprintf(out, "}\n");
    index_done(&index);
}

static void walk_roots(struct walk *w, const json_t *list, const char *kind)
{
    size_t i;
    json_t *item;
    json_array_foreach(list, i, item) {
        char *name = text_printf("%s:%s", kind, word(item, "id"));
        if (name != NULL) {
            walk_from(w, name);
        }
        free(name);
    }
}

static void walk_from(struct walk *w, const char *name)
{
    push(w, (struct place){.name = name, .role = ""});
    while (w->n > 0) {
        struct place place = w->stack[--w->n];
        walk_one(w, &place);
    }
}

/* What was shown above is named again, but not walked again. */
static void walk_one(struct walk *w, const struct place *place)
{
    bool seen = json_object_get(w->seen, place->name) != NULL;
    char *text =
        seen ? text_printf("%s", place->name) : label(w->index, place->name);
    unsigned indent = place->depth < 40 ? place->depth * 2 : 80;
    (void)fprintf(w->out, "%*s%s%s%s%s\n", (int)indent, "", place->role,
                  place->role[0] ? ": " : "",
                  text != NULL ? text_tame(text) : "?",
                  seen ? " (see above)" : "");
    free(text);
    if (!seen) {
        (void)json_object_set_new(w->seen, place->name, json_true());
        push_children(w, place->name, place->depth + 1);
    }
}

/* The last one first: the stack turns the order round. */
static void push_children(struct walk *w, const char *name, unsigned depth)
{
    const json_t *edges = json_object_get(w->index->children, name);
    for (size_t i = json_array_size(edges); i-- > 0;) {
        const json_t *edge = json_array_get(edges, i);
        push(w, (struct place){.name = word(edge, "child"),
                               .role = word(edge, "role"),
                               .depth = depth});
    }
}

static void push(struct walk *w, struct place place)
{
    if (w->n == w->room) {
        size_t room = w->room > 0 ? w->room * 2 : 64;
        struct place *stack = reallocarray(w->stack, room, sizeof(*stack));
        if (stack == NULL) {
            return;
        }
        w->stack = stack;
        w->room = room;
    }
    w->stack[w->n++] = place;
}

static void index_init(struct index *index, const json_t *graph)
{
    *index = (struct index){.labelled = json_object(),
                            .children = json_object(),
                            .parents = json_object()};
    index_list(index->labelled, json_object_get(graph, "devices"), "id",
               "device:");
    index_list(index->labelled, json_object_get(graph, "jobs"), "id", "job:");
    index_list(index->labelled, json_object_get(graph, "exports"), "id",
               "export:");
    index_list(index->labelled, json_object_get(graph, "nodes"), "name", "");
    size_t i;
    json_t *edge;
    json_array_foreach(json_object_get(graph, "edges"), i, edge) {
        const char *parent = word(edge, "parent");
        json_t *edges = json_object_get(index->children, parent);
        if (edges == NULL) {
            edges = json_array();
            (void)json_object_set_new(index->children, parent, edges);
        }
        (void)json_array_append(edges, edge);
        (void)json_object_set_new(index->parents, word(edge, "child"),
                                  json_true());
    }
}

static void index_done(struct index *index)
{
    json_decref(index->labelled);
    json_decref(index->children);
    json_decref(index->parents);
}

static void index_list(json_t *map, const json_t *list, const char *key,
                       const char *kind)
{
    size_t i;
    json_t *item;
    json_array_foreach(list, i, item) {
        char *name = text_printf("%s%s", kind, word(item, key));
        if (name != NULL) {
            (void)json_object_set(map, name, item);
        }
        free(name);
    }
}

static char *label(const struct index *index, const char *name)
{
    const json_t *item = json_object_get(index->labelled, name);
    if (strncmp(name, "device:", 7) == 0) {
        return device_label(item);
    }
    if (strncmp(name, "job:", 4) == 0) {
        return text_printf("job %s (%s, %s)", name + 4, word(item, "type"),
                           word(item, "status"));
    }
    if (strncmp(name, "export:", 7) == 0) {
        return text_printf("export %s (%s)", name + 7, word(item, "type"));
    }
    return item != NULL ? node_label(item) : text_printf("%s", name);
}

static char *node_label(const json_t *node)
{
    char size[TEXT_BYTES_MAX];
    double bytes = json_number_value(json_object_get(node, "size"));
    size_t n_bitmaps = json_array_size(json_object_get(node, "bitmaps"));
    size_t n_snapshots = json_array_size(json_object_get(node, "snapshots"));
    /* A filter's is made up by QEMU of what is below it, in full. */
    const char *file = is(node, "filter") ? "" : word(node, "filename");
    const char *group = word(node, "throttle_group");
    char extra[96] = "";
    if (n_bitmaps > 0 || n_snapshots > 0) {
        (void)snprintf(extra, sizeof(extra), ", %zu bitmap%s, %zu snapshot%s",
                       n_bitmaps, n_bitmaps == 1 ? "" : "s", n_snapshots,
                       n_snapshots == 1 ? "" : "s");
    }
    return text_printf(
        "%s (%s%s%s%s%s%s%s%s)%s%s", word(node, "name"), word(node, "driver"),
        is(node, "filter") ? ", filter" : "", bytes > 0 ? ", " : "",
        bytes > 0 ? text_bytes((uint64_t)bytes, size) : "",
        is(node, "read_only") ? ", read-only" : "",
        group[0] ? ", throttle group " : "", group, extra, file[0] ? " " : "",
        file);
}

static char *device_label(const json_t *device)
{
    const char *drive = word(device, "drive");
    const char *qdev = word(device, "qdev");
    const char *id = word(device, "id");
    return text_printf("device %s%s%s%s%s%s%s%s", id,
                       drive[0] && strcmp(drive, id) != 0 ? ", drive " : "",
                       strcmp(drive, id) != 0 ? drive : "",
                       qdev[0] && strcmp(qdev, id) != 0 ? ", at " : "",
                       strcmp(qdev, id) != 0 ? qdev : "",
                       is(device, "cdrom") ? ", cdrom" : "",
                       is(device, "read_only") ? ", read-only" : "",
                       is(device, "empty") ? ", empty" : "");
}

static void dot_box(FILE *out, const struct index *index, const char *name,
                    const char *shape)
{
    char *text = label(index, name);
    (void)fprintf(out, "    ");
    dot_quoted(out, name);
    (void)fprintf(out, " [shape=%s, label=", shape);
    dot_quoted(out, text != NULL ? text : name);
    (void)fprintf(out, "];\n");
    free(text);
}

static void dot_quoted(FILE *out, const char *text)
{
    (void)fputc('"', out);
    for (; *text != '\0'; text++) {
        if (*text == '"' || *text == '\\') {
            (void)fputc('\\', out);
        }
        (void)fputc((unsigned char)*text < ' ' ? ' ' : *text, out);
    }
    (void)fputc('"', out);
}

static const char *word(const json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));
    return text != NULL ? text : "";
}

static bool is(const json_t *object, const char *name)
{
    return json_is_true(json_object_get(object, name));
}
