/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Against programs that stand for DRBD's (drbd/drbdadm, drbd/drbdsetup) and a
 * folder that stands for /dev and /sys; real ones are in tests/drbd-lab.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "backends/backend.h"
#include "backends/drbd.h"
#include "base/err.h"
#include "base/str.h"
#include "fake/scratch.h"

static char dir[SCRATCH_PATH];
static struct drbd_places places;

static void put(const char *name, const char *text)
{
    _cleanup_free_ char *path = str_printf("%s/%s", dir, name);
    FILE *file = fopen(path, "we");
    cr_assert_not_null(file, "%s", path);
    cr_assert_geq(fputs(text, file), 0);
    cr_assert_eq(fclose(file), 0);
}

static char *get(const char *name)
{
    static char text[8192];
    _cleanup_free_ char *path = str_printf("%s/%s", dir, name);
    FILE *file = fopen(path, "re");
    cr_assert_not_null(file, "%s", path);
    text[fread(text, 1, sizeof(text) - 1, file)] = '\0';
    (void)fclose(file);
    return text;
}

static bool there(const char *name)
{
    _cleanup_free_ char *path = str_printf("%s/%s", dir, name);
    return access(path, F_OK) == 0;
}

static bool ran(const char *command)
{
    _cleanup_free_ char *line = str_printf("%s\n", command);
    return there("log") && strstr(get("log"), line) != NULL;
}

/* A status of ours, whose role is the file 'role' from now on. */
static void use_status(const char *name, const char *role)
{
    const char *data = getenv("QPIVOT_TEST_DATA");
    static char text[8192];
    _cleanup_free_ char *path = str_printf("%s/drbd/%s", data, name);
    FILE *file = fopen(path, "re");
    cr_assert_not_null(file);
    text[fread(text, 1, sizeof(text) - 1, file)] = '\0';
    (void)fclose(file);
    char *at = strstr(text, "Primary");
    char *other = strstr(text, "Secondary");
    at = at == NULL || (other != NULL && other < at) ? other : at;
    size_t len = strcspn(at, " \"\n");
    _cleanup_free_ char *whole =
        str_printf("%.*s@ROLE@%s", (int)(at - text), text, at + len);
    put("status", whole);
    put("role", role);
    put("up", "");
}

static void make_dir(const char *name)
{
    _cleanup_free_ char *path = str_printf("%s/%s", dir, name);
    cr_assert_eq(mkdir(path, 0700), 0, "%s", path);
}

static void prepare(void)
{
    static const char *const dirs[] = {
        "dev", "dev/drbd",  "dev/drbd/by-res", "dev/drbd/by-res/r0",
        "sys", "sys/block", "sys/block/drbd3", "sys/block/drbd3/queue"};
    const char *data = getenv("QPIVOT_TEST_DATA");
    scratch_make("drbd", dir);
    for (unsigned i = 0; i < ARRAY_SIZE(dirs); i++) {
        make_dir(dirs[i]);
    }
    put("dev/drbd3", "0123456789");
    put("sys/block/drbd3/size", "131072\n");
    put("sys/block/drbd3/queue/logical_block_size", "512\n");
    put("metadata", "version \"v08\";\nla-size-sect 131072;\n");
    put("show", "resource r0 {\n}\n");
    _cleanup_free_ char *path =
        str_printf("%s/drbd:%s", data != NULL ? data : ".", getenv("PATH"));
    cr_assert_eq(setenv("PATH", path, 1), 0);
    cr_assert_eq(setenv("DRBD_FAKE", dir, 1), 0);
    places.dev = str_printf("%s/dev", dir);
    places.sys = str_printf("%s/sys", dir);
    places.kind = S_IFREG;
    places.ready_ms = 500;
    drbd_set_places_for_tests(&places);
}

static void tidy(void)
{
    drbd_set_places_for_tests(NULL);
    free((char *)(uintptr_t)places.dev);
    free((char *)(uintptr_t)places.sys);
}

TestSuite(drbd, .init = prepare, .fini = tidy, .timeout = 50);

