/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "drbd-status.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/err.h"
#include "base/str.h"

/* Numbers are the kernel's; the same in 8.4 and 9. */
static const struct refusal {
    int number;        /* or 0: by the words */
    const char *words; /* in what it says; NULL: any */
    int code;
    const char *hint;
} refusals[] = {
    {-1,  NULL,                         -EBUSY,
     "another node has it Primary: have its user let go of it there, then"
     " 'drbdadm secondary' it"                                                                       },
    {-2,  NULL,                         -ENODATA,
     "no node that can be reached has UpToDate data: see 'drbdadm status'; a"
     " new resource needs its first synchronisation"                                                 },
    {-8,  NULL,                         -EAGAIN,  "a resync or a verification runs: wait for its end"},
    {-12, NULL,                         -EBUSY,   "somebody has the device open: see 'fuser -v'"     },
    {130, NULL,                         -EAGAIN,  "not while a resync runs: wait for its end"        },
    {139, NULL,                         -EINVAL,  "the resource's 'net' section needs 'protocol C'"  },
    {151, NULL,                         -EBUSY,   "disconnect the resource first"                    },
    {162, "minor exists in different",  -EEXIST,
     "two resources are configured with one minor: see 'drbdadm dump'"                               },
    {162, NULL,                         -EINVAL,  "see 'drbdadm dump' for what is configured"        },
    {164, NULL,                         -EBUSY,
     "both nodes have it Primary: 'drbdadm secondary' it on one of them"                             },
    {0,   "not defined in your config", -ENOENT,
     "'drbdadm dump' tells which resources there are for this host"                                  },
    {0,   "No such resource",           -ENOENT,  "'drbdadm up' it first"                            },
    {0,   "No valid meta data",         -EUCLEAN, "'drbdadm create-md' makes them"                   },
    {0,   "modprobe",                   -ENODEV,
     "the kernel module 'drbd' cannot be loaded: see 'modprobe drbd'"                                },
    {0,   "kernel module is installed", -ENODEV,
     "the kernel module 'drbd' cannot be loaded: see 'modprobe drbd'"                                },
    {0,   "generic netlink",            -ENODEV,
     "the kernel module 'drbd' cannot be loaded: see 'modprobe drbd'"                                },
};

/* Where DRBD writes its own numbers. */
static const char *const number_marks[] = {"State change failed: (",
                                           "Failure: ("};

static void copy_word(char *out, size_t size, const char *from)
{
    (void)snprintf(out, size, "%s", from != NULL ? from : "");
}

/* --- 8.4 --- */

/*
 * Words, wrapped to lines of any length: a name without ':' begins a resource
 * or a connection, "volume:N" a volume of what is begun, the rest are of the
 * last of these.
 */
struct reading {
    struct drbd_status *status;
    const char *resource;
    unsigned volume;
    bool begun;             /* our resource's name was there */
    bool here;              /* the volume that is read is ours */
    struct drbd_peer *peer; /* NULL: the resource's own part */
};

static void take_own(struct reading *reading, const char *key,
                     const char *value)
{
    struct drbd_status *status = reading->status;
    uint64_t number = 0;
    if (str_eq(key, "role")) {
        copy_word(status->role, sizeof(status->role), value);
    } else if (str_eq(key, "suspended")) {
        copy_word(status->suspended, sizeof(status->suspended),
                  str_eq(value, "no") ? "" : value);
    } else if (!reading->here) {
        return;
    } else if (str_eq(key, "minor") &&
               str_to_u64(value, 1 << 20, &number) == 0) {
        status->found = true;
        status->minor = (unsigned)number;
    } else if (str_eq(key, "disk")) {
        copy_word(status->disk, sizeof(status->disk), value);
    } else if (str_eq(key, "size") &&
               str_to_u64(value, INT64_MAX / 1024, &number) == 0) {
        status->size_kib = number;
    }
}

static void take_peers(struct reading *reading, const char *key,
                       const char *value)
{
    struct drbd_peer *peer = reading->peer;
    if (str_eq(key, "connection")) {
        copy_word(peer->connection, sizeof(peer->connection), value);
    } else if (str_eq(key, "role")) {
        copy_word(peer->role, sizeof(peer->role), value);
    } else if (reading->here && str_eq(key, "replication")) {
        copy_word(peer->replication, sizeof(peer->replication), value);
    } else if (reading->here && str_eq(key, "peer-disk")) {
        copy_word(peer->disk, sizeof(peer->disk), value);
    }
}

