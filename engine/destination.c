/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The command line of a destination for a running VM: QEMU's own, from /proc,
 * put right by what QMP tells. Only the host that QEMU runs on can tell it.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "api.h"
#include "backends/backend.h"
#include "base/err.h"
#include "base/str.h"
#include "monitor.h"
#include "qmp/qmp.h"
#include "vm/argv.h"
#include "vm/graph.h"
#include "vm/query.h"
#include "vm/vm.h"

enum { CMDLINE_MAX = 1 << 20, QUERIES = 2, TIMEOUT_MS = 30000 };

static const char *const queries[QUERIES] = {"query-pci",
                                             "query-memory-size-summary"};

struct destination {
    char *cmdline; /* words, each ended by '\0' */
    char **argv;
    char *machine;
    char *monitor;
    char *monitor_to;
    bool same_paths;
    json_t *targets; /* {disk: URI} */
    struct argv_disk *disks;
    unsigned n_disks;
    json_t *warnings;
};

static void destination_free(void *data);
static int read_cmdline(struct destination *d, struct vm *vm,
                        struct err **errp);
static void on_graph(void *data, const struct err *err,
                     const struct graph *graph);
static void on_machine(void *data, const struct err *err, json_t *result);
static void on_queries(void *data, const struct err *err,
                       json_t *const *replies);

int qpivot_monitor_destination(struct qpivot_monitor *monitor,
                               const struct qpivot_destination_options *options,
                               qpivot_reply_fn *reply, void *data,
                               char **ret_error)
{
    _cleanup_err_ struct err *err = NULL;
    struct ask *ask = NULL;
    if (monitor == NULL || options == NULL || reply == NULL ||
        options->size < sizeof(*options)) {
        return -EINVAL;
    }
    struct destination *d = calloc(1, sizeof(*d));
    int r = d != NULL ? ask_new(monitor, reply, data, &ask) : -ENOMEM;
    if (r < 0) {
        free(d);
        return r;
    }
    ask->more = d;
    ask->free_more = destination_free;
    d->same_paths = options->same_paths != 0;
    d->targets = json_object();
    d->warnings = json_array();
    for (unsigned i = 0; i < options->n_disks; i++) {
        (void)json_object_set_new(d->targets, options->disks[i].disk,
                                  json_string(options->disks[i].target));
    }
    if (options->monitor != NULL) {
        d->monitor_to = strdup(options->monitor);
    }
    r = read_cmdline(d, monitor_vm(monitor), &err);
    if (r == 0) {
        r = vm_graph(monitor_vm(monitor), on_graph, ask, &ask->query);
    }
    if (r < 0) {
        ask_drop(ask);
    }
    return api_error(err, r, ret_error);
}

static void destination_free(void *data)
{
    struct destination *d = data;
    for (unsigned i = 0; i < d->n_disks; i++) {
        free((char *)(uintptr_t)d->disks[i].device);
        json_decref(d->disks[i].file);
        json_decref(d->disks[i].node);
    }
    json_decref(d->targets);
    json_decref(d->warnings);
    free(d->disks);
    free(d->argv);
    free(d->cmdline);
    free(d->machine);
    free(d->monitor);
    free(d->monitor_to);
    free(d);
}

/* --- what /proc tells --- */

static ssize_t read_all(int fd, char *into, size_t max)
{
    size_t got = 0;
    ssize_t n = 1;
    while (n > 0 && got < max) {
        n = read(fd, into + got, max - got);
        got += n > 0 ? (size_t)n : 0;
    }
    return n < 0 ? -errno : (ssize_t)got;
}

static int read_cmdline(struct destination *d, struct vm *vm, struct err **errp)
{
    uint64_t pid = vm_process(vm).pid;
    _cleanup_free_ char *path = str_printf("/proc/%" PRIu64 "/cmdline", pid);
    _cleanup_close_ int fd =
        pid != 0 && path != NULL ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    ssize_t n = -ENOENT;
    size_t n_words = 0, word = 0;
    d->cmdline = malloc(CMDLINE_MAX + 1);
    if (fd >= 0 && d->cmdline != NULL) {
        n = read_all(fd, d->cmdline, CMDLINE_MAX);
    }
    if (n <= 0 || n == CMDLINE_MAX) {
        int r = err_set(errp, -ENOENT, vm_name(vm),
                        "QEMU's command line cannot be read from here");
        err_hint(errp, "ask on the host that QEMU runs on, as its user or as"
                       " root, by its unix socket");
        return r;
    }
    d->cmdline[n] = '\0';
    for (ssize_t i = 0; i < n; i++) {
        n_words += d->cmdline[i] == '\0';
    }
    d->argv = calloc(n_words + 2, sizeof(*d->argv));
    if (d->argv == NULL) {
        return err_set(errp, -ENOMEM, vm_name(vm), "out of memory");
    }
    for (ssize_t i = 0; i < n; i += (ssize_t)strlen(d->cmdline + i) + 1) {
        d->argv[word++] = d->cmdline + i;
    }
    _cleanup_free_ char *name = qmp_addr_absolute(vm_name(vm));
    bool is_unix = name != NULL && strncmp(name, "unix:", 5) == 0;
    d->monitor = is_unix ? strdup(name + 5) : NULL;
    return 0;
}

