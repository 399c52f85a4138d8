"""A guest with disks whose content is known, and the judgement after a move.

Every disk starts with a pattern outside the writer's region, so that what
the guest never touched is checked too.
"""

import hashlib
import json
import os

from . import check
from .qemu import Disk
from .storage import BlockVolume, FileVolume, MiB, NbdVolume, NfsVolume, RbdVolume

SIZE = 64 * MiB
KINDS = ("raw", "qcow2", "nfs", "rbd", "block", "nbd")
# (offset, length) of the pattern in a disk of SIZE
PATTERN = ((8 * MiB, 3 * MiB), (30 * MiB, MiB), (50 * MiB, 65536))


def pattern_bytes(name, offset, length):
    return hashlib.shake_128(f"{name} {offset}".encode()).digest(length)


def pattern_file(lab, name, size=SIZE):
    """A sparse raw file that holds the pattern of the disk 'name'."""
    path = lab.path(f"pattern-{name}.raw")
    with open(path, "wb") as f:
        for offset, length in PATTERN:
            f.seek(offset)
            f.write(pattern_bytes(name, offset, length))
        f.truncate(size)
    return path


def pattern_holds(raw, name):
    for offset, length in PATTERN:
        raw.seek(offset)
        if raw.read(length) != pattern_bytes(name, offset, length):
            return False
    return True


def volume(lab, kind, size=SIZE):
    """A volume of a kind under a name that nothing has yet.  Files, NFS files
    and RBD images do not exist; block and NBD volumes do, and are blank."""
    name = lab.name("v")
    if kind == "block":
        return BlockVolume(lab.loop(size))
    if kind == "nbd":
        return NbdVolume(lab.nbd(size))
    if kind in ("rbd", "rbd-keyed"):
        return RbdVolume(lab.ceph, name, keyed=kind == "rbd-keyed")
    if kind.startswith("nfs"):
        v = NfsVolume(lab.nfs, name, "qcow2" if kind == "nfs-qcow2" else "raw")
    elif kind in ("raw", "qcow2"):
        v = FileVolume(lab.path(f"{name}.{kind}"), kind)
    else:
        raise ValueError(kind)
    lab.storage.callback(v.remove)
    return v


def source(lab, kind, name, size=SIZE):
    """A volume with the pattern of the disk 'name' on it."""
    fill = pattern_file(lab, name, size)
    v = volume(lab, kind, size).create(lab.install, size, fill=fill)
    os.unlink(fill)
    return v


class Scene:
    """kinds: {disk id: kind or volume} or a list of them (then d0, d1, ...)."""

    def __init__(self, lab, kinds, legacy=False, size=SIZE, disk=None, disks=None, **vm):
        self.lab = lab
        if not isinstance(kinds, dict):
            kinds = {f"d{i}": k for i, k in enumerate(kinds)}
        self.now = {d: source(lab, k, d, size) if isinstance(k, str) else k
                    for d, k in kinds.items()}
        self.disks = disks or [Disk(d, v, legacy=legacy, **(disk or {}))
                               for d, v in self.now.items()]
        self.vm = lab.vm(self.disks, **vm)
        if vm.get("boot", True) and not vm.get("paused"):
            self.vm.wait_writes(20)

    def name_of(self, disk):
        """What qpivot calls the disk: the device's id names it in any guest."""
        return disk

    def move(self, targets, *options, existing=False, **kw):
        """Moves disks ({id: volume}); on success they are where it says."""
        more = ["existing=yes"] if existing else []
        r = self.lab.qpivot.move(self.vm, {d: v.uri(*more) for d, v in targets.items()},
                                 *options, **kw)
        if r.rc == 0 and "--dry-run" not in options:
            self.now.update(targets)
        return r

    def start_move(self, targets, *options, **kw):
        return self.lab.qpivot.start_move(
            self.vm, {d: v.uri() for d, v in targets.items()}, *options, **kw)

    def assert_attached(self, *disks):
        """QEMU itself says that the device uses the volume, and only that."""
        for d in disks or self.now:
            seen = json.dumps(self.vm.block(d)["inserted"])
            assert self.now[d].mark() in seen, f"{d} is not on {self.now[d].mark()}: {seen}"

    def judge(self, errors=0):
        """Stops the writer, lets the guest and the independent reader look at
        every volume, and goes on."""
        tables = self.vm.tables()
        stats = dict(self.vm.stats)
        bad = self.vm.bad_blocks()
        assert not any(bad.values()), f"the guest reads bad blocks: {bad}"
        self.vm.qmp.cmd("stop")
        self._judge(tables, stats, share=True)
        self.vm.qmp.cmd("cont")
        for d, s in stats.items():
            assert s["errors"] == errors, f"{d}: the guest saw {s['errors']} I/O errors"
        self.vm.resume()
        return stats

    def judge_dead(self):
        """After the end of QEMU: everything that it had told the guest."""
        stats = dict(self.vm.stats)
        self._judge({d: self.vm.regions[d].table(s["acked"]) for d, s in stats.items()},
                    {d: dict(s, seq=s["seq"] + (1 << 20)) for d, s in stats.items()})

    def _judge(self, tables, stats, **kw):
        for d, v in self.now.items():
            path = v.read(self.lab.install, self.lab.tmp, **kw)
            with open(path, "rb") as raw:
                verdict = check.check(raw, self.vm.regions[d], tables[d], stats[d]["seq"])
                kept = pattern_holds(raw, d)
            os.unlink(path)
            print(f"{d} on {v}: {verdict}, pattern {'kept' if kept else 'LOST'}")
            assert verdict and kept, f"{d} on {v}: {verdict}, pattern kept: {kept}"

    def assert_tidy(self):
        """No job, claim or node of ours that no device uses."""
        s = self.vm.state()
        assert s["jobs"] == [] and s["exports"] == [], s
        assert "qpv-claim" not in s["objects"], s
        for d in self.vm.disks:
            if not d.legacy and self.now[d.id] is not d.volume:
                assert f"n-{d.id}" not in s["nodes"], s["nodes"]
                assert f"f-{d.id}" not in s["nodes"], s["nodes"]
        loose = set(n for n in s["nodes"] if n.startswith("qpv-")) - self.vm.reachable()
        assert not loose, f"nodes left: {loose}"
