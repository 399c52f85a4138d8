/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <criterion/criterion.h>
#include <errno.h>
#include <sched.h>
#include <string.h>

#include "backends/backend.h"
#include "base/err.h"
#include "base/str.h"
#include "base/worker.h"
#include "fake/fake-backend.h"

static uv_loop_t loop;
static struct volume *volume;

struct heard {
    unsigned calls;
    int code;
    bool secret;
    bool free_it; /* frees the volume from within the callback */
    struct volume_info info;
};

static void on_done(void *data, const struct err *err,
                    struct volume_result *result)
{
    struct heard *heard = data;
    heard->calls++;
    heard->code = err != NULL ? err->code : 0;
    heard->info = result->info;
    heard->secret = result->secret != NULL;
    if (heard->free_it) {
        volume = volume_free(volume);
    }
}

static int submit(const struct volume_request *request, struct heard *heard,
                  struct volume_work **ret)
{
    return volume_submit(&loop, volume, request, on_done, heard, ret);
}

static struct heard done(const struct volume_request *request)
{
    struct heard heard = {0};
    cr_assert_eq(submit(request, &heard, NULL), 0);
    cr_assert_eq(heard.calls, 0, "not from inside the submit");
    cr_assert_eq(uv_run(&loop, UV_RUN_DEFAULT), 0);
    cr_assert_eq(heard.calls, 1);
    return heard;
}

static void setup(void)
{
    fake_backend_start();
    cr_assert_eq(uv_loop_init(&loop), 0);
    cr_assert_eq(volume_parse("fake:a", &volume, NULL), 0);
}

static void teardown(void)
{
    volume = volume_free(volume);
    fake_backend_stop();
    cr_assert_eq(uv_loop_close(&loop), 0);
}

TestSuite(backend, .init = setup, .fini = teardown);

static const struct volume_request probe = {.act = VOLUME_PROBE};
static const struct volume_request create = {
    .act = VOLUME_CREATE, .temp = "tmp", .size = 4096};

Test(backend, create_publish_probe_remove)
{
    struct heard made = done(&create);
    cr_assert(made.code == 0 && made.info.exists && made.info.zero);
    struct volume_request publish = {
        .act = VOLUME_PUBLISH, .temp = "tmp", .identity = made.info.identity};
    cr_assert_eq(done(&publish).code, 0);
    cr_assert_str_eq(done(&probe).info.identity, made.info.identity);
    struct volume_request remove = {.act = VOLUME_REMOVE,
                                    .identity = made.info.identity};
    cr_assert_eq(done(&remove).code, 0);
    cr_assert_eq(fake_backend_count(), 0);
}

Test(backend, error_reaches_the_callback)
{
    fake_backend_fault(VOLUME_PROBE, 2, FAKE_ERROR, -EACCES);
    cr_assert_eq(done(&probe).code, 0);
    cr_assert_eq(done(&probe).code, -EACCES);
    cr_assert_eq(done(&probe).code, 0);
}

Test(backend, lost_result_was_done_all_the_same)
{
    fake_backend_fault(VOLUME_CREATE, 1, FAKE_LOST, -ETIMEDOUT);
    cr_assert_eq(done(&create).code, -ETIMEDOUT);
    cr_assert(fake_backend_has("tmp"));
}

Test(backend, one_act_at_a_time)
{
    struct heard heard = {0};
    cr_assert_eq(submit(&probe, &heard, NULL), 0);
    cr_assert_eq(submit(&probe, &heard, NULL), -EBUSY);
    cr_assert_eq(uv_run(&loop, UV_RUN_DEFAULT), 0);
    cr_assert_eq(heard.calls, 1);
    cr_assert_eq(done(&probe).code, 0);
}

Test(backend, secret_is_handed_over)
{
    struct volume_request request = {.act = VOLUME_SECRET};
    cr_assert(done(&request).secret);
}

static void on_left(void *data)
{
    uv_sem_post(data);
}

Test(backend, cancelled_act_ends_unheard_and_tells_when)
{
    struct heard heard = {0};
    struct volume_work *work = NULL;
    uv_sem_t ended;
    cr_assert_eq(uv_sem_init(&ended, 0), 0);
    fake_backend_fault(VOLUME_CREATE, 1, FAKE_HANG, -EIO);
    cr_assert_eq(submit(&create, &heard, &work), 0);
    fake_backend_wait_hung();
    volume_work_cancel(work, on_left, &ended);
    volume = NULL; /* the work has it now */
    cr_assert_eq(uv_run(&loop, UV_RUN_DEFAULT), 0, "nothing is waited for");
    cr_assert_not(fake_backend_has("tmp"));
    cr_assert_eq(worker_n_hung(), 1);
    fake_backend_release();
    (void)uv_sem_wait(&ended);
    while (worker_n_hung() > 0) {
        (void)sched_yield();
    }
    cr_assert_eq(heard.calls, 0);
    cr_assert(fake_backend_has("tmp"), "what had begun was done");
    uv_sem_destroy(&ended);
}

