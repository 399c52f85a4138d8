/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The fake QEMU's dirty bitmaps: one of the owner's on a node, and two by
 * names of ours. They hold nothing; what they are refused for is QEMU's, and
 * what a stream does to them was seen of 7.2 and 10.0.
 */
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/str.h"
#include "fake/fake-vm.h"

static const char *text(const json_t *args, const char *key)
{
    return json_string_value(json_object_get(args, key));
}

static bool add_to(char *place, size_t size, const char *name)
{
    if (*place != '\0') {
        return false;
    }
    (void)snprintf(place, size, "%s", name);
    return true;
}

static char *find(struct fake_node *node, const char *name)
{
    return str_eq(node->bitmap, name)    ? node->bitmap
           : str_eq(node->ours[0], name) ? node->ours[0]
           : str_eq(node->ours[1], name) ? node->ours[1]
                                         : NULL;
}

static json_t *add(struct fake_node *node, const char *name, bool persistent)
{
    bool ours = str_starts(name, "qpv-");
    if (find(node, name) != NULL) {
        return fake_vm_refuse("Bitmap already exists: %s", name);
    }
    bool added = ours ? add_to(node->ours[0], FAKE_NAME, name) ||
                            add_to(node->ours[1], FAKE_NAME, name)
                      : add_to(node->bitmap, sizeof(node->bitmap), name);
    node->persistent = ours ? node->persistent : persistent;
    return added ? NULL : fake_vm_refuse("too many bitmaps for this fake");
}

static json_t *missing(const char *name)
{
    return fake_vm_refuse("Dirty bitmap '%s' not found", name);
}

/* NULL: it is done. */
static json_t *act(struct fake_vm *vm, const char *type, const json_t *data)
{
    int index = fake_vm_find(vm, text(data, "node"));
    const char *name = text(data, "name");
    if (str_eq(type, "abort")) {
        return fake_vm_refuse("Transaction aborted using Abort action");
    }
    if (index == FAKE_NOBODY) {
        return fake_vm_refuse("Node '%s' not found", text(data, "node"));
    }
    struct fake_node *node = &vm->nodes[index];
    if (str_eq(type, "block-dirty-bitmap-add")) {
        return add(node, name,
                   json_is_true(json_object_get(data, "persistent")));
    }
    if (str_eq(type, "block-dirty-bitmap-merge")) {
        const json_t *source =
            json_array_get(json_object_get(data, "bitmaps"), 0);
        int from = fake_vm_find(vm, text(source, "node"));
        if (find(node, text(data, "target")) == NULL) {
            return missing(text(data, "target"));
        }
        return from != FAKE_NOBODY &&
                       find(&vm->nodes[from], text(source, "name")) != NULL
                   ? NULL
                   : missing(text(source, "name"));
    }
    char *found = find(node, name);
    if (found == NULL) {
        return missing(name);
    }
    if (found == node->bitmap && node->busy) {
        return fake_vm_refuse("Bitmap '%s' is currently in use by another"
                              " operation and cannot be used",
                              name);
    }
    if (str_eq(type, "block-dirty-bitmap-remove")) {
        *found = '\0';
    }
    return NULL;
}

/* What was to be removed and was not is to be stored again. */
static void undo(struct fake_vm *vm, const json_t *action)
{
    const json_t *data = json_object_get(action, "data");
    int index = fake_vm_find(vm, text(data, "node"));
    if (str_eq(text(action, "type"), "block-dirty-bitmap-remove") &&
        str_eq(vm->nodes[index].bitmap, text(data, "name"))) {
        vm->nodes[index].unstored = false;
    }
}

/* All or none. */
static json_t *transaction(struct fake_vm *vm, const json_t *args)
{
    static struct fake_node before[FAKE_NODES];
    size_t i;
    json_t *action;
    memcpy(before, vm->nodes, sizeof(before));
    json_array_foreach(json_object_get(args, "actions"), i, action) {
        json_t *refusal =
            act(vm, text(action, "type"), json_object_get(action, "data"));
        if (refusal != NULL) {
            memcpy(vm->nodes, before, sizeof(before));
            while (i > 0) {
                undo(vm, json_array_get(json_object_get(args, "actions"), --i));
            }
            return refusal;
        }
    }
    return json_object();
}

