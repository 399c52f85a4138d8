/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A copy whose thread hangs, as on a mount whose server is dead: it opens a
 * pipe that nobody writes to.
 */
#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backends/backend.h"
#include "backends/volume.h"
#include "base/err.h"
#include "base/str.h"
#include "bulk/copy.h"
#include "bulk/resume.h"
#include "fake/scratch.h"

enum { SIZE = 3 << 20, SHORT_MS = 300, LONG_MS = 3600000 };

static char dir[SCRATCH_PATH];
static char volume[96];
static char target[96];
static char manifest[96];
static char part[96]; /* as which a manifest is written */
static uv_loop_t loop;
static struct copy *copy;

struct heard {
    unsigned ended;
    enum copy_outcome outcome;
    int code;
    char *text; /* of the error */
    json_t *last;
};

static void setup(void)
{
    scratch_make("copy", dir);
    (void)snprintf(volume, sizeof(volume), "%s/volume", dir);
    (void)snprintf(target, sizeof(target), "%s/target", dir);
    (void)snprintf(manifest, sizeof(manifest), "%s/manifest", dir);
    (void)snprintf(part, sizeof(part), "%s/manifest.part", dir);
    int fd = open(volume, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    cr_assert(fd >= 0 && ftruncate(fd, SIZE) == 0);
    (void)close(fd);
    cr_assert_eq(mkfifo(manifest, 0600), 0);
    cr_assert_eq(mkfifo(part, 0600), 0);
    cr_assert_eq(uv_loop_init(&loop), 0);
}

static void teardown(void)
{
    cr_assert_eq(uv_loop_close(&loop), 0, "something is still open");
}

TestSuite(copy, .init = setup, .fini = teardown, .timeout = 30);

static void on_event(void *data, const json_t *event)
{
    struct heard *heard = data;
    json_decref(heard->last);
    heard->last = json_deep_copy(event);
}

static void on_ended(void *data, enum copy_outcome outcome,
                     const struct err *err)
{
    struct heard *heard = data;
    heard->ended++;
    heard->outcome = outcome;
    heard->code = err != NULL ? err->code : 0;
    heard->text = err != NULL ? err_text(err) : NULL;
}

static bool cleans;

static void start(enum copy_kind kind, uint64_t stall_ms, struct heard *heard)
{
    struct copy_options options = {.kind = kind,
                                   .source = volume,
                                   .target = kind == COPY_COPY ? target : NULL,
                                   .state_dir = dir,
                                   .manifest = manifest,
                                   .clean = cleans,
                                   .stall_ms = stall_ms};
    struct copy_callbacks callbacks = {
        .data = heard, .event = on_event, .ended = on_ended};
    cr_assert_eq(copy_start(&loop, &options, &callbacks, &copy, NULL), 0);
    cr_assert_eq(heard->ended, 0, "not from inside the call");
}

static void done(struct heard *heard)
{
    free(heard->text);
    json_decref(heard->last);
}

static unsigned n_threads(void)
{
    unsigned n = 0;
    DIR *tasks = opendir("/proc/self/task");
    cr_assert_not_null(tasks);
    while (readdir(tasks) != NULL) {
        n++;
    }
    (void)closedir(tasks);
    return n;
}

/* The pipe's other end: what hangs goes on, and ends by itself. */
static void release(const char *pipe, int flags, unsigned n_before)
{
    char bytes[512];
    int fd = open(pipe, flags | O_CLOEXEC);
    cr_assert_geq(fd, 0);
    while (flags == O_RDONLY && read(fd, bytes, sizeof(bytes)) > 0) {
    }
    (void)close(fd);
    while (n_threads() > n_before) {
        (void)sched_yield();
    }
}

Test(copy, a_comparison_that_hangs_fails_in_time)
{
    struct heard heard = {0};
    unsigned n = n_threads();
    start(COPY_VERIFY, SHORT_MS, &heard);
    cr_assert_eq(uv_run(&loop, UV_RUN_DEFAULT), 0, "it is waited for");
    cr_assert_eq(heard.ended, 1);
    cr_assert_eq(heard.outcome, COPY_FAILED);
    cr_assert_eq(heard.code, -ETIMEDOUT);
    cr_assert_not_null(strstr(heard.text, "does not answer"), "%s", heard.text);
    cr_assert_str_eq(json_string_value(json_object_get(heard.last, "event")),
                     "failed");
    release(manifest, O_WRONLY, n);
    cr_assert_eq(uv_run(&loop, UV_RUN_DEFAULT), 0);
    cr_assert_eq(heard.ended, 1);
    done(&heard);
}

/* Its manifest is written last: what was copied is told. */
Test(copy, a_copy_that_hangs_fails_in_time_and_tells_what_it_did)
{
    struct heard heard = {0};
    unsigned n = n_threads();
    start(COPY_COPY, SHORT_MS, &heard);
    cr_assert_eq(uv_run(&loop, UV_RUN_DEFAULT), 0, "it is waited for");
    cr_assert_eq(heard.ended, 1);
    cr_assert_eq(heard.outcome, COPY_FAILED);
    cr_assert_eq(heard.code, -ETIMEDOUT);
    cr_assert_eq(json_integer_value(json_object_get(heard.last, "size")), SIZE);
    release(part, O_RDONLY, n);
    done(&heard);
}

static void on_timer(uv_timer_t *timer)
{
    copy_cancel(timer->data);
    uv_close((uv_handle_t *)timer, NULL);
}

Test(copy, one_that_hangs_and_is_cancelled_ends)
{
    struct heard heard = {0};
    uv_timer_t timer;
    unsigned n = n_threads();
    start(COPY_VERIFY, SHORT_MS, &heard);
    (void)uv_timer_init(&loop, &timer);
    timer.data = copy;
    (void)uv_timer_start(&timer, on_timer, 0, 0);
    cr_assert_eq(uv_run(&loop, UV_RUN_DEFAULT), 0, "it is waited for");
    cr_assert_eq(heard.ended, 1);
    cr_assert_eq(heard.outcome, COPY_FAILED);
    cr_assert(heard.code == -ECANCELED || heard.code == -ETIMEDOUT);
    release(manifest, O_WRONLY, n);
    done(&heard);
}

Test(copy, one_that_goes_on_is_let)
{
    struct heard heard = {0};
    cr_assert_eq(unlink(manifest), 0);
    cr_assert_eq(unlink(part), 0);
    start(COPY_COPY, LONG_MS, &heard);
    cr_assert_eq(uv_run(&loop, UV_RUN_DEFAULT), 0);
    cr_assert_eq(heard.outcome, COPY_DONE, "%s", heard.text);
    cr_assert_eq(access(manifest, R_OK), 0);
    done(&heard);
}

/* A file that is removed as slowly as a large image of objects. */
static char gate[96];
static struct backend_ops slow;
static int (*remove_file)(struct volume *volume, const char *temp,
                          const char *identity, struct err **errp);
static int64_t done_when_removed = -1;

static int slow_remove(struct volume *slow_volume, const char *temp,
                       const char *identity, struct err **errp)
{
    json_auto_t *records = records_list(dir, NULL);
    done_when_removed = json_integer_value(
        json_object_get(json_array_get(records, 0), "bytes_done"));
    int fd = open(gate, O_RDONLY | O_CLOEXEC);
    (void)close(fd);
    return remove_file(slow_volume, temp, identity, errp);
}

int __real_volume_parse(const char *uri, struct volume **ret,
                        struct err **errp);
int __wrap_volume_parse(const char *uri, struct volume **ret,
                        struct err **errp);

int __wrap_volume_parse(const char *uri, struct volume **ret, struct err **errp)
{
    int r = __real_volume_parse(uri, ret, errp);
    if (r == 0 && *gate != '\0' && str_eq(uri, target)) {
        slow = *(*ret)->ops;
        remove_file = slow.remove;
        slow.remove = slow_remove;
        (*ret)->ops = &slow;
    }
    return r;
}

static void on_gate_timer(uv_timer_t *timer)
{
    int fd = open(gate, O_WRONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd >= 0) {
        (void)close(fd);
        uv_close((uv_handle_t *)timer, NULL);
    }
}

/* Cut short, the removal must leave no record that vouches for the content. */
Test(copy, a_target_is_forgotten_first_and_removed_to_the_end)
{
    struct heard heard = {0};
    uv_timer_t timer;
    (void)snprintf(gate, sizeof(gate), "%s/gate", dir);
    cr_assert_eq(mkfifo(gate, 0600), 0);
    (void)snprintf(manifest, sizeof(manifest), "%s/none/manifest", dir);
    cleans = true;
    start(COPY_COPY, SHORT_MS, &heard);
    (void)uv_timer_init(&loop, &timer);
    (void)uv_timer_start(&timer, on_gate_timer, 10 * SHORT_MS, SHORT_MS);
    cr_assert_eq(uv_run(&loop, UV_RUN_DEFAULT), 0);
    cr_assert_eq(done_when_removed, 0, "%lld", (long long)done_when_removed);
    cr_assert_eq(heard.ended, 1);
    cr_assert_eq(heard.code, -ENOENT, "it was left: %s", heard.text);
    cr_assert_neq(access(target, F_OK), 0);
    json_auto_t *records = records_list(dir, NULL);
    cr_assert_eq(json_array_size(records), 0);
    done(&heard);
}

/* It was told that what is copied is kept. */
Test(copy, one_that_was_left_removes_nothing_later)
{
    struct heard heard = {0};
    unsigned n = n_threads();
    cleans = true;
    start(COPY_COPY, SHORT_MS, &heard);
    cr_assert_eq(uv_run(&loop, UV_RUN_DEFAULT), 0, "it is waited for");
    cr_assert_eq(heard.code, -ETIMEDOUT);
    cr_assert_not_null(
        strstr(json_string_value(json_object_get(
                   json_object_get(heard.last, "error"), "hint")),
               "is kept"));
    release(part, O_RDONLY, n); /* no pipe can be flushed: it fails */
    cr_assert_eq(access(target, F_OK), 0, "it was removed");
    json_auto_t *records = records_list(dir, NULL);
    cr_assert_eq(json_array_size(records), 1);
    done(&heard);
}

/* --- as a step has it --- */

static void copy_for_step(const char *identity, struct heard *heard)
{
    struct copy_options options = {.kind = COPY_COPY,
                                   .source = volume,
                                   .target = target,
                                   .state_dir = dir,
                                   .key = "qpv-abc123-d0",
                                   .identity = identity,
                                   .bytes = true,
                                   .frozen = true,
                                   .blank = true,
                                   .existing = true};
    struct copy_callbacks callbacks = {
        .data = heard, .event = on_event, .ended = on_ended};
    cr_assert_eq(copy_start(&loop, &options, &callbacks, &copy, NULL), 0);
    cr_assert_eq(uv_run(&loop, UV_RUN_DEFAULT), 0);
    cr_assert_eq(heard->ended, 1);
}

/* A header of qcow2 is bytes like others, and holes are no zeroes to write. */
Test(copy, a_step_copies_bytes_onto_the_very_target_that_it_made)
{
    static const char bytes[8] = {'Q', 'F', 'I', '\xfb', 0, 0, 0, 3};
    struct heard other = {0}, ours = {0};
    struct volume *made = NULL;
    struct volume_info info;
    char there[sizeof(bytes)];
    int fd = open(volume, O_RDWR | O_CLOEXEC);
    cr_assert(pwrite(fd, bytes, sizeof(bytes), 0) == (ssize_t)sizeof(bytes));
    (void)close(fd);
    fd = open(target, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    cr_assert(fd >= 0 && ftruncate(fd, SIZE) == 0);
    volume_info_init(&info);
    cr_assert_eq(__real_volume_parse(target, &made, NULL), 0);
    cr_assert_eq(made->ops->probe(made, &info, NULL), 0);
    (void)volume_free(made);
    copy_for_step("somebody's", &other);
    cr_assert_eq(other.code, -ESTALE, "%s", other.text);
    cr_assert(pread(fd, there, sizeof(there), 0) == (ssize_t)sizeof(there));
    cr_assert_eq(there[0], 0, "it was written to");
    copy_for_step(info.identity, &ours);
    cr_assert_eq(ours.outcome, COPY_DONE, "%s", ours.text);
    cr_assert(pread(fd, there, sizeof(there), 0) == (ssize_t)sizeof(there));
    cr_assert_arr_eq(there, bytes, sizeof(bytes));
    cr_assert_lt(
        json_integer_value(json_object_get(ours.last, "bytes_written")),
        SIZE / 2);
    (void)close(fd);
    json_auto_t *records = records_list(dir, NULL);
    cr_assert_eq(json_array_size(records), 0);
    cr_assert_neq(access(dir, F_OK), -1);
    done(&other);
    done(&ours);
}
