"""`python -m tests.chaos [--short] [FAULT…]`: every fault under load, a line each; exit 1 if any does harm."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack

from tests.chaos.faults import FAULTS, Fault
from tests.chaos.run import LONG, SHORT, Form, Outcome, run
from tests.chaos.scene import Scene, scene

HEADS = ("fault", "it lasted", "events", "posts", "lost", "doubled", "back in")
# So that the short form need not wait a minute for the lease of a worker that was killed.
HURRIED = {
    "DUES_LEASE_SECONDS": "6",
    "DUES_SWEEP_SECONDS": "2",
    "DUES_STATEMENT_TIMEOUT": "4",
    "DUES_IDLE_TIMEOUT": "4",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--short", action="store_true", help="few events and short outages")
    parser.add_argument("faults", nargs="*", metavar="FAULT", help="a part of its name; default: all")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that nothing stays behind
    chosen = [fault for fault in FAULTS if not options.faults or any(part in fault.name for part in options.faults)]
    form = SHORT if options.short else LONG
    print(row(HEADS), row(["---", *["---:"] * (len(HEADS) - 1)]), sep="\n", flush=True)
    began, is_fine = time.monotonic(), True
    for outcome, log in outcomes(chosen, form, HURRIED if options.short else {}):
        print(line(outcome), flush=True)
        for finding in outcome.verdict.findings[:20]:
            is_fine = False
            print(f"    {finding}", file=sys.stderr)
        print(log, end="", file=sys.stderr, flush=True)
    print(f"\n{time.monotonic() - began:.0f} s: {'no harm done' if is_fine else 'HARM WAS DONE'}")
    return 0 if is_fine else 1


def outcomes(faults: Iterable[Fault], form: Form, settings: dict[str, str]) -> Iterator[tuple[Outcome, str]]:
    """One scene for all faults, and a new one after harm was done; with the last words of everybody in that case."""
    with ExitStack() as stack:
        here: Scene | None = None
        for seed, fault in enumerate(faults):
            if not fault.is_possible():
                print(f"{fault.name}: can't be had here", file=sys.stderr)
                continue
            here = here or stack.enter_context(scene(**settings))
            outcome = attempt(here, fault, form, seed)
            yield outcome, here.log() if outcome.verdict.findings else ""
            if outcome.verdict.findings:
                stack.close()
                here = None


def attempt(here: Scene, fault: Fault, form: Form, seed: int) -> Outcome:
    """One run; what does not come to an end is a finding too."""
    try:
        return run(here, fault, form, seed)
    except AssertionError as error:
        outcome = Outcome(fault.name, 0)
        outcome.verdict.findings.append(str(error))
        return outcome


def line(outcome: Outcome) -> str:
    """A run as a row of the table."""
    return row(
        [
            outcome.fault,
            f"{outcome.lasted:.1f} s",
            outcome.events,
            outcome.posted,
            outcome.verdict.lost,
            outcome.verdict.doubled,
            f"{outcome.recovered:.1f} s",
        ]
    )


def row(cells: Sequence[object]) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


if __name__ == "__main__":
    sys.exit(main())
