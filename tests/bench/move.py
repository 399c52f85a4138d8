"""tools/bench move: qpivot, virsh and a bare script move the same disk."""

import json
import os
import random
import subprocess
import time
from pathlib import Path

import bare
import libvirt
from lab import guest, isolate, proc, qemu, qpivot, runner, scene
from lab.qemu import Disk
from lab.storage import MiB
from table import Table, ratios, spread

MAKING = ("target-create", "target-publish")  # not in the bare script's total


class Lane:
    """What is moved where.  data: every so many MiB one is full of noise."""

    def __init__(self, name, title, source, target, size, every, speed=None):
        self.name, self.title, self.size, self.every = name, title, size, every
        self.source, self.target, self.speed = source, target, speed


def lanes(size):
    return [
        Lane("local", "sparse qcow2 -> fresh local qcow2", "qcow2", "qcow2", size, 10),
        Lane("nfs", "sparse qcow2 -> fresh raw file on NFS", "qcow2", "nfs", size, 10),
        Lane("rbd", "sparse qcow2 -> fresh RBD image", "qcow2", "rbd", size, 10),
        Lane("fixed", "64 MiB with 1 MiB of data, raw -> raw: the fixed costs", "raw",
             "raw", 64 * MiB, 64),
        Lane("fixed-rbd", "64 MiB with 1 MiB of data, raw -> fresh RBD image", "raw",
             "rbd", 64 * MiB, 64),
        Lane("long", "512 MiB dense raw -> raw at 48 MiB/s: the running costs", "raw",
             "raw", 512 * MiB, 1, 48 * MiB),
    ]


