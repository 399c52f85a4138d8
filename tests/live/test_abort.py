"""qpivot abort from another process: it answers what is true, in time, whether
the engine works, is dead or stopped, and whether the target answers or not."""

import json
import os
import sqlite3
import time

from lab.pair import Pair
from lab.proc import wait_for
from lab.runner import timeout
from lab.scene import SIZE, Scene, volume
from lab.storage import NbdVolume

SLOW = ("--speed", "1M")


def copying(engine):
    return engine.wait_event("progress", lambda e: e.get("bytes", 0) > 0, 30)["op"]


def abort(lab, op, *options, **kw):
    begun = time.monotonic()
    r = lab.qpivot.run("abort", op, "--json", *options, **kw)
    print("abort:", r.rc, r.last, f"{time.monotonic() - begun:.1f} s")
    return r, time.monotonic() - begun


def assert_went_back(scene, r, before, targets):
    """It said so, and so it is, at the very moment that it said it."""
    state = scene.vm.state()
    assert r.rc == 0 and r.last["event"] == "done" and r.last["answer"] == "back", r
    assert state == before, (before, state)
    assert {d["disk"]: d["source"] for d in r.last["disks"]} == \
        {d: f"n-{d}" for d in targets}, r.last
    for v in targets.values():
        assert not v.creatable or not v.exists(), f"{v} is left"
    assert scene.lab.qpivot.run("list", "--json").text.strip() == ""


@timeout(90)
def test_abort_while_the_mirror_completes(lab):
    """READY, told to complete, and its last flush does not come back."""
    scene = Scene(lab, ["raw"], boot=False)
    before = scene.vm.state()
    path, gate = lab.path("gated.raw"), lab.path("gate")
    dd = f"dd of={path} oflag=seek_bytes seek=$4 conv=notrunc 2>/dev/null"
    target = NbdVolume(lab.nbd(program="nbdkit", size=SIZE, path=path, argv=[
        "eval", f"get_size=echo {SIZE}", "can_flush=exit 0", f"pwrite={dd}",
        f"pread=dd if={path} iflag=skip_bytes,count_bytes skip=$4 count=$3 2>/dev/null",
        # to be READY takes one flush, to complete another
        f"flush=[ -e $tmpdir/ready ] && [ -p {gate} ] && cat {gate}; touch $tmpdir/ready"]))
    os.mkfifo(gate)
    e = scene.start_move({"d0": target})
    e.wait_event("step", lambda s: s.get("step") == "pivot", 60)
    wait_for("job-complete", lambda: "job-complete" in trace(e), 20)
    e.interrupt()
    wait_for("the way back", lambda: answered(e, "job-cancel"), 20)
    fd = os.open(gate, os.O_RDWR)
    os.unlink(gate)
    os.close(fd)
    assert e.wait(40).rc == 1
    assert scene.vm.state() == before


def answered(engine, command):
    """Whether QEMU has answered this command."""
    lines = [json.loads(x)["msg"] for x in trace(engine).split("\n")[:-1]]
    sent = [m["id"] for m in lines if m.get("execute") == command]
    return any(m.get("id") in sent and "return" in m for m in lines)


def trace(engine):
    with open(engine.trace, errors="replace") as f:
        return f.read()


@timeout(150)
def test_abort_answers_what_is_true(lab):
    scene = Scene(lab, ["raw", "raw"])
    before = scene.vm.state()

    def begin(*options):
        targets = {d: volume(lab, "qcow2") for d in scene.now}
        e = scene.start_move(targets, *(options or SLOW))
        return targets, e, copying(e)

    # while it copies
    targets, e, op = begin()
    r, seconds = abort(lab, op)
    assert_went_back(scene, r, before, targets)
    assert seconds < 10 and e.wait(10).rc == 1
    r, _ = abort(lab, op)  # again: it is back still
    assert r.rc == 0 and r.last["answer"] == "back", r
    assert abort(lab, "zzzzzz")[0].rc == 2

    # one of the group is READY, the other is not
    targets, e, op = begin()
    scene.vm.qmp.cmd("block-job-set-speed", device=f"qpv-{op}-d0-mirror", speed=0)
    e.wait_event("ready", lambda x: x["disk"] == "d0", 40)
    r, _ = abort(lab, op)
    assert_went_back(scene, r, before, targets)
    assert e.wait(10).rc == 1

    # its engine is dead: it is taken over
    targets, e, op = begin()
    e.kill()
    r, _ = abort(lab, op)
    assert_went_back(scene, r, before, targets)

    # its engine stands still: a bounded answer, with who and where
    targets, e, op = begin()
    e.wait_event("progress", lambda x: x.get("bytes", 0) > 18 << 20, 30)
    e.stall()  # in the middle of nothing: it does not write to the journal
    r, seconds = abort(lab, op, "--timeout", "3s")
    assert r.rc == 3 and r.last["answer"] == "unknown", r
    assert r.last["engine"] == {"pid": e.proc.pid, "alive": True, "stopped": True}, r.last
    assert r.last["step"] == "mirror" and r.last["next"] == f"kill -CONT {e.proc.pid}", r.last
    assert not r.last["acknowledged"] and 2 < seconds < 15
    # somebody else who stands still holds the journal
    with sqlite3.connect(os.path.join(lab.qpivot.state, "journal.db")) as db:
        db.execute("BEGIN IMMEDIATE")
        r, seconds = abort(lab, op, "--timeout", "3s")
        db.rollback()
    assert r.rc == 3 and not r.last["asked"] and seconds < 15, r
    # an interrupt only ends the following
    other = lab.qpivot.start("abort", op, "--json")
    wait_for("its request", lambda: other_records(lab, op, 2) == ["request"] * 2, 20, 0.5)
    other.interrupt()
    assert other.wait(10).rc == 3
    assert scene.vm.jobs(), "nothing has happened yet"
    e.go_on()  # what was asked for stays asked
    assert e.wait(20).rc == 1
    assert scene.vm.state() == before

    # too late
    gate = lab.path("gate")
    os.mkfifo(gate)
    targets, e, op = begin("--persist-hook", f"cat {gate}")
    e.wait_event("step", lambda x: (x["step"], x["state"]) == ("persist", "start"), 60)
    r, _ = abort(lab, op)
    assert r.rc == 2 and r.last["answer"] == "too-late", r
    assert "too late, pivoted" in r.error, r
    with open(gate, "w"):
        pass
    assert e.wait(30).rc == 0
    scene.now.update(targets)
    r, _ = abort(lab, op)
    assert r.rc == 2 and r.last["answer"] == "too-late", r
    scene.assert_attached()
    scene.assert_tidy()
    scene.judge()


