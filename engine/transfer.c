/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The public functions for volumes at rest, and their events as text. */
#include "transfer.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "api.h"
#include "base/cleanup.h"
#include "base/err.h"
#include "base/str.h"
#include "bulk/copy.h"
#include "engine.h"
#include "qpivot.h"
#include "run/journal.h"

struct qpivot_transfer {
    struct list_node node;
    struct qpivot_engine *engine;
    struct copy *copy;
    struct qpivot_callbacks callbacks;
};

static int start(struct qpivot_engine *engine,
                 const struct copy_options *options,
                 const struct qpivot_callbacks *callbacks,
                 struct qpivot_transfer **ret, char **ret_error);
static void transfer_on_event(void *data, const json_t *event);
static void transfer_on_ended(void *data, enum copy_outcome outcome,
                              const struct err *err);

int qpivot_copy(struct qpivot_engine *engine,
                const struct qpivot_copy_options *options,
                const struct qpivot_callbacks *callbacks,
                struct qpivot_transfer **ret, char **ret_error)
{
    if (engine == NULL || options == NULL || callbacks == NULL ||
        options->size < sizeof(*options) || options->source == NULL ||
        options->target == NULL) {
        return -EINVAL;
    }
    unsigned flags = options->flags;
    struct copy_options o = {
        .kind = COPY_COPY,
        .source = options->source,
        .target = options->target,
        .manifest = options->manifest,
        .memory = options->memory,
        .speed = options->speed,
        .existing = (flags & QPIVOT_EXISTING) != 0,
        .force_share = (flags & QPIVOT_FORCE_SHARE) != 0,
        .verify = (flags & QPIVOT_VERIFY) != 0,
        .clean = (flags & QPIVOT_CLEAN) != 0,
        .low_priority = (flags & QPIVOT_LOW_PRIORITY) != 0,
        .no_offload = (flags & QPIVOT_NO_OFFLOAD) != 0,
        .dry_run = (flags & QPIVOT_DRY_RUN) != 0,
    };
    return start(engine, &o, callbacks, ret, ret_error);
}

int qpivot_verify(struct qpivot_engine *engine,
                  const struct qpivot_verify_options *options,
                  const struct qpivot_callbacks *callbacks,
                  struct qpivot_transfer **ret, char **ret_error)
{
    if (engine == NULL || options == NULL || callbacks == NULL ||
        options->size < sizeof(*options) || options->a == NULL ||
        (options->b == NULL && options->manifest == NULL)) {
        return -EINVAL;
    }
    struct copy_options o = {
        .kind = COPY_VERIFY,
        .source = options->a,
        .target = options->b,
        .manifest = options->manifest,
        .memory = options->memory,
        .speed = options->speed,
        .force_share = (options->flags & QPIVOT_FORCE_SHARE) != 0,
        .low_priority = (options->flags & QPIVOT_LOW_PRIORITY) != 0,
    };
    return start(engine, &o, callbacks, ret, ret_error);
}

const char *qpivot_transfer_id(const struct qpivot_transfer *transfer)
{
    return transfer != NULL ? copy_id(transfer->copy) : NULL;
}

void qpivot_transfer_cancel(struct qpivot_transfer *transfer)
{
    if (transfer != NULL) {
        copy_cancel(transfer->copy);
    }
}

void transfer_cancel_all(const struct list_node *transfers)
{
    list_foreach(node, transfers) {
        copy_cancel(container_of(node, struct qpivot_transfer, node)->copy);
    }
}

static int start(struct qpivot_engine *engine,
                 const struct copy_options *options,
                 const struct qpivot_callbacks *callbacks,
                 struct qpivot_transfer **ret, char **ret_error)
{
    _cleanup_err_ struct err *err = NULL;
    struct copy_options o = *options;
    o.state_dir = engine_state_dir(engine);
    if (o.state_dir == NULL && o.kind == COPY_COPY) {
        return -EINVAL;
    }
    struct qpivot_transfer *transfer = calloc(1, sizeof(*transfer));
    if (transfer == NULL) {
        return -ENOMEM;
    }
    transfer->engine = engine;
    transfer->callbacks = *callbacks;
    struct copy_callbacks ours = {.data = transfer,
                                  .event = transfer_on_event,
                                  .ended = transfer_on_ended};
    int r = copy_start(engine_loop(engine), &o, &ours, &transfer->copy, &err);
    if (r < 0) {
        free(transfer);
        return api_error(err, r, ret_error);
    }
    engine_hold(engine);
    list_append(engine_transfers(engine), &transfer->node);
    if (ret != NULL) {
        *ret = transfer;
    }
    return 0;
}

static void transfer_on_event(void *data, const json_t *event)
{
    const struct qpivot_transfer *transfer = data;
    if (transfer->callbacks.event == NULL) {
        return;
    }
    char time[STR_TIME_MAX];
    uv_timeval64_t now = {0};
    (void)uv_gettimeofday(&now);
    uint64_t us = (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_usec;
    json_auto_t *json = json_pack("{s:s, s:s}", "time", str_time(us, time),
                                  "op", copy_id(transfer->copy));
    if (json == NULL ||
        json_object_update(json, (json_t *)(uintptr_t)event) < 0) {
        return;
    }
    _cleanup_free_ char *text =
        json_dumps(json, JSON_COMPACT | JSON_REAL_PRECISION(6));
    if (text != NULL) {
        transfer->callbacks.event(transfer->callbacks.data, text);
    }
}

static void transfer_on_ended(void *data, enum copy_outcome outcome,
                              const struct err *err)
{
    (void)err; /* the 'failed' event had it */
    struct qpivot_transfer *transfer = data;
    struct qpivot_engine *engine = transfer->engine;
    struct qpivot_callbacks callbacks = transfer->callbacks;
    list_remove(&transfer->node);
    free(transfer);
    if (callbacks.ended != NULL) {
        callbacks.ended(callbacks.data, outcome == COPY_DONE ? QPIVOT_DONE
                                        : outcome == COPY_REFUSED
                                            ? QPIVOT_REFUSED
                                            : QPIVOT_FAILED);
    }
    engine_release(engine);
}
