/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "matrix/world.h"

#include <dirent.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "base/cleanup.h"
#include "base/str.h"

enum { GUARD_MS = 10000 }; /* real time that a freeze guard may need */

static json_t *side_answer(void *data, const char *command, const json_t *args);
static void drain(struct world *world);
static void kill_stand_in(struct world_side *side);

static void check(bool ok, const char *what)
{
    if (!ok) {
        perror(what);
        abort();
    }
}

int world_init(struct world *world)
{
    const char *root = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
    memset(world, 0, sizeof(*world));
    scratch_root(root);
    scratch_make("matrix", world->dir);
    void *told = mmap(NULL, sizeof(struct told), PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    world->store = store_new();
    if (told == MAP_FAILED || world->store == NULL ||
        uv_loop_init(&world->loop) < 0) {
        return -1;
    }
    world->told = told;
    (void)prctl(PR_SET_NAME, "qemu-fake");  /* what the engine looks for */
    (void)prctl(PR_SET_CHILD_SUBREAPER, 1); /* what an engine leaves is ours */
    store_register(world->store);
    return 0;
}

static void empty_directory(const struct world *world)
{
    DIR *dir = opendir(world->dir);
    check(dir != NULL, world->dir);
    for (struct dirent *it; (it = readdir(dir)) != NULL;) {
        (void)unlinkat(dirfd(dir), it->d_name, 0); /* "." stays */
    }
    (void)closedir(dir);
}

void world_done(struct world *world)
{
    kill_stand_in(&world->sides[SOURCE]);
    kill_stand_in(&world->sides[DESTINATION]);
    empty_directory(world);
    (void)rmdir(world->dir);
    (void)uv_loop_close(&world->loop);
    store_free(world->store);
    (void)munmap(world->told, sizeof(*world->told));
}

/* A command that was not done has not come here: see side_answer(). */
static bool was_swallowed(const struct world *world)
{
    const struct fault *fault = world->fault;
    const struct fake_qmp *qmp = world->sides[fault->side].qmp;
    return world->faulty && qmp != NULL &&
           (fault->kind == FAULT_SILENCE || fault->kind == FAULT_LOST) &&
           fake_qmp_count(qmp, fault->command) > fault->nth;
}

/* Ends with us, too, should we be killed. */
static pid_t stand_in(void)
{
    pid_t pid = fork();
    check(pid >= 0, "fork");
    if (pid == 0) {
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        (void)syscall(SYS_close_range, 0U, ~0U, 0U);
        for (;;) {
            (void)pause();
        }
    }
    return pid;
}

static void side_begin(struct world *world, enum side which)
{
    struct world_side *side = &world->sides[which];
    struct fake_qmp_options options = {
        .loop = &world->loop, .answer = side_answer, .data = side};
    side->world = world;
    side->side = which;
    side->vm = fake_vm_new(world->store);
    check(fake_qmp_new(&options, &side->qmp) == 0, "fake_qmp_new");
    side->vm->qmp = side->qmp;
    side->process = side->process != 0 ? side->process : stand_in();
    (void)snprintf(world->addresses[which], sizeof(world->addresses[which]),
                   "%s", fake_qmp_address(side->qmp));
}

static void kill_stand_in(struct world_side *side)
{
    if (side->process != 0) {
        (void)kill(side->process, SIGKILL);
        (void)waitpid(side->process, NULL, 0);
        side->process = 0;
    }
}

/* Its process first: who sees the connection break must see that, too. */
static void side_die(struct world_side *side)
{
    if (side->qmp != NULL) {
        side->world->fired |= was_swallowed(side->world);
        kill_stand_in(side);
        fake_vm_die(side->vm);
        side->qmp = fake_qmp_close(side->qmp);
    }
}

void world_begin(struct world *world, bool migrates)
{
    static const struct fault none;
    empty_directory(world);
    store_clear(world->store);
    side_begin(world, SOURCE);
    world->vm = world->sides[SOURCE].vm;
    world->dst_vm = NULL;
    if (migrates) {
        side_begin(world, DESTINATION);
        world->dst_vm = world->sides[DESTINATION].vm;
        world->vm->peer = world->dst_vm;
        world->dst_vm->peer = world->vm;
    }
    world->fault = &none;
    world->faulty = true;
    world->fired = world->unplugged = world->process_left = false;
    world->n_log = 0;
    memset(world->told, 0, sizeof(*world->told));
}

void world_end(struct world *world)
{
    for (int i = 0; i < N_SIDES; i++) {
        struct world_side *side = &world->sides[i];
        if (side->qmp != NULL) {
            side->qmp = fake_qmp_close(side->qmp);
        }
    }
    (void)uv_run(&world->loop, UV_RUN_DEFAULT);
    for (int i = 0; i < N_SIDES; i++) {
        world->sides[i].vm = fake_vm_free(world->sides[i].vm);
    }
}

void world_lose_journal(struct world *world)
{
    empty_directory(world);
    *world->told->why = *world->told->state = '\0';
    world->kept = 0;
    world->lost_tag = world->told->tag;
    world->exported = false;
    for (unsigned i = 0; world->dst_vm != NULL && i < FAKE_EXPORTS; i++) {
        world->exported |= world->dst_vm->exports[i].used;
    }
    for (unsigned i = 0; i < STORE_VOLUMES; i++) {
        world->kept |= (uint64_t)world->store->volumes[i].used << i;
    }
}

void world_set_fault(struct world *world, const struct fault *fault)
{
    world->fault = fault;

    static const enum store_fault faults[N_FAULTS] = {
        [FAULT_STORE_ERROR] = STORE_ERROR,
        [FAULT_STORE_DONE_ERROR] = STORE_DONE_ERROR,
        [FAULT_STORE_SILENCE] = STORE_SILENCE,
        [FAULT_STORE_DONE_SILENCE] = STORE_DONE_SILENCE,
    };

    world->store->fault = faults[fault->kind];
    world->store->fault_at = fault->nth;
    world->store->for_good = fault->for_good;
    enum fake_fault fake = fault->kind == FAULT_SILENCE      ? FAKE_SILENCE
                           : fault->kind == FAULT_LOST       ? FAKE_CLOSE
                           : fault->kind == FAULT_LOST_REPLY ? FAKE_DONE_CLOSE
                                                             : FAKE_NONE;
    if (fake != FAKE_NONE) {
        fake_qmp_fault(world->sides[fault->side].qmp, fault->command,
                       fault->nth, fake);
    }
}

bool world_qemu_died(const struct world *world)
{
    enum fault_kind kind = world->fault->kind;
    return kind == FAULT_DIES || kind == FAULT_DONE_DIES ||
           kind == FAULT_PEER_DIES;
}

static bool wait_for_engine(struct world *world)
{
    char byte;
    return recv(world->control, &byte, 1, 0) == 1;
}

/* How many processes there are that an engine has left behind. */
static unsigned count_left(const struct world *world)
{
    char path[64];
    unsigned n = 0;
    int pid;
    while (waitpid(-1, NULL, WNOHANG) > 0) {
    }
    (void)snprintf(path, sizeof(path), "/proc/self/task/%d/children",
                   (int)getpid());
    FILE *file = fopen(path, "re");
    while (file != NULL && fscanf(file, "%d", &pid) == 1) {
        n += pid != world->sides[SOURCE].process &&
             pid != world->sides[DESTINATION].process;
    }
    if (file != NULL) {
        (void)fclose(file);
    }
    return n;
}

/* A freeze guard may still hold a monitor: it goes when it has acted. */
static void wait_for_guards(struct world *world)
{
    struct pollfd ready = {.fd = uv_backend_fd(&world->loop), .events = POLLIN};
    uint64_t end = uv_hrtime() + GUARD_MS * UINT64_C(1000000);
    while (count_left(world) > 0) {
        if (uv_hrtime() > end) {
            world->process_left = true;
            return;
        }
        (void)poll(&ready, 1, 1);
        drain(world);
    }
}

static void prepare(struct world *world, const struct engine_request *request)
{
    bool migrates = world->dst_vm != NULL;
    bool stalls = request->verb == ENGINE_ABORT;
    bool streams =
        migrates && str_eq(request->operation->steps[request->abort_at].name,
                           "stream-follow");
    bool verifies = str_eq(request->operation->steps[request->abort_at].name,
                           "verify-clean");
    world->told->end = END_CRASH;
    world->told->tag = world->store->tag = -1;
    world->vm->never_ready = stalls && !migrates && !verifies;
    world->vm->never_gate = stalls && streams;
    world->vm->never_ends = stalls && migrates && !streams;
}

void world_run(struct world *world, const struct engine_request *request)
{
    int pair[2];
    check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0,
          "socketpair");
    prepare(world, request);
    (void)fflush(NULL);
    world->engine = fork();
    check(world->engine >= 0, "fork");
    if (world->engine == 0) {
        engine_child(world, request, pair[1]);
    }
    (void)close(pair[1]);
    world->control = pair[0];
    /* In turns, so that a case runs the same way every time. */
    while (wait_for_engine(world)) {
        drain(world);
        (void)send(world->control, "o", 1, MSG_NOSIGNAL);
    }
    (void)close(pair[0]);
    int status;
    check(waitpid(world->engine, &status, 0) == world->engine, "waitpid");
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) {
        world->told->end = END_KILLED;
    }
    drain(world);
    wait_for_guards(world);
    world->fired = world->fired || world->told->fired || world->store->fired ||
                   was_swallowed(world);
    world->faulty = false;
    world->store->fault = STORE_FINE;
}

