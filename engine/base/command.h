/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Runs one program from a thread that may block, with a deadline: words in,
 * exit status and both texts out. No shell: see spawn.h for the loop's one.
 */
#pragma once

struct err;

struct command_result {
    int status;   /* exit code, or 128 + the signal that ended it */
    char *output; /* what it printed on stdout, NUL-ended */
    char *errors; /* the same of stderr */
};

/*
 * Runs argv[0], found in PATH, with the words 'argv' (NULL-ended), stdin from
 * /dev/null and messages in English; each text is cut at 256 KiB. 0 however it
 * exited. -ENOENT if there is no such program; -ETIMEDOUT if it was killed,
 * with its process group, after 'timeout_ms'; one that even so does not end is
 * left, and reaped by a later call.
 */
int command_run(const char *const *argv, unsigned timeout_ms,
                struct command_result *ret, struct err **errp);
void command_result_done(struct command_result *result);
#define _cleanup_command_ _cleanup_(command_result_done)
