"""tools/bench copy: qpivot copy and what one would use instead, in rounds."""

import os
import random
import statistics
import subprocess
import time
from pathlib import Path

import traps
from contenders import clean, content_equal, contenders, data_of
from lab import isolate, proc, qpivot, runner, scene
from lab.storage import FileVolume, MiB
from limits import Limit
from table import Table, ratios, spread

KINDS = {"F": "raw", "D": "disk", "B": "block", "R": "rbd", "N": "nfs", "Q": "qcow2", "M": "nbd"}
EXTRA = ("growth", "traps")
NOISE = 0.1  # an A/A pair further apart than this judges nothing


def fill(path, size, data, seed=1):
    """sparse: half of it data in runs of 64 KiB to 4 MiB; dense: the same, its
    zeroes allocated; pieces: a fifth, 4 to 64 KiB each."""
    r, noise = random.Random(seed), random.Random(seed).randbytes(8 * MiB)
    short, long, share = (4096, 65536, 0.2) if data == "pieces" else (65536, 4 * MiB, 0.5)
    share = {"random": 1, "zero": 0}.get(data, share)
    with open(path, "wb") as f:
        at = 0
        while at < size:
            run = min(r.randrange(short, long + 1, 4096), size - at)
            if share == 1 or (share > 0 and r.random() < share):
                start = r.randrange(0, len(noise) - run)
                f.write(noise[start:start + run])
            elif data in ("dense", "zero"):
                f.write(bytes(run))
            else:
                f.seek(run, os.SEEK_CUR)
            at += run
        f.truncate(size)
        f.flush()
        os.fsync(f.fileno())


