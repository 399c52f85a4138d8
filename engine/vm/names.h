/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Every name that we invent, derived from the operation's id and the disk
 * before it is used, so that undo, probe and recover need no reply:
 *     qpv-<op>-d<index>[-<what>]    of a disk
 *     qpv-<op>-<what>               of the operation
 * QEMU's node names hold at most 31 bytes and start with a letter.
 */
#pragma once

#include <stdbool.h>

enum { NAME_SIZE = 32, OP_ID_SIZE = 8 };

#define NAME_CLAIM "qpv-claim"

/* What hangs off a disk; NAME_TARGET is the node that the guest will use. */
enum name_what {
    NAME_TARGET,  /* qpv-k3f9x2-d0        format node of the target */
    NAME_IMAGE,   /* ...-image            qcow2 node below a raw target node */
    NAME_FILE,    /* ...-file             protocol node of the target */
    NAME_MIRROR,  /* ...-mirror           the mirror job */
    NAME_TOP,     /* ...-top              the mirror's filter node */
    NAME_CREATE,  /* ...-create           blockdev-create job */
    NAME_KEY,     /* ...-key              secret object */
    NAME_EXPORT,  /* ...-export           export on the destination */
    NAME_SCRATCH, /* ...-scratch         image that carries a bitmap out */
    NAME_DIRTY0,  /* ...-dirty0           bitmaps of what the guest rewrites */
    NAME_DIRTY1,
    NAME_VOLUME, /* ...-new              a volume before it is published */
    NAME_UNLINK, /* ...-unlink           a listening socket, see target.c */
    NAME_TWIN,   /* ...-twin             the mirror back, of the undo window */
    NAME_TWIN_TOP, /* ...-twin-top       that one's filter node */
    NAME_BASE,    /* ...-base             base at the destination, its export */
    NAME_OVERLAY, /* ...-ov             on the source, for strategy base */
    NAME_OVERLAY_FILE, /* ...-ov-file    its protocol node */
    NAME_LANDING,      /* ...-land           the same on the target */
    NAME_LANDING_FILE, /* ...-land-file */
    NAME_COMMIT,       /* ...-commit         the job that ends either */
    NAME_COMMIT_TOP,   /* ...-commit-top     its filter node */
};

struct name {
    char text[NAME_SIZE];
};

struct name name_of(const char *op, unsigned disk, enum name_what what);

/* What an operation has once, of no disk. */
enum name_once {
    NAME_TLS,     /* qpv-k3f9x2-tls       credentials of stream and exports */
    NAME_AUTHZ,   /* ...-authz            whom the destination lets in */
    NAME_STREAM,  /* ...-stream         unix socket of the stream */
    NAME_EXPORTS, /* ...-exports        ... and of the NBD server */
};

struct name name_once(const char *op, enum name_once what);

/* Whether it is of an overlay on a source: no part of a target. */
bool name_is_overlay(const char *name);

/* Whether a name in QEMU or on a storage was invented by qpivot. */
bool name_is_ours(const char *name);

/*
 * The operation that a name belongs to, into 'ret' ("" and false: none). Its
 * prefix alone does not make a name one of an operation.
 */
bool name_operation(const char *name, char ret[OP_ID_SIZE]);

/* A fresh operation id: 6 of [a-z0-9] from 8 random bytes. */
void op_id_from(const unsigned char random[8], char ret[OP_ID_SIZE]);
bool op_id_valid(const char *id);
