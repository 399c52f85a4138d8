/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "vm/names.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "base/str.h"

enum { OP_ID_LENGTH = 6 };

static const char alphabet[] = "abcdefghijklmnopqrstuvwxyz0123456789";

struct name name_of(const char *op, unsigned disk, enum name_what what)
{
    static const char *const suffixes[] = {
        [NAME_TARGET] = "",        [NAME_IMAGE] = "-image",
        [NAME_FILE] = "-file",     [NAME_MIRROR] = "-mirror",
        [NAME_TOP] = "-top",       [NAME_CREATE] = "-create",
        [NAME_KEY] = "-key",       [NAME_VOLUME] = "-new",
        [NAME_EXPORT] = "-export", [NAME_SCRATCH] = "-scratch",
        [NAME_DIRTY0] = "-dirty0", [NAME_DIRTY1] = "-dirty1",
        [NAME_TWIN] = "-twin",     [NAME_TWIN_TOP] = "-twin-top",
        [NAME_UNLINK] = "-unlink", [NAME_BASE] = "-base",
        [NAME_OVERLAY] = "-ov",    [NAME_OVERLAY_FILE] = "-ov-file",
        [NAME_LANDING] = "-land",  [NAME_LANDING_FILE] = "-land-file",
        [NAME_COMMIT] = "-commit", [NAME_COMMIT_TOP] = "-commit-top",
    };
    struct name name;
    (void)snprintf(name.text, sizeof(name.text), "qpv-%s-d%u%s", op, disk,
                   suffixes[what]);
    return name;
}

struct name name_once(const char *op, enum name_once what)
{
    static const char *const suffixes[] = {
        [NAME_TLS] = "tls",
        [NAME_AUTHZ] = "authz",
        [NAME_STREAM] = "stream",
        [NAME_EXPORTS] = "exports",
    };
    struct name name;
    (void)snprintf(name.text, sizeof(name.text), "qpv-%s-%s", op,
                   suffixes[what]);
    return name;
}

static bool ends_with(const char *name, const char *end)
{
    size_t n = strlen(name), length = strlen(end);
    return n > length && str_eq(name + n - length, end);
}

bool name_is_overlay(const char *name)
{
    return name_is_ours(name) &&
           (ends_with(name, "-ov") || ends_with(name, "-ov-file"));
}

bool name_is_ours(const char *name)
{
    return str_starts(name, "qpv-");
}

bool name_operation(const char *name, char ret[OP_ID_SIZE])
{
    static const char prefix[] = "qpv-";
    ret[0] = '\0';
    if (name == NULL || !str_starts(name, prefix)) {
        return false;
    }
    const char *id = name + strlen(prefix);
    size_t n = strspn(id, alphabet);
    if (n != OP_ID_LENGTH || id[n] != '-') {
        return false;
    }
    memcpy(ret, id, n);
    ret[n] = '\0';
    return true;
}

void op_id_from(const unsigned char random[8], char ret[OP_ID_SIZE])
{
    uint64_t n;
    memcpy(&n, random, sizeof(n));
    for (unsigned i = 0; i < OP_ID_LENGTH; i++) {
        ret[i] = alphabet[n % (sizeof(alphabet) - 1)];
        n /= sizeof(alphabet) - 1;
    }
    ret[OP_ID_LENGTH] = '\0';
}

bool op_id_valid(const char *id)
{
    return id != NULL && strlen(id) == OP_ID_LENGTH &&
           strspn(id, alphabet) == OP_ID_LENGTH;
}
