"""qpivot move --strategy base: an image is copied as it is, below an overlay."""

import hashlib
import json
import os

from lab.proc import wait_for
from lab.qemu import Disk
from lab.runner import needs, timeout
from lab.scene import SIZE, Scene, pattern_holds, source, volume
from lab.storage import MiB
from test_fault import assert_back, copying
from test_refuse import refused

BASE = ("--strategy", "base")


def job(vm, command, **args):
    """Carries a job of QEMU's out, as snapshot-save is."""
    vm.qmp.cmd(command, **{"job-id": "lab-job"}, **args)

    def over():
        jobs = {j["id"]: j for j in vm.qmp.cmd("query-jobs")}
        return jobs["lab-job"]["status"] == "concluded" and jobs["lab-job"]

    done = wait_for(f"{command}", over, 60)
    vm.qmp.cmd("job-dismiss", id="lab-job")
    assert "error" not in done, done


def node_of(vm, disk):
    return vm.block(disk)["inserted"]["node-name"]


def snapshots(lab, v):
    info = json.loads(lab.install.img("info", "-U", "--output=json", v.image_name()))
    return [{k: s[k] for k in ("id", "name", "vm-state-size", "date-sec", "date-nsec",
                               "vm-clock-sec", "vm-clock-nsec")}
            for s in info.get("snapshots", [])]


def digests(lab, v):
    """What each internal snapshot holds."""
    found = {}
    for s in snapshots(lab, v):
        out = lab.path("snapshot.raw")
        lab.install.img("convert", "-U", "-l", f"snapshot.name={s['name']}", "-f", "qcow2",
                        "-O", "raw", v.image_name(), out)
        with open(out, "rb") as f:
            found[s["name"]] = hashlib.file_digest(f, "sha256").hexdigest()
        os.unlink(out)
    return found


def with_snapshots(lab, whole=True):
    """A guest that writes, with a snapshot of its disk and one of all of it."""
    scene = Scene(lab, {"d0": "qcow2"})
    scene.vm.qmp.cmd("blockdev-snapshot-internal-sync", device=node_of(scene.vm, "d0"),
                     name="disk-only")
    scene.vm.wait_writes(20)
    node = node_of(scene.vm, "d0")
    if whole:
        job(scene.vm, "snapshot-save", tag="whole", vmstate=node, devices=[node])
        scene.vm.wait_writes(20)
    return scene


def assert_carried(scene, before, held):
    assert snapshots(scene.lab, scene.now["d0"]) == before
    assert digests(scene.lab, scene.now["d0"]) == held


def assert_no_files(lab, *volumes):
    """Neither an overlay nor a record of ours is left."""
    places = {os.path.dirname(v.path) for v in volumes if hasattr(v, "path")}
    left = [n for p in places | {lab.qpivot.state} for n in os.listdir(p) if n.startswith("qpv-")]
    assert not left, left


@timeout(150)
def test_internal_snapshots_are_carried(lab):
    """Chosen by itself; afterwards the whole guest goes back to its snapshot."""
    scene = with_snapshots(lab)
    former, target = scene.now["d0"], volume(lab, "qcow2")
    before, held = snapshots(lab, former), digests(lab, former)
    assert len(before) == 2 and before[1]["vm-state-size"] > 0, before
    r = scene.move({"d0": target})
    assert r.named("plan")[0]["disks"][0]["strategy"] == "base", r
    assert r.disks["d0"]["strategy"] == "base", r
    assert [d["property"] for d in r.disks["d0"]["differences"]] == ["node"], r
    scene.assert_attached()
    scene.assert_tidy()
    assert_no_files(lab, former, target)
    assert_carried(scene, before, held)
    assert snapshots(lab, former) == before, "the source's own are gone"
    scene.vm.wait_writes(20)
    scene.judge()
    node = node_of(scene.vm, "d0")
    job(scene.vm, "snapshot-load", tag="whole", vmstate=node, devices=[node])
    assert scene.vm.status() == "running"
    scene.vm.wait_writes(20)
    assert not any(scene.vm.bad_blocks().values())


