/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a migration plans, and tells at its end, against two fake QEMUs. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/err.h"
#include "base/str.h"
#include "fake/fake-qmp.h"
#include "fake/fake-vm.h"
#include "fake/scratch.h"
#include "operations/migrate.h"
#include "policy/precopy.h"
#include "qpivot.h"
#include "run/journal.h"

enum { SIZE = 1 << 20, SIDES = 2, DISKS_MAX = 4 };

static uv_loop_t loop;
static char dir[SCRATCH_PATH];
static struct journal *journal;
static struct store *store;
static struct fake_vm *vms[SIDES]; /* the source, the destination */
static struct fake_qmp *qmps[SIDES];
static struct qpivot_disk wanted[DISKS_MAX];
static struct qpivot_migrate_options options;
static json_t *events[2]; /* "plan", and the last one */
static bool ended;
static enum qpivot_outcome outcome;

static void start(void)
{
    scratch_make("migrate", dir);
    cr_assert_eq(uv_loop_init(&loop), 0);
    cr_assert_eq(journal_open(&loop, dir, &journal, NULL), 0);
    store = store_new();
    for (unsigned i = 0; i < SIDES; i++) {
        vms[i] = fake_vm_new(store);
        struct fake_qmp_options fake = {
            .loop = &loop, .answer = fake_vm_answer, .data = vms[i]};
        cr_assert_eq(fake_qmp_new(&fake, &qmps[i]), 0);
        vms[i]->qmp = qmps[i];
    }
    vms[0]->peer = vms[1];
    vms[1]->peer = vms[0];
    vms[0]->runstate = FAKE_RUNS;
    fake_vm_await(vms[1], false);
    options = (struct qpivot_migrate_options){
        .size = sizeof(options),
        .qmp = fake_qmp_address(qmps[0]),
        .to = fake_qmp_address(qmps[1]),
        .disks = wanted,
        .flags = QPIVOT_KEEP_SOURCE,
    };
}

static void end(void)
{
    json_decref(events[0]);
    json_decref(events[1]);
    while (!journal_is_idle(journal)) {
        (void)uv_run(&loop, UV_RUN_ONCE);
    }
    journal_close(journal);
    for (unsigned i = 0; i < SIDES; i++) {
        fake_qmp_close(qmps[i]);
    }
    (void)uv_run(&loop, UV_RUN_DEFAULT);
    for (unsigned i = 0; i < SIDES; i++) {
        fake_vm_free(vms[i]);
    }
    store_free(store);
    cr_assert_eq(uv_loop_close(&loop), 0);
}

TestSuite(migrate, .timeout = 30, .init = start, .fini = end);

static void disk_on(unsigned side, const char *path, uint64_t size)
{
    if (store_find(store, path) == NULL) {
        (void)store_add(store, path, size);
    }
    fake_vm_add_disk(vms[side], path, false, false);
}

static void want(const char *disk, const char *how)
{
    wanted[options.n_disks++] = (struct qpivot_disk){disk, how};
}

static void on_event(void *data, const char *text)
{
    json_t *event = json_loads(text, 0, NULL);
    const char *name = json_string_value(json_object_get(event, "event"));
    unsigned which = str_eq(name, "plan") ? 0 : 1;
    (void)data;
    json_decref(events[which]);
    events[which] = event;
}

static void on_ended(void *data, enum qpivot_outcome how)
{
    (void)data;
    ended = true;
    outcome = how;
}

static void on_gone(void *data, struct op *op)
{
    (void)data;
    (void)op;
}

static void run(void)
{
    static const struct qpivot_callbacks callbacks = {.event = on_event,
                                                      .ended = on_ended};
    struct op_host host = {.loop = &loop, .journal = journal, .gone = on_gone};
    struct op *op;
    _cleanup_err_ struct err *err = NULL;
    cr_assert_eq(migrate_start(&host, &options, &callbacks, &op, &err), 0);
    while (!ended) {
        (void)uv_run(&loop, UV_RUN_ONCE);
    }
}

