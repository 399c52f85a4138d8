"""Namespaces for a run: processes, mounts and network of its own.

Whatever a test leaves behind by mistake ends with the run: the first process
of the new PID namespace takes every other one with it, mounts die with their
namespace, and ports (rpcbind's 111 above all) cannot clash with the system's.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import tempfile

CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWNET = 0x20000, 0x20000000, 0x40000000
MS_REC, MS_PRIVATE = 0x4000, 0x40000
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36

_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent():
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def adopt_orphans():
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1)


def mount(source, target, fstype, options=""):
    """A mount of a test's own; unmounted with the namespace or by umount()."""
    if _libc.mount(source.encode(), str(target).encode(), fstype.encode(), 0,
                   options.encode() or None):
        raise OSError(ctypes.get_errno(), f"mount {target}")


def umount(target):
    _libc.umount2(str(target).encode(), 2)  # MNT_DETACH


def folder(prefix):
    """A temporary folder that goes even when this process is killed: a child,
    which must be forked before enter(), waits for the end of a pipe that
    everybody of this run holds open."""
    path = tempfile.mkdtemp(prefix=prefix)
    r, w = os.pipe()
    if os.fork() == 0:
        os.setsid()
        for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(n, signal.SIG_IGN)
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.close(w)
        os.read(r, 1)
        shutil.rmtree(path, ignore_errors=True)
        os._exit(0)
    os.close(r)
    return path, w


def enter():
    """Goes on in namespaces of its own; returns False where that is not
    allowed.  The caller's process stays outside and ends like the inner one."""
    if os.geteuid() or _libc.unshare(CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET):
        return False
    init = os.fork()
    if init:
        _outer(init)
    die_with_parent()
    _own_run()
    mount("proc", "/proc", "proc")
    _loopback()
    inner = os.fork()
    if inner:
        _init(inner)
    return True


def new_network():
    """A network, and a /run for what serves on it, of the calling process
    and what it starts from now on."""
    if _libc.unshare(CLONE_NEWNET | CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    _own_run()
    _let_go_of_others()
    _loopback()


def _let_go_of_others():
    """Copies of what other tests have mounted would keep their devices busy."""
    inside = os.path.join(tempfile.gettempdir(), "qpl-")
    with open("/proc/self/mounts") as f:
        paths = [line.split()[1] for line in f]
    for path in reversed(paths):
        if path.startswith(inside):
            umount(path)


def _own_run():
    _libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None)
    mount("tmpfs", "/run", "tmpfs", "mode=755")
    os.makedirs("/run/lock", exist_ok=True)


def _loopback():
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    # getaddrinfo(AI_ADDRCONFIG) knows no IPv4 where only 127.0.0.1 is set up.
    subprocess.run(["ip", "address", "add", "192.0.2.1/32", "dev", "lo"], check=True)


def _forward(pid, numbers):
    for n in numbers:
        signal.signal(n, lambda number, frame: os.kill(pid, number))


def _outer(init):
    os.closerange(3, 64)  # the inner process's, folder()'s pipe above all
    # A terminal sends SIGINT to the inner process itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _forward(init, (signal.SIGTERM, signal.SIGHUP))
    status = os.waitpid(init, 0)[1]
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _init(inner):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _forward(inner, (signal.SIGTERM, signal.SIGHUP))
    while True:
        pid, status = os.wait()
        if pid == inner:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)
