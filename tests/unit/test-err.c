/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <criterion/criterion.h>
#include <errno.h>

#include "base/cleanup.h"
#include "base/err.h"
#include "base/str.h"

TestSuite(err, .timeout = 10);

Test(err, set_returns_the_code_and_keeps_the_words)
{
    _cleanup_err_ struct err *err = NULL;
    cr_assert_eq(err_set(&err, -ENOSPC, "disk 'd0'", "has %d bytes", 7),
                 -ENOSPC);
    _cleanup_free_ char *text = err_text(err);
    cr_assert_str_eq(text, "disk 'd0': has 7 bytes");
    cr_assert_str_eq(err->class, "ENOSPC");
    cr_assert_eq(err_code(err, -EIO), -ENOSPC);
    cr_assert_eq(err_code(NULL, -EIO), -EIO);
}

Test(err, nobody_who_listens_is_fine)
{
    cr_assert_eq(err_set(NULL, -EINVAL, NULL, "x"), -EINVAL);
    cr_assert_null(err_copy(NULL));
    cr_assert_null(err_free(NULL));
    struct err *none = NULL;
    err_hint(&none, "y");
    err_prefix(&none, "z");
    cr_assert_null(none);
}

Test(err, words_of_qemu_are_kept_verbatim)
{
    _cleanup_err_ struct err *err = NULL;
    int r = err_set_qmp(&err, "node 'x'", "blockdev-add", "GenericError",
                        "Could not open '/X': No such file");
    cr_assert_eq(r, err->code);
    cr_assert_str_eq(err->class, "GenericError");
    cr_assert_str_eq(err->desc, "Could not open '/X': No such file");
    _cleanup_free_ char *text = err_text(err);
    cr_assert_str_eq(text, "node 'x': blockdev-add failed: Could not open"
                           " '/X': No such file");
}

Test(err, one_that_is_there_is_replaced)
{
    _cleanup_err_ struct err *err = NULL;
    (void)err_set(&err, -EIO, "a", "first");
    (void)err_set(&err, -EPERM, "b", "second");
    cr_assert_eq(err->code, -EPERM);
    cr_assert_str_eq(err->desc, "second");
}

Test(err, json_and_back_is_the_same)
{
    _cleanup_err_ struct err *err = NULL;
    (void)err_set(&err, -EBUSY, "vm", "is claimed");
    err_hint(&err, "wait for %s", "it");
    err_prefix(&err, "disk '%s'", "d1");
    json_auto_t *json = err_to_json(err);
    _cleanup_err_ struct err *back = err_from_json(json);
    json_auto_t *again = err_to_json(back);
    cr_assert(json_equal(json, again));
    cr_assert(str_eq(back->hint, "wait for it"));
    cr_assert_null(json_object_get(json, "command"));
    _cleanup_err_ struct err *copy = err_copy(err);
    _cleanup_free_ char *a = err_text(err), *b = err_text(copy);
    cr_assert_str_eq(a, b);
}
