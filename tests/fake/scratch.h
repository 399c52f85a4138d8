/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Temporary folders that go with the process, however it ends: a test that is
 * killed, runs out of time or fails an assertion leaves nothing behind.
 */
#pragma once

enum { SCRATCH_PATH = 64 };

/* Where those of this process are to be: else in /tmp. Once, and first. */
void scratch_root(const char *parent);
/* Makes an empty folder whose name begins with 'name'. */
void scratch_make(const char *name, char out[SCRATCH_PATH]);