static int take_name(struct reading *reading, const char *word,
                     struct err **errp)
{
    struct drbd_status *status = reading->status;
    if (!reading->begun) {
        reading->begun = str_eq(word, reading->resource);
        return reading->begun ? 0
                              : err_set(errp, -EPROTO, reading->resource,
                                        "its status begins with '%.32s'", word);
    }
    if (status->n_peers == DRBD_PEERS_MAX) {
        return err_set(errp, -EPROTO, reading->resource, "has too many peers");
    }
    reading->peer = &status->peers[status->n_peers++];
    reading->here = false;
    copy_word(reading->peer->name, sizeof(reading->peer->name), word);
    return 0;
}

static int take_word(struct reading *reading, char *word, struct err **errp)
{
    char *value = strchr(word, ':');
    uint64_t number = 0;
    if (value == NULL) {
        return take_name(reading, word, errp);
    }
    if (!reading->begun) {
        return err_set(errp, -EPROTO, reading->resource,
                       "its status cannot be read");
    }
    *value++ = '\0';
    if (str_eq(word, "volume")) {
        reading->here =
            str_to_u64(value, 65535, &number) == 0 && number == reading->volume;
    } else if (reading->peer != NULL) {
        take_peers(reading, word, value);
    } else {
        take_own(reading, word, value);
    }
    return 0;
}

int drbd_status_from_text(const char *text, const char *resource,
                          unsigned volume, struct drbd_status *ret,
                          struct err **errp)
{
    static const struct drbd_status none;
    *ret = none;
    struct reading reading = {
        .status = ret, .resource = resource, .volume = volume};
    _cleanup_free_ char *copy = strdup(text);
    char *rest = NULL;
    if (copy == NULL) {
        return -ENOMEM;
    }
    int r = 0;
    for (char *word = strtok_r(copy, " \t\n", &rest); word != NULL && r == 0;
         word = strtok_r(NULL, " \t\n", &rest)) {
        r = take_word(&reading, word, errp);
    }
    if (r == 0 && (!reading.begun || *ret->role == '\0')) {
        r = err_set(errp, -EPROTO, resource, "its status cannot be read");
    }
    return r;
}

/* --- 9 --- */

static const json_t *find_by(const json_t *array, const char *key,
                             json_int_t number)
{
    size_t i;
    json_t *entry;
    json_array_foreach(array, i, entry) {
        const json_t *value = json_object_get(entry, key);
        if (json_is_integer(value) && json_integer_value(value) == number) {
            return entry;
        }
    }
    return NULL;
}

static const char *text_of(const json_t *object, const char *key)
{
    return json_string_value(json_object_get(object, key));
}

static void take_suspended(struct drbd_status *status, const json_t *resource)
{
    static const char *const why[] = {"user", "no-data", "fencing", "quorum"};
    bool any = json_is_true(json_object_get(resource, "suspended"));
    for (unsigned i = 0; i < ARRAY_SIZE(why) && *status->suspended == '\0';
         i++) {
        char key[32];
        (void)snprintf(key, sizeof(key), "suspended-%s", why[i]);
        if (json_is_true(json_object_get(resource, key))) {
            copy_word(status->suspended, sizeof(status->suspended), why[i]);
        }
    }
    if (any && *status->suspended == '\0') {
        copy_word(status->suspended, sizeof(status->suspended), "yes");
    }
}

static void take_device(struct drbd_status *status, const json_t *device)
{
    json_int_t minor = json_integer_value(json_object_get(device, "minor"));
    json_int_t size = json_integer_value(json_object_get(device, "size"));
    const json_t *quorum = json_object_get(device, "quorum");
    if (!json_is_integer(json_object_get(device, "minor")) || minor < 0 ||
        minor > 1 << 20) {
        return;
    }
    status->found = true;
    status->minor = (unsigned)minor;
    copy_word(status->disk, sizeof(status->disk),
              text_of(device, "disk-state"));
    status->client = json_is_true(json_object_get(device, "client"));
    status->open = json_is_true(json_object_get(device, "open"));
    status->no_quorum = json_is_false(quorum);
    status->size_kib = size > 0 && size < INT64_MAX / 1024 ? (uint64_t)size : 0;
}

static void take_connection(struct drbd_peer *peer, const json_t *connection,
                            unsigned volume)
{
    const json_t *device =
        find_by(json_object_get(connection, "peer_devices"), "volume", volume);
    copy_word(peer->name, sizeof(peer->name), text_of(connection, "name"));
    copy_word(peer->connection, sizeof(peer->connection),
              text_of(connection, "connection-state"));
    copy_word(peer->role, sizeof(peer->role), text_of(connection, "peer-role"));
    copy_word(peer->replication, sizeof(peer->replication),
              text_of(device, "replication-state"));
    copy_word(peer->disk, sizeof(peer->disk),
              text_of(device, "peer-disk-state"));
    peer->client = json_is_true(json_object_get(device, "peer-client"));
}

