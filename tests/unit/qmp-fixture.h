/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* One loop, one fake QEMU and one connection to it, for the tests of qmp/. */
#pragma once

#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/err.h"
#include "fake/fake-qmp.h"
#include "qmp/qmp.h"

struct fixture {
    uv_loop_t loop;
    struct fake_qmp *fake;
    struct qmp *qmp;
    bool opened; /* the callback came */
    int open_code;
    char *open_text;
    unsigned n_lost;
    char *lost_text;
    unsigned n_stalled;
    unsigned n_flowing;
    bool closed;
    bool close_on_lost;
};

/* What a reply brought. */
struct reply {
    unsigned n; /* how often it came */
    int code;
    char *class;
    char *text;
    json_t *result;
    unsigned order; /* among all replies */
};

static unsigned n_replies;

static inline void reply_on_result(void *data, const struct err *err,
                                   json_t *result)
{
    struct reply *reply = data;
    reply->n++;
    reply->order = ++n_replies;
    if (err != NULL) {
        cr_assert_null(result);
        reply->code = err->code;
        reply->class = err->class ? strdup(err->class) : NULL;
        reply->text = err_text(err);
    } else {
        reply->result = json_incref(result);
    }
}

static inline void reply_done(struct reply *reply)
{
    free(reply->class);
    free(reply->text);
    json_decref(reply->result);
    *reply = (struct reply){0};
}

static inline void fixture_on_open(void *data, const struct err *err)
{
    struct fixture *f = data;
    cr_assert(!f->opened);
    f->opened = true;
    f->open_code = err ? err->code : 0;
    f->open_text = err ? err_text(err) : NULL;
}

static inline void fixture_on_stalled(void *data, const char *command)
{
    struct fixture *f = data;
    cr_assert_not_null(command);
    f->n_stalled++;
}

static inline void fixture_on_flowing(void *data)
{
    struct fixture *f = data;
    f->n_flowing++;
}

static inline void fixture_on_close(void *data)
{
    struct fixture *f = data;
    f->closed = true;
    f->qmp = NULL;
}

static inline void fixture_on_lost(void *data, const struct err *err)
{
    struct fixture *f = data;
    f->n_lost++;
    free(f->lost_text);
    f->lost_text = err_text(err);
    if (f->close_on_lost) {
        qmp_close(f->qmp, fixture_on_close, f);
    }
}

/* Without a condition that comes true, the suite's time-out ends it. */
#define fixture_until(f, condition)                                            \
    do {                                                                       \
        while (!(condition)) {                                                 \
            (void)uv_run(&(f)->loop, UV_RUN_ONCE);                             \
        }                                                                      \
    } while (0)

/* The fake, if 'options' (whose loop is filled in) is given. */
static inline void fixture_init(struct fixture *f,
                                struct fake_qmp_options *options)
{
    *f = (struct fixture){0};
    cr_assert_eq(uv_loop_init(&f->loop), 0);
    if (options != NULL) {
        options->loop = &f->loop;
        cr_assert_eq(fake_qmp_new(options, &f->fake), 0);
    }
}

/* 'address' NULL: the fake's. The loop of 'options' is filled in. */
static inline void fixture_connect(struct fixture *f, const char *address,
                                   struct qmp_options options)
{
    static const struct qmp_owner template = {
        .lost = fixture_on_lost,
        .stalled = fixture_on_stalled,
        .flowing = fixture_on_flowing,
    };
    struct qmp_owner owner = template;
    owner.data = f;
    struct qmp_addr *addr = NULL;
    struct err *err = NULL;
    address = address ? address : fake_qmp_address(f->fake);
    cr_assert_eq(qmp_addr_parse(address, &addr, &err), 0);
    options.loop = &f->loop;
    options.addr = addr;
    cr_assert_eq(qmp_open(&options, &owner, fixture_on_open, f, &f->qmp, &err),
                 0);
    cr_assert(!f->opened, "never from inside the submit");
    (void)qmp_addr_free(addr); /* it was copied */
}

static inline void fixture_open(struct fixture *f,
                                struct fake_qmp_options *fake,
                                struct qmp_options options)
{
    fixture_init(f, fake);
    fixture_connect(f, NULL, options);
    fixture_until(f, f->opened);
    cr_assert_eq(f->open_code, 0, "%s", f->open_text);
}

static inline void fixture_done(struct fixture *f)
{
    if (f->qmp != NULL && !f->closed) {
        qmp_close(f->qmp, fixture_on_close, f);
        cr_assert(!f->closed, "never from inside the submit");
        fixture_until(f, f->closed);
    }
    if (f->fake != NULL) {
        f->fake = fake_qmp_close(f->fake);
    }
    (void)uv_run(&f->loop, UV_RUN_DEFAULT);
    cr_assert_eq(uv_loop_close(&f->loop), 0, "a handle was left open");
    free(f->open_text);
    free(f->lost_text);
}
