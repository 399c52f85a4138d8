/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "unit/qmp-fixture.h"

#include <sys/socket.h>
#include <unistd.h>

TestSuite(conn, .timeout = 10);

static const struct qmp_options SOON = {.greeting_timeout_ms = 50};

static void close_on_error(void *data, const struct err *err, json_t *result)
{
    struct fixture *f = data;
    cr_assert_not_null(err);
    qmp_close(f->qmp, fixture_on_close, f);
}

Test(conn, opens_with_oob_where_it_is_offered)
{
    struct fixture f;
    struct fake_qmp_options fake = {0};
    fixture_open(&f, &fake, (struct qmp_options){0});
    cr_assert(qmp_has_oob(f.qmp));
    cr_assert_str_eq(qmp_version(f.qmp), "7.2.22 (fake)");
    cr_assert_str_eq(qmp_name(f.qmp), fake_qmp_address(f.fake));
    cr_assert_eq(qmp_peer_pid(f.qmp), getpid());
    cr_assert_geq(qmp_fd(f.qmp), 0);
    cr_assert_eq(fake_qmp_count(f.fake, "qmp_capabilities"), 1);
    fixture_done(&f);
}

Test(conn, opens_without_oob_where_it_is_not)
{
    struct fixture f;
    struct fake_qmp_options fake = {.no_oob = true};
    fixture_open(&f, &fake, (struct qmp_options){0});
    cr_assert(!qmp_has_oob(f.qmp));
    struct reply reply = {0};
    const struct qmp_call_options oob = {.oob = true};
    cr_assert_eq(
        qmp_execute(f.qmp, "yank", NULL, &oob, reply_on_result, &reply, NULL),
        -ENOTSUP);
    fixture_done(&f);
    cr_assert_eq(reply.n, 0);
}

Test(conn, opens_byte_by_byte_and_pretty)
{
    struct fixture f;
    struct fake_qmp_options fake = {.byte_by_byte = true, .pretty = true};
    fixture_open(&f, &fake, (struct qmp_options){0});
    struct reply reply = {0};
    cr_assert_eq(
        qmp_execute(f.qmp, "stop", NULL, NULL, reply_on_result, &reply, NULL),
        0);
    fixture_until(&f, reply.n > 0);
    cr_assert_eq(reply.code, 0);
    reply_done(&reply);
    fixture_done(&f);
}

Test(conn, missing_socket_is_enoent_and_comes_from_the_loop)
{
    struct fixture f;
    fixture_init(&f, NULL);
    fixture_connect(&f, "unix:/nonexistent/qmp", (struct qmp_options){0});
    fixture_until(&f, f.opened);
    cr_assert_eq(f.open_code, -ENOENT);
    cr_assert_not_null(strstr(f.open_text, "unix:/nonexistent/qmp: "));
    cr_assert_eq(f.n_lost, 0);
    fixture_done(&f);
}

Test(conn, silence_instead_of_a_greeting_is_busy)
{
    struct fixture f;
    struct fake_qmp_options fake = {.no_greeting = true};
    fixture_init(&f, &fake);
    fixture_connect(&f, NULL, SOON);
    fixture_until(&f, f.opened);
    cr_assert_eq(f.open_code, -EBUSY);
    fixture_done(&f);
}

Test(conn, a_second_client_finds_the_monitor_busy)
{
    struct fixture f;
    struct fake_qmp_options fake = {0};
    fixture_open(&f, &fake, (struct qmp_options){0});
    struct qmp *first = f.qmp;
    f.opened = false;
    fixture_connect(&f, NULL, SOON);
    fixture_until(&f, f.opened);
    cr_assert_eq(f.open_code, -EBUSY);
    qmp_close(first, NULL, NULL);
    fixture_done(&f);
}

Test(conn, greeting_without_negotiation_is_hung_not_busy)
{
    struct fixture f;
    struct fake_qmp_options fake = {.no_capabilities = true};
    fixture_init(&f, &fake);
    fixture_connect(&f, NULL, SOON);
    fixture_until(&f, f.opened);
    cr_assert_eq(f.open_code, -ETIMEDOUT);
    fixture_done(&f);
}

