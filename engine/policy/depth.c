/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "policy/depth.h"

enum {
    START = 8,
    ROUNDS = 3,       /* windows that a measurement lasts at least, */
    MEASURE_MS = 30,  /* and how long */
    AGAIN_MS = 2000,  /* until another try */
    PAYS_PERCENT = 8, /* faster: less is not worth the memory */
};

static const uint64_t MS = 1000000;

static void judge(struct depth *depth, double rate, uint64_t now_ns);
static void try_more(struct depth *depth);

void depth_init(struct depth *depth, unsigned most, uint64_t now_ns)
{
    *depth = (struct depth){.window = most < START ? most : START,
                            .most = most,
                            .begin_ns = now_ns,
                            .settled_ns = now_ns};
}

void depth_done(struct depth *depth, uint64_t now_ns)
{
    depth->done++;
    uint64_t took_ns = now_ns - depth->begin_ns;
    if (depth->done < ROUNDS * depth->window || took_ns < MEASURE_MS * MS) {
        return;
    }
    judge(depth, (double)depth->done / (double)took_ns, now_ns);
    depth->done = 0;
    depth->begin_ns = now_ns;
}

static void judge(struct depth *depth, double rate, uint64_t now_ns)
{
    bool first = depth->rate <= 0;
    bool pays = rate * 100 > depth->rate * (100 + PAYS_PERCENT);
    if (first || (depth->trying && pays)) {
        depth->rate = rate;
        try_more(depth);
    } else if (depth->trying) {
        depth->window /= 2;
        depth->trying = false;
        depth->settled_ns = now_ns;
    } else {
        depth->rate = rate;
        if (now_ns - depth->settled_ns >= AGAIN_MS * MS) {
            try_more(depth);
        }
    }
}

/* Only whole doublings: halving gives back what was good. */
static void try_more(struct depth *depth)
{
    depth->trying = depth->window <= depth->most / 2;
    depth->window *= depth->trying ? 2 : 1;
}
