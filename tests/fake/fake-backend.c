/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "fake/fake-backend.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "backends/bulk.h"
#include "backends/registry.h"
#include "backends/uri.h"
#include "backends/volume.h"
#include "base/err.h"
#include "base/str.h"

enum { STORE_MAX = 64, NAME_MAX_LENGTH = 64, FAULT_MAX = 16 };

struct fake_volume {
    struct volume volume;
    char *key;
};

/* What acts share: not the one that is doubted. */
struct held {
    unsigned refs;
    bool doubted;
};

struct entry {
    char name[NAME_MAX_LENGTH]; /* "": a free place */
    uint64_t size;
    unsigned number;
    bool in_use;
};

struct fault {
    bool set;
    enum volume_act act;
    unsigned left;
    enum fake_fault fault;
    int code;
};

/* Acts run in several workers: everything here is under the lock. */
static struct {
    bool ready;
    uv_mutex_t lock;
    uv_cond_t changed;
    struct entry store[STORE_MAX];
    struct fault faults[FAULT_MAX];
    unsigned next_number;
    unsigned hung;
    bool released;
    struct held *held;
    unsigned n_made, n_open;
    bool hang_at_release;
} fake;

static const struct backend_ops fake_ops;

static struct entry *entry_find(const char *name);
static struct entry *entry_add(const char *name, uint64_t size);
static void entry_tell(const struct entry *entry, struct volume_info *ret);
static void entry_identity(const struct entry *entry, char ret[160]);
static int begin(const struct volume *volume, enum volume_act act,
                 int *ret_lost, struct err **errp);
static int end(const struct volume *volume, int result, int lost,
               struct err **errp);
static int remove_entry(const struct volume *volume, const char *name,
                        const char *identity, struct err **errp);

void fake_backend_start(void)
{
    if (!fake.ready) {
        fake.ready = true;
        uv_mutex_init(&fake.lock);
        uv_cond_init(&fake.changed);
    }
    memset(fake.store, 0, sizeof(fake.store));
    memset(fake.faults, 0, sizeof(fake.faults));
    fake.next_number = 1;
    fake.hung = 0;
    fake.released = false;
    fake.held = NULL;
    fake.n_made = fake.n_open = 0;
    fake.hang_at_release = false;
    registry_add_for_tests(&fake_ops);
}

void fake_backend_stop(void)
{
    fake_backend_release();
    registry_add_for_tests(NULL);
}

void fake_backend_fault(enum volume_act act, unsigned nth,
                        enum fake_fault fault, int code)
{
    uv_mutex_lock(&fake.lock);
    unsigned i = 0;
    while (i < FAULT_MAX && fake.faults[i].set) {
        i++;
    }
    assert(i < FAULT_MAX && nth > 0 && code < 0);
    fake.faults[i] = (struct fault){true, act, nth, fault, code};
    fake.released = false;
    uv_mutex_unlock(&fake.lock);
}

void fake_backend_release(void)
{
    uv_mutex_lock(&fake.lock);
    fake.released = true;
    uv_cond_broadcast(&fake.changed);
    uv_mutex_unlock(&fake.lock);
}

void fake_backend_wait_hung(void)
{
    uv_mutex_lock(&fake.lock);
    while (fake.hung == 0) {
        uv_cond_wait(&fake.changed, &fake.lock);
    }
    uv_mutex_unlock(&fake.lock);
}

unsigned fake_backend_made(void)
{
    uv_mutex_lock(&fake.lock);
    unsigned n = fake.n_made;
    uv_mutex_unlock(&fake.lock);
    return n;
}

unsigned fake_backend_open(void)
{
    uv_mutex_lock(&fake.lock);
    unsigned n = fake.n_open;
    uv_mutex_unlock(&fake.lock);
    return n;
}

void fake_backend_hang_at_release(void)
{
    uv_mutex_lock(&fake.lock);
    fake.hang_at_release = true;
    uv_mutex_unlock(&fake.lock);
}

void fake_backend_put(const char *name, uint64_t size, bool in_use)
{
    uv_mutex_lock(&fake.lock);
    struct entry *entry = entry_add(name, size);
    entry->in_use = in_use;
    uv_mutex_unlock(&fake.lock);
}

bool fake_backend_has(const char *name)
{
    uv_mutex_lock(&fake.lock);
    bool has = entry_find(name) != NULL;
    uv_mutex_unlock(&fake.lock);
    return has;
}

unsigned fake_backend_count(void)
{
    unsigned count = 0;
    uv_mutex_lock(&fake.lock);
    for (unsigned i = 0; i < STORE_MAX; i++) {
        count += fake.store[i].name[0] != '\0';
    }
    uv_mutex_unlock(&fake.lock);
    return count;
}

