/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The fake QEMU's NBD server, and the nodes of its peer that are clients. */
#include <stdio.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "base/str.h"
#include "fake/fake-vm.h"

static const char *text(const json_t *args, const char *key)
{
    return json_string_value(json_object_get(args, key));
}

static const struct fake_export *find(const struct fake_vm *vm,
                                      const char *name)
{
    for (unsigned i = 0; vm != NULL && i < FAKE_EXPORTS; i++) {
        if (vm->exports[i].used && str_eq(vm->exports[i].id, name)) {
            return &vm->exports[i];
        }
    }
    return NULL;
}

struct store_volume *fake_vm_exported(const struct fake_vm *vm,
                                      const char *name)
{
    const struct fake_export *export = find(vm, name);
    bool served = export != NULL && vm->serves && !vm->dead && !vm->ends;
    return served ? fake_vm_volume_of(vm, export->node) : NULL;
}

/* --- the client --- */

json_t *fake_vm_add_client(struct fake_vm *vm, const json_t *args)
{
    const char *name = text(args, "node-name"), *wanted = text(args, "export");
    const struct fake_export *export = find(vm->peer, wanted);
    const char *port = text(json_object_get(args, "server"), "port");
    json_t *refusal = fake_vm_lacks_object(vm, args, "tls-creds");
    if (refusal != NULL) {
        return refusal;
    }
    const char *path = text(json_object_get(args, "server"), "path");
    bool there = vm->peer != NULL && !vm->peer->dead && vm->peer->serves &&
                 (path != NULL ? str_eq(path, vm->peer->serves_at)
                               : port != NULL && strtoul(port, NULL, 10) ==
                                                     vm->peer->serves);
    if (!there) {
        return fake_vm_refuse("Failed to connect to '127.0.0.1:61000':"
                              " Connection refused");
    }
    if (vm->peer->serves_tls != (text(args, "tls-creds") != NULL)) {
        return fake_vm_refuse("Server does not support option 5");
    }
    if (export == NULL) {
        return fake_vm_refuse("Requested export not available");
    }
    int node = fake_vm_add_node(vm, name, "nbd", FAKE_NOBODY, true);
    vm->nodes[node].size = vm->peer->nodes[export->node].size;
    (void)snprintf(vm->nodes[node].path, STORE_NAME, "%s", wanted);
    return json_object();
}

/* --- the server --- */

static void drop(struct fake_vm *vm, struct fake_export *export)
{
    export->used = false;
    fake_vm_event(vm, "BLOCK_EXPORT_DELETED",
                  json_pack("{s:s}", "id", export->id));
}

static json_t *server_start(struct fake_vm *vm, const json_t *args)
{
    const json_t *data = json_object_get(json_object_get(args, "addr"), "data");
    const char *port = text(data, "port");
    json_t *refusal = fake_vm_lacks_object(vm, args, "tls-creds");
    if (refusal == NULL) {
        refusal = fake_vm_lacks_object(vm, args, "tls-authz");
    }
    if (refusal != NULL) {
        return refusal;
    }
    if (vm->serves) {
        return fake_vm_refuse("NBD server already running");
    }
    const char *path = text(data, "path");
    if (path != NULL) {
        fake_vm_bind(vm->serves_at, path);
        vm->serves = 1;
        vm->serves_tls = text(args, "tls-creds") != NULL;
        return json_object();
    }
    unsigned number = port != NULL ? (unsigned)strtoul(port, NULL, 10) : 0;
    vm->taken = vm->taken != 0 ? vm->taken : number;
    if (number == vm->taken) {
        return fake_vm_refuse("Failed to find an available port: Address"
                              " already in use");
    }
    vm->serves = number;
    vm->serves_tls = text(args, "tls-creds") != NULL;
    return json_object();
}

static json_t *server_stop(struct fake_vm *vm, const json_t *args)
{
    (void)args;
    if (!vm->serves) {
        return fake_vm_refuse("NBD server not running");
    }
    vm->serves = 0;
    fake_vm_unbind(vm->serves_at);
    for (unsigned i = 0; i < FAKE_EXPORTS; i++) {
        if (vm->exports[i].used) {
            drop(vm, &vm->exports[i]);
        }
    }
    return json_object();
}

static json_t *export_add(struct fake_vm *vm, const json_t *args)
{
    const char *id = text(args, "id");
    int node = fake_vm_find(vm, text(args, "node-name"));
    if (!vm->serves) {
        return fake_vm_refuse("NBD server not running");
    }
    if (find(vm, id) != NULL) {
        return fake_vm_refuse("Block export id '%s' is already in use", id);
    }
    if (node == FAKE_NOBODY) {
        return fake_vm_refuse("Cannot find device='' nor node-name='%s'",
                              text(args, "node-name"));
    }
    if (vm->runstate != FAKE_INMIGRATE) {
        fake_vm_violation(vm, "a disk of the guest's was exported");
    }
    for (unsigned i = 0; i < FAKE_EXPORTS; i++) {
        struct fake_export *export = &vm->exports[i];
        if (!export->used) {
            *export = (struct fake_export){.used = true, .node = node};
            (void)snprintf(export->id, sizeof(export->id), "%s", id);
            vm->nodes[node].active = true;
            return json_object();
        }
    }
    return fake_vm_refuse("too many exports for this fake");
}

static json_t *export_del(struct fake_vm *vm, const json_t *args)
{
    const char *id = text(args, "id");
    for (unsigned i = 0; i < FAKE_EXPORTS; i++) {
        if (vm->exports[i].used && str_eq(vm->exports[i].id, id)) {
            drop(vm, &vm->exports[i]);
            return json_object();
        }
    }
    return fake_vm_refuse("Export '%s' is not found", id);
}

static json_t *query_exports(struct fake_vm *vm, const json_t *args)
{
    (void)args;
    json_t *list = json_array();
    for (unsigned i = 0; i < FAKE_EXPORTS; i++) {
        const struct fake_export *export = &vm->exports[i];
        if (export->used) {
            (void)json_array_append_new(
                list,
                json_pack("{s:s, s:s, s:s, s:b}", "id", export->id, "type",
                          "nbd", "node-name", vm->nodes[export->node].name,
                          "shutting-down", 0));
        }
    }
    return list;
}

json_t *fake_vm_exports(struct fake_vm *vm, const char *command,
                        const json_t *args)
{
    static const struct {
        const char *name;
        fake_command_fn *fn;
    } commands[] = {
        {"block-export-add",    export_add   },
        {"block-export-del",    export_del   },
        {"nbd-server-start",    server_start },
        {"nbd-server-stop",     server_stop  },
        {"query-block-exports", query_exports},
    };

    for (unsigned i = 0; i < ARRAY_SIZE(commands); i++) {
        if (str_eq(command, commands[i].name)) {
            return commands[i].fn(vm, args);
        }
    }
    return NULL;
}