static void link_device(void)
{
    _cleanup_free_ char *link = str_printf("%s/dev/drbd/by-res/r0/0", dir);
    cr_assert_eq(symlink("../../../drbd3", link), 0);
}

static struct volume *parsed(const char *uri)
{
    struct volume *volume = NULL;
    _cleanup_err_ struct err *err = NULL;
    cr_assert_eq(volume_parse(uri, &volume, &err), 0, "%s: %s", uri,
                 err != NULL ? err->desc : "?");
    return volume;
}

static struct volume_info probed(struct volume *volume)
{
    struct volume_info info;
    _cleanup_err_ struct err *err = NULL;
    cr_assert_eq(volume->ops->probe(volume, &info, &err), 0, "%s",
                 err != NULL ? err->desc : "?");
    return info;
}

/* As it was planned, which is how it stood at the last look. */
static struct volume_planned planned;

static void plan_as(const char *state)
{
    planned = (struct volume_planned){"block:147:3", state, false};
}

static int attach(struct volume *volume, struct volume_info *info,
                  struct err **errp)
{
    return volume->ops->attach(volume, &planned, info, errp);
}

static int detach(struct volume *volume, const char *state, struct err **errp)
{
    struct volume_planned back = {"block:147:3", state, false};
    return volume->ops->detach(volume, &back, errp);
}

Test(drbd, names_are_one_whichever_way_they_are_written)
{
    _cleanup_(volume_freep) struct volume *a = parsed("drbd:r0");
    _cleanup_(volume_freep) struct volume *b = parsed("drbd:r0/0?cache=none");
    cr_assert_str_eq(a->name, b->name);
    cr_assert(a->existing);
    cr_assert_eq(a->ops->flags & BACKEND_CREATES, 0);
}

/* A device of the tests has number 0:0. */
Test(drbd, thin_volume_below_is_filled_by_zeroes)
{
    _cleanup_free_ char *backing = str_printf("%s/dev/drbd3\n", dir);
    use_status("uptodate.84", "Secondary");
    put("backing", backing);
    make_dir("sys/dev");
    make_dir("sys/dev/block");
    make_dir("sys/dev/block/0:0");
    make_dir("sys/dev/block/0:0/queue");
    _cleanup_(volume_freep) struct volume *volume = parsed("drbd:r0");
    cr_assert_not(probed(volume).fills, "nothing is known");
    put("sys/dev/block/0:0/queue/write_zeroes_max_bytes", "0\n");
    put("sys/dev/block/0:0/queue/discard_max_bytes", "65536\n");
    cr_assert(probed(volume).fills);
    put("sys/dev/block/0:0/queue/write_zeroes_max_bytes", "65536\n");
    cr_assert_not(probed(volume).fills);
}

/* They become words of a command line. */
Test(drbd, bad_names_are_refused)
{
    static const char *const bad[] = {
        "drbd:",         "drbd:/0",       "drbd:--force", "drbd:all",
        "drbd:r0/x",     "drbd:r0/65536", "drbd:r0/0/1",  "drbd:r0/-1",
        "drbd:a%20b",    "drbd:..",       "drbd:r0/",     "drbd:r%2f0",
        "drbd:r0?who=1",
    };
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        struct volume *volume = NULL;
        _cleanup_err_ struct err *err = NULL;
        cr_assert_eq(volume_parse(bad[i], &volume, &err), -EINVAL, "%s",
                     bad[i]);
        cr_assert_null(volume);
    }
}

Test(drbd, primary_of_eight_is_looked_at)
{
    use_status("uptodate.84", "Primary");
    _cleanup_(volume_freep) struct volume *volume = parsed("drbd:r0");
    struct volume_info info = probed(volume);
    cr_assert(info.exists);
    cr_assert_eq(info.size, UINT64_C(67108864));
    cr_assert_eq(info.block_size, 512);
    cr_assert_str_eq(info.identity, "block:147:3");
    cr_assert_str_eq(info.state, "primary");
    cr_assert_str_eq(info.degraded, "");
    cr_assert_not(info.in_use);
    cr_assert_not(info.zero, "whoever had it before");
}

