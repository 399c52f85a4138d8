/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Rests on migrate_caps_check(), migrate_params_check() and the transports of
 * QEMU 7.2 and 10.0 (migration/migration.c, options.c), each row tried on
 * both: what any of the two refuses is refused, as a guest may go from one to
 * the other.
 */
#include "operations/migrate-options.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/err.h"
#include "base/str.h"
#include "operations/migrate-plan.h"
#include "qmp/qmp.h"
#include "qpivot.h"
#include "steps/bitmap.h"
#include "steps/stream.h"
#include "vm/names.h"
#include "vm/vm.h"

enum {
    MULTIFD_MAX = 255,        /* qapi: uint8 */
    DOWNTIME_MAX_MS = 2000000 /* MAX_MIGRATE_DOWNTIME */
};

/* How an option is called; 'capability' where QEMU has one of that name. */
static const struct {
    const char *option; /* NULL: none of ours */
    const char *capability;
} names[N_WITH] = {
    [WITH_ANY] = {"qpivot migrate",               NULL                 },
    [WITH_MULTIFD] = {"--multifd",                    "multifd"            },
    [WITH_XBZRLE] = {"--xbzrle",                     "xbzrle"             },
    [WITH_XBZRLE_CACHE] = {"--xbzrle-cache",               NULL                 },
    [WITH_AUTO_CONVERGE] = {"--auto-converge",              "auto-converge"      },
    [WITH_TIMEOUT] = {"--timeout",                    NULL                 },
    [WITH_TIMEOUT_SUSPENDS] = {"--on-timeout suspend",         NULL                 },
    [WITH_TLS] = {"--tls-creds",                  NULL                 },
    [WITH_TLS_TO] = {"--tls-creds-to",               NULL                 },
    [WITH_TLS_HOSTNAME] = {"--tls-hostname",               NULL                 },
    [WITH_TLS_AUTHZ] = {"--tls-authz",                  NULL                 },
    [WITH_TLS_NAMELESS] = {"--tls-creds by a unix socket", NULL                 },
    [WITH_UNIX] = {"--unix",                       NULL                 },
    [WITH_TUNNEL] = {"--tunnel",                     NULL                 },
    [WITH_ADDRESS] = {"--address",                    NULL                 },
    [WITH_EXPORT_PORT] = {"--export-port",                NULL                 },
    [WITH_POSTCOPY] = {"--postcopy",                   "postcopy-ram"       },
    [WITH_TIMEOUT_POSTCOPIES] = {"--on-timeout postcopy",        NULL                 },
    [WITH_SUSPEND] = {"--suspend",                    NULL                 },
    [WITH_BITMAPS] = {"a dirty bitmap in the stream", NULL                 },
    [WITH_PREEMPT] = {NULL,                           "postcopy-preempt"   },
    [WITH_IGNORE_SHARED] = {NULL,                           "x-ignore-shared"    },
    [WITH_COMPRESS] = {NULL,                           "compress"           },
    [WITH_BACKGROUND_SNAPSHOT] = {NULL,                           "background-snapshot"},
    [WITH_MAPPED_RAM] = {NULL,                           "mapped-ram"         },
    [WITH_COLO] = {NULL,                           "x-colo"             },
    [WITH_BLOCK] = {NULL,                           "block"              },
    [WITH_ZERO_COPY] = {NULL,                           "zero-copy-send"     },
    [WITH_DIRTY_LIMIT] = {NULL,                           "dirty-limit"        },
};

enum relation { EXCLUDES, NEEDS };

struct row {
    enum migrate_option one;
    enum relation relation;
    enum migrate_option other;
    const char *why;
    const char *advice;
};

static const char one_of_both[] = "leave one of them out";
static const char switch_off[] =
    "switch the capability off by migrate-set-capabilities";

