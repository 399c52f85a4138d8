"""Disks of many kinds, and QEMUs of two versions, there and back."""

from lab.pair import Destination, Pair
from lab.runner import needs, timeout
from test_migrate import assert_gone_over


@needs("ceph", "nfs")
@timeout(240)
def test_six_disks_there_and_back(lab):
    """Shared over NFS and RBD, and copied between files, devices and images."""
    pair = Pair(lab, {"d0": "nfs", "d1": "rbd", "d2": "raw", "d3": "qcow2", "d4": "block",
                      "d5": "rbd"},
                to={"d2": "raw", "d3": "qcow2", "d4": "raw", "d5": "nfs"}, blocks=256)
    ways = {"d0": "share", "d1": "share", "d2": "nbd", "d3": "nbd", "d4": "nbd", "d5": "nbd"}
    for to in ({"d2": "qcow2", "d3": "raw", "d4": "block", "d5": "rbd"}, None):
        # Of a file and a device nobody can prove that they are not the same.
        r = pair.migrate("--disk", "d4=nbd")
        assert {d: x["how"] for d, x in r.disks.items()} == ways, r.disks
        copied = [x["bytes_copied"] for x in r.disks.values() if x["how"] == "nbd"]
        assert all(copied) and sum(copied) == r.last["bytes_copied"], r.last
        assert_gone_over(pair, r)
        if to:
            pair.turn_round(to)


class TwoVersions(Pair):
    """Each destination is of the other version."""

    def __init__(self, lab, *argv, **kw):
        self.other = lab.other_install()
        # What either can emulate: "max" is more with every version.
        super().__init__(lab, *argv, argv=["-cpu", "qemu64"], **kw)

    def destination(self, **kw):
        there = self.lab.install if self.src.install is self.other else self.other
        return Destination(self.src, self.there, self.lab.name("dst"), install=there, **kw)


def between_versions(lab, machine):
    pair = TwoVersions(lab, ["raw", "qcow2", "raw"], to={"d0": "qcow2", "d1": "raw"},
                       machine=machine)
    for to in ({"d0": "raw", "d1": "qcow2"}, None):
        print(pair.src.install.version(), "->", pair.dst.install.version())
        assert pair.src.install.version() != pair.dst.install.version()
        r = pair.migrate()
        assert r.disks["d2"]["how"] == "share", r.disks
        assert_gone_over(pair, r)
        if to:
            pair.turn_round(to)


@timeout(180)
def test_another_version_of_qemu_and_back(lab):
    between_versions(lab, "pc-q35-7.2")


@timeout(180)
def test_another_version_with_the_old_machine(lab):
    between_versions(lab, "pc-i440fx-7.2")
