/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * --copy-mode auto: whether a mirror catches up with the guest, and what to
 * do when it does not. Pure: samples in, a verdict and its reason out.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

enum converge_verdict {
    CONVERGE_KEEP,
    CONVERGE_SWITCH, /* to write-blocking, by block-job-change (QEMU 8.2) */
    CONVERGE_LIFT,   /* the last bytes do not get through the speed limit */
    CONVERGE_TOO_SLOW
};

enum { CONVERGE_REASON_MAX = 192, CONVERGE_WINDOW = 16 };

struct converge_sample {
    uint64_t now_ms;
    uint64_t remaining; /* len - offset, bytes */
    uint64_t rate;      /* copied bytes a second */
    bool ready;         /* the job is READY */
    bool paused;        /* by a person or an error: proves nothing */
    bool limited;       /* by a speed of ours */
};

struct converge {
    bool can_switch;      /* block-job-change takes copy-mode here */
    bool write_blocking;  /* it is in that mode already */
    uint64_t small;       /* bytes left that a pivot bears: nothing to do */
    uint64_t patience_ms; /* how long no gain is borne */
    unsigned n;           /* samples held */
    uint64_t times[CONVERGE_WINDOW];
    uint64_t remaining[CONVERGE_WINDOW];
};

/*
 * 'can_switch': the schema has block-job-change with type=mirror.copy-mode.
 * Defaults: 10 s of patience, 16 MiB are small enough to pivot.
 */
void converge_init(struct converge *converge, bool can_switch,
                   bool write_blocking);

/*
 * Adds a sample, about one a second. 'reason' is one phrase for the user,
 * always set. What is said of a window of time begins a new one. After
 * CONVERGE_SWITCH the caller sends block-job-change and
 * calls converge_switched(), whatever became of it. CONVERGE_LIFT: so little
 * is left that a limit only keeps the job from READY, where QEMU takes no
 * notice of it any more; the caller takes it off. CONVERGE_TOO_SLOW does
 * not end anything by itself: it is a warning, or the ground for a restart
 * in write-blocking mode.
 */
enum converge_verdict converge_sample(struct converge *converge,
                                      const struct converge_sample *sample,
                                      char reason[CONVERGE_REASON_MAX]);

/* 'ok': the job is in write-blocking mode now; false: it refused. */
void converge_switched(struct converge *converge, bool ok);
