"""A tiny QMP client for the test's own observations (and for planting faults)."""

import json
import socket
import time

from .proc import LabError, SCALE, Timeout


class QmpError(LabError):
    """QEMU refused a command."""

    def __init__(self, command, error):
        super().__init__(f"{command}: {error['class']}: {error['desc']}")
        self.desc = error["desc"]


class Qmp:
    def __init__(self, address, seconds=10, oob=False):
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        self.sock.settimeout(seconds * SCALE)
        self.sock.connect(address)
        self.buffer = b""
        self.events = []
        self.serial = 0
        self.greeting = self._read(time.monotonic() + seconds * SCALE)["QMP"]
        self.cmd("qmp_capabilities", **({"enable": ["oob"]} if oob else {}))

    def close(self):
        self.sock.close()

    def _read(self, deadline):
        while b"\n" not in self.buffer:
            left = deadline - time.monotonic()
            if left <= 0:
                raise Timeout("no answer from QMP")
            self.sock.settimeout(left)
            try:
                data = self.sock.recv(1 << 20)
            except socket.timeout:
                raise Timeout("no answer from QMP") from None
            if not data:
                raise LabError("QMP connection closed")
            self.buffer += data
        line, self.buffer = self.buffer.split(b"\n", 1)
        return json.loads(line)

    def cmd(self, command, seconds=20, exec_oob=False, **arguments):
        """Runs a command; '_' in an argument's name stands for '-'."""
        self.serial += 1
        message = {"exec-oob" if exec_oob else "execute": command, "id": self.serial}
        if arguments:
            message["arguments"] = {k.rstrip("_").replace("_", "-"): v
                                    for k, v in arguments.items()}
        self.sock.settimeout(seconds * SCALE)
        self.sock.sendall(json.dumps(message).encode() + b"\n")
        deadline = time.monotonic() + seconds * SCALE
        while True:
            reply = self._read(deadline)
            if "event" in reply:
                self.events.append(reply)
            elif reply.get("id") == self.serial:
                if "error" in reply:
                    raise QmpError(command, reply["error"])
                return reply["return"]

    def hmp(self, line):
        return self.cmd("human-monitor-command", command_line=line)

    def event(self, name, seconds=20, match=lambda data: True):
        """Waits for an event (one already seen counts) and takes it."""
        deadline = time.monotonic() + seconds * SCALE
        while True:
            for e in self.events:
                if e["event"] == name and match(e.get("data", {})):
                    self.events.remove(e)
                    return e
            message = self._read(deadline)
            if "event" in message:
                self.events.append(message)
