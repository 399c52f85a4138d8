/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What copies and comparisons are both made of. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "backends/bulk.h"
#include "base/err.h"
#include "base/str.h"
#include "bulk/work.h"

enum { TOLD_MAX = 4 };

static const uint64_t MEMORY_DEFAULT = 64 << 20;

static int read_stamp(struct work *work, struct volume *volume,
                      struct err **errp);

int work_map(struct work *work, struct volume *volume, unsigned flags,
             uint64_t *io_size, struct extents **ret, struct err **errp)
{
    _cleanup_(bulk_closep) struct bulk *bulk = NULL;
    bool source = volume == work->a;
    if (source && ret == NULL && volume->format != FORMAT_RAW) {
        /* QEMU need not be asked again while its file is the same. */
        *io_size = work->size;
        return read_stamp(work, volume, errp);
    }
    int r = bulk_open(volume, flags, &bulk, errp);
    if (r < 0) {
        return r;
    }
    if (*io_size == 0) {
        *io_size = bulk->size;
    }
    if (source) {
        (void)snprintf(work->stamp, sizeof(work->stamp), "%s", bulk->stamp);
    }
    if (ret != NULL) {
        r = extents_new(*io_size, ret);
        if (r == 0) {
            r = bulk_extents(bulk, extents_add, *ret, errp);
        }
        if (r == -ENOTSUP) {
            extents_fill(*ret);
            r = 0;
        }
    }
    if (r == 0 && source && volume->format != FORMAT_RAW) {
        r = read_stamp(work, volume, errp);
    }
    if (r == 0 && source && ret != NULL && work->options.kind == COPY_COPY) {
        work->a_open = TAKE_PTR(bulk);
    }
    return r;
}

/* QEMU tells no stamp of an image: that of the file it is in counts. */
static int read_stamp(struct work *work, struct volume *volume,
                      struct err **errp)
{
    struct bulk *bulk = NULL;
    enum backend_format format = volume->format;
    volume->format = FORMAT_RAW;
    int r = bulk_open(volume, 0, &bulk, errp);
    volume->format = format;
    if (r == 0) {
        (void)snprintf(work->stamp, sizeof(work->stamp), "%s", bulk->stamp);
        bulk = bulk_close(bulk);
    }
    return r;
}

void work_pipeline(const struct work *work, struct pipeline *ret)
{
    const struct copy_options *o = &work->options;
    memset(ret, 0, sizeof(*ret));
    ret->size = work->size;
    ret->memory = o->memory > 0 ? o->memory : MEMORY_DEFAULT;
    ret->speed = o->speed;
    ret->low_priority = o->low_priority;
    ret->cancel = &work->cancel;
    ret->a_flags = o->force_share || o->frozen ? BULK_SHARE : 0;
    ret->b_flags = ret->a_flags;
}

int work_run(struct work *work, const char *phase, struct pipeline *pipeline,
             struct err **errp)
{
    work->watch(work->data, phase, pipeline);
    int r = pipeline_run(pipeline, errp);
    work->watch(work->data, phase, NULL);
    return r;
}

char *work_differences(const struct pipeline *p)
{
    char *text = str_printf("%llu bytes differ",
                            (unsigned long long)atomic_load(&p->differing));
    for (unsigned i = 0; text != NULL && i < p->n_differences; i++) {
        bool last = i == TOLD_MAX;
        char *more =
            last ? str_printf("%s, ...", text)
                 : str_printf("%s%s %llu at offset %llu", text,
                              i == 0 ? ":" : ",",
                              (unsigned long long)p->differences[i].length,
                              (unsigned long long)p->differences[i].offset);
        free(text);
        text = more;
        if (last) {
            break;
        }
    }
    return text;
}

json_t *work_differences_json(const struct pipeline *p)
{
    json_t *list = json_array();
    for (unsigned i = 0; i < p->n_differences; i++) {
        (void)json_array_append_new(
            list, json_pack("{s:I, s:I}", "offset",
                            (json_int_t)p->differences[i].offset, "length",
                            (json_int_t)p->differences[i].length));
    }
    return list;
}

void work_warn(struct work *work, const char *fmt, ...)
{
    char *text = NULL;
    va_list ap;
    va_start(ap, fmt);
    int n = vasprintf(&text, fmt, ap);
    va_end(ap);
    if (n >= 0) {
        work->tell(work->data, json_pack("{s:s, s:s}", "event", "warning",
                                         "message", text));
        free(text);
    }
}
