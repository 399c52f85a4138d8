/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a LINSTOR resource is, and what is done to it, whatever goes wrong. */
#include "backends/registry.h"
#include "linstor-fixture.h"

TestSuite(linstor, .init = prepare, .fini = tidy, .timeout = 120);

/* So many requests that begin like that, "POST .../spawn" say. */
static unsigned n_calls(const char *method, const char *path)
{
    unsigned n = 0;
    _cleanup_free_ char *text = strdup(get("calls"));
    char *rest = NULL;
    for (char *line = strtok_r(text, "\n", &rest); line != NULL;
         line = strtok_r(NULL, "\n", &rest)) {
        json_auto_t *call = json_loads(line, 0, NULL);
        n += str_eq(json_string_value(json_object_get(call, "method")),
                    method) &&
             strstr(json_string_value(json_object_get(call, "path")), path) !=
                 NULL;
    }
    return n;
}

/* The changes in their order, by the last word of each path. */
static char *changes(void)
{
    static char order[512];
    _cleanup_free_ char *text = strdup(get("calls"));
    char *rest = NULL;
    size_t at = 0;
    order[0] = '\0';
    for (char *line = strtok_r(text, "\n", &rest); line != NULL;
         line = strtok_r(NULL, "\n", &rest)) {
        json_auto_t *call = json_loads(line, 0, NULL);
        const char *method = json_string_value(json_object_get(call, "method"));
        const char *path = json_string_value(json_object_get(call, "path"));
        const json_t *diskful =
            json_object_get(json_object_get(call, "body"), "diskful");
        if (!str_eq(method, "GET") && strstr(path, "query-size") == NULL) {
            at += (size_t)snprintf(order + at, sizeof(order) - at, "%s%s %s%s",
                                   at > 0 ? ", " : "", method,
                                   strrchr(path, '/') + 1,
                                   json_is_true(diskful)    ? "+"
                                   : json_is_false(diskful) ? "-"
                                                            : "");
        }
    }
    return order;
}

/* --- the volume --- */

static struct volume *parsed(const char *rest)
{
    struct volume *volume = NULL;
    _cleanup_err_ struct err *err = NULL;
    _cleanup_free_ char *uri =
        str_printf("linstor://127.0.0.1:%s/group/%s", port, rest);
    cr_assert_eq(volume_parse(uri, &volume, &err), 0, "%s: %s", uri,
                 err != NULL ? err->desc : "?");
    return volume;
}

static struct volume_info probed(struct volume *volume)
{
    struct volume_info info;
    _cleanup_err_ struct err *err = NULL;
    cr_assert_eq(volume->ops->probe(volume, &info, &err), 0, "%s",
                 err != NULL ? err->desc : "?");
    return info;
}

static int create(struct volume *volume, struct volume_info *ret,
                  struct err **errp)
{
    return volume->ops->create(volume, TEMP, 8 * MIB, ret, errp);
}

static struct volume_info created(struct volume *volume)
{
    struct volume_info info;
    _cleanup_err_ struct err *err = NULL;
    cr_assert_eq(create(volume, &info, &err), 0, "%s",
                 err != NULL ? err->desc : "?");
    return info;
}

static void assert_nothing_left(const char *what)
{
    cr_assert_str_eq(get("state"), "{}", "%s: %s", what, get("state"));
    cr_assert_neq(access(in("dev/drbd/by-res/r1"), F_OK), 0, "%s", what);
}

/* --- what needs no controller --- */

Test(linstor, masks_tell_errors_from_warnings)
{
    cr_assert(linstor_is_error(-4611686018427387904));
    cr_assert(linstor_is_error(-4611686018373385243));
    cr_assert_not(linstor_is_error(-9223372036854772808), "a warning");
    cr_assert_not(linstor_is_error(20447233));
    cr_assert_not(linstor_is_error(4611686018427397904), "to inform");
    cr_assert_eq(linstor_code_of(-9223372036854772808), 3000);
    cr_assert_eq(linstor_rest_version("1.22.0"), 1022);
    cr_assert_lt(linstor_rest_version("1.9.1"), linstor_rest_version("1.22.0"));
    cr_assert_eq(linstor_rest_version("x"), 0);
}

