/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "base/err.h"
#include "base/spawn.h"
#include "base/str.h"

TestSuite(spawn, .timeout = 20);

struct heard {
    unsigned n;
    int code;
    char *output;
    char *why;
};

static void on_end(void *data, const struct err *err, const char *output)
{
    struct heard *heard = data;
    heard->n++;
    heard->code = err_code(err, 0);
    heard->output = output != NULL ? strdup(output) : NULL;
    heard->why = err != NULL ? err_text(err) : NULL;
}

static struct heard run(const char *command, const char *input,
                        const char *const *env, unsigned timeout_ms)
{
    uv_loop_t loop;
    struct heard heard = {0};
    struct spawn *spawn = NULL;
    cr_assert_eq(uv_loop_init(&loop), 0);
    cr_assert_eq(spawn_start(&loop, command, input, env, timeout_ms, on_end,
                             &heard, &spawn, NULL),
                 0);
    cr_assert_eq(heard.n, 0, "never from inside the call");
    (void)uv_run(&loop, UV_RUN_DEFAULT);
    cr_assert_eq(uv_loop_close(&loop), 0);
    cr_assert_eq(heard.n, 1);
    return heard;
}

static void forget(struct heard *heard)
{
    free(heard->output);
    free(heard->why);
}

Test(spawn, input_goes_in_and_output_comes_out)
{
    static const char *const env[] = {"QPIVOT_OP=k3f9x2", NULL};
    struct heard heard =
        run("printf '%s ' \"$QPIVOT_OP\"; cat", "a line", env, 10000);
    cr_assert_eq(heard.code, 0);
    cr_assert_str_eq(heard.output, "k3f9x2 a line");
    forget(&heard);
}

Test(spawn, a_program_that_reads_nothing_is_fine)
{
    enum { LENGTH = 1 << 20 };

    char *input = malloc(LENGTH + 1);
    cr_assert_not_null(input);
    memset(input, 'x', LENGTH);
    input[LENGTH] = '\0';
    struct heard heard = run("exit 0", input, NULL, 10000);
    cr_assert_eq(heard.code, 0);
    forget(&heard);
    free(input);
}

Test(spawn, its_status_and_last_words_are_told)
{
    struct heard heard =
        run("echo first >&2; echo last words >&2; exit 7", NULL, NULL, 10000);
    cr_assert_eq(heard.code, -ECHILD);
    cr_assert_not_null(strstr(heard.why, "7"));
    cr_assert_not_null(strstr(heard.why, "last words"));
    forget(&heard);
}

Test(spawn, one_that_does_not_end_is_killed)
{
    struct heard heard = run("exec tail -f /dev/null", NULL, NULL, 100);
    cr_assert_eq(heard.code, -ETIMEDOUT);
    forget(&heard);
}

Test(spawn, output_is_bounded)
{
    struct heard heard =
        run("head -c 1000000 /dev/zero | tr '\\0' x", NULL, NULL, 10000);
    cr_assert_leq(strlen(heard.output != NULL ? heard.output : ""), 65536);
    forget(&heard);
}

Test(spawn, cancelled_it_calls_nobody)
{
    uv_loop_t loop;
    struct heard heard = {0};
    struct spawn *spawn = NULL;
    cr_assert_eq(uv_loop_init(&loop), 0);
    cr_assert_eq(spawn_start(&loop, "exec tail -f /dev/null", NULL, NULL, 10000,
                             on_end, &heard, &spawn, NULL),
                 0);
    spawn_cancel(spawn);
    (void)uv_run(&loop, UV_RUN_DEFAULT);
    cr_assert_eq(uv_loop_close(&loop), 0);
    cr_assert_eq(heard.n, 0);
}
