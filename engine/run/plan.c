/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "run/plan.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "base/err.h"
#include "base/str.h"

enum { DISKS_MAX = 256 };

enum type { TEXT, JSON, FLAG, COUNT };

struct field {
    const char *name;
    enum type type;
    size_t offset;
    bool later; /* not in the plans of the first journals */
};

#define DISK(member, type)                                                     \
    {                                                                          \
#member, type, offsetof(struct plan_disk, member), false               \
    }
#define DISK_LATER(member, type)                                               \
    {                                                                          \
#member, type, offsetof(struct plan_disk, member), true                \
    }
#define PLAN_LATER(member, type)                                               \
    {                                                                          \
#member, type, offsetof(struct plan, member), true                     \
    }
#define PLAN(member, type)                                                     \
    {                                                                          \
#member, type, offsetof(struct plan, member), false                    \
    }

/* The names are on-disk format (qpivot-journal): never renamed. */
static const struct field disk_fields[] = {
    DISK(disk, TEXT),
    DISK(device, TEXT),
    DISK(drive, TEXT),
    DISK(root, TEXT),
    DISK(replaces, TEXT),
    DISK(active, TEXT),
    DISK(protocol, TEXT),
    DISK(from, TEXT),
    DISK(from_format, TEXT),
    DISK(source_identity, TEXT),
    DISK(source_nodes, JSON),
    DISK(before, JSON),
    DISK(bitmaps, JSON),
    DISK(known_bitmaps, JSON),
    DISK(size, COUNT),
    DISK(to, TEXT),
    DISK(format, TEXT),
    DISK(target_size, COUNT),
    DISK(create, FLAG),
    DISK(make_format, FLAG),
    DISK(shim, FLAG),
    DISK(secret, FLAG),
    DISK(drive_mirror, FLAG),
    DISK(nbd, FLAG),
    DISK(legacy_name, TEXT),
    DISK(file_options, JSON),
    DISK(node_options, JSON),
    DISK(copy_options, JSON),
    DISK(image, FLAG),
    DISK(sync, TEXT),
    DISK(target_is_zero, FLAG),
    DISK(reason, TEXT),
    DISK(copy_mode, TEXT),
    DISK_LATER(may_write_block, FLAG),
    DISK_LATER(how, TEXT),
    DISK_LATER(dst_node, TEXT),
    DISK_LATER(from_blockdevs, JSON),
    DISK_LATER(attach, FLAG),
    DISK_LATER(placeholder, TEXT),
    DISK_LATER(made_there, FLAG),
    DISK_LATER(from_state, TEXT),
    DISK_LATER(to_state, TEXT),
    DISK_LATER(to_identity, TEXT),
    DISK_LATER(base, TEXT),
    DISK_LATER(base_file, TEXT),
    DISK_LATER(base_format, TEXT),
    DISK_LATER(base_nodes, JSON),
    DISK_LATER(linked, JSON),
    DISK_LATER(overlay, TEXT),
    DISK_LATER(landing, TEXT),
};

static const struct field plan_fields[] = {
    PLAN(kind, TEXT),
    PLAN(qmp, TEXT),
    PLAN(group, FLAG),
    PLAN(hold_shutdown, FLAG),
    PLAN(delete_source, FLAG),
    PLAN(has_target_is_zero, FLAG),
    PLAN(governs_latency, FLAG),
    PLAN(speed, COUNT),
    PLAN(max_guest_latency_ms, COUNT),
    PLAN(timeout_ms, COUNT),
    PLAN(freeze_limit_ms, COUNT),
    PLAN(command_timeout_ms, COUNT),
    PLAN(copy_mode, COUNT),
    PLAN(qemu_pid, COUNT),
    PLAN(qemu_start, COUNT),
    PLAN(emit_config, TEXT),
    PLAN(persist_hook, TEXT),
    PLAN(space_hook, TEXT),
    PLAN_LATER(target_timeout_ms, COUNT),
    PLAN_LATER(verify, TEXT),
    PLAN_LATER(verify_dir, TEXT),
    PLAN_LATER(qemu_uid, COUNT),
    PLAN_LATER(undo_window_ms, COUNT),
    PLAN_LATER(dst_qmp, TEXT),
    PLAN_LATER(dst_pid, COUNT),
    PLAN_LATER(dst_start, COUNT),
    PLAN_LATER(address, TEXT),
    PLAN_LATER(export_port, COUNT),
    PLAN_LATER(export_ports, COUNT),
    PLAN_LATER(suspend, FLAG),
    PLAN_LATER(suspend_ms, COUNT),
    PLAN_LATER(postcopy, FLAG),
    PLAN_LATER(postcopy_ms, COUNT),
    PLAN_LATER(was_running, FLAG),
    PLAN_LATER(quit_source, FLAG),
    PLAN_LATER(capabilities, JSON),
    PLAN_LATER(parameters, JSON),
    PLAN_LATER(src_before, JSON),
    PLAN_LATER(dst_before, JSON),
    PLAN_LATER(adopted, FLAG),
    PLAN_LATER(allow_degraded, FLAG),
    PLAN_LATER(stream_socket, TEXT),
    PLAN_LATER(export_socket, TEXT),
    PLAN_LATER(tunnel, FLAG),
    PLAN_LATER(tls_dir, TEXT),
    PLAN_LATER(tls_dir_to, TEXT),
    PLAN_LATER(tls_hostname, TEXT),
    PLAN_LATER(tls_authz, TEXT),
};