Test(linstor, names_are_checked)
{
    static const char *const bad[] = {
        "linstor:r",
        "linstor://c/g",
        "linstor://c/group/",
        "linstor://c//res",
        "linstor:///group/res",
        "linstor://c,/group/res",
        "linstor://,c/group/res",
        "linstor://a b/group/res",
        "linstor://u:SECRET@c/group/res",
        "linstor://c/group/all",
        "linstor://c/group/-res",
        "linstor://c/group/a/b",
        "linstor://c/group/..",
        "linstor://c/group/r%2fs",
        "linstor://c/group/res?tls=maybe",
        "linstor://c/group/res?user=u",
        "linstor://c/group/res?password=f",
        "linstor://c/group/res?token=f&user=u&password=f",
        "linstor://c/group/res?key=f",
        "linstor://c/group/res?where=1",
    };
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        struct volume *volume = NULL;
        _cleanup_err_ struct err *err = NULL;
        cr_assert_eq(volume_parse(bad[i], &volume, &err), -EINVAL, "%s",
                     bad[i]);
        cr_assert_null(volume);
        _cleanup_free_ char *text = err_text(err);
        cr_assert_null(strstr(text, "SECRET"));
    }
}

Test(linstor, sizes_are_rounded_up)
{
    (void)snprintf(port, sizeof(port), "3370");
    _cleanup_(volume_freep) struct volume *volume = parsed("r1");
    cr_assert_eq(volume->ops->round(8 * MIB), 8 * MIB);
    cr_assert_eq(volume->ops->round(8 * MIB + 1), 8 * MIB + 1024);
    cr_assert_eq(volume->ops->round(512), 3 * MIB);
}

Test(linstor, node_is_the_link_that_udev_will_make)
{
    (void)snprintf(port, sizeof(port), "3370");
    _cleanup_(volume_freep) struct volume *volume =
        parsed("r1?node=a&cache=none");
    json_auto_t *node = volume->ops->node_options(volume, NULL);
    json_auto_t *wanted =
        json_pack("{s:s, s:s, s:s, s:b, s:{s:b}}", "driver", "host_device",
                  "discard", "unmap", "filename", in("dev/drbd/by-res/r1/0"),
                  "auto-read-only", 0, "cache", "direct", 1);
    cr_assert(json_equal(node, wanted));
}

/* --- looking --- */

Test(linstor, absent_resource_tells_of_its_place)
{
    start(NULL);
    _cleanup_(volume_freep) struct volume *volume = parsed("r1?node=Alpha");
    struct volume_info info = probed(volume);
    cr_assert_not(info.exists);
    cr_assert_not(info.stale);
    cr_assert_eq(info.available, UINT64_C(1) << 40);
    cr_assert_str_eq(changes(), "", "a look changes nothing");
}

Test(linstor, unknown_names_are_told)
{
    static const char *const args[] = {"--had", "mine=8192:alpha", NULL};
    struct volume_info info;
    start(args);
    _cleanup_err_ struct err *node = NULL, *group = NULL;
    _cleanup_(volume_freep) struct volume *elsewhere = parsed("r1?node=nemo");
    cr_assert_eq(elsewhere->ops->probe(elsewhere, &info, &node), -ENOENT);
    cr_assert_not_null(strstr(node->desc, "'nemo'"));
    _cleanup_free_ char *uri =
        str_printf("linstor://127.0.0.1:%s/nogroup/r1?node=alpha", port);
    _cleanup_(volume_freep) struct volume *nowhere = NULL;
    cr_assert_eq(volume_parse(uri, &nowhere, NULL), 0);
    cr_assert_eq(nowhere->ops->probe(nowhere, &info, &group), -ENOENT);
    cr_assert_not_null(strstr(group->desc, "'nogroup'"));
}

