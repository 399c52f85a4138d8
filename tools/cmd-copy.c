/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* qpivot copy, qpivot verify: volumes at rest. */
#include <stdlib.h>
#include <string.h>

#include "cmd.h"
#include "errors.h"
#include "follow.h"

struct copy_values {
    struct common_values common;
    struct follow_values shown;
    bool verify;
    bool existing;
    bool force_share;
    bool clean;
    bool low_priority;
    bool no_offload;
    bool dry_run;
    uint64_t speed;
    uint64_t memory;
    const char *manifest;
};

#define AT(member) offsetof(struct copy_values, member)

static const struct option_row copy_rows[] = {
    {"verify",       NULL,    OPTION_FLAG,  false, AT(verify),
     "read the target back, not from a cache, and compare digests"     },
    {"existing",     NULL,    OPTION_FLAG,  false, AT(existing),
     "the target is there already: overwrite it"                       },
    {"force-share",  NULL,    OPTION_FLAG,  false, AT(force_share),
     "copy though somebody uses the source"                            },
    {"clean",        NULL,    OPTION_FLAG,  false, AT(clean),
     "remove what was made if it fails; default: keep it to go on with"},
    {"manifest",     "FILE",  OPTION_TEXT,  false, AT(manifest),
     "write the digests of what was copied to FILE"                    },
    {"speed",        "BYTES", OPTION_BYTES, false, AT(speed),
     "read at most BYTES a second (10M, 1.5G)"                         },
    {"memory",       "BYTES", OPTION_BYTES, false, AT(memory),
     "use at most BYTES for buffers (default 64M)"                     },
    {"low-priority", NULL,    OPTION_FLAG,  false, AT(low_priority),
     "idle I/O class and lowest CPU priority"                          },
    {"no-offload",   NULL,    OPTION_FLAG,  false, AT(no_offload),
     "never let the storage copy by itself"                            },
    {"dry-run",      NULL,    OPTION_FLAG,  false, AT(dry_run),
     "print the plan and change nothing"                               },
    FOLLOW_ROWS(AT(shown)),
};

static const struct option_row verify_rows[] = {
    {"manifest",     "FILE",  OPTION_TEXT,  false, AT(manifest),
     "compare with the digests in FILE, too"      },
    {"force-share",  NULL,    OPTION_FLAG,  false, AT(force_share),
     "compare though somebody uses a volume"      },
    {"speed",        "BYTES", OPTION_BYTES, false, AT(speed),
     "read at most BYTES a second (10M, 1.5G)"    },
    {"memory",       "BYTES", OPTION_BYTES, false, AT(memory),
     "use at most BYTES for buffers (default 64M)"},
    {"low-priority", NULL,    OPTION_FLAG,  false, AT(low_priority),
     "idle I/O class and lowest CPU priority"     },
    FOLLOW_ROWS(AT(shown)),
};

static int copy_run(const void *values, char **operands, unsigned n);
static int verify_run(const void *values, char **operands, unsigned n);
static follow_begin_fn copy_begin;
static follow_begin_fn verify_begin;
static unsigned flags_of(const struct copy_values *v);

const struct verb verb_copy = {
    .name = "copy",
    .operands = "SOURCE TARGET",
    .min_operands = 2,
    .max_operands = 2,
    .summary = "Copy a volume at rest to another storage.",
    VERB_OPTIONS(copy_rows),
    .values_size = sizeof(struct copy_values),
    .operation = true,
    .run = copy_run,
};

const struct verb verb_verify = {
    .name = "verify",
    .operands = "A [B]",
    .min_operands = 1,
    .max_operands = 2,
    .summary = "Compare two volumes at rest, or one with a manifest.",
    VERB_OPTIONS(verify_rows),
    .values_size = sizeof(struct copy_values),
    .operation = true,
    .run = verify_run,
};

static int copy_run(const void *values, char **operands, unsigned n)
{
    (void)n;
    const struct copy_values *v = values;
    struct qpivot_copy_options options = {
        .size = sizeof(options),
        .source = operands[0],
        .target = operands[1],
        .flags = flags_of(v),
        .speed = v->speed,
        .memory = v->memory,
        .manifest = v->manifest,
    };
    return follow_run(&v->common, &v->shown, copy_begin, &options);
}

static int copy_begin(struct follow *f,
                      const struct qpivot_callbacks *callbacks,
                      const void *options, char **ret_error)
{
    return qpivot_copy(f->session->engine, options, callbacks, &f->transfer,
                       ret_error);
}

static int verify_run(const void *values, char **operands, unsigned n)
{
    const struct copy_values *v = values;
    if (n < 2 && v->manifest == NULL) {
        return verb_usage(&verb_verify, "B or --manifest FILE is missing");
    }
    struct qpivot_verify_options options = {
        .size = sizeof(options),
        .a = operands[0],
        .b = n > 1 ? operands[1] : NULL,
        .flags = flags_of(v),
        .speed = v->speed,
        .memory = v->memory,
        .manifest = v->manifest,
    };
    return follow_run_looking(&v->common, &v->shown, verify_begin, &options);
}

static int verify_begin(struct follow *f,
                        const struct qpivot_callbacks *callbacks,
                        const void *options, char **ret_error)
{
    return qpivot_verify(f->session->engine, options, callbacks, &f->transfer,
                         ret_error);
}

static unsigned flags_of(const struct copy_values *v)
{
    unsigned flags = 0;
    flags |= v->verify ? QPIVOT_VERIFY : 0;
    flags |= v->existing ? QPIVOT_EXISTING : 0;
    flags |= v->force_share ? QPIVOT_FORCE_SHARE : 0;
    flags |= v->clean ? QPIVOT_CLEAN : 0;
    flags |= v->low_priority ? QPIVOT_LOW_PRIORITY : 0;
    flags |= v->no_offload ? QPIVOT_NO_OFFLOAD : 0;
    flags |= v->dry_run ? QPIVOT_DRY_RUN : 0;
    return flags;
}
