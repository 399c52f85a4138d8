/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* qpivot jobs: lists and steers the jobs of a QEMU. */
#include <stdlib.h>
#include <string.h>

#include "cmd.h"
#include "errors.h"
#include "jobs.h"
#include "text.h"

struct jobs_values {
    struct common_values common;
    const char *qmp;
    bool watch;
    bool json;
};

#define AT(member) offsetof(struct jobs_values, member)

static const struct option_row rows[] = {
    {"qmp",   "ADDR", OPTION_TEXT, true,  AT(qmp),   "the VM's monitor"},
    {"watch", NULL,   OPTION_FLAG, false, AT(watch),
     "go on showing them until interrupted"                            },
    {"json",  NULL,   OPTION_FLAG, false, AT(json),
     "print one JSON object per line"                                  },
};

/* 'command' takes the job's id as 'argument'. */
static const struct job_verb {
    const char *name;
    const char *command;
    const char *argument;
} job_verbs[] = {
    {"pause",     "job-pause",           "id"    },
    {"resume",    "job-resume",          "id"    },
    {"set-speed", "block-job-set-speed", "device"},
    {"cancel",    "job-cancel",          "id"    },
    {"complete",  "job-complete",        "id"    },
    {"finalize",  "job-finalize",        "id"    },
    {"dismiss",   "job-dismiss",         "id"    },
};

enum { WATCH_MS = 1000 };

static int run(const void *values, char **operands, unsigned n);
static int check(char **operands, unsigned n, const struct job_verb **ret_verb,
                 uint64_t *ret_speed);
static int act(struct session *s, const struct job_verb *verb, const char *job,
               const uint64_t *speed);
static int list_once(struct session *s, const struct jobs_values *v);
static void print_json(const json_t *jobs);
static int watch(struct session *s, const struct jobs_values *v);
static void watch_on_timer(uv_timer_t *timer);
static void watch_on_event(void *data, const char *json);

const struct verb verb_jobs = {
    .name = "jobs",
    .operands = "[pause|resume|cancel|complete|finalize|dismiss JOB | "
                "set-speed JOB BYTES]",
    .max_operands = 3,
    .summary = "List the jobs of a QEMU, or steer one of them.",
    VERB_OPTIONS(rows),
    .values_size = sizeof(struct jobs_values),
    .run = run,
};

static int run(const void *values, char **operands, unsigned n)
{
    const struct jobs_values *v = values;
    const struct job_verb *verb = NULL;
    uint64_t speed = 0;
    int code = check(operands, n, &verb, &speed);
    if (code != 0) {
        return code;
    }
    struct session session;
    code = session_start_looking(&session, &v->common);
    if (code != 0) {
        return code;
    }
    bool changed = false;
    code = session_monitor(&session, v->qmp, watch_on_event, &changed);
    if (code == 0 && verb != NULL) {
        code = act(&session, verb, operands[1], n == 3 ? &speed : NULL);
    } else if (code == 0) {
        code = v->watch ? watch(&session, v) : list_once(&session, v);
    }
    session_end(&session);
    return code;
}

static int check(char **operands, unsigned n, const struct job_verb **ret_verb,
                 uint64_t *ret_speed)
{
    if (n == 0) {
        return 0;
    }
    for (size_t i = 0; i < sizeof(job_verbs) / sizeof(job_verbs[0]); i++) {
        if (strcmp(operands[0], job_verbs[i].name) == 0) {
            *ret_verb = &job_verbs[i];
        }
    }
    if (*ret_verb == NULL) {
        return verb_usage(&verb_jobs, "there is no '%s'", operands[0]);
    }
    bool speed = strcmp(operands[0], "set-speed") == 0;
    if (n != (speed ? 3U : 2U)) {
        return verb_usage(&verb_jobs, "%s takes JOB%s", operands[0],
                          speed ? " and BYTES" : "");
    }
    if (speed && text_to_bytes(operands[2], ret_speed) < 0) {
        return verb_usage(&verb_jobs, "set-speed: '%s': bytes such as 10M",
                          operands[2]);
    }
    return 0;
}

static int act(struct session *s, const struct job_verb *verb, const char *job,
               const uint64_t *speed)
{
    json_auto_t *arguments = json_pack("{s:s}", verb->argument, job);
    if (arguments == NULL) {
        error_say(job, "the job's name is not UTF-8");
        return EXIT_USAGE;
    }
    if (speed != NULL) {
        (void)json_object_set_new(arguments, "speed",
                                  json_integer((json_int_t)*speed));
    }
    json_auto_t *result = NULL;
    char *error = NULL;
    int code = session_execute(s, verb->command, arguments, &result, &error);
    if (code != 0) {
        error_print_of(job, error);
    }
    free(error);
    return code;
}

static int list_once(struct session *s, const struct jobs_values *v)
{
    json_auto_t *jobs = NULL;
    int code = jobs_read(s, &jobs);
    if (code != 0) {
        return code;
    }
    if (v->json) {
        print_json(jobs);
        return 0;
    }
    size_t i;
    json_t *job;
    struct terminal t;
    terminal_init(&t, stdout, false);
    json_array_foreach(jobs, i, job) {
        char *text = job_text(job);
        terminal_say(&t, "%s: %s",
                     json_string_value(json_object_get(job, "id")),
                     text != NULL ? text : "?");
        free(text);
    }
    if (json_array_size(jobs) == 0) {
        terminal_say(&t, "no jobs");
    }
    terminal_done(&t);
    return 0;
}

static void print_json(const json_t *jobs)
{
    size_t i;
    json_t *job;
    json_array_foreach(jobs, i, job) {
        char *line = json_dumps(job, JSON_COMPACT);
        (void)printf("%s\n", line != NULL ? line : "{}");
        free(line);
    }
    (void)fflush(stdout);
}

/* Until the user has seen enough (a signal ends us) or QEMU is gone. */
static int watch(struct session *s, const struct jobs_values *v)
{
    uv_timer_t timer;
    bool tick = true;
    (void)uv_timer_init(s->loop, &timer);
    timer.data = &tick;
    (void)uv_timer_start(&timer, watch_on_timer, WATCH_MS, WATCH_MS);
    bool *changed = s->data;
    json_t *before = NULL;
    struct terminal t;
    terminal_init(&t, stdout, v->json);
    int code = 0;
    while (code == 0 && !s->lost) {
        if (!tick && !*changed) {
            session_turn(s);
            continue;
        }
        tick = false;
        *changed = false;
        json_t *jobs = NULL;
        code = jobs_read(s, &jobs);
        if (v->json && !json_equal(jobs, before)) {
            print_json(jobs);
        }
        jobs_live(&t, jobs, before);
        json_decref(before);
        before = jobs;
    }
    json_decref(before);
    terminal_done(&t);
    uv_close((uv_handle_t *)&timer, NULL);
    session_turn(s);
    return code != 0 ? code : session_say_lost(s);
}

static void watch_on_timer(uv_timer_t *timer)
{
    bool *tick = timer->data;
    *tick = true;
}

static void watch_on_event(void *data, const char *json)
{
    bool *changed = data;
    if (strstr(json, "JOB") != NULL) {
        *changed = true;
    }
}
