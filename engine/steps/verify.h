/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Steps that compare each disk with its copy before the pivot, by readers of
 * our own beside QEMU. While the guest runs, all is read once; then, again and
 * again, only what the guest has rewritten meanwhile, as a dirty bitmap of
 * QEMU's tells, and what was not equal yet. The little that is left is read
 * while the guest stands still: only that decides.
 */
#pragma once

#include "run/step.h"

step_when_fn verify_is_wanted;

/* The path of a disk's scratch image; the caller frees it. */
char *verify_scratch_in(const char *dir, unsigned disk);

/* 'verify-scratch', and back; 'verify-end': each disk's scratch image */
step_fn verify_scratch, verify_scratch_remove;
/* 'verify-try': whether QEMU can use it, before anything is copied */
step_fn verify_try;
step_command_fn verify_try_command;
/* 'verify': while the guest runs; leaves bitmaps that go on recording */
step_fn verify_run;
step_command_fn verify_command;
/* 'verify-rest': while it stands still */
step_fn verify_rest;
/* 'verify-clean', and undo: no bitmap and no scratch node is left */
step_fn verify_clean;
step_command_fn verify_clean_command;
