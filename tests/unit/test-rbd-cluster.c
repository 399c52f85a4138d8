/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What librados does, is asked of, and does not answer is in here. */
#include <criterion/criterion.h>
#include <errno.h>
#include <rados/librados.h>
#include <rbd/librbd.h>
#include <stdio.h>
#include <string.h>

#include "backends/backend.h"
#include "backends/bulk.h"
#include "backends/keep.h"
#include "base/err.h"

static uv_loop_t loop;
static struct keep *keep;
static struct volume *volume;

static struct {
    uv_mutex_t lock; /* of all that follows */
    uv_cond_t changed;
    unsigned n_made, n_open;
    unsigned n_connecting, meet; /* so many connect at the same time */
    unsigned n_hung;
    int connect, monitor, image; /* what is answered */
    bool hang;                   /* who opens an image */
} fake;

static int answer(const int *what)
{
    uv_mutex_lock(&fake.lock);
    int r = *what;
    uv_mutex_unlock(&fake.lock);
    return r;
}

static unsigned count(const unsigned *what)
{
    uv_mutex_lock(&fake.lock);
    unsigned n = *what;
    uv_mutex_unlock(&fake.lock);
    return n;
}

static void set_hang(bool hang)
{
    uv_mutex_lock(&fake.lock);
    fake.hang = hang;
    uv_cond_broadcast(&fake.changed);
    uv_mutex_unlock(&fake.lock);
}

/* --- in place of librados and librbd --- */

int rados_create(rados_t *ret, const char *const id)
{
    (void)id;
    uv_mutex_lock(&fake.lock);
    fake.n_made++;
    fake.n_open++;
    uv_mutex_unlock(&fake.lock);
    *ret = calloc(1, 1);
    return 0;
}

void rados_shutdown(rados_t cluster)
{
    uv_mutex_lock(&fake.lock);
    fake.n_open--;
    uv_mutex_unlock(&fake.lock);
    free(cluster); /* who uses it still is seen by a sanitizer */
}

int rados_conf_read_file(rados_t cluster, const char *path)
{
    (void)cluster;
    (void)path;
    return 0;
}

int rados_conf_get(rados_t cluster, const char *option, char *buffer, size_t n)
{
    (void)cluster;
    (void)option;
    (void)snprintf(buffer, n, "m");
    return 0;
}

int rados_conf_set(rados_t cluster, const char *option, const char *value)
{
    (void)cluster;
    (void)option;
    (void)value;
    return 0;
}

int rados_connect(rados_t cluster)
{
    (void)cluster;
    uv_mutex_lock(&fake.lock);
    fake.n_connecting++;
    uv_cond_broadcast(&fake.changed);
    while (fake.n_connecting < fake.meet) {
        uv_cond_wait(&fake.changed, &fake.lock);
    }
    int r = fake.connect;
    uv_mutex_unlock(&fake.lock);
    return r;
}

int rados_ioctx_create(rados_t cluster, const char *pool, rados_ioctx_t *ret)
{
    (void)pool;
    *ret = cluster;
    return 0;
}

void rados_ioctx_destroy(rados_ioctx_t io)
{
    cr_assert_eq(*(char *)io, 0);
}

int rados_cluster_fsid(rados_t cluster, char *buffer, size_t n)
{
    cr_assert_eq(*(char *)cluster, 0);
    return snprintf(buffer, n, "f");
}

int rados_mon_command(rados_t cluster, const char **cmd, size_t n,
                      const char *in, size_t in_length, char **out,
                      size_t *out_length, char **status, size_t *status_length)
{
    (void)cluster;
    (void)cmd;
    (void)n;
    (void)in;
    (void)in_length;
    *out = *status = NULL;
    *out_length = *status_length = 0;
    return answer(&fake.monitor);
}

void rados_buffer_free(char *buffer)
{
    free(buffer);
}

int rbd_open_read_only(rados_ioctx_t io, const char *name, rbd_image_t *ret,
                       const char *snapshot)
{
    (void)name;
    (void)snapshot;
    uv_mutex_lock(&fake.lock);
    fake.n_hung++;
    uv_cond_broadcast(&fake.changed);
    while (fake.hang) {
        uv_cond_wait(&fake.changed, &fake.lock);
    }
    fake.n_hung--;
    int r = fake.image;
    uv_mutex_unlock(&fake.lock);
    *ret = r == 0 ? io : NULL;
    return r;
}

int rbd_close(rbd_image_t image)
{
    return *(char *)image;
}

int rbd_get_size(rbd_image_t image, uint64_t *ret)
{
    *ret = 4096;
    return *(char *)image;
}

int rbd_get_id(rbd_image_t image, char *id, size_t n)
{
    (void)snprintf(id, n, "i");
    return *(char *)image;
}

ssize_t rbd_read(rbd_image_t image, uint64_t offset, size_t length,
                 char *buffer)
{
    (void)offset;
    memset(buffer, 0, length);
    return (ssize_t)length + *(char *)image;
}

/* --- the tests --- */

static void setup(void)
{
    memset(&fake, 0, sizeof(fake));
    cr_assert_eq(uv_mutex_init(&fake.lock), 0);
    cr_assert_eq(uv_cond_init(&fake.changed), 0);
    cr_assert_eq(uv_loop_init(&loop), 0);
    cr_assert_eq(keep_new(&keep), 0);
    cr_assert_eq(volume_parse("rbd:p/i", &volume, NULL), 0);
}

