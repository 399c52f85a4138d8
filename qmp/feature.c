/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a QEMU can do, from its own description (docs/devel/qapi-code-gen,
 * "Client JSON Protocol introspection"). Pure. Type names are numbers that
 * differ from build to build: only walking leads from a command to a member.
 */
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/err.h"
#include "base/str.h"
#include "qmp/qmp.h"

enum {
    SEGMENT_MAX = 128,
    BUDGET =
        256, /* types looked at for one question: a schema may have loops */
};

struct qmp_schema {
    json_t *entities; /* name -> {"name","meta-type",...} */
};

static const json_t *entity(const struct qmp_schema *schema, const char *name,
                            const char *meta_type);
static const char *arg_type(const struct qmp_schema *schema,
                            const char *command);
static const char *follow(const struct qmp_schema *schema, const char *type,
                          const char *path);
static const char *step(const struct qmp_schema *schema, const char *type,
                        const char *segment, unsigned *budget);
static const char *step_into(const json_t *object, const char *segment);
static const char *member_type(const json_t *object, const char *name);
static const char *variant_type(const json_t *object, const char *tag,
                                const char *branch);
static bool enum_has(const struct qmp_schema *schema, const char *type,
                     const char *value, unsigned *budget);
static bool spend(unsigned *budget);
static const char *text_of(const json_t *object, const char *key);
DEFINE_CLEANUP(struct qmp_schema, qmp_schema_free)

int qmp_schema_new(const json_t *reply, struct qmp_schema **ret,
                   struct err **errp)
{
    if (!json_is_array(reply)) {
        return err_set(errp, -EBADMSG, "query-qmp-schema",
                       "the reply is no array");
    }
    _cleanup_(qmp_schema_freep) struct qmp_schema *schema =
        calloc(1, sizeof(*schema));
    if (schema != NULL) {
        schema->entities = json_object();
    }
    if (schema == NULL || schema->entities == NULL) {
        return err_set(errp, -ENOMEM, "query-qmp-schema", "out of memory");
    }
    size_t i;
    json_t *item;
    json_array_foreach(reply, i, item) {
        const char *name = text_of(item, "name");
        if (name != NULL && json_object_set(schema->entities, name, item) < 0) {
            return err_set(errp, -ENOMEM, "query-qmp-schema", "out of memory");
        }
    }
    *ret = TAKE_PTR(schema);
    return 0;
}

struct qmp_schema *qmp_schema_free(struct qmp_schema *schema)
{
    if (schema != NULL) {
        json_decref(schema->entities);
        free(schema);
    }
    return NULL;
}

bool qmp_schema_has_command(const struct qmp_schema *schema, const char *name)
{
    return entity(schema, name, "command") != NULL;
}

bool qmp_schema_has_event(const struct qmp_schema *schema, const char *name)
{
    return entity(schema, name, "event") != NULL;
}

bool qmp_schema_has_arg(const struct qmp_schema *schema, const char *command,
                        const char *path)
{
    return follow(schema, arg_type(schema, command), path) != NULL;
}

bool qmp_schema_has_value(const struct qmp_schema *schema, const char *command,
                          const char *path, const char *value)
{
    const char *type = follow(schema, arg_type(schema, command), path);
    unsigned budget = BUDGET;
    return enum_has(schema, type, value, &budget);
}

bool qmp_schema_has_result(const struct qmp_schema *schema, const char *command,
                           const char *path)
{
    const json_t *found = entity(schema, command, "command");
    return follow(schema, text_of(found, "ret-type"), path) != NULL;
}

bool qmp_schema_allows_oob(const struct qmp_schema *schema, const char *command)
{
    const json_t *found = entity(schema, command, "command");
    return json_is_true(json_object_get(found, "allow-oob"));
}

bool qmp_schema_has_feature(const struct qmp_schema *schema,
                            const char *command, const char *feature)
{
    const json_t *found = entity(schema, command, "command");
    size_t i;
    const json_t *item;
    json_array_foreach(json_object_get(found, "features"), i, item) {
        if (str_eq(json_string_value(item), feature)) {
            return true;
        }
    }
    return false;
}

json_t *qmp_schema_names(const struct qmp_schema *schema, const char *command)
{
    json_t *names = json_array();
    if (command == NULL) {
        const char *name;
        json_t *item;
        json_object_foreach(schema->entities, name, item) {
            if (str_eq(text_of(item, "meta-type"), "command")) {
                (void)json_array_append_new(names, json_string(name));
            }
        }
        return names;
    }
    const json_t *args = entity(schema, arg_type(schema, command), "object");
    size_t i;
    const json_t *member;
    json_array_foreach(json_object_get(args, "members"), i, member) {
        const char *name = text_of(member, "name");
        if (name != NULL) {
            (void)json_array_append_new(names, json_string(name));
        }
    }
    return names;
}

