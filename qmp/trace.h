/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The trace: every message both ways, a line each, without secrets. */
#pragma once

#include <jansson.h>

struct qmp_trace;

/* 'dir' is '>' (to QEMU) or '<'. A trace that fails is no error. */
void trace_message(struct qmp_trace *trace, const char *addr, char dir,
                   const json_t *message);
