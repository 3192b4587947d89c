"""`python -m tests.cases DIR`: run a folder of cases; a line per failing case, exit 1 if any fails, 2 if unreadable."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cases.database import DatabaseRoad, scratch_engine
from tests.cases.loading import Case, UnreadableError, read_folder
from tests.cases.pure_tokens import PureRoad
from tests.cases.roads import Outcome, Road

ROADS = ("pure", "rows", "shuffled")


@dataclass(slots=True)
class Tally:
    """What came of all cases on one road."""

    passed: int = 0
    failed: int = 0
    untouched: int = 0
    """Cases that expect nothing."""

    checked: int = 0
    failures: list[dict[str, Any]] = field(default_factory=list)

    def count(self, case: Case, outcome: Outcome) -> None:
        """Add one case."""
        self.checked += outcome.checked
        if outcome.findings:
            self.failed += 1
            self.failures.append(
                {"file": case.source, "name": case.name, "findings": [str(finding) for finding in outcome.findings]},
            )
        elif outcome.checked:
            self.passed += 1
        else:
            self.untouched += 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        cases = read_folder(options.folder)
    except UnreadableError as error:
        print(error, file=sys.stderr)
        return 2
    with contextlib.ExitStack() as stack:
        tallies = {road.name: walk(road, cases) for road in _roads(options.road, options.seed, stack)}
    print(json.dumps(_report(tallies)) if options.json else "\n".join(_lines(tallies)))
    return 1 if any(tally.failed for tally in tallies.values()) else 0


def walk(road: Road, cases: Sequence[Case]) -> Tally:
    """Take all cases along one road."""
    tally = Tally()
    for case in cases:
        try:
            outcome = road.run(case)
        except Exception as error:  # noqa: BLE001 - a case that breaks the road is a failing case, and the rest still run
            outcome = Outcome([f"{type(error).__name__}: {error}"])
        tally.count(case, outcome)
    return tally


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.cases", description=__doc__)
    parser.add_argument("folder", type=Path, help="a folder of *.json, or one file")
    parser.add_argument("--road", choices=[*ROADS, "all"], default="all")
    parser.add_argument("--seed", type=int, default=0, help="of the order in which rows come on the shuffled road")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _roads(name: str, seed: int, stack: contextlib.ExitStack) -> Iterator[Road]:
    """Yield the roads asked for; a database is started for those that need one."""
    wanted = ROADS if name == "all" else (name,)
    if "pure" in wanted:
        yield PureRoad()
    if wanted == ("pure",):
        return
    engine = stack.enter_context(scratch_engine())
    if "rows" in wanted:
        yield DatabaseRoad(engine)
    if "shuffled" in wanted:
        yield DatabaseRoad(engine, seed)


def _lines(tallies: dict[str, Tally]) -> list[str]:
    lines = [
        f"FAILED {name} · {failure['file']} · {failure['name']} {'; '.join(failure['findings'])}"
        for name, tally in tallies.items()
        for failure in tally.failures
    ]
    for name, tally in tallies.items():
        lines.append(
            f"{name}: {tally.passed} cases passed, {tally.failed} failed, {tally.untouched} expected nothing; "
            f"{tally.checked} answers checked",
        )
    return lines


def _report(tallies: dict[str, Tally]) -> dict[str, Any]:
    return {
        "ok": not any(tally.failed for tally in tallies.values()),
        "roads": {
            name: {
                "passed": tally.passed,
                "failed": tally.failed,
                "expected_nothing": tally.untouched,
                "answers_checked": tally.checked,
                "failures": tally.failures,
            }
            for name, tally in tallies.items()
        },
    }


if __name__ == "__main__":
    sys.exit(main())
