"""What DRBD does not let the machine use is refused before anything changes."""

from lab.qpivot import REFUSED
from lab.runner import needs, timeout
from scene import DrbdVolume, Scene


def refused(scene, word):
    before = scene.vm.state()
    r = scene.move(DrbdVolume(), rc=REFUSED)
    print(r.error)
    assert word in r.error, r
    assert scene.vm.state() == before, (before, scene.vm.state())
    scene.write()
    scene.assert_file(scene.source)


@needs("drbd")
@timeout(120)
def test_a_secondary_is_refused(lab):
    scene = Scene(lab)
    refused(scene, "wrong medium type")
    scene.b.run("drbdadm primary r0")
    refused(scene, "wrong medium type")


@needs("drbd")
@timeout(120)
def test_a_device_that_is_held_is_refused(lab):
    scene = Scene(lab)
    scene.a.run("drbdadm primary r0")
    scene.machine(scene.a, DrbdVolume(), 1)
    refused(scene, "use")
