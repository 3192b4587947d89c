"""The least that another writer has to give for a row of each table."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import sql

MIRRORED = (
    "stripe_products",
    "stripe_prices",
    "stripe_customers",
    "user_subscriptions",
    "payment_history",
    "stripe_invoices",
    "stripe_invoice_payments",
    "stripe_charges",
    "stripe_refunds",
    "stripe_disputes",
    "stripe_checkout_sessions",
)
LATER = "2030-01-01T00:00:00Z"

LEAST: dict[str, dict[str, Any]] = {
    "users": {"id": "u1"},
    "accounts": {"id": "a1", "user_id": "u1", "type": "oauth", "provider": "google", "provider_account_id": "1"},
    "sessions": {"id": "s1", "session_token": "t1", "user_id": "u1", "expires": LATER},
    "verification_tokens": {"identifier": "a@example.com", "token": "t1", "expires": LATER},
    **{table: {"id": "x1"} for table in MIRRORED},
    "stripe_metadata_history": {"object_id": "x1", "as_of": LATER},
    "stripe_events": {"id": "evt_1", "type": "product.created"},
    "token_ledger": {"kind": "grant", "amount": 1, "key": "k1"},
    "membership_changes": {"user_id": "u1"},
    "customer_links": {"stripe_customer_id": "x1", "author": "somebody"},
    "user_overrides": {"kind": "pause", "author": "somebody"},
    "sync_runs": {"kind": "products"},
}


def insert(connection: psycopg.Connection, table: str, **values: Any) -> dict[str, Any]:
    """Insert a row and return it as the database completed it."""
    row = {**LEAST[table], **values}
    statement = sql.SQL("INSERT INTO {} ({}) VALUES ({}) RETURNING to_jsonb({})").format(
        sql.Identifier(table),
        sql.SQL(", ").join(map(sql.Identifier, row)),
        sql.SQL(", ").join(sql.Placeholder() * len(row)),
        sql.Identifier(table),
    )
    found = connection.execute(statement, list(row.values())).fetchone()
    assert found is not None
    return dict(found[0])
