/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The text of a volume's name: SCHEME:REST?NAME=VALUE&... or a plain path.
 * It knows percent-encoding and what may be said in a message, and no scheme's
 * meaning.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"

struct err;

enum { URI_OPTIONS_MAX = 16, URI_LENGTH_MAX = 16384 };

struct uri_option {
    char *name;
    char *value; /* decoded */
    bool taken;
};

struct uri {
    char *text;
    char *scheme;
    char *rest;   /* between the scheme's ':' and the '?', not decoded */
    char *object; /* for messages: no options, no user and password */
    bool plain;   /* a path without scheme: nothing to decode in 'rest' */
    struct uri_option options[URI_OPTIONS_MAX];
    unsigned option_count;
};

/* -EINVAL with a message; 'ret' is to be released with uri_done() anyway. */
int uri_split(const char *text, struct uri *ret, struct err **errp);
void uri_done(struct uri *uri);
#define _cleanup_uri_ _cleanup_(uri_done)

/* The value of an option that the caller knows, or NULL; marks it as known. */
const char *uri_take(struct uri *uri, const char *name);

/* Decodes 'length' bytes of 'rest' to new text; a %00 is refused. */
int uri_decode(const struct uri *uri, const char *part, size_t length,
               char **ret, struct err **errp);

/* New text in which all but letters, digits and "-._~/" is %XX; or NULL. */
char *uri_encode(const char *text);

/* "?name=value" or "&name=value" onto the URI '*text'; -ENOMEM. No value,
 * no option. */
int uri_append(char **text, const char *name, const char *value);

/*
 * "//host[:port]/path" as nfs: and nbd: have it. 'ret_port' is 0 if none is
 * given; [::1] loses its brackets; the path keeps its leading '/'.
 */
int uri_authority(const struct uri *uri, char **ret_host, uint16_t *ret_port,
                  char **ret_path, struct err **errp);
