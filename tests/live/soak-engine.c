/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One engine that moves a disk again and again in one process, for tools/soak:
 * what it holds of memory and descriptors must not grow.
 *
 *     soak-engine ADDR DISK STATE_DIR MOVES TARGET TARGET
 *
 * The targets take turns; each is removed when the other is reached. A line
 * {"move","rss_kb","heap","sqlite","fds"} after every move; ends with the outcome of
 * the first move that is not done, or 0.
 */
#include <dirent.h>
#include <malloc.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <uv.h>

#include "qpivot.h"

struct soak {
    uv_loop_t loop;
    struct qpivot_engine *engine;
    char **argv;
    unsigned moves;
    unsigned done;
    int outcome;
};

static void next(struct soak *s);
static void on_event(void *data, const char *json);
static void on_ended(void *data, enum qpivot_outcome outcome);

int main(int argc, char **argv)
{
    if (argc != 7) {
        (void)fprintf(stderr,
                      "usage: %s ADDR DISK STATE_DIR MOVES TARGET TARGET\n",
                      argv[0]);
        return QPIVOT_REFUSED;
    }
    struct soak s = {.argv = argv, .outcome = QPIVOT_REFUSED};
    s.moves = (unsigned)strtoul(argv[4], NULL, 10);
    if (uv_loop_init(&s.loop) < 0) {
        return QPIVOT_REFUSED;
    }
    struct qpivot_engine_options options = {
        .size = sizeof(options), .loop = &s.loop, .state_dir = argv[3]};
    if (qpivot_engine_new(&options, &s.engine, NULL) < 0) {
        return QPIVOT_REFUSED;
    }
    next(&s);
    (void)uv_run(&s.loop, UV_RUN_DEFAULT);
    if (uv_loop_close(&s.loop) != 0) {
        (void)fprintf(stderr, "something is left on the loop\n");
        return EXIT_FAILURE;
    }
    return s.outcome;
}

static unsigned count_fds(void)
{
    unsigned n = 0;
    DIR *dir = opendir("/proc/self/fd");
    while (dir != NULL && readdir(dir) != NULL) {
        n++;
    }
    if (dir != NULL) {
        (void)closedir(dir);
    }
    return n;
}

static void report(const struct soak *s)
{
    size_t rss = 0;
    struct mallinfo2 info = mallinfo2();
    (void)uv_resident_set_memory(&rss);
    /* The journal grows, and with it SQLite's cache, up to a bound. */
    size_t sqlite = (size_t)sqlite3_memory_used();
    (void)printf("{\"move\":%u,\"rss_kb\":%zu,\"heap\":%zu,\"sqlite\":%zu,"
                 "\"fds\":%u}\n",
                 s->done, rss / 1024,
                 info.uordblks > sqlite ? info.uordblks - sqlite : 0, sqlite,
                 count_fds());
    (void)fflush(stdout);
}

static void next(struct soak *s)
{
    struct qpivot_disk disk = {.disk = s->argv[2],
                               .target = s->argv[5 + s->done % 2]};
    struct qpivot_move_options options = {.size = sizeof(options),
                                          .qmp = s->argv[1],
                                          .disks = &disk,
                                          .n_disks = 1,
                                          .flags = QPIVOT_DELETE_SOURCE};
    struct qpivot_callbacks callbacks = {
        .data = s, .event = on_event, .ended = on_ended};
    char *error = NULL;
    if (qpivot_move(s->engine, &options, &callbacks, NULL, &error) < 0) {
        (void)fprintf(stderr, "%s\n", error != NULL ? error : "refused");
        qpivot_free(error);
        qpivot_engine_close(s->engine, NULL, NULL);
    }
}

static void on_event(void *data, const char *json)
{
    (void)data;
    (void)fprintf(stderr, "%s\n", json);
}

static void on_ended(void *data, enum qpivot_outcome outcome)
{
    struct soak *s = data;
    s->done += outcome == QPIVOT_DONE;
    s->outcome = (int)outcome;
    report(s);
    if (outcome == QPIVOT_DONE && s->done < s->moves) {
        next(s);
    } else {
        qpivot_engine_close(s->engine, NULL, NULL);
    }
}
