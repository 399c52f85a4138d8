/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "policy/alive.h"

enum {
    EVERY_MS = 10000,   /* between two questions */
    PATIENCE_MS = 4000, /* an answer may take that long */
    AGAIN_MS = 2000,    /* ... while it does not answer */
};

/* Short limits are kept, too. */
static uint64_t every_ms(const struct alive *alive)
{
    uint64_t most = alive->failed ? AGAIN_MS : EVERY_MS;
    uint64_t limit = alive->limits.give_up_ms;
    return limit != 0 && limit / 2 < most ? limit / 2 : most;
}

static uint64_t patience_ms(const struct alive *alive)
{
    uint64_t limit = alive->limits.give_up_ms;
    return limit != 0 && limit / 4 < PATIENCE_MS ? limit / 4 : PATIENCE_MS;
}

void alive_begin(struct alive *alive, uint64_t now_ms)
{
    alive->asked_ms = alive->answered_ms = now_ms;
    alive->open = alive->failed = alive->told = false;
}

bool alive_is_due(const struct alive *alive, uint64_t now_ms)
{
    return !alive->open && now_ms - alive->asked_ms >= every_ms(alive);
}

void alive_asked(struct alive *alive, uint64_t now_ms)
{
    alive->asked_ms = now_ms;
    alive->open = true;
}

void alive_answered(struct alive *alive, uint64_t now_ms, bool well)
{
    alive->open = false;
    alive->failed = !well;
    if (well) {
        alive->answered_ms = now_ms;
    }
}

uint64_t alive_silent_ms(const struct alive *alive, uint64_t now_ms)
{
    bool waits = alive->open && now_ms - alive->asked_ms >= patience_ms(alive);
    return alive->failed || waits ? now_ms - alive->answered_ms : 0;
}

enum alive_verdict alive_look(struct alive *alive, uint64_t now_ms)
{
    uint64_t silent_ms = alive_silent_ms(alive, now_ms);
    uint64_t limit = alive->limits.give_up_ms;
    if (silent_ms == 0) {
        bool back = alive->told && !alive->open;
        alive->told = alive->told && !back;
        return back ? ALIVE_BACK : ALIVE_FINE;
    }
    if (limit != 0 && silent_ms >= limit) {
        return ALIVE_DEAD;
    }
    if (!alive->told) {
        alive->told = true;
        return ALIVE_SILENT;
    }
    return ALIVE_FINE;
}
