"""Volumes: one class a storage kind, each able to tell QEMU, qpivot and the
independent reader how it is reached.

node()   the -blockdev / blockdev-add description
drive()  the same as -drive options
uri()    what qpivot's command line calls it
"""

import json
import os
from pathlib import Path

from .proc import run

MiB = 1 << 20


class Volume:
    """format raw or qcow2 over the protocol node that a kind describes."""

    kind = None
    fmt = "raw"
    creatable = True  # the program under test can create one of this kind

    def protocol(self):
        raise NotImplementedError

    def node(self, name=None, child=None):
        p, n = self.protocol(), {"driver": self.fmt}
        if child:
            p["node-name"] = child
        if name:
            n["node-name"] = name
        return dict(n, file=p)

    def json(self):
        """A file name that qemu-img takes for any kind."""
        return "json:" + json.dumps(dict(self.node()))

    def drive(self):
        raise NotImplementedError

    def query(self, *more):
        q = [f"format={self.fmt}"] if self.fmt != "raw" else []
        q += [m for m in more if m]
        return "?" + "&".join(q) if q else ""

    def create(self, install, size, fill=None):
        """Makes the volume; fill is a raw file that becomes its content."""
        if fill:
            install.img("convert", "-n" if self.exists() else "-W", "-f", "raw",
                        "-O", self.fmt, fill, self.image_name())
        else:
            install.img("create", "-q", "-f", self.fmt, self.image_name(), str(size))
        return self

    def image_name(self):
        raise NotImplementedError

    def read(self, install, tmp, share=False):
        """Copies the content into a raw file by a reader of its own and
        returns that file's path."""
        out = str(Path(tmp) / f"read-{id(self):x}.raw")
        install.img(*(["convert", "-U"] if share else ["convert"]),
                    "-O", "raw", self.json(), out, seconds=120)
        return out

    def size(self, install):
        return json.loads(install.img("info", "-U", "--output=json", self.json()))["virtual-size"]

    def mark(self):
        """Text by which QEMU's own description of the volume is known."""
        return self.path

    def __str__(self):
        return f"{self.kind}:{self.fmt}" if self.fmt != "raw" else self.kind


class FileVolume(Volume):
    kind = "file"

    def __init__(self, path, fmt="raw", direct=False):
        self.path, self.fmt, self.direct = str(path), fmt, direct

    def protocol(self):
        p = {"driver": "file", "filename": self.path}
        if self.direct:
            p["cache"] = {"direct": True}
        return p

    def drive(self):
        return f"file={self.path},format={self.fmt}" + (",cache=none" if self.direct else "")

    def uri(self, *more):
        return self.path + self.query(*more)

    def image_name(self):
        return self.path

    def exists(self):
        return os.path.exists(self.path)

    def allocated(self):
        return os.stat(self.path).st_blocks * 512

    def remove(self):
        if self.exists():
            os.unlink(self.path)


class NfsVolume(FileVolume):
    """A file on the lab's NFS server, through QEMU's own nfs driver.  What
    the server exports is a local folder, which gives a reader beside it."""

    kind = "nfs"

    def __init__(self, server, name, fmt="raw"):
        super().__init__(Path(server.export) / name, fmt)
        self.server, self.name = server, name

    def protocol(self):
        return {"driver": "nfs", "server": {"type": "inet", "host": self.server.host},
                "path": self.path}

    def drive(self):
        return f"file=nfs://{self.server.host}{self.path},format={self.fmt}"

    def uri(self, *more):
        return f"nfs://{self.server.host}{self.path}" + self.query(*more)


class RbdVolume(Volume):
    kind = "rbd"

    def __init__(self, cluster, name, fmt="raw", keyed=False):
        """keyed: its URI names the keyring, so that QEMU needs a secret."""
        self.cluster, self.name, self.fmt = cluster, name, fmt
        self.key = ("id=admin", f"keyring={cluster.keyring}") if keyed else ()

    def protocol(self):
        return {"driver": "rbd", "pool": self.cluster.pool, "image": self.name,
                "conf": self.cluster.conf}

    def drive(self):
        return f"file={self.image_name()},format={self.fmt}"

    def image_name(self):
        return f"rbd:{self.cluster.pool}/{self.name}:conf={self.cluster.conf}"

    def uri(self, *more):
        return f"rbd:{self.cluster.pool}/{self.name}" + self.query(
            f"conf={self.cluster.conf}", *self.key, *more)

    def mark(self):
        return self.name

    def exists(self):
        return self.name in self.cluster.images()

    def allocated(self):
        return self.cluster.allocated(self.name)

    def remove(self):
        self.cluster.rbd("rm", f"{self.cluster.pool}/{self.name}", ok=None)


class BlockVolume(Volume):
    """A loop device; the folder's file behind it is the reader beside it."""

    kind = "block"
    creatable = False

    def __init__(self, loop):
        self.loop, self.path = loop, loop.path

    def protocol(self):
        return {"driver": "host_device", "filename": self.path}

    def drive(self):
        return f"file={self.path},format=raw"

    def uri(self, *more):
        return f"block:{self.path}" + self.query(*more)

    def image_name(self):
        return self.path

    def exists(self):
        return True

    def create(self, install, size, fill=None):
        if fill:
            install.img("convert", "-n", "-f", "raw", "-O", "raw", fill, self.path)
        return self


class NbdVolume(Volume):
    kind = "nbd"
    creatable = False

    def __init__(self, server):
        self.server = server

    def protocol(self):
        s = self.server
        where = ({"type": "unix", "path": s.socket} if s.socket else
                 {"type": "inet", "host": "127.0.0.1", "port": str(s.port)})
        return {"driver": "nbd", "server": where, "export": s.export}

    def drive(self):
        s = self.server
        if s.socket:
            return f"file=nbd+unix:///{s.export}?socket={s.socket},format=raw"
        return f"file=nbd://127.0.0.1:{s.port}/{s.export},format=raw"

    def uri(self, *more):
        s, q = self.server, self.query(*more)
        if s.socket:
            return f"nbd+unix:///{s.export}?socket={s.socket}" + q.replace("?", "&")
        return f"nbd://127.0.0.1:{s.port}/{s.export}" + q

    def mark(self):
        return self.server.socket or f":{self.server.port}/"

    def exists(self):
        return True

    def create(self, install, size, fill=None):
        if fill:
            # In place: qemu-nbd listens before it has opened the file, and takes
            # whatever size that has then.
            run(["dd", f"if={fill}", f"of={self.server.path}", "bs=64K",
                 "conv=notrunc,sparse", "status=none"])
        return self

    def read(self, install, tmp, share=False):
        # The file behind the server: a 7.2 qemu-nbd takes 40 ms for each
        # change between data and hole when read over TCP.
        return FileVolume(self.server.path).read(install, tmp, share=True)


class Placeholder(Volume):
    """Nothing, of a size: what a destination's device is started on."""

    kind = "placeholder"
    creatable = False

    def __init__(self, size):
        self.bytes = size

    def node(self, name=None, child=None):
        return {"driver": "null-co", "size": self.bytes, "read-zeroes": True,
                **({"node-name": name} if name else {})}

    def drive(self):
        return f"driver=null-co,size={self.bytes},read-zeroes=on"


def byte_equal(install, a, b, share=False):
    """True when two volumes hold the same bytes.  As qemu-img compare has it,
    one may be longer by zeroes only."""
    argv = ["compare"] + (["-U"] if share else []) + [a.json(), b.json()]
    return "Images are identical" in install.img(*argv, seconds=120, ok=(0, 1))
