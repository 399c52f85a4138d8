/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "fake/scratch.h"
#include "vm/schema-cache.h"

#define VERSION "7.2.22 Debian 1:7.2+dfsg-7/../x"

static char dir[SCRATCH_PATH];

static void setup(void)
{
    scratch_make("schema-cache", dir);
}

static void teardown(void)
{
    char path[128];
    (void)snprintf(path, sizeof(path),
                   "%s/schema-7.2.22-Debian-1-7.2+"
                   "dfsg-7-..-x.json",
                   dir);
    (void)unlink(path);
    cr_assert_eq(rmdir(dir), 0, "nothing else was made in it");
}

TestSuite(schema_cache, .init = setup, .fini = teardown);

Test(schema_cache, what_was_stored_is_loaded)
{
    json_auto_t *schema = json_pack("[{s:s}]", "name", "quit");
    schema_cache_store(dir, VERSION, schema);
    json_auto_t *loaded = schema_cache_load(dir, VERSION);
    cr_assert(json_equal(loaded, schema));
    cr_assert_null(schema_cache_load(dir, "7.2.22 Debian 1:7.2+dfsg-8"));
}

Test(schema_cache, a_build_without_a_package_is_always_asked)
{
    json_auto_t *schema = json_pack("[{s:s}]", "name", "quit");
    schema_cache_store(dir, "9.0.0", schema);
    cr_assert_null(schema_cache_load(dir, "9.0.0"));
    schema_cache_store(NULL, VERSION, schema);
    cr_assert_null(schema_cache_load(NULL, VERSION));
}

Test(schema_cache, a_torn_file_is_as_none)
{
    json_auto_t *wrong = json_object();
    schema_cache_store(dir, VERSION, wrong);
    cr_assert_null(schema_cache_load(dir, VERSION));
}
