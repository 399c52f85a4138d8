/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "unit/qmp-fixture.h"

#include <sys/socket.h>

TestSuite(call, .timeout = 10);

static const struct qmp_call_options SOON = {.timeout_ms = 30};

static void send_one(struct fixture *f, const char *command,
                     struct reply *reply)
{
    cr_assert_eq(
        qmp_execute(f->qmp, command, NULL, NULL, reply_on_result, reply, NULL),
        0);
    cr_assert_eq(reply->n, 0, "never from inside the submit");
}

static json_t *echo(void *data, const char *command, const json_t *args)
{
    if (strcmp(command, "missing") == 0) {
        return NULL;
    }
    return json_pack("{s:s, s:O*}", "command", command, "args", args);
}

Test(call, reply_brings_the_result_of_its_own_command)
{
    struct fixture f;
    struct fake_qmp_options fake = {.answer = echo};
    fixture_open(&f, &fake, (struct qmp_options){0});
    struct reply replies[3] = {0};
    json_auto_t *args = json_pack("{s:i}", "n", 7);
    cr_assert_eq(
        qmp_execute(f.qmp, "a", args, NULL, reply_on_result, &replies[0], NULL),
        0);
    cr_assert_eq(args->refcount, 1, "args are borrowed");
    send_one(&f, "b", &replies[1]);
    send_one(&f, "c", &replies[2]);
    fixture_until(&f, replies[2].n > 0);
    for (unsigned i = 0; i < 3; i++) {
        char name[2] = {(char)('a' + i), '\0'};
        const char *got =
            json_string_value(json_object_get(replies[i].result, "command"));
        cr_assert_str_eq(got, name);
    }
    json_t *got = json_object_get(replies[0].result, "args");
    cr_assert_eq(json_integer_value(json_object_get(got, "n")), 7);
    for (unsigned i = 0; i < 3; i++) {
        reply_done(&replies[i]);
    }
    fixture_done(&f);
}

Test(call, odd_commands_and_arguments_arrive_as_they_are)
{
    struct fixture f;
    struct fake_qmp_options fake = {.answer = echo};
    fixture_open(&f, &fake, (struct qmp_options){0});
    struct reply reply = {0};
    const char *odd = "a\"b\\ {\xc3\xa4}, \"id\": 1";
    json_auto_t *args = json_pack("{s:s, s:[]}", odd, odd, "[");
    cr_assert_eq(
        qmp_execute(f.qmp, odd, args, NULL, reply_on_result, &reply, NULL), 0);
    fixture_until(&f, reply.n > 0);
    cr_assert_str_eq(
        json_string_value(json_object_get(reply.result, "command")), odd);
    cr_assert(json_equal(json_object_get(reply.result, "args"), args));
    reply_done(&reply);
    fixture_done(&f);
}

Test(call, error_keeps_class_and_desc_and_names_the_object)
{
    struct fixture f;
    struct fake_qmp_options fake = {.answer = echo};
    fixture_open(&f, &fake, (struct qmp_options){0});
    struct reply reply = {0};
    const struct qmp_call_options options = {.object = "node 'x'"};
    cr_assert_eq(qmp_execute(f.qmp, "missing", NULL, &options, reply_on_result,
                             &reply, NULL),
                 0);
    fixture_until(&f, reply.n > 0);
    cr_assert_eq(reply.code, -EREMOTEIO);
    cr_assert_str_eq(reply.class, "CommandNotFound");
    cr_assert_str_eq(reply.text, "node 'x': missing failed: The command "
                                 "missing has not been found");
    reply_done(&reply);
    fixture_done(&f);
}

Test(call, eight_are_on_the_wire_and_the_rest_waits_in_order)
{
    struct fixture f;
    struct fake_qmp_options fake = {0};
    fixture_open(&f, &fake, (struct qmp_options){0});
    struct reply replies[20] = {0};
    for (unsigned i = 0; i < 20; i++) {
        fake_qmp_fault(f.fake, NULL, 0, i < 8 ? FAKE_HOLD : FAKE_NONE);
        send_one(&f, "stop", &replies[i]);
    }
    struct reply oob = {0};
    const struct qmp_call_options options = {.oob = true};
    fixture_until(&f, fake_qmp_count(f.fake, NULL) == 8);
    fake_qmp_fault(f.fake, "yank", 0, FAKE_NONE);
    cr_assert_eq(
        qmp_execute(f.qmp, "yank", NULL, &options, reply_on_result, &oob, NULL),
        0);
    fixture_until(&f, oob.n > 0);
    cr_assert_eq(fake_qmp_count(f.fake, "stop"), 8);
    cr_assert_eq(replies[0].n, 0);
    fake_qmp_release(f.fake);
    fixture_until(&f, replies[19].n > 0);
    for (unsigned i = 1; i < 20; i++) {
        cr_assert_gt(replies[i].order, replies[i - 1].order);
    }
    for (unsigned i = 0; i < 20; i++) {
        reply_done(&replies[i]);
    }
    reply_done(&oob);
    fixture_done(&f);
}

