/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Text a person types or reads <-> values. It knows no option and no file. */
#include "text.h"

#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static size_t character(const char *text);
static int number(const char *text, double *ret, const char **ret_unit);

int text_to_u64(const char *text, uint64_t max, uint64_t *ret)
{
    if (!isdigit((unsigned char)text[0])) {
        return -EINVAL;
    }
    char *end = NULL;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (*end != '\0') {
        return -EINVAL;
    }
    if (errno == ERANGE || value > max) {
        return -ERANGE;
    }
    *ret = value;
    return 0;
}

int text_to_bytes(const char *text, uint64_t *ret)
{
    static const char units[] = "KMGTP";
    double value = 0;
    const char *unit = NULL;
    int r = number(text, &value, &unit);
    if (r < 0) {
        return r;
    }
    if (*unit != '\0' && *unit != 'B') {
        const char *at = strchr(units, toupper((unsigned char)*unit));
        if (at == NULL) {
            return -EINVAL;
        }
        for (const char *u = units; u <= at; u++) {
            value *= 1024;
        }
        unit++;
        unit += *unit == 'i' ? 1 : 0;
    }
    unit += *unit == 'B' ? 1 : 0;
    if (*unit != '\0') {
        return -EINVAL;
    }
    if (value >= (double)INT64_MAX) {
        return -ERANGE;
    }
    *ret = (uint64_t)value;
    return 0;
}

int text_to_ms(const char *text, uint64_t bare_ms, uint64_t *ret)
{
    double value = 0;
    const char *unit = NULL;
    int r = number(text, &value, &unit);
    if (r < 0) {
        return r;
    }
    if (*unit == '\0') {
        value *= (double)bare_ms;
    } else if (strcmp(unit, "s") == 0) {
        value *= 1000;
    } else if (strcmp(unit, "m") == 0) {
        value *= 60000;
    } else if (strcmp(unit, "h") == 0) {
        value *= 3600000;
    } else if (strcmp(unit, "ms") != 0) {
        return -EINVAL;
    }
    if (value >= (double)INT64_MAX) {
        return -ERANGE;
    }
    *ret = (uint64_t)value;
    return 0;
}

const char *text_bytes(uint64_t bytes, char out[TEXT_BYTES_MAX])
{
    static const char *const units[] = {"bytes", "KiB", "MiB", "GiB",
                                        "TiB",   "PiB", "EiB"};
    double value = (double)bytes;
    unsigned unit = 0;
    while (value >= 1024 && unit < 6) {
        value /= 1024;
        unit++;
    }
    int digits = unit == 0 || value >= 100 ? 0 : 1;
    (void)snprintf(out, TEXT_BYTES_MAX, "%.*f %s", digits, value, units[unit]);
    return out;
}

const char *text_span(double seconds, char out[TEXT_SPAN_MAX])
{
    if (!(seconds >= 0) || seconds > 1e9) {
        seconds = 0;
    }
    unsigned whole = (unsigned)(seconds + 0.5);
    if (seconds < 10) {
        (void)snprintf(out, TEXT_SPAN_MAX, "%.1f s", seconds);
    } else if (whole < 60) {
        (void)snprintf(out, TEXT_SPAN_MAX, "%u s", whole);
    } else if (whole < 3600) {
        (void)snprintf(out, TEXT_SPAN_MAX, "%um%02us", whole / 60, whole % 60);
    } else {
        (void)snprintf(out, TEXT_SPAN_MAX, "%uh%02um", whole / 3600,
                       whole / 60 % 60);
    }
    return out;
}

char *text_printf(const char *fmt, ...)
{
    char *text = NULL;
    va_list ap;
    va_start(ap, fmt);
    int n = vasprintf(&text, fmt, ap);
    va_end(ap);
    return n < 0 ? NULL : text;
}

char *text_tame(char *text)
{
    for (char *c = text; c != NULL && *c != '\0';) {
        size_t n = character(c);
        if (n == 0) {
            *c++ = '?';
            continue;
        }
        if (iscntrl((unsigned char)*c)) {
            *c = ' ';
        }
        c += n;
    }
    return text;
}

/* The bytes of a UTF-8 character that is shaped like one, else 0. */
static size_t character(const char *text)
{
    unsigned char first = (unsigned char)*text;
    size_t n = first < 0x80                    ? 1
               : first >= 0xC2 && first < 0xE0 ? 2
               : (first & 0xF0U) == 0xE0       ? 3
               : first >= 0xF0 && first < 0xF5 ? 4
                                               : 0;
    for (size_t i = 1; i < n; i++) {
        if (((unsigned char)text[i] & 0xC0U) != 0x80U) {
            return 0;
        }
    }
    return n;
}

/* Digits and at most one point: no sign, no exponent, no "inf". */
static int number(const char *text, double *ret, const char **ret_unit)
{
    size_t n = strspn(text, "0123456789.");
    char digits[32];
    if (n == 0 || n >= sizeof(digits) || !isdigit((unsigned char)text[0])) {
        return -EINVAL;
    }
    memcpy(digits, text, n);
    digits[n] = '\0';
    char *end = NULL;
    *ret = strtod(digits, &end);
    *ret_unit = text + n;
    return *end == '\0' ? 0 : -EINVAL;
}
