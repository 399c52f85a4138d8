/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* qpivot migrate: a running VM to another QEMU, with its disks. */
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "cmd.h"
#include "disks.h"
#include "errors.h"
#include "follow.h"
#include "text.h"

enum { ON_TIMEOUT_ABORT, ON_TIMEOUT_SUSPEND, ON_TIMEOUT_POSTCOPY };

enum { SOURCE_QUIT, SOURCE_PAUSE };

enum { MULTIFD_MAX = 255 };

struct migrate_values {
    struct common_values common;
    struct follow_values shown;
    const char *qmp;
    const char *to;
    struct option_list disks;
    const char *address;
    uint64_t bandwidth;
    uint64_t multifd;
    uint64_t export_port;
    unsigned downtime_limit;
    unsigned timeout;
    unsigned on_timeout;
    unsigned freeze_limit;
    unsigned command_timeout;
    unsigned source_after;
    const char *emit_config;
    const char *persist_hook;
    const char *tls_creds;
    const char *tls_creds_to;
    const char *tls_hostname;
    const char *tls_authz;
    unsigned sync;
    uint64_t xbzrle_cache;
    bool auto_converge;
    bool xbzrle;
    bool by_unix;
    bool tunnel;
    bool suspend;
    bool postcopy;
    bool drop_bitmaps;
    bool drop_snapshots;
    bool dry_run;
};

#define AT(member) offsetof(struct migrate_values, member)

static const struct option_row rows[] = {
    {"qmp",             "ADDR",                   OPTION_TEXT,   true,  AT(qmp),
     "the monitor of the VM as it runs now"                                   },
    {"to",              "ADDR",                   OPTION_TEXT,   true,  AT(to),
     "the monitor of the destination: a QEMU with -incoming defer -S"         },
    {"disk",            "DISK=HOW",               OPTION_LIST,   false, AT(disks),
     "a target to make, or share, nbd, direct: see qpivot-migrate(1)"         },
    {"address",         "HOST",                   OPTION_TEXT,   false, AT(address),
     "the destination as the source reaches it (default: the host of --to)"   },
    {"export-port",     "PORT",                   OPTION_BYTES,  false, AT(export_port),
     "TCP port of the destination's NBD server (default: one of 49152 and up)"},
    {"unix",            NULL,                     OPTION_FLAG,   false, AT(by_unix),
     "send memory and disks by unix sockets: both QEMUs are on this host"     },
    {"tunnel",          NULL,                     OPTION_FLAG,   false, AT(tunnel),
     "send them by the ssh connection of the destination's monitor"           },
    {"dry-run",         NULL,                     OPTION_FLAG,   false, AT(dry_run),
     "print the plan with its QMP commands and change nothing"                },
    {"sync",            "auto|full|top",          OPTION_CHOICE, false, AT(sync),
     "leave linked clones on their base: where it is proved; never; always"   },
    FOLLOW_ROWS(AT(shown)),
    {"bandwidth",       "BYTES",                  OPTION_BYTES,  false, AT(bandwidth),
     "send at most BYTES a second, disks and memory (10M, 1.5G)"              },
    {"downtime-limit",  "MS",                     OPTION_MS,     false, AT(downtime_limit),
     "longest last pass of memory that QEMU plans for"                        },
    {"multifd",         "N",                      OPTION_BYTES,  false, AT(multifd),
     "send the memory by N connections"                                       },
    {"xbzrle",          NULL,                     OPTION_FLAG,   false, AT(xbzrle),
     "send of a page that changes again only what has changed"                },
    {"xbzrle-cache",    "BYTES",                  OPTION_BYTES,  false, AT(xbzrle_cache),
     "keep BYTES of pages for that, a power of two (default 64M)"             },
    {"auto-converge",   NULL,                     OPTION_FLAG,   false, AT(auto_converge),
     "let QEMU slow the guest down where its memory changes too fast"         },
    {"tls-creds",       "DIR",                    OPTION_TEXT,   false, AT(tls_creds),
     "encrypt stream and disks by the X.509 certificates in DIR"              },
    {"tls-creds-to",    "DIR",                    OPTION_TEXT,   false, AT(tls_creds_to),
     "where the destination has its own (default: the same DIR)"              },
    {"tls-hostname",    "NAME",                   OPTION_TEXT,   false, AT(tls_hostname),
     "what the destination's certificate is for (default: the address)"       },
    {"tls-authz",       "DN",                     OPTION_TEXT,   false, AT(tls_authz),
     "let in a source with this distinguished name only"                      },
    {"suspend",         NULL,                     OPTION_FLAG,   false, AT(suspend),
     "pause the guest after the first pass of memory"                         },
    {"postcopy",        NULL,                     OPTION_FLAG,   false, AT(postcopy),
     "let the guest go over after that pass, and the rest of it after it"     },
    {"timeout",         "T",                      OPTION_TIME,   false, AT(timeout),
     "do what --on-timeout says after T (30s, 10m, 2h)"                       },
    {"on-timeout",      "abort|suspend|postcopy", OPTION_CHOICE, false,
     AT(on_timeout),
     "go back, pause the guest so that the stream ends, or as --postcopy"     },
    {"freeze-limit",    "T",                      OPTION_TIME,   false, AT(freeze_limit),
     "longest the guest stands before the source hands it over (default 5s)"  },
    {"command-timeout", "T",                      OPTION_TIME,   false, AT(command_timeout),
     "longest wait for one QMP command (default 30s)"                         },
    {"source-after",    "quit|pause",             OPTION_CHOICE, false, AT(source_after),
     "end the source QEMU, or leave it paused; it must never run again"       },
    {"emit-config",     "FILE",                   OPTION_TEXT,   false, AT(emit_config),
     "write where the VM and its disks are now to FILE"                       },
    {"persist-hook",    "CMD",                    OPTION_TEXT,   false, AT(persist_hook),
     "give it to CMD on stdin; must succeed before the source is ended"       },
    {"drop-bitmaps",    NULL,                     OPTION_FLAG,   false, AT(drop_bitmaps),
     "go on though dirty bitmaps would be lost"                               },
    {"drop-snapshots",  NULL,                     OPTION_FLAG,   false, AT(drop_snapshots),
     "go on though internal snapshots would be lost"                          },
};

