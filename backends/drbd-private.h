/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What drbd.c and drbd-attach.c share: a volume, and looking at it. */
#pragma once

#include "backend.h"
#include "drbd-command.h"

struct drbd_volume {
    struct volume volume;
    char *resource;
    unsigned number;
    char *path; /* as last seen, or NULL */
};

struct drbd_volume *drbd_of(const struct volume *volume);
struct drbd_name drbd_name_of(const struct drbd_volume *self);

int drbd_probe(struct volume *volume, struct volume_info *ret,
               struct err **errp);
/* Its device is there, with a size; else 'ret' tells what it lacks. */
bool drbd_is_ready(const struct drbd_status *status, char ret[128]);
unsigned drbd_ready_ms(void); /* how long that may take, and its peers */

/* How it stands on this host, in volume_info.state and the journal. */
extern const char drbd_state_down[];
const char *drbd_state_of(const struct drbd_status *status, bool manual);

/* volume_info.identity of the device. */
void drbd_tell_identity(unsigned minor, char *ret, size_t size);

int drbd_attach(struct volume *volume, const struct volume_planned *planned,
                struct volume_info *ret, struct err **errp);
int drbd_detach(struct volume *volume, const struct volume_planned *planned,
                struct err **errp);
bool drbd_is_attached_with(const struct volume *a, const struct volume *b);
