/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* qpivot report: an operation of the journal as a page to keep or to send. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cmd.h"
#include "errors.h"
#include "journal-text.h"
#include "report.h"

static int report_run(const void *values, char **operands, unsigned n);

const struct verb verb_report = {
    .name = "report",
    .operands = "OP",
    .min_operands = 1,
    .max_operands = 1,
    .summary = "Write one operation of the journal as an HTML page.",
    .values_size = sizeof(struct common_values),
    .run = report_run,
};

static int report_run(const void *values, char **operands, unsigned n)
{
    (void)n;
    const struct common_values *common = values;
    json_auto_t *operation = NULL;
    int code = journal_show(common, operands[0], &operation);
    if (code != 0) {
        return code;
    }
    report_write(stdout, operation, journal_state(operation));
    if (fflush(stdout) != 0 || ferror(stdout)) {
        error_say("standard output", "%s", strerror(errno));
        return EXIT_FAILURE;
    }
    return 0;
}
