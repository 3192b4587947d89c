"""What a road is, and how its answers are compared with what a case expects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from tests.cases.loading import Case, Step, read_time

Answers = Mapping[str, Any]
"""As `expect`: `users` and `links` by id, `grants` as (source, amount, expiry), `waiting` as ids."""

NO_ANSWER = "no answer"


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
    """What came of one case on one road."""

    findings: list[Finding | str] = field(default_factory=list)
    checked: int = 0


class Road(Protocol):
    """One way from facts to answers."""

    name: str

    def run(self, case: Case) -> Outcome:
        """Go through the steps of a case and compare after each."""


def compare(step: Step, answers: Answers, outcome: Outcome) -> None:
    """Add to `outcome` what the road answers at this step against what the case expects."""
    for subject, key, expected, got in _pairs(step.expect, answers):
        outcome.checked += 1
        if got != expected:
            outcome.findings.append(Finding(step.at, subject, key, expected, got))


def _pairs(expect: Answers, answers: Answers) -> Iterator[tuple[str, str, object, object]]:
    for group in ("users", "links"):
        for subject, expected in (expect.get(group) or {}).items():
            known = answers.get(group, {}).get(subject)
            if known is None:
                yield subject, "exists", True, False
                continue
            for key, value in expected.items():
                yield subject, key, value, known.get(key, NO_ANSWER)
    for group in ("grants", "waiting"):
        if group in expect:
            yield "all", group, as_set(group, expect[group]), answers[group]


def as_set(group: str, expected: Any) -> set[Any]:
    """Grants and what waits are compared as sets."""
    if group == "waiting" or isinstance(expected, set):
        return set(expected)
    return {(one["source"], one["amount"], read_time(one["expires_at"])) for one in expected}


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return "null" if value is None else str(value)
