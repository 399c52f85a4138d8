"""The lab checks itself: what it starts works, what it plants is found, and
nothing is left over."""

import glob
import os
import signal
import subprocess
import sys

from lab import check
from lab.proc import SCALE, wait_for
from lab.qemu import Disk
from lab.runner import LIVE, needs, timeout
from lab.storage import (BlockVolume, FileVolume, MiB, NbdVolume, NfsVolume, RbdVolume,
                         byte_equal)

SIZE = 64 * MiB
PROGRAM = False  # only the lab


def new_file(lab, name, fmt="raw", size=SIZE, **kw):
    return FileVolume(lab.path(name), fmt, **kw).create(lab.install, size)


def verdict(lab, vm, disk, table=None, last=None, **kw):
    """Reads the disk's volume by the independent reader and judges it."""
    path = disk.volume.read(lab.install, lab.tmp, **kw)
    region, stats = vm.regions[disk.id], vm.stats[disk.id]
    with open(path, "rb") as raw:
        v = check.check(raw, region, table or region.table(stats["acked"]),
                        last or stats["seq"])
    os.unlink(path)
    return v


def test_guest_boots_and_writes(lab):
    d = Disk("d0", new_file(lab, "d0.raw"))
    vm = lab.vm([d], power_on=True)
    vm.wait_writes(200)
    r = vm.report()["d0"]
    print(r)
    assert r["errors"] == 0 and r["acked"] >= 200
    vm.kill()
    v = verdict(lab, vm, d, last=r["seq"] + 10 ** 6)
    print(v)
    assert v, v


def test_checker_finds_a_planted_lost_block(lab):
    d = Disk("d0", new_file(lab, "d0.raw"))
    vm = lab.vm([d])
    vm.wait_writes(100)
    table = vm.tables()["d0"]
    vm.quit()
    assert verdict(lab, vm, d, table)
    region = vm.regions["d0"]
    written = [i for i, seq in enumerate(table) if seq]

    def plant(i, data, at=0):
        with open(d.volume.path, "r+b") as f:
            f.seek(region.offset(i) + at)
            f.write(data)

    with open(d.volume.path, "rb") as f:
        f.seek(region.offset(written[0]))
        older = f.read(4096)
    plant(written[0], b"\0" * 4096)
    v = verdict(lab, vm, d, table)
    assert [x[0] for x in v.lost] == [written[0]] and not v.torn, v
    plant(written[0], older)
    plant(written[1], b"\1" * 512, at=2048)
    v = verdict(lab, vm, d, table)
    assert [x[0] for x in v.torn] == [written[1]] and not v.lost, v
    plant(written[2], older)  # a good block in the wrong place
    v = verdict(lab, vm, d, table)
    assert [x[0] for x in v.torn] == [written[1], written[2]], v


def test_checker_finds_a_stale_copy(lab):
    d = Disk("d0", new_file(lab, "d0.raw"))
    vm = lab.vm([d])
    vm.wait_writes(100)
    early = vm.tables()["d0"]
    copy = FileVolume(lab.path("copy.raw"))
    os.link(d.volume.read(lab.install, lab.tmp, share=True), copy.path)
    vm.resume()
    vm.wait_writes(300)
    late = vm.tables()["d0"]
    vm.quit()
    with open(copy.path, "rb") as raw:
        region = vm.regions["d0"]
        assert check.check(raw, region, early, max(early))
        assert check.check(raw, region, late, max(late)).lost
    assert not byte_equal(lab.install, copy, d.volume)


def test_a_reset_guest_goes_on_where_it_was(lab):
    d = Disk("d0", new_file(lab, "d0.raw"))
    vm = lab.vm([d])
    vm.wait_writes(100)
    acked = vm.stats["d0"]["acked"]
    vm.qmp.cmd("system_reset")
    vm.wait_ready(boots=2)
    assert vm.boot_report["d0"]["maxseq"] >= acked and vm.boot_report["d0"]["bad"] == 0
    vm.wait_writes(100)
    table = vm.tables()["d0"]
    assert vm.bad_blocks() == {"d0": 0}
    vm.tell("poweroff")
    vm.proc.wait(20)
    assert verdict(lab, vm, d, table)
    assert table == vm.regions["d0"].table(vm.stats["d0"]["acked"])


def test_read_only_and_legacy_disks(lab):
    new_file(lab, "ro.raw")
    disks = [Disk("d0", new_file(lab, "d0.qcow2", "qcow2"), legacy=True),
             Disk("d1", FileVolume(lab.path("ro.raw")), read_only=True),
             Disk("d2", new_file(lab, "d2.raw", direct=True), above=[
                 {"driver": "throttle", "node-name": "t-d2", "throttle-group": "tg0"}])]
    vm = lab.vm(disks, argv=["-object", "throttle-group,id=tg0,x-iops-total=200"])
    vm.wait_writes(50)
    r = vm.boot_report
    assert (r["d0"]["ro"], r["d1"]["ro"], r["d2"]["ro"]) == (0, 1, 0), r
    assert vm.attached() == {"d0": "drv-d0", "d1": "n-d1", "d2": "t-d2"}, vm.attached()
    tables = vm.tables()
    vm.quit()
    for d in (disks[0], disks[2]):
        assert verdict(lab, vm, d, tables[d.id])


