"""What the simulated Stripe's own state implies for the database: told from its objects, not from events.

A second, plain telling of CONTRACT §5 for people with one subscription each, so that the demo can't praise itself.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from sqlalchemy import Connection, text

from simulator.calendar import DAY
from simulator.objects import Subscription
from simulator.people import User
from simulator.state import Stripe

GRACE_S = 3 * DAY


def differences(connection: Connection, stripe: Stripe, people: Sequence[User]) -> list[str]:
    """Every way in which the database is not what Stripe's state implies, as sentences; none is what we want."""
    return [*_subscriptions(connection, stripe), *_users(connection, stripe, people)]


def _subscriptions(connection: Connection, stripe: Stripe) -> Iterator[str]:
    found = connection.execute(
        text(
            "SELECT id, status, stripe_price_id, extract(epoch FROM current_period_end)::bigint AS period_end"
            " FROM user_subscriptions"
        )
    )
    rows = {row.id: tuple(row)[1:] for row in found}
    for subscription in stripe.subscriptions.values():
        item = subscription.items[0]
        wanted = (subscription.status, item.price.id, item.current_period_end)
        if rows.get(subscription.id) != wanted:
            yield f"{subscription.id} is {rows.get(subscription.id)} instead of {wanted}"


def _users(connection: Connection, stripe: Stripe, people: Sequence[User]) -> Iterator[str]:
    found = connection.execute(text("SELECT id, role::text, membership_status::text, stripe_product_id FROM users"))
    rows = {row.id: tuple(row)[1:] for row in found}
    for person in people:
        wanted = standing(stripe, _subscription_of(stripe, person), int(time.time()))
        if rows.get(person.id) != wanted:
            yield f"{person.email} is {rows.get(person.id)} instead of {wanted}"


def _subscription_of(stripe: Stripe, person: User) -> Subscription | None:
    """The one subscription of a person, by the customers that Checkout or the merchant says are theirs."""
    customers = {session.customer for session in stripe.sessions.values() if session.client_reference_id == person.id}
    customers |= {
        customer.id for customer in stripe.customers.values() if customer.metadata.get("user_id") == person.id
    }
    return next((s for s in stripe.subscriptions.values() if s.customer in customers), None)


def standing(stripe: Stripe, subscription: Subscription | None, now: int) -> tuple[str, str, str | None]:
    """Role, status and product of somebody with this subscription, or none, at `now` (Unix seconds)."""
    if subscription is None:
        return "USER", "INACTIVE", None
    item = subscription.items[0]
    role = stripe.products[item.price.product].metadata.get("role", "PREMIUM")
    in_grace = subscription.status == "past_due" and now < item.current_period_start + GRACE_S
    status = {
        "active": "ACTIVE",
        "trialing": "ACTIVE",
        "past_due": "PAST_DUE",
        "unpaid": "PAST_DUE",
        "canceled": "CANCELED",
    }.get(subscription.status, "INACTIVE")
    return (role, status, item.price.product) if status == "ACTIVE" or in_grace else ("USER", status, None)
