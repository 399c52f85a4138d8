/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* qpivot move: disks of a running VM to another storage. */
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "cmd.h"
#include "disks.h"
#include "errors.h"
#include "follow.h"
#include "text.h"

struct move_values {
    struct common_values common;
    struct follow_values shown;
    const char *qmp;
    struct option_list disks;
    uint64_t speed;
    unsigned copy_mode;
    unsigned via;
    unsigned sync;
    unsigned strategy;
    unsigned max_guest_latency;
    unsigned timeout;
    unsigned freeze_limit;
    unsigned command_timeout;
    unsigned target_timeout;
    unsigned verify;
    const char *emit_config;
    const char *persist_hook;
    const char *space_hook;
    unsigned undo_window;
    bool delete_source;
    bool drop_bitmaps;
    bool drop_snapshots;
    bool allow_degraded;
    bool dry_run;
};

#define AT(member) offsetof(struct move_values, member)

static const struct option_row rows[] = {
    {"qmp",               "ADDR",                              OPTION_TEXT,   true,  AT(qmp),
     "the VM's monitor: PATH, unix:PATH, tcp:HOST:PORT, ssh://HOST/PATH, "
     "exec:COMMAND"                                                                                                                                          },
    {"disk",              "DISK=TARGET",                       OPTION_LIST,   true,  AT(disks),
     "which disk goes where; may be given several times"                                                                                                     },
    {"dry-run",           NULL,                                OPTION_FLAG,   false, AT(dry_run),
     "print the plan with its QMP commands and change nothing"                                                                                               },
    FOLLOW_ROWS(AT(shown)),
    {"speed",             "BYTES",                             OPTION_BYTES,  false, AT(speed),
     "copy at most BYTES a second of each disk (10M, 1.5G)"                                                                                                  },
    {"copy-mode",         "auto|background|write-blocking",    OPTION_CHOICE, false,
     AT(copy_mode),                                                                                         "how guest writes reach the target while copying"},
    {"via",               "auto|blockdev-mirror|drive-mirror", OPTION_CHOICE, false, AT(via),
     "the QMP command that copies"                                                                                                                           },
    {"sync",              "auto|full|top",                     OPTION_CHOICE, false, AT(sync),
     "copy the whole chain or its active layer"                                                                                                              },
    {"strategy",          "auto|mirror|base",                  OPTION_CHOICE, false, AT(strategy),
     "mirror the disk, or copy its image with all that is in it"                                                                                             },
    {"verify",            "none|sample|full",                  OPTION_CHOICE, false, AT(verify),
     "compare source and target before the pivot, a sample or all"                                                                                           },
    {"max-guest-latency", "MS",                                OPTION_MS,     false, AT(max_guest_latency),
     "slow down when guest writes take longer (20ms; bare: milliseconds)"                                                                                    },
    {"timeout",           "T",                                 OPTION_TIME,   false, AT(timeout),
     "go back when the pivot is not reached in T (30s, 10m, 2h)"                                                                                             },
    {"freeze-limit",      "T",                                 OPTION_TIME,   false, AT(freeze_limit),
     "longest frozen moment of a pivot (default 2s)"                                                                                                         },
    {"command-timeout",   "T",                                 OPTION_TIME,   false, AT(command_timeout),
     "longest wait for one QMP command (default 30s)"                                                                                                        },
    {"target-timeout",    "T",                                 OPTION_TIME,   false, AT(target_timeout),
     "go back when a target does not answer for T (default 5m)"                                                                                              },
    {"emit-config",       "FILE",                              OPTION_TEXT,   false, AT(emit_config),
     "write the new -blockdev description of each disk to FILE"                                                                                              },
    {"persist-hook",      "CMD",                               OPTION_TEXT,   false, AT(persist_hook),
     "give it to CMD on stdin; must succeed before a source is freed"                                                                                        },
    {"space-hook",        "CMD",                               OPTION_TEXT,   false, AT(space_hook),
     "run CMD when a target is full"                                                                                                                         },
    {"undo-window",       "T",                                 OPTION_TIME,   false, AT(undo_window),
     "keep the source equal for T after the pivot: 'qpivot undo' goes back"                                                                                  },
    {"delete-source",     NULL,                                OPTION_FLAG,   false, AT(delete_source),
     "remove the source when the target is proved and persisted"                                                                                             },
    {"drop-bitmaps",      NULL,                                OPTION_FLAG,   false, AT(drop_bitmaps),
     "go on though dirty bitmaps would be lost"                                                                                                              },
    {"drop-snapshots",    NULL,                                OPTION_FLAG,   false, AT(drop_snapshots),
     "go on though internal snapshots would be lost"                                                                                                         },
    {"allow-degraded",    NULL,                                OPTION_FLAG,   false, AT(allow_degraded),
     "pivot though not every replica of a target gets every write"                                                                                           },
};

