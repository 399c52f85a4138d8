/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <criterion/criterion.h>
#include <errno.h>

#include "base/err.h"
#include "base/str.h"
#include "vm/argv.h"

TestSuite(argv);

static const char *option(const char *text, const char *implied,
                          const char *key)
{
    static char value[128];
    json_auto_t *json = argv_option(text, implied);
    const char *found = json_string_value(json_object_get(json, key));
    (void)snprintf(value, sizeof(value), "%s",
                   found != NULL ? found : "(none)");
    return value;
}

Test(argv, both_forms_of_an_option)
{
    cr_assert_str_eq(option("qcow2,node-name=n0,file.filename=/a,,b", "driver",
                            "file.filename"),
                     "/a,b");
    cr_assert_str_eq(option("qcow2,node-name=n0", "driver", "driver"), "qcow2");
    cr_assert_str_eq(option("{\"driver\":\"raw\",\"file\":{\"size\":5}}",
                            "driver", "file.size"),
                     "5");
    cr_assert_str_eq(option("path,server,wait=off", "path", "server"), "on");
    cr_assert_null(argv_option("{\"driver\":", "driver"));
    cr_assert_null(argv_option("{]", NULL));
}

/* The destination's words as one text, or the error's. */
static char *destination(const char *const *argv, const struct argv_disk *disk,
                         const char *monitor, bool same_paths)
{
    struct argv_request request = {.argv = argv,
                                   .machine = "pc-q35-7.2",
                                   .disks = disk,
                                   .n_disks = disk != NULL,
                                   .monitor = monitor,
                                   .same_paths = same_paths};
    _cleanup_err_ struct err *err = NULL;
    json_auto_t *json = NULL;
    char *text = strdup("");
    size_t i;
    json_t *word;
    if (argv_destination(&request, &json, &err) < 0) {
        free(text);
        return err_text(err);
    }
    json_array_foreach(json_object_get(json, "argv"), i, word) {
        char *more = str_printf("%s%s%s", text, i > 0 ? " " : "",
                                json_string_value(word));
        free(text);
        text = more;
    }
    json_array_foreach(json_object_get(json, "notes"), i, word) {
        char *more = str_printf("%s | %s", text, json_string_value(word));
        free(text);
        text = more;
    }
    return text;
}

Test(argv, it_waits_on_sockets_of_its_own)
{
    static const char *const argv[] = {
        "qemu",        "-S",
        "-M",          "q35,smm=off",
        "-qmp",        "unix:/q,server=on,wait=off",
        "-chardev",    "socket,id=c,path=/c,server=on",
        "-chardev",    "socket,id=d,path=/client",
        "-incoming",   "defer",
        "-pidfile",    "/p",
        "-nodefaults", NULL};
    char *text = destination(argv, NULL, "/q", false);
    cr_assert_str_eq(text, "qemu -M pc-q35-7.2,smm=off -qmp"
                           " unix:/q.incoming,server=on,wait=off -chardev"
                           " socket,id=c,path=/c.incoming,server=on -chardev"
                           " socket,id=d,path=/client -pidfile /p.incoming"
                           " -nodefaults -S -incoming defer | -chardev"
                           " socket,id=d,path=/client: on the same host the"
                           " destination needs another one");
    free(text);
    text = destination(argv, NULL, "/q", true);
    cr_assert(strstr(text, "unix:/q,server") != NULL &&
              strstr(text, "-pidfile /p ") != NULL);
    free(text);
}

static void disk_options(struct argv_disk *disk)
{
    disk->device = "d0";
    disk->file = json_pack("{s:s, s:s}", "driver", "file", "filename", "/new");
    disk->node = json_pack("{s:s}", "driver", "raw");
}

static void disk_done(struct argv_disk *disk)
{
    json_decref(disk->file);
    json_decref(disk->node);
}

#define FILE_NODE                                                              \
    "-blockdev {\"driver\":\"file\",\"filename\":\"/new\",\"node-name\":"
#define RAW_NODE "-blockdev {\"driver\":\"raw\",\"node-name\":"

