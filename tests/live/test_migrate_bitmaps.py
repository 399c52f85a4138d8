"""Dirty bitmaps go to another QEMU with their disks, fit for the next backup."""

import json
import os
import signal

from lab import scene
from lab.pair import Pair
from lab.proc import wait_for
from lab.runner import timeout
from lab.scene import SIZE
from lab.scene import source as scene_source

SLOW = ("--bandwidth", "4M")
LESS = 100  # ms between two writes of a disk


def bitmaps(vm, disk):
    """{name: what QEMU tells of it} of a disk's active layer."""
    inserted = vm.block(disk)["inserted"]
    return {b["name"]: b for b in inserted.get("dirty-bitmaps", []) if "name" in b}


def lasting(vm, disk):
    """The same without what changes by itself."""
    return {n: {k: v for k, v in b.items() if k != "count"}
            for n, b in bitmaps(vm, disk).items()}


def node_of(vm, disk):
    return vm.block(disk)["inserted"]["node-name"]


def add(vm, disk, name, **options):
    vm.qmp.cmd("block-dirty-bitmap-add", node=node_of(vm, disk), name=name, **options)


def backup(vm, disk, path, sync, with_bitmap=None, **options):
    """A job into the raw file 'path'; a bitmap made at its very beginning."""
    vm.qmp.cmd("blockdev-add", **{"driver": "raw", "node-name": "bk", "discard": "unmap",
                                  "file": {"driver": "file", "filename": path}})
    job = {"type": "blockdev-backup", "data": dict(
        {"job-id": "bk", "device": node_of(vm, disk), "target": "bk", "sync": sync,
         "auto-dismiss": False}, **options)}
    actions = [job]
    if with_bitmap:
        actions.insert(0, {"type": "block-dirty-bitmap-add", "data": dict(
            {"node": node_of(vm, disk)}, **with_bitmap)})
    vm.qmp.cmd("transaction", actions=actions)
    done = wait_for("the backup", lambda: [
        j for j in vm.jobs() if j["id"] == "bk" and j["status"] == "concluded"], 60)
    assert "error" not in done[0], done
    vm.qmp.cmd("job-dismiss", id="bk")
    vm.qmp.cmd("blockdev-del", **{"node-name": "bk"})


class Backup:
    """A full backup of a disk, with a bitmap of what is written since."""

    def __init__(self, pair, disk, **bitmap):
        self.pair, self.disk = pair, disk
        self.bitmap = dict({"name": "b0"}, **bitmap)
        self.path = pair.lab.path(f"backup-{disk}.raw")
        with open(self.path, "wb") as f:
            f.truncate(SIZE)
        backup(pair.src, disk, self.path, "full", with_bitmap=self.bitmap)

    def is_equal(self):
        """To the disk as it is now; the guest must stand still."""
        install = self.pair.lab.install
        out = self.pair.now[self.disk].read(install, self.pair.lab.tmp, share=True)
        try:
            with open(out, "rb") as a, open(self.path, "rb") as b:
                while True:
                    x, y = a.read(1 << 20), b.read(1 << 20)
                    if x != y:
                        return False
                    if not x:
                        return True
        finally:
            os.unlink(out)

    def assert_increment_restores(self, vm):
        """The bitmap's blocks make the full backup equal to the disk."""
        vm.qmp.cmd("stop")
        assert not self.is_equal(), "the guest has written nothing since"
        backup(vm, self.disk, self.path, "bitmap", bitmap=self.bitmap["name"],
               **{"bitmap-mode": "on-success"})
        assert self.is_equal(), f"{self.disk}: the increment lacks something"
        vm.qmp.cmd("cont")


def stored(pair, volume):
    """{name: flags} of the bitmaps in an image that nobody has open."""
    info = json.loads(pair.lab.install.img("info", "--output=json", volume.path))
    data = info["format-specific"]["data"]
    return {b["name"]: b["flags"] for b in data.get("bitmaps", [])}


def settings(vm):
    """What of the stream's settings touches bitmaps."""
    caps = {c["capability"]: c["state"] for c in vm.qmp.cmd("query-migrate-capabilities")}
    mapping = vm.qmp.cmd("query-migrate-parameters").get("block-bitmap-mapping", [])
    return caps["dirty-bitmaps"], [(e["node-name"], e["alias"]) for e in mapping]