Test(conn, refused_negotiation_is_told_in_qemus_words)
{
    struct fixture f;
    struct fake_qmp_options fake = {0};
    fixture_init(&f, &fake);
    fake_qmp_fault(f.fake, "qmp_capabilities", 0, FAKE_ERROR);
    fixture_connect(&f, NULL, (struct qmp_options){0});
    fixture_until(&f, f.opened);
    cr_assert_eq(f.open_code, -EREMOTEIO);
    cr_assert_not_null(strstr(f.open_text, "injected"), "%s", f.open_text);
    fixture_done(&f);
}

Test(conn, what_is_no_qmp_is_refused_with_an_excerpt)
{
    struct fixture f;
    struct fake_qmp_options fake = {.no_greeting = true};
    fixture_init(&f, &fake);
    fixture_connect(&f, NULL, (struct qmp_options){0});
    fixture_until(&f, fake_qmp_has_client(f.fake));
    fake_qmp_raw(f.fake, "SSH-2.0-x\r\n", 11);
    fixture_until(&f, f.opened);
    cr_assert_eq(f.open_code, -EBADMSG);
    cr_assert_not_null(strstr(f.open_text, "SSH-2.0-x"), "%s", f.open_text);
    fixture_done(&f);
}

Test(conn, a_reply_for_the_client_before_us_is_no_greeting)
{
    struct fixture f;
    struct fake_qmp_options fake = {.no_greeting = true};
    fixture_init(&f, &fake);
    fixture_connect(&f, NULL, (struct qmp_options){0});
    fixture_until(&f, fake_qmp_has_client(f.fake));
    static const char text[] =
        "{\"return\":{},\"id\":\"qpv-00000000-1\"}\r\n"
        "{\"QMP\":{\"version\":{\"qemu\":{\"major\":11}},"
        "\"capabilities\":[]}}\r\n";
    fake_qmp_raw(f.fake, text, strlen(text));
    fixture_until(&f, f.opened);
    cr_assert_eq(f.open_code, 0, "%s", f.open_text);
    cr_assert_str_eq(qmp_version(f.qmp), "11.0.0");
    fixture_done(&f);
}

Test(conn, a_peer_that_hangs_up_is_lost_once_and_calls_know_first)
{
    struct fixture f;
    struct fake_qmp_options fake = {0};
    fixture_open(&f, &fake, (struct qmp_options){0});
    struct reply reply = {0};
    fake_qmp_fault(f.fake, "quit", 0, FAKE_CLOSE);
    cr_assert_eq(
        qmp_execute(f.qmp, "quit", NULL, NULL, reply_on_result, &reply, NULL),
        0);
    fixture_until(&f, f.n_lost > 0);
    cr_assert_eq(reply.n, 1);
    cr_assert_eq(reply.code, -ECONNRESET);
    cr_assert_eq(f.n_lost, 1);
    cr_assert_eq(qmp_fd(f.qmp), -1);
    cr_assert_eq(
        qmp_execute(f.qmp, "stop", NULL, NULL, reply_on_result, &reply, NULL),
        -ENOTCONN);
    reply_done(&reply);
    fixture_done(&f);
    cr_assert_eq(f.n_lost, 1);
}

Test(conn, whoever_is_told_of_the_loss_may_close)
{
    struct fixture f;
    struct fake_qmp_options fake = {0};
    fixture_open(&f, &fake, (struct qmp_options){0});
    f.close_on_lost = true;
    fake_qmp_hang_up(f.fake);
    fixture_until(&f, f.closed);
    cr_assert_eq(f.n_lost, 1);
    fixture_done(&f);
}

Test(conn, a_call_that_learns_of_the_loss_may_close)
{
    struct fixture f;
    struct fake_qmp_options fake = {0};
    fixture_open(&f, &fake, (struct qmp_options){0});
    struct reply second = {0};
    fake_qmp_fault(f.fake, "stop", 0, FAKE_DONE_CLOSE);
    cr_assert_eq(
        qmp_execute(f.qmp, "stop", NULL, NULL, close_on_error, &f, NULL), 0);
    cr_assert_eq(
        qmp_execute(f.qmp, "cont", NULL, NULL, reply_on_result, &second, NULL),
        0);
    fixture_until(&f, f.closed);
    cr_assert_eq(second.n, 1);
    cr_assert_eq(f.n_lost, 0, "it closed: it need not be told");
    reply_done(&second);
    fixture_done(&f);
}

