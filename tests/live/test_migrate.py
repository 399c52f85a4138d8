"""A running VM goes to another QEMU, with its disks."""

import json
import os
import re
import signal

from lab.ceph import Ceph
from lab.pair import Pair
from lab.proc import wait_for
from lab.runner import needs, timeout
from lab.scene import SIZE, volume
from lab.storage import RbdVolume
from lab.tls import Authority

# Slow enough to be met in the middle; the guest must write less than that.
SLOW = ("--bandwidth", "4M")
LESS = 100  # ms between two writes of a disk


def told(result):
    """What the engine says of the guest's standstill."""
    done = result.last
    print(f"blackout {done.get('blackout_ms', 0):.1f} ms {done.get('blackout')}, "
          f"{done['seconds']:.2f} s in all")
    return done


def assert_gone_over(pair, result):
    """The guest runs at the destination, and nowhere else; no write is lost."""
    done = told(result)
    assert done["event"] == "done" and done["blackout_ms"] > 0, result
    assert pair.runs_at() == ["destination"], pair.runs_at()
    pair.src.proc.wait(10)
    pair.assert_attached()
    pair.vm.wait_writes(20)
    pair.judge()
    pair.assert_tidy()


def assert_stayed(pair, before):
    """The guest runs at the source, which is as it was."""
    assert pair.runs_at() == ["source"], pair.runs_at()
    after = pair.src.state()
    assert after == before, (before, after)
    assert pair.lab.qpivot.run("list", "--json").text.strip() == ""
    pair.vm.wait_writes(20)
    pair.judge()


@timeout(90)
def test_nbd_raw(lab):
    """The source has never been a destination, which most guests here have."""
    pair = Pair(lab, ["raw"], to={"d0": "raw"}, power_on=True)
    assert_gone_over(pair, pair.migrate())


@timeout(90)
def test_nbd_qcow2_with_a_throttled_disk(lab):
    pair = Pair(lab, ["qcow2"], to={"d0": "qcow2"})
    r = pair.migrate("--bandwidth", "64M", "--downtime-limit", "100", "--auto-converge")
    assert r.disks["d0"]["how"] == "nbd", r.disks
    assert_gone_over(pair, r)


@timeout(90)
def test_shared_file_on_one_host(lab):
    pair = Pair(lab, ["qcow2"])
    r = pair.migrate()
    assert r.disks["d0"]["how"] == "share", r.disks
    assert not [e for e in r.named("step") if e["step"] == "mirror"]
    assert_gone_over(pair, r)


@needs("ceph", "nfs")
@timeout(120)
def test_mixed_disks(lab):
    """Shared over NFS and RBD, copied from file to file and from RBD to NFS."""
    pair = Pair(lab, {"d0": "nfs", "d1": "rbd", "d2": "raw", "d3": "rbd"},
                to={"d2": "qcow2", "d3": "nfs"})
    r = pair.migrate()
    assert {d: x["how"] for d, x in r.disks.items()} == {
        "d0": "share", "d1": "share", "d2": "nbd", "d3": "nbd"}, r.disks
    assert_gone_over(pair, r)


@needs("ceph")
@timeout(150)
def test_an_image_of_the_same_name_in_another_cluster(lab):
    """Each host has its own /etc/ceph/ceph.conf: an image of one name is the
    same only where its cluster knows of two clients that have it open."""
    pair = Pair(lab, ["rbd"])
    apart = ["unshare", "--mount", "--"]
    pair.wait(prefix=apart)
    r = pair.migrate("--dry-run")
    assert r.named("plan")[0]["disks"][0]["how"] == "share", r

    other = lab.ends(Ceph(lab.path("other-ceph")).start())
    RbdVolume(other, pair.now["d0"].name).create(lab.install, SIZE)
    swap = f"mount --bind {other.conf} {lab.ceph.conf}; exec \"$@\""
    pair.wait(prefix=[*apart, "sh", "-ec", swap, "sh"])
    before = pair.src.state()
    for asked in ((), ("--disk", "d0=share")):
        r = pair.migrate(*asked, rc=2)
        assert "one client of its cluster" in r.error, r.error
        assert pair.src.state() == before and pair.runs_at() == ["source"]
    pair.wait(prefix=apart)
    assert_gone_over(pair, pair.migrate())


