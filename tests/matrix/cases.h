/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The cases of a scenario: every step of its operation's table with everything
 * that can go wrong at it, made from the table and from what two runs without
 * a fault were seen to do (one to the end, one aborted before the pivot). So a
 * new step or command is in here by being there.
 */
#pragma once

#include "matrix/scenario.h"

/* What a run without a fault did: where the faults can strike. */
struct baseline {
    enum engine_verb verb;
    struct told told;
    struct logged log[WORLD_LOG];
    unsigned n_log;
    unsigned n_calls;
    int tags[STORE_CALLS];
};

typedef void case_fn(const char *name, enum engine_verb verb,
                     const struct fault *fault);

/* Calls 'run' for each case of both runs. */
void cases_make(const struct scenario *scenario, const struct baseline *forward,
                const struct baseline *back, const struct baseline *undo,
                case_fn *run);
