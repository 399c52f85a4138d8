/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "matrix/scenario.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/str.h"
#include "operations/migrate.h"
#include "operations/move.h"

enum { SIZE = 1 << 20, TIMEOUT_MS = 60000, WINDOW_MS = 3000 };

/* clang-format 14 crashes on this one. */
/* clang-format off */
const struct scenario scenarios[] = {
    {.name = "one", .operation = &move_operation,
     .n_disks = 1, .targets = {"fake:/fake/dst0"}},
    {.name = "two", .operation = &move_operation,
     .n_disks = 2,
     .flags = QPIVOT_DELETE_SOURCE,
     .targets = {"fake:/fake/dst0?format=qcow2", "fake:/fake/dst1?key=yes"}},
    {.name = "larger", .operation = &move_operation,
     .n_disks = 1, .thin = 2, .thin_lost = 4,
     .bitmap = true,
     .remote = true,
     .targets = {"fake:/fake/dst0?format=qcow2&size=2M"}},
    {.name = "paused", .operation = &move_operation,
     .n_disks = 2, .thin = 4, .thin_lost = 5,
     .paused = true,
     .targets = {"fake:/fake/dst0", "fake:/fake/dst1"}},
    {.name = "window", .operation = &move_operation,
     .n_disks = 1, .thin = 3, .thin_lost = 3,
     .window = true,
     .targets = {"fake:/fake/dst0?format=qcow2&size=2M"}},
    {.name = "two-windows", .operation = &move_operation,
     .n_disks = 2, .thin = 2, .thin_lost = 5,
     .window = true,
     .existing = true,
     .flags = QPIVOT_DELETE_SOURCE,
     .targets = {"fake:/fake/dst0?key=yes", "fake:/fake/dst1?existing=yes"}},
    {.name = "attached", .operation = &move_operation,
     .n_disks = 2, .thin_lost = 4,
     .attached = true,
     .targets = {"fake:/fake/dst0?existing=yes",
                 "fake:/fake/dst1?existing=yes&key=yes"}},
    {.name = "attached-degraded", .operation = &move_operation,
     .n_disks = 1, .thin = 2, .thin_lost = 5,
     .attached = true,
     .degrades = true,
     .targets = {"fake:/fake/dst0?existing=yes"}},
    {.name = "attached-window", .operation = &move_operation,
     .n_disks = 1, .thin = 3, .thin_lost = 5,
     .attached = true,
     .window = true,
     .targets = {"fake:/fake/dst0?existing=yes"}},
    {.name = "drive", .operation = &move_operation,
     .n_disks = 1, .thin = 3, .thin_lost = 4,
     .drive = true,
     .flags = QPIVOT_DELETE_SOURCE,
     .targets = {"fake:/fake/dst0"}},
    {.name = "drive-mirror", .operation = &move_operation,
     .n_disks = 1, .thin = 3, .thin_lost = 4,
     .drive = true,
     .via = QPIVOT_VIA_DRIVE_MIRROR,
     .targets = {"fake:/fake/dst0?format=qcow2"}},
    {.name = "two-drive-mirror", .operation = &move_operation,
     .n_disks = 2, .thin = 3, .thin_lost = 4,
     .drive = true,
     .existing = true,
     .via = QPIVOT_VIA_DRIVE_MIRROR,
     .flags = QPIVOT_DELETE_SOURCE,
     .targets = {"fake:/fake/dst0", "fake:/fake/dst1?existing=yes"}},
    {.name = "verify", .operation = &move_operation,
     .n_disks = 1, .thin_lost = 2,
     .verify = QPIVOT_VERIFY_FULL,
     .abort_at = "verify-clean",
     .targets = {"fake:/fake/dst0"}},
    {.name = "verify-two", .operation = &move_operation,
     .n_disks = 2, .thin = 3, .thin_lost = 3,
     .verify = QPIVOT_VERIFY_SAMPLE,
     .abort_at = "verify-clean",
     .targets = {"fake:/fake/dst0?format=qcow2", "fake:/fake/dst1"}},
    {.name = "base", .operation = &move_operation,
     .n_disks = 1, .thin_lost = 3,
     .strategy = QPIVOT_STRATEGY_BASE,
     .targets = {"fake:/fake/dst0"}},
    {.name = "base-two", .operation = &move_operation,
     .n_disks = 2, .thin = 4, .thin_lost = 4,
     .strategy = QPIVOT_STRATEGY_BASE,
     .flags = QPIVOT_DELETE_SOURCE,
     .targets = {"fake:/fake/dst0", "fake:/fake/dst1?key=yes"}},
    {.name = "migrate-nbd", .operation = &migrate_operation,
     .n_disks = 1, .thin_lost = 2,
     .abort_at = "mirror-end",
     .targets = {"nbd"}},
    {.name = "migrate-two", .operation = &migrate_operation,
     .n_disks = 2, .thin = 3, .thin_lost = 4,
     .remote = true,
     .autostart = true,
     .abort_at = "mirror-end",
     .targets = {"nbd", "share"}},
    {.name = "migrate-paused", .operation = &migrate_operation,
     .n_disks = 1, .thin = 3, .thin_lost = 5,
     .paused = true,
     .flags = QPIVOT_KEEP_SOURCE,
     .abort_at = "mirror-end",
     .targets = {"nbd"}},
    {.name = "migrate-suspend", .operation = &migrate_operation,
     .n_disks = 1, .thin = 3, .thin_lost = 5,
     .flags = QPIVOT_SUSPEND,
     .abort_at = "mirror-end",
     .targets = {"nbd"}},
    {.name = "migrate-postcopy", .operation = &migrate_operation,
     .n_disks = 1, .thin = 3, .thin_lost = 5,
     .flags = QPIVOT_POSTCOPY,
     .abort_at = "mirror-end",
     .targets = {"nbd"}},
    {.name = "migrate-postcopy-10", .operation = &migrate_operation,
     .n_disks = 2, .thin = 5, .thin_lost = 5,
     .old_state = true,
     .flags = QPIVOT_POSTCOPY | QPIVOT_KEEP_SOURCE,
     .abort_at = "mirror-end",
     .targets = {"share", "nbd"}},
    {.name = "migrate-postcopy-paused", .operation = &migrate_operation,
     .n_disks = 1, .thin = 3, .thin_lost = 5,
     .paused = true,
     .flags = QPIVOT_POSTCOPY,
     .abort_at = "mirror-end",
     .targets = {"nbd"}},
    {.name = "migrate-tls", .operation = &migrate_operation,
     .n_disks = 1, .thin = 2, .thin_lost = 4,
     .tls = true,
     .flags = QPIVOT_KEEP_SOURCE | QPIVOT_XBZRLE,
     .abort_at = "mirror-end",
     .targets = {"nbd"}},
    {.name = "migrate-bitmaps", .operation = &migrate_operation,
     .n_disks = 2, .thin = 2, .thin_lost = 3,
     .bitmap = true,
     .abort_at = "mirror-end",
     .targets = {"nbd", "share"}},
    {.name = "migrate-unix", .operation = &migrate_operation,
     .n_disks = 1, .thin = 2, .thin_lost = 4,
     .flags = QPIVOT_UNIX,
     .abort_at = "mirror-end",
     .targets = {"nbd"}},
    {.name = "migrate-made", .operation = &migrate_operation,
     .n_disks = 2, .thin = 2, .thin_lost = 3,
     .abort_at = "mirror-end",
     .targets = {"/fake/dst0?format=qcow2", "/fake/dst1"}},
    {.name = "migrate-linked", .operation = &migrate_operation,
     .n_disks = 2, .thin = 2, .thin_lost = 4,
     .linked = true,
     .abort_at = "mirror-end",
     .targets = {"/fake/dst0?format=qcow2", "nbd"}},
    {.name = "migrate-direct", .operation = &migrate_operation,
     .n_disks = 2, .thin = 2, .thin_lost = 3,
     .abort_at = "mirror-end",
     .targets = {"fake:/fake/dst0?key=yes",
                 "fake:/fake/dst1?format=qcow2&key=yes"}},
    {.name = "migrate-direct-drive", .operation = &migrate_operation,
     .n_disks = 1, .thin = 3, .thin_lost = 5,
     .drive = true,
     .remote = true,
     .flags = QPIVOT_KEEP_SOURCE,
     .abort_at = "mirror-end",
     .targets = {"fake:/fake/dst0?key=yes"}},
    {.name = "migrate-share", .operation = &migrate_operation,
     .n_disks = 2, .thin = 2, .thin_lost = 4,
     .old_state = true,
     .flags = QPIVOT_SUSPEND,
     .abort_at = "stream-follow",
     .targets = {"share", "share"}},
    {.name = "migrate-cut", .operation = &migrate_operation,
     .n_disks = 1, .thin = 2, .thin_lost = 4,
     .cut = true,
     .abort_at = "mirror-end",
     .targets = {"nbd"}},
    {.name = "migrate-active", .operation = &migrate_operation,
     .n_disks = 2, .thin = 3, .thin_lost = 4,
     .active = true,
     .abort_at = "backlog",
     .targets = {"nbd", "nbd"}},
    {.name = "migrate-behind", .operation = &migrate_operation,
     .n_disks = 2, .thin = 3, .thin_lost = 4,
     .active = true,
     .behind = true,
     .abort_at = "backlog",
     .targets = {"nbd", "share"}},
};