Test(drbd, secondary_is_never_opened)
{
    use_status("uptodate.84", "Secondary");
    _cleanup_free_ char *device = str_printf("%s/dev/drbd3", dir);
    _cleanup_(volume_freep) struct volume *volume = parsed("drbd:r0");
    put("dev/drbd3", "QFI\xfb");
    struct stat before, after;
    struct timespec old[2] = {{.tv_sec = 1}, {.tv_sec = 1}};
    cr_assert_eq(utimensat(AT_FDCWD, device, old, 0), 0);
    cr_assert_eq(stat(device, &before), 0);
    struct volume_info info = probed(volume);
    cr_assert_eq(stat(device, &after), 0);
    cr_assert_eq(before.st_atime, after.st_atime);
    cr_assert_str_eq(info.state, "secondary");
    cr_assert_eq(info.size, UINT64_C(67108864));
}

Test(drbd, node_goes_by_the_link_where_it_is_there)
{
    use_status("uptodate.84", "Primary");
    _cleanup_(volume_freep) struct volume *volume =
        parsed("drbd:r0?cache=none");
    link_device();
    (void)probed(volume);
    json_auto_t *node = volume->ops->node_options(volume, NULL);
    _cleanup_free_ char *link = str_printf("%s/dev/drbd/by-res/r0/0", dir);
    json_auto_t *wanted = json_pack(
        "{s:s, s:s, s:s, s:b, s:{s:b}}", "driver", "host_device", "discard",
        "unmap", "filename", link, "auto-read-only", 0, "cache", "direct", 1);
    cr_assert(json_equal(node, wanted));
}

Test(drbd, node_goes_by_the_minor_without_a_link)
{
    use_status("uptodate.84", "Primary");
    _cleanup_(volume_freep) struct volume *volume = parsed("drbd:r0");
    _cleanup_free_ char *dangling = str_printf("%s/dev/drbd/by-res/r0/0", dir);
    cr_assert_eq(symlink("../../../drbd9", dangling), 0);
    (void)probed(volume);
    _cleanup_free_ char *path = volume->ops->legacy_name(volume);
    _cleanup_free_ char *wanted = str_printf("%s/dev/drbd3", dir);
    cr_assert_str_eq(path, wanted);
}

Test(drbd, comes_back_from_a_node)
{
    link_device();
    _cleanup_free_ char *device = str_printf("%s/dev/drbd3", dir);
    _cleanup_free_ char *link = str_printf("%s/dev/drbd/by-res/r0/0", dir);
    _cleanup_free_ char *other = str_printf("%s/dev/drbd9", dir);
    _cleanup_(volume_freep) struct volume *a = NULL;
    _cleanup_(volume_freep) struct volume *b = NULL;
    struct volume *none = NULL;
    cr_assert_eq(volume_from_node("host_device", device, &a), 0);
    cr_assert_str_eq(a->name, "drbd:r0/0");
    cr_assert_eq(volume_from_node("host_device", link, &b), 0);
    cr_assert_str_eq(b->name, "drbd:r0/0");
    put("dev/drbd9", "");
    cr_assert_eq(volume_from_node("host_device", other, &none), 0);
    cr_assert_str_eq(none->ops->scheme, "block");
    none = volume_free(none);
}

Test(drbd, peer_that_is_primary_uses_it)
{
    use_status("secondary.84", "Secondary");
    _cleanup_(volume_freep) struct volume *volume = parsed("drbd:r0");
    struct volume_info info = probed(volume);
    cr_assert(info.in_use);
    cr_assert_not_null(strstr(info.in_use_by, "Primary"));
}

Test(drbd, unknown_resource_is_absent)
{
    _cleanup_(volume_freep) struct volume *volume = parsed("drbd:r9");
    cr_assert_not(probed(volume).exists);
}

Test(drbd, unknown_volume_is_absent)
{
    use_status("uptodate.84", "Primary");
    _cleanup_(volume_freep) struct volume *volume = parsed("drbd:r0/1");
    cr_assert_not(probed(volume).exists);
}