def assert_settings_are_back(vm, on=False):
    """A mapping cannot be taken away again; one that says nothing new can be."""
    is_on, mapping = settings(vm)
    assert is_on == on and all(node == alias for node, alias in mapping), (is_on, mapping)


def lost(result):
    """What the engine warns of."""
    return [w for w in result.named("warning") if "bitmap" in w["message"]]


def go_over(pair, *options, on=False):
    """Migrates under the guest's writes; the bitmaps are as they were."""
    before = {d: lasting(pair.src, d) for d in pair.now}
    pair.vm.wait_writes(20)
    r = pair.migrate(*options)
    assert pair.runs_at() == ["destination"], pair.runs_at()
    pair.src.proc.wait(10)
    assert not lost(r), r
    after = {d: lasting(pair.vm, d) for d in pair.now}
    assert after == before, (before, after)
    told = {d: x.get("bitmaps", []) for d, x in r.disks.items()}
    assert told == {d: list(b) for d, b in before.items()}, told
    assert_settings_are_back(pair.vm, on)
    pair.vm.wait_writes(20)
    return r


def assert_stored_at_the_end(pair, disk, names):
    pair.vm.quit()
    flags = stored(pair, pair.now[disk])
    assert set(flags) == set(names), flags
    assert not any("in-use" in f for f in flags.values()), flags


@timeout(120)
def test_copied_disk(lab):
    """Persistent and transient, recording and not, one of 32 KiB."""
    pair = Pair(lab, ["qcow2"], to={"d0": "qcow2"})
    kept = Backup(pair, "d0", persistent=True)
    add(pair.src, "d0", "t0", granularity=32768)
    add(pair.src, "d0", "off")
    pair.vm.wait_writes(20)
    pair.src.qmp.cmd("block-dirty-bitmap-disable", node="n-d0", name="off")
    count = bitmaps(pair.src, "d0")["off"]["count"]
    sha = pair.src.qmp.cmd("x-debug-block-dirty-bitmap-sha256", node="n-d0", name="off")
    r = go_over(pair)
    assert r.disks["d0"]["how"] == "nbd", r.disks
    assert bitmaps(pair.vm, "d0")["off"]["count"] == count > 0
    assert pair.vm.qmp.cmd("x-debug-block-dirty-bitmap-sha256", node=node_of(pair.vm, "d0"),
                           name="off") == sha
    kept.assert_increment_restores(pair.vm)
    pair.judge()
    assert_stored_at_the_end(pair, "d0", ["b0"])


@timeout(120)
def test_shared_image(lab):
    """The persistent one goes with the image, the other with the stream."""
    pair = Pair(lab, ["qcow2"])
    kept = Backup(pair, "d0", persistent=True)
    add(pair.src, "d0", "t0")
    r = go_over(pair)
    assert r.disks["d0"]["how"] == "share", r.disks
    mapping = [e for e in r.named("plan")[0]["commands"]
               if "block-bitmap-mapping" in e.get("arguments", {})]
    assert len(mapping) == 2 and "b0" not in json.dumps(mapping), mapping
    kept.assert_increment_restores(pair.vm)
    pair.judge()
    assert_stored_at_the_end(pair, "d0", ["b0"])


@timeout(120)
def test_shared_image_by_itself(lab):
    """Nothing for the stream, which would carry it: its owner said so once."""
    pair = Pair(lab, ["qcow2"])
    kept = Backup(pair, "d0", persistent=True)
    for vm in (pair.src, pair.dst):
        vm.qmp.cmd("migrate-set-capabilities",
                   capabilities=[{"capability": "dirty-bitmaps", "state": True}])
    r = go_over(pair, on=True)
    assert not [e for e in r.named("step") if e["step"] == "bitmaps"]
    assert {"capability": "dirty-bitmaps", "state": False} in [
        c for e in r.named("plan")[0]["commands"]
        for c in e.get("arguments", {}).get("capabilities", [])]
    kept.assert_increment_restores(pair.vm)
    assert_stored_at_the_end(pair, "d0", ["b0"])


