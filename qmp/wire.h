/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The wire: bytes in, JSON messages out, within bounds. Pure; it knows what a
 * JSON object looks like from outside, and nothing of sockets or of QMP.
 *
 * Messages are told apart by matching braces, as QEMU itself does, and not by
 * lines: with pretty=on a message has many, and a chunk may end anywhere.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

struct err;

enum {
    WIRE_MAX_MESSAGE = 64 << 20, /* bytes, unless told otherwise */
    WIRE_MAX_NESTING = 512,
    /* a 3-byte value costs 40 times that in memory: bound them as well */
    WIRE_MAX_VALUES = 4 << 20,
};

struct wire {
    size_t max_message;
    char *data;
    size_t allocated;
    size_t start; /* of the message that is being read */
    size_t scan;  /* bytes before it are understood */
    size_t end;   /* of what was received */
    unsigned depth;
    unsigned n_values;
    bool in_string;
    bool escaped;
    int failed; /* 0, or what every wire_next() returns from now on */
};

/* 'max_message' 0: WIRE_MAX_MESSAGE. */
void wire_init(struct wire *wire, size_t max_message);
void wire_done(struct wire *wire);

/*
 * Where the next bytes may be written to, at least 'want' of them; then
 * wire_commit() says how many there were. -ENOMEM.
 */
int wire_reserve(struct wire *wire, size_t want, char **ret);
void wire_commit(struct wire *wire, size_t n);
/* Lets go of the memory, unless a message has been begun. */
void wire_trim(struct wire *wire);
/* The two with a copy between them. */
int wire_feed(struct wire *wire, const void *bytes, size_t n);

/*
 * Takes the next whole message: 1 with a new reference in 'ret', 0 when more
 * bytes are needed, -EBADMSG (no JSON object; errp quotes how it begins),
 * -EMSGSIZE (a bound), -ENOMEM. After an error nothing can be read any more:
 * where the next message would begin is not known.
 *
 * Integers are exact. Those beyond int64 (QEMU sends up to 2^64-1) come as
 * reals, the others of the same message stay integers.
 */
int wire_next(struct wire *wire, json_t **ret, struct err **errp);

/* Whether bytes of an unfinished message are there. */
bool wire_in_message(const struct wire *wire);
