/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Events of an operation -> lines. It decides nothing and keeps no state but
 * what has been printed. */
#include "events.h"

#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>

#include "errors.h"
#include "text.h"

enum { RATE_AFTER_MS = 2000 }; /* before that it is a burst, not a rate */

struct event_row {
    const char *name;
    void (*show)(struct events *e, const json_t *event);
};

static void show_plan(struct events *e, const json_t *event);
static void show_step(struct events *e, const json_t *event);
static void show_progress(struct events *e, const json_t *event);
static void show_ready(struct events *e, const json_t *event);
static void show_pivot(struct events *e, const json_t *event);
static void show_proof(struct events *e, const json_t *event);
static void show_warning(struct events *e, const json_t *event);
static void show_done(struct events *e, const json_t *event);
static void show_failed(struct events *e, const json_t *event);
static void show_parked(struct events *e, const json_t *event);

static const struct event_row event_rows[] = {
    {"plan",     show_plan    },
    {"step",     show_step    },
    {"progress", show_progress},
    {"ready",    show_ready   },
    {"pivot",    show_pivot   },
    {"proof",    show_proof   },
    {"warning",  show_warning },
    {"done",     show_done    },
    {"failed",   show_failed  },
    {"parked",   show_parked  },
};

static void plan_disk(struct events *e, const json_t *disk);
static void say_step(struct events *e, bool undo, const char *step,
                     const char *what);
static void done_disk(struct events *e, const json_t *disk);
static void show_left(struct events *e, const json_t *event);
static void difference(struct events *e, const json_t *item);
static void progress_text(const json_t *event, bool rates, char *out,
                          size_t size);
static const char *word(const json_t *object, const char *name,
                        const char *otherwise);
static uint64_t now_ms(void);
static bool has(const json_t *object, const char *name);
static uint64_t bytes(const json_t *object, const char *name);
static double real(const json_t *object, const char *name);

void events_init(struct events *e, bool json, bool quiet)
{
    *e = (struct events){.json = json};
    terminal_init(&e->terminal, stdout, quiet || json);
}

void events_done(struct events *e)
{
    terminal_done(&e->terminal);
    json_decref(e->problems);
    e->problems = NULL;
}

void events_show(struct events *e, const char *text)
{
    if (e->json) {
        (void)fprintf(stdout, "%s\n", text);
        (void)fflush(stdout);
    }
    json_auto_t *event = json_loads(text, 0, NULL);
    const char *name = word(event, "event", "");
    for (size_t i = 0; i < sizeof(event_rows) / sizeof(event_rows[0]); i++) {
        if (strcmp(event_rows[i].name, name) == 0) {
            event_rows[i].show(e, event);
        }
    }
}

void events_refused(struct events *e, const char *error)
{
    error_print(error);
    e->told_end = true;
    if (!e->json) {
        return;
    }
    struct timeval now = {0};
    (void)gettimeofday(&now, NULL);
    struct tm utc = {0};
    char time[40];
    (void)gmtime_r(&now.tv_sec, &utc);
    size_t n = strftime(time, sizeof(time), "%Y-%m-%dT%H:%M:%S", &utc);
    (void)snprintf(time + n, sizeof(time) - n, ".%06uZ", (unsigned)now.tv_usec);
    json_t *object = error != NULL ? json_loads(error, 0, NULL) : NULL;
    json_auto_t *event =
        json_pack("{s:s, s:s, s:s, s:o, s:i, s:[]}", "time", time, "op", "",
                  "event", "failed", "error",
                  object != NULL ? object : json_pack("{s:s?}", "desc", error),
                  "seconds", 0, "disks");
    char *line = event != NULL ? json_dumps(event, JSON_COMPACT) : NULL;
    if (line != NULL) {
        (void)fprintf(stdout, "%s\n", line);
        (void)fflush(stdout);
    }
    free(line);
}

static void show_plan(struct events *e, const json_t *event)
{
    size_t i;
    json_t *item;
    e->dry_run = json_is_true(json_object_get(event, "dry_run"));
    json_t *problems = json_object_get(event, "problems");
    if (json_array_size(problems) > 0) {
        json_decref(e->problems);
        e->problems = json_incref(problems);
    }
    terminal_say(&e->terminal, "operation %s", word(event, "op", "?"));
    json_array_foreach(json_object_get(event, "disks"), i, item) {
        plan_disk(e, item);
    }
    json_array_foreach(json_object_get(event, "notes"), i, item) {
        if (json_is_string(item)) {
            terminal_say(&e->terminal, "note: %s", json_string_value(item));
        }
    }
    if (!e->dry_run) {
        return;
    }
    json_array_foreach(json_object_get(event, "commands"), i, item) {
        char *line = json_dumps(item, JSON_COMPACT | JSON_ENCODE_ANY);
        terminal_say(&e->terminal, "%s", line != NULL ? line : "?");
        free(line);
    }
}