/* clang-format off */
static const struct row rows[] = {
    {WITH_MULTIFD, EXCLUDES, WITH_XBZRLE,
     "QEMU from 8.1 on refuses it, and an older one sends whole pages"
     " without a word", one_of_both},
    {WITH_MULTIFD, EXCLUDES, WITH_POSTCOPY,
     "QEMU 10.0 refuses it, and 7.2 takes it without a word", one_of_both},
    {WITH_POSTCOPY, EXCLUDES, WITH_XBZRLE,
     "QEMU sends whole pages once the guest is over, and before that only the"
     " first pass", one_of_both},
    {WITH_POSTCOPY, EXCLUDES, WITH_SUSPEND,
     "the guest either waits for its memory, or goes before it", one_of_both},
    {WITH_POSTCOPY, EXCLUDES, WITH_TIMEOUT_SUSPENDS,
     "the guest either waits for its memory, or goes before it", one_of_both},
    {WITH_POSTCOPY, EXCLUDES, WITH_TUNNEL,
     "a guest on both sides would hang on an ssh connection that ends with"
     " qpivot", one_of_both},
    {WITH_POSTCOPY, EXCLUDES, WITH_BITMAPS,
     "the guest would run before they are there", "add --drop-bitmaps"},
    {WITH_POSTCOPY, EXCLUDES, WITH_COMPRESS,
     "QEMU refuses it", switch_off},
    {WITH_POSTCOPY, EXCLUDES, WITH_PREEMPT,
     "a second connection would have to be there in time, and be recovered",
     switch_off},
    {WITH_TIMEOUT_POSTCOPIES, NEEDS, WITH_TIMEOUT,
     "there is no limit that could be over", "say when by --timeout"},
    {WITH_XBZRLE_CACHE, NEEDS, WITH_XBZRLE,
     "there is no cache without it", "add --xbzrle"},
    {WITH_TIMEOUT_SUSPENDS, NEEDS, WITH_TIMEOUT,
     "there is no limit that could be over", "say when by --timeout"},
    {WITH_TLS_TO, NEEDS, WITH_TLS,
     "the source needs certificates too", "name them by --tls-creds"},
    {WITH_TLS_HOSTNAME, NEEDS, WITH_TLS,
     "nothing is verified without certificates", "name them by --tls-creds"},
    {WITH_TLS_AUTHZ, NEEDS, WITH_TLS,
     "nobody has a name without a certificate", "name them by --tls-creds"},
    {WITH_TLS_NAMELESS, NEEDS, WITH_TLS_HOSTNAME,
     "a path is nothing that a certificate is for", "say what it is for"},
    {WITH_TUNNEL, EXCLUDES, WITH_UNIX,
     "there is one way for all", one_of_both},
    {WITH_UNIX, EXCLUDES, WITH_ADDRESS,
     "nothing goes by TCP", one_of_both},
    {WITH_TUNNEL, EXCLUDES, WITH_ADDRESS,
     "nothing goes by TCP but ssh itself", one_of_both},
    {WITH_UNIX, EXCLUDES, WITH_EXPORT_PORT,
     "nothing goes by TCP", one_of_both},
    {WITH_TUNNEL, EXCLUDES, WITH_EXPORT_PORT,
     "nothing goes by TCP but ssh itself", one_of_both},
    {WITH_TLS, EXCLUDES, WITH_ZERO_COPY,
     "QEMU refuses it: what is encrypted is copied", switch_off},
    {WITH_XBZRLE, EXCLUDES, WITH_ZERO_COPY,
     "QEMU refuses it: what is compressed is copied", switch_off},
    {WITH_MULTIFD, EXCLUDES, WITH_COMPRESS,
     "QEMU refuses it", switch_off},
    {WITH_XBZRLE, EXCLUDES, WITH_COMPRESS,
     "QEMU from 8.1 on refuses it", switch_off},
    {WITH_AUTO_CONVERGE, EXCLUDES, WITH_DIRTY_LIMIT,
     "QEMU takes one of them only", switch_off},
    {WITH_ANY, EXCLUDES, WITH_IGNORE_SHARED,
     "memory in a shared file would not be sent", switch_off},
    {WITH_ANY, EXCLUDES, WITH_BACKGROUND_SNAPSHOT,
     "the guest would go on at the source", switch_off},
    {WITH_ANY, EXCLUDES, WITH_MAPPED_RAM,
     "the stream would have to go to a file", switch_off},
    {WITH_ANY, EXCLUDES, WITH_COLO,
     "the guest would go on on both sides", switch_off},
    {WITH_ANY, EXCLUDES, WITH_BLOCK,
     "QEMU would send the disks once more, inside the stream", switch_off},
};
/* clang-format on */

/* What both sides must have alike: the stream has another form else. */
static const char *const alike[] = {"multifd", "compress", "postcopy-ram",
                                    "postcopy-preempt", "dirty-bitmaps"};

static bool has(uint32_t set, enum migrate_option option)
{
    return (set & (UINT32_C(1) << option)) != 0;
}

static uint32_t bit(enum migrate_option option, bool is)
{
    return is ? UINT32_C(1) << option : 0;
}