Test(call, pending_calls_are_bounded)
{
    struct fixture f;
    struct fake_qmp_options fake = {0};
    fixture_open(&f, &fake, (struct qmp_options){0});
    struct reply *replies = calloc(4097, sizeof(*replies));
    for (unsigned i = 0; i < 4096; i++) {
        send_one(&f, "stop", &replies[i]);
    }
    cr_assert_eq(qmp_execute(f.qmp, "stop", NULL, NULL, reply_on_result,
                             &replies[4096], NULL),
                 -ENOBUFS);
    fixture_until(&f, replies[4095].n > 0);
    for (unsigned i = 0; i < 4097; i++) {
        cr_assert_eq(replies[i].n, i < 4096);
        reply_done(&replies[i]);
    }
    free(replies);
    fixture_done(&f);
}

Test(call, late_reply_after_timeout_is_dropped)
{
    struct fixture f;
    struct fake_qmp_options fake = {0};
    fixture_open(&f, &fake, (struct qmp_options){0});
    struct reply late = {0};
    struct reply next = {0};
    fake_qmp_fault(f.fake, "stop", 0, FAKE_HOLD);
    cr_assert_eq(
        qmp_execute(f.qmp, "stop", NULL, &SOON, reply_on_result, &late, NULL),
        0);
    fixture_until(&f, late.n > 0);
    cr_assert_eq(late.code, -ETIMEDOUT);
    cr_assert_not_null(strstr(late.text, "unknown"), "%s", late.text);
    fake_qmp_release(f.fake);
    send_one(&f, "cont", &next);
    fixture_until(&f, next.n > 0);
    cr_assert_eq(late.n, 1);
    cr_assert_eq(next.code, 0);
    reply_done(&late);
    reply_done(&next);
    fixture_done(&f);
}

Test(call, timed_out_calls_keep_their_place_in_the_window)
{
    struct fixture f;
    struct fake_qmp_options fake = {0};
    fixture_open(&f, &fake, (struct qmp_options){0});
    struct reply replies[9] = {0};
    for (unsigned i = 0; i < 9; i++) {
        fake_qmp_fault(f.fake, "stop", 0, FAKE_HOLD);
        cr_assert_eq(qmp_execute(f.qmp, "stop", NULL, &SOON, reply_on_result,
                                 &replies[i], NULL),
                     0);
    }
    fixture_until(&f, replies[8].n > 0);
    cr_assert_eq(replies[8].code, -ETIMEDOUT);
    cr_assert_not_null(strstr(replies[8].text, "not sent"));
    cr_assert_eq(fake_qmp_count(f.fake, "stop"), 8);
    struct reply next = {0};
    send_one(&f, "cont", &next);
    fake_qmp_release(f.fake);
    fixture_until(&f, next.n > 0);
    cr_assert_eq(fake_qmp_count(f.fake, "stop"), 8, "it was never sent");
    for (unsigned i = 0; i < 9; i++) {
        cr_assert_eq(replies[i].n, 1);
        reply_done(&replies[i]);
    }
    reply_done(&next);
    fixture_done(&f);
}

Test(call, cancelled_call_never_calls_back)
{
    struct fixture f;
    struct fake_qmp_options fake = {0};
    fixture_open(&f, &fake, (struct qmp_options){0});
    struct reply replies[10] = {0};
    struct qmp_call *calls[10];
    for (unsigned i = 0; i < 10; i++) {
        cr_assert_eq(qmp_execute(f.qmp, "stop", NULL, &SOON, reply_on_result,
                                 &replies[i], &calls[i]),
                     0);
    }
    qmp_call_cancel(calls[0]); /* on the wire */
    qmp_call_cancel(calls[9]); /* waiting */
    fixture_until(&f, replies[8].n > 0);
    struct reply last = {0};
    send_one(&f, "cont", &last);
    fixture_until(&f, last.n > 0);
    cr_assert_eq(replies[0].n, 0);
    cr_assert_eq(replies[9].n, 0);
    cr_assert_eq(fake_qmp_count(f.fake, "stop"), 9);
    for (unsigned i = 0; i < 10; i++) {
        reply_done(&replies[i]);
    }
    reply_done(&last);
    fixture_done(&f);
}

