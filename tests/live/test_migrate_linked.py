"""Linked clones that go to another host: on their base, where that is proved."""

import json
import os
import shutil

from lab.pair import Pair
from lab.runner import timeout
from lab.scene import SIZE, source, volume
from lab.storage import MiB
from test_linked import assert_on, clone, header
from test_migrate import assert_gone_over, assert_not_made, assert_stayed, kill_at_each


class Clones(Pair):
    """over: {disk id: base} for the disks that the destination has as empty
    images on that base."""

    def __init__(self, lab, kinds, over=None, **kw):
        self.over = over or {}
        super().__init__(lab, kinds, **kw)

    def wait(self, **kw):
        self.overlays = {d: overlay(self.lab, b) for d, b in self.over.items()}
        return super().wait(**kw)

    def destination(self, **kw):
        self.there.update(self.overlays)
        return super().destination(**kw)

    def turn_round(self, over=None, **kw):
        self.over = over or {}
        super().turn_round(**kw)


def overlay(lab, base):
    """An empty image of the disk's size, which its base may not have."""
    v = volume(lab, "qcow2")
    lab.install.img("create", "-q", "-f", "qcow2", "-b", base.path, "-F", base.fmt, v.path,
                    str(SIZE))
    return v


def copy_of(lab, base, differs=None):
    """Another file of the same content, or with a byte that is not."""
    v = volume(lab, base.fmt)
    shutil.copyfile(base.path, v.path)
    if differs is not None:
        with open(v.path, "r+b") as f:
            f.seek(differs)
            byte = f.read(1)[0]
            f.seek(differs)
            f.write(bytes([byte ^ 1]))
    return v


def syncs(result):
    return {d: (x.get("sync"), x.get("sync_reason", "")) for d, x in result.disks.items()}


def assert_whole(lab, v):
    """Nothing of it comes from a base."""
    extents = json.loads(lab.install.img("map", "-U", "--output=json", v.path))
    assert all(e["depth"] == 0 for e in extents), extents


@timeout(150)
def test_clones_stay_on_their_base(lab):
    """Onto images that are there and such that the destination makes; raw and
    qcow2 bases, the same file for both and a copy of it; there and back."""
    raw, qcow2 = source(lab, "raw", "d0"), source(lab, "qcow2", "d1")
    third = source(lab, "raw", "d2")
    theirs = {"d0": raw, "d2": copy_of(lab, third)}
    pair = Clones(lab, {"d0": clone(lab, raw), "d1": clone(lab, qcow2), "d2": clone(lab, third)},
                  over=theirs, made={"d1": "qcow2"})
    r = pair.migrate()
    said = syncs(r)
    assert all(s == "top" for s, _ in said.values()), said
    assert "same file" in said["d0"][1] and "same file" in said["d1"][1], said
    assert "same content" in said["d2"][1], said
    assert_gone_over(pair, r)
    for d, base in {"d0": raw, "d1": qcow2, "d2": theirs["d2"]}.items():
        assert_on(lab, pair.now[d], base)
    pair.turn_round(over={"d1": copy_of(lab, qcow2), "d2": third}, made={"d0": "qcow2"})
    r = pair.migrate("--sync", "top")
    assert all(s == "top" for s, _ in syncs(r).values()), syncs(r)
    assert_gone_over(pair, r)
    for d, base in {"d0": raw, "d1": pair.over["d1"], "d2": third}.items():
        assert_on(lab, pair.now[d], base)


