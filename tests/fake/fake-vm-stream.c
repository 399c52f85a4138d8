/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Whose the guest is: run states, and the stream that takes it from one fake
 * QEMU to its peer. What QEMU 7.2 and 10.0 were seen to do; a look at either
 * side brings a stream one state further.
 */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/str.h"
#include "fake/fake-vm.h"

static const char *text(const json_t *args, const char *key)
{
    return json_string_value(json_object_get(args, key));
}

enum { FAKE_PAGES = 4 };

static const char *phase_name(enum fake_phase phase)
{
    static const char *const names[] = {
        [FAKE_NO_STREAM] = "none",
        [FAKE_SETUP] = "setup",
        [FAKE_ACTIVE] = "active",
        [FAKE_GATE] = "pre-switchover",
        [FAKE_DEVICE] = "device",
        [FAKE_COMPLETED] = "completed",
        [FAKE_FAILED] = "failed",
        [FAKE_CANCELLING] = "cancelling",
        [FAKE_CANCELLED] = "cancelled",
        [FAKE_POSTCOPY] = "postcopy-active",
        [FAKE_POSTCOPY_PAUSED] = "postcopy-paused",
    };
    return names[phase];
}

static bool is_sending(const struct fake_vm *vm)
{
    enum fake_phase phase = vm->stream.phase;
    return phase == FAKE_SETUP || phase == FAKE_ACTIVE || phase == FAKE_GATE ||
           phase == FAKE_DEVICE || phase == FAKE_CANCELLING ||
           phase == FAKE_POSTCOPY || phase == FAKE_POSTCOPY_PAUSED;
}

bool fake_vm_is_halved(const struct fake_vm *vm)
{
    enum fake_phase phase = vm->stream.phase;
    return phase == FAKE_POSTCOPY_PAUSED ||
           (phase == FAKE_POSTCOPY && vm->stream.pages > 0);
}

static void set_phase(struct fake_vm *vm, enum fake_phase phase)
{
    vm->stream.phase = phase;
    fake_vm_event(vm, "MIGRATION",
                  json_pack("{s:s}", "status", phase_name(phase)));
}

bool fake_vm_holds_guest(const struct fake_vm *vm)
{
    if (vm->dead || vm->stream.phase == FAKE_COMPLETED ||
        fake_vm_is_halved(vm)) {
        return false;
    }
    return !vm->was_incoming || vm->stream.loaded;
}

void fake_vm_await(struct fake_vm *vm, bool autostart)
{
    vm->runstate = FAKE_INMIGRATE;
    vm->was_incoming = true;
    vm->stream.autostart = autostart;
}

/* --- a stream's life --- */

/* Over without success: the source has kept the guest. */
static void end_badly(struct fake_vm *vm, enum fake_phase phase)
{
    struct fake_stream *stream = &vm->stream;
    bool stood = vm->runstate == FAKE_FINISH_MIGRATE;
    set_phase(vm, phase);
    fake_vm_end_bitmaps(vm, false);
    /* QEMU 7.2 has forgotten by then that it ran. */
    bool stays = stream->postcopy && !vm->keeps_old_state;
    if (stood && stream->was_running && !stays) {
        vm->runstate = FAKE_RUNS;
        fake_vm_event(vm, "RESUME", NULL);
    } else if (stood) {
        vm->runstate =
            vm->keeps_old_state ? FAKE_PAUSED : FAKE_POSTMIGRATE; /* 7.2 */
    }
    /* Who waits for the rest of a stream ends when there is none. */
    if (vm->peer != NULL && !vm->peer->dead && vm->peer->stream.connected &&
        !vm->peer->stream.loaded) {
        vm->peer->ends = true;
    }
}

static void stop_for_stream(struct fake_vm *vm)
{
    vm->stream.was_running = vm->runstate == FAKE_RUNS;
    if (vm->runstate == FAKE_RUNS) {
        fake_vm_event(vm, "STOP", NULL);
    }
    vm->runstate = FAKE_FINISH_MIGRATE;
}

static bool has_live_mirror(const struct fake_vm *vm)
{
    for (unsigned i = 0; i < FAKE_JOBS; i++) {
        if (vm->jobs[i].used && vm->jobs[i].status != FAKE_CONCLUDED) {
            return true;
        }
    }
    return false;
}

