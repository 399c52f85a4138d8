"""Runs the program under test and reads what it says.

Only the documented command line is used: '--json' events on standard output
(one object a line, the last one 'done', 'failed' or 'parked'), errors on
standard error, the exit status.
"""

import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

from . import guest
from .proc import LabError, Proc, SCALE, Timeout, run

# Absolute, since a test may run it from another folder.
PROGRAM = os.path.abspath(os.environ.get("QPIVOT", guest.ROOT / "build/tools/qpivot"))

DOOM = os.path.join(os.path.dirname(os.path.dirname(PROGRAM)), "tests/live/libdoom.so")

DONE, ROLLED_BACK, REFUSED, PARKED, UNREACHABLE = range(5)

# A leak or undefined behaviour must end a sanitized build visibly.
SANITIZER = {
    "ASAN_OPTIONS": "abort_on_error=1:detect_leaks=1:detect_stack_use_after_return=1"
                    ":verify_asan_link_order=0",  # for what is preloaded
    "UBSAN_OPTIONS": "halt_on_error=1:abort_on_error=1:print_stacktrace=1",
    "LSAN_OPTIONS": f"suppressions={guest.HERE}/lsan.supp:print_suppressions=0",
}


def program():
    return PROGRAM


def version():
    """The program's first line about itself; an error here ends a run before
    every test fails for the same reason."""
    if not os.access(program(), os.X_OK):
        raise LabError(f"no program {program()}: build it, or set QPIVOT")
    return f"{program()}: " + run([program(), "--version"]).splitlines()[0]


class Engine:
    """One run of the program."""

    def __init__(self, argv, log, env, doom=None):
        self.events, self.text, self.changed = [], [], threading.Condition()
        self.log, self.doom_file = log, doom
        self.doom = lambda event: False
        self.proc = Proc(argv, log, env=env, stdout=subprocess.PIPE)
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        with open(self.log + ".out.log", "ab") as keep:
            for raw in self.proc.popen.stdout:
                keep.write(raw)
                keep.flush()
                line = raw.decode(errors="replace").rstrip("\n")
                try:
                    event = json.loads(line)
                except ValueError:
                    event = None
                with self.changed:
                    self.text.append(line)
                    if isinstance(event, dict):
                        self.events.append(event)
                        if self.doom(event) and self.proc.alive():
                            os.kill(self.proc.pid, signal.SIGKILL)
                    self.changed.notify_all()
        with self.changed:
            self.changed.notify_all()

    def wait_event(self, name, match=lambda e: True, seconds=60):
        """Waits for an event of that name that matches, and returns it."""
        deadline = time.monotonic() + seconds * SCALE
        with self.changed:
            while True:
                for e in self.events:
                    if e.get("event") == name and match(e):
                        return e
                left = deadline - time.monotonic()
                if left <= 0:
                    raise Timeout(f"no event '{name}' in {seconds} s; {self.said()}")
                if not self.reader.is_alive():
                    raise LabError(f"qpivot ended without event '{name}'; {self.said()}")
                self.changed.wait(min(left, 0.1))

    def wait(self, seconds=120):
        self.proc.wait(seconds)
        self.reader.join(10)
        return Result(self)

    def interrupt(self):
        self.proc.send(signal.SIGINT)

    def kill(self):
        """As if the host's memory had run out: nothing can be tidied up."""
        if self.proc.alive():
            os.kill(self.proc.pid, signal.SIGKILL)
        self.proc.popen.wait()
        self.reader.join(10)

    def kill_at(self, step, state, seconds=60):
        """Kills it the moment that it says to be there: at the 'start' its
        intent is durable and the act is not done, at the 'end' it is."""
        def there(e):
            return (e.get("event"), e.get("step"), e.get("state")) == ("step", step, state)
        if self.doom_file:  # whose reader may be slower than the program
            with open(self.doom_file + ".new", "w") as f:
                f.write(f'"step":"{step}","state":"{state}"')
            os.rename(self.doom_file + ".new", self.doom_file)
        with self.changed:
            if any(there(e) for e in self.events):
                raise LabError(f"too late to kill it at {step}")
            self.doom = there
        self.wait_event("step", there, seconds)
        self.proc.popen.wait()
        self.reader.join(10)

    def stall(self):
        os.kill(self.proc.pid, signal.SIGSTOP)

    def go_on(self):
        os.kill(self.proc.pid, signal.SIGCONT)

    def stop(self):
        self.proc.stop()

    def error(self):
        """What it wrote on standard error (the first line is the lab's own)."""
        return Path(self.log).read_text(errors="replace").split("\n", 1)[1]

    def said(self):
        return "it said: " + " / ".join(self.text[-4:]) + " / " + self.error()[-1500:]


class Result:
    def __init__(self, engine):
        self.rc = engine.proc.popen.returncode
        self.events, self.text = engine.events, "\n".join(engine.text)
        self.error = engine.error()
        self.last = self.events[-1] if self.events else {}
        self.engine = engine

    def named(self, event):
        return [e for e in self.events if e.get("event") == event]

    @property
    def op(self):
        return self.last.get("op") or next(e["op"] for e in self.events if e.get("op"))

    @property
    def disks(self):
        return {d["disk"]: d for d in self.last.get("disks", [])}

    def __str__(self):
        return f"exit {self.rc}; " + self.engine.said()

    __repr__ = __str__


class Qpivot:
    """The program, with a state folder of the test's own."""

    def __init__(self, lab):
        self.lab = lab
        self.state = lab.path("state")
        self.n = 0

    def start(self, *argv, env=None, prefix=()):
        self.n += 1
        full = {**SANITIZER, "QPIVOT_STATE": self.state, **(env or {})}
        log = self.lab.path(f"qpivot{self.n}.log")
        doom = log + ".doom" if os.path.exists(DOOM) else None
        if doom:
            full.update(DOOM=doom, LD_PRELOAD=" ".join([DOOM, full.get("LD_PRELOAD", "")]))
        return self.lab.ends(Engine([*prefix, program(), *argv], log, full, doom))

    def run(self, *argv, seconds=120, **kw):
        return self.start(*argv, **kw).wait(seconds)

    def steps(self, operation, elsewhere=()):
        """The steps that the program itself says the operation has, but those
        of 'elsewhere', which only some plans need."""
        table = json.loads(self.run("explain", "--json", operation).text)
        names = [s["step"] for s in table]
        optional = {s["step"] for s in table if "when-needed" in s["flags"]}
        assert set(elsewhere) <= optional, f"{set(elsewhere) - optional} are always needed"
        return [n for n in names if n not in elsewhere]

    def move_argv(self, vm, disks, *options):
        argv = ["move", "--qmp", vm.qmp_path, "--json",
                "--trace", self.lab.path(f"move{self.n}.trace")]
        for disk, target in disks.items():
            argv += ["--disk", f"{disk}={target}"]
        return argv + list(options)

    def start_move(self, vm, disks, *options, **kw):
        trace = self.lab.path(f"move{self.n}.trace")
        engine = self.start(*self.move_argv(vm, disks, *options), **kw)
        engine.trace = trace
        return engine

    def move(self, vm, disks, *options, rc=DONE, seconds=120, **kw):
        """Moves disks ({id: target}) and insists on an exit status."""
        r = self.start_move(vm, disks, *options, **kw).wait(seconds)
        if rc is not None and r.rc != rc:
            raise AssertionError(f"wanted exit {rc}, got {r}")
        return r