static json_t *fields_to_json(const struct field *fields, size_t n,
                              const void *base);
static int fields_from_json(const struct field *fields, size_t n,
                            const json_t *json, void *base, struct err **errp);
static void fields_free(const struct field *fields, size_t n, void *base);
static void disks_free(struct plan *plan);
static void *member_of(const void *base, const struct field *field);

int plan_new(const char *kind, unsigned n_disks, struct plan **ret)
{
    struct plan *plan = calloc(1, sizeof(*plan));
    if (plan == NULL) {
        return -ENOMEM;
    }
    plan->kind = strdup(kind);
    plan->disks = calloc(n_disks > 0 ? n_disks : 1, sizeof(*plan->disks));
    if (plan->kind == NULL || plan->disks == NULL) {
        plan_free(plan);
        return -ENOMEM;
    }
    plan->n_disks = n_disks;
    for (unsigned i = 0; i < n_disks; i++) {
        plan->disks[i].index = i;
    }
    *ret = plan;
    return 0;
}

int plan_set_disks(struct plan *plan, unsigned n_disks)
{
    struct plan_disk *disks =
        calloc(n_disks > 0 ? n_disks : 1, sizeof(*plan->disks));
    if (disks == NULL) {
        return -ENOMEM;
    }
    disks_free(plan);
    plan->disks = disks;
    plan->n_disks = n_disks;
    for (unsigned i = 0; i < n_disks; i++) {
        disks[i].index = i;
    }
    return 0;
}

struct plan *plan_free(struct plan *plan)
{
    if (plan != NULL) {
        disks_free(plan);
        fields_free(plan_fields, ARRAY_SIZE(plan_fields), plan);
        free(plan);
    }
    return NULL;
}

bool plan_disk_is_mirrored(const struct plan_disk *disk)
{
    const char *how = disk->how;
    return how == NULL || *how == '\0' || str_eq(how, "nbd") ||
           str_eq(how, "direct");
}

bool plan_disk_keeps_base(const struct plan_disk *disk)
{
    return disk->base != NULL && *disk->base != '\0';
}

bool plan_disk_copies_base(const struct plan_disk *disk)
{
    return disk->overlay != NULL && *disk->overlay != '\0';
}

json_t *plan_disk_former_nodes(const struct plan_disk *disk)
{
    json_t *names = json_array();
    size_t i, k;
    json_t *name, *base;
    json_array_foreach(disk->source_nodes, i, name) {
        bool stays = false;
        json_array_foreach(disk->base_nodes, k, base) {
            stays = stays || json_equal(base, name);
        }
        if (!stays) {
            (void)json_array_append(names, name);
        }
    }
    return names;
}

bool plan_disk_has_volume(const struct plan_disk *disk)
{
    return disk->attach || str_eq(disk->how, "direct");
}

json_t *plan_to_json(const struct plan *plan)
{
    json_t *json = fields_to_json(plan_fields, ARRAY_SIZE(plan_fields), plan);
    json_t *disks = json_array();
    for (unsigned i = 0; i < plan->n_disks; i++) {
        (void)json_array_append_new(
            disks, fields_to_json(disk_fields, ARRAY_SIZE(disk_fields),
                                  &plan->disks[i]));
    }
    (void)json_object_set_new(json, "disks", disks);
    if (json_array_size(disks) != plan->n_disks ||
        json_object_get(json, "disks") == NULL) {
        json_decref(json);
        return NULL;
    }
    return json;
}