int drbd_status_from_json(const char *text, const char *resource,
                          unsigned volume, struct drbd_status *ret,
                          struct err **errp)
{
    static const struct drbd_status none;
    json_auto_t *json = json_loads(text, 0, NULL);
    const json_t *found = NULL;
    size_t i;
    json_t *entry;
    *ret = none;
    json_array_foreach(json, i, entry) {
        found = str_eq(text_of(entry, "name"), resource) ? entry : found;
    }
    const json_t *connections = json_object_get(found, "connections");
    if (text_of(found, "role") == NULL ||
        json_array_size(connections) > DRBD_PEERS_MAX) {
        return err_set(errp, -EPROTO, resource, "its status cannot be read");
    }
    copy_word(ret->role, sizeof(ret->role), text_of(found, "role"));
    take_suspended(ret, found);
    const json_t *device =
        find_by(json_object_get(found, "devices"), "volume", volume);
    if (device != NULL) {
        take_device(ret, device);
    }
    json_array_foreach(connections, i, entry) {
        take_connection(&ret->peers[ret->n_peers++], entry, volume);
    }
    return 0;
}

/* --- what it means --- */

bool drbd_status_is_primary(const struct drbd_status *status)
{
    return str_eq(status->role, "Primary");
}

const struct drbd_peer *drbd_status_primary_peer(
    const struct drbd_status *status)
{
    for (unsigned i = 0; i < status->n_peers; i++) {
        if (str_eq(status->peers[i].role, "Primary")) {
            return &status->peers[i];
        }
    }
    return NULL;
}

static bool is_one_of(const char *word, const char *const *words, unsigned n)
{
    bool found = false;
    for (unsigned i = 0; i < n; i++) {
        found = found || str_eq(word, words[i]);
    }
    return found;
}

/* A resync that runs, or begins: it ends by itself. */
static bool syncs(const struct drbd_peer *peer)
{
    static const char *const states[] = {
        "SyncSource", "SyncTarget", "StartingSyncS", "StartingSyncT",
        "WFBitMapS",  "WFBitMapT",  "WFSyncUUID"};
    return is_one_of(peer->replication, states, ARRAY_SIZE(states));
}

/* Comparing both sides does not keep a write from either. */
static bool replicates(const struct drbd_peer *peer)
{
    static const char *const states[] = {"Established", "VerifyS", "VerifyT"};
    return is_one_of(peer->replication, states, ARRAY_SIZE(states));
}

/* What is wrong with it, "" for nothing; whether that mends itself. */
static bool peer_is_behind(const struct drbd_peer *peer,
                           char ret[DRBD_DEGRADED])
{
    *ret = '\0';
    if (!str_eq(peer->connection, "Connected")) {
        if (!peer->client) {
            (void)snprintf(ret, DRBD_DEGRADED, "peer '%.32s' is %s", peer->name,
                           *peer->connection != '\0' ? peer->connection
                                                     : "not connected");
        }
    } else if (syncs(peer)) {
        (void)snprintf(ret, DRBD_DEGRADED, "peer '%.32s' is in resync (%s)",
                       peer->name, peer->replication);
        return true;
    } else if (!replicates(peer)) {
        (void)snprintf(ret, DRBD_DEGRADED, "peer '%.32s' gets no writes (%s)",
                       peer->name,
                       *peer->replication != '\0' ? peer->replication : "Off");
    } else if (!peer->client && !str_eq(peer->disk, "UpToDate")) {
        (void)snprintf(ret, DRBD_DEGRADED, "the disk of peer '%.32s' is %s",
                       peer->name,
                       *peer->disk != '\0' ? peer->disk : "unknown");
    }
    return false;
}

static bool own_is_behind(const struct drbd_status *status,
                          char ret[DRBD_DEGRADED])
{
    bool target = false;
    *ret = '\0';
    for (unsigned i = 0; i < status->n_peers; i++) {
        target = target || str_eq(status->peers[i].replication, "SyncTarget");
    }
    if (*status->suspended != '\0') {
        (void)snprintf(ret, DRBD_DEGRADED, "its I/O is suspended (%s)",
                       status->suspended);
    } else if (status->no_quorum) {
        (void)snprintf(ret, DRBD_DEGRADED, "it has no quorum");
    } else if (!status->client && !str_eq(status->disk, "UpToDate")) {
        (void)snprintf(ret, DRBD_DEGRADED, "the disk of this host is %s",
                       *status->disk != '\0' ? status->disk : "unknown");
        return target;
    } else if (status->n_peers == 0) {
        (void)snprintf(ret, DRBD_DEGRADED, "it has no peer");
    }
    return false;
}

