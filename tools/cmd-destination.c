/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* qpivot destination-argv: how to start a QEMU that waits for a running VM. */
#include <stdlib.h>
#include <string.h>

#include "cmd.h"
#include "disks.h"
#include "errors.h"
#include "session.h"

struct destination_values {
    struct common_values common;
    const char *qmp;
    struct option_list disks;
    const char *monitor;
    bool same_paths;
    bool json;
};

#define AT(member) offsetof(struct destination_values, member)

static const struct option_row rows[] = {
    {"qmp",        "ADDR",        OPTION_TEXT, true,  AT(qmp),
     "the running VM's monitor, on this host"                           },
    {"disk",       "DISK=TARGET", OPTION_LIST, false, AT(disks),
     "where the destination has this disk (may be repeated)"            },
    {"monitor",    "PATH",        OPTION_TEXT, false, AT(monitor),
     "the destination's monitor (default: the VM's path with .incoming)"},
    {"same-paths", NULL,          OPTION_FLAG, false, AT(same_paths),
     "another host: sockets and the pid file keep their paths"          },
    {"json",       NULL,          OPTION_FLAG, false, AT(json),
     "print {\"argv\":[..],\"notes\":[..],\"monitor\":PATH}"            },
};

static int run(const void *values, char **operands, unsigned n);
static void print_word(const char *word);
static int print(const json_t *result, bool json);

const struct verb verb_destination = {
    .name = "destination-argv",
    .operands = "",
    .summary = "Print how to start the QEMU that a running VM can migrate to.",
    VERB_OPTIONS(rows),
    .values_size = sizeof(struct destination_values),
    .run = run,
};

static int run(const void *values, char **operands, unsigned n)
{
    (void)operands;
    (void)n;
    const struct destination_values *v = values;
    struct session session;
    struct qpivot_disk *disks = calloc(v->disks.n + 1, sizeof(*disks));
    char *names = NULL;
    json_auto_t *result = NULL;
    int code = EXIT_USAGE;
    if (disks == NULL) {
        error_print(NULL);
    } else {
        code = split_disks(&verb_destination, &v->disks, disks, &names);
    }
    if (code == 0) {
        code = session_start_looking(&session, &v->common);
    }
    if (code == 0) {
        code = session_monitor(&session, v->qmp, NULL, NULL);
        if (code == 0) {
            struct qpivot_destination_options options = {
                .size = sizeof(options),
                .disks = disks,
                .n_disks = v->disks.n,
                .monitor = v->monitor,
                .same_paths = v->same_paths,
            };
            code = session_destination(&session, &options, &result);
        }
        session_end(&session);
    }
    free(names);
    free(disks);
    return code != 0 ? code : print(result, v->json);
}

/* Quoted for a shell where it needs to be. */
static void print_word(const char *word)
{
    static const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrst"
                                "uvwxyz0123456789_@%+=:,./-";
    if (*word != '\0' && word[strspn(word, plain)] == '\0') {
        (void)fputs(word, stdout);
        return;
    }
    (void)putchar('\'');
    for (; *word != '\0'; word++) {
        (void)fputs(*word == '\'' ? "'\\''" : (char[]){*word, '\0'}, stdout);
    }
    (void)putchar('\'');
}

static int print(const json_t *result, bool json)
{
    size_t i;
    json_t *word;
    if (json) {
        char *text = json_dumps(result, JSON_COMPACT);
        (void)printf("%s\n", text != NULL ? text : "{}");
        free(text);
        return 0;
    }
    json_array_foreach(json_object_get(result, "argv"), i, word) {
        (void)fputs(i > 0 ? " " : "", stdout);
        print_word(json_string_value(word));
    }
    (void)putchar('\n');
    json_array_foreach(json_object_get(result, "notes"), i, word) {
        (void)fprintf(stderr, "note: %s\n", json_string_value(word));
    }
    return 0;
}
