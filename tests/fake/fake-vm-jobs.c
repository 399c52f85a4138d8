/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The fake QEMU's jobs: those that mirror, and those that make an image. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/str.h"
#include "fake/fake-vm.h"

static const char *text(const json_t *args, const char *key)
{
    return json_string_value(json_object_get(args, key));
}

static void copy(char *to, size_t size, const char *from)
{
    (void)snprintf(to, size, "%s", from != NULL ? from : "");
}

bool fake_vm_job_lives(const struct fake_job *job)
{
    return job->used && job->status != FAKE_CONCLUDED;
}

const struct fake_job *fake_vm_job_above(const struct fake_vm *vm, int node)
{
    for (unsigned i = 0; i < FAKE_JOBS; i++) {
        if (fake_vm_job_lives(&vm->jobs[i]) && vm->jobs[i].mirror &&
            vm->jobs[i].filter == node) {
            return &vm->jobs[i];
        }
    }
    return NULL;
}

/* All parents of 'from', but for the node 'but', get 'to' instead. */
static void fake_vm_replace_node(struct fake_vm *vm, int from, int to, int but)
{
    for (int i = 0; i < FAKE_NODES; i++) {
        if (vm->nodes[i].used && vm->nodes[i].child == from && i != but) {
            vm->nodes[i].child = to;
        }
        if (vm->nodes[i].used && vm->nodes[i].backing == from && i != but) {
            vm->nodes[i].backing = to;
        }
    }
    for (unsigned i = 0; i < vm->n_devices; i++) {
        if (vm->devices[i].root == from) {
            vm->devices[i].root = to;
        }
    }
}

struct fake_job *fake_vm_find_job(struct fake_vm *vm, const char *id)
{
    for (unsigned i = 0; i < FAKE_JOBS; i++) {
        if (vm->jobs[i].used && str_eq(vm->jobs[i].id, id)) {
            return &vm->jobs[i];
        }
    }
    return NULL;
}

/* Whether a job works on it. */
static bool fake_vm_is_busy(const struct fake_vm *vm, int node)
{
    for (unsigned i = 0; i < FAKE_JOBS; i++) {
        const struct fake_job *job = &vm->jobs[i];
        if (fake_vm_job_lives(job) &&
            (job->source == node || job->target == node)) {
            return true;
        }
    }
    return false;
}

static void set_status(struct fake_vm *vm, struct fake_job *job,
                       enum fake_status status)
{
    job->status = status;
    fake_vm_event(vm, "JOB_STATUS_CHANGE",
                  json_pack("{s:s, s:s}", "id", job->id, "status",
                            fake_vm_status_name(status)));
}

static json_t *refuse_verb(const struct fake_job *job, const char *verb)
{
    return fake_vm_refuse(
        "Job '%s' in state '%s' cannot accept command verb '%s'", job->id,
        fake_vm_status_name(job->status), verb);
}

static struct fake_job *add_job(struct fake_vm *vm, const char *id, bool mirror)
{
    for (unsigned i = 0; i < FAKE_JOBS; i++) {
        struct fake_job *job = &vm->jobs[i];
        if (!job->used) {
            *job = (struct fake_job){.used = true,
                                     .mirror = mirror,
                                     .source = FAKE_NOBODY,
                                     .target = FAKE_NOBODY,
                                     .filter = FAKE_NOBODY,
                                     .replaced = FAKE_NOBODY};
            copy(job->id, sizeof(job->id), id);
            return job;
        }
    }
    abort();
}

static void copy_content(struct fake_vm *vm, const struct fake_job *job)
{
    const struct store_volume *from = fake_vm_volume_of(vm, job->source);
    struct store_volume *to = fake_vm_volume_of(vm, job->target);
    for (unsigned i = 0; job->commit && i < STORE_WRITES / 64; i++) {
        to->writes[i] |= from->writes[i];
    }
    if (from != NULL && to != NULL && !job->twin && !job->commit) {
        memcpy(to->writes, from->writes, sizeof(to->writes));
    }
}

static void drop_filter(struct fake_vm *vm, const struct fake_job *job)
{
    fake_vm_replace_node(vm, job->filter, job->source, FAKE_NOBODY);
    vm->nodes[job->filter].used = false;
}

static void pivot(struct fake_vm *vm, struct fake_job *job)
{
    copy_content(vm, job);
    drop_filter(vm, job);
    fake_vm_replace_node(vm, job->replaced, job->target, FAKE_NOBODY);
    if (job->commit) {
        vm->nodes[job->target].frozen = false;
    }
    set_status(vm, job, FAKE_CONCLUDED);
    fake_vm_settle(vm);
}

