"""Two machines with a DRBD 8.4 resource between them, in which QEMU and qpivot run.

A node has a shell behind a TCP port of this side, so that any test of the run
can use it; scripts run at the same time and each has a deadline.  Networks:
eth0 is DRBD's and the mirror's, its plug can be pulled; eth1 is the lab's.
"""

import random
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lab import guest
from lab.proc import SCALE, LabError, Proc, Timeout, free_port, run, wait_for
from lab.qemu import Install
from lab.qmp import Qmp
from lab.qpivot import program

HERE = Path(__file__).resolve().parent
BUILT = guest.BUILD / "drbd"
MiB = 1 << 20
SIZE = 16 * MiB  # of the DRBD device
INTERNAL = 40 * 1024  # of metadata behind it
DEVICE = "/dev/drbd/by-res/r0/0"
# Ports of a node: of the lab's own, and monitors for the program on the other node.
SHELL, MONITORS, PEERS = 7000, (7001, 7002), (7011, 7012)
STATE = "grep ' 0: cs:' /proc/drbd || echo 0: none"
HEALTHY = "cs:Connected ro:Secondary/Secondary ds:UpToDate/UpToDate"
MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "overlay", "drbd", "loop")


def ask(port, script, seconds):
    """Sends a script to a node's shell; yields what it prints as it comes.

    The node ends it at the deadline, the lab gives up a little later."""
    deadline = time.monotonic() + (seconds + 5) * SCALE
    with socket.create_connection(("127.0.0.1", port), 5 * SCALE) as s:
        s.sendall(f"{seconds * SCALE:g}\n{script}\n".encode())
        s.shutdown(socket.SHUT_WR)
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise Timeout(f"no end after {seconds} s of: {script}")
            s.settimeout(left)
            try:
                data = s.recv(65536)
            except socket.timeout:
                continue
            except OSError as e:
                raise LabError(f"{e} while it ran: {script}") from None
            if not data:
                return
            yield data


class Node:
    def __init__(self, name, peer, tmp, initramfs):
        self.name, self.address = name, f"10.0.0.{1 + 'ab'.index(name)}"
        self.tmp = Path(tmp)
        self.data, local = self.tmp / f"{name}.data", self.tmp / f"{name}.local"
        with open(self.data, "wb") as f:
            f.truncate(SIZE + INTERNAL)
        run(["/usr/sbin/mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-m", "0",
             "-d", self.tmp / "local", local, "200M"])
        self.ports = {p: free_port() for p in (SHELL, *MONITORS)}
        self.plug_path = str(self.tmp / f"{name}.qmp")
        install = Install()
        forward = "".join(f",hostfwd=tcp:127.0.0.1:{here}-:{there}"
                          for there, here in self.ports.items())
        wire = [f"{end}.{key}={value}" for end, n in (("local", name), ("remote", peer))
                for key, value in (("type", "unix"), ("path", self.tmp / f"{n}.wire"))]
        argv = [install.path("qemu-system-x86_64"), "-name", f"node-{name}", "-M", "q35",
                "-cpu", "max", "-accel", "tcg,thread=multi", "-m", "768", "-smp", "1",
                "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
                "-serial", "stdio", "-qmp", f"unix:{self.plug_path},server=on,wait=off",
                "-kernel", guest.packed(), "-initrd", initramfs, "-append",
                "console=ttyS0 quiet panic=-1 net.ifnames=0 mitigations=off "
                f"tsc=reliable no_timer_check random.trust_cpu=on node={name}",
                "-drive", f"if=virtio,format=raw,readonly=on,file.locking=off,"
                f"file={BUILT}/root.img",
                "-drive", f"if=virtio,format=raw,discard=unmap,cache=unsafe,file={self.data}",
                "-drive", f"if=virtio,format=raw,cache=unsafe,file={local}",
                "-netdev", "dgram,id=wire," + ",".join(wire),
                "-device", "virtio-net-pci,netdev=wire,romfile=,"
                f"mac=52:54:00:0d:bd:0{'ab'.index(name)}",
                "-netdev", f"user,id=lab,restrict=on{forward}",
                "-device", "virtio-net-pci,netdev=lab,romfile="]
        self.proc = Proc(argv, self.tmp / f"{name}.console")

    def wait(self):
        self.proc.wait_for(f"node {self.name}", self._answers, 90)

    def _answers(self):
        try:
            return self.run("echo ready", seconds=5) == "ready\n"
        except (LabError, OSError):  # the lab's network listens for a node that does not yet
            return False

    def run(self, script, seconds=60, ok=(0,)):
        """Runs a script of sh and returns its standard output; with ok=None
        the exit status, the output and what it said on standard error."""
        said = b"".join(ask(self.ports[SHELL], script, seconds)).decode(errors="replace")
        out, mark, end = said.rpartition("\001")
        if not mark:
            raise LabError(f"node {self.name} broke off: {script}: {said[-1000:]}")
        status, _, error = end.partition("\n")
        if ok is None:
            return int(status), out, error
        if int(status) not in ok:
            raise LabError(f"node {self.name}: {script}: exit {status}: {out[-1000:]} {error}")
        return out

    def state(self):
        """'cs:Connected ro:Secondary/Secondary ds:UpToDate/UpToDate', own one first."""
        return " ".join(self.run(STATE).split()[1:4])

    def backing(self, size):
        """What the backing device holds, read beside the node: what DRBD has
        acknowledged went past the node's own cache."""
        with open(self.data, "rb") as f:
            return f.read(size)

    def plug(self, up):
        """The plug of eth0, seen by the node like a cable's."""
        qmp = Qmp(self.plug_path)
        qmp.cmd("set_link", name="wire", up=up)
        qmp.close()

    def stop(self):
        self.proc.kill()


