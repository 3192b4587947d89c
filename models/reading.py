"""What the read API asks of the database: one user, their subscriptions and payments, and what is on sale.

Money is in minor units of its currency. The caller opens the transaction, and one that sees a single moment: REPEATABLE
READ.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, text

TWO_DECIMALS = 2
# Every other currency of Stripe's has two decimals; ISK and UGX, which have none by now, are still sent with two:
# https://docs.stripe.com/currencies#special-cases.
_WITHOUT_DECIMALS = "bif clp djf gnf jpy kmf krw mga pyg rwf vnd vuv xaf xof xpf"
_WITH_THREE_DECIMALS = "bhd jod kwd omr tnd"
EXPONENTS = {
    currency: exponent
    for currencies, exponent in ((_WITHOUT_DECIMALS, 0), (_WITH_THREE_DECIMALS, 3))
    for currency in currencies.split()
}

_USER = """
    SELECT id, email, name, role::text, membership_status::text, stripe_product_id, grace_until, tokens,
        tokens_expires_at, now() AS now
    FROM users WHERE {condition}
"""
_BY_ID = text(_USER.format(condition="id = :value"))
_BY_EMAIL = text(_USER.format(condition="lower(email) = lower(CAST(:value AS text))"))


def user_by_id(connection: Connection, user_id: str) -> Row[Any] | None:
    """The user, with the database's time as `now`; null if there is none."""
    return connection.execute(_BY_ID, {"value": user_id}).one_or_none()


def user_by_email(connection: Connection, email: str) -> Row[Any] | None:
    """The same by e-mail, in whatever case."""
    return connection.execute(_BY_EMAIL, {"value": email}).one_or_none()


_NEWS = text(
    """
    SELECT max(as_of) AS as_of, max(updated_at) AS heard_at, coalesce(bool_or(contested), false) AS contested FROM (
        SELECT as_of, updated_at, contested, source FROM stripe_customers WHERE user_id = :user
        UNION ALL
        SELECT a.as_of, a.updated_at, a.contested, a.source
        FROM stripe_customers p JOIN stripe_customers a ON a.alias_of = p.id WHERE p.user_id = :user
        UNION ALL
        SELECT as_of, updated_at, contested, source FROM user_subscriptions WHERE user_id = :user
    ) AS rows WHERE source <> 'stub'
    """,
)


def news(connection: Connection, user_id: str) -> Row[Any]:
    """What Stripe has said about this user: `as_of` when, `heard_at` since when we know, and if a row is `contested`.

    Times are null if it has said nothing.
    """
    return connection.execute(_NEWS, {"user": user_id}).one()


# Of a subscription that is only named (a stub) nothing can be shown.
_SUBSCRIPTIONS = text(
    """
    SELECT s.id, s.as_of, s.status, s.quantity, s.current_period_start, s.current_period_end, s.cancel_at_period_end,
        s.cancel_at, s.stripe_product_id, p.name AS product_name, p.metadata AS product_metadata,
        s.stripe_price_id, r.metadata AS price_metadata, r.unit_amount, r.currency, r.recurring_interval
    FROM user_subscriptions s
    LEFT JOIN stripe_products p ON p.id = s.stripe_product_id
    LEFT JOIN stripe_prices r ON r.id = s.stripe_price_id
    WHERE s.user_id = :user AND s.status IS NOT NULL
    """,
)


def subscriptions(connection: Connection, user_id: str) -> Sequence[Row[Any]]:
    """All of a user's subscriptions, each with its best item's product and price."""
    return connection.execute(_SUBSCRIPTIONS, {"user": user_id}).all()


_UNPAID = text(
    """
    SELECT stripe_subscription_id, id, status, created, collection_method, finalized_at, due_date FROM stripe_invoices
    WHERE stripe_subscription_id = ANY(:ids) AND status IN ('open', 'uncollectible')
    """,
)


def unpaid_invoices(connection: Connection, subscription_ids: Sequence[str]) -> Sequence[Row[Any]]:
    """The invoices that grace may run from: their subscription's id, then the fields of `entitlements.Invoice`."""
    return connection.execute(_UNPAID, {"ids": sorted(subscription_ids)}).all()