Test(linstor, thick_pools_promise_no_zeroes)
{
    static const char *const args[] = {"--node", "alpha=LVM_THIN", "--node",
                                       "beta=LVM", NULL};
    start(args);
    _cleanup_(volume_freep) struct volume *volume = parsed("r1?node=alpha");
    cr_assert(probed(volume).stale);
    cr_assert_not(created(volume).zero);
}

/* What is encrypted or cached reads as anything where nobody has written. */
Test(linstor, layer_below_drbd_promises_no_zeroes)
{
    static const struct {
        const char *const args[5];
        bool stale, zero;
    } cases[] = {
        {{"--layer", "LUKS", "--layer", "CACHE", NULL},                     false, false},
        {{"--layer", "SOMETHING", "--rest", "1.28.0", NULL},                false, false},
        {{"--definition", "DRBD,LUKS,STORAGE", "--rest", "1.28.0", NULL},
         false,                                                                    false},
        {{"--stack", "drbd,luks,storage", "--rest", "1.28.0", NULL},
         true,                                                                     false},
        {{"--stack", "drbd,storage", "--definition", "DRBD,STORAGE", NULL},
         false,                                                                    true },
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        _cleanup_free_ char *name = str_printf("at%zu", i);
        cr_assert_eq(mkdir(in(name), 0700), 0);
        start_at(in(name), port, cases[i].args);
        _cleanup_free_ char *rest = str_printf("r%zu?node=alpha", i);
        _cleanup_(volume_freep) struct volume *volume = parsed(rest);
        cr_assert_eq(probed(volume).stale, cases[i].stale, "%zu", i);
        cr_assert_eq(created(volume).zero, cases[i].zero, "%zu", i);
    }
    json_auto_t *odd = json_pack("[i]", 1);
    json_auto_t *text = json_string("DRBD");
    cr_assert_not(linstor_is_plain(odd));
    cr_assert_not(linstor_is_plain(text));
    cr_assert(linstor_is_plain(NULL));
    cr_assert(linstor_is_plain(json_null()));
}

/* Servers that tell no tree, or another one, promise nothing. */
Test(linstor, view_without_its_layers_promises_no_zeroes)
{
    static const struct {
        const char *layers;
        bool thin;
    } trees[] = {
        {"{}",                                                               false},
        {"{'type': 'DRBD', 'drbd': {}}",                                     false},
        {"{'type': 'DRBD', 'children': []}",                                 false},
        {"{'type': 'DRBD', 'children': [{}]}",                               false},
        {"{'type': 'STORAGE', 'children': [{'type': 'STORAGE'}]}",           false},
        {"{'type': 'DRBD', 'children': [{'type': 'STORAGE'}]}",              true },
        {"{'type': 'DRBD', 'children': [{'type': 'STORAGE'},"
         " {'type': 'STORAGE', 'resource_name_suffix': '.meta'}]}", true },
        {"{'type': 'DRBD', 'children': [{'type': 'STORAGE', 'children':"
         " [{'type': 'LUKS'}]}]}",                                  false},
        {"{'type': 'DRBD', 'children': [{'type': 'LUKS', 'children':"
         " [{'type': 'STORAGE'}]}]}",                               false},
    };

    for (size_t i = 0; i < ARRAY_SIZE(trees); i++) {
        _cleanup_view_ struct linstor_view view = {0};
        char text[512];
        (void)snprintf(text, sizeof(text),
                       "[{'name': 'r', 'node_name': 'a', 'layer_object': %s,"
                       " 'volumes': [{'provider_kind': 'LVM_THIN'}]}]",
                       trees[i].layers);
        for (char *c = text; *c != '\0'; c++) {
            *c = *c == '\'' ? '"' : *c;
        }
        json_auto_t *json = json_loads(text, 0, NULL);
        cr_assert_not_null(json, "%s", text);
        cr_assert_eq(linstor_view_read(json, "r", &view, NULL), 0);
        cr_assert_eq(linstor_view_is_thin(&view), trees[i].thin, "%s", text);
    }
}