/* clang-format on */

const unsigned n_scenarios = ARRAY_SIZE(scenarios);

bool scenario_migrates(const struct scenario *scenario)
{
    return scenario->operation == &migrate_operation;
}

/* Where a disk has a bitmap, an image that can store it. */
static bool in_images(const struct scenario *scenario)
{
    return (scenario->bitmap && scenario_migrates(scenario)) ||
           scenario->linked;
}

const char *scenario_state(unsigned disk)
{
    return disk == 0 ? STORE_DOWN : STORE_UP;
}

static void add_volume(const struct scenario *scenario, struct world *world,
                       const char *path)
{
    struct store_volume *volume = store_add(world->store, path, SIZE);
    volume->format_size = in_images(scenario) ? SIZE : 0;
}

static void path_of(const char *kind, unsigned disk, char out[STORE_NAME])
{
    (void)snprintf(out, STORE_NAME, "/fake/%s%u", kind, disk);
}

static void add_base(const struct scenario *scenario, struct fake_vm *vm,
                     unsigned disk)
{
    char path[STORE_NAME];
    path_of("base", disk, path);
    if (scenario->linked) {
        fake_vm_add_base(vm, path);
    }
}

/* Its own volume for what is copied, the source's for what is shared. */
static void prepare_destination(const struct scenario *scenario,
                                struct world *world)
{
    for (unsigned i = 0; i < scenario->n_disks; i++) {
        char path[STORE_NAME];
        bool copied = str_eq(scenario->targets[i], "nbd");
        if (strchr(scenario->targets[i], '/') != NULL) {
            fake_vm_add_placeholder(world->dst_vm, SIZE, scenario->drive);
            continue;
        }
        path_of(copied ? "dst" : "src", i, path);
        if (copied) {
            add_volume(scenario, world, path);
        }
        fake_vm_add_disk(world->dst_vm, path, in_images(scenario),
                         scenario->drive);
        add_base(scenario, world->dst_vm, i);
    }
    fake_vm_await(world->dst_vm, scenario->autostart);
}

