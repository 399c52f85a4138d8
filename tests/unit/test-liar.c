/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A QEMU that lies cannot crash the engine, hang it, or make it free what is
 * in use. What the fuzzer finds beyond this is in tests/fuzz/corpus/liar.
 */
#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/err.h"
#include "base/str.h"
#include "fake/fake-liar.h"
#include "fake/scratch.h"
#include "qpivot.h"
#include "vm/graph.h"
#include "vm/leftover.h"

static char dir[SCRATCH_PATH];

static void start(void)
{
    scratch_root(access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    scratch_make("liar", dir);
}

static void tidy(void)
{
    DIR *open = opendir(dir);
    for (struct dirent *it; open != NULL && (it = readdir(open)) != NULL;) {
        (void)unlinkat(dirfd(open), it->d_name, 0); /* "." stays */
    }
    if (open != NULL) {
        (void)closedir(open);
    }
}

static void end(void)
{
    tidy();
    (void)rmdir(dir);
}

TestSuite(liar, .timeout = 120, .init = start, .fini = end);

/* Runs it, and checks what must hold whatever QEMU says. */
static struct liar_verdict tell(const char *text)
{
    struct liar_verdict verdict;
    tidy();
    liar_run(text, strlen(text), dir, &verdict);
    cr_expect(verdict.ended, "%.200s: it never ends", text);
    cr_expect(verdict.whole, "%.200s: a write of the guest is lost", text);
    cr_expect(verdict.once, "%.200s: two QEMUs have the guest, or none", text);
    cr_expect(verdict.source_there, "%.200s: the source is gone", text);
    cr_expect(verdict.foreign_there, "%.200s: somebody's node is gone", text);
    cr_expect_str_eq(verdict.violation, "", "%.200s: %s", text,
                     verdict.violation);
    return verdict;
}

Test(liar, an_honest_one_is_moved_and_cleared)
{
    cr_expect_eq(tell("move\n").outcome, QPIVOT_DONE);
    cr_expect_eq(tell("plan\n").outcome, QPIVOT_DONE);
    cr_expect_eq(tell("migrate\n").outcome, QPIVOT_DONE);
    cr_expect_eq(tell("look\n").outcome, QPIVOT_PARKED);
    cr_expect_eq(tell("fix\n").outcome, QPIVOT_DONE);
}

static void any_type(const char *verb)
{
    static const char *const commands[] = {
        "query-jobs",
        "query-block-jobs",
        "query-block",
        "query-named-block-nodes",
        "query-block-exports",
        "x-debug-query-block-graph",
        "qom-get",
        "qom-list",
        "query-chardev",
        "query-migrate",
        "query-status",
        "query-qmp-schema",
        "blockdev-add",
        "blockdev-mirror",
        "blockdev-del",
        "object-add",
        "job-complete",
        "job-cancel",
        "job-dismiss",
        "query-yank",
    };
    static const char *const values[] = {
        "null",
        "true",
        "-1",
        "1e308",
        "\"x\"",
        "\"\"",
        "[]",
        "{}",
        "[null]",
        "[[[]]]",
        "[{}]",
        "{\"id\":{}}",
        "[{\"id\":1,\"node-name\":[],\"name\":{},\"inserted\":7}]",
        "{\"nodes\":5,\"edges\":{}}",
        "{\"nodes\":[{\"id\":-1}],\"edges\":[{\"parent\":{},\"child\":9}]}",
        "{\"error\":{\"class\":\"DeviceNotFound\",\"desc\":\"\"}}",
    };
    for (unsigned c = 0; c < ARRAY_SIZE(commands); c++) {
        for (unsigned v = 0; v < ARRAY_SIZE(values); v++) {
            _cleanup_free_ char *text =
                str_printf("%s\n%s %s\n", verb, commands[c], values[v]);
            (void)tell(text);
        }
    }
}

Test(liar, answers_of_any_type_to_a_move)
{
    any_type("move");
}

Test(liar, answers_of_any_type_to_doctor)
{
    any_type("fix");
}

Test(liar, each_reply_of_a_move_once_wrong)
{
    unsigned n = tell("move\n").n_commands;
    for (unsigned i = 0; i < n; i++) {
        _cleanup_free_ char *text = str_printf("move\n%u [{\"id\":[]}]\n", i);
        (void)tell(text);
    }
}

Test(liar, each_reply_of_a_migration_once_wrong)
{
    static const char *const replies[] = {"[{\"id\":[]}]",
                                          "{\"status\":\"completed\"}"};
    unsigned n = tell("migrate\n").n_commands;
    for (unsigned i = 0; i < n; i++) {
        for (unsigned k = 0; k < ARRAY_SIZE(replies); k++) {
            _cleanup_free_ char *text =
                str_printf("migrate\n%u %s\n", i, replies[k]);
            (void)tell(text);
        }
    }
}

Test(liar, a_stream_that_is_told_to_be_elsewhere)
{
    static const char *const statuses[] = {
        "\"none\"",       "\"setup\"",
        "\"active\"",     "\"pre-switchover\"",
        "\"device\"",     "\"completed\"",
        "\"failed\"",     "\"cancelled\"",
        "\"cancelling\"", "\"postcopy-active\"",
        "\"x\"",          "5",
        "null",
    };
    for (unsigned i = 0; i < ARRAY_SIZE(statuses); i++) {
        _cleanup_free_ char *text =
            str_printf("migrate\nquery-migrate {\"status\":%s,\"ram\":7,"
                       "\"socket-address\":[{\"port\":\"99999999\"}]}\n",
                       statuses[i]);
        (void)tell(text);
    }
    (void)tell("migrate\nquery-status {\"status\":\"running\","
               "\"running\":true}\n");
    (void)tell("migrate\nquery-status {\"status\":\"postmigrate\","
               "\"running\":false}\n");
}

Test(liar, a_disk_that_is_hidden_from_doctor)
{
    /* The device's edge is told still: the node is somebody's. */
    (void)tell("fix\nquery-block []\n");
    (void)tell("fix\nx-debug-query-block-graph {\"nodes\":[],\"edges\":[]}\n");
}

Test(liar, a_graph_that_runs_in_circles)
{
    static const char circle[] =
        "x-debug-query-block-graph {\"nodes\":["
        "{\"id\":1,\"name\":\"qpv-k3f9x2-d0\",\"type\":\"block-driver\"},"
        "{\"id\":2,\"name\":\"qpv-k3f9x2-d0-file\",\"type\":\"block-driver\"},"
        "{\"id\":3,\"name\":\"fmt0\",\"type\":\"block-driver\"}],"
        "\"edges\":[{\"parent\":1,\"child\":2,\"name\":\"file\"},"
        "{\"parent\":2,\"child\":1,\"name\":\"backing\"},"
        "{\"parent\":3,\"child\":3,\"name\":\"file\"}]}\n";
    static const char *const verbs[] = {"fix", "move", "plan"};
    for (unsigned i = 0; i < ARRAY_SIZE(verbs); i++) {
        _cleanup_free_ char *text = str_printf("%s\n%s", verbs[i], circle);
        (void)tell(text);
    }
}

Test(liar, names_like_paths_options_and_our_own)
{
    static const char *const names[] = {
        "../../etc/passwd",
        "--help",
        "-",
        "",
        "qpv-",
        "qpv-k3f9x2-",
        "qpv-k3f9x2-d0-../../x",
        "qpv-claim",
        "\\u0000",
        "%s%n",
        "\\u001b[2J",
        "$(reboot)",
    };
    for (unsigned i = 0; i < ARRAY_SIZE(names); i++) {
        _cleanup_free_ char *text = str_printf(
            "fix\nqom-list [{\"name\":\"%s\",\"type\":\"child<%s>\"}]\n"
            "query-jobs [{\"id\":\"%s\",\"type\":\"%s\",\"status\":\"%s\"}]\n"
            "qom-get \"%s\"\n",
            names[i], names[i], names[i], names[i], names[i], names[i]);
        (void)tell(text);
    }
}

Test(liar, events_of_any_shape)
{
    static const char *const events[] = {
        "{\"event\":5}",
        "{\"event\":\"JOB_STATUS_CHANGE\",\"data\":7}",
        "[]",
        "{\"event\":\"DEVICE_DELETED\",\"data\":{\"path\":[],\"device\":1},"
        "\"timestamp\":{\"seconds\":1,\"microseconds\":1}}",
        "{\"event\":\"SHUTDOWN\",\"data\":[],\"timestamp\":{\"seconds\":"
        "\"x\",\"microseconds\":[]}}",
        "{\"return\":{},\"id\":\"nobody's\"}",
        "{\"error\":{}}",
        "{}",
        "{\"QMP\":{}}",
    };
    for (unsigned i = 0; i < ARRAY_SIZE(events); i++) {
        for (unsigned at = 0; at < 24; at += 3) {
            _cleanup_free_ char *text =
                str_printf("move\n!%u %s\n", at, events[i]);
            (void)tell(text);
        }
    }
}

Test(liar, a_job_list_that_always_differs)
{
    (void)tell("fix\nquery-jobs [{\"id\":\"qpv-k3f9x2-d9-mirror\",\"type\":"
               "\"mirror\",\"status\":\"concluded\"}]\n");
    (void)tell("move\nquery-jobs []\n");
    (void)tell("fix\nblockdev-del {}\njob-cancel {}\nobject-del {}\n");
}

/* --- how much --- */

static double seconds_since(const struct timespec *begin)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)(now.tv_sec - begin->tv_sec) +
           (double)(now.tv_nsec - begin->tv_nsec) / 1e9;
}

