"""What qpivot refuses or fails at: always a clear error, the guest unharmed,
nothing left behind."""

import glob
import os
import signal
import socket
import threading

from lab import isolate
from lab.nfs import Nfs
from lab.proc import run, wait_for
from lab.qemu import Disk
from lab.runner import needs, timeout
from lab.scene import SIZE, Scene, volume
from lab.storage import MiB, NfsVolume, RbdVolume


def refused(scene, disks, *words, rc=(2,), options=()):
    """qpivot move with these {disk: uri} is refused, with each word in its
    error, and the machine is as before."""
    before = scene.vm.state()
    r = scene.lab.qpivot.move(scene.vm, disks, *options, rc=None, seconds=40)
    print(r.rc, r.error)
    assert r.rc in rc, r
    assert r.error.startswith("qpivot: "), r.error
    for word in words:
        assert word in r.error, f"'{word}' not in: {r.error}"
    assert scene.vm.state() == before, (before, scene.vm.state())
    assert scene.lab.qpivot.run("list", "--json").text.strip() == ""
    return r


def test_wrong_arguments(lab):
    q = lab.qpivot
    for argv in ([], ["fly"], ["move"], ["move", "--qmp"], ["move", "--qmp", "x"],
                 ["move", "--qmp", "x", "--disk", "d0"], ["move", "--qmp", "x", "--disk", "=y"],
                 ["move", "--qmp", "x", "--disk", "d0=/y", "--speed", "fast"],
                 ["move", "--qmp", "x", "--disk", "d0=/y", "--copy-mode", "psychic"],
                 ["move", "--qmp", "x", "--disk", "d0=/y", "--wat"],
                 ["show"], ["show", "nosuch"], ["jobs"], ["graph", "--qmp"]):
        r = q.run(*argv)
        assert r.rc == 2, f"{argv}: {r}"
        assert "qpivot: " in r.error, f"{argv}: {r}"
    for argv in (["--help"], ["--version"], ["move", "--help"], ["recover", "--help"]):
        r = q.run(*argv)
        assert r.rc == 0 and r.text and not r.error, f"{argv}: {r}"


def test_no_monitor_there(lab):
    q = lab.qpivot
    target = ["--disk", "d0=" + lab.path("t.raw")]
    r = q.run("move", "--qmp", lab.path("none"), *target)
    assert r.rc == 4 and lab.path("none") in r.error, r
    scene = Scene(lab, ["raw"], boot=False)
    where = scene.vm.qmp_path
    os.rename(where, where + ".kept")
    scene.vm.kill()
    os.rename(where + ".kept", where)  # a socket that nobody serves any more
    r = q.run("move", "--qmp", where, *target)
    assert r.rc == 4, r
    os.unlink(where)
    r = q.run("move", "--qmp", "tcp:127.0.0.1:1", *target)
    assert r.rc == 4, r
    r = q.run("move", "--qmp", "exec:false", *target)
    assert r.rc == 4, r
    before = set(glob.glob("/tmp/qpivot-ssh-*"))
    r = q.run("move", "--qmp", "ssh://nosuch.invalid/run/vm.qmp", *target)
    assert r.rc == 4 and "nosuch.invalid" in r.error, r
    wait_for("ssh's folder to go",
             lambda: not set(glob.glob("/tmp/qpivot-ssh-*")) - before, 5)
    assert not os.path.exists(lab.path("t.raw"))


def test_a_monitor_in_use_is_busy(lab):
    """QEMU accepts a second client and greets it only when the first is gone."""
    scene = Scene(lab, ["raw"], boot=False)
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(scene.vm.qmp_path)
        other.recv(100)
        r = lab.qpivot.run("move", "--qmp", scene.vm.qmp_path,
                           "--disk", "d0=" + lab.path("t.raw"), seconds=30)
    assert r.rc == 4 and "another client" in r.error, r


def test_what_is_no_monitor(lab):
    """A peer that talks nonsense must not confuse or hang it."""
    for answer in (b"hello\r\n", b'{"QMP": 3}\r\n', b"{" * 4096, b"\xff\x00\r\n", b""):
        path = lab.path("peer")
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path)
            server.listen(1)

            def serve():
                peer = server.accept()[0]
                peer.sendall(answer)
                peer.shutdown(socket.SHUT_WR)
                while peer.recv(4096):
                    pass
                peer.close()
            threading.Thread(target=serve, daemon=True).start()
            r = lab.qpivot.run("move", "--qmp", path, "--disk", "d0=" + lab.path("t"),
                               seconds=40)
        os.unlink(path)
        assert r.rc == 4 and r.error, (answer[:20], r)


