/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The graph as real QEMUs told it (tests/unit/graph, made by record.py there)
 * and as none would.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "base/err.h"
#include "base/str.h"
#include "vm/graph.h"

#define VD0 "/machine/peripheral/vd0/virtio-backend"

/* Meson tells where the sources are; by hand it is where we were compiled. */
static json_t *recorded(const char *name)
{
    const char *dir = getenv("QPIVOT_TEST_DATA");
    const char *slash = strrchr(__FILE__, '/');
    int n = slash != NULL ? (int)(slash - __FILE__) : 0;
    _cleanup_free_ char *path =
        dir != NULL ? str_printf("%s/graph/%s.json", dir, name)
                    : str_printf("%.*s/graph/%s.json", n, __FILE__, name);
    json_error_t error;
    json_t *json = json_load_file(path, 0, &error);
    cr_assert(json != NULL, "%s: %s", path, error.text);
    return json;
}

static int build(const json_t *json, struct graph **ret, struct err **errp)
{
    struct graph_replies replies = {
        .nodes = json_object_get(json, "nodes"),
        .block = json_object_get(json, "block"),
        .jobs = json_object_get(json, "jobs"),
        .block_jobs = json_object_get(json, "block_jobs"),
        .exports = json_object_get(json, "exports"),
        .edges = json_object_get(json, "edges"),
        .throttle_groups = json_object_get(json, "throttle_groups"),
    };
    return graph_build(&replies, ret, errp);
}

/* The graph must not borrow from the replies: they are gone here. */
static struct graph *graph_of(json_t *json)
{
    struct graph *graph = NULL;
    int r = build(json, &graph, NULL);
    json_decref(json);
    cr_assert_eq(r, 0);
    return graph;
}

static struct graph *load(const char *name)
{
    return graph_of(recorded(name));
}

static struct graph *parse(const char *text)
{
    json_error_t error;
    json_t *json = json_loads(text, 0, &error);
    cr_assert(json != NULL, "%s", error.text);
    return graph_of(json);
}

static struct graph_disk *disk_of(const struct graph *graph, const char *name)
{
    struct graph_disk *disk = NULL;
    _cleanup_err_ struct err *err = NULL;
    int r = graph_find_disk(graph, name, &disk, &err);
    cr_assert_eq(r, 0, "%s: %s", name, err != NULL ? err->desc : "");
    return disk;
}

static void expect_no_disk(const struct graph *graph, const char *name,
                           int code, const char *said)
{
    struct graph_disk *disk = NULL;
    _cleanup_err_ struct err *err = NULL;
    cr_assert_eq(graph_find_disk(graph, name, &disk, &err), code);
    cr_assert_null(disk);
    _cleanup_free_ char *text = err_text(err);
    _cleanup_free_ char *all =
        str_printf("%s; %s", text, err->hint != NULL ? err->hint : "");
    cr_assert(strstr(all, said) != NULL, "'%s' is not in '%s'", said, all);
}

static int prove(const struct graph *graph, const char *target,
                 const char *source, const char *protocol, const char *said)
{
    _cleanup_err_ struct err *err = NULL;
    struct graph_claim claim = {VD0, target, source, protocol};
    int r = graph_proof(graph, &claim, &err);
    if (r < 0) {
        _cleanup_free_ char *text = err_text(err);
        cr_assert(strstr(text, said) != NULL, "'%s' is not in '%s'", said,
                  text);
    }
    return r;
}

static void expect_deletable(const struct graph *graph, const char *names,
                             const char *order)
{
    json_auto_t *list = json_loads(names, 0, NULL);
    json_auto_t *got = graph_deletable(graph, list);
    _cleanup_free_ char *text = json_dumps(got, JSON_COMPACT);
    cr_assert_str_eq(text, order);
}

static void expect_json(const json_t *json, const char *text)
{
    _cleanup_free_ char *got =
        json_dumps(json, JSON_COMPACT | JSON_ENCODE_ANY | JSON_SORT_KEYS);
    cr_assert_str_eq(got, text);
}

static void expect_edge(const struct graph *graph, const char *parent,
                        const char *child, const char *role)
{
    json_auto_t *json = graph_to_json(graph);
    size_t i;
    json_t *edge;
    json_array_foreach(json_object_get(json, "edges"), i, edge) {
        const char *p, *c, *r;
        cr_assert_eq(json_unpack(edge, "{s:s, s:s, s:s}", "parent", &p, "child",
                                 &c, "role", &r),
                     0);
        if (str_eq(p, parent) && str_eq(c, child) && str_eq(r, role)) {
            return;
        }
    }
    cr_assert_fail("no edge %s -> %s (%s)", parent, child, role);
}

