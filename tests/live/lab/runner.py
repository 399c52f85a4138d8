"""Finds the tests, runs each in a process of its own, counts honestly.

A test is a function test_<sentence>(lab) in a file test_*.py.  It gets a Lab,
which starts parts on demand and ends them all when the function returns,
raises, is interrupted or runs out of time.  After that the test's process
looks for processes that are left: one of them fails the test.

Ceph and NFS are dear to start and harmless to share: they are started once,
before the first test that names them in @needs(...).
"""

import argparse
import contextlib
import fcntl
import importlib
import inspect
import itertools
import json
import os
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

from . import guest, isolate, proc, qemu, qpivot, saved
from .ceph import Ceph
from .loop import Loop
from .nbd import Nbd
from .nfs import Nfs

LIVE = Path(__file__).resolve().parents[1]
SERVICES = {"ceph": Ceph, "nfs": Nfs}


class Skip(Exception):
    """The test cannot say anything here; the reason is printed."""


class TestTimeout(BaseException):
    """The test's deadline passed; not an Exception, so that nothing eats it."""


def needs(*services):
    def mark(f):
        f.services = services
        return f
    return mark


def timeout(seconds):
    def mark(f):
        f.seconds = seconds
        return f
    return mark


class Lab:
    """What one test has: a folder, an installation of QEMU, shared services,
    and a stack of things to end."""

    def __init__(self, install, services, tmp, thin=None, states=None):
        self.install, self.services, self.tmp = install, services, Path(tmp)
        self.thin, self.states = thin, states
        # Storage ends after the machines that use it, whenever it began.
        self.storage, self.stack = contextlib.ExitStack(), contextlib.ExitStack()
        self.qpivot = qpivot.Qpivot(self)
        self._number = 0

    def name(self, prefix):
        """A name that no other test of this run uses."""
        self._number += 1
        return f"{prefix}-{os.getpid()}-{self._number}"

    def path(self, name):
        return str(self.tmp / name)

    def share(self, steps, n):
        """The n-th half of the steps of an operation in a run with --thin, the
        other one in a run with the other half; else all."""
        return steps if self.thin is None else steps[(n + self.thin) % 2::2]

    def ends(self, thing, storage=False):
        """Registers thing.stop() for the end of the test."""
        (self.storage if storage else self.stack).callback(thing.stop)
        return thing

    def end(self):
        with self.storage:
            self.stack.close()

    @property
    def ceph(self):
        return self.services["ceph"]

    @property
    def nfs(self):
        return self.services["nfs"]

    def other_install(self):
        """A QEMU of another version than the one that the run is about."""
        prefix = None if self.install.prefix else guest.BUILD / "qemu10"
        if prefix and not prefix.exists():
            raise Skip("no QEMU 10.0: 'tools/setup --qemu10' fetches it")
        return qemu.Install(prefix)

    def vm(self, disks, power_on=False, **kw):
        """A machine with the guest in it; power_on: one that boots it."""
        kw.setdefault("name", f"vm{self._number}")
        self._number += 1
        if self.states and not power_on and saved.fits(**kw):
            same = {k: kw.get(k, v) for k, v in qemu.SAME.items()}
            kw["state"] = saved.state(self.states, self.install, **same)
        return self.ends(qemu.Vm(self.install, self.tmp, disks, **kw))

    def loop(self, size, name=None, sector=0):
        return self.ends(Loop(self.path(name or self.name("loop")), size, sector),
                         storage=True)

    def nbd(self, size=None, path=None, **kw):
        name = self.name("nbd")
        path = path or self.path(name + ".raw")
        if size is not None:
            with open(path, "ab") as f:
                f.truncate(size)
        return self.ends(Nbd(self.install, self.tmp, path, name=name, **kw), storage=True)

    def small_fs(self, size, name="small"):
        """A mounted file system of so many bytes, to run out of space on."""
        path = self.path(name)
        os.makedirs(path)
        isolate.mount("tmpfs", path, "tmpfs", f"size={size}")
        self.storage.callback(isolate.umount, path)
        return path

    def grow_fs(self, path, size):
        proc.run(["mount", "-o", f"remount,size={size}", path])


def discover(folder, pattern):
    sys.path.insert(0, str(folder))
    tests = []
    for f in sorted(folder.glob("test_*.py")):
        module = importlib.import_module(f.stem)
        if not getattr(module, "ENABLED", True):
            continue
        for name, function in inspect.getmembers(module, inspect.isfunction):
            full = f"{f.stem[5:]}.{name[5:]}"
            if (name.startswith("test_") and function.__module__ == f.stem
                    and re.search(pattern, full)):
                tests.append((full, function, function.__code__.co_firstlineno))
    return sorted(tests, key=lambda t: (t[0].split(".")[0], t[2]))


def children():
    """Processes (not zombies) whose parent is this one."""
    mine = str(os.getpid())
    found = []
    for d in os.listdir("/proc"):
        if d.isdigit():
            try:
                stat = Path(f"/proc/{d}/stat").read_text()
            except OSError:
                continue
            name, rest = stat[stat.index("(") + 1:].rsplit(") ", 1)
            state, parent = rest.split()[:2]
            if parent == mine and state != "Z":
                found.append((int(d), name))
    return found


