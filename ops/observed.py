"""What the demo sees in the database: rows before and after, decisions with their reasons, what became of events."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from models.tables import Base

# What is told of each kind of row: its id and label, then what may change about it.
WATCHED = {
    "product": """
        SELECT id, name AS label, metadata->>'role' AS role, CASE WHEN NOT active THEN 'off sale' END AS shelf
        FROM stripe_products
    """,
    "price": """
        SELECT r.id, coalesce(r.lookup_key, r.id) AS label, p.name AS product,
            concat(to_char(r.unit_amount / 100.0, 'FM999990.00 '), r.currency, ' a ', r.recurring_interval) AS amount
        FROM stripe_prices r LEFT JOIN stripe_products p ON p.id = r.stripe_product_id
    """,
    "customer": """
        SELECT c.id, coalesce(c.name, c.email, c.id) AS label, u.email AS user,
            replace(c.linked_by, '_', ' ') AS "linked by"
        FROM stripe_customers c LEFT JOIN users u ON u.id = c.user_id
    """,
    "checkout": """
        SELECT s.id, 'of ' || coalesce(c.name, s.email, s.id) AS label, s.status, s.payment_status AS payment
        FROM stripe_checkout_sessions s LEFT JOIN stripe_customers c ON c.id = s.stripe_customer_id
    """,
    "subscription": """
        SELECT s.id, 'of ' || coalesce(c.name, c.id) AS label, p.name AS product, s.status,
            to_char(s.current_period_end, 'FMDD Mon YYYY') AS "period until",
            to_char(s.cancel_at, 'FMDD Mon YYYY') AS "to end"
        FROM user_subscriptions s LEFT JOIN stripe_customers c ON c.id = s.stripe_customer_id
            LEFT JOIN stripe_products p ON p.id = s.stripe_product_id
    """,
    "payment": """
        SELECT p.id, 'of ' || coalesce(c.name, c.id, 'nobody known') AS label,
            concat(to_char(p.amount / 100.0, 'FM999990.00 '), p.currency) AS amount, p.status
        FROM payment_history p LEFT JOIN stripe_customers c ON c.id = p.stripe_customer_id
    """,
    "tokens": """
        SELECT t.id::text, 'of ' || u.email AS label, t.kind || to_char(t.amount, ' FMSG999999990') AS booked,
            CASE WHEN t.kind = 'grant' THEN to_char(t.expires_at, 'FMDD Mon YYYY') END AS "good until"
        FROM token_ledger t JOIN users u ON u.id = t.user_id
    """,
    "user": """
        SELECT id, email AS label, to_char(grace_until, 'FMDD Mon YYYY HH24:MI') AS "grace until",
            CASE WHEN tokens > 0 THEN tokens END AS tokens
        FROM users
    """,
}

# The promise compares all columns of users and mirrored tables except these.
HISTORY = ("created_at", "updated_at", "as_of", "source", "deleted_at", "contested")

Rows = Mapping[tuple[str, str], Mapping[str, Any]]
"""(kind, id) → what is told of the row."""


def rows(connection: Connection) -> Rows:
    """Everything watched, as it is now."""
    return {
        (kind, row["id"]): {name: value for name, value in row.items() if name != "id"}
        for kind, query in WATCHED.items()
        for row in connection.execute(text(f"{query} ORDER BY 2, 1")).mappings()
    }


def changes(before: Rows, after: Rows) -> Iterator[tuple[str, str]]:
    """Yield a mark (`+` new, `~` changed) and a sentence for each row that differs."""
    for (kind, id), row in after.items():
        former = before.get((kind, id))
        if former is None:
            yield "+", f"{kind} {row['label']}{_listed(_values(row))}"
        elif former != row:
            yield "~", f"{kind} {row['label']}{_listed(_differences(former, row))}"


def _listed(parts: Iterator[str]) -> str:
    listed = ", ".join(parts)
    return f": {listed}" if listed else ""


def _values(row: Mapping[str, Any]) -> Iterator[str]:
    return (f"{name} {value}" for name, value in row.items() if name != "label" and value is not None)


def _differences(former: Mapping[str, Any], row: Mapping[str, Any]) -> Iterator[str]:
    for name, value in row.items():
        if former[name] != value:
            yield f"{name} {_named(former[name])} → {_named(value)}"


def _named(value: Any) -> str:
    return "none" if value is None else str(value)


# --- decisions ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Change:
    """A row of `membership_changes`: whose, what became what, and why."""

    email: str
    what: str
    reasons: Sequence[str]


def last_change(connection: Connection) -> int:
    """The id of the last row of `membership_changes`, to ask for those after it."""
    return int(connection.execute(text("SELECT coalesce(max(id), 0) FROM membership_changes")).scalar_one())


def changes_since(connection: Connection, last: int) -> list[Change]:
    """What has been decided anew after the change with the id `last`; products by their names."""
    named = connection.execute(text("SELECT id, name FROM stripe_products WHERE name IS NOT NULL"))
    names: dict[str, str] = {row.id: row.name for row in named}
    found = connection.execute(
        text(
            "SELECT u.email, m.role_from::text, m.role_to::text, m.status_from::text, m.status_to::text,"
            " m.product_from, m.product_to, m.reasons FROM membership_changes m JOIN users u ON u.id = m.user_id"
            " WHERE m.id > :last ORDER BY m.id"
        ),
        {"last": last},
    )
    return [
        Change(row.email, ", ".join(_turns(row, names)), [_by_name(r, names) for r in row.reasons]) for row in found
    ]


def _turns(row: Any, names: Mapping[str, str]) -> Iterator[str]:
    pairs = {
        "role": (row.role_from, row.role_to),
        "status": (row.status_from, row.status_to),
        "product": (names.get(row.product_from, row.product_from), names.get(row.product_to, row.product_to)),
    }
    return (f"{name} {_named(old)} → {_named(new)}" for name, (old, new) in pairs.items() if old != new)


def _by_name(sentence: str, names: Mapping[str, str]) -> str:
    return re.sub(r"\bprod_\w+", lambda found: names.get(found[0], found[0]), sentence)


# --- the ledger ---------------------------------------------------------------------------------------------------


def waiting(connection: Connection, ids: Collection[str]) -> list[str]:
    """Those of the events that are not in the ledger yet, or have not ended, as `type: why`."""
    ended = connection.execute(
        text("SELECT id FROM stripe_events WHERE id = ANY(:ids) AND status <> 'received'"), {"ids": sorted(ids)}
    )
    left = sorted(set(ids) - set(ended.scalars()))
    if not left:
        return []
    errors = connection.execute(
        text("SELECT type || ': ' || coalesce(error, 'not tried yet') FROM stripe_events WHERE id = ANY(:ids)"),
        {"ids": left},
    )
    return sorted(errors.scalars()) or [f"{len(left)} never reached the ledger"]


def dead(connection: Connection, ids: Collection[str]) -> list[str]:
    """Those of the events that were given up, as `type: why`."""
    found = connection.execute(
        text(
            "SELECT type || ': ' || coalesce(error, reason) FROM stripe_events WHERE id = ANY(:ids) AND status = 'dead'"
        ),
        {"ids": sorted(ids)},
    )
    return sorted(found.scalars())


def endings(connection: Connection, ids: Collection[str]) -> Mapping[tuple[str, str | None], Mapping[str, int]]:
    """How these events ended: (status, reason) → {event type: how many}."""
    found: dict[tuple[str, str | None], dict[str, int]] = {}
    counted = connection.execute(
        text(
            "SELECT status, reason, type, count(*) AS n FROM stripe_events WHERE id = ANY(:ids)"
            " GROUP BY 1, 2, 3 ORDER BY status = 'processed' DESC, 1, 2, 3"
        ),
        {"ids": sorted(ids)},
    )
    for row in counted:
        found.setdefault((row.status, row.reason), {})[row.type] = row.n
    return found


def events_by_status(connection: Connection) -> dict[str, int]:
    """How many events of the ledger stand how; `processed` and `ignored` always among them."""
    counted = connection.execute(text("SELECT status, count(*) FROM stripe_events GROUP BY 1 ORDER BY 1"))
    return {"processed": 0, "ignored": 0, **dict(counted.tuples().all())}


# --- the end ------------------------------------------------------------------------------------------------------


def users(connection: Connection) -> list[dict[str, Any]]:
    """Every user as the front end would read them."""
    found = connection.execute(
        text(
            "SELECT u.email, u.role::text, u.membership_status::text, u.tokens, u.tokens_expires_at, p.name AS product"
            " FROM users u LEFT JOIN stripe_products p ON p.id = u.stripe_product_id ORDER BY u.email"
        )
    )
    return [dict(row) for row in found.mappings()]


def fingerprint(connection: Connection) -> Mapping[tuple[str, str], str]:
    """(table, id) → a hash of the row, of users and everything mirrored, without what only tells its history."""
    tables = [
        t.name for t in Base.metadata.sorted_tables if t.name == "users" or {"as_of", "source", "id"} <= {*t.c.keys()}
    ]
    return {
        (table, row.id): row.hash
        for table in tables
        for row in connection.execute(
            text(f"SELECT id, md5((to_jsonb(t) - CAST(:history AS text[]))::text) AS hash FROM {table} t"),
            {"history": list(HISTORY)},
        )
    }
