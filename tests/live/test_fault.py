"""Trouble in the middle of a move: kills, interrupts, full and dead targets,
guests that reset, power off or lose the disk."""

import json
import os

from lab.proc import wait_for
from lab.qemu import Disk
from lab.runner import needs, timeout
from lab.scene import SIZE, Scene, source, volume
from lab.storage import MiB

# Slow enough to be met in the middle.  Each 4 KiB that the guest writes dirties
# 64 KiB for the mirror: where a move is to reach its end it must write less.
SLOW = ("--speed", "1M")
STEADY = ("--speed", "4M")
LESS = 100  # ms between two writes of a disk


def copying(engine):
    """Waits until data flows."""
    return engine.wait_event("progress", lambda e: e.get("bytes", 0) > 0, 30)


def assert_back(scene, before, targets):
    """The machine is as it was and the targets that were made are gone."""
    assert scene.vm.state() == before, (before, scene.vm.state())
    for v in targets.values():
        assert not v.creatable or not v.exists(), f"{v} {v.mark()} is left"
    unfinished = scene.lab.qpivot.run("list", "--json").text.strip()
    assert unfinished == "", unfinished
    scene.judge()


@needs("ceph", "nfs")
@timeout(90)
def test_an_interrupt_goes_back(lab):
    scene = Scene(lab, ["raw", "raw", "raw"])
    targets = {"d0": volume(lab, "qcow2"), "d1": volume(lab, "nfs"), "d2": volume(lab, "rbd")}
    before = scene.vm.state()
    e = scene.start_move(targets, *SLOW)
    copying(e)
    e.interrupt()
    r = e.wait(30)
    assert r.rc == 1 and r.last["event"] == "failed", r
    assert_back(scene, before, targets)


@timeout(90)
def test_a_second_interrupt_lets_go(lab):
    """The first one begins the way back, which a stalled target holds up."""
    scene = Scene(lab, ["raw"])
    target = volume(lab, "raw")
    before = scene.vm.state()
    e = scene.start_move({"d0": target}, *SLOW)
    copying(e)
    e.interrupt()
    e.interrupt()
    r = e.wait(30)
    assert r.rc in (1, 3), r
    r = lab.qpivot.run("recover", "--json")
    assert r.rc == 0, r
    if target.exists():  # recovered forward
        scene.now["d0"] = target
        scene.assert_attached()
        scene.judge()
    else:
        assert_back(scene, before, {"d0": target})


def test_another_engine_is_refused_by_name(lab):
    scene = Scene(lab, ["raw", "raw"])
    e = scene.start_move({"d0": volume(lab, "raw")}, *SLOW)
    op = copying(e)["op"]
    r = lab.qpivot.run("move", "--qmp", scene.vm.second_path, "--disk",
                       "d1=" + lab.path("t.raw"), "--state", lab.path("state2"))
    assert r.rc == 2 and op in r.error, (op, r)
    e.interrupt()
    assert e.wait(30).rc == 1
    scene.move({"d1": volume(lab, "raw")})
    scene.judge()


GROUP = {"d0": "rbd", "d1": "nfs", "d2": "qcow2"}
# Only where drive-mirror has to be used, with --verify, or with --undo-window:
# test_undo kills at each of them.
ELSEWHERE = ("target-file-drop",
             "verify-scratch", "verify-try", "verify", "guest-look", "guest-stop", "verify-rest",
             "verify-clean", "verify-end",
             "latency-look", "twin", "guest-cont", "window-persist", "window", "drop-look",
             "drop-stop", "twin-drop", "drop-cont", "drop-prove")
# Only of volumes that have a role on each host: the matrix, and tests/drbd-lab.
OF_ROLES = ("target-attach", "source-release")
# Only of --strategy base: test_base kills at some of them, the matrix at each.
OF_BASE = ("overlay-create", "overlay-file", "overlay-format", "overlay-node", "freeze",
           "base-copy", "landing-create", "landing-file", "landing-format", "landing-node",
           "base-commit", "base-prove", "landing-close", "landing-file-close", "landing-remove",
           "overlay-close", "overlay-file-close", "overlay-remove")


