/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Where a verb's lines go. On a terminal: lines that stay, and under them one
 * live line for each key (a disk) that is redrawn in place. Anywhere else all
 * lines are plain, and a live line is printed only when it tells enough news.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

enum { TERMINAL_LIVE_MAX = 64 };

struct terminal {
    FILE *out;
    bool quiet;
    bool live;      /* a terminal that can move its cursor */
    unsigned drawn; /* live lines on the screen now */
    unsigned n;

    struct terminal_line {
        char *key;
        char *text;
        char *news;    /* what was printed last on a pipe */
        uint64_t when; /* ms */
    } lines[TERMINAL_LIVE_MAX];
};

void terminal_init(struct terminal *t, FILE *out, bool quiet);
/* Takes the live lines away and frees them; a second call is fine. */
void terminal_done(struct terminal *t);

/* A line that stays. */
void terminal_say(struct terminal *t, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
/*
 * Sets the live line of 'key'. On a pipe it is printed when 'news' (a phase,
 * a tenth of the way) differs from the last time, or after 30 s.
 */
void terminal_live(struct terminal *t, const char *key, const char *news,
                   const char *text);
/* Takes the live lines off the screen until the next line is printed. */
void terminal_hide(struct terminal *t);
/* Takes the live line of 'key' away. */
void terminal_still(struct terminal *t, const char *key);