Test(argv, a_disk_below_a_filter_keeps_its_name)
{
    static const char *const argv[] = {
        "qemu",
        "-blockdev",
        "file,node-name=f0,filename=/old",
        "-blockdev",
        "qcow2,node-name=n0,file=f0,backing=b0",
        "-blockdev",
        "raw,node-name=b0,file.driver=file,file.filename=/base",
        "-blockdev",
        "{\"driver\":\"throttle\",\"node-name\":\"t0\",\"file\":\"n0\"}",
        "-device",
        "virtio-blk-pci,id=d0,drive=t0",
        NULL};
    struct argv_disk disk;
    disk_options(&disk);
    char *text = destination(argv, &disk, NULL, false);
    cr_assert_str_eq(
        text, "qemu " FILE_NODE "\"n0-file\"} " RAW_NODE
              "\"n0\",\"file\":\"n0-file\"} -blockdev {\"driver\":\"throttle\","
              "\"node-name\":\"t0\",\"file\":\"n0\"} -device"
              " virtio-blk-pci,id=d0,drive=t0 -S -incoming defer");
    free(text);
    disk_done(&disk);
}

/* A base that another disk uses too stays for that one. */
Test(argv, what_another_disk_uses_stays)
{
    static const char *const argv[] = {
        "qemu",
        "-blockdev",
        "raw,node-name=base,file.driver=file,file.filename=/b",
        "-blockdev",
        "qcow2,node-name=n0,file.filename=/0,backing=base",
        "-blockdev",
        "qcow2,node-name=n1,file.filename=/1,backing=base",
        "-device",
        "virtio-blk-pci,id=d0,drive=n0",
        "-device",
        "virtio-blk-pci,id=d1,drive=n1",
        NULL};
    struct argv_disk disk;
    disk_options(&disk);
    char *text = destination(argv, &disk, NULL, false);
    cr_assert(strstr(text, "node-name=base") != NULL, "%s", text);
    cr_assert(strstr(text, "node-name=n1") != NULL, "%s", text);
    cr_assert(strstr(text, "filename=/0") == NULL, "%s", text);
    free(text);
    disk_done(&disk);
}

Test(argv, a_drive_becomes_a_node_of_its_name)
{
    static const char *const argv[] = {
        "qemu",
        "-drive",
        "if=none,id=v,file=/old,throttling.iops-total=9",
        "-device",
        "virtio-blk-pci,id=d0,drive=v",
        NULL};
    struct argv_disk disk;
    disk_options(&disk);
    char *text = destination(argv, &disk, NULL, false);
    cr_assert(strstr(text, "/old") == NULL && strstr(text, "-drive if") == NULL,
              "%s", text);
    cr_assert(strstr(text, RAW_NODE "\"v\",\"file\":\"v-file\"}") != NULL, "%s",
              text);
    cr_assert(strstr(text, "| d0: the limit 'throttling.iops-total'") != NULL,
              "%s", text);
    free(text);
    disk_done(&disk);
}

Test(argv, a_disk_that_is_made_later_is_one_node)
{
    static const char *const argv[] = {"qemu",
                                       "-drive",
                                       "if=none,id=v,file=/old",
                                       "-device",
                                       "virtio-blk-pci,id=d0,drive=v",
                                       NULL};
    struct argv_disk disk = {.device = "d0"};
    disk.node = json_pack("{s:s}", "driver", "null-co");
    char *text = destination(argv, &disk, NULL, false);
    cr_assert_str_eq(
        text, "qemu -blockdev {\"driver\":\"null-co\",\"node-name\":\"v\"}"
              " -device virtio-blk-pci,id=d0,drive=v -S -incoming defer");
    free(text);
    json_decref(disk.node);
}

Test(argv, a_disk_without_a_device_line_is_refused)
{
    static const char *const argv[] = {"qemu",
                                       "-drive",
                                       "if=virtio,file=/old",
                                       "-device",
                                       "virtio-blk-pci,id=d1",
                                       NULL};
    struct argv_disk disk;
    disk_options(&disk);
    char *text = destination(argv, &disk, NULL, false);
    cr_assert(strstr(text, "no -device of this id") != NULL, "%s", text);
    free(text);
    disk.device = "d1";
    text = destination(argv, &disk, NULL, false);
    cr_assert(strstr(text, "no drive= to replace") != NULL, "%s", text);
    free(text);
    disk_done(&disk);
}
