"""Two machines: a guest at the source, and a destination that waits for it.

The guest's console comes from whichever QEMU runs it; what it says on the
destination is judged by what it had said at the source.
"""

import json

from .proc import LabError
from .qemu import Disk, Vm
from .scene import SIZE, Scene, volume
from .storage import Placeholder


class Destination(Vm):
    """The source's machine again, waiting: -incoming defer -S.

    volumes: {disk id: volume} where the destination has others; without: ids
    of disks that it lacks; starts: it would run the guest by itself; install:
    another QEMU than the source's."""

    def __init__(self, source, volumes, name, without=(), starts=False, install=None,
                 **other):
        disks = [Disk(d.id, volumes.get(d.id, d.volume), legacy=d.legacy, above=d.above,
                      node=d.node, props=d.props, read_only=d.read_only)
                 for d in source.disks if d.id not in without]
        argv = source.extra + ["-incoming", "defer"] + ([] if starts else ["-S"])
        super().__init__(install or source.install, source.tmp, disks, name=name, argv=argv,
                         wait=False, **{**source.same, **other})
        self.extra = source.extra
        self.regions, self.boot_report = source.regions, source.boot_report
        self.stats = source.stats


class Derived(Destination):
    """A destination started by what 'qpivot destination-argv' prints."""

    def __init__(self, source, volumes, name, lab, filled=(), **other):
        self.lab, self.source, self.volumes, self.filled = lab, source, volumes, filled
        super().__init__(source, volumes, name, **other)

    def rewrite(self, command):
        src = self.source
        argv = ["destination-argv", "--json", "--qmp", src.qmp_path]
        for d, v in self.volumes.items():
            argv += ["--disk", f"{d}=" + v.uri(*["existing=yes"] * (d in self.filled))]
        r = self.lab.qpivot.run(*argv)
        assert r.rc == 0, r
        said = json.loads(r.text)
        self.qmp_path, self.notes = said["monitor"], said["notes"]
        self.second_path = src.second_path + ".incoming"
        self.spare_path = src.spare_path + ".incoming"
        return said["argv"]


# Before 9.0 QEMU could lose writes of a guest that TCG runs: where its dirty
# bitmap is read a word at a time, TCG was not told ("physmem: Fix migration
# dirty bitmap coherency with TCG memory access").  A size that is no multiple
# of 64 pages has it read a page at a time, which was right all along.
MEMORY = "98312k"


class Pair(Scene):
    """A Scene, and a destination for it.

    to: {disk id: kind} for the disks that the destination has anew, made: for
    those that qpivot makes; the others it sees as the source does."""

    def __init__(self, lab, kinds, to=None, made=None, **kw):
        super().__init__(lab, kinds, memory=MEMORY, **kw)
        self.src = self.vm
        self.dst = None
        self.to, self.made = to or {}, made or {}
        self.there = {}
        self.wait()

    def wait(self, **kw):
        """Starts a destination, another after each failure."""
        if self.dst:
            self.dst.stop()
        self.there = {}
        for d, kind in self.to.items():
            self.there[d] = volume(self.lab, kind).create(self.lab.install, SIZE)
        for d, kind in self.made.items():
            self.there[d] = volume(self.lab, kind)
        self.dst = self.lab.ends(self.destination(**kw))
        return self.dst

    def destination(self, **kw):
        seen = {d: Placeholder(SIZE) if d in self.made else v
                for d, v in self.there.items()}
        return Destination(self.src, seen, self.lab.name("dst"), **kw)

    def turn_round(self, to=None, made=None):
        """The destination becomes the source of the next one."""
        self.src, self.to, self.made = self.vm, to or {}, made or {}
        self.dst = None
        self.wait()

    def derive(self, to=None, made=None):
        """The destination anew, started by what qpivot prints."""
        self.to, self.made = to or {}, made or {}
        self.destination = lambda **kw: Derived(self.src, self.there, self.lab.name("dst"),
                                                self.lab, self.to, **kw)
        return self.wait()

    def argv(self, *options):
        disks = [w for d in self.made for w in ("--disk", f"{d}={self.there[d].uri()}")]
        return ["migrate", "--qmp", self.src.qmp_path, "--to", self.dst.qmp_path, "--json",
                "--trace", self.lab.path(f"migrate{self.lab.qpivot.n}.trace"), *disks, *options]

    def start(self, *options, **kw):
        return self.lab.qpivot.start(*self.argv(*options), **kw)

    def migrate(self, *options, rc=0, seconds=120, **kw):
        r = self.start(*options, **kw).wait(seconds)
        if r.rc != rc:
            raise AssertionError(f"wanted exit {rc}, got {r}")
        if rc == 0 and "--dry-run" not in options:
            self.arrived()
        return r

    def arrived(self):
        """The guest is the destination's: the Scene goes on with it."""
        self.vm = self.dst
        self.now.update(self.there)

    def runs_at(self):
        """Which QEMUs run the guest: never both."""
        where = []
        for name, vm in (("source", self.src), ("destination", self.dst)):
            if vm.running():
                try:
                    if vm.status() == "running":
                        where.append(name)
                except (LabError, OSError):  # it ends just now
                    pass
        return where
