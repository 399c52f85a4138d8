/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/command.h"
#include "base/err.h"

TestSuite(command, .timeout = 30);

/* As from one who writes faster than he is read. */
static bool floods;
static bool spares; /* SIGKILL does nothing, as to one stuck in the kernel */
static pid_t spared;

ssize_t __real_read(int fd, void *buffer, size_t size);
ssize_t __wrap_read(int fd, void *buffer, size_t size);
int __real_kill(pid_t pid, int number);
int __wrap_kill(pid_t pid, int number);

ssize_t __wrap_read(int fd, void *buffer, size_t size)
{
    if (floods) {
        memset(buffer, 'x', size);
        return (ssize_t)size;
    }
    return __real_read(fd, buffer, size);
}

int __wrap_kill(pid_t pid, int number)
{
    if (spares) {
        spared = -pid;
        return 0;
    }
    return __real_kill(pid, number);
}

static struct command_result run(const char *script, unsigned timeout_ms,
                                 int wanted)
{
    const char *const argv[] = {"sh", "-c", script, "sh", "a b", NULL};
    struct command_result result = {0};
    cr_assert_eq(command_run(argv, timeout_ms, &result, NULL), wanted);
    return result;
}

Test(command, both_texts_and_the_exit_code_come_back)
{
    struct command_result result =
        run("echo \"$1\"; echo no >&2; exit 17", 10000, 0);
    cr_assert_eq(result.status, 17);
    cr_assert_str_eq(result.output, "a b\n");
    cr_assert_str_eq(result.errors, "no\n");
    command_result_done(&result);
}

Test(command, missing_program_is_enoent)
{
    const char *const argv[] = {"no-such-program-of-ours", NULL};
    struct command_result result = {0};
    _cleanup_err_ struct err *err = NULL;
    cr_assert_eq(command_run(argv, 1000, &result, &err), -ENOENT);
    cr_assert_str_eq(err->object, "no-such-program-of-ours");
    cr_assert_null(result.output);
}

Test(command, late_one_is_killed)
{
    struct command_result result =
        run("sleep 100 & sleep 100", 200, -ETIMEDOUT);
    cr_assert_null(result.output);
}

/* What it leaves running has its pipes still. */
Test(command, its_end_is_enough)
{
    struct command_result result = run("sleep 20 & echo $!", 10000, 0);
    cr_assert_eq(result.status, 0);
    (void)kill((pid_t)strtol(result.output, NULL, 10), SIGKILL);
    command_result_done(&result);
}

Test(command, much_text_is_cut)
{
    struct command_result result =
        run("head -c 1000000 /dev/zero | tr '\\0' x", 20000, 0);
    cr_assert_eq(strlen(result.output), 256 * 1024);
    command_result_done(&result);
}

Test(command, signal_is_told)
{
    struct command_result result = run("kill -TERM $$", 10000, 0);
    cr_assert_eq(result.status, 128 + SIGTERM);
    command_result_done(&result);
}

Test(command, messages_are_english)
{
    cr_assert_eq(setenv("LC_ALL", "xx_XX", 1), 0);
    struct command_result result = run("echo $LC_ALL", 10000, 0);
    cr_assert_str_eq(result.output, "C\n");
    command_result_done(&result);
}

Test(command, endless_text_does_not_outlast_the_deadline)
{
    floods = true;
    (void)run("sleep 100", 200, -ETIMEDOUT);
}

Test(command, one_that_cannot_be_killed_is_reaped_later)
{
    siginfo_t info;
    spares = true;
    (void)run("exec sleep 100", 100, -ETIMEDOUT);
    spares = false;
    cr_assert_gt(spared, 0);
    cr_assert_eq(kill(spared, SIGKILL), 0);
    cr_assert_eq(waitid(P_PID, (id_t)spared, &info, WEXITED | WNOWAIT), 0);
    struct command_result result = run("true", 10000, 0);
    command_result_done(&result);
    cr_assert_eq(waitpid(spared, NULL, WNOHANG), -1, "it is a zombie still");
    cr_assert_eq(errno, ECHILD);
}
