"""An NFSv3 server: nfs-ganesha with a folder of ours as its export.

QEMU's nfs driver takes no port, so rpcbind has to answer for the server.
"""

import os
from pathlib import Path

from .proc import LabError, Proc, can_connect, free_port, run, wait_for

CONF = """
NFS_CORE_PARAM {{
    Protocols = 3;
    NFS_Port = {nfs};
    MNT_Port = {mount};
    Rquota_Port = {quota};
    NLM_Port = {nlm};
    Enable_NLM = false;
    Enable_RQUOTA = false;
    Bind_addr = 127.0.0.1;
    fsid_device = true;
}}
NFSV4 {{
    Graceless = true;
    RecoveryRoot = "{tmp}";
}}
EXPORT_DEFAULTS {{
    Access_Type = RW;
    Squash = No_Root_Squash;
    SecType = sys, none;
    Protocols = 3;
    Transports = TCP;
}}
EXPORT {{
    Export_Id = 7;
    Path = "{export}";
    Pseudo = "{export}";
    FSAL {{ Name = VFS; }}
}}
LOG {{ Default_Log_Level = EVENT; }}
"""


class Rpcbind:
    """The system's rpcbind when it runs; else one of ours for the test's time."""

    def __init__(self, tmp):
        self.log = Path(tmp) / "rpcbind.log"
        self.proc = None

    def start(self):
        if not can_connect(("127.0.0.1", 111)):
            os.makedirs("/run/rpcbind", exist_ok=True)
            self.proc = Proc(["/usr/sbin/rpcbind", "-f", "-w"], self.log)
            self.proc.wait_for("rpcbind", lambda: can_connect(("127.0.0.1", 111)))
        return self

    def stop(self):
        if self.proc:
            self.proc.stop()


class Nfs:
    host = "127.0.0.1"

    def __init__(self, tmp):
        self.tmp = Path(tmp)
        self.export = str(self.tmp / "export")

    def start(self):
        os.makedirs(self.export)
        os.makedirs("/run/ganesha", exist_ok=True)
        self.rpcbind = Rpcbind(self.tmp).start()
        if " 100005 " in run(["rpcinfo", "-p", "127.0.0.1"]):  # mountd
            raise LabError("there is an NFS server in this network: it would lose its"
                           " place to another; isolate.new_network() first")
        conf = self.tmp / "ganesha.conf"
        self.port = free_port()
        conf.write_text(CONF.format(
            nfs=self.port, mount=free_port(), quota=free_port(), nlm=free_port(),
            tmp=self.tmp, export=self.export))
        return self.serve()

    def serve(self):
        self.proc = Proc(["ganesha.nfsd", "-F", "-f", self.tmp / "ganesha.conf",
                          "-p", self.tmp / "ganesha.pid",
                          "-L", self.tmp / "ganesha.log"], self.tmp / "ganesha.out")
        self.proc.wait_for("nfs-ganesha", self._serves, 30)
        return self

    def kill(self):
        self.proc.kill()

    def _serves(self):
        try:
            run(["qemu-img", "create", "-q", "-f", "raw",
                 f"nfs://{self.host}{self.export}/probe", "4096"], seconds=10)
        except Exception:
            return False
        os.unlink(Path(self.export) / "probe")
        return True

    def stop(self):
        if hasattr(self, "proc"):
            self.proc.stop(seconds=2)
        if hasattr(self, "rpcbind"):
            self.rpcbind.stop()
