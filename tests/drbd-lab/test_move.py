"""The disk of a running machine goes to DRBD and back."""

from lab.qpivot import REFUSED, ROLLED_BACK
from lab.runner import needs, timeout
from lab.storage import FileVolume
from nodes import HEALTHY, SIZE, MiB
from scene import DrbdVolume, Scene


def there_and_back(lab, scheme, size=SIZE):
    scene = Scene(lab, size)
    target, back = DrbdVolume(scheme), FileVolume("/local/back.raw", direct=True)
    for volume in (target, back):
        if scheme == "block" and volume is target:
            scene.a.run("drbdadm primary r0")
        scene.write()
        scene.move(volume)
        scene.assert_attached(volume)
        scene.write()
        scene.assert_equal() if volume is target else scene.assert_file(volume)
    if scheme == "block":
        scene.a.run("drbdadm secondary r0")  # nothing holds it
    assert scene.a.state() == HEALTHY
    return scene


@needs("drbd")
@timeout(300)
def test_the_peer_holds_every_write(lab):
    """The resource is promoted for it, and demoted when it is left."""
    there_and_back(lab, "drbd")


@needs("drbd")
@timeout(300)
def test_a_larger_device_is_filled_through_the_shim(lab):
    scene = there_and_back(lab, "block", 12 * MiB)
    assert scene.vm.block("d0")["inserted"]["image"]["virtual-size"] == SIZE


@needs("drbd")
@timeout(600)
def test_no_pivot_without_the_peer(lab):
    """To QEMU a device whose peer is lost is as good as any."""
    scene = Scene(lab)
    target, before = DrbdVolume("drbd"), scene.vm.state()
    e = scene.start_move(target, "--speed", "2M")
    scene.write_amid(e, "progress", unplug=True)
    r = e.wait()
    assert r.rc == ROLLED_BACK and "no pivot onto a degraded target" in r.error, r
    assert scene.vm.state() == before, (before, scene.vm.state())
    assert "ro:Secondary/Unknown" in scene.a.state(), scene.a.state()
    scene.write()
    scene.assert_file(scene.source)
    r = scene.move(target, rc=REFUSED)
    assert "degraded" in r.error, r
    scene.move(target, "--allow-degraded")
    scene.assert_attached(target)
    scene.write()
    scene.assert_equal(scene.a)
    scene.a.plug(True)
    scene.nodes.wait_state("cs:Connected", "ds:UpToDate/UpToDate")
    scene.assert_equal()