static const json_t *command(const char *name)
{
    size_t i;
    json_t *entry;
    json_array_foreach(json_object_get(events[0], "commands"), i, entry) {
        if (str_eq(json_string_value(json_object_get(entry, "execute")),
                   name)) {
            return json_object_get(entry, "arguments");
        }
    }
    return NULL;
}

static unsigned n_commands(const char *name)
{
    size_t i;
    json_t *entry;
    unsigned n = 0;
    json_array_foreach(json_object_get(events[0], "commands"), i, entry) {
        n += str_eq(json_string_value(json_object_get(entry, "execute")), name);
    }
    return n;
}

static void says(const char *what)
{
    _cleanup_free_ char *problems =
        json_dumps(json_object_get(events[1], "problems"), 0);
    cr_assert_eq(outcome, QPIVOT_REFUSED);
    cr_assert(problems != NULL && strstr(problems, what) != NULL,
              "'%s' is not in %s", what, problems);
    cr_assert_eq(fake_qmp_count(qmps[0], "object-add"), 0, "it was claimed");
}

/* One disk that is copied, one that is shared. */
static void two_disks(void)
{
    disk_on(0, "/fake/src0", SIZE);
    disk_on(0, "/fake/both", SIZE);
    disk_on(1, "/fake/dst0", SIZE);
    disk_on(1, "/fake/both", SIZE);
    want("vd0", "nbd");
    want("vd1", "share");
}

Test(migrate, only_what_is_copied_is_exported_and_mirrored)
{
    two_disks();
    options.flags |= QPIVOT_DRY_RUN;
    run();
    cr_assert_eq(outcome, QPIVOT_DONE);
    cr_assert_eq(n_commands("block-export-add"), 1);
    cr_assert_eq(n_commands("blockdev-mirror"), 1);
    cr_assert_eq(n_commands("block-job-cancel"), 1);
    cr_assert_eq(n_commands("migrate-continue"), 1);
    cr_assert_eq(fake_qmp_count(qmps[0], "blockdev-mirror"), 0);
}

Test(migrate, a_mirror_that_cannot_change_waits_for_both_sides_from_the_start)
{
    two_disks();
    options.flags |= QPIVOT_DRY_RUN;
    run();
    const char *mode = json_string_value(
        json_object_get(command("blockdev-mirror"), "copy-mode"));
    cr_assert_str_eq(mode, "write-blocking");
    cr_assert_eq(n_commands("block-job-change"), 0);
}

Test(migrate, a_mirror_that_can_change_does_so_once_it_is_ready)
{
    two_disks();
    options.flags |= QPIVOT_DRY_RUN;
    vms[0]->changes_jobs = true;
    run();
    const char *mode = json_string_value(
        json_object_get(command("blockdev-mirror"), "copy-mode"));
    cr_assert_str_eq(mode, "background");
    cr_assert_eq(n_commands("block-job-change"), 1);
}

Test(migrate, mirrors_that_became_equal_end)
{
    two_disks();
    vms[0]->changes_jobs = true;
    run();
    cr_assert_eq(outcome, QPIVOT_DONE);
    cr_assert_eq(fake_qmp_count(qmps[0], "block-job-change"), 1);
    cr_assert_str_eq(store->violation, "");
}

static json_int_t planned_downtime(void)
{
    return json_integer_value(
        json_object_get(command("migrate-set-parameters"), "downtime-limit"));
}

Test(migrate, the_downtime_limit_is_the_users)
{
    two_disks();
    options.flags |= QPIVOT_DRY_RUN;
    options.downtime_limit_ms = 70;
    run();
    cr_assert_eq(planned_downtime(), precopy_downtime_ms(70, 0));
}