Test(call, reply_that_has_arrived_wins_over_its_deadline)
{
    struct fixture f;
    struct fake_qmp_options fake = {0};
    fixture_open(&f, &fake, (struct qmp_options){0});
    struct reply held = {0};
    fake_qmp_fault(f.fake, "stop", 0, FAKE_HOLD);
    const struct qmp_call_options options = {.timeout_ms = 500};
    cr_assert_eq(qmp_execute(f.qmp, "stop", NULL, &options, reply_on_result,
                             &held, NULL),
                 0);
    fixture_until(&f, fake_qmp_count(f.fake, "stop") == 1);
    fake_qmp_release(f.fake);
    /* in this turn the fake sends; what we read is of the turn after */
    (void)uv_run(&f.loop, UV_RUN_NOWAIT);
    cr_assert_eq(held.n, 0);
    uint64_t end = uv_hrtime() + 600 * 1000000ULL;
    while (uv_hrtime() < end) {
        continue; /* the program is held up */
    }
    (void)uv_run(&f.loop, UV_RUN_NOWAIT);
    cr_assert_eq(held.n, 1);
    cr_assert_eq(held.code, 0, "%s", held.text);
    reply_done(&held);
    fixture_done(&f);
}

Test(call, stall_is_told_once_and_its_end_too)
{
    struct fixture f;
    struct fake_qmp_options fake = {0};
    fixture_open(&f, &fake, (struct qmp_options){.watchdog_ms = 20});
    struct reply replies[2] = {0};
    for (unsigned i = 0; i < 2; i++) {
        fake_qmp_fault(f.fake, "stop", 0, FAKE_HOLD);
        send_one(&f, "stop", &replies[i]);
    }
    fixture_until(&f, f.n_stalled > 0);
    cr_assert_eq(replies[0].n, 0, "it stays pending");
    struct reply oob = {0};
    const struct qmp_call_options options = {.oob = true};
    cr_assert_eq(
        qmp_execute(f.qmp, "yank", NULL, &options, reply_on_result, &oob, NULL),
        0);
    fixture_until(&f, oob.n > 0);
    cr_assert_eq(f.n_flowing, 0, "an out-of-band reply is no sign of it");
    fake_qmp_release(f.fake);
    fixture_until(&f, replies[1].n > 0);
    cr_assert_eq(f.n_stalled, 1);
    cr_assert_eq(f.n_flowing, 1);
    fake_qmp_fault(f.fake, "stop", 0, FAKE_SILENCE);
    reply_done(&replies[0]);
    send_one(&f, "stop", &replies[0]);
    fixture_until(&f, f.n_stalled == 2);
    fixture_done(&f);
    cr_assert_eq(replies[0].code, -ECANCELED);
    reply_done(&replies[0]);
    reply_done(&replies[1]);
    reply_done(&oob);
}

Test(call, replies_to_foreign_ids_are_tolerated)
{
    struct fixture f;
    struct fake_qmp_options fake = {0};
    fixture_open(&f, &fake, (struct qmp_options){0});
    static const char text[] =
        "{\"return\":{},\"id\":\"qpv-watchdog-1\"}"
        "{\"error\":{\"class\":\"GenericError\",\"desc\":\"x\"}}"
        "{\"return\":{},\"id\":{\"a\":1}}"
        "{\"event\":17}"
        "{\"return\":[],\"id\":null}{\"other\":1}{}\r\n";
    fake_qmp_raw(f.fake, text, strlen(text));
    struct reply reply = {0};
    send_one(&f, "stop", &reply);
    fixture_until(&f, reply.n > 0);
    cr_assert_eq(reply.code, 0);
    cr_assert_eq(f.n_lost, 0);
    reply_done(&reply);
    fixture_done(&f);
}

Test(call, another_process_may_write_commands_into_the_same_socket)
{
    struct fixture f;
    struct fake_qmp_options fake = {.answer = echo};
    fixture_open(&f, &fake, (struct qmp_options){0});
    static const char text[] =
        "{\"execute\":\"job-cancel\",\"id\":\"qpv-watchdog-1\"}\n";
    cr_assert_eq(send(qmp_fd(f.qmp), text, strlen(text), MSG_NOSIGNAL),
                 (ssize_t)strlen(text));
    struct reply reply = {0};
    send_one(&f, "stop", &reply);
    fixture_until(&f, reply.n > 0);
    cr_assert_eq(fake_qmp_count(f.fake, "job-cancel"), 1);
    cr_assert_eq(reply.code, 0);
    reply_done(&reply);
    fixture_done(&f);
}

