"""Targets that die or stall under a running mirror.  QEMU does not tell: its
job stays READY onto a dead target.  What must hold in each: it is found within
a bound, the guest sees nothing of it, and no pivot goes there."""

import os
import signal
import time

from lab import isolate
from lab.ceph import Ceph
from lab.nfs import Nfs
from lab.proc import wait_for
from lab.runner import timeout
from lab.scene import SIZE, Scene, volume
from lab.storage import MiB, NbdVolume, NfsVolume, RbdVolume
from test_fault import LESS, SLOW, assert_back, copying

SOON = ("--target-timeout", "6s")


def silent(engine, seconds=30):
    """Waits until the user is told that a target does not answer."""
    return engine.wait_event("warning", lambda e: "not answer" in e["message"], seconds)


def held_ready(scene, targets, *options):
    """A move whose d0 is READY and waits for d1, whose job the test pauses:
    the moment in which nothing is written to d0 by the mirror itself."""
    e = scene.start_move(targets, "--speed", "256K", *options)  # until that is paused
    e.wait_event("step", lambda x: x["step"] == "mirror-ready", 30)
    job = wait_for("d1's job", lambda: next(
        (j["id"] for j in scene.vm.jobs() if j["id"].endswith("-d1-mirror")), None), 30)
    scene.vm.qmp.cmd("job-pause", id=job)
    for each in (job, job.replace("-d1-", "-d0-")):
        scene.vm.qmp.cmd("block-job-set-speed", device=each, speed=0)
    e.wait_event("ready", lambda x: x["disk"] == "d0", 30)
    scene.vm.tell("reset", "counters")
    return e, job


def quiet(scene):
    """Stops the guest's writes, and waits until d0's mirror has nothing to do
    for a while: QEMU itself cannot notice anything from here on."""
    scene.vm.pause()

    def rests():
        return [(j["offset"], j["len"]) for j in scene.vm.qmp.cmd("query-block-jobs")
                if "-d0-" in j["device"] and not j["busy"] and j["offset"] == j["len"]]
    seen = []

    def same():
        seen.append(rests())
        return len(seen) > 10 and seen[-1] and seen[-10:] == [seen[-1]] * 10
    wait_for("the mirror to rest", same, 20)


LONG = 10000  # ms: what a busy host does to a write is less, what a target is not


def unharmed(scene):
    """The guest writes on, sees no error, and did not wait for the target."""
    scene.vm.wait_writes(20)
    stats = scene.vm.report()
    for d, s in stats.items():
        assert s["errors"] == 0, (d, s)
        assert s["maxgap_ms"] < LONG, f"{d}: a write took {s['maxgap_ms']} ms"
    print("longest write:", {d: f"{s['maxgap_ms']} ms" for d, s in stats.items()})


def given_up(scene, engine, targets, before, seconds=45):
    """It ended in time, by going back, and did not pivot."""
    begun = time.monotonic()
    r = engine.wait(seconds)
    print(f"given up {time.monotonic() - begun:.1f} s later: {r.error.strip()}")
    assert r.rc == 1 and r.last["event"] == "failed" and not r.named("pivot"), r
    unharmed(scene)
    assert_back(scene, before, targets)
    return r


@timeout(150)
def test_an_nbd_server_dies_or_stalls_while_ready(lab):
    """Nothing is written, so QEMU itself sees nothing."""
    scene = Scene(lab, ["raw", "raw"])
    before = scene.vm.state()
    for fault in ("kill", "stall"):
        targets = {"d0": volume(lab, "nbd"), "d1": volume(lab, "qcow2")}
        server = targets["d0"].server
        e, _ = held_ready(scene, targets, *SOON, "--command-timeout", "3s")
        quiet(scene)
        getattr(server, fault)()
        silent(e)
        assert [j["status"] for j in scene.vm.jobs() if "-d0-" in j["id"]] == ["ready"]
        scene.vm.resume()
        r = e.wait(45)
        if fault == "stall":
            server.go_on()
        assert r.rc == 1 and not r.named("pivot"), r
        unharmed(scene)
        assert_back(scene, before, targets)


