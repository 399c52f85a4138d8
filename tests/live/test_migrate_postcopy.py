"""The guest goes over before its memory: it is on both sides for a while, and
neither QEMU may end before all of it has followed."""

import json
import os
import signal

from lab.link import FarPair
from lab.pair import Pair
from lab.proc import wait_for
from lab.qmp import Qmp
from lab.runner import timeout
from lab.tls import Authority
from test_migrate import LESS, assert_gone_over, assert_stayed
from test_migrate_options import settings, texts, trace_of

# The stream does not come to its end by itself.
NEVER = ("--bandwidth", "8M", "--downtime-limit", "1", "--freeze-limit", "20s")
ONCE = (*NEVER, "--postcopy")
BUSY = 2  # ms between two writes of a disk: more dirty memory than goes over
# Most of the memory is not sent yet when the guest goes.
SLOWLY = (*NEVER, "--timeout", "1s", "--on-timeout", "postcopy")


def sent(pair):
    """The commands that the engine has sent."""
    said = [m["msg"] for m in map(json.loads, trace_of(pair).splitlines()) if m["dir"] == ">"]
    return [m.get("execute") for m in said]


def went_before(pair, result):
    """By postcopy, as the engine's own words and commands say."""
    told = [w["message"] for w in result.named("warning")]
    assert any("goes over" in w for w in told), told
    assert "migrate-start-postcopy" in sent(pair)
    phases = [e.get("phase") for e in result.named("progress")]
    print(told, result.last.get("phases"), phases.count("postcopy"))
    assert result.last["phases"]["postcopy_seconds"] >= 0, result.last


def following(e):
    """The guest is there, and runs; a part of its memory is not."""
    e.wait_event("progress", lambda x: x.get("phase") == "postcopy", 90)


def oob(vm):
    """A monitor that answers while the guest waits for its memory."""
    return Qmp(vm.second_path, oob=True)


def in_halves(pair):
    """Both QEMUs are there, and the source has not let go of what it has."""
    assert pair.src.running() and pair.dst.running()
    status = pair.src.qmp.cmd("query-migrate")["status"]
    assert status.startswith("postcopy-"), status
    assert pair.src.status() == "finish-migrate"
    return status


@timeout(240)
def test_postcopy(lab):
    pair = Pair(lab, ["raw", "qcow2"], to={"d0": "raw"}, pace=BUSY)
    before = settings(pair.dst)
    r = pair.migrate(*ONCE)
    went_before(pair, r)
    assert settings(pair.dst) == before
    assert_gone_over(pair, r)


@timeout(240)
def test_postcopy_when_the_time_is_up(lab):
    pair = Pair(lab, ["raw"], pace=LESS)
    r = pair.migrate(*SLOWLY)
    went_before(pair, r)
    assert any("within 1.0 s" in w["message"] for w in r.named("warning")), r
    assert_gone_over(pair, r)


@timeout(240)
def test_postcopy_that_is_not_needed(lab):
    """The stream comes to its end before the time is up, as any other."""
    pair = Pair(lab, ["raw"], to={"d0": "raw"}, pace=LESS)
    r = pair.migrate("--timeout", "100s", "--on-timeout", "postcopy",
                     "--downtime-limit", "2000")
    assert "migrate-start-postcopy" not in sent(pair)
    assert_gone_over(pair, r)


@timeout(240)
def test_postcopy_there_and_back_by_tls(lab):
    certificates = Authority(lab).issue()
    pair = Pair(lab, ["qcow2"], to={"d0": "qcow2"}, pace=BUSY)
    r = pair.migrate(*ONCE, "--tls-creds", certificates)
    went_before(pair, r)
    assert_gone_over(pair, r)
    pair.turn_round({"d0": "raw"})
    r = pair.migrate(*ONCE, "--unix")
    went_before(pair, r)
    assert_gone_over(pair, r)


@timeout(240)
def test_a_paused_guest_stays_paused(lab):
    pair = Pair(lab, ["raw"], to={"d0": "raw"})
    pair.src.qmp.cmd("stop")
    r = pair.migrate(*SLOWLY)
    assert pair.dst.status() == "paused" and pair.runs_at() == [], r
    pair.dst.qmp.cmd("cont")
    pair.vm.wait_writes(20)
    pair.judge()