def volumes(lab):
    """One created volume of each kind."""
    i = lab.install
    return {
        "raw": new_file(lab, "v.raw"),
        "qcow2": new_file(lab, "v.qcow2", "qcow2"),
        "nfs": NfsVolume(lab.nfs, lab.name("v")).create(i, SIZE),
        "rbd": RbdVolume(lab.ceph, lab.name("v")).create(i, SIZE),
        "block": BlockVolume(lab.loop(SIZE)),
        "nbd": NbdVolume(lab.nbd(SIZE)),
    }


@needs("ceph", "nfs")
def test_guest_writes_to_every_kind(lab):
    disks = [Disk(k, v, legacy=n % 2 == 1) for n, (k, v) in enumerate(volumes(lab).items())]
    vm = lab.vm(disks)
    vm.wait_writes(50)
    tables = vm.tables()
    assert set(vm.bad_blocks().values()) == {0}
    for d in disks:
        v = verdict(lab, vm, d, tables[d.id], share=True)
        print(d.id, v)
        assert v, (d.id, v)
    vm.kill()
    for d in disks:
        v = verdict(lab, vm, d, tables[d.id])
        assert v, (d.id, v)


@needs("ceph", "nfs")
def test_qemu_attaches_every_kind(lab):
    vm = lab.vm([], boot=False)
    for k, v in volumes(lab).items():
        vm.qmp.cmd("blockdev-add", **v.node(f"x-{k}"))
        assert vm.nodes()[f"x-{k}"]["image"]["virtual-size"] == SIZE, k
        vm.qmp.cmd("blockdev-del", node_name=f"x-{k}")


@needs("ceph", "nfs")
def test_data_written_is_data_read(lab):
    with open(lab.path("fill"), "wb") as f:
        f.write(os.urandom(2 * MiB))
        f.truncate(SIZE)
    fill = FileVolume(lab.path("fill"))
    for k, v in volumes(lab).items():
        v.create(lab.install, SIZE, fill=fill.path)
        assert byte_equal(lab.install, fill, v), k


def test_nbd_servers_of_both_kinds(lab):
    for program in ("qemu-nbd", "nbdkit"):
        for unix in (False, True):
            v = NbdVolume(lab.nbd(SIZE, unix=unix, program=program))
            assert v.size(lab.install) == SIZE


def test_a_loop_device_detaches(lab):
    loop = lab.loop(SIZE)
    assert loop.attached()
    loop.resize(2 * SIZE)
    assert BlockVolume(loop).size(lab.install) == 2 * SIZE
    loop.stop()
    assert not loop.attached()


def test_a_small_file_system_fills_up_and_grows(lab):
    where = lab.small_fs(4 * MiB)
    try:
        with open(where + "/f", "wb") as f:
            f.write(b"x" * 5 * MiB)
        raise AssertionError("no ENOSPC")
    except OSError as e:
        assert e.errno == 28
    lab.grow_fs(where, 16 * MiB)
    with open(where + "/f", "wb") as f:
        f.write(b"x" * 5 * MiB)


def start_plants(pattern, jobs):
    """The runner on the tests of test_plant.py, which misbehave on purpose."""
    return subprocess.Popen(
        [sys.executable, str(LIVE / "run"), "-k", pattern, "--jobs", str(jobs)],
        env=dict(os.environ, QPIVOT_LAB_PLANT="1"), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True)


def assert_nothing_left(before):
    def left():
        return ([f for f in os.listdir("/tmp") if f.startswith("qpl-") and f not in before],
                planted("/sys/block/loop*/loop/backing_file"),
                planted("/proc/[0-9]*/cmdline"))
    wait_for(f"nothing to be left, not {left()}", lambda: left() == ([], [], []))


@timeout(100)
def test_nothing_is_left_of_bad_tests(lab):
    before = os.listdir("/tmp")
    p = start_plants("^plant.(?!waits)", 4)
    text = p.communicate(timeout=90)[0]
    print(text)
    assert p.returncode == 1
    assert text.strip().endswith("1 passed, 4 failed, 1 skipped")
    end = f"no end after {6 * SCALE:g} s"
    for why in ("left behind", "planted failure", end, "process died"):
        assert why in text, why
    assert_nothing_left(before)


@timeout(100)
def test_nothing_is_left_of_an_interrupted_run(lab):
    before = os.listdir("/tmp")
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)):
        p = start_plants("^plant.waits", 1)
        wait_for("the planted machine", lambda: planted("/proc/[0-9]*/cmdline", "planted-up"), 60)
        if number == signal.SIGINT:  # as from a terminal
            os.killpg(p.pid, number)
        else:
            p.send_signal(number)
        text = p.communicate(timeout=60)[0]
        print(text)
        assert p.returncode == code, p.returncode
        assert_nothing_left(before)


def planted(pattern, word="planted"):
    found = []
    for path in glob.glob(pattern):
        try:
            with open(path) as f:
                found += [path] if word in f.read() else []
        except OSError:
            pass  # it went in the meantime
    return found