static json_t *many_nodes(unsigned n, const char *prefix)
{
    json_t *nodes = json_array();
    for (unsigned i = 0; i < n; i++) {
        char name[32];
        (void)snprintf(name, sizeof(name), "%s%u", prefix, i);
        (void)json_array_append_new(
            nodes, json_pack("{s:s, s:s}", "node-name", name, "drv", "raw"));
    }
    return nodes;
}

Test(liar, a_million_nodes_are_refused)
{
    json_auto_t *nodes = many_nodes(1000000, "n");
    json_auto_t *block = json_array();
    struct graph_replies replies = {.nodes = nodes, .block = block};
    struct graph *graph = NULL;
    _cleanup_err_ struct err *err = NULL;
    cr_expect_eq(graph_build(&replies, &graph, &err), -E2BIG);
    cr_expect_null(graph);
    _cleanup_free_ char *told = json_dumps(nodes, JSON_COMPACT);
    _cleanup_free_ char *text =
        str_printf("fix\nquery-named-block-nodes %s\n", told);
    cr_expect_neq(tell(text).outcome, QPIVOT_DONE);
}

/* As many as are read, all named as ours, in one long chain. */
Test(liar, a_long_chain_of_ours_is_listed_in_time)
{
    enum { N = GRAPH_NODES_MAX };

    json_auto_t *nodes = many_nodes(N, "qpv-k3f9x2-d");
    json_auto_t *block = json_array();
    json_t *rows = json_array(), *edges = json_array();
    for (unsigned i = 0; i < N; i++) {
        (void)json_array_append_new(
            rows,
            json_pack("{s:i, s:O, s:s}", "id", (int)i, "name",
                      json_object_get(json_array_get(nodes, i), "node-name"),
                      "type", "block-driver"));
        (void)json_array_append_new(
            edges, json_pack("{s:i, s:i, s:s}", "parent", (int)i, "child",
                             (int)(i + 1) % N, "name", "file"));
    }
    json_auto_t *told = json_pack("{s:o, s:o}", "nodes", rows, "edges", edges);
    struct graph_replies replies = {
        .nodes = nodes, .block = block, .edges = told};
    _cleanup_graph_ struct graph *graph = NULL;
    struct timespec begin;
    (void)clock_gettime(CLOCK_MONOTONIC, &begin);
    cr_assert_eq(graph_build(&replies, &graph, NULL), 0);
    struct leftover_look look = {.graph = graph, .holder = "k3f9x2"};
    json_auto_t *list = leftover_list(&look);
    cr_expect_eq(json_array_size(list), LEFTOVERS_MAX + 1, "and the claim");
    cr_expect_lt(seconds_since(&begin), 20.0);
}
