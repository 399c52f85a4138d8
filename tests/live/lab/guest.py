"""The guest's kernel and initramfs.

The kernel is Debian's cloud kernel, unpacked by tools/setup, never installed.
QEMU starts it by its PVH entry: the guest need not decompress it, which takes
a sixth of its boot where TCG runs it.
The initramfs holds the writer as /init and the virtio modules, nothing else:
no shell, no udev, so that a guest writes about two seconds after power on.
"""

import hashlib
import os
import re
import shutil
import stat
import struct
import subprocess
import tempfile
from pathlib import Path

from .proc import LabError, run

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
BUILD = Path(os.environ.get("QPIVOT_LAB_BUILD", ROOT / "build-lab"))
MODULES = ("virtio_pci", "virtio_blk")
LZ4 = bytes.fromhex("02214c18")  # of the format that the kernel's makefiles use


def packed():
    found = sorted((BUILD / "kernel").glob("boot/vmlinuz-*"))
    if not found:
        raise LabError("no guest kernel: run ./tools/setup")
    return found[-1]


def kernel():
    """The kernel as an ELF file, unpacked once; as Debian has it where that is
    packed by anything but LZ4, or no lz4 is installed."""
    image = BUILD / packed().name.replace("vmlinuz", "vmlinux")
    if not image.exists():
        with open(packed(), "rb") as f:
            data = f.read()
        # Documentation/arch/x86/boot.rst: setup_sects, payload_offset and _length
        begin = (data[0x1f1] + 1) * 512 + struct.unpack_from("<I", data, 0x248)[0]
        end = begin + struct.unpack_from("<I", data, 0x24c)[0]
        if data[begin:begin + 4] != LZ4 or not shutil.which("lz4"):
            return packed()
        with tempfile.TemporaryDirectory(dir=BUILD) as tmp:
            part = Path(tmp) / "image"
            with open(part, "wb") as out:  # the size follows, which lz4 does not know
                subprocess.run(["lz4", "-dc"], input=data[begin:end - 4], stdout=out, check=True)
            part.rename(image)
    return image


def initramfs():
    """Builds the initramfs, or returns the one made from the same parts."""
    version = packed().name.split("-", 1)[1]
    modules = with_dependencies(MODULES)
    digest = hashlib.sha256(version.encode())
    digest.update((HERE / "writer.c").read_bytes())
    digest.update(Path(__file__).read_bytes())
    image = BUILD / f"initramfs-{digest.hexdigest()[:16]}.img"
    if not image.exists():
        BUILD.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=BUILD) as tmp:
            init = Path(tmp) / "init"
            run(["gcc", "-static", "-O2", "-Wall", "-Wextra", "-Werror",
                 "-pthread", "-o", init, HERE / "writer.c"])
            part = Path(tmp) / "image"
            part.write_bytes(cpio({"init": init}, modules))
            part.rename(image)
    return image


def prepare():
    """Makes what a run needs before its first test; returns lines to print."""
    return [f"guest: {kernel().name}, {initramfs().name}"]


def with_dependencies(names):
    """The kernel's files of the modules in load order.

    An unpacked package has no modules.dep (depmod writes it at installation),
    so the dependencies come from each module's own 'depends=' record.
    """
    top = BUILD / "kernel/lib/modules" / packed().name.split("-", 1)[1]
    files = {p.name[:-3].replace("-", "_"): p for p in top.rglob("*.ko")}
    order = []

    def add(name):
        if name not in files:
            return  # built into the kernel
        record = re.search(rb"\0depends=([^\0]*)\0", files[name].read_bytes())
        for other in (record.group(1).decode() if record else "").split(","):
            if other:
                add(other.replace("-", "_"))
        if files[name] not in order:
            order.append(files[name])

    for name in names:
        add(name)
    return order


def cpio(files, modules):
    """An initramfs of programs {path: file} and the modules, with a list of these."""
    out = bytearray()

    def entry(name, mode, data=b"", rdev=(0, 0)):
        fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, *rdev, len(name) + 1, 0)
        out.extend(b"070701" + b"".join(b"%08X" % f for f in fields))
        out.extend(name.encode() + b"\0")
        out.extend(b"\0" * (-len(out) % 4))
        out.extend(data)
        out.extend(b"\0" * (-len(out) % 4))

    entry("dev", stat.S_IFDIR | 0o755)
    entry("dev/console", stat.S_IFCHR | 0o600, rdev=(5, 1))
    for folder in sorted({str(p) for f in files for p in Path(f).parents} - {"."}):
        entry(folder, stat.S_IFDIR | 0o755)
    for name, path in files.items():
        entry(name, stat.S_IFREG | 0o755, Path(path).read_bytes())
    for m in modules:
        entry(m.name, stat.S_IFREG | 0o644, m.read_bytes())
    entry("modules.list", stat.S_IFREG | 0o644,
          "".join(f"/{m.name}\n" for m in modules).encode())
    entry("TRAILER!!!", 0)
    return bytes(out)