@timeout(90)
def test_no_pivot_onto_an_nbd_server_that_was_restarted(lab):
    """It answers everybody but QEMU, whose connection is to the dead one."""
    scene = Scene(lab, ["raw", "raw"])
    before = scene.vm.state()
    targets = {"d0": volume(lab, "nbd"), "d1": volume(lab, "qcow2")}
    e, job = held_ready(scene, targets)
    quiet(scene)
    targets["d0"].server.restart()
    scene.vm.qmp.cmd("job-resume", id=job)
    r = e.wait(45)
    scene.vm.resume()
    assert r.rc == 1 and not r.named("pivot"), r
    # A mirror that may become write-blocking pauses, others end.
    assert "Input/output error" in r.error or "not write to the target" in r.error, r
    unharmed(scene)
    assert_back(scene, before, targets)


def test_an_nbd_server_without_flush_is_refused(lab):
    """QEMU would pivot onto its dead connection: each write an error then."""
    scene = Scene(lab, ["raw"], boot=False)
    target = NbdVolume(lab.nbd(program="nbdkit", size=SIZE, argv=[
        "eval", f"get_size=echo {SIZE}", "pread=head -c $3 /dev/zero", "pwrite=cat >/dev/null"]))
    before = scene.vm.state()
    r = scene.move({"d0": target}, rc=2)
    assert "takes no flush" in r.error, r
    assert scene.vm.state() == before


def own_nfs(lab):
    """A server of the test's own, on a network of its own: it will be killed."""
    isolate.new_network()
    return lab.ends(Nfs(lab.path("nfs")), storage=True).start()


@timeout(200)
def test_an_nfs_server_that_is_gone(lab):
    """With the guest writing, and with nothing under way.  Whoever looks at
    QEMU's nodes now stops it, and the guest, until the server is back: so
    nobody may, and the rest waits for 'recover'."""
    nfs = own_nfs(lab)
    scene = Scene(lab, ["raw", "raw"])
    before = scene.vm.state()
    words = "does not answer, and QEMU would stand still"
    for idle in (False, True):
        targets = {"d0": NfsVolume(nfs, lab.name("v")), "d1": volume(lab, "raw")}
        e, _ = held_ready(scene, targets, *SOON)
        if idle:
            quiet(scene)
        nfs.kill()
        silent(e)
        if idle:
            assert scene.vm.status() == "running"
        else:
            unharmed(scene)
        r = e.wait(60)
        assert r.rc == 3 and words in r.error and "recover" in r.error, r
        r = lab.qpivot.run("recover", "--json", seconds=60)
        assert r.rc == 3 and words in r.error, f"while it is still gone: {r}"
        if not idle:
            unharmed(scene)
        nfs.serve()
        wait_for("qpivot to take it up", lambda: lab.qpivot.run("recover").rc == 0, 40)
        if idle:  # a mirror that begins to write anew may stop QEMU by itself
            scene.vm.resume()
        assert_back(scene, before, targets)


@timeout(90)
def test_an_nfs_server_that_was_restarted(lab):
    """What it had taken and not yet written out may be lost, and neither
    libnfs nor QEMU would notice: never success."""
    nfs = own_nfs(lab)
    scene = Scene(lab, ["raw"], pace=LESS)
    before = scene.vm.state()
    targets = {"d0": NfsVolume(nfs, lab.name("v"))}
    e = scene.start_move(targets, *SLOW, "--target-timeout", "20s")
    copying(e)
    nfs.kill()
    nfs.serve()
    r = given_up(scene, e, targets, before)
    assert "started anew" in r.error, r