static void plan_disk(struct events *e, const json_t *disk)
{
    char size[TEXT_BYTES_MAX];
    terminal_say(&e->terminal, "  %s: %s -> %s", word(disk, "disk", "?"),
                 word(disk, "from", "?"), word(disk, "to", "?"));
    char *how = text_printf(
        "%s%s%s%s%s%s%s", word(disk, "format", ""),
        has(disk, "format") && has(disk, "size") ? ", " : "",
        has(disk, "size") ? text_bytes(bytes(disk, "size"), size) : "",
        has(disk, "via") ? ", by " : "", word(disk, "via", ""),
        has(disk, "sync") ? ", sync " : "", word(disk, "sync", ""));
    if (how != NULL && how[0] != '\0') {
        terminal_say(&e->terminal, "    %s%s%s", how,
                     has(disk, "reason") ? ": " : "", word(disk, "reason", ""));
    }
    free(how);
}

static void show_step(struct events *e, const json_t *event)
{
    const char *state = word(event, "state", "start");
    bool undo = strcmp(state, "undo") == 0;
    if (!undo && strcmp(state, "start") != 0) {
        return;
    }
    const char *disk = word(event, "disk", NULL);
    const char *step = word(event, "step", "?");
    /* "what" tells what the step does, not what its undoing does. */
    const char *what = undo ? "" : word(event, "what", "");
    char *text = text_printf("%s%s%s%s%s%s", disk != NULL ? disk : "",
                             disk != NULL ? ": " : "", undo ? "undo " : "",
                             step, what[0] ? ": " : "", what);
    if (text == NULL) {
        return;
    }
    if (e->terminal.live && !undo) {
        terminal_live(&e->terminal, disk != NULL ? disk : "", step, text);
    } else if (e->terminal.live || disk == NULL) {
        terminal_say(&e->terminal, "%s", text);
    } else {
        say_step(e, undo, step, what);
    }
    free(text);
}

/* On a pipe: one line for all disks, which go through a step together. */
static void say_step(struct events *e, bool undo, const char *step,
                     const char *what)
{
    char line[sizeof(e->step)];
    (void)snprintf(line, sizeof(line), "%s%s", undo ? "undo " : "", step);
    if (strcmp(line, e->step) != 0) {
        memcpy(e->step, line, sizeof(line));
        terminal_say(&e->terminal, "%s%s%s", line, what[0] ? ": " : "", what);
    }
}

/* News on a pipe: the phase, and each tenth of the way. */
static void show_progress(struct events *e, const json_t *event)
{
    const char *disk = word(event, "disk", "?");
    double total = real(event, "total");
    double part = total > 0 ? real(event, "bytes") / total : 0;
    char detail[200];
    uint64_t now = now_ms();
    e->began_ms = e->began_ms == 0 ? now : e->began_ms;
    progress_text(event, now - e->began_ms >= RATE_AFTER_MS, detail,
                  sizeof(detail));
    char *text = text_printf("%s: %s", disk, detail);
    char *news =
        text_printf("%s %d", word(event, "phase", ""), (int)(part * 10));
    terminal_still(&e->terminal, "");
    if (text != NULL && news != NULL) {
        terminal_live(&e->terminal, disk, news, text);
    }
    free(text);
    free(news);
}