/* --- resolving --- */

Test(graph, plain_disk_is_found_by_device_node_and_path)
{
    _cleanup_graph_ struct graph *graph = load("blockdev");
    const char *const names[] = {"vd0", "q0", VD0};
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        _cleanup_graph_disk_ struct graph_disk *disk = disk_of(graph, names[i]);
        cr_assert_str_eq(disk->device->id, "vd0");
        cr_assert_str_eq(disk->device->key, VD0);
        cr_assert_str_eq(disk->root->name, "q0");
        cr_assert_str_eq(disk->active->name, "q0");
        cr_assert_str_eq(disk->protocol->name, "f0");
        cr_assert_str_eq(disk->format, "qcow2");
        cr_assert_eq(disk->n_filters, 0);
        cr_assert_eq(disk->n_layers, 1);
        cr_assert_eq(disk->n_nodes, 2);
        cr_assert_eq(disk->n_others, 0);
        cr_assert_null(disk->shared);
        cr_assert_eq(disk->size, 64 << 20);
    }
}

Test(graph, unknown_and_lower_nodes_are_refused_with_candidates)
{
    _cleanup_graph_ struct graph *graph = load("blockdev");
    expect_no_disk(graph, "nope", -ENOENT, "the disks are: vd0 (node q0)");
    expect_no_disk(graph, "", -ENOENT, "the disks are");
    expect_no_disk(graph, "f0", -ENODEV, "not what a device is attached to");
}

Test(graph, node_of_two_devices_is_ambiguous_and_each_names_the_other)
{
    _cleanup_graph_ struct graph *graph = load("two-devices");
    expect_no_disk(graph, "n0", -EEXIST, "device 'vd0' and device 'vd1'");
    _cleanup_graph_disk_ struct graph_disk *disk = disk_of(graph, "vd0");
    cr_assert_eq(disk->n_others, 1);
    cr_assert_eq(disk->others[0].kind, GRAPH_DEVICE);
    cr_assert_str_eq(disk->others[0].name, "vd1");
    cr_assert_str_eq(disk->shared->name, "n0");
    cr_assert_str_eq(disk->format, "raw");
}

Test(graph, legacy_drive_is_found_by_its_id_with_its_limits)
{
    _cleanup_graph_ struct graph *graph = load("drive");
    _cleanup_graph_disk_ struct graph_disk *disk = disk_of(graph, "drv0");
    cr_assert_null(disk->device->id);
    cr_assert_str_eq(disk->device->label, "drv0");
    cr_assert_str_eq(disk->device->group, "lg");
    cr_assert(disk->active->anonymous);
    expect_json(disk->device->limits, "{\"iops\":100}");
    json_auto_t *facts = graph_disk_facts(graph, disk);
    expect_json(json_object_get(facts, "detect_zeroes"), "\"unmap\"");
    expect_json(json_object_get(facts, "cache"),
                "{\"direct\":true,\"no_flush\":false,\"writeback\":true}");
}

Test(graph, device_id_and_drive_id_of_one_device_are_one_disk)
{
    _cleanup_graph_ struct graph *graph = load("drive-mirror-pivoted");
    const char *const names[] = {"vd0", "drv0", "qt"};
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        _cleanup_graph_disk_ struct graph_disk *disk = disk_of(graph, names[i]);
        cr_assert_str_eq(disk->active->name, "qt");
    }
}

Test(graph, buses_spell_their_devices_differently)
{
    _cleanup_graph_ struct graph *graph = load("buses");

    static const struct {
        const char *name, *node;
        bool cdrom, read_only, writeback;
    } disks[] = {
        {"sd1",     "ns",  false, false, false},
        {"id0",     "ni",  false, false, true },
        {"cd1",     "ncd", true,  true,  true },
        {"ro0",     "nr",  false, true,  true },
        {"floppy0", NULL,  false, true,  true },
    };

    for (size_t i = 0; i < ARRAY_SIZE(disks); i++) {
        _cleanup_graph_disk_ struct graph_disk *disk =
            disk_of(graph, disks[i].name);
        cr_assert_str_eq(disk->device->label, disks[i].name);
        cr_assert_eq(disk->device->cdrom, disks[i].cdrom);
        cr_assert_eq(disk->device->read_only, disks[i].read_only);
        cr_assert_eq(disk->device->writeback, disks[i].writeback);
        cr_assert(disks[i].node == NULL ||
                  str_eq(disk->root->name, disks[i].node));
    }
    expect_no_disk(graph, "cd0", -ENOMEDIUM, "the drive is empty");
    expect_no_disk(graph, "idle", -ENOMEDIUM, "the drive is empty");
}

