"""libvirt for tools/bench: a daemon of the run's own, and the lab's guest as
one of its domains.

It needs the run's namespaces: its folders are fixed, so memory is mounted over
them, and the user that Debian's build insists on exists in there only.
"""

import os
import socket
import threading
import uuid
from pathlib import Path
from xml.sax.saxutils import quoteattr

from lab import guest, isolate, qemu
from lab.proc import LabError, Proc, run, wait_for
from lab.qmp import Qmp
from lab.storage import NfsVolume, RbdVolume

PACE = 2  # ms between two writes of a guest that is timed, whoever starts it
FOLDERS = ("/etc/libvirt", "/var/lib", "/var/log", "/var/cache")
QEMU_CONF = """security_driver = "none"
user = "root"
group = "root"
namespaces = []
cgroup_controllers = []
remember_owner = 0
stdio_handler = "file"
"""
DAEMON_CONF = 'auth_unix_rw = "none"\nauth_unix_ro = "none"\n'
DOMAIN = """<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
<name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>96</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type><kernel>{kernel}</kernel>
<initrd>{initrd}</initrd><cmdline>{cmdline}</cmdline></os>
<features><acpi/></features><cpu mode='maximum'/>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
{disk}<controller type='usb' model='none'/><memballoon model='none'/>
<serial type='unix'><source mode='bind' path='{console}'/></serial></devices>
<qemu:commandline><qemu:arg value='-qmp'/>
<qemu:arg value='unix:{spare},server=on,wait=off'/></qemu:commandline></domain>
"""


class Libvirt:
    def __init__(self, tmp):
        self.tmp = Path(tmp)

    def start(self):
        self.tmp.mkdir()
        for d in FOLDERS:
            isolate.mount("tmpfs", d, "tmpfs", "mode=755")
        for name, line in (("passwd", "libvirt-qemu:x:0:0::/:/bin/false\n"),
                           ("group", "libvirt-qemu:x:0:\n")):
            ours = self.tmp / name
            ours.write_text(Path("/etc", name).read_text() + line)
            run(["mount", "--bind", ours, f"/etc/{name}"])
        Path("/etc/libvirt/qemu.conf").write_text(QEMU_CONF)
        conf = Path("/etc/libvirt/libvirtd.conf")
        conf.write_text(DAEMON_CONF)
        self.proc = Proc(["libvirtd", "-f", conf], self.tmp / "libvirtd.log")
        self.proc.wait_for("libvirtd", lambda: os.path.exists("/run/libvirt/libvirt-sock"))
        return self.virsh("version", seconds=60).splitlines()

    uri = "qemu:///system"

    def virsh(self, *argv, **kw):
        return run(["virsh", "-q", "-c", self.uri, *argv], **kw)

    def stop(self):
        if hasattr(self, "proc"):
            self.proc.stop()


class Elsewhere(Libvirt):
    """A daemon of another host, as far as libvirt can see: folders and a UUID
    of its own, the network and the temporary folder in common."""

    def start(self):
        self.tmp.mkdir()
        (self.tmp / "qemu.conf").write_text(QEMU_CONF)
        (self.tmp / "libvirtd.conf").write_text(
            DAEMON_CONF + f'unix_sock_dir = "{self.tmp}"\nhost_uuid = "{uuid.uuid4()}"\n')
        self.uri = f"qemu+unix:///system?socket={self.tmp}/libvirt-sock"
        mounts = "".join(f"mount -t tmpfs tmpfs {d}; " for d in (*FOLDERS, "/run"))
        self.proc = Proc(["unshare", "--mount", "sh", "-ec", mounts +
                          f"cp {self.tmp}/*.conf /etc/libvirt; "
                          "exec libvirtd -f /etc/libvirt/libvirtd.conf"],
                         self.tmp / "libvirtd.log")
        self.proc.wait_for("libvirtd", (self.tmp / "libvirt-sock").exists)


def disk_xml(volume, serial=True):
    """A volume as libvirt's <disk>."""
    fields = {k: quoteattr(str(v)) for k, v in dict(
        path=getattr(volume, "path", ""), fmt=volume.fmt).items()}
    if isinstance(volume, RbdVolume):
        kind, c = "network", volume.cluster
        source = (f"<source protocol='rbd' name='{c.pool}/{volume.name}'>"
                  f"<host name='{c.mon[0]}' port='{c.mon[1]}'/>"
                  f"<config file={quoteattr(c.conf)}/></source>")
    elif isinstance(volume, NfsVolume):
        kind = "network"
        source = (f"<source protocol='nfs' name={fields['path']}>"
                  f"<host name='{volume.server.host}'/></source>")
    else:
        kind, source = "file", f"<source file={fields['path']}/>"
    return (f"<disk type='{kind}' device='disk'><driver name='qemu' type={fields['fmt']}/>"
            f"{source}<target dev='vda' bus='virtio'/>"
            + ("<serial>d0</serial>" if serial else "") + "</disk>")


