/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* An operation of the journal as one HTML page that needs no other file. */
#pragma once

#include <jansson.h>
#include <stdio.h>

/* 'operation' as qpivot_show() tells it, 'state' as people read it. */
void report_write(FILE *out, const json_t *operation, const char *state);
