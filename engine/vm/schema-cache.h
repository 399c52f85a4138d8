/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The reply of query-qmp-schema, kept beside the journal for each build of
 * QEMU: it is 200 KiB that QEMU's main loop makes while the guest waits. A
 * build is known by the version and package of its greeting; one that names
 * no package (somebody's own) is always asked.
 */
#pragma once

#include <jansson.h>

/* A new reference, or NULL: not there, or not usable. 'dir' may be NULL. */
json_t *schema_cache_load(const char *dir, const char *version);
/* Never fails for the caller: without it the next one asks again. */
void schema_cache_store(const char *dir, const char *version,
                        const json_t *schema);
