"""The undo window: the former disks stay equal for a while after the pivot,
and the guest can go back to them without losing what it wrote since."""

import json

from lab.proc import wait_for
from lab.runner import timeout
from lab.scene import SIZE, Scene, volume
from lab.storage import MiB
from test_fault import ELSEWHERE

OPEN = 60  # seconds to wait until a window is open


def opened(scene, targets, window="10m", *options):
    """Starts a move and waits until its undo window is open."""
    e = scene.start_move(targets, "--undo-window", window, *options)
    e.wait_event("progress", lambda x: x["phase"] == "undo-window", OPEN)
    return e


def assert_back(scene, before, targets):
    """The guest runs on its sources with all its data, and nothing is left."""
    assert scene.vm.state() == before, (before, scene.vm.state())
    for v in targets.values():
        assert not v.creatable or not v.exists(), f"{v} {v.mark()} is left"
    scene.assert_attached()
    scene.assert_tidy()
    scene.judge()


def runs(scene):
    return scene.vm.qmp.cmd("query-status")["running"]


def freeze(events):
    """Milliseconds that the guest stood still, as the window's opening says."""
    return next(e for e in events if e["event"] == "done")["undo_window"]["frozen_ms"]


@timeout(120)
def test_an_undo_brings_back_all_that_was_written_since(lab):
    """Two disks, one on a larger qcow2 target: the undo, from another process,
    loses no write."""
    scene = Scene(lab, ["raw", "qcow2"])
    config = lab.path("config.json")
    targets = {"d0": volume(lab, "qcow2", SIZE + 4 * MiB), "d1": volume(lab, "raw")}
    before = scene.vm.state()
    e = scene.lab.qpivot.start_move(
        scene.vm, {"d0": targets["d0"].uri(f"size={SIZE + 4 * MiB}"), "d1": targets["d1"].uri()},
        "--undo-window", "10m", "--emit-config", config)
    e.wait_event("progress", lambda x: x["phase"] == "undo-window", OPEN)
    op = e.events[0]["op"]
    assert targets["d1"].path in json.dumps(scene.vm.block("d1"))
    assert targets["d1"].path in open(config).read(), "told before the window"
    scene.vm.wait_writes(100)
    # That the former disks have them, too, only the way back can show: QEMU
    # lets nobody read the target of a mirror.
    sources, scene.now = scene.now, dict(targets)
    scene.judge()
    e.wait_event("progress", lambda x: x.get("write_latency_window_us", 0) > 0, 30)
    scene.vm.wait_writes(20)
    scene.now = dict(sources)
    undo = lab.qpivot.run("undo", op, "--json")
    assert undo.rc == 0, undo
    r = e.wait(30)
    assert r.rc == 1 and r.last["event"] == "failed" and r.last["returned"], r
    assert sources["d1"].path in open(config).read(), "and told once more"
    assert_back(scene, before, targets)
    again = lab.qpivot.run("undo", op, "--json")
    assert again.rc == 0 and again.last["answer"] == "back", "it went back before"


@timeout(120)
def test_a_window_runs_out(lab):
    """The twin is dropped, and only then the source is removed; a paused
    guest stays paused all the time."""
    scene = Scene(lab, ["raw", "raw"])
    targets = {"d0": volume(lab, "raw"), "d1": volume(lab, "qcow2")}
    sources = dict(scene.now)
    e = opened(scene, targets, "4s", "--delete-source")
    assert all(v.exists() for v in sources.values())
    r = e.wait(60)
    assert r.rc == 0 and r.last["undo_window"]["closed"] == "its time is over", r
    print("frozen for", freeze(r.events), "ms")
    assert not any(v.exists() for v in sources.values())
    scene.now.update(targets)
    scene.assert_attached()
    scene.assert_tidy()
    scene.judge()
    # Once more with the guest paused: nobody lets it go on.
    scene.vm.qmp.cmd("stop")
    again = {"d0": volume(lab, "raw")}
    e = opened(scene, again, "10m")
    assert not runs(scene)
    undo = lab.qpivot.run("undo", e.events[0]["op"], "--json")
    assert undo.rc == 0 and e.wait(30).rc == 1, undo
    assert not runs(scene)
    scene.vm.qmp.cmd("cont")
    scene.assert_attached()
    scene.judge()


@timeout(150)
def test_a_killed_engine_leaves_a_running_guest(lab):
    """Killed in the bracket the guest goes on at once, and there is no window
    any more; killed in the window that goes on, and can be used."""
    for step in ("guest-stop", "prove", "twin", "guest-cont"):
        scene = Scene(lab, ["raw", "raw"])
        targets = {"d0": volume(lab, "raw"), "d1": volume(lab, "raw")}
        e = scene.start_move(targets, "--undo-window", "3s")
        e.kill_at(step, "start", OPEN)
        wait_for("the guest to go on", lambda: runs(scene), 10)
        scene.vm.wait_writes(20)
        r = lab.qpivot.run("recover", "--json")
        assert r.rc == 0, r
        scene.now.update(targets if r.last["event"] == "done" else {})
        scene.assert_attached()
        scene.assert_tidy()
        scene.judge()
        scene.vm.kill()