@timeout(150)
def test_a_base_that_differs(lab):
    """In one byte, or in its size: all is copied, and hides it; beside a disk
    that stays linked, and one without a base."""
    bases = {d: source(lab, "raw", d) for d in ("d0", "d1", "d3")}
    other = copy_of(lab, bases["d0"], differs=MiB * 50 + 4097)
    shorter = copy_of(lab, bases["d1"])
    os.truncate(shorter.path, os.path.getsize(shorter.path) // 2)
    kinds = {d: clone(lab, b) for d, b in bases.items()}
    pair = Clones(lab, {**kinds, "d2": "raw"}, to={"d2": "qcow2"},
                  over={"d0": other, "d1": shorter, "d3": bases["d3"]})
    before = pair.src.state()
    r = pair.migrate("--sync", "top", rc=2)
    assert "another size" in json.dumps(r.last["problems"]), r.last
    pair.over["d1"] = bases["d1"]
    pair.wait()
    r = pair.migrate("--sync", "top", rc=1)
    assert "the base at the destination differs" in r.error, r.error
    assert_stayed(pair, before)
    pair.over["d1"] = shorter
    pair.wait()
    r = pair.migrate()
    said = syncs(r)
    assert {d: s for d, (s, _) in said.items()} == {
        "d0": "full", "d1": None, "d2": None, "d3": "top"}, said
    assert "differs" in said["d0"][1] and str(50 * MiB + 4096) in said["d0"][1], said
    assert_gone_over(pair, r)
    assert_whole(lab, pair.now["d0"])
    assert_whole(lab, pair.now["d1"])
    assert_on(lab, pair.now["d3"], bases["d3"])


@timeout(120)
def test_an_image_that_is_not_empty(lab):
    """What it holds would hide the base: it is overwritten, or refused."""
    base = source(lab, "raw", "d0")
    pair = Clones(lab, {"d0": clone(lab, base)}, over={"d0": base})
    before = pair.src.state()

    def spoil():
        pair.dst.stop()
        pair.dst = None
        v = pair.overlays["d0"]
        lab.install.img("bench", "-w", "-c", "1", "-s", str(MiB), "-o", str(8 * MiB), "-q",
                        "--pattern=7", "-f", "qcow2", v.path)
        pair.there = {"d0": v}
        pair.dst = lab.ends(pair.destination())

    spoil()
    r = pair.migrate("--sync", "top", rc=1)
    assert "is not empty" in r.error, r.error
    assert_stayed(pair, before)
    pair.wait()
    spoil()
    r = pair.migrate()
    assert syncs(r)["d0"][0] == "full" and "not empty" in syncs(r)["d0"][1], syncs(r)
    assert_gone_over(pair, r)
    assert_whole(lab, pair.now["d0"])


@timeout(150)
def test_a_made_image_on_a_base_of_the_same_name(lab):
    """The destination has other mounts: by the source's name it finds another
    file, of the same content, or of another one, or none."""
    base = source(lab, "raw", "d0")
    same, other = copy_of(lab, base), copy_of(lab, base, differs=9 * MiB)
    pair = Clones(lab, {"d0": clone(lab, base)}, made={"d0": "qcow2"})
    before = pair.src.state()

    def at(file):
        swap = f"mount --bind {file.path} {base.path}; exec \"$@\""
        pair.wait(prefix=["unshare", "--mount", "--", "sh", "-ec", swap, "sh"])

    at(other)
    r = pair.migrate("--sync", "top", rc=1)
    assert "differs" in r.error, r.error
    assert_stayed(pair, before)
    assert_not_made(pair)
    at(same)
    r = pair.migrate("--sync", "top")
    assert syncs(r)["d0"][0] == "top" and "content" in syncs(r)["d0"][1], syncs(r)
    assert_gone_over(pair, r)
    assert_on(lab, pair.now["d0"], base)

    pair.turn_round(made={"d0": "qcow2"})
    at(other)
    r = pair.migrate()
    assert syncs(r)["d0"][0] == "full", syncs(r)
    assert_gone_over(pair, r)
    assert "backing-filename" not in header(lab, pair.now["d0"])


@timeout(90)
def test_what_is_made_without_its_base(lab):
    """Raw data, a base that is not there, and where nobody wants it."""
    base = source(lab, "raw", "d0")
    pair = Clones(lab, {"d0": clone(lab, base)}, made={"d0": "raw"})
    r = pair.migrate("--sync", "top", "--dry-run", rc=2)
    assert "raw data" in json.dumps(r.last["problems"]), r.last
    pair.made = {"d0": "qcow2"}
    pair.wait()
    r = pair.migrate("--sync", "full")
    assert syncs(r)["d0"][0] is None, syncs(r)
    assert_gone_over(pair, r)
    assert "backing-filename" not in header(lab, pair.now["d0"])


KILLS = ("base-open", "base-export", "base-compare", "base-close", "base-drop",
         "destination-format", "destination-node", "base-overlay", "mirror", "mirror-ready")


@timeout(400)
def test_killed_while_clones_go_over(lab):
    """The engine dies at the steps that know of the base: recover proves it
    anew, or goes on by what was proved."""
    bases = {d: source(lab, "raw", d) for d in ("d0", "d1")}
    there = {"over": {"d0": copy_of(lab, bases["d0"])}, "made": {"d1": "qcow2"}}
    pair = Clones(lab, {d: clone(lab, b) for d, b in bases.items()}, **there)
    for half, state in enumerate(("start", "end")):
        kill_at_each(lab, state, KILLS[half::2], pair, **there)
    for d, base in {**bases, **there["over"]}.items():
        assert pair.now[d].path not in (base.path,)
        assert header(lab, pair.now[d])["backing-filename"] in (base.path, bases[d].path)
