"""qpivot move: between all kinds of storage, alone and in groups."""

import json
import os
import pwd

from lab.proc import free_port
from lab.qemu import Disk
from lab.runner import needs, timeout
from lab.scene import KINDS, SIZE, Scene, pattern_file, source, volume
from lab.ssh import Ssh
from lab.storage import BlockVolume, FileVolume, MiB, NbdVolume, byte_equal


def assert_done(result, targets):
    """The last line of --json as the manual has it."""
    last = result.last
    assert last["event"] == "done" and last["seconds"] >= 0, last
    assert set(result.disks) == set(targets), last
    for d in result.disks.values():
        for key in ("from", "to", "bytes_copied", "bytes_written", "seconds"):
            assert key in d, (key, d)
    for name in ("plan", "step", "ready", "pivot", "proof"):
        assert result.named(name), f"no event '{name}'"
    for e in result.events:
        assert "time" in e and "op" in e and "event" in e, e


def rounds(lab, numbers, group, legacy):
    """Disk i starts on the i-th kind; in round k every disk goes from its
    kind to the k-th one after it.  Six rounds are all 36 pairs."""
    scene = Scene(lab, list(KINDS), legacy=legacy)
    where = {d: i for i, d in enumerate(scene.now)}
    for k in numbers:
        where = {d: (i + k) % len(KINDS) for d, i in where.items()}
        targets = {d: volume(lab, KINDS[i]) for d, i in where.items()}
        before = scene.vm.report()
        for part in [targets] if group else [{d: v} for d, v in targets.items()]:
            print("round", k, {d: f"{scene.now[d]} -> {v}" for d, v in part.items()})
            assert_done(scene.move(part), part)
        scene.assert_attached()
        scene.assert_tidy()
        scene.vm.wait_writes(20)
        assert all(r["acked"] > before[d]["acked"] for d, r in scene.vm.report().items())
        print(scene.judge())
    scene.vm.wait_writes(20)
    scene.vm.kill()
    scene.judge_dead()


@needs("ceph", "nfs")
@timeout(300)
def test_pairs_as_a_group_first_half(lab):
    rounds(lab, (1, 0, 2), group=True, legacy=False)


@needs("ceph", "nfs")
@timeout(300)
def test_pairs_as_a_group_second_half(lab):
    rounds(lab, (3, 4, 5), group=True, legacy=True)


@needs("ceph", "nfs")
@timeout(200)
def test_pairs_alone_first_half(lab):
    rounds(lab, (1, 0, 2), group=False, legacy=True)


@needs("ceph", "nfs")
@timeout(200)
def test_pairs_alone_second_half(lab):
    rounds(lab, (3, 4, 5), group=False, legacy=False)


@needs("ceph", "nfs")
@timeout(300)
def test_drive_mirror_to_every_kind(lab):
    scene = Scene(lab, ["raw", "qcow2", "raw", "qcow2", "raw", "qcow2"])
    targets = {d: volume(lab, k) for d, k in zip(scene.now, KINDS)}
    r = scene.move(targets, "--via", "drive-mirror")
    assert_done(r, targets)
    assert "drive-mirror" in json.dumps(r.named("plan"))
    scene.assert_attached()
    scene.assert_tidy()
    scene.judge()
    scene.vm.kill()
    scene.judge_dead()


@needs("nfs")
def test_qcow2_on_nfs_and_nbd_over_a_unix_socket(lab):
    scene = Scene(lab, ["raw", "qcow2"])
    scene.move({"d0": volume(lab, "nfs-qcow2"), "d1": NbdVolume(lab.nbd(SIZE, unix=True))})
    scene.assert_attached()
    scene.judge()
    scene.vm.kill()
    scene.judge_dead()


