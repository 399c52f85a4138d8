"""The bare script: the QMP commands of a move and nothing else.

No journal, no claim, no proof, no looking before: each command goes out the
moment that the reply or the event came which it needs.
"""

from lab.qmp import Qmp, QmpError

SKIP = ("object-add", "object-del", "set-action")  # what only the engine needs


def move(path, commands):
    qmp = Qmp(path)
    for c in commands:
        name, args = c["execute"], c.get("arguments", {})
        if name in SKIP:
            continue
        if name == "job-complete":
            qmp.event("BLOCK_JOB_READY", 600)
        try:
            qmp.cmd(name, **args)
        except QmpError:
            if name != "blockdev-del":  # it went with its parent
                raise
        if name == "blockdev-create":
            concluded(qmp, args["job-id"])
            qmp.cmd("job-dismiss", id=args["job-id"])
        elif name == "job-complete":
            concluded(qmp, args["id"])
    qmp.close()


def concluded(qmp, job):
    qmp.event("JOB_STATUS_CHANGE", 60,
              lambda d: d.get("id") == job and d.get("status") == "concluded")
    for j in qmp.cmd("query-jobs"):
        if j["id"] == job and "error" in j:
            raise RuntimeError(f"{job}: {j['error']}")
