"""The nodes themselves."""

from lab.runner import needs, timeout
from nodes import HEALTHY, SIZE

PROGRAM = False


@needs("drbd")
@timeout(180)
def test_a_write_is_on_both_until_the_plug_is_out(lab):
    n = lab.services["drbd"]
    n.fresh()
    n.a.run("drbdadm primary r0")
    fill = "dd if=/dev/urandom of=/dev/drbd/by-res/r0/0 bs=64k count=16 oflag=direct"
    n.a.run(fill)
    assert n.a.backing(SIZE) == n.b.backing(SIZE)
    n.a.plug(False)
    n.a.run(fill, 30)
    n.wait_state("ds:UpToDate/DUnknown", nodes=[n.a])
    assert n.a.backing(SIZE) != n.b.backing(SIZE)
    n.a.plug(True)
    n.wait_state("cs:Connected", "ds:UpToDate/UpToDate")
    assert n.a.backing(SIZE) == n.b.backing(SIZE)
    n.fresh()
    assert [x.state() for x in n.nodes] == [HEALTHY] * 2
