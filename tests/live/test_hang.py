"""Storage that never answers while a volume is made: the engine goes on in
time, the process ends, nothing is freed, and recover does the rest."""

import json
import os
import signal
import time

from lab.ceph import Ceph
from lab.proc import wait_for
from lab.qpivot import PROGRAM
from lab.runner import timeout
from lab.scene import Scene, volume
from lab.storage import NfsVolume, RbdVolume
from test_dead import own_nfs

PRELOAD = os.path.join(os.path.dirname(os.path.dirname(PROGRAM)), "tests/live/libhang.so")


def parked(scene, engine, seconds):
    """It has ended in time, and the guest noticed nothing."""
    begun = time.monotonic()
    r = engine.wait(seconds)
    print(f"parked {time.monotonic() - begun:.1f} s later: {r.error.strip()}")
    assert r.rc == 3 and r.last["event"] == "parked", r
    scene.vm.wait_writes(20)
    scene.assert_attached()
    return r


def hangs_at_create(engine):
    engine.wait_event("step", lambda x: (x["step"], x["state"]) == ("target-create", "start"), 30)


@timeout(120)
def test_a_folder_hangs_at_create(lab):
    """The thread never comes back: by the limit, by an abort, by letting go."""
    scene = Scene(lab, ["raw", "raw"])
    hang = lab.path("hang")
    env = {"LD_PRELOAD": PRELOAD, "HANG": hang}

    def begin(*options):
        with open(hang, "w"):
            pass
        targets = {"d0": volume(lab, "raw"), "d1": volume(lab, "qcow2")}
        e = scene.start_move(targets, *options, env=env)
        hangs_at_create(e)
        return targets, e

    targets, e = begin("--target-timeout", "3s")
    r = parked(scene, e, 40)
    assert "does not answer since 3 s" in r.error and "recover" in r.error, r
    os.unlink(hang)
    r = lab.qpivot.run("recover", "--json")
    assert r.rc == 0 and r.last["event"] == "done", r
    scene.now.update(targets)
    scene.assert_attached()
    scene.assert_tidy()
    scene.judge()

    before = scene.vm.state()
    for signals in (1, 2):
        targets, e = begin()
        for _ in range(signals):
            e.interrupt()
        r = parked(scene, e, 60)
        os.unlink(hang)
        r = lab.qpivot.run("recover", "--undo", "--json")
        assert r.rc == 0 and r.last["event"] == "failed", r
        assert scene.vm.state() == before
        assert not any(v.exists() for v in targets.values())
    scene.judge()


def stops_before_create(scene, target):
    """A move whose engine died before the volume was made: what comes next is
    its creation, and nothing looks at the storage before that."""
    for _ in range(5):
        e = scene.start_move({"d0": target})
        e.kill_at("power-hold", "start")
        r = scene.lab.qpivot.run("show", e.events[0]["op"], "--json")
        if not any(x["step"] == "target-create" for x in json.loads(r.text)["records"]):
            return e.events[0]["op"]
        assert scene.lab.qpivot.run("recover", "--undo", "--json").rc == 0
    raise AssertionError("never killed in time")


@timeout(300)
def test_a_server_stands_still_at_create(lab):
    """Its requests have their own limits; each is short, and so are they all."""
    nfs = own_nfs(lab)
    ceph = lab.ends(Ceph(lab.path("ceph")), storage=True).start()
    scene = Scene(lab, ["raw"])
    before = scene.vm.state()
    for target, server in ((NfsVolume(nfs, lab.name("v")), nfs.proc),
                           (RbdVolume(ceph, lab.name("v")), ceph.osd)):
        op = stops_before_create(scene, target)
        server.send(signal.SIGSTOP)
        try:
            r = parked(scene, lab.qpivot.start("recover", op, "--json"), 150)
        finally:
            server.send(signal.SIGCONT)
        assert "answer" in r.error, r
        wait_for("the server", lambda: target.exists() in (True, False), 60)
        r = lab.qpivot.run("recover", "--undo", "--json")
        assert r.rc == 0 and r.last["event"] == "failed", r
        assert scene.vm.state() == before
        assert not target.exists()
    assert [f for f in os.listdir(nfs.export) if "qpv-" in f] == []
    assert [i for i in ceph.images() if "qpv-" in i] == []
    scene.judge()