uint32_t migrate_options_asked(const struct qpivot_migrate_options *o)
{
    bool suspends = (o->flags & QPIVOT_TIMEOUT_SUSPENDS) != 0;
    bool postcopies = (o->flags & QPIVOT_TIMEOUT_POSTCOPIES) != 0;
    bool postcopy = postcopies || (o->flags & QPIVOT_POSTCOPY) != 0;
    bool converges = (o->flags & QPIVOT_AUTO_CONVERGE) != 0;
    bool sockets = (o->flags & (QPIVOT_UNIX | QPIVOT_TUNNEL)) != 0;
    return bit(WITH_ANY, true) | bit(WITH_MULTIFD, o->multifd != 0) |
           bit(WITH_XBZRLE, (o->flags & QPIVOT_XBZRLE) != 0) |
           bit(WITH_XBZRLE_CACHE, o->xbzrle_cache != 0) |
           bit(WITH_AUTO_CONVERGE, converges) |
           bit(WITH_TIMEOUT, o->timeout_ms != 0) |
           bit(WITH_TIMEOUT_SUSPENDS, suspends) | bit(WITH_POSTCOPY, postcopy) |
           bit(WITH_TIMEOUT_POSTCOPIES, postcopies) |
           bit(WITH_SUSPEND, (o->flags & QPIVOT_SUSPEND) != 0) |
           bit(WITH_TLS, o->tls_dir != NULL) |
           bit(WITH_TLS_NAMELESS, o->tls_dir != NULL && sockets) |
           bit(WITH_UNIX, (o->flags & QPIVOT_UNIX) != 0) |
           bit(WITH_TUNNEL, (o->flags & QPIVOT_TUNNEL) != 0) |
           bit(WITH_ADDRESS, o->address != NULL) |
           bit(WITH_EXPORT_PORT, o->export_port != 0) |
           bit(WITH_TLS_TO, o->tls_dir_to != NULL) |
           bit(WITH_TLS_HOSTNAME, o->tls_hostname != NULL) |
           bit(WITH_TLS_AUTHZ, o->tls_authz != NULL);
}

/* --- the table --- */

static char *name_by(enum migrate_option option, uint32_t asked)
{
    return has(asked, option) && names[option].option != NULL
               ? strdup(names[option].option)
               : str_printf("capability '%s', which is on already,",
                            names[option].capability);
}

static json_t *conflict(const struct row *row, uint32_t asked)
{
    _cleanup_free_ char *one = name_by(row->one, asked);
    _cleanup_free_ char *other = row->relation == NEEDS
                                     ? strdup(names[row->other].option)
                                     : name_by(row->other, asked);
    json_t *text = json_sprintf("%s %s: %s; %s",
                                row->relation == NEEDS ? "does nothing without"
                                                       : "does not go with",
                                other, row->why, row->advice);
    return json_pack("{s:s*, s:o*}", "option", one, "text", text);
}

json_t *migrate_conflicts(uint32_t asked, uint32_t on)
{
    json_t *list = json_array();
    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
        const struct row *row = &rows[i];
        bool one = has(asked | on, row->one);
        bool other = has(asked | on, row->other);
        bool ours = has(asked, row->one) || has(asked, row->other);
        if (ours && one && other == (row->relation == EXCLUDES)) {
            (void)json_array_append_new(list, conflict(row, asked));
        }
    }
    return list;
}

/* --- what is on in QEMU already --- */

static bool is_on(const json_t *replies, const char *capability)
{
    size_t i;
    json_t *entry;
    json_array_foreach(json_object_get(replies, "query-migrate-capabilities"),
                       i, entry) {
        const char *name =
            json_string_value(json_object_get(entry, "capability"));
        if (str_eq(name, capability)) {
            return json_is_true(json_object_get(entry, "state"));
        }
    }
    return false;
}

static uint32_t options_on(const struct migrate_request *request)
{
    uint32_t on = 0;
    for (enum migrate_option i = 0; i < N_WITH; i++) {
        const char *name = names[i].capability;
        on |= bit(i, name != NULL && (is_on(request->src, name) ||
                                      is_on(request->dst, name)));
    }
    return on;
}

static bool is_set_by_us(const struct plan *plan, const char *name)
{
    size_t i;
    json_t *entry;
    json_array_foreach(plan->capabilities, i, entry) {
        if (str_eq(json_string_value(json_object_get(entry, "capability")),
                   name)) {
            return true;
        }
    }
    return false;
}

static void check_alike(struct op *op)
{
    const struct migrate_request *request = op_request(op);
    for (unsigned i = 0; i < ARRAY_SIZE(alike); i++) {
        bool src = is_on(request->src, alike[i]);
        bool dst = is_on(request->dst, alike[i]);
        if (src != dst && !is_set_by_us(op_plan(op), alike[i])) {
            migrate_problem(op, -EINVAL, alike[i],
                            "this capability is %s at the source, %s at the"
                            " destination: set it alike",
                            src ? "on" : "off", dst ? "on" : "off");
        }
    }
}