Test(linstor, existing_resource_is_looked_at)
{
    static const char *const args[] = {"--had", "mine=8192:alpha,beta,?gamma",
                                       NULL};
    start(args);
    _cleanup_(volume_freep) struct volume *volume =
        parsed("Mine?node=alpha&existing=yes");
    struct volume_info info;
    _cleanup_err_ struct err *err = NULL;
    cr_assert_eq(volume->ops->probe(volume, &info, &err), -ENODATA,
                 "its link has the name as it was given");
    _cleanup_(volume_freep) struct volume *same =
        parsed("mine?node=alpha&existing=yes");
    info = probed(same);
    cr_assert(info.exists);
    cr_assert_eq(info.size, 8 * MIB);
    cr_assert_eq(info.block_size, 512);
    cr_assert_str_eq(info.state, "");
    cr_assert_str_eq(info.degraded, "");
    cr_assert_str_eq(info.alone, "");
    cr_assert(str_starts(info.identity, "linstor:"));
    cr_assert_not(info.in_use);
    cr_assert_not(info.zero);
    cr_assert(info.fills);
    put("in-use.beta", "");
    info = probed(same);
    cr_assert(info.in_use);
    cr_assert_not_null(strstr(info.in_use_by, "'beta'"));
}

Test(linstor, silence_of_a_node_is_no_leave)
{
    static const char *const args[] = {"--had", "mine=8192:alpha,beta", NULL};
    start(args);
    _cleanup_(volume_freep) struct volume *volume =
        parsed("mine?node=alpha&existing=yes");
    put("silent.beta", "");
    struct volume_info info = probed(volume);
    cr_assert_not(info.in_use);
    cr_assert_not_null(strstr(info.alone, "'beta'"));
    cr_assert_not_null(strstr(info.degraded, "'beta'"));
    struct volume_info answer;
    cr_assert_eq(volume->ops->answer(volume, &answer, NULL), 0);
    cr_assert_str_eq(answer.identity, info.identity);
    cr_assert_str_eq(answer.degraded, info.degraded);
    cr_assert_eq(answer.size, 8 * MIB);
}

Test(linstor, user_on_another_node_is_no_answer)
{
    static const char *const args[] = {"--had", "mine=8192:alpha,beta", NULL};
    start(args);
    _cleanup_(volume_freep) struct volume *volume =
        parsed("mine?node=Alpha&existing=yes");
    struct volume_info answer;
    _cleanup_err_ struct err *err = NULL;
    put("in-use.beta", "");
    cr_assert_eq(volume->ops->answer(volume, &answer, NULL), 0);
    cr_assert_not(answer.rival, "it is not open here");
    put("in-use.alpha", "");
    cr_assert_eq(volume->ops->answer(volume, &answer, &err), -EBUSY);
    cr_assert_not_null(strstr(err->desc, "'beta'"));
    cr_assert(answer.rival);
}

/* --- making available --- */

static struct volume_planned away(const char *identity)
{
    return (struct volume_planned){identity, "away", false, false};
}

