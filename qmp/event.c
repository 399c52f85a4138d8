/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Events: who wants to hear of which. Nothing is kept or counted. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/str.h"
#include "qmp/conn.h"

struct qmp_sub {
    struct list_node node;
    struct qmp *qmp;
    char *name;       /* NULL: all */
    qmp_event_fn *cb; /* NULL: unsubscribed while events are handed out */
    void *data;
};

static struct qmp_sub *sub_of(struct list_node *node);
static void sub_free(struct qmp_sub *sub);
static void subs_sweep(struct qmp *qmp);

int qmp_subscribe(struct qmp *qmp, const char *name, qmp_event_fn *cb,
                  void *data, struct qmp_sub **ret)
{
    struct qmp_sub *sub = calloc(1, sizeof(*sub));
    if (sub == NULL) {
        return -ENOMEM;
    }
    sub->name = name != NULL ? strdup(name) : NULL;
    if (name != NULL && sub->name == NULL) {
        free(sub);
        return -ENOMEM;
    }
    sub->qmp = qmp;
    sub->cb = cb;
    sub->data = data;
    list_append(&qmp->subs, &sub->node);
    *ret = sub;
    return 0;
}

struct qmp_sub *qmp_unsubscribe(struct qmp_sub *sub)
{
    if (sub != NULL) {
        sub->cb = NULL;
        if (sub->qmp->dispatching == 0) {
            sub_free(sub);
        }
    }
    return NULL;
}

void event_dispatch(struct qmp *qmp, const json_t *message)
{
    const char *name = json_string_value(json_object_get(message, "event"));
    if (name == NULL) {
        return;
    }
    /*
     * A callback may subscribe (that one hears from the next event on),
     * unsubscribe any, or close the connection: nobody hears more then.
     */
    struct list_node *last = qmp->subs.prev;
    qmp->dispatching++;
    list_foreach(node, &qmp->subs) {
        struct qmp_sub *sub = sub_of(node);
        if (sub->cb != NULL && (sub->name == NULL || str_eq(sub->name, name))) {
            sub->cb(sub->data, name, message);
        }
        if (node == last || qmp->state != QMP_OPEN) {
            break;
        }
    }
    qmp->dispatching--;
    subs_sweep(qmp);
}

void event_done(struct qmp *qmp)
{
    list_foreach_safe(node, &qmp->subs) {
        sub_free(sub_of(node));
    }
}

static struct qmp_sub *sub_of(struct list_node *node)
{
    return container_of(node, struct qmp_sub, node);
}

static void sub_free(struct qmp_sub *sub)
{
    list_remove(&sub->node);
    free(sub->name);
    free(sub);
}

static void subs_sweep(struct qmp *qmp)
{
    if (qmp->dispatching > 0) {
        return;
    }
    list_foreach_safe(node, &qmp->subs) {
        if (sub_of(node)->cb == NULL) {
            sub_free(sub_of(node));
        }
    }
}
