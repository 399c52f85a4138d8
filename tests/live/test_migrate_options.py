"""What a migration can be told: TLS, and options that do not go together."""

import json
import os
import re
import signal

from lab.pair import Pair
from lab.proc import wait_for
from lab.qmp import QmpError
from lab.runner import timeout
from lab.ssh import Ssh
from lab.tls import Authority
from test_migrate import LESS, SLOW, assert_gone_over, assert_stayed


def settings(vm):
    """Of the stream: what an operation that went back must have restored."""
    return (vm.qmp.cmd("query-migrate-capabilities"), vm.qmp.cmd("query-migrate-parameters"))


def texts(result):
    return json.dumps(result.last["problems"])


def trace_of(pair):
    n = pair.lab.qpivot.n - 1
    with open(pair.lab.path(f"migrate{n}.trace")) as f:
        return f.read()


# --- which go together ---

@timeout(90)
def test_all_conflicts_are_named_before_anything_is_done(lab):
    pair = Pair(lab, ["raw"], to={"d0": "raw"})
    before = pair.src.state(), settings(pair.src)
    r = pair.migrate("--multifd", "4", "--xbzrle", "--xbzrle-cache", "100000",
                     "--tls-hostname", "there", "--on-timeout", "suspend",
                     "--downtime-limit", "3000000", rc=2)
    for word in ("--multifd", "--xbzrle", "leave one", "100000", "--tls-hostname",
                 "--tls-creds", "--on-timeout suspend", "--timeout", "2000000"):
        assert word in texts(r), (word, texts(r))
    assert len(r.last["problems"]) == 5, r.last
    assert (pair.src.state(), settings(pair.src)) == before
    assert_gone_over(pair, pair.migrate("--xbzrle", "--xbzrle-cache", "1M"))


@timeout(90)
def test_what_somebody_has_switched_on_in_qemu_counts(lab):
    pair = Pair(lab, ["raw"], to={"d0": "raw"})
    for vm, capability in ((pair.src, "x-ignore-shared"), (pair.dst, "multifd")):
        vm.qmp.cmd("migrate-set-capabilities",
                   capabilities=[{"capability": capability, "state": True}])
    r = pair.migrate("--xbzrle", rc=2)
    for word in ("'x-ignore-shared'", "off at the source, on at the destination",
                 "capability 'multifd', which is on"):
        assert word in texts(r), (word, texts(r))


OURS = {"multifd": ("--multifd", "2"), "xbzrle": ("--xbzrle",),
        "auto-converge": ("--auto-converge",), "postcopy-ram": ("--postcopy",)}


def taken(vm, *capabilities):
    """Whether this QEMU takes all of these together; they are off again."""
    def switch(state):
        vm.qmp.cmd("migrate-set-capabilities",
                   capabilities=[{"capability": c, "state": state} for c in capabilities])
    try:
        switch(True)
    except QmpError:
        return False
    switch(False)
    return True


@timeout(90)
def test_what_qemu_refuses_the_table_refuses(lab):
    """The real QEMU's own word: whatever it does not take beside an option of
    ours is refused by the plan, where somebody has switched it on."""
    pair = Pair(lab, ["raw"], to={"d0": "raw"})
    names = [c["capability"] for c in pair.src.qmp.cmd("query-migrate-capabilities")]
    alone = [n for n in names if taken(pair.src, n)]
    refused = [(ours, other) for ours in OURS for other in alone
               if not taken(pair.src, ours, other)]
    print(refused)
    assert refused
    for ours, other in refused:
        for vm in (pair.src, pair.dst):
            vm.qmp.cmd("migrate-set-capabilities",
                       capabilities=[{"capability": other, "state": True}])
        r = pair.migrate(*OURS[ours], "--dry-run", rc=2)
        assert f"'{other}'" in texts(r), (ours, other, texts(r))
        for vm in (pair.src, pair.dst):
            vm.qmp.cmd("migrate-set-capabilities",
                       capabilities=[{"capability": other, "state": False}])


