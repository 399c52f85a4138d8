/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "fake/fake-vm.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/str.h"

static void guest_write(struct fake_vm *vm);

json_t *fake_vm_refuse(const char *fmt, ...)
{
    char desc[160];
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(desc, sizeof(desc), fmt, ap);
    va_end(ap);
    return fake_qmp_error("GenericError", desc);
}

static const char *text(const json_t *args, const char *key)
{
    return json_string_value(json_object_get(args, key));
}

static void copy(char *to, size_t size, const char *from)
{
    (void)snprintf(to, size, "%s", from != NULL ? from : "");
}

/* --- nodes --- */

int fake_vm_find(const struct fake_vm *vm, const char *name)
{
    for (int i = 0; i < FAKE_NODES; i++) {
        if (vm->nodes[i].used && str_eq(vm->nodes[i].name, name)) {
            return i;
        }
    }
    return FAKE_NOBODY;
}

int fake_vm_add_node(struct fake_vm *vm, const char *name, const char *driver,
                     int child, bool owned)
{
    for (int i = 0; i < FAKE_NODES; i++) {
        struct fake_node *node = &vm->nodes[i];
        if (!node->used) {
            *node = (struct fake_node){.used = true,
                                       .owned = owned,
                                       .child = child,
                                       .backing = FAKE_NOBODY};
            copy(node->name, sizeof(node->name), name);
            copy(node->driver, sizeof(node->driver), driver);
            if (name == NULL) {
                (void)snprintf(node->name, sizeof(node->name), "#block%03u",
                               ++vm->n_anonymous);
            }
            return i;
        }
    }
    abort();
}

struct store_volume *fake_vm_volume_of(const struct fake_vm *vm, int node)
{
    while (node != FAKE_NOBODY && vm->nodes[node].child != FAKE_NOBODY) {
        node = vm->nodes[node].child;
    }
    if (node != FAKE_NOBODY && str_eq(vm->nodes[node].driver, "nbd")) {
        return fake_vm_exported(vm->peer, vm->nodes[node].path);
    }
    return node != FAKE_NOBODY ? store_find(vm->store, vm->nodes[node].path)
                               : NULL;
}

bool fake_vm_has_parent(const struct fake_vm *vm, int node)
{
    for (int i = 0; i < FAKE_NODES; i++) {
        if (vm->nodes[i].used &&
            (vm->nodes[i].child == node || vm->nodes[i].backing == node)) {
            return true;
        }
    }
    for (unsigned i = 0; i < vm->n_devices; i++) {
        if (vm->devices[i].root == node) {
            return true;
        }
    }
    for (unsigned i = 0; i < FAKE_JOBS; i++) {
        const struct fake_job *job = &vm->jobs[i];
        if (fake_vm_job_lives(job) &&
            (job->source == node || job->target == node ||
             job->filter == node)) {
            return true;
        }
    }
    for (unsigned i = 0; i < FAKE_EXPORTS; i++) {
        if (vm->exports[i].used && vm->exports[i].node == node) {
            return true;
        }
    }
    return false;
}

/* What this QEMU has open, for the storage. */
static void mark_volumes(struct fake_vm *vm)
{
    for (int i = 0; i < FAKE_NODES && !vm->dead; i++) {
        struct store_volume *volume =
            vm->nodes[i].used && vm->nodes[i].child == FAKE_NOBODY
                ? fake_vm_volume_of(vm, i)
                : NULL;
        if (volume != NULL) {
            volume->open = true;
        }
    }
    for (unsigned i = 0; i < vm->n_devices && !vm->dead; i++) {
        struct store_volume *volume = fake_vm_volume(vm, i);
        if (volume != NULL && fake_vm_holds_guest(vm)) {
            volume->guest = true;
        }
    }
}

