"""doctor: what a killed engine leaves in QEMU when its journal is lost too."""

import os
import shutil

from lab.proc import wait_for
from lab.runner import timeout
from lab.scene import Scene, volume

SLOW = ("--speed", "1M")


def doctor(lab, vm, *options, rc=None, qmp=None):
    r = lab.qpivot.run("doctor", "--qmp", qmp or vm.qmp_path, "--json", *options)
    assert rc is None or r.rc == rc, r
    return r.last


def items(told, key, value):
    return sorted(i["name"] for i in told["items"] if i[key] == value)


def told_of(told, op):
    return next(o for o in told["operations"] if o["op"] == op)


def statuses(vm):
    return [j["status"] for j in vm.jobs()]


@timeout(120)
def test_leftovers_without_a_journal_are_found_and_removed(lab):
    """Mirrors that are ready, their nodes and the claim, beside a job and a
    node of somebody else; and then everything of a copy under way."""
    scene = Scene(lab, ["raw", "qcow2", "raw"])
    vm, before = scene.vm, scene.vm.state()
    foreign = lab.path("foreign.raw")
    with open(foreign, "wb") as f:
        f.truncate(scene.vm.block("d2")["inserted"]["image"]["virtual-size"])
    vm.qmp.cmd("blockdev-add", driver="file", node_name="theirs", filename=foreign)
    vm.qmp.cmd("blockdev-mirror", job_id="their-job", device="n-d2", target="theirs",
               sync="full", speed=4096, filter_node_name="their-top")
    with_foreign = vm.state()
    assert doctor(lab, vm, rc=0)["foreign"]["jobs"] == ["their-job"]

    e = scene.start_move({"d0": volume(lab, "raw"), "d1": volume(lab, "qcow2")}, *SLOW)
    e.wait_event("progress", lambda x: x.get("bytes", 0) > 0, 30)
    op = e.events[0]["op"]
    # An engine that lives: told, and not touched.
    told = doctor(lab, vm, "--fix", "--op", op, rc=3, qmp=vm.second_path)
    assert told_of(told, op)["journal"] == "live", told
    assert told["removed"] == [] and told["next"] == f"qpivot abort {op}", told
    e.kill()
    # Known here: what undoes it, volumes too, is recover.
    told = doctor(lab, vm, "--fix", rc=3)
    assert told_of(told, op)["journal"] == "dead", told
    assert told["removed"] == [] and told["next"] == f"qpivot recover {op}", told
    shutil.rmtree(lab.qpivot.state)
    # Unknown: perhaps of an engine on another host.
    told = doctor(lab, vm, "--fix", rc=3)
    assert told["removed"] == [] and f"--op {op}" in told["next"], told
    assert items(told, "kind", "claim") == ["qpv-claim"], told
    assert len(items(told, "kind", "job")) == 2, told
    told = doctor(lab, vm, "--fix", "--op", op, rc=0)
    assert told["items"] == [] and len(told["removed"]) >= 9, told
    assert vm.state() == with_foreign, "nothing else has changed"

    vm.qmp.cmd("job-cancel", id="their-job")
    wait_for("the job's end", lambda: vm.jobs() == [])
    vm.qmp.cmd("blockdev-del", node_name="theirs")
    assert vm.state() == before
    scene.assert_attached()
    scene.judge()


@timeout(120)
def test_the_live_disk_is_never_a_leftover(lab):
    """After a pivot the guest's disk carries our names: in use. A group that
    is frozen by a dead engine thaws."""
    scene = Scene(lab, ["raw", "raw"])
    vm = scene.vm
    scene.move({"d0": volume(lab, "raw")})
    op = scene.lab.qpivot.run("list", "--all", "--json").last["op"]
    shutil.rmtree(lab.qpivot.state)
    before = vm.state()
    for options in ((), ("--fix",), ("--fix", "--op", op)):
        told = doctor(lab, vm, *options, rc=0)
        assert items(told, "use", "live") == [f"qpv-{op}-d0", f"qpv-{op}-d0-file"], told
        assert told["removed"] == [], told
    assert vm.state() == before

    # Both ready, and one of them driven into PENDING.
    e = scene.start_move({"d0": volume(lab, "raw"), "d1": volume(lab, "raw")})
    e.wait_event("step", lambda x: x["step"] == "mirror" and x["state"] == "end", 60)
    e.stall()
    second = e.events[0]["op"]
    names = [f"qpv-{second}-d0-mirror", f"qpv-{second}-d1-mirror"]
    wait_for("ready mirrors", lambda: statuses(vm) == ["ready", "ready"])
    e.kill()
    shutil.rmtree(lab.qpivot.state)
    vm.qmp.cmd("job-complete", id=names[0])
    wait_for("a pending job", lambda: "pending" in statuses(vm))
    told = doctor(lab, vm, rc=3)
    assert told["frozen"] == names[:1], told
    text = lab.qpivot.run("doctor", "--qmp", vm.qmp_path)
    assert text.text.startswith("THE GUEST IS FROZEN"), text
    told = doctor(lab, vm, "--fix", "--op", second, rc=0)
    assert told["frozen"] == [], told
    assert vm.state() == before
    scene.assert_attached()
    scene.assert_tidy()
    scene.judge()


@timeout(60)
def test_no_vm_and_no_journal(lab):
    r = lab.qpivot.run("doctor", "--qmp", lab.path("nothing"))
    assert r.rc == 4, r
    assert not os.path.exists(lab.qpivot.state), "to look makes no journal"
