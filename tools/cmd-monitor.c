/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* qpivot monitor: QMP commands by hand or from a script. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cmd.h"
#include "errors.h"
#include "monitor-line.h"
#include "shell.h"
#include "text.h"

struct monitor_values {
    struct common_values common;
    const char *qmp;
    bool events;
};

#define AT(member) offsetof(struct monitor_values, member)

static const struct option_row rows[] = {
    {"qmp",    "ADDR", OPTION_TEXT, true,  AT(qmp),    "the VM's monitor"},
    {"events", NULL,   OPTION_FLAG, false, AT(events),
     "print events too when this is no terminal"                         },
};

struct monitor {
    struct session session;
    bool interactive;
    bool pretty;
    bool events;
    int code; /* the worst so far */
};

enum { OPERANDS_MAX = 128 };

static int run(const void *values, char **operands, unsigned n);
static void run_shell(struct monitor *m, const char *state);
static bool take_line(void *data, const char *line);
static bool built_in(struct monitor *m, const char *line);
static void help(struct monitor *m, const char *command);
static void run_operands(struct monitor *m, char **operands, unsigned n);
static void execute(struct monitor *m, char *command, json_t *arguments);
static void usage(struct monitor *m, char *message);
static void print_json(const struct monitor *m, const json_t *json);
static void monitor_on_event(void *data, const char *json);

const struct verb verb_monitor = {
    .name = "monitor",
    .operands = "[COMMAND [NAME=VALUE ...]]",
    .max_operands = OPERANDS_MAX,
    .summary = "Talk QMP: a shell, one command, or commands from stdin.",
    VERB_OPTIONS(rows),
    .values_size = sizeof(struct monitor_values),
    .run = run,
};

static int run(const void *values, char **operands, unsigned n)
{
    const struct monitor_values *v = values;
    struct monitor m = {.pretty = isatty(STDOUT_FILENO)};
    m.interactive = n == 0 && isatty(STDIN_FILENO);
    m.events = m.interactive || v->events;
    int code = session_start_looking(&m.session, &v->common);
    if (code != 0) {
        return code;
    }
    code = session_monitor(&m.session, v->qmp, monitor_on_event, &m);
    if (code == 0) {
        if (n > 0) {
            run_operands(&m, operands, n);
        } else {
            run_shell(&m, v->common.state);
        }
        code = m.interactive && !m.session.lost ? 0 : m.code;
    }
    session_end(&m.session);
    return code;
}

static void run_shell(struct monitor *m, const char *state)
{
    char *history = text_printf("%s/monitor-history", state);
    if (m->interactive) {
        shell_print("QMP: COMMAND NAME=VALUE ..., or {\"execute\": ...}; "
                    "help, exit");
    }
    shell_run(&m->session, history, take_line, m);
    free(history);
    if (m->session.lost) {
        m->code = session_say_lost(&m->session);
    }
}

static bool take_line(void *data, const char *line)
{
    struct monitor *m = data;
    line += strspn(line, " \t\r");
    if (strcmp(line, "exit") == 0) {
        return false;
    }
    if (line[0] == '#' || (m->interactive && built_in(m, line))) {
        return true;
    }
    char *command = NULL;
    json_t *arguments = NULL;
    char *message = NULL;
    if (monitor_line_parse(line, &command, &arguments, &message) < 0) {
        usage(m, message);
    } else {
        execute(m, command, arguments);
    }
    return true;
}

/* "quit" is the QMP command that ends the VM, and an easy slip of the hand. */
static bool built_in(struct monitor *m, const char *line)
{
    if (strncmp(line, "help", 4) == 0 && strchr(" ", line[4]) != NULL) {
        const char *command = line + 4 + strspn(line + 4, " ");
        help(m, command[0] != '\0' ? command : NULL);
        return true;
    }
    if (strcmp(line, "quit") == 0) {
        error_say("quit", "would end the VM; leave this shell by exit");
        error_hint("to end the VM: {\"execute\": \"quit\"}");
        return true;
    }
    return false;
}

static void help(struct monitor *m, const char *command)
{
    json_auto_t *names = NULL;
    size_t i;
    json_t *name;
    if (session_names(&m->session, command, &names) != 0) {
        error_say(command, "QEMU's schema does not know it");
        return;
    }
    json_array_foreach(names, i, name) {
        if (json_is_string(name)) {
            shell_print(json_string_value(name));
        } else {
            print_json(m, name);
        }
    }
}

/* One operand is a line as in the shell; several were split by the caller's. */
static void run_operands(struct monitor *m, char **operands, unsigned n)
{
    char *command = NULL;
    json_t *arguments = NULL;
    char *message = NULL;
    int r =
        n == 1
            ? monitor_line_parse(operands[0], &command, &arguments, &message)
            : monitor_words_parse(operands, n, &command, &arguments, &message);
    if (r < 0) {
        usage(m, message);
    } else {
        execute(m, command, arguments);
    }
}

/* Takes both. */
static void execute(struct monitor *m, char *command, json_t *arguments)
{
    json_auto_t *result = NULL;
    char *error = NULL;
    int code = EXIT_FAILURE;
    if (command != NULL) {
        code =
            session_execute(&m->session, command, arguments, &result, &error);
    }
    if (code == 0) {
        print_json(m, result);
    } else {
        error_print(error);
        m->code = code > m->code ? code : m->code;
    }
    free(error);
    free(command);
    json_decref(arguments);
}

static void usage(struct monitor *m, char *message)
{
    error_say("monitor", "%s", message != NULL ? message : "out of memory");
    free(message);
    m->code = EXIT_USAGE > m->code ? EXIT_USAGE : m->code;
}

static void print_json(const struct monitor *m, const json_t *json)
{
    size_t how = m->pretty ? JSON_INDENT(2) : JSON_COMPACT;
    char *text = json_dumps(json, how | JSON_ENCODE_ANY);
    shell_print(text != NULL ? text : "out of memory");
    free(text);
}

static void monitor_on_event(void *data, const char *json)
{
    struct monitor *m = data;
    if (m->events) {
        shell_print(json);
    }
}
