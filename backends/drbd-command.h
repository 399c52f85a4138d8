/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * DRBD's programs, run: each with a deadline, by words, its refusals told. It
 * knows the command contract of drbd-utils 9 over kernels 8.4 and 9.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "drbd-status.h"

/* What a look can find beside an error. */
enum {
    DRBD_E_DOWN = 1,      /* configured, but the kernel does not know it */
    DRBD_E_UNDEFINED = 2, /* neither: there is none of that name here */
};

/* One volume of a resource, for messages too. */
struct drbd_name {
    const char *object; /* "drbd:r0/0" */
    const char *resource;
    unsigned volume;
};

/*
 * How it stands on this host. 'ret_manual' (NULL: not asked): QEMU's opening
 * does not promote it, as in 8.4, or in 9 with auto-promote off.
 */
int drbd_look(const struct drbd_name *name, struct drbd_status *ret,
              bool *ret_manual, struct err **errp);

/* The minor by its configuration: what it will be when it is up. */
int drbd_configured_minor(const struct drbd_name *name, unsigned *ret,
                          struct err **errp);
/* The size that its metadata tell, for one that is down; 0: unknown. */
uint64_t drbd_stored_size(const struct drbd_name *name);

/* The device below it by its configuration; caller frees; NULL: unknown. */
char *drbd_backing(const struct drbd_name *name);

/* Each as often as one likes: what is so already is success. */
int drbd_adjust(const struct drbd_name *name, struct err **errp);
int drbd_promote(const struct drbd_name *name, struct err **errp);
int drbd_demote(const struct drbd_name *name, struct err **errp);
int drbd_down(const struct drbd_name *name, struct err **errp);