Test(drbd, what_is_down_has_the_size_of_its_metadata)
{
    _cleanup_(volume_freep) struct volume *volume = parsed("drbd:r0");
    struct volume_info info = probed(volume);
    cr_assert(info.exists);
    cr_assert_eq(info.size, UINT64_C(67108864));
    cr_assert_str_eq(info.state, "down");
    cr_assert_str_eq(info.identity, "block:147:3");
    put("metadata", "Found meta data is \"unclean\"\n");
    _cleanup_err_ struct err *err = NULL;
    cr_assert_eq(volume->ops->probe(volume, &info, &err), -ENODATA);
    cr_assert_not_null(strstr(err->hint, "drbdadm up r0"));
}

Test(drbd, what_has_no_disk_has_no_size)
{
    use_status("uptodate.84", "Secondary");
    put("sys/block/drbd3/size", "0\n");
    _cleanup_(volume_freep) struct volume *volume = parsed("drbd:r0");
    _cleanup_err_ struct err *err = NULL;
    struct volume_info info;
    cr_assert_eq(volume->ops->probe(volume, &info, &err), -ENODATA);
    cr_assert_not_null(strstr(err->hint, "adjust"));
}

Test(drbd, missing_programs_are_told)
{
    _cleanup_(volume_freep) struct volume *volume = parsed("drbd:r0");
    _cleanup_err_ struct err *err = NULL;
    struct volume_info info;
    cr_assert_eq(setenv("PATH", dir, 1), 0);
    cr_assert_eq(volume->ops->probe(volume, &info, &err), -ENOENT);
    cr_assert_not_null(strstr(err->hint, "drbd-utils"));
}

Test(drbd, secondary_is_promoted_and_given_back)
{
    use_status("uptodate.84", "Secondary");
    plan_as("secondary");
    _cleanup_(volume_freep) struct volume *volume = parsed("drbd:r0");
    struct volume_info info;
    cr_assert_eq(attach(volume, &info, NULL), 0);
    cr_assert_str_eq(info.state, "primary");
    cr_assert(ran("drbdadm primary r0"));
    cr_assert_not(ran("drbdadm adjust r0"));
    planned.again = true;
    cr_assert_eq(attach(volume, &info, NULL), 0, "again");
    cr_assert_eq(detach(volume, "secondary", NULL), 0);
    cr_assert_str_eq(get("role"), "Secondary\n");
    cr_assert_not(ran("drbdadm down r0"));
    cr_assert_eq(detach(volume, "secondary", NULL), 0, "again");
}

Test(drbd, what_was_down_is_brought_up_and_down_again)
{
    _cleanup_(volume_freep) struct volume *volume = parsed("drbd:r0");
    struct volume_info info;
    use_status("uptodate.84", "Secondary");
    put("sys/block/drbd3/size", "0\n");
    _cleanup_free_ char *up = str_printf("%s/up", dir);
    cr_assert_eq(unlink(up), 0);
    plan_as("down");
    cr_assert_eq(attach(volume, &info, NULL), 0);
    cr_assert(ran("drbdadm adjust r0"));
    cr_assert_str_eq(info.state, "primary");
    cr_assert_eq(detach(volume, "down", NULL), 0);
    cr_assert_not(there("up"));
    cr_assert(ran("drbdadm secondary r0"));
    cr_assert_eq(detach(volume, "down", NULL), 0, "again");
}

Test(drbd, what_was_primary_is_left_alone)
{
    use_status("uptodate.84", "Primary");
    plan_as("primary");
    _cleanup_(volume_freep) struct volume *volume = parsed("drbd:r0");
    struct volume_info info;
    cr_assert_eq(attach(volume, &info, NULL), 0);
    cr_assert_eq(detach(volume, "primary", NULL), 0);
    cr_assert_str_eq(get("role"), "Primary");
    cr_assert_not(ran("drbdadm primary r0"));
}

