/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Steps about TLS: the credentials of stream and exports in both QEMUs, and
 * whom the destination lets in.
 */
#pragma once

#include "run/step.h"

struct err;

step_when_fn tls_is_used, tls_has_authz;
step_when_fn tls_is_left; /* ... and the source QEMU is not ended */

/* The source is the client, the destination the server. */
step_fn tls_add, tls_del;
step_command_fn tls_client_command, tls_server_command, tls_del_command;

step_fn authz_add, authz_del;
step_command_fn authz_command, authz_del_command;

/* The hint to a connection that may have failed over its certificates. */
void tls_hint(const struct plan *plan, struct err **errp);
