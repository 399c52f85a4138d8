/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "backends/drbd-status.h"
#include "base/cleanup.h"
#include "base/err.h"
#include "base/str.h"

static char *text_of(const char *name)
{
    const char *data = getenv("QPIVOT_TEST_DATA");
    _cleanup_free_ char *path =
        str_printf("%s/drbd/%s", data != NULL ? data : ".", name);
    FILE *file = fopen(path, "re");
    cr_assert_not_null(file, "%s", path);
    char *text = calloc(1, 16384);
    cr_assert_not_null(text);
    cr_assert_gt(fread(text, 1, 16383, file), 0);
    (void)fclose(file);
    return text;
}

static struct drbd_status read_status(const char *name, unsigned volume)
{
    struct drbd_status status;
    _cleanup_free_ char *text = text_of(name);
    size_t len = strlen(name);
    bool nine = str_eq(name + len - 5, ".json");
    _cleanup_err_ struct err *err = NULL;
    cr_assert_eq((nine ? drbd_status_from_json : drbd_status_from_text)(
                     text, "r0", volume, &status, &err),
                 0, "%s", err != NULL ? err->desc : "?");
    return status;
}

static bool degraded(const struct drbd_status *status, const char *words)
{
    char text[DRBD_DEGRADED];
    bool heals = false;
    drbd_status_degraded(status, text, &heals);
    cr_assert_not_null(strstr(text, words), "'%s' is not in '%s'", words, text);
    cr_assert(*words != '\0' || *text == '\0', "%s", text);
    return heals;
}

Test(drbd_status, eight_is_read)
{
    struct drbd_status status = read_status("uptodate.84", 0);
    cr_assert(drbd_status_is_primary(&status));
    cr_assert(status.found);
    cr_assert_eq(status.minor, 3);
    cr_assert_eq(status.size_kib, 65536);
    cr_assert_str_eq(status.disk, "UpToDate");
    cr_assert_str_eq(status.suspended, "");
    cr_assert_eq(status.n_peers, 1);
    cr_assert_str_eq(status.peers[0].connection, "Connected");
    cr_assert_str_eq(status.peers[0].role, "Secondary");
    cr_assert_null(drbd_status_primary_peer(&status));
    cr_assert_not(degraded(&status, ""));
}

Test(drbd_status, volumes_of_eight_are_told_apart)
{
    struct drbd_status status = read_status("secondary.84", 0);
    cr_assert_eq(status.minor, 3);
    cr_assert_not(degraded(&status, ""));
    cr_assert_not_null(drbd_status_primary_peer(&status));
    status = read_status("secondary.84", 1);
    cr_assert_eq(status.minor, 7);
    cr_assert_str_eq(status.peers[0].replication, "SyncTarget");
    cr_assert(degraded(&status, "disk of this host is Inconsistent"));
    status = read_status("secondary.84", 2);
    cr_assert_not(status.found);
}

Test(drbd_status, lines_may_be_wrapped_anywhere)
{
    _cleanup_free_ char *text = text_of("secondary.84");
    static struct drbd_status one, other;
    memset(&one, 0, sizeof(one));
    memset(&other, 0, sizeof(other));
    cr_assert_eq(drbd_status_from_text(text, "r0", 1, &one, NULL), 0);
    for (char *c = text; *c != '\0'; c++) {
        *c = *c == ' ' ? '\n' : *c;
    }
    cr_assert_eq(drbd_status_from_text(text, "r0", 1, &other, NULL), 0);
    cr_assert_arr_eq(&one, &other, sizeof(one));
}

Test(drbd_status, who_stands_alone_is_degraded)
{
    struct drbd_status status = read_status("alone.84", 0);
    cr_assert_not(degraded(&status, "peer 'peer' is StandAlone"));
}

Test(drbd_status, nine_is_read)
{
    struct drbd_status status = read_status("uptodate.json", 0);
    cr_assert(drbd_status_is_primary(&status));
    cr_assert_eq(status.minor, 1000);
    cr_assert_eq(status.size_kib, 1048576);
    cr_assert(status.open);
    cr_assert_not(status.no_quorum);
    cr_assert_eq(status.n_peers, 2);
    cr_assert_str_eq(status.peers[0].name, "b");
    cr_assert(status.peers[1].client, "without a disk on purpose");
    cr_assert_not(degraded(&status, ""));
}

Test(drbd_status, resync_of_nine_heals)
{
    struct drbd_status status = read_status("syncing.json", 0);
    cr_assert_not(drbd_status_is_primary(&status));
    cr_assert(degraded(&status, "peer 'b' is in resync (SyncSource)"));
}

/* A peer that is away is not healed by the resync of another one. */
Test(drbd_status, what_does_not_heal_comes_first)
{
    struct drbd_status status = read_status("syncing.json", 0);
    status.peers[1].client = false;
    (void)snprintf(status.peers[1].connection, DRBD_WORD, "Connecting");
    cr_assert_not(degraded(&status, "peer 'c' is Connecting"));
}

Test(drbd_status, lost_quorum_suspends)
{
    struct drbd_status status = read_status("suspended.json", 0);
    cr_assert_str_eq(status.suspended, "quorum");
    cr_assert(status.no_quorum);
    cr_assert_not(degraded(&status, "suspended (quorum)"));
}

