/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Addresses of QMP sockets: text <-> parts. Pure, but for the working directory. */
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/err.h"
#include "base/str.h"
#include "qmp/transport.h"

static int parse_unix(struct qmp_addr *addr, const char *path,
                      struct err **errp);
static int parse_tcp(struct qmp_addr *addr, const char *text,
                     struct err **errp);
static int parse_ssh(struct qmp_addr *addr, const char *text,
                     struct err **errp);
static int parse_ssh_host(struct qmp_addr *addr, const char *host,
                          struct err **errp);
static int parse_exec(struct qmp_addr *addr, const char *command,
                      struct err **errp);
static int take_port(struct qmp_addr *addr, const char *port,
                     struct err **errp);
static int take_host(struct qmp_addr *addr, const char *host, size_t length,
                     struct err **errp);
static bool is_v6(const char *host);
DEFINE_CLEANUP(struct qmp_addr, qmp_addr_free)

int qmp_addr_parse(const char *text, struct qmp_addr **ret, struct err **errp)
{
    _cleanup_(qmp_addr_freep) struct qmp_addr *addr = calloc(1, sizeof(*addr));
    if (addr == NULL) {
        return err_set(errp, -ENOMEM, text, "out of memory");
    }
    addr->text = strdup(text); /* errors name it; made canonical below */
    int r = 0;
    if (addr->text == NULL) {
        r = -ENOMEM;
    } else if (str_starts(text, "unix:")) {
        r = parse_unix(addr, text + strlen("unix:"), errp);
    } else if (str_starts(text, "tcp:")) {
        r = parse_tcp(addr, text + strlen("tcp:"), errp);
    } else if (str_starts(text, "ssh://")) {
        r = parse_ssh(addr, text + strlen("ssh://"), errp);
    } else if (str_starts(text, "exec:")) {
        r = parse_exec(addr, text + strlen("exec:"), errp);
    } else {
        r = parse_unix(addr, text, errp);
    }
    if (r == -ENOMEM) {
        return err_set(errp, r, text, "out of memory");
    }
    if (r == 0) {
        *ret = TAKE_PTR(addr);
    }
    return r;
}

const char *qmp_addr_text(const struct qmp_addr *addr)
{
    return addr->text;
}

const char *qmp_addr_host(const struct qmp_addr *addr)
{
    return addr->host;
}

bool qmp_addr_is_unix(const struct qmp_addr *addr)
{
    return addr->kind == QMP_ADDR_UNIX;
}

bool qmp_addr_is_ssh(const struct qmp_addr *addr)
{
    return addr->kind == QMP_ADDR_SSH;
}

char *qmp_addr_beside(const struct qmp_addr *addr, const char *name)
{
    const char *slash = addr->path != NULL ? strrchr(addr->path, '/') : NULL;
    return slash != NULL ? str_printf("%.*s/%s", (int)(slash - addr->path),
                                      addr->path, name)
                         : NULL;
}

char *qmp_addr_remotely(const struct qmp_addr *addr, const char *command)
{
    if (addr->kind != QMP_ADDR_SSH) {
        return NULL;
    }
    _cleanup_free_ char *host = str_shell(addr->host);
    _cleanup_free_ char *user = str_shell(addr->user != NULL ? addr->user : "");
    _cleanup_free_ char *text = str_shell(command);
    if (host == NULL || user == NULL || text == NULL) {
        return NULL;
    }
    return str_printf("ssh -o BatchMode=yes -o ForwardAgent=no"
                      " -o ForwardX11=no -o ControlMaster=no"
                      " -o ControlPath=none -n -T%s%s%s%s -- %s %s",
                      addr->port != NULL ? " -p " : "",
                      addr->port != NULL ? addr->port : "",
                      addr->user != NULL ? " -l " : "",
                      addr->user != NULL ? user : "", host, text);
}

