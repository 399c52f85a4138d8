"""What else happens to a machine in the middle of a move: the guest resets or
powers off, somebody unplugs the disk, stops the machine, or has his hands on
our jobs by another monitor."""

import json
import os

from lab.proc import wait_for
from lab.qemu import Disk
from lab.qmp import Qmp
from lab.runner import timeout
from lab.scene import SIZE, Scene, source, volume
from lab.storage import NbdVolume
from test_dead import held_ready, unharmed
from test_fault import LESS, SLOW, assert_back, copying


@timeout(90)
def test_reset_stop_and_cont_while_copying_and_ready(lab):
    scene = Scene(lab, ["raw", "raw"], pace=LESS)
    targets = {"d0": volume(lab, "qcow2"), "d1": volume(lab, "raw")}
    e, job = held_ready(scene, targets)
    acked = {d: s["acked"] for d, s in scene.vm.stats.items()}
    scene.vm.qmp.cmd("system_reset")
    e.wait_event("warning", lambda x: "reset" in x["message"], 20)
    scene.vm.wait_ready(boots=2)
    for d, a in acked.items():
        assert scene.vm.boot_report[d]["maxseq"] >= a, d
    scene.vm.qmp.cmd("stop")
    scene.vm.qmp.cmd("job-resume", id=job)
    r = e.wait(40)
    assert r.rc == 0, r
    scene.now.update(targets)
    assert scene.vm.status() == "paused", "it stays as somebody wanted it"
    scene.vm.qmp.cmd("cont")
    scene.assert_attached()
    scene.judge()

    targets = {"d0": volume(lab, "raw"), "d1": volume(lab, "raw")}
    e = scene.start_move(targets, "--speed", "16M")
    copying(e)
    scene.vm.qmp.cmd("stop")
    scene.vm.qmp.cmd("cont")
    r = e.wait(60)
    assert r.rc == 0 and scene.vm.status() == "running", r
    scene.now.update(targets)
    scene.assert_attached()
    scene.assert_tidy()
    scene.judge()


@timeout(90)
def test_the_guest_powers_off_while_ready(lab):
    scene = Scene(lab, ["raw", "raw"], pace=LESS)
    targets = {"d0": volume(lab, "qcow2"), "d1": volume(lab, "raw")}
    e, job = held_ready(scene, targets)
    scene.vm.pause()
    scene.vm.tell("poweroff")
    e.wait_event("warning", lambda x: "powers off" in x["message"], 20)
    assert scene.vm.proc.alive(), "not while jobs run"
    scene.vm.qmp.cmd("job-resume", id=job)
    r = e.wait(60)
    assert r.rc == 0, r
    scene.now.update(targets)
    assert scene.vm.proc.wait(20) == 0, "QEMU ends after all, as it would have"
    scene.judge_dead()


def pluggable(lab):
    """A VM with two disks that its guest can be told to give up."""
    disks = [Disk(f"d{i}", source(lab, "raw", f"d{i}"), props={"bus": f"port{i}"})
             for i in (0, 1)]
    return lab.vm(disks, argv=[x for i in (0, 1) for x in (
        "-device", f"pcie-root-port,id=port{i},slot={i + 1}")])


@timeout(120)
def test_a_disk_is_unplugged_in_the_pivot(lab):
    """The engine dies when all is ready to change, and one of them is unplugged
    before the next one comes: the others go back, or are over already."""
    vm = pluggable(lab)
    vm.wait_writes(20)
    targets = {"d0": volume(lab, "raw"), "d1": volume(lab, "raw")}
    e = lab.qpivot.start_move(vm, {d: v.uri() for d, v in targets.items()}, "--delete-source")
    e.kill_at("pivot", "start")
    vm.qmp.cmd("device_del", id="d0")
    wait_for("the unplug", lambda: "/d0/" not in json.dumps(vm.qmp.cmd("query-block")), 20)
    r = lab.qpivot.run("recover", "--json")
    assert r.rc == 0, r
    print("it", r.last["event"])
    warned = [w["message"] for w in r.named("warning")]
    assert any("d0: the device was unplugged" in w for w in warned), warned
    on = json.dumps(vm.block("d1")["inserted"])
    if r.last["event"] == "failed":
        assert "n-d1" in on and not any(v.exists() for v in targets.values())
    else:
        assert targets["d1"].path in on and targets["d0"].exists()
        assert os.path.exists(vm.disks[0].volume.path), "whose copy nothing proves"
        assert not os.path.exists(vm.disks[1].volume.path)
    assert vm.jobs() == []
    assert "qpv-claim" not in json.dumps(vm.qmp.cmd("qom-list", path="/objects"))


