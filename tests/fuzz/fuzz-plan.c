/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A plan as the journal may hold it: refused, or the same after writing and
 * reading it again, and every step can say what it would send.
 */
#include <stdint.h>
#include <stdlib.h>

#include "base/err.h"
#include "engine.h"
#include "run/plan.h"
#include "run/step.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void ask(const struct operation *operation, const struct plan *plan)
{
    for (unsigned i = 0; i < operation->n_steps; i++) {
        const struct step *step = &operation->steps[i];
        bool per_disk = (step->flags & STEP_PER_DISK) != 0;
        unsigned n = per_disk ? plan->n_disks : 1;
        for (unsigned disk = 0; disk < n; disk++) {
            const struct plan_disk *about =
                per_disk ? &plan->disks[disk] : NULL;
            if (step->command != NULL &&
                (step->when == NULL || step->when(plan, about))) {
                json_decref(step->command("k3f9x2", plan, about));
            }
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    json_auto_t *json = json_loadb((const char *)data, size, 0, NULL);
    _cleanup_(plan_freep) struct plan *plan = NULL;
    _cleanup_(plan_freep) struct plan *again = NULL;
    _cleanup_err_ struct err *err = NULL;
    if (plan_from_json(json, &plan, &err) < 0) {
        if (err == NULL || plan != NULL) {
            abort();
        }
        return 0;
    }
    json_auto_t *text = plan_to_json(plan);
    if (text == NULL || plan_from_json(text, &again, NULL) < 0) {
        abort();
    }
    json_auto_t *same = plan_to_json(again);
    if (!json_equal(text, same)) {
        abort();
    }
    ask(engine_operation("move"), plan);
    ask(engine_operation("migrate"), plan);
    return 0;
}
