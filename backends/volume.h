/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the backends share: the common part of a volume, what its first bytes
 * tell, its node's common options, and messages about a failed call.
 */
#pragma once

#include "backend.h"

struct uri;

enum { FORMAT_HEAD = 32 }; /* bytes that volume_info_format() wants */

/*
 * Fills in the common part from 'uri': its name, the common options, and a
 * refusal of every option that nobody took. The last thing that parse does.
 */
int volume_init(struct volume *volume, const struct backend_ops *ops,
                struct uri *uri, struct err **errp);
void volume_done(struct volume *volume);

/* Everything unknown, nothing there. */
void volume_info_init(struct volume_info *info);
/* format and format_size from the first bytes of what is there. */
void volume_info_format(struct volume_info *info, const void *head,
                        size_t length);

/* {"driver", "discard":"unmap", "cache"}; NULL without memory. */
json_t *volume_node(const struct volume *volume, const char *driver);

/*
 * The options of a node whose file name QEMU tells as "json:{...}", if they
 * are this driver's; NULL otherwise.
 */
json_t *node_json(const char *driver, const char *filename);
/*
 * Text of member 'key', or of 'key' in the object 'outer': QEMU nests them or
 * writes them "outer.key", as they were given to it. Borrowed, or NULL.
 */
const char *node_text(const json_t *node, const char *outer, const char *key);

/* "what: no such file or directory", code -errno; returns 'code'. */
int volume_fail(struct err **errp, const struct volume *volume, int code,
                const char *fmt, ...) __attribute__((format(printf, 4, 5)));
/* publish found the name taken: -EEXIST. */
int volume_taken(const struct volume *volume, struct err **errp);
