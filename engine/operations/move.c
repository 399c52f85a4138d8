/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "operations/move.h"

#include <errno.h>
#include <string.h>

#include "base/err.h"
#include "operations/move-check.h"
#include "operations/move-plan.h"
#include "operations/move-window.h"
#include "operations/shareable.h"
#include "run/claim.h"
#include "steps/alive.h"
#include "steps/attach.h"
#include "steps/commit.h"
#include "steps/disk.h"
#include "steps/hold.h"
#include "steps/mirror.h"
#include "steps/overlay.h"
#include "steps/persist.h"
#include "steps/pivot.h"
#include "steps/source.h"
#include "steps/twin.h"
#include "steps/verify.h"
#include "vm/graph.h"

enum { VERSION = 1 };

/* clang-format off */
static const struct step move_steps[] = {
    {"power", "remember that a guest may power off meanwhile",
     power_mark, power_follow, NULL, power_is_held, NULL, STEP_TIDY},
    {"claim", "claim the VM for this operation, inside QEMU",
     claim_take, claim_give, claim_probe, NULL, claim_command, 0},
    {"power-hold", "let a guest's power-off pause the VM, not end QEMU",
     power_hold, power_release, NULL, power_is_held, power_hold_command, 0},
    {"overlay-create", "make a file for what the guest writes meanwhile",
     overlay_create, overlay_remove, NULL, overlay_is_used, NULL,
     STEP_PER_DISK | STEP_STORAGE},
    {"overlay-file", "open that file in QEMU",
     overlay_file_add, overlay_file_del, overlay_file_probe, overlay_is_used,
     overlay_file_command, STEP_PER_DISK},
    {"overlay-format", "write the overlay's metadata",
     disk_format, disk_format_undo, NULL, overlay_is_used,
     overlay_format_command, STEP_PER_DISK | STEP_LONG},
    {"overlay-node", "open the overlay",
     overlay_node_add, overlay_node_del, overlay_node_probe, overlay_is_used,
     overlay_node_command, STEP_PER_DISK},
    {"freeze", "let the guest write to the overlay: its image stands still",
     overlay_freeze, overlay_freeze_undo, NULL, overlay_is_used,
     overlay_freeze_command, STEP_PER_DISK | STEP_OUTLIVES | STEP_LONG_UNDO},
    {"target-create", "make the target volume under a name of ours",
     disk_create, disk_remove, NULL, disk_is_created, NULL,
     STEP_PER_DISK | STEP_STORAGE},
    {"target-publish", "give the target volume its name, unless it is taken",
     disk_publish, NULL, NULL, disk_is_created, NULL,
     STEP_PER_DISK | STEP_STORAGE},
    {"target-attach", "make the target volume usable on this host",
     attach_run, attach_give_back, NULL, attach_is_needed, NULL,
     STEP_PER_DISK | STEP_STORAGE},
    {"base-copy", "copy the image as it is, with all that is in it",
     overlay_copy, overlay_copy_undo, NULL, overlay_is_used, NULL,
     STEP_PER_DISK | STEP_STORAGE | STEP_LONG},
    {"target-secret", "give QEMU the secret that opens the target",
     disk_secret_add, disk_secret_del, NULL, disk_has_secret,
     disk_secret_command, STEP_PER_DISK},
    {"target-file", "open the target volume in QEMU",
     disk_file_add, disk_file_del, disk_file_probe, disk_has_file_node,
     disk_file_command, STEP_PER_DISK},
    {"target-format", "write the image's metadata",
     disk_format, disk_format_undo, NULL, disk_is_formatted,
     disk_format_command, STEP_PER_DISK | STEP_LONG},
    {"target-file-drop", "close it again: drive-mirror opens it itself",
     disk_file_drop, NULL, NULL, disk_file_is_dropped, NULL, STEP_PER_DISK},
    {"target-image", "open the larger image on the target volume",
     disk_image_add, disk_image_del, disk_image_probe, disk_has_image,
     disk_image_command, STEP_PER_DISK},
    {"target-node", "open what the guest will use",
     disk_node_add, disk_node_del, disk_node_probe, disk_has_node,
     disk_node_command, STEP_PER_DISK},
    {"landing-create", "make a file for an overlay of the target",
     landing_create, landing_remove, NULL, overlay_is_used, NULL,
     STEP_PER_DISK | STEP_STORAGE},
    {"landing-file", "open that file in QEMU",
     landing_file_add, landing_file_del, landing_file_probe, overlay_is_used,
     landing_file_command, STEP_PER_DISK},
    {"landing-format", "write that overlay's metadata",
     disk_format, disk_format_undo, NULL, overlay_is_used,
     landing_format_command, STEP_PER_DISK | STEP_LONG},
    {"landing-node", "open it above the target",
     landing_node_add, landing_node_del, landing_node_probe, overlay_is_used,
     landing_node_command, STEP_PER_DISK},
    {"target-asked", "see that the target answers, and what it is",
     alive_learn, alive_return, NULL, NULL, NULL,
     STEP_PER_DISK | STEP_STORAGE},
    {"verify-scratch", "make the image that QEMU hands a bitmap over in",
     verify_scratch, verify_scratch_remove, NULL, verify_is_wanted, NULL,
     STEP_PER_DISK | STEP_STORAGE},
    {"verify-try", "see whether QEMU can use that image",
     verify_try, verify_clean, NULL, verify_is_wanted, verify_try_command,
     STEP_PER_DISK},
    {"latency-look", "see how long the guest's writes take",
     twin_look_latency, NULL, NULL, move_has_window, NULL, STEP_LOOKS},
    {"mirror", "start to mirror the disk onto the target",
     mirror_start, mirror_cancel, mirror_probe, NULL, mirror_command,
     STEP_PER_DISK},
    {"mirror-ready", "copy until source and target are equal",
     mirror_ready, NULL, NULL, NULL, NULL,
     STEP_PER_DISK | STEP_LONG | STEP_LOOKS},
    {"verify", "compare the targets, while the guest runs",
     verify_run, verify_clean, NULL, verify_is_wanted, verify_command,
     STEP_LONG},
    {"target-alive", "ask the target once more, right before the pivot",
     alive_prove, NULL, NULL, NULL, NULL,
     STEP_PER_DISK | STEP_STORAGE | STEP_LOOKS},
    {"guest-look", "see whether the guest runs",
     guest_look, NULL, NULL, guest_is_held, NULL, STEP_REPEATS},
    {"guest-stop", "hold the guest while both sides are equal",
     guest_stop, guest_stop_undo, guest_stop_probe, guest_is_held,
     guest_stop_command, 0},
    {"verify-rest", "compare what the guest has rewritten",
     verify_rest, NULL, NULL, verify_is_wanted, NULL, 0},
    {"verify-clean", "take the bitmaps of that away",
     verify_clean, NULL, NULL, verify_is_wanted, verify_clean_command, 0},
    {"pivot", "let the guest use the targets, all disks together",
     pivot_run, pivot_undo, pivot_probe, NULL, pivot_command,
     STEP_PIVOT | STEP_LONG},
    {"prove", "prove from QEMU's graph that each disk is its target",
     pivot_prove, NULL, NULL, NULL, NULL, STEP_PER_DISK | STEP_LOOKS},
    {"base-commit", "write what the target's overlay holds to the target",
     commit_run, NULL, NULL, overlay_is_used, commit_command,
     STEP_PER_DISK | STEP_LONG},
    {"base-prove", "prove from QEMU's graph that each disk is its target",
     pivot_prove, NULL, NULL, overlay_is_used, NULL,
     STEP_PER_DISK | STEP_LOOKS},
    {"landing-close", "close the target's overlay",
     landing_node_del, NULL, NULL, overlay_is_used, NULL,
     STEP_PER_DISK | STEP_TIDY},
    {"landing-file-close", "close its file",
     landing_file_del, NULL, NULL, overlay_is_used, NULL,
     STEP_PER_DISK | STEP_TIDY},
    {"landing-remove", "remove its file",
     landing_remove, NULL, NULL, overlay_is_used, NULL,
     STEP_PER_DISK | STEP_STORAGE},
    {"twin", "mirror back onto the former disk what is written from now on",
     twin_start, twin_drop, twin_probe, move_has_window, twin_command,
     STEP_PER_DISK | STEP_TIDY | STEP_SPARE},
    {"guest-cont", "let the guest go on",
     guest_cont, NULL, NULL, guest_is_held, guest_cont_command, STEP_TIDY},
    {"window-persist", "hand over the new description of the VM",
     persist_write, NULL, NULL, persist_in_window, NULL, STEP_STORAGE},
    {"window", "keep the way back open: see 'qpivot undo'",
     twin_window, NULL, NULL, move_has_window, NULL,
     STEP_LONG | STEP_TIDY | STEP_WINDOW},
    {"drop-look", "see whether the guest runs",
     guest_look, NULL, NULL, move_has_window, NULL, STEP_REPEATS | STEP_TIDY},
    {"drop-stop", "hold the guest: no write may be on its way to both",
     guest_stop, NULL, guest_stop_probe, move_has_window, guest_stop_command,
     STEP_TIDY},
    {"twin-drop", "end the mirror back",
     twin_drop, NULL, NULL, move_has_window, twin_drop_command,
     STEP_PER_DISK | STEP_TIDY},
    {"drop-cont", "let the guest go on",
     guest_cont, NULL, NULL, move_has_window, guest_cont_command, STEP_TIDY},
    {"drop-prove", "prove once more that each disk is its target",
     pivot_prove, NULL, NULL, move_has_window, NULL,
     STEP_PER_DISK | STEP_LOOKS},
    {"target-reopen", "take back what was set for the copy only",
     disk_reopen, NULL, NULL, disk_is_reopened, disk_reopen_command,
     STEP_PER_DISK | STEP_TIDY},
    {"measure", "measure what the target holds",
     move_measure, NULL, NULL, NULL, NULL,
     STEP_PER_DISK | STEP_STORAGE | STEP_LOOKS},
    {"persist", "hand over the new description of the VM",
     persist_write, NULL, NULL, persist_at_end, NULL, STEP_STORAGE},
    {"verify-end", "remove that image again",
     verify_scratch_remove, NULL, NULL, verify_is_wanted, NULL,
     STEP_PER_DISK | STEP_STORAGE},
    {"mirror-dismiss", "dismiss the concluded job",
     mirror_dismiss, NULL, NULL, NULL, mirror_dismiss_command,
     STEP_PER_DISK | STEP_TIDY},
    {"secret-drop", "take the secret back: it was for the opening",
     disk_secret_del, NULL, NULL, disk_has_secret, disk_secret_drop_command,
     STEP_PER_DISK | STEP_TIDY},
    {"overlay-close", "close the former disk's overlay",
     overlay_node_del, NULL, NULL, overlay_is_used, NULL,
     STEP_PER_DISK | STEP_TIDY},
    {"overlay-file-close", "close its file",
     overlay_file_del, NULL, NULL, overlay_is_used, NULL,
     STEP_PER_DISK | STEP_TIDY},
    {"overlay-remove", "remove its file",
     overlay_remove, NULL, NULL, overlay_is_used, NULL,
     STEP_PER_DISK | STEP_STORAGE},
    {"source-detach", "close the former disk in QEMU",
     source_detach, NULL, NULL, NULL, source_detach_command,
     STEP_PER_DISK | STEP_TIDY},
    {"source-release", "let go of the former disk on this host",
     attach_let_go, NULL, NULL, attach_has_source, NULL,
     STEP_PER_DISK | STEP_STORAGE},
    {"source-remove", "remove the former disk from its storage",
     source_remove, NULL, NULL, source_is_removed, NULL, STEP_PER_DISK},
    {"power-release", "let a guest's power-off end QEMU again",
     power_release, NULL, NULL, power_is_held, power_release_command,
     STEP_TIDY},
    {"release", "give the claim back",
     claim_give, NULL, NULL, NULL, claim_give_command, STEP_TIDY},
    {"power-follow", "end QEMU if the guest has powered off meanwhile",
     power_follow, NULL, NULL, power_is_held, NULL, STEP_TIDY},

    /* The way back from within the window: see run/op-return.c. */
    {"return-check", "see that each former disk has followed",
     twin_check, NULL, NULL, NULL, NULL, STEP_RETURN | STEP_LOOKS},
    {"return-look", "see whether the guest runs",
     guest_look, NULL, NULL, NULL, NULL, STEP_RETURN | STEP_REPEATS},
    {"return-stop", "hold the guest",
     guest_stop, guest_stop_undo, guest_stop_probe, NULL, guest_stop_command,
     STEP_RETURN},
    {"return", "let the guest use the former disks, all together",
     pivot_run, pivot_undo, pivot_probe, NULL, NULL,
     STEP_RETURN | STEP_PIVOT | STEP_LONG},
    {"return-prove", "prove from QEMU's graph that each disk is the former one",
     pivot_prove, NULL, NULL, NULL, NULL,
     STEP_RETURN | STEP_PER_DISK | STEP_LOOKS},
    {"return-cont", "let the guest go on",
     guest_cont, NULL, NULL, NULL, guest_cont_command,
     STEP_RETURN | STEP_TIDY},
    {"return-persist", "hand over the former description of the VM",
     persist_return, NULL, NULL, persist_is_wanted, NULL,
     STEP_RETURN | STEP_STORAGE},
    {"return-mirror", "dismiss the concluded job",
     mirror_dismiss, NULL, NULL, NULL, mirror_dismiss_command,
     STEP_RETURN | STEP_PER_DISK | STEP_TIDY},
    {"return-node", "close what the guest has used",
     disk_node_del, NULL, NULL, disk_has_node, NULL,
     STEP_RETURN | STEP_PER_DISK | STEP_TIDY},
    {"return-image", "close the larger image",
     disk_image_del, NULL, NULL, disk_has_image, NULL,
     STEP_RETURN | STEP_PER_DISK | STEP_TIDY},
    {"return-file", "close the target volume in QEMU",
     disk_file_del, NULL, NULL, disk_has_file_node, NULL,
     STEP_RETURN | STEP_PER_DISK | STEP_TIDY},
    {"return-secret", "take the target's secret back",
     disk_secret_del, NULL, NULL, disk_has_secret, NULL,
     STEP_RETURN | STEP_PER_DISK | STEP_TIDY},
    {"return-attach", "give back what made the target usable here",
     attach_give_back, NULL, NULL, attach_is_needed, NULL,
     STEP_RETURN | STEP_PER_DISK | STEP_STORAGE},
    {"return-remove", "remove the target volume, which we had made",
     disk_remove, NULL, NULL, disk_is_created, NULL,
     STEP_RETURN | STEP_PER_DISK | STEP_STORAGE},
    /* Last: without a journal it alone tells that the guest has gone back. */
    {"return-twin", "dismiss the concluded mirror back",
     twin_drop, NULL, NULL, NULL, NULL,
     STEP_RETURN | STEP_PER_DISK | STEP_TIDY},
    {"return-power", "let a guest's power-off end QEMU again",
     power_release, NULL, NULL, power_is_held, power_release_command,
     STEP_RETURN | STEP_TIDY},
    {"return-release", "give the claim back",
     claim_give, NULL, NULL, NULL, claim_give_command,
     STEP_RETURN | STEP_TIDY},
    {"return-follow", "end QEMU if the guest has powered off meanwhile",
     power_follow, NULL, NULL, power_is_held, NULL, STEP_RETURN | STEP_TIDY},
};

