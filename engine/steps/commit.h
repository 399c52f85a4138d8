/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What an overlay holds goes into the image below it while the guest runs, and
 * the guest goes on there: block-commit of an active layer. It looks first,
 * each time, so that it can be begun anew at any point.
 */
#pragma once

#include "run/step.h"

/* the landing into the target */
step_fn commit_run;
step_command_fn commit_command;
/* the overlay into the source; a disk that is on no overlay is success */
step_fn commit_back;
/*
 * Dismisses the job that did either, and then calls 'then': the end of the step
 * is recorded by now, and the job was the proof of it.
 */
void commit_clear(struct act *act, step_fn *then);