static const struct fake_volume *fake_of(const struct volume *volume)
{
    return (const struct fake_volume *)volume; /* its first member */
}

static void fake_free(struct volume *volume)
{
    struct fake_volume *self = container_of(volume, struct fake_volume, volume);
    volume_done(volume);
    free(self->key);
    free(self);
}

static int fake_parse(const char *text, struct volume **ret, struct err **errp)
{
    _cleanup_uri_ struct uri uri = {0};
    int r = uri_split(text, &uri, errp);
    if (r < 0) {
        return r;
    }
    struct fake_volume *self = calloc(1, sizeof(*self));
    if (self == NULL) {
        return -ENOMEM;
    }
    r = uri_decode(&uri, uri.rest, strlen(uri.rest), &self->key, errp);
    if (r == 0) {
        r = volume_init(&self->volume, &fake_ops, &uri, errp);
    }
    if (r < 0) {
        fake_free(&self->volume);
        return r;
    }
    *ret = &self->volume;
    return 0;
}

static int fake_from_node(const char *driver, const char *filename,
                          struct volume **ret)
{
    if (!str_eq(driver, "file") || !str_starts(filename, "/fake/")) {
        return -ENOENT;
    }
    _cleanup_free_ char *uri =
        str_printf("fake:%s", filename + strlen("/fake/"));
    return uri != NULL ? fake_parse(uri, ret, NULL) : -ENOMEM;
}

static char *fake_legacy_name(const struct volume *volume)
{
    return str_printf("/fake/%s", fake_of(volume)->key);
}

static json_t *fake_node_options(const struct volume *volume,
                                 _unused_ const char *secret_id)
{
    json_t *node = volume_node(volume, "file");
    _cleanup_free_ char *name = fake_legacy_name(volume);
    if (node != NULL && name != NULL) {
        (void)json_object_set_new(node, "filename", json_string(name));
    }
    return node;
}

static int fake_probe(struct volume *volume, struct volume_info *ret,
                      struct err **errp)
{
    int lost = 0;
    volume_info_init(ret);
    int r = begin(volume, VOLUME_PROBE, &lost, errp);
    if (r == 0) {
        const struct entry *entry = entry_find(fake_of(volume)->key);
        if (entry != NULL) {
            entry_tell(entry, ret);
        }
    }
    return end(volume, r, lost, errp);
}

static int fake_create(struct volume *volume, const char *temp, uint64_t size,
                       struct volume_info *ret, struct err **errp)
{
    int lost = 0;
    int r = begin(volume, VOLUME_CREATE, &lost, errp);
    if (r == 0) {
        r = remove_entry(volume, temp, NULL, errp);
    }
    if (r == 0) {
        entry_tell(entry_add(temp, size), ret);
        ret->zero = true;
    }
    return end(volume, r, lost, errp);
}

static int fake_publish(struct volume *volume, const char *temp,
                        const char *identity, struct err **errp)
{
    int lost = 0;
    int r = begin(volume, VOLUME_PUBLISH, &lost, errp);
    const char *key = fake_of(volume)->key;
    const struct entry *there = entry_find(key);
    struct entry *ours = entry_find(temp);
    char found[160] = "";
    if (r == 0 && there != NULL) {
        entry_identity(there, found);
        r = str_eq(found, identity) ? 0 : volume_taken(volume, errp);
    } else if (r == 0) {
        if (ours != NULL) {
            entry_identity(ours, found);
        }
        if (ours == NULL || !str_eq(found, identity)) {
            r = err_set(errp, -ESTALE, volume->name, "'%s' is not ours", temp);
        } else {
            (void)snprintf(ours->name, sizeof(ours->name), "%s", key);
        }
    }
    return end(volume, r, lost, errp);
}

static int fake_remove(struct volume *volume, const char *temp,
                       const char *identity, struct err **errp)
{
    int lost = 0;
    int r = begin(volume, VOLUME_REMOVE, &lost, errp);
    if (r == 0 && temp != NULL) {
        r = remove_entry(volume, temp, NULL, errp);
    }
    if (r == 0 && identity != NULL) {
        r = remove_entry(volume, fake_of(volume)->key, identity, errp);
    }
    return end(volume, r, lost, errp);
}

static int fake_secret(struct volume *volume, char **ret, struct err **errp)
{
    int lost = 0;
    int r = begin(volume, VOLUME_SECRET, &lost, errp);
    *ret = r == 0 ? strdup("c2VjcmV0") : NULL;
    return end(volume, r, lost, errp);
}