def group_move(scene, step, n):
    """A move of the group whose plan has that step."""
    lab = scene.lab
    targets = {d: volume(lab, k) for d, k in GROUP.items()}
    more = {"d0": ["id=admin", f"keyring={lab.ceph.keyring}"]}
    if step == "target-image":  # of a size that nothing had before
        more["d2"] = [f"size={SIZE + n * MiB}"]
    e = lab.qpivot.start_move(scene.vm, {d: v.uri(*more.get(d, ())) for d, v in targets.items()},
                              "--delete-source", "--emit-config", lab.path("config"))
    return e, targets


def kill_everywhere(lab, half, state):
    """Moves a group again and again, each time killing the engine at the start
    or the end of another of its steps; recover must end it either way."""
    scene = Scene(lab, ["raw", "qcow2", "raw"])
    ends = {}
    steps = lab.qpivot.steps("move", ELSEWHERE + OF_ROLES + OF_BASE)
    for n, step in enumerate(lab.share(steps, half)):
        before = dict(scene.now)
        e, targets = group_move(scene, step, n)
        e.kill_at(step, state)
        r = lab.qpivot.run("recover", "--json")
        print(step, "-> recover", r.rc, r.last.get("event"))
        assert r.rc == 0, f"killed at {step}: {r}"
        moved = [d for d, v in targets.items()
                 if v.mark() in json.dumps(scene.vm.block(d)["inserted"])]
        assert moved in ([], list(targets)), f"killed at {step}: only {moved} moved"
        if moved:
            scene.now.update(targets)
        gone = before if moved else targets
        assert not any(v.exists() for v in gone.values()), f"killed at {step}: left {gone}"
        ends[step] = "moved" if moved else "back"
        scene.assert_tidy()
        assert lab.qpivot.run("list", "--json").text.strip() == ""
        stats = scene.judge()
        worst = max(s["maxgap_ms"] for s in stats.values())
        assert worst < 20000, f"killed at {step}: a write took {worst} ms"
        scene.vm.tell("reset", "counters")
    print(ends)
    assert "moved" in ends.values(), ends
    scene.vm.kill()
    scene.judge_dead()


@needs("ceph", "nfs")
@timeout(900)
def test_killed_at_the_start_of_every_step_of_a_group(lab):
    kill_everywhere(lab, 0, "start")


@needs("ceph", "nfs")
@timeout(900)
def test_killed_at_the_end_of_every_step_of_a_group(lab):
    kill_everywhere(lab, 1, "end")


@timeout(90)
def test_killed_while_copying_can_go_back(lab):
    scene = Scene(lab, ["raw"])
    targets = {"d0": volume(lab, "qcow2")}
    before = scene.vm.state()
    e = scene.start_move(targets, *SLOW)
    copying(e)
    e.kill()
    r = lab.qpivot.run("recover", "--undo", "--json")
    assert r.rc == 0, r
    assert_back(scene, before, targets)


def frozen(scene, targets, fault, tries=6):
    """A group's move that meets 'fault' (kill or stall) while its jobs are
    PENDING; None if no try met that moment."""
    for _ in range(tries):
        e = scene.start_move(targets, "--freeze-limit", "1s")
        seen = False
        while e.proc.alive() and not seen:  # PENDING is seen by QEMU's own event
            seen = any(x["status"] == "pending" for x in scene.vm.qmp.cmd("query-jobs"))
        if seen:
            getattr(e, fault)()
            return e
        r = e.wait()
        assert r.rc == 0, r
        scene.now.update(targets)
        targets.update({d: volume(scene.lab, "raw") for d in targets})
    return None


@timeout(150)
def test_stopped_or_killed_in_the_frozen_moment(lab):
    """The engine stops, or dies, when the group's pivot is armed: the watchdog
    gives the guest its disks back.  What the guest itself waited is told."""
    scene = Scene(lab, ["raw", "raw"])
    for fault in ("stall", "kill"):
        targets = {"d0": volume(lab, "raw"), "d1": volume(lab, "raw")}
        scene.vm.tell("reset", "counters")
        e = frozen(scene, targets, fault)
        if e is None:
            print(fault, "is too fast to be met here; the fault matrix has the case")
            continue
        wait_for("the guest's writes to go on", lambda: not [
            x for x in scene.vm.jobs() if x["status"] == "pending"], 15)
        scene.vm.wait_writes(20)
        worst = {d: s["maxgap_ms"] for d, s in scene.vm.report().items()}
        print(f"{fault} with --freeze-limit 1s: the guest's longest write {worst} ms")
        assert max(worst.values()) < 10 * 1000, worst
        if fault == "stall":
            e.go_on()
            r = e.wait(60)
            assert r.rc in (0, 1), r
        assert lab.qpivot.run("recover", "--json").rc == 0
        if all(v.mark() in json.dumps(scene.vm.block(d)["inserted"])
               for d, v in targets.items()):
            scene.now.update(targets)
        else:
            assert not any(v.exists() for v in targets.values())
        scene.assert_attached()
        scene.assert_tidy()
        scene.judge()


