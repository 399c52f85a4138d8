/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What an operation is going to do, decided once and journalled: the steps
 * read nothing else. A plan is values only; it converts to JSON and back
 * without loss, so that a recovering engine acts on the very same decisions.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/cleanup.h"

struct err;

struct plan_disk {
    unsigned index;
    /* the source, as QEMU knows it */
    char *disk;     /* what the user called it */
    char *device;   /* graph_device.key */
    char *drive;    /* legacy drive id, or "" */
    char *root;     /* blockdev-mirror's 'device' */
    char *replaces; /* the node that the target replaces, "" = root */
    char *active;   /* the active layer */
    char *protocol; /* its protocol node */
    char *from;     /* its URI or file name */
    char *from_format;
    json_t *from_blockdevs; /* its description, for the undo; NULL unknown */
    char *source_identity;  /* volume_info.identity, "" unknown */
    json_t *source_nodes;   /* names, top-down, for blockdev-del */
    json_t *before;         /* graph_disk_facts() */
    json_t *bitmaps; /* [{"name","granularity","recording","persistent"}] */
    json_t *known_bitmaps; /* names of all that there were */
    uint64_t size;         /* virtual size in bytes */
    char *from_state;      /* volume_info.state: what is to be let go, or "" */
    /* the target */
    char *to; /* URI */
    char *format;
    uint64_t target_size; /* what an existing target holds; == size if new */
    char *to_state;       /* volume_info.state, to be given back, or "" */
    char *to_identity;    /* volume_info.identity of what was there, or "" */
    bool create;          /* we make the volume */
    bool make_format;     /* we write the qcow2 metadata */
    bool shim;            /* the target is larger: size= until the pivot */
    bool image;           /* ... on a raw node above the image's own */
    bool secret;          /* QEMU needs a secret object */
    bool drive_mirror;
    bool nbd;             /* the target's node is an NBD client */
    char *legacy_name;    /* file name for drive-mirror, or "" */
    json_t *file_options; /* blockdev-add options of the protocol node */
    json_t *node_options; /* of the format node, without "file" */
    json_t *copy_options; /* of the target node, until the pivot only; or {} */
    /* the copy */
    char *sync; /* "full" or "top" */
    bool target_is_zero;
    char *reason; /* why that sync, for people */
    /* The image below the source that the target is to stand on, too. */
    char *base;         /* its node, "": none, the target has all data */
    char *base_file;    /* as the target's header is to name it */
    char *base_format;  /* QEMU's driver */
    json_t *base_nodes; /* of source_nodes: it and all below, which stay */
    json_t *linked;     /* of a migration: what it must equal, or NULL */
    /*
     * Strategy base: the source's image stands still below an overlay while it
     * is copied, and the target's gets what the guest has written since from
     * another one, its landing. Both files' URIs, "": strategy mirror.
     */
    char *overlay;
    char *landing;
    char *copy_mode;
    bool may_write_block; /* its mirror is write-blocking, or may become so */
    /* another host: how it gets there */
    char *how;         /* "share" "nbd" "direct" "skip", or "": no migration */
    char *dst_node;    /* what the destination's device uses: the export's */
    bool made_there;   /* a file of its host, which only its QEMU can make */
    bool attach;       /* it is on a placeholder until we give it that node */
    char *placeholder; /* the node that it is on till then, or "" */
};

/* Whether a mirror job copies it: all disks of a move, some of a migration. */
bool plan_disk_is_mirrored(const struct plan_disk *disk);
/* Whether the target is to stand on the source's base: sync=top. */
bool plan_disk_keeps_base(const struct plan_disk *disk);
/* Whether the source's image is copied at rest, as it is: strategy base. */
bool plan_disk_copies_base(const struct plan_disk *disk);
/*
 * Of source_nodes, in a new array, those that the guest's disk is without
 * after the pivot; QEMU's own ('#') among them go with their parents.
 */
json_t *plan_disk_former_nodes(const struct plan_disk *disk);
/* Whether a migration's 'to' is a volume, and not just a text for people. */
bool plan_disk_has_volume(const struct plan_disk *disk);

struct plan {
    char *kind; /* "move" */
    char *qmp;
    struct plan_disk *disks;
    unsigned n_disks;
    bool group;         /* pivot through PENDING */
    bool hold_shutdown; /* set-action shutdown=pause, and back */
    bool delete_source;
    bool allow_degraded; /* pivot though not every replica is equal */
    bool has_target_is_zero;
    bool governs_latency;
    uint64_t speed;
    uint64_t max_guest_latency_ms;
    uint64_t timeout_ms;
    uint64_t freeze_limit_ms;
    uint64_t command_timeout_ms;
    uint64_t target_timeout_ms; /* a target without an answer; 0: for ever */
    uint64_t copy_mode;         /* enum qpivot_copy_mode */
    uint64_t qemu_pid;          /* of a QEMU on this host, else 0 */
    uint64_t undo_window_ms;    /* 0: none */
    uint64_t qemu_start;
    char *emit_config;
    char *persist_hook;
    char *space_hook;
    char *verify;     /* before the pivot: "none" "sample" "full", or "" */
    char *verify_dir; /* of the scratch images; made for it */
    uint64_t qemu_uid;
    /* another host */
    char *dst_qmp; /* "": this is no migration */
    uint64_t dst_pid;
    uint64_t dst_start;
    char *address;         /* of the destination, for stream and exports */
    uint64_t export_port;  /* of the destination's NBD server */
    uint64_t export_ports; /* so many from there on may be tried; 0: one */
    bool suspend;          /* stop the guest once the first pass is through */
    uint64_t suspend_ms;   /* stop it when the stream takes longer; 0: never */
    bool postcopy;         /* ... or let it go over then, before its memory */
    uint64_t postcopy_ms;
    bool was_running;     /* the guest, when it was planned */
    bool quit_source;     /* else it is left, paused for ever */
    json_t *capabilities; /* for both: [{"capability","state"}] */
    json_t *parameters;   /* of migrate-set-parameters, for both */
    char *stream_socket;  /* of the destination's host, "": by TCP */
    char *export_socket;
    bool tunnel;   /* they are reached by ssh, by the monitor's connection */
    char *tls_dir; /* of the source's credentials, "": no TLS */
    char *tls_dir_to;
    char *tls_hostname; /* "": the address */
    char *tls_authz;    /* "": whoever has a certificate of the CA */
    json_t *src_before; /* {"capabilities","parameters"} as they were */
    json_t *dst_before;
    bool adopted; /* found in QEMU, without a journal: nothing is freed */
};

/* Makes room for other disks than it had, all empty. */
int plan_set_disks(struct plan *plan, unsigned n_disks);
int plan_new(const char *kind, unsigned n_disks, struct plan **ret);
struct plan *plan_free(struct plan *plan);
DEFINE_CLEANUP(struct plan, plan_free)

/* New reference, or NULL without memory. */
json_t *plan_to_json(const struct plan *plan);
/* -EPROTO when a member is missing or of another type. */
int plan_from_json(const json_t *json, struct plan **ret, struct err **errp);
