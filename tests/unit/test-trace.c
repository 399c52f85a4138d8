/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "fake/scratch.h"
#include "unit/qmp-fixture.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

TestSuite(trace, .timeout = 10);

static json_t *parse(const char *text)
{
    json_t *json = json_loads(text, 0, NULL);
    cr_assert_not_null(json, "%s", text);
    return json;
}

static void expect(const char *message, const char *redacted)
{
    json_auto_t *in = parse(message);
    json_auto_t *want = parse(redacted);
    json_auto_t *got = qmp_redact(in);
    char *text = json_dumps(got, 0);
    cr_assert(json_equal(got, want), "%s", text);
    free(text);
}

Test(trace, data_of_a_secret_is_redacted)
{
    expect("{\"execute\":\"object-add\",\"arguments\":{\"qom-type\":\"secret\","
           "\"id\":\"s\",\"data\":\"hunter2\"},\"id\":\"1\"}",
           "{\"execute\":\"object-add\",\"arguments\":{\"qom-type\":\"secret\","
           "\"id\":\"s\",\"data\":\"<redacted>\"},\"id\":\"1\"}");
    expect("{\"execute\":\"object-add\",\"arguments\":{\"qom-type\":\"secret\","
           "\"id\":\"s\",\"props\":{\"data\":\"hunter2\"}}}",
           "{\"execute\":\"object-add\",\"arguments\":{\"qom-type\":\"secret\","
           "\"id\":\"s\",\"props\":{\"data\":\"<redacted>\"}}}");
    expect("{\"qom-type\":\"secret\",\"data\":\"hunter2\"}",
           "{\"qom-type\":\"secret\",\"data\":\"<redacted>\"}");
}

Test(trace, passwords_are_redacted_everywhere)
{
    expect("{\"execute\":\"set_password\",\"arguments\":{\"protocol\":\"vnc\","
           "\"password\":\"hunter2\"}}",
           "{\"execute\":\"set_password\",\"arguments\":{\"protocol\":\"vnc\","
           "\"password\":\"<redacted>\"}}");
    expect("{\"execute\":\"qom-set\",\"arguments\":{\"path\":\"/objects/s\","
           "\"property\":\"data\",\"value\":\"hunter2\"}}",
           "{\"execute\":\"qom-set\",\"arguments\":{\"path\":\"/objects/s\","
           "\"property\":\"data\",\"value\":\"<redacted>\"}}");
    expect("{\"execute\":\"human-monitor-command\",\"arguments\":"
           "{\"command-line\":\"object_add secret,id=s,data=hunter2\"}}",
           "{\"execute\":\"human-monitor-command\",\"arguments\":"
           "{\"command-line\":\"<redacted>\"}}");
}

Test(trace, what_is_no_secret_stays)
{
    static const char *const same[] = {
        "{\"execute\":\"blockdev-add\",\"arguments\":{\"driver\":\"rbd\","
        "\"key-secret\":\"s\",\"list\":[1,2.5,null,true,{\"a\":[]}]}}",
        "{\"event\":\"STOP\",\"data\":{\"x\":1},\"timestamp\":{\"seconds\":1}}",
        "{\"return\":[{\"key\":\"v\"}],\"id\":\"1\"}",
    };
    for (unsigned i = 0; i < ARRAY_SIZE(same); i++) {
        expect(same[i], same[i]);
    }
}

static char *slurp(const char *path)
{
    char *text = calloc(1, 65536);
    FILE *file = fopen(path, "re");
    cr_assert_not_null(file);
    (void)fread(text, 1, 65535, file);
    (void)fclose(file);
    return text;
}

Test(trace, every_message_both_ways_is_a_line_without_secrets)
{
    char dir[SCRATCH_PATH];
    scratch_make("trace", dir);
    char path[SCRATCH_PATH + 8];
    (void)snprintf(path, sizeof(path), "%s/trace", dir);
    struct qmp_trace *trace = NULL;
    cr_assert_eq(qmp_trace_open(path, &trace, NULL), 0);
    struct stat st;
    cr_assert_eq(stat(path, &st), 0);
    cr_assert_eq(st.st_mode & 0777, 0600);

    struct fixture f;
    struct fake_qmp_options fake = {0};
    fixture_open(&f, &fake, (struct qmp_options){.trace = trace});
    struct reply reply = {0};
    json_auto_t *args = json_pack("{s:s, s:s, s:s}", "qom-type", "secret", "id",
                                  "s", "data", "hunter2");
    cr_assert_eq(qmp_execute(f.qmp, "object-add", args, NULL, reply_on_result,
                             &reply, NULL),
                 0);
    fixture_until(&f, reply.n > 0);
    const json_t *sent = json_array_get(fake_qmp_log(f.fake), 1);
    cr_assert_str_eq(json_string_value(json_object_get(
                         json_object_get(sent, "arguments"), "data")),
                     "hunter2");
    reply_done(&reply);
    fixture_done(&f);
    trace = qmp_trace_close(trace);

    _cleanup_free_ char *text = slurp(path);
    cr_assert_null(strstr(text, "hunter2"));
    static const char *const directions[] = {"<", ">", "<", ">", "<"};
    unsigned n = 0;
    for (char *line = strtok(text, "\n"); line != NULL;
         line = strtok(NULL, "\n"), n++) {
        json_auto_t *json = parse(line);
        cr_assert_lt(n, ARRAY_SIZE(directions));
        cr_assert_str_eq(json_string_value(json_object_get(json, "dir")),
                         directions[n]);
        cr_assert(json_is_object(json_object_get(json, "msg")));
        const char *time = json_string_value(json_object_get(json, "time"));
        cr_assert_eq(strlen(time), strlen("2026-01-31T12:00:00.123456Z"));
    }
    cr_assert_eq(n, ARRAY_SIZE(directions));
    (void)unlink(path);
    (void)rmdir(dir);
}

Test(trace, file_that_cannot_be_opened_is_an_error)
{
    struct qmp_trace *trace = NULL;
    _cleanup_err_ struct err *err = NULL;
    cr_assert_eq(qmp_trace_open("/nonexistent/trace", &trace, &err), -ENOENT);
    cr_assert_null(trace);
}