/* Whose NBD server has gone: the guest writes, and the copy of that fails. */
static void fail_broken(struct fake_vm *vm)
{
    for (unsigned i = 0; i < FAKE_JOBS; i++) {
        struct fake_job *job = &vm->jobs[i];
        if (fake_vm_job_lives(job) && job->mirror &&
            fake_vm_volume_of(vm, job->target) == NULL) {
            drop_filter(vm, job);
            copy(job->error, sizeof(job->error), "Input/output error");
            set_status(vm, job, FAKE_CONCLUDED);
        }
    }
}

/*
 * Time, as far as jobs notice: one of them gets one state further with every
 * look at them, and never so that the graph changes under a look.
 */
void fake_vm_tick(struct fake_vm *vm)
{
    fail_broken(vm);
    for (unsigned i = 0; i < FAKE_JOBS; i++) {
        struct fake_job *job = &vm->jobs[i];
        if (fake_vm_job_lives(job) && job->status == FAKE_READY &&
            job->blocking && !job->synced && !vm->stays_behind) {
            job->synced = true;
            return;
        }
        if (!fake_vm_job_lives(job) || job->status == FAKE_READY ||
            job->status == FAKE_PENDING ||
            (job->status == FAKE_RUNNING && job->mirror && !job->commit &&
             vm->never_ready) ||
            (job->soft && vm->never_ends)) {
            continue;
        }
        if (job->status == FAKE_CREATED) {
            set_status(vm, job, FAKE_RUNNING);
        } else if (!job->mirror) {
            set_status(vm, job, FAKE_CONCLUDED);
        } else if (job->status == FAKE_RUNNING) {
            copy_content(vm, job);
            set_status(vm, job, FAKE_READY);
        } else if (job->soft) {
            copy_content(vm, job);
            drop_filter(vm, job);
            set_status(vm, job, FAKE_CONCLUDED);
        } else {
            set_status(vm, job, FAKE_PENDING);
        }
        return;
    }
}

/* --- commands --- */

static json_t *blockdev_create(struct fake_vm *vm, const json_t *args)
{
    const json_t *options = json_object_get(args, "options");
    const char *id = text(args, "job-id");
    int file = fake_vm_find(vm, text(options, "file"));
    struct store_volume *volume = fake_vm_volume_of(vm, file);
    if (fake_vm_find_job(vm, id) != NULL) {
        return fake_vm_refuse("Job ID '%s' already in use", id);
    }
    if (str_eq(text(options, "driver"), "file")) {
        set_status(vm, add_job(vm, id, false), FAKE_CREATED);
        return fake_vm_create_file(vm, options);
    }
    if (volume == NULL) {
        return fake_vm_refuse("Cannot find device='' nor node-name='%s'",
                              text(options, "file"));
    }
    struct fake_job *job = add_job(vm, id, false);
    set_status(vm, job, FAKE_CREATED);
    if (vm->runstate == FAKE_INMIGRATE && !vm->nodes[file].active) {
        copy(job->error, sizeof(job->error), "Block node is read-only");
    } else {
        volume->format_size =
            (uint64_t)json_integer_value(json_object_get(options, "size"));
    }
    return json_object();
}

static int source_of(const struct fake_vm *vm, const char *device)
{
    for (unsigned i = 0; i < vm->n_devices; i++) {
        if (*vm->devices[i].drive != '\0' &&
            str_eq(vm->devices[i].drive, device)) {
            return vm->devices[i].root;
        }
    }
    return fake_vm_find(vm, device);
}

/* What both mirrors have in common; 'target' is opened already. */
static json_t *start_mirror(struct fake_vm *vm, const json_t *args, int target)
{
    const char *id = text(args, "job-id");
    const char *replaces = text(args, "replaces");
    int source = source_of(vm, text(args, "device"));
    if (source == FAKE_NOBODY || target == FAKE_NOBODY) {
        return fake_vm_refuse("Cannot find device='%s'", text(args, "device"));
    }
    if (fake_vm_find_job(vm, id) != NULL) {
        return fake_vm_refuse("Job ID '%s' already in use", id);
    }
    if (fake_vm_has_parent(vm, target)) {
        return fake_vm_refuse("Node '%s' is in use", vm->nodes[target].name);
    }
    if (str_eq(vm->nodes[source].driver, "mirror_top")) {
        return fake_vm_refuse(
            "Node '%s' is busy: block device is in use by block job:"
            " mirror",
            vm->nodes[source].name);
    }
    if (vm->nodes[source].size != vm->nodes[target].size) {
        return fake_vm_refuse("Source and target image have different sizes");
    }
    struct fake_job *job = add_job(vm, id, true);
    job->twin = str_eq(text(args, "sync"), "none") &&
                str_eq(text(args, "copy-mode"), "write-blocking");
    job->blocking = str_eq(text(args, "copy-mode"), "write-blocking");
    job->auto_finalize = !json_is_false(json_object_get(args, "auto-finalize"));
    job->source = source;
    job->target = target;
    job->replaced = replaces != NULL ? fake_vm_find(vm, replaces) : source;
    job->filter = fake_vm_add_node(vm, text(args, "filter-node-name"),
                                   "mirror_top", source, false);
    vm->nodes[job->filter].size = vm->nodes[source].size;
    fake_vm_replace_node(vm, source, job->filter, job->filter);
    set_status(vm, job, FAKE_CREATED);
    return json_object();
}