def test_a_disk_is_named_by_device_drive_or_node(lab):
    """Each name that QEMU has for it, for -blockdev and -drive disks."""
    a, b = source(lab, "raw", "d0"), source(lab, "raw", "d1")
    vm = lab.vm([Disk("d0", a), Disk("d1", b, legacy=True)])
    scene = Scene.__new__(Scene)
    scene.lab, scene.vm, scene.disks = lab, vm, vm.disks
    scene.now = {"d0": a, "d1": b}
    for name, disk in (("d0", "d0"), ("n-d0", "d0"), ("d1", "d1"), ("drv-d1", "d1")):
        if name == "n-d0":  # the first move gave its node another name
            name = vm.attached()["d0"]
        v = volume(lab, "qcow2")
        lab.qpivot.move(vm, {name: v.uri()})
        scene.now[disk] = v
        scene.assert_attached()
    assert vm.attached()["d1"] == "drv-d1", "the drive id must go on answering"
    scene.judge()
    scene.assert_tidy()


def test_the_source_is_kept_or_deleted(lab):
    scene = Scene(lab, ["raw", "raw"])
    first = dict(scene.now)
    scene.move({"d0": volume(lab, "raw")})
    scene.move({"d1": volume(lab, "raw")}, "--delete-source")
    assert first["d0"].exists() and not first["d1"].exists()
    scene.judge()


def test_an_existing_target_is_taken_only_when_told(lab):
    scene = Scene(lab, ["raw"], paused=True)
    there = volume(lab, "raw").create(lab.install, SIZE)
    before, stamp = scene.vm.state(), os.stat(there.path).st_mtime_ns
    r = scene.move({"d0": there}, rc=2)
    assert there.path in r.error and "exist" in r.error, r.error
    assert scene.vm.state() == before and os.stat(there.path).st_mtime_ns == stamp
    scene.move({"d0": there}, existing=True)
    scene.assert_attached()


@needs("ceph", "nfs")
@timeout(120)
def test_a_reused_target_is_byte_equal(lab):
    """Targets full of other data, sources mostly holes: every stale byte must
    go (qemu.md's silent traps: sync=top or target-is-zero on such a target)."""
    with open(lab.path("dirt"), "wb") as f:
        f.write(os.urandom(1 << 20) * (SIZE >> 20))
    scene = Scene(lab, ["raw", "qcow2", "raw", "qcow2", "raw", "qcow2"], paused=True)
    first = dict(scene.now)
    targets = {}
    for d, kind in zip(first, KINDS):
        v = targets[d] = volume(lab, kind)
        v.create(lab.install, SIZE, fill=lab.path("dirt"))
    scene.move(targets, existing=True)
    scene.assert_attached()
    scene.vm.quit()
    for d, v in targets.items():
        assert byte_equal(lab.install, first[d], v), f"{d}: {v} differs from its source"


def has_target_is_zero(vm):
    schema = {e["name"]: e for e in vm.qmp.cmd("query-qmp-schema")}
    members = schema[schema["blockdev-mirror"]["arg-type"]]["members"]
    return "target-is-zero" in [m["name"] for m in members]