Test(drbd_status, nonsense_is_refused)
{
    static const char *const bad[] = {
        "",
        "r1 role:Primary",
        "role:Primary",
        "r0",
        "[",
        "[]",
        "{}",
        "[{\"name\":\"r0\"}]",
        "[{\"name\":\"r1\",\"role\":\"Primary\"}]",
        "[{\"name\":\"r0\",\"role\":7}]"};
    struct drbd_status status;
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        _cleanup_err_ struct err *err = NULL;
        cr_assert_eq(drbd_status_from_json(bad[i], "r0", 0, &status, &err),
                     -EPROTO, "%s", bad[i]);
        cr_assert_eq(drbd_status_from_text(bad[i], "r0", 0, &status, NULL),
                     -EPROTO, "%s", bad[i]);
        cr_assert_not_null(err);
    }
}

Test(drbd_status, more_peers_than_there_can_be_are_refused)
{
    char text[1024] = "r0 role:Primary volume:0 minor:1 disk:UpToDate";
    struct drbd_status status;
    for (int i = 0; i <= DRBD_PEERS_MAX; i++) {
        (void)strcat(text, " peer connection:Connected");
    }
    cr_assert_eq(drbd_status_from_text(text, "r0", 0, &status, NULL), -EPROTO);
}

Test(drbd_status, promotion_is_automatic_unless_told_otherwise)
{
    cr_assert(drbd_promotes_itself("resource r0 {\n}\n"));
    cr_assert(drbd_promotes_itself("options {\n auto-promote yes;\n}"));
    cr_assert(drbd_promotes_itself("auto-promote-timeout no;"));
    cr_assert_not(
        drbd_promotes_itself("auto-promote-timeout 20;\n auto-promote \tno;"));
}

Test(drbd_status, metadata_tell_a_size)
{
    cr_assert_eq(drbd_metadata_size("# md\nla-size-sect 131072;\n"),
                 UINT64_C(67108864));
    cr_assert_eq(drbd_metadata_size("la-size-sect x;"), 0);
    cr_assert_eq(drbd_metadata_size("la-size-sect 99999999999999999999;"), 0);
    cr_assert_eq(drbd_metadata_size(""), 0);
}

/* As they were recorded from drbd-utils 9.22 over kernel 8.4.11. */
Test(drbd_status, refusals_are_told_by_number)
{
    static const struct {
        const char *errors;
        int status;
        int number;
        int code;
        const char *words;
        const char *hint;
    } known[] = {
        {"0: State change failed: (-2) Need access to UpToDate data\n"
         "Command 'drbdsetup-84 primary 0' terminated with exit code 17\n",    17, -2,  -ENODATA, "(-2) Need access to UpToDate data",  "UpToDate"     },
        {"0: State change failed: (-1) Multiple primaries not allowed by "
         "config\n",                                                           11, -1,  -EBUSY,   "Multiple primaries",                 "another node" },
        {"0: State change failed: (-12) Device is held open by someone\n",              11,
         -12,                                                                                    -EBUSY,   "(-12) Device is held open",          "fuser"        },
        {"0: State change failed: (-8) Can not start OV/resync since it is "
         "already active\n",                                                   11, -8,  -EAGAIN,  "(-8)",                               "wait"         },
        {"r0: Failure: (164) Can not clear allow_two_primaries as long as\n"
         "there a primaries on both sides\n",                                  10, 164, -EBUSY,   "(164) Can not clear",                "both nodes"   },
        {"r0: Failure: (139) Protocol C required\n",                                    10, 139, -EINVAL,
         "Protocol C",                                                                                                                           "protocol C"   },
        {"r0: Failure: (162) Invalid configuration request\n"
         "additional info from kernel:\nminor exists in different resource\n", 10, 162, -EEXIST,  "minor exists in different resource", "dump"         },
        {"0: Failure: (151) Need to be StandAlone\n",                                   10, 151, -EBUSY,
         "StandAlone",                                                                                                                           "disconnect"   },
        {"0: Failure: (130) Resize not allowed during resync.\n",                       10, 130,
         -EAGAIN,                                                                                          "during resync",                      "wait"         },
        {"r9: No such resource\n",                                                      10, 0,   -ENOENT,  "No such resource",                   "up"           },
        {"'r9' not defined in your config (for this host).\n",                          1,  0,   -ENOENT,
         "not defined",                                                                                                                          "drbdadm dump" },
        {"No valid meta data found\n",                                                  1,  0,   -EUCLEAN, "meta data",
         "create-md"                                                                                                                                            },
        {"Failed to modprobe drbd (No such file or directory)\n",                       20, 0,
         -ENODEV,                                                                                          "modprobe drbd",                      "kernel module"},
        {"something else\n",                                                            3,  0,   -EIO,     "something else (exit code 3)",       NULL           },
        {"",                                                                            3,  0,   -EIO,     "failed (exit code 3)",               NULL           },
    };

    for (size_t i = 0; i < ARRAY_SIZE(known); i++) {
        _cleanup_err_ struct err *err = NULL;
        cr_assert_eq(drbd_refusal_number(known[i].errors), known[i].number);
        cr_assert_eq(drbd_refusal("drbd:r0/0", "drbdadm x", known[i].status,
                                  known[i].errors, &err),
                     known[i].code, "%s", known[i].errors);
        cr_assert_not_null(strstr(err->desc, known[i].words), "%s", err->desc);
        cr_assert_null(strchr(err->desc, '\n'), "%s", err->desc);
        cr_assert_eq(err->hint == NULL, known[i].hint == NULL);
        cr_assert(err->hint == NULL || strstr(err->hint, known[i].hint) != NULL,
                  "%s", err->hint);
    }
}
