"""Linked clones: an image on a base stays on it, or becomes one image."""

import json
import os
import shutil

from lab.qemu import Disk
from lab.runner import timeout
from lab.scene import PATTERN, SIZE, Scene, source, volume
from lab.storage import FileVolume, MiB
from test_move import Emitted
from test_refuse import refused
from test_undo import assert_back, opened


def clone(lab, base, relative=False):
    """A new image that stands on the volume."""
    v = volume(lab, "qcow2")
    name = os.path.basename(base.path) if relative else base.path
    lab.install.img("create", "-q", "-f", "qcow2", "-b", name, "-F", base.fmt, v.path)
    return v


def header(lab, v):
    return json.loads(lab.install.img("info", "-U", "--output=json", v.path))


def assert_on(lab, v, base):
    info = header(lab, v)
    assert info["backing-filename"] == base.path, info
    assert info["backing-filename-format"] == base.fmt, info
    for offset, _ in PATTERN:  # nobody has written there since
        extents = json.loads(lab.install.img("map", "-U", "--output=json", v.path))
        there = [e for e in extents if e["start"] <= offset < e["start"] + e["length"]]
        assert there and there[0]["depth"] > 0, (offset, there)


def elsewhere(lab):
    """A place from where a relative name does not find the base."""
    os.makedirs(lab.path("elsewhere"), exist_ok=True)
    v = FileVolume(lab.path(f"elsewhere/{lab.name('v')}.qcow2"), "qcow2")
    lab.storage.callback(v.remove)
    return v


@timeout(150)
def test_a_clone_stays_on_its_base(lab):
    """-blockdev and -drive, raw and qcow2 bases, a relative name, three layers
    of which the lower two stay, and a disk without any base, all in one move."""
    raw, qcow2, deep = (source(lab, k, d) for k, d in (("raw", "d0"), ("qcow2", "d1"),
                                                       ("raw", "d2")))
    middle = clone(lab, deep)
    lab.install.img("bench", "-w", "-c", "1", "-s", str(MiB), "-o", str(60 * MiB), "-q",
                    "-f", "qcow2", middle.path)
    bases = {"d0": raw, "d1": qcow2, "d2": middle}
    for legacy in (False, True):
        scene = Scene(lab, {**{d: clone(lab, b, relative=d == "d1") for d, b in bases.items()},
                            "d3": "raw"}, legacy=legacy)
        before = dict(scene.now)
        digests = {d: b.read(lab.install, lab.tmp, share=True) for d, b in bases.items()}
        targets = {d: elsewhere(lab) for d in scene.now}
        config = lab.path("config.json")
        r = scene.move(targets, "--sync", "top", "--delete-source", "--emit-config", config)
        reasons = {d["disk"]: (d["sync"], d["reason"]) for d in r.named("plan")[0]["disks"]}
        assert all("stays on its base" in reasons[d][1] for d in bases), reasons
        assert "base" not in reasons["d3"][1], reasons
        scene.assert_attached()
        scene.assert_tidy()
        for d, base in bases.items():
            assert_on(lab, targets[d], base)
        assert not any(v.exists() for v in before.values())
        scene.vm.wait_writes(20)
        scene.judge()
        scene.move({d: elsewhere(lab) for d in targets}, "--sync", "top", "--emit-config", config)
        for d, base in bases.items():
            assert_on(lab, scene.now[d], base)
        scene.vm.wait_writes(20)
        scene.vm.quit()
        scene.judge_dead()
        with open(config) as f:
            emitted = json.load(f)
        cold = lab.vm([Emitted(lab, d, emitted) for d in targets], paused=True,
                      power_on=True)
        assert all(r["bad"] == 0 and r["found"] > 0 for r in cold.boot_report.values())
        cold.quit()
        for d, base in bases.items():
            again = base.read(lab.install, lab.tmp)
            with open(digests[d], "rb") as a, open(again, "rb") as b:
                assert a.read() == b.read(), f"the base of {d} has changed"


@timeout(120)
def test_clones_of_one_base_in_one_guest(lab):
    """The base is one node below two disks: each of them moves alone."""
    base = source(lab, "qcow2", "d0")
    disks = {d: clone(lab, base) for d in ("d0", "d1")}
    vm = lab.vm([Disk(d, v, node={"backing": "base"}) for d, v in disks.items()],
                argv=["-blockdev", json.dumps(dict(base.node("base"), **{"read-only": True}))])
    vm.wait_writes(20)
    first, second = elsewhere(lab), elsewhere(lab)
    r = lab.qpivot.move(vm, {"d0": first.uri()}, "--undo-window", "1s", rc=2)
    assert "stands on the same base" in r.error, r.error
    lab.qpivot.move(vm, {"d0": first.uri()}, "--sync", "top", "--undo-window", "1s")
    lab.qpivot.move(vm, {"d1": second.uri()}, "--sync", "full")
    assert_on(lab, first, base)
    assert "backing-filename" not in header(lab, second)
    assert "base" in vm.nodes()
    vm.wait_writes(20)
    assert not any(vm.bad_blocks().values())


