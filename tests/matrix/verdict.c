/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "matrix/verdict.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/str.h"

static bool against(char text[VERDICT_TEXT], const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

static bool against(char text[VERDICT_TEXT], const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(text, VERDICT_TEXT, fmt, ap);
    va_end(ap);
    return false;
}

static void path_of(const char *kind, unsigned disk, char out[STORE_NAME])
{
    (void)snprintf(out, STORE_NAME, "/fake/%s%u", kind, disk);
}

/* The QEMU that has the guest if all went 'over', or if nothing did. */
static struct fake_vm *home(const struct world *world, bool over)
{
    return world->dst_vm != NULL && over ? world->dst_vm : world->vm;
}

static bool is_unplugged(const struct world *world, unsigned disk)
{
    return world->unplugged && disk == 0;
}

/* Nobody uses it any more: either side may have the last of it. */
static bool somebody_has_all(struct world *world, unsigned disk)
{
    char source[STORE_NAME], target[STORE_NAME];
    path_of("src", disk, source);
    path_of("dst", disk, target);
    return fake_vm_is_whole_on(world->vm, disk,
                               store_find(world->store, source)) ||
           fake_vm_is_whole_on(world->vm, disk,
                               store_find(world->store, target));
}

/*
 * There, and to be stored when QEMU ends. Of one that QEMU let nobody mend, or
 * that only the lost journal told of, the user is warned.
 */
static bool bitmap_is(const struct world *world,
                      const struct scenario *scenario, const struct fake_vm *vm,
                      const struct fake_node *node)
{
    bool migrates = scenario_migrates(scenario);
    bool told = world->fault->for_good || world->fault->loses_journal;
    if (!scenario->bitmap || (migrates && vm->dead)) {
        return true;
    }
    return str_eq(node->bitmap, "b0") &&
           (!migrates ||
            (node->persistent && !node->busy && (!node->unstored || told)));
}

/*
 * What only a lost journal told of stays as it is: a disk on an overlay, which
 * has all of it with the image below.
 */
static bool is_overlay(const struct world *world,
                       const struct scenario *scenario,
                       const struct store_volume *volume)
{
    return scenario->strategy == QPIVOT_STRATEGY_BASE &&
           world->fault->loses_journal &&
           str_starts(volume->name, "/fake/qpv-");
}

static bool disks_are(struct world *world, const struct scenario *scenario,
                      bool over, char text[VERDICT_TEXT])
{
    struct fake_vm *vm = home(world, over);
    for (unsigned i = 0; i < scenario->n_disks; i++) {
        char path[STORE_NAME];
        bool shared = str_eq(scenario->targets[i], "share");
        const struct store_volume *volume = fake_vm_volume(vm, i);
        path_of(over && !shared ? "dst" : "src", i, path);
        if (is_unplugged(world, i)) {
            if (!somebody_has_all(world, i)) {
                return against(text, "unplugged disk %u has lost writes", i);
            }
            continue;
        }
        bool over_it = volume != NULL && is_overlay(world, scenario, volume);
        if (volume == NULL || (!over_it && !str_eq(volume->name, path))) {
            return against(text, "disk %u is on %s, not on %s", i,
                           volume != NULL ? volume->name : "nothing", path);
        }
        if (!fake_vm_is_whole(vm, i)) {
            return against(text, "disk %u has lost writes of the guest", i);
        }
        const struct fake_node *node = &vm->nodes[vm->devices[i].root];
        if (!vm->dead && str_eq(node->driver, "mirror_top")) {
            return against(text, "a job's filter is on disk %u", i);
        }
        if (!bitmap_is(world, scenario, vm, node)) {
            return against(text, "disk %u has lost its bitmap", i);
        }
    }
    return true;
}

bool verdict_is_safe(struct world *world, char text[VERDICT_TEXT])
{
    if (*world->store->violation != '\0') {
        return against(text, "%s", world->store->violation);
    }
    return !world->process_left || against(text, "a process is left");
}

bool verdict_is_lost(struct world *world, char text[VERDICT_TEXT])
{
    const struct fake_vm *src = world->vm, *dst = world->dst_vm;
    if (!verdict_is_safe(world, text)) {
        return false;
    }
    bool gone = src->dead && (dst == NULL || !fake_vm_holds_guest(dst));
    bool let_go = dst != NULL && dst->dead && !fake_vm_holds_guest(src);
    /* Dead before it could say whether it had let go: nothing is started. */
    bool unknown = dst != NULL && src->dead && dst->runstate != FAKE_RUNS;
    bool in_two =
        dst != NULL && fake_vm_is_halved(src) && (src->dead || dst->dead);
    return gone || let_go || unknown || in_two ||
           against(text, "somebody has the guest: %.200s", world->told->why);
}

static bool guest_is(struct world *world, const struct scenario *scenario,
                     bool over, char text[VERDICT_TEXT])
{
    struct fake_vm *vm = home(world, over);
    const struct fake_vm *other = vm->peer;
    if (vm->dead && verdict_is_lost(world, text)) {
        return true;
    }
    if (!fake_vm_holds_guest(vm)) {
        return against(text, "the %s does not have the guest",
                       vm == world->vm ? "source" : "destination");
    }
    if (other != NULL && fake_vm_holds_guest(other)) {
        return against(text, "both QEMUs have the guest");
    }
    /* QEMU 7.2 calls a paused guest whose stream failed so. */
    bool stands = vm->runstate == FAKE_PAUSED ||
                  (vm->runstate == FAKE_POSTMIGRATE && scenario->paused);
    if (scenario->paused ? !stands : vm->runstate != FAKE_RUNS) {
        return against(text, "the guest %s, its state is %d",
                       scenario->paused ? "was paused" : "ran",
                       (int)vm->runstate);
    }
    bool kept = over && (scenario->flags & QPIVOT_KEEP_SOURCE) != 0;
    if (over && other != NULL && other->dead == kept && !scenario->remote &&
        !world_qemu_died(world)) {
        return against(text, "the source %s", kept ? "was ended" : "is left");
    }
    return true;
}

/* A QEMU that has ended too early leaves the file that it made: that is told. */
static bool made_is(struct world *world, const struct scenario *scenario,
                    bool moved, char text[VERDICT_TEXT])
{
    for (unsigned i = 0; i < scenario->n_disks; i++) {
        char target[STORE_NAME];
        const char *given = scenario->targets[i];
        bool file = *given == '/', there = strstr(given, "existing") != NULL;
        path_of("dst", i, target);
        bool has = store_find(world->store, target) != NULL;
        bool made = file || str_starts(given, "fake:");
        if (made && has != (moved || there) &&
            !(has && file && world->told->left)) {
            return against(text, "target %s is %s", target,
                           has ? "still there" : "gone");
        }
    }
    return true;
}

/*
 * A target that was made usable is so, or as it was; a source that the guest
 * has left is let go, or that it is not was told.
 */
static bool state_is(const struct world *world, const char *name,
                     const char *wanted, bool may_stay, char text[VERDICT_TEXT])
{
    const struct store_volume *volume = store_find(world->store, name);
    return volume == NULL || str_eq(volume->state, wanted) ||
           (may_stay && str_eq(volume->state, STORE_USABLE)) ||
           against(text, "volume %s is %s on this host, not %s", name,
                   volume->state, wanted);
}

static bool states_are(const struct world *world,
                       const struct scenario *scenario, bool moved,
                       char text[VERDICT_TEXT])
{
    bool so = true;
    for (unsigned i = 0; so && scenario->attached && i < scenario->n_disks;
         i++) {
        char source[STORE_NAME], target[STORE_NAME];
        bool told = world->told->left || is_unplugged(world, i);
        path_of("src", i, source);
        path_of("dst", i, target);
        so = state_is(world, target, moved ? STORE_USABLE : scenario_state(i),
                      false, text) &&
             state_is(world, source, moved ? STORE_UP : STORE_USABLE,
                      moved && told, text);
    }
    return so;
}

static bool storage_is(struct world *world, const struct scenario *scenario,
                       bool moved, char text[VERDICT_TEXT])
{
    if (scenario_migrates(scenario)) {
        return made_is(world, scenario, moved, text);
    }
    bool deleted = moved && (scenario->flags & QPIVOT_DELETE_SOURCE) != 0;
    unsigned n = 0;
    for (unsigned i = 0; i < scenario->n_disks; i++) {
        char source[STORE_NAME], target[STORE_NAME];
        bool existing = scenario->attached ||
                        (scenario->existing && i == scenario->n_disks - 1);
        path_of("src", i, source);
        path_of("dst", i, target);
        bool has_source = store_find(world->store, source) != NULL;
        bool has_target = store_find(world->store, target) != NULL;
        if (has_source == deleted && !(is_unplugged(world, i) && has_source)) {
            return against(text, "source %s is %s", source,
                           has_source ? "still there" : "gone");
        }
        if (has_target != (moved || existing)) {
            return against(text, "target %s is %s", target,
                           has_target ? "still there" : "gone");
        }
        n += has_source + has_target;
    }
    for (unsigned i = 0; i < STORE_VOLUMES; i++) {
        n -= world->store->volumes[i].used;
    }
    return (n == 0 ||
            against(text, "a volume of ours is left on the storage")) &&
           states_are(world, scenario, moved, text);
}

/*
 * Which ones there were before an operation's QEMU does not tell; a parameter
 * names the certificates.
 */
static bool is_setting(const char *what)
{
    size_t n = strlen(what);
    return str_starts(what, "capability ") || str_starts(what, "parameter ") ||
           (n > 4 && str_eq(what + n - 4, "-tls")) ||
           (n > 6 && str_eq(what + n - 6, "-authz"));
}

static bool nothing_left_in(const struct world *world, enum side side,
                            bool moved, bool settings, char text[VERDICT_TEXT])
{
    const struct fake_vm *vm = world->sides[side].vm;
    bool unplugged = world->unplugged;
    json_auto_t *left = fake_vm_leftovers(vm);
    size_t i;
    json_t *line;
    json_array_foreach(left, i, line) {
        const char *what = json_string_value(line);
        size_t len = strlen(what);
        /* The node that a disk is on may ask for its key again. */
        _cleanup_free_ char *opened =
            len > 4 && str_eq(what + len - 4, "-key")
                ? strndup(what + strlen("object "), len - strlen("object -key"))
                : NULL;
        bool key = opened != NULL && fake_vm_uses(vm, opened);
        /* Whose device was unplugged, after the pivot. */
        bool loose = moved && unplugged && str_starts(what, "node qpv-") &&
                     strstr(what, "-d0") != NULL;
        /* Not by our names: which it was before nobody knows. */
        bool power = world->fault->doctors && str_starts(what, "shutdown ");
        /* Nor does the server, which only an export of ours gives away. */
        bool server = world->fault->doctors && str_starts(what, "server ") &&
                      !world->exported;
        /* A name on disk outlives its QEMU; who has no journal knows none. */
        bool name = str_starts(what, "socket ");
        if (!key && !loose && !power && !server &&
            (name ? settings : !vm->dead) && (settings || !is_setting(what))) {
            return against(text, "left in QEMU: %s", what);
        }
    }
    return true;
}

/* A source that has handed the guest over ends, or is of no use. */
static bool nothing_left(const struct world *world, bool over,
                         char text[VERDICT_TEXT])
{
    bool migrates = world->dst_vm != NULL;
    return ((migrates && over) ||
            nothing_left_in(world, SOURCE, over, true, text)) &&
           (!migrates || nothing_left_in(world, DESTINATION, over, true, text));
}

static bool is_so(struct world *world, const struct scenario *scenario,
                  bool over, char text[VERDICT_TEXT])
{
    return verdict_is_safe(world, text) &&
           guest_is(world, scenario, over, text) &&
           disks_are(world, scenario, over, text) &&
           storage_is(world, scenario, over, text) &&
           nothing_left(world, over, text);
}

/* What it says last must be what the journal says, and tell why. */
static bool is_told(const struct world *world, char text[VERDICT_TEXT])
{
    static const char *const states[] = {
        [QPIVOT_DONE] = "done",
        [QPIVOT_FAILED] = "undone",
    };
    const struct told *told = world->told;
    if (told->outcome != QPIVOT_DONE && *told->why == '\0') {
        return against(text, "outcome %d without a reason", (int)told->outcome);
    }
    if ((told->outcome == QPIVOT_DONE || told->outcome == QPIVOT_FAILED) &&
        !str_eq(told->state, states[told->outcome])) {
        return against(text, "outcome %d, but the journal says '%s'",
                       (int)told->outcome, told->state);
    }
    return true;
}

bool verdict_holds(struct world *world, const struct scenario *scenario,
                   char text[VERDICT_TEXT])
{
    char why[VERDICT_TEXT];
    enum qpivot_outcome outcome = world->told->outcome;
    if (!is_told(world, text)) {
        return false;
    }
    if (!is_so(world, scenario, outcome == QPIVOT_DONE, why)) {
        return against(text, "outcome %d, but %.200s (%.200s)", (int)outcome,
                       why, world->told->why);
    }
    return true;
}

bool verdict_of_journal(struct world *world, const struct scenario *scenario,
                        char text[VERDICT_TEXT])
{
    char why[VERDICT_TEXT];
    const char *state = world->told->state;
    if (!is_so(world, scenario, str_eq(state, "done"), why)) {
        return against(text, "journal says '%s', but %.200s (%.200s)", state,
                       why, world->told->why);
    }
    return true;
}

static bool nothing_freed(const struct world *world, char text[VERDICT_TEXT])
{
    for (unsigned i = 0; i < STORE_VOLUMES; i++) {
        const struct store_volume *volume = &world->store->volumes[i];
        bool scratch = !str_starts(volume->name, "/fake/");
        if ((world->kept >> i & 1) != 0 && !volume->used && !scratch) {
            return against(text, "volume %s was removed", volume->name);
        }
        /* Which is no business of doctor's, who looks at a QEMU. */
        if (volume->used && scratch && !world->fault->doctors) {
            return against(text, "left on the storage: %s", volume->name);
        }
    }
    return true;
}

/* What was to be compared, and is not known to be equal, is not used. */
static bool may_go_over(const struct world *world,
                        const struct scenario *scenario)
{
    const struct operation *operation = scenario->operation;
    for (unsigned i = 0; i < operation->n_steps; i++) {
        if ((operation->steps[i].flags & STEP_PIVOT) != 0) {
            bool begun = world->lost_tag >= world_tag((int)i, false);
            return begun || scenario->verify == QPIVOT_VERIFY_NONE;
        }
    }
    return false;
}

static bool is_whole(const struct world *world, const struct scenario *scenario,
                     bool over, char text[VERDICT_TEXT])
{
    for (unsigned i = 0; i < scenario->n_disks; i++) {
        if (!fake_vm_is_whole(home(world, over), i)) {
            return against(text, "disk %u has lost writes of the guest", i);
        }
    }
    return true;
}

/* Which disks the guest is on decides what must have been said. */
static bool move_is_told(struct world *world, const struct scenario *scenario,
                         char text[VERDICT_TEXT])
{
    char why[VERDICT_TEXT] = "told otherwise";
    const struct told *told = world->told;
    const struct store_volume *volume = fake_vm_volume(world->vm, 0);
    bool moved = volume != NULL && str_starts(volume->name, "/fake/dst");
    bool said = told->outcome == QPIVOT_REFUSED ||
                told->outcome == (moved ? QPIVOT_DONE : QPIVOT_FAILED);
    if (told->outcome == QPIVOT_PARKED &&
        scenario->strategy == QPIVOT_STRATEGY_BASE) {
        /* Its jobs go on, or wait: it takes a person. */
        return guest_is(world, scenario, moved, text) &&
               is_whole(world, scenario, false, text);
    }
    if (moved && !may_go_over(world, scenario)) {
        return against(text, "the targets are used, but were not compared");
    }
    return (said && guest_is(world, scenario, moved, why) &&
            disks_are(world, scenario, moved, why) &&
            nothing_left(world, moved, why)) ||
           against(text, "outcome %d, moved %d: %.200s (%.200s)",
                   (int)told->outcome, moved, why, told->why);
}

/* One QEMU does not know of the other: the guest stays where it was. */
static bool migrate_is_told(struct world *world,
                            const struct scenario *scenario, enum side asked,
                            char text[VERDICT_TEXT])
{
    char why[VERDICT_TEXT] = "told otherwise";
    const struct told *told = world->told;
    bool over = fake_vm_holds_guest(world->dst_vm);
    bool undone = told->outcome == QPIVOT_FAILED;
    bool back = asked == SOURCE && undone;
    bool both = over && fake_vm_holds_guest(world->vm);
    if (both && scenario->cut && told->outcome != QPIVOT_DONE &&
        world->dst_vm->runstate == FAKE_PAUSED) {
        /* What the source could not hand over it keeps; the other waits. */
        return is_whole(world, scenario, false, text);
    }
    /* What it is the only one to have, perhaps, is nothing to take back. */
    if (both || told->outcome == QPIVOT_DONE || (undone && over)) {
        return against(text, "outcome %d, at the %s: %s (%.200s)",
                       (int)told->outcome, over ? "destination" : "source",
                       both ? "both have the guest" : why, told->why);
    }
    bool so = !back || (guest_is(world, scenario, false, why) &&
                        disks_are(world, scenario, false, why) &&
                        nothing_left_in(world, SOURCE, false, false, why));
    return (so && is_whole(world, scenario, over, why)) ||
           against(text, "outcome %d: %.200s (%.200s)", (int)told->outcome, why,
                   told->why);
}

bool verdict_without_journal(struct world *world,
                             const struct scenario *scenario, enum side asked,
                             char text[VERDICT_TEXT])
{
    return verdict_is_safe(world, text) && nothing_freed(world, text) &&
           is_told(world, text) &&
           (world->dst_vm != NULL
                ? migrate_is_told(world, scenario, asked, text)
                : move_is_told(world, scenario, text));
}

/* It stays where it was: doctor neither hands it over nor starts it. */
static bool migrate_is_doctored(struct world *world,
                                const struct scenario *scenario, enum side side,
                                char text[VERDICT_TEXT])
{
    const struct fake_vm *src = world->vm, *dst = world->dst_vm;
    bool over = fake_vm_holds_guest(dst), here = fake_vm_holds_guest(src);
    bool sends = world->told->outcome == QPIVOT_PARKED &&
                 world->told->streams && src->stream.phase != FAKE_NO_STREAM;
    /* The other has all of it, and the source, which stands, hears it soon. */
    bool between = src->stream.phase == FAKE_DEVICE;
    if (over == here && !between &&
        !(scenario->cut && dst->runstate == FAKE_PAUSED)) {
        return against(text, "%s the guest",
                       over ? "both QEMUs have" : "neither QEMU has");
    }
    if (world->told->outcome != QPIVOT_DONE && !sends) {
        return against(text, "doctor's outcome is %d (%.200s)",
                       (int)world->told->outcome, world->told->why);
    }
    return is_whole(world, scenario, !here, text) &&
           (sends || nothing_left_in(world, side, over, false, text));
}

bool verdict_doctored(struct world *world, const struct scenario *scenario,
                      enum side side, char text[VERDICT_TEXT])
{
    const struct store_volume *volume = fake_vm_volume(world->vm, 0);
    bool moved = volume != NULL && str_starts(volume->name, "/fake/dst");
    if (world->dst_vm != NULL) {
        return verdict_is_safe(world, text) && nothing_freed(world, text) &&
               migrate_is_doctored(world, scenario, side, text);
    }
    if (world->told->outcome != QPIVOT_DONE) {
        return against(text, "doctor's outcome is %d (%.200s)",
                       (int)world->told->outcome, world->told->why);
    }
    return verdict_is_safe(world, text) && nothing_freed(world, text) &&
           guest_is(world, scenario, moved, text) &&
           disks_are(world, scenario, moved, text) &&
           nothing_left(world, moved, text);
}

const char *verdict_end(const struct world *world, char text[VERDICT_TEXT])
{
    static const char *const ends[] = {
        [END_OUTCOME] = "ended",       [END_NOTHING] = "had nothing to do",
        [END_KILLED] = "was killed",   [END_STUCK] = "is stuck for ever",
        [END_ERROR] = "did not begin", [END_CRASH] = "crashed",
    };
    (void)against(text, "the engine %s at tag %d (%.200s)",
                  ends[world->told->end], world->told->tag, world->told->why);
    return text;
}
