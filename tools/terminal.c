/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Lines on a terminal or a pipe. It knows cursors and columns, not what the
 * lines say.
 */
#include "terminal.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "text.h"

enum { QUIET_MS = 30000 };

static struct terminal_line *line_of(struct terminal *t, const char *key);
static void erase(struct terminal *t);
static void draw(struct terminal *t);
static unsigned columns(const struct terminal *t);
static void put_clipped(struct terminal *t, const char *text, unsigned width);
static void set(char **at, const char *text);
static uint64_t now_ms(void);

void terminal_init(struct terminal *t, FILE *out, bool quiet)
{
    *t = (struct terminal){.out = out, .quiet = quiet};
    const char *term = getenv("TERM");
    t->live = !quiet && isatty(fileno(out)) && term != NULL &&
              strcmp(term, "dumb") != 0;
}

void terminal_done(struct terminal *t)
{
    erase(t);
    for (unsigned i = 0; i < t->n; i++) {
        free(t->lines[i].key);
        free(t->lines[i].text);
        free(t->lines[i].news);
    }
    t->n = 0;
}

void terminal_say(struct terminal *t, const char *fmt, ...)
{
    if (t->quiet) {
        return;
    }
    char *text = NULL;
    va_list ap;
    va_start(ap, fmt);
    int n = vasprintf(&text, fmt, ap);
    va_end(ap);
    if (n < 0) {
        return;
    }
    erase(t);
    (void)fprintf(t->out, "%s\n", text_tame(text));
    free(text);
    draw(t);
    (void)fflush(t->out);
}

void terminal_live(struct terminal *t, const char *key, const char *news,
                   const char *text)
{
    struct terminal_line *line = t->quiet ? NULL : line_of(t, key);
    if (line == NULL) {
        return;
    }
    if (t->live) {
        erase(t);
        set(&line->text, text);
        draw(t);
        (void)fflush(t->out);
        return;
    }
    uint64_t now = now_ms();
    bool same = line->news != NULL && strcmp(line->news, news) == 0;
    if (!same || now - line->when >= QUIET_MS) {
        set(&line->news, news);
        line->when = now;
        terminal_say(t, "%s", text);
    }
}

void terminal_hide(struct terminal *t)
{
    erase(t);
    (void)fflush(t->out);
}

void terminal_still(struct terminal *t, const char *key)
{
    struct terminal_line *line = line_of(t, key);
    if (line != NULL && line->text != NULL) {
        erase(t);
        set(&line->text, NULL);
        draw(t);
        (void)fflush(t->out);
    }
}

static struct terminal_line *line_of(struct terminal *t, const char *key)
{
    for (unsigned i = 0; i < t->n; i++) {
        if (strcmp(t->lines[i].key, key) == 0) {
            return &t->lines[i];
        }
    }
    char *copy = t->n < TERMINAL_LIVE_MAX ? text_printf("%s", key) : NULL;
    if (copy == NULL) {
        return NULL;
    }
    t->lines[t->n] = (struct terminal_line){.key = copy};
    return &t->lines[t->n++];
}

/* Up, and clear to the end of the screen (ECMA-48 CUU, ED). */
static void erase(struct terminal *t)
{
    if (t->drawn > 0) {
        (void)fprintf(t->out, "\r\033[%uA\033[J", t->drawn);
        t->drawn = 0;
    }
}

static void draw(struct terminal *t)
{
    if (!t->live) {
        return;
    }
    unsigned width = columns(t);
    for (unsigned i = 0; i < t->n; i++) {
        if (t->lines[i].text != NULL) {
            put_clipped(t, t->lines[i].text, width - 1);
            t->drawn++;
        }
    }
}

/* A line that wrapped would be two to erase. */
static void put_clipped(struct terminal *t, const char *text, unsigned width)
{
    char *tame = text_printf("%s", text);
    if (tame == NULL) {
        return;
    }
    (void)text_tame(tame);
    unsigned used = 0;
    size_t end = 0;
    for (; tame[end] != '\0'; end++) {
        bool continues = ((unsigned char)tame[end] & 0xC0U) == 0x80U;
        if (!continues && used++ == width) {
            break;
        }
    }
    (void)fprintf(t->out, "%.*s\n", (int)end, tame);
    free(tame);
}

static unsigned columns(const struct terminal *t)
{
    struct winsize size = {0};
    if (ioctl(fileno(t->out), TIOCGWINSZ, &size) == 0 && size.ws_col >= 20) {
        return size.ws_col;
    }
    return 80;
}

static void set(char **at, const char *text)
{
    free(*at);
    *at = text != NULL ? text_printf("%s", text) : NULL;
}

static uint64_t now_ms(void)
{
    struct timespec now = {0};
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}
