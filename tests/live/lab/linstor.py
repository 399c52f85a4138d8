"""A controller that stands for LINSTOR's, over loop devices: tests/fake/linstor.

Its links are in a /dev/drbd of this run's, as udev's would be."""

import fcntl
import json
import os
from pathlib import Path

from . import isolate
from .proc import Proc
from .storage import Volume

PROGRAM = Path(__file__).resolve().parents[2] / "fake" / "linstor"


class Linstor:
    def __init__(self, lab, *options):
        self.lab, self.folder = lab, Path(lab.path(lab.name("linstor")))
        self.folder.mkdir()
        self._share(1)
        self.proc = Proc([str(PROGRAM), str(self.folder), "--loop", *options],
                         str(self.folder / "log"))
        self.proc.wait_for("the controller", (self.folder / "port").exists)
        self.port = int((self.folder / "port").read_text())

    def _share(self, n):
        """Tests of a run share its mounts: the first makes it, the last ends it."""
        with open(Path(self.lab.tmp).parent / "dev-drbd", "a+") as f:
            fcntl.flock(f, fcntl.LOCK_EX)
            f.seek(0)
            users, made = json.loads(f.read() or "[0, false]")
            if users == 0:
                made = not os.path.isdir("/dev/drbd")
                os.makedirs("/dev/drbd", exist_ok=True)
                isolate.mount("tmpfs", "/dev/drbd", "tmpfs")
            users += n
            if users == 0:
                isolate.umount("/dev/drbd")
                if made:
                    os.rmdir("/dev/drbd")
            f.truncate(0)
            f.write(json.dumps([users, made]))

    def stop(self):
        self.proc.stop()
        self._share(-1)
        assert not (self.folder / "violations").exists(), \
            (self.folder / "violations").read_text()

    def state(self):
        return json.loads((self.folder / "state").read_text())

    def calls(self):
        """[(method, path)] of the changes, in their order."""
        lines = (self.folder / "calls").read_text().splitlines()
        seen = [json.loads(line) for line in lines]
        return [(c["method"], c["path"].split("/")[-1]) for c in seen
                if c["method"] != "GET" and "query-size" not in c["path"]]

    def fault(self, *lines):
        (self.folder / "faults").write_text("".join(f"{line}\n" for line in lines))

    def volume(self, name=None):
        return LinstorVolume(self, name or self.lab.name("r"))


class LinstorVolume(Volume):
    kind = "linstor"

    def __init__(self, controller, name):
        self.controller, self.name = controller, name
        self.path = f"/dev/drbd/by-res/{name}/0"

    def protocol(self):
        return {"driver": "host_device", "filename": self.path}

    def uri(self, *more):
        return (f"linstor://127.0.0.1:{self.controller.port}/group/{self.name}"
                + self.query("node=alpha", *more))

    def image_name(self):
        return self.path

    def exists(self):
        return self.name in self.controller.state()
