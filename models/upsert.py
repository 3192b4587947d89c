"""The one way in which mirrored rows are written: a guarded upsert of many rows that travel as one jsonb parameter.

Newer wins, older is dropped; a tie (equal `as_of`) is reported to the caller, who decides it over the ledger.
"""

from __future__ import annotations

import functools
import itertools
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import DefaultClause, text
from sqlalchemy.dialects import postgresql

from models.tables import Base

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from sqlalchemy import Column, Connection, Table

Row = dict[str, Any]

# One lock order everywhere: users first (only LINK and DECIDE touch them), then these, then the ledger.
LOCK_ORDER = (
    "stripe_products",
    "stripe_prices",
    "stripe_customers",
    "user_subscriptions",
    "stripe_invoices",
    "payment_history",
    "stripe_invoice_payments",
    "stripe_charges",
    "stripe_refunds",
    "stripe_disputes",
    "stripe_checkout_sessions",
)

EPOCH = "1970-01-01T00:00:00Z"
BOOKKEEPING = ("as_of", "source", "deleted_at", "contested", "livemode")
# Computed by LINK and DECIDE, never by a snapshot.
DERIVED = frozenset({"user_id", "alias_of", "linked_by"})
OURS = frozenset({"created_at", "updated_at"})
# (table, column) → what is written instead of what Stripe said last, where it says less than before: webhooks and lists
# never carry a session's line items, and only the first lines of an invoice, which change no more once it is final.
_HAS_FEWER_LINES = "t.lines_complete AND NOT excluded.lines_complete AND t.status <> 'draft'"
KEPT = {
    ("stripe_checkout_sessions", "line_items"): "coalesce(excluded.line_items, t.line_items)",
    ("stripe_invoices", "lines"): f"CASE WHEN {_HAS_FEWER_LINES} THEN t.lines ELSE excluded.lines END",
    ("stripe_invoices", "lines_complete"): f"excluded.lines_complete OR ({_HAS_FEWER_LINES})",
}


@dataclass(slots=True)
class Written:
    """What became of the rows of one table: `changed` were written and differ in a watched value."""

    written: set[str] = field(default_factory=set)
    changed: set[str] = field(default_factory=set)
    tied: set[str] = field(default_factory=set)


def table_of(name: str) -> Table:
    """The table called `name`."""
    return Base.metadata.tables[name]


@functools.cache
def columns_of(name: str) -> tuple[str, ...]:
    """The columns of a mirrored table that a snapshot writes, `id` first."""
    return tuple(column.name for column in table_of(name).columns if column.name not in DERIVED | OURS)


def typed(name: str, columns: Sequence[str]) -> str:
    """Columns of a table with their types, as `jsonb_to_recordset` wants to be told."""
    table, dialect = table_of(name), postgresql.dialect()  # type: ignore[no-untyped-call]
    types = (table.columns[column].type.compile(dialect).split(" COLLATE")[0] for column in columns)
    return ", ".join(f"{column} {type_}" for column, type_ in zip(columns, types, strict=True))


@functools.cache
def parents_of(name: str) -> tuple[tuple[str, str], ...]:
    """(column, parent table) of the foreign keys that a snapshot of this table can name."""
    return tuple(
        (column.name, key.column.table.name)
        for column in table_of(name).columns
        if column.name not in DERIVED
        for key in column.foreign_keys
    )


def write(
    connection: Connection,
    name: str,
    rows: Sequence[Row],
    *,
    stubs: Collection[str] = (),
    watched: Sequence[str] = (),
) -> Written:
    """Write `rows` (one per id, all of `columns_of(name)`) and `stubs` (ids) into table `name`, in the order of ids.

    `watched` are SQL expressions over the table's columns; a row whose expressions come out different is `changed`.
    """
    result = Written()
    given = {row["id"] for row in rows}
    everything = [*rows, *(stub(name, parent) for parent in sorted(set(stubs) - given))]
    if not everything:
        return result
    ids = sorted(row["id"] for row in everything)
    before = _watched(connection, name, ids, watched) if watched else {}
    after = _upsert(connection, name, everything, watched)
    result.written = after.keys() & given
    result.changed = {row_id for row_id in result.written if row_id not in before or before[row_id] != after[row_id]}
    if left := given - result.written:
        result.tied = _tied(connection, name, [row for row in rows if row["id"] in left])
    return result


