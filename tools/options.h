/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One table for each verb: what getopt_long() takes, what --help prints, and
 * what the manual and the completion are checked against.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

enum option_kind {
    OPTION_FLAG,   /* bool */
    OPTION_TEXT,   /* const char *, borrowed from argv */
    OPTION_BYTES,  /* uint64_t */
    OPTION_TIME,   /* unsigned ms; a bare number is seconds */
    OPTION_MS,     /* unsigned ms; a bare number is milliseconds */
    OPTION_CHOICE, /* unsigned: index into 'value', split at '|' */
    OPTION_LIST    /* struct option_list: may be given several times */
};

struct option_list {
    const char **items;
    unsigned n;
};

struct option_row {
    const char *name;  /* without the dashes */
    const char *value; /* how --help calls the value; NULL for a flag */
    enum option_kind kind;
    bool required;
    size_t offset; /* in the verb's values */
    const char *help;
};

/* The values of each verb start with this. */
struct common_values {
    const char *state; /* never NULL once parsed */
    bool state_given;  /* by --state */
    const char *trace;
};

struct verb {
    const char *name;
    const char *operands; /* as in the synopsis: "[OP]" */
    unsigned min_operands;
    unsigned max_operands;
    const char *summary;
    const struct option_row *options;
    unsigned n_options;
    size_t values_size;
    /* The exit code tells of a VM: lost output must not change it. */
    bool operation;
    /* Returns the exit code. */
    int (*run)(const void *values, char **operands, unsigned n);
};

#define VERB_OPTIONS(table)                                                    \
    .options = (table), .n_options = sizeof(table) / sizeof((table)[0])

/* Parses, runs the verb, and returns the exit code; argv[0] is the verb. */
int verb_main(const struct verb *verb, int argc, char **argv);
void verb_help(const struct verb *verb, FILE *out);
/* Says 'text' about the verb and where its help is; returns EXIT_USAGE. */
int verb_usage(const struct verb *verb, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
