/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "vm/argv.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/err.h"
#include "base/str.h"

enum { DEPTH_MAX = 16 };

/* --- reading an option --- */

static void flatten(json_t *into, const char *prefix, const json_t *value,
                    unsigned depth)
{
    const char *key;
    json_t *member;
    if (json_is_object(value) && depth < DEPTH_MAX) {
        json_object_foreach((json_t *)(uintptr_t)value, key, member) {
            _cleanup_free_ char *path = *prefix != '\0'
                                            ? str_printf("%s.%s", prefix, key)
                                            : strdup(key);
            if (path != NULL) {
                flatten(into, path, member, depth + 1);
            }
        }
        return;
    }
    _cleanup_free_ char *text =
        json_is_string(value)
            ? NULL
            : json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT);
    (void)json_object_set_new(
        into, prefix,
        json_string(text != NULL ? text : json_string_value(value)));
}

/* The text up to a single comma, doubled ones made one; *at goes behind it. */
static char *keyval_word(const char **at)
{
    char *word = strdup(*at);
    char *out = word;
    const char *c = *at;
    for (; word != NULL && *c != '\0'; c++) {
        if (*c == ',') {
            if (c[1] != ',') {
                break;
            }
            c++;
        }
        *out++ = *c;
    }
    if (word != NULL) {
        *out = '\0';
    }
    *at = *c == ',' ? c + 1 : c;
    return word;
}

json_t *argv_option(const char *text, const char *implied)
{
    json_t *into = json_object();
    if (*text == '{') {
        json_auto_t *json = json_loads(text, 0, NULL);
        if (!json_is_object(json)) {
            json_decref(into);
            return NULL;
        }
        flatten(into, "", json, 0);
        return into;
    }
    for (bool first = true; *text != '\0'; first = false) {
        _cleanup_free_ char *word = keyval_word(&text);
        char *value = word != NULL ? strchr(word, '=') : NULL;
        if (word == NULL) {
            json_decref(into);
            return NULL;
        }
        if (value != NULL) {
            *value++ = '\0';
            (void)json_object_set_new(into, word, json_string(value));
        } else if (first && implied != NULL) {
            (void)json_object_set_new(into, implied, json_string(word));
        } else {
            (void)json_object_set_new(into, word, json_string("on"));
        }
    }
    return into;
}

static const char *member(const json_t *option, const char *key)
{
    return json_string_value(json_object_get(option, key));
}

/* --- the command line, word by word --- */

struct line {
    const struct argv_request *request;
    size_t n;
    bool *gone; /* of each word: replaced or dropped */
    json_t *argv;
    json_t *notes;
    json_t *monitor;
};

/* The option's name without its dashes; NULL: no option. */
static const char *option_name(const char *word)
{
    if (word[0] != '-' || word[1] == '\0') {
        return NULL;
    }
    return word[1] == '-' ? word + 2 : word + 1;
}

static bool is_option(const struct line *line, size_t i, const char *name)
{
    const char *found = option_name(line->request->argv[i]);
    return found != NULL && strcmp(found, name) == 0 && i + 1 < line->n;
}