def assert_not_made(pair, result=None):
    """What was made for a migration that went back is gone, on either side; or
    told to be left, where the destination that had made it was gone."""
    left = [str(v.mark()) for d, v in pair.there.items() if d in pair.made and v.exists()]
    told_of = [w["message"] for w in result.named("warning")] if result else []
    for path in left:
        assert any(f"'{path}'" in m for m in told_of), (left, told_of)


@timeout(120)
def test_files_that_the_destination_makes(lab):
    pair = Pair(lab, ["raw", "qcow2"], made={"d0": "qcow2", "d1": "raw"})
    r = pair.migrate("--dry-run")
    sent = [c["execute"] for c in r.named("plan")[0]["commands"]]
    assert sent.count("blockdev-create") == 3 and "qom-set" in sent, sent
    assert_not_made(pair)
    r = pair.migrate()
    assert all(x["how"] == "nbd" and x["made"] for x in r.disks.values()), r.disks
    assert_gone_over(pair, r)
    pair.turn_round(made={"d0": "raw", "d1": "qcow2"})
    assert_gone_over(pair, pair.migrate())


@timeout(90)
def test_a_made_disk_of_the_old_kind(lab):
    pair = Pair(lab, ["raw", "raw"], made={"d0": "raw", "d1": "qcow2"}, legacy=True)
    assert_gone_over(pair, pair.migrate())


@needs("ceph", "nfs")
@timeout(180)
def test_network_storage_is_written_by_the_source(lab):
    """No NBD for those, but for an image that grows; with a shared, a copied and
    a made one in one VM."""
    pair = Pair(lab, {"d0": "raw", "d1": "raw", "d2": "qcow2", "d3": "raw", "d4": "raw",
                      "d5": "qcow2"}, to={"d3": "raw"},
                made={"d0": "rbd", "d1": "nfs-qcow2", "d4": "qcow2", "d5": "nfs"})
    r = pair.migrate()
    assert {d: x["how"] for d, x in r.disks.items()} == {
        "d0": "direct", "d1": "nbd", "d2": "share", "d3": "nbd", "d4": "nbd",
        "d5": "direct"}, r.disks
    reasons = {d["disk"]: d["reason"] for d in r.named("plan")[0]["disks"]}
    assert "network" in reasons["d0"] and "destination" in reasons["d4"], reasons
    assert_gone_over(pair, r)


@needs("nfs", "ceph")
@timeout(120)
def test_a_volume_of_the_destination_is_written_directly(lab):
    pair = Pair(lab, ["raw", "raw"], to={"d0": "nfs", "d1": "rbd"})
    r = pair.migrate("--disk", "d0=direct", "--disk", "d1=direct")
    assert {x["how"] for x in r.disks.values()} == {"direct"}, r.disks
    assert_gone_over(pair, r)


@needs("nfs")
@timeout(90)
def test_an_image_that_grows_is_not_shared_over_nfs(lab):
    """QEMU's nfs driver does not see what another one writes behind the end."""
    pair = Pair(lab, ["nfs-qcow2"])
    before = pair.src.state()
    for more in ((), ("--disk", "d0=share")):
        r = pair.migrate(*more, rc=2)
        assert "grows" in json.dumps(r.last["problems"]), r.last
    assert_stayed(pair, before)


@needs("nfs", "ceph")
@timeout(120)
def test_made_targets_go_when_the_guest_stays(lab):
    pair = Pair(lab, ["raw"] * 4, pace=LESS,
                made={"d0": "raw", "d1": "qcow2", "d2": "nfs", "d3": "rbd"})
    before = pair.src.state()
    e = pair.start(*SLOW)
    e.wait_event("progress", lambda x: x.get("bytes", 0) > 0, 60)
    assert all(v.exists() for v in pair.there.values())
    e.interrupt()
    r = e.wait(60)
    assert r.rc == 1, r
    assert_stayed(pair, before)
    assert_not_made(pair)
    pair.wait()
    assert_gone_over(pair, pair.migrate())


