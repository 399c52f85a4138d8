/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <criterion/criterion.h>
#include <string.h>

#include "vm/names.h"

TestSuite(names, .timeout = 10);

Test(names, every_name_fits_into_a_node_name_of_qemu)
{
    for (int what = NAME_TARGET; what <= NAME_COMMIT_TOP; what++) {
        struct name name = name_of("k3f9x2", 255, (enum name_what)what);
        cr_assert_leq(strlen(name.text), 31, "%s", name.text);
        cr_assert(name_is_ours(name.text));
        for (int other = NAME_TARGET; other < what; other++) {
            struct name second = name_of("k3f9x2", 255, (enum name_what)other);
            cr_assert_str_neq(name.text, second.text);
        }
    }
    cr_assert_str_eq(name_of("k3f9x2", 0, NAME_TARGET).text, "qpv-k3f9x2-d0");
    cr_assert_str_eq(name_of("k3f9x2", 1, NAME_FILE).text,
                     "qpv-k3f9x2-d1-file");
}

Test(names, what_an_operation_has_once_is_known_as_its_own)
{
    struct name name = name_once("k3f9x2", NAME_TLS);
    char op[OP_ID_SIZE];
    cr_assert_str_eq(name.text, "qpv-k3f9x2-tls");
    cr_assert(name_operation(name.text, op));
    cr_assert_str_eq(op, "k3f9x2");
    cr_assert_str_eq(name_once("k3f9x2", NAME_AUTHZ).text, "qpv-k3f9x2-authz");
}

Test(names, what_is_not_ours_is_told_apart)
{
    cr_assert(name_is_ours(NAME_CLAIM));
    cr_assert(!name_is_ours("qp"));
    cr_assert(!name_is_ours("xqpv-k3f9x2-d0"));
    cr_assert(!name_is_ours("#block123"));
    cr_assert(!name_is_ours(NULL));
}

Test(names, an_id_is_made_of_random_bytes_and_valid)
{
    char a[OP_ID_SIZE], b[OP_ID_SIZE];
    op_id_from((const unsigned char[8]){0}, a);
    op_id_from((const unsigned char[8]){1, 2, 3, 4, 5, 6, 7, 8}, b);
    cr_assert(op_id_valid(a));
    cr_assert(op_id_valid(b));
    cr_assert_str_neq(a, b);
}

Test(names, ids_that_we_never_make_are_refused)
{
    static const char *const bad[] = {
        "", "k3f9x", "k3f9x22", "K3f9x2", "../etc", "k3f-x2", "k3f9x\n",
    };
    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        cr_assert(!op_id_valid(bad[i]), "'%s'", bad[i]);
    }
    cr_assert(!op_id_valid(NULL));
}
