"""What DRBD does not let the machine use is refused before anything changes."""

from lab.qpivot import REFUSED
from lab.runner import needs, timeout
from scene import DrbdVolume, Scene


def refused(scene, scheme, word):
    before, roles = scene.vm.state(), scene.a.state()
    r = scene.move(DrbdVolume(scheme), rc=REFUSED)
    print(r.error)
    assert word in r.error, r
    assert scene.vm.state() == before, (before, scene.vm.state())
    assert scene.a.state() == roles
    scene.write()
    scene.assert_file(scene.source)


@needs("drbd")
@timeout(300)
def test_a_secondary_is_refused(lab):
    """As a plain device it is no use; by the resource it is, unless the peer
    has it."""
    scene = Scene(lab)
    refused(scene, "block", "name it drbd:RESOURCE")
    scene.b.run("drbdadm primary r0")
    refused(scene, "block", "name it drbd:RESOURCE")
    refused(scene, "drbd", "where it is Primary")


@needs("drbd")
@timeout(300)
def test_a_device_that_is_held_is_refused(lab):
    scene = Scene(lab)
    scene.a.run("drbdadm primary r0")
    scene.machine(scene.a, DrbdVolume(), 1)
    refused(scene, "block", "use")
    refused(scene, "drbd", "use")