/* Looked for, never read: that is QEMU's. */
static void prepare_certificates(const char *dir)
{
    static const char *const names[] = {"ca-cert.pem", "client-cert.pem",
                                        "client-key.pem", "server-cert.pem",
                                        "server-key.pem"};
    for (unsigned i = 0; i < ARRAY_SIZE(names); i++) {
        _cleanup_free_ char *path = str_printf("%s/%s", dir, names[i]);
        _cleanup_close_ int fd =
            path != NULL ? open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600)
                         : -1;
        if (fd < 0) {
            abort();
        }
    }
}

void scenario_prepare(const struct scenario *scenario, struct world *world)
{
    world_begin(world, scenario_migrates(scenario));
    for (unsigned i = 0; i < scenario->n_disks; i++) {
        char path[STORE_NAME];
        path_of("src", i, path);
        add_volume(scenario, world, path);
        fake_vm_add_disk(world->vm, path, in_images(scenario), scenario->drive);
        path_of("base", i, path);
        if (scenario->linked) {
            (void)store_add(world->store, path, SIZE);
        }
        add_base(scenario, world->vm, i);
    }
    for (unsigned i = 0; scenario->attached && i < scenario->n_disks; i++) {
        char path[STORE_NAME];
        path_of("dst", i, path);
        struct store_volume *target = store_add(world->store, path, SIZE);
        (void)snprintf(target->state, STORE_STATE, "%s", scenario_state(i));
        /* By the plan, when the copy begins, and right before the pivot. */
        target->looks = scenario->degrades ? 3 : 0;
        path_of("src", i, path);
        struct store_volume *source = store_find(world->store, path);
        (void)snprintf(source->state, STORE_STATE, STORE_USABLE);
    }
    if (scenario->existing) {
        (void)store_add(world->store, "/fake/dst1", SIZE);
    }
    for (unsigned i = 0; scenario->bitmap && i < scenario->n_disks; i++) {
        struct fake_node *node = &world->vm->nodes[world->vm->devices[i].root];
        (void)snprintf(node->bitmap, sizeof(node->bitmap), "b0");
        node->persistent = in_images(scenario);
    }
    world->vm->runstate = scenario->paused ? FAKE_PAUSED : FAKE_RUNS;
    world->vm->changes_jobs = scenario->active;
    world->vm->stays_behind = scenario->behind;
    world->vm->never_told = scenario->cut;
    world->vm->keeps_old_state = scenario->old_state;
    if (scenario->tls) {
        prepare_certificates(world->dir);
    }
    if (world->dst_vm != NULL) {
        prepare_destination(scenario, world);
    }
}

