/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Preloaded into QEMU: what was got by calloc() and has FENCE bytes lies on a
 * page of its own, and whoever touches it after free() ends at once. A mirror
 * of 64 MiB has such a bitmap of what is in flight, of 128 bytes.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { PAGE = 4096, REGION = 64 * 1024 * 1024 };

void *real_malloc(size_t size) __asm__("__libc_malloc");
void *real_calloc(size_t n, size_t size) __asm__("__libc_calloc");
void *real_realloc(void *memory, size_t size) __asm__("__libc_realloc");
void real_free(void *memory) __asm__("__libc_free");

static char *region;
static size_t used;

static size_t fenced_size(void)
{
    const char *fence = getenv("FENCE");
    return fence != NULL ? strtoul(fence, NULL, 10) : 0;
}

static int is_fenced(const void *memory)
{
    uintptr_t at = (uintptr_t)memory, begin = (uintptr_t)region;
    return region != NULL && at >= begin && at < begin + REGION;
}

__attribute__((constructor)) static void reserve(void)
{
    void *pages = mmap(NULL, REGION, PROT_NONE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    region = pages != MAP_FAILED ? pages : NULL;
}

void *calloc(size_t n, size_t size)
{
    if (region == NULL || n * size == 0 || n * size != fenced_size()) {
        return real_calloc(n, size);
    }
    size_t at = __atomic_fetch_add(&used, PAGE, __ATOMIC_SEQ_CST);
    if (at >= REGION ||
        mprotect(region + at, PAGE, PROT_READ | PROT_WRITE) != 0) {
        return real_calloc(n, size);
    }
    return region + at;
}

void free(void *memory)
{
    if (is_fenced(memory)) {
        (void)mprotect(memory, PAGE, PROT_NONE);
    } else {
        real_free(memory);
    }
}

void *realloc(void *memory, size_t size)
{
    if (!is_fenced(memory)) {
        return real_realloc(memory, size);
    }
    size_t had = fenced_size();
    void *moved = real_malloc(size);
    if (moved != NULL) {
        (void)memcpy(moved, memory, had < size ? had : size);
        free(memory);
    }
    return moved;
}
