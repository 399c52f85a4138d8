/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * How stream and exports get from the source to the destination: by TCP to its
 * address, or by unix sockets that the destination makes beside its monitor's.
 * Those the source reaches itself (--unix), or by the ssh connection of the
 * destination's monitor (--tunnel).
 */
#pragma once

#include "run/step.h"

struct err;

enum transport_what { TRANSPORT_STREAM, TRANSPORT_EXPORTS };

/* Whether there are such sockets. */
step_when_fn transport_has_sockets;
step_when_fn transport_is_local; /* ... of this host */

/* The destination's end, as "uri" of migrate-incoming: any port. */
json_t *transport_listen_uri(const struct plan *plan);
/* The destination's end for nbd-server-start; NULL: by TCP. */
json_t *transport_listen_address(const struct plan *plan);

/*
 * What the source connects to, new text of a path; -ENOTCONN where the tunnel
 * is not there. Makes the way passable for the source's QEMU.
 */
int transport_path(struct act *act, enum transport_what what, char **ret,
                   struct err **errp);
/* The same for the plan, which knows no path of a tunnel yet. */
const char *transport_planned_path(const struct plan *plan,
                                   enum transport_what what);

/* Takes away the names of sockets that a QEMU has left, at its end. */
step_fn sockets_expect, sockets_remove;
