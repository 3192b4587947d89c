"""What a road is, and how its answers are compared with what a case expects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from tests.cases.loading import Case, Step, read_time

Answers = Mapping[str, Any]
"""As `expect`: `users` and `links` by id. What a road can't tell yet is simply not there."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One answer that is not what the case expects."""

    at: datetime
    subject: str
    key: str
    expected: object
    got: object

    def __str__(self) -> str:
        return (
            f"at {_plain(self.at)} {self.subject} {self.key}: expected {_plain(self.expected)}, got {_plain(self.got)}"
        )


@dataclass(slots=True)
class Outcome:
    """What came of one case on one road; `unchecked` counts the expectations that the road can't answer yet."""

    findings: list[Finding | str] = field(default_factory=list)
    checked: int = 0
    unchecked: Counter[str] = field(default_factory=Counter)


class Road(Protocol):
    """One way from facts to answers."""

    name: str

    def run(self, case: Case) -> Outcome:
        """Go through the steps of a case and compare after each."""


def compare(step: Step, answers: Answers, outcome: Outcome) -> None:
    """Add to `outcome` what the road answers at this step against what the case expects."""
    if step.spends and "grants" not in answers:
        outcome.unchecked["spends"] += len(step.spends)
    for subject, key, expected, got in _pairs(step.expect, answers):
        if got is _UNKNOWN:
            outcome.unchecked[key] += 1
            continue
        outcome.checked += 1
        if got != expected:
            outcome.findings.append(Finding(step.at, subject, key, expected, got))


class _Unknown:
    """No answer, as distinct from the answer null."""


_UNKNOWN = _Unknown()


def _pairs(expect: Answers, answers: Answers) -> Iterator[tuple[str, str, object, object]]:
    for group in ("users", "links"):
        for subject, expected in (expect.get(group) or {}).items():
            known = answers.get(group, {}).get(subject)
            if known is None:
                yield subject, "exists", True, False
                continue
            for key, value in expected.items():
                yield subject, key, value, known.get(key, _UNKNOWN)
    for group in ("grants", "waiting"):
        if group in expect:
            yield "all", group, _as_set(group, expect[group]), answers.get(group, _UNKNOWN)


def _as_set(group: str, expected: Any) -> set[Any]:
    """Grants and what waits are compared as sets."""
    if group == "waiting" or isinstance(expected, set):
        return set(expected)
    return {(one["source"], one["amount"], read_time(one["expires_at"])) for one in expected}


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return "null" if value is None else str(value)
