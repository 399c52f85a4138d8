"""QEMU must not touch what it has freed: a mirror that takes the guest's writes
is ended in many ways, under these writes, in a QEMU that ends if it does."""

import os
import shutil
import signal

from lab.proc import wait_for
from lab.pair import Pair
from lab.qpivot import PROGRAM
from lab.runner import timeout
from lab.scene import SIZE, Scene, volume
from lab.storage import BlockVolume, MiB
from test_migrate import assert_left_alone

PRELOAD = os.path.join(os.path.dirname(os.path.dirname(PROGRAM)), "tests/live/libfence.so")
SLOW = ("--speed", "16M")


def fence(lab):
    """From now on each QEMU of the test: see fence.c."""
    lab.install.env = dict(lab.install.env, LD_PRELOAD=PRELOAD, FENCE="128")


@timeout(150)
def test_a_destination_stalls_under_the_guests_writes(lab):
    """What the guest writes is under way to it, and so is the copy."""
    fence(lab)
    pair = Pair(lab, ["raw"], to={"d0": "raw"}, pace=100)
    e = pair.start("--bandwidth", "4M", "--command-timeout", "4s")
    e.wait_event("progress", lambda x: x.get("bytes", 0) > 0, 60)
    pair.dst.proc.send(signal.SIGSTOP)
    assert_left_alone(pair, e.wait(100))


@timeout(200)
def test_ended_under_the_guests_writes(lab):
    fence(lab)
    scene = Scene(lab, ["raw", "raw"], pace=1)
    before = scene.vm.state()

    def begin(*options):
        targets = {"d0": volume(lab, "raw"), "d1": volume(lab, "qcow2")}
        return targets, scene.start_move(targets, "--copy-mode", "write-blocking", *options)

    def assert_back(targets):
        assert scene.vm.state() == before
        assert not any(t.exists() for t in targets.values())
        scene.vm.wait_writes(20)

    for _ in range(3):  # interrupted while it copies
        targets, e = begin(*SLOW)
        e.wait_event("progress", lambda x: x.get("bytes", 0) > 0, 30)
        e.interrupt()
        assert e.wait(30).rc == 1
        assert_back(targets)

    targets, e = begin(*SLOW)  # its engine dies
    e.wait_event("progress", lambda x: x.get("bytes", 0) > 0, 30)
    e.kill()
    r = lab.qpivot.run("recover", "--undo", "--json")
    assert r.rc in (0, 1), r
    assert_back(targets)

    targets, e = begin(*SLOW)  # its journal is lost
    op = e.wait_event("progress", lambda x: x.get("bytes", 0) > 0, 30)["op"]
    e.kill()
    wait_for("it to be dead", lambda: not e.proc.alive(), 10)
    shutil.rmtree(lab.qpivot.state)
    r = lab.qpivot.run("doctor", "--qmp", scene.vm.qmp_path, "--fix", "--op", op, "--json")
    assert r.rc == 0, r
    assert scene.vm.state() == before
    scene.judge()


@timeout(120)
def test_fails_under_the_guests_writes(lab):
    """The target's device is thin, and below it is no space."""
    fence(lab)
    scene = Scene(lab, ["raw"], pace=1)
    before = scene.vm.state()
    target = BlockVolume(lab.loop(SIZE, os.path.join(lab.small_fs(2 * MiB), "file")))
    e = scene.start_move({"d0": target}, "--copy-mode", "write-blocking", *SLOW)
    r = e.wait(60)
    assert r.rc == 1 and "not write to the target" in r.error, r
    assert scene.vm.state() == before
    scene.vm.wait_writes(20)
    scene.judge()
