/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/str.h"

#include <criterion/criterion.h>
#include <errno.h>

#include "base/cleanup.h"

Test(str, a_word_of_a_shell_is_itself_whatever_is_in_it)
{
    static const char *const words[][2] = {
        {"",             "''"            },
        {"/run/vm.sock", "'/run/vm.sock'"},
        {"a b$c`d\"e\\", "'a b$c`d\"e\\'"},
        {"it's",         "'it'\\''s'"    },
    };
    for (unsigned i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        _cleanup_free_ char *word = str_shell(words[i][0]);
        cr_assert_str_eq(word, words[i][1]);
    }
}

Test(str, sizes_are_powers_of_1024)
{
    uint64_t v = 0;
    cr_assert_eq(str_to_bytes("4096", &v), 0);
    cr_assert_eq(v, 4096);
    cr_assert_eq(str_to_bytes("10M", &v), 0);
    cr_assert_eq(v, 10u << 20);
    cr_assert_eq(str_to_bytes("1.5G", &v), 0);
    cr_assert_eq(v, UINT64_C(1536) << 20);
    cr_assert_eq(str_to_bytes("2KiB", &v), 0);
    cr_assert_eq(v, 2048);
    cr_assert_eq(str_to_bytes("7B", &v), 0);
    cr_assert_eq(v, 7);
}

Test(str, nonsense_sizes_are_refused)
{
    static const char *const bad[] = {"", "-1", "M", "1X", "1.5", "1MM", "1 M"};
    uint64_t v = 77;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        cr_assert_eq(str_to_bytes(bad[i], &v), -EINVAL, "%s", bad[i]);
    }
    cr_assert_eq(str_to_bytes("99999999P", &v), -ERANGE);
    cr_assert_eq(v, 77);
}

Test(str, times_have_units)
{
    uint64_t v = 0;
    cr_assert_eq(str_to_ms("250ms", &v), 0);
    cr_assert_eq(v, 250);
    cr_assert_eq(str_to_ms("1.5s", &v), 0);
    cr_assert_eq(v, 1500);
    cr_assert_eq(str_to_ms("10m", &v), 0);
    cr_assert_eq(v, 600000);
    cr_assert_eq(str_to_ms("3", &v), 0);
    cr_assert_eq(v, 3000);
    cr_assert_eq(str_to_ms("3 days", &v), -EINVAL);
}

Test(str, bytes_read_well)
{
    char out[STR_BYTES_MAX];
    cr_assert_str_eq(str_bytes(17, out), "17 bytes");
    cr_assert_str_eq(str_bytes(UINT64_C(512) << 20, out), "512 MiB");
    cr_assert_str_eq(str_bytes(UINT64_C(1536) << 20, out), "1.5 GiB");
}

Test(str, time_is_iso_8601)
{
    char out[STR_TIME_MAX];
    cr_assert_str_eq(str_time(UINT64_C(1700000000123456), out),
                     "2023-11-14T22:13:20.123456Z");
}

Test(str, utf8_is_what_json_can_carry)
{
    static const char *const good[] = {"",
                                       "disk0",
                                       "\xc3\xa4",
                                       "\xe2\x82\xac",
                                       "\xed\x9f\xbf",
                                       "\xf4\x8f\xbf\xbf"};
    static const char *const bad[] = {"\xff",
                                      "\x80",
                                      "\xc3",
                                      "\xc0\xaf",
                                      "\xe0\x80\x80",
                                      "\xed\xa0\x80",
                                      "\xf0\x80\x80\x80",
                                      "\xf4\x90\x80\x80",
                                      "\xf5\x80\x80\x80",
                                      "a\xe2\x82"};
    for (unsigned i = 0; i < ARRAY_SIZE(good); i++) {
        cr_assert(str_is_utf8(good[i]), "%u", i);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        cr_assert_not(str_is_utf8(bad[i]), "%u", i);
    }
}
