/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <criterion/criterion.h>

#include "policy/alive.h"

enum { BEGIN = 50000 };

static struct alive begun(uint64_t give_up_ms)
{
    struct alive alive = {.limits.give_up_ms = give_up_ms};
    alive_begin(&alive, BEGIN);
    return alive;
}

Test(alive, it_is_asked_now_and_then)
{
    struct alive alive = begun(300000);
    cr_assert_not(alive_is_due(&alive, BEGIN + 9999));
    cr_assert(alive_is_due(&alive, BEGIN + 10000));
    alive_asked(&alive, BEGIN + 10000);
    cr_assert_not(alive_is_due(&alive, BEGIN + 90000), "one at a time");
    alive_answered(&alive, BEGIN + 10050, true);
    cr_assert_not(alive_is_due(&alive, BEGIN + 19999));
    cr_assert(alive_is_due(&alive, BEGIN + 20000));
    cr_assert_eq(alive_look(&alive, BEGIN + 20000), ALIVE_FINE);
}

Test(alive, a_short_limit_is_asked_in_time)
{
    struct alive alive = begun(4000);
    cr_assert(alive_is_due(&alive, BEGIN + 2000));
    alive_asked(&alive, BEGIN + 2000);
    cr_assert_eq(alive_look(&alive, BEGIN + 2999), ALIVE_FINE);
    cr_assert_eq(alive_look(&alive, BEGIN + 3000), ALIVE_SILENT);
    cr_assert_eq(alive_look(&alive, BEGIN + 4000), ALIVE_DEAD);
}

Test(alive, silence_is_told_once_and_so_is_its_end)
{
    struct alive alive = begun(300000);
    alive_asked(&alive, BEGIN + 10000);
    cr_assert_eq(alive_look(&alive, BEGIN + 13999), ALIVE_FINE);
    cr_assert_eq(alive_look(&alive, BEGIN + 14000), ALIVE_SILENT);
    cr_assert_eq(alive_silent_ms(&alive, BEGIN + 14000), 14000U);
    cr_assert_eq(alive_look(&alive, BEGIN + 15000), ALIVE_FINE);
    alive_answered(&alive, BEGIN + 20000, false);
    cr_assert(alive_is_due(&alive, BEGIN + 20000), "sooner while it is silent");
    alive_asked(&alive, BEGIN + 20000);
    cr_assert_eq(alive_look(&alive, BEGIN + 20000), ALIVE_FINE);
    alive_answered(&alive, BEGIN + 20100, true);
    cr_assert_eq(alive_look(&alive, BEGIN + 20200), ALIVE_BACK);
    cr_assert_eq(alive_look(&alive, BEGIN + 20300), ALIVE_FINE);
    cr_assert_eq(alive_silent_ms(&alive, BEGIN + 20300), 0U);
}

Test(alive, an_error_is_silence_at_once)
{
    struct alive alive = begun(300000);
    alive_asked(&alive, BEGIN + 10000);
    alive_answered(&alive, BEGIN + 10010, false);
    cr_assert_eq(alive_look(&alive, BEGIN + 10020), ALIVE_SILENT);
}

Test(alive, it_is_dead_after_the_limit_and_not_before)
{
    struct alive alive = begun(30000);
    alive_asked(&alive, BEGIN + 10000);
    alive_answered(&alive, BEGIN + 10010, false);
    (void)alive_look(&alive, BEGIN + 10020);
    cr_assert_eq(alive_look(&alive, BEGIN + 29999), ALIVE_FINE);
    cr_assert_eq(alive_look(&alive, BEGIN + 30000), ALIVE_DEAD);
}

Test(alive, an_answer_that_only_takes_long_is_no_silence)
{
    struct alive alive = begun(16000);
    alive_asked(&alive, BEGIN + 13000);
    cr_assert_eq(alive_look(&alive, BEGIN + 16500), ALIVE_FINE);
    alive_answered(&alive, BEGIN + 16600, true);
    cr_assert_eq(alive_look(&alive, BEGIN + 16700), ALIVE_FINE);
}

Test(alive, without_a_limit_it_is_never_dead)
{
    struct alive alive = begun(0);
    alive_asked(&alive, BEGIN + 10000);
    alive_answered(&alive, BEGIN + 10010, false);
    (void)alive_look(&alive, BEGIN + 10020);
    cr_assert_eq(alive_look(&alive, UINT64_MAX / 2), ALIVE_FINE);
}