static void on_closed(void *data)
{
    (void)data;
}

/* However it went, nothing stays. */
static void teardown(void)
{
    (void)keep_close(keep, &loop, on_closed, NULL);
    cr_assert_eq(uv_run(&loop, UV_RUN_DEFAULT), 0);
    keep_unref(keep);
    volume = volume_free(volume);
    cr_assert_eq(uv_loop_close(&loop), 0);
    cr_assert_eq(fake.n_open, 0, "of %u", fake.n_made);
}

TestSuite(rbd_cluster, .init = setup, .fini = teardown);

static const struct volume_request request = {.act = VOLUME_ANSWER};

static void on_done(void *data, const struct err *err,
                    struct volume_result *result)
{
    (void)result;
    *(int *)data = err != NULL ? err->code : 0;
}

static void begin(struct volume *which, int *code, struct volume_work **ret)
{
    struct volume_request keeping = request;
    keeping.keep = keep;
    *code = 1;
    cr_assert_eq(volume_submit(&loop, which, &keeping, on_done, code, ret), 0);
}

static int ask(void)
{
    int code;
    begin(volume, &code, NULL);
    cr_assert_eq(uv_run(&loop, UV_RUN_DEFAULT), 0);
    return code;
}

Test(rbd_cluster, connection_is_made_once_and_kept)
{
    for (unsigned i = 0; i < 3; i++) {
        cr_assert_eq(ask(), 0);
    }
    cr_assert_eq(fake.n_made, 1);
    cr_assert_eq(fake.n_open, 1);
}

Test(rbd_cluster, another_user_has_another_one)
{
    cr_assert_eq(ask(), 0);
    volume = volume_free(volume);
    cr_assert_eq(volume_parse("rbd:p/i?id=me", &volume, NULL), 0);
    cr_assert_eq(ask(), 0);
    cr_assert_eq(fake.n_made, 2);
    cr_assert_eq(fake.n_open, 2);
}

Test(rbd_cluster, two_that_connect_at_once_share_in_the_end)
{
    struct volume *other = NULL;
    int codes[2];
    fake.meet = 2;
    cr_assert_eq(volume_parse("rbd:p/j", &other, NULL), 0);
    begin(volume, &codes[0], NULL);
    begin(other, &codes[1], NULL);
    cr_assert_eq(uv_run(&loop, UV_RUN_DEFAULT), 0);
    (void)volume_free(other);
    cr_assert(codes[0] == 0 && codes[1] == 0);
    cr_assert_eq(fake.n_open, 1);
}

Test(rbd_cluster, one_that_has_failed_is_thrown_away)
{
    cr_assert_eq(ask(), 0);
    fake.image = -ETIMEDOUT;
    cr_assert_eq(ask(), -ETIMEDOUT);
    cr_assert_eq(fake.n_open, 0);
    fake.image = 0;
    cr_assert_eq(ask(), 0);
    cr_assert_eq(fake.n_made, 2);
}

Test(rbd_cluster, absent_image_is_no_failure)
{
    fake.image = -ENOENT;
    cr_assert_eq(ask(), 0);
    cr_assert_eq(ask(), 0);
    cr_assert_eq(fake.n_made, 1);
}

Test(rbd_cluster, osd_that_answers_does_not_hide_a_dead_monitor)
{
    cr_assert_eq(ask(), 0);
    fake.monitor = -ETIMEDOUT;
    cr_assert_eq(ask(), -ETIMEDOUT);
    cr_assert_eq(fake.n_open, 0);
    fake.monitor = -EACCES; /* it may not be asked that, and says so */
    cr_assert_eq(ask(), 0);
}

Test(rbd_cluster, one_that_never_came_about_is_not_kept)
{
    fake.connect = -ETIMEDOUT;
    cr_assert_eq(ask(), -ETIMEDOUT);
    cr_assert_eq(fake.n_open, 0);
    fake.connect = 0;
    cr_assert_eq(ask(), 0);
    cr_assert_eq(fake.n_made, 2);
}

static void on_left(void *data)
{
    uv_sem_post(data);
}

Test(rbd_cluster, one_that_an_act_hangs_in_is_neither_used_nor_closed)
{
    uv_sem_t ended;
    int code;
    struct volume_work *work = NULL;
    cr_assert_eq(uv_sem_init(&ended, 0), 0);
    cr_assert_eq(ask(), 0);
    set_hang(true);
    begin(volume, &code, &work);
    while (count(&fake.n_hung) == 0) {
        (void)uv_run(&loop, UV_RUN_NOWAIT);
    }
    volume_work_doubt(work);
    volume_work_cancel(work, on_left, &ended);
    cr_assert_eq(volume_parse("rbd:p/i", &volume, NULL), 0);
    void *held = NULL;
    cr_assert_eq(keep_begin(keep, volume, &held, NULL), 0);
    keep_end(keep, volume, held);
    cr_assert_eq(count(&fake.n_made), 2);
    cr_assert_eq(count(&fake.n_open), 2);
    set_hang(false);
    (void)uv_sem_wait(&ended);
    uv_sem_destroy(&ended);
    cr_assert_eq(count(&fake.n_open), 1);
    cr_assert_eq(ask(), 0);
    cr_assert_eq(fake.n_made, 2);
}
