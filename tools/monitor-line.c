/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Lines of the monitor shell. It knows their grammar and no command. */
#include "monitor-line.h"

#include <ctype.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "text.h"

enum { WORDS_MAX = 256 };

static int parse_object(const char *line, char **ret_command,
                        json_t **ret_arguments, char **ret_message);
static size_t word_length(const char *at);
static json_t *value_of(const char *text);
static int set_path(json_t *arguments, char *path, json_t *value);

int monitor_line_parse(const char *line, char **ret_command,
                       json_t **ret_arguments, char **ret_message)
{
    line += strspn(line, " \t\r\n");
    if (*line == '{') {
        return parse_object(line, ret_command, ret_arguments, ret_message);
    }
    char *words[WORDS_MAX];
    unsigned n = 0;
    bool full = false;
    while (*line != '\0' && !full) {
        size_t length = word_length(line);
        words[n] = strndup(line, length);
        full = words[n] == NULL || ++n == WORDS_MAX;
        line += length;
        line += strspn(line, " \t\r\n");
    }
    int r = -1;
    if (full) {
        *ret_message = text_printf("the line is too long");
    } else {
        r = monitor_words_parse(words, n, ret_command, ret_arguments,
                                ret_message);
    }
    while (n > 0) {
        free(words[--n]);
    }
    return r;
}

int monitor_words_parse(char *const *words, unsigned n, char **ret_command,
                        json_t **ret_arguments, char **ret_message)
{
    if (n == 0) {
        *ret_message = text_printf("a command is missing");
        return -1;
    }
    json_t *arguments = n > 1 ? json_object() : NULL;
    for (unsigned i = 1; i < n; i++) {
        const char *equals = strchr(words[i], '=');
        char *path = equals != NULL && equals != words[i]
                         ? strndup(words[i], (size_t)(equals - words[i]))
                         : NULL;
        if (path == NULL || set_path(arguments, path, value_of(equals + 1))) {
            *ret_message = text_printf("'%s': must be NAME=VALUE", words[i]);
            free(path);
            json_decref(arguments);
            return -1;
        }
        free(path);
    }
    *ret_command = text_printf("%s", words[0]);
    *ret_arguments = arguments;
    return 0;
}

int monitor_line_secret(const char *line)
{
    return strcasestr(line, "secret") != NULL ||
           strcasestr(line, "passw") != NULL || strstr(line, "data") != NULL;
}

static int parse_object(const char *line, char **ret_command,
                        json_t **ret_arguments, char **ret_message)
{
    json_error_t error;
    json_auto_t *object = json_loads(line, 0, &error);
    if (object == NULL) {
        *ret_message = text_printf("no JSON: %s", error.text);
        return -1;
    }
    const char *command = json_string_value(json_object_get(object, "execute"));
    if (command == NULL) {
        *ret_message = text_printf("\"execute\" is missing");
        return -1;
    }
    *ret_command = text_printf("%s", command);
    *ret_arguments = json_incref(json_object_get(object, "arguments"));
    return 0;
}

/* To the next blank that is not inside quotes or brackets. */
static size_t word_length(const char *at)
{
    size_t n = 0;
    unsigned depth = 0;
    bool quoted = false;
    for (; at[n] != '\0'; n++) {
        if (quoted && at[n] == '\\' && at[n + 1] != '\0') {
            n++;
        } else if (at[n] == '"') {
            quoted = !quoted;
        } else if (!quoted && (at[n] == '{' || at[n] == '[')) {
            depth++;
        } else if (!quoted && depth > 0 && (at[n] == '}' || at[n] == ']')) {
            depth--;
        } else if (!quoted && depth == 0 && isspace((unsigned char)at[n])) {
            break;
        }
    }
    return n;
}

static json_t *value_of(const char *text)
{
    bool like = strchr("{[\"-0123456789", text[0]) != NULL ||
                strcmp(text, "true") == 0 || strcmp(text, "false") == 0 ||
                strcmp(text, "null") == 0;
    json_t *value = like && text[0] != '\0'
                        ? json_loads(text, JSON_DECODE_ANY, NULL)
                        : NULL;
    return value != NULL ? value : json_string(text);
}

/* "file.driver": the member 'driver' of the object 'file'. Steals 'value'. */
static int set_path(json_t *arguments, char *path, json_t *value)
{
    json_t *object = arguments;
    for (char *dot = strchr(path, '.'); dot != NULL; dot = strchr(path, '.')) {
        *dot = '\0';
        json_t *member = json_object_get(object, path);
        if (member == NULL) {
            member = json_object();
            if (json_object_set_new(object, path, member) < 0) {
                json_decref(value);
                return -1;
            }
        }
        object = member;
        path = dot + 1;
    }
    return json_object_set_new(object, path, value);
}