Test(migrate, the_downtime_limit_is_what_QEMU_has)
{
    two_disks();
    options.flags |= QPIVOT_DRY_RUN;
    (void)json_object_set_new(vms[0]->stream.parameters, "downtime-limit",
                              json_integer(450));
    run();
    cr_assert_eq(planned_downtime(), precopy_downtime_ms(450, 0));
}

Test(migrate, storage_that_nobody_can_prove_is_asked_for)
{
    disk_on(0, "/fake/src0", SIZE);
    disk_on(1, "/fake/dst0", SIZE);
    run();
    says("--disk vd0=nbd");
}

Test(migrate, every_mismatch_is_a_problem_of_its_own)
{
    disk_on(0, "/fake/src0", SIZE);
    disk_on(0, "/fake/src1", SIZE);
    disk_on(1, "/fake/dst0", 2 * SIZE);
    want("vd0", "nbd");
    want("vd7", "share");
    run();
    says("2097152");
    says("no such device");
    says("vd7");
}

Test(migrate, a_destination_that_does_not_wait_is_refused)
{
    two_disks();
    vms[1]->runstate = FAKE_RUNS;
    run();
    says("-incoming defer -S");
}

Test(migrate, the_result_has_each_disk_and_the_sums)
{
    two_disks();
    run();
    cr_assert_eq(outcome, QPIVOT_DONE);
    const json_t *disks = json_object_get(events[1], "disks");
    cr_assert_eq(json_array_size(disks), 2);
    const json_t *copied = json_array_get(disks, 0);
    json_int_t bytes =
        json_integer_value(json_object_get(copied, "bytes_copied"));
    cr_assert_gt(bytes, 0);
    cr_assert(json_is_number(json_object_get(copied, "seconds")));
    cr_assert_null(json_object_get(json_array_get(disks, 1), "bytes_copied"));
    cr_assert_eq(json_integer_value(json_object_get(events[1], "bytes_copied")),
                 bytes);
    cr_assert_gt(json_integer_value(json_object_get(events[1], "memory_bytes")),
                 0);
    const json_t *phases = json_object_get(events[1], "phases");
    cr_assert(json_is_real(json_object_get(phases, "disks_seconds")));
    cr_assert(json_is_real(json_object_get(phases, "memory_seconds")));
}

Test(migrate, the_phases_of_the_blackout_are_all_of_it)
{
    static const char *const names[] = {"to_gate_ms", "to_continue_ms",
                                        "to_completed_ms", "to_resume_ms"};
    double sum = 0;
    two_disks();
    run();
    const json_t *parts = json_object_get(events[1], "blackout");
    cr_assert_eq(json_object_size(parts), ARRAY_SIZE(names));
    for (unsigned i = 0; i < ARRAY_SIZE(names); i++) {
        const json_t *part = json_object_get(parts, names[i]);
        cr_assert(json_is_real(part), "%s", names[i]);
        sum += json_real_value(part);
    }
    double all = json_real_value(json_object_get(events[1], "blackout_ms"));
    cr_assert(all > 0 && sum - all < 0.01 && all - sum < 0.01, "%f is not %f",
              sum, all);
}

Test(migrate, of_a_paused_guest_there_is_no_blackout)
{
    two_disks();
    vms[0]->runstate = FAKE_PAUSED;
    run();
    cr_assert_eq(outcome, QPIVOT_DONE);
    cr_assert_null(json_object_get(events[1], "blackout_ms"));
}

static bool starts_postcopy(void)
{
    return fake_qmp_count(qmps[0], "migrate-start-postcopy") == 1;
}

/* It is cancelled as it stops the guest, and QEMU waits for ever then. */
Test(migrate, a_stream_that_does_not_end_is_told_to)
{
    two_disks();
    fake_qmp_fault(qmps[0], "block-job-cancel", 0, FAKE_ERROR);
    vms[0]->wedges = true;
    run();
    cr_assert_eq(outcome, QPIVOT_FAILED);
    cr_assert_str_eq(store->violation, "");
    cr_assert_eq(fake_qmp_count(qmps[0], "migrate-continue"), 1);
    cr_assert_not(vms[0]->wedges);
    cr_assert_eq(vms[0]->runstate, FAKE_RUNS);
}

