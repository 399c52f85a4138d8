/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "disks.h"

#include <stdlib.h>
#include <string.h>

#include "errors.h"

int split_disks(const struct verb *verb, const struct option_list *list,
                struct qpivot_disk *disks, char **ret_text)
{
    int code = 0;
    size_t size = 0;
    for (unsigned i = 0; i < list->n; i++) {
        const char *equals = strchr(list->items[i], '=');
        if (equals == NULL || equals == list->items[i] || equals[1] == '\0') {
            code = verb_usage(verb, "'--disk %s': must be DISK=TARGET",
                              list->items[i]);
            continue;
        }
        size += (size_t)(equals - list->items[i]) + 1;
    }
    char *text = code == 0 ? calloc(1, size + 1) : NULL;
    if (text == NULL) {
        return EXIT_USAGE;
    }
    char *at = text;
    for (unsigned i = 0; i < list->n; i++) {
        size_t n = strcspn(list->items[i], "=");
        memcpy(at, list->items[i], n);
        disks[i] =
            (struct qpivot_disk){.disk = at, .target = list->items[i] + n + 1};
        at += n + 1;
    }
    *ret_text = text;
    return 0;
}
