"""A worker that ends without a word where the test wants it: `python -m tests.workers.crashing LANE step=write`.

`step=NAME` kills the process just before that step commits, `event=ID` when it reads that event. Instead of a lane,
`api` takes in what the API is said to have told: on stdin, as `[[object, as_of], …]`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import cast

from models import ledger
from models.database import connect
from models.settings import read_settings
from workers import snapshots
from workers.process import Road
from workers.shapes import Snapshot


def end() -> None:
    """End as `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def main(lane: str, where: str) -> None:
    """Process the lane until there is nothing more, or until the place to end."""
    kind, _, name = where.partition("=")
    settings = read_settings(os.environ)
    road = Road(connect(settings, application="crashing"), settings)
    if kind == "step":
        road.checkpoint = lambda step: end() if step == name else None
    if lane == "api":
        road.take_in(one for obj, as_of in json.load(sys.stdin) for one in snapshots.from_api(obj, as_of))
        return
    real = snapshots.read

    def read(row: ledger.Kept) -> list[Snapshot]:
        if kind == "event" and row.id == name:
            end()
        return real(row)

    snapshots.read = read
    print(dict(road.process(cast("ledger.Lane", lane))))


if __name__ == "__main__":
    main(*sys.argv[1:])
