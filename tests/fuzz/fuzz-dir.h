/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A folder of a target's own, in memory, and files with the input in it. */
#pragma once

#include <stddef.h>
#include <stdint.h>

/* The folder; made at the first call, emptied and removed at the end. */
const char *fuzz_dir(void);
/* Writes the file; its path is borrowed until the next call. */
const char *fuzz_file(const char *name, const void *data, size_t size);
void fuzz_empty(void);
