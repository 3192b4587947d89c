"""Rows of cases as rows of the database: mirrored ones become snapshots, people's are written as people write them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Connection, text
from sqlalchemy.dialects import postgresql

from models import upsert
from models.tables import Base
from tests.cases.loading import Row
from workers.handlers import HANDLERS
from workers.shapes import Handler, Snapshot

MIRRORED: Final = {
    "products": "stripe_products",
    "prices": "stripe_prices",
    "customers": "stripe_customers",
    "subscriptions": "user_subscriptions",
    "invoices": "stripe_invoices",
    "invoice_payments": "stripe_invoice_payments",
    "payment_intents": "payment_history",
    "charges": "stripe_charges",
    "refunds": "stripe_refunds",
    "disputes": "stripe_disputes",
    "sessions": "stripe_checkout_sessions",
}


def _plain_handler(name: str) -> Handler:
    """Make a handler for a table that has none yet: enough to write its rows and to know their customer."""
    column = "stripe_customer_id" if "stripe_customer_id" in upsert.columns_of(name) else None
    return Handler("case", name, frozenset(), dict, customer_column=column)


_HANDLERS: Final[Mapping[str, Handler]] = {
    **{name: _plain_handler(name) for name in MIRRORED.values()},
    **{handler.table: handler for handler in HANDLERS},
}
_LINE: Final[Row] = {"quantity": None, "proration": False, "price": None, "product": None}


def snapshot_of(table: str, row: Row, now: datetime) -> Snapshot:
    """Make the snapshot that would write this row at `now`. Of a stub nothing but the id is known."""
    name, is_stub = MIRRORED[table], row["source"] == "stub"
    known = {**row, **({"lines": [{**_LINE, **line} for line in row["lines"]]} if "lines" in row else {})}
    empty = upsert.stub(name, row["id"])
    columns = {column: _plain(known.get(column, empty[column])) for column in empty}
    return Snapshot(
        handler=_HANDLERS[name],
        id=row["id"],
        as_of=0 if is_stub else int(now.timestamp()),
        source=row["source"],
        event_type="case",
        row={column: value for column, value in columns.items() if column not in {"id", *upsert.BOOKKEEPING}},
        deleted=row["deleted_at"] is not None,
        livemode=None,
        object={},
        previous=None,
        progress=(),
        told_with=("case", row["id"]),
    )


def write(connection: Connection, table: str, given: Row, whole: Row, now: datetime) -> None:
    """Write a row that people write: insert it, or change the columns that are `given` if it is there.

    Overrides must have a whole number as their id.
    """
    name, keys, row = _as_written(table, whole, now)
    if row.get("stripe_product_id") is not None:
        upsert.write(connection, "stripe_products", [], stubs={row["stripe_product_id"]})
    changed = [column for column in row if column in given and column not in keys]
    values = ", ".join(f"CAST(:{column} AS {_type(name, column)})" for column in row)
    change = f"UPDATE SET {', '.join(f'{column} = excluded.{column}' for column in changed)}" if changed else "NOTHING"
    conflict = f" ON CONFLICT ({', '.join(keys)}) DO {change}" if keys else ""
    connection.execute(text(f"INSERT INTO {name} ({', '.join(row)}) VALUES ({values}){conflict}"), row)


def empty(connection: Connection) -> None:
    """Delete every row of every table; only the owner of the tables may."""
    connection.execute(text("ALTER TABLE token_ledger DISABLE TRIGGER dues_append_only"))
    for table in reversed(Base.metadata.sorted_tables):
        connection.execute(text(f"DELETE FROM {table.name}"))
    connection.execute(text("ALTER TABLE token_ledger ENABLE TRIGGER dues_append_only"))


def _as_written(table: str, row: Row, now: datetime) -> tuple[str, tuple[str, ...], Row]:
    """Return the table of CONTRACT §4, its key and the row's columns."""
    if table == "users":
        return "users", ("id",), row
    if table == "accounts":
        name = f"{row['user_id']} {row['provider']}"
        return "accounts", ("id",), {**row, "id": name, "type": "oauth", "provider_account_id": name}
    if table == "overrides":
        # The hash of an address is given only where there is no user; of a user's the trigger takes it.
        columns = {key: value for key, value in row.items() if key not in {"email", "email_hash"}}
        hashed = {"email_hash": row["email_hash"]} if "email" in row else {}
        return "user_overrides", ("id",), {"author": "case", **columns, **hashed}
    if table == "links_by_hand":
        link = {"stripe_customer_id": row["customer"], "user_id": row["user_id"], "author": "case", "at": now}
        return "customer_links", (), link
    history = {**row, "metadata": json.dumps(row["metadata"])}
    return "stripe_metadata_history", ("object_id", "as_of"), history


def _type(name: str, column: str) -> str:
    compiled = upsert.table_of(name).columns[column].type.compile(postgresql.dialect())  # type: ignore[no-untyped-call]
    return compiled.split(" COLLATE")[0]


def _plain(value: Any) -> Any:
    return value.astimezone(UTC).isoformat() if isinstance(value, datetime) else value
