"""Where two sites, the simulator and the naive computation disagree: table, id, column, values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from tests.convergence.naive.books import Books, facts_of
from tests.convergence.rounds import Round
from tests.convergence.site import Rows, Site
from tests.convergence.truth import figures, is_gone, last_words, truth
from tests.workers.world import NOT_COMPARED

NAIVE_SETTINGS: Final = {
    "DUES_GRACE_DAYS": 3,
    "DUES_LINK_BY_EMAIL": "verified",
    "DUES_TRUSTED_PROVIDERS": "google,apple,github",
}


@dataclass(frozen=True, slots=True)
class Difference:
    """One value that is not what another says it is; `between` names the two."""

    between: str
    table: str
    id: str
    column: str
    left: object
    right: object

    def __str__(self) -> str:
        return f"{self.between}: {self.table} {self.id} {self.column}: {self.left!r} / {self.right!r}"


@dataclass(slots=True)
class Verdict:
    """What a round has shown."""

    differences: list[Difference] = field(default_factory=list)
    contested: int = 0
    rows: int = 0
    at_a_boundary: bool = False


def judge(one: Round, in_order: Site, at_random: Site) -> Verdict:
    """Compare a round that both sites have had: with each other, with the simulator, with the naive computation."""
    left, right = in_order.rows(), at_random.rows()
    users = [signed_up.user.id for signed_up in one.users]
    verdict = Verdict(
        contested=sum(row.get("contested", False) for table in right.values() for row in table.values()),
        rows=sum(map(len, right.values())),
    )
    naive = Naive(right, in_order.since, at_random.now())
    verdict.at_a_boundary = naive.is_moving
    sums = at_random.sums(users)
    verdict.differences += against_truth(one, right)
    if not verdict.at_a_boundary:
        verdict.differences += against_each_other(left, right)
        verdict.differences += list(_pairs("order", "token_ledger", in_order.sums(users), sums))
        verdict.differences += naive.against(right, sums)
    return verdict


def against_each_other(left: Rows, right: Rows) -> Iterator[Difference]:
    """Every column that DESIGN §1.3 does not except."""
    for table, rows in left.items():
        if table != "accounts":
            yield from _pairs("order", table, _compared(rows), _compared(right[table]))


def against_truth(one: Round, rows: Rows) -> Iterator[Difference]:
    """What Stripe last said of each object, unless Stripe's own data leave that open."""
    for past in one.pasts:
        said, kept = figures(past.events), rows["stripe_metadata_history"]
        ours = {key: {"metadata": kept[key]["metadata"]} for key in said if key in kept}
        yield from _pairs("truth", "stripe_metadata_history", said, ours)
        for id, event in last_words(past.events).items():
            found = truth(event.object)
            if found is None:
                continue
            table, expected = found
            row = rows[table].get(id)
            if row is None:
                yield Difference("truth", table, id, "id", id, None)
            elif not row["contested"]:
                expected["is gone"] = is_gone(event)
                if expected["is gone"] and "active" in expected:
                    expected["active"] = False  # nobody can buy it any more, whatever its last words say
                got = {**row, "is gone": row["deleted_at"] is not None}
                yield from _pairs("truth", table, {id: expected}, {id: {name: got[name] for name in expected}})


class Naive:
    """The naive answer from the rows of a site, at both ends of the time in which they were decided."""

    def __init__(self, rows: Rows, begin: datetime, end: datetime) -> None:
        facts = facts_of(rows)
        before, after = Books(NAIVE_SETTINGS), Books(NAIVE_SETTINGS)
        self.answer = after.look(facts, end)
        self.sums = {
            user: {
                f"{source} until {end}": left
                for (whose, source), (end, left) in after.sums(end).items()
                if whose == user
            }
            for user in rows["users"]
        }
        self.is_moving = before.look(facts, begin) != self.answer

    def against(self, rows: Rows, sums: Mapping[str, Mapping[str, Any]]) -> Iterator[Difference]:
        """The answer against what a site has stored."""
        for table, group in (("users", "users"), ("stripe_customers", "links")):
            for id, expected in self.answer[group].items():
                got = {name: rows[table][id][name] for name in expected}
                yield from _pairs("naive", table, {id: expected}, {id: got})
        yield from _pairs("naive", "token_ledger", {user: row for user, row in self.sums.items() if row}, sums)


def _compared(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return {id: {name: row[name] for name in row if name not in NOT_COMPARED} for id, row in rows.items()}


def _pairs(
    between: str, table: str, left: Mapping[str, Mapping[str, Any]], right: Mapping[str, Mapping[str, Any]]
) -> Iterator[Difference]:
    for id in sorted({*left, *right}):
        one, other = left.get(id, {}), right.get(id, {})
        for column in _names(one, other):
            if one.get(column) != other.get(column):
                yield Difference(between, table, id, column, one.get(column), other.get(column))


def _names(*rows: Iterable[str]) -> list[str]:
    return sorted({name for row in rows for name in row})