_Static_assert(QPIVOT_COPY_AUTO == 0 && QPIVOT_COPY_BACKGROUND == 1 &&
                   QPIVOT_COPY_WRITE_BLOCKING == 2,
               "the choices of --copy-mode are in the order of the enum");
_Static_assert(QPIVOT_VIA_AUTO == 0 && QPIVOT_VIA_BLOCKDEV_MIRROR == 1 &&
                   QPIVOT_VIA_DRIVE_MIRROR == 2,
               "the choices of --via are in the order of the enum");
_Static_assert(QPIVOT_SYNC_AUTO == 0 && QPIVOT_SYNC_FULL == 1 &&
                   QPIVOT_SYNC_TOP == 2,
               "the choices of --sync are in the order of the enum");

_Static_assert(QPIVOT_STRATEGY_AUTO == 0 && QPIVOT_STRATEGY_MIRROR == 1 &&
                   QPIVOT_STRATEGY_BASE == 2,
               "the choices of --strategy are in the order of the enum");

_Static_assert(QPIVOT_VERIFY_NONE == 0 && QPIVOT_VERIFY_SAMPLE == 1 &&
                   QPIVOT_VERIFY_FULL == 2,
               "the choices of --verify are in the order of the enum");

static int run(const void *values, char **operands, unsigned n);
static follow_begin_fn begin;
static struct qpivot_move_options options_of(const struct move_values *v);
static unsigned flags_of(const struct move_values *v);

const struct verb verb_move = {
    .name = "move",
    .operands = "",
    .summary = "Move disks of a running VM to another storage.",
    VERB_OPTIONS(rows),
    .values_size = sizeof(struct move_values),
    .operation = true,
    .run = run,
};

static int run(const void *values, char **operands, unsigned n)
{
    (void)operands;
    (void)n;
    const struct move_values *v = values;
    struct qpivot_disk *disks = calloc(v->disks.n, sizeof(*disks));
    char *text = NULL;
    int code = EXIT_USAGE;
    if (disks == NULL) {
        error_print(NULL);
    } else if (split_disks(&verb_move, &v->disks, disks, &text) == 0) {
        struct qpivot_move_options options = options_of(v);
        options.disks = disks;
        code = follow_run(&v->common, &v->shown, begin, &options);
    }
    free(text);
    free(disks);
    return code;
}

static int begin(struct follow *f, const struct qpivot_callbacks *callbacks,
                 const void *options, char **ret_error)
{
    return qpivot_move(f->session->engine, options, callbacks, &f->op,
                       ret_error);
}

static struct qpivot_move_options options_of(const struct move_values *v)
{
    struct qpivot_move_options options = {
        .size = sizeof(options),
        .qmp = v->qmp,
        .n_disks = v->disks.n,
        .flags = flags_of(v),
        .copy_mode = (enum qpivot_copy_mode)v->copy_mode,
        .via = (enum qpivot_via)v->via,
        .sync = (enum qpivot_sync)v->sync,
        .strategy = (enum qpivot_strategy)v->strategy,
        .verify = (enum qpivot_verify_mode)v->verify,
        .speed = v->speed,
        .max_guest_latency_ms = v->max_guest_latency,
        .timeout_ms = v->timeout,
        .freeze_limit_ms = v->freeze_limit,
        .command_timeout_ms = v->command_timeout,
        .target_timeout_ms = v->target_timeout,
        .emit_config = v->emit_config,
        .persist_hook = v->persist_hook,
        .space_hook = v->space_hook,
        .undo_window_ms = v->undo_window,
    };
    return options;
}

static unsigned flags_of(const struct move_values *v)
{
    unsigned flags = 0;
    flags |= v->dry_run ? QPIVOT_DRY_RUN : 0;
    flags |= v->delete_source ? QPIVOT_DELETE_SOURCE : 0;
    flags |= v->drop_bitmaps ? QPIVOT_DROP_BITMAPS : 0;
    flags |= v->drop_snapshots ? QPIVOT_DROP_SNAPSHOTS : 0;
    flags |= v->allow_degraded ? QPIVOT_ALLOW_DEGRADED : 0;
    return flags;
}