def killed_everywhere(lab, half, state):
    """What only a verified move, or one with a window, has of steps."""
    scene = Scene(lab, ["raw", "qcow2"])
    for step in lab.share(ELSEWHERE, half):
        targets = {"d0": volume(lab, "raw"), "d1": volume(lab, "qcow2")}
        how = (["--via", "drive-mirror"] if step == "target-file-drop" else
               ["--verify", "full", "--undo-window", "1s", "--freeze-limit", "30s",
                "--emit-config", lab.path("config")])
        e = scene.start_move(targets, *how)
        e.kill_at(step, state)
        wait_for("the guest to go on", lambda: runs(scene), 20)
        r = lab.qpivot.run("recover", "--json")
        print(step, state, "-> recover", r.rc, r.last.get("event"))
        assert r.rc == 0, f"killed at {step}: {r}"
        last = r.last or e.events[-1]  # the kill may come when all is over
        scene.now.update(targets if last["event"] == "done" else {})
        scene.assert_attached()
        scene.assert_tidy()
        assert lab.qpivot.run("list", "--json").text.strip() == ""
        scene.judge()


@timeout(900)
def test_killed_at_the_start_of_every_step_of_its_own(lab):
    killed_everywhere(lab, 0, "start")


@timeout(900)
def test_killed_at_the_end_of_every_step_of_its_own(lab):
    killed_everywhere(lab, 1, "end")


@timeout(150)
def test_a_window_outlives_its_engine(lab):
    scene = Scene(lab, ["raw", "qcow2"])
    targets = {"d0": volume(lab, "raw"), "d1": volume(lab, "raw")}
    before = scene.vm.state()
    e = opened(scene, targets)
    e.kill()
    scene.vm.wait_writes(50)
    # recover goes on with it; killed too, undo takes it over.
    again = lab.qpivot.start("recover", "--json")
    again.wait_event("progress", lambda x: x["phase"] == "undo-window", 30)
    again.kill()
    scene.vm.wait_writes(50)
    r = lab.qpivot.run("undo", e.events[0]["op"], "--json")
    assert r.rc == 0, r
    assert_back(scene, before, targets)


@timeout(150)
def test_a_former_disk_that_breaks_harms_nobody(lab):
    """It dies, or takes no more writes: the window closes with a warning, the
    guest goes on with what it has acknowledged, and undo says why not."""
    for kind in ("kill", "stall"):
        scene = Scene(lab, ["nbd"])
        target = volume(lab, "raw")
        server = scene.now["d0"].server
        e = opened(scene, {"d0": target})
        getattr(server, kind)()
        r = e.wait(60)
        assert r.rc == 0, r
        warned = [w["message"] for w in r.named("warning")]
        assert any("does not follow any more" in w for w in warned), warned
        if kind == "stall":
            server.go_on()
        late = lab.qpivot.run("undo", r.op, "--json")
        assert late.rc == 2, late
        scene.now["d0"] = target
        scene.vm.wait_writes(20)
        scene.assert_attached()
        scene.judge()
        scene.vm.kill()


@timeout(120)
def test_compared_before_and_undone_after(lab):
    """--verify and --undo-window hold the guest in one bracket: what is equal
    then is compared, and is what the way back starts from."""
    scene = Scene(lab, ["raw", "qcow2"])
    before = scene.vm.state()
    targets = {"d0": volume(lab, "qcow2"), "d1": volume(lab, "raw")}
    e = opened(scene, targets, "10m", "--verify", "full", "--freeze-limit", "30s")
    steps = [(x["step"], x["state"]) for x in e.events if x["event"] == "step"]
    done = [s for s, state in steps if state == "end"]
    assert done.index("guest-stop") < done.index("verify-rest") < done.index("pivot") \
        < done.index("guest-cont"), done
    assert [s for s, state in steps if state == "start"].count("guest-stop") == 1
    scene.vm.wait_writes(50)
    undo = lab.qpivot.run("undo", e.events[0]["op"], "--json")
    assert undo.rc == 0 and e.wait(30).rc == 1, undo
    assert_back(scene, before, targets)
    # and to its end
    targets = {"d0": volume(lab, "raw"), "d1": volume(lab, "raw")}
    r = scene.start_move(targets, "--undo-window", "1s", "--verify", "sample").wait(60)
    assert r.rc == 0 and r.last["undo_window"]["closed"] == "its time is over", r
    assert all(d["verified_bytes"] > 0 for d in r.last["disks"]), r.last
    scene.now.update(targets)
    scene.assert_attached()
    scene.assert_tidy()
    scene.judge()