@timeout(90)
def test_a_dead_destination_cannot_take_its_file_away(lab):
    """Then it is told which one is left."""
    pair = Pair(lab, ["raw"], made={"d0": "raw"}, pace=LESS)
    before = pair.src.state()
    e = pair.start(*SLOW)
    e.wait_event("progress", lambda x: x.get("bytes", 0) > 0, 30)
    pair.dst.proc.send(signal.SIGKILL)
    r = e.wait(60)
    assert r.rc == 1, r
    assert_stayed(pair, before)
    path = pair.there["d0"].path
    assert os.path.exists(path)
    assert_not_made(pair, r)


@timeout(120)
def test_what_is_there_is_never_made_anew(lab):
    pair = Pair(lab, ["raw"], made={"d0": "raw"})
    before = pair.src.state()
    path = pair.there["d0"].path
    with open(path, "wb") as f:
        f.write(b"precious" * 8192)
    r = pair.migrate(rc=2)
    assert "existing=yes" in json.dumps(r.last["problems"]), r.last
    with open(path, "rb") as f:
        assert f.read() == b"precious" * 8192
    assert_stayed(pair, before)
    os.truncate(path, 64 << 20)
    pair.made, pair.there = {}, pair.there
    assert_gone_over(pair, pair.migrate("--disk", f"d0={path}?existing=yes"))


@timeout(120)
def test_targets_that_fit_nothing_are_refused(lab):
    pair = Pair(lab, ["raw", "raw", "raw"], to={"d1": "raw"}, made={"d0": "raw", "d2": "raw"})
    before = pair.src.state(), pair.dst.state()
    pair.made = {}
    other = lab.path("other.raw")
    for disk, word in ((None, "placeholder"), ("d0=nbd", "placeholder"),
                       (f"d0={lab.path('no/such.raw')}", "directory"),
                       ("d0=relative/x.raw", "relative"), ("d0=nonsense", "neither"),
                       (f"d1={other}", "already"),
                       (f"d0={other}?size=1M", "equal"),
                       ("d1=direct", "network storage")):
        r = pair.migrate(*(["--disk", disk] if disk else []), rc=2)
        text = r.error + json.dumps(r.last or {})
        assert word in text, (disk, word, text)
    r = pair.migrate("--disk", f"d0={other}", "--disk", f"d2={other}", rc=2)
    assert "same target" in json.dumps(r.last), r.last
    assert not os.path.exists(other)
    assert (pair.src.state(), pair.dst.state()) == before


@timeout(120)
def test_a_made_disk_from_the_printed_command_line(lab):
    """The same words for both: what is to be made is a placeholder there."""
    pair = Pair(lab, ["qcow2", "raw"])
    pair.derive(made={"d0": "raw"})
    r = pair.migrate()
    assert {d: x["how"] for d, x in r.disks.items()} == {"d0": "nbd", "d1": "share"}, r.disks
    pair.src.disks = pair.dst.disks = []
    assert_gone_over(pair, r)


@timeout(90)
def test_drives_of_the_old_kind(lab):
    pair = Pair(lab, ["raw", "qcow2"], to={"d0": "raw"}, legacy=True)
    assert_gone_over(pair, pair.migrate())


@timeout(120)
def test_there_and_back(lab):
    pair = Pair(lab, ["raw", "qcow2"], to={"d0": "qcow2"})
    assert_gone_over(pair, pair.migrate())
    pair.turn_round({"d0": "raw", "d1": "raw"})
    assert_gone_over(pair, pair.migrate("--multifd", "2"))


@timeout(90)
def test_paused_stays_paused(lab):
    pair = Pair(lab, ["raw"], to={"d0": "raw"})
    tables = pair.vm.tables()
    pair.src.qmp.cmd("stop")
    r = pair.migrate()
    assert "blackout_ms" not in r.last, r.last
    assert pair.dst.status() == "paused" and pair.runs_at() == []
    pair.dst.qmp.cmd("cont")
    pair.vm.resume()
    assert tables
    pair.vm.wait_writes(20)
    pair.judge()


@timeout(90)
def test_the_source_can_be_left_paused(lab):
    pair = Pair(lab, ["raw"], to={"d0": "raw"})
    pair.migrate("--source-after", "pause")
    assert pair.src.status() == "postmigrate" and pair.runs_at() == ["destination"]
    objects = [o["name"] for o in pair.src.qmp.cmd("qom-list", path="/objects")]
    assert "qpv-claim" not in objects, objects
    pair.judge()