Test(conn, malformed_reply_loses_the_connection)
{
    struct fixture f;
    struct fake_qmp_options fake = {0};
    fixture_open(&f, &fake, (struct qmp_options){0});
    struct reply reply = {0};
    fake_qmp_fault(f.fake, NULL, 0, FAKE_MALFORMED);
    cr_assert_eq(
        qmp_execute(f.qmp, "stop", NULL, NULL, reply_on_result, &reply, NULL),
        0);
    fixture_until(&f, f.n_lost > 0);
    cr_assert_eq(reply.code, -EBADMSG);
    cr_assert_not_null(strstr(f.lost_text, "oops"), "%s", f.lost_text);
    reply_done(&reply);
    fixture_done(&f);
}

Test(conn, message_beyond_the_bound_loses_the_connection)
{
    struct fixture f;
    struct fake_qmp_options fake = {0};
    fixture_open(&f, &fake, (struct qmp_options){.max_message = 100000});
    struct reply reply = {0};
    fake_qmp_fault(f.fake, NULL, 0, FAKE_HUGE);
    cr_assert_eq(
        qmp_execute(f.qmp, "stop", NULL, NULL, reply_on_result, &reply, NULL),
        0);
    fixture_until(&f, f.n_lost > 0);
    cr_assert_eq(reply.code, -EMSGSIZE);
    reply_done(&reply);
    fixture_done(&f);
}

Test(conn, huge_message_within_the_bound_is_read)
{
    struct fixture f;
    struct fake_qmp_options fake = {0};
    fixture_open(&f, &fake, (struct qmp_options){0});
    struct reply reply = {0};
    fake_qmp_fault(f.fake, NULL, 0, FAKE_HUGE);
    cr_assert_eq(
        qmp_execute(f.qmp, "stop", NULL, NULL, reply_on_result, &reply, NULL),
        0);
    fixture_until(&f, reply.n > 0);
    cr_assert_eq(json_string_length(json_object_get(reply.result, "huge")),
                 1 << 20);
    reply_done(&reply);
    fixture_done(&f);
}

Test(conn, close_cancels_what_is_pending_before_its_callback)
{
    struct fixture f;
    struct fake_qmp_options fake = {0};
    fixture_open(&f, &fake, (struct qmp_options){0});
    struct reply replies[12] = {0};
    for (unsigned i = 0; i < 12; i++) {
        fake_qmp_fault(f.fake, NULL, 0, FAKE_SILENCE);
        cr_assert_eq(qmp_execute(f.qmp, "stop", NULL, NULL, reply_on_result,
                                 &replies[i], NULL),
                     0);
    }
    qmp_close(f.qmp, fixture_on_close, &f);
    cr_assert_eq(replies[0].n, 0, "never from inside the submit");
    fixture_until(&f, f.closed);
    for (unsigned i = 0; i < 12; i++) {
        cr_assert_eq(replies[i].n, 1);
        cr_assert_eq(replies[i].code, -ECANCELED);
        reply_done(&replies[i]);
    }
    cr_assert_eq(f.n_lost, 0);
    fixture_done(&f);
}

Test(conn, close_while_opening_cancels_the_open)
{
    struct fixture f;
    struct fake_qmp_options fake = {.no_greeting = true};
    fixture_init(&f, &fake);
    fixture_connect(&f, NULL, (struct qmp_options){0});
    qmp_close(f.qmp, fixture_on_close, &f);
    fixture_until(&f, f.closed);
    cr_assert(f.opened);
    cr_assert_eq(f.open_code, -ECANCELED);
    fixture_done(&f);
}

static void close_on_reply(void *data, const struct err *err, json_t *result)
{
    struct fixture *f = data;
    cr_assert_null(err);
    qmp_close(f->qmp, fixture_on_close, f);
}

