"""Says whether a volume holds every write that the guest was told is durable.

This is the host's half of the oracle; writer.c is the guest's.  The place of
a write follows from its number alone, so the expected content is known from
one acknowledged number, and each block carries its own checksum, disk and
offset: a missing, torn, misplaced or foreign block is told apart from a good
one without any help from the program under test.
"""

import base64
import re
import struct
import zlib

BLOCK = 4096
EXTENTS = 4
MAGIC = 0x4B434F4C424C5051
M64 = (1 << 64) - 1


def mix(x):
    x = (x + 0x9E3779B97F4A7C15) & M64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & M64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & M64
    return x ^ (x >> 31)


class Region:
    """Where the writer writes on one disk."""

    def __init__(self, name, size, n_blocks):
        self.name, self.size, self.n_blocks = name, size, n_blocks
        self.key = zlib.crc32(name.encode())

    def index(self, seq):
        return mix(seq ^ (self.key << 32)) % self.n_blocks

    def offset(self, index):
        per = self.n_blocks // EXTENTS
        k = index // per
        room = self.size - per * BLOCK
        start = room if k == EXTENTS - 1 else room // (EXTENTS - 1) * k
        return start // BLOCK * BLOCK + index % per * BLOCK

    def table(self, acked, begin=None):
        """The table after 'acked' writes; 'begin' is an older table."""
        table = list(begin) if begin else [0] * self.n_blocks
        for seq in range(max(table) + 1, acked + 1):
            table[self.index(seq)] = seq
        return table

    def digest(self, table):
        d = 0
        for i, seq in enumerate(table):
            if seq:
                d ^= mix((i << 40) ^ seq)
        return d

    def read(self, raw):
        """Yields (index, seq) of each block of an open raw file; seq is None
        for a block that is neither blank nor good."""
        for i in range(self.n_blocks):
            raw.seek(self.offset(i))
            yield i, self._seq(raw.read(BLOCK), self.offset(i))

    def _seq(self, data, offset):
        if not data.strip(b"\0"):
            return 0
        if len(data) != BLOCK:
            return None
        magic, crc, key, seq, at = struct.unpack_from("<QIIQQ", data)
        bare = data[:8] + b"\0\0\0\0" + data[12:]
        if (magic, key, at) != (MAGIC, self.key, offset) or zlib.crc32(bare) != crc:
            return None
        return seq


class Verdict:
    """What check() found; true when nothing is wrong."""

    def __init__(self):
        self.lost, self.torn, self.newer = [], [], []
        self.good = self.blank = 0  # as they must be, the latter never written

    def __bool__(self):
        return not (self.lost or self.torn or self.newer)

    def __str__(self):
        return "%d good, %d never written, %d lost, %d torn, %d from the future%s" % (
            self.good, self.blank, len(self.lost), len(self.torn), len(self.newer),
            "".join(f"; {w} {v[:3]}" for w, v in (
                ("lost", self.lost), ("torn", self.torn), ("future", self.newer))
                if v))


def check(raw, region, table, last):
    """Compares a raw file with the acknowledged table.

    'last' is the highest number the writer may have handed to the disk: a
    block may be newer than acknowledged (the guest died before it heard), but
    only by such a write and only where that write belongs.
    """
    v = Verdict()
    for i, seq in region.read(raw):
        if seq is None:
            v.torn.append((i, table[i]))
        elif seq == table[i] == 0:
            v.blank += 1
        elif seq == table[i]:
            v.good += 1
        elif seq < table[i]:
            v.lost.append((i, table[i], seq))
        elif seq <= last and region.index(seq) == i:
            v.good += 1
        else:
            v.newer.append((i, table[i], seq))
    return v


STAT = re.compile(r" (\S+?)=seq:(\d+),acked:(\d+),errors:(\d+),maxgap_ms:(\d+),"
                  r"stall_ms:(\d+),digest:([0-9a-f]{16})")


def parse_stat(line):
    """{disk: {seq, acked, errors, maxgap_ms, stall_ms, digest}}"""
    return {m[1]: dict(seq=int(m[2]), acked=int(m[3]), errors=int(m[4]),
                       maxgap_ms=int(m[5]), stall_ms=int(m[6]),
                       digest=int(m[7], 16))
            for m in STAT.finditer(line)}


def parse_table(line, tables):
    """Adds one 'WL table' line of a dump to tables."""
    _, _, name, at, n, crc, text = line.split()
    if zlib.crc32(text.encode()) != int(crc, 16):
        raise ValueError("console garbled: " + line[:60])
    raw = base64.b64decode(text + "=" * (-len(text) % 4))
    values = struct.unpack_from(f"<{int(n)}I", raw)
    table = tables.setdefault(name, [])
    if len(table) != int(at):
        raise ValueError("console lost a line before " + line[:60])
    table.extend(values)
