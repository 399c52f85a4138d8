"""The engine dies in the middle of a move to DRBD, or off it."""

from lab.runner import needs, timeout
from lab.storage import FileVolume
from nodes import HEALTHY
from scene import DrbdVolume, Scene

KILLED = 128 + 9
PRIMARY = HEALTHY.replace("Secondary/", "Primary/")
THERE = (("target-attach", "start"), ("target-attach", "end"), ("mirror", "end"),
         ("pivot", "start"), ("pivot", "end"))
BACK = (("source-release", "start"), ("source-release", "end"))


def kill_and_recover(scene, target, at):
    """Moves and is killed; recovers; the volume that the machine is on."""
    before, source = scene.vm.state(), scene.now
    r = scene.start_move(target, doom=at).wait()
    assert r.rc == KILLED, r
    r = scene.qpivot.run("recover", "--json")
    print(at, "-> recover", r.rc, r.last.get("event"))
    assert r.rc == 0, r
    assert scene.qpivot.run("list", "--json").text.strip() == ""
    scene.now = target if scene.is_on(target) else source
    scene.assert_attached(scene.now)
    drbd = isinstance(scene.now, DrbdVolume)
    assert scene.a.state() == (PRIMARY if drbd else HEALTHY), scene.a.state()
    if scene.now is source:
        assert scene.vm.state() == before, (before, scene.vm.state())
    scene.write()
    scene.assert_equal() if drbd else scene.assert_file(scene.now)
    return scene.now


@needs("drbd")
@timeout(900)
def test_roles_are_as_the_machine_needs_them(lab):
    scene = Scene(lab)
    target, back = DrbdVolume("drbd"), list(BACK)
    for at in THERE:
        if kill_and_recover(scene, target, at) is not target:
            continue
        while scene.now is target:
            file = FileVolume(f"/local/{lab.name('back')}.raw", direct=True)
            at = back.pop() if back else None
            if at:
                kill_and_recover(scene, file, at)
            else:
                scene.move(file)
    assert not back, "no move to DRBD was finished by recover"