def seconds_of(function):
    return getattr(function, "seconds", 60)


def longest_first(tests):
    """By their deadlines: what begins last should not be what takes longest."""
    return sorted(tests, key=lambda t: -seconds_of(t[1]))


class Job:
    """A test under way in a child process."""

    def __init__(self, run, test):
        self.test, self.started = test, time.monotonic()
        self.name, function, _ = test
        self.seconds = seconds_of(function) * proc.SCALE
        self.log = run.logs / f"{self.name}.log"
        r, w = os.pipe()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(r)
            code = 1
            try:
                code = self._child(run, function, w)
            finally:
                os._exit(code)
        os.close(w)
        self.pipe = r

    def _child(self, run, function, w):
        os.setpgid(0, 0)
        isolate.die_with_parent()
        isolate.adopt_orphans()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        out = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout = open(1, "w", buffering=1, closefd=False)
        sys.stderr = sys.stdout

        def alarm(number, frame):
            raise TestTimeout(f"no end after {self.seconds:g} s")
        signal.signal(signal.SIGALRM, alarm)
        signal.setitimer(signal.ITIMER_REAL, self.seconds)
        tmp = Path(tempfile.mkdtemp(prefix="t", dir=run.tmp))
        lab = Lab(run.install, run.services, tmp, run.opts.thin,
                  None if run.opts.boot else Path(run.tmp))
        result, why = "ok", ""
        try:
            try:
                function(lab)
            finally:
                for name, number, words in proc.Proc.crashed():
                    print(f"{name} ended by signal {number}: {words}")
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, signal.SIG_IGN)
                lab.end()
        except Skip as e:
            result, why = "skip", str(e)
        except BaseException as e:
            traceback.print_exc()
            result, why = "FAIL", f"{type(e).__name__}: {e}"
        try:  # what was told to end may need a moment
            proc.wait_for("the test's processes to end", lambda: not children(), 3)
            left = []
        except proc.Timeout:
            left = children()
        for pid, name in left:
            os.kill(pid, signal.SIGKILL)
        if left and result == "ok":
            result, why = "FAIL", f"left behind: {left}"
        if result == "FAIL":
            keep = run.logs / f"{self.name}.d"
            shutil.rmtree(keep, ignore_errors=True)
            keep.mkdir()
            for f in tmp.rglob("*"):
                if f.is_file() and f.suffix in (".log", ".console", ".trace", ".json") \
                        and f.stat().st_size < 16 << 20:
                    shutil.copy(f, keep)
        shutil.rmtree(tmp, ignore_errors=True)
        os.write(w, json.dumps([result, why]).encode()[:60000])
        return 0

    def finish(self):
        """Collects the end; returns (result, why)."""
        data = b""
        while True:
            part = os.read(self.pipe, 65536)
            if not part:
                break
            data += part
        os.close(self.pipe)
        used = os.wait4(self.pid, 0)[2]
        self.cpu = used.ru_utime + used.ru_stime
        if not data:
            return "FAIL", "the test's process died"
        return json.loads(data)