@needs("ceph", "nfs")
@timeout(120)
def test_a_fresh_target_is_not_zero_filled(lab):
    """At most 1.05 x the data is allocated and written.  An RBD image has whole
    objects; those that data touches, and no other.  (QEMU's mirror copies as
    data what follows data up to 16 MiB when the hole does not begin on the
    target's cluster, which is an object: six times the data here, unless the
    target node detects zeroes.)  Raw to NFS needs a QEMU that can be told that
    the target is zero: its nfs driver cannot write zeroes, and a hole of a raw
    file is an allocated zero to a mirror."""
    size, data = 256 * MiB, 32 * MiB
    with open(lab.path("data"), "wb") as f:
        for i in range(8):
            f.seek(i * 31 * MiB + 64 * 1024)
            f.write(os.urandom(data // 8))
        f.truncate(size)
    fills = {"d0": "raw", "d1": "qcow2", "d2": "raw", "d3": "raw", "d4": "qcow2", "d5": "qcow2",
             "d6": "raw"}
    kinds = ["raw", "raw", "qcow2", "rbd", "nfs", "nfs-qcow2"]
    disks = []
    for d, kind in fills.items():
        v = volume(lab, kind, size).create(lab.install, size, fill=lab.path("data"))
        disks.append(Disk(d, v))
    vm = lab.vm(disks, boot=False)
    kinds += ["nfs"] if has_target_is_zero(vm) else []
    targets = {d: volume(lab, k) for d, k in zip(fills, kinds)}
    r = lab.qpivot.move(vm, {d: v.uri() for d, v in targets.items()})
    assert vm.status() in ("prelaunch", "paused"), "a paused machine stays paused"
    vm.quit()
    for d, v in targets.items():
        print(d, str(v), v.allocated() / data, r.disks[d]["bytes_written"] / data)
    for d, v in targets.items():
        room = 16 * 4 * MiB if v.kind == "rbd" else data
        assert v.allocated() <= 1.05 * room + MiB // 2, f"{v} has {v.allocated()}"
        assert r.disks[d]["bytes_written"] <= 1.05 * room + MiB // 2, r.disks[d]
        # What was set for the copy only is no difference afterwards.
        assert "detect_zeroes" not in [x["property"] for x in r.disks[d]["differences"]], r.disks[d]


@timeout(90)
def test_a_larger_target_through_the_shim(lab):
    scene = Scene(lab, ["raw", "raw", "qcow2"])
    big = volume(lab, "raw").create(lab.install, 2 * SIZE)
    targets = {"d0": BlockVolume(lab.loop(SIZE + MiB)),
               "d1": volume(lab, "nbd", size=SIZE + 3 * 65536),
               "d2": big}
    r = lab.qpivot.move(scene.vm, {
        "d0": targets["d0"].uri(), "d1": targets["d1"].uri(),
        "d2": big.uri("existing=yes")})
    scene.now.update(targets)
    scene.assert_attached()
    for d in r.disks.values():
        assert "size" in [x["property"] for x in d["differences"]], d
    scene.judge()
    assert scene.vm.block("d0")["inserted"]["image"]["virtual-size"] == SIZE + MiB, \
        "after the pivot the node has the volume's real size"
    scene.move({"d0": volume(lab, "block", size=SIZE + 2 * MiB)})
    scene.judge()
    scene.vm.kill()
    scene.judge_dead()


def test_a_smaller_target_is_refused_with_both_figures(lab):
    scene = Scene(lab, ["raw", "raw"], paused=True)
    before = scene.vm.state()
    small = volume(lab, "block", size=SIZE - MiB)
    for existing in (False, True):
        v = (volume(lab, "qcow2").create(lab.install, SIZE - MiB) if existing else small)
        r = lab.qpivot.move(scene.vm, {
            "d0": v.uri("existing=yes" if existing else None)}, rc=2)
        assert str(SIZE) in r.error and str(SIZE - MiB) in r.error, r.error
        assert scene.vm.state() == before


def test_throttling_and_detect_zeroes_are_kept(lab):
    throttle = {"driver": "throttle", "node-name": "t-d0", "throttle-group": "tg0"}
    a = Disk("d0", source(lab, "qcow2", "d0"), above=[throttle],
             node={"detect-zeroes": "unmap", "discard": "unmap"})
    b = Disk("d1", source(lab, "raw", "d1"), legacy=True,
             drive_opts=",throttling.iops-total=400,detect-zeroes=on,discard=unmap,cache=none")
    vm = lab.vm([a, b], argv=["-object", "throttle-group,id=tg0,x-iops-total=400"])
    kept = ("iops", "bps", "detect_zeroes", "ro", "cache")
    before = {d: {k: vm.block(d)["inserted"][k] for k in kept} for d in ("d0", "d1")}
    r = lab.qpivot.move(vm, {"d0": volume(lab, "qcow2").uri(), "d1": volume(lab, "raw").uri()})
    after = {d: {k: vm.block(d)["inserted"][k] for k in kept} for d in ("d0", "d1")}
    assert after == before, (before, after, r.disks)
    assert vm.attached() == {"d0": "t-d0", "d1": "drv-d1"}
    assert after["d1"]["iops"] == 400 and after["d1"]["cache"]["direct"]
    below = [n for n in vm.nodes().values()
             if n["node-name"].startswith("qpv-") and n["drv"] == "qcow2"]
    assert [n["detect_zeroes"] for n in below] == ["unmap"], below
    vm.wait_writes(20)


def test_a_read_only_disk_stays_read_only(lab):
    v = source(lab, "raw", "d0")
    vm = lab.vm([Disk("d0", v, read_only=True), Disk("d1", source(lab, "raw", "d1"))])
    target = volume(lab, "qcow2")
    lab.qpivot.move(vm, {"d0": target.uri()})
    assert vm.block("d0")["inserted"]["ro"] is True
    assert target.path in json.dumps(vm.block("d0")["inserted"])
    vm.wait_writes(20)
    assert vm.bad_blocks()["d0"] == 0
    vm.quit()
    assert byte_equal(lab.install, v, target)


@needs("ceph", "nfs")
@timeout(120)
def test_the_emitted_description_boots_and_holds_the_data(lab):
    scene = Scene(lab, ["raw", "raw", "raw", "raw"])
    targets = {d: volume(lab, k) for d, k in zip(scene.now, ("qcow2", "nfs", "rbd", "block"))}
    config, hooked = lab.path("config.json"), lab.path("hooked.json")
    scene.move(targets, "--emit-config", config, "--persist-hook", f"cat > {hooked}")
    with open(config) as a, open(hooked) as b:
        emitted = json.load(a)
        assert json.load(b) == emitted
    scene.vm.wait_writes(20)
    tables = scene.vm.tables()
    scene.vm.quit()
    cold = lab.vm([Emitted(lab, d, emitted) for d in targets], paused=True, power_on=True)
    assert all(r["bad"] == 0 and r["found"] > 0 for r in cold.boot_report.values())
    for d, table in tables.items():
        assert cold.boot_report[d]["maxseq"] == max(table), d
    cold.resume()
    cold.wait_writes(20)


class Emitted(Disk):
    """A disk as --emit-config describes it: -object and -blockdev arguments;
    the file of a secret is for the owner to add."""

    def __init__(self, lab, id, emitted):
        super().__init__(id, None)
        entry = next(e for e in emitted["disks"] if e["disk"] == id)
        self.before = []
        for o in entry["objects"]:
            with open(lab.path(o["id"]), "w") as f:
                f.write(lab.ceph.key())
            self.before += ["-object", json.dumps(dict(o, file=f.name))]
        self.before += entry["argv"]
        self.drive = entry["blockdev"][-1]["node-name"]

    def argv(self):
        return self.before + ["-device", json.dumps(
            {"driver": "virtio-blk-pci", "id": self.id, "serial": self.id,
             "drive": self.drive})]


def test_a_failing_hook_leaves_the_source(lab):
    scene = Scene(lab, ["raw"])
    first = scene.now["d0"]
    target = volume(lab, "raw")
    r = scene.move({"d0": target}, "--persist-hook", "exit 7", "--delete-source", rc=3)
    assert r.last["event"] == "parked", r.last
    assert first.exists(), "the source must stay"
    scene.now["d0"] = target  # after the pivot there is only forward
    scene.assert_attached()
    scene.judge()


def test_dry_run_changes_nothing(lab):
    scene = Scene(lab, ["raw", "qcow2"])
    targets = {"d0": volume(lab, "qcow2"), "d1": volume(lab, "raw")}
    before = scene.vm.state()
    files = sorted(os.listdir(lab.tmp))
    r = scene.move(targets, "--dry-run")
    assert scene.vm.state() == before
    assert not any(v.exists() for v in targets.values())
    new = set(os.listdir(lab.tmp)) - set(files)
    assert all(n.startswith(("qpivot", "move", "state")) for n in new), new
    text = r.text + r.error
    for command in ("blockdev-add", "blockdev-mirror", "job-complete"):
        assert command in text, command
    plain = lab.qpivot.run("move", "--qmp", scene.vm.qmp_path, "--dry-run",
                           "--disk", f"d0={targets['d0'].uri()}")
    assert plain.rc == 0 and "blockdev-mirror" in plain.text, plain
    scene.judge()


@needs("ceph")
def test_to_and_from_rbd_by_one_connection(lab):
    """To make one takes longer than all that is asked by it."""
    scene = Scene(lab, ["raw"])
    for kind, options in (("rbd", ()), ("rbd", ("--delete-source",)), ("raw", ("--delete-source",))):
        r = scene.move({"d0": volume(lab, kind)}, *options)
        assert lab.ceph.connections(r.engine.proc.pid) == 1, (kind, options)
    scene.judge()


@needs("ceph")
def test_a_key_never_shows(lab):
    """The cephx key reaches QEMU as a secret: not in argv, trace or output."""
    scene = Scene(lab, ["raw"])
    key = lab.ceph.key()
    target = volume(lab, "rbd")
    config = lab.path("config")
    lab.qpivot.move(scene.vm, {"d0": target.uri("id=admin", f"keyring={lab.ceph.keyring}")},
                    "--emit-config", config)
    scene.now["d0"] = target
    objects = [o["name"] for o in scene.vm.qmp.cmd("qom-list", path="/objects")]
    assert not [o for o in objects if o.startswith("qpv-")], objects
    # QEMU needs it no more: not to reopen what is open, not to move on
    node = scene.vm.block("d0")["inserted"]["node-name"]
    file = next(n for n, v in scene.vm.nodes().items() if v["drv"] == "rbd")
    with open(config) as f:
        options = next(o for o in json.load(f)["disks"][0]["blockdev"]
                       if o["driver"] == "rbd")
    assert options["key-secret"] not in objects
    scene.vm.qmp.cmd("blockdev-reopen", options=[
        dict(options, **{"node-name": file, "discard": "ignore"}),
        {"driver": "raw", "node-name": node, "file": file}])
    scene.vm.wait_writes(20)
    scene.judge()
    scene.move({"d0": volume(lab, "raw")})
    scene.judge()
    for f in os.listdir(lab.tmp):
        path = lab.path(f)
        if os.path.isfile(path) and f.startswith(("qpivot", "move")):
            with open(path, errors="replace") as text:
                assert key not in text.read(), f"the key is in {f}"
    for root, _, names in os.walk(lab.qpivot.state):
        for n in names:
            with open(os.path.join(root, n), "rb") as f:
                assert key.encode() not in f.read(), f"the key is in {n}"


def test_speed_is_held(lab):
    scene = Scene(lab, ["raw"], paused=True)
    r = scene.move({"d0": volume(lab, "raw")}, "--speed", "2M", "--sync", "full")
    assert r.last["seconds"] >= 1.0, f"4 MiB of data at 2 MiB/s took {r.last['seconds']} s"


def test_a_timeout_goes_back(lab):
    scene = Scene(lab, ["raw"])
    target = volume(lab, "raw")
    before = scene.vm.state()
    r = scene.move({"d0": target}, "--speed", "256K", "--timeout", "1s", rc=1)
    assert r.last["event"] == "failed", r.last
    assert scene.vm.state() == before and not target.exists()
    scene.judge()


def test_write_blocking_and_a_latency_limit(lab):
    scene = Scene(lab, ["raw", "qcow2"])
    scene.move({"d0": volume(lab, "qcow2")}, "--copy-mode", "write-blocking")
    scene.move({"d1": volume(lab, "raw")}, "--max-guest-latency", "200")
    scene.judge()


def test_every_transport(lab):
    port, ssh = free_port(), lab.ends(Ssh(lab.tmp))
    vm = lab.vm([Disk("d0", source(lab, "raw", "d0"))],
                argv=["-qmp", f"tcp:127.0.0.1:{port},server=on,wait=off"])
    for address in (f"unix:{vm.qmp_path}", f"tcp:127.0.0.1:{port}",
                    f"exec:socat - UNIX-CONNECT:{vm.qmp_path}",
                    f"ssh://{ssh.name}{vm.qmp_path}", f"ssh://root@{ssh.name}{vm.qmp_path}"):
        target = volume(lab, "raw")
        r = lab.qpivot.run("move", "--qmp", address, "--json",
                           "--disk", f"d0={target.uri()}", prefix=ssh.client)
        assert r.rc == 0, f"{address}: {r}"
        assert target.path in json.dumps(vm.block("d0")["inserted"]), address
    vm.wait_writes(20)


def test_a_relative_path_and_odd_names(lab):
    scene = Scene(lab, ["raw"])
    r = lab.qpivot.run("move", "--qmp", os.path.basename(scene.vm.qmp_path), "--json",
                       "--disk", "d0=a b,c.qcow2?format=qcow2",
                       prefix=["env", "-C", str(lab.tmp)])
    assert r.rc == 0, r
    scene.now["d0"] = FileVolume(lab.path("a b,c.qcow2"), "qcow2")
    scene.assert_attached()
    scene.judge()


def test_recover_knows_the_monitor_from_any_folder(lab):
    """--qmp given as a relative path; the engine dies; recover starts elsewhere."""
    scene = Scene(lab, ["raw"])
    q, target = lab.qpivot, volume(lab, "raw")
    e = q.start("move", "--qmp", os.path.basename(scene.vm.qmp_path), "--json", "--speed", "1M",
                "--disk", f"d0={target.uri()}", prefix=["env", "-C", str(lab.tmp)])
    e.wait_event("progress", seconds=30)
    e.kill()
    listed = q.run("list", "--json", prefix=["env", "-C", "/"])
    assert json.loads(listed.text)["qmp"] == "unix:" + scene.vm.qmp_path, listed
    r = q.run("recover", "--undo", prefix=["env", "-C", "/"])
    assert r.rc == 0 and not target.exists(), r
    scene.judge()


def test_recover_takes_another_hook_and_file(lab):
    scene = Scene(lab, ["raw"])
    q, first, target = lab.qpivot, scene.now["d0"], volume(lab, "raw")
    r = scene.move({"d0": target}, "--persist-hook", "exit 7", "--delete-source", rc=3)
    scene.now["d0"] = target
    hooked, config = lab.path("hooked.json"), lab.path("config.json")
    again = q.run("recover", r.op, "--emit-config", lab.path("no/such.json"))
    assert again.rc == 2 and "no" in again.error and first.exists(), again
    again = q.run("recover", r.op, "--persist-hook", f"cat > {hooked}", "--emit-config",
                  os.path.basename(config), prefix=["env", "-C", str(lab.tmp)])
    assert again.rc == 0 and not first.exists(), again
    with open(hooked) as a, open(config) as b:
        assert json.load(a) == json.load(b)
    scene.judge()


def test_the_limits_of_a_drive_are_noted_as_not_emitted(lab):
    d = Disk("d0", source(lab, "raw", "d0"), legacy=True, drive_opts=",throttling.iops-total=400")
    vm = lab.vm([d], boot=False)
    move = ("--dry-run", "--disk", "d0=" + lab.path("t.raw"))
    r = lab.qpivot.run("move", "--qmp", vm.qmp_path, *move, "--emit-config", lab.path("c.json"))
    assert r.rc == 0 and "limits" in r.text and "drv-d0" in r.text, r
    r = lab.qpivot.run("move", "--qmp", vm.qmp_path, *move)
    assert r.rc == 0 and "limits" not in r.text, r


def test_a_qemu_of_another_user_can_open_what_root_made(lab):
    for folder in (lab.tmp, lab.tmp.parent):
        os.chmod(folder, 0o755)
    major = int(lab.install.version().split(".")[0])  # -runas is gone since 10.0
    runas = ["-run-with", "user=nobody"] if major >= 10 else ["-runas", "nobody"]
    scene = Scene(lab, ["raw"], argv=runas, boot=False)
    nobody = pwd.getpwnam("nobody")
    first, target = scene.now["d0"], volume(lab, "qcow2")
    r = scene.move({"d0": target}, rc=1)  # as root's file it is not nobody's
    assert "Permission denied" in r.error and "append ?existing=yes" in r.error, r
    os.chown(first.path, nobody.pw_uid, nobody.pw_gid)
    os.chmod(first.path, 0o640)
    scene.move({"d0": target})
    st = os.stat(target.path)
    assert (st.st_uid, st.st_gid, st.st_mode & 0o777) == (nobody.pw_uid, nobody.pw_gid, 0o640), st
    scene.assert_attached()


def test_a_source_that_qemu_names_by_a_relative_path(lab):
    """Its own directory tells which file that is, if QEMU is still in it."""
    first = source(lab, "raw", "d0")
    there = FileVolume(os.path.relpath(first.path), "raw")
    vm = lab.vm([Disk("d0", there)], boot=False)
    r = lab.qpivot.move(vm, {"d0": volume(lab, "raw").uri()}, "--delete-source")
    assert r.disks["d0"]["from"].endswith(os.path.basename(first.path)), r.disks
    assert not first.exists()
