"""recover --from-qemu: the engine is dead and its state folder is gone; what is
inside QEMU is enough to finish or to undo, and nothing on storage is freed."""

import json
import os
import shutil

from lab.pair import Pair
from lab.proc import wait_for
from lab.runner import timeout
from lab.scene import Scene, volume

SLOW = ("--speed", "1M")


def lose(lab, engine):
    engine.kill()
    shutil.rmtree(lab.qpivot.state)


def adopt(lab, scene, *options):
    r = lab.qpivot.run("recover", "--qmp", scene.vm.qmp_path, "--from-qemu", "--json", *options)
    print("from QEMU:", r.rc, r.last)
    return r


def copying(engine):
    return engine.wait_event("progress", lambda e: e.get("bytes", 0) > 0, 30)["op"]


def step(engine, name, state):
    engine.kill_at(name, state)
    return engine.events[0]["op"]


def assert_finished(lab, scene):
    scene.assert_attached()
    scene.assert_tidy()
    assert lab.qpivot.run("list", "--json").text.strip() == ""


def moved(lab, scene, r, op, targets):
    assert r.rc == 0 and r.last["event"] == "done" and r.op == op, r
    for d, v in scene.now.items():
        assert v.exists(), "the source is never removed"
    scene.now.update(targets)
    assert_finished(lab, scene)


def over(scene, r, targets):
    """It has moved; what the sources were called in QEMU nobody knew any more."""
    assert r.rc == 0 and r.last["event"] == "done", r
    for v in scene.now.values():
        assert v.exists(), "the source is never removed"
    scene.now.update(targets)
    scene.assert_attached()
    assert scene.vm.jobs() == []
    assert "qpv-claim" not in json.dumps(scene.vm.qmp.cmd("qom-list", path="/objects"))


def back(lab, scene, r, op, before, targets):
    assert r.rc == 0 and r.last["event"] == "failed" and r.op == op, r
    left = {x["disk"]: x for x in r.last["left"]}
    for d, v in targets.items():
        assert v.exists(), "no target is removed"
        assert v.mark() in left[d]["volume"], left
        assert v.mark() in left[d]["command"], left
        os.unlink(v.path)
    state = scene.vm.state()
    assert state == before, (before, state)
    assert_finished(lab, scene)


@timeout(300)
def test_a_move_without_its_journal(lab):
    # One that was a destination may hold a guest that came: then nobody goes back.
    scene = Scene(lab, ["raw", "qcow2"], power_on=True)

    def begin(*options):
        targets = {"d0": volume(lab, "qcow2"), "d1": volume(lab, "raw")}
        return targets, scene.start_move(targets, *options)

    # while it copies: back, and there
    before = scene.vm.state()
    targets, e = begin(*SLOW)
    op = copying(e)
    lose(lab, e)
    r = adopt(lab, scene, "zzzzzz")
    assert r.rc == 2 and op in r.error, r  # another one has claimed it
    r = adopt(lab, scene, op, "--undo")
    back(lab, scene, r, op, before, targets)
    r = adopt(lab, scene)
    assert r.rc == 2 and "no operation has claimed" in r.error, r

    targets, e = begin(*SLOW)
    op = copying(e)
    lose(lab, e)
    for d in scene.now:
        scene.vm.qmp.cmd("block-job-set-speed", device=f"qpv-{op}-{d}-mirror", speed=0)
    moved(lab, scene, adopt(lab, scene), op, targets)
    scene.judge()

    # one is READY, the other is not: there, and by the journal when it is known
    targets, e = begin(*SLOW)
    op = copying(e)
    scene.vm.qmp.cmd("block-job-set-speed", device=f"qpv-{op}-d0-mirror", speed=0)
    e.wait_event("ready", lambda x: x["disk"] == "d0", 40)
    lose(lab, e)
    other = lab.qpivot.start("recover", "--qmp", scene.vm.qmp_path, "--from-qemu", "--json")
    copying(other)
    other.kill()
    r = adopt(lab, scene)
    assert r.rc == 2 and "this journal knows it" in r.error, r
    scene.vm.qmp.cmd("block-job-set-speed", device=f"qpv-{op}-d1-mirror", speed=0)
    moved(lab, scene, lab.qpivot.run("recover", "--json"), op, targets)
    scene.judge()

    # not all is there yet: back, also when nobody asks for it
    for at, state in (("claim", "end"), ("target-file", "start"), ("mirror", "start")):
        before = scene.vm.state()
        targets, e = begin(*SLOW)
        op = step(e, at, state)
        lose(lab, e)
        for job in scene.vm.jobs():
            if job["type"] == "mirror":  # one that creates may end just now
                scene.vm.qmp.cmd("block-job-set-speed", device=job["id"], speed=0)
        there = {d: v for d, v in targets.items() if v.exists()}
        r = adopt(lab, scene)
        if r.last["event"] == "done":  # the mirrors had begun by then
            moved(lab, scene, r, op, targets)
            continue
        assert r.rc == 0 and r.last["event"] == "failed", r
        for v in there.values():
            assert v.exists(), "no target is removed"
            os.unlink(v.path)
        assert scene.vm.state() == before, at
        assert_finished(lab, scene)
    scene.judge()

    # around the pivot
    for at, state in (("pivot", "start"), ("pivot", "end"), ("mirror-dismiss", "end")):
        targets, e = begin()
        op = step(e, at, state)
        lose(lab, e)
        scene.vm.wait_writes(20)
        r = adopt(lab, scene, "--undo")
        print("killed at", at, state, "->", r.last["event"])
        if at == "pivot" and state == "start" and r.last["event"] == "failed":
            for v in targets.values():
                os.unlink(v.path)
            assert_finished(lab, scene)
        else:
            over(scene, r, targets)
        scene.judge()


