"""Processes, ports, deadlines: what every piece of the lab is made of."""

import os
import signal
import socket
import subprocess
import threading
import time


class LabError(Exception):
    """A piece of the lab did not do what the test rests on."""


class Timeout(LabError):
    """A condition did not come true before its deadline."""


SCALE = float(os.environ.get("QPIVOT_LAB_TIMEOUT_SCALE", "1"))
_pause = threading.Event()


def wait_for(what, condition, seconds=20, every=0.02):
    """Asks condition() until it is true and returns its value."""
    deadline = time.monotonic() + seconds * SCALE
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise Timeout(f"waited {seconds * SCALE:g} s for {what}")
        _pause.wait(every)


def run(argv, seconds=60, ok=(0,), **kw):
    """Runs a program to its end and returns its standard output as text."""
    r = subprocess.run([str(a) for a in argv], stdin=kw.pop("stdin", subprocess.DEVNULL),
                       stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                       timeout=seconds * SCALE, **kw)
    if ok is not None and r.returncode not in ok:
        raise LabError("%s: exit %d: %s%s" % (
            " ".join(map(str, argv)), r.returncode,
            _text(r.stdout)[-1000:], _text(r.stderr)[-2000:]))
    return _text(r.stdout)


def _text(b):
    return b.decode(errors="replace") if isinstance(b, bytes) else b or ""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def can_connect(address):
    """address: a (host, port) pair or the path of a unix socket."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as s:
        s.settimeout(1)
        try:
            s.connect(address)
        except OSError:
            return False
    return True


class Proc:
    """A program in a session of its own that dies with the one who started it.

    setpriv sets the parent death signal between fork and exec: should this
    Python be killed by SIGKILL, the kernel ends the program all the same.
    """

    all = []  # that were started

    def __init__(self, argv, log, env=None, stdin=subprocess.DEVNULL,
                 stdout=None, cwd=None):
        self.argv = [str(a) for a in argv]
        self.log = str(log)
        self.stopped = False
        with open(self.log, "ab") as f:
            f.write(("$ " + " ".join(self.argv) + "\n").encode(errors="surrogateescape"))
            f.flush()
            self.popen = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--"] + self.argv,
                stdin=stdin, stdout=f if stdout is None else stdout, stderr=f,
                env=dict(os.environ, **(env or {})), cwd=cwd,
                start_new_session=True)
        self.pid = self.popen.pid
        Proc.all.append(self)

    @classmethod
    def crashed(cls):
        """Of those that ended by a signal which nobody sends: (name, signal, words)."""
        sent = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
        return [(p.argv[0], -p.popen.returncode, p.tail()) for p in cls.all
                if not p.alive() and p.popen.returncode < 0 and -p.popen.returncode not in sent]

    def alive(self):
        return self.popen.poll() is None

    def check_alive(self):
        if not self.alive():
            raise LabError(f"{self.argv[0]} ended with {self.popen.returncode}: "
                           + self.tail())
        return True

    def wait_for(self, what, condition, seconds=20):
        """Like wait_for(), but a process that ended is an error at once."""
        return wait_for(what, lambda: self.check_alive() and condition(), seconds)

    def tail(self, size=2000):
        """The end of what it printed, without our own line with its arguments."""
        with open(self.log, errors="replace") as f:
            return "".join(line for line in f if not line.startswith("$ "))[-size:]

    def send(self, number):
        if self.alive():
            os.killpg(self.pid, number)

    def wait(self, seconds=20):
        """Waits for the end and returns the exit status."""
        try:
            return self.popen.wait(seconds * SCALE)
        except subprocess.TimeoutExpired:
            raise Timeout(f"{self.argv[0]} did not end in {seconds} s: " + self.tail())

    def stop(self, number=signal.SIGTERM, seconds=5):
        """Ends the process and what is left of its group; never raises."""
        if self.alive():
            self.send(signal.SIGCONT)
            self.send(number)
            try:
                self.popen.wait(seconds)
            except subprocess.TimeoutExpired:
                pass
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.popen.wait()
        for stream in (self.popen.stdin, self.popen.stdout):
            if stream:
                try:
                    stream.close()
                except OSError:
                    pass

    def kill(self):
        self.stop(signal.SIGKILL)