static const struct step move_plan_steps[] = {
    {"look-claim", "see whether another operation works on this VM",
     claim_check, NULL, NULL, NULL, NULL, 0},
    {"look-graph", "read the block graph",
     move_look_graph, NULL, NULL, NULL, NULL, 0},
    {"look-shareable", "see whether others may write to the disk",
     shareable_look, NULL, NULL, shareable_is_suspected, NULL, STEP_PER_DISK},
    {"look-source", "look at the source's volume",
     move_look_source, NULL, NULL, NULL, NULL, STEP_PER_DISK | STEP_STORAGE},
    {"look-target", "look at the target's volume",
     move_look_target, NULL, NULL, NULL, NULL, STEP_PER_DISK | STEP_STORAGE},
    {"look-secret", "see whether QEMU needs a secret for the target",
     move_look_secret, NULL, NULL, NULL, NULL, STEP_PER_DISK | STEP_STORAGE},
};
/* clang-format on */

static json_t *move_result(struct op *op);
static void move_on_event(struct op *op, const char *name, const json_t *event);

const struct operation move_operation = {
    .kind = "move",
    .version = VERSION,
    .plan_steps = move_plan_steps,
    .n_plan_steps = ARRAY_SIZE(move_plan_steps),
    .steps = move_steps,
    .n_steps = ARRAY_SIZE(move_steps),
    .decide = move_decide,
    .result = move_result,
    .event = move_on_event,
    .request = move_on_request,
    .may_return = move_may_return,
    .total = move_total,
    .parked = move_parked,
};

