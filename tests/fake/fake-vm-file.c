/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The fake QEMU and files: one that is made by blockdev-create, and one that a
 * socket takes the place of. As QEMU 7.2 and 10.0 were seen to answer.
 */
#include <stdio.h>

#include "base/cleanup.h"
#include "base/str.h"
#include "fake/fake-vm.h"

static const char *text(const json_t *args, const char *key)
{
    return json_string_value(json_object_get(args, key));
}

/* A raw node with an offset that no file reaches: it is always refused. */
json_t *fake_vm_look_for(struct fake_vm *vm, const json_t *args)
{
    const char *path = text(json_object_get(args, "file"), "filename");
    const struct store_volume *volume = store_find(vm->store, path);
    if (str_eq(path, "/fake")) {
        return fake_vm_refuse("'file' driver requires '%s' to be a regular"
                              " file",
                              path);
    }
    if (volume == NULL) {
        return fake_vm_refuse("Could not open '%s': No such file or directory",
                              path);
    }
    return fake_vm_refuse("Offset (%lld) cannot be greater than size of the"
                          " containing file (%llu)",
                          json_integer_value(json_object_get(args, "offset")),
                          (unsigned long long)volume->size);
}

/* It truncates what it finds. */
json_t *fake_vm_create_file(struct fake_vm *vm, const json_t *options)
{
    const char *path = text(options, "filename");
    json_int_t size = json_integer_value(json_object_get(options, "size"));
    if (store_find(vm->store, path) != NULL) {
        fake_vm_violation(vm, "file %s was truncated", path);
    } else {
        (void)store_add(vm->store, path, (uint64_t)size);
    }
    return json_object();
}

static void unlink_volume(struct fake_vm *vm, const char *path)
{
    struct store_volume *volume = store_find(vm->store, path);
    if (fake_vm_holds_guest(vm)) {
        fake_vm_violation(vm, "file %s was removed by who has the guest", path);
    } else if (volume != NULL) {
        volume->used = false;
    }
}

static json_t *chardev_add(struct fake_vm *vm, const json_t *args)
{
    const json_t *data =
        json_object_get(json_object_get(args, "backend"), "data");
    const json_t *addr = json_object_get(data, "addr");
    const char *path = text(json_object_get(addr, "data"), "path");
    const char *id = text(args, "id");
    if (json_object_get(vm->chardevs, id) != NULL) {
        return fake_vm_refuse("Chardev with id '%s' already exists", id);
    }
    unlink_volume(vm, path); /* and it binds a socket there */
    (void)json_object_set_new(vm->chardevs, id, json_string(path));
    return json_object();
}

static json_t *chardev_remove(struct fake_vm *vm, const json_t *args)
{
    const char *id = text(args, "id");
    return json_object_del(vm->chardevs, id) == 0
               ? json_object()
               : fake_vm_refuse("Chardev '%s' not found", id);
}

static json_t *query_chardev(struct fake_vm *vm, const json_t *args)
{
    json_t *list = json_pack("[{s:s, s:s, s:b}]", "label", "monitor0",
                             "filename", "null", "frontend-open", 1);
    const char *id;
    json_t *path;
    (void)args;
    json_object_foreach(vm->chardevs, id, path) {
        _cleanup_free_ char *filename = str_printf(
            "disconnected:unix:%s,server=on", json_string_value(path));
        (void)json_array_append_new(list, json_pack("{s:s, s:s, s:b}", "label",
                                                    id, "filename", filename,
                                                    "frontend-open", 0));
    }
    return list;
}

/* Only a device's 'drive'. */
static json_t *qom_set(struct fake_vm *vm, const json_t *args)
{
    int node = fake_vm_find(vm, text(args, "value"));
    for (unsigned i = 0; i < vm->n_devices; i++) {
        if (str_eq(vm->devices[i].qdev, text(args, "path"))) {
            if (node == FAKE_NOBODY) {
                return fake_vm_refuse("Cannot find device='' nor"
                                      " node-name='%s'",
                                      text(args, "value"));
            }
            if (vm->devices[i].root == node) {
                fake_vm_violation(vm, "QEMU has aborted: %s has that node",
                                  vm->devices[i].qdev);
            }
            vm->devices[i].root = node;
            return json_object();
        }
    }
    return fake_qmp_error("DeviceNotFound", "Device not found");
}

json_t *fake_vm_files(struct fake_vm *vm, const char *command,
                      const json_t *args)
{
    static const struct {
        const char *name;
        fake_command_fn *fn;
    } commands[] = {
        {"chardev-add",    chardev_add   },
        {"chardev-remove", chardev_remove},
        {"qom-set",        qom_set       },
        {"query-chardev",  query_chardev },
    };

    for (unsigned i = 0; i < ARRAY_SIZE(commands); i++) {
        if (str_eq(command, commands[i].name)) {
            return commands[i].fn(vm, args);
        }
    }
    return NULL;
}
