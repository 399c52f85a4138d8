"""QEMU: where it is installed, and one running machine with the guest in it."""

import json
import os
import subprocess
import threading
import time
from pathlib import Path

from . import check, guest
from .proc import SCALE, LabError, Proc, Timeout, run
from .qmp import Qmp


class Install:
    """One QEMU installation; prefix None is the system's own.

    Block drivers are modules that only fit the build they came with, so an
    installation in a prefix must never see the system's (QEMU_MODULE_DIR).
    """

    def __init__(self, prefix=None):
        self.prefix = Path(prefix).resolve() if prefix else None
        self.bin = self.prefix / "usr/bin" if self.prefix else Path("/usr/bin")
        self.env = {}
        self.firmware = []
        if self.prefix:
            self.env["QEMU_MODULE_DIR"] = str(self.prefix / "usr/lib/x86_64-linux-gnu/qemu")
            for d in (self.prefix / "usr/share/qemu", self.prefix / "usr/share/seabios",
                      "/usr/share/seabios", "/usr/share/qemu"):
                self.firmware += ["-L", str(d)]

    def path(self, name):
        return str(self.bin / name)

    def version(self):
        return run([self.path("qemu-img"), "--version"]).split()[2]

    def run(self, name, *argv, **kw):
        return run([self.path(name), *argv], env=dict(os.environ, **self.env), **kw)

    def img(self, *argv, **kw):
        return self.run("qemu-img", *argv, **kw)


class Disk:
    """A volume as a disk of a machine.

    legacy: given by -drive (drive id 'drv-<id>'), else by -blockdev (format
    node 'n-<id>' over protocol node 'f-<id>').  above: filter nodes from the
    format node upwards, each a dict with its own node-name; 'file' is filled
    in.  node: more options of the format node.
    """

    def __init__(self, id, volume, legacy=False, above=(), node=None, props=None,
                 read_only=False, drive_opts=""):
        self.id, self.volume, self.legacy = id, volume, legacy
        self.above, self.node, self.props = list(above), node or {}, props or {}
        self.read_only, self.drive_opts = read_only, drive_opts

    def argv(self):
        # 0x1000 keeps serials, the guest's names, equal to the ids
        device = dict(driver="virtio-blk-pci", id=self.id, serial=self.id, **self.props)
        if self.legacy:
            device["drive"] = f"drv-{self.id}"
            opts = f"if=none,id=drv-{self.id},{self.volume.drive()}"
            opts += ",readonly=on" if self.read_only else ""
            return ["-drive", opts + self.drive_opts, "-device", json.dumps(device)]
        top = dict(self.volume.node(f"n-{self.id}", f"f-{self.id}"), **self.node)
        if self.read_only:
            top["read-only"] = True
        argv = ["-blockdev", json.dumps(top)]
        name = top["node-name"]
        for filter_node in self.above:
            argv += ["-blockdev", json.dumps(dict(filter_node, file=name))]
            name = filter_node["node-name"]
        device["drive"] = name
        return argv + ["-device", json.dumps(device)]


SAME = {"machine": "pc-q35-7.2", "memory": 96}  # if not told otherwise


