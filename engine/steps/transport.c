/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "steps/transport.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/err.h"
#include "base/str.h"
#include "qmp/qmp.h"
#include "vm/names.h"
#include "vm/vm.h"

enum { REMOVE_TIMEOUT_MS = 15000, DIRECTORY_MODE = 0711 };

bool transport_has_sockets(const struct plan *plan,
                           const struct plan_disk *disk)
{
    (void)disk;
    return plan->stream_socket != NULL && *plan->stream_socket != '\0';
}

bool transport_is_local(const struct plan *plan, const struct plan_disk *disk)
{
    return transport_has_sockets(plan, disk) && !plan->tunnel;
}

static const char *path_there(const struct plan *plan, enum transport_what what)
{
    return what == TRANSPORT_STREAM ? plan->stream_socket : plan->export_socket;
}

/* --- the destination's end --- */

json_t *transport_listen_uri(const struct plan *plan)
{
    if (transport_has_sockets(plan, NULL)) {
        _cleanup_free_ char *uri = str_printf("unix:%s", plan->stream_socket);
        return json_string(uri);
    }
    bool v6 = strchr(plan->address, ':') != NULL;
    _cleanup_free_ char *uri =
        str_printf("tcp:%s%s%s:0", v6 ? "[" : "", plan->address, v6 ? "]" : "");
    return json_string(uri);
}

json_t *transport_listen_address(const struct plan *plan)
{
    return transport_has_sockets(plan, NULL)
               ? json_pack("{s:s, s:{s:s}}", "type", "unix", "data", "path",
                           plan->export_socket)
               : NULL;
}

/* --- the source's --- */

const char *transport_planned_path(const struct plan *plan,
                                   enum transport_what what)
{
    static const char *const forwarded[] = {
        [TRANSPORT_STREAM] = "<forwarded by ssh>/stream",
        [TRANSPORT_EXPORTS] = "<forwarded by ssh>/exports",
    };
    return plan->tunnel ? forwarded[what] : path_there(plan, what);
}

/*
 * ssh made it for us alone, and the source's QEMU may be another user: it may
 * come through the directory, which stays ours, to its socket.
 */
static int open_way(struct act *act, const char *path, struct err **errp)
{
    struct stat qemu, there;
    char proc[64];
    _cleanup_free_ char *dir =
        strndup(path, (size_t)(strrchr(path, '/') - path));
    (void)snprintf(proc, sizeof(proc), "/proc/%" PRIu64,
                   act_plan(act)->qemu_pid);
    if (dir == NULL) {
        return err_set(errp, -ENOMEM, path, "out of memory");
    }
    if (stat(proc, &qemu) < 0 || stat(path, &there) < 0) {
        return err_set(errp, -errno, path, "cannot be looked at: %s",
                       strerror(errno));
    }
    if (qemu.st_uid != 0 && qemu.st_uid != there.st_uid &&
        (chmod(dir, DIRECTORY_MODE) < 0 ||
         chown(path, qemu.st_uid, (gid_t)-1) < 0)) {
        return err_set(errp, -errno, path,
                       "cannot be given to QEMU's user %u: %s",
                       (unsigned)qemu.st_uid, strerror(errno));
    }
    return 0;
}

int transport_path(struct act *act, enum transport_what what, char **ret,
                   struct err **errp)
{
    const struct plan *plan = act_plan(act);
    struct qmp *qmp = vm_qmp(act_dst_vm(act));
    const char *there = path_there(plan, what);
    if (!plan->tunnel) {
        *ret = strdup(there);
        return *ret != NULL ? 0 : err_set(errp, -ENOMEM, there, "no memory");
    }
    _cleanup_free_ char *path =
        qmp != NULL ? qmp_forwarded(qmp, strrchr(there, '/') + 1) : NULL;
    if (path == NULL) {
        return err_set(errp, -ENOTCONN, plan->dst_qmp,
                       "the ssh connection that carries the tunnel is gone");
    }
    int r = open_way(act, path, errp);
    if (r == 0) {
        *ret = TAKE_PTR(path);
    }
    return r;
}

/* --- what is left of them --- */

void sockets_expect(struct act *act)
{
    act_end(act, NULL);
}

static void remove_on_spawn(struct act *act, const struct err *err,
                            const char *output)
{
    (void)output;
    if (err != NULL) {
        const struct plan *plan = act_plan(act);
        act_warn(act,
                 "whether '%s' and '%s' are left beside the destination's"
                 " monitor is not known: %s",
                 plan->stream_socket, plan->export_socket, err->desc);
    }
    act_end(act, NULL);
}

/* By a connection of its own: that of the monitor runs no command. */
static void remove_there(struct act *act)
{
    const struct plan *plan = act_plan(act);
    struct qmp_addr *addr = NULL;
    _cleanup_err_ struct err *err = NULL;
    if (qmp_addr_parse(plan->dst_qmp, &addr, &err) < 0) {
        act_end(act, err);
        return;
    }
    _cleanup_free_ char *stream = str_shell(plan->stream_socket);
    _cleanup_free_ char *exports = str_shell(plan->export_socket);
    _cleanup_free_ char *there =
        stream != NULL && exports != NULL
            ? str_printf("rm -f -- %s %s", stream, exports)
            : NULL;
    _cleanup_free_ char *command =
        there != NULL ? qmp_addr_remotely(addr, there) : NULL;
    qmp_addr_free(addr);
    if (command == NULL) {
        (void)err_set(&err, -ENOMEM, plan->dst_qmp, "out of memory");
        act_end(act, err);
        return;
    }
    act_spawn(act, command, "", REMOVE_TIMEOUT_MS, remove_on_spawn);
}

/*
 * QEMU takes its NBD server's away when that is stopped, and the stream's when
 * the source has come; when it ends, it leaves them (7.2 to 10.0).
 */
void sockets_remove(struct act *act)
{
    const struct plan *plan = act_plan(act);
    if (plan->tunnel) {
        remove_there(act);
        return;
    }
    (void)unlink(plan->stream_socket);
    (void)unlink(plan->export_socket);
    act_end(act, NULL);
}