@timeout(150)
def test_raw_images_and_filters(lab):
    """Two disks in one move; one is below a throttle filter."""
    former = {"d0": source(lab, "raw", "d0"), "d1": source(lab, "qcow2", "d1")}
    throttle = {"driver": "throttle", "node-name": "t-d1", "throttle-group": "tg0"}
    vm = {"argv": ["-object", "throttle-group,id=tg0,x-iops-total=4000"]}
    scene = Scene(lab, former, disks=[Disk("d0", former["d0"]),
                                      Disk("d1", former["d1"], above=[throttle])], **vm)
    targets = {"d0": volume(lab, "raw"), "d1": volume(lab, "qcow2")}
    r = scene.move(targets, *BASE, "--delete-source")
    assert all(d["strategy"] == "base" for d in r.disks.values()), r
    scene.assert_attached()
    scene.assert_tidy()
    assert_no_files(lab, *targets.values())
    assert not any(v.exists() for v in former.values())
    scene.vm.wait_writes(20)
    scene.judge()
    scene.vm.kill()
    scene.judge_dead()


@needs("nfs", "ceph")
@timeout(150)
def test_to_other_kinds_of_storage(lab):
    scene = Scene(lab, ["raw", "raw"])
    former = dict(scene.now)
    targets = {"d0": volume(lab, "nfs"), "d1": volume(lab, "rbd")}
    scene.move(targets, *BASE)
    scene.assert_attached()
    scene.assert_tidy()
    assert_no_files(lab, *former.values())
    scene.vm.wait_writes(20)
    scene.judge()
    scene.vm.kill()
    scene.judge_dead()


@needs("nfs")
@timeout(90)
def test_no_zeroes_are_written_to_a_fresh_target(lab):
    """What is data before is data there, and next to nothing else."""
    v, target = source(lab, "raw", "d0"), volume(lab, "nfs")
    vm = lab.vm([Disk("d0", v)], boot=False)
    r = lab.qpivot.move(vm, {"d0": target.uri()}, *BASE)
    written, data = r.disks["d0"]["base"]["bytes_written"], v.allocated()
    assert 0 < written <= 1.05 * data, (written, data)
    vm.quit()
    with open(target.read(lab.install, lab.tmp), "rb") as raw:
        assert pattern_holds(raw, "d0")


@timeout(150)
def test_the_way_back_writes_the_overlay_to_the_source(lab):
    """Aborted while the base is copied, and while the overlay is mirrored."""
    scene = with_snapshots(lab)
    former = scene.now["d0"]
    before, held = snapshots(lab, former), digests(lab, former)
    state = scene.vm.state()
    for step, options in (("base-copy", ("--speed", "1M")), ("mirror-ready", ())):
        target = volume(lab, "qcow2")
        e = scene.start_move({"d0": target}, *options)
        e.wait_event("step", lambda e: (e["step"], e["state"]) == (step, "start"))
        scene.vm.wait_writes(20)
        e.interrupt()
        r = e.wait(60)
        if r.rc == 0:  # it was over by then
            scene.now["d0"] = target
            return
        assert r.rc == 1, r
        assert_back(scene, state, {"d0": target})
        assert_no_files(lab, former)
        assert_carried(scene, before, held)


@timeout(90)
def test_what_the_plan_says_to_it(lab):
    scene = with_snapshots(lab)
    raw, qcow2 = volume(lab, "raw"), volume(lab, "qcow2")
    there = volume(lab, "qcow2").create(lab.install, SIZE)
    r = refused(scene, {"d0": raw.uri()}, "'disk-only', 'whole'", "--drop-snapshots")
    for target, word, hint, options in (
            (qcow2.uri(), "does not carry them", "leave --strategy out", ("--strategy", "mirror")),
            (raw.uri(), "its format stays", "format=qcow2", BASE + ("--drop-snapshots",)),
            (there.uri("existing=yes"), "makes its target itself", "nothing has", ()),
            (qcow2.uri(f"size={2 * SIZE}"), "its size", "leave out size=", ()),
            (qcow2.uri(), "does not stay equal", "leave it out", ("--undo-window", "1m")),
            (qcow2.uri(), "compares what a mirror", "qpivot verify", ("--verify", "full")),
            (qcow2.uri(), "mirrors an overlay only", "leave it out", ("--sync", "full"))):
        refused(scene, {"d0": target}, word, hint, options=options)
    scene.vm.qmp.cmd("block-dirty-bitmap-add", node=node_of(scene.vm, "d0"), name="b0")
    refused(scene, {"d0": qcow2.uri()}, "dirty bitmaps would not see", "remove them first")
    scene.judge()