# A payment without `created` is a stub: it is shown once Stripe has told of it. What several objects of old API
# versions tell of its invoice comes after Stripe's own word, whose ids have no ":".
_PAYMENTS = text(
    """
    SELECT p.id, p.amount, p.amount_received, c.amount_refunded, p.currency, p.status,
        c.disputed OR EXISTS (
            SELECT FROM stripe_disputes d WHERE d.payment_intent_id = p.id OR d.charge_id = ANY(c.ids)
        ) AS disputed,
        i.invoice_id, i.subscription_id, c.receipt_url, p.created
    FROM (
        SELECT id, amount, amount_received, currency, status, created FROM payment_history
        WHERE user_id = :user AND (created, id) < (CAST(:created AS timestamptz), :id)
        ORDER BY created DESC, id DESC LIMIT :limit
    ) AS p
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(amount_refunded), 0)::bigint AS amount_refunded,
            coalesce(bool_or(disputed), false) AS disputed,
            coalesce(array_agg(id), '{}') AS ids,
            (array_agg(receipt_url ORDER BY status = 'succeeded' DESC NULLS LAST, created DESC NULLS LAST, id)
                FILTER (WHERE receipt_url IS NOT NULL))[1] AS receipt_url
        FROM stripe_charges WHERE payment_intent_id = p.id
    ) AS c
    LEFT JOIN LATERAL (
        SELECT ip.stripe_invoice_id AS invoice_id, inv.stripe_subscription_id AS subscription_id
        FROM stripe_invoice_payments ip LEFT JOIN stripe_invoices inv ON inv.id = ip.stripe_invoice_id
        WHERE (ip.payment_intent_id = p.id OR ip.charge_id = ANY(c.ids)) AND ip.stripe_invoice_id IS NOT NULL
        ORDER BY position(':' IN ip.id) > 0, ip.status = 'paid' DESC NULLS LAST, ip.id LIMIT 1
    ) AS i ON true
    ORDER BY p.created DESC, p.id DESC
    """,
)


def payments(
    connection: Connection, user_id: str, limit: int, *, after: tuple[datetime, str] | None = None
) -> Sequence[Row[Any]]:
    """At most `limit` payments of a user, newest first; those that follow `after` (`created`, id) in that order."""
    created, last = ("infinity", "") if after is None else (after[0].isoformat(), after[1])
    parameters = {"user": user_id, "created": created, "id": last, "limit": limit}
    return connection.execute(_PAYMENTS, parameters).all()


_ON_SALE = text(
    """
    SELECT p.id AS product_id, p.name, p.description, p.metadata AS product_metadata,
        r.id, r.unit_amount, r.unit_amount_decimal, r.currency, r.type, r.recurring_interval,
        r.recurring_interval_count, r.nickname, r.lookup_key, r.metadata
    FROM stripe_products p JOIN stripe_prices r ON r.stripe_product_id = p.id
    WHERE p.active AND p.deleted_at IS NULL AND r.active AND r.deleted_at IS NULL
    ORDER BY p.created NULLS LAST, p.id, r.created NULLS LAST, r.id
    """,
)

_CATALOGUE_NEWS = text(
    """
    SELECT max(as_of) FROM (
        SELECT as_of FROM stripe_products WHERE source <> 'stub'
        UNION ALL SELECT as_of FROM stripe_prices WHERE source <> 'stub'
    ) AS rows
    """,
)


def on_sale(connection: Connection) -> Sequence[Row[Any]]:
    """Every active price of an active product beside it: oldest product first, and of each the oldest price."""
    return connection.execute(_ON_SALE).all()


def catalogue_as_of(connection: Connection) -> datetime | None:
    """When Stripe was last heard of about any product or price, those no longer on sale too."""
    moment: datetime | None = connection.execute(_CATALOGUE_NEWS).scalar_one()
    return moment


_LOCK = text("SELECT id FROM users WHERE id = :user FOR NO KEY UPDATE")
_CLOCK = text("SELECT clock_timestamp()")


def lock_user(connection: Connection, user_id: str) -> datetime | None:
    """Lock the user until the end of the transaction and return the database's time then; null if there is none."""
    if connection.execute(_LOCK, {"user": user_id}).one_or_none() is None:
        return None
    # A statement of its own, because the lock may have been waited for.
    moment: datetime = connection.execute(_CLOCK).scalar_one()
    return moment


_WRITE_EXPIRY = text(
    """
    UPDATE users SET tokens_expires_at = CAST(:at AS timestamptz),
        next_change_at = least(next_change_at, CAST(:at AS timestamptz))
    WHERE id = :user
    """,
)


def write_tokens_expiry(connection: Connection, user_id: str, expires_at: datetime | None) -> None:
    """Write when the next of a (locked) user's tokens expire; by then they are decided anew."""
    connection.execute(_WRITE_EXPIRY, {"user": user_id, "at": expires_at})
