/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "steps/attach.h"

#include <errno.h>
#include <inttypes.h>

#include "base/err.h"
#include "base/str.h"
#include "steps/act-on.h"
#include "vm/vm.h"

static bool is_known(const char *state)
{
    return state != NULL && *state != '\0';
}

/* --- the target --- */

bool attach_is_needed(const struct plan *plan, const struct plan_disk *disk)
{
    (void)plan;
    return is_known(disk->to_state);
}

static void run_on_volume(struct act *act, const struct err *err,
                          struct volume_result *result)
{
    const struct plan_disk *disk = act_disk(act);
    const struct volume_info *info = &result->info;
    _cleanup_err_ struct err *error = err_copy(err);
    if (error == NULL && info->size != disk->target_size) {
        (void)err_set(&error, -ESTALE, disk->to,
                      "has %" PRIu64 " bytes now that it can be used, not"
                      " %" PRIu64,
                      info->size, disk->target_size);
    }
    if (error == NULL && *info->degraded != '\0' && !info->heals &&
        !act_plan(act)->allow_degraded) {
        /* What was down has not told the plan. */
        (void)err_set(&error, -ENOLINK, disk->to, "is degraded: %s",
                      info->degraded);
        err_hint(&error, "--allow-degraded moves onto it all the same");
    }
    act_end(act, error != NULL ? error : err);
}

void attach_run(struct act *act)
{
    const struct plan_disk *disk = act_disk(act);
    struct volume_request request = {.act = VOLUME_ATTACH,
                                     .identity = disk->to_identity,
                                     .state = disk->to_state,
                                     .again = act_is_repeated(act),
                                     .alone = act_plan(act)->allow_degraded};
    act_storage(act, act_volume(act, disk->index), &request, run_on_volume);
}

static void back_on_volume(struct act *act, const struct err *err,
                           struct volume_result *result)
{
    (void)result;
    act_end(act, err);
}

static void give_back(struct act *act)
{
    const struct plan_disk *disk = act_disk(act);
    struct volume_request request = {.act = VOLUME_DETACH,
                                     .identity = disk->to_identity,
                                     .state = disk->to_state};
    act_storage(act, act_volume(act, disk->index), &request, back_on_volume);
}

static void back_on_graph(struct act *act, const struct err *err,
                          const struct graph *graph)
{
    _cleanup_err_ struct err *busy = NULL;
    if (err == NULL &&
        disk_is_closed(graph, act_volume(act, act_disk(act)->index),
                       "given back", &busy) < 0) {
        err = busy;
    }
    if (err != NULL) {
        act_end(act, err);
        return;
    }
    give_back(act);
}

/* Whatever went before: what QEMU has open stays usable. */
void attach_give_back(struct act *act)
{
    if (vm_state(act_vm(act)) == VM_UP) {
        act_graph(act, back_on_graph);
    } else {
        give_back(act);
    }
}

/* --- the source --- */

bool attach_has_source(const struct plan *plan, const struct plan_disk *disk)
{
    (void)plan;
    return is_known(disk->from_state);
}

static void go_on_volume(struct act *act, const struct err *err,
                         struct volume_result *result)
{
    (void)result;
    act_set_facts(act, json_pack("{s:b}", "released", err == NULL));
    if (err != NULL) {
        _cleanup_free_ char *text = err_text(err);
        act_warn(act, "the former disk is left on the host as it is: %s",
                 text != NULL ? text : "out of memory");
    }
    act_end(act, NULL);
}

/* Who has it open is not asked: the volume refuses, then. */
void attach_let_go(struct act *act)
{
    struct volume_request request = {
        .act = VOLUME_DETACH, .identity = act_disk(act)->source_identity};
    struct volume *volume = NULL;
    if (json_is_true(act_fact(act, "prove", "unplugged")) ||
        volume_parse(act_disk(act)->from, &volume, NULL) < 0) {
        act_end(act, NULL);
        return;
    }
    act_storage(act, act_own_volume(act, volume), &request, go_on_volume);
}
