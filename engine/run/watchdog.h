/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The guard of the frozen moment. Jobs that are PENDING hold the guest's
 * writes back; if this process dies or stops there, nobody would let them go.
 * So a child that inherits the monitor's socket (a single-client monitor
 * greets nobody else) cancels the jobs: at once when this process is dead,
 * after the limit when it only stands still.
 *
 * It never reads while this process lives, so that no reply is stolen. It
 * need not: both write into one stream, QEMU executes in that order, and the
 * engine sends all its job-finalize in a single write. Cancels that come after
 * them find concluded jobs and are refused; cancels that come before them
 * undo the whole group, and the finalizes are refused.
 */
#pragma once

struct err;
struct watchdog;

/* What is done about the guest when the jobs are cancelled. */
enum watchdog_guest {
    WATCHDOG_LEAVES,  /* nothing */
    WATCHDOG_LETS_GO, /* it was stopped on purpose: 'cont' afterwards, on
                         whichever side of the pivot it is by then */
    WATCHDOG_STOPS,   /* 'stop' before and 'cont' afterwards: see
                         steps/cancel.h */
};

/*
 * Forks the guard of 'jobs' (ids, at most 64, or none) on the monitor's fd; it
 * keeps 'lifeline_fd' open too, unless that is -1 (qmp_lifeline_fd()). It acts
 * when 'limit_ms' pass without watchdog_hold_off() or watchdog_disarm(), or
 * when this process ends.
 */
int watchdog_arm(int monitor_fd, int lifeline_fd, const char *const *jobs,
                 unsigned n_jobs, enum watchdog_guest guest, unsigned limit_ms,
                 struct watchdog **ret, struct err **errp);
/*
 * The same for a guest that stands before the switchover: migrate_cancel lets
 * it go on at the source. It must never come after migrate-continue: in the
 * state 'device' QEMU 7.2's source would run the guest on images that it has
 * given away, and aborts. See watchdog_commit(). Where the cancelled stream
 * waits for ever (QEMU 7.2) it is ended.
 */
int watchdog_arm_stream(int monitor_fd, int lifeline_fd, unsigned limit_ms,
                        struct watchdog **ret, struct err **errp);
/*
 * The same for a guest that stands to go over before its memory. A QEMU 7.2
 * does not run it again by itself when that is cancelled: 'cont' does, and
 * once this process is dead only after the stream is seen to be over.
 */
int watchdog_arm_postcopy(int monitor_fd, int lifeline_fd, unsigned limit_ms,
                          struct watchdog **ret, struct err **errp);
/*
 * Before migrate-continue is sent: from here on the guard of a stream does
 * nothing while this process lives. Once it is dead the guard may read, too,
 * and cancels only what QEMU, asked behind all that was sent, still has at
 * pre-switchover. 0, or -ETIMEDOUT: it has acted already, or does not answer.
 */
int watchdog_commit(struct watchdog *watchdog);
/* The limit starts anew: nothing is frozen yet. */
void watchdog_hold_off(struct watchdog *watchdog);
/* All is over: the guard goes without acting. Returns NULL; NULL is fine. */
struct watchdog *watchdog_disarm(struct watchdog *watchdog);
/* As if this process had died: the guard acts now. Returns NULL. */
struct watchdog *watchdog_abandon(struct watchdog *watchdog);