Test(linstor, resource_elsewhere_is_made_available_and_given_back)
{
    static const char *const args[] = {"--had", "mine=8192:beta,?alpha", NULL};
    start(args);
    _cleanup_(volume_freep) struct volume *volume =
        parsed("mine?node=alpha&existing=yes");
    struct volume_info info = probed(volume), attached;
    cr_assert_str_eq(info.state, "away", "a tiebreaker holds no data");
    cr_assert_eq(info.size, 8 * MIB);
    struct volume_planned planned = away(info.identity);
    cr_assert_eq(volume->ops->attach(volume, &planned, &attached, NULL), 0);
    cr_assert_not(attached.untouched);
    cr_assert_eq(attached.size, 8 * MIB);
    cr_assert_str_eq(changes(), "POST make-available-");
    cr_assert_eq(volume->ops->detach(volume, &planned, NULL), 0);
    cr_assert_not_null(strstr(changes(), "DELETE alpha?keep_tiebreaker=true"));
    cr_assert_str_eq(probed(volume).state, "away");
    cr_assert_eq(volume->ops->detach(volume, &planned, NULL), 0);
    cr_assert_eq(n_calls("DELETE", ""), 1, "what is not there is not deleted");
}

Test(linstor, what_others_did_is_not_taken_back)
{
    static const char *const args[] = {"--had", "mine=8192:beta,alpha", NULL};
    start(args);
    _cleanup_(volume_freep) struct volume *volume =
        parsed("mine?node=alpha&existing=yes");
    struct volume_info info = probed(volume), attached;
    struct volume_planned planned = away(info.identity);
    _cleanup_err_ struct err *err = NULL;
    cr_assert_eq(volume->ops->attach(volume, &planned, &attached, &err),
                 -ESTALE);
    cr_assert(attached.untouched);
    cr_assert_eq(volume->ops->detach(volume, &planned, NULL), 0);
    planned = away("linstor:another");
    cr_assert_eq(volume->ops->attach(volume, &planned, &attached, NULL),
                 -ESTALE);
    cr_assert_eq(volume->ops->detach(volume, &planned, NULL), 0);
    cr_assert_str_eq(changes(), "");
}

Test(linstor, nothing_is_made_available_that_is_in_use)
{
    static const char *const args[] = {"--had", "mine=8192:beta", NULL};
    start(args);
    _cleanup_(volume_freep) struct volume *volume =
        parsed("mine?node=alpha&existing=yes");
    struct volume_info info = probed(volume), attached;
    struct volume_planned planned = away(info.identity);
    put("in-use.beta", "");
    cr_assert_eq(volume->ops->attach(volume, &planned, &attached, NULL),
                 -EBUSY);
    cr_assert(attached.untouched);
    (void)unlink(in("in-use.beta"));
    put("silent.beta", "");
    cr_assert_eq(volume->ops->attach(volume, &planned, &attached, NULL),
                 -ENOTCONN);
    cr_assert_str_eq(changes(), "");
    planned.alone = true;
    cr_assert_eq(volume->ops->attach(volume, &planned, &attached, NULL), 0);
}

/* --- making and removing --- */

Test(linstor, making_asks_for_definitions_and_then_for_places)
{
    start(NULL);
    _cleanup_(volume_freep) struct volume *volume = parsed("r1?node=alpha");
    struct volume_info info = created(volume), other;
    cr_assert_eq(info.size, 8 * MIB);
    cr_assert(info.zero);
    cr_assert_str_eq(info.state, "");
    cr_assert_str_eq(changes(), "POST spawn, POST make-available+,"
                                " POST autoplace");
    cr_assert_not_null(
        strstr(get("state"), "\"Aux/qpivot/volume\": \"" TEMP "\""));
    cr_assert_not_null(
        strstr(get("state"), "\"DrbdOptions/ExactSize\": \"True\""));
    cr_assert_eq(volume->ops->publish(volume, TEMP, info.identity, NULL), 0);
    cr_assert_eq(volume->ops->publish(volume, "qpv-x", info.identity, NULL),
                 -EEXIST);
    cr_assert_str_eq(probed(volume).identity, info.identity);
    cr_assert_eq(volume->ops->remove(volume, TEMP, info.identity, NULL), 0);
    assert_nothing_left("removed");
    cr_assert_eq(volume->ops->remove(volume, TEMP, info.identity, NULL), 0);
    cr_assert_eq(n_calls("DELETE", ""), 1);
    /* Another one of that name is another one. */
    other = created(volume);
    cr_assert_str_neq(other.identity, info.identity);
    cr_assert_eq(volume->ops->remove(volume, TEMP, info.identity, NULL),
                 -ESTALE);
    cr_assert_eq(volume->ops->remove(volume, "qpv-x", NULL, NULL), 0);
    cr_assert_eq(volume->ops->remove(volume, "qpv-x", other.identity, NULL),
                 -ESTALE);
    cr_assert_eq(n_calls("DELETE", ""), 1);
    cr_assert_eq(volume->ops->remove(volume, NULL, other.identity, NULL), 0,
                 "a copy knows its identity only");
    assert_nothing_left("removed by its identity");
}

