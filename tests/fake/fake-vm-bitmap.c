/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The fake QEMU's dirty bitmaps: one of the owner's on a node, and two by
 * names of ours. They hold nothing; what they are refused for is QEMU's.
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

static json_t *add(struct fake_node *node, const char *name)
{
    bool ours = str_starts(name, "qpv-");
    if (find(node, name) != NULL) {
        return fake_vm_refuse("Bitmap already exists: %s", name);
    }
    bool added = ours ? add_to(node->ours[0], FAKE_NAME, name) ||
                            add_to(node->ours[1], FAKE_NAME, name)
                      : add_to(node->bitmap, sizeof(node->bitmap), name);
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
    if (index == FAKE_NOBODY) {
        return fake_vm_refuse("Node '%s' not found", text(data, "node"));
    }
    struct fake_node *node = &vm->nodes[index];
    if (str_eq(type, "block-dirty-bitmap-add")) {
        return add(node, name);
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
    if (str_eq(type, "block-dirty-bitmap-remove")) {
        *found = '\0';
    }
    return NULL;
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