/* The peer gets the last of it; the source learns of that only later. */
static void load(struct fake_vm *vm, struct fake_vm *peer)
{
    if (has_live_mirror(vm)) {
        fake_vm_violation(vm, "the guest went over before its disks");
    }
    peer->stream.loaded = true;
    peer->runstate = peer->stream.autostart ? FAKE_RUNS : FAKE_PAUSED;
    peer->n_writes = vm->n_writes;
    fake_vm_end_bitmaps(vm, true);
    for (unsigned i = 0; i < vm->n_devices && i < peer->n_devices; i++) {
        for (unsigned k = 0; k < ARRAY_SIZE(vm->devices[i].writes); k++) {
            peer->devices[i].writes[k] = vm->devices[i].writes[k];
        }
    }
    fake_vm_event(peer, "MIGRATION",
                  json_pack("{s:s}", "status",
                            vm->stream.postcopy ? phase_name(FAKE_POSTCOPY)
                                                : "completed"));
}

/* The devices go in one piece; a page a look comes after them. */
static void postcopy_tick(struct fake_vm *vm, bool reaches)
{
    struct fake_stream *stream = &vm->stream;
    struct fake_vm *peer = vm->peer;
    if (!peer->stream.loaded && !reaches) {
        end_badly(vm, FAKE_FAILED);
    } else if (!peer->stream.loaded) {
        stream->pages = FAKE_PAGES;
        load(vm, peer);
    } else if (!reaches || (vm->loses_link && peer->runstate == FAKE_RUNS)) {
        set_phase(vm, FAKE_POSTCOPY_PAUSED);
    } else if (--stream->pages == 0) {
        vm->runstate = FAKE_POSTMIGRATE;
        set_phase(vm, FAKE_COMPLETED);
    }
}

/* Either both by TLS or none, and where the peer listens. */
static bool speak_alike(const struct fake_vm *vm, const struct fake_vm *peer)
{
    return vm->stream.by_socket == (*peer->stream.socket != '\0') &&
           str_eq(text(vm->stream.parameters, "tls-creds"), "") ==
               str_eq(text(peer->stream.parameters, "tls-creds"), "");
}

static void device_tick(struct fake_vm *vm, bool reaches)
{
    struct fake_vm *peer = vm->peer;
    if (vm->stream.postcopy && reaches && !peer->stream.loaded) {
        set_phase(vm, FAKE_POSTCOPY);
        postcopy_tick(vm, reaches);
    } else if (peer->stream.loaded && vm->never_told) {
        return;
    } else if (peer->stream.loaded) {
        /* Its word was on its way, even if it is dead by now. */
        vm->runstate = FAKE_POSTMIGRATE;
        set_phase(vm, FAKE_COMPLETED);
    } else if (!reaches) {
        end_badly(vm, FAKE_FAILED);
    } else {
        load(vm, peer);
    }
}

static void stream_tick(struct fake_vm *vm)
{
    struct fake_stream *stream = &vm->stream;
    struct fake_vm *peer = vm->peer;
    bool reaches = peer != NULL && !peer->dead && !peer->ends;
    if (vm->still) {
        return;
    }
    switch (stream->phase) {
    case FAKE_SETUP:
        if (!reaches || !peer->stream.listens || !speak_alike(vm, peer)) {
            end_badly(vm, FAKE_FAILED);
            break;
        }
        peer->stream.connected = true;
        if (*peer->stream.socket != '\0') {
            (void)unlink(peer->stream.socket); /* no second one is let in */
        }
        if (!fake_vm_send_bitmaps(vm)) {
            end_badly(vm, FAKE_FAILED);
            break;
        }
        stream->passes = 1;
        set_phase(vm, FAKE_ACTIVE);
        break;
    case FAKE_ACTIVE:
        stream->passes++;
        if (!reaches) {
            end_badly(vm, FAKE_FAILED);
        } else if ((stream->passes > 3 && !vm->never_gate) ||
                   stream->postcopy) {
            bool gate = json_is_true(json_object_get(
                stream->capabilities, "pause-before-switchover"));
            stop_for_stream(vm);
            set_phase(vm, gate ? FAKE_GATE : FAKE_DEVICE);
        }
        break;
    case FAKE_DEVICE:
        device_tick(vm, reaches);
        break;
    case FAKE_CANCELLING:
        if (!vm->wedges) {
            end_badly(vm, FAKE_CANCELLED);
        }
        break;
    case FAKE_POSTCOPY:
        postcopy_tick(vm, reaches);
        break;
    case FAKE_POSTCOPY_PAUSED:
    case FAKE_GATE: /* a dead peer is noticed when there is more to send */
    case FAKE_NO_STREAM:
    case FAKE_COMPLETED:
    case FAKE_FAILED:
    case FAKE_CANCELLED:
        break;
    }
}

