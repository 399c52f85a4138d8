/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <criterion/criterion.h>
#include <string.h>

#include "operations/migrate-options.h"
#include "qpivot.h"

#define BIT(option) (UINT32_C(1) << (option))

static const char *text_of(const json_t *list, size_t i, const char *key)
{
    const json_t *entry = json_array_get(list, i);
    return json_string_value(json_object_get(entry, key));
}

/* Just one conflict, which names both and says what to do. */
static void expect(uint32_t asked, uint32_t on, const char *one,
                   const char *other, const char *advice)
{
    json_auto_t *list = migrate_conflicts(asked | BIT(WITH_ANY), on);
    cr_assert_eq(json_array_size(list), 1, "%zu conflicts of %s and %s",
                 json_array_size(list), one, other);
    cr_assert_str_eq(text_of(list, 0, "option"), one);
    const char *text = text_of(list, 0, "text");
    cr_assert(strstr(text, other) != NULL, "%s: %s", one, text);
    cr_assert(strstr(text, advice) != NULL, "%s: %s", one, text);
}

Test(migrate_options, what_excludes_another_names_both)
{
    expect(BIT(WITH_MULTIFD) | BIT(WITH_XBZRLE), 0, "--multifd", "--xbzrle",
           "leave one");
}

Test(migrate_options, there_is_one_way_for_memory_and_disks)
{
    expect(BIT(WITH_UNIX) | BIT(WITH_TUNNEL), 0, "--tunnel", "--unix",
           "leave one");
    expect(BIT(WITH_UNIX) | BIT(WITH_ADDRESS), 0, "--unix", "--address",
           "leave one");
    expect(BIT(WITH_TUNNEL) | BIT(WITH_ADDRESS), 0, "--tunnel", "--address",
           "leave one");
    expect(BIT(WITH_UNIX) | BIT(WITH_EXPORT_PORT), 0, "--unix", "--export-port",
           "leave one");
    expect(BIT(WITH_TUNNEL) | BIT(WITH_EXPORT_PORT), 0, "--tunnel",
           "--export-port", "leave one");
    expect(BIT(WITH_TUNNEL) | BIT(WITH_TLS) | BIT(WITH_TLS_NAMELESS), 0,
           "--tls-creds by a unix socket", "--tls-hostname", "say what");
}

Test(migrate_options, what_needs_another_says_which)
{
    expect(BIT(WITH_XBZRLE_CACHE), 0, "--xbzrle-cache", "--xbzrle", "add");
    expect(BIT(WITH_TLS_TO), 0, "--tls-creds-to", "--tls-creds", "name");
    expect(BIT(WITH_TLS_HOSTNAME), 0, "--tls-hostname", "--tls-creds", "name");
    expect(BIT(WITH_TLS_AUTHZ), 0, "--tls-authz", "--tls-creds", "name");
    expect(BIT(WITH_TIMEOUT_SUSPENDS), 0, "--on-timeout suspend", "--timeout",
           "say when");
}

Test(migrate_options, what_postcopy_does_not_go_with)
{
    uint32_t postcopy = BIT(WITH_POSTCOPY);
    expect(postcopy | BIT(WITH_MULTIFD), 0, "--multifd", "--postcopy",
           "leave one");
    expect(postcopy | BIT(WITH_XBZRLE), 0, "--postcopy", "--xbzrle",
           "leave one");
    expect(postcopy | BIT(WITH_SUSPEND), 0, "--postcopy", "--suspend",
           "leave one");
    expect(postcopy | BIT(WITH_TIMEOUT) | BIT(WITH_TIMEOUT_SUSPENDS), 0,
           "--postcopy", "--on-timeout suspend", "leave one");
    expect(postcopy | BIT(WITH_TUNNEL), 0, "--postcopy", "--tunnel",
           "leave one");
    expect(postcopy | BIT(WITH_BITMAPS), 0, "--postcopy", "bitmap",
           "--drop-bitmaps");
    expect(postcopy, BIT(WITH_COMPRESS), "--postcopy", "'compress'", "switch");
    expect(postcopy, BIT(WITH_PREEMPT), "--postcopy", "'postcopy-preempt'",
           "switch");
    expect(postcopy | BIT(WITH_TIMEOUT_POSTCOPIES), 0, "--on-timeout postcopy",
           "--timeout", "say when");
}

