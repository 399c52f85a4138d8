/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Which QEMU rules this rests on, tried on 7.2 and 10.0: a bitmap can be
 * merged into one of another node by a transaction; a persistent one is in the
 * image when its node is closed, so that nobody has to serve it (an NBD export
 * of a disk in an iothread ends Debian's 7.2 when its client leaves).
 */
#include "steps/verify.h"

#include <errno.h>

#include "base/err.h"
#include "base/str.h"
#include "steps/act-on.h"
#include "steps/hold.h"
#include "steps/verify-private.h"

enum {
    ROUNDS_MAX = 12,
    ROUNDS_DIFFERING = 3, /* before the guest is stopped for them */
    CLEAN_TRIES = 3,
};

static void rest_end(struct act *act);
static void round_end(struct act *act);
static void clean_look(struct act *act);

bool verify_is_wanted(const struct plan *plan, const struct plan_disk *disk)
{
    (void)disk;
    return str_eq(plan->verify, "sample") || str_eq(plan->verify, "full");
}

struct verifying *verifying_of(struct act *act)
{
    return act_scratch(act, sizeof(struct verifying));
}

struct verifying *verify_begins(struct act *act)
{
    struct verifying *v = verifying_of(act);
    _cleanup_err_ struct err *err = NULL;
    if (v != NULL) {
        /* Begun anew, when the connection was broken. */
        *v = (struct verifying){.begun_ms = act_now_ms(act)};
        return v;
    }
    (void)err_set(&err, -ENOMEM, "verify", "out of memory");
    act_end(act, err);
    return NULL;
}

const struct plan_disk *verify_disk(struct act *act)
{
    const struct plan_disk *disk = act_disk(act);
    return disk != NULL ? disk : &act_plan(act)->disks[verifying_of(act)->disk];
}

struct name verify_dirty_name(const struct act *act, unsigned disk,
                              unsigned round)
{
    return name_of(act_op_id(act), disk,
                   round % 2 == 0 ? NAME_DIRTY0 : NAME_DIRTY1);
}

/* --- the scratch image --- */

char *verify_scratch_path(const struct plan *plan, const struct plan_disk *disk)
{
    return verify_scratch_in(plan->verify_dir, disk->index);
}

char *verify_scratch_in(const char *dir, unsigned disk)
{
    return str_printf("%s/d%u.qcow2", dir, disk);
}

json_t *verify_scratch_node(const char *op, const struct plan *plan,
                            const struct plan_disk *disk)
{
    struct name name = name_of(op, disk->index, NAME_SCRATCH);
    _cleanup_free_ char *path = verify_scratch_path(plan, disk);
    return json_pack("{s:s, s:s, s:{s:s, s:s*}}", "driver", "qcow2",
                     "node-name", name.text, "file", "driver", "file",
                     "filename", path);
}

json_t *verify_scratch_name(struct act *act)
{
    struct name name =
        name_of(act_op_id(act), verify_disk(act)->index, NAME_SCRATCH);
    return json_pack("{s:s}", "node-name", name.text);
}

static void scratch_on_end(struct act *act, const struct err *err,
                           const struct check_result *result)
{
    (void)result;
    act_end(act, err);
}

static void scratch_act(struct act *act, enum check_act what)
{
    const struct plan *plan = act_plan(act);
    const struct plan_disk *disk = act_disk(act);
    _cleanup_free_ char *path = verify_scratch_path(plan, disk);
    struct check_request request = {.act = what,
                                    .dir = plan->verify_dir,
                                    .scratch = path,
                                    .owner = plan->qemu_uid,
                                    .source = disk->from,
                                    .source_format = disk->from_format,
                                    .target = disk->to,
                                    .target_format = disk->format,
                                    .size = disk->size};
    act_check(act, &request, NULL, scratch_on_end);
}

void verify_scratch(struct act *act)
{
    scratch_act(act, CHECK_PREPARE);
}

void verify_scratch_remove(struct act *act)
{
    scratch_act(act, CHECK_REMOVE);
}

json_t *verify_try_command(const char *op, const struct plan *plan,
                           const struct plan_disk *disk)
{
    struct name name = name_of(op, disk->index, NAME_SCRATCH);
    return json_pack("[{s:s, s:o}, {s:s, s:{s:s}}]", "execute", "blockdev-add",
                     "arguments", verify_scratch_node(op, plan, disk),
                     "execute", "blockdev-del", "arguments", "node-name",
                     name.text);
}

static void try_on_open(struct act *act, const struct err *err, json_t *result)
{
    (void)result;
    if (err != NULL) {
        _cleanup_err_ struct err *error = err_copy(err);
        err_hint(&error, "QEMU hands over there what the guest rewrites while"
                         " --verify reads: its user must reach that file");
        act_end(act, error);
    } else {
        act_qmp(act, "blockdev-del", verify_scratch_name(act), NULL);
    }
}

static void try_open(struct act *act)
{
    act_qmp(act, "blockdev-add",
            verify_scratch_node(act_op_id(act), act_plan(act), act_disk(act)),
            try_on_open);
}

void verify_try(struct act *act)
{
    if (verify_begins(act) != NULL) {
        verify_clean_then(act, try_open);
    }
}

/* --- while the guest runs --- */

json_t *verify_command(const char *op, const struct plan *plan,
                       const struct plan_disk *disk)
{
    (void)disk;
    json_t *commands = json_array();
    for (unsigned i = 0; i < plan->n_disks; i++) {
        struct name bitmap = name_of(op, i, NAME_DIRTY0);
        (void)json_array_append_new(
            commands, json_pack("{s:s, s:{s:s, s:s, s:i}}", "execute",
                                "block-dirty-bitmap-add", "arguments", "node",
                                plan->disks[i].active, "name", bitmap.text,
                                "granularity", (int)CHECK_GRANULARITY));
    }
    return commands;
}

static void round_begin(struct act *act)
{
    struct verifying *v = verifying_of(act);
    v->disk = 0;
    v->looked = v->differing = 0;
    v->took_ms = 0;
    v->then = round_end;
    verify_disk_begin(act);
}

void verify_run(struct act *act)
{
    if (verify_begins(act) != NULL) {
        verify_clean_then(act, round_begin);
    }
}

/*
 * The next one has as much to read as the guest has rewritten during this one.
 * When that took a third of the freeze limit, the rest fits.
 */
static void round_end(struct act *act)
{
    struct verifying *v = verifying_of(act);
    const struct plan *plan = act_plan(act);
    bool fits = v->took_ms <= plan->freeze_limit_ms / 3;
    bool unclear = v->differing > 0 && v->round + 1 < ROUNDS_DIFFERING;
    _cleanup_err_ struct err *err = NULL;
    json_t *facts = verify_facts(act);
    (void)json_object_set_new(facts, "round", json_integer(v->round));
    (void)json_object_set_new(
        facts, "seconds",
        json_real((double)(act_now_ms(act) - v->begun_ms) / 1000.0));
    if (fits && !unclear) {
        act_end(act, NULL);
    } else if (v->round + 1 < ROUNDS_MAX) {
        v->round++;
        round_begin(act);
    } else {
        (void)err_set(&err, -ETIMEDOUT, "verify",
                      "the guest rewrites faster than both sides are read, or"
                      " much differs for good: %llu bytes of the last pass"
                      " took %llu ms, and %llu differed",
                      (unsigned long long)v->looked,
                      (unsigned long long)v->took_ms,
                      (unsigned long long)v->differing);
        err_hint(&err, "what is left must be read within a third of"
                       " --freeze-limit: give a longer one, or --verify"
                       " sample");
        act_end(act, err);
    }
}

static void undo_end(struct act *act)
{
    act_end(act, NULL);
}

void verify_clean(struct act *act)
{
    if (verify_begins(act) != NULL) {
        verify_clean_then(act, undo_end);
    }
}

/* --- while it stands still --- */

json_t *verify_clean_command(const char *op, const struct plan *plan,
                             const struct plan_disk *disk)
{
    (void)disk;
    json_t *commands = json_array();
    for (unsigned i = 0; i < plan->n_disks; i++) {
        struct name bitmap = name_of(op, i, NAME_DIRTY0);
        (void)json_array_append_new(
            commands,
            json_pack("{s:s, s:{s:s, s:s}}", "execute",
                      "block-dirty-bitmap-remove", "arguments", "node",
                      plan->disks[i].active, "name", bitmap.text));
    }
    return commands;
}

static void rest_begin(struct act *act)
{
    struct verifying *v = verifying_of(act);
    const json_t *round = act_fact(act, "verify", "round");
    v->rest = true;
    v->round = (unsigned)json_integer_value(round);
    v->then = rest_end;
    verify_disk_begin(act);
}

static void rest_on_stopped(struct act *act, const struct err *err,
                            json_t *result)
{
    (void)result;
    if (err != NULL) {
        act_end(act, err);
    } else {
        rest_begin(act);
    }
}

/* An engine before this one has died, and its guard has let the guest go. */
static void rest_on_status(struct act *act, const struct err *err,
                           json_t *result)
{
    _cleanup_err_ struct err *error = err_copy(err);
    if (error == NULL && !guest_runs(result)) {
        rest_begin(act);
        return;
    }
    if (error == NULL && !guest_owes_cont(act)) {
        (void)err_set(&error, -EAGAIN, "verify",
                      "somebody has let the paused guest go on");
    }
    if (error == NULL) {
        (void)guest_guard(act, &error);
    }
    if (error != NULL) {
        act_end(act, error);
    } else {
        act_qmp(act, "stop", NULL, rest_on_stopped);
    }
}

void verify_rest(struct act *act)
{
    if (verify_begins(act) != NULL) {
        act_qmp(act, "query-status", NULL, rest_on_status);
    }
}

/* If it did not stand still all the time, what was read says nothing. */
static void rest_on_still(struct act *act, const struct err *err,
                          json_t *result)
{
    _cleanup_err_ struct err *error = err_copy(err);
    if (error == NULL && guest_runs(result)) {
        (void)err_set(&error, -EAGAIN, "verify",
                      "the guest did not stand still while the rest was"
                      " compared");
        err_hint(&error, "give a longer --freeze-limit");
    }
    act_end(act, error);
}

static void rest_end(struct act *act)
{
    act_qmp(act, "query-status", NULL, rest_on_still);
}

/* --- no bitmap and no scratch node is left --- */

static void clean_on_reply(struct act *act, const struct err *err,
                           json_t *result)
{
    struct verifying *v = verifying_of(act);
    (void)result;
    if (err != NULL && (err->code != -EREMOTEIO || v->tries++ > CLEAN_TRIES)) {
        act_end(act, err);
    } else {
        clean_look(act);
    }
}

static bool has_bitmap(const struct graph_node *node, const char *name)
{
    for (unsigned i = 0; node != NULL && i < node->n_bitmaps; i++) {
        if (str_eq(node->bitmaps[i].name, name)) {
            return true;
        }
    }
    return false;
}

/* Whether it had something to take away, and does. */
static bool clean_disk(struct act *act, const struct graph *graph,
                       const struct plan_disk *disk)
{
    struct name scratch = name_of(act_op_id(act), disk->index, NAME_SCRATCH);
    const struct graph_node *node = graph_find_node(graph, disk->active);
    if (graph_find_node(graph, scratch.text) != NULL) {
        act_qmp(act, "blockdev-del",
                json_pack("{s:s}", "node-name", scratch.text), clean_on_reply);
        return true;
    }
    for (unsigned round = 0; round < 2; round++) {
        struct name name = verify_dirty_name(act, disk->index, round);
        if (has_bitmap(node, name.text)) {
            act_qmp(act, "block-dirty-bitmap-remove",
                    json_pack("{s:s, s:s}", "node", disk->active, "name",
                              name.text),
                    clean_on_reply);
            return true;
        }
    }
    return false;
}

static void clean_on_graph(struct act *act, const struct err *err,
                           const struct graph *graph)
{
    const struct plan *plan = act_plan(act);
    if (err != NULL) {
        act_end(act, err);
        return;
    }
    for (unsigned i = 0; i < plan->n_disks; i++) {
        bool mine = act_disk(act) == NULL || act_disk(act)->index == i;
        if (mine && clean_disk(act, graph, &plan->disks[i])) {
            return;
        }
    }
    verifying_of(act)->then(act);
}

static void clean_look(struct act *act)
{
    act_graph(act, clean_on_graph);
}

void verify_clean_then(struct act *act, step_fn *then)
{
    verifying_of(act)->then = then;
    clean_look(act);
}