/* What nobody holds any more goes; the storage learns what is open. */
void fake_vm_settle(struct fake_vm *vm)
{
    bool again = true;
    while (again) {
        again = false;
        for (int i = 0; i < FAKE_NODES; i++) {
            if (vm->nodes[i].used && !vm->nodes[i].owned &&
                !fake_vm_has_parent(vm, i)) {
                vm->nodes[i].used = false;
                again = true;
            }
        }
    }
    for (unsigned i = 0; i < STORE_VOLUMES; i++) {
        vm->store->volumes[i].open = vm->store->volumes[i].guest = false;
    }
    mark_volumes(vm);
    if (vm->peer != NULL) {
        mark_volumes(vm->peer);
    }
}

/* --- the guest --- */

struct store_volume *fake_vm_volume(struct fake_vm *vm, unsigned device)
{
    return fake_vm_volume_of(vm, vm->devices[device].root);
}

/* A write to a disk whose job is PENDING waits: nobody was told it is done. */
static void guest_write(struct fake_vm *vm)
{
    if (vm->runstate != FAKE_RUNS || vm->dead) {
        return;
    }
    if (vm->peer != NULL && vm->peer->runstate == FAKE_RUNS &&
        !vm->peer->dead) {
        fake_vm_violation(vm, "two QEMUs run the guest");
    }
    for (unsigned i = 0; i < vm->n_devices; i++) {
        struct fake_device *device = &vm->devices[i];
        const struct fake_job *job = fake_vm_job_above(vm, device->root);
        struct store_volume *volume = fake_vm_volume(vm, i);
        unsigned number = vm->n_writes++;
        bool frozen = job != NULL && job->status == FAKE_PENDING;
        if (!frozen && volume != NULL && number < STORE_WRITES) {
            store_write(volume, number);
            if (job != NULL && job->twin) {
                store_write(fake_vm_volume_of(vm, job->target), number);
            }
            device->writes[number / 64] |= UINT64_C(1) << (number % 64);
        }
    }
}

/* All that the images of its chain hold together. */
bool fake_vm_is_whole(struct fake_vm *vm, unsigned device)
{
    struct store_volume all = {0};
    int node = vm->devices[device].root;
    bool any = false;
    while (node != FAKE_NOBODY) {
        const struct fake_node *it = &vm->nodes[node];
        const struct store_volume *volume = fake_vm_volume_of(vm, node);
        for (unsigned i = 0; volume != NULL && i < STORE_WRITES / 64; i++) {
            all.writes[i] |= volume->writes[i];
        }
        any = any || volume != NULL;
        bool filter = str_eq(it->driver, "mirror_top");
        node = filter ? it->child : it->backing;
    }
    return fake_vm_is_whole_on(vm, device, any ? &all : NULL);
}

void fake_vm_unplug(struct fake_vm *vm, unsigned device)
{
    char name[16];
    (void)snprintf(name, sizeof(name), "vd%u", device);
    _cleanup_free_ char *path = str_printf("/machine/peripheral/%s", name);
    vm->devices[device].root = FAKE_NOBODY;
    fake_vm_settle(vm);
    fake_vm_event(vm, "DEVICE_DELETED",
                  json_pack("{s:s, s:s}", "device", name, "path", path));
}

bool fake_vm_is_whole_on(const struct fake_vm *vm, unsigned device,
                         const struct store_volume *volume)
{
    const uint64_t *told = vm->devices[device].writes;
    for (unsigned i = 0; i < STORE_WRITES / 64; i++) {
        if (volume == NULL || (told[i] & ~volume->writes[i]) != 0) {
            return false;
        }
    }
    return true;
}

void fake_vm_event(struct fake_vm *vm, const char *name, json_t *data)
{
    if (vm->dead) {
        json_decref(data);
    } else {
        fake_qmp_event(vm->qmp, name, data);
    }
}

void fake_vm_violation(struct fake_vm *vm, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    if (*vm->store->violation == '\0') {
        (void)vsnprintf(vm->store->violation, sizeof(vm->store->violation), fmt,
                        ap);
    }
    va_end(ap);
}

