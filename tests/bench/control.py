"""tools/bench control: the QMP library against the least that C can do."""

import json
import random
import resource
import subprocess
from pathlib import Path

from lab import isolate, proc
from lab.proc import Proc
from table import Table, ratios, spread

CHATTING = 1000  # as in bench-qmp.c
LISTENERS = 16  # a listener's queue holds at most 4096 clients


class Control:
    def __init__(self, opts, build):
        self.opts, self.folder = opts, Path(build) / "tests/bench"
        self.random = random.Random(1)

    def run(self):
        tmp, self.alive = isolate.folder("qpb-")
        if not isolate.enter():
            print("# no namespaces here: running in the system's own")
        self.tmp = Path(tmp)
        self.one()
        for n in self.opts.monitors:
            self.fan(n)

    def bench(self, *argv):
        return json.loads(proc.run([self.folder / "bench-qmp", *argv], seconds=120))

    def rounds(self, kinds, *argv):
        found = []
        for _ in range(self.opts.rounds):
            order = list(kinds)
            self.random.shuffle(order)
            found.append({k: self.bench(k, *argv) for k in order})
        return found

    def one(self):
        path = self.tmp / "qsd"
        server = Proc(["qemu-storage-daemon", "--chardev",
                       f"socket,id=c,path={path},server=on,wait=off",
                       "--monitor", "chardev=c"], self.tmp / "qsd.log")
        try:
            server.wait_for("the daemon's monitor", path.exists)
            found = self.rounds(("raw", "raw-oob", "library"), path, self.opts.seconds)
        finally:
            server.stop()
        t = Table("one real monitor (qemu-storage-daemon), query-version one after the other",
                  "", "round trips/s", "CPU per round trip")
        self.show(t, found, "raw-oob", "library", also=["raw"])

    def show(self, t, found, raw, library, *more, also=()):
        def column(key, form, a=None):
            return spread([r[a][key] for r in found], form)
        t.row("library / raw C", *[spread(ratios(found, library, raw, k))
                                   for k in ("rt_per_s", "cpu_us", *more)])
        for k in (*also, raw, library):
            t.row(f"({k})", column("rt_per_s", "{:.0f}", k), column("cpu_us", "{:.1f} us", k),
                  *[column(m, "{:.2f} s", k) for m in more])
        t.show()

    def fan(self, wanted):
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        n = min(wanted, limit - 128)
        if n < wanted:
            print(f"# only {limit} open files are allowed here: {n} monitors, not {wanted}")
        self.fan_out(n)
        if n > CHATTING:
            self.events(n)

    def events(self, n):
        found = self.with_fakes(n, ("library-events",), "events")
        def delay(key):
            return spread([r["library-events"][key] * 1e6 for r in found], "{:.0f}")
        print(f"  an event to its handler, {n - CHATTING} idle, {CHATTING} asked four times"
              f" a second: p50 {delay('event_p50')} us, p99 {delay('event_p99')} us", flush=True)

    def with_fakes(self, n, kinds, *options):
        folder = self.tmp / ("fake{}{}".format(n, "".join(options)))
        folder.mkdir()
        fakes = Proc([self.folder / "fake-monitors", folder, LISTENERS, *options],
                     self.tmp / "fake.log", stdout=subprocess.PIPE)
        try:
            if fakes.popen.stdout.readline() != b"ready\n":
                raise proc.LabError(fakes.tail())
            return self.rounds(kinds, folder, LISTENERS, n, self.opts.seconds)
        finally:
            fakes.stop()

    def fan_out(self, n):
        found = self.with_fakes(n, ("raw-fan", "library-fan"))
        t = Table(f"{n} fake monitors on one loop, one command under way on each",
                  "", "round trips/s", "CPU per round trip", "attach all")
        self.show(t, found, "raw-fan", "library-fan", "attach_s")
        idle = [(r["library-fan"]["rss_idle"] - r["library-fan"]["rss_before"]) / n / 1024
                for r in found]
        total = [r["library-fan"]["rss_idle"] / (1 << 20) for r in found]
        print(f"  memory (RSS): {spread(idle, '{:.1f}')} KiB an idle attached monitor, "
              f"{spread(total, '{:.1f}')} MiB in all", flush=True)