Test(drbd, refused_promotion_is_explained)
{
    use_status("uptodate.84", "Secondary");
    put("refuse-primary",
        "11\n0: State change failed: (-1) Multiple primaries not allowed by "
        "config\nCommand 'drbdsetup-84 primary 0' terminated with exit code "
        "11\n");
    plan_as("secondary");
    _cleanup_(volume_freep) struct volume *volume = parsed("drbd:r0");
    _cleanup_err_ struct err *err = NULL;
    struct volume_info info;
    cr_assert_eq(attach(volume, &info, &err), -EBUSY);
    cr_assert_str_eq(err->object, "drbd:r0/0");
    cr_assert_not_null(strstr(err->desc, "drbdadm primary: (-1) Multiple"));
    cr_assert_not_null(err->hint);
}

/* QEMU and udev let go of a device a little later than they say. */
Test(drbd, device_that_is_held_for_a_moment_is_demoted)
{
    static const char held[] =
        "11\n0: State change failed: (-12) Device is held open by someone\n";
    use_status("uptodate.84", "Primary");
    put("refuse-secondary", held);
    put("secondary-once", "");
    _cleanup_(volume_freep) struct volume *volume = parsed("drbd:r0");
    cr_assert_eq(detach(volume, "secondary", NULL), 0);
    cr_assert_str_eq(get("role"), "Secondary\n");
}

Test(drbd, device_that_stays_held_is_told)
{
    static const char held[] =
        "11\n0: State change failed: (-12) Device is held open by someone\n";
    use_status("uptodate.84", "Primary");
    put("refuse-secondary", held);
    _cleanup_(volume_freep) struct volume *volume = parsed("drbd:r0");
    _cleanup_err_ struct err *err = NULL;
    cr_assert_eq(detach(volume, "secondary", &err), -EBUSY);
    cr_assert_not_null(strstr(err->hint, "drbdadm secondary r0"));
}

/* Nobody can know what a peer that is away has Primary. */
Test(drbd, what_was_brought_up_alone_is_not_promoted)
{
    use_status("alone.84", "Secondary");
    _cleanup_free_ char *up = str_printf("%s/up", dir);
    cr_assert_eq(unlink(up), 0);
    _cleanup_(volume_freep) struct volume *volume = parsed("drbd:r0");
    _cleanup_err_ struct err *err = NULL;
    struct volume_info info;
    plan_as("down");
    cr_assert_eq(attach(volume, &info, &err), -ETIMEDOUT);
    cr_assert_not_null(strstr(err->desc, "StandAlone"));
    cr_assert_not(info.untouched, "it is up");
    cr_assert_not(ran("drbdadm primary r0"));
}

static void refuse_attach(int code, const char *words)
{
    _cleanup_(volume_freep) struct volume *volume = parsed("drbd:r0");
    _cleanup_err_ struct err *err = NULL;
    struct volume_info info;
    cr_assert_eq(attach(volume, &info, &err), code, "%s",
                 err != NULL ? err->desc : "it is attached");
    cr_assert_not_null(strstr(err->desc, words), "%s", err->desc);
}

/* A person takes it upon herself; but not where it is known to be so. */
Test(drbd, secondary_that_is_alone_is_promoted_on_demand)
{
    use_status("alone.84", "Secondary");
    plan_as("secondary");
    planned.alone = true;
    _cleanup_(volume_freep) struct volume *volume = parsed("drbd:r0");
    struct volume_info info;
    cr_assert_eq(attach(volume, &info, NULL), 0);
    cr_assert_str_eq(info.state, "primary");
    use_status("secondary.84", "Secondary");
    refuse_attach(-EBUSY, "'peer' has it Primary");
}

/* Its link was cut: the peer may be Primary, with a VM on it. */
Test(drbd, secondary_that_is_alone_is_not_promoted)
{
    use_status("alone.84", "Secondary");
    plan_as("secondary");
    refuse_attach(-ETIMEDOUT, "'peer' is StandAlone");
    cr_assert_not(ran("drbdadm primary r0"));
}