def overwrite(connection: Connection, name: str, rows: Sequence[Row], *, watched: Sequence[str] = ()) -> Written:
    """Write the winners of ties over rows of the same second, which the caller has locked by `write`."""
    ids = sorted(row["id"] for row in rows)
    before = _watched(connection, name, ids, watched) if watched else {}
    after = _upsert(connection, name, rows, watched, guard="<=")
    return Written(set(after), {row_id for row_id in after if before.get(row_id) != after[row_id]})


def stub(name: str, row_id: str) -> Row:
    """A row that is there for its children's sake; anything that Stripe says is newer."""
    empty: Row = dict.fromkeys(columns_of(name))
    defaults = {column.name: _empty(column) for column in table_of(name).columns if column.name in empty}
    return {**empty, **defaults, "id": row_id, "as_of": EPOCH, "source": "stub", "contested": False}


def _empty(column: Column[Any]) -> Any:
    """What the database would put there by itself: null, or the column's default, which is always JSON."""
    if column.nullable or column.name in BOOKKEEPING or not isinstance(column.server_default, DefaultClause):
        return None
    return json.loads(str(column.server_default.arg).split("::")[0].strip("'"))


def lock_parents(connection: Connection, name: str, ids: Iterable[str]) -> set[str]:
    """Return those of `ids` that exist in table `name`; customers stay locked against key changes until we commit.

    LINK changes `stripe_customers.user_id`, a unique column, which conflicts with the foreign-key checks of children;
    taking these locks in the order of ids, before any child is written, is what keeps that from ever deadlocking.
    """
    suffix = " ORDER BY id FOR KEY SHARE" if name == "stripe_customers" else ""
    rows = connection.execute(text(f"SELECT id FROM {name} WHERE id = ANY(:ids){suffix}"), {"ids": sorted(ids)})
    return {row.id for row in rows}


def _watched(connection: Connection, name: str, ids: list[str], watched: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    rows = connection.execute(
        text(f"SELECT id, {', '.join(watched)} FROM {name} t WHERE id = ANY(:ids) ORDER BY id FOR NO KEY UPDATE"),
        {"ids": ids},
    )
    return {row[0]: tuple(row[1:]) for row in rows}


def _upsert(
    connection: Connection,
    name: str,
    rows: Sequence[Row],
    watched: Sequence[str],
    guard: str = "<",
) -> dict[str, tuple[Any, ...]]:
    after: dict[str, tuple[Any, ...]] = {}
    # A statement for each run of rows of one kind, not one for each kind: the locks are taken in the order of ids.
    for is_full, some in itertools.groupby(_sorted(rows), key=lambda row: len(row) == len(columns_of(name))):
        columns = columns_of(name) if is_full else ("id", *BOOKKEEPING)
        statement = text(_statement(name, columns, guard, tuple(watched)))
        returned = connection.execute(statement, {"rows": json.dumps(list(some), allow_nan=False)})
        after |= {row[0]: tuple(row[1:]) for row in returned}
    return after


def _sorted(rows: Iterable[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: str(row["id"]))


@functools.cache
def _statement(name: str, columns: tuple[str, ...], guard: str, watched: tuple[str, ...]) -> str:
    values = ", ".join(f"{column} = {KEPT.get((name, column), f'excluded.{column}')}" for column in columns[1:])
    return (
        f"INSERT INTO {name} AS t ({', '.join(columns)}) SELECT {', '.join(columns)}"
        f" FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r({typed(name, columns)})"
        ' ORDER BY id COLLATE "C"'
        f" ON CONFLICT (id) DO UPDATE SET {values}"
        f" WHERE t.as_of {guard} excluded.as_of"
        # Stripe was asked after whatever the events of that second tell.
        " OR (t.as_of = excluded.as_of AND excluded.source = 'api')"
        f" RETURNING {', '.join(('t.id', *watched))}"
    )


def _tied(connection: Connection, name: str, rows: Sequence[Mapping[str, Any]]) -> set[str]:
    found = connection.execute(
        text(
            f"SELECT t.id FROM {name} t JOIN jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(id text, as_of timestamptz)"
            " ON r.id = t.id WHERE t.as_of = r.as_of AND t.source <> 'api'",
        ),
        {"rows": json.dumps([{"id": row["id"], "as_of": row["as_of"]} for row in rows])},
    )
    return {row.id for row in found}
