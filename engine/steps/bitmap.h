/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Steps about the dirty bitmaps of a VM that goes to another QEMU. The stream
 * carries them, but for persistent ones of a disk that both QEMUs share: those
 * are in the image, which the source stores and the destination loads.
 */
#pragma once

#include "run/step.h"

/* Whether the stream carries it; 'bitmap' is one of plan_disk.bitmaps. */
bool bitmap_is_streamed(const struct plan_disk *disk, const json_t *bitmap);
/* Of the disk, or with NULL of any: when the stream carries some. */
step_when_fn bitmaps_are_streamed;
/* The same of those that go over in any way. */
step_when_fn bitmaps_are_carried;

/* block-bitmap-mapping of the step's QEMU, and back */
step_fn bitmaps_map, bitmaps_unmap;
step_command_fn bitmaps_map_command, bitmaps_map_command_there;

/* they are as planned; undo: QEMU stores those again that a stream has taken */
step_fn bitmaps_check, bitmaps_keep;
/* while the guest still runs: the destination has made them all */
step_fn bitmaps_arrive;
/* the destination's disk has them, each as it was */
step_fn bitmaps_prove;
