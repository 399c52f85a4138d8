/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Drives one act of a backend from a command line and prints JSON, for tests
 * that look at real storage:
 *
 *   volume parse URI                      volume node DRIVER FILENAME
 *   volume probe URI                      volume create URI TEMP SIZE
 *   volume publish URI TEMP IDENTITY      volume secret URI
 *   volume remove URI TEMP|- [IDENTITY]   volume rush N URI (N probes at once)
 *
 * Exit status: 0 done, 1 the act failed ({"error": ...}), 2 usage.
 */
#include <stdio.h>
#include <string.h>

#include "backends/backend.h"
#include "base/err.h"
#include "base/str.h"

struct outcome {
    unsigned left;
    bool failed;
};

static int parse(const char *uri);
static int node(const char *driver, const char *filename);
static int act(unsigned count, const char *uri,
               const struct volume_request *request);
static void act_on_done(void *data, const struct err *err,
                        struct volume_result *result);
static json_t *describe(const struct volume *volume);
static json_t *info_json(const struct volume_info *info);
static void print(json_t *json);
static int print_error(const struct err *err);

int main(int argc, char **argv)
{
    const char *const verb = argc > 2 ? argv[1] : "";
    struct volume_request request = {0};
    uint64_t count = 1;
    if (str_eq(verb, "parse")) {
        return parse(argv[2]);
    }
    if (str_eq(verb, "node") && argc == 4) {
        return node(argv[2], argv[3]);
    }
    if (str_eq(verb, "probe")) {
        request.act = VOLUME_PROBE;
    } else if (str_eq(verb, "create") && argc == 5 &&
               str_to_bytes(argv[4], &request.size) == 0) {
        request.act = VOLUME_CREATE;
        request.temp = argv[3];
    } else if (str_eq(verb, "publish") && argc == 5) {
        request.act = VOLUME_PUBLISH;
        request.temp = argv[3];
        request.identity = argv[4];
    } else if (str_eq(verb, "remove") && argc >= 4) {
        request.act = VOLUME_REMOVE;
        request.temp = str_eq(argv[3], "-") ? NULL : argv[3];
        request.identity = argc > 4 ? argv[4] : NULL;
    } else if (str_eq(verb, "secret")) {
        request.act = VOLUME_SECRET;
    } else if (str_eq(verb, "rush") && argc == 4 &&
               str_to_u64(argv[2], 1000, &count) == 0) {
        request.act = VOLUME_PROBE;
        argv[2] = argv[3];
    } else {
        (void)fprintf(stderr, "usage: volume ACT URI ...\n");
        return 2;
    }
    return act((unsigned)count, argv[2], &request);
}

static int parse(const char *uri)
{
    _cleanup_(volume_freep) struct volume *volume = NULL;
    _cleanup_err_ struct err *err = NULL;
    if (volume_parse(uri, &volume, &err) < 0) {
        return print_error(err);
    }
    print(describe(volume));
    return 0;
}

static int node(const char *driver, const char *filename)
{
    _cleanup_(volume_freep) struct volume *volume = NULL;
    int r = volume_from_node(driver, filename, &volume);
    if (r < 0) {
        print(json_pack("{s:{s:i}}", "error", "code", r));
        return 1;
    }
    print(describe(volume));
    return 0;
}

static int act(unsigned count, const char *uri,
               const struct volume_request *request)
{
    struct outcome outcome = {.left = count};
    struct volume **volumes = calloc(count, sizeof(struct volume *));
    uv_loop_t *loop = uv_default_loop();
    for (unsigned i = 0; volumes != NULL && i < count; i++) {
        _cleanup_err_ struct err *err = NULL;
        if (volume_parse(uri, &volumes[i], &err) < 0) {
            free(volumes);
            return print_error(err);
        }
        if (volume_submit(loop, volumes[i], request, act_on_done, &outcome,
                          NULL) < 0) {
            abort();
        }
    }
    (void)uv_run(loop, UV_RUN_DEFAULT);
    for (unsigned i = 0; volumes != NULL && i < count; i++) {
        (void)volume_free(volumes[i]);
    }
    free(volumes);
    (void)uv_loop_close(loop);
    return outcome.failed || outcome.left != 0 ? 1 : 0;
}

static void act_on_done(void *data, const struct err *err,
                        struct volume_result *result)
{
    struct outcome *outcome = data;
    outcome->left--;
    if (err != NULL) {
        outcome->failed = true;
        (void)print_error(err);
        return;
    }
    json_t *json = info_json(&result->info);
    if (result->secret != NULL) {
        (void)json_object_set_new(json, "secret", json_string(result->secret));
    }
    print(json);
}

static json_t *describe(const struct volume *volume)
{
    _cleanup_free_ char *legacy = volume->ops->legacy_name != NULL
                                      ? volume->ops->legacy_name(volume)
                                      : NULL;
    return json_pack("{s:s, s:s, s:s, s:b, s:I, s:i, s:b, s:o*, s:s*}",
                     "scheme", volume->ops->scheme, "uri", volume->uri,
                     "format", volume->format == FORMAT_QCOW2 ? "qcow2" : "raw",
                     "format_given", volume->format_given, "size",
                     (json_int_t)volume->size, "cache", (int)volume->cache,
                     "existing", volume->existing, "node",
                     volume->ops->node_options(volume, NULL), "legacy", legacy);
}

static json_t *bytes(uint64_t value)
{
    return value == UINT64_MAX ? json_null() : json_integer((json_int_t)value);
}

static json_t *info_json(const struct volume_info *info)
{
    return json_pack(
        "{s:b, s:o, s:o, s:o, s:i, s:s, s:o, s:b, s:b, s:b, s:s, "
        "s:s}",
        "exists", info->exists, "size", bytes(info->size), "allocated",
        bytes(info->allocated), "available", bytes(info->available),
        "block_size", (int)info->block_size, "format",
        info->format == FORMAT_QCOW2 ? "qcow2" : "raw", "format_size",
        bytes(info->format_size), "zero", info->zero, "read_only",
        info->read_only, "in_use", info->in_use, "in_use_by", info->in_use_by,
        "identity", info->identity);
}

static void print(json_t *json)
{
    _cleanup_free_ char *text = json_dumps(json, JSON_COMPACT);
    (void)printf("%s\n", text != NULL ? text : "null");
    (void)fflush(stdout);
    json_decref(json);
}

static int print_error(const struct err *err)
{
    print(json_pack("{s:o}", "error", err_to_json(err)));
    return 1;
}
