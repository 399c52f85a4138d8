"""libvirt for tools/bench: a daemon of the run's own, and the lab's guest as
one of its domains.

It needs the run's namespaces: its folders are fixed, so memory is mounted over
them, and the user that Debian's build insists on exists in there only.
"""

import os
import socket
import threading
from pathlib import Path
from xml.sax.saxutils import quoteattr

from lab import guest, isolate, qemu
from lab.proc import LabError, Proc, run, wait_for
from lab.qmp import Qmp
from lab.storage import NfsVolume, RbdVolume

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
<name>{name}</name><memory unit='MiB'>96</memory><vcpu>1</vcpu>
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

    def virsh(self, *argv, **kw):
        return run(["virsh", "-q", "-c", "qemu:///system", *argv], **kw)

    def stop(self):
        if hasattr(self, "proc"):
            self.proc.stop()


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
        console = str(self.tmp / f"{name}.tty")
        self.spare_path = str(self.tmp / f"{name}.spare")
        self.qmp_path = self.second_path = self.spare_path
        description = self.tmp / f"{name}.xml"
        description.write_text(DOMAIN.format(
            name=name, kernel=guest.kernel(), initrd=guest.initramfs(), console=console,
            spare=self.spare_path, disk=disk_xml(disk.volume),
            cmdline="console=ttyS0 quiet loglevel=3 panic=-1 tsc=reliable no_timer_check "
            "mitigations=off qpl.disks=1 qpl.blocks=1024 qpl.pace=2 qpl.paused=0"))
        libvirt.virsh("create", "--paused", description)
        self.proc = _Console(console, description)
        self._attach()
        libvirt.virsh("resume", name)
        self.wait_ready()

    def _state(self):
        self.lines, self.changed = [], threading.Condition()
        self.stats, self.regions, self.boots, self.boot_report = {}, {}, 0, {}

    def _attach(self):
        self.console = open(self.tmp / f"{self.name}.console", "ab")
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        wait_for("the monitor's socket", lambda: os.path.exists(self.spare_path))
        self.qmp = Qmp(self.spare_path, seconds=20)

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
