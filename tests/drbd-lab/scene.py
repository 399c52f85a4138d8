"""A machine on node a, the program beside it, and the judgement of the replica.

The machine runs no guest: QEMU in QEMU without KVM takes long to start one.
The test writes through the device's own block backend (QEMU's qemu-io), as a
guest's writes go, and knows each one that QEMU has acknowledged.
"""

import hashlib
import random
import shlex
import sys

from lab import qpivot
from lab.proc import LabError, wait_for
from lab.qemu import Disk, Vm
from lab.qmp import Qmp
from lab.storage import FileVolume
from nodes import DEVICE, HERE, MONITORS, PEERS, SHELL, SIZE

RANDOM = "/local/random"


class DrbdVolume(FileVolume):
    """The resource's device, as any block device or by its own backend."""

    kind = "block"
    creatable = False

    def __init__(self, scheme="block"):
        super().__init__(DEVICE, direct=True)
        self.scheme = scheme

    def protocol(self):
        return {"driver": "host_device", "filename": self.path, "cache": {"direct": True}}

    def uri(self, *more):
        return ("drbd:r0/0" if self.scheme == "drbd" else f"block:{DEVICE}") + self.query(*more)

    def mark(self):
        return "drbd"


class Machine(Vm):
    """A QEMU on a node; Vm's way to look at one."""

    def __init__(self, node, disks, n=0, argv=()):
        self.node, self.disks, self.name = node, list(disks), f"vm{n}"
        self.qmp_path = f"/run/{self.name}.qmp"
        command = ["qemu-system-x86_64", "-name", self.name, "-machine", "pc", "-accel", "tcg",
                   "-m", "16", "-nodefaults", "-no-user-config", "-display", "none",
                   "-qmp", f"unix:{self.qmp_path},server=on,wait=off",
                   "-qmp", f"tcp:0.0.0.0:{MONITORS[n]},server=on,wait=off",
                   "-qmp", f"tcp:0.0.0.0:{PEERS[n]},server=on,wait=off", *argv]
        self.remote_path = f"tcp:{node.address}:{PEERS[n]}"
        for d in self.disks:
            command += d.argv()
        node.run(shlex.join([*command, "-daemonize", "-pidfile", f"/run/{self.name}.pid"]))
        self.qmp = wait_for("the monitor", lambda: self._connected(n))

    def _connected(self, n):
        try:
            return Qmp(("127.0.0.1", self.node.ports[MONITORS[n]]), seconds=20)
        except (LabError, OSError):
            return None

    def write(self, disk, pattern, offset, length):
        """A write of the machine's, flushed.  QEMU tells an error of it nobody;
        it is found by what the volume holds."""
        self.qmp.cmd("human-monitor-command", command_line="qemu-io -d "
                     f"/machine/peripheral/{disk}/virtio-backend "
                     f'"write -f -P {pattern} {offset} {length}"')

    def running(self):
        return self.node.run(f"kill -0 $(cat /run/{self.name}.pid)", ok=None)[0] == 0

    def quit(self):
        try:
            self.qmp.cmd("quit")
        except LabError:
            pass
        wait_for("QEMU to end", lambda: not self.running())
        self.stop()

    def stop(self):
        self.qmp.close()


class Engine(qpivot.Engine):
    """The program on a node.  'doom': (step, state) at which it is killed."""

    def __init__(self, node, n, argv, log, seconds, doom=None):
        self.node, self.pid = node, f"/tmp/engine{n}.pid"
        watch = ""
        if doom:
            watch = f'case $line in *\'"step":"{doom[0]}"\'*) case $line in ' \
                    f'*\'"state":"{doom[1]}"\'*) kill -9 $pid ;; esac ;; esac'
        script = f"""
            export QPIVOT_STATE=/tmp/state
            mkfifo /tmp/said{n}
            /opt/tools/qpivot {shlex.join(argv)} >/tmp/said{n} &
            pid=$!
            echo $pid >{self.pid}
            while IFS= read -r line; do
                printf '%s\\n' "$line"
                {watch}
            done </tmp/said{n}
            wait $pid"""
        super().__init__([sys.executable, HERE / "remote.py", node.ports[SHELL], seconds],
                         log, {"SCRIPT": script})

    def _signal(self, number):
        self.node.run(f"kill -{number} $(cat {self.pid})")

    def interrupt(self):
        self._signal("INT")

    def stall(self):
        self._signal("STOP")

    def go_on(self):
        self._signal("CONT")

    def kill(self):
        self._signal("KILL")
        self.wait(20)


