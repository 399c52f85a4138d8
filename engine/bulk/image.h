/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* An empty image in a format of QEMU's, made by qemu-img. */
#pragma once

#include <stdint.h>

struct err;
struct volume;

/* In the volume, which exists; blocking, bounded, in a worker. */
int image_create(const struct volume *volume, uint64_t size, struct err **errp);