@timeout(150)
def test_mixed_disks_there_and_back(lab):
    pair = Pair(lab, ["qcow2", "raw", "qcow2"], to={"d0": "qcow2", "d1": "raw"})
    kept = [Backup(pair, "d0", persistent=True), Backup(pair, "d1"),
            Backup(pair, "d2", persistent=True)]
    go_over(pair)
    pair.turn_round({"d0": "qcow2", "d2": "qcow2"})
    go_over(pair)
    for it in kept:
        it.assert_increment_restores(pair.vm)
    pair.judge()


@timeout(120)
def test_drives_of_the_old_kind(lab):
    """Their nodes have names of QEMU's own, which differ on both sides."""
    pair = Pair(lab, ["raw", "qcow2"], to={"d1": "qcow2"}, legacy=True)
    kept = [Backup(pair, "d0"), Backup(pair, "d1", persistent=True)]
    go_over(pair)
    for it in kept:
        it.assert_increment_restores(pair.vm)


@timeout(120)
def test_paused(lab):
    pair = Pair(lab, ["qcow2", "qcow2"], to={"d0": "qcow2"})
    add(pair.src, "d0", "b0", persistent=True)
    add(pair.src, "d1", "b1", persistent=True)
    before = {d: lasting(pair.src, d) for d in pair.now}
    pair.src.qmp.cmd("stop")
    r = pair.migrate()
    assert not lost(r) and pair.dst.status() == "paused", r
    pair.dst.qmp.cmd("cont")
    assert {d: lasting(pair.vm, d) for d in pair.now} == before


@timeout(150)
def test_the_way_back_keeps_them(lab):
    """A stream that came to nothing: they are stored and whole all the same."""
    pair = Pair(lab, ["qcow2", "qcow2"], to={"d0": "qcow2"}, pace=LESS)
    kept = [Backup(pair, d, persistent=True) for d in ("d0", "d1")]
    add(pair.src, "d0", "off", persistent=True, disabled=True)
    add(pair.src, "d1", "t0")
    before = {d: lasting(pair.src, d) for d in pair.now}
    e = pair.start(*SLOW)
    e.wait_event("progress", lambda x: x.get("disk") == "memory", 60)
    e.interrupt()
    r = e.wait(60)
    assert r.rc == 1 and pair.runs_at() == ["source"], r
    assert {d: lasting(pair.src, d) for d in pair.now} == before
    assert not lost(r), r
    assert_settings_are_back(pair.src)
    pair.vm.wait_writes(20)
    for it in kept:
        it.assert_increment_restores(pair.src)
    pair.judge()
    assert_stored_at_the_end(pair, "d0", ["b0", "off"])
    assert set(stored(pair, pair.now["d1"])) == {"b0"}


@timeout(150)
def test_a_destination_that_dies_in_the_switchover(lab):
    """At the gate, and with the image perhaps stored already."""
    pair = Pair(lab, ["qcow2", "qcow2"], to={"d0": "qcow2"})
    for d in pair.now:
        add(pair.src, d, "b0", persistent=True)
    before = {d: lasting(pair.src, d) for d in pair.now}
    for step, state in (("mirror-end", "end"), ("switchover", "start")):
        e = pair.start()
        e.wait_event("step", lambda x, s=step, t=state: (x["step"], x["state"]) == (s, t), 60)
        pair.dst.proc.send(signal.SIGKILL)
        r = e.wait(90)
        print(step, state, "->", r.rc, pair.runs_at())
        if r.rc == 3:  # the guest was the destination's already, and died there
            return
        assert r.rc == 1 and pair.runs_at() == ["source"], r
        assert {d: lasting(pair.src, d) for d in pair.now} == before
        pair.wait()
    pair.dst.stop()
    for d in pair.now:
        pair.src.proc.alive() and pair.src.quit()
        assert set(stored(pair, pair.now[d])) == {"b0"}


@timeout(90)
def test_the_engine_is_killed_in_the_stream(lab):
    pair = Pair(lab, ["qcow2"], to={"d0": "qcow2"}, pace=LESS)
    kept = Backup(pair, "d0", persistent=True)
    add(pair.src, "d0", "b1", persistent=True)  # a backup would have b0 stored again
    e = pair.start(*SLOW)
    e.wait_event("progress", lambda x: x.get("disk") == "memory", 60)
    e.kill()
    r = lab.qpivot.run("recover", "--json")
    assert r.rc == 0 and pair.runs_at() == ["source"], r
    assert_settings_are_back(pair.src)
    pair.vm.wait_writes(20)
    kept.assert_increment_restores(pair.src)
    assert_stored_at_the_end(pair, "d0", ["b0", "b1"])