/* --- values --- */

static void check_values(struct op *op)
{
    const struct migrate_request *request = op_request(op);
    uint64_t cache = request->xbzrle_cache;
    if (request->multifd > MULTIFD_MAX) {
        migrate_problem(op, -ERANGE, "--multifd",
                        "%u connections are too many: at most %d",
                        request->multifd, MULTIFD_MAX);
    }
    if (request->downtime_limit_ms > DOWNTIME_MAX_MS) {
        migrate_problem(op, -ERANGE, "--downtime-limit",
                        "%u ms are too long: at most %d",
                        request->downtime_limit_ms, DOWNTIME_MAX_MS);
    }
    long page = sysconf(_SC_PAGESIZE);
    if (cache != 0 && (cache < (uint64_t)page || (cache & (cache - 1)) != 0 ||
                       cache > INT64_MAX)) {
        migrate_problem(op, -EINVAL, "--xbzrle-cache",
                        "%" PRIu64 " is no power of two from %ld on", cache,
                        page);
    }
}

/* Nobody is to go without, or to let in anybody, by a name left empty. */
static void check_names(struct op *op)
{
    const struct migrate_request *request = op_request(op);
    const struct plan *plan = op_plan(op);

    const struct {
        enum migrate_option option;
        const char *text;
    } texts[] = {
        {WITH_TLS,          plan->tls_dir     },
        {WITH_TLS_TO,       plan->tls_dir_to  },
        {WITH_TLS_HOSTNAME, plan->tls_hostname},
        {WITH_TLS_AUTHZ,    plan->tls_authz   },
    };

    for (unsigned i = 0; i < ARRAY_SIZE(texts); i++) {
        if (has(request->asked, texts[i].option) && *texts[i].text == '\0') {
            migrate_problem(op, -EINVAL, names[texts[i].option].option,
                            "it is empty");
        }
    }
}

/* Of a QEMU on this host it can be seen whether it will find them. */
static void check_certificates(struct op *op, struct vm *vm, const char *dir,
                               const char *side)
{
    static const char *const files[] = {"cert.pem", "key.pem"};
    if (*dir != '/') {
        migrate_problem(op, -EINVAL, dir,
                        "name the directory of the certificates by its"
                        " absolute path");
        return;
    }
    for (unsigned i = 0; vm_process(vm).pid != 0 && i <= ARRAY_SIZE(files);
         i++) {
        _cleanup_free_ char *path =
            i < ARRAY_SIZE(files) ? str_printf("%s/%s-%s", dir, side, files[i])
                                  : str_printf("%s/ca-cert.pem", dir);
        if (path != NULL && access(path, F_OK) < 0 &&
            (errno == ENOENT || errno == ENOTDIR)) {
            migrate_problem(op, -ENOENT, path,
                            "is not there: a %s needs it for TLS", side);
        }
    }
}

void migrate_check_options(struct op *op)
{
    const struct migrate_request *request = op_request(op);
    const struct plan *plan = op_plan(op);
    uint32_t bitmaps = bit(WITH_BITMAPS, bitmaps_are_streamed(plan, NULL));
    json_auto_t *conflicts =
        migrate_conflicts(request->asked | bitmaps, options_on(request));
    size_t i;
    json_t *entry;
    json_array_foreach(conflicts, i, entry) {
        migrate_problem(
            op, -EINVAL, json_string_value(json_object_get(entry, "option")),
            "%s", json_string_value(json_object_get(entry, "text")));
    }
    check_values(op);
    check_names(op);
    check_alike(op);
    if (*plan->tls_dir != '\0') {
        check_certificates(op, op_vm(op), plan->tls_dir, "client");
        check_certificates(op, op_dst_vm(op), plan->tls_dir_to, "server");
    }
}

/* --- what they come to --- */

static const char stalls[] =
    "the disks go by a unix socket: where the destination stalls without"
    " ending, the guest's writes wait until it is ended (QEMU up to 10)";

static bool fits_socket(const char *path)
{
    const struct sockaddr_un *sun = NULL;
    return path == NULL || strlen(path) < sizeof(sun->sun_path);
}