Test(drbd, secondary_that_is_alone_is_no_target)
{
    use_status("alone.84", "Secondary");
    _cleanup_(volume_freep) struct volume *volume = parsed("drbd:r0");
    struct volume_info info = probed(volume);
    cr_assert_not_null(strstr(info.alone, "'peer' is StandAlone"));
}

/* Killed after 'drbdadm adjust', begun anew: it is up, and alone. */
Test(drbd, what_an_earlier_try_brought_up_alone_is_not_promoted)
{
    use_status("alone.84", "Secondary");
    plan_as("down");
    planned.again = true;
    refuse_attach(-ETIMEDOUT, "'peer' is StandAlone");
    cr_assert_not(ran("drbdadm primary r0"));
}

Test(drbd, secondary_of_nine_that_is_alone_is_not_left_to_qemu)
{
    put("nine", "");
    use_status("suspended.json", "Secondary");
    _cleanup_free_ char *path = str_printf("%s/status", dir);
    cr_assert_not_null(strstr(get("status"), "\"Connecting\""), "%s", path);
    put("show", "resource r0 {\n}\n");
    _cleanup_(volume_freep) struct volume *volume = parsed("drbd:r0");
    make_dir("sys/block/drbd1000");
    put("sys/block/drbd1000/size", "131072\n");
    struct volume_info info = probed(volume);
    cr_assert_not_null(strstr(info.alone, "'b' is Connecting"));
    cr_assert_str_eq(info.state, "auto");
}

Test(drbd, what_a_peer_has_primary_is_not_promoted)
{
    use_status("secondary.84", "Secondary");
    plan_as("secondary");
    refuse_attach(-EBUSY, "'peer' has it Primary");
    cr_assert_not(ran("drbdadm primary r0"));
}

/* Between the look and the promotion. */
Test(drbd, peer_that_is_lost_while_it_is_promoted_is_told)
{
    use_status("uptodate.84", "Secondary");
    plan_as("secondary");
    put("cut-at-primary", "");
    refuse_attach(-ENOTCONN, "'peer' is StandAlone");
    cr_assert(ran("drbdadm primary r0"));
}

Test(drbd, another_minor_is_left_alone)
{
    use_status("uptodate.84", "Secondary");
    plan_as("secondary");
    planned.identity = "block:147:7";
    _cleanup_(volume_freep) struct volume *volume = parsed("drbd:r0");
    struct volume_info info;
    refuse_attach(-ESTALE, "block:147:3, not block:147:7");
    cr_assert_not(ran("drbdadm primary r0"));
    put("role", "Primary");
    cr_assert_eq(volume->ops->detach(volume, &planned, NULL), 0);
    cr_assert_str_eq(get("role"), "Primary", "somebody else's");
    (void)volume->ops->attach(volume, &planned, &info, NULL);
    cr_assert(info.untouched);
}

/* Promoted by somebody else: not ours to demote, whatever comes. */
Test(drbd, what_somebody_promoted_since_the_plan_is_left_alone)
{
    use_status("uptodate.84", "Primary");
    plan_as("secondary");
    _cleanup_(volume_freep) struct volume *volume = parsed("drbd:r0");
    _cleanup_err_ struct err *err = NULL;
    struct volume_info info;
    cr_assert_eq(attach(volume, &info, &err), -ESTALE);
    cr_assert_not_null(strstr(err->desc, "was secondary, now it is primary"));
    cr_assert(info.untouched);
}

/* A target that was Primary for us is in use by now; so is one of a try. */
Test(drbd, what_somebody_uses_since_the_plan_is_left_alone)
{
    for (int again = 0; again < 2; again++) {
        use_status("uptodate.84", "Primary");
        plan_as(again != 0 ? "secondary" : "primary");
        planned.again = again != 0;
        _cleanup_(volume_freep) struct volume *volume = parsed("drbd:r0");
        _cleanup_free_ char *device = str_printf("%s/dev/drbd3", dir);
        _cleanup_err_ struct err *err = NULL;
        struct volume_info info;
        _cleanup_close_ int fd = open(device, O_RDWR | O_CLOEXEC);
        struct flock lock = {.l_type = F_WRLCK, .l_start = 100, .l_len = 1};
        cr_assert_eq(fcntl(fd, F_OFD_SETLK, &lock), 0);
        cr_assert_eq(attach(volume, &info, &err), -EBUSY, "%d", again);
        cr_assert_not_null(strstr(err->desc, "in use"));
        cr_assert(info.untouched);
    }
}

