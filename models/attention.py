"""What waits for a person: nobody else can decide it, or somebody ought to know of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, text

from models.upsert import LOCK_ORDER

SHOWN = 5

_HAS_PAID = """(
    EXISTS (SELECT FROM user_subscriptions s WHERE s.stripe_customer_id = c.id
        AND s.status IN ('active', 'trialing', 'past_due'))
    OR EXISTS (SELECT FROM payment_history p WHERE p.stripe_customer_id = c.id AND p.status = 'succeeded')
)"""

# Whom each object names outright; e-mails are left aside, since the weakest evidence may well be wrong.
_CLAIMS = """
    SELECT id AS customer, metadata ->> 'user_id' AS named FROM stripe_customers
    UNION ALL SELECT id, metadata ->> 'userId' FROM stripe_customers
    UNION ALL SELECT stripe_customer_id, metadata ->> 'user_id' FROM user_subscriptions
    UNION ALL SELECT stripe_customer_id, metadata ->> 'userId' FROM user_subscriptions
    UNION ALL SELECT stripe_customer_id, metadata ->> 'user_id' FROM stripe_checkout_sessions WHERE payment_link IS NULL
    UNION ALL SELECT stripe_customer_id, metadata ->> 'userId' FROM stripe_checkout_sessions WHERE payment_link IS NULL
    UNION ALL SELECT stripe_customer_id, client_reference_id FROM stripe_checkout_sessions WHERE payment_link IS NULL
"""

_FIGURE = "0*(1000000000|[0-9]{1,9})"
# What the metadata of products and prices may say (CONTRACT §5); whatever else stands there counts as nothing.
WELL_FORMED = {
    "role": "USER|PREMIUM",
    "rank": "-?[0-9]+",
    "grace_days": "0*([0-9]{1,4}|[12][0-9]{4}|3[0-5][0-9]{3}|36[0-4][0-9]{2}|36500)",
    "tokens": _FIGURE,
    "trial_tokens": _FIGURE,
    "tokens_policy": "reset|rollover",
    "tokens_days": _FIGURE,
}
_OF_PRICES = {key: form for key, form in WELL_FORMED.items() if key not in {"role", "rank"}}


def _malformed(table: str, forms: Mapping[str, str]) -> str:
    rules = ", ".join(f"('{key}', '^({form})$')" for key, form in forms.items())
    return (
        f"SELECT t.id || ' ' || said.key AS id FROM {table} t CROSS JOIN jsonb_each_text(t.metadata) AS said"
        f" JOIN (VALUES {rules}) AS rule(key, form) ON rule.key = said.key AND said.value !~ rule.form"
        " WHERE t.deleted_at IS NULL"
    )


# Each selects an `id` for every case, in the words in which a person would look for it.
_LOOKS = {
    "orphans": f"""
        SELECT c.id FROM stripe_customers c
        WHERE c.user_id IS NULL AND c.alias_of IS NULL AND c.linked_by IS NULL AND c.deleted_at IS NULL AND {_HAS_PAID}
    """,
    "conflicts": f"""
        SELECT claim.customer AS id FROM ({_CLAIMS}) AS claim JOIN users u ON u.id = claim.named
        WHERE claim.customer IS NOT NULL
            AND NOT EXISTS (SELECT FROM customer_links l WHERE l.stripe_customer_id = claim.customer)
        GROUP BY 1 HAVING count(DISTINCT claim.named) > 1
    """,
    "overrides": """
        SELECT o.user_id AS id FROM user_overrides o
        WHERE o.user_id IS NOT NULL AND o.reason = 'users.role was written directly' AND o.ended_at IS NULL
            AND (o.expires_at IS NULL OR o.expires_at > clock_timestamp())
    """,
    "contested": " UNION ALL ".join(f"SELECT id FROM {table} WHERE contested" for table in LOCK_ORDER),
    "purchases": """
        SELECT s.id FROM stripe_checkout_sessions s LEFT JOIN payment_history p ON p.id = s.payment_intent_id
        WHERE s.mode = 'payment' AND s.status = 'complete' AND s.line_items IS NULL AND s.metadata ->> 'tokens' IS NULL
            AND p.metadata ->> 'tokens' IS NULL AND (s.payment_status = 'no_payment_required' OR p.status = 'succeeded')
    """,
    "metadata": f"{_malformed('stripe_products', WELL_FORMED)} UNION ALL {_malformed('stripe_prices', _OF_PRICES)}",
    "dead": "SELECT id FROM stripe_events WHERE status = 'dead'",
    # Decisions and events that nobody has taken up for minutes: beat, or the workers, are not there.
    "undecided": "SELECT id FROM users WHERE next_change_at < clock_timestamp() - interval '5 minutes'",
    "waiting": """
        SELECT id FROM stripe_events WHERE status = 'received' AND due_at < clock_timestamp() - interval '5 minutes'
    """,
}
LOOKS = tuple(_LOOKS)


@dataclass(frozen=True, slots=True)
class Cases:
    """How many there are, and the first of them by id."""

    n: int
    ids: tuple[str, ...]


def look(connection: Connection, name: str) -> Cases:
    """The cases of one of LOOKS."""
    rows = connection.execute(
        text(f"SELECT count(*) OVER () AS n, id FROM ({_LOOKS[name]}) AS found ORDER BY id LIMIT {SHOWN}")
    ).all()
    return Cases(rows[0].n if rows else 0, tuple(row.id for row in rows))
