/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Intrusive doubly linked list: the head and each member are a list_node. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

struct list_node {
    struct list_node *prev;
    struct list_node *next;
};

static inline void list_init(struct list_node *head)
{
    head->prev = head;
    head->next = head;
}

static inline bool list_empty(const struct list_node *head)
{
    return head->next == head;
}

static inline void list_append(struct list_node *head, struct list_node *node)
{
    node->prev = head->prev;
    node->next = head;
    head->prev->next = node;
    head->prev = node;
}

/* Taking out a node twice, or one that was never linked (zero), is fine. */
static inline void list_remove(struct list_node *node)
{
    if (node->next != NULL) {
        node->prev->next = node->next;
        node->next->prev = node->prev;
        node->next = NULL;
        node->prev = NULL;
    }
}

#define list_foreach(it, head)                                                 \
    for (struct list_node *it = (head)->next; it != (head); it = it->next)

/* The current node may be removed while walking. */
#define list_foreach_safe(it, head)                                            \
    for (struct list_node *it = (head)->next, *it##_next = it->next;           \
         it != (head); it = it##_next, it##_next = it->next)
