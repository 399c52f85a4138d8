/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "drbd-command.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/command.h"
#include "base/err.h"
#include "base/str.h"

enum {
    LOOK_MS = 10000,   /* to ask the kernel */
    CHANGE_MS = 30000, /* a state change of the cluster */
    ADJUST_MS = 60000, /* attach, connect, and what a module's load takes */
    CLOSING_MS = 5000, /* QEMU and udev let go of a device a little later */
    AGAIN_MS = 100,
};

static int run(const struct drbd_name *name, const char *const *argv,
               unsigned timeout_ms, struct command_result *ret,
               struct err **errp)
{
    int r = command_run(argv, timeout_ms, ret, errp);
    if (r == -ENOENT) {
        (void)err_set(errp, r, name->object, "there is no program '%s'",
                      argv[0]);
        err_hint(errp, "install drbd-utils; its programs are in /usr/sbin,"
                       " which PATH must name");
    } else if (r < 0) {
        err_prefix(errp, "%s", name->object);
    }
    return r;
}

static bool failed_as(const struct command_result *result,
                      bool (*says)(const char *))
{
    return result->status != 0 &&
           (says(result->errors) || says(result->output));
}

static int refused(const struct drbd_name *name, const char *what,
                   const struct command_result *result, struct err **errp)
{
    const char *words =
        *result->errors != '\0' ? result->errors : result->output;
    return drbd_refusal(name->object, what, result->status, words, errp);
}

/* --- looking --- */

static int look_promotion(const struct drbd_name *name, bool *ret_manual,
                          struct err **errp)
{
    const char *const show[] = {"drbdsetup", "show", name->resource, NULL};
    _cleanup_command_ struct command_result result = {0};
    int r = run(name, show, LOOK_MS, &result, errp);
    if (r == 0 && result.status != 0) {
        r = refused(name, "drbdsetup show", &result, errp);
    }
    if (r == 0) {
        *ret_manual = !drbd_promotes_itself(result.output);
    }
    return r;
}

/* By what 9 says, which 8.4 does not know; its way is the other one. */
static int ask_status(const struct drbd_name *name,
                      struct command_result *result, bool *ret_nine,
                      struct err **errp)
{
    const char *const json[] = {"drbdsetup", "status", name->resource, "--json",
                                NULL};
    const char *const text[] = {"drbdsetup", "status",       name->resource,
                                "--verbose", "--statistics", NULL};
    int r = run(name, json, LOOK_MS, result, errp);
    *ret_nine = r == 0 && !failed_as(result, drbd_says_no_option);
    if (r == 0 && !*ret_nine) {
        command_result_done(result);
        r = run(name, text, LOOK_MS, result, errp);
    }
    return r;
}

int drbd_look(const struct drbd_name *name, struct drbd_status *ret,
              bool *ret_manual, struct err **errp)
{
    _cleanup_command_ struct command_result result = {0};
    bool nine = false;
    int r = ask_status(name, &result, &nine, errp);
    if (r < 0) {
        return r;
    }
    if (failed_as(&result, drbd_says_down)) {
        unsigned minor = 0;
        r = drbd_configured_minor(name, &minor, errp);
        return r == 0 ? DRBD_E_DOWN : r;
    }
    if (result.status != 0) {
        return refused(name, "drbdsetup status", &result, errp);
    }
    r = (nine ? drbd_status_from_json : drbd_status_from_text)(
        result.output, name->resource, name->volume, ret, errp);
    if (r == 0 && !ret->found) {
        return DRBD_E_UNDEFINED;
    }
    if (r == 0 && ret_manual != NULL) {
        *ret_manual = true;
        r = nine ? look_promotion(name, ret_manual, errp) : 0;
    }
    return r;
}

/* "r0/0", as drbdadm names one volume. */
static char *volume_name(const struct drbd_name *name)
{
    return str_printf("%s/%u", name->resource, name->volume);
}

