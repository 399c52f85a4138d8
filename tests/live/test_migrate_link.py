"""Two hosts with a cable between them that is cut, or a destination that is
stopped: at any moment at most one QEMU runs the guest, at most one could, and
no acknowledged write is lost."""

import signal

from lab.link import FarPair
from lab.pair import Pair
from lab.proc import wait_for
from lab.qpivot import PARKED, UNREACHABLE
from lab.runner import timeout
from test_migrate import LESS, SLOW, assert_gone_over, assert_stayed

SOON = ("--command-timeout", "5s")


def copying(e):
    e.wait_event("progress", lambda x: x.get("disk") != "memory" and x.get("bytes", 0) > 0, 60)


def streaming(e):
    e.wait_event("progress", lambda x: x.get("disk") == "memory", 60)


def at_home(pair):
    """The guest runs at the source, and writes."""
    assert pair.runs_at() == ["source"], pair.runs_at()
    assert not pair.src.qmp.cmd("query-jobs")
    pair.vm.wait_writes(20)


def settle(pair, *wheres, **kw):
    """The cable is mended; recover ends it, as soon as it reaches both, and the
    guest is in one place."""
    def recover():
        r = pair.recover(**kw)
        assert len(pair.runs_at()) <= 1, r
        return None if r.rc in (PARKED, UNREACHABLE) else r
    pair.link.mend()
    r = wait_for("recover to reach both hosts", recover, 100, every=1)
    where = pair.runs_at()
    print("recover", r.rc, r.last.get("event"), where)
    assert r.rc == 0 and len(where) == 1 and where[0] in wheres, (r, where)
    assert pair.lab.qpivot.run("list", "--json").text.strip() == ""
    if where == ["destination"]:
        pair.arrived()
    pair.vm.wait_writes(20)
    pair.judge()


@timeout(180)
def test_from_host_to_host(lab):
    """Shared and copied, and the engine on either of them."""
    for engine in ("source", "destination"):
        pair = FarPair(lab, ["raw", "qcow2"], to={"d0": "qcow2"}, engine=engine)
        assert_gone_over(pair, pair.migrate())
        pair.dst.stop()


@timeout(180)
def test_a_slow_cable_holds_nobody_up(lab):
    """The guest dirties its disk faster than the cable takes it: by the time
    that it is stopped there is nothing left to copy."""
    pair = FarPair(lab, ["raw"], to={"d0": "raw"}, engine="source")
    pair.link.slow("64mbit")
    r = pair.migrate("--downtime-limit", "1000")
    why = [e["reason"] for e in r.named("ready") if "reason" in e]
    print(why, r.last["phases"])
    assert len(why) == 1 and "nothing is left" in why[0], r
    assert_gone_over(pair, r)


@timeout(180)
def test_the_cable_is_cut_while_a_disk_is_copied(lab):
    """With the destination's monitor: it cannot be set back, the guest goes on."""
    pair = FarPair(lab, ["raw"], to={"d0": "raw"}, engine="source", pace=LESS)
    e = pair.start(*SLOW, *SOON)
    copying(e)
    pair.link.cut()
    r = e.wait(90)
    print(r)
    assert r.rc == 3, r
    at_home(pair)
    settle(pair, "source", engine="destination")


@timeout(180)
def test_the_cable_is_cut_in_the_stream(lab):
    pair = FarPair(lab, ["raw"], to={"d0": "raw"}, engine="source", pace=LESS)
    e = pair.start(*SLOW, *SOON)
    streaming(e)
    pair.link.cut()
    r = e.wait(90)
    print(r)
    assert r.rc == 3, r
    at_home(pair)
    settle(pair, "source")


def cut_with_the_monitors_left(lab, moment):
    """Both QEMUs answer all the time, and nothing moves between them."""
    pair = FarPair(lab, ["raw"], to={"d0": "raw"}, pace=LESS)
    before = pair.src.state()
    e = pair.start(*SLOW, *SOON)
    moment(e)
    pair.link.cut()
    r = e.wait(90)
    print(r)
    assert r.rc == 1, r
    assert_stayed(pair, before)
    pair.dst.proc.wait(10)


@timeout(180)
def test_only_the_data_is_cut_while_a_disk_is_copied(lab):
    cut_with_the_monitors_left(lab, copying)


@timeout(180)
def test_only_the_data_is_cut_in_the_stream(lab):
    cut_with_the_monitors_left(lab, streaming)