@timeout(200)
def test_killed_at_its_steps(lab):
    """The engine dies at the steps that know of the base."""
    scene = with_snapshots(lab, whole=False)
    before, held = snapshots(lab, scene.now["d0"]), digests(lab, scene.now["d0"])
    for step, state in (("overlay-format", "start"), ("freeze", "start"), ("freeze", "end"),
                        ("base-copy", "start"), ("landing-node", "end"), ("pivot", "start"),
                        ("base-commit", "start"), ("base-commit", "end"),
                        ("landing-close", "end"), ("overlay-remove", "start")):
        target, former = volume(lab, "qcow2"), scene.now["d0"]
        e = scene.start_move({"d0": target}, "--delete-source")
        e.kill_at(step, state)
        scene.vm.wait_writes(5)
        r = lab.qpivot.run("recover", "--json")
        assert r.rc == 0, f"killed at {step} {state}: {r}"
        moved = target.mark() in json.dumps(scene.vm.block("d0")["inserted"])
        scene.now["d0"] = target if moved else former
        assert not (former if moved else target).exists(), step
        scene.assert_tidy()
        assert_no_files(lab, former)
    assert_carried(scene, before, held)
    scene.judge()


@timeout(120)
def test_what_is_copied_is_not_copied_twice(lab):
    """SIGKILL half way through the base: recover goes on there."""
    scene = with_snapshots(lab)
    former, target = scene.now["d0"], volume(lab, "qcow2")
    before, held = snapshots(lab, former), digests(lab, former)
    e = scene.start_move({"d0": target}, "--speed", "8M")

    def safe():
        for name in os.listdir(lab.qpivot.state) if os.path.isdir(lab.qpivot.state) else ():
            if name.startswith("qpv-"):
                with open(os.path.join(lab.qpivot.state, name), "rb") as f:
                    return f.read()[4096:][16::24].count(1) >= 4

    wait_for("units on record", safe, 30)
    e.kill()
    r = lab.qpivot.run("recover", "--json")
    assert r.rc == 0, r
    base = r.disks["d0"]["base"]
    assert base["bytes_resumed"] > 0, base
    assert base["bytes_resumed"] + base["bytes_read"] <= former.allocated() + MiB, base
    scene.now["d0"] = target
    scene.assert_attached()
    assert_no_files(lab, former)
    assert_carried(scene, before, held)
    scene.judge()


@timeout(90)
def test_qemu_dies_on_the_overlay(lab):
    """What the guest wrote last is in the overlay: it is kept, and told of."""
    scene = with_snapshots(lab)
    former, target = scene.now["d0"], volume(lab, "qcow2")
    e = scene.start_move({"d0": target}, "--speed", "1M")
    copying(e)
    scene.vm.wait_writes(20)
    scene.vm.kill()
    r = e.wait(60)
    assert r.rc == 3, r
    assert "qemu-img commit" in json.dumps(r.last), r.last
    op = r.op
    overlay = os.path.join(os.path.dirname(former.path), f"qpv-{op}-d0-ov")
    assert lab.qpivot.run("recover", "--json").rc == 3
    assert os.path.exists(overlay)
    lab.install.img("commit", "-d", "-q", "-f", "qcow2", overlay)
    os.unlink(overlay)
    assert lab.qpivot.run("recover", "--json").rc == 0
    assert not target.exists()
    assert_no_files(lab, former)
    scene.judge_dead()
