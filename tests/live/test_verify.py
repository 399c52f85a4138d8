"""qpivot move --verify: source and target are compared before the pivot."""

import glob
import os

from lab.proc import wait_for
from lab.runner import needs, timeout
from lab.scene import Scene, pattern_bytes, volume
from lab.storage import MiB

SLOW = ("--speed", "12M")  # of the comparison, too
PLANTED = 8 * MiB  # in the pattern: the guest never writes there
EMPTY = 60 * MiB


def assert_clean(scene, op):
    """No bitmap, no scratch node and no scratch image is left."""
    scene.assert_tidy()
    nodes = scene.vm.qmp.cmd("query-named-block-nodes", flat=True)
    left = [b for n in nodes for b in n.get("dirty-bitmaps", ())]
    assert not left, left
    assert not glob.glob(f"/run/qpivot-{op}"), "a scratch image is left"


def assert_verified(result, mode, size=64 * MiB):
    for d in result.disks.values():
        assert d["verify"] == mode and d["verify_passes"] >= 2, d
        assert d["verified_bytes"] == size, d
        assert d["rechecked_bytes"] <= size, d


def copied(scene, move):
    """The engine is stalled, and all is copied: none of it is compared yet."""
    move.wait_event("step", lambda e: (e["step"], e["state"]) == ("mirror", "end"))
    move.stall()
    wait_for("the copy", lambda: [j["status"] for j in scene.vm.qmp.cmd("query-block-jobs")]
             == ["ready"], 60)


def plant(path, offset, fmt):
    """Somebody writes over what the mirror has copied already."""
    sound = pattern_bytes("d0", PLANTED, 3 * MiB)[MiB:MiB + 4096]
    with open(path, "r+b") as f:
        at = offset if fmt == "raw" else f.read().index(sound)
        f.seek(at)
        f.write(b"planted!" * 512)


@needs("ceph", "nfs")
@timeout(150)
def test_full_under_load_on_every_kind(lab):
    kinds = ["qcow2", "raw", "nfs", "rbd", "block", "nbd"]
    scene = Scene(lab, ["raw", "qcow2", "rbd", "nfs", "raw", "block"])
    targets = {d: volume(lab, k) for d, k in zip(scene.now, kinds)}
    r = scene.move(targets, "--verify", "full", "--freeze-limit", "20s")
    assert_verified(r, "full")
    scene.assert_attached()
    assert_clean(scene, r.op)
    assert scene.vm.status() == "running"
    scene.vm.wait_writes(20)
    scene.judge()
    scene.vm.kill()
    scene.judge_dead()


@timeout(120)
def test_a_planted_difference_stops_the_move(lab):
    scene = Scene(lab, ["raw"], disk={"props": {"iothread": "io0"}},
                  argv=["-object", "iothread,id=io0"])
    for kind in ("raw", "qcow2"):
        v = volume(lab, kind)
        move = scene.start_move({"d0": v}, "--verify", "full", "--freeze-limit", "20s")
        copied(scene, move)
        plant(v.path, PLANTED + MiB, kind)
        move.go_on()
        r = move.wait()
        assert r.rc == 1, r
        error = r.last["error"]
        assert error["object"] == "d0" and str(PLANTED + MiB) in error["desc"], error
        assert v.path in error["desc"] and error["hint"], error
        assert not v.exists() and scene.vm.status() == "running"
        scene.assert_attached()
        assert_clean(scene, r.op)
    scene.judge()


def guest_writes(scene, offset, text):
    """As the guest does it: through the device, and so through the mirror."""
    reply = scene.vm.qmp.cmd("human-monitor-command", command_line=(
        f'qemu-io -d /machine/peripheral/d0/virtio-backend "{text} {offset} 64k"'))
    assert "rror" not in reply, reply


@timeout(90)
def test_what_the_guest_rewrites_is_no_false_alarm(lab):
    """A copy that was spoilt, and made good by the mirror with the next
    write: equal in the end.  A guest that was paused stays so."""
    scene = Scene(lab, ["raw"])
    scene.vm.pause()
    scene.vm.qmp.cmd("stop")
    v = volume(lab, "raw")
    move = scene.start_move({"d0": v}, "--verify", "full", "--freeze-limit", "20s", *SLOW)
    copied(scene, move)
    plant(v.path, EMPTY, "raw")
    guest_writes(scene, EMPTY, "write -P 0")
    move.go_on()
    move.wait_event("progress", lambda e: e["phase"] == "verify")
    guest_writes(scene, EMPTY + MiB, "write -P 7")
    guest_writes(scene, EMPTY + MiB, "write -P 0")
    r = move.wait()
    assert r.rc == 0, r
    scene.now["d0"] = v
    assert_verified(r, "full")
    assert r.disks["d0"]["rechecked_bytes"] < 2 * MiB, r.disks
    assert scene.vm.status() == "paused"
    assert_clean(scene, r.op)
    scene.vm.qmp.cmd("cont")
    scene.vm.resume()
    scene.judge()


def still_runs(scene):
    wait_for("the guest to run", lambda: scene.vm.status() == "running")
    scene.vm.wait_writes(20)


@timeout(150)
def test_killed_while_it_compares(lab):
    """In the middle of reading, and while the guest stands still: recover
    finishes or undoes, and the guest runs in any case."""
    scene = Scene(lab, ["raw"])
    for undo in (False, True):
        v = volume(lab, "qcow2")
        move = scene.start_move({"d0": v}, "--verify", "full", "--freeze-limit", "20s",
                                *SLOW)
        move.wait_event("progress", lambda e: e["phase"] == "verify")
        move.kill()
        op = move.events[0]["op"]
        assert f"qpv-{op}-d0-dirty" in str(scene.vm.qmp.cmd("query-named-block-nodes", flat=True))
        r = lab.qpivot.run("recover", "--json", *(["--undo"] if undo else []))
        assert r.rc == 0, r
        scene.now["d0"] = scene.now["d0"] if undo else v
        assert v.exists() != undo
        scene.assert_attached()
        assert_clean(scene, op)
        still_runs(scene)
    for how in ("kill", "stall"):
        v = volume(lab, "raw")
        move = scene.start_move({"d0": v}, "--verify", "sample", "--freeze-limit", "8s")
        move.wait_event("step", lambda e: (e["step"], e["state"]) == ("verify-rest", "start"))
        getattr(move, how)()
        still_runs(scene)  # the guard has seen to it
        if how == "stall":
            move.go_on()
            r = move.wait()
            moved = r.rc == 0
        else:
            r = lab.qpivot.run("recover", "--json")
            assert r.rc == 0, r
            moved = v.exists()
        scene.now["d0"] = v if moved else scene.now["d0"]
        scene.assert_attached()
        assert_clean(scene, move.events[0]["op"])
        still_runs(scene)
    scene.judge()
