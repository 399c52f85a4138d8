"""The traps that cost more than any tuning: each is counted, not timed, so
that a loaded machine says the same."""

import os
import re
import shutil

from lab import proc, qpivot
from lab.storage import MiB


def run(lab):
    """Returns what has failed."""
    failed = []
    for check in (one_walk_of_the_map, one_zero_call_for_a_run, zeroes_are_not_hashed,
                  few_calls_for_a_block):
        what, found, bound = check(lab)
        good = found <= bound
        print(f"# trap: {what}: {found}, at most {bound}: {'ok' if good else 'FAILED'}",
              flush=True)
        if not good:
            failed.append(f"{what}: {found} > {bound}")
    return failed


def copy(lab, prefix, *options):
    proc.run([*prefix, qpivot.program(), "copy", "--quiet", "--no-offload", "--state",
              lab.path("state"), lab.path("a"), lab.path("b"), *options], seconds=300)


def calls(lab, *options):
    """{system call: how often} of a copy of file a to file b."""
    out = lab.path("strace")
    copy(lab, ["strace", "-f", "-c", "-o", out], *options)
    with open(out) as f:
        return {m[2]: int(m[1]) for m in
                re.finditer(r"^ *[\d.]+ +[\d.]+ +\d+ +(\d+) +(?:\d+ +)?(\w+)$", f.read(), re.M)}


def both(lab, size, target=None, every=None):
    """a: a page of data every so many bytes; b: noise, or not there."""
    with open(lab.path("a"), "wb") as f:
        for at in range(0, size, every or size + 1):
            f.seek(at)
            f.write(b"x" * 4096)
        f.truncate(size)
    if os.path.exists(lab.path("b")):
        os.unlink(lab.path("b"))
    if target:
        with open(lab.path("b"), "wb") as f:
            for _ in range(size // MiB):
                f.write(target)


def one_walk_of_the_map(lab):
    """One when the file is looked at, and one for the map: never one a block."""
    n = 512
    both(lab, n * 128 << 10, every=128 << 10)
    return f"lseek calls for {n} extents", calls(lab).get("lseek", 0), 4 * n + 32


def one_zero_call_for_a_run(lab):
    """Zeroes that are no holes, over a target in use: whole runs in one call."""
    size = 128 * MiB
    both(lab, size, target=os.urandom(MiB))
    with open(lab.path("a"), "wb") as f:
        f.write(bytes(size))
    return (f"fallocate calls for {size // MiB} MiB of allocated zeroes",
            calls(lab, "--existing").get("fallocate", 0), 16)


def zeroes_are_not_hashed(lab):
    size = 32 * MiB
    with open(lab.path("a"), "wb") as f:
        f.write(bytes(size))
    if os.path.exists(lab.path("b")):
        os.unlink(lab.path("b"))
    out = lab.path("callgrind")
    if not shutil.which("valgrind"):
        return "instructions of libxxhash (no valgrind here)", 0, 0
    copy(lab, ["valgrind", "-q", "--tool=callgrind", f"--callgrind-out-file={out}"])
    text = proc.run(["callgrind_annotate", "--threshold=100", out])
    found = sum(int(m[1].replace(",", "")) for m in
                re.finditer(r"^ *([\d,]+) .*libxxhash", text, re.M))
    return f"instructions of libxxhash for {size // MiB} MiB of zeroes", found, 1 << 20


def few_calls_for_a_block(lab):
    """Hand-offs show as futex, eventfd and epoll calls: none for each block."""
    size = 64 * MiB
    both(lab, size)
    with open(lab.path("a"), "wb") as f:
        for _ in range(size // MiB):
            f.write(os.urandom(MiB))
    found = calls(lab)
    return (f"futex, poll and wake-up calls for {size // MiB} MiB",
            sum(found.get(k, 0) for k in ("futex", "poll", "epoll_wait", "epoll_pwait",
                                          "write", "io_uring_enter")), 2 * size // MiB + 64)
