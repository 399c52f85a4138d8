/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What other processes ask of the engine that works on an operation: the
 * journal brings it, the tick looks. Every request is answered once, when it
 * has been noticed; what came of it the operation's own records tell.
 */
#include <errno.h>
#include <string.h>

#include "base/proc.h"
#include "base/str.h"
#include "run/op-private.h"

enum { LOOK_MS = 500 };

static void op_on_request(struct op *op, const json_t *request);
static int op_obey(struct op *op, const char *word, const json_t *args,
                   struct err **errp);

json_t *op_owner(void)
{
    uint64_t pid = (uint64_t)uv_os_getpid();
    return json_pack("{s:I, s:I}", "pid", (json_int_t)pid, "start",
                     (json_int_t)proc_start(pid));
}

void op_own(struct op *op, const json_t *records)
{
    json_auto_t *owner = op_owner();
    size_t n = json_array_size(records);
    /* What was asked of an earlier engine is history. */
    if (n > 0) {
        op->asked.seq = json_integer_value(
            json_object_get(json_array_get(records, n - 1), "seq"));
    }
    (void)journal_append(op->host.journal, op->id, JOURNAL_OWNER, "", ALL_DISKS,
                         owner, op_now_us(), NULL, NULL);
}

void op_look_for_requests(struct op *op, uint64_t now_ms)
{
    json_auto_t *requests = NULL;
    if (!op->journalled || now_ms - op->asked_ms < LOOK_MS) {
        return;
    }
    op->asked_ms = now_ms;
    /* One that cannot be read now is read later. */
    (void)journal_news(op->host.journal, op->id, JOURNAL_REQUEST, &op->asked,
                       &requests, NULL);
    size_t i;
    json_t *request;
    json_array_foreach(requests, i, request) {
        op_on_request(op, request);
    }
}

static void op_on_request(struct op *op, const json_t *request)
{
    _cleanup_err_ struct err *err = NULL;
    const char *word = json_string_value(json_object_get(request, "step"));
    const json_t *args = json_object_get(request, "data");
    json_auto_t *answer =
        json_pack("{s:O*}", "id", json_object_get(args, "id"));
    int r = op_obey(op, word, args, &err);
    (void)json_object_set_new(answer, "accepted", json_boolean(r == 0));
    if (r < 0) {
        (void)json_object_set_new(answer, "error", err_to_json(err));
    }
    (void)journal_append(op->host.journal, op->id, JOURNAL_ANSWER, word,
                         ALL_DISKS, answer, op_now_us(), NULL, NULL);
}

static int op_obey(struct op *op, const char *word, const json_t *args,
                   struct err **errp)
{
    if (str_eq(word, OP_WORD_ABORT)) {
        return op_abort(op) == 0
                   ? 0
                   : err_set(errp, -EALREADY, op->id,
                             "too late: the guest uses the targets");
    }
    if (op->operation->request == NULL) {
        return err_set(errp, -ENOTSUP, op->id,
                       "this engine cannot be asked to '%s'", word);
    }
    return op->operation->request(op, word, args, errp);
}

const char *op_state_dir(const struct op *op)
{
    return op->host.state_dir;
}