/*
 * Does all that it was asked for. A reply is written one turn after its
 * command is read: hence two turns before a look.
 */
static void drain(struct world *world)
{
    struct pollfd ready = {.fd = uv_backend_fd(&world->loop), .events = POLLIN};
    bool again = true;
    while (again) {
        do {
            (void)uv_run(&world->loop, UV_RUN_NOWAIT);
            (void)uv_run(&world->loop, UV_RUN_NOWAIT);
        } while (poll(&ready, 1, 0) > 0);
        again = false;
        /* Who was told to quit has answered by now. */
        for (int i = 0; i < N_SIDES; i++) {
            struct world_side *side = &world->sides[i];
            if (side->vm != NULL && side->vm->ends && !side->vm->dead) {
                side_die(side);
                again = true;
            }
        }
    }
}

static unsigned note(struct world *world, enum side side, const char *command)
{
    unsigned nth = 0;
    for (unsigned i = 0; i < world->n_log; i++) {
        nth += world->log[i].side == side &&
               str_eq(world->log[i].command, command);
    }
    if (world->n_log < WORLD_LOG) {
        struct logged *logged = &world->log[world->n_log++];
        logged->tag = world->told->tag;
        logged->side = side;
        logged->nth = nth;
        (void)snprintf(logged->command, sizeof(logged->command), "%s", command);
    }
    return nth;
}

