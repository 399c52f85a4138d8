"""Moves back and forth for long: what tools/soak and its short live test run.

The engine is killed at random moments and another one recovers; nothing that
the guest was told is written may be lost, and nothing may pile up: neither in
QEMU nor in an engine that lives through many moves.
"""

import json
import os
import random
import statistics
import time

from lab import qpivot
from lab.proc import Proc, wait_for
from lab.scene import Scene, volume

ENGINE = os.path.join(os.path.dirname(os.path.dirname(qpivot.PROGRAM)), "tests/live/soak-engine")
# What a sanitizer keeps of freed memory is no growth.
SANITIZER = dict(qpivot.SANITIZER, ASAN_OPTIONS=qpivot.SANITIZER["ASAN_OPTIONS"]
                 + ":quarantine_size_mb=1")
JUDGE_EVERY = 25
# Of an engine's memory, from a quarter of its moves to the end.  Its journal grows
# by each, and so does SQLite's cache, to 2 MiB for each of its two connections.
GROWTH_KB = 5 * 1024


def counts(vm):
    """All that could pile up in QEMU, job filters and nameless nodes too."""
    s = vm.state()
    return {"nodes": len(vm.nodes()), "jobs": len(s["jobs"]), "objects": len(s["objects"]),
            "exports": len(s["exports"])}


class Soak:
    def __init__(self, lab, seed):
        self.lab, self.random = lab, random.Random(seed)
        self.scene = Scene(lab, ["raw"])
        self.first = None
        self.n = {"moves": 0, "done": 0, "killed": 0, "kills": 0, "undone": 0, "judged": 0}
        self.seconds = []

    def where(self, target):
        """Whether QEMU itself says that the device uses the target."""
        return target.mark() in json.dumps(self.scene.vm.block("d0")["inserted"])

    def kill(self, engine):
        """At a random moment, or at a random step; False: it was over before."""
        if self.random.random() < 0.5:
            delay = self.random.uniform(0, 1.5 * max(self.seconds[-20:] or [1]))
            end = time.monotonic() + delay
            while time.monotonic() < end and engine.proc.alive():
                time.sleep(0.005)
        else:
            steps = self.random.randrange(1, 40)
            wait_for("a step", lambda: not engine.proc.alive() or sum(
                e.get("event") == "step" for e in engine.events) >= steps, 60)
        if engine.proc.alive():
            engine.kill()
        return engine.proc.popen.returncode == -9

    def recover(self):
        """Until it is over; an engine that recovers may be killed as well."""
        undo = ["--undo"] * (self.random.random() < 0.3)
        while True:
            e = self.lab.qpivot.start("recover", "--json", *undo)
            if self.random.random() < 0.25 and self.kill(e):
                self.n["kills"] += 1
                continue
            r = e.wait(120)
            assert r.rc == 0, r
            return

    def move(self):
        kind = self.random.choice(("raw", "qcow2"))
        target, source = volume(self.lab, kind), self.scene.now["d0"]
        slow = self.random.choice(((), ("--speed", "40M"), ("--copy-mode", "write-blocking")))
        begin = time.monotonic()
        e = self.scene.start_move({"d0": target}, "--delete-source", *slow)
        self.n["moves"] += 1
        if self.random.random() < 0.5:
            if self.kill(e):
                self.n["killed"] += 1
                self.n["kills"] += 1
            self.recover()
        else:
            r = e.wait(120)
            assert r.rc == 0, r
            self.seconds.append(time.monotonic() - begin)
        if self.where(target):
            self.scene.now["d0"] = target
            self.n["done"] += 1
        else:
            self.n["undone"] += 1
            assert self.where(source), self.scene.vm.block("d0")
        left = source if self.where(target) else target
        assert not left.exists(), f"{left} is left"
        now = counts(self.scene.vm)
        if self.first is None and self.where(target):
            self.first = now
        assert self.first in (None, now), f"{self.first} before, {now} now"
        self.scene.vm.wait_writes(3)

    def judge(self):
        self.scene.judge()
        self.n["judged"] += 1

    def embedded(self, moves):
        """One process, many moves: its memory and descriptors."""
        a, b = volume(self.lab, "raw"), volume(self.lab, "qcow2")
        log = self.lab.path("soak-engine.out")
        with open(log, "wb") as out:
            p = self.lab.ends(Proc(
                [ENGINE, self.scene.vm.qmp_path, "d0", self.lab.qpivot.state, str(moves),
                 a.uri(), b.uri()], self.lab.path("soak-engine.log"), stdout=out,
                env=SANITIZER))
            p.wait(60 + 20 * moves)
        assert p.popen.returncode == 0, p.tail()
        with open(log) as f:
            told = [json.loads(line) for line in f]
        assert len(told) == moves, told[-1:]
        self.scene.now["d0"] = (b, a)[moves % 2]
        return told


def growth(told, key):
    """From a quarter of the way on, medians of an eighth at both ends."""
    rest = told[len(told) // 4:]
    n = max(1, len(rest) // 6)
    return (statistics.median(t[key] for t in rest[-n:])
            - statistics.median(t[key] for t in rest[:n]))


def soak(lab, moves, embedded, seed, minutes=None):
    end = time.monotonic() + 60 * minutes if minutes else None
    print(f"seed {seed}")
    s = Soak(lab, seed)
    begin = time.monotonic()
    for i in range(moves):
        s.move()
        if (i + 1) % JUDGE_EVERY == 0:
            s.judge()
            print(f"# {s.n}, {counts(s.scene.vm)}, {time.monotonic() - begin:.0f} s", flush=True)
        if end and time.monotonic() > end:
            break
    s.judge()
    before = counts(s.scene.vm)
    told = s.embedded(embedded)
    assert counts(s.scene.vm) == before, (before, counts(s.scene.vm))
    s.judge()
    s.scene.assert_attached()
    s.scene.assert_tidy()
    print(f"# {s.n['moves']} moves in {time.monotonic() - begin:.0f} s: {s.n['done']} reached the "
          f"target, {s.n['undone']} went back; {s.n['killed']} killed, {s.n['kills']} kills in all; "
          f"judged {s.n['judged']} times, nothing lost")
    print(f"# QEMU, first and last: {s.first}, {counts(s.scene.vm)}")
    print(f"# one engine, {embedded} moves: RSS {told[0]['rss_kb']} KiB at first, "
          f"{told[-1]['rss_kb']} at last, grown by {growth(told, 'rss_kb'):.0f} since a quarter; "
          f"heap {told[0]['heap']} and {told[-1]['heap']} bytes beside SQLite's "
          f"{told[0]['sqlite']} and {told[-1]['sqlite']}; "
          f"descriptors {told[0]['fds']} and {told[-1]['fds']}")
    # A sanitizer keeps what was freed (and tells no heap): leaks are its own to find.
    assert not any(t["heap"] for t in told) or growth(told, "rss_kb") < GROWTH_KB, \
        [t["rss_kb"] for t in told]
    assert growth(told, "fds") <= 0, [t["fds"] for t in told]
    return s
