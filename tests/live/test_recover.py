"""recover where the world has changed since the engine died: the disk, QEMU
itself, or the journal's last words."""

import json
import os
import sqlite3

from lab.proc import Proc, wait_for
from lab.qemu import Disk
from lab.runner import needs, timeout
from lab.scene import Scene, source, volume

SLOW = ("--speed", "1M")


def killed(scene, targets, step, state, *options):
    """Starts a move and kills the engine at that moment."""
    e = scene.start_move(targets, *options)
    e.kill_at(step, state)
    return e.events[0]["op"]


def forget(lab, op, step):
    """As if the journal's records from the step's end on were never durable."""
    with sqlite3.connect(os.path.join(lab.qpivot.state, "journal.db")) as db:
        seq = db.execute("SELECT min(seq) FROM records WHERE op=? AND step=? AND kind='end'",
                         (op, step)).fetchone()[0]
        db.execute("DELETE FROM records WHERE op=? AND seq>=?", (op, seq))
        db.execute("UPDATE operations SET state='running' WHERE id=?", (op,))


def parked(r):
    assert r.rc == 3 and r.last["event"] == "parked", r
    return json.dumps(r.last)


@timeout(90)
def test_a_snapshot_taken_meanwhile_is_not_lost(lab):
    """Somebody's external snapshot between the plan and the mirror: what
    would be mirrored is not what was planned."""
    for legacy in (True, False):
        scene = Scene(lab, ["raw"], legacy=legacy)
        target = volume(lab, "raw")
        killed(scene, {"d0": target}, "target-create", "start")
        device = {"device": "drv-d0"} if legacy else {"node_name": "n-d0",
                                                      "snapshot_node_name": "ov-d0"}
        overlay = lab.path(f"overlay-{legacy}.qcow2")
        scene.vm.qmp.cmd("blockdev-snapshot-sync", snapshot_file=overlay, format="qcow2",
                         **device)
        r = lab.qpivot.run("recover", "--json")
        assert "chain of images" in r.text, r
        assert r.rc == 0, r
        assert not target.exists()
        assert overlay in json.dumps(scene.vm.block("d0")["inserted"])
        scene.vm.wait_writes(20)
        scene.vm.pause()
        assert not any(scene.vm.bad_blocks().values()), scene.vm.bad_blocks()
        scene.vm.kill()


@timeout(90)
def test_a_pivot_in_doubt_with_a_dead_qemu_keeps_both(lab):
    """The guest used the target for a while, the journal does not know, and
    QEMU is gone: nobody may throw either copy away."""
    for undo in (False, True):
        scene = Scene(lab, ["raw"])
        target = volume(lab, "raw")
        op = killed(scene, {"d0": target}, "prove", "start")
        first = scene.now["d0"]
        scene.vm.wait_writes(20)
        forget(lab, op, "pivot")
        scene.vm.kill()
        for _ in range(2):
            said = parked(lab.qpivot.run("recover", op, "--json", *["--undo"] * undo))
        assert target.exists() and first.exists(), said
        scene.now["d0"] = target
        scene.judge_dead()


@timeout(90)
def test_a_pivot_in_doubt_is_found_out(lab):
    """The same with QEMU alive: its graph tells."""
    scene = Scene(lab, ["raw", "raw"])
    targets = {"d0": volume(lab, "raw"), "d1": volume(lab, "qcow2")}
    op = killed(scene, targets, "prove", "start")
    forget(lab, op, "pivot")
    r = lab.qpivot.run("recover", op, "--json", "--undo")
    assert r.rc == 0 and r.last["event"] == "done", r
    scene.now.update(targets)
    scene.assert_attached()
    scene.assert_tidy()
    scene.judge()


@timeout(90)
def test_a_vm_started_anew_from_its_source_is_a_stranger(lab):
    """Parked behind a failing hook, then cold-started with the old
    description: the hook must not be told that all is well."""
    scene = Scene(lab, ["raw"])
    target, hooked = volume(lab, "raw"), lab.path("hooked")
    hook = f"test -e {lab.path('ok')} && touch {hooked}"
    parked(scene.start_move({"d0": target}, "--persist-hook", hook).wait(60))
    where, first = scene.vm.qmp_path, scene.now["d0"]
    scene.vm.kill()
    if os.path.lexists(where):
        os.unlink(where)
    again = lab.vm([Disk("d0", first)], boot=False)
    os.symlink(again.qmp_path, where)
    open(lab.path("ok"), "w").close()
    said = parked(lab.qpivot.run("recover", "--json"))
    assert "not the QEMU" in said, said
    assert not os.path.exists(hooked)
    assert target.exists() and first.exists()
    again.quit()