@timeout(90)
def test_the_plan_shows_it_and_refuses_what_does_not_go_with_it(lab):
    pair = Pair(lab, ["raw"], to={"d0": "raw"})
    before = pair.src.state(), settings(pair.src)
    r = pair.migrate("--postcopy", "--dry-run")
    plan = r.named("plan")[0]
    assert "migrate-start-postcopy" in [c["execute"] for c in plan["commands"]], plan
    assert "postcopy-ram" in json.dumps(plan["commands"]), plan
    assert "both sides" in json.dumps(plan["notes"]), plan
    pair.src.qmp.cmd("block-dirty-bitmap-add", node="n-d0", name="b0")
    r = pair.migrate("--postcopy", "--multifd", "2", "--xbzrle", "--suspend",
                     "--on-timeout", "postcopy", rc=2)
    for word in ("--multifd", "--xbzrle", "--suspend", "--drop-bitmaps", "--timeout"):
        assert word in texts(r), (word, texts(r))
    pair.src.qmp.cmd("block-dirty-bitmap-remove", node="n-d0", name="b0")
    assert (pair.src.state(), settings(pair.src)) == before


@timeout(240)
def test_going_back_before_it_has_gone(lab):
    """The guest stands for the switchover by postcopy, and does not go: a QEMU
    7.2 does not run it again by itself."""
    pair = FarPair(lab, ["raw"], to={"d0": "raw"}, pace=BUSY)
    before = pair.src.state(), settings(pair.src)
    for what in ("the destination dies", "the engine dies"):
        pid = pair.dst.proc.pid
        kill = "kill -KILL " + (str(pid) if what.startswith("the dest") else "$(cat pid)")
        cwd = lab.path(lab.name("kill"))
        os.mkdir(cwd)
        relay = pair.before("block-job-cancel", ["sh", "-c", f"cd {cwd}; {kill}"])
        e = pair.start(*SLOWLY, source=relay)
        with open(f"{cwd}/pid", "w", encoding="utf-8") as f:
            f.write(str(e.proc.pid))
        r = e.wait(90)
        if what == "the engine dies":
            wait_for("the guest to run again", lambda: pair.runs_at() == ["source"], 20)
            pair.vm.wait_writes(20)
            assert pair.recover("--undo").rc == 0
        else:
            assert r.rc == 1, r
        assert settings(pair.src) == before[1]
        assert_stayed(pair, before[0])
        pair.wait()
    assert_gone_over(pair, pair.migrate(*ONCE))


@timeout(240)
def test_the_destination_dies_as_the_guest_is_to_go(lab):
    """Too late to ask it once more. QEMU 7.2 lets the guest go on at the source
    when it is told to; 10.0 has it stand there, and a person must look."""
    pair = FarPair(lab, ["raw"], to={"d0": "raw"})
    before = pair.src.state()
    relay = pair.before("migrate-continue", ["kill", "-KILL", str(pair.dst.proc.pid)])
    r = pair.start(*SLOWLY, "--freeze-limit", "5s", "--command-timeout", "5s",
                   source=relay).wait(200)
    print(r)
    if r.rc == 1:
        assert_stayed(pair, before)
    else:
        assert r.rc == 3 and pair.src.running() and pair.runs_at() == [], r
        assert pair.src.status() == "finish-migrate"


@timeout(240)
def test_an_engine_that_dies_while_the_memory_follows(lab):
    """Nothing is cancelled by whoever it leaves behind, and recover follows."""
    pair = Pair(lab, ["raw"], to={"d0": "raw"})
    e = pair.start(*SLOWLY)
    following(e)
    e.kill()
    pair.arrived()
    r = lab.qpivot.run("recover", "--json")
    assert r.rc == 0 and r.last["event"] == "done", r
    assert pair.runs_at() == ["destination"]
    pair.src.proc.wait(10)
    pair.vm.wait_writes(20)
    pair.judge()


@timeout(300)
def test_killed_before_the_switchover(lab):
    """The guest goes on by itself, and recover ends it either way."""
    pair = Pair(lab, ["raw"], to={"d0": "raw"})
    for step, state in (("postcopy", "start"), ("postcopy", "end"), ("stream-gate", "start")):
        e = pair.start(*SLOWLY)
        e.kill_at(step, state)
        wait_for("the guest to run again", lambda: pair.runs_at() == ["source"], 20)
        assert lab.qpivot.run("recover", "--json").rc == 0
        assert pair.runs_at() == ["source"], (step, state)
        pair.vm.wait_writes(20)
        pair.judge()
        pair.wait()


