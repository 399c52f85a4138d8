"""Two hosts, each in a network of its own, and a cable between them.

Only the network is apart: /proc and the files are those of one host.  So the
monitors can be had in two ways: over the cable (tcp), which a cut takes away
with the data, or past it (unix sockets), as by a network for management."""

import sys
from pathlib import Path

from .pair import Destination, Pair
from .proc import run

HOSTS = {"source": "10.77.0.1", "destination": "10.77.0.2"}
PORT = 4444


class Link:
    def __init__(self, lab):
        self.names = {side: lab.name(side[:3]) for side in HOSTS}
        for side, name in self.names.items():
            run(["ip", "netns", "add", name])
        src, dst = self.names["source"], self.names["destination"]
        run(["ip", "link", "add", "cable", "netns", src, "type", "veth",
             "peer", "name", "cable", "netns", dst])
        for side, name in self.names.items():
            run(["ip", "-n", name, "address", "add", f"{HOSTS[side]}/24", "dev", "cable"])
            for device in ("lo", "cable"):
                run(["ip", "-n", name, "link", "set", device, "up"])

    def on(self, side):
        """Prefix for a program that is to run on a host."""
        return ["nsenter", f"--net=/run/netns/{self.names[side]}", "--"]

    def switch(self, state):
        """The command that cuts the cable ("down"), or mends it ("up")."""
        return ["ip", "-n", self.names["destination"], "link", "set", "cable", state]

    def slow(self, rate):
        """What leaves the source from now on: so much, as tc(8) has it."""
        run(["tc", "-n", self.names["source"], "qdisc", "add", "dev", "cable", "root",
             "tbf", "rate", rate, "burst", "64kb", "latency", "50ms"])

    def cut(self):
        run(self.switch("down"))

    def mend(self):
        run(self.switch("up"))

    def stop(self):
        for name in self.names.values():
            run(["ip", "netns", "delete", name], ok=None)


class FarPair(Pair):
    """A Pair on two hosts.  engine: the host that qpivot runs on, then the
    monitors are reached over the cable; None: past it."""

    def __init__(self, lab, kinds, to=None, engine=None, **kw):
        self.link, self.engine = lab.ends(Link(lab)), engine
        super().__init__(lab, kinds, to, prefix=self.link.on("source"),
                         argv=["-qmp", f"tcp:0.0.0.0:{PORT},server=on,wait=off"], **kw)

    def destination(self, **kw):
        return Destination(self.src, self.there, self.lab.name("dst"),
                           prefix=self.link.on("destination"), **kw)

    def turn_round(self, to):
        raise NotImplementedError("the hosts' roles are fixed")

    def monitor(self, side):
        if self.engine:
            return f"tcp:{HOSTS[side]}:{PORT}"
        return (self.src if side == "source" else self.dst).qmp_path

    def before(self, word, command, after=False):
        """The address of the source's monitor by a relay that runs a command
        once, right before the first line with the word goes to QEMU, or right
        after."""
        armed = self.lab.path(self.lab.name("armed"))
        open(armed, "w").close()
        address = self.monitor("source")
        words = [sys.executable, str(Path(__file__).with_name("relay.py")), armed, address,
                 word, "after" if after else "before", *command]
        return "exec:exec " + " ".join(f"'{w}'" for w in words)

    def start(self, *options, source=None, **kw):
        ways = [f"{d}={'nbd' if d in self.to else 'share'}" for d in self.now]
        argv = ["migrate", "--json", "--qmp", source or self.monitor("source"),
                "--to", self.monitor("destination"), "--address", HOSTS["destination"],
                "--trace", self.lab.path(f"migrate{self.lab.qpivot.n}.trace"),
                *[word for way in ways for word in ("--disk", way)], *options]
        return self.lab.qpivot.start(*argv, prefix=self.there_is(self.engine), **kw)

    def there_is(self, engine):
        return self.link.on(engine) if engine else ()

    def recover(self, *options, engine=None, seconds=120):
        return self.lab.qpivot.run("recover", "--json", *options, seconds=seconds,
                                   prefix=self.there_is(engine or self.engine))

