"""`make prove`: histories by the thousand, in any order, until time is up or two answers differ.

    python -m tests.convergence --minutes 3      # go on where the last run stopped
    python -m tests.convergence --round 17 --clock 1764201600    # the one that failed

Rounds already done are remembered in `.prove/state.json`, so that every run tries new ones and the count adds up.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from sqlalchemy import make_url

from ops.embedded import EmbeddedPostgres
from tests.conftest import migrate, new_database, scratch_folder
from tests.convergence.proving import Template, prove
from tests.convergence.rounds import midnight
from tests.support import ROOT

STATE = ROOT / ".prove" / "state.json"
# The committed count, for a checkout that has not proved anything itself.
REPORT = ROOT / "docs" / "proof.md"
# Rounds for which one pair of databases is used, so that their tables stay of a size with which tests are quick.
SHIFT = 25


def main() -> int:
    """0: all agreed; 1: some did not, and how to repeat it has been printed."""
    parser = argparse.ArgumentParser(prog="make prove", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=float(os.environ.get("MINUTES") or 3))
    parser.add_argument("--round", type=int, help="repeat this one instead")
    parser.add_argument("--clock", type=int, default=midnight(), help="when its histories end, in Unix seconds")
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1))
    options = parser.parse_args()
    with a_template() as template:
        if options.round is not None:
            return _say(prove(template, [options.round], options.clock, until=math.inf))
        return _prove_for(options.minutes * 60, template, options.clock, options.processes)


def _prove_for(seconds: float, template: Template, clock: int, processes: int) -> int:
    begin, state, failed = time.time(), _read_state(), False
    end = begin + seconds
    number = state["next_round"]
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        shifts: set[Future[Any]] = set()
        while True:
            while len(shifts) < processes and not failed and time.time() < end:
                shifts.add(pool.submit(prove, template, list(range(number, number + SHIFT)), clock, until=end))
                number += SHIFT
            if not shifts:
                break
            done, shifts = wait(shifts, return_when=FIRST_COMPLETED)
            for shift in done:
                failed |= bool(_say(shift.result()))
                state.update(shift.result()[0])
                state["next_round"] = max(state["next_round"], number)
                _write_state(state)
    took = (time.time() - begin) / 60
    print(f"in {took:.1f} minutes; all in all {state['histories']} histories, {state['events']} events")
    return int(failed)


def _say(result: tuple[Counter[str], list[str]]) -> int:
    counts, failures = result
    said = ", ".join(f"{counts[name]} {name}" for name in ("histories", "events", "rows", "contested", "boundaries"))
    print(said, *failures, sep="\n", flush=True)
    return int(bool(failures))


@contextmanager
def a_template() -> Iterator[Template]:
    """A migrated database to be copied, on `$DATABASE_URL`'s server or on one that is thrown away at the end."""
    with ExitStack() as stack:
        given = os.environ.get("DATABASE_URL")
        if given:
            server = make_url(given).set(drivername="postgresql").render_as_string(hide_password=False)
        else:
            server = stack.enter_context(EmbeddedPostgres(scratch_folder(), port=0, throwaway=True)).url
        url = stack.enter_context(new_database(server))
        migrate(url)
        yield server, str(make_url(url).database)


def _read_state() -> Counter[str]:
    with suppress(FileNotFoundError):
        return Counter(json.loads(STATE.read_text()))
    with suppress(FileNotFoundError, StopIteration):
        # The line of the table in docs/proof.md: | histories | events | rows | contested | next round |
        line = next(line for line in REPORT.read_text().splitlines() if line.startswith("| cumulative |"))
        numbers = [int(cell.strip().replace(",", "")) for cell in line.split("|")[2:-1]]
        return Counter(dict(zip(("histories", "events", "rows", "contested", "next_round"), numbers, strict=True)))
    return Counter()


def _write_state(state: Counter[str]) -> None:
    STATE.parent.mkdir(exist_ok=True)
    STATE.write_text(json.dumps(state, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