@timeout(300)
def test_killed_from_the_switchover_on(lab):
    """At the start and the end of each step that there is then."""
    pair = Pair(lab, ["raw"], to={"d0": "raw"})
    for step, state in (("switchover", "end"), ("server-stop", "end"), ("start", "start"),
                        ("start", "end"), ("postcopy-follow", "start"), ("postcopy-follow", "end")):
        e = pair.start(*SLOWLY)
        e.kill_at(step, state)
        assert "source" not in pair.runs_at(), (step, state)
        r = lab.qpivot.run("recover", "--json")
        assert r.rc == 0 and pair.runs_at() == ["destination"], (step, state, r)
        pair.arrived()
        pair.judge()
        pair.src.proc.wait(10)
        pair.turn_round({"d0": "raw"})


@timeout(300)
def test_the_link_is_lost_while_the_memory_follows(lab):
    """It is cut off, which ends the connections at once: the operation parks,
    both QEMUs are kept, and what the manual says brings them together."""
    pair = Pair(lab, ["raw"], to={"d0": "raw"})
    e = pair.start(*SLOWLY)
    following(e)
    src, dst = oob(pair.src), oob(pair.dst)
    src.cmd("yank", exec_oob=True, instances=[{"type": "migration"}])
    r = e.wait(60)
    assert r.rc == 3 and "migrate-recover" in json.dumps(r.last), r
    assert in_halves(pair) == "postcopy-paused"
    # Once more: the same, and nothing is changed by it.
    r = lab.qpivot.run("recover", "--json")
    assert r.rc == 3 and "end neither" in json.dumps(r.last), r
    assert lab.qpivot.run("abort", r.op, "--json").rc != 0
    assert in_halves(pair) == "postcopy-paused"
    dst.cmd("migrate-recover", exec_oob=True, uri="tcp:127.0.0.1:0")
    port = dst.cmd("query-migrate")["socket-address"][0]["port"]
    src.cmd("migrate", uri=f"tcp:127.0.0.1:{port}", resume=True)
    src.close()
    dst.close()
    r = lab.qpivot.run("recover", "--json")
    assert r.rc == 0 and pair.runs_at() == ["destination"], r
    pair.arrived()
    pair.src.proc.wait(10)
    pair.vm.wait_writes(20)
    pair.judge()


@timeout(300)
def test_a_cable_that_is_cut_while_the_memory_follows(lab):
    """No connection ends, nothing moves: it parks, cuts nothing, and goes on
    by itself when the cable is mended."""
    pair = FarPair(lab, ["raw"], to={"d0": "raw"})
    e = pair.start(*SLOWLY, "--command-timeout", "5s")
    following(e)
    pair.link.cut()
    r = e.wait(90)
    assert r.rc == 3 and "end neither" in json.dumps(r.last), r
    assert in_halves(pair) == "postcopy-active"
    pair.link.mend()
    r = wait_for("recover to follow it to its end",
                 lambda: (lambda x: x if x.rc == 0 else None)(pair.recover()), 90, every=1)
    assert pair.runs_at() == ["destination"], r
    pair.arrived()
    pair.src.proc.wait(10)
    pair.vm.wait_writes(20)
    pair.judge()


@timeout(240)
def test_a_destination_that_dies_while_the_memory_follows(lab):
    """The guest is lost with it; the source is not told to run it, nor ended."""
    pair = Pair(lab, ["raw"], to={"d0": "raw"})
    e = pair.start(*SLOWLY)
    following(e)
    pair.dst.proc.send(signal.SIGKILL)
    for r in (e.wait(60), lab.qpivot.run("recover", "--json")):
        assert r.rc == 3 and "the guest has ended with it" in r.error, r
        assert "end the source QEMU" in r.error, r
    assert pair.src.running() and pair.src.status() == "finish-migrate"
    assert pair.runs_at() == []


@timeout(240)
def test_a_source_that_dies_while_the_memory_follows(lab):
    """With a part of the guest: it cannot go on, and that is said, each time."""
    pair = Pair(lab, ["raw"], to={"d0": "raw"})
    e = pair.start(*SLOWLY)
    following(e)
    pair.src.proc.send(signal.SIGKILL)
    r = e.wait(90)
    assert r.rc == 3 and "the guest cannot go on" in r.error, r
    assert "end the destination QEMU" in r.error, r
    again = lab.qpivot.run("recover", "--json")
    # who waits for a page with QEMU's lock holds up its monitor for ever
    hangs = "does not answer" in r.error and "the main loop of this QEMU hangs" in again.error
    assert again.rc == 3 and (hangs or "the guest cannot go on" in again.error), again
    assert pair.dst.running()
