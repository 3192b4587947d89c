"""Subscriptions. `customer.subscription.deleted` is not a deletion but the change to `canceled`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from workers.shapes import (
    USER_KEYS,
    Handler,
    Json,
    flag_of,
    id_of,
    int_of,
    list_of,
    metadata_of,
    text_of,
    time_of,
    types,
)

FINAL = frozenset({"canceled", "incomplete_expired"})


def read(subscription: Json) -> dict[str, Any]:
    """Subscription → columns of `user_subscriptions`; periods from the items, or (before 2025-03-31) from the top."""
    items = [_item(item, subscription) for item in list_of(subscription, "items")]
    best = max(items, key=_order, default={})
    return {
        "created": time_of(subscription, "created"),
        "stripe_customer_id": id_of(subscription, "customer"),
        # Of several items DECIDE picks the best by what their products say, which is not known here.
        "stripe_product_id": best.get("product"),
        "stripe_price_id": best.get("price"),
        "status": text_of(subscription, "status"),
        "quantity": best.get("quantity"),
        "current_period_start": best.get("current_period_start") or time_of(subscription, "current_period_start"),
        "current_period_end": best.get("current_period_end") or time_of(subscription, "current_period_end"),
        "cancel_at_period_end": flag_of(subscription, "cancel_at_period_end"),
        "cancel_at": time_of(subscription, "cancel_at"),
        "canceled_at": time_of(subscription, "canceled_at"),
        "ended_at": time_of(subscription, "ended_at"),
        "trial_start": time_of(subscription, "trial_start"),
        "trial_end": time_of(subscription, "trial_end"),
        "latest_invoice_id": id_of(subscription, "latest_invoice"),
        "items": items,
        "metadata": metadata_of(subscription),
    }


def _item(item: Json, subscription: Json) -> dict[str, Any]:
    """One item, the same whether it came in the old shape or the new one."""
    price = item.get("price") or item.get("plan")
    return {
        "id": id_of(item, "id"),
        "price": id_of({"price": price}, "price"),
        "product": id_of(price, "product") if isinstance(price, dict) else None,
        "quantity": int_of(item, "quantity"),
        "current_period_start": time_of(item, "current_period_start") or time_of(subscription, "current_period_start"),
        "current_period_end": time_of(item, "current_period_end") or time_of(subscription, "current_period_end"),
    }


def _order(item: Json) -> tuple[str, str]:
    return item["current_period_end"] or "", item["id"] or ""


def named(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The products and prices of all items: any of them may turn out to be the best."""
    for item in row["items"]:
        for key, table in (("product", "stripe_products"), ("price", "stripe_prices")):
            if item[key] is not None:
                yield table, item[key]


def progress(subscription: Json) -> tuple[int, ...]:
    """Incomplete < running < canceled or expired: a subscription never goes back."""
    status = text_of(subscription, "status")
    return (0 if status == "incomplete" else 2 if status in FINAL else 1,)


HANDLER = Handler(
    object_type="subscription",
    table="user_subscriptions",
    events=types(
        "customer.subscription",
        "created",
        "updated",
        "deleted",
        "paused",
        "resumed",
        "pending_update_applied",
        "pending_update_expired",
    ),
    read=read,
    progress=progress,
    watched=(*USER_KEYS, "t.stripe_customer_id", "t.created"),
    terminal=types("customer.subscription", "deleted"),
    names=named,
    customer_column="stripe_customer_id",
    is_evidence=True,
)
