/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Whether a target still answers: when to ask it, what its silence means, and
 * when to say so. QEMU's mirror does not tell: it is READY onto a dead target
 * for as long as the guest writes nothing, and with NFS or RBD for ever. Pure.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct alive_limits {
    uint64_t give_up_ms; /* without an answer; 0: never */
};

/* Set 'limits' and call alive_begin(). */
struct alive {
    struct alive_limits limits;
    uint64_t asked_ms;
    uint64_t answered_ms;
    bool open;   /* asked, and nothing has come yet */
    bool failed; /* the last one said that it could not */
    bool told;   /* its silence has been told */
};

enum alive_verdict {
    ALIVE_FINE,
    ALIVE_SILENT, /* told once for each silence, alive_silent_ms() long now */
    ALIVE_BACK,   /* once, when that is over */
    ALIVE_DEAD,   /* it has been silent for too long */
};

/* It has answered just now. */
void alive_begin(struct alive *alive, uint64_t now_ms);
/* Whether to ask now. */
bool alive_is_due(const struct alive *alive, uint64_t now_ms);
void alive_asked(struct alive *alive, uint64_t now_ms);
void alive_answered(struct alive *alive, uint64_t now_ms, bool well);
uint64_t alive_silent_ms(const struct alive *alive, uint64_t now_ms);
enum alive_verdict alive_look(struct alive *alive, uint64_t now_ms);
