"""Loop devices that detach by themselves.

The device is attached with LO_FLAGS_AUTOCLEAR and held open by this process:
when the last holder closes it, at the latest when the process dies, the
kernel detaches it.  Nothing can be left behind.
"""

import fcntl
import os
import stat
import struct

from .proc import LabError, wait_for

LOOP_CONFIGURE = 0x4C0A
LOOP_CTL_GET_FREE = 0x4C82
LOOP_SET_CAPACITY = 0x4C07
LO_FLAGS_AUTOCLEAR = 4
LO_FLAGS_DIRECT_IO = 16


class Loop:
    def __init__(self, path, size=None, sector=0):
        """sector: bytes of a block of the device, 0: 512."""
        if size is not None:
            with open(path, "ab") as f:
                f.truncate(size)
        self.file = str(path)
        backing = os.open(self.file, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._attach(backing, sector)
        finally:
            os.close(backing)

    def _attach(self, backing, sector):
        info = struct.pack("<5Q4I64s64s32s2Q", 0, 0, 0, 0, 0, 0, 0, 0,
                           LO_FLAGS_AUTOCLEAR, self.file.encode()[-63:], b"", b"", 0, 0)
        config = struct.pack("<II", backing, sector) + info.ljust(232, b"\0") + b"\0" * 64
        for _ in range(50):  # another process may take the free one first
            with open("/dev/loop-control", "rb+", buffering=0) as ctl:
                n = fcntl.ioctl(ctl, LOOP_CTL_GET_FREE)
            path = f"/dev/loop{n}"
            if not os.path.exists(path):
                os.mknod(path, 0o600 | stat.S_IFBLK, os.makedev(7, n))
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(fd, LOOP_CONFIGURE, config)
            except OSError as e:
                os.close(fd)
                if e.errno != 16:
                    raise LabError(f"{path}: {e}") from e
                continue
            self.fd, self.path, self.number = fd, path, n
            return
        raise LabError("no free loop device")

    def resize(self, size):
        os.truncate(self.file, size)
        fcntl.ioctl(self.fd, LOOP_SET_CAPACITY)

    def attached(self):
        try:
            with open(f"/sys/block/loop{self.number}/loop/backing_file") as f:
                return f.read().strip().startswith(self.file)
        except FileNotFoundError:
            return False

    def stop(self):
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None
            wait_for(f"{self.path} to detach", lambda: not self.attached(), 10)