/* Named, or the last step before the pivot that lasts: an abort meets it. */
static int abort_step(const struct scenario *scenario)
{
    const struct operation *operation = scenario->operation;
    int last = 0;
    bool pivoted = false;
    for (unsigned i = 0; i < operation->n_steps; i++) {
        const struct step *step = &operation->steps[i];
        if (str_eq(step->name, scenario->abort_at)) {
            return (int)i;
        }
        pivoted = pivoted || (step->flags & STEP_PIVOT) != 0;
        if (!pivoted && (step->flags & STEP_LONG) != 0 && step->when == NULL) {
            last = (int)i;
        }
    }
    return last;
}

static void run(const struct scenario *scenario, struct world *world,
                enum engine_verb verb, enum side asked, const char *fixed)
{
    static const struct qpivot_disk none;
    struct qpivot_disk disks[SCENARIO_DISKS] = {none};
    char names[SCENARIO_DISKS][16], config[96];
    bool late = world->fault->kind == FAULT_LATE;
    for (unsigned i = 0; i < scenario->n_disks; i++) {
        (void)snprintf(names[i], sizeof(names[i]), "%s%u",
                       scenario->drive ? "drv" : "vd", i);
        disks[i] = (struct qpivot_disk){names[i], scenario->targets[i]};
    }
    (void)snprintf(config, sizeof(config), "%s/config", world->dir);
    struct engine_request request = {
        .verb = verb,
        .operation = scenario->operation,
        .abort_at = abort_step(scenario),
        .remote = scenario->remote,
        .asked = asked,
        .fixed = fixed,
        .move = {.size = sizeof(request.move),
                 .qmp = world->addresses[SOURCE],
                 .disks = disks,
                 .n_disks = scenario->n_disks,
                 .flags = scenario->flags,
                 .via = scenario->via,
                 .strategy = scenario->strategy,
                 .verify = scenario->verify,
                 .timeout_ms = late ? TIMEOUT_MS : 0,
                 .emit_config = config,
                 .undo_window_ms = scenario->window ? WINDOW_MS : 0},
        .migrate = {.size = sizeof(request.migrate),
                 .qmp = world->addresses[SOURCE],
                 .to = world->addresses[DESTINATION],
                 .disks = disks,
                 .n_disks = scenario->n_disks,
                 .flags = scenario->flags,
                 .timeout_ms = late ? TIMEOUT_MS : 0,
                 .emit_config = config,
                 .tls_dir = scenario->tls ? world->dir : NULL,
                 .tls_authz = scenario->tls ? "CN=source" : NULL},
    };
    world_run(world, &request);
}

void scenario_run(const struct scenario *scenario, struct world *world,
                  enum engine_verb verb)
{
    run(scenario, world, verb, SOURCE, NULL);
}

void scenario_adopt(const struct scenario *scenario, struct world *world,
                    enum side side)
{
    run(scenario, world, ENGINE_ADOPT, side, NULL);
}

void scenario_doctor(const struct scenario *scenario, struct world *world,
                     enum side side, bool fix, const char *op)
{
    run(scenario, world, fix ? ENGINE_FIX : ENGINE_LOOK, side, op);
}