/* Beside the destination's monitor: there its QEMU could make one. */
static void choose_sockets(struct op *op, const struct qmp_addr *dst)
{
    struct plan *plan = op_plan(op);
    free(plan->stream_socket);
    free(plan->export_socket);
    plan->stream_socket =
        qmp_addr_beside(dst, name_once(op_id(op), NAME_STREAM).text);
    plan->export_socket =
        qmp_addr_beside(dst, name_once(op_id(op), NAME_EXPORTS).text);
    if (!fits_socket(plan->stream_socket) ||
        !fits_socket(plan->export_socket)) {
        migrate_problem(op, -ENAMETOOLONG, plan->export_socket,
                        "is too long for a socket: have the destination's"
                        " monitor in a directory of a shorter name");
    }
}

void migrate_option_transport(struct op *op)
{
    const struct plan *plan = op_plan(op);
    struct migrate_request *request = op_request(op);
    struct qmp_addr *src = NULL, *dst = NULL;
    if (qmp_addr_parse(plan->qmp, &src, NULL) < 0 ||
        qmp_addr_parse(plan->dst_qmp, &dst, NULL) < 0) {
        qmp_addr_free(src);
        return; /* a problem already */
    }
    bool here = qmp_addr_is_unix(src) && plan->qemu_pid != 0;
    bool there = plan->tunnel ? qmp_addr_is_ssh(dst) : qmp_addr_is_unix(dst);
    if (!here) {
        migrate_problem(op, -EINVAL, plan->qmp,
                        "the source is not seen to be on this host: %s ends"
                        " here",
                        plan->tunnel ? "the tunnel" : "a unix socket");
    }
    if (!there) {
        migrate_problem(op, -EINVAL, plan->dst_qmp,
                        plan->tunnel
                            ? "--tunnel goes by the monitor's ssh: name the"
                              " destination as ssh://HOST/PATH"
                            : "--unix is for two QEMUs of this host: name both"
                              " by their monitors' unix sockets");
    }
    if (here && there) {
        choose_sockets(op, dst);
    }
    if (!plan->tunnel) {
        migrate_note(request, "%s", stalls);
    }
    qmp_addr_free(src);
    qmp_addr_free(dst);
}

/*
 * What somebody has left in one of the QEMUs would count. "tls-authz" cannot
 * be unset (QEMU would look for an object named ""), and is the server's: of a
 * destination that its owner has started for this guest.
 */
static void unset_left(const struct migrate_request *request,
                       json_t *parameters, const char *name)
{
    const json_t *const replies[] = {request->src, request->dst};
    for (unsigned i = 0; i < ARRAY_SIZE(replies); i++) {
        const char *left = json_string_value(json_object_get(
            json_object_get(replies[i], "query-migrate-parameters"), name));
        if (left != NULL && *left != '\0') {
            (void)json_object_set_new(parameters, name, json_string(""));
        }
    }
}

static const char in_two[] =
    "postcopy: from the switchover until all of its memory has followed the"
    " guest is on both sides; if one of the QEMUs ends in that time, or the"
    " connection breaks in the very moment of the switchover, the guest is"
    " lost";

static void postcopy_settings(struct op *op)
{
    struct migrate_request *request = op_request(op);
    migrate_want_capability(op, "postcopy-ram", true);
    (void)json_object_set_new(op_plan(op)->parameters, "max-postcopy-bandwidth",
                              json_integer((json_int_t)request->bandwidth));
    migrate_note(request, "%s", in_two);
}

void migrate_option_settings(struct op *op)
{
    struct plan *plan = op_plan(op);
    const struct migrate_request *request = op_request(op);
    json_t *parameters = plan->parameters;
    if (stream_may_postcopy(plan, NULL)) {
        postcopy_settings(op);
    }
    if ((request->flags & QPIVOT_XBZRLE) != 0) {
        migrate_want_capability(op, "xbzrle", true);
    }
    if (request->xbzrle_cache != 0) {
        (void)json_object_set_new(
            parameters, "xbzrle-cache-size",
            json_integer((json_int_t)request->xbzrle_cache));
    }
    if (*plan->tls_dir == '\0') {
        unset_left(request, parameters, "tls-creds");
        unset_left(request, parameters, "tls-hostname");
        return;
    }
    (void)json_object_set_new(parameters, "tls-creds",
                              json_string(name_once(op_id(op), NAME_TLS).text));
    if (*plan->tls_hostname != '\0') {
        (void)json_object_set_new(parameters, "tls-hostname",
                                  json_string(plan->tls_hostname));
    } else {
        unset_left(request, parameters, "tls-hostname");
    }
    if (*plan->tls_authz != '\0') {
        /* Of use where somebody is let in only; there is no second 'in'. */
        (void)json_object_set_new(
            parameters, "tls-authz",
            json_string(name_once(op_id(op), NAME_AUTHZ).text));
    }
}