/* Notes the command, does it, and lets the case's fault strike. */
static json_t *side_answer(void *data, const char *command, const json_t *args)
{
    struct world_side *side = data;
    struct world *world = side->world;
    const struct fault *fault = world->fault;
    unsigned nth = note(world, side->side, command);
    bool here = world->faulty && side->side == fault->side &&
                str_eq(command, fault->command) &&
                (nth == fault->nth || (fault->for_good && nth > fault->nth));
    world->fired = world->fired || here;
    if (here && fault->kind == FAULT_ERROR) {
        return fake_qmp_error("GenericError", "injected");
    }
    if (here && fault->kind == FAULT_DIES) {
        side_die(side);
        return json_object();
    }
    json_t *answer = fake_vm_answer(side->vm, command, args);
    if (here && fault->kind == FAULT_DONE_ERROR) {
        json_decref(answer);
        return fake_qmp_error("GenericError", "injected");
    }
    if (here && fault->kind == FAULT_DONE_DIES) {
        side_die(side);
    } else if (here && fault->kind == FAULT_PEER_DIES) {
        side_die(&world->sides[side->side == SOURCE ? DESTINATION : SOURCE]);
    } else if (here && fault->kind == FAULT_UNPLUG) {
        fake_vm_unplug(side->vm, 0);
        world->unplugged = true;
    } else if (here && fault->kind == FAULT_KILL) {
        (void)kill(world->engine, SIGKILL);
    }
    return answer;
}