@timeout(120)
def test_a_clone_goes_back_within_the_window(lab):
    base = source(lab, "raw", "d0")
    scene = Scene(lab, {"d0": clone(lab, base)})
    before, target = scene.vm.state(), elsewhere(lab)
    e = opened(scene, {"d0": target}, "10m", "--sync", "top")
    assert_on(lab, target, base)
    scene.vm.wait_writes(50)
    undo = lab.qpivot.run("undo", e.events[0]["op"], "--json")
    assert undo.rc == 0, undo
    assert e.wait(30).rc == 1
    assert_on(lab, scene.now["d0"], base)
    assert_back(scene, before, {"d0": target})


@timeout(90)
def test_a_chain_becomes_one_image(lab):
    base = source(lab, "raw", "d0")
    scene = Scene(lab, {"d0": clone(lab, clone(lab, base))})
    for kind in ("qcow2", "raw"):
        target = volume(lab, kind)
        r = scene.move({"d0": target})
        assert "--sync top" in json.dumps(r.named("plan")[0]["notes"]) or kind == "raw", r
        if kind == "qcow2":
            assert "backing-filename" not in header(lab, target)
        base.remove()
        scene.vm.wait_writes(20)
        scene.judge()


@timeout(90)
def test_what_cannot_stand_on_a_base(lab):
    base = source(lab, "raw", "d0")
    scene = Scene(lab, {"d0": clone(lab, base)})
    there = volume(lab, "qcow2").create(lab.install, SIZE)
    fresh = elsewhere(lab)
    for target, word, options in (
            (volume(lab, "raw").uri(), "raw data cannot stand", ()),
            (there.uri("existing=yes"), "would hide its base", ()),
            (fresh.uri(f"size={2 * SIZE}"), "as large as its source", ()),
            (fresh.uri(), "the base's node", ("--via", "drive-mirror"))):
        refused(scene, {"d0": target}, word, "--sync full", options=("--sync", "top") + options)
    scene.judge()


@timeout(90)
def test_a_base_that_no_name_tells(lab):
    """A part of a file; an image on another base than its header names."""
    raw, other = source(lab, "raw", "d0"), source(lab, "raw", "d0")
    part = clone(lab, raw)
    within = dict(raw.node("b0"), offset=MiB, size=SIZE - MiB)
    middle = clone(lab, raw)
    over = clone(lab, middle)
    aside = dict(middle.node("b1"), backing=other.node("b2"))
    vm = lab.vm([Disk("d0", part, node={"backing": dict(within, **{"read-only": True})}),
                 Disk("d1", over, node={"backing": dict(aside, **{"read-only": True})})])
    vm.wait_writes(10)
    for d in ("d0", "d1"):
        r = lab.qpivot.move(vm, {d: elsewhere(lab).uri()}, "--sync", "top", rc=2)
        assert "in a way that no name tells" in r.error, r.error
    target = elsewhere(lab)
    lab.qpivot.move(vm, {"d0": target.uri()}, "--sync", "full")
    vm.wait_writes(10)
    assert not any(vm.bad_blocks().values())


@timeout(200)
def test_killed_while_a_clone_moves(lab):
    """The engine dies at the steps that know of the base."""
    base = source(lab, "raw", "d0")
    scene = Scene(lab, {"d0": clone(lab, base)})
    for step in ("target-format", "target-node", "mirror", "mirror-ready", "pivot",
                 "source-detach"):
        target, before = elsewhere(lab), scene.now["d0"]
        e = scene.start_move({"d0": target}, "--sync", "top", "--delete-source")
        e.kill_at(step, "start")
        r = lab.qpivot.run("recover", "--json")
        assert r.rc == 0, f"killed at {step}: {r}"
        moved = target.mark() in json.dumps(scene.vm.block("d0")["inserted"])
        scene.now["d0"] = target if moved else before
        assert not (before if moved else target).exists(), step
        scene.assert_tidy()
        assert_on(lab, scene.now["d0"], base)
        scene.judge()

    # and without a journal: adopted, still on its base
    target = elsewhere(lab)
    e = scene.start_move({"d0": target}, "--sync", "top")
    e.kill_at("mirror-ready", "end")
    shutil.rmtree(lab.qpivot.state)
    r = lab.qpivot.run("recover", "--qmp", scene.vm.qmp_path, "--from-qemu", "--json")
    assert r.rc == 0 and r.last["event"] == "done", r
    scene.now["d0"] = target
    scene.assert_attached()
    scene.assert_tidy()
    assert_on(lab, target, base)
    scene.judge()