def runs(scene):
    return scene.vm.qmp.cmd("query-status")["running"]


def opened(scene, targets, *options):
    e = scene.start_move(targets, "--undo-window", "10m", *options)
    e.wait_event("progress", lambda x: x["phase"] == "undo-window", 60)
    return e, e.events[0]["op"]


@timeout(300)
def test_an_undo_window_without_its_journal(lab):
    """Open, it is closed and the guest keeps its targets; where the guest has
    gone back by it already, that is brought to its end."""
    scene = Scene(lab, ["raw", "qcow2"])
    targets = {"d0": volume(lab, "raw"), "d1": volume(lab, "qcow2")}
    sources = dict(scene.now)
    e, op = opened(scene, targets)
    lose(lab, e)
    scene.vm.wait_writes(50)
    r = adopt(lab, scene, "--undo")
    moved(lab, scene, r, op, targets)
    assert r.last["undo_window"]["closed"] == "its journal is lost", r.last
    left = {x["disk"]: x["volume"] for x in r.last["left"]}
    assert all(v.mark() in left[d] for d, v in sources.items()), left
    scene.judge()

    # gone back: the hook that is told so holds it there
    gate, first = lab.path("gate"), lab.path("first")
    os.mkfifo(gate)
    before = scene.vm.state()
    targets = {"d0": volume(lab, "raw"), "d1": volume(lab, "raw")}
    e, op = opened(scene, targets, "--persist-hook",
                   f"if [ -e {first} ]; then cat {gate}; else touch {first}; fi")
    scene.vm.wait_writes(20)
    undo = lab.qpivot.start("undo", op, "--json")
    e.wait_event("step", lambda x: (x["step"], x["state"]) == ("return-persist", "start"), 60)
    undo.kill()
    lose(lab, e)
    fd = os.open(gate, os.O_RDWR)  # the hook may live still, or be about to open it
    os.unlink(gate)
    scene.vm.wait_writes(20)
    os.close(fd)
    back(lab, scene, adopt(lab, scene), op, before, targets)
    scene.judge()

    # killed in the brackets at both ends of the window
    for step in ("twin", "guest-cont", "drop-stop", "twin-drop", "drop-cont"):
        targets = {"d0": volume(lab, "raw"), "d1": volume(lab, "raw")}
        e = scene.start_move(targets, "--undo-window", "1s")
        e.kill_at(step, "start")
        shutil.rmtree(lab.qpivot.state)
        wait_for("the guest to go on", lambda: runs(scene), 10)
        scene.vm.wait_writes(20)
        over(scene, adopt(lab, scene), targets)
        scene.judge()


def adopt_at(lab, vm, *options):
    r = lab.qpivot.run("recover", "--qmp", vm.qmp_path, "--from-qemu", "--json", *options)
    print("from QEMU:", r.rc, r.last)
    return r