@timeout(90)
def test_a_disk_is_unplugged_while_ready(lab):
    """The other one goes back, too: they move together or not at all."""
    vm = pluggable(lab)
    slow = lab.path("slow.raw")  # d1 is not READY before it is paused
    with open(slow, "wb") as f:
        f.truncate(SIZE)
    targets = {"d0": volume(lab, "qcow2"), "d1": NbdVolume(lab.nbd(
        program="nbdkit", path=slow, argv=["--filter=rate", "file", slow, "rate=40M"]))}
    e = lab.qpivot.start_move(vm, {d: v.uri() for d, v in targets.items()})
    job = wait_for("d1's job", lambda: next(
        (j["id"] for j in vm.jobs() if j["id"].endswith("-d1-mirror")), None), 20)
    vm.qmp.cmd("job-pause", id=job)
    e.wait_event("ready", lambda x: x["disk"] == "d0", 30)
    vm.qmp.cmd("device_del", id="d0")
    r = e.wait(60)
    assert r.rc == 1 and "unplugged" in r.error, r
    assert vm.jobs() == [] and not [n for n in vm.nodes() if n.startswith("qpv-")]
    assert "qpv-claim" not in json.dumps(vm.qmp.cmd("qom-list", path="/objects"))
    assert not targets["d0"].exists()
    assert "n-d1" in json.dumps(vm.block("d1")["inserted"])


# Whose hands are on d0's job when it is READY, and how the move ends then:
# back, or on the target where the guest is already.
HANDS = (
    ("cancelled", ["job-cancel"], 1),
    ("cancelled and dismissed", ["job-cancel", "job-dismiss"], 1),
    ("ended as a copy", ["block-job-cancel"], 1),
    ("completed", ["job-complete"], 1),
    ("completed and finalized", ["job-complete", "job-finalize"], 0),
    ("slowed down, paused, resumed", ["block-job-set-speed", "job-pause", "job-resume"], 0),
)


def lay_hands(monitor, job, command):
    monitor.cmd(command, **({"device": job} if command.startswith("block-") else {"id": job}),
                **({"speed": 1 << 20} if command.endswith("speed") else {}))
    wanted = {"job-complete": "pending", "job-cancel": "concluded",
              "job-finalize": "concluded", "block-job-cancel": "pending"}.get(command)
    if wanted:
        wait_for(f"the job to be {wanted}", lambda: [
            j for j in monitor.cmd("query-jobs") if j["id"] == job and j["status"] == wanted], 15)


def end_of(scene, engine, name, wanted, before, targets):
    r = engine.wait(40)
    print(f"{name}: exit {r.rc}, {r.error.strip()}")
    assert r.rc == wanted, (name, r)
    if wanted == 1:
        assert_back(scene, before, targets)
    else:
        scene.now.update(targets)
        scene.assert_attached()
        scene.assert_tidy()
        scene.judge()
    unharmed(scene)


@timeout(200)
def test_another_client_has_its_hands_on_our_jobs(lab):
    scene = Scene(lab, ["raw", "raw"])
    other = Qmp(scene.vm.second_path)
    for name, commands, wanted in HANDS:
        before = scene.vm.state()
        targets = {"d0": volume(lab, "raw"), "d1": volume(lab, "raw")}
        e, job = held_ready(scene, targets)
        e.stall()  # it finds all of this done, in whatever order it looks
        for command in commands:
            lay_hands(other, job.replace("-d1-", "-d0-"), command)
        e.go_on()
        if wanted == 0:
            other.cmd("job-resume", id=job)
        end_of(scene, e, name, wanted, before, targets)


@timeout(120)
def test_another_client_completes_the_only_job(lab):
    """Then the guest is on the target before the engine knows; also while it
    copies, and around the pivot, a cancel by somebody ends it one way."""
    scene = Scene(lab, ["raw"])
    other = Qmp(scene.vm.second_path)
    for commands in (["job-complete"], ["job-complete", "job-dismiss"]):
        targets = {"d0": volume(lab, "raw")}
        e = scene.start_move(targets, *SLOW)
        copying(e)
        e.stall()
        job = other.cmd("query-jobs")[0]["id"]
        other.cmd("block-job-set-speed", device=job, speed=0)
        wait_for("READY", lambda: other.cmd("query-jobs")[0]["status"] == "ready", 30)
        for command in commands:
            other.cmd(command, id=job)
            wait_for("its end", lambda: all(
                j["status"] == "concluded" for j in other.cmd("query-jobs")), 15)
        e.go_on()
        end_of(scene, e, commands, 0, None, targets)
    before = scene.vm.state()
    targets = {"d0": volume(lab, "raw")}
    e = scene.start_move(targets, *SLOW)
    copying(e)
    other.cmd("job-cancel", id=other.cmd("query-jobs")[0]["id"])
    end_of(scene, e, "cancelled while copying", 1, before, targets)