void fake_vm_die(struct fake_vm *vm)
{
    struct fake_vm *peer = vm->peer;
    vm->dead = true;
    vm->ends = false;
    if (peer != NULL && !peer->dead && peer->stream.connected &&
        !peer->stream.loaded) {
        peer->ends = true;
    }
}

/* --- looks --- */

static json_t *query_status(struct fake_vm *vm, const json_t *args)
{
    static const char *const names[] = {
        [FAKE_RUNS] = "running",
        [FAKE_PAUSED] = "paused",
        [FAKE_INMIGRATE] = "inmigrate",
        [FAKE_FINISH_MIGRATE] = "finish-migrate",
        [FAKE_POSTMIGRATE] = "postmigrate",
    };
    (void)args;
    json_t *reply =
        json_pack("{s:s, s:b, s:b}", "status", names[vm->runstate],
                  "singlestep", 0, "running", vm->runstate == FAKE_RUNS);
    /* It is told what is, and what it waits for comes after. */
    if (vm->was_incoming && vm->peer != NULL && !vm->peer->dead) {
        stream_tick(vm->peer);
    }
    return reply;
}

static json_t *query_incoming(const struct fake_vm *vm)
{
    json_t *reply = json_object();
    if (vm->stream.loaded && vm->peer != NULL && fake_vm_is_halved(vm->peer)) {
        bool waits =
            vm->peer->dead || vm->peer->stream.phase == FAKE_POSTCOPY_PAUSED;
        (void)json_object_set_new(
            reply, "status",
            json_string(
                phase_name(waits ? FAKE_POSTCOPY_PAUSED : FAKE_POSTCOPY)));
        return reply;
    }
    if (vm->stream.loaded) {
        (void)json_object_set_new(reply, "status", json_string("completed"));
        return reply;
    }
    if (vm->stream.connected) {
        (void)json_object_set_new(reply, "status", json_string("active"));
    }
    if (vm->stream.listens && *vm->stream.socket != '\0') {
        (void)json_object_set_new(reply, "socket-address",
                                  json_pack("[{s:s, s:s}]", "path",
                                            vm->stream.socket, "type", "unix"));
    } else if (vm->stream.listens) {
        (void)json_object_set_new(reply, "socket-address",
                                  json_pack("[{s:s, s:b, s:s, s:s}]", "port",
                                            "44444", "ipv4", 1, "host",
                                            "127.0.0.1", "type", "inet"));
    }
    return reply;
}

static json_t *query_migrate(struct fake_vm *vm, const json_t *args)
{
    const struct fake_stream *stream = &vm->stream;
    (void)args;
    if (vm->was_incoming && stream->phase == FAKE_NO_STREAM) {
        return query_incoming(vm);
    }
    json_t *reply = json_object();
    if (stream->phase != FAKE_NO_STREAM) {
        (void)json_object_set_new(reply, "status",
                                  json_string(phase_name(stream->phase)));
    }
    if (stream->passes > 0) {
        (void)json_object_set_new(
            reply, "ram",
            json_pack("{s:i, s:i, s:i, s:f}", "transferred", 4096, "remaining",
                      4096, "dirty-sync-count", stream->passes, "mbps", 1.0));
    }
    stream_tick(vm);
    return reply;
}

static json_t *query_capabilities(struct fake_vm *vm, const json_t *args)
{
    static const char *const names[] = {
        "events",       "return-path",         "pause-before-switchover",
        "xbzrle",       "late-block-activate", "auto-converge",
        "rdma-pin-all", "dirty-bitmaps",       "postcopy-ram",
    };
    (void)args;
    json_t *list = json_array();
    for (unsigned i = 0; i < ARRAY_SIZE(names) - vm->lacks_postcopy; i++) {
        bool on =
            json_is_true(json_object_get(vm->stream.capabilities, names[i]));
        (void)json_array_append_new(
            list, json_pack("{s:s, s:b}", "capability", names[i], "state", on));
    }
    return list;
}

json_t *fake_vm_default_parameters(void)
{
    return json_pack("{s:i, s:i, s:i, s:s, s:s, s:s}", "max-bandwidth",
                     134217728, "max-postcopy-bandwidth", 0,
                     "xbzrle-cache-size", 67108864, "tls-creds", "",
                     "tls-hostname", "", "tls-authz", "");
}