Test(migrate_options, what_qemu_has_on_already_counts)
{
    expect(BIT(WITH_XBZRLE), BIT(WITH_MULTIFD),
           "capability 'multifd', which is on already,", "--xbzrle",
           "leave one");
    expect(BIT(WITH_TLS), BIT(WITH_ZERO_COPY), "--tls-creds",
           "'zero-copy-send'", "switch");
    expect(0, BIT(WITH_BLOCK), "qpivot migrate", "'block'", "switch");
}

Test(migrate_options, what_is_not_ours_is_not_judged)
{
    json_auto_t *list = migrate_conflicts(
        BIT(WITH_ANY), BIT(WITH_MULTIFD) | BIT(WITH_POSTCOPY));
    cr_assert_eq(json_array_size(list), 0);
}

Test(migrate_options, all_conflicts_come_at_once)
{
    json_auto_t *list = migrate_conflicts(
        BIT(WITH_ANY) | BIT(WITH_MULTIFD) | BIT(WITH_XBZRLE) |
            BIT(WITH_TLS_HOSTNAME) | BIT(WITH_TIMEOUT_SUSPENDS),
        0);
    cr_assert_eq(json_array_size(list), 3);
}

Test(migrate_options, what_goes_together_is_taken)
{
    json_auto_t *list = migrate_conflicts(
        BIT(WITH_ANY) | BIT(WITH_MULTIFD) | BIT(WITH_AUTO_CONVERGE) |
            BIT(WITH_TIMEOUT) | BIT(WITH_TIMEOUT_SUSPENDS) | BIT(WITH_TLS) |
            BIT(WITH_TLS_TO) | BIT(WITH_TLS_HOSTNAME) | BIT(WITH_TLS_AUTHZ),
        0);
    cr_assert_eq(json_array_size(list), 0);
    json_auto_t *more = migrate_conflicts(
        BIT(WITH_ANY) | BIT(WITH_POSTCOPY) | BIT(WITH_AUTO_CONVERGE) |
            BIT(WITH_TIMEOUT) | BIT(WITH_TIMEOUT_POSTCOPIES) | BIT(WITH_TLS) |
            BIT(WITH_UNIX) | BIT(WITH_TLS_NAMELESS) | BIT(WITH_TLS_HOSTNAME),
        0);
    cr_assert_eq(json_array_size(more), 0);
}

Test(migrate_options, each_option_of_the_interface_has_its_bit)
{
    const struct qpivot_migrate_options none = {.size = sizeof(none)};
    const struct qpivot_migrate_options all = {
        .size = sizeof(all),
        .flags = QPIVOT_XBZRLE | QPIVOT_AUTO_CONVERGE |
                 QPIVOT_TIMEOUT_SUSPENDS | QPIVOT_UNIX | QPIVOT_TUNNEL |
                 QPIVOT_SUSPEND | QPIVOT_TIMEOUT_POSTCOPIES,
        .address = "e",
        .export_port = 1,
        .multifd = 2,
        .timeout_ms = 1,
        .xbzrle_cache = 1,
        .tls_dir = "/a",
        .tls_dir_to = "/b",
        .tls_hostname = "c",
        .tls_authz = "d",
    };
    cr_assert_eq(migrate_options_asked(&none), BIT(WITH_ANY));
    cr_assert_eq(migrate_options_asked(&all),
                 BIT(WITH_ANY) | BIT(WITH_XBZRLE) | BIT(WITH_XBZRLE_CACHE) |
                     BIT(WITH_AUTO_CONVERGE) | BIT(WITH_TIMEOUT) |
                     BIT(WITH_TIMEOUT_SUSPENDS) | BIT(WITH_MULTIFD) |
                     BIT(WITH_TLS) | BIT(WITH_TLS_TO) | BIT(WITH_TLS_HOSTNAME) |
                     BIT(WITH_TLS_AUTHZ) | BIT(WITH_TLS_NAMELESS) |
                     BIT(WITH_UNIX) | BIT(WITH_TUNNEL) | BIT(WITH_ADDRESS) |
                     BIT(WITH_EXPORT_PORT) | BIT(WITH_SUSPEND) |
                     BIT(WITH_POSTCOPY) | BIT(WITH_TIMEOUT_POSTCOPIES));
}