def cut_at(lab, word, after=False, engine=None, quiet=False):
    pair = FarPair(lab, ["raw"], to={"d0": "raw"}, engine=engine)
    relay = pair.before(word, pair.link.switch("down"), after=after)
    options = [*SOON]
    if quiet:
        pair.vm.pause()
        options += ["--downtime-limit", "1"]
    before = pair.src.state()
    r = pair.start(*options, source=relay).wait(100)
    print(r)
    return pair, r, before


@timeout(180)
def test_only_the_data_is_cut_as_the_mirror_ends(lab):
    pair, r, before = cut_at(lab, "block-job-cancel")
    assert r.rc == 1, r
    assert_stayed(pair, before)


@timeout(180)
def test_only_the_data_is_cut_in_the_switchover(lab):
    """The source waits for a word that cannot come: it is to keep the guest."""
    pair, r, before = cut_at(lab, "migrate-continue")
    assert r.rc == 1, r
    assert_stayed(pair, before)
    pair.dst.proc.wait(10)


@timeout(180)
def test_only_the_data_is_cut_with_nothing_left_to_send(lab):
    """It all fits into a buffer of the kernel's: the source does not even know
    that it waits in vain."""
    pair, r, before = cut_at(lab, "migrate-continue", quiet=True)
    assert r.rc == 1, r
    said = [e["message"] for e in r.named("warning") if "keep the guest" in e["message"]]
    assert said, r
    pair.vm.resume()
    assert_stayed(pair, before)


@timeout(180)
def test_the_cable_is_cut_in_the_switchover(lab):
    """The engine is at the source: it can see that the guest is there."""
    pair, r, _ = cut_at(lab, "migrate-continue", engine="source")
    assert r.rc == 3, r
    at_home(pair)
    settle(pair, "source", engine="destination")


def ownership_unknown(lab, after, engine):
    """The engine is at the destination, and cannot ask the source: it starts
    nothing, and says so.  What became of migrate-continue the network decides,
    when it is back; recover asks both."""
    pair, r, _ = cut_at(lab, "migrate-continue", after, engine="destination")
    assert r.rc == 3 and r.last["event"] == "parked", r
    said = [e["message"] for e in r.named("warning") if "is not known" in e["message"]]
    assert said and "query-migrate" in said[0], r
    assert pair.dst.status() != "running"
    settle(pair, "source", "destination", engine=engine)


@timeout(180)
def test_nobody_knows_before_the_source_was_told(lab):
    ownership_unknown(lab, after=False, engine="source")


@timeout(180)
def test_nobody_knows_after_the_source_was_told(lab):
    ownership_unknown(lab, after=True, engine="source")


@timeout(180)
def test_nobody_knows_and_the_destination_side_recovers(lab):
    ownership_unknown(lab, after=True, engine="destination")


def stopped_at(lab, word):
    """A destination that is stopped, not dead, at a moment that is exact."""
    pair = FarPair(lab, ["raw"], to={"d0": "raw"})
    relay = pair.before(word, ["kill", "-STOP", str(pair.dst.proc.pid)])
    r = pair.start(*SOON, source=relay).wait(100)
    print(r, pair.src.status())
    assert r.rc == 3, r
    pair.dst.proc.send(signal.SIGKILL)
    pair.dst.proc.wait(10)
    at_home(pair)
    settle(pair, "source")


@timeout(180)
def test_a_destination_that_stalls_as_the_mirror_ends(lab):
    stopped_at(lab, "block-job-cancel")


@timeout(180)
def test_a_destination_that_stalls_in_the_switchover(lab):
    stopped_at(lab, "migrate-continue")


@timeout(180)
def test_a_disk_stands_still_in_the_stream(lab):
    """The storage of one disk, and neither the stream nor a monitor: nothing of
    that ends, and the guest's writes wait for it."""
    pair = Pair(lab, ["raw", "raw"], to={"d0": "nbd", "d1": "raw"}, pace=LESS)
    e = pair.start("--disk", "d0=nbd", *SLOW, *SOON)
    streaming(e)
    server = pair.there["d0"].server
    server.stall()
    r = e.wait(90)
    print(r)
    server.go_on()
    assert r.rc in (1, PARKED) and "not copied since" in r.error, r
    if r.rc == PARKED:
        assert lab.qpivot.run("recover", "--json").rc == 0
    at_home(pair)
    pair.judge()
