/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "fake/fake-qmp.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/list.h"
#include "base/str.h"
#include "fake/scratch.h"
#include "qmp/out.h"
#include "qmp/wire.h"

/* Tests cannot go on without memory. */
#define check(expr)                                                            \
    do {                                                                       \
        if (!(expr)) {                                                         \
            abort();                                                           \
        }                                                                      \
    } while (0)

static const char ERROR_MARK[] = "fake-qmp-error";

struct planned {
    struct list_node node;
    char *command;
    unsigned skip;
    enum fake_fault fault;
};

/* The accepted connection; its handle outlives it by one turn. */
struct client {
    uv_poll_t poll;
    struct fake_qmp *fake;
    int fd;
    struct wire wire;
    struct out out;
    bool negotiated;
    bool closing; /* when all is sent */
};

struct fake_qmp {
    struct fake_qmp_options options;
    char dir[SCRATCH_PATH];
    char *address;
    const char *path;
    int fd;
    uv_poll_t poll;
    struct client *client;
    struct list_node planned;
    json_t *log;
    json_t *held; /* replies */
    bool deaf;
    unsigned n_handles;
};

static void fake_on_connection(uv_poll_t *poll, int status, int events);
static void fake_listen(struct fake_qmp *fake);
static void fake_greet(struct fake_qmp *fake);
static void client_on_poll(uv_poll_t *poll, int status, int events);
static void client_watch(struct client *client);
static bool client_read(struct client *client);
static void client_end(struct client *client);
static void client_on_closed(uv_handle_t *handle);
static void fake_on_closed(uv_handle_t *handle);
static void fake_unref(struct fake_qmp *fake);
static void fake_on_command(struct fake_qmp *fake, const json_t *message);
static json_t *fake_do(struct fake_qmp *fake, enum fake_fault fault,
                       bool negotiates, const json_t *message);
static const char *command_of(const json_t *message);
static enum fake_fault fake_take_fault(struct fake_qmp *fake,
                                       const char *command);
static json_t *fake_answer(struct fake_qmp *fake, const char *command,
                           const json_t *args);
static void fake_reply(struct fake_qmp *fake, json_t *reply);
static void fake_send(struct fake_qmp *fake, const json_t *message);

int fake_qmp_new(const struct fake_qmp_options *options, struct fake_qmp **ret)
{
    struct fake_qmp *fake = calloc(1, sizeof(*fake));
    check(fake != NULL);
    fake->options = *options;
    list_init(&fake->planned);
    fake->log = json_array();
    fake->held = json_array();
    scratch_make("qmp", fake->dir);
    fake->address = str_printf("unix:%s/qmp", fake->dir);
    fake->path = fake->address + strlen("unix:");
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    (void)strcpy(address.sun_path, fake->path);
    fake->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    check(fake->fd >= 0);
    check(bind(fake->fd, (struct sockaddr *)&address, sizeof(address)) == 0);
    check(listen(fake->fd, 1) == 0);
    check(uv_poll_init(options->loop, &fake->poll, fake->fd) == 0);
    fake->poll.data = fake;
    fake->n_handles = 1;
    fake_listen(fake);
    *ret = fake;
    return 0;
}

struct fake_qmp *fake_qmp_close(struct fake_qmp *fake)
{
    fake_qmp_hang_up(fake);
    uv_close((uv_handle_t *)&fake->poll, fake_on_closed);
    (void)close(fake->fd);
    (void)unlink(fake->path);
    (void)rmdir(fake->dir);
    return NULL;
}

const char *fake_qmp_address(const struct fake_qmp *fake)
{
    return fake->address;
}

void fake_qmp_fault(struct fake_qmp *fake, const char *command, unsigned skip,
                    enum fake_fault fault)
{
    struct planned *planned = calloc(1, sizeof(*planned));
    check(planned != NULL);
    planned->command = command ? strdup(command) : NULL;
    planned->skip = skip;
    planned->fault = fault;
    list_append(&fake->planned, &planned->node);
}

void fake_qmp_release(struct fake_qmp *fake)
{
    json_t *held = fake->held;
    fake->held = json_array();
    size_t i;
    json_t *reply;
    json_array_foreach(held, i, reply) {
        fake_send(fake, reply);
    }
    json_decref(held);
}

void fake_qmp_event(struct fake_qmp *fake, const char *name, json_t *data)
{
    json_t *event =
        json_pack("{s:s, s:o*, s:{s:i, s:i}}", "event", name, "data", data,
                  "timestamp", "seconds", 1, "microseconds", 0);
    check(event != NULL);
    fake_reply(fake, event);
}

void fake_qmp_raw(struct fake_qmp *fake, const void *bytes, size_t n)
{
    if (fake->client != NULL) {
        check(out_append(&fake->client->out, bytes, n) == 0);
        client_watch(fake->client);
    }
}

