/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * QEMU reads the certificates when the object is made (docs: tls in the system
 * manual): missing, expired or unreadable ones are an error at once, those of
 * another CA when the first connection is made. Both are before the guest
 * stands still.
 */
#include "steps/tls.h"

#include <stdio.h>

#include "base/err.h"
#include "base/str.h"
#include "vm/names.h"

enum { PATH_SIZE = 64 };

bool tls_is_used(const struct plan *plan, const struct plan_disk *disk)
{
    (void)disk;
    return plan->tls_dir != NULL && *plan->tls_dir != '\0';
}

bool tls_has_authz(const struct plan *plan, const struct plan_disk *disk)
{
    return tls_is_used(plan, disk) && *plan->tls_authz != '\0';
}

bool tls_is_left(const struct plan *plan, const struct plan_disk *disk)
{
    return tls_is_used(plan, disk) && !plan->quit_source;
}

void tls_hint(const struct plan *plan, struct err **errp)
{
    if (tls_is_used(plan, NULL)) {
        err_hint(errp,
                 "both certificates must be of the CA that the other side"
                 " has, the destination's must be for '%s'%s%s",
                 *plan->tls_hostname != '\0' ? plan->tls_hostname
                                             : plan->address,
                 *plan->tls_authz != '\0' ? ", the source's of " : "",
                 plan->tls_authz);
    }
}

/* --- an object of the operation's --- */

static json_t *del_command(const char *op, enum name_once what)
{
    return json_pack("{s:s, s:{s:s}}", "execute", "object-del", "arguments",
                     "id", name_once(op, what).text);
}

static void look(struct act *act, enum name_once what, act_reply_fn *then)
{
    char path[PATH_SIZE];
    (void)snprintf(path, sizeof(path), "/objects/%s",
                   name_once(act_op_id(act), what).text);
    act_qmp(act, "qom-get",
            json_pack("{s:s, s:s}", "path", path, "property", "type"), then);
}

static void add_on_look(struct act *act, const struct err *err, json_t *result)
{
    (void)result;
    if (err != NULL && str_eq(err->class, "DeviceNotFound")) {
        act_command(act, NULL);
    } else {
        act_end(act, err); /* there already: from before a crash */
    }
}

static void del_on_look(struct act *act, const struct err *err,
                        enum name_once what)
{
    if (err == NULL) {
        act_qmp(act, "object-del",
                json_pack("{s:s}", "id", name_once(act_op_id(act), what).text),
                NULL);
    } else {
        act_end(act, str_eq(err->class, "DeviceNotFound") ? NULL : err);
    }
}

/* --- the credentials --- */

/* 'verify-peer' is QEMU's default; that both sides prove who they are is ours. */
static json_t *tls_command(const char *op, const char *dir,
                           const char *endpoint)
{
    return json_pack("{s:s, s:{s:s, s:s, s:s, s:s, s:b}}", "execute",
                     "object-add", "arguments", "qom-type", "tls-creds-x509",
                     "id", name_once(op, NAME_TLS).text, "dir", dir, "endpoint",
                     endpoint, "verify-peer", 1);
}

json_t *tls_client_command(const char *op, const struct plan *plan,
                           const struct plan_disk *disk)
{
    (void)disk;
    return tls_command(op, plan->tls_dir, "client");
}

json_t *tls_server_command(const char *op, const struct plan *plan,
                           const struct plan_disk *disk)
{
    (void)disk;
    return tls_command(op, plan->tls_dir_to, "server");
}

json_t *tls_del_command(const char *op, const struct plan *plan,
                        const struct plan_disk *disk)
{
    (void)plan;
    (void)disk;
    return del_command(op, NAME_TLS);
}

void tls_add(struct act *act)
{
    look(act, NAME_TLS, add_on_look);
}

static void tls_on_look(struct act *act, const struct err *err, json_t *result)
{
    (void)result;
    del_on_look(act, err, NAME_TLS);
}

void tls_del(struct act *act)
{
    look(act, NAME_TLS, tls_on_look);
}

/* --- whom the destination lets in --- */

json_t *authz_command(const char *op, const struct plan *plan,
                      const struct plan_disk *disk)
{
    (void)disk;
    return json_pack("{s:s, s:{s:s, s:s, s:s}}", "execute", "object-add",
                     "arguments", "qom-type", "authz-simple", "id",
                     name_once(op, NAME_AUTHZ).text, "identity",
                     plan->tls_authz);
}

json_t *authz_del_command(const char *op, const struct plan *plan,
                          const struct plan_disk *disk)
{
    (void)plan;
    (void)disk;
    return del_command(op, NAME_AUTHZ);
}

void authz_add(struct act *act)
{
    look(act, NAME_AUTHZ, add_on_look);
}

static void authz_on_look(struct act *act, const struct err *err,
                          json_t *result)
{
    (void)result;
    del_on_look(act, err, NAME_AUTHZ);
}

void authz_del(struct act *act)
{
    look(act, NAME_AUTHZ, authz_on_look);
}
