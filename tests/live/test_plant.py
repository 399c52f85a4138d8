"""Tests that misbehave on purpose; test_lab.py runs the runner on them."""

import os
import signal
import subprocess

from lab.qemu import Disk
from lab.proc import Proc
from lab.runner import Skip, timeout
from lab.storage import BlockVolume, MiB, NbdVolume

PROGRAM = False
ENABLED = "QPIVOT_LAB_PLANT" in os.environ


def machine(lab, name="planted"):
    lab.nbd(MiB, path=lab.path("planted-nbd"))
    return lab.vm([Disk("d0", BlockVolume(lab.loop(64 * MiB, "planted-loop")))], name=name,
                  boot=False)


def test_passes(lab):
    machine(lab)


def test_skips(lab):
    machine(lab)
    raise Skip("planted")


def test_fails(lab):
    lab.small_fs(MiB)
    machine(lab)
    raise AssertionError("planted failure")


@timeout(6)
def test_hangs(lab):
    machine(lab)
    signal.pause()


def test_leaves_a_process(lab):
    subprocess.Popen(["sh", "-c", "exec setsid tail -f /dev/null planted & exit"],
                     start_new_session=True, stderr=subprocess.DEVNULL).wait()


def test_dies(lab):
    machine(lab)
    os.kill(os.getpid(), signal.SIGKILL)


@timeout(80)
def test_waits(lab):
    machine(lab)
    lab.ends(Proc(["tail", "-f", "/dev/null", "--", "planted-up"], lab.path("up.log")))
    signal.pause()
