"""The verbs that look, and the ones that handle jobs by hand."""

import html.parser
import json
import os
import subprocess

from lab.proc import wait_for
from lab.qemu import Disk
from lab.qpivot import SANITIZER, program
from lab.runner import timeout
from lab.scene import SIZE, Scene, source, volume


def mirror(scene, disk="d0", job="mine", speed=0):
    """A mirror that is not ours, ready or on its way."""
    v = volume(scene.lab, "raw").create(scene.lab.install, SIZE)
    scene.vm.qmp.cmd("blockdev-add", **v.node("mine-" + disk))
    scene.vm.qmp.cmd("blockdev-mirror", job_id=job, device=f"n-{disk}", target="mine-" + disk,
                     sync="full", auto_dismiss=False, speed=speed)
    return v


def test_the_graph_in_every_format(lab):
    throttle = {"driver": "throttle", "node-name": "t-d0", "throttle-group": "tg0"}
    vm = lab.vm([Disk("d0", source(lab, "qcow2", "d0"), above=[throttle]),
                 Disk("d1", source(lab, "raw", "d1"), legacy=True)], boot=False,
                argv=["-object", "throttle-group,id=tg0,x-iops-total=400"])
    q = lab.qpivot
    text = q.run("graph", "--qmp", vm.qmp_path)
    assert text.rc == 0, text
    for word in ("d0", "t-d0", "n-d0", "f-d0", "drv-d1", "qcow2", "throttle"):
        assert word in text.text, word
    assert json.loads(q.run("graph", "--qmp", vm.qmp_path, "--format", "json").text)
    dot = q.run("graph", "--qmp", vm.qmp_path, "--format", "dot").text
    svg = subprocess.run(["dot", "-Tsvg"], input=dot, text=True, capture_output=True, check=True)
    assert "t-d0" in html.unescape(svg.stdout)
    svg = q.run("graph", "--qmp", vm.qmp_path, "--format", "svg")
    assert svg.rc == 0 and "<svg" in svg.text and "t-d0" in html.unescape(svg.text), svg


def test_jobs_by_hand(lab):
    scene = Scene(lab, ["raw"], boot=False)
    q, where = lab.qpivot, scene.vm.qmp_path

    def job():
        return next((j["status"] for j in scene.vm.jobs()), None)

    def jobs(*verb):
        r = q.run("jobs", "--qmp", where, *verb)
        assert r.rc == 0, (verb, r)
        return r

    mirror(scene, speed=65536)
    assert "mine" in jobs().text
    jobs("pause", "mine")
    wait_for("the pause", lambda: job() == "paused")
    jobs("resume", "mine")
    wait_for("the copy to go on", lambda: job() == "running")
    jobs("set-speed", "mine", "100M")
    wait_for("ready", lambda: job() == "ready")
    jobs("complete", "mine")
    wait_for("the end", lambda: job() == "concluded")
    jobs("dismiss", "mine")
    assert job() is None
    r = q.run("jobs", "--qmp", where, "cancel", "nosuch")
    assert r.rc != 0 and "nosuch" in r.error, r


def test_who_only_looks_needs_no_journal(lab):
    scene = Scene(lab, ["raw"], boot=False)
    for argv in (("graph",), ("jobs",), ("monitor", "query-status")):
        r = lab.qpivot.run(argv[0], "--qmp", scene.vm.qmp_path, "--state", "/proc/nowhere",
                           *argv[1:])
        assert r.rc == 0 and not r.error.strip(), r


def test_the_monitor_takes_a_command(lab):
    scene = Scene(lab, ["raw"], boot=False)
    q, where = lab.qpivot, scene.vm.qmp_path
    r = q.run("monitor", "--qmp", where, "query-status")
    assert r.rc == 0 and "prelaunch" in r.text, r
    r = q.run("monitor", "--qmp", where, "no-such-command")
    assert r.rc == 1 and "no-such-command" in r.error, r


def test_list_and_show_tell_the_story(lab):
    scene = Scene(lab, ["raw"], paused=True)
    done = scene.move({"d0": volume(lab, "qcow2")})
    assert len(str(done.last["seconds"]).partition(".")[2]) <= 3, done.last
    q = lab.qpivot
    assert q.run("list", "--json").text.strip() == "", "nothing is unfinished"
    r = q.run("list", "--all", "--json")
    assert done.op in r.text, r
    shown = json.loads(q.run("show", "--json", done.op).text)
    assert shown["op"] == done.op and shown["records"], shown
    text = q.run("show", done.op)
    assert text.rc == 0 and done.op in text.text


class Page(html.parser.HTMLParser):
    """The names and the words of a page; every element must be closed."""

    EMPTY = {"meta", "br", "rect", "line"}

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.words = [], set(), []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert tag in self.EMPTY or self.open.pop() == tag, tag

    def handle_data(self, data):
        self.words.append(data)