static void progress_text(const json_t *event, bool rates, char *out,
                          size_t size)
{
    char done[TEXT_BYTES_MAX];
    char total[TEXT_BYTES_MAX];
    char rate[TEXT_BYTES_MAX];
    char eta[TEXT_SPAN_MAX];
    uint64_t n_done = bytes(event, "bytes");
    uint64_t n_total = bytes(event, "total");
    const char *phase = word(event, "phase", "copy");
    bool ready = strcmp(phase, "ready") == 0;
    if (has(event, "seconds_left")) {
        /* The guest is on the target: what counts is how to go back. */
        (void)snprintf(out, size, "undo window: %s left ('qpivot undo %s')",
                       text_span(real(event, "seconds_left"), eta),
                       word(event, "op", "OP"));
        return;
    }
    /* A job that has only begun says 0 of 0; so does one of an empty disk. */
    int percent = n_total > 0 ? (int)((double)n_done / (double)n_total * 100)
                  : ready     ? 100
                              : 0;
    int n = snprintf(out, size, "%-8s %3d%%  %s of %s", phase, percent,
                     text_bytes(n_done, done), text_bytes(n_total, total));
    size_t at = n > 0 && (size_t)n < size ? (size_t)n : size;
    if (rates && bytes(event, "rate") > 0 && at < size) {
        n = snprintf(out + at, size - at, "  %s/s",
                     text_bytes(bytes(event, "rate"), rate));
        at += n > 0 ? (size_t)n : 0;
    }
    if (rates && !ready && real(event, "eta_seconds") > 0 && at < size) {
        (void)snprintf(out + at, size - at, "  %s left",
                       text_span(real(event, "eta_seconds"), eta));
    }
}

static void show_ready(struct events *e, const json_t *event)
{
    if (has(event, "reason")) {
        terminal_say(&e->terminal, "ready: %s", word(event, "reason", "?"));
        return;
    }
    terminal_say(&e->terminal, "%s: ready", word(event, "disk", "?"));
}

static void show_pivot(struct events *e, const json_t *event)
{
    size_t n = json_array_size(json_object_get(event, "disks"));
    if (has(event, "to")) {
        terminal_say(&e->terminal, "pivot: the guest is handed over to %s",
                     word(event, "to", "?"));
        return;
    }
    terminal_say(&e->terminal, "pivot: the guest uses the target%s",
                 n > 1 ? "s" : "");
}

static void show_proof(struct events *e, const json_t *event)
{
    terminal_still(&e->terminal, word(event, "disk", "?"));
    terminal_say(&e->terminal, "%s: proved: device %s uses node %s, %s",
                 word(event, "disk", "?"), word(event, "device", "?"),
                 word(event, "node", "?"), word(event, "filename", "?"));
}

static void show_warning(struct events *e, const json_t *event)
{
    terminal_say(&e->terminal, "warning: %s", word(event, "message", "?"));
}

static void show_done(struct events *e, const json_t *event)
{
    char span[TEXT_SPAN_MAX];
    size_t i;
    json_t *disk;
    e->told_end = true;
    terminal_done(&e->terminal);
    if (e->dry_run) {
        terminal_say(&e->terminal, "dry run: nothing was changed");
        return;
    }
    json_array_foreach(json_object_get(event, "disks"), i, disk) {
        done_disk(e, disk);
    }
    if (has(event, "answer")) {
        json_array_foreach(json_object_get(event, "not_proved"), i, disk) {
            terminal_say(&e->terminal,
                         "%s: not proved: QEMU is gone, or somebody has"
                         " changed its disks",
                         json_string_value(disk));
        }
        terminal_say(&e->terminal, "%s: went back: no job of it is left",
                     word(event, "op", "?"));
        return;
    }
    if (e->recovers != NULL) {
        terminal_say(&e->terminal, "%s: done", word(event, "op", e->recovers));
        show_left(e, event);
        return;
    }
    if (has(event, "blackout_ms")) {
        terminal_say(&e->terminal, "the guest stood still for %.0f ms",
                     real(event, "blackout_ms"));
    }
    terminal_say(&e->terminal, "done in %s",
                 text_span(real(event, "seconds"), span));
}

/* Volumes that nobody uses any more: none of them was removed. */
static void show_left(struct events *e, const json_t *event)
{
    size_t i;
    json_t *left;
    json_array_foreach(json_object_get(event, "left"), i, left) {
        terminal_say(&e->terminal, "%s: left, not in use by it: %s%s%s",
                     word(left, "disk", "?"), word(left, "volume", "?"),
                     has(left, "command") ? "; to remove it: " : "",
                     word(left, "command", ""));
    }
}