class Bench:
    machine = {}  # what else the guest's machine is to have

    def __init__(self, opts, wanted=None):
        self.opts, self.random = opts, random.Random(1)
        self.lanes = wanted or [x for x in lanes(opts.size * MiB) if x.name in opts.lane]
        self.n = 0

    def run(self):
        for line in guest.prepare():
            print("#", line)
        print("#", qpivot.version())
        tmp, self.alive = isolate.folder("qpb-")
        if not isolate.enter():
            raise proc.LabError("this needs root and namespaces of its own")
        if not self.opts.disk:
            isolate.mount("tmpfs", tmp, "tmpfs", "size=80%")
        self.tmp = Path(tmp)

        class Options:
            qemu, jobs = None, 1
        self.base = runner.Run(Options, tmp)
        try:
            self.start()
            for lane in self.lanes:
                self.lane(lane)
        finally:
            self.base.stop()

    def start(self):
        names = {"nfs": "nfs", "rbd": "ceph"}
        self.base.start_services(sorted({names[x.target] for x in self.lanes if x.target in names}))
        if "virsh" in self.opts.by:
            self.libvirt = libvirt.Libvirt(self.tmp / "libvirt")
            self.base.services["libvirt"] = self.libvirt
            for line in self.libvirt.start():
                print("#", line)
        where = "the system's temporary folder" if self.opts.disk else "memory"
        print(f"# QEMU {self.base.install.version()} (tcg), files in {where}, "
              f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}", flush=True)

    def lane(self, lane):
        fill = self.tmp / "fill"
        with open(fill, "wb") as f:
            for at in range(0, lane.size, lane.every * MiB):
                f.seek(at)
                f.write(os.urandom(MiB))
            f.truncate(lane.size)
        rounds = []
        for n in range(self.opts.rounds):
            order = list(self.opts.by)
            self.random.shuffle(order)
            rounds.append({by: self.once(lane, by, fill) for by in order})
            print(f"# {lane.name} {n + 1}/{self.opts.rounds}: " + ", ".join(
                f"{k} {v['total']:.3f} s, stall {v['stall']} ms"
                for k, v in sorted(rounds[-1].items())), flush=True)
        fill.unlink()
        self.show(lane, rounds)

    def once(self, lane, by, fill):
        self.n += 1
        tmp = self.tmp / f"m{self.n}"
        tmp.mkdir()
        lab = runner.Lab(self.base.install, self.base.services, tmp)
        lab._number = self.n * 100  # a server remembers names that are gone
        try:
            source = scene.volume(lab, lane.source, lane.size)
            source.create(lab.install, lane.size, fill=str(fill))
            target = scene.volume(lab, lane.target, lane.size)
            disk = Disk("d0", source)
            if by == "virsh":
                vm = lab.ends(libvirt.Domain(self.libvirt, lab.install, tmp, disk, f"m{self.n}"))
            else:
                vm = lab.vm([disk], pace=libvirt.PACE, **self.machine)
            return self.measure(lab, lane, by, vm, target)
        finally:
            lab.end()
            if lane.target == "rbd":
                target.remove()
            subprocess.run(["rm", "-rf", tmp], check=True)

    def measure(self, lab, lane, by, vm, target):
        go = self.preparation(lab, lane, by, vm, target)
        before = self.settle(vm)
        begin = time.monotonic()
        more = go() or {}
        total = time.monotonic() - begin
        stats = self.judge(lane, by, vm, before)
        if target.mark() not in json.dumps(vm.qmp.cmd("query-block")):
            raise proc.LabError(f"{lane.name} by {by}: the guest is not on {target}")
        vm.quit()  # a killed one would watch its RBD image for half a minute
        return {"total": total, "stall": stats["maxgap_ms"], **more}

    def settle(self, vm):
        """Counts from now on; returns the noise where nothing was written yet."""
        vm.wait_writes(100)
        before = vm.bad_blocks()["d0"]
        vm.resume()
        vm.wait_writes(20)
        vm.tell("reset", "counters")
        return before

    def judge(self, lane, by, vm, before):
        stats = vm.report()["d0"]
        vm.wait_writes(20)
        bad = vm.bad_blocks()["d0"]
        if bad > before or stats["errors"]:
            raise proc.LabError(f"{lane.name} by {by}: {bad} bad blocks, {before} before, {stats}")
        return stats

    def preparation(self, lab, lane, by, vm, target):
        """What is done before the clock runs; returns what it measures."""
        argv = [qpivot.program(), "move", "--qmp", vm.qmp_path, "--json",
                "--state", str(self.tmp / "state"), "--disk", f"d0={target.uri()}"]
        argv += ["--speed", str(lane.speed)] if lane.speed else []
        if by == "qpivot":
            return lambda: self.qpivot(argv)
        if by == "bare":
            plan = json.loads(proc.run(argv + ["--dry-run"]).splitlines()[0])
            return lambda: self.bare(lab, lane, vm, target, plan["commands"])
        return lambda: vm.move(target, lane.speed)

    def bare(self, lab, lane, vm, target, commands):
        begin = time.monotonic()
        if target.fmt == "qcow2":
            Path(target.path).touch()
        else:
            target.create(lab.install, lane.size)
        made = time.monotonic() - begin
        bare.move(vm.qmp_path, commands)
        return {"total": time.monotonic() - begin - made, "made": made}

    def qpivot(self, argv):
        if self.opts.trace:
            argv = argv + ["--trace", self.opts.trace]
        events = [json.loads(x) for x in proc.run(argv, seconds=600).splitlines()]
        return {"engine": events[-1]["seconds"], "steps": steps(events)}

    def show(self, lane, rounds):
        t = Table(f"{lane.name}: {lane.title}", "", "total", "longest write stall")
        for other in self.opts.by:
            if other != "qpivot" and "qpivot" in self.opts.by:
                t.row(f"qpivot / {other}", spread(ratios(rounds, "qpivot", other, "total")),
                      spread(ratios(rounds, "qpivot", other, "stall")))
        for by in self.opts.by:
            t.row(f"({by}, s and ms)", spread([r[by]["total"] for r in rounds], "{:.3f}"),
                  spread([r[by]["stall"] for r in rounds], "{:.0f}"))
        if {"qpivot", "bare"} <= set(self.opts.by):
            t.row("(qpivot - bare, ms)", spread(over(rounds), "{:.0f}"), "")
            t.row("(same, neither making the target, ms)", spread(
                [x - sum(r["qpivot"]["steps"].get(s, 0) for s in MAKING)
                 for x, r in zip(over(rounds), rounds)], "{:.0f}"), "")
            t.row("(same, both making it, ms)", spread(
                [x - r["bare"]["made"] * 1e3 for x, r in zip(over(rounds), rounds)],
                "{:.0f}"), "")
        t.show()
        if self.opts.steps and "qpivot" in self.opts.by:
            show_steps(rounds)


def over(rounds):
    return [(r["qpivot"]["total"] - r["bare"]["total"]) * 1e3 for r in rounds]


def steps(events):
    """{step: ms} by the program's own events."""
    found, begun = {}, {}
    for e in events:
        if e["event"] == "step":
            at = time_of(e)
            if e["state"] == "start":
                begun[e["step"]] = at
            else:
                found[e["step"]] = (at - begun[e["step"]]) * 1e3
    if begun:
        first = min(begun.values())
        found["(before the first step)"] = (first - time_of(events[0])) * 1e3
    return found


def time_of(event):
    base, part = event["time"].rstrip("Z").split(".")
    return time.mktime(time.strptime(base, "%Y-%m-%dT%H:%M:%S")) + float("0." + part)


def show_steps(rounds):
    t = Table("qpivot's steps, ms", "", "median (min .. max)")
    for name in rounds[0]["qpivot"]["steps"]:
        t.row(name, spread([r["qpivot"]["steps"].get(name) for r in rounds], "{:.1f}"))
    t.row("program's start and end", spread(
        [(r["qpivot"]["total"] - r["qpivot"]["engine"]) * 1e3 for r in rounds], "{:.1f}"))
    t.show()