@timeout(200)
def test_a_migration_without_its_journal(lab):
    """Of one QEMU alone it is not known which has the guest: the source takes
    back what is its own and says what it cannot, the destination says what it
    is, and what to do next."""
    pair = Pair(lab, ["raw"], to={"d0": "raw"})
    before = pair.src.state()
    e = pair.start("--bandwidth", "4M")
    op = copying(e)
    lose(lab, e)
    r = adopt_at(lab, pair.dst)
    assert r.rc == 3 and "the destination" in r.error and "has not come" in r.error, r
    r = adopt_at(lab, pair.src)
    assert r.rc == 0 and r.last["event"] == "failed" and r.op == op, r
    warned = [w["message"] for w in r.named("warning")]
    assert any("pause-before-switchover" in w for w in warned), warned
    assert pair.runs_at() == ["source"] and pair.src.state() == before
    pair.judge()

    # handed over: it runs at the destination, which has all of our names still
    pair.wait()
    e = pair.start()
    e.kill_at("prove", "end")
    shutil.rmtree(lab.qpivot.state)
    assert pair.runs_at() == ["destination"]
    op = e.events[0]["op"]
    r = adopt_at(lab, pair.src)
    assert r.rc == 3 and "never 'cont' here" in r.error, r
    r = adopt_at(lab, pair.dst)
    assert r.rc == 3 and "do not start the other" in r.error, r
    assert pair.runs_at() == ["destination"]
    r = lab.qpivot.run("doctor", "--qmp", pair.dst.qmp_path, "--json", "--fix", "--op", op)
    assert r.rc == 0 and r.last["items"] == [], r
    pair.src.stop()
    pair.arrived()
    pair.assert_attached()
    pair.judge()


@timeout(120)
def test_a_destination_that_waits_is_no_migration(lab):
    """Its engine is dead, its journal gone, and no stream has come: a QEMU 10
    says 'setup' for as long as it waits, and doctor removes what is there."""
    pair = Pair(lab, ["raw"], to={"d0": "raw"})
    e = pair.start()
    e.kill_at("incoming", "end")
    shutil.rmtree(lab.qpivot.state)
    op = e.events[0]["op"]
    for vm in (pair.src, pair.dst):
        r = lab.qpivot.run("doctor", "--qmp", vm.qmp_path, "--json", "--fix", "--op", op)
        assert r.rc == 0 and r.last["items"] == [], r
    assert pair.runs_at() == ["source"]
    pair.vm.wait_writes(20)
    pair.judge()


@timeout(200)
def test_a_paused_guest_that_was_sent_is_nobody_s_to_take_back(lab):
    """It may be the destination's only: there and at the source a person is
    asked, nothing is changed, and what the hint says to do is right. A move of
    the guest that came so is a move all the same."""
    pair = Pair(lab, ["raw"], to={"d0": "raw"})
    pair.vm.wait_writes(20)
    pair.src.qmp.cmd("stop")
    e = pair.start()
    e.kill_at("prove", "end")
    shutil.rmtree(lab.qpivot.state)
    op = e.events[0]["op"]
    for _ in range(2):
        r = adopt_at(lab, pair.dst)
        assert r.rc == 3 and "may be the only one" in r.error and r.op != op, r
        assert f"doctor --qmp {pair.dst.qmp_path} --fix --op {op}" in r.error, r
        r = adopt_at(lab, pair.src)
        assert r.rc == 3 and "never 'cont' here" in r.error, r
        assert (pair.src.status(), pair.dst.status()) == ("postmigrate", "paused")
    r = lab.qpivot.run("doctor", "--qmp", pair.dst.qmp_path, "--json", "--fix", "--op", op)
    assert r.rc == 0 and r.last["items"] == [], r
    pair.dst.qmp.cmd("cont")
    pair.src.stop()
    pair.arrived()
    pair.vm.wait_writes(20)
    pair.assert_attached()
    pair.judge()

    before = pair.vm.state()
    targets = {"d0": volume(lab, "raw")}
    e = pair.start_move(targets, *SLOW)
    op = copying(e)
    lose(lab, e)
    back(lab, pair, adopt(lab, pair, "--undo"), op, before, targets)
    pair.judge()