@timeout(90)
def test_suspend(lab):
    pair = Pair(lab, ["raw"], to={"d0": "raw"})
    r = pair.migrate("--suspend")
    assert_gone_over(pair, r)


@timeout(90)
def test_timeout_suspends(lab):
    pair = Pair(lab, ["raw"], pace=LESS)
    r = pair.migrate("--bandwidth", "8M", "--downtime-limit", "1", "--timeout", "2s",
                     "--on-timeout", "suspend", "--freeze-limit", "60s")
    assert_gone_over(pair, r)


@timeout(90)
def test_timeout_goes_back(lab):
    pair = Pair(lab, ["raw"], to={"d0": "raw"}, pace=LESS)
    before = pair.src.state()
    pair.migrate(*SLOW, "--timeout", "3s", rc=1)
    assert_stayed(pair, before)


@timeout(90)
def test_dry_run_changes_nothing(lab):
    pair = Pair(lab, ["raw"], to={"d0": "raw"})
    before = pair.src.state(), pair.dst.state()
    r = pair.migrate("--dry-run")
    names = [c["execute"] for c in r.named("plan")[0]["commands"]]
    assert "block-export-add" in names and "migrate-continue" in names, names
    assert (pair.src.state(), pair.dst.state()) == before


@timeout(90)
def test_every_mismatch_is_named_at_once(lab):
    pair = Pair(lab, ["raw", "raw", "raw"], to={"d0": "raw"})
    os.truncate(pair.there["d0"].path, 32 << 20)
    pair.dst.stop()
    pair.dst = lab.ends(pair.destination(without=("d1",), memory=112))
    before = pair.src.state()
    r = pair.migrate("--disk", "nosuch=share", rc=2)
    text = json.dumps(r.last["problems"])
    print(text)
    for word in ("67108864", "33554432", "no such device", "memory size",
                 "nosuch"):
        assert word in text, (word, text)
    assert_stayed(pair, before)


@timeout(90)


@timeout(90)
def test_a_destination_that_runs_is_refused(lab):
    pair = Pair(lab, ["raw"])
    pair.dst.stop()
    pair.dst = lab.vm([], name="other")
    before = pair.src.state()
    r = pair.migrate(rc=2)
    assert "-incoming defer" in json.dumps(r.last["problems"]), r.last
    pair.dst.stop()
    assert_stayed(pair, before)


@timeout(90)
def test_the_destination_dies_while_copying(lab):
    pair = Pair(lab, ["raw"], to={"d0": "raw"}, pace=LESS)
    before = pair.src.state()
    e = pair.start(*SLOW)
    e.wait_event("progress", lambda x: x.get("bytes", 0) > 0, 30)
    pair.dst.proc.send(signal.SIGKILL)
    r = e.wait(60)
    assert r.rc == 1, r
    assert_stayed(pair, before)


@timeout(90)
def test_the_destination_dies_in_the_stream(lab):
    pair = Pair(lab, ["raw"], to={"d0": "raw"}, pace=LESS)
    before = pair.src.state()
    e = pair.start(*SLOW)
    e.wait_event("progress", lambda x: x.get("disk") == "memory", 60)
    pair.dst.proc.send(signal.SIGKILL)
    r = e.wait(60)
    assert r.rc == 1, r
    assert_stayed(pair, before)


@timeout(120)
def test_the_destination_dies_in_the_switchover(lab):
    """At the last moments: the source decides, and only one of them may run."""
    pair = Pair(lab, ["raw"], to={"d0": "raw"})
    for step, state in (("stream-follow", "end"), ("mirror-end", "start"),
                        ("mirror-end", "end"), ("switchover", "start")):
        before = pair.src.state()
        e = pair.start()
        e.wait_event("step", lambda x, s=step, t=state: (x["step"], x["state"]) == (s, t), 60)
        pair.dst.proc.send(signal.SIGKILL)
        r = e.wait(90)
        print(step, state, "->", r.rc, r.last.get("event"), pair.runs_at())
        assert r.rc == 1 or (r.rc == 3 and pair.src.status() == "postmigrate"), r
        if r.rc == 3:  # the guest was the destination's already, and died there
            assert pair.runs_at() == []
            return
        assert_stayed(pair, before)
        pair.wait()
    assert_gone_over(pair, pair.migrate())