/* --- what the graph tells --- */

static const char *target_of(const struct destination *d,
                             const struct graph_device *device)
{
    const char *target = NULL;
    const char *names[] = {device->id, device->drive, device->label};
    for (unsigned i = 0; target == NULL && i < ARRAY_SIZE(names); i++) {
        target = names[i] != NULL
                     ? json_string_value(json_object_get(d->targets, names[i]))
                     : NULL;
    }
    return target;
}

/* Whether the words of the command line name the node that is active now. */
static bool is_as_started(const struct destination *d,
                          const struct graph_disk *disk)
{
    for (unsigned i = 0; d->argv[i] != NULL && d->argv[i + 1] != NULL; i++) {
        bool node = strcmp(d->argv[i], "-blockdev") == 0;
        if (!node && strcmp(d->argv[i], "-drive") != 0) {
            continue;
        }
        json_auto_t *option =
            argv_option(d->argv[i + 1], node ? "driver" : NULL);
        const char *name = json_string_value(
            json_object_get(option, node ? "node-name" : "file"));
        if (str_eq(name,
                   node ? disk->active->name : disk->protocol->filename)) {
            return true;
        }
    }
    return false;
}

static json_t *format_node(const struct graph_disk *disk, const char *format)
{
    const struct graph_node *active = disk->active;
    json_t *node =
        json_pack("{s:s, s:s}", "driver", format, "discard", "unmap");
    if (active->cache_known) {
        (void)json_object_set_new(node, "cache",
                                  json_pack("{s:b, s:b}", "direct",
                                            active->cache_direct, "no-flush",
                                            active->cache_no_flush));
    }
    if (*active->detect_zeroes != '\0' &&
        !str_eq(active->detect_zeroes, "off")) {
        (void)json_object_set_new(node, "detect-zeroes",
                                  json_string(active->detect_zeroes));
    }
    return node;
}

/*
 * What is not there yet cannot be opened: the device stands on a node of the
 * same size until 'qpivot migrate', given the same words, has made it.
 */
static int describe_placeholder(const struct graph_disk *disk,
                                struct argv_disk *ret)
{
    ret->node = json_pack("{s:s, s:I, s:b}", "driver", "null-co", "size",
                          (json_int_t)disk->size, "read-zeroes", 1);
    return ret->node != NULL ? 0 : -ENOMEM;
}

static bool is_made_later(const struct volume *volume)
{
    return !volume->existing && (volume->ops->flags & BACKEND_CREATES) != 0;
}

static int describe(const struct graph_disk *disk, const char *target,
                    struct argv_disk *ret, struct err **errp)
{
    _cleanup_(volume_freep) struct volume *volume = NULL;
    int r = target != NULL
                ? volume_parse(target, &volume, errp)
                : volume_from_node(disk->protocol->driver,
                                   disk->protocol->filename, &volume);
    if (r < 0) {
        return target != NULL
                   ? r
                   : err_set(errp, r, disk->device->label,
                             "'%s' is not a volume that qpivot can describe",
                             disk->protocol->filename);
    }
    if (target != NULL && is_made_later(volume)) {
        return describe_placeholder(disk, ret);
    }
    bool qcow2 = target != NULL ? volume->format == FORMAT_QCOW2
                                : str_eq(disk->format, "qcow2");
    ret->file = volume->ops->node_options(volume, NULL);
    ret->node = format_node(disk, qcow2 ? "qcow2" : disk->format);
    if (target != NULL && !qcow2) {
        (void)json_object_set_new(ret->node, "driver", json_string("raw"));
    }
    if (disk->active->read_only) {
        (void)json_object_set_new(ret->file, "read-only", json_true());
        (void)json_object_set_new(ret->node, "read-only", json_true());
    }
    json_t *cache = json_object_get(ret->node, "cache");
    if (cache != NULL) {
        (void)json_object_set(ret->file, "cache", cache);
    }
    return ret->file != NULL && ret->node != NULL ? 0 : -ENOMEM;
}

static int take_device(struct destination *d, const struct graph *graph,
                       const struct graph_device *device, struct err **errp)
{
    _cleanup_graph_disk_ struct graph_disk *disk = NULL;
    const char *target = target_of(d, device);
    struct argv_disk *to = &d->disks[d->n_disks];
    if (device->qdev == NULL || device->empty ||
        graph_disk(graph, device, &disk, NULL) < 0 ||
        (target == NULL && is_as_started(d, disk))) {
        return 0;
    }
    to->device = strdup(device->label);
    if (to->device == NULL) {
        return -ENOMEM;
    }
    d->n_disks++;
    return describe(disk, target, to, errp);
}

/* A disk that was named and is none would be left as it is, unnoticed. */
static int check_targets(const struct destination *d, const struct graph *graph,
                         struct err **errp)
{
    const char *name;
    json_t *target;
    int r = 0;
    json_object_foreach(d->targets, name, target) {
        _cleanup_graph_disk_ struct graph_disk *disk = NULL;
        r = r < 0 ? r : graph_find_disk(graph, name, &disk, errp);
    }
    return r;
}

