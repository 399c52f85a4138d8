/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* qpivot list, qpivot show: the journal. */
#include <stdlib.h>
#include <string.h>

#include "cmd.h"
#include "errors.h"
#include "journal-text.h"
#include "terminal.h"
#include "text.h"

struct list_values {
    struct common_values common;
    bool all;
    bool json;
};

#define AT(member) offsetof(struct list_values, member)

static const struct option_row list_rows[] = {
    {"all",  NULL, OPTION_FLAG, false, AT(all),  "finished operations too"},
    {"json", NULL, OPTION_FLAG, false, AT(json),
     "print one JSON object per line"                                     },
};

static const struct option_row show_rows[] = {
    {"json", NULL, OPTION_FLAG, false, AT(json), "print one JSON object"},
};

static int list_run(const void *values, char **operands, unsigned n);
static int list_none(const struct list_values *v);
static int show_run(const void *values, char **operands, unsigned n);
static void print_json(const json_t *json);
static void list_row(struct terminal *t, const json_t *operation);
static void show_text(struct terminal *t, const json_t *operation);
static void show_plan(struct terminal *t, const json_t *plan);
static void show_record(struct terminal *t, const json_t *record);
static void show_error(struct terminal *t, const json_t *error);
static char *progress(const json_t *copy);
static void add_resume(const struct list_values *v, json_t *operation);
static void show_copy(struct terminal *t, const json_t *copy);
static const char *word(const json_t *object, const char *name);

const struct verb verb_list = {
    .name = "list",
    .operands = "",
    .summary = "List the operations of the journal that are not finished.",
    VERB_OPTIONS(list_rows),
    .values_size = sizeof(struct list_values),
    .run = list_run,
};

const struct verb verb_show = {
    .name = "show",
    .operands = "OP",
    .min_operands = 1,
    .max_operands = 1,
    .summary = "Show one operation of the journal with its steps.",
    VERB_OPTIONS(show_rows),
    .values_size = sizeof(struct list_values),
    .run = show_run,
};

static int list_run(const void *values, char **operands, unsigned n)
{
    (void)operands;
    (void)n;
    const struct list_values *v = values;
    struct session session;
    if (!journal_there(&v->common)) {
        return list_none(v);
    }
    int code = session_start(&session, &v->common);
    if (code != 0) {
        return code;
    }
    struct terminal t;
    terminal_init(&t, stdout, v->json);
    json_auto_t *list = NULL;
    code = journal_read(&session, &list);
    size_t i;
    json_t *operation;
    bool head = false;
    json_array_foreach(list, i, operation) {
        if (journal_finished(operation) && !v->all) {
            continue;
        }
        if (v->json) {
            add_resume(v, operation);
            print_json(operation);
            continue;
        }
        if (!head) {
            terminal_say(&t, "%-13s %-8s %-18s %-20s %s", "OP", "KIND", "STATE",
                         "CREATED", "QMP, OR WHAT IS COPIED");
            head = true;
        }
        list_row(&t, operation);
    }
    if (code == 0 && !head) {
        terminal_say(&t, v->all ? "no operations" : "no unfinished operations");
    }
    terminal_done(&t);
    session_end(&session);
    return code;
}

/* A directory that was named must be one; the default may be yet to come. */
static int list_none(const struct list_values *v)
{
    if (v->common.state_given) {
        error_say(v->common.state, "no journal there");
        return EXIT_USAGE;
    }
    if (!v->json) {
        (void)printf("%s (no journal in %s)\n",
                     v->all ? "no operations" : "no unfinished operations",
                     v->common.state);
    }
    return 0;
}

static int show_run(const void *values, char **operands, unsigned n)
{
    (void)n;
    const struct list_values *v = values;
    json_auto_t *operation = NULL;
    int code = journal_show(&v->common, operands[0], &operation);
    if (code != 0) {
        return code;
    }
    add_resume(v, operation);
    if (v->json) {
        print_json(operation);
        return 0;
    }
    struct terminal t;
    terminal_init(&t, stdout, false);
    if (journal_is_copy(operation)) {
        show_copy(&t, operation);
    } else {
        show_text(&t, operation);
    }
    terminal_done(&t);
    return 0;
}

static void print_json(const json_t *json)
{
    /* 15 digits: a time of 0.265 stays one. */
    char *line = json_dumps(json, JSON_COMPACT | JSON_REAL_PRECISION(15));
    (void)printf("%s\n", line != NULL ? line : "{}");
    free(line);
}