def test_disks_that_cannot_move(lab):
    scene = Scene(lab, ["raw", "raw"], boot=False, argv=[
        "-device", "virtio-scsi-pci,id=hba",
        "-device", "scsi-cd,id=cd0",
        "-drive", f"if=none,id=iso,media=cdrom,readonly=on,file={empty(lab, 'iso')}",
        "-device", "scsi-cd,id=cd1,drive=iso"])
    t = lab.path("t.raw")
    refused(scene, {"nosuch": t}, "nosuch")
    refused(scene, {"cd0": t}, "cd0")
    refused(scene, {"d0": t, "n-d0": t + "2"}, "d0")   # one disk twice
    refused(scene, {"d0": t, "d1": t}, "t.raw")        # one target twice
    refused(scene, {"d0": scene.now["d0"].uri("existing=yes")}, "d0")  # onto itself
    refused(scene, {"d0": scene.now["d1"].uri("existing=yes")}, scene.now["d1"].path)
    assert not os.path.exists(t)


def empty(lab, name):
    with open(lab.path(name), "wb") as f:
        f.truncate(MiB)
    return lab.path(name)


def test_all_problems_at_once(lab):
    scene = Scene(lab, ["raw", "raw", "raw"], boot=False)
    there = volume(lab, "raw").create(lab.install, SIZE)
    r = refused(scene, {"d0": there.uri(), "d1": lab.path("no/such/folder/t.raw"),
                        "nosuch": lab.path("t.raw"),
                        "d2": volume(lab, "block", size=MiB).uri()},
                there.path, "no/such/folder", "nosuch", str(MiB), str(SIZE))
    assert r.error.count("qpivot: ") >= 4, r.error


def test_volumes_of_one_drbd_resource_are_no_two_targets(lab):
    """Also where there is no DRBD: it is told by their names."""
    scene = Scene(lab, ["raw", "raw"], boot=False)
    refused(scene, {"d0": "drbd:r0", "d1": "drbd:r0/1"},
            "drbd:r0/1: is of the same resource as drbd:r0, the target of 'd0'")


def test_a_disk_with_a_job_is_left_alone(lab):
    scene = Scene(lab, ["raw"], boot=False)
    copy = volume(lab, "raw").create(lab.install, SIZE)
    scene.vm.qmp.cmd("blockdev-add", **copy.node("mine"))
    scene.vm.qmp.cmd("blockdev-backup", job_id="nightly", device="n-d0", target="mine",
                     sync="full", speed=1)
    refused(scene, {"d0": lab.path("t.raw")}, "nightly")
    assert [j["id"] for j in scene.vm.jobs()] == ["nightly"], "a foreign job is not touched"


def test_targets_that_cannot_be_written(lab):
    scene = Scene(lab, ["raw"], boot=False)
    refused(scene, {"d0": lab.path("no/such/folder/t.raw")}, "no/such/folder")
    refused(scene, {"d0": str(lab.tmp)}, str(lab.tmp))
    refused(scene, {"d0": "/proc/t.raw"}, "/proc/t.raw", rc=(1, 2))
    refused(scene, {"d0": "block:" + lab.path("none")}, "none")
    refused(scene, {"d0": "block:" + empty(lab, "file")}, "file")
    refused(scene, {"d0": "nbd://127.0.0.1:1/x"}, "127.0.0.1")
    refused(scene, {"d0": "nbd+unix:///x?socket=" + lab.path("none")}, "none")
    refused(scene, {"d0": "gopher://x/y"}, "gopher")
    refused(scene, {"d0": lab.path("t") + "?format=vmdk"}, "vmdk")
    refused(scene, {"d0": lab.path("t") + "?color=red"}, "color")
    assert "::" not in refused(scene, {"d0": "rbd:"}, "rbd:").error
    refused(scene, {"d0": "file:/" + lab.path("t")}, "name of a host", "file:///PATH")
    used = volume(lab, "raw").create(lab.install, SIZE)
    refused(scene, {"d0": used.path}, "append ?existing=yes")
    refused(scene, {"d0": used.path + "?format=raw"}, "append &existing=yes")
    other = lab.vm([Disk("x", used)], name="other", boot=False)
    refused(scene, {"d0": used.uri("existing=yes")}, used.path)
    other.quit()


