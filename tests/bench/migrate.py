"""tools/bench migrate: qpivot, virsh and a bare script move the same VM, with
its disk, to another QEMU on this machine."""

import time

import libvirt
from lab import qpivot
from lab.pair import MEMORY, Destination
from lab.proc import free_port, run
from lab.storage import MiB
from move import Bench, Lane, over
from table import Table, ratios, spread

COPYING, SWITCHING = 600, 120  # seconds


def lanes(opts):
    return [Lane("migrate", f"{opts.size} MiB raw disk, a quarter of it data -> fresh raw file",
                 "raw", "raw", opts.size * MiB, 4)]


class Migrations(Bench):
    machine = {"memory": MEMORY}

    def __init__(self, opts):
        super().__init__(opts, lanes(opts))

    def start(self):
        super().start()
        if "virsh" in self.opts.by:
            self.there = libvirt.Elsewhere(self.tmp / "there")
            self.base.services["there"] = self.there
            self.there.start()

    def measure(self, lab, lane, by, vm, target):
        before = self.settle(vm)
        begin = time.monotonic()
        target.create(lab.install, lane.size)
        there = getattr(self, by)(lab, vm, target)
        total = time.monotonic() - begin
        stats = self.judge(lane, by, there, before)
        stopped, resumed = vm.qmp.event("STOP"), there.qmp.event("RESUME")
        there.quit()
        return {"total": total, "stall": stats["maxgap_ms"],
                "blackout": (time_of(resumed) - time_of(stopped)) * 1e3}

    def destination(self, lab, vm, target):
        """Its start is in the clock, as virsh's is."""
        return lab.ends(Destination(vm, {"d0": target}, lab.name("dst")))

    def qpivot(self, lab, vm, target):
        there = self.destination(lab, vm, target)
        run([qpivot.program(), "migrate", "--qmp", vm.qmp_path, "--to", there.qmp_path,
             "--json", "--state", str(self.tmp / "state")], seconds=600)
        return there

    def virsh(self, lab, vm, target):
        there = vm.migrate(self.there, target)
        return lab.ends(there.wait_attached())

    def bare(self, lab, vm, target):
        there = self.destination(lab, vm, target)
        bare(vm.qmp, there.qmp)
        return there

    def show(self, lane, rounds):
        t = Table(f"{lane.name}: {lane.title}", "", "total", "STOP to RESUME",
                  "longest write stall")
        for other in ("virsh", "bare"):
            if {"qpivot", other} <= set(self.opts.by):
                t.row(f"qpivot / {other}", *(spread(ratios(rounds, "qpivot", other, key))
                                             for key in ("total", "blackout", "stall")))
        for by in self.opts.by:
            t.row(f"({by}, s and ms)", spread([r[by]["total"] for r in rounds], "{:.3f}"),
                  *(spread([r[by][key] for r in rounds], "{:.0f}")
                    for key in ("blackout", "stall")))
        if {"qpivot", "bare"} <= set(self.opts.by):
            t.row("(qpivot - bare, ms)", spread(over(rounds), "{:.0f}"),
                  spread([r["qpivot"]["blackout"] - r["bare"]["blackout"] for r in rounds],
                         "{:.0f}"), "")
        t.show()


def time_of(event):
    stamp = event["timestamp"]
    return stamp["seconds"] + stamp["microseconds"] / 1e6


def bare(src, dst):
    """The least that moves it without losing a write: every command goes out
    the moment that it may."""
    stream, exports = free_port(), free_port()
    capabilities = [{"capability": c, "state": True}
                    for c in ("events", "pause-before-switchover")]
    dst.cmd("nbd-server-start", addr={"type": "inet", "data": {
        "host": "127.0.0.1", "port": str(exports)}})
    dst.cmd("block-export-add", id="d0", type="nbd", node_name="n-d0", name="d0", writable=True)
    for q in (src, dst):
        q.cmd("migrate-set-capabilities", capabilities=capabilities)
    src.cmd("migrate-set-parameters", max_bandwidth=1 << 40)
    dst.cmd("migrate-incoming", uri=f"tcp:127.0.0.1:{stream}")
    src.cmd("blockdev-add", driver="nbd", node_name="away", export="d0", detect_zeroes="unmap",
            discard="unmap", server={"type": "inet", "host": "127.0.0.1", "port": str(exports)})
    src.cmd("blockdev-mirror", job_id="m", device="n-d0", target="away", sync="full",
            copy_mode="write-blocking", auto_dismiss=True)
    src.event("BLOCK_JOB_READY", COPYING)
    src.cmd("migrate", uri=f"tcp:127.0.0.1:{stream}")
    src.event("MIGRATION", SWITCHING, lambda d: d["status"] == "pre-switchover")
    src.cmd("block-job-cancel", device="m")
    src.event("BLOCK_JOB_COMPLETED", SWITCHING)
    src.cmd("migrate-continue", state="pre-switchover")
    dst.event("MIGRATION", SWITCHING, lambda d: d["status"] == "completed")
    dst.cmd("block-export-del", id="d0", mode="hard")
    dst.cmd("nbd-server-stop")
    dst.cmd("cont")
    src.event("MIGRATION", SWITCHING, lambda d: d["status"] == "completed")
    src.cmd("quit")