int move_start(const struct op_host *host,
               const struct qpivot_move_options *options,
               const struct qpivot_callbacks *callbacks, struct op **ret,
               struct err **errp)
{
    struct plan *plan = NULL;
    struct move_request *request = NULL;
    int r = move_request_new(options, &plan, &request, errp);
    if (r < 0) {
        return r;
    }
    r = op_new(host, &move_operation, plan, request, move_request_free,
               callbacks, ret, errp);
    if (r < 0) {
        move_request_free(request);
    } else if ((options->flags & QPIVOT_DRY_RUN) != 0) {
        op_set_dry_run(*ret);
    }
    return r;
}

/* What was not found out stays out of the result. */
static bool set_fact(json_t *json, const struct op *op, const char *step,
                     int disk, const char *key)
{
    const json_t *fact = op_fact(op, step, disk, key);
    return fact != NULL &&
           json_object_set_new(json, key, json_deep_copy(fact)) == 0;
}

/* What --verify has read, and the guest did not wait for but the last of. */
static void add_verified(json_t *json, const struct op *op, unsigned index)
{
    const json_t *disks = op_fact(op, "verify", ALL_DISKS, "disks");
    const json_t *rest = op_fact(op, "verify-rest", ALL_DISKS, "disks");
    const json_t *round = op_fact(op, "verify", ALL_DISKS, "round");
    if (disks == NULL) {
        return;
    }
    (void)json_object_set(
        json, "verified_bytes",
        json_object_get(json_array_get(disks, index), "verified_bytes"));
    (void)json_object_set_new(json, "verify_passes",
                              json_integer(json_integer_value(round) + 2));
    (void)json_object_set(
        json, "rechecked_bytes",
        json_object_get(json_array_get(rest, index), "rechecked"));
}