Test(linstor, host_without_pool_reaches_the_copies_of_others)
{
    static const char *const args[] = {"--node",   "alpha=", "--node",
                                       "beta=ZFS", "--node", "gamma=LVM_THIN",
                                       NULL};
    start(args);
    _cleanup_(volume_freep) struct volume *volume = parsed("r1?node=alpha");
    struct volume_info info = created(volume);
    cr_assert(info.zero);
    cr_assert_str_eq(changes(), "POST spawn, POST make-available+,"
                                " POST autoplace, POST make-available-");
    cr_assert_eq(info.size, 8 * MIB);
}

Test(linstor, taken_name_is_refused_and_left_alone)
{
    static const char *const args[] = {"--had", "R1=8192:alpha,beta", NULL};
    start(args);
    _cleanup_(volume_freep) struct volume *volume = parsed("r1?node=alpha");
    struct volume_info info;
    _cleanup_err_ struct err *err = NULL;
    cr_assert_eq(create(volume, &info, &err), -EEXIST);
    cr_assert_eq(volume->ops->remove(volume, TEMP, NULL, NULL), 0);
    struct volume_info there = {0};
    _cleanup_(volume_freep) struct volume *other =
        parsed("R1?node=alpha&existing=yes");
    there = probed(other);
    cr_assert_eq(other->ops->remove(other, TEMP, there.identity, NULL), -ESTALE,
                 "it is not marked as ours");
    cr_assert_eq(other->ops->remove(other, NULL, there.identity, NULL),
                 -ESTALE);
    cr_assert_str_eq(changes(), "");
}

Test(linstor, earlier_try_is_replaced)
{
    start(NULL);
    _cleanup_(volume_freep) struct volume *volume = parsed("r1?node=alpha");
    struct volume_info first = created(volume), second = created(volume);
    cr_assert_str_neq(first.identity, second.identity);
    cr_assert_eq(n_calls("DELETE", ""), 1);
}

/*
 * What goes wrong at one request: the volume is there and whole, or nothing of
 * it is left. No change is sent twice but the removal's own.
 */
static const struct fault {
    const char *line;
    bool made;
    const char *changes; /* or NULL */
} faults[] = {
    {"POST /spawn 500-before",             false, "POST spawn"                                         },
    {"POST /spawn 500-after",              true,
     "POST spawn, POST make-available+, POST autoplace"                                                },
    {"POST /spawn reset-before",           false, "POST spawn"                                         },
    {"POST /spawn reset-after",            true,
     "POST spawn, POST make-available+, POST autoplace"                                                },
    {"POST /spawn late 3",                 true,
     "POST spawn, POST make-available+, POST autoplace"                                                },
    {"POST make-available 500-after",      false,
     "POST spawn, POST make-available+, DELETE r1"                                                     },
    {"POST make-available reset-after",    true,
     "POST spawn, POST make-available+, POST autoplace"                                                },
    {"POST make-available reset-before",   true,  /* placed here all the same */
     "POST spawn, POST make-available+, POST autoplace"},
    {"POST make-available offline",        false,
     "POST spawn, POST make-available+, DELETE r1"                                                     },
    {"POST make-available not-ready 5",    true,
     "POST spawn, POST make-available+, POST autoplace"                                                },
    {"POST make-available not-ready 9999", false,
     "POST spawn, POST make-available+, POST autoplace, DELETE r1"                                     },
    {"POST autoplace refuse 996",          false,
     "POST spawn, POST make-available+, POST autoplace, DELETE r1"                                     },
    {"POST autoplace reset-after",         true,
     "POST spawn, POST make-available+, POST autoplace"                                                },
    {"POST autoplace reset-before",        false,
     "POST spawn, POST make-available+, POST autoplace, DELETE r1"                                     },
    {"GET volume-definitions slow 1",      true,  NULL                                                 },
    {"GET /v1/nodes 500-before",           false, ""                                                   },
};