@timeout(90)
def test_what_the_stream_comes_to_is_told(lab):
    """Each decision has a line, with the figures that it rests on."""
    pair = Pair(lab, ["raw"], pace=LESS)
    r = pair.migrate("--bandwidth", "8M", "--downtime-limit", "1", "--timeout", "2s",
                     "--on-timeout", "suspend", "--freeze-limit", "60s")
    told = [w["message"] for w in r.named("warning")]
    assert [w for w in told if "within 2.0 s" in w and "are left" in w], told
    assert_gone_over(pair, r)


@timeout(90)
def test_a_suspended_guest_goes_on_when_the_engine_dies(lab):
    """Without anybody's help: QEMU itself leaves it as it is."""
    pair = Pair(lab, ["raw"], pace=LESS)
    before = pair.src.state()
    e = pair.start("--bandwidth", "8M", "--downtime-limit", "1", "--timeout", "1s",
                   "--on-timeout", "suspend", "--freeze-limit", "60s")
    wait_for("the guest to stand", lambda: pair.src.status() == "paused", 60)
    e.kill()
    wait_for("the guest to go on", lambda: pair.src.status() == "running", 60)
    r = lab.qpivot.run("recover", "--json")
    assert r.rc in (0, 1), r
    assert_stayed(pair, before)


@timeout(90)
def test_the_downtime_is_short_if_that_does(lab):
    """QEMU reckons with more of it only after passes that it was too short for,
    and never with more than the limit."""
    pair = Pair(lab, ["raw"], pace=2)
    source = "unix:" + pair.src.qmp_path
    r = pair.migrate("--bandwidth", "8M", "--downtime-limit", "64", "--timeout", "20s",
                     "--on-timeout", "suspend", "--freeze-limit", "60s")
    limits, wanted = [], [2]
    for m in map(json.loads, trace_of(pair).splitlines()):
        said, result = m["msg"], m["msg"].get("return")
        if m["addr"] != source:
            continue
        if said.get("execute") == "migrate-continue":
            break
        if said.get("execute") == "migrate-set-parameters":
            limits.append(said["arguments"]["downtime-limit"])
        # Several passes may be over from one look to the next.
        if isinstance(result, dict) and result.get("status") == "active":
            passes = result["ram"]["dirty-sync-count"]
            wanted.append(max(wanted[-1], min(64, 2 << max(0, passes - 2))))
    print(limits)
    assert limits == sorted(set(wanted)), (limits, wanted)
    assert_gone_over(pair, r)


# --- TLS ---

@timeout(120)
def test_tls_for_the_stream_and_the_disks(lab):
    certificates = Authority(lab).issue()
    pair = Pair(lab, ["raw", "qcow2"], to={"d0": "raw", "d1": "raw"})
    r = pair.migrate("--tls-creds", certificates, "--tls-authz", "CN=source")
    assert_gone_over(pair, r)
    assert '"tls-creds"' in trace_of(pair)
    # Nothing of it is left, and a stream out of here would be as ever.
    assert settings(pair.vm)[1]["tls-creds"] == "", settings(pair.vm)


@timeout(120)
def test_tls_with_several_connections_by_the_name_of_the_certificate(lab):
    """Two directories, and a name that is not the address."""
    certificates = Authority(lab).issue(server="there.example", ip="")
    pair = Pair(lab, ["raw"], to={"d0": "raw"})
    other = lab.path("other")
    os.symlink(certificates, other)
    before = pair.src.state(), settings(pair.src)
    r = pair.migrate("--tls-creds", certificates, rc=1)
    assert "127.0.0.1" in r.last["error"]["desc"], r.last
    assert (pair.src.state(), settings(pair.src)) == before
    assert_stayed(pair, before[0])
    pair.wait()
    r = pair.migrate("--tls-creds", certificates, "--tls-creds-to", other,
                     "--tls-hostname", "there.example", "--multifd", "2",
                     "--source-after", "pause")
    objects = [o["name"] for o in pair.src.qmp.cmd("qom-list", path="/objects")]
    assert not [o for o in objects if o.startswith("qpv-")], objects
    pair.src.stop()
    assert_gone_over(pair, r)