/* --- commands --- */

/* A qcow2 node with its protocol node in it: one, here. */
static json_t *add_scratch(struct fake_vm *vm, const json_t *args)
{
    const char *path = text(json_object_get(args, "file"), "filename");
    const struct store_volume *volume = store_find(vm->store, path);
    if (volume == NULL) {
        return fake_vm_refuse("Could not open '%s': No such file or directory",
                              path);
    }
    int node = fake_vm_add_node(vm, text(args, "node-name"), "qcow2",
                                FAKE_NOBODY, true);
    vm->nodes[node].size = volume->size;
    copy(vm->nodes[node].path, STORE_NAME, path);
    return json_object();
}

static json_t *blockdev_add(struct fake_vm *vm, const json_t *args)
{
    const char *name = text(args, "node-name"), *driver = text(args, "driver");
    const char *path = text(args, "filename"), *file = text(args, "file");
    const char *key = text(args, "key-secret");
    int child = file != NULL ? fake_vm_find(vm, file) : FAKE_NOBODY;
    if (json_object_get(args, "offset") != NULL) {
        return fake_vm_look_for(vm, args);
    }
    if (fake_vm_find(vm, name) != FAKE_NOBODY) {
        return fake_vm_refuse("Duplicate nodes with node-name='%s'", name);
    }
    if (str_eq(driver, "nbd")) {
        return fake_vm_add_client(vm, args);
    }
    if (json_is_object(json_object_get(args, "file"))) {
        return add_scratch(vm, args);
    }
    bool protocol = str_eq(driver, "file");
    struct store_volume *volume =
        protocol ? store_find(vm->store, path) : fake_vm_volume_of(vm, child);
    if (!protocol && child == FAKE_NOBODY) {
        return fake_vm_refuse("Cannot find device='' nor node-name='%s'", file);
    }
    if (volume == NULL) {
        return fake_vm_refuse("Could not open '%s': No such file or directory",
                              path);
    }
    if (protocol && !store_is_usable(volume)) {
        return fake_vm_refuse("Could not open '%s': Read-only file system",
                              path);
    }
    if (key != NULL && json_object_get(vm->objects, key) == NULL) {
        return fake_vm_refuse("No secret with id '%s'", key);
    }
    if (str_eq(driver, "qcow2") && volume->format_size == 0) {
        return fake_vm_refuse("Image is not in qcow2 format");
    }
    if (child != FAKE_NOBODY && fake_vm_has_parent(vm, child)) {
        return fake_vm_refuse("Permission conflict on node '%s'", file);
    }
    uint64_t below =
        child != FAKE_NOBODY ? vm->nodes[child].size : volume->size;
    const char *under = text(args, "backing");
    int backing = under != NULL ? fake_vm_find(vm, under) : FAKE_NOBODY;
    if (under != NULL && backing == FAKE_NOBODY) {
        return fake_vm_refuse("Cannot find device='' nor node-name='%s'",
                              under);
    }
    int node = fake_vm_add_node(vm, name, driver, child, true);
    vm->nodes[node].backing = backing;
    json_t *size = json_object_get(args, "size");
    vm->nodes[node].size = str_eq(driver, "qcow2") ? volume->format_size
                           : size != NULL ? (uint64_t)json_integer_value(size)
                                          : below;
    copy(vm->nodes[node].path, STORE_NAME, protocol ? path : "");
    return json_object();
}

static json_t *blockdev_del(struct fake_vm *vm, const json_t *args)
{
    const char *name = text(args, "node-name");
    int node = fake_vm_find(vm, name);
    if (node == FAKE_NOBODY) {
        return fake_vm_refuse("Failed to find node with node-name='%s'", name);
    }
    if (fake_vm_has_parent(vm, node)) {
        return fake_vm_refuse("Node %s is in use", name);
    }
    if (!vm->nodes[node].owned) {
        return fake_vm_refuse("Node %s is not owned by the monitor", name);
    }
    vm->nodes[node].used = false;
    return json_object();
}