@timeout(90)
def test_a_full_target_is_a_pause(lab):
    scene = Scene(lab, ["raw"], pace=LESS)
    where = lab.small_fs(24 * MiB)
    target = volume(lab, "raw")
    target.path = where + "/t.raw"
    hooked = lab.path("hooked")
    e = scene.start_move({"d0": target}, "--speed", "3M", "--space-hook", f"touch {hooked}")
    copying(e)
    with open(where + "/junk", "wb") as f:
        try:
            f.write(b"x" * 64 * MiB)
        except OSError:
            pass
    e.wait_event("progress", lambda x: "space" in json.dumps(x), 40)
    wait_for("the hook", lambda: os.path.exists(hooked), 20)
    scene.vm.wait_writes(20)  # the guest goes on meanwhile
    assert scene.vm.status() == "running"
    os.unlink(where + "/junk")
    r = e.wait(60)
    assert r.rc == 0, r
    scene.now["d0"] = target
    scene.assert_attached()
    scene.judge()
    scene.vm.kill()
    scene.judge_dead()


@timeout(90)
def test_a_full_target_can_be_given_up(lab):
    scene = Scene(lab, ["raw"])
    where = lab.small_fs(24 * MiB)
    target = volume(lab, "raw")
    target.path = where + "/t.raw"
    before = scene.vm.state()
    e = scene.start_move({"d0": target}, *SLOW)
    copying(e)
    with open(where + "/junk", "wb") as f:
        try:
            f.write(b"x" * 64 * MiB)
        except OSError:
            pass
    e.wait_event("progress", lambda x: "space" in json.dumps(x), 40)
    e.interrupt()
    assert e.wait(30).rc == 1
    assert_back(scene, before, {"d0": target})


@timeout(120)
def test_a_stalled_nbd_server(lab):
    """Alive, connected, silent: the peer that freezes QEMU when it drains."""
    scene = Scene(lab, ["raw"])
    target = volume(lab, "nbd")
    before = scene.vm.state()
    e = scene.start_move({"d0": target}, *SLOW, "--command-timeout", "3s")
    copying(e)
    target.server.stall()
    lab.stack.callback(target.server.go_on)
    e.interrupt()
    r = e.wait(60)
    assert r.rc == 1, r
    target.server.go_on()
    assert_back(scene, before, {"d0": target})


@timeout(120)
def test_a_killed_nbd_server(lab):
    scene = Scene(lab, ["raw", "raw"])
    targets = {"d0": volume(lab, "nbd"), "d1": volume(lab, "qcow2")}
    before = scene.vm.state()
    e = scene.start_move(targets, *SLOW)
    copying(e)
    targets["d0"].server.kill()
    r = e.wait(60)
    assert r.rc == 1 and r.last["event"] == "failed", r
    assert_back(scene, before, targets)


@timeout(90)
def test_the_guest_resets_in_the_middle(lab):
    scene = Scene(lab, ["raw"], pace=LESS)
    target = volume(lab, "qcow2")
    e = scene.start_move({"d0": target}, *STEADY)
    copying(e)
    acked = scene.vm.stats["d0"]["acked"]
    scene.vm.qmp.cmd("system_reset")
    scene.vm.wait_ready(boots=2)
    assert scene.vm.boot_report["d0"]["maxseq"] >= acked
    r = e.wait(60)
    assert r.rc == 0, r
    scene.now["d0"] = target
    scene.assert_attached()
    scene.judge()