@timeout(120)
def test_certificates_that_do_not_do(lab):
    """Missing, of another CA, of another name: each before anything stands."""
    mine, theirs = Authority(lab, "mine"), Authority(lab, "theirs")
    mine.issue()
    theirs.issue()
    pair = Pair(lab, ["raw"], to={"d0": "raw"})
    before = pair.src.state(), settings(pair.src)

    def refused(rc, word, *options):
        r = pair.migrate(*options, rc=rc)
        print(r.last)
        assert word in json.dumps(r.last), (word, r.last)
        assert not [e for e in r.named("step") if e["step"] == "stream"], r
        assert (pair.src.state(), settings(pair.src)) == before

    refused(2, "server-cert.pem", "--tls-creds", str(mine.dir), "--tls-creds-to", lab.path("none"))
    refused(2, "absolute", "--tls-creds", "here")
    refused(1, "of the CA", "--tls-creds", str(mine.dir), "--tls-creds-to", str(theirs.dir))
    pair.wait()
    refused(1, "of the CA", "--tls-creds", str(mine.dir), "--tls-authz", "CN=somebody")
    assert_stayed(pair, before[0])


@timeout(120)
def test_a_stream_with_certificates_of_another_ca(lab):
    """Nothing is copied: it is the stream itself that finds out."""
    mine, theirs = Authority(lab, "mine"), Authority(lab, "theirs")
    mine.issue()
    theirs.issue()
    pair = Pair(lab, ["raw"])
    before = pair.src.state(), settings(pair.src)
    r = pair.migrate("--tls-creds", str(mine.dir), "--tls-creds-to", str(theirs.dir), rc=1)
    assert "of the CA" in json.dumps(r.last["error"]), r.last
    assert settings(pair.src) == before[1]
    assert_stayed(pair, before[0])


@timeout(120)
def test_certificates_of_a_dead_engine_are_taken_back(lab):
    certificates = Authority(lab).issue()
    pair = Pair(lab, ["raw"], to={"d0": "raw"}, pace=LESS)
    before = pair.src.state(), settings(pair.src)
    e = pair.start(*SLOW, "--tls-creds", certificates)
    e.wait_event("progress", lambda x: x.get("bytes", 0) > 0, 60)
    e.kill()
    op = e.events[0]["op"]
    told = lab.qpivot.run("doctor", "--qmp", pair.src.qmp_path, "--json").last
    assert f"qpv-{op}-tls" in [i["name"] for i in told["items"]], told
    assert lab.qpivot.run("recover", "--json", "--undo").rc == 0
    assert settings(pair.src) == before[1]
    assert_stayed(pair, before[0])


# --- by which way ---

def sockets(vm):
    """What is left of sockets of ours beside a monitor."""
    folder = os.path.dirname(vm.qmp_path)
    return [n for n in os.listdir(folder) if n.startswith("qpv-")]


def tunnels(pair):
    """What is left at this end: of the directories that the traces name."""
    found = set()
    for name in os.listdir(pair.lab.path("")):
        if name.endswith(".trace"):
            with open(pair.lab.path(name)) as f:
                found |= set(re.findall("/tmp/qpivot-ssh-[A-Za-z0-9]+", f.read()))
    assert found
    return [p for p in found if os.path.exists(p)]


def tunnelled(pair, ssh, *options):
    """Arguments of a migration whose destination is reached by ssh only."""
    disks = [w for d in pair.there for w in ("--disk", f"{d}=nbd")]
    argv = pair.argv("--tunnel", *disks, *options)
    argv[argv.index("--to") + 1] = f"ssh://root@{ssh.name}{pair.dst.qmp_path}"
    return argv


def run_tunnelled(pair, ssh, *options, rc=0):
    r = pair.lab.qpivot.start(*tunnelled(pair, ssh, *options), prefix=ssh.client).wait(120)
    assert r.rc == rc, r
    if rc == 0:
        pair.arrived()
    return r


def no_tcp(pair):
    sent = [m["msg"] for m in map(json.loads, trace_of(pair).splitlines()) if m["dir"] == ">"]
    ways = [m for m in sent if m.get("execute") in ("nbd-server-start", "migrate", "blockdev-add")]
    assert len(ways) > 2 and all('"unix' in json.dumps(m) for m in ways), ways


@timeout(120)
def test_by_unix_sockets(lab):
    pair = Pair(lab, ["raw", "qcow2"], to={"d0": "raw", "d1": "raw"})
    r = pair.migrate("--unix", "--multifd", "2")
    no_tcp(pair)
    assert "stalls" in json.dumps(r.named("plan")[0]["notes"]), r.named("plan")
    assert sockets(pair.dst) == []
    assert_gone_over(pair, r)