/* 'meta_type' NULL: any. */
static const json_t *entity(const struct qmp_schema *schema, const char *name,
                            const char *meta_type)
{
    const json_t *found = json_object_get(schema->entities, name);
    if (meta_type != NULL && !str_eq(text_of(found, "meta-type"), meta_type)) {
        return NULL;
    }
    return found;
}

static const char *arg_type(const struct qmp_schema *schema,
                            const char *command)
{
    return text_of(entity(schema, command, "command"), "arg-type");
}

/* The name of the type that the path leads to, or NULL. */
static const char *follow(const struct qmp_schema *schema, const char *type,
                          const char *path)
{
    while (type != NULL) {
        char segment[SEGMENT_MAX];
        size_t length = strcspn(path, ".");
        if (length == 0 || length >= sizeof(segment)) {
            return NULL;
        }
        memcpy(segment, path, length);
        segment[length] = '\0';
        unsigned budget = BUDGET;
        type = step(schema, type, segment, &budget);
        if (path[length] == '\0') {
            return type;
        }
        path += length + 1;
    }
    return NULL;
}

/* One segment down, through the arrays and alternates in between. */
static const char *step(const struct qmp_schema *schema, const char *type,
                        const char *segment, unsigned *budget)
{
    const json_t *found = type ? entity(schema, type, NULL) : NULL;
    const char *meta = text_of(found, "meta-type");
    if (meta == NULL || !spend(budget)) {
        return NULL;
    }
    if (str_eq(meta, "object")) {
        return step_into(found, segment);
    }
    if (str_eq(meta, "array")) {
        return step(schema, text_of(found, "element-type"), segment, budget);
    }
    if (!str_eq(meta, "alternate")) {
        return NULL;
    }
    size_t i;
    const json_t *choice;
    json_array_foreach(json_object_get(found, "members"), i, choice) {
        const char *next =
            step(schema, text_of(choice, "type"), segment, budget);
        if (next != NULL) {
            return next;
        }
    }
    return NULL;
}

static const char *step_into(const json_t *object, const char *segment)
{
    const char *equals = strchr(segment, '=');
    if (equals == NULL) {
        return member_type(object, segment);
    }
    char tag[SEGMENT_MAX];
    size_t length = (size_t)(equals - segment);
    memcpy(tag, segment, length);
    tag[length] = '\0';
    return variant_type(object, tag, equals + 1);
}

static const char *member_type(const json_t *object, const char *name)
{
    size_t i;
    const json_t *member;
    json_array_foreach(json_object_get(object, "members"), i, member) {
        if (str_eq(text_of(member, "name"), name)) {
            return text_of(member, "type");
        }
    }
    return NULL;
}

static const char *variant_type(const json_t *object, const char *tag,
                                const char *branch)
{
    if (!str_eq(text_of(object, "tag"), tag)) {
        return NULL;
    }
    size_t i;
    const json_t *variant;
    json_array_foreach(json_object_get(object, "variants"), i, variant) {
        if (str_eq(text_of(variant, "case"), branch)) {
            return text_of(variant, "type");
        }
    }
    return NULL;
}

static bool enum_has(const struct qmp_schema *schema, const char *type,
                     const char *value, unsigned *budget)
{
    const json_t *found = type ? entity(schema, type, NULL) : NULL;
    if (found == NULL || !spend(budget)) {
        return false;
    }
    if (str_eq(text_of(found, "meta-type"), "array")) {
        return enum_has(schema, text_of(found, "element-type"), value, budget);
    }
    size_t i;
    const json_t *item;
    if (str_eq(text_of(found, "meta-type"), "alternate")) {
        json_array_foreach(json_object_get(found, "members"), i, item) {
            if (enum_has(schema, text_of(item, "type"), value, budget)) {
                return true;
            }
        }
        return false;
    }
    if (!str_eq(text_of(found, "meta-type"), "enum")) {
        return false;
    }
    json_array_foreach(json_object_get(found, "members"), i, item) {
        if (str_eq(text_of(item, "name"), value)) {
            return true;
        }
    }
    /* before 6.2 there were plain strings */
    json_array_foreach(json_object_get(found, "values"), i, item) {
        if (str_eq(json_string_value(item), value)) {
            return true;
        }
    }
    return false;
}

static bool spend(unsigned *budget)
{
    return *budget > 0 && (*budget)-- > 0;
}

/* NULL when there is none, and for whatever is no object. */
static const char *text_of(const json_t *object, const char *key)
{
    return json_string_value(json_object_get(object, key));
}
