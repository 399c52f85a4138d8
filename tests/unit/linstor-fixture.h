/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A controller that stands for LINSTOR's (fake/linstor), which checks every
 * request, and a folder that stands for /dev and /sys. It dies with the test.
 */
#pragma once

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "backends/backend.h"
#include "backends/linstor-private.h"
#include "backends/linstor.h"
#include "base/err.h"
#include "base/str.h"
#include "fake/scratch.h"

#define MIB (UINT64_C(1) << 20)
#define TEMP "qpv-abcdef-0-volume"

static char dir[SCRATCH_PATH];
static char port[16];
static struct linstor_places places;

/* --- the controller --- */

static _unused_ char *in(const char *name)
{
    static char path[4][128];
    static unsigned turn;
    turn = (turn + 1) % 4;
    (void)snprintf(path[turn], sizeof(path[turn]), "%s/%s", dir, name);
    return path[turn];
}

static _unused_ void put(const char *name, const char *text)
{
    FILE *file = fopen(in(name), "we");
    cr_assert_not_null(file, "%s", name);
    cr_assert_geq(fputs(text, file), 0);
    cr_assert_eq(fclose(file), 0);
}

static _unused_ char *get(const char *name)
{
    static char text[65536];
    FILE *file = fopen(in(name), "re");
    text[0] = '\0';
    if (file != NULL) {
        text[fread(text, 1, sizeof(text) - 1, file)] = '\0';
        (void)fclose(file);
    }
    return text;
}

/* Starts one with its files in 'at', and waits until it listens. */
static _unused_ void start_at(const char *at, char ret_port[16],
                              const char *const *more)
{
    const char *data = getenv("QPIVOT_TEST_DATA");
    _cleanup_free_ char *program =
        str_printf("%s/../fake/linstor", data != NULL ? data : ".");
    const char *argv[32] = {"linstor",  at,      "--dev",
                            places.dev, "--sys", places.sys};
    unsigned n = 6;
    int ready[2];
    char word[8] = "";
    while (more != NULL && *more != NULL) {
        argv[n++] = *more++;
    }
    cr_assert_eq(pipe2(ready, O_CLOEXEC), 0);
    pid_t pid = fork();
    cr_assert_geq(pid, 0);
    if (pid == 0) {
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        (void)dup2(ready[1], STDOUT_FILENO);
        (void)execv(program, (char *const *)(uintptr_t)argv);
        _exit(127);
    }
    (void)close(ready[1]);
    cr_assert_gt(read(ready[0], word, sizeof(word)), 0, "it does not start");
    (void)close(ready[0]);
    _cleanup_free_ char *name = str_printf("%s/port", at);
    FILE *file = fopen(name, "re");
    cr_assert_not_null(file);
    cr_assert_not_null(fgets(ret_port, 16, file));
    (void)fclose(file);
    ret_port[strcspn(ret_port, "\n")] = '\0';
}

static _unused_ void start(const char *const *more)
{
    start_at(dir, port, more);
}

static _unused_ void prepare(void)
{
    scratch_make("linstor", dir);
    places = (struct linstor_places){.dev = strdup(in("dev")),
                                     .sys = strdup(in("sys")),
                                     .kind = S_IFREG,
                                     .ready_ms = 2000,
                                     .gone_ms = 1000,
                                     .call_ms = 2000,
                                     .again_ms = 20};
    cr_assert_eq(mkdir(places.dev, 0700), 0);
    cr_assert_eq(mkdir(places.sys, 0700), 0);
    linstor_set_places_for_tests(&places);
}

static _unused_ void tidy(void)
{
    cr_expect_str_eq(get("violations"), "");
    linstor_set_places_for_tests(NULL);
    free((char *)(uintptr_t)places.dev);
    free((char *)(uintptr_t)places.sys);
}