class _Console:
    """What qemu.Vm expects of the process it started."""

    def __init__(self, path, log):
        self.socket, self.log = socket.socket(socket.AF_UNIX), log
        self.socket.connect(path)
        self.stdout, self.stdin = self.socket.makefile("rb"), self.socket.makefile("wb")
        self.popen, self.returncode = self, None

    def alive(self):
        return self.returncode is None

    def check_alive(self):
        return True

    def tail(self):
        return str(self.log)

    def kill(self):
        if self.alive():
            self.returncode = 0
            self.socket.shutdown(socket.SHUT_RDWR)
            self.socket.close()


class Domain(qemu.Vm):
    """The lab's guest with one disk, under libvirt."""

    def __init__(self, libvirt, install, tmp, disk, name):
        self.libvirt, self.install, self.name = libvirt, install, name
        self.tmp, self.disks = Path(tmp), [disk]
        self._state()
        description = self.describe(disk.volume)
        libvirt.virsh("create", "--paused", description)
        self._attach()
        libvirt.virsh("resume", name)
        self.wait_ready()

    def describe(self, volume, where=""):
        """The file of it, with sockets of its own for each host."""
        self.tty = str(self.tmp / f"{self.name}{where}.tty")
        self.spare_path = str(self.tmp / f"{self.name}{where}.spare")
        self.qmp_path = self.second_path = self.spare_path
        description = self.tmp / f"{self.name}{where}.xml"
        description.write_text(DOMAIN.format(
            name=self.name, uuid=uuid.uuid5(uuid.NAMESPACE_URL, str(self.tmp)),
            kernel=guest.kernel(), initrd=guest.initramfs(), console=self.tty,
            spare=self.spare_path, disk=disk_xml(volume),
            cmdline="console=ttyS0 quiet loglevel=3 panic=-1 tsc=reliable no_timer_check "
            f"mitigations=off qpl.disks=1 qpl.blocks=1024 qpl.pace={PACE} qpl.paused=0"))
        return description

    def _state(self):
        self.lines, self.changed = [], threading.Condition()
        self.stats, self.regions, self.boots, self.boot_report = {}, {}, 0, {}

    def _attach(self, seconds=30):
        wait_for("the console's socket", lambda: os.path.exists(self.tty), seconds)
        self.proc = _Console(self.tty, self.tmp / f"{self.name}.xml")
        self.console = open(self.tmp / f"{self.name}.console", "ab")
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        wait_for("the monitor's socket", lambda: os.path.exists(self.spare_path))
        self.qmp = Qmp(self.spare_path, seconds=20)

    def migrate(self, there, target):
        """To another host's daemon; returns the domain that is there then."""
        arrived = Arriving(self, there, target)
        self.libvirt.virsh("migrate", "--live", "--copy-storage-all", "--xml",
                           arrived.description, "--migrateuri", "tcp://127.0.0.1",
                           self.name, there.uri, seconds=600)
        self.proc.kill()
        return arrived

    def _read(self):
        try:
            super()._read()
        except (OSError, ValueError):
            pass  # closed under the reader at the end

    def move(self, target, speed=None):
        """The same move by virsh, which creates the target of any kind."""
        path = self.tmp / f"{self.name}-target.xml"
        path.write_text(disk_xml(target, serial=False))
        argv = ["blockcopy", self.name, "vda", "--xml", path, "--pivot", "--wait"]
        argv += ["--bandwidth", speed, "--bytes"] if speed else []
        self.libvirt.virsh(*argv, seconds=600)

    def quit(self, seconds=20):
        self.stop()

    def stop(self):
        if not self.proc.alive():
            return
        self.qmp_close()
        try:
            self.libvirt.virsh("destroy", self.name)
        except LabError:
            pass
        self.proc.kill()
        self.reader.join(5)
        self.console.close()


class Arriving(Domain):
    """The same domain at another host; attached to as soon as QEMU is there."""

    def __init__(self, domain, there, target):
        self.libvirt, self.install, self.name = there, domain.install, domain.name
        self.tmp, self.disks = domain.tmp, domain.disks
        self._state()
        self.regions, self.boot_report = domain.regions, domain.boot_report
        self.description = self.describe(target, "-there")
        self.attaching = threading.Thread(target=self._attach, args=(600,), daemon=True)
        self.attaching.start()

    def wait_attached(self):
        self.attaching.join(30)
        return self