static json_t *query_parameters(struct fake_vm *vm, const json_t *args)
{
    (void)args;
    return json_deep_copy(vm->stream.parameters);
}

static json_t *query_memory(struct fake_vm *vm, const json_t *args)
{
    (void)vm;
    (void)args;
    return json_pack("{s:i, s:i}", "base-memory", 134217728, "plugged-memory",
                     0);
}

/* --- settings --- */

static json_t *set_capabilities(struct fake_vm *vm, const json_t *args)
{
    size_t i;
    json_t *entry;
    if (is_sending(vm)) {
        return fake_vm_refuse("There's a migration process in progress");
    }
    json_array_foreach(json_object_get(args, "capabilities"), i, entry) {
        (void)json_object_set(vm->stream.capabilities,
                              text(entry, "capability"),
                              json_object_get(entry, "state"));
    }
    return json_object();
}

static json_t *set_parameters(struct fake_vm *vm, const json_t *args)
{
    (void)json_object_update(vm->stream.parameters, (json_t *)(uintptr_t)args);
    return json_object();
}

/* --- acts --- */

/* "" is none, as in QEMU. */
static json_t *lacks_credentials(const struct fake_vm *vm)
{
    const json_t *parameters = vm->stream.parameters;
    return str_eq(text(parameters, "tls-creds"), "")
               ? NULL
               : fake_vm_lacks_object(vm, parameters, "tls-creds");
}

static json_t *migrate_incoming(struct fake_vm *vm, const json_t *args)
{
    (void)args;
    if (!vm->was_incoming) {
        return fake_vm_refuse(
            "'-incoming' was not specified on the command line");
    }
    json_t *refusal = lacks_credentials(vm);
    if (refusal != NULL) {
        return refusal;
    }
    if (vm->stream.listens) {
        return fake_vm_refuse("The incoming migration has already been"
                              " started");
    }
    vm->stream.listens = true;
    const char *uri = text(args, "uri");
    if (str_starts(uri, "unix:")) {
        fake_vm_bind(vm->stream.socket, uri + strlen("unix:"));
    }
    fake_vm_event(vm, "MIGRATION", json_pack("{s:s}", "status", "setup"));
    return json_object();
}

static json_t *migrate(struct fake_vm *vm, const json_t *args)
{
    (void)args;
    json_t *refusal = lacks_credentials(vm);
    if (refusal != NULL) {
        return refusal;
    }
    if (is_sending(vm)) {
        return fake_vm_refuse("There's a migration process in progress");
    }
    if (vm->runstate == FAKE_INMIGRATE) {
        return fake_vm_refuse("Guest is waiting for an incoming migration");
    }
    if (vm->runstate == FAKE_POSTMIGRATE) {
        return fake_vm_refuse("Can't migrate the vm that was paused due to"
                              " previous migration");
    }
    vm->stream.passes = 0;
    vm->stream.postcopy = false;
    vm->stream.by_socket = str_starts(text(args, "uri"), "unix:");
    set_phase(vm, FAKE_SETUP);
    return json_object();
}

static json_t *migrate_cancel(struct fake_vm *vm, const json_t *args)
{
    (void)args;
    if (fake_vm_is_halved(vm)) {
        fake_vm_violation(vm, "a guest was cancelled that was on both sides");
    }
    if (is_sending(vm) && vm->stream.phase != FAKE_CANCELLING) {
        set_phase(vm, FAKE_CANCELLING);
    }
    return json_object();
}

/* Of the stream only; what nobody can cut otherwise ends by that. */
static json_t *query_yank(struct fake_vm *vm, const json_t *args)
{
    (void)args;
    return is_sending(vm) ? json_pack("[{s:s}]", "type", "migration")
                          : json_array();
}

static json_t *yank(struct fake_vm *vm, const json_t *args)
{
    (void)args;
    if (fake_vm_is_halved(vm)) {
        fake_vm_violation(vm, "a guest was cut off that was on both sides");
    } else if (is_sending(vm)) {
        end_badly(vm, FAKE_FAILED);
    }
    return json_object();
}

static json_t *migrate_continue(struct fake_vm *vm, const json_t *args)
{
    if (vm->stream.phase == FAKE_CANCELLING && vm->wedges &&
        str_eq(text(args, "state"), "cancelling")) {
        vm->wedges = false;
        return json_object();
    }
    if (vm->stream.phase != FAKE_GATE ||
        !str_eq(text(args, "state"), phase_name(FAKE_GATE))) {
        return fake_vm_refuse("Migration not in expected state: %s",
                              phase_name(vm->stream.phase));
    }
    /* As of 10.0; 7.2 knows no 'device' before it. */
    bool at_once = vm->stream.postcopy && !vm->keeps_old_state;
    set_phase(vm, at_once ? FAKE_POSTCOPY : FAKE_DEVICE);
    return json_object();
}