@timeout(90)
def test_the_source_dies_in_the_stream(lab):
    """The guest dies with it; the destination must not run a part of it."""
    pair = Pair(lab, ["raw"], to={"d0": "raw"}, pace=LESS)
    e = pair.start(*SLOW)
    e.wait_event("progress", lambda x: x.get("disk") == "memory", 60)
    pair.src.proc.send(signal.SIGKILL)
    r = e.wait(60)
    assert r.rc == 1, r
    wait_for("the destination to end, or wait", lambda: pair.runs_at() == [], 10)
    assert lab.qpivot.run("list", "--json").text.strip() == ""


@timeout(90)
def test_a_source_that_dies_once_it_has_let_go(lab):
    """Nobody can say any more whether it had: nothing is started."""
    pair = Pair(lab, ["raw"], to={"d0": "raw"})
    e = pair.start()
    e.wait_event("step", lambda x: (x["step"], x["state"]) == ("switchover", "start"), 60)
    pair.src.proc.send(signal.SIGKILL)
    r = e.wait(90)
    print(r, pair.runs_at())
    assert (r.rc == 3 and pair.runs_at() == []) or \
           (r.rc == 0 and pair.runs_at() == ["destination"]), (r, pair.runs_at())


@timeout(90)
def test_an_interrupt_goes_back(lab):
    pair = Pair(lab, ["raw"], to={"d0": "raw"}, pace=LESS)
    before = pair.src.state()
    for place in (lambda x: x.get("disk") == "d0", lambda x: x.get("disk") == "memory"):
        e = pair.start(*SLOW)
        e.wait_event("progress", place, 60)
        e.interrupt()
        r = e.wait(60)
        assert r.rc == 1, r
        assert_stayed(pair, before)
        pair.wait()
    assert_gone_over(pair, pair.migrate())


# What has these steps in its plan.
ONLY_WITH = {"suspend": ["--suspend"], "stream-gate": ["--suspend"],
             **dict.fromkeys(("release", "tls-remove", "secret-drop"),
                             ["--source-after", "pause"]),
             "sockets": ["--unix"], "sockets-remove": ["--unix"]}
TLS = ["tls", "tls-destination", "authz-destination", "authz-remove",
       "tls-remove-destination", "tls-remove"]
CLONES = ["base-open", "base-export", "base-compare", "base-close", "base-drop",
          "base-overlay"]  # test_migrate_linked.py has them
POSTCOPY = ["postcopy", "postcopy-follow"]  # test_migrate_postcopy.py has them
# Steps of volumes that are not there before.
MAKING = ("target-create", "target-publish", "target-make", "target-made", "target-file",
          "target-direct", "target-asked", "destination-file",
          "destination-activate", "destination-format", "destination-node",
          "destination-attach", "placeholder-drop", "target-alive", "target-stay")
# Of those that need a key.
WITH_KEY = ("target-secret", "destination-secret", "secret-drop-destination", "secret-drop")


def kill_everywhere(lab, half, state):
    pair = Pair(lab, {"d0": "nfs", "d1": "rbd", "d2": "raw"}, to={"d2": "raw"})
    pair.src.qmp.cmd("block-dirty-bitmap-add", node="n-d2", name="b0")
    known = {c["name"] for c in pair.src.qmp.cmd("query-commands")}
    never = [*TLS, *MAKING, *WITH_KEY, *CLONES, *POSTCOPY]
    never += [] if "block-job-change" in known else ["mirror-active"]
    return kill_at_each(lab, state, lab.share(lab.qpivot.steps("migrate", never), half), pair,
                        with_bitmap=["d2"], to={"d2": "raw"})


