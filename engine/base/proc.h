/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Processes of this host: what /proc says of them. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

/*
 * When the process was started, in the kernel's clock ticks: with the pid it
 * names one process and no later one. 0 when it is dead, or not seen.
 */
uint64_t proc_start(uint64_t pid);
/* Whether it stands still by a signal (SIGSTOP, a terminal) or a debugger. */
bool proc_is_stopped(uint64_t pid);