static json_t *move_result(struct op *op)
{
    const struct plan *plan = op_plan(op);
    json_t *disks = json_array();
    for (unsigned i = 0; i < plan->n_disks; i++) {
        const struct plan_disk *disk = &plan->disks[i];
        int index = (int)i;
        json_t *json = json_pack("{s:s, s:s, s:s}", "disk", disk->disk, "from",
                                 disk->from, "to", disk->to);
        const json_t *after = op_fact(op, "target-reopen", index, "after");
        const char *proof =
            plan_disk_copies_base(disk) ? "base-prove" : "prove";
        after = after != NULL ? after : op_fact(op, proof, index, "after");
        (void)set_fact(json, op, "mirror-ready", index, "bytes_copied");
        if (!set_fact(json, op, "measure", index, "bytes_written")) {
            /* What was there before is written over, whole. */
            const json_t *copied =
                op_fact(op, "mirror-ready", index, "bytes_copied");
            (void)json_object_set_new(json, "bytes_written",
                                      json_deep_copy(copied));
        }
        (void)set_fact(json, op, "mirror-ready", index, "seconds");
        (void)set_fact(json, op, "source-release", index, "released");
        (void)set_fact(json, op, "measure", index, "degraded");
        if (disk->shim) {
            (void)json_object_set_new(
                json, "grows_to", json_integer((json_int_t)disk->target_size));
        }
        move_add_base(op, disk, json);
        (void)json_object_set_new(json, "verify", json_string(plan->verify));
        add_verified(json, op, i);
        move_add_latency(op, disk, json);
        if (after != NULL) {
            (void)json_object_set_new(json, "differences",
                                      graph_differences(disk->before, after));
        }
        (void)json_array_append_new(disks, json);
    }
    return disks;
}

/* Only what ends or endangers a move; the rest is the guest's own affair. */
static void move_on_event(struct op *op, const char *name, const json_t *event)
{
    const json_t *data = json_object_get(event, "data");
    if (strcmp(name, "DEVICE_DELETED") == 0) {
        const char *path = json_string_value(json_object_get(data, "path"));
        const char *id = json_string_value(json_object_get(data, "device"));
        const struct plan *plan = op_plan(op);
        for (unsigned i = 0; i < plan->n_disks; i++) {
            if (move_is_device(plan->disks[i].device, path, id)) {
                _cleanup_err_ struct err *err = NULL;
                (void)err_set(&err, -ENODEV, plan->disks[i].disk,
                              "the device was unplugged in the middle");
                op_fail(op, err);
                return;
            }
        }
    } else if (strcmp(name, "SHUTDOWN") == 0) {
        op_warn(op, "the guest powers off: the move is finished first");
    } else if (strcmp(name, "RESET") == 0) {
        op_warn(op, "the guest was reset; the move goes on");
    }
}