def test_a_file_system_that_is_too_small(lab):
    """What is sure not to fit is refused, for all disks that go there together,
    unless somebody is told of full targets: then it waits for space until the
    time is up and goes back.  What may fit is the plan's note."""
    scene = Scene(lab, ["raw", "raw", "qcow2"], boot=False)
    data = os.stat(scene.now["d0"].path).st_blocks * 512
    where = lab.small_fs(data + MiB)
    one = {"d0": where + "/t.raw"}
    refused(scene, dict(one, d1=where + "/u.raw"), "free there, 2 disks together have",
            f"{2 * data} bytes", str(data + MiB), "--space-hook")
    r = lab.qpivot.move(scene.vm, one, "--dry-run")
    assert "free there, the disk has 64 MiB" in r.text, r.text
    r = lab.qpivot.move(scene.vm, {"d2": where + "/t.raw"}, "--dry-run")
    assert "free there" in r.text, "nobody knows how much of a qcow2 is data"
    isolate.umount(where)
    isolate.mount("tmpfs", where, "tmpfs", f"size={MiB}")
    refused(scene, one, f"{MiB} bytes", f"{data} bytes")
    refused(scene, one, "timeout", rc=(1,),
            options=("--timeout", "2s", "--space-hook", "true"))
    assert os.listdir(where) == []


def test_what_o_direct_asks_of_a_target(lab):
    """As QEMU will open it, tried beforehand: on a file system without O_DIRECT
    and on one whose blocks are of 4096 bytes."""
    scene = Scene(lab, ["raw", "raw"], boot=False)
    none, big = lab.path("none"), lab.path("big")
    os.makedirs(none)
    isolate.mount("ramfs", none, "ramfs")
    lab.storage.callback(isolate.umount, none)
    device = lab.loop(96 * MiB, sector=4096)
    r = lab.qpivot.move(scene.vm, {"d0": f"block:{device.path}?cache=none"}, "--dry-run")
    assert "blocks of 4096 bytes there" in r.text, r.text
    run(["mkfs.ext4", "-q", "-b", "4096", device.path])
    os.makedirs(big)
    isolate.mount(device.path, big, "ext4")
    lab.storage.callback(isolate.umount, big)
    odd = f"{big}/t.raw?cache=none&size={SIZE + 512}"
    lab.qpivot.move(scene.vm, {"d0": odd.replace("none", "writeback")}, "--dry-run")
    for there in (False, True):
        if there:
            for path in (none + "/t.raw", big + "/t.raw"):
                with open(path, "wb") as f:
                    f.truncate(SIZE if path.startswith(none) else SIZE + 512)
            odd = f"{big}/t.raw?cache=none&existing=yes"
        more = "&existing=yes" if there else ""
        refused(scene, {"d0": f"{none}/t.raw?cache=none{more}"},
                "O_DIRECT", "append &cache=writeback")
    refused(scene, {"d0": odd, "d1": f"{none}/u.raw?cache=none"},
            f"{SIZE + 512} is no multiple of 4096", "u.raw: cannot be opened")


@needs("nfs")
def test_nfs_targets_that_are_not_there(lab):
    scene = Scene(lab, ["raw"], boot=False)
    refused(scene, {"d0": f"nfs://{lab.nfs.host}/no/such/export/t.raw"}, "export")
    refused(scene, {"d0": NfsVolume(lab.nfs, "no/such/folder/t.raw").uri()}, "folder")


@timeout(200)
def test_an_nfs_server_that_does_not_answer(lab):
    """Nobody there; a port mapper, then a server, that accept and are silent.
    On a network of the test's own: there is but one port 111."""
    isolate.new_network()
    scene = Scene(lab, ["raw"], boot=False)
    nfs = lab.ends(Nfs(lab.path("nfs")), storage=True)
    refused(scene, {"d0": "nfs://127.0.0.3/export/t.raw"}, "127.0.0.3", rc=(1, 2))
    refused(scene, {"d0": "nfs://nosuch.invalid/export/t.raw"}, "nosuch.invalid", rc=(1, 2))
    nfs.start()
    where = {"d0": f"nfs://{nfs.host}{nfs.export}/t.raw"}
    for silent in (nfs.rpcbind.proc, nfs.proc):
        silent.send(signal.SIGSTOP)
        refused(scene, where, nfs.host, rc=(1, 2))
        silent.send(signal.SIGCONT)
    r = lab.qpivot.move(scene.vm, where)
    assert r.rc == 0, r


