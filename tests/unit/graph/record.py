#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Records what a real QEMU says about its block graph, as test data.

Usage: record.py QEMU QSD QEMU-IMG OUTPUT-DIRECTORY
Runs in a fresh temporary directory; every file is named by a relative path,
so that no machine's paths come into the replies.
"""
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time

QUERIES = [
    ("nodes", "query-named-block-nodes", {"flat": True}),
    ("block", "query-block", None),
    ("jobs", "query-jobs", None),
    ("block_jobs", "query-block-jobs", None),
    ("exports", "query-block-exports", None),
    ("edges", "x-debug-query-block-graph", None),
]
# What the graph does not read, and what differs from run to run.
DROP = {"backing-image", "write_threshold", "actual-size", "vm-clock-sec", "vm-clock-nsec",
        "date-sec", "date-nsec", "vm-state-size", "vm-clock",
        "refcount-bits", "cluster_alloc", "block-usage"}
LIMITS = {"iops", "bps", "bps_"}


class Qemu:
    def __init__(self, argv):
        sock = "qmp.sock"
        if os.path.exists(sock):
            os.unlink(sock)
        self.process = subprocess.Popen(argv)
        for _ in range(200):
            try:
                self.socket = socket.socket(socket.AF_UNIX)
                self.socket.connect(sock)
                break
            except OSError:
                time.sleep(0.05)
        self.file = self.socket.makefile("rw")
        self.events = []
        self.file.readline()
        self.run("qmp_capabilities")

    def ask(self, command, args=None):
        message = {"execute": command}
        if args is not None:
            message["arguments"] = args
        self.file.write(json.dumps(message) + "\n")
        self.file.flush()
        while True:
            line = self.file.readline()
            if not line:
                raise EOFError(command)
            reply = json.loads(line)
            if "event" in reply:
                self.events.append(reply)
            else:
                return reply

    def run(self, command, args=None):
        reply = self.ask(command, args)
        if "error" in reply:
            raise RuntimeError(f"{command}: {reply['error']}")
        return reply["return"]

    def job_until(self, job, status):
        for _ in range(400):
            for it in self.run("query-jobs"):
                if it["id"] == job and it["status"] == status:
                    return it
            time.sleep(0.02)
        raise RuntimeError(f"{job} never {status}")

    def record(self, output, name, groups=()):
        said = {}
        for key, command, args in QUERIES:
            reply = self.ask(command, args)
            said[key] = trim(reply["return"]) if "return" in reply else None
        if groups:
            said["throttle_groups"] = {
                g: self.run("qom-get", {"path": "/objects/" + g,
                                        "property": "limits"})
                for g in groups}
        with open(os.path.join(output, name + ".json"), "w") as out:
            out.write("{\n" + ",\n".join(
                f' "{key}": ' + rows(value) for key, value in said.items())
                + "\n}\n")

    def quit(self):
        self.ask("quit")
        self.process.wait()


def rows(value):
    compact = lambda x: json.dumps(x, separators=(",", ":"), sort_keys=True)
    if isinstance(value, list) and value:
        return "[\n  " + ",\n  ".join(compact(x) for x in value) + "]"
    if isinstance(value, dict):
        return "{" + ",\n  ".join(
            f'"{k}": ' + rows(v) for k, v in sorted(value.items())) + "}"
    return compact(value)


def trim(value):
    if isinstance(value, dict):
        return {k: trim(v) for k, v in value.items()
                if k not in DROP and not (v == 0 and k[:4] in LIMITS)}
    if isinstance(value, list):
        return [trim(v) for v in value]
    return value


SYSTEM = ["-accel", "tcg", "-S", "-display", "none", "-nodefaults",
          "-m", "64", "-qmp", "unix:qmp.sock,server=on,wait=off"]


def blockdev(driver, name, **options):
    options.update({"driver": driver, "node-name": name})
    return ["-blockdev", json.dumps(options)]


def image(name, *more, size="64M", kind="qcow2"):
    subprocess.run([IMG, "create", "-q", "-f", kind, *more, name, size],
                   check=True)


def qcow2(name, n, **more):
    return (blockdev("file", f"f{n}", filename=name)
            + blockdev("qcow2", f"q{n}", file=f"f{n}", **more))


def start(*parts):
    argv = [SYSTEM_BINARY] + SYSTEM
    for part in parts:
        argv += part
    return Qemu(argv)


VD0 = ["-device", "virtio-blk-pci,drive=q0,id=vd0"]
THROTTLE = (["-object", "throttle-group,id=tg0,x-iops-total=500"]
            + blockdev("throttle", "t0", file="q0",
                       **{"throttle-group": "tg0"}))


def add_target(q, n=1, name="b.qcow2", size="64M"):
    image(name, size=size)
    q.run("blockdev-add", {"driver": "qcow2", "node-name": f"q{n}",
                           "discard": "unmap",
                           "file": {"driver": "file", "filename": name,
                                    "node-name": f"f{n}"}})


def mirror(q, **more):
    args = {"job-id": "mj", "device": "q0", "target": "q1", "sync": "full",
            "auto-dismiss": False}
    args.update(more)
    q.run("blockdev-mirror", args)


def case_blockdev(out):
    image("a.qcow2")
    q = start(qcow2("a.qcow2", 0), VD0)
    q.record(out, "blockdev")
    q.quit()


def case_mirror(out):
    image("a.qcow2")
    q = start(qcow2("a.qcow2", 0), VD0)
    add_target(q)
    mirror(q, **{"filter-node-name": "mflt", "auto-finalize": False})
    q.job_until("mj", "ready")
    q.record(out, "mirror-ready")
    q.run("job-complete", {"id": "mj"})
    q.job_until("mj", "pending")
    q.record(out, "mirror-pending")
    q.run("job-finalize", {"id": "mj"})
    q.job_until("mj", "concluded")
    q.record(out, "mirror-concluded")
    q.run("job-dismiss", {"id": "mj"})
    q.record(out, "mirror-pivoted")
    print("file first:", q.ask("blockdev-del", {"node-name": "f0"}))
    print(q.ask("blockdev-del", {"node-name": "q0"}),
          q.ask("blockdev-del", {"node-name": "f0"}))
    print("target's inline child:", q.ask("blockdev-del", {"node-name": "f1"}))
    q.quit()


def case_implicit(out):
    image("a.qcow2")
    q = start(qcow2("a.qcow2", 0), VD0)
    add_target(q)
    mirror(q, speed=1)
    q.record(out, "mirror-implicit")
    q.quit()


def case_cancelled(out):
    image("a.qcow2")
    q = start(qcow2("a.qcow2", 0), VD0)
    add_target(q)
    mirror(q, **{"filter-node-name": "mflt"})
    q.job_until("mj", "ready")
    q.run("block-job-cancel", {"device": "mj"})
    q.job_until("mj", "concluded")
    q.record(out, "mirror-cancelled")
    q.quit()


def case_throttle(out):
    image("a.qcow2")
    q = start(qcow2("a.qcow2", 0), THROTTLE,
              ["-device", "virtio-blk-pci,drive=t0,id=vd0"])
    q.record(out, "throttle", ["tg0"])
    add_target(q)
    # "Need a root block node" for q0: the mirror takes the top one.
    mirror(q, device="t0", replaces="q0", **{"auto-finalize": False,
                                "filter-node-name": "mflt"})
    q.job_until("mj", "ready")
    q.record(out, "throttle-ready")
    q.run("job-complete", {"id": "mj"})
    q.job_until("mj", "pending")
    q.record(out, "throttle-pending")
    q.run("job-finalize", {"id": "mj"})
    q.job_until("mj", "concluded")
    q.run("job-dismiss", {"id": "mj"})
    q.record(out, "throttle-pivoted", ["tg0"])
    q.quit()


def case_drive(out):
    image("a.raw", kind="raw")
    q = start(["-drive", "file=a.raw,format=raw,id=drv0,if=none,cache=none,"
               "discard=unmap,detect-zeroes=unmap,throttling.iops-total=100,"
               "throttling.group=lg",
               "-device", "virtio-blk-pci,drive=drv0"])
    q.record(out, "drive")
    add_target(q)
    mirror(q, device="drv0")
    q.job_until("mj", "ready")
    q.record(out, "drive-ready")
    q.run("job-complete", {"id": "mj"})
    q.job_until("mj", "concluded")
    q.run("job-dismiss", {"id": "mj"})
    q.record(out, "drive-pivoted")
    q.quit()


def case_drive_mirror(out):
    image("a.qcow2")
    image("b.qcow2")
    q = start(["-drive", "file=a.qcow2,format=qcow2,id=drv0,if=none,cache=none",
               "-device", "virtio-blk-pci,drive=drv0,id=vd0"])
    q.run("drive-mirror", {"job-id": "mj", "device": "drv0", "sync": "full",
                           "target": "b.qcow2", "format": "qcow2",
                           "mode": "existing", "node-name": "qt",
                           "auto-dismiss": False})
    q.job_until("mj", "ready")
    q.run("job-complete", {"id": "mj"})
    q.job_until("mj", "concluded")
    q.run("job-dismiss", {"id": "mj"})
    q.record(out, "drive-mirror-pivoted")
    print("drive-mirror target:", q.ask("blockdev-del", {"node-name": "qt"}))
    q.quit()


def case_chain(out):
    image("base.qcow2")
    image("mid.qcow2", "-b", "base.qcow2", "-F", "qcow2")
    image("top.qcow2", "-b", "mid.qcow2", "-F", "qcow2")
    image("other.qcow2", "-b", "base.qcow2", "-F", "qcow2")
    q = start(qcow2("base.qcow2", 0, **{"read-only": True}),
              qcow2("mid.qcow2", 1, backing="q0", **{"read-only": True}),
              qcow2("top.qcow2", 2, backing="q1"),
              ["-device", "virtio-blk-pci,drive=q2,id=vd0"])
    q.record(out, "chain")
    q.run("blockdev-add", {"driver": "qcow2", "node-name": "q3",
                           "backing": "q0",
                           "file": {"driver": "file",
                                    "filename": "other.qcow2"}})
    q.record(out, "chain-shared")
    q.quit()


def case_chain_inline(out):
    q = start(["-drive", "file=top.qcow2,if=virtio"])
    q.record(out, "chain-drive")
    q.quit()


def case_buses(out):
    for n in ("s", "i", "r"):
        image(n + ".raw", kind="raw", size="1M")
    image("cd.iso", kind="raw", size="1M")
    image("fd.img", kind="raw", size="1440k")
    q = start(blockdev("file", "ns", filename="s.raw"),
              blockdev("file", "ni", filename="i.raw"),
              blockdev("file", "nr", filename="r.raw",
                       **{"read-only": True}),
              blockdev("file", "ncd", filename="cd.iso",
                       **{"read-only": True}),
              ["-device", "virtio-scsi-pci,id=scsi0",
               "-device", "scsi-hd,drive=ns,id=sd1,write-cache=off",
               "-device", "ide-hd,drive=ni,id=id0",
               "-device", "scsi-cd,id=cd0",
               "-device", "ide-cd,drive=ncd,id=cd1",
               "-device", "virtio-blk-pci,drive=nr,id=ro0",
               "-drive", "if=floppy,file=fd.img,format=raw,read-only=on",
               "-drive", "if=none,id=idle",
               ])
    q.record(out, "buses")
    q.quit()


def case_two(out):
    image("a.raw", kind="raw", size="1M")
    q = start(blockdev("file", "n0", filename="a.raw"),
              ["-device", "virtio-blk-pci,drive=n0,id=vd0,share-rw=on",
               "-device", "virtio-blk-pci,drive=n0,id=vd1,share-rw=on"])
    q.record(out, "two-devices")
    q.quit()


def case_exports(out):
    image("a.qcow2")
    q = start(qcow2("a.qcow2", 0), VD0)
    q.run("nbd-server-start", {"addr": {"type": "unix",
                                        "data": {"path": "nbd.sock"}}})
    q.run("block-export-add", {"type": "nbd", "id": "exp0", "name": "x",
                               "node-name": "q0"})
    q.record(out, "export")
    q.quit()


def case_daemon(out):
    image("a.qcow2")
    q = Qemu([DAEMON, "--chardev",
              "socket,path=qmp.sock,server=on,wait=off,id=c",
              "--monitor", "chardev=c"]
             + [x.replace("-blockdev", "--blockdev")
                for x in qcow2("a.qcow2", 0)]
             + ["--nbd-server", "addr.type=unix,addr.path=nbd.sock",
                "--export", "nbd,id=exp0,node-name=q0,writable=on"])
    q.record(out, "daemon")
    q.quit()


def case_bitmaps(out):
    image("a.qcow2")
    subprocess.run([IMG, "snapshot", "-c", "s1", "a.qcow2"], check=True)
    subprocess.run([IMG, "snapshot", "-c", "s2", "a.qcow2"], check=True)
    q = start(qcow2("a.qcow2", 0, **{"detect-zeroes": "unmap",
                                     "discard": "unmap",
                                     "cache": {"direct": True}}), VD0)
    add = lambda **a: q.run("block-dirty-bitmap-add", {"node": "q0", **a})
    add(name="keep", persistent=True)
    add(name="big", granularity=1 << 20)
    add(name="still", disabled=True)
    q.record(out, "bitmaps")
    q.quit()


def case_shim(out):
    image("a.qcow2")
    image("big.raw", kind="raw", size="80M")
    q = start(qcow2("a.qcow2", 0), VD0)
    q.run("blockdev-add", {"driver": "raw", "node-name": "r1", "size": 64 << 20,
                           "file": {"driver": "file", "node-name": "p1",
                                    "filename": "big.raw"}})
    mirror(q, target="r1")
    q.job_until("mj", "ready")
    q.run("job-complete", {"id": "mj"})
    q.job_until("mj", "concluded")
    q.run("job-dismiss", {"id": "mj"})
    q.record(out, "shim-pivoted")
    q.quit()


def case_deep(out):
    """Filters above and below the format node."""
    image("a.qcow2")
    q = start(["-object", "throttle-group,id=tg0,x-bps-total=1000000",
               "-object", "throttle-group,id=tg1,x-iops-read=7"],
              blockdev("file", "f0", filename="a.qcow2"),
              blockdev("throttle", "tf", file="f0",
                       **{"throttle-group": "tg1"}),
              blockdev("qcow2", "q0", file="tf"),
              blockdev("throttle", "t0", file="q0",
                       **{"throttle-group": "tg0"}),
              blockdev("copy-on-read", "c0", file="t0"),
              ["-device", "virtio-blk-pci,drive=c0,id=vd0"])
    q.record(out, "filters", ["tg0", "tg1"])
    q.quit()


def main():
    global SYSTEM_BINARY, DAEMON, IMG
    SYSTEM_BINARY, DAEMON, IMG, out = sys.argv[1:5]
    out = os.path.abspath(out)
    work = tempfile.mkdtemp()
    os.chdir(work)
    try:
        for name, case in list(globals().items()):
            if name.startswith("case_"):
                print("#", name)
                case(out)
    finally:
        os.chdir("/")
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
