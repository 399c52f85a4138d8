"""NBD servers over a file: qemu-nbd or nbdkit, on TCP or a unix socket."""

import signal

from .proc import Proc, can_connect, free_port


class Nbd:
    def __init__(self, install, tmp, path, name="nbd", export="disk", unix=False,
                 program="qemu-nbd", argv=()):
        self.export = export
        self.port = None if unix else free_port()
        self.socket = f"{tmp}/{name}.sock" if unix else None
        self.path = str(path)
        address = self.socket or ("127.0.0.1", self.port)
        if program == "qemu-nbd":
            where = ["-k", self.socket] if unix else ["-b", "127.0.0.1", "-p", self.port]
            argv = [install.path("qemu-nbd"), "-t", "-e", "16", "-f", "raw", "-x", export,
                    "--discard=unmap", *where, *argv, self.path]
        else:
            where = ["-U", self.socket] if unix else ["-i", "127.0.0.1", "-p", self.port]
            argv = ["nbdkit", "-f", "-e", export, *where, *(argv or ["file", self.path])]
        self.address, self.command = address, (argv, f"{tmp}/{name}.log", install.env)
        self.start()

    def start(self):
        argv, log, env = self.command
        self.proc = Proc(argv, log, env=env)
        self.proc.wait_for("the NBD server", lambda: can_connect(self.address))

    def restart(self):
        """Killed, and there again: whoever was connected does not know."""
        self.kill()
        self.start()

    def stall(self):
        """Still connected, never answers: the peer that hangs QEMU."""
        self.proc.send(signal.SIGSTOP)

    def go_on(self):
        self.proc.send(signal.SIGCONT)

    def kill(self):
        self.proc.kill()

    def stop(self):
        self.proc.stop()