@timeout(120)
def test_by_unix_sockets_and_back(lab):
    """A failure leaves no socket, and the destination may die as it likes."""
    certificates = Authority(lab).issue()
    pair = Pair(lab, ["raw"], to={"d0": "raw"}, pace=LESS)
    before = pair.src.state()
    r = pair.migrate("--unix", "--address", "host", "--tls-creds", certificates,
                     "--export-port", "5", "--tunnel", rc=2)
    for word in ("--tunnel", "--unix", "--address", "--export-port", "--tls-hostname", "ssh://"):
        assert word in texts(r), (word, texts(r))
    pair.migrate(*SLOW, "--unix", "--timeout", "3s", rc=1)
    assert sockets(pair.dst) == []
    pair.wait()
    e = pair.start(*SLOW, "--unix")
    e.wait_event("progress", lambda x: x.get("bytes", 0) > 0, 60)
    pair.dst.proc.send(signal.SIGKILL)
    assert e.wait(60).rc == 1
    assert sockets(pair.dst) == []
    assert_stayed(pair, before)
    pair.wait()
    assert_gone_over(pair, pair.migrate("--unix", "--tls-creds", certificates,
                                        "--tls-hostname", "destination"))


@timeout(150)
def test_through_the_ssh_connection_of_the_monitor(lab):
    ssh = lab.ends(Ssh(lab.tmp))
    pair = Pair(lab, ["raw", "qcow2"], to={"d0": "raw", "d1": "raw"})
    r = pair.migrate("--tunnel", rc=2)
    assert "ssh://" in texts(r), texts(r)
    r = run_tunnelled(pair, ssh)
    no_tcp(pair)
    assert sockets(pair.dst) == [] and tunnels(pair) == [], (sockets(pair.dst), tunnels(pair))
    assert_gone_over(pair, r)


@timeout(150)
def test_a_tunnel_that_breaks(lab):
    """Cut while the disks are copied, then the engine killed: no socket and no
    process is left, and the guest stays where it is."""
    ssh = lab.ends(Ssh(lab.tmp))
    pair = Pair(lab, ["raw"], to={"d0": "raw"}, pace=LESS)
    before = pair.src.state()

    def copying():
        e = lab.qpivot.start(*tunnelled(pair, ssh, *SLOW), prefix=ssh.client)
        e.wait_event("progress", lambda x: x.get("bytes", 0) > 0, 60)
        return e
    e = copying()
    ssh.cut()
    r = e.wait(90)
    assert r.rc == 1, r
    assert_stayed(pair, before)
    assert sockets(pair.dst) == [] and tunnels(pair) == [], (sockets(pair.dst), tunnels(pair))
    pair.wait()
    e = copying()
    e.kill()
    wait_for("the end of the tunnel", lambda: tunnels(pair) == [])
    r = lab.qpivot.run("recover", "--json", prefix=ssh.client)
    assert r.rc == 0, r
    assert_stayed(pair, before)
    assert sockets(pair.dst) == [] and tunnels(pair) == [], (sockets(pair.dst), tunnels(pair))


@timeout(180)
def test_a_destination_that_stalls_behind_a_tunnel(lab):
    """Nothing of QEMU's wakes who writes to a unix socket: ssh's end does."""
    ssh = lab.ends(Ssh(lab.tmp))
    pair = Pair(lab, ["raw"], to={"d0": "raw"}, pace=LESS)
    e = lab.qpivot.start(*tunnelled(pair, ssh, *SLOW, "--command-timeout", "4s"),
                         prefix=ssh.client)
    e.wait_event("progress", lambda x: x.get("bytes", 0) > 0, 60)
    pair.dst.proc.send(signal.SIGSTOP)
    r = e.wait(120)
    # With the tunnel the monitor is gone: given up, or a person is asked.
    assert r.rc in (1, 3), r
    assert pair.src.status() == "running" and not pair.src.jobs()
    pair.vm.wait_writes(20)
    pair.dst.proc.send(signal.SIGKILL)
    assert lab.qpivot.run("recover", "--json", prefix=ssh.client).rc == 0
    pair.judge()
