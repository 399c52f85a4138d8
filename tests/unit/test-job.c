/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <criterion/criterion.h>
#include <errno.h>

#include "base/err.h"
#include "vm/job.h"

TestSuite(job, .timeout = 10);

static int parse(struct job_list *list, const char *jobs, const char *blocks)
{
    json_auto_t *a = json_loads(jobs, JSON_DECODE_ANY, NULL);
    json_auto_t *b = json_loads(blocks, JSON_DECODE_ANY, NULL);
    return job_list_init(list, a, b, NULL);
}

Test(job, both_replies_are_put_together_by_id)
{
    struct job_list list = {0};
    int r = parse(&list,
                  "[{\"id\":\"m\",\"type\":\"mirror\",\"status\":\"paused\","
                  "\"current-progress\":5,\"total-progress\":9},"
                  "{\"id\":\"c\",\"type\":\"create\",\"status\":\"concluded\","
                  "\"current-progress\":0,\"total-progress\":1,"
                  "\"error\":\"No space left\"}]",
                  "[{\"device\":\"m\",\"io-status\":\"nospace\",\"speed\":7,"
                  "\"actively-synced\":true},{\"device\":\"x\"}]");
    cr_assert_eq(r, 0);
    cr_assert_eq(list.n_jobs, 2);
    const struct job *job = job_list_find(&list, "m");
    cr_assert_eq(job->status, JOB_PAUSED);
    cr_assert_eq(job->offset, 5);
    cr_assert_eq(job->len, 9);
    cr_assert_eq(job->speed, 7);
    cr_assert(job->no_space);
    cr_assert(!job->io_error);
    cr_assert(job->actively_synced);
    cr_assert_null(job->error);
    cr_assert_str_eq(job_list_find(&list, "c")->error, "No space left");
    cr_assert_null(job_list_find(&list, "x"));
    job_list_done(&list);
    job_list_done(&list); /* twice is fine */
}

Test(job, every_state_has_its_name_back)
{
    for (int i = JOB_CREATED; i < JOB_OTHER; i++) {
        struct job_list list = {0};
        json_auto_t *jobs =
            json_pack("[{s:s, s:s, s:s}]", "id", "j", "type", "mirror",
                      "status", job_status_name((enum job_status)i));
        cr_assert_eq(job_list_init(&list, jobs, NULL, NULL), 0);
        cr_assert_eq(list.jobs[0].status, (enum job_status)i);
        job_list_done(&list);
    }
}

Test(job, a_state_of_a_later_qemu_is_another)
{
    struct job_list list = {0};
    cr_assert_eq(parse(&list,
                       "[{\"id\":\"j\",\"type\":\"t\",\"status\":\"new\","
                       "\"current-progress\":-7,\"total-progress\":\"x\"}]",
                       "[]"),
                 0);
    cr_assert_eq(list.jobs[0].status, JOB_OTHER);
    cr_assert_eq(list.jobs[0].offset, 0);
    cr_assert_eq(list.jobs[0].len, 0);
    job_list_done(&list);
}

Test(job, replies_that_are_none_are_refused_or_passed_over)
{
    static const char *const bad[] = {
        "{}",
        "7",
        "null",
        "[7]",
        "[{\"id\":\"j\"}]",
        "[{\"id\":1,\"type\":\"t\",\"status\":\"ready\"}]",
    };
    struct job_list list = {0};
    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        cr_assert_eq(parse(&list, bad[i], "[]"), -EPROTO, "%s", bad[i]);
        cr_assert_eq(list.n_jobs, 0);
    }
    cr_assert_eq(parse(&list, "[]", "{\"a\":7}"), 0);
    job_list_done(&list);
    cr_assert_eq(parse(&list, "[]", "[7, {\"device\":[]}, null]"), 0);
    job_list_done(&list);
}

Test(job, too_many_are_refused)
{
    json_auto_t *jobs = json_array();
    for (int i = 0; i <= 4096; i++) {
        (void)json_array_append_new(jobs,
                                    json_pack("{s:s, s:s, s:s}", "id", "j",
                                              "type", "t", "status", "ready"));
    }
    struct job_list list = {0};
    cr_assert_eq(job_list_init(&list, jobs, NULL, NULL), -EPROTO);
}
