/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The program qpivot: picks the verb. It knows the verbs by name only. */
#include "qpivot.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cmd.h"
#include "errors.h"

static const struct verb *const verbs[] = {
    &verb_move,    &verb_migrate, &verb_copy,   &verb_verify,
    &verb_recover, &verb_abort,   &verb_undo,   &verb_doctor,
    &verb_list,    &verb_show,    &verb_report, &verb_jobs,
    &verb_graph,   &verb_monitor, &verb_watch,  &verb_destination,
    &verb_explain,
};

enum { N_VERBS = sizeof(verbs) / sizeof(verbs[0]) };

static int usage(const char *word);
static const struct verb *find(const char *name);
static void help(void);
static void version(void);
static void print_library(const char *name, const json_t *value);

int main(int argc, char **argv)
{
    const char *word = argc > 1 ? argv[1] : "";
    if (strcmp(word, "--version") == 0) {
        version();
        return 0;
    }
    bool helped = strcmp(word, "help") == 0;
    if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0 ||
        (helped && argc == 2)) {
        help();
        return 0;
    }
    const struct verb *verb = find(helped ? argv[2] : word);
    if (verb == NULL) {
        return usage(helped ? argv[2] : word);
    }
    if (helped) {
        verb_help(verb, stdout);
        return 0;
    }
    int code = verb_main(verb, argc - 1, argv + 1);
    if (fflush(stdout) != 0 || ferror(stdout)) {
        error_say("standard output", "not everything could be written");
        code = code == 0 && !verb->operation ? EXIT_FAILURE : code;
    }
    if (qpivot_hung_threads() > 0) {
        _exit(code);
    }
    return code;
}

static int usage(const char *word)
{
    if (word[0] == '\0') {
        error_say(NULL, "a verb is missing");
    } else {
        error_say(word, "there is no such verb");
    }
    error_hint("qpivot --help");
    return EXIT_USAGE;
}

static const struct verb *find(const char *name)
{
    for (unsigned i = 0; i < N_VERBS; i++) {
        if (strcmp(verbs[i]->name, name) == 0) {
            return verbs[i];
        }
    }
    return NULL;
}

static void help(void)
{
    (void)printf("usage: qpivot VERB [options] [operands]\n\n"
                 "Moves the disks of running QEMU virtual machines over "
                 "QMP.\n\n");
    for (unsigned i = 0; i < N_VERBS; i++) {
        (void)printf("  %-18s%s\n", verbs[i]->name, verbs[i]->summary);
    }
    (void)printf(
        "\n  --help            print this and exit\n"
        "  --version         print the version and what is built in\n\n"
        "qpivot VERB --help lists the options of a verb; "
        "qpivot(1) and qpivot(7) tell the rest.\n"
        "Exit: 0 done; 1 failed and rolled back; 2 refused before "
        "anything changed;\n3 parked, a person must look; 4 the "
        "monitor cannot be reached or is busy.\n");
}

static void version(void)
{
    char *text = qpivot_build_info();
    json_auto_t *info = text != NULL ? json_loads(text, 0, NULL) : NULL;
    qpivot_free(text);
    (void)printf("qpivot %s\n", qpivot_version());
    size_t i;
    json_t *backend;
    json_array_foreach(json_object_get(info, "backends"), i, backend) {
        const char *scheme =
            json_string_value(json_object_get(backend, "scheme"));
        const char *title =
            json_string_value(json_object_get(backend, "title"));
        const json_t *available = json_object_get(backend, "available");
        (void)printf("  %-8s %-12s %s\n", scheme != NULL ? scheme : "?",
                     json_is_false(available) ? "not built in" : "built in",
                     title != NULL ? title : "");
    }
    const char *name;
    json_t *value;
    json_object_foreach(json_object_get(info, "libraries"), name, value) {
        print_library(name, value);
    }
#ifdef HAVE_READLINE
    (void)printf("  readline built in     the monitor shell edits lines\n");
#else
    (void)printf("  readline not built in\n");
#endif
}

static void print_library(const char *name, const json_t *value)
{
    const char *text = json_string_value(value);
    if (text == NULL) {
        text = json_is_true(value) ? "built in" : "not built in";
    }
    (void)printf("  %-8s %s\n", name, text);
}
