"""A supervisor and its children, for tests.

`python -m tests.ops.supervised DRAIN JOURNAL KIND…` supervises a child of each kind (a function below) until a signal
says stop; each child writes lines of "kind word pid" into the journal.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ops import logs
from ops.supervise import Program, Supervisor

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
Note = Callable[[str], None]


def steady(note: Note) -> None:
    note("started")
    time.sleep(60)


def failing(note: Note) -> None:
    note("started")
    sys.exit(3)


def draining(note: Note) -> None:
    def end(*_: object) -> None:
        time.sleep(0.5)
        note("drained")
        sys.exit(0)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, lambda *_: note("interrupted"))
    note("started")
    time.sleep(60)


def deaf(note: Note) -> None:
    signal.signal(signal.SIGTERM, lambda *_: note("heard"))
    note("started")
    while True:
        time.sleep(60)


def parent(note: Note) -> None:
    child = subprocess.Popen(SLEEP)
    note(f"has {child.pid}")
    time.sleep(60)


def poisoned(note: Note) -> None:
    """The sweeper, which here ends as `kill -9` does when it reads the event evt_poison."""
    from models import ledger
    from ops import sweeper
    from workers import snapshots

    real = snapshots.read

    def read(row: ledger.Kept) -> Any:
        if row.id == "evt_poison":
            os.kill(os.getpid(), signal.SIGKILL)
        return real(row)

    snapshots.read = read
    note("started")
    sweeper.main(["live", "bulk"])


def child(kind: str, journal: str) -> None:
    def note(word: str) -> None:
        with Path(journal).open("a") as file:
            file.write(f"{kind} {word} {os.getpid()}\n")

    kinds = (steady, failing, draining, deaf, parent, poisoned)
    {one.__name__: one for one in kinds}[kind](note)


def supervisor(drain: str, journal: str, *kinds: str) -> None:
    logs.to_stderr()
    programs = [Program(kind, "tests.ops.supervised", ["--child", kind, journal]) for kind in kinds]
    Supervisor(programs, drain=float(drain)).run()
    print("all have ended")


if __name__ == "__main__":
    if sys.argv[1] == "--child":
        child(*sys.argv[2:])
    else:
        supervisor(*sys.argv[1:])
