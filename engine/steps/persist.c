/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "steps/persist.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/err.h"
#include "base/str.h"
#include "run/op.h"
#include "steps/act-on.h"
#include "steps/disk.h"
#include "vm/vm.h"

enum { HOOK_TIMEOUT_MS = 120000 };

static int write_file(const char *path, const char *text, struct err **errp);
static json_t *describe_disk(const char *op, const struct plan_disk *disk);
static void hand_over(struct act *act, json_t *description);
static json_t *arguments_of(const json_t *nodes);

bool persist_is_wanted(const struct plan *plan, const struct plan_disk *disk)
{
    (void)disk;
    return *plan->emit_config != '\0' || *plan->persist_hook != '\0';
}

bool persist_in_window(const struct plan *plan, const struct plan_disk *disk)
{
    return persist_is_wanted(plan, disk) && plan->undo_window_ms != 0;
}

bool persist_at_end(const struct plan *plan, const struct plan_disk *disk)
{
    return persist_is_wanted(plan, disk) && plan->undo_window_ms == 0;
}

char *persist_absolute(const char *path)
{
    _cleanup_free_ char *cwd = path[0] != '/' ? getcwd(NULL, 0) : NULL;
    return path[0] == '/' ? strdup(path)
           : cwd != NULL  ? str_printf("%s/%s", cwd, path)
                          : NULL;
}

/*
 * After the pivot it would be too late to say so. It is written beside and
 * renamed, so the directory is what counts; renaming over /dev/stdout would
 * take that away from everybody.
 */
int persist_check_file(const char *path, struct err **errp)
{
    if (path == NULL) {
        return err_set(errp, -ENOMEM, "emit-config", "out of memory");
    }
    size_t length = (size_t)(strrchr(path, '/') - path);
    _cleanup_free_ char *parent = strndup(path, length > 0 ? length : 1);
    struct stat st;
    if (parent == NULL) {
        return err_set(errp, -ENOMEM, path, "out of memory");
    }
    if (path[length + 1] == '\0') {
        return err_set(errp, -EISDIR, path,
                       "is a directory: the description needs a file name");
    }
    if (stat(path, &st) == 0 && !S_ISREG(st.st_mode)) {
        int r = err_set(errp, S_ISDIR(st.st_mode) ? -EISDIR : -EINVAL, path,
                        S_ISDIR(st.st_mode)
                            ? "is a directory: the description needs a file"
                              " name"
                            : "is no regular file: the description cannot"
                              " take its place");
        err_hint(errp, "--persist-hook CMD gets it on standard input");
        return r;
    }
    if (stat(parent, &st) < 0 || !S_ISDIR(st.st_mode)) {
        int r = err_set(errp, -ENOENT, path, "directory '%s' does not exist",
                        parent);
        err_hint(errp, "create the directory first");
        return r;
    }
    if (faccessat(AT_FDCWD, parent, W_OK | X_OK, AT_EACCESS) < 0) {
        return err_set(errp, -errno, path, "directory '%s' is not writable",
                       parent);
    }
    return 0;
}

static void persist_on_hook(struct act *act, const struct err *err,
                            const char *output)
{
    (void)output;
    _cleanup_err_ struct err *error = err_copy(err);
    err_prefix(&error, "persist hook");
    err_hint(&error,
             "the guest runs on the %s and the %s is still"
             " there; put the hook right, then run 'qpivot recover %s'"
             " (--persist-hook CMD gives it another one)",
             act_is_returning(act) ? "source" : "target",
             act_is_returning(act) ? "target" : "source", act_op_id(act));
    act_end(act, err != NULL ? error : NULL);
}

void persist_write(struct act *act)
{
    hand_over(act, persist_description(act_op_id(act), act_plan(act)));
}

void persist_return(struct act *act)
{
    hand_over(act, persist_former(act_op_id(act), act_plan(act)));
}

/* Steals 'description'. */
static void hand_over(struct act *act, json_t *description)
{
    const struct plan *plan = act_plan(act);
    json_auto_t *json = description;
    _cleanup_free_ char *body = json_dumps(json, JSON_INDENT(2));
    _cleanup_free_ char *text = body != NULL ? str_printf("%s\n", body) : NULL;
    _cleanup_err_ struct err *err = NULL;
    if (text == NULL) {
        (void)err_set(&err, -ENOMEM, plan->emit_config, "out of memory");
    } else if (*plan->emit_config != '\0') {
        (void)write_file(plan->emit_config, text, &err);
    }
    if (err != NULL || *plan->persist_hook == '\0') {
        act_end(act, err);
        return;
    }
    act_spawn(act, plan->persist_hook, text, HOOK_TIMEOUT_MS, persist_on_hook);
}

/* The destination's owner started it: it is told where the VM is now. */
static json_t *describe_host(const char *op, const struct plan *plan)
{
    json_t *disks = json_array();
    for (unsigned i = 0; i < plan->n_disks; i++) {
        const struct plan_disk *disk = &plan->disks[i];
        (void)json_array_append_new(
            disks,
            json_pack("{s:s, s:s, s:s, s:s, s:s, s:s}", "disk", disk->disk,
                      "device", disk->device, "how", disk->how, "from",
                      disk->from, "to", disk->to, "node", disk->dst_node));
    }
    return json_pack("{s:s, s:s, s:s, s:o}", "op", op, "from", plan->qmp, "to",
                     plan->dst_qmp, "disks", disks);
}

json_t *persist_description(const char *op, const struct plan *plan)
{
    if (plan->dst_qmp != NULL && *plan->dst_qmp != '\0') {
        return describe_host(op, plan);
    }
    json_t *disks = json_array();
    for (unsigned i = 0; i < plan->n_disks; i++) {
        (void)json_array_append_new(disks, describe_disk(op, &plan->disks[i]));
    }
    return json_pack("{s:s, s:o}", "op", op, "disks", disks);
}

