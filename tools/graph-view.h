/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The block graph as text. Input is the JSON of qpivot_monitor_graph(); it may
 * hold anything QEMU could be made to say: unknown names, cycles, long chains.
 */
#pragma once

#include <jansson.h>
#include <stdio.h>

/* An indented tree below each device, export and job. */
void graph_view_text(const json_t *graph, FILE *out);
/* A digraph for graphviz. */
void graph_view_dot(const json_t *graph, FILE *out);
