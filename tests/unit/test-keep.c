/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <criterion/criterion.h>
#include <errno.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "backends/backend.h"
#include "backends/bulk.h"
#include "backends/keep.h"
#include "base/err.h"
#include "fake/fake-backend.h"

static uv_loop_t loop;
static struct keep *keep;
static struct volume *volume;
static atomic_llong ahead_ns;

/* In front of libc's: to wait for seconds takes none. */
int clock_gettime(clockid_t clock, struct timespec *ts)
{
    int r = (int)syscall(SYS_clock_gettime, clock, ts);
    if (r == 0 && clock != CLOCK_REALTIME) {
        int64_t ns = ts->tv_sec * INT64_C(1000000000) + ts->tv_nsec + ahead_ns;
        ts->tv_sec = (time_t)(ns / 1000000000);
        ts->tv_nsec = (long)(ns % 1000000000);
    }
    return r;
}

static void setup(void)
{
    fake_backend_start();
    cr_assert_eq(uv_loop_init(&loop), 0);
    cr_assert_eq(keep_new(&keep), 0);
    cr_assert_eq(volume_parse("fake:a", &volume, NULL), 0);
}

static void teardown(void)
{
    volume = volume_free(volume);
    keep_unref(keep);
    fake_backend_stop();
    cr_assert_eq(uv_loop_close(&loop), 0);
}

TestSuite(keep, .init = setup, .fini = teardown);

static void on_done(void *data, const struct err *err,
                    struct volume_result *result)
{
    (void)result;
    *(int *)data = err != NULL ? err->code : 0;
}

static int act(struct keep *with, enum volume_act what)
{
    int code = 1;
    struct volume_request request = {.act = what, .keep = with};
    cr_assert_eq(volume_submit(&loop, volume, &request, on_done, &code, NULL),
                 0);
    cr_assert_eq(uv_run(&loop, UV_RUN_DEFAULT), 0);
    return code;
}

static void on_closed(void *data)
{
    *(unsigned *)data += 1;
}

/* How often it called back. */
static unsigned closed(void)
{
    unsigned n_calls = 0;
    bool waits = keep_close(keep, &loop, on_closed, &n_calls);
    cr_assert_eq(n_calls, 0, "not from inside");
    cr_assert_eq(uv_run(&loop, UV_RUN_DEFAULT), 0);
    cr_assert_eq(n_calls, waits);
    return n_calls;
}

Test(keep, acts_in_turn_use_one_connection)
{
    for (unsigned i = 0; i < 3; i++) {
        cr_assert_eq(act(keep, VOLUME_PROBE), 0);
    }
    cr_assert_eq(fake_backend_made(), 1);
    cr_assert_eq(fake_backend_open(), 1);
    cr_assert_eq(closed(), 1);
    cr_assert_eq(fake_backend_open(), 0);
}

Test(keep, acts_without_it_keep_none)
{
    cr_assert_eq(act(NULL, VOLUME_PROBE), 0);
    cr_assert_eq(act(keep, VOLUME_SECRET), 0);
    cr_assert_eq(fake_backend_made(), 0, "nor does one that needs none");
    cr_assert_eq(closed(), 0);
}

Test(keep, doubted_one_is_replaced_and_let_go_of)
{
    cr_assert_eq(act(keep, VOLUME_PROBE), 0);
    volume->ops->bulk->doubt(volume);
    cr_assert_eq(fake_backend_open(), 1, "not by whoever doubts it");
    cr_assert_eq(act(keep, VOLUME_PROBE), 0);
    cr_assert_eq(fake_backend_made(), 2);
    cr_assert_eq(fake_backend_open(), 1);
    cr_assert_eq(closed(), 1);
    cr_assert_eq(fake_backend_open(), 0);
}

static void on_left(void *data)
{
    uv_sem_post(data);
}

/* An act that hangs, with the thread left alone. */
static void leave_one(uv_sem_t *ended)
{
    int code = 1;
    struct volume_work *work = NULL;
    struct volume_request request = {.act = VOLUME_PROBE, .keep = keep};
    cr_assert_eq(uv_sem_init(ended, 0), 0);
    fake_backend_fault(VOLUME_PROBE, 1, FAKE_HANG, -EIO);
    cr_assert_eq(volume_submit(&loop, volume, &request, on_done, &code, &work),
                 0);
    fake_backend_wait_hung();
    volume_work_doubt(work);
    volume_work_cancel(work, on_left, ended);
    cr_assert_eq(uv_run(&loop, UV_RUN_DEFAULT), 0);
    cr_assert_eq(volume_parse("fake:a", &volume, NULL), 0);
}

/* The thread tells, and frees what it has after that. */
static void go_on(uv_sem_t *ended)
{
    fake_backend_release();
    (void)uv_sem_wait(ended);
    uv_sem_destroy(ended);
}

Test(keep, what_a_thread_hangs_in_is_its_own)
{
    uv_sem_t ended;
    cr_assert_eq(act(keep, VOLUME_ANSWER), 0);
    leave_one(&ended);
    cr_assert_eq(fake_backend_open(), 1);
    void *held = NULL;
    cr_assert_eq(keep_begin(keep, volume, &held, NULL), 0);
    keep_end(keep, volume, held);
    cr_assert_eq(fake_backend_made(), 2, "nobody else gets it");
    cr_assert_eq(fake_backend_open(), 2, "nor is it taken away from there");
    go_on(&ended);
    cr_assert_eq(fake_backend_open(), 1);
    cr_assert_eq(closed(), 1);
    cr_assert_eq(fake_backend_open(), 0);
}

Test(keep, thread_that_outlives_it_gives_its_own_back)
{
    uv_sem_t ended;
    leave_one(&ended);
    cr_assert_eq(closed(), 0);
    keep_unref(TAKE_PTR(keep));
    cr_assert_eq(fake_backend_open(), 1);
    go_on(&ended);
    cr_assert_eq(fake_backend_open(), 0);
}

Test(keep, closed_one_takes_nothing_in)
{
    void *held = NULL;
    cr_assert_eq(keep_begin(keep, volume, &held, NULL), 0);
    cr_assert_eq(closed(), 0);
    keep_end(keep, volume, held);
    cr_assert_eq(fake_backend_open(), 0);
}

Test(keep, closing_is_bounded)
{
    unsigned n_calls = 0;
    fake_backend_hang_at_release();
    cr_assert_eq(act(keep, VOLUME_PROBE), 0);
    cr_assert(keep_close(keep, &loop, on_closed, &n_calls));
    cr_assert_eq(uv_run(&loop, UV_RUN_NOWAIT), 1);
    cr_assert_eq(n_calls, 0);
    ahead_ns += INT64_C(6000000000);
    cr_assert_eq(uv_run(&loop, UV_RUN_DEFAULT), 0);
    cr_assert_eq(n_calls, 1);
    fake_backend_release();
    while (fake_backend_open() > 0) {
        (void)sched_yield();
    }
}