Test(call, ids_differ_between_connections)
{
    char *ids[2] = {NULL};
    for (unsigned i = 0; i < 2; i++) {
        struct fixture f;
        struct fake_qmp_options fake = {0};
        fixture_open(&f, &fake, (struct qmp_options){0});
        const json_t *first = json_array_get(fake_qmp_log(f.fake), 0);
        ids[i] = strdup(json_string_value(json_object_get(first, "id")));
        fixture_done(&f);
    }
    cr_assert_str_neq(ids[0], ids[1]);
    free(ids[0]);
    free(ids[1]);
}

Test(call, batch_leaves_by_one_write_and_answers_each)
{
    struct fixture f;
    struct fake_qmp_options fake = {.answer = echo};
    fixture_open(&f, &fake, (struct qmp_options){0});
    struct reply replies[8] = {0};
    struct qmp_command commands[8];
    for (unsigned i = 0; i < 8; i++) {
        commands[i] =
            (struct qmp_command){.command = i == 3 ? "missing" : "job-finalize",
                                 .object = "job 'j'",
                                 .cb = reply_on_result,
                                 .data = &replies[i]};
    }
    cr_assert_eq(qmp_execute_batch(f.qmp, commands, 0, 0), -EINVAL);
    cr_assert_eq(qmp_execute_batch(f.qmp, commands, 1000, 0), -EINVAL);
    cr_assert_eq(qmp_execute_batch(f.qmp, commands, 8, 1000), 0);
    fixture_until(&f, replies[7].n > 0);
    for (unsigned i = 0; i < 8; i++) {
        cr_assert_eq(replies[i].n, 1);
        cr_assert_eq(replies[i].code, i == 3 ? -EREMOTEIO : 0);
        reply_done(&replies[i]);
    }
    fixture_done(&f);
}

Test(call, batch_does_not_overtake_what_waits)
{
    struct fixture f;
    struct fake_qmp_options fake = {0};
    fixture_open(&f, &fake, (struct qmp_options){0});
    struct reply before[9] = {0};
    struct reply replies[8] = {0};
    struct qmp_command commands[8];
    for (unsigned i = 0; i < 8; i++) {
        commands[i] = (struct qmp_command){.command = "job-finalize",
                                           .cb = reply_on_result,
                                           .data = &replies[i]};
    }
    for (unsigned i = 0; i < 9; i++) {
        fake_qmp_fault(f.fake, "stop", 0, i < 8 ? FAKE_HOLD : FAKE_NONE);
        send_one(&f, "stop", &before[i]);
    }
    fixture_until(&f, fake_qmp_count(f.fake, "stop") == 8);
    cr_assert_eq(qmp_execute_batch(f.qmp, commands, 8, 0), -EAGAIN);
    fake_qmp_release(f.fake);
    fixture_until(&f, before[8].n > 0);
    cr_assert_eq(qmp_execute_batch(f.qmp, commands, 8, 0), 0);
    fixture_until(&f, replies[7].n > 0);
    cr_assert_eq(fake_qmp_count(f.fake, "job-finalize"), 8);
    for (unsigned i = 0; i < 9; i++) {
        reply_done(&before[i]);
    }
    for (unsigned i = 0; i < 8; i++) {
        reply_done(&replies[i]);
    }
    fixture_done(&f);
}

Test(call, command_that_is_no_utf8_is_refused)
{
    struct fixture f;
    struct fake_qmp_options fake = {0};
    fixture_open(&f, &fake, (struct qmp_options){0});
    cr_assert_eq(qmp_execute(f.qmp, "\xff", NULL, NULL, NULL, NULL, NULL),
                 -EINVAL);
    fixture_done(&f);
}

Test(call, every_fault_ends_in_one_callback)
{
    for (unsigned fault = FAKE_NONE; fault < N_FAKE_FAULTS; fault++) {
        struct fixture f;
        struct fake_qmp_options fake = {.answer = echo};
        fixture_open(&f, &fake, (struct qmp_options){0});
        struct reply reply = {0};
        fake_qmp_fault(f.fake, "stop", 0, fault);
        cr_assert_eq(qmp_execute(f.qmp, "stop", NULL, &SOON, reply_on_result,
                                 &reply, NULL),
                     0);
        fixture_until(&f, reply.n > 0);
        fixture_done(&f);
        cr_assert_eq(reply.n, 1, "fault %u", fault);
        reply_done(&reply);
    }
}
