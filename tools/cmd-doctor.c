/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* qpivot doctor: what carries our names in a QEMU, and its removal. */
#include <stdlib.h>
#include <string.h>

#include "cmd.h"
#include "errors.h"
#include "follow.h"
#include "journal-text.h"
#include "text.h"

struct doctor_values {
    struct common_values common;
    const char *qmp;
    const char *op;
    bool fix;
    bool json;
};

#define AT(member) offsetof(struct doctor_values, member)

enum { FOREIGN_SHOWN = 8 };

static const struct option_row rows[] = {
    {"qmp",  "ADDR", OPTION_TEXT, true,  AT(qmp),
     "the VM's monitor; see qpivot(1)"                                       },
    {"fix",  NULL,   OPTION_FLAG, false, AT(fix),  "remove what is left over"},
    {"op",   "OP",   OPTION_TEXT, false, AT(op),
     "this operation only, also where the journal knows none such"           },
    {"json", NULL,   OPTION_FLAG, false, AT(json), "print one JSON object"   },
};

/* The event callback's data: follow's own comes first. */
struct shown {
    struct follow follow;
    void (*show)(void *data, const char *json); /* of all other events */
    const struct doctor_values *values;
};

static int run(const void *values, char **operands, unsigned n);
static int begin(struct follow *f, const struct qpivot_callbacks *callbacks,
                 const void *options, char **ret_error);
static void on_event(void *data, const char *json);
static void show(const struct shown *s, struct terminal *t,
                 const json_t *event);

const struct verb verb_doctor = {
    .name = "doctor",
    .operands = "",
    .summary = "Show what qpivot has left in a VM's QEMU, and remove it.",
    VERB_OPTIONS(rows),
    .values_size = sizeof(struct doctor_values),
    .operation = true,
    .run = run,
};

static int run(const void *values, char **operands, unsigned n)
{
    (void)operands;
    (void)n;
    const struct doctor_values *v = values;
    struct session session;
    /* To look makes no journal; one that is named must be there. */
    bool there = journal_there(&v->common);
    if (!there && v->common.state_given) {
        error_say(v->common.state, "no journal there");
        return EXIT_USAGE;
    }
    int code = there || v->fix ? session_start(&session, &v->common)
                               : session_start_looking(&session, &v->common);
    if (code != 0) {
        return code;
    }
    struct events events;
    events_init(&events, v->json, false);
    struct qpivot_doctor_options options = {.size = sizeof(options),
                                            .qmp = v->qmp,
                                            .op = v->op,
                                            .fix = v->fix ? 1 : 0};
    struct shown shown = {.values = v};
    code = follow_one(&shown.follow, &session, &events, begin, &options);
    events_done(&events);
    session_end(&session);
    return code;
}

static int begin(struct follow *f, const struct qpivot_callbacks *callbacks,
                 const void *options, char **ret_error)
{
    struct shown *shown = (struct shown *)f;
    struct qpivot_callbacks ours = *callbacks;
    shown->show = callbacks->event;
    ours.event = on_event;
    return qpivot_doctor(f->session->engine, options, &ours, &f->op, ret_error);
}

static const char *word(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text != NULL ? text : "";
}

static void on_event(void *data, const char *json)
{
    struct shown *s = data;
    json_auto_t *event = json_loads(json, 0, NULL);
    if (s->values->json || json_object_get(event, "items") == NULL) {
        s->show(&s->follow, json);
    } else {
        s->follow.events->told_end = true;
        show(s, &s->follow.events->terminal, event);
    }
}

/* Names come from QEMU: they must not steer the terminal. */
static void say(struct terminal *t, char *line)
{
    if (line != NULL) {
        terminal_say(t, "%s", text_tame(line));
    }
    free(line);
}

/* "a, b, c and 7 more" */
static char *names_of(const json_t *list, size_t max)
{
    char *text = text_printf("%s", "");
    size_t n = json_array_size(list);
    for (size_t i = 0; i < n && i < max && text != NULL; i++) {
        const char *name = json_string_value(json_array_get(list, i));
        char *longer = text_printf("%s%s%s", text, i > 0 ? ", " : "",
                                   name != NULL ? name : "?");
        free(text);
        text = longer;
    }
    if (n > max && text != NULL) {
        char *longer = text_printf("%s and %zu more", text, n - max);
        free(text);
        text = longer;
    }
    return text;
}

/* What uses it, or where it is. */
static char *use_of(const json_t *item)
{
    const json_t *users = json_object_get(item, "users");
    const char *use = word(item, "use"), *node = word(item, "node");
    char *names = names_of(users, FOREIGN_SHOWN);
    char *text = NULL;
    if (strcmp(use, "live") == 0) {
        text = text_printf("in use, part of the guest's disk%s%s",
                           names != NULL && *names != '\0' ? ": " : "",
                           names != NULL ? names : "");
    } else if (strcmp(use, "filter") == 0) {
        text = text_printf("goes with its job");
    } else if (names != NULL && *names != '\0') {
        text = text_printf("used by %s", names);
    } else {
        text = text_printf("%s%s", *node != '\0' ? "of node " : "", node);
    }
    free(names);
    return text;
}