Test(graph, backend_named_as_another_device_goes_by_the_node_below)
{
    _cleanup_graph_ struct graph *graph = parse(
        "{\"nodes\":[{\"node-name\":\"a\"},{\"node-name\":\"b\"}],"
        "\"block\":[{\"device\":\"\",\"qdev\":\"x\","
        "\"inserted\":{\"node-name\":\"a\"}},"
        "{\"device\":\"x\",\"qdev\":\"y\",\"inserted\":{\"node-name\":\"b\"}}],"
        "\"edges\":{\"nodes\":[{\"id\":1,\"type\":\"block-backend\","
        "\"name\":\"x\"},{\"id\":2,\"type\":\"block-backend\",\"name\":\"x\"},"
        "{\"id\":3,\"type\":\"block-driver\",\"name\":\"a\"},"
        "{\"id\":4,\"type\":\"block-driver\",\"name\":\"b\"}],"
        "\"edges\":[{\"parent\":1,\"child\":4,\"name\":\"root\"},"
        "{\"parent\":2,\"child\":3,\"name\":\"root\"}]}}");
    cr_assert_str_eq(graph_find_device(graph, "x")->root->name, "a");
    cr_assert_str_eq(graph_find_device(graph, "y")->root->name, "b");
    expect_no_disk(graph, "x", -EEXIST, "device 'x' and device 'y'");
}

/* --- chains, filters, users --- */

Test(graph, chain_is_read_from_the_active_layer_down)
{
    _cleanup_graph_ struct graph *graph = load("chain");
    _cleanup_graph_disk_ struct graph_disk *disk = disk_of(graph, "vd0");
    static const char *const nodes[] = {"q2", "q1", "q0"};
    static const char *const files[] = {"f2", "f1", "f0"};
    cr_assert_eq(disk->n_layers, 3);
    for (unsigned i = 0; i < 3; i++) {
        cr_assert_str_eq(disk->layers[i].node->name, nodes[i]);
        cr_assert_str_eq(disk->layers[i].protocol->name, files[i]);
    }
    cr_assert_eq(disk->n_nodes, 6);
    cr_assert_eq(disk->n_others, 0);
    json_auto_t *facts = graph_disk_facts(graph, disk);
    expect_json(json_object_get(facts, "backing"),
                "[\"mid.qcow2\",\"base.qcow2\"]");
    expect_no_disk(graph, "q1", -ENODEV, "");
    expect_deletable(graph, "[\"f0\",\"q0\",\"q2\"]", "[]");
}

Test(graph, shared_backing_is_noticed_and_not_deletable)
{
    _cleanup_graph_ struct graph *graph = load("chain-shared");
    _cleanup_graph_disk_ struct graph_disk *disk = disk_of(graph, "vd0");
    cr_assert_str_eq(disk->shared->name, "q0");
    cr_assert_eq(disk->n_others, 1);
    cr_assert_eq(disk->others[0].kind, GRAPH_NODE);
    cr_assert_str_eq(disk->others[0].name, "q3");
    expect_deletable(graph, "[\"q0\",\"f0\",\"q3\"]", "[\"q3\"]");
}

Test(graph, chain_of_a_drive_has_qemus_names_only)
{
    _cleanup_graph_ struct graph *graph = load("chain-drive");
    _cleanup_graph_disk_ struct graph_disk *disk = disk_of(graph, "virtio0");
    cr_assert_eq(disk->n_layers, 3);
    json_auto_t *names = json_array();
    for (unsigned i = 0; i < disk->n_nodes; i++) {
        json_array_append_new(names, json_string(disk->nodes[i]->name));
    }
    json_auto_t *order = graph_deletable(graph, names);
    cr_assert_eq(json_array_size(order), 0);
}