class Copying:
    def __init__(self, opts):
        self.opts, self.random, self.n = opts, random.Random(1), 0

    def run(self):
        print("#", qpivot.version())
        tmp, self.alive = isolate.folder("qpb-")
        disk, self.alive_too = isolate.folder("qpb-disk-")
        if not isolate.enter():
            raise proc.LabError("this needs root and namespaces of its own")
        isolate.mount("tmpfs", tmp, "tmpfs", "size=80%")
        self.tmp, self.disk = Path(tmp), Path(disk)

        class Options:
            qemu, jobs = None, 1
        self.base = runner.Run(Options, tmp)
        self.failed = []
        try:
            names = {"ceph" for x in self.opts.lane if "R" in x}
            names |= {"nfs" for x in self.opts.lane if "N" in x}
            self.base.start_services(sorted(names))
            print(f"# qemu-img {self.base.install.version()}, memory but for lane D, "
                  f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; * = in a round that "
                  "did not begin idle", flush=True)
            for name in self.opts.lane:
                if name in EXTRA:
                    getattr(self, name)()
                else:
                    for data in self.opts.data or self.usual(name):
                        self.lane(name, data)
        finally:
            self.base.stop()
        if self.failed:
            raise proc.LabError("; ".join(self.failed))

    def usual(self, name):
        return ("sparse", "dense") if name in ("F-F", "F-B", "B-B") else ("sparse",)

    def lab(self):
        self.n += 1
        tmp = self.tmp / f"m{self.n}"
        tmp.mkdir()
        lab = runner.Lab(self.base.install, self.base.services, tmp)
        lab._number = self.n * 100
        return lab

    def volume(self, lab, letter, size):
        if letter == "D":
            v = FileVolume(self.disk / lab.name("v"))
            lab.storage.callback(v.remove)
            return v
        if letter == "M":
            from lab.storage import NbdVolume
            return NbdVolume(lab.nbd(size, unix=True))
        return scene.volume(lab, KINDS[letter], size)

    def lane(self, name, data):
        size, lab = self.opts.size * MiB, self.lab()
        image = self.tmp / "fill"
        fill(image, size, data)
        used = size if data in ("dense", "zero", "random") else data_of(image)
        try:
            a = self.volume(lab, name[0], size)
            if name[0] in "FD":
                proc.run(["cp", "--sparse=always" if data != "dense" else "--sparse=never",
                          image, a.path])
            else:
                a.create(lab.install, size, fill=str(image))
            b = self.volume(lab, name[2], size)
            self.rounds(lab, f"{name} {data}", a, b, used)
        finally:
            lab.end()
            if name[0] == "R":
                a.remove()
            image.unlink()
            subprocess.run(["rm", "-rf", lab.tmp], check=True)

    def rounds(self, lab, title, a, b, used):
        rivals = list(contenders(lab.install, a, b))
        limit = Limit(self.tmp, a, b, used)
        rounds = []
        try:
            for n in range(self.opts.rounds):
                order = ["qpivot", "limit", "again", *(c.name for c in rivals)]
                if a.kind == b.kind and a.kind in ("rbd", "file"):
                    order.append("qpivot, offload")
                self.random.shuffle(order)
                calm = quiet(self.opts.idle)
                found = {x: self.once(lab, x, limit, a, b, n == 0) for x in order}
                found["calm"] = calm
                rounds.append(found)
                print(f"# {title} {n + 1}/{self.opts.rounds}{'' if calm else ' *'}: " + ", ".join(
                    f"{k} {found[k]['seconds']:.3f}" for k in sorted(order)), flush=True)
        finally:
            limit.done()
        self.show(title, rounds, rivals)

    def once(self, lab, name, limit, a, b, check):
        if name == "limit":
            return {"seconds": limit.seconds()}
        self.n += 1
        clean(b, self.n)
        if not b.creatable:
            self.dirty(b)
        for v in (a, b):
            if v.kind == "block":
                flush_device(v.path)
        if name.startswith("qpivot"):
            argv = [qpivot.program(), "copy", "--quiet", "--state", str(lab.tmp / "state"),
                    a.uri(), b.uri()] + (["--existing"] if not b.creatable else [])
            argv += [] if name.endswith("offload") else ["--no-offload"]
            found = timed(argv, None)
        else:
            rivals = list(contenders(lab.install, a, b))
            c = next((c for c in rivals if c.name == name), rivals[0])
            found = timed(c.argv, c.sync)
        if check:
            content_equal(lab.install, a, b)
        if b.kind == "rbd":
            b.remove()
        return found

    def dirty(self, b):
        """Noise all over: what a target in use before has."""
        path = b.server.path if b.kind == "nbd" else b.loop.file
        noise = self.random.randbytes(4 * MiB)
        with open(path, "r+b") as f:
            for _ in range(self.opts.size * MiB // len(noise)):
                f.write(noise)
        if b.kind == "block":
            flush_device(b.path)

    def show(self, title, rounds, rivals):
        names = [c.name for c in rivals]
        for r in rounds:
            best = min(names, key=lambda n: r[n]["seconds"])
            r["best"] = dict(r[best], name=best)
        aa = statistics.median(ratios(rounds, "again", names[0], "seconds"))
        noisy = abs(aa - 1) > NOISE or not all(r["calm"] for r in rounds)
        t = Table(f"{title}, {self.opts.size} MiB{' [NOISY: not judged]' if noisy else ''}",
                  "", "time", "CPU time", "memory")
        winner = statistics.mode(r["best"]["name"] for r in rounds)
        for other, label in (("best", f"qpivot / best ({winner})"), *((n, f"qpivot / {n}")
                                                                     for n in names)):
            t.row(label, *[spread(ratios(rounds, "qpivot", other, k))
                           for k in ("seconds", "cpu", "rss")])
        if "qpivot, offload" in rounds[0]:
            t.row("qpivot by the storage itself / best", *[
                spread(ratios(rounds, "qpivot, offload", "best", k))
                for k in ("seconds", "cpu", "rss")])
        t.row(f"A/A pair ({names[0]})", *[spread(ratios(rounds, "again", names[0], k))
                                          for k in ("seconds", "cpu", "rss")])
        t.row("limit / qpivot", spread(ratios(rounds, "limit", "qpivot", "seconds")), "", "")
        t.row("(qpivot)", spread([r["qpivot"]["seconds"] for r in rounds], "{:.3f} s"),
              spread([r["qpivot"]["cpu"] for r in rounds], "{:.3f} s"),
              spread([r["qpivot"]["rss"] for r in rounds], "{:.0f} MiB"))
        t.show()

    def growth(self):
        """Time and memory of sparse files, from 1 to 64 GiB."""
        lab, rounds = self.lab(), []
        try:
            for _ in range(self.opts.rounds):
                quiet(self.opts.idle)
                rounds.append({(g, d): self.grown(lab, g, d) for g in (1, 4, 16, 64)
                               for d in (0, 64)})
        finally:
            lab.end()
            subprocess.run(["rm", "-rf", lab.tmp], check=True)
        t = Table("growth: one hole, and 64 MiB of data spread over the file", "", "time, ms",
                  "CPU time, ms", "memory, MiB")
        for key in rounds[0]:
            t.row(f"{key[0]} GiB, {key[1]} MiB of data",
                  spread([r[key]["seconds"] * 1e3 for r in rounds], "{:.1f}"),
                  spread([r[key]["cpu"] * 1e3 for r in rounds], "{:.1f}"),
                  spread([r[key]["rss"] for r in rounds], "{:.1f}"))
        t.show()
        hole = min(r[64, 0]["cpu"] for r in rounds)  # its time, on a machine of its own
        if hole > 0.05:
            self.failed.append(f"64 GiB of hole took {hole * 1e3:.0f} ms of CPU time, not 50")

    def grown(self, lab, gib, data):
        a, b = FileVolume(lab.path("a.raw")), FileVolume(lab.path("b.raw"))
        with open(a.path, "wb") as f:
            for i in range(data):
                f.seek((gib << 30) // data * i)
                f.write(os.urandom(MiB))
            f.truncate(gib << 30)
        found = timed([qpivot.program(), "copy", "--quiet", "--no-offload", "--state",
                       lab.path("state"), a.uri(), b.uri()], None)
        a.remove()
        b.remove()
        return found

    def traps(self):
        lab = self.lab()
        try:
            self.failed += traps.run(lab)
        finally:
            lab.end()
            subprocess.run(["rm", "-rf", lab.tmp], check=True)


def timed(argv, sync):
    begin = time.monotonic()
    p = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                         stderr=subprocess.PIPE)
    error = p.stderr.read()
    _, status, usage = os.wait4(p.pid, 0)
    p.returncode = os.waitstatus_to_exitcode(status)
    p.stderr.close()
    if p.returncode:
        raise proc.LabError(f"{' '.join(argv)}: exit {p.returncode}: {error.decode()[-800:]}")
    if sync:
        with open(sync, "rb") as f:
            os.fsync(f.fileno())
    return {"seconds": time.monotonic() - begin, "rss": usage.ru_maxrss / 1024,
            "cpu": usage.ru_utime + usage.ru_stime}


def flush_device(path):
    with open(path, "rb") as f:
        os.fsync(f.fileno())
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def quiet(seconds):
    """Waits for a machine that is idle; False when it never was."""
    deadline = time.monotonic() + seconds
    while True:
        before = busy()
        time.sleep(0.3)
        after = busy()
        if after[0] - before[0] <= 0.05 * (after[1] - before[1]):
            return True
        if time.monotonic() > deadline:
            return False


def busy():
    with open("/proc/stat") as f:
        t = [int(x) for x in f.readline().split()[1:9]]
    return sum(t) - t[3] - t[4], sum(t)
