"""Volumes at rest: copied, gone on with, compared.  The judge is another
program: qemu-img compare, or the file that lies behind the volume."""

import glob
import json
import os
import shutil
import signal

from lab import isolate
from lab.nbd import Nbd
from lab.nfs import Nfs
from lab.proc import run, wait_for
from lab.qpivot import PROGRAM
from lab.qemu import Disk
from lab.runner import needs, timeout
from lab.scene import KINDS, PATTERN, SIZE, source, volume
from lab.storage import FileVolume, MiB, NbdVolume, NfsVolume, byte_equal

DATA = sum(length for _, length in PATTERN)
SLOW = "6M"  # bytes a second: the pattern's runs take a second or two


def copy(lab, a, b, *options, rc=0, **kw):
    r = lab.qpivot.run("copy", "--json", a.uri(), b.uri(), *options, **kw)
    assert r.rc == rc, f"{a} -> {b}: wanted exit {rc}, got {r}"
    return r


def verify(lab, a, b, *options, rc=0):
    r = lab.qpivot.run("verify", "--json", a.uri(), b.uri(), *options)
    assert r.rc == rc, f"{a} = {b}: wanted exit {rc}, got {r}"
    return r


def junk(lab, size=SIZE, name="junk"):
    """A file without a single zero block."""
    path = lab.path(name)
    with open(path, "wb") as f:
        piece = os.urandom(MiB)
        for _ in range(size // MiB):
            f.write(piece)
    return path


def records(lab):
    if not os.path.isdir(lab.qpivot.state):
        return []
    return [f for f in os.listdir(lab.qpivot.state) if f.endswith(".record")]


def equal(lab, a, b):
    return byte_equal(lab.install, a, b)


def one_source(lab, kind):
    """To every kind: new ones stay sparse, used ones are overwritten whole."""
    a = source(lab, kind, "d0")
    for to in KINDS:
        b = volume(lab, to)
        blank = b.creatable
        r = copy(lab, a, b, "--verify", *([] if blank else ["--existing"]))
        assert equal(lab, a, b), f"{a} -> {b}"
        assert r.last["event"] == "done" and r.last["size"] == SIZE, r.last
        assert r.last["bytes_written"] <= DATA + 8 * MiB, r.last
        if blank and to in ("raw", "qcow2", "nfs"):
            assert b.allocated() <= DATA + MiB, f"{a} -> {b}: {b.allocated()}"
        if to == "rbd":
            assert b.allocated() <= DATA + 16 * MiB, b.allocated()
        verify(lab, a, b)
        print(f"{a} -> {b}: {r.last}")
    assert records(lab) == []


def test_a_raw_file_to_every_kind(lab):
    one_source(lab, "raw")


def test_a_qcow2_file_to_every_kind(lab):
    one_source(lab, "qcow2")


def test_a_block_device_to_every_kind(lab):
    one_source(lab, "block")


def test_an_nbd_export_to_every_kind(lab):
    one_source(lab, "nbd")


def test_an_nfs_file_to_every_kind(lab):
    one_source(lab, "nfs")


def test_an_rbd_image_to_every_kind(lab):
    one_source(lab, "rbd")


for _test in (test_a_raw_file_to_every_kind, test_a_qcow2_file_to_every_kind,
              test_a_block_device_to_every_kind, test_an_nbd_export_to_every_kind,
              test_an_nfs_file_to_every_kind, test_an_rbd_image_to_every_kind):
    needs("ceph", "nfs")(timeout(180)(_test))


@needs("ceph", "nfs")
@timeout(180)
def test_a_dirty_target_is_overwritten_whole(lab):
    a = source(lab, "raw", "d0")
    dirt = junk(lab)
    for to in KINDS:
        b = volume(lab, to).create(lab.install, SIZE, fill=dirt)
        if b.creatable:
            r = copy(lab, a, b, rc=2)
            assert "--existing" in r.error, r.error
        r = copy(lab, a, b, "--existing", "--verify")
        assert equal(lab, a, b), f"onto {b}"
        assert r.last["bytes_zeroed"] > SIZE // 2, r.last


@needs("nfs")
def test_odd_sizes_past_every_cache(lab):
    """A size that is no multiple of any block, with and without O_DIRECT."""
    path = lab.path("odd.raw")
    with open(path, "wb") as f:
        f.write(os.urandom(3 * MiB + 12345))
    a = FileVolume(path)
    for cache in ("cache=none", "cache=writeback"):
        for b in (FileVolume(lab.path(cache)), volume(lab, "nfs")):
            r = lab.qpivot.run("copy", path + "?" + cache, b.uri(cache), "--verify")
            assert r.rc == 0, r
            with open(path, "rb") as f, open(b.path, "rb") as g:
                assert f.read() == g.read(), f"{cache} {b}"
    device = volume(lab, "block", size=3 * MiB + 512 * 3)
    there = volume(lab, "nfs")
    r = lab.qpivot.run("copy", device.uri(), there.uri("cache=none"), "--verify")
    assert r.rc == 0 and os.path.getsize(there.path) == 3 * MiB + 512 * 3, r
    assert equal(lab, device, there)
    assert a.exists()


def dense(lab, size=24 * MiB):
    return FileVolume(junk(lab, size, "dense.raw"))


def interrupted(lab, a, b, end, *options):
    """Starts a copy, ends it by 'end' once some of it is on record."""
    engine = lab.qpivot.start("copy", "--json", a.uri(), b.uri(), "--speed", SLOW, *options)

    def safe():
        for name in records(lab):
            with open(os.path.join(lab.qpivot.state, name), "rb") as f:
                entries = f.read()[4096:]
            if entries[16::24].count(1) >= 4:
                return True
        return False
    wait_for("units on record", safe, 30)
    end(engine)
    return engine


@needs("ceph", "nfs")
@timeout(240)
def test_a_killed_copy_goes_on_where_it_was(lab):
    for kind in ("raw", "qcow2", "nfs", "rbd", "block", "nbd"):
        a, size = dense(lab), 24 * MiB
        b = volume(lab, kind, size=size)
        more = [] if b.creatable else ["--existing"]
        for round in (1, 2):
            interrupted(lab, a, b, lambda e: e.kill(), *more)
        if kind == "rbd":  # the dead client's watch; its lock is broken
            wait_for("the watch to end", lambda: "watcher=" not in lab.ceph.rbd(
                "status", f"{lab.ceph.pool}/{b.name}"), 60)
        if kind == "qcow2":  # its server ends with its client
            wait_for("the image to be let go", lambda: "write" in lab.install.img(
                "info", b.path, ok=(0, 1)) or True, 5)
        r = copy(lab, a, b, "--verify", *more)
        assert r.last["bytes_resumed"] >= 4 * MiB, f"{kind}: {r.last}"
        assert r.last["bytes_read"] + r.last["bytes_resumed"] == size, f"{kind}: {r.last}"
        assert equal(lab, a, b), kind
        assert records(lab) == [], kind


def test_an_interrupt_stops_and_keeps(lab):
    a, b = dense(lab), FileVolume(lab.path("b.raw"))
    engine = interrupted(lab, a, b, lambda e: e.interrupt())
    r = engine.wait()
    assert r.rc == 1 and "same command" in r.error, r
    r = copy(lab, a, b)
    assert r.last["bytes_resumed"] >= 4 * MiB and equal(lab, a, b), r.last


def test_a_copy_is_listed_while_it_runs_and_after(lab):
    a, b = dense(lab), FileVolume(lab.path("it's b.raw"))
    seen = []

    def look(engine):
        r = lab.qpivot.run("list", "--json")
        seen.append(json.loads(r.text))
        assert "running" in lab.qpivot.run("list").text
        engine.kill()
    interrupted(lab, a, b, look, "--no-offload")
    r = lab.qpivot.run("list", "--json")
    seen.append(json.loads(r.text))
    for x, state in zip(seen, ("running", "interrupted")):
        assert (x["kind"], x["state"], x["alive"]) == ("copy", state, state == "running"), x
        assert (x["source"], x["target"], x["size"]) == (a.uri(), b.uri(), 24 * MiB), x
        assert 4 * MiB <= x["bytes_done"] <= 24 * MiB, x
    text = lab.qpivot.run("show", x["op"]).text
    assert "interrupted" in text and x["resume"] in text, text
    assert lab.qpivot.run("recover").rc == 0 and records(lab)
    line = x["resume"].replace("qpivot", f"QPIVOT_STATE={lab.qpivot.state} {PROGRAM}", 1)
    r = run(["sh", "-c", line + " --json"])
    assert json.loads(r.splitlines()[-1])["bytes_resumed"] >= 4 * MiB, r
    assert equal(lab, a, b)
    assert lab.qpivot.run("list", "--all", "--json").text.strip() == ""
    assert lab.qpivot.run("show", x["op"]).rc == 2


def test_a_killed_copy_leaves_no_server_behind(lab):
    """Of an image: the qemu-nbd ends, and its socket was never in a folder."""
    def litter():
        return sorted(glob.glob("/tmp/libnbd*")), servers(b.path)

    def servers(path):
        found = []
        for cmdline in glob.glob("/proc/[0-9]*/cmdline"):
            try:
                with open(cmdline) as f:
                    words = f.read().split("\0")
            except OSError:
                continue
            if "qemu-nbd" in words[0] and path in cmdline + str(words):
                found.append(words)
        return found

    a, b = dense(lab), volume(lab, "qcow2", size=24 * MiB)
    before = litter()
    assert before[1] == []
    interrupted(lab, a, b, lambda e: servers(b.path)[0] and e.kill())
    wait_for("the server to end", lambda: litter() == before, 20)
    r = copy(lab, a, b, "--verify")
    assert r.last["bytes_resumed"] >= 4 * MiB and litter() == before, r.last
    os.makedirs(lab.path("bin"))
    os.symlink(shutil.which("setpriv"), lab.path("bin/setpriv"))  # the lab's own
    r = lab.qpivot.run("verify", a.uri(), b.uri(), env={"PATH": lab.path("bin")})
    assert r.rc == 2 and "no qemu-nbd" in r.error and "qemu-utils" in r.error, r


def test_clean_removes_what_was_made(lab):
    a, b = dense(lab), FileVolume(lab.path("b.raw"))
    engine = interrupted(lab, a, b, lambda e: e.interrupt(), "--clean")
    assert engine.wait().rc == 1
    assert not b.exists() and records(lab) == []


def test_a_changed_source_is_refused(lab):
    a, b = dense(lab), FileVolume(lab.path("b.raw"))
    interrupted(lab, a, b, lambda e: e.kill())
    with open(a.path, "r+b") as f:
        f.write(b"other")
    r = copy(lab, a, b, rc=2)
    assert "has changed" in r.error and "--existing" in r.error, r.error
    copy(lab, a, b, "--existing")
    assert equal(lab, a, b)


def test_a_changed_device_is_refused(lab):
    """A device tells no time of change: its finished part is read again."""
    a = volume(lab, "block", size=24 * MiB).create(
        lab.install, 24 * MiB, fill=junk(lab, 24 * MiB))
    b = FileVolume(lab.path("b.raw"))
    interrupted(lab, a, b, lambda e: e.kill())
    with open(a.path, "r+b") as f:
        f.write(b"other")
        os.fsync(f.fileno())
    r = copy(lab, a, b, rc=1)
    assert "has changed" in r.error, r.error


@needs("ceph", "nfs")
@timeout(180)
def test_verify_finds_a_planted_difference(lab):
    for kind in KINDS:
        a, b = source(lab, "raw", "d0"), volume(lab, kind)
        copy(lab, a, b, *([] if b.creatable else ["--existing"]))
        other = lab.path("other.raw")
        with open(other, "wb") as f, open(a.path, "rb") as g:
            f.write(g.read())
            f.seek(40 * MiB + 4096)
            f.write(b"x")
        b.create(lab.install, SIZE, fill=other)
        r = verify(lab, a, b, rc=1)
        found = r.named("differences")[0]["ranges"]
        assert found == [{"offset": 40 * MiB + 4096, "length": 512}], f"{kind}: {found}"
        assert "not equal" in r.error, r.error


def test_a_manifest_is_written_and_checked(lab):
    a, b, m = source(lab, "raw", "d0"), FileVolume(lab.path("b.raw")), lab.path("manifest")
    copy(lab, a, b, "--manifest", m)
    run = lab.qpivot.run
    assert run("verify", b.path, "--manifest", m).rc == 0
    assert run("verify", a.path, b.path, "--manifest", m).rc == 0
    with open(b.path, "r+b") as f:
        f.seek(20 * MiB)
        f.write(b"x")
    r = run("verify", b.path, "--manifest", m)
    assert r.rc == 1 and "not equal" in r.error, r
    with open(m, "a") as f:
        f.write("more\n")
    with open(m, "r+") as f:
        f.seek(40)
        f.write("9")
    r = run("verify", b.path, "--manifest", m)
    assert r.rc == 2 and "manifest" in r.error, r


def test_a_source_in_use_is_refused(lab):
    a, b = source(lab, "raw", "d0"), FileVolume(lab.path("b.raw"))
    machine = lab.vm([Disk("x", a)], name="user", boot=False)
    r = copy(lab, a, b, rc=2)
    assert "in use" in r.error and not b.exists(), r.error
    r = copy(lab, b.__class__(a.path), b, "--force-share")
    c = FileVolume(lab.path("c.raw"))
    machine.quit()
    copy(lab, a, c)
    assert equal(lab, a, b) and equal(lab, a, c)
    machine = lab.vm([Disk("x", b)], name="other", boot=False)
    r = copy(lab, a, b, "--existing", rc=2)
    assert "in use" in r.error, r.error
    machine.quit()


def test_targets_that_will_not_do(lab):
    a = source(lab, "raw", "d0")
    small = volume(lab, "block", size=MiB)
    r = copy(lab, a, small, "--existing", rc=2)
    assert str(MiB) in r.error and str(SIZE) in r.error, r.error
    copy(lab, a, a, "--existing", rc=2)
    copy(lab, a, FileVolume(lab.path("no/such/t.raw")), rc=2)
    copy(lab, FileVolume(lab.path("none.raw")), FileVolume(lab.path("t.raw")), rc=2)
    r = lab.qpivot.run("copy", source(lab, "qcow2", "d0").path.replace(".qcow2", ".qcow2?format=raw"),
                       lab.path("bytes"))
    assert r.rc == 0, r
    os.rename(lab.path("bytes"), lab.path("bytes.img"))
    r = lab.qpivot.run("copy", lab.path("bytes.img"), lab.path("t.raw"))
    assert r.rc == 2 and "format=qcow2" in r.error, r


def test_a_full_target_is_gone_on_with(lab):
    a, where = dense(lab), lab.small_fs(8 * MiB)
    b = FileVolume(where + "/b.raw")
    r = copy(lab, a, b, rc=1)
    assert "No space" in r.error or "no space" in r.error, r.error
    lab.grow_fs(where, 64 * MiB)
    r = copy(lab, a, b)
    assert r.last["bytes_resumed"] > 0 and equal(lab, a, b), r.last


def test_a_file_system_that_can_share_blocks(lab):
    """XFS: the storage copies by itself, unless --no-offload forbids it."""
    loop, where = lab.loop(400 * MiB, "xfs"), lab.path("xfs-mount")
    run(["mkfs.xfs", "-q", loop.path])
    os.makedirs(where)
    isolate.mount(loop.path, where, "xfs")
    lab.storage.callback(isolate.umount, where)
    path = where + "/a.raw"
    os.rename(junk(lab, 24 * MiB, "xfs-mount/junk"), path)
    a, b, c = (FileVolume(where + "/" + n) for n in ("a.raw", "b.raw", "c.raw"))
    r = copy(lab, a, b, "--verify", "--manifest", lab.path("m"))
    assert r.last["offloaded"] and r.last["bytes_written"] == 0, r.last
    assert equal(lab, a, b)
    assert lab.qpivot.run("verify", b.path, "--manifest", lab.path("m")).rc == 0
    r = copy(lab, a, c, "--no-offload")
    assert not r.last["offloaded"] and r.last["bytes_written"] == 24 * MiB, r.last
    assert equal(lab, a, c)


def test_a_lost_server_is_gone_on_with(lab):
    a, size = dense(lab), 24 * MiB
    where = {"name": "lost", "unix": True}
    b = NbdVolume(lab.nbd(size, path=lab.path("lost.raw")))
    b.server.kill()
    b.server = lab.ends(Nbd(lab.install, lab.tmp, b.server.path, **where), storage=True)
    engine = interrupted(lab, a, b, lambda e: b.server.kill(), "--existing")
    r = engine.wait(60)
    assert r.rc == 1 and "same command" in r.error, r
    os.unlink(b.server.socket)
    b.server = lab.ends(Nbd(lab.install, lab.tmp, b.server.path, **where), storage=True)
    r = copy(lab, a, b, "--existing")
    assert r.last["bytes_resumed"] >= 4 * MiB, r.last
    assert equal(lab, a, b)


@timeout(120)
def test_a_silent_nfs_server_is_an_error(lab):
    """On a network of the test's own: there is but one port 111."""
    isolate.new_network()
    nfs = lab.ends(Nfs(lab.path("nfs")), storage=True).start()
    a, b = dense(lab), NfsVolume(nfs, "b.raw")
    engine = interrupted(lab, a, b, lambda e: nfs.proc.send(signal.SIGSTOP))
    r = engine.wait(90)
    assert r.rc == 1 and "same command" in r.error, r
    nfs.proc.send(signal.SIGCONT)
    r = copy(lab, a, b)
    assert r.last["bytes_resumed"] >= 4 * MiB and equal(lab, a, b), r.last


@timeout(120)
def test_a_copy_outlives_the_restart_of_an_nfs_server(lab):
    """To it and from it: what the server had not on its disk is sent again."""
    isolate.new_network()
    nfs = lab.ends(Nfs(lab.path("nfs")), storage=True).start()
    a, b, c = dense(lab), NfsVolume(nfs, "b.raw"), FileVolume(lab.path("c.raw"))
    for source, target in ((a, b), (b, c)):
        engine = interrupted(lab, source, target, lambda e: nfs.kill())
        engine.wait_event("warning")
        nfs.serve()
        r = engine.wait(60)
        assert r.rc == 0 and r.last["bytes_resumed"] == 0, r
        assert 24 * MiB <= r.last["bytes_written"] < 48 * MiB, r.last
        assert equal(lab, a, target)
    engine = interrupted(lab, a, NfsVolume(nfs, "d.raw"), lambda e: nfs.kill())
    engine.wait_event("warning")
    os.rename(nfs.export + "/b.raw", nfs.export + "/d.raw")
    nfs.serve()
    r = engine.wait(60)
    assert r.rc == 1 and "not the same" in r.error, r


def lost_in_the_middle(engine, server):
    """Some of it is done, the server goes, and comes back."""
    engine.wait_event("progress", lambda e: e["bytes"] >= 4 * MiB and e["rate"] > 0, 30)
    server.kill()
    engine.wait_event("warning", lambda e: "trying again" in e["message"], 30)


@timeout(150)
def test_an_nbd_server_is_started_anew(lab):
    """A copy to it, one from it and a comparison go on by themselves."""
    a = dense(lab)
    b = NbdVolume(lab.nbd(24 * MiB))
    c = FileVolume(lab.path("c.raw"))
    slow = ("--speed", SLOW)
    for source, target, more in ((a, b, ["--existing"]), (b, c, [])):
        engine = lab.qpivot.start("copy", "--json", source.uri(), target.uri(), *slow, *more)
        lost_in_the_middle(engine, b.server)
        b.server.start()
        r = engine.wait(60)
        assert r.rc == 0 and r.last["bytes_resumed"] == 0, r
        assert r.last["bytes_written"] < 48 * MiB, r.last
        assert equal(lab, a, target)
    for differs in (False, True):
        if differs:  # before and behind the place where the server goes
            with open(c.path, "r+b") as f:
                for at in (0, 23 * MiB + 512):
                    f.seek(at)
                    f.write(b"other")
        engine = lab.qpivot.start("verify", "--json", b.uri(), c.uri(), *slow)
        lost_in_the_middle(engine, b.server)
        b.server.start()
        r = engine.wait(60)
        assert r.rc == (1 if differs else 0), r
        if differs:
            assert r.named("differences")[0]["ranges"] == [
                {"offset": 0, "length": 512}, {"offset": 23 * MiB + 512, "length": 512}], r
        else:
            assert r.last["bytes_read"] < 2 * (24 + 12) * MiB, r.last


@timeout(150)
def test_another_volume_behind_the_same_address(lab):
    """An address proves nothing: what is finished there is read again."""
    a, size = dense(lab), 24 * MiB
    b = NbdVolume(lab.nbd(size))
    engine = interrupted(lab, a, b, lambda e: b.server.kill())
    engine.wait_event("warning", lambda e: "trying again" in e["message"], 30)
    os.truncate(b.server.path, 0)
    os.truncate(b.server.path, size)
    b.server.start()
    r = engine.wait(60)
    assert r.rc == 1 and "has changed" in r.error, r
    r = copy(lab, a, b, rc=1)
    assert "has changed" in r.error and "record" in r.error, r.error
    for name in records(lab):
        os.unlink(os.path.join(lab.qpivot.state, name))
    copy(lab, a, b, "--verify")
    assert equal(lab, a, b)


def test_two_copies_of_one_pair(lab):
    a, b = dense(lab), FileVolume(lab.path("b.raw"))
    first = lab.qpivot.start("copy", "--json", a.uri(), b.uri(), "--speed", SLOW)
    wait_for("the first one's target", b.exists, 10)
    r = copy(lab, a, b, rc=2)
    assert r.error, r
    first.interrupt()
    first.wait()


def test_a_hole_costs_nothing(lab):
    path = lab.path("hole.raw")
    with open(path, "wb") as f:
        f.truncate(64 << 30)
    r = copy(lab, FileVolume(path), FileVolume(lab.path("b.raw")))
    assert r.last["bytes_read"] == 0 and r.last["bytes_skipped"] == 64 << 30, r.last
    print(json.dumps(r.last))
    assert FileVolume(lab.path("b.raw")).allocated() == 0
