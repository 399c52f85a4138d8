/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the runner makes of storage that is made usable: how long it waits, and
 * what it takes for done. The storage is this test.
 */
#include <criterion/criterion.h>
#include <errno.h>

#include "base/err.h"
#include "run/op-private.h"
#include "steps/attach.h"

enum { OWN_MS = 300000 };

static const struct backend_ops ops = {.attach_ms = OWN_MS};
static struct volume volume = {.ops = &ops, .name = (char[]){"v"}};
static struct volume *volumes[] = {&volume};
static const struct step step = {.name = "target-attach", .run = attach_run};
static const struct operation operation = {.steps = &step, .n_steps = 1};

static uv_loop_t loop;
static struct plan_disk disk = {.to = (char[]){"v"},
                                .to_state = (char[]){"secondary"},
                                .to_identity = (char[]){"block:147:3"},
                                .target_size = 4096};
static struct plan plan = {
    .target_timeout_ms = 5000, .disks = &disk, .n_disks = 1};
static struct mark marks[2];
static struct op op = {.host.loop = &loop,
                       .operation = &operation,
                       .plan = &plan,
                       .volumes = volumes,
                       .marks = marks};
static struct act act = {.op = &op, .step = &step};

static struct volume_request submitted;
static volume_done_fn *done;
static enum journal_kind recorded;
static unsigned n_records;

int __wrap_volume_submit(uv_loop_t *on, struct volume *of,
                         const struct volume_request *request,
                         volume_done_fn *cb, void *data,
                         struct volume_work **ret);
int __wrap_journal_append(struct journal *journal, const char *id,
                          enum journal_kind kind, const char *name, int number,
                          const json_t *data, uint64_t now_us, journal_fn *cb,
                          void *cb_data);
void __wrap_act_end(struct act *ended, const struct err *err);

int __wrap_volume_submit(uv_loop_t *on, struct volume *of,
                         const struct volume_request *request,
                         volume_done_fn *cb, void *data,
                         struct volume_work **ret)
{
    static int work;
    (void)on;
    (void)of;
    (void)data;
    submitted = *request;
    done = cb;
    *ret = (struct volume_work *)(void *)&work;
    return 0;
}

int __wrap_journal_append(struct journal *journal, const char *id,
                          enum journal_kind kind, const char *name, int number,
                          const json_t *data, uint64_t now_us, journal_fn *cb,
                          void *cb_data)
{
    (void)journal;
    (void)id;
    (void)name;
    (void)number;
    (void)data;
    (void)now_us;
    (void)cb;
    (void)cb_data;
    recorded = kind;
    n_records++;
    return 0;
}

static int ended_with;

void __wrap_act_end(struct act *ended, const struct err *err)
{
    (void)ended;
    ended_with = err != NULL ? err->code : 0;
}

static void begin(void)
{
    cr_assert_eq(uv_loop_init(&loop), 0);
    op_mark(&op, &step, 0)->status = MARK_INTENT;
}

static void end(void)
{
    cr_assert_eq(uv_loop_close(&loop), 0);
}

TestSuite(attach, .init = begin, .fini = end, .timeout = 30);

Test(attach, it_is_told_what_was_planned)
{
    attach_run(&act);
    cr_assert_eq(submitted.act, VOLUME_ATTACH);
    cr_assert_str_eq(submitted.identity, "block:147:3");
    cr_assert_str_eq(submitted.state, "secondary");
    cr_assert_not(submitted.again);
    act.work = NULL;
    act.repeated = true;
    attach_run(&act);
    cr_assert(submitted.again);
}

/* Left sooner, what would end undone in a moment is parked. */
Test(attach, no_abort_and_no_short_limit_leaves_it)
{
    uint64_t now = uv_now(&loop);
    attach_run(&act);
    cr_assert_not(act_leave_late(&act, now + plan.target_timeout_ms + 1));
    act_cancel_work(&act);
    cr_assert_not(act_leave_late(&act, now + OWN_MS - 1));
    cr_assert_eq(act.work_until_ms, now + OWN_MS);
}

Test(attach, other_storage_is_left_by_the_limit)
{
    static const struct volume_request request = {.act = VOLUME_CREATE};
    act_storage(&act, &volume, &request, NULL);
    cr_assert_eq(act.work_until_ms, uv_now(&loop) + plan.target_timeout_ms);
}

static void fail(bool untouched)
{
    struct err err = {.code = -ESTALE};
    struct volume_result result = {.info.untouched = untouched};
    attach_run(&act);
    done(&act, &err, &result);
    cr_assert_eq(ended_with, -ESTALE);
}

/* What is as it would have to be undone is somebody else's doing. */
Test(attach, what_was_not_touched_is_not_undone)
{
    fail(true);
    cr_assert_eq(op_mark(&op, &step, 0)->status, MARK_UNDONE);
    cr_assert_eq(n_records, 1);
    cr_assert_eq(recorded, JOURNAL_UNDONE);
}

Test(attach, what_may_have_been_done_is_undone)
{
    fail(false);
    cr_assert_eq(op_mark(&op, &step, 0)->status, MARK_INTENT);
    cr_assert_eq(n_records, 0);
}
