"""What the machine could do at best in that moment: the limit line of a lane.

fio reads and writes as many bytes at once as a lane does, without holes, maps
or digests, in the storage's own best way; where it has no engine, as many
bytes go through a socket."""

import json
import os
import socket
import time

from lab import proc
from lab.storage import MiB

CHUNK = 1 << 18


class Limit:
    def __init__(self, tmp, a, b, n):
        self.tmp, self.a, self.b, self.bytes = tmp, a, b, n // MiB * MiB

    def seconds(self):
        sides = [("read", self.a), ("write", self.b)]
        jobs = [job for what, v in sides for job in self.job(what, v)]
        found = self.fio(jobs) if jobs else 0
        for _, v in sides:
            if v.kind in ("nfs", "nbd"):
                found = max(found, through_socket(self.bytes, v.kind == "nfs"))
        for f in self.tmp.glob("limit-*"):
            f.unlink()
        return found

    def job(self, what, v):
        more = {"rw": what, "size": self.bytes, "bs": MiB, "name": what, "iodepth": 8,
                "end_fsync": 1, "group_reporting": 0}
        if v.kind == "rbd":
            return self.rbd(what, v, more)
        if v.kind == "block":
            return [dict(more, ioengine="io_uring", direct=1, filename=v.path)]
        if v.kind in ("nfs", "nbd"):
            return []
        path = os.path.join(self.tmp, f"limit-{what}")
        if what == "read":
            with open(path, "wb") as f:
                piece = os.urandom(MiB)
                for _ in range(self.bytes // MiB):
                    f.write(piece)
                os.fsync(f.fileno())
        return [dict(more, ioengine="psync", filename=path, bs=CHUNK, fallocate="none",
                     create_on_open=1, invalidate=0)]

    def rbd(self, what, v, more):
        c, name = v.cluster, f"limit-{what}-{os.getpid()}"
        if name not in c.images():
            c.rbd("create", "--size", f"{self.bytes // MiB}M", f"{c.pool}/{name}")
            if what == "read":
                c.rbd("bench", "--io-type", "write", "--io-size", "4M", "--io-total",
                      str(self.bytes), f"{c.pool}/{name}")
        self.conf = c.conf
        return [dict(more, ioengine="rbd", clientname="admin", pool=c.pool, rbdname=name,
                     bs=4 * MiB, iodepth=32)]

    def done(self):
        for v in (self.a, self.b):
            if v.kind == "rbd":
                for what in ("read", "write"):
                    v.cluster.rbd("rm", f"{v.cluster.pool}/limit-{what}-{os.getpid()}", ok=None)

    def fio(self, jobs):
        argv = ["fio", "--output-format=json", "--thread"]
        for job in jobs:
            name = job.pop("name")
            argv += [f"--name={name}"] + [f"--{k}={v}" for k, v in job.items()]
        env = dict(os.environ, CEPH_CONF=getattr(self, "conf", ""))
        text = proc.run(argv, seconds=300, env=env, cwd=self.tmp)
        found = json.loads(text[text.index("{"):])["jobs"]
        return max(max(j["job_runtime"] for j in found), 1) / 1e3


def through_socket(n, tcp):
    if tcp:
        server = socket.create_server(("127.0.0.1", 0))
        a = socket.create_connection(server.getsockname())
        b = server.accept()[0]
        server.close()
    else:
        a, b = socket.socketpair()
    child = os.fork()
    if child == 0:
        piece = bytes(CHUNK)
        for _ in range(n // CHUNK):
            a.sendall(piece)
        os._exit(0)
    a.close()
    begin, left, buffer = time.monotonic(), n // CHUNK * CHUNK, bytearray(CHUNK)
    while left > 0:
        left -= b.recv_into(buffer)
    os.waitpid(child, 0)
    b.close()
    return time.monotonic() - begin