/*
 * The nodes are named as those of the source were, so that the owner's own
 * -device and filter lines need no change; QEMU's '#' names cannot be given.
 */
static json_t *describe_disk(const char *op, const struct plan_disk *disk)
{
    struct name target = name_of(op, disk->index, NAME_TARGET);
    struct name file = name_of(op, disk->index, NAME_FILE);
    struct name key = name_of(op, disk->index, NAME_KEY);
    bool own = disk->active[0] != '#';
    bool own_file = own && disk->protocol[0] != '#' &&
                    !str_eq(disk->protocol, disk->active);
    json_t *nodes = disk_blockdevs(disk, own_file ? disk->protocol : file.text,
                                   own ? disk->active : target.text);
    json_t *argv = arguments_of(nodes), *objects = json_array();
    if (disk->secret) {
        /* The key itself never leaves QEMU and its storage: a file of it. */
        (void)json_array_append_new(
            objects, json_pack("{s:s, s:s, s:s}", "qom-type", "secret", "id",
                               key.text, "format", "base64"));
    }
    json_t *json = json_pack(
        "{s:s, s:s, s:s, s:s, s:s, s:o, s:o, s:o}", "disk", disk->disk,
        "device", disk->device, "drive", disk->drive, "uri", disk->to, "format",
        disk->format, "objects", objects, "blockdev", nodes, "argv", argv);
    if (*disk->legacy_name != '\0') {
        (void)json_object_set_new(json, "file", json_string(disk->legacy_name));
    }
    return json;
}

static json_t *arguments_of(const json_t *nodes)
{
    json_t *argv = json_array();
    size_t i;
    json_t *node;
    json_array_foreach(nodes, i, node) {
        _cleanup_free_ char *text = json_dumps(node, JSON_COMPACT);
        (void)json_array_append_new(argv, json_string("-blockdev"));
        (void)json_array_append_new(argv, json_string(text ? text : ""));
    }
    return argv;
}

json_t *persist_former(const char *op, const struct plan *plan)
{
    json_t *disks = json_array();
    for (unsigned i = 0; i < plan->n_disks; i++) {
        const struct plan_disk *disk = &plan->disks[i];
        json_t *json =
            json_pack("{s:s, s:s, s:s, s:s, s:s, s:[]}", "disk", disk->disk,
                      "device", disk->device, "drive", disk->drive, "uri",
                      disk->from, "format", disk->from_format, "objects");
        if (json_is_array(disk->from_blockdevs)) {
            (void)json_object_set(json, "blockdev", disk->from_blockdevs);
            (void)json_object_set_new(json, "argv",
                                      arguments_of(disk->from_blockdevs));
        }
        (void)json_array_append_new(disks, json);
    }
    return json_pack("{s:s, s:b, s:o}", "op", op, "returned", 1, "disks",
                     disks);
}

static int write_file(const char *path, const char *text, struct err **errp)
{
    _cleanup_free_ char *temp = str_printf("%s.qpv-new", path);
    _cleanup_close_ int fd =
        temp != NULL
            ? open(temp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600)
            : -1;
    size_t len = strlen(text);
    /* A few KiB, once, while nothing waits: not worth a worker's detour. */
    if (fd < 0 || write(fd, text, len) != (ssize_t)len || fsync(fd) < 0 ||
        rename(temp, path) < 0) {
        int code = errno != 0 ? -errno : -EIO;
        if (fd >= 0) {
            (void)unlink(temp);
        }
        (void)err_set(errp, code, path, "cannot be written: %s",
                      strerror(-code));
        err_hint(errp, "the guest runs on the target and the source is still"
                       " there; 'qpivot recover OP --emit-config FILE' writes"
                       " it elsewhere");
        return code;
    }
    return 0;
}

/* --- power --- */

bool power_is_held(const struct plan *plan, const struct plan_disk *disk)
{
    (void)disk;
    return plan->hold_shutdown;
}

static json_t *set_action(const char *action)
{
    return json_pack("{s:s, s:{s:s}}", "execute", "set-action", "arguments",
                     "shutdown", action);
}

json_t *power_hold_command(const char *op, const struct plan *plan,
                           const struct plan_disk *disk)
{
    (void)op;
    (void)plan;
    (void)disk;
    return set_action("pause");
}

json_t *power_release_command(const char *op, const struct plan *plan,
                              const struct plan_disk *disk)
{
    (void)op;
    (void)plan;
    (void)disk;
    return set_action("poweroff");
}

void power_hold(struct act *act)
{
    act_command(act, NULL);
}

void power_release(struct act *act)
{
    /* Also the undo of power_hold(), whose own command is the other one. */
    act_qmp(act, "set-action", json_pack("{s:s}", "shutdown", "poweroff"),
            NULL);
}

void power_mark(struct act *act)
{
    act_end(act, NULL);
}

static void power_on_quit(struct act *act, const struct err *err,
                          json_t *result)
{
    (void)err; /* it may be gone before it answers */
    (void)result;
    act_end(act, NULL);
}

static void power_on_status(struct act *act, const struct err *err,
                            json_t *result)
{
    const char *status = json_string_value(json_object_get(result, "status"));
    if (err == NULL && str_eq(status, "shutdown")) {
        act_warn(act, "the guest has powered off meanwhile: QEMU quits now");
        act_qmp(act, "quit", NULL, power_on_quit);
        return;
    }
    act_end(act, NULL);
}

void power_follow(struct act *act)
{
    act_qmp(act, "query-status", NULL, power_on_status);
}
