#!/usr/bin/python3
"""remote.py PORT SECONDS: runs the script in $SCRIPT on a node as if it ran here.

What it prints comes out as it comes, what it says on standard error at the
end; the exit status is the script's.
"""

import os
import sys
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "live"))

from nodes import ask

said, marked = b"", False
for data in ask(int(sys.argv[1]), os.environ["SCRIPT"], float(sys.argv[2])):
    said += data
    marked = marked or b"\001" in said
    if not marked:
        sys.stdout.buffer.write(said)
        sys.stdout.buffer.flush()
        said = b""
out, mark, end = said.partition(b"\001")
sys.stdout.buffer.write(out)
status, _, error = end.partition(b"\n")
sys.stderr.buffer.write(error)
if not mark:
    sys.exit("remote: the node broke off")
sys.exit(int(status))