Test(migrate, postcopy_is_in_the_plan)
{
    two_disks();
    options.flags |= QPIVOT_DRY_RUN | QPIVOT_POSTCOPY;
    run();
    cr_assert_eq(outcome, QPIVOT_DONE);
    cr_assert_eq(n_commands("migrate-start-postcopy"), 1);
    _cleanup_free_ char *capabilities =
        json_dumps(command("migrate-set-capabilities"), 0);
    cr_assert_not_null(strstr(capabilities, "postcopy-ram"));
    cr_assert_not(starts_postcopy());
}

Test(migrate, by_postcopy_the_guest_runs_before_its_memory_is_there)
{
    two_disks();
    options.flags |= QPIVOT_POSTCOPY;
    run();
    cr_assert_eq(outcome, QPIVOT_DONE);
    cr_assert_str_eq(store->violation, "");
    cr_assert(starts_postcopy());
    cr_assert_eq(vms[1]->runstate, FAKE_RUNS);
    cr_assert_eq(fake_qmp_count(qmps[0], "migrate_cancel"), 0);
    const json_t *phases = json_object_get(events[1], "phases");
    cr_assert(json_is_real(json_object_get(phases, "postcopy_seconds")));
    for (unsigned i = 0; i < SIDES; i++) {
        cr_assert(i == 0 || !json_is_true(json_object_get(
                                vms[i]->stream.capabilities, "postcopy-ram")));
    }
}

Test(migrate, by_postcopy_the_phases_of_the_blackout_are_all_of_it)
{
    static const char *const names[] = {"to_gate_ms", "to_continue_ms",
                                        "to_completed_ms", "to_resume_ms"};
    double sum = 0;
    two_disks();
    options.flags |= QPIVOT_POSTCOPY;
    run();
    const json_t *parts = json_object_get(events[1], "blackout");
    for (unsigned i = 0; i < ARRAY_SIZE(names); i++) {
        sum += json_real_value(json_object_get(parts, names[i]));
    }
    double all = json_real_value(json_object_get(events[1], "blackout_ms"));
    cr_assert(all > 0 && sum - all < 0.01 && all - sum < 0.01, "%f is not %f",
              sum, all);
}

Test(migrate, a_link_that_is_lost_by_postcopy_parks)
{
    two_disks();
    options.flags |= QPIVOT_POSTCOPY;
    vms[0]->loses_link = true;
    run();
    cr_assert_eq(outcome, QPIVOT_PARKED);
    cr_assert_str_eq(store->violation, "");
    cr_assert_eq(vms[0]->stream.phase, FAKE_POSTCOPY_PAUSED);
    cr_assert_eq(vms[1]->runstate, FAKE_RUNS);
    _cleanup_free_ char *error =
        json_dumps(json_object_get(events[1], "error"), 0);
    cr_assert_not_null(strstr(error, "end neither"), "%s", error);
    cr_assert_not_null(strstr(error, "migrate-recover"), "%s", error);
    cr_assert_eq(fake_qmp_count(qmps[0], "quit"), 0);
    cr_assert_eq(fake_qmp_count(qmps[1], "quit"), 0);
}

Test(migrate, postcopy_is_not_begun_where_it_is_not_needed)
{
    two_disks();
    options.flags |= QPIVOT_TIMEOUT_POSTCOPIES;
    options.timeout_ms = 600000;
    run();
    cr_assert_eq(outcome, QPIVOT_DONE);
    cr_assert_not(starts_postcopy());
    cr_assert_str_eq(store->violation, "");
}

Test(migrate, a_destination_without_postcopy_is_refused)
{
    two_disks();
    options.flags |= QPIVOT_POSTCOPY;
    vms[1]->lacks_postcopy = true;
    run();
    says("the destination has no such capability");
}
