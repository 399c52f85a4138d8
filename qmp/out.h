/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Bytes on their way out of this process. They may hold secrets: what was
 * sent is overwritten, and growing leaves no copy behind.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

struct out {
    char *data;
    size_t allocated;
    size_t sent; /* bytes before it are gone */
    size_t end;
};

void out_done(struct out *out);
int out_append(struct out *out, const char *bytes, size_t n);
/* Sends what the socket takes now; what is left is no error. */
int out_flush(struct out *out, int fd);
bool out_empty(const struct out *out);