class Nodes:
    """The service 'drbd' of a run."""

    def __init__(self, tmp):
        self.tmp = Path(tmp)
        self.tmp.mkdir(parents=True)
        self.nodes = []

    def start(self):
        begin = time.monotonic()
        initramfs = self._initramfs()
        (self.tmp / "local").mkdir()
        self.random = random.Random(8).randbytes(SIZE)
        (self.tmp / "local/random").write_bytes(self.random)
        for name, peer in ("ab", "ba"):
            self.nodes.append(Node(name, peer, self.tmp, initramfs))
        self.a, self.b = self.nodes
        for n in self.nodes:
            n.wait()
        print(f"# the nodes answer after {time.monotonic() - begin:.1f} s", flush=True)
        self.make()
        return self

    def _initramfs(self):
        build = Path(program()).resolve().parent
        files = {"init": HERE / "init", "bin/busybox": BUILT / "busybox",
                 "node/node": HERE / "node", "node/agent": HERE / "agent",
                 "node/etc/drbd.conf": HERE / "drbd.conf",
                 "node/opt/tools/qpivot": program(),
                 "node/opt/engine/libqpivot.so.0": build / "../engine/libqpivot.so.0"}
        image = self.tmp / "initramfs"
        image.write_bytes(guest.cpio(files, guest.with_dependencies(MODULES)))
        return image

    def both(self, script, seconds=90):
        """Runs a script on both at once and returns the outputs."""
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(lambda n: n.run(script, seconds), self.nodes))

    def make(self):
        """The resource, made and connected, called equal on both without a sync."""
        self.both("drbdadm down r0 && drbdadm -- --force create-md r0 && drbdadm up r0 &&"
                  " udevadm settle")
        self.wait_state("cs:Connected", "ds:Inconsistent/Inconsistent")
        self.a.run("drbdadm new-current-uuid --clear-bitmap r0/0")
        self.wait_state("ds:UpToDate/UpToDate")

    def fresh(self):
        """Nothing of an earlier test: no process, no file, nobody Primary."""
        for n in self.nodes:
            n.plug(True)
        states = self.both(f"""
            busybox killall -q -9 qpivot qemu-system-x86_64
            while busybox pidof qpivot qemu-system-x86_64; do sleep 0.1; done
            rm -rf /tmp/* /run/vm* /local/*.*
            drbdadm secondary r0
            {STATE}""")
        if any(s.split()[1:4] != HEALTHY.split() for s in states):
            self.make()

    def wait_state(self, *words, nodes=None, seconds=90):
        """Waits until all words are in what Node.state() says."""
        for n in nodes or self.nodes:
            wait_for(f"{words} on node {n.name}",
                     lambda: set(words) <= set(n.state().split()), seconds, 0.2)

    def stop(self):
        for n in self.nodes:
            n.stop()
