/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The page: what it was about, how it ended, each disk, a picture of when each
 * step ran, and the records themselves. Whatever comes from QEMU or a user is
 * escaped; the page has no script and loads nothing.
 */
#include "report.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "text.h"

enum { BARS_MAX = 4096 };

struct bar {
    const char *step;
    long long disk; /* -1: of the whole operation */
    double begin, end;
    const char *class; /* run, undo, open (it did not end) */
};

struct bars {
    struct bar *bar;
    size_t n;
    double begin, end;
};

static void head(FILE *out, const json_t *operation, const char *state);
static void facts_of(FILE *out, const json_t *operation);
static void error_box(FILE *out, const json_t *operation);
static void disks(FILE *out, const json_t *operation);
static void picture(FILE *out, const json_t *operation);
static void records(FILE *out, const json_t *operation);

void report_write(FILE *out, const json_t *operation, const char *state)
{
    head(out, operation, state);
    error_box(out, operation);
    facts_of(out, operation);
    disks(out, operation);
    picture(out, operation);
    records(out, operation);
    (void)fputs("</main>\n</body>\n</html>\n", out);
}

/* --- text --- */

static void escaped(FILE *out, const char *text)
{
    char *tame = strdup(text != NULL ? text : "");
    for (const char *c = text_tame(tame); c != NULL && *c != '\0'; c++) {
        switch (*c) {
        case '&':
            (void)fputs("&amp;", out);
            break;
        case '<':
            (void)fputs("&lt;", out);
            break;
        case '>':
            (void)fputs("&gt;", out);
            break;
        case '"':
            (void)fputs("&quot;", out);
            break;
        case '\'':
            (void)fputs("&#39;", out);
            break;
        default:
            (void)fputc(*c, out);
            break;
        }
    }
    free(tame);
}

static const char *word(const json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));
    return text != NULL ? text : "";
}

static void element(FILE *out, const char *tag, const char *text)
{
    (void)fprintf(out, "<%s>", tag);
    escaped(out, text);
    (void)fprintf(out, "</%s>", tag);
}

static void fact(FILE *out, const char *name, const char *text)
{
    if (text != NULL && *text != '\0') {
        element(out, "dt", name);
        element(out, "dd", text);
    }
}

/* Seconds of a journal's time, "2026-01-31T12:00:00.123456Z"; NAN if none. */
static double seconds_of(const char *text)
{
    struct tm tm = {0};
    const char *rest = strptime(text, "%Y-%m-%dT%H:%M:%S", &tm);
    if (rest == NULL) {
        return NAN;
    }
    return (double)timegm(&tm) + (*rest == '.' ? strtod(rest, NULL) : 0);
}

/* --- head --- */

static const char style[] =
    ":root{color-scheme:light dark;--fg:#1b1f24;--dim:#636c76;--bg:#fff;"
    "--line:#d8dee4;--box:#f6f8fa;--run:#2f6fdb;--undo:#b7791f;--open:#c0392b;"
    "--good:#1a7f37}\n"
    "@media(prefers-color-scheme:dark){:root{--fg:#e6edf3;--dim:#8b949e;"
    "--bg:#0d1117;--line:#30363d;--box:#161b22;--run:#6ea8fe;--undo:#e3b341;"
    "--open:#ff7b72;--good:#3fb950}}\n"
    "body{margin:0;background:var(--bg);color:var(--fg);"
    "font:15px/1.5 system-ui,sans-serif}\n"
    "main{max-width:72rem;margin:0 auto;padding:2rem 1.5rem}\n"
    "h1{font-size:1.5rem;margin:0 0 .25rem}h2{font-size:1.1rem;"
    "margin:2rem 0 .5rem}\n"
    "code,td.m,dd{font-family:ui-monospace,monospace;font-size:.87em;"
    "overflow-wrap:anywhere}\n"
    ".state{font-size:.85rem;padding:.15em .7em;border-radius:1em;"
    "border:1px solid currentColor;color:var(--undo);margin-left:.6em}\n"
    ".state.done{color:var(--good)}.state.parked{color:var(--open)}\n"
    "dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1.2rem;"
    "margin:1rem 0}dt{color:var(--dim)}dd{margin:0}\n"
    ".error{border-left:4px solid var(--open);background:var(--box);"
    "padding:.6rem 1rem;margin:1rem 0}.error p{margin:.2rem 0}\n"
    "table{border-collapse:collapse;width:100%}th{text-align:left;"
    "color:var(--dim);font-weight:500}th,td{padding:.25rem .8rem .25rem 0;"
    "border-bottom:1px solid var(--line);vertical-align:top}\n"
    "td.n{text-align:right}td.n,td.t{white-space:nowrap}\n"
    "svg{width:100%;height:auto;display:block}svg text{fill:var(--dim);"
    "font:12px system-ui,sans-serif}\n"
    ".run{fill:var(--run)}.undo{fill:var(--undo)}.open{fill:var(--open)}"
    ".grid{stroke:var(--line)}\n"
    "summary{cursor:pointer;font-size:1.1rem;font-weight:600;margin:2rem 0 "
    ".5rem}\n";

