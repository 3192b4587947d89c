"""Mirrored rows beside what Stripe says: which differ, in which columns, which are missing, and what they add up to.

PostgreSQL compares, so that times, decimals and jsonb are compared as what they are. Nothing here changes a row.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, text

from models.upsert import BOOKKEEPING, Row, columns_of, typed

# Addresses that Stripe signs anew whenever it is asked.
VOLATILE = frozenset({"hosted_invoice_url", "receipt_url"})
_OF_AN_ITEM = (
    "r.items @> jsonb_build_array(jsonb_build_object('product', t.stripe_product_id, 'price', t.stripe_price_id,"
    " 'quantity', t.quantity))"
)
# (table, column) → when a difference is none, in SQL over the row here (`t`) and the one at Stripe (`r`).
NO_DRIFT = {
    # DECIDE chooses the best item, by what the products say.
    ("user_subscriptions", "stripe_product_id"): _OF_AN_ITEM,
    ("user_subscriptions", "stripe_price_id"): _OF_AN_ITEM,
    ("user_subscriptions", "quantity"): _OF_AN_ITEM,
    # A list shows the first lines; here there may be all of them.
    ("stripe_invoices", "lines"): "NOT r.lines_complete",
    ("stripe_invoices", "lines_complete"): "NOT r.lines_complete",
    # Shown only when asked for.
    ("stripe_checkout_sessions", "line_items"): "r.line_items IS NULL",
}
# What Stripe lists but sends no event of yet, in SQL over the row at Stripe: it is not missing here.
UNTOLD = {
    "stripe_checkout_sessions": "r.status = 'open'",
    "stripe_invoice_payments": "r.status IS DISTINCT FROM 'paid'",
}
# Rows that Dues made of what others say (workers/shapes.py: invoice_payment_of); Stripe lists none of them.
_OUR_OWN = {"stripe_invoice_payments": "t.id LIKE '%:%'"}
# Amounts that must add up alike, in minor units. Refunds do not say which mode they are of; charges add them up.
MONEY = {
    "stripe_invoices": ("amount_paid", "amount_remaining"),
    "payment_history": ("amount_received",),
    "stripe_charges": ("amount_captured", "amount_refunded"),
    "stripe_disputes": ("amount",),
}

Totals = dict[str, dict[str, int]]
"""`{currency: {column: sum}}`, in minor units."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A row that is not what Stripe says; `columns` names where, and is empty if there is no row (or only a stub)."""

    id: str
    columns: tuple[str, ...]


@functools.cache
def _comparison(name: str) -> str:
    columns = [column for column in columns_of(name)[1:] if column not in VOLATILE.union(BOOKKEEPING) - {"livemode"}]
    differing = ", ".join(
        f"CASE WHEN t.{column} IS DISTINCT FROM r.{column} AND NOT coalesce({NO_DRIFT.get((name, column), 'false')},"
        f" false) THEN '{column}' END"
        for column in columns
    )
    return (
        f"SELECT r.id, CASE WHEN t.id IS NULL OR t.source = 'stub' THEN '{{}}' ELSE array_remove(ARRAY[{differing},"
        " CASE WHEN (t.deleted_at IS NULL) <> (r.deleted_at IS NULL) THEN 'deleted_at' END], NULL) END AS columns,"
        " t.id IS NULL OR t.source = 'stub' AS missing"
        f" FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r({typed(name, columns_of(name))})"
        f" LEFT JOIN {name} t ON t.id = r.id"
        # What is newer here, or on its way through the ledger, is not drift.
        f" WHERE (t.as_of <= r.as_of OR t.id IS NULL AND NOT coalesce({UNTOLD.get(name, 'false')}, false))"
        " AND NOT EXISTS (SELECT FROM stripe_events e WHERE e.object_id = r.id AND e.status = 'received')"
        " ORDER BY r.id"
    )


def differences(connection: Connection, name: str, rows: Sequence[Row]) -> list[Difference]:
    """Compare `rows` (all of `columns_of(name)`) as Stripe tells them with those of table `name`, by id."""
    found = connection.execute(text(_comparison(name)), {"rows": json.dumps(list(rows))})
    return [Difference(row.id, tuple(row.columns)) for row in found if row.missing or row.columns]


def absent(
    connection: Connection,
    name: str,
    seen: Collection[str],
    *,
    livemode: bool,
    after: datetime | None,
    until: datetime,
) -> list[str]:
    """The rows created in (after, until] that are alive here and not among `seen`, the ids that Stripe listed."""
    rows = connection.execute(
        text(
            f"SELECT t.id FROM {name} t WHERE t.created <= :until AND (CAST(:after AS timestamptz) IS NULL"
            " OR t.created > :after) AND t.livemode = :livemode AND t.deleted_at IS NULL AND t.source <> 'stub'"
            f" AND NOT {_OUR_OWN.get(name, 'false')} AND t.id <> ALL(:seen) ORDER BY t.id"
        ),
        {"seen": sorted(seen), "livemode": livemode, "after": after, "until": until},
    )
    return [row.id for row in rows]


def totals(connection: Connection, name: str, *, livemode: bool, since: datetime | None, until: datetime) -> Totals:
    """What the rows of a table that carries money, created in [since, until), add up to."""
    columns = MONEY[name]
    sums = ", ".join(f"coalesce(sum(t.{column}), 0)::bigint AS {column}" for column in columns)
    rows = connection.execute(
        text(
            f"SELECT t.currency, {sums} FROM {name} t WHERE t.currency IS NOT NULL AND t.livemode = :livemode"
            " AND t.deleted_at IS NULL AND t.created < :until AND (CAST(:since AS timestamptz) IS NULL"
            " OR t.created >= :since) GROUP BY 1 ORDER BY 1"
        ),
        {"livemode": livemode, "since": since, "until": until},
    )
    return {row.currency: {column: getattr(row, column) for column in columns} for row in rows}
