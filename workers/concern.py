"""Whom do facts concern? From objects that name no user to customers, and from there LINK knows the user.

Everything here is to be asked in a transaction of its own, after the one that wrote the objects: whoever writes a row
that this does not find yet will find the objects as they are now.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from sqlalchemy import Connection, text

from models.settings import Settings
from workers import identity
from workers.link import load_users, rules_of
from workers.shapes import Concern
from workers.snapshots import Effects

# A line may name the price alone, whose product is what changed.
_WITH = text(
    """
    WITH objects AS (
        SELECT unnest(CAST(:ids AS text[])) AS id UNION SELECT id FROM stripe_prices WHERE stripe_product_id = ANY(:ids)
    ), items AS (
        SELECT jsonb_build_array(jsonb_build_object('product', id)) AS one FROM objects
        UNION ALL SELECT jsonb_build_array(jsonb_build_object('price', id)) FROM objects
    )
    SELECT stripe_customer_id AS id FROM (
        SELECT s.stripe_customer_id FROM objects o JOIN user_subscriptions s ON s.stripe_product_id = o.id
        UNION SELECT s.stripe_customer_id FROM objects o JOIN user_subscriptions s ON s.stripe_price_id = o.id
        UNION SELECT s.stripe_customer_id FROM items JOIN user_subscriptions s ON s.items @> items.one
        UNION SELECT coalesce(i.stripe_customer_id, s.stripe_customer_id)
        FROM items JOIN stripe_invoices i ON i.lines @> items.one
        LEFT JOIN user_subscriptions s ON s.id = i.stripe_subscription_id
        UNION SELECT c.stripe_customer_id FROM items JOIN stripe_checkout_sessions c ON c.line_items @> items.one
    ) AS found WHERE stripe_customer_id > :after ORDER BY id LIMIT :limit
    """,
)


def customers_with(connection: Connection, objects: Collection[str], *, limit: int, after: str = "") -> list[str]:
    """The customers, ordered by id and from behind `after`, who have or were billed one of these products or prices."""
    if not objects:
        return []
    parameters = {"ids": sorted(objects), "after": after, "limit": limit}
    return [row.id for row in connection.execute(_WITH, parameters)]


_OF = text(
    """
    WITH charges AS (
        SELECT id, payment_intent_id, stripe_customer_id FROM stripe_charges WHERE id = ANY(:charge)
    ), intents AS (
        SELECT unnest(CAST(:payment_intent AS text[])) AS id UNION SELECT payment_intent_id FROM charges
    ), invoices AS (
        SELECT unnest(CAST(:invoice AS text[])) AS id
        UNION SELECT stripe_invoice_id FROM stripe_invoice_payments
            WHERE payment_intent_id IN (SELECT id FROM intents) OR charge_id = ANY(:charge)
    )
    SELECT stripe_customer_id AS id FROM charges
    UNION SELECT stripe_customer_id FROM payment_history WHERE id IN (SELECT id FROM intents)
    UNION SELECT coalesce(i.stripe_customer_id, s.stripe_customer_id) FROM stripe_invoices i
        LEFT JOIN user_subscriptions s ON s.id = i.stripe_subscription_id WHERE i.id IN (SELECT id FROM invoices)
    UNION SELECT stripe_customer_id FROM stripe_checkout_sessions WHERE payment_intent_id IN (SELECT id FROM intents)
    """,
)


def customers_of(connection: Connection, objects: Mapping[Concern, Collection[str]]) -> set[str]:
    """The customers of invoices, PaymentIntents and charges, as far as anything says it."""
    if not any(objects.values()):
        return set()
    parameters = {kind: sorted(objects.get(kind, ())) for kind in ("invoice", "payment_intent", "charge")}
    return {row.id for row in connection.execute(_OF, parameters) if row.id is not None}


_GUESTS = text(
    """
    SELECT id, stripe_customer_id, created, metadata, client_reference_id, payment_link, email, (
        SELECT user_id FROM payment_history p WHERE p.id = payment_intent_id AND p.stripe_customer_id IS NULL
    ) AS former
    FROM stripe_checkout_sessions
    WHERE stripe_customer_id IS NULL AND (id = ANY(:ids) OR payment_intent_id = ANY(:intents) OR payment_intent_id IN (
        SELECT payment_intent_id FROM stripe_charges WHERE id = ANY(:charges)
    ))
    """,
)


def guests_of(connection: Connection, settings: Settings, effects: Effects) -> set[str]:
    """The users whom sessions without a customer name: those of this list, and those that these payments paid.

    A session that names somebody else by now concerns the former user too, whose the payment was till now.
    """
    intents, charges = effects.objects.get("payment_intent", set()), effects.objects.get("charge", set())
    if not (effects.guests or intents or charges):
        return set()
    parameters = {"ids": sorted(effects.guests), "intents": sorted(intents), "charges": sorted(charges)}
    rows = connection.execute(_GUESTS, parameters).all()
    sessions = [identity.Session(*row[:7]) for row in rows]
    named = identity.named_users(identity.Evidence(sessions=sessions))
    users = load_users(connection, named.ids)
    found = identity.resolve_guests(sessions, users, rules_of(settings)).values()
    owners = {*(link.owner_id for link in found), *(row.former for row in rows)}
    return {owner for owner in owners if owner is not None}
