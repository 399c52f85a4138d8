/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The verbs, each in its cmd-<verb>.c; qpivot.c lists them. */
#pragma once

#include "options.h"

extern const struct verb verb_move;
extern const struct verb verb_copy;
extern const struct verb verb_verify;
extern const struct verb verb_migrate;
extern const struct verb verb_doctor;
extern const struct verb verb_recover;
extern const struct verb verb_abort;
extern const struct verb verb_undo;
extern const struct verb verb_list;
extern const struct verb verb_show;
extern const struct verb verb_report;
extern const struct verb verb_destination;
extern const struct verb verb_explain;
extern const struct verb verb_jobs;
extern const struct verb verb_graph;
extern const struct verb verb_monitor;
extern const struct verb verb_watch;