def other_records(lab, op, n):
    """The kinds of the journal's last n records."""
    r = lab.qpivot.run("show", op, "--json")
    return [x["kind"] for x in json.loads(r.text)["records"]][-n:]


@timeout(200)
def test_the_way_back_is_bounded(lab):
    """A target that does not answer; a QEMU that does not."""
    for mode in ("background", "write-blocking"):
        scene = Scene(lab, ["raw"])
        before = scene.vm.state()
        target = volume(lab, "nbd")
        lab.stack.callback(target.server.go_on)
        e = scene.start_move({"d0": target}, *SLOW, "--copy-mode", mode)
        op = copying(e)
        target.server.stall()
        r, seconds = abort(lab, op)
        assert_went_back(scene, r, before, {"d0": target})
        assert seconds < 45, seconds
        assert e.wait(10).rc == 1
        target.server.go_on()
        stats = scene.judge()
        assert stats["d0"]["maxgap_ms"] < 20000, (mode, stats)
        if mode == "background":
            scene.vm.kill()

    target = volume(lab, "raw")
    e = scene.start_move({"d0": target}, *SLOW, "--command-timeout", "2s")
    op = copying(e)
    scene.vm.proc.send(19)
    try:
        r, seconds = abort(lab, op)
        # 4: its engine had given up before it was asked, so abort took the
        # operation over, and met the monitor of a QEMU that does not greet
        assert r.rc in (3, 4) and r.last["answer"] == "unknown" and r.last["error"], r
        assert seconds < 60, seconds
        assert e.wait(10).rc == 3
    finally:
        scene.vm.proc.send(18)
    assert target.exists(), "what is not proved is not freed"
    r, _ = abort(lab, op)
    assert_went_back(scene, r, before, {"d0": target})
    scene.judge()


@timeout(150)
def test_abort_of_a_migration(lab):
    """Before the switchover it is back, at the source; after it is too late."""
    pair = Pair(lab, ["raw"], to={"d0": "raw"}, pace=100)
    before = pair.src.state()
    for place in (lambda x: x.get("disk") == "d0" and x.get("bytes", 0) > 0,
                  lambda x: x.get("disk") == "memory"):
        e = pair.start("--bandwidth", "4M")
        op = e.wait_event("progress", place, 60)["op"]
        r, seconds = abort(lab, op)
        assert r.rc == 0 and r.last["answer"] == "back", r
        assert pair.runs_at() == ["source"] and pair.src.state() == before
        assert e.wait(20).rc == 1 and seconds < 30, seconds
        assert lab.qpivot.run("list", "--json").text.strip() == ""
        pair.judge()
        pair.wait()
    gate = lab.path("gate")
    os.mkfifo(gate)
    e = pair.start("--persist-hook", f"cat {gate}")
    op = e.wait_event("step", lambda x: (x["step"], x["state"]) == ("persist", "start"), 60)["op"]
    r, _ = abort(lab, op)
    assert r.rc == 2 and r.last["answer"] == "too-late" and "too late, pivoted" in r.error, r
    with open(gate, "w"):
        pass
    assert e.wait(30).rc == 0
    assert pair.runs_at() == ["destination"]
    pair.arrived()
    r, _ = abort(lab, op)
    assert r.rc == 2 and r.last["answer"] == "too-late", r
    pair.assert_attached()
    pair.vm.wait_writes(20)
    pair.judge()
