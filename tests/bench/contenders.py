"""What one would use instead of 'qpivot copy': for each pair of storage kinds
a set of programs with the options that are best for it.  All of them end with
the data on stable storage, or are followed by a sync of the target that counts
as theirs."""

from lab import proc
from lab.storage import MiB

TUNED = ["-W", "-m", "16"]
DIRECT = ["-t", "none", "-T", "none", *TUNED]


class Contender:
    """argv: of one program; sync: a file to be synced after it."""

    def __init__(self, name, argv, sync=None):
        self.name, self.argv, self.sync = name, [str(a) for a in argv], sync


def qemu_img(name, install, a, b, *options):
    there = ["-n"] if not b.creatable else []
    return Contender(name, [install.path("qemu-img"), "convert", *there, *options, "-f", a.fmt,
                            "-O", b.fmt, image(a), image(b)],
                     b.path if b.kind == "file" else None)


def image(volume):
    if volume.kind == "nfs":
        return f"nfs://{volume.server.host}{volume.path}"
    if volume.kind == "nbd":
        return f"nbd+unix:///{volume.server.export}?socket={volume.server.socket}"
    return volume.image_name()


def nbd_side(install, volume):
    """How nbdcopy names it, or None."""
    if volume.kind == "nbd":
        return [image(volume)]
    if volume.fmt == "qcow2":
        return ["[", install.path("qemu-nbd"), "-f", "qcow2", "--discard=unmap", volume.path, "]"]
    return [volume.path] if volume.kind in ("file", "block") else None


def contenders(install, a, b):
    """The first one is run twice a round, as the A/A pair."""
    yield qemu_img("qemu-img", install, a, b, "-t", "writeback", *TUNED)
    if a.kind != "nfs" and b.kind != "nfs":  # QEMU's nfs driver has no O_DIRECT
        yield qemu_img("qemu-img direct", install, a, b, *DIRECT)
    yield qemu_img("qemu-img default", install, a, b, "-t", "writeback")
    left, right = nbd_side(install, a), nbd_side(install, b)
    if left and right and b.fmt == "raw":
        yield Contender("nbdcopy", ["nbdcopy", "--flush", "--", *left, *right])
    if a.kind == "file" and b.kind == "file" and a.fmt == b.fmt:
        yield Contender("cp", ["cp", "--sparse=always", "--reflink=never", a.path, b.path], b.path)
    if a.kind in ("file", "block") and b.kind == "block" and a.fmt == "raw":
        flags = ["iflag=direct"] if a.kind == "block" else []
        yield Contender("dd", ["dd", f"if={a.path}", f"of={b.path}", "bs=1M", "oflag=direct",
                               "conv=fsync,notrunc", "status=none", *flags])
    yield from rbd(a, b)


def rbd(a, b):
    tool = ["rbd", "--no-progress"]
    if a.kind == "rbd":
        tool += ["-c", a.cluster.conf]
        if b.kind == "rbd":
            both = [f"{x.cluster.pool}/{x.name}" for x in (a, b)]
            yield Contender("rbd deep cp", [*tool, "deep", "cp", *both])
            yield Contender("rbd cp", [*tool, "cp", *both])
        elif b.kind == "file" and b.fmt == "raw":
            yield Contender("rbd export", [*tool, "export", f"{a.cluster.pool}/{a.name}", b.path],
                            b.path)
    elif b.kind == "rbd" and a.kind == "file" and a.fmt == "raw":
        yield Contender("rbd import", [*tool, "-c", b.cluster.conf, "import", a.path,
                                       f"{b.cluster.pool}/{b.name}"])


def clean(b, n):
    """The target as each one finds it; an NFS server remembers names that
    were removed beside it, so it gets a new one."""
    if b.creatable:
        b.remove()
    if b.kind == "nfs":
        b.path = f"{b.server.export}/target-{n}"


def content_equal(install, a, b):
    text = install.img("compare", "-f", a.fmt, "-F", b.fmt, image(a), image(b),
                       ok=(0, 1), seconds=300)
    if "identical" not in text:
        raise proc.LabError(f"{b} is not what {a} is: {text}")


def data_of(path):
    """How many bytes of a file are data, by its map."""
    import os
    found, at = 0, 0
    with open(path, "rb") as f:
        while True:
            try:
                at = os.lseek(f.fileno(), at, os.SEEK_DATA)
            except OSError:
                return max(found, MiB)
            end = os.lseek(f.fileno(), at, os.SEEK_HOLE)
            found, at = found + end - at, end
