/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A QEMU that lies: the one of fake/fake-vm, whose replies are replaced here
 * and there, and one engine's operation against it, in one loop and with a
 * clock that goes on only when nobody has anything left to do. What really
 * happens to the guest's disk stays honest, so that it can be judged.
 *
 * What it does is a text of lines: the verb ("look" "fix" "plan" "move"
 * "migrate"), then
 *     <n> <json>           the reply to the n-th command, from 0
 *     <command> <json>     the reply to every such command
 *     !<n> <json>          an event, or any message, before the n-th reply
 * A reply {"error":{"class","desc"}} is one. Lines that are none are skipped.
 * Both QEMUs of a migration lie; n counts the commands of both.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

struct liar_verdict {
    bool ended;         /* else it was let go: it never ends by itself */
    bool whole;         /* the guest's disk has all that was acknowledged */
    bool once;          /* the guest is in one QEMU, and only there */
    bool source_there;  /* the source and its nodes are, or the disk moved */
    bool foreign_there; /* somebody's node and volume beside it are */
    int outcome;
    unsigned n_commands;
    char violation[160]; /* "" or what must never happen */
};

/* 'state' is a folder for the journal. */
void liar_run(const char *text, size_t size, const char *state,
              struct liar_verdict *ret);
