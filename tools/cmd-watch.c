/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* qpivot watch: the events of a QEMU and the progress of its jobs, as lines. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cmd.h"
#include "errors.h"
#include "jobs.h"

struct watch_values {
    struct common_values common;
    const char *qmp;
    bool json;
};

#define AT(member) offsetof(struct watch_values, member)

static const struct option_row rows[] = {
    {"qmp",  "ADDR", OPTION_TEXT, true,  AT(qmp),  "the VM's monitor"},
    {"json", NULL,   OPTION_FLAG, false, AT(json),
     "print QEMU's events as they are, one per line"                 },
};

struct watch {
    struct terminal terminal;
    bool json;
    bool tick;
};

enum { TICK_MS = 1000 };

static int run(const void *values, char **operands, unsigned n);
static int follow_jobs(struct session *s, struct watch *w);
static void watch_on_timer(uv_timer_t *timer);
static void watch_on_event(void *data, const char *json);

const struct verb verb_watch = {
    .name = "watch",
    .operands = "",
    .summary = "Show the events and the job progress of a QEMU.",
    VERB_OPTIONS(rows),
    .values_size = sizeof(struct watch_values),
    .run = run,
};

static int run(const void *values, char **operands, unsigned n)
{
    (void)operands;
    (void)n;
    const struct watch_values *v = values;
    struct session session;
    int code = session_start_looking(&session, &v->common);
    if (code != 0) {
        return code;
    }
    struct watch w = {.json = v->json, .tick = true};
    terminal_init(&w.terminal, stdout, v->json);
    code = session_monitor(&session, v->qmp, watch_on_event, &w);
    if (code == 0) {
        code = follow_jobs(&session, &w);
    }
    terminal_done(&w.terminal);
    session_end(&session);
    return code;
}

static int follow_jobs(struct session *s, struct watch *w)
{
    uv_timer_t timer;
    (void)uv_timer_init(s->loop, &timer);
    timer.data = w;
    (void)uv_timer_start(&timer, watch_on_timer, TICK_MS, TICK_MS);
    json_t *before = NULL;
    int code = 0;
    while (code == 0 && !s->lost) {
        if (!w->tick || w->json) {
            session_turn(s);
            continue;
        }
        w->tick = false;
        json_t *jobs = NULL;
        code = jobs_read(s, &jobs);
        if (code == 0) {
            jobs_live(&w->terminal, jobs, before);
        }
        json_decref(before);
        before = jobs;
    }
    json_decref(before);
    terminal_done(&w->terminal);
    uv_close((uv_handle_t *)&timer, NULL);
    session_turn(s);
    return code != 0 ? code : session_say_lost(s);
}

static void watch_on_timer(uv_timer_t *timer)
{
    struct watch *w = timer->data;
    w->tick = true;
}

static void watch_on_event(void *data, const char *text)
{
    struct watch *w = data;
    if (w->json) {
        (void)printf("%s\n", text);
        (void)fflush(stdout);
        return;
    }
    json_auto_t *event = json_loads(text, 0, NULL);
    const json_t *stamp = json_object_get(event, "timestamp");
    time_t seconds =
        (time_t)json_integer_value(json_object_get(stamp, "seconds"));
    json_int_t us = json_integer_value(json_object_get(stamp, "microseconds"));
    struct tm utc = {0};
    char clock[16] = "?";
    if (gmtime_r(&seconds, &utc) != NULL) {
        (void)strftime(clock, sizeof(clock), "%H:%M:%S", &utc);
    }
    const char *name = json_string_value(json_object_get(event, "event"));
    const json_t *details = json_object_get(event, "data");
    char *words = json_object_size(details) > 0
                      ? json_dumps(details, JSON_COMPACT)
                      : NULL;
    terminal_say(&w->terminal, "%s.%06lldZ %s%s%s", clock, (long long)us,
                 name != NULL ? name : "?", words != NULL ? " " : "",
                 words != NULL ? words : "");
    free(words);
}