@timeout(150)
def test_an_osd_that_stalls_and_one_that_dies(lab):
    ceph = lab.ends(Ceph(lab.path("ceph")), storage=True).start()
    scene = Scene(lab, ["raw", "raw"])
    targets = {"d0": RbdVolume(ceph, lab.name("v")), "d1": volume(lab, "raw")}
    e, job = held_ready(scene, targets)
    ceph.osd.send(signal.SIGSTOP)
    silent(e, 40)
    wait_for("another connection, as that one has failed",
             lambda: ceph.connections(e.proc.pid) > 1, 40)
    unharmed(scene)
    ceph.osd.send(signal.SIGCONT)
    e.wait_event("warning", lambda x: "answers again" in x["message"], 60)
    scene.vm.qmp.cmd("job-resume", id=job)
    assert e.wait(60).rc == 0
    scene.now.update(targets)
    scene.assert_attached()
    scene.judge()

    back = {"d0": volume(lab, "raw"), "d1": volume(lab, "raw")}
    scene.move(back)
    targets = {"d0": RbdVolume(ceph, lab.name("v")), "d1": volume(lab, "raw")}
    e, _ = held_ready(scene, targets, *SOON)
    ceph.osd.kill()
    silent(e, 40)
    r = e.wait(120)
    assert r.rc == 3 and "answer" in r.error and not r.named("pivot"), r
    unharmed(scene)
    scene.vm.kill()
    scene.judge_dead()


@timeout(150)
def test_a_monitor_that_stalls(lab):
    """The OSD answers on, to who is connected; a cluster is more than that."""
    ceph = lab.ends(Ceph(lab.path("ceph")), storage=True).start()
    scene = Scene(lab, ["raw", "raw"])
    targets = {"d0": RbdVolume(ceph, lab.name("v")), "d1": volume(lab, "raw")}
    e, job = held_ready(scene, targets)
    ceph.mon_daemon.send(signal.SIGSTOP)
    silent(e, 40)
    unharmed(scene)
    ceph.mon_daemon.send(signal.SIGCONT)
    e.wait_event("warning", lambda x: "answers again" in x["message"], 60)
    scene.vm.qmp.cmd("job-resume", id=job)
    assert e.wait(60).rc == 0
    scene.now.update(targets)
    scene.assert_attached()
    scene.judge()


@timeout(90)
def test_a_target_that_loses_its_end_or_its_name(lab):
    """The file under a loop device is cut off; a file is removed, one is
    replaced: QEMU goes on writing to what nobody will find again."""
    scene = Scene(lab, ["raw", "raw"])
    before = scene.vm.state()
    targets = {"d0": volume(lab, "block"), "d1": volume(lab, "raw")}
    e, _ = held_ready(scene, targets, *SOON)
    quiet(scene)  # a write to the end would hide it
    os.truncate(targets["d0"].loop.file, 16 * MiB)
    r = e.wait(30)
    scene.vm.resume()
    assert r.rc == 1 and "read to its end" in r.error, r
    unharmed(scene)
    assert_back(scene, before, targets)
    for replaced in (False, True):
        targets = {"d0": volume(lab, "raw"), "d1": volume(lab, "raw")}
        e, job = held_ready(scene, targets)
        os.rename(targets["d0"].path, targets["d0"].path + ".away")
        if replaced:
            with open(targets["d0"].path, "wb") as f:
                f.truncate(SIZE)
        scene.vm.qmp.cmd("job-resume", id=job)  # found right before the pivot
        r = e.wait(40)
        assert r.rc == 1 and ("replaced" if replaced else "removed") in r.error, r
        os.unlink(targets["d0"].path + ".away")
        if replaced:  # not ours to remove
            os.unlink(targets["d0"].path)
        unharmed(scene)
        assert_back(scene, before, targets)


def test_an_nbd_server_for_one_client_only(lab):
    """It cannot be asked while QEMU is that client; this is told, not failed."""
    scene = Scene(lab, ["raw"])
    target = NbdVolume(lab.nbd(SIZE, argv=("-e", "1")))
    r = scene.move({"d0": target})
    assert any("only QEMU can tell" in e["message"] for e in r.named("warning")), r
    scene.assert_attached()
    scene.judge()