/* Noted only: the stream looks for it when it is active. */
static json_t *start_postcopy(struct fake_vm *vm, const json_t *args)
{
    const json_t *capabilities = vm->stream.capabilities;
    (void)args;
    if (!json_is_true(json_object_get(capabilities, "postcopy-ram"))) {
        return fake_vm_refuse("Enable postcopy with migrate_set_capability"
                              " before the start of migration");
    }
    vm->stream.postcopy = true;
    return json_object();
}

static json_t *stop(struct fake_vm *vm, const json_t *args)
{
    (void)args;
    if (vm->runstate == FAKE_INMIGRATE) {
        vm->stream.autostart = false;
    } else if (vm->runstate == FAKE_RUNS) {
        vm->runstate = FAKE_PAUSED;
        fake_vm_event(vm, "STOP", NULL);
    }
    return json_object();
}

/* Nobody has the right to run a guest that another has, or is to get. */
static void judge_cont(struct fake_vm *vm)
{
    const struct fake_vm *peer = vm->peer;
    if (vm->stream.phase == FAKE_COMPLETED || fake_vm_is_halved(vm)) {
        fake_vm_violation(vm, "a source that had handed the guest over was"
                              " told to run it");
    } else if (vm->was_incoming && peer != NULL && !fake_vm_is_halved(peer) &&
               peer->stream.phase != FAKE_COMPLETED) {
        fake_vm_violation(vm,
                          "the destination was told to run the guest, and"
                          " the source had it (%s)",
                          phase_name(peer->stream.phase));
    }
}

static json_t *cont(struct fake_vm *vm, const json_t *args)
{
    (void)args;
    if (vm->runstate == FAKE_FINISH_MIGRATE) {
        return fake_vm_refuse("Migration is not finalized yet");
    }
    judge_cont(vm);
    if (vm->runstate == FAKE_INMIGRATE) {
        vm->stream.autostart = true;
        return json_object();
    }
    for (unsigned i = 0; i < FAKE_EXPORTS; i++) {
        if (vm->exports[i].used) {
            fake_vm_violation(vm, "the guest was started under an export");
        }
    }
    if (vm->runstate != FAKE_RUNS) {
        vm->runstate = FAKE_RUNS;
        fake_vm_event(vm, "RESUME", NULL);
    }
    return json_object();
}

static json_t *quit(struct fake_vm *vm, const json_t *args)
{
    const struct fake_vm *peer = vm->peer;
    (void)args;
    if (fake_vm_holds_guest(vm) &&
        (peer == NULL || !fake_vm_holds_guest(peer))) {
        fake_vm_violation(vm, "a QEMU was ended that alone had the guest");
    }
    if (fake_vm_is_halved(vm) ||
        (peer != NULL && fake_vm_is_halved(peer) && !peer->dead)) {
        fake_vm_violation(vm, "a QEMU was ended with a half of the guest");
    }
    vm->ends = true;
    return json_object();
}

json_t *fake_vm_stream(struct fake_vm *vm, const char *command,
                       const json_t *args)
{
    static const struct {
        const char *name;
        fake_command_fn *fn;
    } commands[] = {
        {"cont",                       cont              },
        {"migrate",                    migrate           },
        {"migrate-continue",           migrate_continue  },
        {"migrate-incoming",           migrate_incoming  },
        {"migrate-set-capabilities",   set_capabilities  },
        {"migrate-set-parameters",     set_parameters    },
        {"migrate-start-postcopy",     start_postcopy    },
        {"migrate_cancel",             migrate_cancel    },
        {"query-memory-size-summary",  query_memory      },
        {"query-migrate",              query_migrate     },
        {"query-migrate-capabilities", query_capabilities},
        {"query-migrate-parameters",   query_parameters  },
        {"query-status",               query_status      },
        {"query-yank",                 query_yank        },
        {"quit",                       quit              },
        {"stop",                       stop              },
        {"yank",                       yank              },
    };

    for (unsigned i = 0; i < ARRAY_SIZE(commands); i++) {
        if (str_eq(command, commands[i].name)) {
            return commands[i].fn(vm, args);
        }
    }
    return NULL;
}