@timeout(90)
def test_the_wrong_vm_is_not_touched(lab):
    """recover --qmp with another VM's monitor undoes nothing; then with the
    right one all of it."""
    scene = Scene(lab, ["raw"])
    other = lab.vm([Disk("d0", source(lab, "raw", "d0"))], boot=False)
    target, before, stranger = volume(lab, "raw"), scene.vm.state(), other.state()
    e = scene.start_move({"d0": target}, *SLOW)
    e.wait_event("progress", lambda x: x.get("bytes", 0) > 0, 30)
    e.kill()
    op = e.events[0]["op"]
    for options in ((), ("--undo",)):
        said = parked(lab.qpivot.run("recover", op, "--json", "--qmp", other.qmp_path, *options))
        assert "still runs" in said, said
    assert other.state() == stranger and target.exists()
    r = lab.qpivot.run("recover", op, "--json", "--undo", "--qmp", scene.vm.qmp_path)
    assert r.rc == 0, r
    assert scene.vm.state() == before and not target.exists()
    scene.judge()


@timeout(60)
def test_an_abort_is_remembered(lab):
    """Killed on its way back, it goes on back and not forward again."""
    scene = Scene(lab, ["raw"])
    target, before = volume(lab, "raw"), scene.vm.state()
    e = scene.start_move({"d0": target}, *SLOW)
    e.wait_event("progress", lambda x: x.get("bytes", 0) > 0, 30)
    e.interrupt()
    e.wait_event("step", lambda x: x["state"] == "undo", 30)
    e.kill()
    r = lab.qpivot.run("recover", "--json")
    assert r.rc == 0 and r.last["event"] == "failed", r
    assert not target.exists() and scene.vm.state() == before
    scene.judge()


@timeout(60)
def test_persistent_bitmaps_need_a_qcow2_target(lab):
    scene = Scene(lab, ["qcow2"], boot=False)
    scene.vm.qmp.cmd("block-dirty-bitmap-add", node="n-d0", name="b0", persistent=True)
    r = lab.qpivot.move(scene.vm, {"d0": lab.path("t.raw")}, rc=2)
    assert "b0" in r.error, r
    target = volume(lab, "qcow2")
    scene.move({"d0": target})
    bitmaps = scene.vm.block("d0")["inserted"]["dirty-bitmaps"]
    assert [b["name"] for b in bitmaps] == ["b0"] and bitmaps[0]["persistent"], bitmaps
    scene.vm.quit()
    assert "b0" in json.dumps(lab.install.img("info", "--output=json", target.path)), \
        "it is stored in the image"


@timeout(60)
def test_a_full_target_of_a_ready_disk_waits_too(lab):
    """One disk is ready and its target fills up while another copies."""
    from lab.storage import MiB
    scene = Scene(lab, ["raw", "raw"])
    where = lab.small_fs(80 * MiB)
    ready, slow = volume(lab, "raw"), volume(lab, "raw")
    ready.path = where + "/t.raw"
    e = scene.start_move({"d0": ready, "d1": slow}, "--speed", "12M")
    e.wait_event("progress", lambda x: x.get("bytes", 0) > 0, 30)
    r = e.wait(50)
    assert r.rc == 0, r
    scene.now.update({"d0": ready, "d1": slow})
    scene.assert_attached()
    scene.judge()


@needs("ceph")
def test_a_removal_that_was_cut_short_is_ended(lab):
    """librbd removes an image's data and header, and its name last: what has
    only a name cannot be opened, and is there all the same."""
    scene = Scene(lab, ["rbd"])
    former = scene.now["d0"]
    targets = {"d0": volume(lab, "raw")}
    e = scene.start_move(targets, "--delete-source")
    e.kill_at("source-remove", "start")
    info = json.loads(lab.ceph.rbd("info", "--format", "json", f"{lab.ceph.pool}/{former.name}"))
    for name in lab.ceph.rados("ls").split():
        if name.startswith((info["block_name_prefix"], f"rbd_header.{info['id']}")):
            lab.ceph.rados("rm", name)
    assert former.exists()
    r = lab.qpivot.run("recover", "--json")
    assert r.rc == 0 and r.last["event"] == "done", r
    assert not former.exists()
    scene.now.update(targets)
    scene.assert_attached()
    scene.judge()


@needs("ceph")
@timeout(150)
def test_an_image_that_a_killed_client_watches_is_removed(lab):
    """librbd refuses to remove what is watched, for half a minute after the
    watcher's death: that is waited for, and a live one is not."""
    scene = Scene(lab, ["rbd"])
    first, target = scene.now["d0"], volume(lab, "raw")
    watcher = lab.ends(Proc([lab.install.path("qemu-storage-daemon"), "--blockdev",
                             json.dumps(dict(first.protocol(), **{"node-name": "n"}))],
                            lab.path("watcher.log"), env=lab.install.env))
    wait_for("the second watcher", lambda: lab.ceph.rbd(
        "status", f"{lab.ceph.pool}/{first.name}").count("watcher=") == 2)
    r = scene.move({"d0": target}, "--delete-source", rc=None)
    assert r.rc == 3 and "is in use by" in r.error, r
    assert first.exists()
    watcher.kill()
    r = lab.qpivot.run("recover", "--json", seconds=100)
    assert r.rc == 0, r
    scene.now["d0"] = target
    assert not first.exists()
    scene.assert_tidy()
    scene.judge()