static void on_graph(void *data, const struct err *err,
                     const struct graph *graph)
{
    struct ask *ask = data;
    struct destination *d = ask->more;
    _cleanup_err_ struct err *error = err_copy(err);
    unsigned n = 0;
    ask->query = NULL;
    int r = error == NULL ? check_targets(d, graph, &error) : -EIO;
    const struct graph_device *devices =
        r == 0 ? graph_devices(graph, &n) : NULL;
    d->disks = calloc(n + 1, sizeof(*d->disks));
    for (unsigned i = 0; r == 0 && i < n; i++) {
        r = d->disks != NULL ? take_device(d, graph, &devices[i], &error)
                             : -ENOMEM;
    }
    if (r == 0) {
        struct qmp_call_options options = {.timeout_ms = TIMEOUT_MS};
        json_auto_t *args =
            json_pack("{s:s, s:s}", "path", "/machine", "property", "type");
        struct qmp *qmp = vm_qmp(monitor_vm(ask->monitor));
        r = qmp == NULL ? -ENOTCONN
                        : qmp_execute(qmp, "qom-get", args, &options,
                                      on_machine, ask, &ask->call);
    }
    if (r < 0) {
        if (error == NULL) {
            (void)err_set(&error, r, vm_name(monitor_vm(ask->monitor)),
                          "cannot be asked: %s", strerror(-r));
        }
        ask_end(ask, error, NULL);
    }
}

/* An alias ("q35") can mean another machine in another QEMU. */
static void on_machine(void *data, const struct err *err, json_t *result)
{
    struct ask *ask = data;
    struct destination *d = ask->more;
    static const char suffix[] = "-machine";
    const char *type = err == NULL ? json_string_value(result) : NULL;
    ask->call = NULL;
    if (type != NULL) {
        size_t n = strlen(type), cut = sizeof(suffix) - 1;
        d->machine = n > cut && strcmp(type + n - cut, suffix) == 0
                         ? strndup(type, n - cut)
                         : strdup(type);
    }
    int r = vm_query_start(monitor_vm(ask->monitor), queries, QUERIES,
                           on_queries, ask, &ask->query);
    if (r < 0) {
        _cleanup_err_ struct err *error = NULL;
        (void)err_set(&error, r, vm_name(monitor_vm(ask->monitor)),
                      "cannot be asked: %s", strerror(-r));
        ask_end(ask, error, NULL);
    }
}

/* --- what was added while it ran --- */

static bool on_command_line(const struct destination *d, const char *id)
{
    for (unsigned i = 0; d->argv[i] != NULL && d->argv[i + 1] != NULL; i++) {
        if (strcmp(d->argv[i], "-device") == 0) {
            json_auto_t *option = argv_option(d->argv[i + 1], "driver");
            if (str_eq(json_string_value(json_object_get(option, "id")), id)) {
                return true;
            }
        }
    }
    return false;
}

static void note_plugged(struct destination *d, const json_t *devices,
                         unsigned depth)
{
    size_t i;
    json_t *device;
    json_array_foreach(devices, i, device) {
        const char *id = json_string_value(json_object_get(device, "qdev_id"));
        const json_t *bridge = json_object_get(device, "pci_bridge");
        if (id != NULL && *id != '\0' && !on_command_line(d, id)) {
            (void)json_array_append_new(
                d->warnings,
                json_sprintf("device %s was hot-plugged: the destination needs"
                             " a -device line for it",
                             id));
        }
        if (bridge != NULL && depth < 32) {
            note_plugged(d, json_object_get(bridge, "devices"), depth + 1);
        }
    }
}

static void on_queries(void *data, const struct err *err,
                       json_t *const *replies)
{
    struct ask *ask = data;
    struct destination *d = ask->more;
    _cleanup_err_ struct err *error = NULL;
    json_auto_t *result = NULL;
    size_t i;
    json_t *bus;
    ask->query = NULL;
    json_array_foreach(err == NULL ? replies[0] : NULL, i, bus) {
        note_plugged(d, json_object_get(bus, "devices"), 0);
    }
    const json_t *plugged =
        err == NULL ? json_object_get(replies[1], "plugged-memory") : NULL;
    if (json_integer_value(plugged) > 0) {
        (void)json_array_append_new(
            d->warnings, json_string("memory was hot-plugged: the destination"
                                     " needs the same -object and -device"
                                     " lines"));
    }
    struct argv_request request = {.argv = (const char *const *)d->argv,
                                   .machine = d->machine,
                                   .disks = d->disks,
                                   .n_disks = d->n_disks,
                                   .monitor = d->monitor,
                                   .monitor_to = d->monitor_to,
                                   .same_paths = d->same_paths};
    if (argv_destination(&request, &result, &error) == 0) {
        (void)json_array_extend(json_object_get(result, "notes"), d->warnings);
    }
    ask_end(ask, error, result);
}
