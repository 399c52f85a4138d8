/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * QEMU's command line as data: reading the options that name a disk, a socket
 * or the machine, and writing a destination's from a source's. Pure.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

struct err;

/*
 * The members of an option's text, both of its forms: keyval text
 * ("driver=raw,file.driver=file", a doubled comma is one) and JSON, flattened
 * to dotted keys with text values. A first word without '=' is the member
 * 'implied' ("driver", "type"), or, with NULL, a flag that is on. New
 * reference; NULL if it is neither, or without memory.
 */
json_t *argv_option(const char *text, const char *implied);

/* A disk as the destination is to have it. */
struct argv_disk {
    const char *device; /* of -device id= */
    /*
     * blockdev-add options of its file and format node, without node names;
     * both NULL: what the command line says is still so. A node that needs
     * none below it has no 'file'.
     */
    json_t *file;
    json_t *node;
};

struct argv_request {
    const char *const *argv; /* the source's, NULL-ended */
    const char *machine;     /* exact machine type, or NULL: as it is */
    const struct argv_disk *disks;
    unsigned n_disks;
    const char *monitor; /* path of the monitor that the engine uses, or NULL */
    const char *monitor_to; /* where the destination's is to be, or NULL */
    bool same_paths; /* another host: sockets and pid file keep their names */
};

/*
 * {"argv":[...],"notes":[...],"monitor":PATH}: the destination's command line,
 * ending in -S -incoming defer, and what a person should know of it. -EINVAL:
 * a disk that is not on the command line in a form that can be replaced.
 */
int argv_destination(const struct argv_request *request, json_t **ret,
                     struct err **errp);