static int fake_hold(_unused_ const struct volume *volume, void **ret,
                     _unused_ struct err **errp)
{
    uv_mutex_lock(&fake.lock);
    if (fake.held == NULL) {
        fake.held = calloc(1, sizeof(*fake.held));
        assert(fake.held != NULL);
        fake.n_made++;
        fake.n_open++;
    }
    fake.held->refs++;
    *ret = fake.held;
    uv_mutex_unlock(&fake.lock);
    return 0;
}

static void fake_release(void *data)
{
    struct held *held = data;
    uv_mutex_lock(&fake.lock);
    if (--held->refs == 0) {
        while (fake.hang_at_release && !fake.released) {
            uv_cond_wait(&fake.changed, &fake.lock);
        }
        fake.held = fake.held == held ? NULL : fake.held;
        fake.n_open--;
        free(held);
    }
    uv_mutex_unlock(&fake.lock);
}

static bool fake_is_good(void *data)
{
    const struct held *held = data;
    uv_mutex_lock(&fake.lock);
    bool good = !held->doubted;
    uv_mutex_unlock(&fake.lock);
    return good;
}

static void fake_doubt(_unused_ const struct volume *volume)
{
    uv_mutex_lock(&fake.lock);
    if (fake.held != NULL) {
        fake.held->doubted = true;
        fake.held = NULL;
    }
    uv_mutex_unlock(&fake.lock);
}

static const struct bulk_ops fake_bulk = {
    .hold = fake_hold,
    .release = fake_release,
    .is_good = fake_is_good,
    .doubt = fake_doubt,
};

static const struct backend_ops fake_ops = {
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
    .bulk = &fake_bulk,
};

static struct entry *entry_find(const char *name)
{
    for (unsigned i = 0; i < STORE_MAX; i++) {
        if (*name != '\0' && str_eq(fake.store[i].name, name)) {
            return &fake.store[i];
        }
    }
    return NULL;
}

static struct entry *entry_add(const char *name, uint64_t size)
{
    unsigned i = 0;
    while (i < STORE_MAX && fake.store[i].name[0] != '\0') {
        i++;
    }
    assert(i < STORE_MAX && strlen(name) < NAME_MAX_LENGTH);
    struct entry *entry = &fake.store[i];
    (void)snprintf(entry->name, sizeof(entry->name), "%s", name);
    entry->size = size;
    entry->number = fake.next_number++;
    entry->in_use = false;
    return entry;
}

static void entry_tell(const struct entry *entry, struct volume_info *ret)
{
    volume_info_init(ret);
    ret->exists = true;
    ret->size = entry->size;
    ret->block_size = 512;
    ret->in_use = entry->in_use;
    (void)snprintf(ret->in_use_by, sizeof(ret->in_use_by), "%s",
                   entry->in_use ? "somebody" : "");
    entry_identity(entry, ret->identity);
}

static void entry_identity(const struct entry *entry, char ret[160])
{
    (void)snprintf(ret, 160, "fake:%u", entry->number);
}

/* Takes the lock; end() gives it back, whatever this one says. */
static int begin(const struct volume *volume, enum volume_act act,
                 int *ret_lost, struct err **errp)
{
    uv_mutex_lock(&fake.lock);
    for (unsigned i = 0; i < FAULT_MAX; i++) {
        struct fault *fault = &fake.faults[i];
        if (!fault->set || fault->act != act || --fault->left > 0) {
            continue;
        }
        fault->set = false;
        switch (fault->fault) {
        case FAKE_ERROR:
            return err_set(errp, fault->code, volume->name, "a fake error");
        case FAKE_LOST:
            *ret_lost = fault->code;
            return 0;
        case FAKE_HANG:
            fake.hung++;
            uv_cond_broadcast(&fake.changed);
            while (!fake.released) {
                uv_cond_wait(&fake.changed, &fake.lock);
            }
            fake.hung--;
            return 0;
        }
    }
    return 0;
}

static int end(const struct volume *volume, int result, int lost,
               struct err **errp)
{
    uv_mutex_unlock(&fake.lock);
    return lost != 0 ? err_set(errp, lost, volume->name, "a fake lost result")
                     : result;
}

static int remove_entry(const struct volume *volume, const char *name,
                        const char *identity, struct err **errp)
{
    struct entry *entry = entry_find(name);
    if (entry == NULL) {
        return 0;
    }
    char found[160];
    entry_identity(entry, found);
    if (identity != NULL && !str_eq(found, identity)) {
        return err_set(errp, -ESTALE, volume->name, "'%s' is another one",
                       name);
    }
    if (entry->in_use) {
        return err_set(errp, -EBUSY, volume->name, "'%s' is in use", name);
    }
    entry->name[0] = '\0';
    return 0;
}