/* To open it is to wait for its quorum, for good. */
Test(drbd, suspended_primary_is_not_read)
{
    put("nine", "");
    use_status("suspended.json", "Primary");
    _cleanup_free_ char *device = str_printf("%s/dev/drbd1000", dir);
    make_dir("sys/block/drbd1000");
    put("sys/block/drbd1000/size", "131072\n");
    put("dev/drbd1000", "QFI\xfb");
    struct stat st;
    struct timespec old[2] = {{.tv_sec = 1}, {.tv_sec = 1}};
    cr_assert_eq(utimensat(AT_FDCWD, device, old, 0), 0);
    _cleanup_(volume_freep) struct volume *volume = parsed("drbd:r0");
    (void)probed(volume);
    cr_assert_eq(stat(device, &st), 0);
    cr_assert_eq(st.st_atime, 1, "it was read");
    planned = (struct volume_planned){"block:147:1000", "auto", false};
    refuse_attach(-EAGAIN, "suspended");
}

Test(drbd, volumes_of_one_resource_are_attached_together)
{
    _cleanup_(volume_freep) struct volume *a = parsed("drbd:r0");
    _cleanup_(volume_freep) struct volume *b = parsed("drbd:r0/1");
    _cleanup_(volume_freep) struct volume *c = parsed("drbd:r1");
    cr_assert(a->ops->is_attached_with(a, b));
    cr_assert_not(a->ops->is_attached_with(a, c));
}

Test(drbd, nine_promotes_itself)
{
    put("nine", "");
    use_status("uptodate.json", "Secondary");
    put("sys/block/drbd3/size", "131072\n");
    _cleanup_free_ char *sys = str_printf("%s/sys/block/drbd1000", dir);
    _cleanup_free_ char *own = str_printf("%s/sys/block/drbd3", dir);
    _cleanup_free_ char *dev = str_printf("%s/dev/drbd1000", dir);
    cr_assert_eq(symlink(own, sys), 0);
    cr_assert_eq(symlink("drbd3", dev), 0);
    _cleanup_(volume_freep) struct volume *volume = parsed("drbd:r0");
    struct volume_info info = probed(volume);
    cr_assert_str_eq(info.state, "auto", "QEMU's opening does it");
    cr_assert_str_eq(info.identity, "block:147:1000");
    put("show", "resource r0 {\n options {\n  auto-promote no;\n }\n}\n");
    cr_assert_str_eq(probed(volume).state, "secondary");
}

Test(drbd, answer_tells_what_is_degraded)
{
    use_status("alone.84", "Secondary");
    _cleanup_(volume_freep) struct volume *volume = parsed("drbd:r0");
    struct volume_info info;
    cr_assert_eq(volume->ops->answer(volume, &info, NULL), 0);
    cr_assert(info.exists);
    cr_assert_str_eq(info.identity, "block:147:3");
    cr_assert_not_null(strstr(info.degraded, "StandAlone"));
    cr_assert_not(info.heals);
}

Test(drbd, suspended_io_is_no_answer)
{
    put("nine", "");
    use_status("suspended.json", "Primary");
    _cleanup_(volume_freep) struct volume *volume = parsed("drbd:r0");
    _cleanup_err_ struct err *err = NULL;
    struct volume_info info;
    cr_assert_eq(volume->ops->answer(volume, &info, &err), -EAGAIN);
    cr_assert_not_null(strstr(err->desc, "quorum"));
}

Test(drbd, what_went_down_is_gone)
{
    _cleanup_(volume_freep) struct volume *volume = parsed("drbd:r0");
    struct volume_info info;
    cr_assert_eq(volume->ops->answer(volume, &info, NULL), 0);
    cr_assert_not(info.exists);
}
