/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/str.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static int split_number(const char *text, uint64_t *whole, uint64_t *fraction,
                        uint64_t *scale, const char **unit);

int str_to_u64(const char *text, uint64_t max, uint64_t *ret)
{
    uint64_t value = 0;
    if (text == NULL || *text == '\0') {
        return -EINVAL;
    }
    for (const char *p = text; *p != '\0'; p++) {
        if (*p < '0' || *p > '9') {
            return -EINVAL;
        }
        if (__builtin_mul_overflow(value, UINT64_C(10), &value) ||
            __builtin_add_overflow(value, (uint64_t)(*p - '0'), &value)) {
            return -ERANGE;
        }
    }
    if (value > max) {
        return -ERANGE;
    }
    *ret = value;
    return 0;
}

int str_to_bytes(const char *text, uint64_t *ret)
{
    static const char units[] = "kMGTP";
    uint64_t whole, fraction, scale, factor = 1, bytes;
    const char *unit;
    int r = split_number(text, &whole, &fraction, &scale, &unit);
    if (r < 0) {
        return r;
    }
    if (*unit != '\0' && *unit != 'B') {
        const char *found = strchr(units, *unit == 'K' ? 'k' : *unit);
        if (found == NULL) {
            return -EINVAL;
        }
        factor <<= 10 * (unsigned)(found - units + 1);
        unit++;
        unit += unit[0] == 'i' && unit[1] == 'B';
    }
    unit += *unit == 'B';
    if (*unit != '\0' || (factor == 1 && fraction != 0)) {
        return -EINVAL;
    }
    if (__builtin_mul_overflow(whole, factor, &bytes) ||
        __builtin_add_overflow(bytes,
                               factor / scale * fraction +
                                   factor % scale * fraction / scale,
                               &bytes)) {
        return -ERANGE;
    }
    *ret = bytes;
    return 0;
}

int str_to_ms(const char *text, uint64_t *ret)
{
    static const struct {
        const char *unit;
        uint64_t ms;
    } units[] = {
        {"",   1000   },
        {"ms", 1      },
        {"s",  1000   },
        {"m",  60000  },
        {"h",  3600000}
    };

    uint64_t whole, fraction, scale, ms;
    const char *unit;
    int r = split_number(text, &whole, &fraction, &scale, &unit);
    if (r < 0) {
        return r;
    }
    for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++) {
        if (strcmp(unit, units[i].unit) == 0) {
            if (__builtin_mul_overflow(whole, units[i].ms, &ms)) {
                return -ERANGE;
            }
            *ret = ms + units[i].ms * fraction / scale;
            return 0;
        }
    }
    return -EINVAL;
}

const char *str_bytes(uint64_t bytes, char out[STR_BYTES_MAX])
{
    static const char *const units[] = {"bytes", "KiB", "MiB", "GiB",
                                        "TiB",   "PiB", "EiB"};
    unsigned unit = 0;
    uint64_t rest = 0;
    while (bytes >= 1024 && unit < 6) {
        rest = bytes % 1024;
        bytes /= 1024;
        unit++;
    }
    if (unit == 0 || rest * 10 / 1024 == 0) {
        (void)snprintf(out, STR_BYTES_MAX, "%" PRIu64 " %s", bytes,
                       units[unit]);
    } else {
        (void)snprintf(out, STR_BYTES_MAX, "%" PRIu64 ".%" PRIu64 " %s", bytes,
                       rest * 10 / 1024, units[unit]);
    }
    return out;
}

const char *str_time(uint64_t us, char out[STR_TIME_MAX])
{
    time_t seconds = (time_t)(us / 1000000);
    struct tm tm;
    if (gmtime_r(&seconds, &tm) == NULL) {
        out[0] = '\0';
        return out;
    }
    size_t n = strftime(out, STR_TIME_MAX, "%Y-%m-%dT%H:%M:%S", &tm);
    (void)snprintf(out + n, STR_TIME_MAX - n, ".%06uZ",
                   (unsigned)(us % 1000000));
    return out;
}

bool str_eq(const char *a, const char *b)
{
    return a == NULL || b == NULL ? a == b : strcmp(a, b) == 0;
}

bool str_starts(const char *s, const char *prefix)
{
    return s != NULL && strncmp(s, prefix, strlen(prefix)) == 0;
}

bool str_is_utf8(const char *text)
{
    const unsigned char *c = (const unsigned char *)text;
    while (*c != '\0') {
        unsigned first = *c++;
        unsigned more = first < 0x80                    ? 0
                        : first >= 0xC2 && first < 0xE0 ? 1
                        : (first & 0xF0U) == 0xE0       ? 2
                        : first >= 0xF0 && first < 0xF5 ? 3
                                                        : 4;
        uint32_t code = first & (0x3FU >> more);
        if (more > 3) {
            return false;
        }
        for (unsigned i = 0; i < more; i++, c++) {
            if ((*c & 0xC0U) != 0x80) {
                return false;
            }
            code = code << 6 | (*c & 0x3FU);
        }
        /* Not longer than need be, no surrogate, not beyond the last. */
        if ((more == 2 && (code < 0x800 || (code & 0xF800U) == 0xD800)) ||
            (more == 3 && (code < 0x10000 || code > 0x10FFFF))) {
            return false;
        }
    }
    return true;
}

char *str_printf(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    char *text = str_vprintf(fmt, ap);
    va_end(ap);
    return text;
}

char *str_vprintf(const char *fmt, va_list ap)
{
    char *text = NULL;
    return vasprintf(&text, fmt, ap) < 0 ? NULL : text;
}

char *str_shell(const char *text)
{
    static const char quote[] = "'\\''"; /* ends them, one, begins them anew */
    size_t n = strlen(text), at = 0;
    char *word = malloc(n * strlen(quote) + sizeof("''"));
    if (word == NULL) {
        return NULL;
    }
    word[at++] = '\'';
    for (const char *c = text; *c != '\0'; c++) {
        if (*c == '\'') {
            memcpy(word + at, quote, strlen(quote));
            at += strlen(quote);
        } else {
            word[at++] = *c;
        }
    }
    word[at++] = '\'';
    word[at] = '\0';
    return word;
}

void str_wipe_free(char *secret)
{
    if (secret != NULL) {
        explicit_bzero(secret, strlen(secret));
        free(secret);
    }
}

/* "12.25kB" -> whole 12, fraction 25, scale 100, unit "kB". */
static int split_number(const char *text, uint64_t *whole, uint64_t *fraction,
                        uint64_t *scale, const char **unit)
{
    const char *p = text;
    *whole = 0;
    *fraction = 0;
    *scale = 1;
    if (p == NULL || *p < '0' || *p > '9') {
        return -EINVAL;
    }
    for (; *p >= '0' && *p <= '9'; p++) {
        if (__builtin_mul_overflow(*whole, UINT64_C(10), whole) ||
            __builtin_add_overflow(*whole, (uint64_t)(*p - '0'), whole)) {
            return -ERANGE;
        }
    }
    if (*p == '.') {
        for (p++; *p >= '0' && *p <= '9'; p++) {
            if (*scale < 1000) {
                *fraction = *fraction * 10 + (uint64_t)(*p - '0');
                *scale *= 10;
            }
        }
    }
    *unit = p;
    return 0;
}