int drbd_configured_minor(const struct drbd_name *name, unsigned *ret,
                          struct err **errp)
{
    _cleanup_free_ char *volume = volume_name(name);
    const char *const argv[] = {"drbdadm", "sh-minor", volume, NULL};
    _cleanup_command_ struct command_result result = {0};
    uint64_t minor = 0;
    int r = volume == NULL ? -ENOMEM : run(name, argv, LOOK_MS, &result, errp);
    if (r < 0) {
        return r;
    }
    if (failed_as(&result, drbd_says_undefined)) {
        return DRBD_E_UNDEFINED;
    }
    if (result.status != 0) {
        return refused(name, "drbdadm sh-minor", &result, errp);
    }
    result.output[strcspn(result.output, "\n")] = '\0';
    if (str_to_u64(result.output, 1 << 20, &minor) < 0) {
        return err_set(errp, -EPROTO, name->object,
                       "drbdadm sh-minor: '%.32s' is no number", result.output);
    }
    *ret = (unsigned)minor;
    return 0;
}

uint64_t drbd_stored_size(const struct drbd_name *name)
{
    _cleanup_free_ char *volume = volume_name(name);
    const char *const argv[] = {"drbdadm", "dump-md", volume, NULL};
    _cleanup_command_ struct command_result result = {0};
    if (volume == NULL || run(name, argv, LOOK_MS, &result, NULL) < 0 ||
        result.status != 0) {
        return 0;
    }
    return drbd_metadata_size(result.output);
}

char *drbd_backing(const struct drbd_name *name)
{
    _cleanup_free_ char *volume = volume_name(name);
    const char *const argv[] = {"drbdadm", "sh-ll-dev", volume, NULL};
    _cleanup_command_ struct command_result result = {0};
    if (volume == NULL || run(name, argv, LOOK_MS, &result, NULL) < 0 ||
        result.status != 0) {
        return NULL;
    }
    result.output[strcspn(result.output, "\n")] = '\0';
    return result.output[0] == '/' ? TAKE_PTR(result.output) : NULL;
}

/* --- changing --- */

static int change(const struct drbd_name *name, const char *verb,
                  unsigned timeout_ms, int *ret_number, struct err **errp)
{
    const char *const argv[] = {"drbdadm", verb, name->resource, NULL};
    _cleanup_command_ struct command_result result = {0};
    int r = run(name, argv, timeout_ms, &result, errp);
    if (r == 0 && result.status != 0) {
        char what[32];
        (void)snprintf(what, sizeof(what), "drbdadm %s", verb);
        *ret_number = drbd_refusal_number(result.errors);
        r = refused(name, what, &result, errp);
    }
    return r;
}

static uint64_t now_ms(void)
{
    struct timespec now = {0};
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* Refused with one of these, it is worth another try within the time. */
static int change_in(const struct drbd_name *name, const char *verb,
                     const int *again, unsigned n_again, struct err **errp)
{
    struct timespec pause = {.tv_nsec = AGAIN_MS * 1000000L};
    uint64_t end = now_ms() + CLOSING_MS;
    int r = 0;
    for (;;) {
        _cleanup_err_ struct err *err = NULL;
        int number = 0;
        bool worth = false;
        r = change(name, verb, CHANGE_MS, &number, &err);
        for (unsigned i = 0; r < 0 && i < n_again; i++) {
            worth = worth || again[i] == number;
        }
        if (!worth || now_ms() >= end) {
            if (errp != NULL) {
                *errp = TAKE_PTR(err);
            }
            return r;
        }
        (void)nanosleep(&pause, NULL);
    }
}

int drbd_adjust(const struct drbd_name *name, struct err **errp)
{
    int number = 0;
    return change(name, "adjust", ADJUST_MS, &number, errp);
}

int drbd_promote(const struct drbd_name *name, struct err **errp)
{
    static const int again[] = {-8, -18, -19}; /* a state that changes */
    return change_in(name, "primary", again, ARRAY_SIZE(again), errp);
}

int drbd_demote(const struct drbd_name *name, struct err **errp)
{
    static const int again[] = {-12, -18, -19};
    return change_in(name, "secondary", again, ARRAY_SIZE(again), errp);
}

int drbd_down(const struct drbd_name *name, struct err **errp)
{
    static const int again[] = {-12, -18, -19};
    return change_in(name, "down", again, ARRAY_SIZE(again), errp);
}
