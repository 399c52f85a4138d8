/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "qmp/out.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

void out_done(struct out *out)
{
    if (out->data != NULL) {
        explicit_bzero(out->data, out->allocated);
        free(out->data);
    }
    *out = (struct out){0};
}

int out_append(struct out *out, const char *bytes, size_t n)
{
    if (out->sent > 0) {
        memmove(out->data, out->data + out->sent, out->end - out->sent);
        out->end -= out->sent;
        out->sent = 0;
    }
    if (out->allocated - out->end < n) {
        size_t size = out->allocated ? out->allocated : 4096;
        while (size - out->end < n) {
            size *= 2;
        }
        char *data = malloc(size); /* realloc() would leave a copy behind */
        if (data == NULL) {
            return -ENOMEM;
        }
        size_t end = out->end;
        if (end > 0) {
            memcpy(data, out->data, end);
        }
        out_done(out);
        out->data = data;
        out->allocated = size;
        out->end = end;
    }
    memcpy(out->data + out->end, bytes, n);
    out->end += n;
    return 0;
}

int out_flush(struct out *out, int fd)
{
    while (out->sent < out->end) {
        ssize_t n = send(fd, out->data + out->sent, out->end - out->sent,
                         MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return errno == EAGAIN ? 0 : -errno;
        }
        out->sent += (size_t)n;
    }
    if (out->end > 0) {
        explicit_bzero(out->data, out->end);
    }
    out->sent = 0;
    out->end = 0;
    return 0;
}

bool out_empty(const struct out *out)
{
    return out->sent == out->end;
}