class Vm:
    """A running machine.

    qmp_path is the monitor for the program under test, second_path one for a
    second engine; self.qmp is the spare one for the test's own eyes.  state:
    what the guest goes on from instead of booting, see saved.py; words: more
    of the kernel's command line.
    """

    def __init__(self, install, tmp, disks, name="vm", boot=True, argv=(),
                 machine=SAME["machine"], memory=SAME["memory"], blocks=1024, pace=5,
                 paused=False, stderr_ok=False, wait=True, prefix=(), state=None, words=""):
        self.install, self.name, self.disks = install, name, list(disks)
        self.tmp = Path(tmp)
        self.qmp_path = str(self.tmp / f"{name}.qmp")
        self.second_path = str(self.tmp / f"{name}.qmp2")
        self.spare_path = str(self.tmp / f"{name}.spare")
        self.lines, self.changed = [], threading.Condition()
        # a destination must be the same machine
        self.extra = list(argv)
        self.same = dict(machine=machine, memory=memory, blocks=blocks, pace=pace,
                         paused=paused)
        self.stats, self.regions, self.boots = {}, {}, 0
        self.boot_report = {}
        command = [install.path("qemu-system-x86_64"), *install.firmware,
                   "-name", name, "-machine", machine, "-accel", "tcg",
                   "-cpu", "max", "-smp", "1", "-m", str(memory),
                   "-nodefaults", "-no-user-config", "-display", "none",
                   "-serial", "stdio",
                   "-qmp", f"unix:{self.qmp_path},server=on,wait=off",
                   "-qmp", f"unix:{self.second_path},server=on,wait=off",
                   "-qmp", f"unix:{self.spare_path},server=on,wait=off"]
        words = (f"qpl.disks={len(self.disks)} qpl.blocks={blocks} "
                 f"qpl.pace={pace} qpl.paused={int(paused)} {words}")
        if boot:
            command += ["-kernel", str(guest.kernel()), "-initrd", str(guest.initramfs()),
                        "-append", "console=ttyS0 quiet loglevel=3 panic=-1 "
                        "tsc=reliable no_timer_check nosoftlockup mitigations=off cryptomgr.notests "
                        + words]
        else:
            command += ["-S"]
        if state:
            command += ["-incoming", f"exec:cat {state}"]
        command += list(argv)
        for d in self.disks:
            command += d.argv()
        self.command = command = [*prefix, *self.rewrite(command)]
        self.log = self.tmp / f"{name}.log"
        self.proc = Proc(command, self.log, env=install.env,
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.console = open(self.tmp / f"{name}.console", "ab")
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        self.qmp = self.proc.wait_for("the monitor", self._connect)
        if state:
            self._go_on(words)
        if boot and wait:
            self.wait_ready()

    def rewrite(self, command):
        """Another way to start the same machine."""
        return command

    def _connect(self):
        try:  # the socket is there a moment before it listens
            return Qmp(self.spare_path, seconds=20)
        except (FileNotFoundError, ConnectionRefusedError, ConnectionResetError):
            return None  # or it ends, and then its own words tell why

    def _go_on(self, words):
        """The state was saved stopped, and its console has not heard of anything."""
        self.proc.wait_for("the saved guest", lambda: self.status() != "inmigrate", 60)
        self.qmp.cmd("cont")
        self.qmp.events.clear()
        self.tell(words)

    # console

    def _read(self):
        for raw in self.proc.popen.stdout:
            self.console.write(raw)
            self.console.flush()
            line = raw.decode(errors="replace").strip("\r\n")
            at = line.find("WL ")
            if at < 0:
                continue
            line = line[at:]
            with self.changed:
                word = line.split(" ", 2)[1]
                if word in ("stat", "report", "paused", "dumped"):
                    self.stats.update(check.parse_stat(line))
                elif word == "disk":
                    name = line.split()[2]
                    f = dict(w.split("=", 1) for w in line.split()[3:])
                    self.regions[name] = check.Region(name, int(f["size"]), int(f["blocks"]))
                    self.boot_report[name] = {k: v if k == "dev" else int(v)
                                              for k, v in f.items()}
                elif word == "ready":
                    self.boots += 1
                if word != "stat":
                    self.lines.append(line)
                self.changed.notify_all()

    def wait_line(self, word, seconds=30, since=0):
        """Waits for a console line 'WL <word>...' and returns it."""
        def found():
            return next((x for x in self.lines[since:] if x.split(" ", 2)[1] == word), None)
        return self.wait_console(f"console line '{word}'", found, seconds)

    def wait_console(self, what, condition, seconds=30):
        deadline = time.monotonic() + seconds * SCALE
        while True:
            with self.changed:
                value = condition()
                if value:
                    return value
                if time.monotonic() > deadline:
                    raise Timeout(f"{self.name}: waited {seconds} s for {what}; "
                                  f"last lines {self.lines[-3:]}")
                self.changed.wait(0.25)
            if not self.proc.alive():
                raise LabError(f"{self.name}: QEMU ended with "
                               f"{self.proc.popen.returncode}: {self.proc.tail()}")

    def wait_ready(self, boots=1, seconds=60):
        self.wait_console("the guest", lambda: self.boots >= boots, seconds)

    def tell(self, command, answer=None, seconds=30):
        """Writes a command to the guest's console and waits for its answer."""
        since = len(self.lines)
        self.proc.popen.stdin.write(command.encode() + b"\n")
        self.proc.popen.stdin.flush()
        return self.wait_line(answer, seconds, since) if answer else None

    # the writer

    def report(self):
        """Fresh figures of every disk, as check.parse_stat() gives them."""
        return check.parse_stat(self.tell("report", "report"))

    def wait_writes(self, more=50, seconds=30):
        """Waits until each disk acknowledged so many writes more."""
        rw = [n for n, r in self.boot_report.items() if not r["ro"]]
        begin = self.report()
        self.wait_console(f"{more} writes more", lambda: all(
            n in self.stats and self.stats[n]["acked"] >= begin[n]["acked"] + more
            for n in rw), seconds)

    def pause(self, seconds=30):
        return check.parse_stat(self.tell("pause", "paused", seconds))

    def resume(self):
        self.tell("resume", "resumed")

    def tables(self):
        """Pauses the writer and returns {disk: table of acknowledged writes}."""
        stats = self.pause()
        for attempt in range(3):
            # The guest's kernel writes into the middle of lines, if it likes.
            try:
                return self._dump(stats)
            except ValueError as e:
                print(f"{self.name}: {e}")
        raise LabError(f"{self.name}: no dump comes through whole")

    def _dump(self, stats):
        since = len(self.lines)
        self.tell("dump", "dumped", 60)
        tables = {}
        for line in self.lines[since:]:
            if line.startswith("WL table "):
                check.parse_table(line, tables)
        for name, stat in stats.items():
            if name not in tables:
                raise ValueError(f"the dump lacks {name}")
            if self.regions[name].digest(tables[name]) != stat["digest"]:
                raise ValueError(f"{name}: the table does not match its digest")
        return tables

    def bad_blocks(self):
        """The guest reads every block again: {disk: number of bad ones}."""
        line = self.tell("verify", "verified", 120)
        return {w.split("=")[0]: int(w.split("=")[1]) for w in line.split()[2:]}

    # the machine

    def status(self):
        return self.qmp.cmd("query-status")["status"]

    def attached(self):
        """{device id: root node} by the device's own property, which is the
        node's name for -blockdev and the drive's id for -drive."""
        return {d.id: self.qmp.cmd("qom-get", path=f"/machine/peripheral/{d.id}",
                                   property="drive") for d in self.disks}

    def nodes(self):
        return {n["node-name"]: n for n in
                self.qmp.cmd("query-named-block-nodes", flat=True)}

    def block(self, id):
        """The query-block entry of a device."""
        for b in self.qmp.cmd("query-block"):
            if f"/peripheral/{id}/" in b.get("qdev", "") + "/" or b.get("qdev") == id:
                return b
        raise LabError(f"{self.name}: no block device {id}")

    def reachable(self):
        """Names of the nodes that some block backend leads to."""
        graph = self.qmp.cmd("x-debug-query-block-graph")
        names = {n["id"]: n for n in graph["nodes"]}
        found = {i for i, n in names.items() if n["type"] == "block-backend"}
        while True:
            more = {e["child"] for e in graph["edges"] if e["parent"] in found} - found
            if not more:
                return {names[i]["name"] for i in found}
            found |= more

    def jobs(self):
        return self.qmp.cmd("query-jobs")

    def state(self):
        """All that an operation which went back must have left as it was."""
        return {
            "attached": self.attached(),
            "nodes": sorted(n for n in self.nodes() if not n.startswith("#")),
            "objects": sorted(o["name"] for o in self.qmp.cmd("qom-list", path="/objects")),
            "jobs": [j["id"] for j in self.jobs()],
            "exports": [e["id"] for e in self.qmp.cmd("query-block-exports")],
            "status": self.status(),
        }

    def running(self):
        return self.proc.alive()

    def quit(self, seconds=20):
        """An orderly end; QEMU flushes and closes its images."""
        if self.proc.alive():
            try:
                self.qmp.cmd("quit")
            except LabError:
                pass
            self.proc.wait(seconds)
        self.stop()

    def kill(self):
        """Power loss of the host, as far as QEMU is concerned."""
        self.proc.kill()
        self.stop()

    def stop(self):
        self.qmp_close()
        self.proc.kill()
        self.reader.join(5)
        self.console.close()
        for p in (self.qmp_path, self.second_path, self.spare_path):
            if os.path.exists(p):
                os.unlink(p)

    def qmp_close(self):
        if getattr(self, "qmp", None):
            self.qmp.close()

