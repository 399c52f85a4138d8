/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* DRBD's side door: tests have no such devices. */
#pragma once

#include <sys/types.h>

/*
 * Where devices and their sizes are, what a device is (S_IFBLK), and how long
 * one that was brought up may take to become usable.
 */
struct drbd_places {
    const char *dev;
    const char *sys;
    mode_t kind;
    unsigned ready_ms;
};

/* NULL: the system's own again. */
void drbd_set_places_for_tests(const struct drbd_places *places);