def kill_at_each(lab, state, steps, pair, with_bitmap=(), options=(), **anew):
    """Kills the engine at each step in turn; recover must end it either way,
    and never do both QEMUs run, nor could they."""
    ends = {}
    for step in steps:
        more = [*ONLY_WITH.get(step, ()), *options]
        e = pair.start("--emit-config", lab.path("config"), *more)
        e.kill_at(step, state)
        assert len(pair.runs_at()) <= 1, (step, pair.runs_at())
        r = lab.qpivot.run("recover", "--json")
        where = pair.runs_at()
        print(step, state, "-> recover", r.rc, r.last.get("event"), where)
        assert r.rc == 0 and len(where) == 1, f"killed at {step}: {where} {r}"
        assert lab.qpivot.run("list", "--json").text.strip() == "", step
        there = pair.src if where == ["source"] else pair.dst
        for disk in with_bitmap:
            bitmaps = there.block(disk)["inserted"].get("dirty-bitmaps", [])
            assert [b["name"] for b in bitmaps] == ["b0"], (step, bitmaps)
        ends[step] = where[0]
        if where == ["destination"]:
            pair.arrived()
        pair.judge()
        if where == ["destination"]:
            if "--source-after" in more:
                pair.src.stop()
            pair.src.proc.wait(10)
            pair.turn_round(**anew)
        else:
            assert_not_made(pair, r)
            pair.wait()
    print(ends)
    return ends


@needs("ceph", "nfs")
@timeout(900)
def test_killed_at_the_start_of_every_step(lab):
    ends = kill_everywhere(lab, 0, "start")
    assert set(ends.values()) == {"source", "destination"}, ends


@needs("ceph", "nfs")
@timeout(900)
def test_killed_at_the_end_of_every_step(lab):
    ends = kill_everywhere(lab, 1, "end")
    assert set(ends.values()) == {"source", "destination"}, ends


@needs("nfs")
@timeout(900)
def test_killed_while_the_targets_are_made(lab):
    """Nothing of a file that the destination made is left, nor of an NFS
    file, whether the engine dies before a step's effect or after it."""
    made = {"d0": "qcow2", "d1": "nfs"}
    for half, state in enumerate(("start", "end")):
        kill_at_each(lab, state, lab.share(MAKING, half),
                     Pair(lab, ["raw"] * 2, made=made), made=made)


@needs("ceph")
@timeout(600)
def test_killed_with_keys_and_certificates(lab):
    """At the start of one step, at the end of the next: what holds them is left
    on neither side."""
    steps = lab.share([*TLS, *WITH_KEY], 0)
    made, to = {"d0": "rbd-keyed"}, {"d1": "raw"}
    pair = Pair(lab, ["raw", "raw"], made=made, to=to)
    tls = ("--tls-creds", Authority(lab).issue(), "--tls-authz", "CN=source")
    for n, state in enumerate(("start", "end")):
        kill_at_each(lab, state, steps[n::2], pair, options=tls, made=made, to=to)
        objects = [o["name"] for o in pair.vm.qmp.cmd("qom-list", path="/objects")]
        assert not [o for o in objects if o.startswith("qpv-")], objects


@timeout(120)
def test_a_stalled_destination_goes_back(lab):
    """Stopped, not dead: nothing that it holds open may hold up the guest."""
    pair = Pair(lab, ["raw"], to={"d0": "raw"}, pace=LESS)
    e = pair.start(*SLOW, "--command-timeout", "5s")
    e.wait_event("progress", lambda x: x.get("bytes", 0) > 0, 30)
    pair.dst.proc.send(signal.SIGSTOP)
    e.interrupt()
    r = e.wait(110)
    print(r)
    assert r.rc in (1, 3), r
    pair.dst.proc.send(signal.SIGKILL)
    assert pair.runs_at() == ["source"]
    if r.rc == 3:
        assert lab.qpivot.run("recover", "--json").rc == 0
    pair.judge()


@timeout(90)
def test_a_destination_without_s_waits_all_the_same(lab):
    """It would run the guest by itself: it is told not to, before it listens."""
    pair = Pair(lab, ["raw"], to={"d0": "raw"})
    pair.wait(starts=True)
    r = pair.migrate()
    assert "without -S" in json.dumps(r.named("plan")[0]["notes"]), r.named("plan")
    assert_gone_over(pair, r)
    with open(lab.path("migrate0.trace"), encoding="utf-8") as f:
        trace = f.read()
    sent = re.findall(r'"execute": *"([a-z-]+)"', trace)
    assert sent.index("stop") < sent.index("migrate-incoming"), sent
    # Whoever ran it before the start step would have needed no cont.
    assert sent.index("migrate-continue") < sent.index("cont"), sent