Test(graph, filters_above_and_below_the_format_are_told_apart)
{
    _cleanup_graph_ struct graph *graph = load("filters");
    const char *const names[] = {"vd0", "c0", "t0", "q0"};
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        _cleanup_graph_disk_ struct graph_disk *disk = disk_of(graph, names[i]);
        cr_assert_str_eq(disk->root->name, "c0");
        cr_assert_eq(disk->n_filters, 2);
        cr_assert_str_eq(disk->filters[1]->throttle_group, "tg0");
        cr_assert_str_eq(disk->active->name, "q0");
        cr_assert_str_eq(disk->protocol->name, "f0");
        json_auto_t *facts = graph_disk_facts(graph, disk);
        expect_json(json_object_get(facts, "filters"),
                    "[\"copy-on-read\",\"throttle\",\"|\",\"throttle\"]");
        expect_json(
            json_object_get(json_object_get(facts, "throttle"), "groups"),
            "[{\"id\":\"tg0\",\"limits\":{\"bps-total\":1000000}},"
            "{\"id\":\"tg1\",\"limits\":{\"iops-read\":7}}]");
    }
    json_auto_t *json = recorded("filters");
    json_auto_t *groups = graph_throttle_groups(json_object_get(json, "nodes"));
    expect_json(groups, "[\"tg0\",\"tg1\"]");
}

Test(graph, running_mirror_is_another_user_of_the_disk)
{
    static const char *const cases[] = {"mirror-ready", "mirror-pending",
                                        "mirror-implicit", "throttle-ready"};
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        _cleanup_graph_ struct graph *graph = load(cases[i]);
        _cleanup_graph_disk_ struct graph_disk *disk = disk_of(graph, "vd0");
        cr_assert_eq(disk->n_others, 1, "%s", cases[i]);
        cr_assert_eq(disk->others[0].kind, GRAPH_JOB);
        cr_assert_str_eq(disk->others[0].name, "mj");
        cr_assert_not_null(disk->job_filter);
        cr_assert_str_eq(disk->active->name, "q0");
        cr_assert(disk->root ==
                  (disk->n_filters > 0 ? disk->filters[0] : disk->active));
        cr_assert_str_eq(graph_find_job(graph, "mj")->type, "mirror");
        /* The mirror's unnamed backend is shown as the job's. */
        expect_edge(graph, "job:mj", "q1", "root");
        expect_edge(graph, "job:mj", "q1", "target");
        struct graph_user *users = NULL;
        unsigned n = 0;
        cr_assert_eq(
            graph_node_users(graph, graph_find_node(graph, "f1"), &users, &n),
            0);
        cr_assert_eq(n, 1);
        cr_assert_str_eq(graph_kind_text(users[0].kind), "job");
        free(users);
        expect_deletable(graph, "[\"q1\",\"f1\"]", "[]");
    }
}

/* The recorded mirrors, as if each were one back onto a former disk. */
static int prove_copies(const char *name, const char *root, const char *to,
                        const char *job, const char *said)
{
    _cleanup_graph_ struct graph *graph = load(name);
    _cleanup_err_ struct err *err = NULL;
    struct graph_claim claim = {VD0, root, "q1", "f1", job, "mflt", to};
    int r = graph_proof(graph, &claim, &err);
    _cleanup_free_ char *text = r < 0 ? err_text(err) : NULL;
    cr_assert(r == 0 || strstr(text, said) != NULL, "'%s' is not in '%s'", said,
              text);
    return r;
}

Test(graph, mirror_back_is_proved_by_what_it_copies_onto)
{
    cr_assert_eq(prove_copies("mirror-ready", "q0", "q1", "mj", ""), 0);
    cr_assert_eq(prove_copies("throttle-ready", "q0", "q1", "mj", ""), 0);
    cr_assert_eq(prove_copies("mirror-ready", "q0", "f1", "mj",
                              "copies onto node 'q1', not 'f1'"),
                 -EBUSY);
    cr_assert_eq(prove_copies("mirror-ready", "q0", "q0", "mj",
                              "copies onto node 'q1', not 'q0'"),
                 -EBUSY);
    cr_assert_eq(prove_copies("mirror-ready", "q0", "gone", "mj", "not 'gone'"),
                 -EBUSY);
    cr_assert_eq(prove_copies("mirror-ready", "q0", "q1", "other", "'mj'"),
                 -EBUSY);
    cr_assert_eq(prove_copies("blockdev", "q0", "q1", "mj", "no such job"),
                 -ENOENT);
}

Test(graph, jobs_of_others_are_against_a_pivot_but_not_against_a_window)
{
    static const char *const names[] = {"mirror-ready", "throttle-ready"};
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        _cleanup_graph_ struct graph *graph = load(names[i]);
        struct graph_claim claim = {.device = VD0, .target = "q0"};
        cr_assert_eq(graph_proof(graph, &claim, NULL), -EBUSY);
        claim.filter = "mflt";
        cr_assert_eq(graph_proof(graph, &claim, NULL), -EBUSY);
        claim.filter = NULL;
        claim.others = true;
        cr_assert_eq(graph_proof(graph, &claim, NULL), 0);
        claim.target = "q1";
        cr_assert_eq(graph_proof(graph, &claim, NULL), -EBUSY);
    }
}

