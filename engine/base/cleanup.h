/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Scope-bound release of locals. A variable marked with _cleanup_(fn) is
 * released when it goes out of scope; TAKE_PTR() hands it over instead. JSON
 * has jansson's own json_auto_t.
 */
#pragma once

#include <stddef.h>
#include <stdlib.h>
#include <unistd.h>

#define _cleanup_(fn) __attribute__((cleanup(fn)))
#define _unused_ __attribute__((unused))

/* Returns the pointer and sets the variable to NULL: ownership moves on. */
#define TAKE_PTR(p)                                                            \
    ({                                                                         \
        __typeof__(p) *_pp = &(p);                                             \
        __typeof__(p) _taken = *_pp;                                           \
        *_pp = NULL;                                                           \
        _taken;                                                                \
    })

#define TAKE_FD(fd)                                                            \
    ({                                                                         \
        int *_fdp = &(fd);                                                     \
        int _taken = *_fdp;                                                    \
        *_fdp = -1;                                                            \
        _taken;                                                                \
    })

/* Defines <name>p(): what _cleanup_() calls for a pointer to 'type'. */
#define DEFINE_CLEANUP(type, name)                                             \
    static inline void name##p(type **p)                                       \
    {                                                                          \
        if (*p != NULL) {                                                      \
            (void)name(*p);                                                    \
        }                                                                      \
    }

static inline void freep(void *p)
{
    free(*(void **)p);
}

static inline void closep(const int *fd)
{
    if (*fd >= 0) {
        (void)close(*fd);
    }
}

#define _cleanup_free_ _cleanup_(freep)
#define _cleanup_close_ _cleanup_(closep)

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

#define container_of(ptr, type, member)                                        \
    ((type *)(void *)((char *)(ptr)-offsetof(type, member)))