@timeout(90)
def test_the_guest_powers_off_in_the_middle(lab):
    """The copy goes on to its end; the data is all at the target then."""
    scene = Scene(lab, ["raw"], pace=LESS)
    target = volume(lab, "qcow2")
    e = scene.start_move({"d0": target}, *STEADY)
    copying(e)
    scene.vm.pause()
    scene.vm.tell("poweroff")
    r = e.wait(60)
    assert r.rc == 0, r
    scene.now["d0"] = target
    assert scene.vm.proc.wait(20) == 0, "QEMU ends after all, as it would have"
    scene.judge_dead()


@timeout(90)
def test_qemu_dies_in_the_middle(lab):
    scene = Scene(lab, ["raw"])
    first = scene.now["d0"]
    target = volume(lab, "qcow2")
    e = scene.start_move({"d0": target}, *SLOW)
    copying(e)
    scene.vm.kill()
    r = e.wait(60)
    assert r.rc in (1, 3) and r.last["event"] in ("failed", "parked"), r
    if r.rc == 3:
        r = lab.qpivot.run("recover", "--json")
        assert r.rc == 0, r
    assert not target.exists(), "the torn copy must go"
    assert first.exists()
    scene.judge_dead()


@timeout(90)
def test_the_disk_is_unplugged_in_the_middle(lab):
    d = Disk("d0", source(lab, "raw", "d0"), props={"bus": "port0"})
    vm = lab.vm([d], argv=["-device", "pcie-root-port,id=port0,slot=1"])
    target = volume(lab, "qcow2")
    e = lab.qpivot.start_move(vm, {"d0": target.uri()}, *SLOW)
    copying(e)
    vm.qmp.cmd("device_del", id="d0")
    vm.qmp.event("DEVICE_DELETED", 30, lambda x: x.get("device") == "d0")
    r = e.wait(60)
    assert r.rc in (0, 1), r
    assert vm.jobs() == [] and "qpv-claim" not in json.dumps(
        vm.qmp.cmd("qom-list", path="/objects"))
    assert r.rc == 0 or not target.exists()


@timeout(60)
def test_the_monitor_goes_away_and_comes_back(lab):
    """Somebody between us and QEMU breaks the line; QEMU is unharmed, so the
    engine goes on by a new connection or goes back, but does not give up."""
    scene = Scene(lab, ["raw"], pace=LESS)
    target = volume(lab, "raw")
    relay = lab.ends(Relay(scene.vm.qmp_path, lab.path("relay")))
    e = lab.qpivot.start("move", "--qmp", relay.path, "--json", "--disk",
                         f"d0={target.uri()}", *STEADY)
    copying(e)
    relay.cut()
    e.wait_event("warning", lambda x: "connection is lost" in x["message"], 20)
    e.wait_event("progress", lambda x: x["phase"] == "copy", 20)  # it is back
    job = scene.vm.jobs()[0]["id"]
    scene.vm.qmp.cmd("block-job-set-speed", device=job, speed=0)
    r = e.wait(60)
    if r.rc == 3:
        r = lab.qpivot.run("recover", "--json")
    assert r.rc in (0, 1), r
    if target.exists():
        scene.now["d0"] = target
    scene.assert_attached()
    scene.assert_tidy()
    scene.judge()


class Relay:
    """Passes bytes between a unix socket of its own and another's; cut()
    breaks every line that is open and goes on serving."""

    def __init__(self, to, path):
        import socket
        import threading
        self.to, self.path, self.lines = to, path, []
        self.server = socket.socket(socket.AF_UNIX)
        self.server.bind(path)
        self.server.listen(8)
        self.socket, self.threading = socket, threading
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                near = self.server.accept()[0]
                far = self.socket.socket(self.socket.AF_UNIX)
                far.connect(self.to)
            except OSError:
                return
            self.lines += [near, far]
            for a, b in ((near, far), (far, near)):
                self.threading.Thread(target=self._pass, args=(a, b), daemon=True).start()

    def _pass(self, a, b):
        try:
            while True:
                data = a.recv(65536)
                if not data:
                    break
                b.sendall(data)
        except OSError:
            pass
        self._shut(a)
        self._shut(b)

    def _shut(self, s):
        try:
            s.shutdown(self.socket.SHUT_RDWR)
        except OSError:
            pass

    def cut(self):
        for s in self.lines:
            self._shut(s)

    def stop(self):
        self.server.close()
        self.cut()
