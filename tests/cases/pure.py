"""Facts of a case for `workers.identity` and `workers.entitlements`, and what they say: no database anywhere."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from tests.cases.loading import Case, Row
from tests.cases.roads import Answers
from tests.cases.world import World, email_hash
from workers import entitlements, identity


def rules(case: Case) -> identity.Rules:
    """Read the trust in e-mails from a case's settings."""
    return identity.Rules(
        link_by_email=case.settings["DUES_LINK_BY_EMAIL"],
        trusted_providers=[name.strip() for name in case.settings["DUES_TRUSTED_PROVIDERS"].split(",")],
    )


def users(world: World) -> list[identity.User]:
    """Translate the users and their accounts."""
    accounts = defaultdict(list)
    for row in world.rows("accounts"):
        accounts[row["user_id"]].append(identity.Account(row["provider"], row["created_at"]))
    return [
        identity.User(row["id"], row["email"], row["email_verified"], row["email_changed_at"], accounts[row["id"]])
        for row in world.rows("users")
    ]


def evidence(world: World) -> identity.Evidence:
    """Translate whatever may tell whose customer each customer is."""
    return identity.Evidence(
        customers=[
            identity.Customer(row["id"], row["created"], row["deleted_at"] is not None, row["email"], row["metadata"])
            for row in world.rows("customers")
        ],
        subscriptions=[
            identity.Subscription(row["id"], row["stripe_customer_id"], row["created"], row["metadata"])
            for row in world.rows("subscriptions")
        ],
        sessions=[_session(row) for row in world.rows("sessions")],
        by_hand={row["customer"]: row["user_id"] for row in world.rows("links_by_hand")},
    )


def facts(world: World, case: Case, customers: set[str]) -> entitlements.Facts:
    """Translate the subscriptions of these customers."""
    return entitlements.Facts(
        [_subscription(world, row) for row in world.rows("subscriptions") if row["stripe_customer_id"] in customers],
        grace_days=case.settings["DUES_GRACE_DAYS"],
    )


def overrides(world: World, user: Row) -> list[entitlements.Override]:
    """Translate people's decisions about a user, and bans on whoever had the user's e-mail."""
    return [
        entitlements.Override(
            row["id"],
            row["kind"],
            row["role"],
            row["stripe_product_id"],
            row["starts_at"],
            row["expires_at"],
            row["ended_at"],
        )
        for row in world.rows("overrides")
        if row["user_id"] == user["id"] or _bans(row, user)
    ]


def _bans(override: Row, user: Row) -> bool:
    return override["kind"] == "ban" and bool(user["email"]) and override["email_hash"] == email_hash(user["email"])


def answers(world: World, links: Mapping[str, identity.Link], case: Case, now: datetime) -> Answers:
    """Whose each customer is, and everybody's role, status, product and grace."""
    owned: dict[str | None, set[str]] = defaultdict(set)
    for customer_id, link in links.items():
        owned[link.owner_id].add(customer_id)
    return {
        "links": {
            customer_id: {"user_id": link.user_id, "alias_of": link.alias_of} for customer_id, link in links.items()
        },
        "users": {
            user["id"]: _columns(
                entitlements.decide(facts(world, case, owned[user["id"]]), overrides(world, user), now),
            )
            for user in world.rows("users")
        },
    }


def _columns(decision: entitlements.Decision) -> dict[str, Any]:
    return {
        "role": decision.role,
        "membership_status": decision.status,
        "stripe_product_id": decision.product_id,
        "grace_until": decision.grace_until,
    }


def _session(row: Row) -> identity.Session:
    return identity.Session(
        row["id"],
        row["stripe_customer_id"],
        row["created"],
        row["metadata"],
        row["client_reference_id"],
        row["payment_link"],
        row["email"],
    )


def _subscription(world: World, row: Row) -> entitlements.Subscription:
    product = world.find("products", row["stripe_product_id"])
    price = world.find("prices", row["stripe_price_id"])
    return entitlements.Subscription(
        id=row["id"],
        status=row["status"],
        product_id=row["stripe_product_id"],
        price_id=row["stripe_price_id"],
        current_period_start=row["current_period_start"],
        current_period_end=row["current_period_end"],
        product_metadata=product["metadata"] if product else None,
        price_metadata=price["metadata"] if price else None,
        invoices=[
            _invoice(invoice) for invoice in world.rows("invoices") if invoice["stripe_subscription_id"] == row["id"]
        ],
    )


def _invoice(row: Row) -> entitlements.Invoice:
    return entitlements.Invoice(
        row["id"],
        row["status"],
        row["created"],
        row["collection_method"],
        row["finalized_at"],
        row["due_date"],
    )