Test(linstor, fault_leaves_all_or_nothing)
{
    for (size_t i = 0; i < ARRAY_SIZE(faults); i++) {
        const struct fault *fault = &faults[i];
        struct volume_info info;
        _cleanup_err_ struct err *err = NULL;
        if (i == 0) {
            start(NULL);
        }
        (void)unlink(in("calls"));
        put("faults", fault->line);
        _cleanup_(volume_freep) struct volume *volume = parsed("r1?node=alpha");
        int r = create(volume, &info, &err);
        cr_assert_eq(r == 0, fault->made, "%s: %s", fault->line,
                     err != NULL ? err->desc : "no error");
        if (fault->changes != NULL) {
            cr_assert_str_eq(changes(), fault->changes, "%s: %s", fault->line,
                             changes());
        }
        if (r == 0) {
            cr_assert_eq(volume->ops->remove(volume, TEMP, info.identity, NULL),
                         0, "%s", fault->line);
        } else {
            cr_assert_not_null(err, "%s", fault->line);
        }
        assert_nothing_left(fault->line);
    }
}

Test(linstor, removal_waits_until_it_is_true)
{
    static const char *const lines[] = {
        "DELETE r1 linger 2", "DELETE r1 reset-after", "DELETE r1 late 3",
        "DELETE r1 500-after"};
    start(NULL);
    _cleanup_(volume_freep) struct volume *volume = parsed("r1?node=alpha");
    for (size_t i = 0; i < ARRAY_SIZE(lines); i++) {
        struct volume_info info = created(volume);
        put("faults", lines[i]);
        (void)unlink(in("calls"));
        cr_assert_eq(volume->ops->remove(volume, TEMP, info.identity, NULL), 0,
                     "%s", lines[i]);
        cr_assert_eq(n_calls("DELETE", ""), 1, "%s", lines[i]);
        assert_nothing_left(lines[i]);
    }
}

Test(linstor, removal_that_does_not_come_true_is_told)
{
    static const char *const lines[] = {"DELETE r1 linger 9999",
                                        "DELETE r1 reset-before",
                                        "DELETE r1 500-before"};
    start(NULL);
    _cleanup_(volume_freep) struct volume *volume = parsed("r1?node=alpha");
    struct volume_info info = created(volume);
    for (size_t i = ARRAY_SIZE(lines); i-- > 0;) {
        _cleanup_err_ struct err *err = NULL;
        put("faults", lines[i]);
        cr_assert_lt(volume->ops->remove(volume, TEMP, info.identity, &err), 0,
                     "%s", lines[i]);
        cr_assert_not_null(strstr(err->hint, "linstor resource-definition"
                                             " delete r1"),
                           "%s", lines[i]);
    }
}

