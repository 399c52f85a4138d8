"""The disk of a running machine goes to DRBD and back."""

from lab.runner import needs, timeout
from lab.storage import FileVolume
from nodes import SIZE, MiB
from scene import DrbdVolume, Scene


def there_and_back(lab, size):
    scene = Scene(lab, size)
    scene.a.run("drbdadm primary r0")
    target, back = DrbdVolume(), FileVolume("/local/back.raw", direct=True)
    for volume in (target, back):
        scene.write()
        scene.move(volume)
        scene.assert_attached(volume)
        scene.write()
        scene.assert_equal() if volume is target else scene.assert_file(volume)
    scene.a.run("drbdadm secondary r0")  # nothing holds it
    return scene


@needs("drbd")
@timeout(180)
def test_the_peer_holds_every_write(lab):
    there_and_back(lab, SIZE)


@needs("drbd")
@timeout(180)
def test_a_larger_device_is_filled_through_the_shim(lab):
    scene = there_and_back(lab, 20 * MiB)
    assert scene.vm.block("d0")["inserted"]["image"]["virtual-size"] == SIZE


@needs("drbd")
@timeout(240)
def test_a_peer_that_is_lost_meanwhile_gets_all_later(lab):
    """To QEMU a device without a peer is as good as any."""
    scene = Scene(lab)
    scene.a.run("drbdadm primary r0")
    target = DrbdVolume()
    e = scene.start_move(target, "--speed", "4M")
    scene.write_amid(e, "progress", unplug=True)
    assert e.wait().rc == 0, e.said()
    scene.assert_attached(target)
    scene.write()
    scene.assert_equal(scene.a)
    scene.a.plug(True)
    scene.nodes.wait_state("cs:Connected", "ds:UpToDate/UpToDate")
    scene.assert_equal()
