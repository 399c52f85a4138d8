/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What is moved or migrated in a case, and how it is set up and asked for. */
#pragma once

#include <stdbool.h>

#include "matrix/world.h"

enum { SCENARIO_DISKS = 2 };

struct scenario {
    const char *name;
    const struct operation *operation;
    unsigned n_disks;
    /*
     * Of the cases of this scenario only every so-manieth, but some of every
     * step and some of every fault: others have all of them. 0: all.
     */
    unsigned thin;
    unsigned thin_lost; /* the same, of those that lose the journal */
    bool paused;        /* the guest is, and is to stay so */
    bool remote;        /* the processes of the QEMUs are not seen */
    bool drive;         /* the guest was started with -drive */
    bool bitmap;        /* the disks have one each that is to be carried */
    bool existing;      /* the last target is there before */
    bool attached;  /* all targets are, and QEMU can open none as they are */
    bool degrades;  /* ... and one loses a replica while it is copied */
    bool autostart; /* the destination was started without -S */
    bool old_state; /* QEMU 10's way with a paused guest */
    bool active;    /* QEMU 8.2: mirrors become write-blocking */
    bool behind;    /* ... and are never equal */
    bool cut;       /* between them, when the destination has all */
    bool window;    /* with an undo window */
    bool tls;       /* by certificates, of one client name only */
    bool linked;    /* the disks stand on bases, not proved to be the same */
    unsigned flags;
    enum qpivot_via via;
    enum qpivot_strategy strategy;
    enum qpivot_verify_mode verify;
    const char *abort_at; /* the step in whose middle the user goes back */
    const char *targets[SCENARIO_DISKS];
};

extern const struct scenario scenarios[];
extern const unsigned n_scenarios;

bool scenario_migrates(const struct scenario *scenario);
/* How a disk's target stands when the operation begins, where 'attached'. */
const char *scenario_state(unsigned disk);
/* Fresh QEMUs and storage, as the operation finds them. */
void scenario_prepare(const struct scenario *scenario, struct world *world);
/* Runs an engine; 'timeout_ms' is the user's, 0 none. */
void scenario_run(const struct scenario *scenario, struct world *world,
                  enum engine_verb verb);
/*
 * doctor, asked of 'side'; with 'op' it fixes that one, with 'fix' alone all
 * that it may.
 */
void scenario_doctor(const struct scenario *scenario, struct world *world,
                     enum side side, bool fix, const char *op);
/* recover --from-qemu: 'side' is the QEMU that is asked. */
void scenario_adopt(const struct scenario *scenario, struct world *world,
                    enum side side);
