/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Errors across the public boundary. */
#pragma once

struct err;

/* As the public JSON text; the caller frees it; NULL without memory. */
char *api_text(const struct err *err);
/* Returns 'code'; on failure sets *ret_error (which may be NULL) from err. */
int api_error(const struct err *err, int code, char **ret_error);