int qmp_addr_forward(struct qmp_addr *addr, const char *name)
{
    if (addr->kind != QMP_ADDR_SSH) {
        return -ENOTSUP;
    }
    if (addr->n_forwards == FORWARDS_MAX) {
        return -E2BIG;
    }
    char *copy = strdup(name);
    if (copy == NULL) {
        return -ENOMEM;
    }
    addr->forwards[addr->n_forwards++] = copy;
    return 0;
}

struct qmp_addr *qmp_addr_free(struct qmp_addr *addr)
{
    if (addr != NULL) {
        for (unsigned i = 0; i < addr->n_forwards; i++) {
            free(addr->forwards[i]);
        }
        free(addr->text);
        free(addr->path);
        free(addr->host);
        free(addr->port);
        free(addr->user);
        free(addr->command);
        free(addr);
    }
    return NULL;
}

struct qmp_addr *qmp_addr_copy(const struct qmp_addr *addr)
{
    struct qmp_addr *copy = NULL;
    /* what was canonical once parses again */
    if (qmp_addr_parse(addr->text, &copy, NULL) < 0) {
        return NULL;
    }
    for (unsigned i = 0; i < addr->n_forwards; i++) {
        if (qmp_addr_forward(copy, addr->forwards[i]) < 0) {
            return qmp_addr_free(copy);
        }
    }
    return copy;
}

char *qmp_addr_absolute(const char *text)
{
    static const char *const others[] = {"tcp:", "ssh://", "exec:"};
    const struct sockaddr_un *sun = NULL;
    for (unsigned i = 0; i < ARRAY_SIZE(others); i++) {
        if (str_starts(text, others[i])) {
            return strdup(text);
        }
    }
    const char *path = str_starts(text, "unix:") ? text + 5 : text;
    _cleanup_free_ char *cwd = getcwd(NULL, 0);
    if (path[0] == '/' || path[0] == '\0' || cwd == NULL) {
        return strdup(text);
    }
    bool fits = strlen(cwd) + 1 + strlen(path) < sizeof(sun->sun_path);
    return fits ? str_printf("unix:%s/%s", cwd, path) : strdup(text);
}

static int parse_unix(struct qmp_addr *addr, const char *path,
                      struct err **errp)
{
    addr->kind = QMP_ADDR_UNIX;
    if (path[0] == '\0') {
        return err_set(errp, -EINVAL, addr->text, "the socket's path is empty");
    }
    const struct sockaddr_un *sun = NULL;
    if (strlen(path) >= sizeof(sun->sun_path)) {
        return err_set(errp, -EINVAL, addr->text,
                       "a unix socket's path has at most %zu bytes",
                       sizeof(sun->sun_path) - 1);
    }
    addr->path = strdup(path);
    char *text = str_printf("unix:%s", path);
    free(addr->text);
    addr->text = text;
    return addr->path == NULL || text == NULL ? -ENOMEM : 0;
}

static int parse_tcp(struct qmp_addr *addr, const char *text, struct err **errp)
{
    addr->kind = QMP_ADDR_TCP;
    const char *colon = strrchr(text, ':');
    if (colon == NULL) {
        return err_set(errp, -EINVAL, addr->text, "tcp:HOST:PORT is expected");
    }
    int r = take_host(addr, text, (size_t)(colon - text), errp);
    if (r == 0) {
        r = take_port(addr, colon + 1, errp);
    }
    if (r < 0) {
        return r;
    }
    bool v6 = is_v6(addr->host);
    char *canonical = str_printf("tcp:%s%s%s:%s", v6 ? "[" : "", addr->host,
                                 v6 ? "]" : "", addr->port);
    free(addr->text);
    addr->text = canonical;
    return canonical == NULL ? -ENOMEM : 0;
}