class Qpivot(qpivot.Qpivot):
    """The program on a node, with that node's paths."""

    def __init__(self, lab, node):
        super().__init__(lab)
        self.node, self.state = node, "/tmp/state"

    def start(self, *argv, seconds=120, doom=None):
        self.n += 1
        log = self.lab.path(f"qpivot-{self.node.name}{self.n}.log")
        return self.lab.ends(Engine(self.node, self.n, argv, log, seconds, doom))

    def move_argv(self, vm, disks, *options):
        return ["move", "--qmp", vm.qmp_path, "--json", *options,
                *(w for d, v in disks.items() for w in ("--disk", f"{d}={v}"))]

    def start_move(self, vm, disks, *options, **kw):
        return self.start(*self.move_argv(vm, disks, *options), **kw)


class Scene:
    """Clean nodes, and a machine on node a with a disk of random data."""

    def __init__(self, lab, size=SIZE, source=None, argv=("-S",)):
        self.lab, self.nodes = lab, lab.services["drbd"]
        self.a, self.b = self.nodes.a, self.nodes.b
        self.nodes.fresh()
        self.qpivot = Qpivot(lab, self.a)
        self.holds = bytearray(self.nodes.random[:size])
        self.number = 0
        self.source = self.now = source or FileVolume("/local/source.raw", direct=True)
        if source:
            self.a.run("drbdadm primary r0")
        self.a.run(f"head -c {size} {RANDOM} >{self.source.path} && sync")
        self.vm = self.machine(self.a, self.source, argv=argv)

    def start_move(self, target, *options, **kw):
        return self.qpivot.start_move(self.vm, {"d0": target.uri()}, *options, **kw)

    def write_amid(self, engine, event, unplug=False):
        """A write after that event of an operation that waits for it; before
        it the peer is lost, if that is wanted."""
        engine.wait_event(event, lambda e: e.get("bytes", 1) > 0)
        engine.stall()
        assert self.vm.status() in ("running", "prelaunch"), "the pivot was before"
        if unplug:
            self.a.plug(False)
            self.nodes.wait_state("ds:UpToDate/DUnknown", nodes=[self.a])
        self.write()
        engine.go_on()

    def machine(self, node, volume, n=0, argv=("-S",)):
        return self.lab.ends(Machine(node, [Disk("d0", volume)], n, argv))

    def write(self, vm=None):
        """A write somewhere, remembered once it is acknowledged."""
        self.number += 1
        offset = random.Random(self.number).randrange(len(self.holds) // 4096) * 4096
        pattern = self.number % 255 + 1
        (vm or self.vm).write("d0", pattern, offset, 4096)
        self.holds[offset:offset + 4096] = bytes([pattern]) * 4096

    def move(self, target, *options, **kw):
        r = self.qpivot.move(self.vm, {"d0": target.uri()}, *options, **kw)
        self.now = target if r.rc == 0 else self.now
        return r

    def assert_equal(self, *nodes):
        """The backing devices hold every acknowledged write."""
        for n in nodes or (self.a, self.b):
            data = n.backing(len(self.holds))
            bad = [i for i in range(0, len(data), 4096)
                   if data[i:i + 4096] != self.holds[i:i + 4096]]
            assert len(data) == len(self.holds) and not bad, \
                f"node {n.name}: {len(bad)} blocks differ, first at {bad[:3]}"

    def assert_file(self, volume):
        """The same of a file on node a, which is as long as what it came from."""
        sha = self.a.run(f"head -c {len(self.holds)} {volume.path} | sha256sum").split()[0]
        assert sha == hashlib.sha256(self.holds).hexdigest(), f"{volume.path} differs"

    def is_on(self, volume):
        return volume.path in str(self.vm.block("d0")["inserted"])

    def assert_attached(self, volume):
        assert self.is_on(volume), self.vm.block("d0")["inserted"]
