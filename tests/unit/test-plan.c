/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdint.h>
#include <string.h>

#include "base/err.h"
#include "run/plan.h"

TestSuite(plan, .timeout = 10);

/* Two disks in which every member of the file format says its own name. */
static json_t *sample(void)
{
    struct plan *empty = NULL;
    cr_assert_eq(plan_new("move", 2, &empty), 0);
    json_t *json = plan_to_json(empty);
    plan_free(empty);
    cr_assert_not_null(json);
    json_int_t n = 1;
    for (int disk = -1; disk < 2; disk++) {
        json_t *disks = json_object_get(json, "disks");
        json_t *part = disk < 0 ? json : json_array_get(disks, (size_t)disk);
        const char *key;
        json_t *value;
        void *next;
        json_object_foreach_safe(part, next, key, value)
        {
            if (json_is_string(value)) {
                (void)json_object_set_new(
                    part, key, json_sprintf("%s %d \u00e9", key, disk));
            } else if (json_is_boolean(value)) {
                (void)json_object_set_new(part, key, json_true());
            } else if (json_is_integer(value)) {
                (void)json_object_set_new(part, key,
                                          json_integer(INT64_MAX - n++));
            } else if (json_is_null(value)) {
                (void)json_object_set_new(
                    part, key, json_pack("{s:s, s:[i]}", "of", key, "n", 7));
            }
        }
    }
    return json;
}

Test(plan, json_and_back_loses_nothing)
{
    json_auto_t *json = sample();
    _cleanup_(plan_freep) struct plan *plan = NULL;
    cr_assert_eq(plan_from_json(json, &plan, NULL), 0);
    cr_assert_eq(plan->n_disks, 2);
    cr_assert_eq(plan->disks[1].index, 1);
    json_auto_t *again = plan_to_json(plan);
    cr_assert(json_equal(json, again));
}

/* What the plans of the first journals did not have: they still load. */
static bool came_later(const char *key)
{
    static const char *const keys[] = {
        "target_timeout_ms",
        "how",
        "dst_node",
        "attach",
        "placeholder",
        "made_there",
        "dst_qmp",
        "dst_pid",
        "dst_start",
        "address",
        "export_port",
        "export_ports",
        "suspend",
        "suspend_ms",
        "was_running",
        "quit_source",
        "capabilities",
        "parameters",
        "src_before",
        "dst_before",
        "adopted",
        "verify",
        "verify_dir",
        "qemu_uid",
        "undo_window_ms",
        "may_write_block",
        "from_blockdevs",
        "stream_socket",
        "export_socket",
        "tunnel",
        "tls_dir",
        "tls_dir_to",
        "tls_hostname",
        "tls_authz",
        "postcopy",
        "postcopy_ms",
        "base",
        "base_file",
        "from_state",
        "to_state",
        "to_identity",
        "allow_degraded",
        "base_format",
        "base_nodes",
        "linked",
        "overlay",
        "landing",
    };
    for (unsigned i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        if (strcmp(keys[i], key) == 0) {
            return true;
        }
    }
    return false;
}

Test(plan, each_missing_or_wrong_member_is_refused)
{
    json_auto_t *json = sample();
    for (int disk = -1; disk < 2; disk += 2) {
        const json_t *from =
            disk < 0 ? json : json_array_get(json_object_get(json, "disks"), 1);
        const char *key;
        json_t *value;
        json_object_foreach((json_t *)(uintptr_t)from, key, value) {
            json_auto_t *missing = json_deep_copy(json);
            json_t *part =
                disk < 0 ? missing
                         : json_array_get(json_object_get(missing, "disks"), 1);
            struct plan *plan = NULL;
            _cleanup_err_ struct err *err = NULL;
            cr_assert_eq(json_object_del(part, key), 0);
            int r = plan_from_json(missing, &plan, &err);
            cr_assert_eq(r, came_later(key) ? 0 : -EPROTO, "without %s", key);
            cr_assert_eq(err == NULL, r == 0);
            plan = plan_free(plan);
            if (!json_is_object(value)) {
                (void)json_object_set_new(part, key, json_real(1.5));
                cr_assert_eq(plan_from_json(missing, &plan, NULL), -EPROTO,
                             "odd %s", key);
            }
        }
    }
}

Test(plan, what_is_no_plan_is_refused)
{
    static const char *const bad[] = {
        "{}",
        "[]",
        "{\"kind\":\"move\",\"disks\":{}}",
        "{\"kind\":7,\"disks\":[]}",
        "{\"kind\":\"move\",\"disks\":[1,2]}",
    };
    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        json_auto_t *json = json_loads(bad[i], 0, NULL);
        struct plan *plan = NULL;
        cr_assert_eq(plan_from_json(json, &plan, NULL), -EPROTO, "%s", bad[i]);
    }
    struct plan *none = NULL;
    cr_assert_eq(plan_from_json(NULL, &none, NULL), -EPROTO);
}

Test(plan, more_disks_than_fit_are_refused)
{
    json_auto_t *json = sample();
    json_t *disks = json_object_get(json, "disks");
    while (json_array_size(disks) <= 256) {
        (void)json_array_append(disks, json_array_get(disks, 0));
    }
    struct plan *plan = NULL;
    cr_assert_eq(plan_from_json(json, &plan, NULL), -EPROTO);
}
