"""A short soak; tools/soak runs the long one by the same test."""

import os

import soak
from lab.runner import timeout

MOVES = int(os.environ.get("QPIVOT_SOAK_MOVES", "5"))
EMBEDDED = int(os.environ.get("QPIVOT_SOAK_EMBEDDED", "8"))
SEED = int(os.environ.get("QPIVOT_SOAK_SEED", "20261121"))
MINUTES = float(os.environ.get("QPIVOT_SOAK_MINUTES", "0"))


@timeout(90 + MINUTES * 60 + 20 * (MOVES + EMBEDDED) * (MINUTES > 0))
def test_moves_and_kills_leave_nothing_and_lose_nothing(lab):
    soak.soak(lab, MOVES, EMBEDDED, SEED, MINUTES or None)
