/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdint.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/err.h"
#include "qmp/wire.h"

TestSuite(wire, .timeout = 10);

static int feed_text(struct wire *wire, const char *text, json_t **ret,
                     struct err **errp)
{
    cr_assert_eq(wire_feed(wire, text, strlen(text)), 0);
    return wire_next(wire, ret, errp);
}

Test(wire, one_message_a_line_comes_whole)
{
    struct wire wire;
    wire_init(&wire, 0);
    json_t *json = NULL;
    cr_assert_eq(feed_text(&wire, "{\"return\": {}}\r\n", &json, NULL), 1);
    cr_assert(json_is_object(json_object_get(json, "return")));
    json_decref(json);
    cr_assert_eq(wire_next(&wire, &json, NULL), 0);
    cr_assert(!wire_in_message(&wire));
    wire_done(&wire);
}

Test(wire, messages_do_not_need_newlines)
{
    struct wire wire;
    wire_init(&wire, 0);
    json_t *json = NULL;
    cr_assert_eq(
        feed_text(&wire, "{\"a\":1}{\"b\":[2,\n\n3]}{\"c\"", &json, NULL), 1);
    cr_assert_eq(json_integer_value(json_object_get(json, "a")), 1);
    json_decref(json);
    cr_assert_eq(wire_next(&wire, &json, NULL), 1);
    cr_assert_eq(json_array_size(json_object_get(json, "b")), 2);
    json_decref(json);
    cr_assert_eq(wire_next(&wire, &json, NULL), 0);
    cr_assert(wire_in_message(&wire));
    wire_done(&wire);
}

Test(wire, every_split_gives_the_same_messages)
{
    static const char text[] = "{\"s\":\"}{\\\"]\\\\\"}\r\n\xff{\"n\":[{},[]]}";
    for (size_t split = 0; split < sizeof(text); split++) {
        struct wire wire;
        wire_init(&wire, 0);
        unsigned n = 0;
        for (unsigned part = 0; part < 2; part++) {
            size_t from = part == 0 ? 0 : split;
            size_t to = part == 0 ? split : sizeof(text) - 1;
            cr_assert_eq(wire_feed(&wire, text + from, to - from), 0);
            json_t *json = NULL;
            while (wire_next(&wire, &json, NULL) == 1) {
                n++;
                json_decref(json);
            }
        }
        cr_assert_eq(n, 2, "split at %zu", split);
        wire_done(&wire);
    }
}

Test(wire, braces_in_strings_do_not_count)
{
    struct wire wire;
    wire_init(&wire, 0);
    json_t *json = NULL;
    cr_assert_eq(feed_text(&wire, "{\"s\":\"}}}\\\"{{\\\\\"}", &json, NULL), 1);
    cr_assert_str_eq(json_string_value(json_object_get(json, "s")),
                     "}}}\"{{\\");
    json_decref(json);
    wire_done(&wire);
}

Test(wire, integers_beyond_int64_become_reals_and_others_stay_exact)
{
    struct wire wire;
    wire_init(&wire, 0);
    json_t *json = NULL;
    cr_assert_eq(feed_text(&wire,
                           "{\"max\":18446744073709551615,"
                           "\"exact\":9223372036854775807,"
                           "\"min\":-9223372036854775808,"
                           "\"below\":-9223372036854775809,"
                           "\"text\":\"18446744073709551615\\\"\","
                           "\"real\":1.5e3,"
                           "\"list\":[99999999999999999999]}",
                           &json, NULL),
                 1);
    cr_assert_float_eq(json_real_value(json_object_get(json, "max")), 0x1p64,
                       1);
    cr_assert_eq(json_integer_value(json_object_get(json, "exact")), INT64_MAX);
    cr_assert_eq(json_integer_value(json_object_get(json, "min")), INT64_MIN);
    cr_assert(json_is_real(json_object_get(json, "below")));
    cr_assert_str_eq(json_string_value(json_object_get(json, "text")),
                     "18446744073709551615\"");
    cr_assert_float_eq(json_real_value(json_object_get(json, "real")), 1500, 0);
    cr_assert(json_is_real(json_array_get(json_object_get(json, "list"), 0)));
    json_decref(json);
    wire_done(&wire);
}

Test(wire, a_number_that_is_no_double_either_is_an_error)
{
    struct wire wire;
    wire_init(&wire, 0);
    char text[512] = "{\"n\":";
    memset(text + 5, '9', 400);
    text[405] = '}';
    json_t *json = NULL;
    cr_assert_eq(feed_text(&wire, text, &json, NULL), -EBADMSG);
    wire_done(&wire);
}