def test_the_report_of_an_operation(lab):
    """A page of its own that no name in it can break."""
    scene = Scene(lab, ["raw"], paused=True)
    odd = os.path.join(lab.tmp, "<b>&\"'.qcow2")
    failed = lab.qpivot.run("move", "--json", "--qmp", scene.vm.qmp_path,
                            "--disk", f"d0={odd}", "--persist-hook", "echo '<i>' >&2; false")
    assert failed.rc == 3, failed
    op = json.loads(failed.text.splitlines()[-1])["op"]
    r = lab.qpivot.run("report", op)
    assert r.rc == 0, r
    page = Page(r.text)
    assert odd in page.words and "parked" in page.words and "persist" in page.words, page.words
    assert "svg" in page.seen and not page.seen & {"b", "i", "script", "link", "img"}, page.seen
    assert lab.qpivot.run("report", "nosuch").rc == 2


def test_a_terminal_less_run_prints_plain_lines(lab):
    scene = Scene(lab, ["raw"], paused=True)
    target = volume(lab, "qcow2")
    r = lab.qpivot.run("move", "--qmp", scene.vm.qmp_path, "--disk", f"d0={target.uri()}")
    assert r.rc == 0, r
    assert "\x1b" not in r.text and "\r" not in r.text, r.text
    assert "done" in r.text.splitlines()[-1], r.text


def test_the_trace_has_both_ways(lab):
    scene = Scene(lab, ["raw"], paused=True)
    scene.move({"d0": volume(lab, "raw")})
    with open(lab.path("move0.trace")) as f:
        trace = f.read()
    for word in ("qmp_capabilities", "blockdev-mirror", "JOB_STATUS_CHANGE", '"return"'):
        assert word in trace, word


def test_an_embedding_orchestrator_moves_a_disk(lab):
    """The example that embeds the library in a loop of its own."""
    example = os.path.join(os.path.dirname(program()), "../tests/api/example-orchestrator")
    scene = Scene(lab, ["raw"])
    target = volume(lab, "qcow2")
    r = subprocess.run([example, scene.vm.qmp_path, "d0", target.uri(), lab.path("state")],
                       env={**os.environ, **SANITIZER}, capture_output=True, text=True,
                       timeout=60)
    assert r.returncode == 0, r
    assert r.stdout.strip(), "it prints progress"
    scene.now["d0"] = target
    scene.assert_attached()
    scene.assert_tidy()
    scene.judge()


@timeout(120)
def test_list_tells_running_from_killed_and_recover_how_it_ended(lab):
    first, second = (Scene(lab, ["raw"], paused=True) for _ in range(2))
    q, slow = lab.qpivot, ("--speed", "64K")
    moves = [s.start_move({"d0": volume(lab, "raw")}, *slow) for s in (first, second)]
    for e in moves:
        e.wait_event("progress", seconds=30)
    ops = [e.events[-1]["op"] for e in moves]
    r = q.run("list")
    assert r.text.count("running") == 2, r.text
    assert [json.loads(x)["alive"] for x in q.run("list", "--json").text.splitlines()] == [True] * 2
    r = q.run("move", "--qmp", first.vm.second_path, "--disk", "d0=" + lab.path("t.raw"))
    assert r.rc == 2 and ops[0] in r.error and "running" in r.error and "recover" in r.error, r
    for e in moves:
        e.kill()
    r = q.run("list")
    assert r.text.count("waits for recover") == 2 and "running" not in r.text, r.text
    r = q.run("recover", "--undo")
    assert r.rc == 0 and not r.error.strip(), r
    for op in ops:
        assert f"operation {op}\n" in r.text and f"{op}: undone: " in r.text, r.text
    e = first.start_move({"d0": volume(lab, "raw")}, "--speed", "1M")
    op = e.wait_event("progress", seconds=30)["op"]
    e.kill()
    r = q.run("recover", op)
    assert r.rc == 0 and r.text.splitlines()[-1] == f"{op}: done", r
    assert "no unfinished operations" in q.run("list").text


def test_plain_lines_are_one_for_a_step_and_have_no_rate_at_first(lab):
    scene = Scene(lab, ["raw", "raw", "raw"], paused=True)
    argv = [x for d in scene.now for x in ("--disk", f"{d}={volume(lab, 'raw').uri()}")]
    r = lab.qpivot.run("move", "--qmp", scene.vm.qmp_path, *argv, "--speed", "1M")
    assert r.rc == 0, r
    lines = r.text.splitlines()
    assert sum(x.startswith("target-file:") for x in lines) == 1, r.text
    assert not any("target-file" in x and "d1" in x for x in lines), r.text
    copies = [x for x in lines if ": copy  " in x]
    assert {x.split(":")[0] for x in copies} == {"d0", "d1", "d2"}, copies
    assert not any("/s" in x for x in copies[:3]), copies
    assert any("/s" in x for x in copies), copies
    assert not any(" left" in x for x in lines if ": ready" in x), r.text


def test_a_ready_job_is_ready_once(lab):
    scene = Scene(lab, ["raw"], boot=False)
    mirror(scene)
    wait_for("ready", lambda: scene.vm.jobs()[0]["status"] == "ready")
    r = lab.qpivot.run("jobs", "--qmp", scene.vm.qmp_path)
    assert r.text.count("ready") == 1 and "100%" in r.text, r
