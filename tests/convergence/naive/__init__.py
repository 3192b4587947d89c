"""CONTRACT §5 computed a second time: written from its text alone, as plainly as it can be read, and slow.

It shares nothing with `workers`; where the two differ, one of them has misread the contract. Facts are rows by table,
in the names of `tests/cases/README.md`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any, Final

Row = Mapping[str, Any]
Facts = Mapping[str, Collection[Row]]
Settings = Mapping[str, Any]

LAST: Final = datetime.max.replace(tzinfo=UTC)
FIRST: Final = datetime.min.replace(tzinfo=UTC)


def of(facts: Facts, table: str) -> Collection[Row]:
    """The rows of a table, if there are any."""
    return facts.get(table) or ()


def by_id(facts: Facts, table: str, id: str | None) -> Row | None:
    """The row with this id."""
    return next((row for row in of(facts, table) if row["id"] == id), None) if id else None


def age(row: Row) -> tuple[datetime, str]:
    """What sorts by Stripe's `created`, then id; what nobody knows the age of comes last."""
    return row.get("created") or LAST, row["id"]


def moment(value: Any) -> datetime:
    """A time within jsonb, as text or as Unix seconds."""
    if isinstance(value, datetime):
        return value
    return datetime.fromtimestamp(value, UTC) if isinstance(value, int) else datetime.fromisoformat(value)
