/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the journal says of operations. It reads, and prints only errors. */
#include "journal-text.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "errors.h"
#include "text.h"

int journal_read(struct session *s, json_t **ret)
{
    char *text = NULL;
    char *error = NULL;
    int r = qpivot_list(s->engine, &text, &error);
    if (r < 0) {
        error_print(error != NULL ? error : strerror(-r));
        qpivot_free(error);
        return EXIT_USAGE;
    }
    json_t *list = json_loads(text, 0, NULL);
    qpivot_free(text);
    if (!json_is_array(list)) {
        json_decref(list);
        error_say("journal", "its list of operations cannot be read");
        return EXIT_USAGE;
    }
    *ret = list;
    return 0;
}

int journal_show(const struct common_values *common, const char *op,
                 json_t **ret)
{
    struct session session;
    char *text = NULL;
    char *error = NULL;
    if (!journal_there(common)) {
        error_say(op, "no journal in %s", common->state);
        return EXIT_USAGE;
    }
    int code = session_start(&session, common);
    if (code != 0) {
        return code;
    }
    int r = qpivot_show(session.engine, op, &text, &error);
    session_end(&session);
    if (r < 0) {
        error_print(error != NULL ? error : strerror(-r));
        qpivot_free(error);
        return EXIT_USAGE;
    }
    json_t *operation = json_loads(text, 0, NULL);
    qpivot_free(text);
    if (!json_is_object(operation)) {
        json_decref(operation);
        error_say(op, "its journal cannot be read");
        return EXIT_USAGE;
    }
    *ret = operation;
    return 0;
}

bool journal_there(const struct common_values *common)
{
    char *path = text_printf("%s/journal.db", common->state);
    bool there = path == NULL || access(path, F_OK) == 0;
    free(path);
    return there;
}

bool journal_finished(const json_t *operation)
{
    static const char *const states[] = {"done", "failed", "refused", "undone"};
    const char *state = json_string_value(json_object_get(operation, "state"));
    for (size_t i = 0; i < sizeof(states) / sizeof(states[0]); i++) {
        if (state != NULL && strcmp(state, states[i]) == 0) {
            return true;
        }
    }
    return false;
}

/* Takes *line, which may be NULL. */
static void add(char **line, const char *format, const char *text)
{
    char *piece = text_printf(format, text);
    char *all = *line != NULL && piece != NULL
                    ? text_printf("%s%s", *line, piece)
                    : NULL;
    free(piece);
    free(*line);
    *line = all;
}

/* As one word of a shell's. */
static void add_quoted(char **line, const char *text)
{
    static const char plain[] = "abcdefghijklmnopqrstuvwxyz0123456789"
                                "ABCDEFGHIJKLMNOPQRSTUVWXYZ/._-:+=@,%";
    if (text != NULL && *text != '\0' && strspn(text, plain) == strlen(text)) {
        add(line, " %s", text);
        return;
    }
    add(line, " '", NULL);
    for (const char *c = text != NULL ? text : ""; *c != '\0'; c++) {
        char one[2] = {*c, '\0'};
        add(line, "%s", *c == '\'' ? "'\\''" : one);
    }
    add(line, "'", NULL);
}

bool journal_is_copy(const json_t *operation)
{
    const char *kind = json_string_value(json_object_get(operation, "kind"));
    return kind != NULL && strcmp(kind, "copy") == 0;
}

char *journal_resume(const struct common_values *common,
                     const json_t *operation)
{
    const json_t *options = json_object_get(operation, "options");
    const char *manifest =
        json_string_value(json_object_get(operation, "manifest"));
    char *line = !json_is_array(options) ? NULL : text_printf("qpivot copy");
    size_t i;
    json_t *option;
    json_array_foreach(options, i, option) {
        add(&line, " --%s", json_string_value(option));
    }
    if (manifest != NULL) {
        add(&line, " --manifest", NULL);
        add_quoted(&line, manifest);
    }
    if (common->state_given) {
        add(&line, " --state", NULL);
        add_quoted(&line, common->state);
    }
    add_quoted(&line, json_string_value(json_object_get(operation, "source")));
    add_quoted(&line, json_string_value(json_object_get(operation, "target")));
    return line;
}

const char *journal_state(const json_t *operation)
{
    const char *state = json_string_value(json_object_get(operation, "state"));
    if (state == NULL) {
        return "?";
    }
    bool parked = strcmp(state, "parked") == 0;
    if (journal_finished(operation) || journal_is_copy(operation)) {
        return state;
    }
    if (json_is_true(json_object_get(operation, "alive"))) {
        return parked ? "running" : state; /* it is being recovered */
    }
    return parked ? state : "waits for recover";
}