static int run(const void *values, char **operands, unsigned n);
static follow_begin_fn begin;
static struct qpivot_migrate_options options_of(const struct migrate_values *v);
static unsigned flags_of(const struct migrate_values *v);

const struct verb verb_migrate = {
    .name = "migrate",
    .operands = "",
    .summary = "Move a running VM to another QEMU, with its disks.",
    VERB_OPTIONS(rows),
    .values_size = sizeof(struct migrate_values),
    .operation = true,
    .run = run,
};

static int run(const void *values, char **operands, unsigned n)
{
    (void)operands;
    (void)n;
    const struct migrate_values *v = values;
    struct qpivot_disk *disks = calloc(v->disks.n + 1, sizeof(*disks));
    char *text = NULL;
    int code = EXIT_USAGE;
    if (v->multifd > MULTIFD_MAX || v->export_port > USHRT_MAX) {
        code = verb_usage(&verb_migrate, "'--%s' is too big",
                          v->multifd > MULTIFD_MAX ? "multifd" : "export-port");
    } else if (disks == NULL) {
        error_print(NULL);
    } else if (split_disks(&verb_migrate, &v->disks, disks, &text) == 0) {
        struct qpivot_migrate_options options = options_of(v);
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
    return qpivot_migrate(f->session->engine, options, callbacks, &f->op,
                          ret_error);
}

static struct qpivot_migrate_options options_of(const struct migrate_values *v)
{
    struct qpivot_migrate_options options = {
        .size = sizeof(options),
        .qmp = v->qmp,
        .to = v->to,
        .n_disks = v->disks.n,
        .flags = flags_of(v),
        .bandwidth = v->bandwidth,
        .downtime_limit_ms = v->downtime_limit,
        .multifd = (unsigned)v->multifd,
        .timeout_ms = v->timeout,
        .freeze_limit_ms = v->freeze_limit,
        .command_timeout_ms = v->command_timeout,
        .export_port = (unsigned)v->export_port,
        .address = v->address,
        .emit_config = v->emit_config,
        .persist_hook = v->persist_hook,
        .xbzrle_cache = v->xbzrle_cache,
        .tls_dir = v->tls_creds,
        .tls_dir_to = v->tls_creds_to,
        .tls_hostname = v->tls_hostname,
        .tls_authz = v->tls_authz,
        .sync = (enum qpivot_sync)v->sync,
    };
    return options;
}

static unsigned flags_of(const struct migrate_values *v)
{
    unsigned flags = 0;
    flags |= v->dry_run ? QPIVOT_DRY_RUN : 0;
    flags |= v->drop_bitmaps ? QPIVOT_DROP_BITMAPS : 0;
    flags |= v->drop_snapshots ? QPIVOT_DROP_SNAPSHOTS : 0;
    flags |= v->auto_converge ? QPIVOT_AUTO_CONVERGE : 0;
    flags |= v->by_unix ? QPIVOT_UNIX : 0;
    flags |= v->tunnel ? QPIVOT_TUNNEL : 0;
    flags |= v->xbzrle ? QPIVOT_XBZRLE : 0;
    flags |= v->suspend ? QPIVOT_SUSPEND : 0;
    flags |= v->source_after == SOURCE_PAUSE ? QPIVOT_KEEP_SOURCE : 0;
    flags |= v->on_timeout == ON_TIMEOUT_SUSPEND ? QPIVOT_TIMEOUT_SUSPENDS : 0;
    flags |=
        v->on_timeout == ON_TIMEOUT_POSTCOPY ? QPIVOT_TIMEOUT_POSTCOPIES : 0;
    flags |= v->postcopy ? QPIVOT_POSTCOPY : 0;
    return flags;
}
