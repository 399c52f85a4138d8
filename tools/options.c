/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Command lines from tables. It knows kinds of values, not what any option
 * means.
 */
#include "options.h"

#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "errors.h"
#include "text.h"

enum { ROWS_MAX = 48, FIRST_CODE = 1000, HELP_COLUMN = 32 };

static const struct option_row common_rows[] = {
    {"state",                                   "DIR", OPTION_TEXT, false,                                          offsetof(struct common_values, state),
     "where the journal is kept (default: see qpivot(1))"},
    {"trace",                                         "FILE",                                        OPTION_TEXT,     false, offsetof(struct common_values,                     trace),
     "append every QMP line both ways to FILE"},
    {"help", NULL,      OPTION_FLAG,            false,                                                      SIZE_MAX,                                                                   "print this and exit"                                                           },
};

enum { N_COMMON = sizeof(common_rows) / sizeof(common_rows[0]) };

struct parse {
    const struct verb *verb;
    char *values;
    bool given[ROWS_MAX];
    bool help;
    char *state; /* the default, when it was made up here */
};

static int parse_all(struct parse *p, int argc, char **argv);
static int parse_checked(struct parse *p, int argc);
static int store(struct parse *p, unsigned row, const char *text);
static int store_choice(struct parse *p, const struct option_row *row,
                        const char *text);
static int store_number(struct parse *p, const struct option_row *row,
                        const char *text);
static int store_list(struct parse *p, const struct option_row *row,
                      const char *text);
static char *default_state(void);
static void forget(struct parse *p);
static const struct option_row *row_at(const struct verb *verb, unsigned i);
static void help_row(const struct option_row *row, FILE *out);

int verb_main(const struct verb *verb, int argc, char **argv)
{
    struct parse p = {.verb = verb};
    p.values = calloc(1, verb->values_size);
    if (p.values == NULL) {
        error_print(NULL);
        return EXIT_FAILURE;
    }
    int code = parse_all(&p, argc, argv);
    if (code == 0 && p.help) {
        verb_help(verb, stdout);
    } else if (code == 0) {
        code = parse_checked(&p, argc);
        if (code == 0) {
            code =
                verb->run(p.values, argv + optind, (unsigned)(argc - optind));
        }
    }
    forget(&p);
    return code;
}

void verb_help(const struct verb *verb, FILE *out)
{
    (void)fprintf(out, "usage: qpivot %s", verb->name);
    for (unsigned i = 0; i < verb->n_options; i++) {
        const struct option_row *row = &verb->options[i];
        if (row->required) {
            (void)fprintf(out, " --%s %s", row->name, row->value);
        }
    }
    (void)fprintf(out, " [options]%s%s\n\n%s\n\n", verb->operands[0] ? " " : "",
                  verb->operands, verb->summary);
    for (unsigned i = 0; i < verb->n_options + N_COMMON; i++) {
        help_row(row_at(verb, i), out);
    }
    (void)fprintf(out, "\nMore in qpivot-%s(1).\n", verb->name);
}

int verb_usage(const struct verb *verb, const char *fmt, ...)
{
    char *text = NULL;
    va_list ap;
    va_start(ap, fmt);
    int n = vasprintf(&text, fmt, ap);
    va_end(ap);
    error_say(verb->name, "%s", n < 0 ? fmt : text);
    error_hint("qpivot %s --help", verb->name);
    if (n >= 0) {
        free(text);
    }
    return EXIT_USAGE;
}

static int parse_all(struct parse *p, int argc, char **argv)
{
    struct option rows[ROWS_MAX + 1] = {{0}};
    unsigned n = p->verb->n_options + N_COMMON;
    for (unsigned i = 0; i < n && i < ROWS_MAX; i++) {
        const struct option_row *row = row_at(p->verb, i);
        rows[i].name = row->name;
        rows[i].has_arg = row->value != NULL ? 1 : 0;
        rows[i].val = (int)(FIRST_CODE + i);
    }
    opterr = 0;
    optind = 0; /* GNU: start over, with the ':' below taken into account */
    for (;;) {
        int c = getopt_long(argc, argv, ":h", rows, NULL);
        if (c == -1) {
            return 0;
        }
        if (c == ':') {
            return verb_usage(p->verb, "option '%s' needs a value",
                              argv[optind - 1]);
        }
        if (c == '?') {
            return verb_usage(p->verb, "unknown option '%s'", argv[optind - 1]);
        }
        if (c == 'h') {
            p->help = true;
            continue;
        }
        int code = store(p, (unsigned)(c - FIRST_CODE), optarg);
        if (code != 0) {
            return code;
        }
    }
}

static int parse_checked(struct parse *p, int argc)
{
    for (unsigned i = 0; i < p->verb->n_options; i++) {
        const struct option_row *row = &p->verb->options[i];
        if (row->required && !p->given[i]) {
            return verb_usage(p->verb, "option '--%s %s' is missing", row->name,
                              row->value);
        }
    }
    unsigned n = (unsigned)(argc - optind);
    if (n < p->verb->min_operands) {
        return verb_usage(p->verb, "%s is missing", p->verb->operands);
    }
    if (n > p->verb->max_operands) {
        return verb_usage(p->verb, "too many arguments");
    }
    struct common_values *common = (void *)p->values;
    common->state_given = common->state != NULL;
    if (common->state == NULL) {
        p->state = default_state();
        common->state = p->state;
    }
    if (common->state == NULL) {
        error_say("state directory", "$HOME is not set");
        error_hint("name one by --state DIR or $QPIVOT_STATE");
        return EXIT_USAGE;
    }
    return 0;
}

