/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Text a person types or reads <-> values. Pure. */
#pragma once

#include <stddef.h>
#include <stdint.h>

enum { TEXT_BYTES_MAX = 32, TEXT_SPAN_MAX = 32 };

/* Whole decimal text, at most 'max'; -EINVAL or -ERANGE. */
int text_to_u64(const char *text, uint64_t max, uint64_t *ret);
/* "4096", "10M", "1.5G", "64KiB" (powers of 1024); -EINVAL or -ERANGE. */
int text_to_bytes(const char *text, uint64_t *ret);
/* "250ms", "30s", "10m", "2h"; a bare number counts 'bare_ms' each. */
int text_to_ms(const char *text, uint64_t bare_ms, uint64_t *ret);

/* "512 MiB", "1.5 GiB", "17 bytes". */
const char *text_bytes(uint64_t bytes, char out[TEXT_BYTES_MAX]);
/* "0.4 s", "12 s", "3m05s", "2h10m". */
const char *text_span(double seconds, char out[TEXT_SPAN_MAX]);

/* asprintf() that returns the text, NULL without memory. */
char *text_printf(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/*
 * Replaces control characters: a name that comes from QEMU must not be able
 * to steer the reader's terminal; and bytes that are no UTF-8. Returns its
 * argument.
 */
char *text_tame(char *text);