static void done_disk(struct events *e, const json_t *disk)
{
    char copied[TEXT_BYTES_MAX];
    char written[TEXT_BYTES_MAX];
    char verified[TEXT_BYTES_MAX];
    size_t i;
    json_t *item;
    if (has(disk, "equal")) {
        terminal_say(&e->terminal, "%s and %s are equal",
                     word(disk, "from", "?"), word(disk, "to", "?"));
        return;
    }
    if (has(disk, "source")) {
        terminal_say(&e->terminal, "%s: proved: uses its source %s, node %s",
                     word(disk, "disk", "?"), word(disk, "from", "?"),
                     word(disk, "source", "?"));
        return;
    }
    char *bill =
        text_printf("%s%s%s%s%s%s%s", has(disk, "bytes_copied") ? ": " : "",
                    has(disk, "bytes_copied")
                        ? text_bytes(bytes(disk, "bytes_copied"), copied)
                        : "",
                    has(disk, "bytes_copied") ? " copied" : "",
                    has(disk, "bytes_written") ? ", written " : "",
                    has(disk, "bytes_written")
                        ? text_bytes(bytes(disk, "bytes_written"), written)
                        : "",
                    has(disk, "verified_bytes") ? ", verified " : "",
                    has(disk, "verified_bytes")
                        ? text_bytes(bytes(disk, "verified_bytes"), verified)
                        : "");
    terminal_say(&e->terminal, "%s: %s -> %s%s", word(disk, "disk", "?"),
                 word(disk, "from", "?"), word(disk, "to", "?"),
                 bill != NULL ? bill : "");
    free(bill);
    if (has(disk, "grows_to")) {
        terminal_say(&e->terminal,
                     "  larger: %s: the guest sees that after QMP block_resize,"
                     " or at its next start",
                     text_bytes(bytes(disk, "grows_to"), copied));
    }
    json_array_foreach(json_object_get(disk, "differences"), i, item) {
        difference(e, item);
    }
}

static void difference(struct events *e, const json_t *item)
{
    if (json_is_string(item)) {
        terminal_say(&e->terminal, "  differs: %s", json_string_value(item));
        return;
    }
    char *before = json_dumps(json_object_get(item, "before"),
                              JSON_COMPACT | JSON_ENCODE_ANY);
    char *after = json_dumps(json_object_get(item, "after"),
                             JSON_COMPACT | JSON_ENCODE_ANY);
    terminal_say(&e->terminal, "  differs: %s: %s -> %s",
                 word(item, "property", "?"), before != NULL ? before : "none",
                 after != NULL ? after : "none");
    free(before);
    free(after);
}

static void show_failed(struct events *e, const json_t *event)
{
    size_t i;
    json_t *item;
    e->told_end = true;
    terminal_done(&e->terminal);
    if (e->recovers != NULL &&
        json_array_size(json_object_get(event, "problems")) == 0) {
        /* That it is back is what was asked for: no error. */
        char *line = error_line(json_object_get(event, "error"));
        terminal_say(&e->terminal, "%s: undone: %s",
                     word(event, "op", e->recovers),
                     e->reason != NULL ? e->reason
                     : line != NULL    ? line
                                       : "?");
        free(line);
        show_left(e, event);
        return;
    }
    json_t *problems = json_object_get(event, "problems");
    if (json_array_size(problems) == 0) {
        problems = e->problems;
    }
    json_array_foreach(problems, i, item) {
        error_print_json(item);
    }
    if (json_array_size(problems) == 0) {
        error_print_json(json_object_get(event, "error"));
    }
}

static void show_parked(struct events *e, const json_t *event)
{
    e->told_end = true;
    terminal_done(&e->terminal);
    error_print_json(json_object_get(event, "error"));
    if (has(event, "engine")) {
        /* It is not known how it ends: the journal's last word. */
        error_say(word(event, "op", NULL), "last told: step %s%s%s: %s",
                  word(event, "step", "?"), has(event, "disk") ? " of " : "",
                  word(event, "disk", ""), word(event, "phase", "?"));
    } else {
        error_say(word(event, "op", NULL), "parked%s%s",
                  has(event, "step") ? " at step " : "",
                  word(event, "step", ""));
    }
    if (has(event, "next")) {
        error_hint("%s", word(event, "next", ""));
    }
}

static const char *word(const json_t *object, const char *name,
                        const char *otherwise)
{
    const char *text = json_string_value(json_object_get(object, name));
    return text != NULL ? text : otherwise;
}

static bool has(const json_t *object, const char *name)
{
    json_t *value = json_object_get(object, name);
    return value != NULL && !json_is_null(value) &&
           !(json_is_string(value) && json_string_length(value) == 0);
}

static uint64_t bytes(const json_t *object, const char *name)
{
    double value = real(object, name);
    return value > 0 && value < 1e19 ? (uint64_t)value : 0;
}

static double real(const json_t *object, const char *name)
{
    return json_number_value(json_object_get(object, name));
}

static uint64_t now_ms(void)
{
    struct timespec now = {0};
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}