void fake_qmp_hang_up(struct fake_qmp *fake)
{
    if (fake->client != NULL) {
        client_end(fake->client);
    }
}

void fake_qmp_deaf(struct fake_qmp *fake, bool deaf)
{
    fake->deaf = deaf;
    if (fake->client != NULL) {
        client_watch(fake->client);
    }
}

unsigned fake_qmp_count(const struct fake_qmp *fake, const char *command)
{
    unsigned n = 0;
    size_t i;
    const json_t *message;
    json_array_foreach(fake->log, i, message) {
        const char *name = command_of(message);
        n += command != NULL ? str_eq(name, command)
                             : !str_eq(name, "qmp_capabilities");
    }
    return n;
}

const json_t *fake_qmp_log(const struct fake_qmp *fake)
{
    return fake->log;
}

bool fake_qmp_has_client(const struct fake_qmp *fake)
{
    return fake->client != NULL;
}

json_t *fake_qmp_error(const char *class, const char *desc)
{
    return json_pack("{s:{s:s, s:s}}", ERROR_MARK, "class", class, "desc",
                     desc);
}

static void fake_on_connection(uv_poll_t *poll, int status, int events)
{
    struct fake_qmp *fake = poll->data;
    int fd = accept4(fake->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) {
        return;
    }
    (void)uv_poll_stop(poll); /* the next one waits until this one goes */
    struct client *client = calloc(1, sizeof(*client));
    check(client != NULL);
    client->fake = fake;
    client->fd = fd;
    wire_init(&client->wire, 0);
    check(uv_poll_init(fake->options.loop, &client->poll, fd) == 0);
    client->poll.data = client;
    fake->client = client;
    fake->n_handles++;
    if (!fake->options.no_greeting) {
        fake_greet(fake);
    }
    client_watch(client);
}

static void fake_listen(struct fake_qmp *fake)
{
    check(uv_poll_start(&fake->poll, UV_READABLE, fake_on_connection) == 0);
}

static void fake_greet(struct fake_qmp *fake)
{
    json_t *capabilities = json_array();
    if (!fake->options.no_oob) {
        (void)json_array_append_new(capabilities, json_string("oob"));
    }
    json_t *greeting =
        json_pack("{s:{s:{s:{s:i, s:i, s:i}, s:s}, s:o}}", "QMP", "version",
                  "qemu", "major", 7, "minor", 2, "micro", 22, "package",
                  " (fake)", "capabilities", capabilities);
    fake_reply(fake, greeting);
}

static void client_on_poll(uv_poll_t *poll, int status, int events)
{
    struct client *client = poll->data;
    if (status < 0 || ((events & UV_READABLE) != 0 && !client_read(client))) {
        if (client->fd >= 0) {
            client_end(client);
        }
        return;
    }
    if (client->fd < 0) {
        return; /* a fault closed it */
    }
    struct out *out = &client->out;
    if (!out_empty(out) && client->fake->options.byte_by_byte) {
        out->sent += send(client->fd, out->data + out->sent, 1,
                          MSG_NOSIGNAL | MSG_DONTWAIT) == 1;
    } else if (out_flush(out, client->fd) < 0) {
        client_end(client);
        return;
    }
    if (client->closing && out_empty(out)) {
        client_end(client);
        return;
    }
    client_watch(client);
}

static void client_watch(struct client *client)
{
    int events = client->fake->deaf ? 0 : UV_READABLE;
    if (!out_empty(&client->out) || client->closing) {
        events |= UV_WRITABLE;
    }
    check(uv_poll_start(&client->poll, events, client_on_poll) == 0);
}

/* False: it went away. */
static bool client_read(struct client *client)
{
    char bytes[4096];
    ssize_t n = recv(client->fd, bytes, sizeof(bytes), MSG_DONTWAIT);
    if (n <= 0) {
        return n < 0 && (errno == EAGAIN || errno == EINTR);
    }
    check(wire_feed(&client->wire, bytes, (size_t)n) == 0);
    for (;;) {
        json_auto_t *message = NULL;
        int r = wire_next(&client->wire, &message, NULL);
        if (r <= 0) {
            return r == 0;
        }
        (void)json_array_append(client->fake->log, message);
        fake_on_command(client->fake, message);
        if (client->fd < 0) {
            return true;
        }
    }
}

static void client_end(struct client *client)
{
    struct fake_qmp *fake = client->fake;
    fake->client = NULL;
    uv_close((uv_handle_t *)&client->poll, client_on_closed);
    (void)close(client->fd);
    client->fd = -1;
    (void)json_array_clear(fake->held);
    fake_listen(fake);
}

static void client_on_closed(uv_handle_t *handle)
{
    struct client *client = handle->data;
    struct fake_qmp *fake = client->fake;
    wire_done(&client->wire);
    out_done(&client->out);
    free(client);
    fake_unref(fake);
}