/* Of an active layer only; its filter is the one thing above it. */
static json_t *block_commit(struct fake_vm *vm, const json_t *args)
{
    const char *id = text(args, "job-id");
    int top = fake_vm_find(vm, text(args, "top-node"));
    int base = fake_vm_find(vm, text(args, "base-node"));
    int root = fake_vm_find(vm, text(args, "device"));
    if (top == FAKE_NOBODY || base == FAKE_NOBODY || root == FAKE_NOBODY) {
        return fake_vm_refuse("Cannot find device='' nor node-name='%s'",
                              text(args, "top-node"));
    }
    if (fake_vm_find_job(vm, id) != NULL) {
        return fake_vm_refuse("Job ID '%s' already in use", id);
    }
    if (vm->nodes[top].backing != base) {
        return fake_vm_refuse("'%s' is not in this backing file chain",
                              vm->nodes[base].name);
    }
    if (fake_vm_is_busy(vm, top)) {
        return fake_vm_refuse("Node '%s' is busy: block device is in use by"
                              " block job: mirror",
                              vm->nodes[top].name);
    }
    struct fake_job *job = add_job(vm, id, true);
    job->commit = true;
    job->auto_finalize = true;
    job->source = job->replaced = top;
    job->target = base;
    job->filter = fake_vm_add_node(vm, text(args, "filter-node-name"),
                                   "mirror_top", top, false);
    vm->nodes[job->filter].size = vm->nodes[top].size;
    fake_vm_replace_node(vm, top, job->filter, job->filter);
    set_status(vm, job, FAKE_CREATED);
    return json_object();
}

static json_t *blockdev_snapshot(struct fake_vm *vm, const json_t *args)
{
    int node = fake_vm_find(vm, text(args, "node"));
    int overlay = fake_vm_find(vm, text(args, "overlay"));
    if (node == FAKE_NOBODY || overlay == FAKE_NOBODY) {
        return fake_vm_refuse("Cannot find device='' nor node-name='%s'",
                              text(args, "overlay"));
    }
    if (vm->nodes[overlay].backing != FAKE_NOBODY) {
        return fake_vm_refuse("The overlay already has a backing image");
    }
    if (fake_vm_has_parent(vm, overlay)) {
        return fake_vm_refuse("The overlay is already in use");
    }
    if (vm->nodes[node].frozen || fake_vm_is_busy(vm, node)) {
        return fake_vm_refuse("Node '%s' is busy", vm->nodes[node].name);
    }
    fake_vm_replace_node(vm, node, overlay, overlay);
    vm->nodes[overlay].backing = node;
    vm->nodes[node].frozen = true;
    return json_object();
}

static json_t *blockdev_mirror(struct fake_vm *vm, const json_t *args)
{
    return start_mirror(vm, args, fake_vm_find(vm, text(args, "target")));
}

static json_t *drive_mirror(struct fake_vm *vm, const json_t *args)
{
    const char *path = text(args, "target"), *format = text(args, "format");
    const char *name = text(args, "node-name");
    struct store_volume *volume = store_find(vm->store, path);
    if (volume == NULL) {
        return fake_vm_refuse("Could not open '%s': No such file or directory",
                              path);
    }
    if (fake_vm_find(vm, name) != FAKE_NOBODY) {
        return fake_vm_refuse("Duplicate nodes with node-name='%s'", name);
    }
    int file = fake_vm_add_node(vm, NULL, "file", FAKE_NOBODY, false);
    copy(vm->nodes[file].path, STORE_NAME, path);
    int node = fake_vm_add_node(vm, name, format, file, false);
    vm->nodes[node].size =
        str_eq(format, "qcow2") ? volume->format_size : volume->size;
    return start_mirror(vm, args,
                        node); /* refused: fake_vm_settle() closes it */
}

static json_t *job_complete(struct fake_vm *vm, const json_t *args)
{
    struct fake_job *job = fake_vm_find_job(vm, text(args, "id"));
    if (job == NULL) {
        return fake_vm_refuse("Job not found");
    }
    if (job->status != FAKE_READY) {
        return refuse_verb(job, "complete");
    }
    if (job->auto_finalize) {
        pivot(vm, job);
    } else {
        set_status(vm, job, FAKE_WAITING);
    }
    return json_object();
}

