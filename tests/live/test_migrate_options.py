"""What a migration can be told: TLS, and options that do not go together."""

import json
import os

from lab.pair import Pair
from lab.qmp import QmpError
from lab.runner import timeout
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
        "auto-converge": ("--auto-converge",)}


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