static void fake_on_closed(uv_handle_t *handle)
{
    fake_unref(handle->data);
}

static void fake_unref(struct fake_qmp *fake)
{
    fake->n_handles--;
    if (fake->n_handles > 0) {
        return;
    }
    list_foreach_safe(node, &fake->planned) {
        struct planned *planned = container_of(node, struct planned, node);
        free(planned->command);
        free(planned);
    }
    json_decref(fake->log);
    json_decref(fake->held);
    free(fake->address);
    free(fake);
}

static void fake_on_command(struct fake_qmp *fake, const json_t *message)
{
    const char *command = command_of(message);
    if (command == NULL ||
        (fake->options.no_capabilities && !fake->client->negotiated)) {
        return;
    }
    bool negotiates = !fake->client->negotiated;
    fake->client->negotiated = true;
    enum fake_fault fault = fake_take_fault(fake, command);
    json_t *reply = fake_do(fake, fault, negotiates, message);
    json_t *error = json_incref(json_object_get(reply, ERROR_MARK));
    json_t *whole = json_pack("{s:o*, s:o*, s:O*}", "return",
                              error ? NULL : json_incref(reply), "error", error,
                              "id", json_object_get(message, "id"));
    json_decref(reply);
    switch (fault) {
    case FAKE_SILENCE:
    case FAKE_LOST_REPLY:
        json_decref(whole);
        return;
    case FAKE_HOLD:
        (void)json_array_append_new(fake->held, whole);
        return;
    case FAKE_CLOSE:
    case FAKE_DONE_CLOSE:
        json_decref(whole);
        fake_qmp_hang_up(fake);
        return;
    case FAKE_MALFORMED:
        json_decref(whole);
        fake_qmp_raw(fake, "{\"return\": oops}\r\n", 18);
        return;
    case FAKE_NONE:
    case FAKE_ERROR:
    case FAKE_DONE_ERROR:
    case FAKE_HUGE:
    case N_FAKE_FAULTS:
        fake_reply(fake, whole);
    }
}

/* What the command brings with that fault; NULL: it was not done. */
static json_t *fake_do(struct fake_qmp *fake, enum fake_fault fault,
                       bool negotiates, const json_t *message)
{
    json_t *reply = NULL;
    if (fault != FAKE_ERROR && fault != FAKE_SILENCE && fault != FAKE_CLOSE) {
        reply = negotiates ? json_object()
                           : fake_answer(fake, command_of(message),
                                         json_object_get(message, "arguments"));
    }
    if (fault == FAKE_ERROR || fault == FAKE_DONE_ERROR) {
        json_decref(reply);
        reply = fake_qmp_error("GenericError", "injected");
    } else if (fault == FAKE_HUGE) {
        char *text = malloc((1 << 20) + 1);
        check(text != NULL);
        memset(text, 'x', 1 << 20);
        text[1 << 20] = '\0';
        json_decref(reply);
        reply = json_pack("{s:s}", "huge", text);
        free(text);
    }
    return reply;
}

/* The command's name, NULL when it is none. */
static const char *command_of(const json_t *message)
{
    const char *name = json_string_value(json_object_get(message, "execute"));
    return name ? name
                : json_string_value(json_object_get(message, "exec-oob"));
}

static enum fake_fault fake_take_fault(struct fake_qmp *fake,
                                       const char *command)
{
    list_foreach_safe(node, &fake->planned) {
        struct planned *planned = container_of(node, struct planned, node);
        bool any =
            planned->command == NULL && !str_eq(command, "qmp_capabilities");
        if (!any && !str_eq(planned->command, command)) {
            continue;
        }
        if (planned->skip > 0) {
            planned->skip--;
            continue;
        }
        enum fake_fault fault = planned->fault;
        list_remove(node);
        free(planned->command);
        free(planned);
        return fault;
    }
    return FAKE_NONE;
}

static json_t *fake_answer(struct fake_qmp *fake, const char *command,
                           const json_t *args)
{
    if (fake->options.answer == NULL) {
        return json_object();
    }
    json_t *answer = fake->options.answer(fake->options.data, command, args);
    if (answer != NULL) {
        return answer;
    }
    _cleanup_free_ char *desc =
        str_printf("The command %s has not been found", command);
    return fake_qmp_error("CommandNotFound", desc);
}

/* Steals 'reply'. */
static void fake_reply(struct fake_qmp *fake, json_t *reply)
{
    fake_send(fake, reply);
    json_decref(reply);
}

static void fake_send(struct fake_qmp *fake, const json_t *message)
{
    size_t flags = fake->options.pretty ? JSON_INDENT(4) : JSON_COMPACT;
    char *text = json_dumps(message, flags | JSON_ENSURE_ASCII);
    check(text != NULL);
    fake_qmp_raw(fake, text, strlen(text));
    fake_qmp_raw(fake, "\r\n", 2);
    free(text);
}
