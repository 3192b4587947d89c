"""Role, status, product and grace: CONTRACT §5, read aloud."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from tests.convergence.naive import FIRST, Facts, Row, Settings, age, by_id, moment, of

ROLES: Final = ("USER", "PREMIUM")
PRECEDENCE: Final = ("ban", "admin", "pause", "comp")


@dataclass(frozen=True, slots=True)
class _Access:
    """One subscription and what it is worth now."""

    row: Row
    role: str
    rank: int
    live: bool
    grace_until: datetime | None

    @property
    def goodness(self) -> tuple[int, bool, int, datetime, str]:
        end = self.row["current_period_end"] or FIRST
        return ROLES.index(self.role), self.live, self.rank, end, self.row["id"]


def answer(facts: Facts, settings: Settings, owned: Mapping[str, str], user: Row, now: datetime) -> dict[str, Any]:
    """`role`, `membership_status`, `stripe_product_id` and `grace_until` of a user at `now`."""
    subscriptions = [row for row in of(facts, "subscriptions") if owned.get(row["stripe_customer_id"]) == user["id"]]
    giving = [one for row in subscriptions for one in _access(facts, settings, row, now)]
    statuses = {row["status"] for row in subscriptions}
    best = max(giving, key=lambda one: one.goodness, default=None)
    if any(one.live for one in giving):
        status = "ACTIVE"
    elif giving or statuses & {"past_due", "unpaid"}:
        status = "PAST_DUE"
    else:
        status = "CANCELED" if "canceled" in statuses else "INACTIVE"
    role = best.role if best else "USER"
    product = best.row["stripe_product_id"] if best else None
    role, product = _overridden(facts, user, now, role, product)
    graces = [one.grace_until for one in giving if one.grace_until is not None]
    return {
        "role": role,
        "membership_status": status,
        "stripe_product_id": product,
        "grace_until": max(graces, default=None),
    }


def best_item(facts: Facts, subscription: Row) -> Row:
    """Of several items the one whose product, price and quantity stand on the subscription's row."""

    def goodness(item: Row) -> tuple[int, int, datetime, str]:
        metadata = (by_id(facts, "products", item["product"]) or {}).get("metadata") or {}
        end = item.get("current_period_end")
        return ROLES.index(_role(metadata)), _rank(metadata), moment(end) if end else FIRST, item["id"]

    return max(subscription["items"], key=goodness)


def _access(facts: Facts, settings: Settings, row: Row, now: datetime) -> Iterator[_Access]:
    product = by_id(facts, "products", row["stripe_product_id"]) or {}
    metadata = product.get("metadata") or {}
    role, rank = _role(metadata), _rank(metadata)
    if row["status"] in {"active", "trialing"}:
        yield _Access(row, role, rank, live=True, grace_until=None)
    elif row["status"] == "past_due":
        end = _grace_end(facts, settings, row, metadata)
        if end is not None and now < end:
            yield _Access(row, role, rank, live=False, grace_until=end)


def _grace_end(facts: Facts, settings: Settings, row: Row, product_metadata: Mapping[str, str]) -> datetime | None:
    unpaid = [
        invoice
        for invoice in of(facts, "invoices")
        if invoice["stripe_subscription_id"] == row["id"] and invoice["status"] in {"open", "uncollectible"}
    ]
    begin = row["current_period_start"]
    if unpaid:
        oldest = min(unpaid, key=age)
        column = "due_date" if oldest["collection_method"] == "send_invoice" else "finalized_at"
        begin = oldest[column] or begin
    price_metadata = (by_id(facts, "prices", row["stripe_price_id"]) or {}).get("metadata") or {}
    named = [one["grace_days"] for one in (price_metadata, product_metadata) if _is_digits(one.get("grace_days"))]
    days = int(named[0]) if named else settings["DUES_GRACE_DAYS"]
    return begin + timedelta(days=days) if begin else None


def _overridden(facts: Facts, user: Row, now: datetime, role: str, product: str | None) -> tuple[str, str | None]:
    mail = hashlib.sha256(user["email"].lower().encode()).hexdigest() if user["email"] else None
    running = [
        one
        for one in of(facts, "overrides")
        if (one["user_id"] == user["id"] or (one["kind"] == "ban" and mail and one["email_hash"] == mail))
        and (one["starts_at"] is None or one["starts_at"] <= now)
        and all(end is None or now < end for end in (one["expires_at"], one["ended_at"]))
    ]
    for kind in PRECEDENCE:
        of_kind = [one for one in running if one["kind"] == kind]
        if not of_kind:
            continue
        if kind != "comp":
            return {"ban": "BANNED", "admin": "ADMIN", "pause": "USER"}[kind], product
        comp = max(of_kind, key=lambda one: ROLES.index(one["role"]))
        if ROLES.index(comp["role"]) > ROLES.index(role):
            return comp["role"], comp["stripe_product_id"]
    return role, product


def _role(metadata: Mapping[str, str]) -> str:
    found = metadata.get("role")
    return found if found in ROLES else "PREMIUM"


def _rank(metadata: Mapping[str, str]) -> int:
    found = str(metadata.get("rank", ""))
    return int(found) if _is_digits(found.removeprefix("-")) else 0


def _is_digits(value: Any) -> bool:
    return isinstance(value, str) and value.isascii() and value.isdigit()
