"""Drives that are not an ordinary disk of the guest's."""

import json
import os
import shutil

from lab.pair import Pair
from lab.proc import Proc, wait_for
from lab.runner import timeout
from lab.scene import SIZE, Scene, volume

FIRMWARE = "/usr/share/seabios/bios-256k.bin"


def flash(lab, code, variables):
    """Command line of a firmware's code and of its variable store, as files."""
    shutil.copy(FIRMWARE, lab.path(code))
    if not os.path.exists(lab.path(variables)):
        with open(lab.path(variables), "wb") as f:
            f.write(b"boot order" * 10 + bytes((128 << 10) - 100))
    argv = ["-machine", "pflash0=code,pflash1=vars"]
    for node, name in (("code", code), ("vars", variables)):
        argv += ["-blockdev", json.dumps(
            {"driver": "raw", "node-name": node, "read-only": node == "code",
             "file": {"driver": "file", "node-name": f"{node}-file",
                      "filename": str(lab.path(name))}})]
    return argv


def content(lab, name):
    with open(lab.path(name), "rb") as f:
        return f.read()


@timeout(90)
def test_the_firmware_s_variables_move(lab):
    scene = Scene(lab, ["raw"], argv=flash(lab, "code.fd", "vars.fd"))
    before = content(lab, "vars.fd")
    target = volume(lab, "raw")
    r = lab.qpivot.run("move", "--json", "--qmp", scene.vm.qmp_path, "--disk",
                       f"vars={lab.path('new.fd')}", "--disk", f"d0={target.uri()}")
    assert r.rc == 0, r
    scene.now["d0"] = target
    store = next(b["inserted"]["image"]["filename"] for b in scene.vm.qmp.cmd("query-block")
                 if b.get("qdev") == "/machine/system.flash1")
    assert store == str(lab.path("new.fd")) and content(lab, "new.fd") == before
    scene.judge()


@timeout(90)
def test_the_firmware_s_variables_go_to_another_host(lab):
    """Its code is read-only and each host's own; the store is copied."""
    pair = Pair(lab, ["raw"], argv=flash(lab, "code.fd", "vars.fd"))
    pair.src.extra = flash(lab, "there-code.fd", "there-vars.fd")
    with open(lab.path("there-vars.fd"), "wb") as f:
        f.write(bytes(128 << 10))
    pair.wait()
    r = pair.migrate()
    assert {d: x["how"] for d, x in r.disks.items()} == {
        "/machine/system.flash0": "skip", "/machine/system.flash1": "nbd",
        "d0": "share"}, r.disks
    assert content(lab, "there-vars.fd") == content(lab, "vars.fd")
    pair.judge()


@timeout(60)
def test_a_scsi_disk_that_others_may_write_to_is_not_copied(lab):
    """QEMU tells its id where it tells another one's path."""
    shared = volume(lab, "raw").create(lab.install, SIZE)
    node = {"driver": "raw", "node-name": "n-shared",
            "file": {"driver": "file", "filename": shared.path}}
    vm = lab.vm([], boot=False, argv=[
        "-blockdev", json.dumps(node), "-device", "virtio-scsi-pci", "-device",
        "scsi-hd,id=shared,drive=n-shared,share-rw=on"])
    r = lab.qpivot.run("move", "--qmp", vm.qmp_path, "--disk",
                       f"shared={lab.path('new.raw')}")
    assert r.rc == 2 and "share-rw" in r.error, r


@timeout(90)
def test_a_disk_that_others_may_write_to_is_not_copied(lab):
    """A mirror sees no writes but those of its own QEMU.  To hand it over to
    another host is safe, as nothing is copied then."""
    pair = Pair(lab, ["raw"], disk={"props": {"share-rw": True}})
    before = pair.src.state()
    r = pair.move({"d0": volume(lab, "raw")}, rc=2)
    assert "share-rw" in r.error, r
    pair.to["d0"] = "raw"
    pair.wait()
    r = pair.migrate(rc=2)
    assert "share-rw" in r.error and pair.src.state() == before, r
    del pair.to["d0"], pair.there["d0"]
    pair.wait()
    r = pair.migrate()
    assert r.disks["d0"]["how"] == "share", r.disks
    pair.judge()


def tpm(lab, name):
    """A TPM emulator, and the options of a machine that has it."""
    os.makedirs(lab.path(name))
    socket = lab.path(f"{name}.sock")
    lab.ends(Proc(["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={lab.path(name)}",
                   "--ctrl", f"type=unixio,path={socket}"], lab.path(f"{name}.log")))
    wait_for("the TPM's emulator", lambda: os.path.exists(socket), 10)
    return ["-chardev", f"socket,id=ctpm,path={socket}", "-tpmdev",
            "emulator,id=tpm0,chardev=ctpm", "-device", "tpm-tis,tpmdev=tpm0"]


class OwnTpm(Pair):
    """An emulator takes one machine: the destination has its own, or none."""
    argv_there = ()

    def wait(self, **kw):
        self.src.extra = list(self.argv_there)
        return super().wait(**kw)


@timeout(90)
def test_a_tpm_goes_over(lab):
    """What would fail in the middle is refused before."""
    pair = OwnTpm(lab, ["raw"], argv=tpm(lab, "tpm"))
    r = lab.qpivot.run("destination-argv", "--json", "--qmp", pair.src.qmp_path)
    assert any("ctpm" in note for note in json.loads(r.text)["notes"]), r.text
    before = pair.src.state()
    r = pair.migrate(rc=2)
    assert "tpm0" in r.error and "TPM" in r.error and pair.src.state() == before, r
    pair.argv_there = tpm(lab, "tpm-there")
    pair.wait()
    r = pair.migrate()
    assert any("tpm0" in note for note in r.named("plan")[0]["notes"]), r
    pair.judge()