static int store(struct parse *p, unsigned i, const char *text)
{
    const struct option_row *row = row_at(p->verb, i);
    if (row->offset == SIZE_MAX) {
        p->help = true;
        return 0;
    }
    char *at = p->values + row->offset;
    p->given[i] = true;
    switch (row->kind) {
    case OPTION_FLAG:
        *(bool *)(void *)at = true;
        return 0;
    case OPTION_TEXT:
        if (text[0] == '\0') {
            return verb_usage(p->verb, "'--%s' is empty", row->name);
        }
        *(const char **)(void *)at = text;
        return 0;
    case OPTION_CHOICE:
        return store_choice(p, row, text);
    case OPTION_LIST:
        return store_list(p, row, text);
    case OPTION_BYTES:
    case OPTION_TIME:
    case OPTION_MS:
    default:
        return store_number(p, row, text);
    }
}

static int store_choice(struct parse *p, const struct option_row *row,
                        const char *text)
{
    unsigned index = 0;
    for (const char *at = row->value; *at != '\0'; index++) {
        size_t n = strcspn(at, "|");
        if (strlen(text) == n && memcmp(at, text, n) == 0) {
            *(unsigned *)(void *)(p->values + row->offset) = index;
            return 0;
        }
        at += n + (at[n] == '|' ? 1 : 0);
    }
    return verb_usage(p->verb, "'--%s %s': must be one of %s", row->name, text,
                      row->value);
}

static int store_number(struct parse *p, const struct option_row *row,
                        const char *text)
{
    char *at = p->values + row->offset;
    uint64_t value = 0;
    const char *like = "a time such as 500ms, 30s, 10m or 2h";
    int r = 0;
    if (row->kind == OPTION_BYTES) {
        like = "bytes such as 4096, 10M or 1.5G";
        r = text_to_bytes(text, &value);
    } else {
        r = text_to_ms(text, row->kind == OPTION_MS ? 1 : 1000, &value);
        r = r == 0 && value > UINT_MAX ? -ERANGE : r;
    }
    if (r == 0 && value == 0 && row->kind != OPTION_BYTES) {
        return verb_usage(p->verb,
                          "'--%s %s': must be more than 0; leave it out for"
                          " the default",
                          row->name, text);
    }
    if (r < 0) {
        return verb_usage(p->verb, "'--%s %s': %s", row->name, text,
                          r == -ERANGE ? "too big" : like);
    }
    if (row->kind == OPTION_BYTES) {
        *(uint64_t *)(void *)at = value;
    } else {
        *(unsigned *)(void *)at = (unsigned)value;
    }
    return 0;
}

static int store_list(struct parse *p, const struct option_row *row,
                      const char *text)
{
    struct option_list *list = (void *)(p->values + row->offset);
    const char **items = reallocarray(list->items, list->n + 1, sizeof(*items));
    if (items == NULL) {
        error_print(NULL);
        return EXIT_FAILURE;
    }
    items[list->n] = text;
    list->items = items;
    list->n++;
    return 0;
}

/* The library never reads the environment: which journal is decided here. */
static char *default_state(void)
{
    const char *dir = getenv("QPIVOT_STATE");
    if (dir != NULL && dir[0] != '\0') {
        return text_printf("%s", dir);
    }
    if (geteuid() == 0) {
        return text_printf("/var/lib/qpivot");
    }
    dir = getenv("XDG_STATE_HOME");
    if (dir != NULL && dir[0] == '/') {
        return text_printf("%s/qpivot", dir);
    }
    dir = getenv("HOME");
    return dir != NULL && dir[0] != '\0'
               ? text_printf("%s/.local/state/qpivot", dir)
               : NULL;
}

static void forget(struct parse *p)
{
    for (unsigned i = 0; i < p->verb->n_options; i++) {
        const struct option_row *row = &p->verb->options[i];
        if (row->kind == OPTION_LIST) {
            free(((struct option_list *)(void *)(p->values + row->offset))
                     ->items);
        }
    }
    free(p->state);
    free(p->values);
}

static const struct option_row *row_at(const struct verb *verb, unsigned i)
{
    return i < verb->n_options ? &verb->options[i]
                               : &common_rows[i - verb->n_options];
}

/* A long option gets a line of its own, its text the next one. */
static void help_row(const struct option_row *row, FILE *out)
{
    int n = fprintf(out, "  --%s%s%s", row->name, row->value != NULL ? " " : "",
                    row->value != NULL ? row->value : "");
    if (n >= HELP_COLUMN - 1) {
        n = fprintf(out, "\n") - 1;
    }
    (void)fprintf(out, "%*s%s\n", HELP_COLUMN - n, "", row->help);
}
