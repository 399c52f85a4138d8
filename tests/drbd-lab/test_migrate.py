"""A running machine goes from node to node, its disk onto DRBD or on it."""

from lab.runner import needs, timeout
from nodes import HEALTHY
from scene import DrbdVolume, Scene


def migrate(scene, how):
    """To node b, whose machine has the resource's device."""
    there = scene.machine(scene.b, DrbdVolume(), argv=("-incoming", "defer", "-S"))
    scene.write()
    e = scene.qpivot.start("migrate", "--qmp", scene.vm.qmp_path, "--to", there.remote_path,
                           "--json", "--bandwidth", "2M", "--disk", f"d0={how}")
    if how == "nbd":
        scene.write_amid(e, "progress")
    r = e.wait()
    assert r.rc == 0 and r.disks["d0"]["how"] == how, r
    assert there.status() == "running" and not scene.vm.running()
    scene.write(there)
    scene.assert_equal()
    return there


@needs("drbd")
@timeout(300)
def test_one_primary_is_enough_for_a_mirror(lab):
    scene = Scene(lab, argv=())
    scene.b.run("drbdadm primary r0")
    there = migrate(scene, "nbd")
    assert scene.a.state() == HEALTHY.replace("Secondary/Secondary", "Secondary/Primary")
    there.quit()
    scene.b.run("drbdadm secondary r0")


@needs("drbd")
@timeout(300)
def test_two_primaries_share_it_while_it_goes(lab):
    """Given back in the order that DRBD allows."""
    scene = Scene(lab, source=DrbdVolume(), argv=())
    scene.a.run("drbdadm net-options --allow-two-primaries=yes r0")
    scene.b.run("drbdadm primary r0")
    there = migrate(scene, "share")
    scene.a.run("drbdadm secondary r0 && drbdadm net-options --allow-two-primaries=no r0")
    scene.write(there)
    scene.assert_equal()
    there.quit()
    scene.b.run("drbdadm secondary r0")
    assert scene.a.state() == HEALTHY
