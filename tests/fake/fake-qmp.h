/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A scripted QMP server on a unix socket, in the loop of the test. Like QEMU
 * it serves one client at a time and lets a second one wait without greeting,
 * answers in order, and reads commands by matching braces.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <uv.h>

struct fake_qmp;

/*
 * Does the command and returns what becomes its "return" (a new reference),
 * fake_qmp_error(), or NULL: CommandNotFound.
 */
typedef json_t *fake_answer_fn(void *data, const char *command,
                               const json_t *args);

/* What goes wrong with a command. "Done" means the answer function ran. */
enum fake_fault {
    FAKE_NONE,
    FAKE_ERROR,      /* not done; GenericError "injected" */
    FAKE_DONE_ERROR, /* done, and GenericError "injected" all the same */
    FAKE_SILENCE,    /* not done, never answered */
    FAKE_LOST_REPLY, /* done, never answered */
    FAKE_HOLD,       /* done, answered at fake_qmp_release() */
    FAKE_CLOSE,      /* not done, the connection closes */
    FAKE_DONE_CLOSE, /* done, the connection closes instead of a reply */
    FAKE_MALFORMED,  /* done, the reply is no JSON */
    FAKE_HUGE,       /* done, a reply of 1 MiB */
    N_FAKE_FAULTS,
};

struct fake_qmp_options {
    uv_loop_t *loop;
    fake_answer_fn *answer; /* NULL: {} to everything */
    void *data;
    bool no_oob;
    bool no_greeting;     /* accepts and stays silent, as a busy monitor */
    bool no_capabilities; /* greets and then hangs */
    bool byte_by_byte;    /* every byte in a turn of its own */
    bool pretty;          /* replies of many lines */
};

int fake_qmp_new(const struct fake_qmp_options *options, struct fake_qmp **ret);
/* Closes at once; the object is freed from the loop. */
struct fake_qmp *fake_qmp_close(struct fake_qmp *fake);

/* "unix:/tmp/.../qmp". */
const char *fake_qmp_address(const struct fake_qmp *fake);

/* For the next 'command' (NULL: of any name) after 'skip' such; then gone. */
void fake_qmp_fault(struct fake_qmp *fake, const char *command, unsigned skip,
                    enum fake_fault fault);
/* Sends the replies that were held, in order. */
void fake_qmp_release(struct fake_qmp *fake);
/* {"event","data","timestamp"}; steals 'data', which may be NULL. */
void fake_qmp_event(struct fake_qmp *fake, const char *name, json_t *data);
void fake_qmp_raw(struct fake_qmp *fake, const void *bytes, size_t n);
/* Closes the client's connection, as a QEMU that ends. */
void fake_qmp_hang_up(struct fake_qmp *fake);
/* Reads nothing any more until false: the socket fills up. */
void fake_qmp_deaf(struct fake_qmp *fake, bool deaf);

/* How many commands of that name came (NULL: all but qmp_capabilities). */
unsigned fake_qmp_count(const struct fake_qmp *fake, const char *command);
/* All of them, whole messages, in order; borrowed. */
const json_t *fake_qmp_log(const struct fake_qmp *fake);
bool fake_qmp_has_client(const struct fake_qmp *fake);

json_t *fake_qmp_error(const char *class, const char *desc);
