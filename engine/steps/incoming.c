/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The destination waits for the stream, and ends if there is to be none: but
 * never while it may be the only one that has the guest.
 */
#include <errno.h>

#include "base/err.h"
#include "base/str.h"
#include "run/claim.h"
#include "steps/stream.h"
#include "steps/transport.h"
#include "vm/vm.h"

static const char *text_of(const json_t *json, const char *key)
{
    const char *text = json_string_value(json_object_get(json, key));
    return text != NULL ? text : "";
}

/* --- listen --- */

json_t *incoming_command(const char *op, const struct plan *plan,
                         const struct plan_disk *disk)
{
    (void)op;
    (void)disk;
    return json_pack("{s:s, s:{s:o}}", "execute", "migrate-incoming",
                     "arguments", "uri", transport_listen_uri(plan));
}

/* Port 0: the kernel's choice, which query-migrate tells. */
static json_int_t port_of(const json_t *info)
{
    const json_t *sockets = json_object_get(info, "socket-address");
    const char *port = text_of(json_array_get(sockets, 0), "port");
    uint64_t number = 0;
    return str_to_u64(port, 65535, &number) == 0 ? (json_int_t)number : 0;
}

/* What it listens at, as a fact, new reference; NULL: it does not. */
static json_t *listens_at(const struct act *act, const json_t *info)
{
    const char *planned = act_plan(act)->stream_socket;
    const json_t *sockets = json_object_get(info, "socket-address");
    const char *path = text_of(json_array_get(sockets, 0), "path");
    json_int_t port = port_of(info);
    if (transport_has_sockets(act_plan(act), NULL)) {
        return str_eq(path, planned) ? json_pack("{s:s}", "path", path) : NULL;
    }
    return port != 0 ? json_pack("{s:I}", "port", port) : NULL;
}

static void incoming_on_info(struct act *act, const struct err *err,
                             json_t *result)
{
    _cleanup_err_ struct err *error = NULL;
    json_t *facts = err == NULL ? listens_at(act, result) : NULL;
    if (err == NULL && facts == NULL) {
        (void)err_set(&error, -EPROTO, "migrate-incoming",
                      "the destination does not tell where it listens");
        err = error;
    } else if (err == NULL) {
        act_set_facts(act, facts);
    }
    act_end(act, err);
}

static void incoming_on_reply(struct act *act, const struct err *err,
                              json_t *result)
{
    (void)result;
    if (err != NULL) {
        act_end(act, err);
    } else {
        act_qmp(act, "query-migrate", NULL, incoming_on_info);
    }
}

static void incoming_on_stopped(struct act *act, const struct err *err,
                                json_t *result)
{
    (void)result;
    if (err != NULL) {
        act_end(act, err);
    } else {
        act_command(act, incoming_on_reply);
    }
}

static void incoming_on_status(struct act *act, const struct err *err,
                               json_t *result)
{
    const char *status = text_of(result, "status");
    _cleanup_err_ struct err *error = NULL;
    if (err != NULL) {
        act_end(act, err);
    } else if (!str_eq(status, "inmigrate")) {
        (void)err_set(&error, -ESTALE, vm_name(act_vm(act)),
                      "the destination is '%s', not waiting for a guest",
                      status);
        act_end(act, error);
    } else {
        act_qmp(act, "stop", NULL, incoming_on_stopped);
    }
}

/*
 * While a QEMU waits for a stream, 'stop' only has it not run the guest by
 * itself, as -S does: who forgot that must not have two guests.
 */
void incoming_open(struct act *act)
{
    act_qmp(act, "query-status", NULL, incoming_on_status);
}

static void incoming_on_probe(struct act *act, const struct err *err,
                              json_t *result)
{
    json_t *facts = err == NULL ? listens_at(act, result) : NULL;
    bool listens = facts != NULL;
    if (listens) {
        act_set_facts(act, facts);
    }
    act_probed(act, err != NULL ? PROBE_UNKNOWN
                    : listens   ? PROBE_DONE
                                : PROBE_NOT_DONE);
}

void incoming_probe(struct act *act)
{
    act_qmp(act, "query-migrate", NULL, incoming_on_probe);
}

static void incoming_on_quit(struct act *act, const struct err *err,
                             json_t *result)
{
    (void)err;
    (void)result;
    act_end(act, NULL);
}

static void incoming_quit(struct act *act)
{
    act_qmp(act, "quit", NULL, incoming_on_quit);
}

static void keep_incoming(struct act *act, const char *why)
{
    _cleanup_err_ struct err *err = NULL;
    act_turn_to(act, ACT_DESTINATION);
    (void)err_set(&err, -ESTALE, vm_name(act_dst_vm(act)),
                  "the destination is not ended: %s", why);
    err_hint(&err, "see which QEMU holds the guest before either is ended");
    act_end(act, err);
}

/* Up to QEMU 7.2 a guest that stood is 'postmigrate' after a failure, too. */
static void close_on_source_stream(struct act *act, const struct err *err,
                                   json_t *result)
{
    const char *status = text_of(result, "status");
    if (err == NULL &&
        (str_eq(status, "failed") || str_eq(status, "cancelled"))) {
        act_turn_to(act, ACT_DESTINATION);
        incoming_quit(act);
    } else {
        keep_incoming(act, "the source does not hold the guest");
    }
}

static void close_on_source_status(struct act *act, const struct err *err,
                                   json_t *result)
{
    const char *status = text_of(result, "status");
    if (err == NULL &&
        (str_eq(status, "running") || str_eq(status, "paused"))) {
        act_turn_to(act, ACT_DESTINATION);
        incoming_quit(act);
    } else if (err == NULL && str_eq(status, "postmigrate")) {
        act_qmp(act, "query-migrate", NULL, close_on_source_stream);
    } else {
        keep_incoming(act, "the source does not hold the guest");
    }
}

static void close_on_source_claim(struct act *act, const struct err *err,
                                  json_t *result)
{
    if (err == NULL && str_eq(json_string_value(result), act_op_id(act))) {
        act_qmp(act, "query-status", NULL, close_on_source_status);
    } else {
        keep_incoming(act, "another QEMU answers at the source");
    }
}

static void close_on_status(struct act *act, const struct err *err,
                            json_t *result)
{
    const char *status = text_of(result, "status");
    if (err != NULL) {
        act_end(act, err);
    } else if (str_eq(status, "inmigrate")) {
        incoming_quit(act);
    } else if (!str_eq(status, "paused")) {
        keep_incoming(act, "it may run the guest");
    } else if (vm_state(act_src_vm(act)) != VM_UP) {
        keep_incoming(act, "it has the guest, and the source is not there");
    } else {
        act_turn_to(act, ACT_SOURCE);
        act_qmp(act, "qom-get", claim_holder_arguments(),
                close_on_source_claim);
    }
}

static void close_look(struct act *act)
{
    act_qmp(act, "query-status", NULL, close_on_status);
}

/*
 * A QEMU that has listened once takes no second stream: it ends, as it does
 * by itself when a stream fails. But one that has all of the guest is ended
 * only where the source is seen to have the guest, too.
 */
void incoming_close(struct act *act)
{
    claim_if_ours(act, close_look);
}
