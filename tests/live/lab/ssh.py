"""An SSH server for the ssh:// transport: Debian's own, unpacked by
tools/setup and never installed, with keys, accounts and client settings that
only the processes of the test see (bind mounts in a namespace of theirs)."""

import os
import signal
from pathlib import Path

from . import guest
from .proc import LabError, Proc, can_connect, free_port, run

SERVER = """ListenAddress 127.0.0.1:{port}
HostKey {tmp}/host
AuthorizedKeysFile {tmp}/user.pub
StrictModes no
UsePAM no
PidFile none
PermitRootLogin yes
AllowStreamLocalForwarding yes
"""
CLIENT = """Host {name}
    HostName 127.0.0.1
    Port {port}
    IdentityFile {tmp}/user
    UserKnownHostsFile {tmp}/known
    StrictHostKeyChecking accept-new
"""


def _behind(mounts):
    """A command prefix: runs the rest with files bound over the system's."""
    binds = "".join(f"mount --bind '{a}' '{b}' && " for a, b in mounts)
    return ["unshare", "--mount", "sh", "-c", binds + 'exec "$@"', "sh"]


class Ssh:
    name = "lab-host"

    def __init__(self, tmp):
        tmp = Path(tmp) / "ssh"
        tmp.mkdir()
        root = guest.BUILD / "sshd"
        sshd = root / "usr/sbin/sshd"
        if not sshd.exists():
            raise LabError("no SSH server: run ./tools/setup")
        self.port = free_port()
        for key in ("host", "user"):
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp / key])
        (tmp / "server").write_text(SERVER.format(port=self.port, tmp=tmp))
        (tmp / "client").write_text(CLIENT.format(name=self.name, port=self.port, tmp=tmp))
        accounts = Path("/etc/passwd").read_text()
        if "\nsshd:" not in accounts:
            accounts += "sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin\n"
        (tmp / "passwd").write_text(accounts)
        os.makedirs("/run/sshd", exist_ok=True)
        self.proc = Proc(
            [*_behind([(tmp / "passwd", "/etc/passwd")]),
             sshd, "-D", "-e", "-f", tmp / "server"], tmp / "sshd.log",
            env={"LD_LIBRARY_PATH": f"{root}/usr/lib/x86_64-linux-gnu:{root}/lib/x86_64-linux-gnu"})
        self.proc.wait_for("sshd", lambda: can_connect(("127.0.0.1", self.port)))
        # prefix for a program whose 'ssh' is to know the host
        self.client = _behind([(tmp / "client", "/etc/ssh/ssh_config")])

    def cut(self):
        """Ends every session, not the server."""
        path = Path(f"/proc/{self.proc.pid}/task/{self.proc.pid}/children")
        for pid in path.read_text().split():
            os.kill(int(pid), signal.SIGKILL)

    def stop(self):
        self.proc.stop()