static void head(FILE *out, const json_t *operation, const char *state)
{
    (void)fputs("<!doctype html>\n<html lang=\"en\">\n<head>\n"
                "<meta charset=\"utf-8\">\n"
                "<meta name=\"viewport\" content=\"width=device-width\">\n"
                "<title>qpivot ",
                out);
    escaped(out, word(operation, "kind"));
    (void)fputc(' ', out);
    escaped(out, word(operation, "op"));
    (void)fprintf(out,
                  "</title>\n<style>\n%s</style>\n</head>\n<body>\n<main>\n"
                  "<h1>",
                  style);
    escaped(out, word(operation, "kind"));
    (void)fputs(" <code>", out);
    escaped(out, word(operation, "op"));
    (void)fputs("</code><span class=\"state ", out);
    escaped(out, state);
    (void)fputs("\">", out);
    escaped(out, state);
    (void)fputs("</span></h1>\n", out);
}

static void facts_of(FILE *out, const json_t *operation)
{
    const json_t *plan = json_object_get(operation, "plan");
    const json_t *result = json_object_get(operation, "result");
    const json_t *blackout = json_object_get(result, "blackout_ms");
    double took = seconds_of(word(operation, "updated")) -
                  seconds_of(word(operation, "created"));
    char span[TEXT_SPAN_MAX];
    (void)fputs("<dl>", out);
    fact(out, "monitor", word(operation, "qmp"));
    fact(out, "destination", word(plan, "dst_qmp"));
    fact(out, "begun", word(operation, "created"));
    fact(out, "last record", word(operation, "updated"));
    if (took >= 0) {
        fact(out, "time", text_span(took, span));
    }
    if (json_is_number(blackout)) {
        char text[64];
        (void)snprintf(text, sizeof(text), "%.1f ms",
                       json_number_value(blackout));
        fact(out, "blackout", text);
    }
    (void)fputs("</dl>\n", out);
}

static void error_box(FILE *out, const json_t *operation)
{
    const json_t *error =
        json_object_get(json_object_get(operation, "result"), "error");
    if (!json_is_object(error)) {
        return;
    }
    (void)fputs("<div class=\"error\"><p><strong>", out);
    escaped(out, word(error, "object"));
    (void)fputs("</strong> ", out);
    escaped(out, word(error, "desc"));
    (void)fputs("</p>", out);
    if (*word(error, "command") != '\0') {
        (void)fputs("<p>command ", out);
        element(out, "code", word(error, "command"));
        (void)fputs("</p>", out);
    }
    if (*word(error, "hint") != '\0') {
        element(out, "p", word(error, "hint"));
    }
    (void)fputs("</div>\n", out);
}

/* --- disks --- */

static const json_t *result_of(const json_t *operation, const char *disk)
{
    size_t i;
    json_t *entry;
    const json_t *result = json_object_get(operation, "result");
    json_array_foreach(json_object_get(result, "disks"), i, entry) {
        if (strcmp(word(entry, "disk"), disk) == 0) {
            return entry;
        }
    }
    return NULL;
}

static void number_cell(FILE *out, const json_t *value)
{
    char text[TEXT_BYTES_MAX];
    (void)fputs("<td class=\"n\">", out);
    if (json_is_integer(value) && json_integer_value(value) >= 0) {
        (void)fputs(text_bytes((uint64_t)json_integer_value(value), text), out);
    }
    (void)fputs("</td>", out);
}

