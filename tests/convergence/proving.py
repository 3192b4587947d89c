"""Some rounds of the proof, in a process of their own."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from contextlib import ExitStack

from tests.conftest import new_database
from tests.convergence.compare import Difference, judge
from tests.convergence.rounds import HISTORIES, make_round
from tests.convergence.site import Site

# Differences of one round that are printed.
SHOWN = 12

Template = tuple[str, str]
"""The URL of a server, and the name of a database there to be copied, to which nobody is connected."""


def prove(
    template: Template, rounds: list[int], clock: int, *, until: float, histories: int = HISTORIES
) -> tuple[Counter[str], list[str]]:
    """Deliver some rounds to two new sites; what was counted, and a text for each round that disagreed.

    After `until` (Unix seconds) no further round is begun.
    """
    counts: Counter[str] = Counter()
    failures = []
    with ExitStack() as stack:
        sites = []
        for _ in range(2):
            url = stack.enter_context(new_database(*template))
            sites.append(Site(url))
            stack.callback(sites[-1].engine.dispose)
        in_order, at_random = sites
        for number in itertools.takewhile(lambda _: time.time() < until, rounds):
            one = make_round(number, clock, histories=histories)
            try:
                in_order.deliver_in_order(one)
                at_random.deliver_at_random(one)
                verdict = judge(one, in_order, at_random)
            except Exception as error:  # noqa: BLE001 - whatever it is, the round that led to it is to be named
                failures.append(_failure(number, clock, [f"{type(error).__name__}: {error}"]))
                continue
            counts.update(rounds=1, histories=len(one.pasts), events=len(one.events), rows=verdict.rows)
            counts.update(contested=verdict.contested, boundaries=verdict.at_a_boundary)
            if verdict.differences:
                failures.append(_failure(number, clock, smallest(verdict.differences)))
    return counts, failures


def smallest(differences: list[Difference]) -> list[str]:
    """The differences that say most: mirrored rows before what was derived from them."""
    derived = ("users", "token_ledger")
    ordered = sorted(differences, key=lambda one: (one.table in derived, one.table, one.id))
    rest = len(ordered) - SHOWN
    return [*map(str, ordered[:SHOWN]), *([f"… and {rest} more"] if rest > 0 else [])]


def _failure(number: int, clock: int, lines: list[str]) -> str:
    again = f"python -m tests.convergence --round {number} --clock {clock}"
    return "\n  ".join([f"FAILED round {number} (again: {again})", *lines])