static void note(struct line *line, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

static void note(struct line *line, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    _cleanup_free_ char *text = str_vprintf(fmt, ap);
    va_end(ap);
    if (text != NULL) {
        (void)json_array_append_new(line->notes, json_string(text));
    }
}

static void add(struct line *line, const char *word)
{
    (void)json_array_append_new(line->argv, json_string(word));
}

static void drop(struct line *line, size_t i)
{
    line->gone[i] = line->gone[i + 1] = true;
}

/* --- disks --- */

/* Where 'option' with its member 'key' of this value is; n: nowhere. */
static size_t find(const struct line *line, const char *option, const char *key,
                   const char *implied, const char *value)
{
    for (size_t i = 0; value != NULL && i < line->n; i++) {
        if (!is_option(line, i, option) || line->gone[i]) {
            continue;
        }
        json_auto_t *parsed = argv_option(line->request->argv[i + 1], implied);
        if (str_eq(member(parsed, key), value)) {
            return i;
        }
    }
    return line->n;
}

static bool is_filter(const char *driver)
{
    static const char *const filters[] = {"throttle", "copy-on-read",
                                          "copy-before-write", "preallocate",
                                          "compress"};
    for (size_t i = 0; i < ARRAY_SIZE(filters); i++) {
        if (str_eq(driver, filters[i])) {
            return true;
        }
    }
    return false;
}

/* A node and those below it that nothing else on the command line names. */
static void drop_nodes(struct line *line, const char *name, unsigned depth)
{
    static const char *const children[] = {"file", "backing", "data-file"};
    size_t at = find(line, "blockdev", "node-name", "driver", name);
    if (at == line->n || depth == DEPTH_MAX) {
        return;
    }
    json_auto_t *option = argv_option(line->request->argv[at + 1], "driver");
    drop(line, at);
    for (size_t i = 0; i < ARRAY_SIZE(children); i++) {
        const char *child = member(option, children[i]);
        bool used = false;
        for (size_t k = 0; child != NULL && k < ARRAY_SIZE(children); k++) {
            used = used || find(line, "blockdev", children[k], "driver",
                                child) < line->n;
        }
        used = used || find(line, "device", "drive", "driver", child) < line->n;
        if (child != NULL && !used) {
            drop_nodes(line, child, depth + 1);
        }
    }
}

static void add_node(struct line *line, const json_t *options, const char *name,
                     const char *file)
{
    json_auto_t *node = json_deep_copy(options);
    (void)json_object_set_new(node, "node-name", json_string(name));
    if (file != NULL) {
        (void)json_object_set_new(node, "file", json_string(file));
    }
    _cleanup_free_ char *text = json_dumps(node, JSON_COMPACT);
    add(line, "-blockdev");
    add(line, text != NULL ? text : "");
}

static void add_disk(struct line *line, const struct argv_disk *disk,
                     const char *name)
{
    if (disk->file == NULL) {
        add_node(line, disk->node, name, NULL);
        return;
    }
    _cleanup_free_ char *file = str_printf("%s-file", name);
    if (file == NULL || strlen(file) > 31) {
        free(file);
        file =
            str_printf("disk%u-file", (unsigned)(disk - line->request->disks));
    }
    add_node(line, disk->file, file, NULL);
    add_node(line, disk->node, name, file);
}

/*
 * The nodes get the name that the -device line, or the filter above, has
 * always used: neither needs a change.
 */
static int replace_disk(struct line *line, const struct argv_disk *disk,
                        struct err **errp)
{
    size_t device = find(line, "device", "id", "driver", disk->device);
    json_auto_t *option =
        device < line->n
            ? argv_option(line->request->argv[device + 1], "driver")
            : NULL;
    const char *drive = member(option, "drive");
    if (drive == NULL) {
        int r =
            err_set(errp, -EINVAL, disk->device,
                    device < line->n
                        ? "its -device has no drive= to replace"
                        : "no -device of this id is on QEMU's command line");
        err_hint(errp, "it was hot-plugged, or made by -drive if=...: write its"
                       " lines by hand");
        return r;
    }
    _cleanup_free_ char *name = strdup(drive);
    for (unsigned depth = 0; name != NULL && depth < DEPTH_MAX; depth++) {
        size_t at = find(line, "blockdev", "node-name", "driver", name);
        json_auto_t *node =
            at < line->n ? argv_option(line->request->argv[at + 1], "driver")
                         : NULL;
        const char *below = member(node, "file");
        if (below == NULL || !is_filter(member(node, "driver"))) {
            break;
        }
        char *next = strdup(below);
        free(name);
        name = next;
    }
    if (name == NULL) {
        return err_set(errp, -ENOMEM, disk->device, "out of memory");
    }
    size_t legacy = find(line, "drive", "id", NULL, name);
    if (legacy < line->n) {
        json_auto_t *old = argv_option(line->request->argv[legacy + 1], NULL);
        const char *key;
        json_t *value;
        json_object_foreach(old, key, value) {
            if (strncmp(key, "throttling.", 11) == 0 ||
                strncmp(key, "bps", 3) == 0 || strncmp(key, "iops", 4) == 0) {
                note(line,
                     "%s: the limit '%s' of its -drive is not carried: use a"
                     " throttle-group object and a throttle node",
                     disk->device, key);
            }
        }
        drop(line, legacy);
    } else {
        drop_nodes(line, name, 0);
    }
    add_disk(line, disk, name);
    return 0;
}

/* --- sockets --- */

static char *free_path(const struct argv_request *request, const char *path)
{
    if (request->monitor_to != NULL && str_eq(path, request->monitor)) {
        return strdup(request->monitor_to);
    }
    return request->same_paths ? strdup(path) : str_printf("%s.incoming", path);
}

static char *keyval_escape(const char *text)
{
    char *out = malloc(2 * strlen(text) + 1), *at = out;
    for (; out != NULL && *text != '\0'; text++) {
        *at++ = *text;
        if (*text == ',') {
            *at++ = ',';
        }
    }
    if (out != NULL) {
        *at = '\0';
    }
    return out;
}

/* The option's text with 'path', a listening socket's or a file's, replaced. */
static char *with_path(struct line *line, const char *text, const char *path)
{
    _cleanup_free_ char *to = free_path(line->request, path);
    _cleanup_free_ char *from_raw =
        *text == '{' ? strdup(path) : keyval_escape(path);
    _cleanup_free_ char *to_raw = to == NULL     ? NULL
                                  : *text == '{' ? strdup(to)
                                                 : keyval_escape(to);
    const char *at = from_raw != NULL ? strstr(text, from_raw) : NULL;
    if (at == NULL || to_raw == NULL) {
        return strdup(text);
    }
    if (str_eq(path, line->request->monitor)) {
        json_decref(line->monitor);
        line->monitor = json_string(to);
    }
    return str_printf("%.*s%s%s", (int)(at - text), text, to_raw,
                      at + strlen(from_raw));
}

/* An emulated TPM or a vhost-user backend, which has room for one QEMU. */
static bool is_client(const char *name, const char *text)
{
    json_auto_t *option =
        strcmp(name, "chardev") == 0 ? argv_option(text, "backend") : NULL;
    const char *server = member(option, "server");
    return str_eq(member(option, "backend"), "socket") &&
           (server == NULL || strcmp(server, "off") == 0);
}

/* The path that this option makes QEMU listen on, or NULL; caller frees. */
static char *listens_at(const char *name, const char *text)
{
    bool legacy = strcmp(name, "qmp") == 0 || strcmp(name, "monitor") == 0 ||
                  strcmp(name, "qmp-pretty") == 0 ||
                  strcmp(name, "serial") == 0 ||
                  strcmp(name, "parallel") == 0 || strcmp(name, "gdb") == 0;
    if (legacy && strncmp(text, "unix:", 5) == 0) {
        json_auto_t *option = argv_option(text + 5, "path");
        const char *server = member(option, "server");
        return server != NULL && strcmp(server, "off") != 0
                   ? strdup(member(option, "path"))
                   : NULL;
    }
    if (strcmp(name, "chardev") == 0) {
        json_auto_t *option = argv_option(text, "backend");
        const char *server = member(option, "server");
        const char *path = member(option, "path");
        return str_eq(member(option, "backend"), "socket") && path != NULL &&
                       server != NULL && strcmp(server, "off") != 0
                   ? strdup(path)
                   : NULL;
    }
    return NULL;
}

/* --- one option after the other --- */

static char *exact_machine(const struct line *line, const char *text)
{
    json_auto_t *option = argv_option(text, "type");
    const char *alias = member(option, "type");
    const char *exact = line->request->machine;
    if (exact == NULL || alias == NULL || str_eq(alias, exact)) {
        return strdup(text);
    }
    const char *at = strstr(text, alias);
    return at == NULL ? strdup(text)
                      : str_printf("%.*s%s%s", (int)(at - text), text, exact,
                                   at + strlen(alias));
}

static void take_value(struct line *line, const char *name, const char *value)
{
    _cleanup_free_ char *path = listens_at(name, value);
    _cleanup_free_ char *text = NULL;
    if (strcmp(name, "machine") == 0 || strcmp(name, "M") == 0) {
        text = exact_machine(line, value);
    } else if (strcmp(name, "pidfile") == 0) {
        text = free_path(line->request, value);
    } else if (path != NULL) {
        text = with_path(line, value, path);
    } else {
        text = strdup(value);
    }
    bool shares = strcmp(name, "vnc") == 0 || strcmp(name, "spice") == 0 ||
                  strstr(value, "hostfwd=") != NULL ||
                  strstr(value, "ifname=") != NULL || is_client(name, value);
    if (shares && !line->request->same_paths) {
        note(line, "-%s %s: on the same host the destination needs another one",
             name, value);
    }
    add(line, text != NULL ? text : value);
}

static void take(struct line *line, size_t *i)
{
    const char *word = line->request->argv[*i];
    const char *name = option_name(word);
    if (line->gone[*i] || (name != NULL && strcmp(name, "S") == 0)) {
        return;
    }
    if (name != NULL &&
        (strcmp(name, "incoming") == 0 || strcmp(name, "loadvm") == 0) &&
        *i + 1 < line->n) {
        ++*i;
        return;
    }
    add(line, word);
    if (name != NULL && *i + 1 < line->n && !line->gone[*i + 1] &&
        option_name(line->request->argv[*i + 1]) == NULL) {
        take_value(line, name, line->request->argv[++*i]);
    }
}

static size_t words(const char *const *argv)
{
    size_t n = 0;
    while (argv[n] != NULL) {
        n++;
    }
    return n;
}

int argv_destination(const struct argv_request *request, json_t **ret,
                     struct err **errp)
{
    struct line line = {.request = request, .n = words(request->argv)};
    int r = 0;
    line.gone = calloc(line.n + 1, sizeof(*line.gone));
    json_auto_t *argv = line.argv = json_array();
    json_auto_t *notes = line.notes = json_array();
    if (line.gone == NULL || argv == NULL || notes == NULL) {
        free(line.gone);
        return err_set(errp, -ENOMEM, "command line", "out of memory");
    }
    json_auto_t *before = json_array();
    for (unsigned i = 0; r == 0 && i < request->n_disks; i++) {
        if (request->disks[i].node != NULL) {
            r = replace_disk(&line, &request->disks[i], errp);
        }
    }
    /* What the disks need goes in front of the -device lines that use it. */
    (void)json_array_extend(before, argv);
    (void)json_array_clear(argv);
    bool placed = false;
    for (size_t i = 0; r == 0 && i < line.n; i++) {
        if (!placed && (is_option(&line, i, "device") ||
                        is_option(&line, i, "blockdev"))) {
            (void)json_array_extend(argv, before);
            placed = true;
        }
        take(&line, &i);
    }
    if (r == 0) {
        add(&line, "-S");
        add(&line, "-incoming");
        add(&line, "defer");
        *ret = json_pack("{s:O, s:O, s:o}", "argv", argv, "notes", notes,
                         "monitor",
                         line.monitor != NULL ? line.monitor : json_null());
        line.monitor = NULL;
        r = *ret != NULL
                ? 0
                : err_set(errp, -ENOMEM, "command line", "out of memory");
    }
    json_decref(line.monitor);
    free(line.gone);
    return r;
}
