"""Where the guests of a run go on from: a machine saved just before its writer
looks for disks.

To boot takes six times as long as to load that, and what boots differs from
test to test in nothing but its disks: it has none yet, finds those of the
machine that loads it on the bus, and is told the rest.  A machine that never
was an incoming one is had by lab.vm(..., power_on=True).
"""

import fcntl

from .proc import wait_for
from .qemu import Vm

# Of an option of these the guest would have learnt when it booted.
TELLING = ("-device", "-cpu", "-machine", "-m", "-smp")


def fits(boot=True, argv=(), **other):
    """Whether a machine that is started so can load the state."""
    return boot and not set(argv) & set(TELLING)


def state(folder, install, **same):
    """The path of the state of such a machine; made where nobody has yet."""
    name = "-".join(["saved", install.prefix.name if install.prefix else "system",
                     *map(str, same.values())])
    path = folder / name
    with open(folder / (name + ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            _make(folder, name, path, install, same)
    return path


def _make(folder, name, path, install, same):
    vm = Vm(install, folder, [], name=name, wait=False, words="qpl.saved=1", **same)
    try:
        vm.wait_line("saved", 60)
        # Stopped: before 9.0 QEMU can miss what a guest under TCG still writes.
        vm.qmp.cmd("stop")
        part = folder / (name + ".part")
        vm.qmp.cmd("migrate-set-parameters", max_bandwidth=1 << 34)
        vm.qmp.cmd("migrate", uri=f"exec:cat >{part}")
        wait_for("the state to be saved", lambda: _saved(vm), 60)
        vm.quit()
        part.rename(path)
    finally:
        vm.stop()


def _saved(vm):
    status = vm.qmp.cmd("query-migrate")["status"]
    assert status != "failed", "the machine cannot be saved"
    return status == "completed"