Test(conn, a_callback_may_close_the_connection)
{
    struct fixture f;
    struct fake_qmp_options fake = {0};
    fixture_open(&f, &fake, (struct qmp_options){0});
    struct reply second = {0};
    cr_assert_eq(
        qmp_execute(f.qmp, "stop", NULL, NULL, close_on_reply, &f, NULL), 0);
    cr_assert_eq(
        qmp_execute(f.qmp, "cont", NULL, NULL, reply_on_result, &second, NULL),
        0);
    fixture_until(&f, f.closed);
    cr_assert_eq(second.code, -ECANCELED);
    reply_done(&second);
    fixture_done(&f);
}

static void close_on_event(void *data, const char *name, const json_t *event)
{
    struct fixture *f = data;
    qmp_close(f->qmp, fixture_on_close, f);
}

static void count_event(void *data, const char *name, const json_t *event)
{
    unsigned *n = data;
    (*n)++;
}

Test(conn, an_event_callback_may_close_the_connection)
{
    struct fixture f;
    struct fake_qmp_options fake = {0};
    fixture_open(&f, &fake, (struct qmp_options){0});
    struct qmp_sub *subs[2];
    unsigned n = 0;
    cr_assert_eq(qmp_subscribe(f.qmp, "STOP", close_on_event, &f, &subs[0]), 0);
    cr_assert_eq(qmp_subscribe(f.qmp, NULL, count_event, &n, &subs[1]), 0);
    fake_qmp_event(f.fake, "STOP", NULL);
    fixture_until(&f, f.closed);
    cr_assert_eq(n, 0);
    fixture_done(&f);
}

struct two_subs {
    struct qmp *qmp;
    struct qmp_sub *first;
    struct qmp_sub *second;
    struct qmp_sub *added;
    unsigned n_first;
    unsigned n_second;
    unsigned n_added;
};

static void unsubscribe_both(void *data, const char *name, const json_t *event)
{
    struct two_subs *two = data;
    two->n_first++;
    two->first = qmp_unsubscribe(two->first);
    two->second = qmp_unsubscribe(two->second);
    cr_assert_eq(
        qmp_subscribe(two->qmp, NULL, count_event, &two->n_added, &two->added),
        0);
}

Test(conn, subscriptions_may_change_while_an_event_is_handed_out)
{
    struct fixture f;
    struct fake_qmp_options fake = {0};
    fixture_open(&f, &fake, (struct qmp_options){0});
    struct two_subs two = {.qmp = f.qmp};
    unsigned n = 0;
    struct qmp_sub *all = NULL;
    (void)qmp_subscribe(f.qmp, "STOP", unsubscribe_both, &two, &two.first);
    (void)qmp_subscribe(f.qmp, "STOP", count_event, &two.n_second, &two.second);
    (void)qmp_subscribe(f.qmp, NULL, count_event, &n, &all);
    fake_qmp_event(f.fake, "STOP", NULL);
    fake_qmp_event(f.fake, "STOP", json_pack("{s:i}", "x", 1));
    fake_qmp_event(f.fake, "RESUME", NULL);
    fixture_until(&f, n == 3);
    cr_assert_eq(two.n_first, 1);
    cr_assert_eq(two.n_second, 0);
    cr_assert_eq(two.n_added, 2, "from the next event on");
    fixture_done(&f);
}

Test(conn, close_survives_a_full_socket)
{
    struct fixture f;
    struct fake_qmp_options fake = {0};
    fixture_open(&f, &fake, (struct qmp_options){0});
    fake_qmp_deaf(f.fake, true);
    char *text = calloc(1, 1 << 20);
    memset(text, 'x', (1 << 20) - 1);
    json_auto_t *args = json_pack("{s:s}", "x", text);
    free(text);
    struct reply reply = {0};
    cr_assert_eq(
        qmp_execute(f.qmp, "stop", args, NULL, reply_on_result, &reply, NULL),
        0);
    (void)uv_run(&f.loop, UV_RUN_NOWAIT);
    cr_assert_eq(reply.n, 0);
    fake_qmp_deaf(f.fake, false);
    fixture_until(&f, reply.n > 0);
    cr_assert_eq(reply.code, 0);
    reply_done(&reply);
    fake_qmp_deaf(f.fake, true);
    cr_assert_eq(
        qmp_execute(f.qmp, "stop", args, NULL, reply_on_result, &reply, NULL),
        0);
    fixture_done(&f);
    cr_assert_eq(reply.code, -ECANCELED);
    reply_done(&reply);
}