static void list_row(struct terminal *t, const json_t *operation)
{
    char *what = journal_is_copy(operation)
                     ? text_printf("%s -> %s", word(operation, "source"),
                                   word(operation, "target"))
                     : text_printf("%s", word(operation, "qmp"));
    char *safe = journal_is_copy(operation) ? progress(operation) : NULL;
    terminal_say(t, "%-13s %-8s %-18s %.19sZ %s%s%s", word(operation, "op"),
                 word(operation, "kind"), journal_state(operation),
                 word(operation, "created"), what != NULL ? what : "-",
                 safe != NULL ? ", " : "", safe != NULL ? safe : "");
    free(what);
    free(safe);
}

static char *progress(const json_t *copy)
{
    char done[TEXT_BYTES_MAX], size[TEXT_BYTES_MAX];
    return text_printf(
        "%s of %s safe",
        text_bytes(
            (uint64_t)json_integer_value(json_object_get(copy, "bytes_done")),
            done),
        text_bytes((uint64_t)json_integer_value(json_object_get(copy, "size")),
                   size));
}

/* What only this program knows: its own command line. */
static void add_resume(const struct list_values *v, json_t *operation)
{
    char *line = journal_is_copy(operation)
                     ? journal_resume(&v->common, operation)
                     : NULL;
    if (line != NULL) {
        (void)json_object_set_new(operation, "resume", json_string(line));
    }
    free(line);
}

static void show_copy(struct terminal *t, const json_t *copy)
{
    static const char *const members[][2] = {
        {"op",       "op"       },
        {"kind",     "kind"     },
        {"state",    "state"    },
        {"source",   "source"   },
        {"target",   "target"   },
        {"created",  "created"  },
        {"updated",  "updated"  },
        {"given in", "directory"},
    };
    for (size_t i = 0; i < sizeof(members) / sizeof(members[0]); i++) {
        terminal_say(t, "%-8s %s", members[i][0], word(copy, members[i][1]));
    }
    char *safe = progress(copy);
    terminal_say(t, "%-8s %s", "done", safe != NULL ? safe : "-");
    free(safe);
    if (!json_is_true(json_object_get(copy, "alive"))) {
        terminal_say(t, "%-8s %s", "go on by", word(copy, "resume"));
    }
}

static void show_text(struct terminal *t, const json_t *operation)
{
    terminal_say(t, "%-8s %s", "op", word(operation, "op"));
    terminal_say(t, "%-8s %s", "kind", word(operation, "kind"));
    terminal_say(t, "%-8s %s", "state", journal_state(operation));
    terminal_say(t, "%-8s %s", "qmp", word(operation, "qmp"));
    terminal_say(t, "%-8s %s", "created", word(operation, "created"));
    terminal_say(t, "%-8s %s", "updated", word(operation, "updated"));
    show_plan(t, json_object_get(operation, "plan"));
    show_error(t, json_object_get(operation, "error"));
    size_t i;
    json_t *record;
    json_array_foreach(json_object_get(operation, "records"), i, record) {
        show_record(t, record);
    }
}

static void show_plan(struct terminal *t, const json_t *plan)
{
    size_t i;
    json_t *disk;
    json_array_foreach(json_object_get(plan, "disks"), i, disk) {
        terminal_say(t, "%-8s %s: %s -> %s", "disk", word(disk, "disk"),
                     word(disk, "from"), word(disk, "to"));
    }
}

static void show_record(struct terminal *t, const json_t *record)
{
    const json_t *disk = json_object_get(record, "disk");
    char index[24] = "";
    if (json_is_integer(disk) && json_integer_value(disk) >= 0) {
        (void)snprintf(index, sizeof(index), " disk %lld",
                       (long long)json_integer_value(disk));
    }
    const json_t *data = json_object_get(record, "data");
    char *facts =
        json_object_size(data) > 0 ? json_dumps(data, JSON_COMPACT) : NULL;
    terminal_say(t, "%s %-9s %s%s%s%s", word(record, "time"),
                 word(record, "kind"), word(record, "step"), index,
                 facts != NULL ? " " : "", facts != NULL ? facts : "");
    free(facts);
}

static void show_error(struct terminal *t, const json_t *error)
{
    if (error == NULL || json_is_null(error)) {
        return;
    }
    char *line = error_line(error);
    terminal_say(t, "%-8s %s", "error", line != NULL ? line : "?");
    free(line);
    const char *hint = json_string_value(json_object_get(error, "hint"));
    if (hint != NULL) {
        terminal_say(t, "%-8s %s", "hint", hint);
    }
}

static const char *word(const json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));
    return text != NULL ? text : "-";
}