static void on_counted(void *data)
{
    *(unsigned *)data += 1;
}

Test(backend, act_cancelled_when_it_has_ended_is_not_heard)
{
    struct heard heard = {0};
    struct volume_work *work = NULL;
    unsigned n_left = 0;
    cr_assert_eq(submit(&create, &heard, &work), 0);
    while (!fake_backend_has("tmp")) {
        (void)sched_yield();
    }
    volume_work_cancel(work, on_counted, &n_left);
    volume = NULL;
    while (n_left == 0) {
        (void)uv_run(&loop, UV_RUN_NOWAIT);
    }
    cr_assert_eq(uv_run(&loop, UV_RUN_DEFAULT), 0);
    cr_assert_eq(heard.calls, 0);
    cr_assert_eq(n_left, 1);
}

Test(backend, acts_that_hang_hold_up_no_others)
{
    struct heard heard = {0};
    struct volume *others[16] = {0};
    struct heard ignored = {0};
    for (unsigned i = 0; i < ARRAY_SIZE(others); i++) {
        fake_backend_fault(VOLUME_PROBE, 1, FAKE_HANG, -EIO);
        cr_assert_eq(volume_parse("fake:b", &others[i], NULL), 0);
        cr_assert_eq(
            volume_submit(&loop, others[i], &probe, on_done, &ignored, NULL),
            0);
    }
    cr_assert_eq(submit(&create, &heard, NULL), 0);
    while (heard.calls == 0) {
        (void)uv_run(&loop, UV_RUN_ONCE);
    }
    cr_assert(fake_backend_has("tmp"));
    cr_assert_eq(ignored.calls, 0);
    fake_backend_release();
    cr_assert_eq(uv_run(&loop, UV_RUN_DEFAULT), 0);
    cr_assert_eq(ignored.calls, ARRAY_SIZE(others));
    for (unsigned i = 0; i < ARRAY_SIZE(others); i++) {
        (void)volume_free(others[i]);
    }
}

Test(backend, questions_that_hang_are_few)
{
    struct volume_request request = {.act = VOLUME_ANSWER, .aside = true};
    struct volume *others[16] = {0};
    struct volume_work *works[16] = {0};
    struct heard ignored = {0};
    unsigned n_taken = 0;
    for (unsigned i = 0; i < ARRAY_SIZE(others); i++) {
        fake_backend_fault(VOLUME_PROBE, 1, FAKE_HANG, -EIO);
        cr_assert_eq(volume_parse("fake:b", &others[i], NULL), 0);
        int r = volume_submit(&loop, others[i], &request, on_done, &ignored,
                              &works[i]);
        cr_assert(r == 0 || r == -EAGAIN);
        n_taken += r == 0;
    }
    cr_assert_eq(n_taken, 8);
    fake_backend_wait_hung();
    volume_work_cancel(works[0], NULL,
                       NULL); /* it has its thread all the same */
    cr_assert_eq(
        volume_submit(&loop, others[8], &request, on_done, &ignored, NULL),
        -EAGAIN);
    struct heard heard = {0};
    cr_assert_eq(submit(&create, &heard, NULL), 0);
    while (heard.calls == 0) {
        (void)uv_run(&loop, UV_RUN_ONCE);
    }
    cr_assert(fake_backend_has("tmp"));
    fake_backend_release();
    cr_assert_eq(uv_run(&loop, UV_RUN_DEFAULT), 0);
    cr_assert_eq(ignored.calls, 7);
    cr_assert_eq(
        volume_submit(&loop, others[2], &request, on_done, &ignored, NULL), 0);
    cr_assert_eq(uv_run(&loop, UV_RUN_DEFAULT), 0);
    for (unsigned i = 1; i < ARRAY_SIZE(others); i++) {
        (void)volume_free(others[i]);
    }
}

Test(backend, callback_may_free_the_volume)
{
    struct heard heard = {.free_it = true};
    cr_assert_eq(submit(&probe, &heard, NULL), 0);
    cr_assert_eq(uv_run(&loop, UV_RUN_DEFAULT), 0);
    cr_assert_eq(heard.calls, 1);
    cr_assert_null(volume);
}

Test(backend, what_a_kind_cannot_do_is_told)
{
    volume = volume_free(volume);
    cr_assert_eq(volume_parse("block:/dev/null", &volume, NULL), 0);
    cr_assert_eq(done(&create).code, -ENOTSUP);
    struct volume_request remove = {.act = VOLUME_REMOVE, .temp = "tmp"};
    cr_assert_eq(done(&remove).code, -ENOTSUP);
    struct volume_request secret = {.act = VOLUME_SECRET};
    cr_assert_eq(done(&secret).code, 0);
}
