/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * An NBD server of our own for one connection: it leaves nothing in any file
 * system, however this process ends, and ends with the connection.
 */
#pragma once

#include <sys/types.h>

/*
 * argv[0] is looked for in $PATH. *ret_fd is the connection, for which it is
 * the only one to come. 0 or -E.
 */
int nbd_server_start(char *const argv[], pid_t *ret_pid, int *ret_fd);
/*
 * After the connection was closed: it has let go of the image when this
 * returns. Bounded; one that does not end is killed. Its exit code, or -1.
 */
int nbd_server_end(pid_t pid);