@timeout(90)
def test_killed_in_the_stream_the_source_thaws_by_itself(lab):
    pair = Pair(lab, ["raw"], to={"d0": "raw"}, pace=LESS)
    e = pair.start(*SLOW)
    e.wait_event("progress", lambda x: x.get("disk") == "memory", 60)
    e.kill()
    try:
        wait_for("the stream to be cancelled",
                 lambda: pair.src.qmp.cmd("query-migrate")["status"] == "cancelled", 15)
    finally:
        print(pair.src.qmp.cmd("query-migrate"))
    assert pair.runs_at() == ["source"]
    pair.vm.wait_writes(20)
    assert lab.qpivot.run("recover", "--json").rc == 0
    assert pair.runs_at() == ["source"]
    pair.judge()


@timeout(90)
def test_a_mirror_that_somebody_else_ends(lab):
    """Its target lacks what the guest wrote since: the guest stays."""
    pair = Pair(lab, ["raw"], to={"d0": "raw"}, pace=LESS)
    before = pair.src.state()
    e = pair.start(*SLOW)
    e.wait_event("progress", lambda x: x.get("disk") == "memory", 60)
    job = [j["id"] for j in pair.src.qmp.cmd("query-jobs")][0]
    pair.src.qmp.cmd("block-job-cancel", device=job, force=False)
    r = e.wait(60)
    assert r.rc == 1 and "somebody else" in json.dumps(r.last), r
    assert_stayed(pair, before)


def assert_left_alone(pair, r):
    """Its destination stalls: the guest goes on, and the rest waits for it."""
    assert r.rc == 3, r
    assert pair.src.status() == "running"
    assert not pair.src.qmp.cmd("query-jobs")
    pair.vm.wait_writes(20)
    pair.dst.proc.send(signal.SIGKILL)
    assert pair.lab.qpivot.run("recover", "--json").rc == 0
    pair.judge()


@timeout(120)
def test_a_destination_that_stalls_in_the_stream(lab):
    """The guest's writes go on while it still stands."""
    pair = Pair(lab, ["raw"], to={"d0": "raw"}, pace=LESS)
    e = pair.start(*SLOW, "--command-timeout", "4s")
    e.wait_event("progress", lambda x: x.get("disk") == "memory", 60)
    pair.dst.proc.send(signal.SIGSTOP)
    e.interrupt()
    r = e.wait(100)
    assert_left_alone(pair, r)


@timeout(120)
def test_a_destination_that_stalls_is_noticed(lab):
    """Nobody interrupts: the engine sees by itself that it does not answer."""
    pair = Pair(lab, ["raw"], to={"d0": "raw"}, pace=LESS)
    e = pair.start(*SLOW, "--command-timeout", "4s")
    e.wait_event("progress", lambda x: x.get("bytes", 0) > 0, 60)
    pair.dst.proc.send(signal.SIGSTOP)
    r = e.wait(60)
    assert_left_alone(pair, r)


@timeout(120)
def test_a_destination_from_the_printed_command_line(lab):
    """The words that started the source are not true any more: a disk has
    been moved, and the other one is to be elsewhere."""
    pair = Pair(lab, ["raw", "raw"])
    pair.move({"d0": volume(lab, "qcow2")})
    dst = pair.derive(to={"d1": "qcow2"})
    assert dst.notes == [], dst.notes
    r = pair.migrate()
    assert {d: x["how"] for d, x in r.disks.items()} == {"d0": "share", "d1": "nbd"}, r.disks
    # The nodes have the names that they had at the source from the start.
    assert {n for n in dst.state()["nodes"] if n[0] != "#"} == {
        "n-d0", "n-d0-file", "n-d1", "n-d1-file"}
    pair.src.disks = pair.dst.disks = []
    assert_gone_over(pair, r)


@timeout(90)
def test_disks_with_an_iothread(lab):
    """7.2's export of a node outside the main loop does not outlive its client."""
    pair = Pair(lab, ["raw", "raw"], to={"d0": "qcow2"}, disk={"props": {"iothread": "io0"}},
                argv=["-object", "iothread,id=io0"])
    assert_gone_over(pair, pair.migrate())
