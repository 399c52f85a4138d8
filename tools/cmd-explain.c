/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* qpivot explain: the step table of an operation, as text that fits a page. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "cmd.h"
#include "errors.h"
#include "qpivot.h"

struct explain_values {
    struct common_values common;
    bool json;
};

#define AT(member) offsetof(struct explain_values, member)

enum { NAME_COLUMNS = 23, PAGE_COLUMNS = 72 };

static const struct option_row rows[] = {
    {"json", NULL, OPTION_FLAG, false, AT(json), "print the table as JSON"},
};

static int run(const void *values, char **operands, unsigned n);
static void print_step(const json_t *step);
static void print_wrapped(const char *head, const char *text);
static bool flagged(const json_t *step, const char *flag);

const struct verb verb_explain = {
    .name = "explain",
    .operands = "OPERATION",
    .min_operands = 1,
    .max_operands = 1,
    .summary = "Print the steps of an operation: what each does and undoes.",
    VERB_OPTIONS(rows),
    .values_size = sizeof(struct explain_values),
    .run = run,
};

static int run(const void *values, char **operands, unsigned n)
{
    (void)n;
    const struct explain_values *v = values;
    char *text = qpivot_explain(operands[0]);
    if (text == NULL) {
        error_say(operands[0], "there is no such operation");
        error_hint("qpivot explain move");
        return EXIT_USAGE;
    }
    json_auto_t *steps = json_loads(text, 0, NULL);
    if (v->json) {
        (void)printf("%s\n", text);
    }
    qpivot_free(text);
    if (!v->json) {
        (void)printf("d each disk   ? where needed   < undone when going "
                     "back\n\n");
    }
    size_t i;
    json_t *step;
    json_array_foreach(steps, i, step) {
        if (!v->json) {
            print_step(step);
        }
    }
    return 0;
}

/*
 *     mirror           d . < | start to mirror the disk onto the target
 *     =======================+ pivot: back before it, only forward after it
 */
static void print_step(const json_t *step)
{
    const char *name = json_string_value(json_object_get(step, "step"));
    const char *does = json_string_value(json_object_get(step, "does"));
    if (flagged(step, "pivot")) {
        (void)printf("=======================+ pivot: back before it, only "
                     "forward after it\n");
    }
    char head[NAME_COLUMNS + 1];
    (void)snprintf(head, sizeof(head), "%-16.16s %c %c %c ",
                   name != NULL ? name : "?",
                   flagged(step, "per-disk") ? 'd' : '.',
                   flagged(step, "when-needed") ? '?' : '.',
                   json_is_true(json_object_get(step, "undo")) ? '<' : '.');
    print_wrapped(head, does != NULL ? does : "");
}

static void print_wrapped(const char *head, const char *text)
{
    const size_t width = PAGE_COLUMNS - NAME_COLUMNS - 2;
    while (*text != '\0') {
        size_t n = strlen(text);
        if (n > width) {
            n = width;
            while (n > 0 && text[n] != ' ') {
                n--;
            }
            n = n == 0 ? width : n;
        }
        (void)printf("%-*s| %.*s\n", NAME_COLUMNS, head, (int)n, text);
        head = "";
        text += n;
        text += strspn(text, " ");
    }
}

/* "flags" is an array of words or one text of them. */
static bool flagged(const json_t *step, const char *flag)
{
    const json_t *flags = json_object_get(step, "flags");
    if (json_is_string(flags)) {
        return strstr(json_string_value(flags), flag) != NULL;
    }
    size_t i;
    json_t *item;
    json_array_foreach(flags, i, item) {
        const char *text = json_string_value(item);
        if (text != NULL && strcmp(text, flag) == 0) {
            return true;
        }
    }
    return false;
}
