// SPDX-License-Identifier: LGPL-2.1-or-later
// The same test in the other language.
#include "header.c"