class Run:
    def __init__(self, opts, tmp, made=SERVICES, logs="logs"):
        self.opts, self.tmp, self.made = opts, tmp, made
        self.install = qemu.Install(opts.qemu)
        self.logs = self._logs(logs)
        self.services, self.count = {}, {"ok": 0, "FAIL": 0, "skip": 0}
        self.running, self.interrupted, self.failed = {}, False, []
        self.ended = threading.Event()

    def _logs(self, base):
        """The folder of the logs; one of its own for a run beside another."""
        base += ("-" + self.install.prefix.name if self.install.prefix else "")
        for n in itertools.count(1):
            path = guest.BUILD / (base if n == 1 else f"{base}-{n}")
            path.mkdir(parents=True, exist_ok=True)
            self.lock = open(path / "lock", "w")
            try:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            return path

    def start_services(self, names):
        """All at the same time, each from a thread that lives as long as the
        run: the parent death signal comes when the *thread* ends that forked."""
        errors, up = {}, threading.Semaphore(0)

        def start(n, s):
            try:
                s.start()
            except BaseException as e:
                errors[n] = e
            up.release()
            self.ended.wait()

        t0 = time.monotonic()
        for n in names:
            self.services[n] = self.made[n](os.path.join(self.tmp, n))
            threading.Thread(target=start, args=(n, self.services[n]), daemon=True).start()
        for _ in names:
            up.acquire()
        if errors:
            raise proc.LabError("; ".join(f"{n}: {e}" for n, e in errors.items()))
        if names:
            print(f"# {' and '.join(names)} up in {time.monotonic() - t0:.1f} s", flush=True)

    def stop(self):
        for s in self.services.values():
            s.stop()
        for pid, _ in children():
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.tmp, ignore_errors=True)

    def tests(self, tests):
        waiting, running = list(tests), self.running
        while waiting or running:
            while waiting and len(running) < self.opts.jobs and not self.interrupted:
                test = waiting.pop(0)
                job = Job(self, test)
                running[job.pipe] = job
            if self.interrupted:
                waiting.clear()
                if not running:
                    break
            ready = select.select(list(running), [], [], 0.5)[0]
            for r in ready:
                job = running.pop(r)
                self.result(job, *job.finish())
            for job in running.values():
                # the test's own alarm was not enough: it hangs in its end
                if time.monotonic() - job.started > job.seconds + 40:
                    os.kill(job.pid, signal.SIGKILL)

    def again(self):
        """What failed once more, each alone: these count as it says."""
        failed, self.failed, self.opts.jobs = self.failed, [], 1
        print(f"# {len(failed)} failed among others; each once more, alone", flush=True)
        self.count["FAIL"] -= len(failed)
        for name, _, _ in failed:
            for suffix in (".log", ".d"):
                log, first = (self.logs / f"{name}{x}{suffix}" for x in ("", ".first"))
                shutil.rmtree(first, ignore_errors=True)
                if log.exists():
                    log.rename(first)
        self.tests(failed)
        left = {name for name, _, _ in self.failed}
        passed = [name for name, _, _ in failed if name not in left]
        if passed:
            print(f"# passed only when run again, alone: {', '.join(passed)}", flush=True)

    def result(self, job, result, why):
        self.count[result] += 1
        seconds = time.monotonic() - job.started
        line = f"{result:4} {job.name} ({seconds:.1f} s, {job.cpu:.1f} s of CPU)"
        print(line + (f": {why.splitlines()[0][:400]}" if why else ""), flush=True)
        if result == "FAIL":
            self.failed.append(job.test)
            tail = job.log.read_text(errors="replace").splitlines()[-self.opts.tail:]
            print("".join(f"     | {x}\n" for x in tail), end="")
            print(f"     | log: {job.log}, {job.log.with_suffix('.d')}", flush=True)


def main(argv=None, folder=LIVE, services=SERVICES, logs="logs",
         jobs=min(8, 3 * (os.cpu_count() or 1))):
    p = argparse.ArgumentParser(description="the live tests: real QEMU, real storage")
    p.add_argument("--list", action="store_true", help="names of the tests, nothing else")
    p.add_argument("-k", metavar="PATTERN", default="", help="only tests that match")
    p.add_argument("--jobs", type=int, metavar="N", default=jobs,
                   help="at a time: most of a test is waiting")
    p.add_argument("--qemu", metavar="PREFIX", help="a QEMU unpacked in a prefix")
    p.add_argument("--no-isolate", action="store_true",
                   help="run in the system's own namespaces (to look in from outside)")
    p.add_argument("--thin", type=int, choices=(0, 1), metavar="0|1",
                   help="kill at the start or at the end of each step, not at both;"
                   " the other run does the other half")
    p.add_argument("--boot", action="store_true",
                   help="boot each guest; else most go on from where one was saved")
    p.add_argument("--again", type=int, metavar="N", default=0,
                   help="if at most N fail: each once more, alone; told, and that counts")
    p.add_argument("--tail", type=int, default=25, metavar="N",
                   help="lines of a failed test's log to show")
    opts = p.parse_args(argv)
    tests = discover(folder, opts.k)
    if opts.list:
        for name, _, _ in tests:
            print(name)
        return 0
    for line in guest.prepare():
        print("#", line)
    if any(getattr(sys.modules[f.__module__], "PROGRAM", True) for _, f, _ in tests):
        print("#", qpivot.version())
    tmp, alive = isolate.folder("qpl-")
    if not opts.no_isolate and not isolate.enter():
        print("# no namespaces here: running in the system's own")
    return execute(opts, tests, tmp, services, logs)


def execute(opts, tests, tmp, services, logs):
    isolate.adopt_orphans()
    run = Run(opts, tmp, services, logs)

    def interrupt(number, frame):
        if not run.interrupted:
            run.interrupted = True
            for job in run.running.values():
                os.kill(job.pid, signal.SIGINT)
    print(f"# QEMU {run.install.version()}, {len(tests)} tests, {opts.jobs} at a time",
          flush=True)
    started = time.monotonic()
    try:
        names = {s for _, f, _ in tests for s in getattr(f, "services", ())}
        run.start_services(sorted(names))
        signal.signal(signal.SIGINT, interrupt)
        signal.signal(signal.SIGTERM, interrupt)
        run.tests(longest_first(tests))
        if 0 < len(run.failed) <= opts.again and not run.interrupted:
            run.again()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        run.stop()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"# {time.monotonic() - started:.0f} s, {used.ru_utime + used.ru_stime:.0f} s of CPU")
    c = run.count
    if run.failed:
        print(f"# failed: {' '.join(name for name, _, _ in run.failed)}")
    if run.interrupted:
        print("# interrupted")
    print(f"{c['ok']} passed, {c['FAIL']} failed, {c['skip']} skipped", flush=True)
    return 130 if run.interrupted else 1 if c["FAIL"] or not c["ok"] else 0

