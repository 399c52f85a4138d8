/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Which options of a migration go together. QEMU would refuse some of the
 * rest half way, and take others without a word and do something else.
 */
#pragma once

#include <jansson.h>
#include <stdint.h>

struct op;
struct qpivot_migrate_options;

/* A bit each: options of ours, then what may be switched on in QEMU already. */
enum migrate_option {
    WITH_ANY, /* every migration */
    WITH_MULTIFD,
    WITH_XBZRLE,
    WITH_XBZRLE_CACHE,
    WITH_AUTO_CONVERGE,
    WITH_TIMEOUT,
    WITH_TIMEOUT_SUSPENDS,
    WITH_TLS,
    WITH_TLS_TO,
    WITH_TLS_HOSTNAME,
    WITH_TLS_AUTHZ,
    WITH_TLS_NAMELESS, /* by a socket, whose path is no name */
    WITH_UNIX,
    WITH_TUNNEL,
    WITH_ADDRESS,
    WITH_EXPORT_PORT,
    WITH_POSTCOPY,
    WITH_TIMEOUT_POSTCOPIES,
    WITH_SUSPEND,
    WITH_BITMAPS, /* that the stream is to carry */
    WITH_PREEMPT,
    WITH_IGNORE_SHARED,
    WITH_COMPRESS,
    WITH_BACKGROUND_SNAPSHOT,
    WITH_MAPPED_RAM,
    WITH_COLO,
    WITH_BLOCK,
    WITH_ZERO_COPY,
    WITH_DIRTY_LIMIT,
    N_WITH
};

/* What the user asked for. */
uint32_t migrate_options_asked(const struct qpivot_migrate_options *options);

/*
 * Every conflict among what is 'asked' for, and between that and what is 'on'
 * in one of the QEMUs already: [{"option","text"}]; new reference.
 */
json_t *migrate_conflicts(uint32_t asked, uint32_t on);

/*
 * These as problems of the plan, values that are out of range, and what the
 * two QEMUs have switched on differently.
 */
void migrate_check_options(struct op *op);
/* By --unix or --tunnel: where the sockets are, or why there can be none. */
void migrate_option_transport(struct op *op);
/* The capabilities and parameters of the options, for the plan. */
void migrate_option_settings(struct op *op);
