"""LINSTOR resources as targets and sources of a real guest, over a controller
that stands for the real one: what is made is whole, what goes back leaves no
resource, no definition and no property."""

import os

from lab.linstor import Linstor
from lab.runner import timeout
from lab.scene import SIZE, Scene, volume
from lab.storage import MiB

SLOW = ("--speed", "1M")
MADE = [("POST", "spawn"), ("POST", "make-available"), ("POST", "autoplace")]


def controller(lab, *options):
    return lab.ends(Linstor(lab, *options), storage=True)


def assert_nothing_left(there, target):
    assert target.name not in there.state(), there.state()
    assert not os.path.lexists(target.path)


@timeout(120)
def test_a_disk_moves_onto_a_resource_and_off_again(lab):
    there = controller(lab)
    scene = Scene(lab, ["raw"])
    target, back = there.volume(), volume(lab, "raw")
    scene.move({"d0": target})
    assert there.calls() == MADE, there.calls()
    state = there.state()[target.name]
    assert state["kib"] * 1024 == SIZE and state["flags"] == [], state
    assert state["props"]["DrbdOptions/ExactSize"] == "True", state
    scene.assert_attached()
    scene.assert_tidy()
    scene.judge()
    # As it is now, somebody uses it.
    again = Scene(lab, ["raw"], boot=False)
    r = again.move({"d0": target}, existing=True, rc=2)
    assert "in use by node 'alpha'" in r.error, r.error
    assert there.calls() == MADE, there.calls()
    scene.move({"d0": back})
    scene.assert_attached()
    scene.judge()
    assert target.exists(), "a source is not removed unasked"
    # And now that nobody does, it is a target that is there.
    scene.move({"d0": target}, existing=True)
    scene.judge()
    assert there.calls() == MADE, there.calls()


@timeout(150)
def test_what_goes_back_leaves_nothing(lab):
    """Aborted in the middle, and killed at each of the steps that change
    something at the controller, and recovered."""
    there = controller(lab)
    scene = Scene(lab, ["raw"])
    before = scene.vm.state()
    target = there.volume()
    e = scene.start_move({"d0": target}, *SLOW)
    e.wait_event("progress", lambda x: x.get("bytes", 0) > 0, 60)
    assert target.exists()
    e.interrupt()
    r = e.wait(60)
    assert r.rc == 1, r
    assert_nothing_left(there, target)
    assert there.calls() == MADE + [("DELETE", target.name)], there.calls()
    for step, state in (("target-create", "start"), ("target-create", "end"),
                        ("target-publish", "start"), ("mirror", "end")):
        target = there.volume()
        e = scene.start_move({"d0": target}, *SLOW)
        e.kill_at(step, state)
        r = lab.qpivot.run("recover", "--undo", "--json")
        assert r.rc == 0, r
        assert_nothing_left(there, target)
        assert scene.vm.state() == before, step
    scene.assert_attached()
    scene.judge()


@timeout(120)
def test_faults_of_the_controller_lead_back_or_do_not_matter(lab):
    there = controller(lab)
    scene = Scene(lab, ["raw"], boot=False)
    before = scene.vm.state()
    for line, rc in (("POST autoplace refuse 996", 1), ("POST make-available offline", 1),
                     ("POST spawn reset-after", 0), ("DELETE r 500-before", None)):
        target = there.volume()
        there.fault(line, "POST autoplace refuse 996" if rc is None else "")
        r = scene.move({"d0": target}, rc=1 if rc is None else rc)
        if rc == 0:
            scene.assert_attached()
            scene.move({"d0": volume(lab, "raw")})
            before = scene.vm.state()
            continue
        assert_nothing_left(there, target)
        assert scene.vm.state() == before, line
    assert lab.qpivot.run("list", "--json").text.strip() == ""


@timeout(120)
def test_a_target_that_another_node_opens_is_no_target(lab):
    there = controller(lab)
    scene = Scene(lab, ["raw"], boot=False)
    before = scene.vm.state()
    target = there.volume()
    e = scene.start_move({"d0": target}, *SLOW)
    e.wait_event("progress", lambda x: x.get("bytes", 0) > 0, 60)
    user = there.folder / "in-use.beta"
    user.touch()
    r = e.wait(90)
    assert r.rc == 3 and "is in use on node 'beta', too" in r.text, r
    assert target.exists(), "what is in use is not removed"
    user.unlink()
    r = lab.qpivot.run("recover", "--undo", "--json")
    assert r.rc == 0, r
    assert_nothing_left(there, target)
    assert scene.vm.state() == before


@timeout(120)
def test_odd_sizes_and_thick_pools(lab):
    """A source that is no whole number of KiB gets a larger target; what thick
    pools held before does not show."""
    there = controller(lab, "--node", "alpha=LVM", "--node", "beta=LVM")
    odd = SIZE + 512
    scene = Scene(lab, ["raw"], size=odd)
    target = there.volume()
    r = scene.move({"d0": target})
    assert r.disks["d0"]["grows_to"] == SIZE + 1024, r
    plan = r.named("plan")[0]["disks"][0]
    assert (plan["sync"], plan["zero"], plan["shim"]) == ("full", False, True), plan
    scene.judge()


@timeout(60)
def test_a_volume_at_rest_is_copied_there_and_back(lab):
    there = controller(lab)
    path, again = lab.path("a.raw"), lab.path("b.raw")
    with open(path, "wb") as f:
        f.write(os.urandom(MiB))
        f.truncate(8 * MiB)
    target = there.volume()
    r = lab.qpivot.run("copy", path, target.uri(), "--verify", "--json")
    assert r.rc == 0, r
    assert there.state()[target.name]["props"]["Aux/qpivot/volume"].startswith("qpv-copy-")
    r = lab.qpivot.run("copy", target.uri("existing=yes"), again, "--json")
    assert r.rc == 0, r
    with open(path, "rb") as a, open(again, "rb") as b:
        assert a.read() == b.read()