static void disk_row(FILE *out, const json_t *disk, const json_t *result)
{
    size_t i;
    json_t *entry;
    (void)fputs("<tr>", out);
    element(out, "td", word(disk, "disk"));
    (void)fputs("<td class=\"m\">", out);
    escaped(out, word(disk, "from"));
    (void)fputs("</td><td class=\"m\">", out);
    escaped(out, word(disk, "to"));
    (void)fputs("</td>", out);
    number_cell(out, json_object_get(disk, "size"));
    number_cell(out, json_object_get(result, "bytes_copied"));
    number_cell(out, json_object_get(result, "bytes_written"));
    (void)fputs("<td>", out);
    escaped(out, word(disk, "reason"));
    json_array_foreach(json_object_get(result, "differences"), i, entry) {
        char *before = json_dumps(json_object_get(entry, "before"),
                                  JSON_ENCODE_ANY | JSON_COMPACT);
        char *after = json_dumps(json_object_get(entry, "after"),
                                 JSON_ENCODE_ANY | JSON_COMPACT);
        char *text = text_printf("%s: %s → %s", word(entry, "property"),
                                 before != NULL ? before : "?",
                                 after != NULL ? after : "?");
        (void)fputs("<br>", out);
        element(out, "code", text);
        free(before);
        free(after);
        free(text);
    }
    (void)fputs("</td></tr>\n", out);
}

static void disks(FILE *out, const json_t *operation)
{
    size_t i;
    json_t *disk;
    const json_t *plan = json_object_get(operation, "plan");
    (void)fputs("<h2>Disks</h2>\n<table><thead><tr><th>disk</th><th>from</th>"
                "<th>to</th><th>size</th><th>copied</th><th>written</th>"
                "<th>how, and what differs</th></tr></thead>\n<tbody>\n",
                out);
    json_array_foreach(json_object_get(plan, "disks"), i, disk) {
        disk_row(out, disk, result_of(operation, word(disk, "disk")));
    }
    (void)fputs("</tbody></table>\n", out);
}

/* --- the picture --- */

static struct bar *bar_open(struct bars *bars, const char *step, long long disk)
{
    for (size_t i = bars->n; i > 0; i--) {
        struct bar *bar = &bars->bar[i - 1];
        if (isnan(bar->end) && bar->disk == disk &&
            strcmp(bar->step, step) == 0) {
            return bar;
        }
    }
    return NULL;
}

static struct bar *bar_begin(struct bars *bars, const char *step,
                             long long disk, double begin, const char *class)
{
    if (bars->n == BARS_MAX) {
        return NULL;
    }
    struct bar *bar = &bars->bar[bars->n++];
    *bar = (struct bar){step, disk, begin, NAN, class};
    return bar;
}

/* A step without an intent, one that only looks, began at the record before. */
static void bars_take(struct bars *bars, const json_t *record, double before)
{
    const char *kind = word(record, "kind");
    const char *step = word(record, "step");
    const json_t *index = json_object_get(record, "disk");
    long long disk = json_is_integer(index) ? json_integer_value(index) : -1;
    double now = seconds_of(word(record, "time"));
    bool ends = strcmp(kind, "end") == 0 || strcmp(kind, "undone") == 0;
    bool back = strncmp(kind, "undo", 4) == 0;
    if (isnan(now)) {
        return;
    }
    bars->begin = bars->begin <= now ? bars->begin : now; /* NAN: none yet */
    bars->end = bars->end >= now ? bars->end : now;
    if (strcmp(kind, "intent") == 0 || strcmp(kind, "undo") == 0) {
        (void)bar_begin(bars, step, disk, now, back ? "undo" : "run");
    } else if (ends) {
        struct bar *bar = bar_open(bars, step, disk);
        if (bar == NULL) {
            bar = bar_begin(bars, step, disk, isnan(before) ? now : before,
                            back ? "undo" : "run");
        }
        if (bar != NULL) {
            bar->end = now;
        }
    }
}