Test(linstor, nothing_is_removed_that_may_be_in_use)
{
    start(NULL);
    _cleanup_(volume_freep) struct volume *volume = parsed("r1?node=alpha");
    struct volume_info info = created(volume);
    static const char *const files[] = {"in-use.alpha", "in-use.beta",
                                        "silent.beta", "silent.alpha"};
    for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
        _cleanup_err_ struct err *err = NULL;
        put(files[i], "");
        cr_assert_eq(volume->ops->remove(volume, TEMP, info.identity, &err),
                     -EBUSY, "%s", files[i]);
        cr_assert_not_null(strstr(err->desc, strchr(files[i], '.') + 1));
        (void)unlink(in(files[i]));
    }
    cr_assert_eq(n_calls("DELETE", ""), 0);
    /* Who begins to use it in between is told by the server. */
    put("faults", "DELETE r1 refuse 997");
    cr_assert_eq(volume->ops->remove(volume, TEMP, info.identity, NULL),
                 -EBUSY);
    /* Nor is what a killed one has made, as that may be long ago. */
    _cleanup_err_ struct err *err = NULL;
    struct volume_info again;
    unsigned before = n_calls("DELETE", "");
    put("silent.beta", "");
    cr_assert_eq(volume->ops->remove(volume, TEMP, NULL, &err), -EBUSY);
    cr_assert_not_null(strstr(err->hint, "resource-definition delete r1"));
    _cleanup_err_ struct err *earlier = NULL;
    cr_assert_eq(create(volume, &again, &earlier), -EBUSY, "an earlier try");
    cr_assert_not_null(strstr(earlier->hint, "resource-definition delete r1"));
    cr_assert_eq(n_calls("DELETE", ""), before);
    (void)unlink(in("silent.beta"));
    cr_assert_eq(volume->ops->remove(volume, TEMP, NULL, NULL), 0);
    assert_nothing_left("silence");
}

/* Nobody but who makes it knows of it. */
Test(linstor, silence_does_not_keep_what_is_not_made_yet)
{
    start(NULL);
    _cleanup_(volume_freep) struct volume *volume = parsed("r1?node=alpha");
    struct volume_info info;
    put("silent.beta", "");
    put("faults", "POST make-available not-ready 9999");
    cr_assert_eq(create(volume, &info, NULL), -ETIMEDOUT);
    assert_nothing_left("silence");
}

Test(linstor, nothing_is_removed_that_others_have_put_a_volume_into)
{
    static const char *const volumes[] = {"[0, 1]", "[1]"};
    start(NULL);
    _cleanup_(volume_freep) struct volume *volume = parsed("r1?node=alpha");
    struct volume_info info = created(volume), again;
    for (size_t i = 0; i < ARRAY_SIZE(volumes); i++) {
        _cleanup_err_ struct err *err = NULL;
        put("volumes", volumes[i]);
        cr_assert_eq(volume->ops->remove(volume, TEMP, info.identity, &err),
                     -ENOTEMPTY, "%s", volumes[i]);
        cr_assert_null(strstr(err->hint, "delete"));
        cr_assert_eq(volume->ops->remove(volume, TEMP, NULL, NULL), -ENOTEMPTY);
        cr_assert_eq(create(volume, &again, NULL), -ENOTEMPTY);
    }
    cr_assert_eq(n_calls("DELETE", ""), 0);
    (void)unlink(in("volumes"));
    cr_assert_eq(volume->ops->remove(volume, TEMP, info.identity, NULL), 0);
    assert_nothing_left("alone again");
}

Test(linstor, engine_waits_for_all_that_the_backend_waits_for)
{
    cr_assert_gt(backend_linstor.create_ms,
                 LINSTOR_CREATE_MS + LINSTOR_REMOVE_MS + 30000);
}

Test(linstor, server_that_is_too_simple_is_refused)
{
    static const char *const args[] = {"--rest", "1.21.0", NULL};
    start(args);
    struct volume_info info;
    _cleanup_err_ struct err *err = NULL;
    _cleanup_(volume_freep) struct volume *volume = parsed("r1?node=alpha");
    cr_assert_eq(create(volume, &info, &err), -ENOTSUP);
    cr_assert_not_null(strstr(err->hint, "1.27"));
    cr_assert_str_eq(changes(), "");
}