int plan_from_json(const json_t *json, struct plan **ret, struct err **errp)
{
    const json_t *disks = json_object_get(json, "disks");
    size_t n = json_array_size(disks);
    const char *kind = json_string_value(json_object_get(json, "kind"));
    if (!json_is_array(disks) || n > DISKS_MAX || kind == NULL) {
        return err_set(errp, -EPROTO, "plan", "is not one of qpivot");
    }
    _cleanup_(plan_freep) struct plan *plan = NULL;
    if (plan_new("", (unsigned)n, &plan) < 0) {
        return err_set(errp, -ENOMEM, "plan", "out of memory");
    }
    int r = fields_from_json(plan_fields, ARRAY_SIZE(plan_fields), json, plan,
                             errp);
    for (unsigned i = 0; r == 0 && i < n; i++) {
        r = fields_from_json(disk_fields, ARRAY_SIZE(disk_fields),
                             json_array_get(disks, i), &plan->disks[i], errp);
    }
    if (r < 0) {
        return r;
    }
    *ret = TAKE_PTR(plan);
    return 0;
}

static json_t *fields_to_json(const struct field *fields, size_t n,
                              const void *base)
{
    json_t *json = json_object();
    for (size_t i = 0; i < n; i++) {
        const void *member = member_of(base, &fields[i]);
        json_t *value = NULL;
        switch (fields[i].type) {
        case TEXT: {
            const char *text = *(char *const *)member;
            value = json_string(text != NULL ? text : "");
            break;
        }
        case JSON: {
            json_t *part = *(json_t *const *)member;
            value = part != NULL ? json_incref(part) : json_null();
            break;
        }
        case FLAG:
            value = json_boolean(*(const bool *)member);
            break;
        case COUNT:
            value = json_integer((json_int_t) * (const uint64_t *)member);
            break;
        }
        if (json_object_set_new(json, fields[i].name, value) < 0) {
            json_decref(json);
            return NULL;
        }
    }
    return json;
}

static char *strdup_of(const json_t *value)
{
    const char *text = json_string_value(value);
    return text != NULL ? strdup(text) : NULL;
}

static int fields_from_json(const struct field *fields, size_t n,
                            const json_t *json, void *base, struct err **errp)
{
    for (size_t i = 0; i < n; i++) {
        void *member = member_of(base, &fields[i]);
        json_t *value = json_object_get(json, fields[i].name);
        bool ok = false;
        if (value == NULL && fields[i].later && fields[i].type != TEXT) {
            continue;
        }
        switch (fields[i].type) {
        case TEXT:
            free(*(char **)member);
            *(char **)member = value == NULL && fields[i].later
                                   ? strdup("")
                                   : strdup_of(value);
            ok = *(char **)member != NULL;
            break;
        case JSON:
            ok = value != NULL;
            *(json_t **)member =
                json_is_null(value) ? NULL : json_incref(value);
            break;
        case FLAG:
            ok = json_is_boolean(value);
            *(bool *)member = json_is_true(value);
            break;
        case COUNT:
            ok = json_is_integer(value) && json_integer_value(value) >= 0;
            *(uint64_t *)member = (uint64_t)json_integer_value(value);
            break;
        }
        if (!ok) {
            return err_set(errp, -EPROTO, "plan", "has no valid '%s'",
                           fields[i].name);
        }
    }
    return 0;
}

static void fields_free(const struct field *fields, size_t n, void *base)
{
    for (size_t i = 0; i < n; i++) {
        void *member = member_of(base, &fields[i]);
        if (fields[i].type == TEXT) {
            free(*(char **)member);
        } else if (fields[i].type == JSON) {
            json_decref(*(json_t **)member);
        }
    }
}

static void disks_free(struct plan *plan)
{
    for (unsigned i = 0; plan->disks != NULL && i < plan->n_disks; i++) {
        fields_free(disk_fields, ARRAY_SIZE(disk_fields), &plan->disks[i]);
    }
    free(plan->disks);
    plan->disks = NULL;
}

static void *member_of(const void *base, const struct field *field)
{
    return (char *)(uintptr_t)base + field->offset;
}