@needs("ceph")
@timeout(120)
def test_ceph_that_lets_nobody_in(lab):
    scene = Scene(lab, ["raw"], boot=False)
    pool, conf = lab.ceph.pool, lab.ceph.conf
    refused(scene, {"d0": f"rbd:{pool}/x?conf={lab.path('none.conf')}"}, "none.conf")
    bad = lab.path("bad.keyring")
    run(["ceph-authtool", "-C", bad, "--gen-key", "-n", "client.admin"])
    refused(scene, {"d0": f"rbd:{pool}/x?conf={conf}&id=admin&keyring={bad}"}, "rbd")
    refused(scene, {"d0": f"rbd:nopool/x?conf={conf}"}, "nopool")
    refused(scene, {"d0": f"rbd:{pool}/x?conf={conf}&id=nobody"}, "rbd")
    there = RbdVolume(lab.ceph, lab.name("v")).create(lab.install, SIZE)
    refused(scene, {"d0": there.uri()}, there.name)
    reader = lab.ceph.user("reader", "profile rbd-read-only")
    refused(scene, {"d0": f"rbd:{pool}/x?conf={conf}&id=reader&keyring={reader}"},
            "lets us only read")
    # What is left of a broken image, or of one just being made, is not touched.
    name, left = lab.name("half"), lab.path("half")
    with open(left, "wb") as f:
        f.write(b"\4\0\0\0abcd")
    lab.ceph.rados("put", f"rbd_id.{name}", left)
    lab.qpivot.move(scene.vm, {"d0": f"rbd:{pool}/{name}?conf={conf}"}, "--dry-run")
    lab.ceph.rados("get", f"rbd_id.{name}", left)
    with open(left, "rb") as f:
        assert f.read() == b"\4\0\0\0abcd"
    lab.ceph.rados("rm", f"rbd_id.{name}")
    with open(conf) as f, open(lab.path("dead.conf"), "w") as g:
        g.write(f.read().replace("127.0.0.1", "127.0.0.9"))
    refused(scene, {"d0": f"rbd:{pool}/x?conf={lab.path('dead.conf')}"}, "rbd", rc=(1, 2))


def test_a_full_state_folder_or_none(lab):
    scene = Scene(lab, ["raw"], boot=False)
    before = scene.vm.state()
    r = lab.qpivot.run(*lab.qpivot.move_argv(scene.vm, {"d0": lab.path("t")}),
                       env={"QPIVOT_STATE": "/proc/nowhere"})
    assert r.rc == 2 and "/proc/nowhere" in r.error, r
    assert scene.vm.state() == before


def test_a_description_that_could_not_be_written(lab):
    """After the pivot it would be too late to say so."""
    scene = Scene(lab, ["raw"], boot=False)
    for path, word in ((lab.path("no/such/c.json"), "does not exist"),
                       (str(lab.tmp), "is a directory"), (str(lab.tmp) + "/", "is a directory"),
                       ("/dev/null", "no regular file")):
        refused(scene, {"d0": lab.path("t.raw")}, path, word, options=("--emit-config", path))
    assert not os.path.exists(lab.path("t.raw"))


def test_a_size_that_an_existing_target_does_not_have(lab):
    scene = Scene(lab, ["raw", "raw"], boot=False)
    there = volume(lab, "raw").create(lab.install, SIZE)
    block = volume(lab, "block", size=2 * SIZE)
    refused(scene, {"d0": there.uri("existing=yes", f"size={2 * SIZE}"),
                    "d1": block.uri(f"size={SIZE}")},
            there.path, str(SIZE), f"size={2 * SIZE}", str(2 * SIZE), "leave size= out")


def test_a_target_that_was_not_seen_has_no_copy_planned(lab):
    scene = Scene(lab, ["raw"], boot=False)
    r = lab.qpivot.move(scene.vm, {"d0": lab.path("no/such/t.raw")}, rc=2)
    disk = r.named("plan")[0]["disks"][0]
    assert "via" not in disk and "sync" not in disk and "reason" not in disk, disk
    assert disk["from"] == scene.now["d0"].path, disk


def test_one_target_by_two_spellings(lab):
    scene = Scene(lab, ["raw", "raw"], boot=False)
    os.mkdir(lab.path("a"))
    t = lab.path("a/t.raw")
    words = ("is the target of 'd0' and of 'd1'",)
    refused(scene, {"d0": t, "d1": lab.path("a/../a/t.raw")}, *words)
    refused(scene, {"d0": t, "d1": "file:" + t + "?format=raw"}, *words)
    r = lab.qpivot.run("move", "--qmp", scene.vm.qmp_path, "--disk", "d0=" + t,
                       "--disk", "d0=" + t + "2")
    assert r.rc == 2 and "given twice" in r.error, r


def test_names_that_are_no_utf8(lab):
    """QMP is JSON; and a terminal is not shown the raw bytes."""
    scene = Scene(lab, ["raw"], boot=False)
    for disk, target in (("d0", lab.path("t") + "\udcff"), ("d\udce4", lab.path("t")),
                         ("d0", "file:" + lab.path("t") + "%FF")):
        r = refused(scene, {disk: target}, "QMP carries UTF-8 only")
        assert "\udcff" not in r.error and "\ufffd" not in r.error, r.error