static json_t *blockdev_reopen(struct fake_vm *vm, const json_t *args)
{
    size_t i;
    json_t *options;
    json_array_foreach(json_object_get(args, "options"), i, options) {
        const char *name = text(options, "node-name");
        int node = fake_vm_find(vm, name);
        if (node == FAKE_NOBODY) {
            return fake_vm_refuse("Failed to find node with node-name='%s'",
                                  name);
        }
        if (json_object_get(options, "size") == NULL) {
            vm->nodes[node].size = vm->nodes[vm->nodes[node].child].size;
        }
    }
    return json_object();
}

/* --- objects --- */

static json_t *object_add(struct fake_vm *vm, const json_t *args)
{
    const char *id = text(args, "id");
    if (json_object_get(vm->objects, id) != NULL) {
        return fake_vm_refuse("attempt to add duplicate property '%s' to object"
                              " (type 'container')",
                              id);
    }
    (void)json_object_set_new(vm->objects, id, json_deep_copy(args));
    return json_object();
}

void fake_vm_bind(char to[FAKE_PATH], const char *path)
{
    _cleanup_close_ int fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    copy(to, FAKE_PATH, path);
}

void fake_vm_unbind(char path[FAKE_PATH])
{
    if (*path != '\0') {
        (void)unlink(path);
        path[0] = '\0';
    }
}

json_t *fake_vm_lacks_object(const struct fake_vm *vm, const json_t *args,
                             const char *key)
{
    const char *id = text(args, key);
    return id == NULL || json_object_get(vm->objects, id) != NULL
               ? NULL
               : fake_vm_refuse("No TLS credentials with id '%s'", id);
}

static json_t *object_del(struct fake_vm *vm, const json_t *args)
{
    return json_object_del(vm->objects, text(args, "id")) == 0
               ? json_object()
               : fake_vm_refuse("object '%s' not found", text(args, "id"));
}

static json_t *qom_get(struct fake_vm *vm, const json_t *args)
{
    const char *path = text(args, "path"), *property = text(args, "property");
    const char *id = strrchr(path, '/') + 1;
    const json_t *object = json_object_get(vm->objects, id);
    if (str_eq(path, "/machine")) {
        return json_string("pc-q35-7.2-machine");
    }
    if (object == NULL) {
        return fake_qmp_error("DeviceNotFound", "Device not found");
    }
    return json_incref(json_object_get(
        object, str_eq(property, "type") ? "qom-type" : property));
}

static json_t *qom_list(struct fake_vm *vm, const json_t *args)
{
    json_t *list = json_array();
    const char *id;
    json_t *object;
    (void)args;
    json_object_foreach(vm->objects, id, object) {
        _cleanup_free_ char *type =
            str_printf("child<%s>", text(object, "qom-type"));
        (void)json_array_append_new(
            list, json_pack("{s:s, s:s}", "name", id, "type", type));
    }
    return list;
}

static json_t *set_action(struct fake_vm *vm, const json_t *args)
{
    copy(vm->shutdown, sizeof(vm->shutdown), text(args, "shutdown"));
    return json_object();
}

static void guests_write(struct fake_vm *vm)
{
    guest_write(vm);
    if (vm->peer != NULL) {
        guest_write(vm->peer);
    }
}