@timeout(120)
def test_there_is_no_way_back_to_a_disk_that_differs(lab):
    """It has missed writes while nobody watched: undo finds that out itself,
    before the guest is touched, and the guest keeps the target."""
    scene = Scene(lab, ["nbd", "raw"])
    targets = {"d0": volume(lab, "raw"), "d1": volume(lab, "raw")}
    e = opened(scene, targets)
    e.kill()
    scene.now["d0"].server.kill()
    wait_for("a write that failed", lambda: [
        j for j in scene.vm.jobs() if j["id"].endswith("-d0-twin") and j["status"] != "ready"], 30)
    r = lab.qpivot.run("undo", e.events[0]["op"], "--json")
    assert r.rc == 3, r
    assert "does not follow any more" in json.dumps(r.events), r
    assert not [x for x in r.named("step") if x["step"] == "return-stop"], r
    scene.now.update(targets)
    scene.assert_attached()
    assert runs(scene)
    r = lab.qpivot.run("recover", "--json")
    assert r.rc == 0 and r.last["event"] == "done", r
    scene.vm.wait_writes(20)
    scene.assert_attached()
    scene.assert_tidy()
    scene.judge()


@timeout(120)
def test_there_is_no_way_back_by_a_mirror_that_goes_elsewhere(lab):
    """Somebody else's, in our name: it is ready, and says so; that it copies
    onto another disk only QEMU's graph tells."""
    scene = Scene(lab, ["raw"])
    target = volume(lab, "raw")
    elsewhere = lab.path("elsewhere.raw")
    with open(elsewhere, "wb") as f:
        f.truncate(SIZE)
    e = opened(scene, {"d0": target})
    e.kill()
    op = e.events[0]["op"]
    twin, cmd = f"qpv-{op}-d0-twin", scene.vm.qmp.cmd
    cmd("stop")
    cmd("job-cancel", id=twin)
    wait_for("the end of the twin", lambda: [
        j for j in scene.vm.jobs() if j["id"] == twin and j["status"] == "concluded"], 20)
    cmd("job-dismiss", id=twin)
    cmd("blockdev-add", driver="raw", **{"node-name": "other"},
        file={"driver": "file", "filename": elsewhere})
    cmd("blockdev-mirror", **{
        "job-id": twin, "device": f"qpv-{op}-d0", "target": "other", "sync": "none",
        "copy-mode": "write-blocking", "auto-dismiss": False,
        "filter-node-name": f"qpv-{op}-d0-twin-top"})
    wait_for("the other mirror", lambda: [
        j for j in scene.vm.jobs() if j["id"] == twin and j["status"] == "ready"], 20)
    cmd("cont")
    r = lab.qpivot.run("undo", op, "--json")
    assert r.rc == 3, r
    assert "copies onto node 'other'" in json.dumps(r.events), r
    assert not [x for x in r.named("step") if x["step"] == "return-stop"], r
    scene.now["d0"] = target
    scene.assert_attached()
    assert runs(scene)
    r = lab.qpivot.run("recover", "--json")
    assert r.rc == 0 and r.last["event"] == "done", r
    cmd("blockdev-del", **{"node-name": "other"})
    scene.vm.wait_writes(20)
    scene.assert_attached()
    scene.assert_tidy()
    scene.judge()


@timeout(120)
def test_a_job_of_somebody_else_holds_up_an_undo_and_closes_no_window(lab):
    """One that copies a target, by an engine that lives and by one that begins:
    each undo says which job is to end first, the next one brings all back."""
    scene = Scene(lab, ["raw"])
    before, sources = scene.vm.state(), dict(scene.now)
    target = volume(lab, "raw")
    copy = lab.path("backup.raw")
    with open(copy, "wb") as f:
        f.truncate(SIZE)
    e = opened(scene, {"d0": target})
    op, cmd = e.events[0]["op"], scene.vm.qmp.cmd
    cmd("blockdev-add", driver="raw", **{"node-name": "copy"},
        file={"driver": "file", "filename": copy})
    cmd("blockdev-add", driver="raw", file=f"qpv-{op}-d0", **{
        "node-name": "peek", "read-only": True})
    cmd("blockdev-mirror", **{
        "job-id": "nightly", "device": "peek", "target": "copy", "sync": "full",
        "speed": 1, "auto-dismiss": False})
    r = lab.qpivot.run("undo", op, "--json", "--timeout", "10")
    assert r.rc == 3 and r.last["answer"] == "unknown", r
    no = e.wait_event("warning", lambda x: "the undo did not happen" in x["message"], 60)
    e.wait_event("progress", lambda x: x["phase"] == "undo-window" and x["time"] > no["time"], 30)
    e.kill()
    scene.now["d0"] = target
    scene.assert_attached()
    r = lab.qpivot.run("undo", op, "--json")
    assert r.rc == 3 and "nightly" in json.dumps(r.events), r
    assert not [x for x in r.named("step") if x["step"] == "return-stop"], r
    cmd("job-cancel", id="nightly")
    wait_for("the end of the backup", lambda: [
        j for j in scene.vm.jobs() if j["id"] == "nightly" and j["status"] == "concluded"], 20)
    cmd("job-dismiss", id="nightly")
    for node in ("peek", "copy"):
        cmd("blockdev-del", **{"node-name": node})
    scene.vm.wait_writes(20)
    scene.now = sources
    r = lab.qpivot.run("undo", op, "--json")
    assert r.rc == 0, r
    assert_back(scene, before, {"d0": target})
