/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* LINSTOR's side door: tests have no such devices. */
#pragma once

#include <sys/types.h>

/*
 * Where devices and their sizes are, what a device is (S_IFBLK), how long a
 * new one may take to become usable, and a removal to come true.
 */
struct linstor_places {
    const char *dev;
    const char *sys;
    mode_t kind;
    unsigned ready_ms;
    unsigned gone_ms;
    unsigned call_ms;  /* one change */
    unsigned again_ms; /* between two looks */
};

/* NULL: the system's own again. */
void linstor_set_places_for_tests(const struct linstor_places *places);
const struct linstor_places *linstor_places(void);
