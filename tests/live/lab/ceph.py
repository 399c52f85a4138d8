"""A Ceph cluster of one monitor, one manager and one OSD in memory, cephx on.

Every key is made before the first daemon runs and put into the monitor's
first keyring, so that nothing needs the slow 'ceph' program but three
commands, and those go through one run of it.
"""

import json
import os
import uuid
from pathlib import Path

from .proc import Proc, can_connect, free_port, run, wait_for

# The read lease of a placement group (heartbeat grace times the ratio, 16 s if
# not told otherwise) is longer than any test stops the OSD: once it is over, a
# pool of size 1 has no replica whose answer would renew it, and each request
# waits for ever.
CONF = """[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{v2},v1:127.0.0.1:{v1}]
mon initial members = a
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
run dir = {tmp}
admin socket = {tmp}/$cluster-$name.asok
log file = {tmp}/$cluster-$name.log
crash dir = {tmp}/crash
log to stderr = false
err to stderr = true
public addr = 127.0.0.1
cluster addr = 127.0.0.1
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pgp num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd pool default read lease ratio = 60
mon allow pool size one = true
mon warn on pool no redundancy = false
mon data avail crit = 1
mon data avail warn = 1
osd objectstore = memstore
memstore device bytes = {size}
osd max object name len = 256
osd max object namespace len = 64
paxos propose interval = 0.02
paxos min wait = 0.01
mon tick interval = 1
rbd default features = 61
[mon]
mon data = {tmp}/mon
mgr initial modules =
[mgr]
mgr data = {tmp}/mgr
mgr module path = {tmp}/no-modules
[osd]
osd data = {tmp}/osd
[client]
log file = {tmp}/client.$pid.$cctid.log
keyring = {tmp}/client.keyring
"""


class Ceph:
    pool = "rbd"

    def __init__(self, tmp, size=4 << 30):
        self.tmp = Path(tmp)
        self.tmp.mkdir(parents=True, exist_ok=True)
        self.size = size
        self.conf = str(self.tmp / "ceph.conf")
        self.keyring = str(self.tmp / "client.keyring")
        self.procs = []

    def start(self):
        t = self.tmp
        (t / "no-modules").mkdir()
        v2 = free_port()
        v1 = free_port()
        self.mon = ("127.0.0.1", v1)
        fsid, osd = str(uuid.uuid4()), str(uuid.uuid4())
        Path(self.conf).write_text(CONF.format(fsid=fsid, v1=v1, v2=v2, tmp=t, size=self.size))
        for f in ("mon", "mgr", "osd"):
            (t / f).mkdir()
        self._keys()
        run(["monmaptool", "--create", "--fsid", fsid, "--addv", "a",
             f"[v2:127.0.0.1:{v2},v1:127.0.0.1:{v1}]", t / "monmap"])
        run(["ceph-mon", "-c", self.conf, "--mkfs", "-i", "a", "--monmap",
             t / "monmap", "--keyring", t / "mon.keyring"])
        self.mon_daemon = self._daemon("ceph-mon", "a")
        self.mon_daemon.wait_for("ceph-mon", lambda: can_connect(self.mon))
        self._daemon("ceph-mgr", "x")
        # 'osd new' gives the number 0 to our OSD; its key goes with it.
        secret = {"cephx_secret": self.key(t / "osd/keyring", "osd.0")}
        (t / "osd.json").write_text(json.dumps(secret))
        self.ceph("osd", "new", osd, "0", "-i", t / "osd.json")
        run(["ceph-osd", "-c", self.conf, "-i", "0", "--mkfs", "--osd-uuid", osd,
             "--keyring", t / "osd/keyring"])
        self.osd = self._daemon("ceph-osd", "0")
        self.ceph("osd", "pool", "create", self.pool, "8")
        wait_for("the OSD to serve the pool", self._serves, 30)
        self.rbd("pool", "init", self.pool)
        return self

    def _keys(self):
        t = self.tmp
        mon, client = t / "mon.keyring", self.keyring
        tool = "ceph-authtool"
        run([tool, "-C", mon, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *"])
        run([tool, "-C", client, "--gen-key", "-n", "client.admin", "--cap", "mon",
             "allow *", "--cap", "osd", "allow *", "--cap", "mgr", "allow *"])
        run([tool, "-C", t / "mgr/keyring", "--gen-key", "-n", "mgr.x", "--cap", "mon",
             "allow profile mgr", "--cap", "osd", "allow *"])
        run([tool, "-C", t / "osd/keyring", "--gen-key", "-n", "osd.0", "--cap", "mon",
             "allow profile osd", "--cap", "osd", "allow *", "--cap", "mgr",
             "allow profile osd"])
        for k in (client, t / "mgr/keyring"):
            run([tool, mon, "--import-keyring", k])

    def key(self, keyring=None, name="client.admin"):
        return run(["ceph-authtool", keyring or self.keyring, "-n", name, "--print-key"]).strip()

    def _daemon(self, program, id):
        p = Proc([program, "-c", self.conf, "-i", id, "-f"], self.tmp / f"{program}.out")
        self.procs.append(p)
        return p

    def _serves(self):
        self.osd.check_alive()
        try:
            self.rados("ls", seconds=5)
        except Exception:
            return False
        return True

    def ceph(self, *argv, **kw):
        return run(["ceph", "-c", self.conf, "--connect-timeout", "10", *argv], **kw)

    def rados(self, *argv, **kw):
        return run(["rados", "-c", self.conf, "-p", self.pool, *argv], **kw)

    def rbd(self, *argv, **kw):
        return run(["rbd", "-c", self.conf, *argv], **kw)

    def images(self):
        return self.rbd("ls", self.pool).split()

    def allocated(self, image):
        """Bytes of the image's data objects that exist."""
        info = json.loads(self.rbd("info", "--format", "json", f"{self.pool}/{image}"))
        n = sum(o.startswith(info["block_name_prefix"]) for o in self.rados("ls").split())
        return n * info["object_size"]

    def connections(self, pid):
        """How many a process has made: each has a log of its own."""
        return len(list(self.tmp.glob(f"client.{pid}.*.log")))

    def user(self, name, caps="profile rbd"):
        """A further client; returns the path of its keyring."""
        path = self.tmp / f"client.{name}.keyring"
        self.ceph("auth", "get-or-create", f"client.{name}", "mon", "profile rbd",
                  "osd", caps, "-o", path)
        return str(path)

    def stop(self):
        for p in reversed(self.procs):
            p.kill()
