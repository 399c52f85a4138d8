/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The registry's side door: tests put their own storage kind in front. */
#pragma once

struct backend_ops;

/* 'ops' comes before all others from now on; NULL takes it away again. */
void registry_add_for_tests(const struct backend_ops *ops);

/* The backends, each in its own file; absent where the build lacks it. */
extern const struct backend_ops backend_file;
extern const struct backend_ops backend_block;
extern const struct backend_ops backend_drbd;
extern const struct backend_ops backend_nfs;
extern const struct backend_ops backend_rbd;
extern const struct backend_ops backend_nbd;
extern const struct backend_ops backend_linstor;