@timeout(120)
def test_what_cannot_go_is_refused(lab):
    """All of it at once; without them it goes."""
    pair = Pair(lab, ["qcow2", "raw"], to={"d0": "raw", "d1": "qcow2"})
    add(pair.src, "d0", "stays", persistent=True)
    add(pair.src, "d1", "x" * 300)
    add(pair.src, "d1", "both")
    pair.dst.qmp.cmd("block-dirty-bitmap-add", node="n-d1", name="both")
    before = pair.src.state(), lasting(pair.src, "d0"), lasting(pair.src, "d1")
    r = pair.migrate(rc=2)
    text = json.dumps(r.last["problems"])
    print(text)
    for word in ("'stays' is persistent", "more than 255 bytes",
                 "'both' is at the destination already", "--drop-bitmaps"):
        assert word in text, (word, text)
    assert (pair.src.state(), lasting(pair.src, "d0"), lasting(pair.src, "d1")) == before
    r = pair.migrate("--drop-bitmaps")
    assert "'stays' is left behind" in json.dumps(r.named("plan")[0]["notes"]), r
    assert set(bitmaps(pair.vm, "d1")) == {"both"}
    pair.judge()


def spoiled(lab, kind, name, size=SIZE):
    """A volume whose bitmap is as QEMU leaves it when it is killed."""
    v = scene_source(lab, kind, name, size)
    lab.install.img("bitmap", "--add", v.path, "b0")
    lab.install.run("qemu-io", "-c", "sigraise 9", v.path, ok=None)
    return v


@timeout(120)
def test_inconsistent_ones(lab):
    """Of a copied disk nothing could go; those of an image stay what they are."""
    scene.source = spoiled
    try:
        pair = Pair(lab, ["qcow2", "qcow2"], to={"d0": "qcow2"})
    finally:
        scene.source = scene_source
    add(pair.src, "d0", "t0")
    before = pair.src.state(), lasting(pair.src, "d0")
    assert before[1]["b0"]["inconsistent"], before
    r = pair.migrate(rc=2)
    text = json.dumps(r.last["problems"])
    for word in ("'b0' is inconsistent", "'t0' cannot go while 'b0' is inconsistent"):
        assert word in text, (word, text)
    assert (pair.src.state(), lasting(pair.src, "d0")) == before
    r = pair.migrate("--drop-bitmaps")
    assert "d1: dirty bitmap 'b0' is inconsistent, and stays so" in \
        r.named("plan")[0]["notes"], r.named("plan")
    assert lasting(pair.vm, "d1")["b0"]["inconsistent"] and not bitmaps(pair.vm, "d0")
    pair.judge()


@timeout(90)
def test_one_that_is_in_use_is_refused(lab):
    pair = Pair(lab, ["qcow2"], to={"d0": "qcow2"})
    add(pair.src, "d0", "b0", disabled=True)
    q = pair.src.qmp
    q.cmd("nbd-server-start", addr={"type": "unix", "data": {"path": lab.path("nbd")}})
    q.cmd("block-export-add", **{"type": "nbd", "id": "x", "node-name": "n-d0",
                                 "bitmaps": ["b0"]})
    r = pair.migrate(rc=2)
    assert "'b0' is in use" in json.dumps(r.last["problems"]), r.last
    q.cmd("nbd-server-stop")
    go_over(pair)


@timeout(90)
def test_a_destination_that_drops_them_is_noticed(lab):
    """Its log alone would tell, and the guest would go without."""
    pair = Pair(lab, ["qcow2"], to={"d0": "qcow2"}, pace=LESS)
    add(pair.src, "d0", "b0", persistent=True)
    before = pair.src.state(), lasting(pair.src, "d0")
    e = pair.start(*SLOW)
    e.wait_event("step", lambda x: (x["step"], x["state"]) == ("mirror", "start"), 60)
    pair.dst.qmp.cmd("migrate-set-parameters", **{"block-bitmap-mapping": []})
    r = e.wait(90)
    assert r.rc == 1 and "'b0' does not get there" in r.error, r
    assert (pair.src.state(), lasting(pair.src, "d0")) == before
    pair.judge()
    assert_stored_at_the_end(pair, "d0", ["b0"])