static int parse_ssh(struct qmp_addr *addr, const char *text, struct err **errp)
{
    addr->kind = QMP_ADDR_SSH;
    size_t user = strcspn(text, "@/");
    if (text[user] == '@' && memchr(text, ':', user) != NULL) {
        /* the address is not repeated: that would show the password */
        return err_set(errp, -EINVAL, "ssh://",
                       "an address takes no password; use a key");
    }
    const char *slash = strchr(text, '/');
    if (slash == NULL || slash[1] == '\0') {
        return err_set(errp, -EINVAL, addr->text,
                       "ssh://[user@]host[:port]/path is expected");
    }
    /*
     * ssh itself gives these a meaning in the argument of -L: it splits at
     * ':', and newer versions expand '%' and '$'.
     */
    if (strpbrk(slash, ":%$[]\\") != NULL) {
        return err_set(errp, -EINVAL, addr->text,
                       "the remote path must not contain any of : %% $ [ ] \\");
    }
    addr->path = strdup(slash);
    _cleanup_free_ char *host = strndup(text, (size_t)(slash - text));
    if (addr->path == NULL || host == NULL) {
        return -ENOMEM;
    }
    int r = parse_ssh_host(addr, host, errp);
    if (r < 0) {
        return r;
    }
    bool v6 = is_v6(addr->host);
    char *canonical = str_printf(
        "ssh://%s%s%s%s%s%s%s%s", addr->user ? addr->user : "",
        addr->user ? "@" : "", v6 ? "[" : "", addr->host, v6 ? "]" : "",
        addr->port ? ":" : "", addr->port ? addr->port : "", addr->path);
    free(addr->text);
    addr->text = canonical;
    return canonical == NULL ? -ENOMEM : 0;
}

/* [user@]host[:port] */
static int parse_ssh_host(struct qmp_addr *addr, const char *host,
                          struct err **errp)
{
    const char *at = strrchr(host, '@');
    if (at != NULL) {
        addr->user = strndup(host, (size_t)(at - host));
        if (addr->user == NULL) {
            return -ENOMEM;
        }
        if (addr->user[0] == '\0' || addr->user[0] == '-') {
            return err_set(errp, -EINVAL, addr->text, "'%s' is no user name",
                           addr->user);
        }
        if (strchr(addr->user, ':') != NULL) {
            return err_set(errp, -EINVAL,
                           "ssh:", "an address takes no password; use a key");
        }
        host = at + 1;
    }
    const char *colon = strrchr(host, ':');
    const char *bracket = strrchr(host, ']');
    if (colon != NULL && (bracket == NULL || bracket < colon)) {
        int r = take_port(addr, colon + 1, errp);
        return r < 0 ? r : take_host(addr, host, (size_t)(colon - host), errp);
    }
    return take_host(addr, host, strlen(host), errp);
}

static int parse_exec(struct qmp_addr *addr, const char *command,
                      struct err **errp)
{
    addr->kind = QMP_ADDR_EXEC;
    if (command[strspn(command, " \t")] == '\0') {
        return err_set(errp, -EINVAL, addr->text, "the command is empty");
    }
    addr->command = strdup(command);
    return addr->command == NULL ? -ENOMEM : 0;
}

static int take_port(struct qmp_addr *addr, const char *port, struct err **errp)
{
    uint64_t number = 0;
    if (str_to_u64(port, 65535, &number) < 0 || number == 0) {
        return err_set(errp, -EINVAL, addr->text, "'%s' is no port", port);
    }
    addr->port = str_printf("%u", (unsigned)number);
    return addr->port == NULL ? -ENOMEM : 0;
}

/* HOST or [V6]; ssh must never take it for an option. */
static int take_host(struct qmp_addr *addr, const char *host, size_t length,
                     struct err **errp)
{
    if (length >= 2 && host[0] == '[' && host[length - 1] == ']') {
        host++;
        length -= 2;
    }
    addr->host = strndup(host, length);
    if (addr->host == NULL) {
        return -ENOMEM;
    }
    bool good = length > 0 && host[0] != '-';
    for (const char *c = addr->host; *c != '\0'; c++) {
        good =
            good && (isalnum((unsigned char)*c) || strchr(".-_:%", *c) != NULL);
    }
    if (!good) {
        return err_set(errp, -EINVAL, addr->text, "'%s' is no host name",
                       addr->host);
    }
    return 0;
}

static bool is_v6(const char *host)
{
    return strchr(host, ':') != NULL;
}