static void bar_draw(FILE *out, const struct bars *bars, const struct bar *bar,
                     unsigned y)
{
    const double left = 170, width = 830, whole = bars->end - bars->begin;
    bool open = isnan(bar->end);
    double end = open ? bars->end : bar->end;
    double scale = whole > 0 ? width / whole : 0;
    double wide = (end - bar->begin) * scale;
    char span[TEXT_SPAN_MAX];
    (void)fprintf(out,
                  "<rect class=\"%s\" x=\"%.1f\" y=\"%u\" width=\"%.1f\" "
                  "height=\"10\" rx=\"2\"><title>",
                  open ? "open" : bar->class,
                  left + (bar->begin - bars->begin) * scale, y,
                  wide > 2 ? wide : 2);
    escaped(out, bar->step);
    if (bar->disk >= 0) {
        (void)fprintf(out, ", disk %lld", bar->disk);
    }
    (void)fprintf(out, "%s: %s</title></rect>\n",
                  open ? ", no end is recorded" : "",
                  text_span(end - bar->begin, span));
}

static void bars_draw(FILE *out, const struct bars *bars)
{
    const unsigned row = 16;
    unsigned y = 4;
    char span[TEXT_SPAN_MAX];
    size_t n_rows = 0;
    for (size_t i = 0; i < bars->n; i++) {
        n_rows += i == 0 ||
                  strcmp(bars->bar[i].step, bars->bar[i - 1].step) != 0 ||
                  bars->bar[i].disk == bars->bar[i - 1].disk;
    }
    (void)fprintf(out,
                  "<h2>When</h2>\n<svg viewBox=\"0 0 1004 %zu\" "
                  "role=\"img\" aria-label=\"the steps in time\">\n",
                  n_rows * row + 28);
    for (size_t i = 0; i < bars->n; i++) {
        const struct bar *bar = &bars->bar[i], *last = i > 0 ? bar - 1 : NULL;
        bool same = last != NULL && strcmp(bar->step, last->step) == 0 &&
                    bar->disk != last->disk;
        if (last != NULL && !same) {
            y += row;
        }
        if (!same) {
            (void)fprintf(out, "<text x=\"160\" y=\"%u\" text-anchor=\"end\">",
                          y + 9);
            escaped(out, bar->step);
            (void)fputs("</text>\n", out);
        }
        bar_draw(out, bars, bar, y);
    }
    y += row + 4;
    (void)fprintf(out,
                  "<line class=\"grid\" x1=\"170\" x2=\"1000\" y1=\"%u\" "
                  "y2=\"%u\"/>\n<text x=\"170\" y=\"%u\">0</text>\n"
                  "<text x=\"1000\" y=\"%u\" text-anchor=\"end\">%s</text>\n"
                  "</svg>\n",
                  y, y, y + 15, y + 15,
                  text_span(bars->end - bars->begin, span));
}

static void picture(FILE *out, const json_t *operation)
{
    struct bars bars = {.begin = NAN, .end = NAN};
    double before = NAN;
    size_t i;
    json_t *record;
    bars.bar = calloc(BARS_MAX, sizeof(*bars.bar));
    if (bars.bar == NULL) {
        return;
    }
    json_array_foreach(json_object_get(operation, "records"), i, record) {
        bars_take(&bars, record, before);
        before = seconds_of(word(record, "time"));
    }
    if (bars.n > 0) {
        bars_draw(out, &bars);
    }
    free(bars.bar);
}

/* --- the records --- */

static void records(FILE *out, const json_t *operation)
{
    size_t i;
    json_t *record;
    (void)fputs(
        "<details><summary>Records of the journal</summary>\n<table>"
        "<thead><tr><th>time</th><th>kind</th><th>step</th><th>disk</th>"
        "<th>facts</th></tr></thead>\n<tbody>\n",
        out);
    json_array_foreach(json_object_get(operation, "records"), i, record) {
        const json_t *data = json_object_get(record, "data");
        json_int_t disk = json_integer_value(json_object_get(record, "disk"));
        char *facts =
            json_object_size(data) > 0 ? json_dumps(data, JSON_COMPACT) : NULL;
        (void)fputs("<tr><td class=\"m t\">", out);
        escaped(out, word(record, "time"));
        (void)fputs("</td>", out);
        element(out, "td", word(record, "kind"));
        (void)fputs("<td class=\"t\">", out);
        escaped(out, word(record, "step"));
        (void)fputs("</td>", out);
        if (disk >= 0) {
            (void)fprintf(out, "<td>%lld</td>", (long long)disk);
        } else {
            (void)fputs("<td></td>", out);
        }
        (void)fputs("<td class=\"m\">", out);
        escaped(out, facts);
        (void)fputs("</td></tr>\n", out);
        free(facts);
    }
    (void)fputs("</tbody></table></details>\n", out);
}
