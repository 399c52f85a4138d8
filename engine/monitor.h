/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The inside of a qpivot_monitor, for questions that take several replies. */
#pragma once

#include <jansson.h>

#include "base/list.h"
#include "qpivot.h"

struct err;
struct qmp_call;
struct vm;
struct vm_query;

/* One question under way; it ends with the monitor at the latest. */
struct ask {
    struct list_node node;
    qpivot_reply_fn *reply;
    void *data;
    struct vm_query *query; /* under way, or NULL */
    struct qmp_call *call;  /* under way, or NULL */
    struct qpivot_monitor *monitor;
    json_t *names; /* an answer that is known already */
    void *more;    /* of the question's own */
    void (*free_more)(void *more);
};

struct vm *monitor_vm(const struct qpivot_monitor *monitor);
int ask_new(struct qpivot_monitor *monitor, qpivot_reply_fn *reply, void *data,
            struct ask **ret);
/* A question that could not be sent: no reply comes. */
void ask_drop(struct ask *ask);
/* 'err' or 'result' goes to the asker; frees the question. */
void ask_end(struct ask *ask, const struct err *err, const json_t *result);