Test(graph, export_is_another_user_of_the_disk)
{
    _cleanup_graph_ struct graph *graph = load("export");
    _cleanup_graph_disk_ struct graph_disk *disk = disk_of(graph, "vd0");
    cr_assert_eq(disk->n_others, 1);
    cr_assert_eq(disk->others[0].kind, GRAPH_EXPORT);
    cr_assert_str_eq(disk->others[0].name, "exp0");
    expect_edge(graph, "export:exp0", "q0", "root");
    expect_edge(graph, "device:vd0", "q0", "root");
}

Test(graph, storage_daemon_has_exports_and_no_devices)
{
    _cleanup_graph_ struct graph *graph = load("daemon");
    unsigned n = 9;
    (void)graph_devices(graph, &n);
    cr_assert_eq(n, 0);
    expect_edge(graph, "export:exp0", "q0", "root");
    expect_no_disk(graph, "q0", -ENODEV, "no disk with a medium");
}

Test(graph, snapshots_and_bitmaps_are_facts_without_what_changes)
{
    _cleanup_graph_ struct graph *graph = load("bitmaps");
    _cleanup_graph_disk_ struct graph_disk *disk = disk_of(graph, "vd0");
    cr_assert_eq(disk->active->n_snapshots, 2);
    cr_assert_eq(disk->active->n_bitmaps, 3);
    json_auto_t *facts = graph_disk_facts(graph, disk);
    expect_json(json_object_get(facts, "snapshots"), "[\"s1\",\"s2\"]");
    expect_json(json_array_get(json_object_get(facts, "bitmaps"), 2),
                "{\"granularity\":65536,\"name\":\"keep\","
                "\"persistent\":true,\"recording\":true}");
    _cleanup_graph_ struct graph *mirror = load("mirror-ready");
    _cleanup_graph_disk_ struct graph_disk *other = disk_of(mirror, "vd0");
    cr_assert_eq(other->active->n_bitmaps, 1, "the mirror's own");
    json_auto_t *plain = graph_disk_facts(mirror, other);
    expect_json(json_object_get(plain, "bitmaps"), "[]");
}

/* --- proof --- */