json_t *fake_vm_bitmaps(struct fake_vm *vm, const char *command,
                        const json_t *args)
{
    if (str_eq(command, "transaction")) {
        return transaction(vm, args);
    }
    if (str_eq(command, "human-monitor-command")) {
        return json_string(""); /* a flush, when all went well */
    }
    if (!str_starts(command, "block-dirty-bitmap-")) {
        return NULL;
    }
    json_t *refusal = act(vm, command, args);
    return refusal != NULL ? refusal : json_object();
}

/* --- in a stream --- */

/* The entry of block-bitmap-mapping whose 'key' is 'value'. */
static const json_t *mapped(const struct fake_vm *vm, const char *key,
                            const char *value)
{
    size_t i;
    json_t *entry;
    json_array_foreach(
        json_object_get(vm->stream.parameters, "block-bitmap-mapping"), i,
        entry) {
        if (str_eq(text(entry, key), value)) {
            return entry;
        }
    }
    return NULL;
}

static const char *alias_of(const json_t *node, const char *bitmap)
{
    size_t i;
    json_t *entry;
    json_array_foreach(json_object_get(node, "bitmaps"), i, entry) {
        if (str_eq(text(entry, "name"), bitmap)) {
            return text(entry, "alias");
        }
    }
    return NULL;
}

/* A bitmap that is there already is the stream's end. */
static bool receive(struct fake_vm *peer, const char *node_alias,
                    const char *alias, bool persistent)
{
    const json_t *entry = mapped(peer, "alias", node_alias);
    int index = fake_vm_find(peer, text(entry, "node-name"));
    if (entry == NULL || index == FAKE_NOBODY) {
        return true; /* only its log tells */
    }
    struct fake_node *node = &peer->nodes[index];
    if (*node->bitmap != '\0') {
        return false;
    }
    (void)add_to(node->bitmap, sizeof(node->bitmap), alias);
    node->persistent = persistent;
    node->busy = true;
    return true;
}

bool fake_vm_send_bitmaps(struct fake_vm *vm)
{
    bool ok = true;
    bool wanted =
        json_is_true(json_object_get(vm->stream.capabilities, "dirty-bitmaps"));
    for (int i = 0; wanted && i < FAKE_NODES; i++) {
        struct fake_node *node = &vm->nodes[i];
        const json_t *entry =
            node->used ? mapped(vm, "node-name", node->name) : NULL;
        const char *alias = alias_of(entry, node->bitmap);
        if (*node->bitmap != '\0' && alias != NULL) {
            node->busy = node->unstored = true;
            ok = receive(vm->peer, text(entry, "alias"), alias,
                         node->persistent) &&
                 ok;
        }
    }
    return ok;
}

/* An image that both see has what the source has stored in it. */
static void hand_over(struct fake_vm *vm, const struct fake_node *node)
{
    const struct store_volume *volume =
        fake_vm_volume_of(vm, (int)(node - vm->nodes));
    for (unsigned i = 0; i < vm->peer->n_devices; i++) {
        int root = vm->peer->devices[i].root;
        struct fake_node *there = &vm->peer->nodes[root];
        if (volume != NULL && fake_vm_volume_of(vm->peer, root) == volume) {
            if (*there->bitmap != '\0') {
                fake_vm_violation(vm, "a bitmap came twice");
            }
            (void)add_to(there->bitmap, sizeof(there->bitmap), node->bitmap);
            there->persistent = true;
        }
    }
}

void fake_vm_end_bitmaps(struct fake_vm *vm, bool loaded)
{
    for (int i = 0; i < FAKE_NODES; i++) {
        struct fake_node *node = &vm->nodes[i];
        node->busy = false;
        if (loaded) {
            vm->peer->nodes[i].busy = false;
        }
        if (loaded && node->used && *node->bitmap != '\0' && node->persistent &&
            !node->unstored) {
            hand_over(vm, node);
        }
    }
}
