/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Text <-> values: checked numbers, sizes, times, ids. Pure. */
#pragma once

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Whole text as decimal; -EINVAL otherwise, -ERANGE beyond 'max'. */
int str_to_u64(const char *text, uint64_t max, uint64_t *ret);

/* "4096", "10M", "1.5G" (powers of 1024: k M G T P, optional iB/B). */
int str_to_bytes(const char *text, uint64_t *ret);

/* "250ms", "30s", "10m", "2h", "90" (seconds) -> milliseconds. */
int str_to_ms(const char *text, uint64_t *ret);

/* "512 MiB", "1.5 GiB", "17 bytes"; 'out' holds at least STR_BYTES_MAX. */
enum { STR_BYTES_MAX = 32, STR_TIME_MAX = 32 };

const char *str_bytes(uint64_t bytes, char out[STR_BYTES_MAX]);

/* "2026-01-31T12:00:00.123456Z" of microseconds since the epoch. */
const char *str_time(uint64_t us, char out[STR_TIME_MAX]);

bool str_eq(const char *a, const char *b); /* two NULLs are equal */
bool str_starts(const char *s, const char *prefix);

/* As RFC 3629 has it: all that JSON, and so QMP, can carry. */
bool str_is_utf8(const char *text);

/* asprintf() that returns the text, NULL without memory. */
char *str_printf(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
char *str_vprintf(const char *fmt, va_list ap)
    __attribute__((format(printf, 1, 0)));

/* As one word of a shell's: in quotes; new text, NULL without memory. */
char *str_shell(const char *text);

/* Overwrites with zeroes (not optimised away) and frees; NULL is fine. */
void str_wipe_free(char *secret);
