/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "fake/fake-vm-store.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "backends/backend.h"
#include "backends/bulk.h"
#include "backends/registry.h"
#include "backends/uri.h"
#include "backends/volume.h"
#include "base/cleanup.h"
#include "base/err.h"
#include "base/str.h"
#include "bulk/check.h"
#include "bulk/copy.h"

struct fake_volume {
    struct volume volume;
    char *path;
    bool key; /* key=yes: QEMU needs a secret to open it */
};

static const struct backend_ops backend_fake;
static struct store *shared; /* what the backend's acts are about */

struct store *store_new(void)
{
    void *memory = mmap(NULL, sizeof(struct store), PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return memory != MAP_FAILED ? memory : NULL;
}

struct store *store_free(struct store *store)
{
    (void)munmap(store, sizeof(*store));
    return NULL;
}

void store_clear(struct store *store)
{
    memset(store, 0, sizeof(*store));
}

struct store_volume *store_find(struct store *store, const char *name)
{
    for (unsigned i = 0; i < STORE_VOLUMES; i++) {
        struct store_volume *volume = &store->volumes[i];
        if (volume->used && str_eq(volume->name, name)) {
            return volume;
        }
    }
    return NULL;
}

struct store_volume *store_add(struct store *store, const char *name,
                               uint64_t size)
{
    for (unsigned i = 0; i < STORE_VOLUMES; i++) {
        struct store_volume *volume = &store->volumes[i];
        if (!volume->used) {
            *volume = (struct store_volume){.used = true, .size = size};
            (void)snprintf(volume->name, sizeof(volume->name), "%s", name);
            (void)snprintf(volume->identity, sizeof(volume->identity),
                           "fake:%u", ++store->n_made);
            return volume;
        }
    }
    return NULL;
}

void store_write(struct store_volume *volume, unsigned number)
{
    volume->writes[number / 64] |= UINT64_C(1) << (number % 64);
}

bool store_has(const struct store_volume *volume, unsigned number)
{
    return (volume->writes[number / 64] >> (number % 64) & 1) != 0;
}

bool store_is_usable(const struct store_volume *volume)
{
    return *volume->state == '\0' || str_eq(volume->state, STORE_USABLE);
}

void store_register(struct store *store)
{
    shared = store;
    registry_add_for_tests(&backend_fake);
}

/* --- the backend --- */

static struct fake_volume *fake_of(const struct volume *volume)
{
    return (struct fake_volume *)(uintptr_t)volume; /* its first member */
}

static void fake_free(struct volume *volume)
{
    struct fake_volume *fake = fake_of(volume);
    volume_done(volume);
    free(fake->path);
    free(fake);
}

static int fake_parse(const char *text, struct volume **ret, struct err **errp)
{
    _cleanup_uri_ struct uri uri = {0};
    int r = uri_split(text, &uri, errp);
    if (r < 0) {
        return r;
    }
    struct fake_volume *fake = calloc(1, sizeof(*fake));
    if (fake == NULL) {
        return -ENOMEM;
    }
    fake->path = strdup(uri.rest);
    fake->key = str_eq(uri_take(&uri, "key"), "yes");
    r = volume_init(&fake->volume, &backend_fake, &uri, errp);
    if (r < 0) {
        fake_free(&fake->volume);
        return r;
    }
    *ret = &fake->volume;
    return 0;
}

static int fake_from_node(const char *driver, const char *filename,
                          struct volume **ret)
{
    if (!str_eq(driver, "file") || !str_starts(filename, "/fake/")) {
        return -ENOENT;
    }
    _cleanup_free_ char *uri = str_printf("fake:%s", filename);
    return fake_parse(uri, ret, NULL) == 0 ? 0 : -ENOENT;
}

static json_t *fake_node_options(const struct volume *volume,
                                 const char *secret_id)
{
    json_t *node = volume_node(volume, "file");
    (void)json_object_set_new(node, "filename",
                              json_string(fake_of(volume)->path));
    if (secret_id != NULL) {
        (void)json_object_set_new(node, "key-secret", json_string(secret_id));
    }
    return node;
}

static char *fake_legacy_name(const struct volume *volume)
{
    return strdup(fake_of(volume)->path);
}

static void fake_tell(const struct store_volume *found, struct volume_info *ret)
{
    ret->exists = found != NULL;
    if (found != NULL) {
        ret->size = found->size;
        ret->allocated = found->size / 4;
        ret->format = found->format_size != 0 ? FORMAT_QCOW2 : FORMAT_RAW;
        ret->format_size = found->format_size;
        (void)snprintf(ret->identity, sizeof(ret->identity), "%s",
                       found->identity);
        (void)snprintf(ret->state, sizeof(ret->state), "%s", found->state);
        (void)snprintf(ret->degraded, sizeof(ret->degraded), "%s",
                       found->degraded ? "a replica is away" : "");
    }
}

/* What goes wrong with the act that begins now. */
static enum store_fault next_fault(void)
{
    unsigned number = shared->n_calls++;
    if (number < STORE_CALLS) {
        shared->tags[number] = shared->tag;
    }
    bool now = number == shared->fault_at ||
               (shared->for_good && number > shared->fault_at);
    if (!now || shared->fault == STORE_FINE) {
        return STORE_FINE;
    }
    shared->fired = true;
    shared->hangs = shared->fault >= STORE_SILENCE;
    return shared->fault;
}

static bool is_not_done(enum store_fault fault)
{
    return fault == STORE_ERROR || fault == STORE_SILENCE;
}

static int fault_error(const struct volume *volume, struct err **errp)
{
    return err_set(errp, -EIO, volume->name, "injected");
}

static int fake_probe(struct volume *volume, struct volume_info *ret,
                      struct err **errp)
{
    if (next_fault() != STORE_FINE) {
        return fault_error(volume, errp);
    }
    struct store_volume *found = store_find(shared, fake_of(volume)->path);
    if (found != NULL && found->looks > 0 && --found->looks == 0) {
        found->degraded = true;
    }
    fake_tell(found, ret);
    return 0;
}

static void temp_name(char out[STORE_NAME], const char *temp)
{
    (void)snprintf(out, STORE_NAME, "/fake/%s", temp);
}

/* Removes it if there is one; never while somebody has it open. */
static int take_away(const struct volume *volume, struct store_volume *found,
                     struct err **errp)
{
    if (found == NULL) {
        return 0;
    }
    if (found->guest) {
        (void)snprintf(shared->violation, sizeof(shared->violation),
                       "volume %s was to be removed while a device used it",
                       found->name);
    }
    if (found->open) {
        return err_set(errp, -EBUSY, volume->name, "is in use");
    }
    found->used = false;
    return 0;
}

static int fake_create(struct volume *volume, const char *temp, uint64_t size,
                       struct volume_info *ret, struct err **errp)
{
    char name[STORE_NAME];
    enum store_fault fault = next_fault();
    if (is_not_done(fault)) {
        return fault_error(volume, errp);
    }
    temp_name(name, temp);
    int r = take_away(volume, store_find(shared, name), errp);
    if (r < 0) {
        return r;
    }
    fake_tell(store_add(shared, name, size), ret);
    ret->zero = true;
    return fault == STORE_DONE_ERROR ? fault_error(volume, errp) : 0;
}

static int fake_publish(struct volume *volume, const char *temp,
                        const char *identity, struct err **errp)
{
    char name[STORE_NAME];
    enum store_fault fault = next_fault();
    if (is_not_done(fault)) {
        return fault_error(volume, errp);
    }
    temp_name(name, temp);
    const char *path = fake_of(volume)->path;
    const struct store_volume *taken = store_find(shared, path);
    struct store_volume *from = store_find(shared, name);
    if (taken != NULL && !str_eq(taken->identity, identity)) {
        return err_set(errp, -EEXIST, volume->name, "exists already");
    }
    if (taken == NULL && from == NULL) {
        return err_set(errp, -ENOENT, volume->name, "is not there");
    }
    if (taken == NULL) {
        (void)snprintf(from->name, sizeof(from->name), "%s", path);
    }
    return fault == STORE_DONE_ERROR ? fault_error(volume, errp) : 0;
}

static int fake_remove(struct volume *volume, const char *temp,
                       const char *identity, struct err **errp)
{
    char name[STORE_NAME] = "";
    enum store_fault fault = next_fault();
    if (is_not_done(fault)) {
        return fault_error(volume, errp);
    }
    if (temp != NULL) {
        temp_name(name, temp);
    }
    struct store_volume *found = store_find(shared, fake_of(volume)->path);
    int r = take_away(volume, store_find(shared, name), errp);
    if (r == 0 && identity != NULL && found != NULL) {
        r = str_eq(found->identity, identity)
                ? take_away(volume, found, errp)
                : err_set(errp, -ESTALE, volume->name, "is another one now");
    }
    return r == 0 && fault == STORE_DONE_ERROR ? fault_error(volume, errp) : r;
}

static int fake_attach(struct volume *volume,
                       const struct volume_planned *planned,
                       struct volume_info *ret, struct err **errp)
{
    enum store_fault fault = next_fault();
    struct store_volume *found = store_find(shared, fake_of(volume)->path);
    if (is_not_done(fault)) {
        return fault_error(volume, errp);
    }
    if (found == NULL) {
        return err_set(errp, -ENOENT, volume->name, "is not there");
    }
    if (!str_eq(found->identity, planned->identity) ||
        (!planned->again && !str_eq(found->state, planned->state))) {
        (void)snprintf(shared->violation, sizeof(shared->violation),
                       "volume %s is not as it was planned", volume->name);
    }
    if (*found->state != '\0') {
        (void)snprintf(found->state, sizeof(found->state), STORE_USABLE);
    }
    fake_tell(found, ret);
    return fault == STORE_DONE_ERROR ? fault_error(volume, errp) : 0;
}

static int fake_detach(struct volume *volume,
                       const struct volume_planned *planned, struct err **errp)
{
    const char *state = planned->state;
    enum store_fault fault = next_fault();
    struct store_volume *found = store_find(shared, fake_of(volume)->path);
    if (is_not_done(fault)) {
        return fault_error(volume, errp);
    }
    if (found == NULL || *found->state == '\0') {
        (void)snprintf(shared->violation, sizeof(shared->violation),
                       "volume %s was to be given back", volume->name);
        return 0;
    }
    if (found->guest) {
        (void)snprintf(shared->violation, sizeof(shared->violation),
                       "volume %s was given back while a device used it",
                       found->name);
    }
    if (found->open) {
        return err_set(errp, -EBUSY, volume->name, "is in use");
    }
    (void)snprintf(found->state, sizeof(found->state), "%s",
                   state != NULL ? state : STORE_UP);
    return fault == STORE_DONE_ERROR ? fault_error(volume, errp) : 0;
}

static int fake_secret(struct volume *volume, char **ret, struct err **errp)
{
    (void)errp;
    *ret = fake_of(volume)->key ? strdup("a2V5") : NULL;
    return 0;
}

int store_check(const struct check_request *request, struct check_result *ret,
                struct err **errp)
{
    enum store_fault fault = next_fault();
    bool hung = shared->hangs;
    struct store_volume *scratch =
        request->scratch != NULL ? store_find(shared, request->scratch) : NULL;
    const char *name = request->source;
    shared->hangs = false; /* a check ends by itself: see bulk/check.c */
    if (is_not_done(fault)) {
        return err_set(errp, hung ? -ETIMEDOUT : -EIO, name, "injected");
    }
    if (request->act == CHECK_PREPARE && scratch == NULL) {
        (void)store_add(shared, request->scratch, request->size);
    } else if (request->act == CHECK_REMOVE && scratch != NULL) {
        if (scratch->open) {
            return err_set(errp, -EBUSY, name, "the scratch image is in use");
        }
        scratch->used = false;
    } else if (request->act == CHECK_COMPARE) {
        ret->chosen = request->size;
        ret->looked = request->again ? 65536 : request->size;
        ret->ranges = json_array();
    }
    return fault != STORE_FINE
               ? err_set(errp, hung ? -ETIMEDOUT : -EIO, name, "injected")
               : 0;
}

static struct store_volume *volume_at(const char *uri)
{
    _cleanup_free_ char *path = strndup(uri, strcspn(uri, "?"));
    const char *start = path != NULL ? strstr(path, "/fake/") : NULL;
    return start != NULL ? store_find(shared, start) : NULL;
}

int store_copy(const struct copy_options *options, struct err **errp)
{
    enum store_fault fault = next_fault();
    bool hung = shared->hangs;
    struct store_volume *from = volume_at(options->source);
    struct store_volume *to = volume_at(options->target);
    shared->hangs = false; /* a copy ends by itself: see bulk/copy.c */
    if (is_not_done(fault)) {
        return err_set(errp, hung ? -ETIMEDOUT : -EIO, options->source,
                       "injected");
    }
    if (from == NULL || to == NULL || to->open ||
        !str_eq(to->identity, options->identity)) {
        (void)snprintf(shared->violation, sizeof(shared->violation),
                       "what is copied is not there, or in use: %s",
                       options->target);
        return err_set(errp, -ENOENT, options->source, "is not there");
    }
    if (from->guest) {
        (void)snprintf(shared->violation, sizeof(shared->violation),
                       "volume %s was copied while a guest wrote to it",
                       from->name);
    }
    memcpy(to->writes, from->writes, sizeof(to->writes));
    to->format_size = from->format_size;
    return fault != STORE_FINE ? err_set(errp, hung ? -ETIMEDOUT : -EIO,
                                         options->source, "injected")
                               : 0;
}

static const struct bulk_ops bulk_none; /* store_check() reads instead */

static const struct backend_ops backend_fake = {
    .scheme = "fake",
    .title = "fake volume",
    .flags = BACKEND_CREATES | BACKEND_FORMATS | BACKEND_LEGACY_NAME,
    .parse = fake_parse,
    .from_node = fake_from_node,
    .free = fake_free,
    .node_options = fake_node_options,
    .legacy_name = fake_legacy_name,
    .probe = fake_probe,
    .create = fake_create,
    .publish = fake_publish,
    .remove = fake_remove,
    .secret = fake_secret,
    .attach = fake_attach,
    .detach = fake_detach,
    .bulk = &bulk_none,
};
