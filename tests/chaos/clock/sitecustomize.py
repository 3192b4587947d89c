"""Shifts the wall clock of a process by the seconds that the file `$CHAOS_CLOCK` says, and follows when it is changed.

Python imports a module of this name when it starts. The monotonic clock is left alone, as by a step of a real one.
"""  # noqa: INP001 - not to be imported by any other name

from __future__ import annotations

import os
import time

FILE = os.environ.get("CHAOS_CLOCK")


def step(file: str) -> None:
    real, real_ns, passed = time.time, time.time_ns, time.monotonic
    looked, shift = -1.0, 0

    def shifted_by() -> int:
        nonlocal looked, shift
        if passed() - looked > 0.2:
            with open(file, encoding="ascii") as text:  # noqa: PTH123 - nothing is imported here that need not be
                shift = int(text.read() or 0)
            looked = passed()
        return shift

    time.time = lambda: real() + shifted_by()
    time.time_ns = lambda: real_ns() + shifted_by() * 1_000_000_000


if FILE:
    step(FILE)