void drbd_status_degraded(const struct drbd_status *status,
                          char ret[DRBD_DEGRADED], bool *ret_heals)
{
    char text[DRBD_DEGRADED];
    bool heals = own_is_behind(status, ret);
    for (unsigned i = 0; i < status->n_peers; i++) {
        bool mends = peer_is_behind(&status->peers[i], text);
        /* What does not mend itself is what matters. */
        if (*text != '\0' && (*ret == '\0' || (heals && !mends))) {
            (void)snprintf(ret, DRBD_DEGRADED, "%s", text);
            heals = mends;
        }
    }
    *ret_heals = *ret != '\0' && heals;
}

bool drbd_status_is_alone(const struct drbd_status *status,
                          char ret[DRBD_DEGRADED])
{
    *ret = '\0';
    if (status->n_peers == 0) {
        (void)snprintf(ret, DRBD_DEGRADED, "the kernel knows no peer of it");
    }
    for (unsigned i = 0; i < status->n_peers && *ret == '\0'; i++) {
        const struct drbd_peer *peer = &status->peers[i];
        bool connected = str_eq(peer->connection, "Connected");
        if (!connected || *peer->role == '\0' ||
            str_eq(peer->role, "Unknown")) {
            (void)snprintf(ret, DRBD_DEGRADED, "peer '%.40s' is %s", peer->name,
                           connected ? "of an unknown role" : peer->connection);
        }
    }
    return *ret != '\0';
}

bool drbd_promotes_itself(const char *show)
{
    const char *at = strstr(show, "auto-promote");
    for (; at != NULL; at = strstr(at, "auto-promote")) {
        at += strlen("auto-promote");
        /* "auto-promote-timeout" is another one. */
        const char *value = at + strspn(at, " \t");
        if (value > at && str_starts(value, "no")) {
            return false;
        }
    }
    return true;
}

uint64_t drbd_metadata_size(const char *dump)
{
    const char *at = strstr(dump, "la-size-sect ");
    char digits[24] = "";
    uint64_t sectors = 0;
    if (at == NULL || sscanf(at, "la-size-sect %20[0-9]", digits) != 1 ||
        str_to_u64(digits, INT64_MAX / 512, &sectors) < 0) {
        return 0;
    }
    return sectors * 512;
}

/* --- what they refuse --- */

int drbd_refusal_number(const char *errors)
{
    int number = 0;
    for (unsigned i = 0; i < ARRAY_SIZE(number_marks); i++) {
        const char *at = strstr(errors, number_marks[i]);
        if (at != NULL &&
            sscanf(at + strlen(number_marks[i]), "%6d", &number) == 1) {
            return number;
        }
    }
    return 0;
}

bool drbd_says_down(const char *errors)
{
    return strstr(errors, "No such resource") != NULL;
}

bool drbd_says_undefined(const char *errors)
{
    return strstr(errors, "not defined in your config") != NULL;
}

bool drbd_says_no_option(const char *errors)
{
    return strstr(errors, "unrecognized option") != NULL;
}

static const struct refusal *find_refusal(int number, const char *errors)
{
    for (unsigned i = 0; i < ARRAY_SIZE(refusals); i++) {
        const struct refusal *refusal = &refusals[i];
        if (refusal->number == number &&
            (refusal->words == NULL ||
             strstr(errors, refusal->words) != NULL)) {
            return refusal;
        }
    }
    return NULL;
}

/* The line that says most: with a number, or else the first. */
static char *best_line(const char *errors)
{
    const char *at = errors;
    for (unsigned i = 0; i < ARRAY_SIZE(number_marks); i++) {
        const char *mark = strstr(errors, number_marks[i]);
        if (mark != NULL) {
            at = mark + strlen(number_marks[i]) - 1;
            break;
        }
    }
    at += strspn(at, " \t\n");
    return strndup(at, strcspn(at, "\n"));
}

int drbd_refusal(const char *object, const char *what, int status,
                 const char *errors, struct err **errp)
{
    int number = drbd_refusal_number(errors);
    const struct refusal *refusal = find_refusal(number, errors);
    _cleanup_free_ char *line = best_line(errors);
    const char *more = strstr(errors, "additional info from kernel:\n");
    _cleanup_free_ char *kernel =
        more != NULL ? best_line(more + strlen("additional info from kernel:"))
                     : NULL;
    int code = refusal != NULL ? refusal->code : -EIO;
    (void)err_set(errp, code, object, "%s: %.160s%s%.120s (exit code %d)", what,
                  line != NULL && *line != '\0' ? line : "failed",
                  kernel != NULL ? ": " : "", kernel != NULL ? kernel : "",
                  status);
    if (refusal != NULL) {
        err_hint(errp, "%s", refusal->hint);
    }
    return code;
}