Test(wire, malformed_bytes_are_quoted_and_end_the_stream)
{
    struct wire wire;
    wire_init(&wire, 0);
    json_t *json = NULL;
    _cleanup_err_ struct err *err = NULL;
    cr_assert_eq(feed_text(&wire, "\r\nHTTP/1.1 400 Bad\x01", &json, &err),
                 -EBADMSG);
    cr_assert_not_null(strstr(err->desc, "'HTTP/1.1 400 Bad\\x01'"), "%s",
                       err->desc);
    cr_assert_eq(feed_text(&wire, "{}", &json, NULL), -EBADMSG);
    wire_done(&wire);
}

Test(wire, balanced_nonsense_is_quoted_shortly)
{
    struct wire wire;
    wire_init(&wire, 0);
    char text[4096] = "{";
    memset(text + 1, 'o', sizeof(text) - 3);
    text[sizeof(text) - 2] = '}';
    json_t *json = NULL;
    _cleanup_err_ struct err *err = NULL;
    cr_assert_eq(feed_text(&wire, text, &json, &err), -EBADMSG);
    cr_assert_not_null(strstr(err->desc, "{ooo"));
    cr_assert_lt(strlen(err->desc), 300);
    wire_done(&wire);
}

Test(wire, mismatched_brackets_are_an_error)
{
    struct wire wire;
    wire_init(&wire, 0);
    json_t *json = NULL;
    cr_assert_eq(feed_text(&wire, "{\"a\":[}]", &json, NULL), -EBADMSG);
    wire_done(&wire);
}

Test(wire, nesting_is_bounded)
{
    for (int extra = 0; extra < 2; extra++) {
        struct wire wire;
        wire_init(&wire, 0);
        size_t n = WIRE_MAX_NESTING - 1 + (size_t)extra;
        char text[2 * WIRE_MAX_NESTING + 32] = "{\"a\":";
        memset(text + 5, '[', n);
        memset(text + 5 + n, ']', n);
        text[5 + 2 * n] = '}';
        json_t *json = NULL;
        int r = feed_text(&wire, text, &json, NULL);
        cr_assert_eq(r, extra == 0 ? 1 : -EMSGSIZE);
        json_decref(json);
        wire_done(&wire);
    }
}

Test(wire, size_is_bounded_also_when_the_message_never_ends)
{
    struct wire wire;
    wire_init(&wire, 1000);
    json_t *json = NULL;
    _cleanup_err_ struct err *err = NULL;
    cr_assert_eq(feed_text(&wire, "{\"a\":\"", &json, &err), 0);
    int r = 0;
    for (unsigned i = 0; i < 2000 && r == 0; i++) {
        r = feed_text(&wire, "x", &json, &err);
        cr_assert_leq(wire.end, 1001);
    }
    cr_assert_eq(r, -EMSGSIZE);
    wire_done(&wire);
}

Test(wire, number_of_values_is_bounded)
{
    struct wire wire;
    wire_init(&wire, 0);
    json_t *json = NULL;
    cr_assert_eq(feed_text(&wire, "{\"a\":[0", &json, NULL), 0);
    char many[4096];
    for (unsigned i = 0; i < sizeof(many); i += 2) {
        many[i] = ',';
        many[i + 1] = '0';
    }
    int r = 0;
    unsigned n = 0;
    for (; n < 10000 && r == 0; n++) {
        cr_assert_eq(wire_feed(&wire, many, sizeof(many)), 0);
        r = wire_next(&wire, &json, NULL);
    }
    cr_assert_eq(r, -EMSGSIZE);
    cr_assert_lt(n, 2100);
    wire_done(&wire);
}

Test(wire, memory_of_a_huge_message_is_given_back)
{
    struct wire wire;
    wire_init(&wire, 0);
    json_t *json = NULL;
    cr_assert_eq(feed_text(&wire, "{\"a\":\"", &json, NULL), 0);
    static char chunk[65536];
    memset(chunk, 'x', sizeof(chunk));
    for (unsigned i = 0; i < 64; i++) {
        cr_assert_eq(wire_feed(&wire, chunk, sizeof(chunk)), 0);
        cr_assert_eq(wire_next(&wire, &json, NULL), 0);
    }
    cr_assert_eq(feed_text(&wire, "\"}", &json, NULL), 1);
    json_decref(json);
    for (unsigned i = 0; i < 64; i++) {
        cr_assert_eq(wire_feed(&wire, chunk, 0), 0);
        char *to = NULL;
        cr_assert_eq(wire_reserve(&wire, sizeof(chunk), &to), 0);
        memset(to, ' ', sizeof(chunk));
        wire_commit(&wire, sizeof(chunk));
        cr_assert_eq(wire_next(&wire, &json, NULL), 0);
    }
    cr_assert_lt(wire.allocated, 1 << 20);
    wire_done(&wire);
}