static json_t *job_finalize(struct fake_vm *vm, const json_t *args)
{
    struct fake_job *job = fake_vm_find_job(vm, text(args, "id"));
    if (job == NULL) {
        return fake_vm_refuse("Job not found");
    }
    if (job->status != FAKE_PENDING) {
        return refuse_verb(job, "finalize");
    }
    pivot(vm, job);
    return json_object();
}

/* A real QEMU may end of it: see steps/cancel.h. */
static void cancelled_under_writes(struct fake_vm *vm,
                                   const struct fake_job *job)
{
    if (job->mirror && job->blocking && job->status != FAKE_PENDING &&
        vm->runstate == FAKE_RUNS) {
        fake_vm_violation(vm, "a write-blocking mirror is cancelled under the"
                              " guest's writes");
    }
}

static json_t *job_cancel(struct fake_vm *vm, const json_t *args)
{
    struct fake_job *job = fake_vm_find_job(vm, text(args, "id"));
    if (job == NULL) {
        return fake_vm_refuse("Job not found");
    }
    if (job->status == FAKE_CONCLUDED) {
        return refuse_verb(job, "cancel");
    }
    cancelled_under_writes(vm, job);
    if (job->mirror) {
        drop_filter(vm, job);
    }
    copy(job->error, sizeof(job->error), "Operation canceled");
    set_status(vm, job, FAKE_CONCLUDED);
    return json_object();
}

/*
 * Without force, of a READY mirror: a last sync and no pivot; else an abort
 * (qapi/block-core.json).
 */
static json_t *block_job_cancel(struct fake_vm *vm, const json_t *args)
{
    struct fake_job *job = fake_vm_find_job(vm, text(args, "device"));
    bool force = json_is_true(json_object_get(args, "force"));
    if (job == NULL) {
        return fake_qmp_error("DeviceNotActive", "Block job not found");
    }
    if (job->status == FAKE_CONCLUDED || job->soft) {
        return refuse_verb(job, "cancel");
    }
    if (job->status == FAKE_READY && !force) {
        if (vm->changes_jobs && !job->synced) {
            fake_vm_violation(vm, "the guest stands for a mirror that is"
                                  " behind");
        }
        job->soft = true;
        set_status(vm, job, FAKE_WAITING);
        return json_object();
    }
    cancelled_under_writes(vm, job);
    drop_filter(vm, job);
    copy(job->error, sizeof(job->error), "Operation canceled");
    set_status(vm, job, FAKE_CONCLUDED);
    return json_object();
}

/* Write-blocking it can become, and be told to once more; never back. */
static json_t *block_job_change(struct fake_vm *vm, const json_t *args)
{
    struct fake_job *job = fake_vm_find_job(vm, text(args, "id"));
    if (!vm->changes_jobs) {
        return fake_qmp_error("CommandNotFound",
                              "The command block-job-change has not been"
                              " found");
    }
    if (job == NULL) {
        return fake_qmp_error("DeviceNotActive", "Block job not found");
    }
    if (job->status == FAKE_CONCLUDED) {
        return refuse_verb(job, "change");
    }
    job->blocking = true;
    return json_object();
}

static json_t *job_dismiss(struct fake_vm *vm, const json_t *args)
{
    struct fake_job *job = fake_vm_find_job(vm, text(args, "id"));
    if (job == NULL) {
        return fake_vm_refuse("Job not found");
    }
    if (job->status != FAKE_CONCLUDED) {
        return refuse_verb(job, "dismiss");
    }
    job->used = false;
    return json_object();
}

json_t *fake_vm_jobs(struct fake_vm *vm, const char *command,
                     const json_t *args)
{
    static const struct {
        const char *name;
        fake_command_fn *fn;
    } commands[] = {
        {"block-commit",      block_commit     },
        {"block-job-cancel",  block_job_cancel },
        {"block-job-change",  block_job_change },
        {"blockdev-create",   blockdev_create  },
        {"blockdev-mirror",   blockdev_mirror  },
        {"blockdev-snapshot", blockdev_snapshot},
        {"drive-mirror",      drive_mirror     },
        {"job-cancel",        job_cancel       },
        {"job-complete",      job_complete     },
        {"job-dismiss",       job_dismiss      },
        {"job-finalize",      job_finalize     },
    };

    for (unsigned i = 0; i < ARRAY_SIZE(commands); i++) {
        if (str_eq(command, commands[i].name)) {
            return commands[i].fn(vm, args);
        }
    }
    return NULL;
}
