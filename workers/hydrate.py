"""Has Stripe asked about rows that say less than Stripe knows; beat looks every minute.

Stubs, contested rows, invoices whose lines were cut off, and packs whose line items name what was bought. Each becomes
work of the lane `api` (`asking.py`), once per object and state: the live lane never waits for Stripe.
"""

from __future__ import annotations

import json

from sqlalchemy import Engine, text

from models import ledger
from models.upsert import LOCK_ORDER
from workers.asking import FETCH

# So many objects at a time, and as many again a minute later.
LIMIT = 200
# What a webhook leaves open is mostly told by another one within moments.
PATIENCE_SECONDS = 10
# What Stripe could not tell is asked again after a day.
REST_SECONDS = 86400.0

# Why a row of any table, and of some, is asked about, in SQL over the row.
ANY = "t.source = 'stub' OR t.contested"
OF_TABLE = {
    "stripe_invoices": "NOT t.lines_complete AND t.status <> 'draft'",
    "stripe_checkout_sessions": "t.mode = 'payment' AND t.status = 'complete' AND t.line_items IS NULL"
    " AND NOT t.metadata ? 'tokens'",
}
# Rows that Dues made of what others say (workers/shapes.py: invoice_payment_of); Stripe knows none of them.
OUR_OWN = {"stripe_invoice_payments": "t.id LIKE '%:%'"}


def _wanting(name: str) -> str:
    """The rows of a table that are to be asked about, each with the id of the work that this makes."""
    return (
        f"SELECT '{name}' AS name, t.id,"
        f" concat_ws(':', 'dues_hydrate', '{name}', t.id, extract(epoch FROM t.as_of)::bigint) AS work"
        f" FROM {name} t WHERE ({ANY} OR {OF_TABLE.get(name, 'false')}) AND NOT {OUR_OWN.get(name, 'false')}"
        " AND t.deleted_at IS NULL AND t.updated_at < clock_timestamp() - make_interval(secs => :patience)"
    )


_WANTING = text(
    f"""
    SELECT name, id, work FROM ({" UNION ALL ".join(map(_wanting, LOCK_ORDER))}) AS wanting
    WHERE NOT EXISTS (
        SELECT FROM stripe_events e WHERE e.id = wanting.work
        AND (e.status = 'received' OR e.processed_at > clock_timestamp() - make_interval(secs => :rest))
    ) LIMIT :limit
    """,
)


def ask_for_all(engine: Engine, *, patience: float = PATIENCE_SECONDS, limit: int = LIMIT) -> int:
    """Have Stripe asked about rows that have wanted it for `patience` seconds; returns how many are new."""
    with engine.begin() as connection:
        parameters = {"patience": patience, "rest": REST_SECONDS, "limit": limit}
        wanting = connection.execute(_WANTING, parameters).all()
        for row in wanting:
            payload = json.dumps({"objects": [[row.name, row.id]]}).encode()
            ledger.ask(connection, row.work, FETCH, payload, rest=REST_SECONDS, is_awaited=False)
    return len(wanting)