static void show_item(struct terminal *t, const json_t *item)
{
    const char *why = word(item, "why"), *state = word(item, "state");
    char *use = use_of(item);
    say(t, text_printf("  %-7s %-28s%s%s%s%s%s%s", word(item, "kind"),
                       word(item, "name"), *state != '\0' ? " " : "", state,
                       use != NULL && *use != '\0' ? " " : "",
                       use != NULL ? use : "", *why != '\0' ? "; stays: " : "",
                       why));
    free(use);
}

static unsigned show_items(struct terminal *t, const json_t *items,
                           const char *op)
{
    unsigned n = 0;
    size_t i;
    json_t *item;
    json_array_foreach(items, i, item) {
        if (op == NULL || strcmp(word(item, "op"), op) == 0) {
            show_item(t, item);
            n++;
        }
    }
    return n;
}

static const char *journal_tells(const json_t *operation)
{
    static const char *const texts[][2] = {
        {"live",       "an engine works on it"                         },
        {"dead",       "its engine is gone, it is not finished"        },
        {"ended",      "has ended"                                     },
        {"unknown",    "not in this journal: perhaps of another host's"},
        {"unreadable", "the journal cannot be read"                    },
    };
    const char *tells = word(operation, "journal");
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        if (strcmp(texts[i][0], tells) == 0) {
            return texts[i][1];
        }
    }
    return tells;
}

/* Whether anything of it is more than a part of the guest's disks. */
static bool remains(const json_t *items, const char *op)
{
    size_t i;
    json_t *item;
    json_array_foreach(items, i, item) {
        const char *use = word(item, "use");
        if (strcmp(word(item, "op"), op) == 0 && strcmp(use, "live") != 0 &&
            strcmp(use, "filter") != 0) {
            return true;
        }
    }
    return false;
}

static void show_operations(struct terminal *t, const json_t *event)
{
    const json_t *items = json_object_get(event, "items");
    size_t i;
    json_t *operation;
    json_array_foreach(json_object_get(event, "operations"), i, operation) {
        const char *op = word(operation, "op"), *kind = word(operation, "kind");
        char *head = text_printf(
            "operation %s%s%s%s: %s", op, *kind != '\0' ? " (" : "", kind,
            *kind != '\0' ? ")" : "", journal_tells(operation));
        say(t, head);
        (void)show_items(t, items, op);
        if (remains(items, op)) {
            say(t, text_printf("  next:   %s", word(operation, "next")));
        }
    }
}

static void show_foreign(struct terminal *t, const json_t *event)
{
    static const char *const kinds[] = {"jobs", "exports", "nodes"};
    const json_t *foreign = json_object_get(event, "foreign");
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        char *names =
            names_of(json_object_get(foreign, kinds[i]), FOREIGN_SHOWN);
        if (names != NULL && *names != '\0') {
            say(t,
                text_printf("not ours, never touched: %s %s", kinds[i], names));
        }
        free(names);
    }
}

static void show(const struct shown *s, struct terminal *t, const json_t *event)
{
    const json_t *items = json_object_get(event, "items");
    const json_t *removed = json_object_get(event, "removed");
    const char *stream = word(event, "stream");
    char *frozen = names_of(json_object_get(event, "frozen"), FOREIGN_SHOWN);
    json_int_t n = json_integer_value(json_object_get(event, "remain"));
    if (frozen != NULL && *frozen != '\0') {
        say(t, text_printf("THE GUEST IS FROZEN by pending jobs: %s", frozen));
    }
    free(frozen);
    if (*stream != '\0') {
        say(t, text_printf("the guest is being migrated (%s): nothing is"
                           " removed; it must end, or be cancelled"
                           " (migrate_cancel), first",
                           stream));
    }
    if (json_array_size(removed) > 0) {
        terminal_say(t, "removed:");
        (void)show_items(t, removed, NULL);
    }
    show_operations(t, event);
    size_t i;
    json_t *item;
    bool head = false;
    json_array_foreach(items, i, item) {
        if (*word(item, "op") == '\0') {
            if (!head) {
                terminal_say(t, "named as ours, of no operation: never "
                                "touched");
            }
            head = true;
            show_item(t, item);
            if (strcmp(word(item, "kind"), "claim") == 0) {
                terminal_say(t, "  next:   object-del id=qpv-claim in qpivot "
                                "monitor, if nobody works on this VM");
            }
        }
    }
    show_foreign(t, event);
    if (n == 0) {
        terminal_say(t, json_array_size(removed) > 0 ? "nothing is left"
                                                     : "nothing left over");
    } else {
        terminal_say(t, "%lld left over%s", (long long)n,
                     s->values->fix ? "" : "; nothing was changed");
    }
}