json_t *fake_vm_answer(void *data, const char *command, const json_t *args)
{
    static const struct {
        const char *name;
        fake_command_fn *fn;
    } commands[] = {
        {"blockdev-add",    blockdev_add   },
        {"blockdev-del",    blockdev_del   },
        {"blockdev-reopen", blockdev_reopen},
        {"object-add",      object_add     },
        {"object-del",      object_del     },
        {"qom-get",         qom_get        },
        {"qom-list",        qom_list       },
        {"set-action",      set_action     },
    };

    struct fake_vm *vm = data;
    json_t *answer = NULL;
    guests_write(vm);
    if (str_eq(command, "query-jobs")) {
        fake_vm_tick(vm);
    }
    for (unsigned i = 0; answer == NULL && i < ARRAY_SIZE(commands); i++) {
        if (str_eq(command, commands[i].name)) {
            answer = commands[i].fn(vm, args);
        }
    }
    if (answer == NULL) {
        answer = fake_vm_bitmaps(vm, command, args);
    }
    if (answer == NULL) {
        answer = fake_vm_jobs(vm, command, args);
    }
    if (answer == NULL) {
        answer = fake_vm_files(vm, command, args);
    }
    if (answer == NULL) {
        answer = fake_vm_exports(vm, command, args);
    }
    if (answer == NULL) {
        answer = fake_vm_stream(vm, command, args);
    }
    fake_vm_settle(vm);
    guests_write(vm);
    return answer != NULL ? answer : fake_vm_look(vm, command);
}

/* --- making one, and checks --- */

struct fake_vm *fake_vm_new(struct store *store)
{
    struct fake_vm *vm = calloc(1, sizeof(*vm));
    if (vm == NULL) {
        abort();
    }
    vm->store = store;
    vm->objects = json_object();
    vm->chardevs = json_object();
    vm->stream.capabilities = json_object();
    vm->stream.parameters = fake_vm_default_parameters();
    copy(vm->shutdown, sizeof(vm->shutdown), "poweroff");
    return vm;
}

struct fake_vm *fake_vm_free(struct fake_vm *vm)
{
    if (vm != NULL) {
        json_decref(vm->objects);
        json_decref(vm->chardevs);
        json_decref(vm->stream.capabilities);
        json_decref(vm->stream.parameters);
        free(vm);
    }
    return NULL;
}

static struct fake_device *add_device(struct fake_vm *vm, bool drive)
{
    unsigned n = vm->n_devices++;
    struct fake_device *device = &vm->devices[n];
    (void)snprintf(device->qdev, sizeof(device->qdev),
                   "/machine/peripheral/vd%u/virtio-backend", n);
    if (drive) {
        (void)snprintf(device->drive, sizeof(device->drive), "drv%u", n);
    }
    return device;
}

void fake_vm_add_placeholder(struct fake_vm *vm, uint64_t size, bool drive)
{
    char name[FAKE_NAME];
    (void)snprintf(name, sizeof(name), "fmt%u", vm->n_devices);
    struct fake_device *device = add_device(vm, drive);
    device->root = fake_vm_add_node(vm, drive ? NULL : name, "null-co",
                                    FAKE_NOBODY, !drive);
    vm->nodes[device->root].size = size;
    fake_vm_settle(vm);
}

void fake_vm_add_disk(struct fake_vm *vm, const char *path, bool qcow2,
                      bool drive)
{
    unsigned n = vm->n_devices;
    struct fake_device *device = add_device(vm, drive);
    const struct store_volume *volume = store_find(vm->store, path);
    char file[FAKE_NAME], format[FAKE_NAME];
    (void)snprintf(file, sizeof(file), "file%u", n);
    (void)snprintf(format, sizeof(format), "fmt%u", n);
    int below =
        fake_vm_add_node(vm, drive ? NULL : file, "file", FAKE_NOBODY, !drive);
    copy(vm->nodes[below].path, STORE_NAME, path);
    vm->nodes[below].size = volume->size;
    device->root = fake_vm_add_node(vm, drive ? NULL : format,
                                    qcow2 ? "qcow2" : "raw", below, !drive);
    vm->nodes[device->root].size = qcow2 ? volume->format_size : volume->size;
    fake_vm_settle(vm);
}

