/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "image.h"

#include <errno.h>
#include <uv.h>

#include "backends/backend.h"
#include "base/err.h"
#include "base/spawn.h"
#include "base/str.h"

enum { IMAGE_TIMEOUT_MS = 60000 };

struct wait {
    int code;
    struct err *err;
};

static void program_on_exit(void *data, const struct err *err,
                            const char *output);

/* The loop is this call's own: spawn needs one, and we are in a thread. */
int image_create(const struct volume *volume, uint64_t size, struct err **errp)
{
    _cleanup_free_ char *name = volume->ops->legacy_name(volume);
    _cleanup_free_ char *image =
        name != NULL ? str_printf("QPIVOT_IMAGE=%s", name) : NULL;
    _cleanup_free_ char *bytes =
        str_printf("QPIVOT_SIZE=%llu", (unsigned long long)size);
    if (image == NULL || bytes == NULL) {
        return -ENOMEM;
    }
    const char *const env[] = {image, bytes, NULL};
    struct wait wait = {0};
    struct spawn *spawn = NULL;
    uv_loop_t loop;
    int r = uv_loop_init(&loop);
    if (r < 0) {
        return r;
    }
    r = spawn_start(&loop,
                    "exec qemu-img create -q -f qcow2 -- \"$QPIVOT_IMAGE\" "
                    "\"$QPIVOT_SIZE\"",
                    NULL, env, IMAGE_TIMEOUT_MS, program_on_exit, &wait, &spawn,
                    errp);
    (void)uv_run(&loop, UV_RUN_DEFAULT);
    (void)uv_loop_close(&loop);
    if (r == 0 && wait.code < 0) {
        r = err_set(errp, wait.code, volume->name,
                    "qemu-img cannot make a qcow2 image of it: %s",
                    wait.err != NULL ? wait.err->desc : "out of memory");
    }
    (void)err_free(wait.err);
    return r;
}

static void program_on_exit(void *data, const struct err *err,
                            const char *output)
{
    (void)output;
    struct wait *wait = data;
    wait->code = err != NULL ? err->code : 0;
    wait->err = err_copy(err);
}