Test(graph, pivot_is_proved_on_every_kind_of_guest)
{
    static const struct {
        const char *name, *target;
    } cases[] = {
        {"mirror-pivoted",   "q1"},
        {"mirror-concluded", "q1"},
        {"throttle-pivoted", "q1"},
        {"shim-pivoted",     "r1"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        _cleanup_graph_ struct graph *graph = load(cases[i].name);
        cr_assert_eq(prove(graph, cases[i].target, "q0", "f0", ""), 0);
        expect_deletable(graph, "[\"f0\",\"q0\",\"gone\",7]",
                         "[\"q0\",\"f0\"]");
        expect_deletable(graph, "[\"f0\"]", "[]");
        expect_deletable(graph, "[\"q1\",\"f1\",\"r1\",\"p1\"]", "[]");
    }
}

Test(graph, pivot_of_a_legacy_drive_is_proved_though_the_source_is_gone)
{
    _cleanup_graph_ struct graph *graph = load("drive-pivoted");
    _cleanup_graph_disk_ struct graph_disk *disk = disk_of(graph, "drv0");
    struct graph_claim claim = {disk->device->key, "q1", "#block100", "f9"};
    cr_assert_eq(graph_proof(graph, &claim, NULL), 0);
    cr_assert_eq(prove(graph, "q1", NULL, NULL, "no such device"), -ENOENT);
}

Test(graph, mirror_that_has_not_pivoted_is_no_proof)
{
    static const struct {
        const char *name, *said;
    } cases[] = {
        {"mirror-ready",     "a job's filter node 'mflt' is still on it"},
        {"mirror-pending",   "a job's filter node 'mflt' is still on it"},
        {"mirror-implicit",  "is still on it"                           },
        {"throttle-pending", "a job's filter node 'mflt' is still on it"},
        {"mirror-cancelled", "it is attached to node 'q0', not to 'q1'" },
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        _cleanup_graph_ struct graph *graph = load(cases[i].name);
        cr_assert_eq(prove(graph, "q1", "q0", "f0", cases[i].said), -EBUSY,
                     "%s", cases[i].name);
    }
    _cleanup_graph_ struct graph *graph = load("mirror-pivoted");
    cr_assert_eq(prove(graph, "f1", "q0", "f0", "not to 'f1'"), -EBUSY);
    cr_assert_eq(prove(graph, "qx", "q0", "f0", "node 'qx'"), -ENOENT);
}

Test(graph, source_below_the_target_is_no_proof)
{
    _cleanup_graph_ struct graph *graph = load("chain");
    cr_assert_eq(prove(graph, "q2", NULL, NULL, ""), 0);
    cr_assert_eq(prove(graph, "q2", "q1", NULL, "source node 'q1'"), -EBUSY);
    cr_assert_eq(prove(graph, "q2", "gone", "f0", "source node 'f0'"), -EBUSY);
}

Test(graph, target_that_a_job_uses_is_no_proof)
{
    json_auto_t *json = recorded("mirror-pivoted");
    json_t *edges = json_object_get(json, "edges");
    json_t *rows = json_object_get(edges, "nodes");
    size_t i;
    json_t *row, *q1 = NULL;
    json_array_foreach(rows, i, row) {
        if (str_eq(json_string_value(json_object_get(row, "name")), "q1")) {
            q1 = json_object_get(row, "id");
        }
    }
    json_array_append_new(rows, json_pack("{s:i, s:s, s:s}", "id", 99, "type",
                                          "block-job", "name", "bk"));
    json_array_append_new(json_object_get(edges, "edges"),
                          json_pack("{s:i, s:O, s:s}", "parent", 99, "child",
                                    q1, "name", "main node"));
    _cleanup_graph_ struct graph *graph = NULL;
    cr_assert_eq(build(json, &graph, NULL), 0);
    cr_assert_eq(prove(graph, "q1", "q0", "f0", "job 'bk' still uses it"),
                 -EBUSY);
}

Test(graph, replies_of_two_moments_prove_nothing)
{
    json_auto_t *before = recorded("mirror-ready");
    json_auto_t *after = recorded("mirror-pivoted");
    _cleanup_graph_ struct graph *graph = NULL, *other = NULL;
    json_object_set(after, "block", json_object_get(before, "block"));
    cr_assert_eq(build(after, &graph, NULL), 0);
    cr_assert_eq(prove(graph, "q1", "q0", "f0", "query-block tells"), -EAGAIN);
    json_object_set(after, "edges", json_object_get(before, "edges"));
    cr_assert_eq(build(after, &other, NULL), 0);
    cr_assert_eq(prove(other, "q1", "q0", "f0", "changed while"), -EAGAIN);
}

Test(graph, without_edges_nothing_is_proved_nor_deleted)
{
    json_auto_t *json = recorded("mirror-pivoted");
    json_object_del(json, "edges");
    _cleanup_graph_ struct graph *graph = NULL;
    cr_assert_eq(build(json, &graph, NULL), 0);
    cr_assert_eq(graph_edges(graph), GRAPH_EDGES_NONE);
    cr_assert_eq(prove(graph, "q1", "q0", "f0", "nothing can be proved"),
                 -ENOTSUP);
    expect_no_disk(graph, "vd0", -ENOTSUP, "does not tell its block graph");
    expect_deletable(graph, "[\"q0\",\"f0\"]", "[]");
}

Test(graph, children_of_nodes_stand_in_for_the_debug_command)
{
    json_auto_t *json = recorded("mirror-pivoted");
    json_object_del(json, "edges");
    size_t i;
    json_t *node;
    json_array_foreach(json_object_get(json, "nodes"), i, node) {
        const char *name =
            json_string_value(json_object_get(node, "node-name"));
        json_t *list = json_array();
        if (name[0] == 'q') {
            _cleanup_free_ char *file = str_printf("f%s", name + 1);
            json_array_append_new(list, json_pack("{s:s, s:s}", "child", "file",
                                                  "node-name", file));
        }
        json_object_set_new(node, "children", list);
    }
    _cleanup_graph_ struct graph *graph = NULL, *busy = NULL;
    cr_assert_eq(build(json, &graph, NULL), 0);
    cr_assert_eq(graph_edges(graph), GRAPH_EDGES_CHILDREN);
    cr_assert_eq(prove(graph, "q1", "q0", "f0", ""), 0);
    expect_deletable(graph, "[\"f0\",\"q0\"]", "[\"q0\",\"f0\"]");
    json_object_set_new(
        json, "block_jobs",
        json_pack("[{s:s, s:s}]", "device", "bk", "status", "running"));
    cr_assert_eq(build(json, &busy, NULL), 0);
    cr_assert_eq(prove(busy, "q1", "q0", "f0", "job 'bk'"), -EBUSY);
}

/* --- differences --- */

static json_t *facts_of(const char *name, const char *disk_name)
{
    _cleanup_graph_ struct graph *graph = load(name);
    _cleanup_graph_disk_ struct graph_disk *disk = disk_of(graph, disk_name);
    return graph_disk_facts(graph, disk);
}

Test(graph, differences_name_what_a_move_changed)
{
    json_auto_t *before = facts_of("drive", "drv0");
    json_auto_t *after = facts_of("drive-pivoted", "drv0");
    json_object_del(before, "node"); /* another number each time */
    json_object_del(after, "node");
    json_auto_t *differences = graph_differences(before, after);
    json_auto_t *short_list = json_object();
    size_t i;
    json_t *it;
    json_array_foreach(differences, i, it) {
        const char *property;
        json_t *a, *b;
        json_unpack(it, "{s:s, s:o, s:o}", "property", &property, "before", &a,
                    "after", &b);
        json_object_set_new(short_list, property, json_pack("[O,O]", a, b));
    }
    expect_json(short_list, "{\"cache.direct\":[true,false],"
                            "\"detect_zeroes\":[\"unmap\",\"off\"],"
                            "\"format\":[\"raw\",\"qcow2\"],"
                            "\"image.cluster_size\":[0,65536],"
                            "\"image.compat\":[null,\"1.1\"]}");
}

Test(graph, throttled_disk_keeps_its_filter_and_limits)
{
    json_auto_t *before = facts_of("throttle", "vd0");
    json_auto_t *after = facts_of("throttle-pivoted", "vd0");
    json_auto_t *differences = graph_differences(before, after);
    expect_json(differences, "[{\"after\":\"q1\",\"before\":\"q0\","
                             "\"property\":\"node\"}]");
    json_auto_t *none = graph_differences(before, before);
    cr_assert_eq(json_array_size(none), 0);
    json_auto_t *junk = graph_differences(NULL, after);
    cr_assert_gt(json_array_size(junk), 5);
}

/* --- what no QEMU says --- */

Test(graph, lists_that_are_no_lists_are_refused)
{
    _cleanup_err_ struct err *err = NULL;
    struct graph *graph = NULL;
    json_auto_t *json = json_pack("{s:{}, s:[]}", "nodes", "block");
    cr_assert_eq(build(json, &graph, &err), -EPROTO);
    cr_assert_str_eq(err->desc,
                     "the reply of query-named-block-nodes is no array");
    cr_assert_null(graph);
}

Test(graph, a_million_nodes_are_refused)
{
    _cleanup_err_ struct err *err = NULL;
    struct graph *graph = NULL;
    json_auto_t *json = json_pack("{s:[], s:[]}", "nodes", "block");
    json_t *nodes = json_object_get(json, "nodes");
    for (unsigned i = 0; i < 1000000; i++) {
        json_array_append_new(nodes, json_null());
    }
    cr_assert_eq(build(json, &graph, &err), -E2BIG);
}

Test(graph, members_of_other_types_are_as_if_untold)
{
    _cleanup_graph_ struct graph *graph = parse(
        "{\"nodes\":[null,7,[],{\"node-name\":4},{\"node-name\":\"a\","
        "\"drv\":[],\"ro\":\"yes\",\"image\":7,\"cache\":true,"
        "\"dirty-bitmaps\":[1,{\"name\":{}}],\"file\":null},"
        "{\"node-name\":\"b\",\"image\":{\"virtual-size\":1.8e19,"
        "\"snapshots\":[0]}},{\"node-name\":\"c\",\"image\":{"
        "\"virtual-size\":-5},\"drv\":\"throttle\",\"file\":\"json:{\"}],"
        "\"block\":[[],{\"device\":8},{\"qdev\":\"d\",\"inserted\":7}],"
        "\"jobs\":{},\"exports\":[1,{\"id\":\"e\"}],\"edges\":{\"nodes\":[1],"
        "\"edges\":[1,{\"parent\":\"x\"},{\"parent\":5,\"child\":6}]}}");
    unsigned n;
    const struct graph_node *nodes = graph_nodes(graph, &n);
    cr_assert_eq(n, 3);
    cr_assert_str_eq(nodes[0].driver, "");
    cr_assert_not(nodes[0].read_only);
    cr_assert_not(nodes[0].cache_known);
    cr_assert_eq(nodes[0].n_bitmaps, 2);
    cr_assert_eq(nodes[1].size, UINT64_C(18000000000000000000));
    cr_assert_eq(nodes[2].size, 0);
    cr_assert_null(nodes[2].throttle_group);
    json_auto_t *json = graph_to_json(graph);
    cr_assert_not_null(json);
}

Test(graph, circles_end)
{
    _cleanup_graph_ struct graph *graph = parse(
        "{\"nodes\":[{\"node-name\":\"t\",\"drv\":\"throttle\"},"
        "{\"node-name\":\"u\",\"drv\":\"throttle\"},{\"node-name\":\"q\","
        "\"drv\":\"qcow2\"}],\"block\":[{\"qdev\":\"d\","
        "\"inserted\":{\"node-name\":\"t\"}},{\"qdev\":\"e\","
        "\"inserted\":{\"node-name\":\"q\"}}],\"edges\":{\"nodes\":["
        "{\"id\":1,\"type\":\"block-driver\",\"name\":\"t\"},"
        "{\"id\":2,\"type\":\"block-driver\",\"name\":\"u\"},"
        "{\"id\":3,\"type\":\"block-driver\",\"name\":\"q\"},"
        "{\"id\":4,\"type\":\"block-backend\",\"name\":\"d\"},"
        "{\"id\":5,\"type\":\"block-backend\",\"name\":\"e\"}],\"edges\":["
        "{\"parent\":1,\"child\":2,\"name\":\"file\"},"
        "{\"parent\":2,\"child\":1,\"name\":\"file\"},"
        "{\"parent\":3,\"child\":3,\"name\":\"backing\"},"
        "{\"parent\":4,\"child\":1,\"name\":\"root\"},"
        "{\"parent\":5,\"child\":3,\"name\":\"root\"}]}}");
    expect_no_disk(graph, "d", -ELOOP, "circle");
    expect_no_disk(graph, "e", -ELOOP, "circle");
    struct graph_claim claim = {"d", "q", "u", NULL};
    cr_assert_eq(graph_proof(graph, &claim, NULL), -EBUSY);
    expect_deletable(graph, "[\"t\",\"u\",\"q\"]", "[]");
    cr_assert(graph_reaches(graph, graph_find_node(graph, "t"),
                            graph_find_node(graph, "u")));
    cr_assert_not(graph_reaches(graph, graph_find_node(graph, "t"),
                                graph_find_node(graph, "q")));
}

Test(graph, names_that_repeat_prove_nothing)
{
    json_auto_t *json = recorded("mirror-pivoted");
    json_t *nodes = json_object_get(json, "nodes");
    json_array_append(nodes, json_array_get(nodes, 0));
    _cleanup_graph_ struct graph *graph = NULL;
    cr_assert_eq(build(json, &graph, NULL), 0);
    cr_assert_eq(prove(graph, "q1", "q0", "f0", "changed while"), -EAGAIN);
}

Test(graph, chain_of_many_thousand_images_needs_no_recursion)
{
    enum { DEPTH = 30000 };

    json_auto_t *json = json_pack(
        "{s:[], s:[{s:s, s:{s:s}}], s:{s:[{s:i, s:s, s:s}], s:[]}}", "nodes",
        "block", "qdev", "d", "inserted", "node-name", "n0", "edges", "nodes",
        "id", 1000000, "type", "block-backend", "name", "d", "edges");
    json_t *nodes = json_object_get(json, "nodes");
    json_t *rows = json_object_get(json_object_get(json, "edges"), "nodes");
    json_t *edges = json_object_get(json_object_get(json, "edges"), "edges");
    json_array_append_new(edges, json_pack("{s:i, s:i, s:s}", "parent", 1000000,
                                           "child", 0, "name", "root"));
    for (int i = 0; i < DEPTH; i++) {
        _cleanup_free_ char *name = str_printf("n%d", i);
        json_array_append_new(nodes, json_pack("{s:s}", "node-name", name));
        json_array_append_new(rows,
                              json_pack("{s:i, s:s, s:s}", "id", i, "type",
                                        "block-driver", "name", name));
        if (i > 0) {
            json_array_append_new(edges,
                                  json_pack("{s:i, s:i, s:s}", "parent", i - 1,
                                            "child", i, "name", "backing"));
        }
    }
    _cleanup_graph_ struct graph *graph = NULL;
    cr_assert_eq(build(json, &graph, NULL), 0);
    _cleanup_graph_disk_ struct graph_disk *disk = disk_of(graph, "d");
    cr_assert_eq(disk->n_layers, DEPTH);
    cr_assert_eq(disk->n_nodes, DEPTH);
}