void fake_vm_add_base(struct fake_vm *vm, const char *path)
{
    const struct fake_device *device = &vm->devices[vm->n_devices - 1];
    char name[FAKE_NAME];
    (void)snprintf(name, sizeof(name), "base%u", vm->n_devices - 1);
    int base = fake_vm_add_node(vm, name, "file", FAKE_NOBODY, true);
    copy(vm->nodes[base].path, STORE_NAME, path);
    vm->nodes[base].size = store_find(vm->store, path)->size;
    vm->nodes[device->root].backing = base;
    fake_vm_settle(vm);
}

static bool node_reaches(const struct fake_vm *vm, int from, int node)
{
    return from != FAKE_NOBODY &&
           (from == node || node_reaches(vm, vm->nodes[from].child, node) ||
            node_reaches(vm, vm->nodes[from].backing, node));
}

static bool device_reaches(const struct fake_vm *vm, int node)
{
    for (unsigned i = 0; i < vm->n_devices; i++) {
        if (node_reaches(vm, vm->devices[i].root, node)) {
            return true;
        }
    }
    return false;
}

bool fake_vm_uses(const struct fake_vm *vm, const char *node)
{
    int index = fake_vm_find(vm, node);
    return index != FAKE_NOBODY && device_reaches(vm, index);
}

static void tell_left(json_t *list, const char *kind, const char *name)
{
    _cleanup_free_ char *line = str_printf("%s %s", kind, name);
    (void)json_array_append_new(list, json_string(line));
}

static void tell_socket(json_t *list, const char *path)
{
    if (*path != '\0' && access(path, F_OK) == 0) {
        tell_left(list, "socket", path);
    }
}

static void tell_all(json_t *list, const char *kind, json_t *by_id)
{
    const char *id;
    json_t *value;
    json_object_foreach(by_id, id, value) {
        tell_left(list, kind, id);
    }
}

json_t *fake_vm_leftovers(const struct fake_vm *vm)
{
    json_t *list = json_array();
    tell_all(list, "object", vm->objects);
    tell_all(list, "chardev", vm->chardevs);
    for (int i = 0; i < FAKE_NODES; i++) {
        const struct fake_node *node = &vm->nodes[i];
        if (node->used && str_starts(node->name, "qpv-") &&
            !device_reaches(vm, i)) {
            tell_left(list, "node", node->name);
        }
    }
    for (unsigned i = 0; i < FAKE_JOBS; i++) {
        if (vm->jobs[i].used) {
            tell_left(list, "job", vm->jobs[i].id);
        }
    }
    const char *id;
    size_t n;
    json_t *object;
    for (int i = 0; i < FAKE_NODES; i++) {
        const struct fake_node *node = &vm->nodes[i];
        for (unsigned k = 0; node->used && k < ARRAY_SIZE(node->ours); k++) {
            if (*node->ours[k] != '\0') {
                tell_left(list, "bitmap", node->ours[k]);
            }
        }
    }
    for (unsigned i = 0; i < FAKE_EXPORTS; i++) {
        if (vm->exports[i].used) {
            tell_left(list, "export", vm->exports[i].id);
        }
    }
    json_object_foreach(vm->stream.capabilities, id, object) {
        if (json_is_true(object)) {
            tell_left(list, "capability", id);
        }
    }
    if (vm->serves) {
        tell_left(list, "server", "NBD");
    }
    tell_socket(list, vm->serves_at);
    tell_socket(list, vm->stream.socket);
    json_auto_t *parameters = fake_vm_default_parameters();
    json_object_foreach(parameters, id, object) {
        if (!json_equal(object, json_object_get(vm->stream.parameters, id))) {
            tell_left(list, "parameter", id);
        }
    }
    json_array_foreach(
        json_object_get(vm->stream.parameters, "block-bitmap-mapping"), n,
        object) {
        const char *node = text(object, "node-name");
        if (!str_eq(text(object, "alias"), node)) {
            tell_left(list, "parameter", "block-bitmap-mapping");
        }
    }
    if (!str_eq(vm->shutdown, "poweroff")) {
        tell_left(list, "shutdown action", vm->shutdown);
    }
    return list;
}
